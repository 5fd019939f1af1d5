"""A small Swin trained from scratch on CIFAR-10, halved and quantized.

python -m lraqvit_jax.main --config configs/swin_cifar10.py --workdir DIR

The images come from tfds, prepared once as ArrayRecord; a folder with train/ and test/ will do as well:
--config.data.train=folder:CIFAR10 --config.data.eval=folder:CIFAR10
"""

from lraqvit_jax import config as base


def get_config():
    config = base.default()
    config.model = "swin_nano"
    config.data.train = config.data.eval = "tfds:cifar10"
    config.preprocess.update(size=32, crop_pct=1.0)
    config.augment = "random_crop(4)|flip_lr"
    config.batch_size = 128
    config.eval_batch_size = 500
    config.checkpoint_every = 500
    config.teacher.update(steps=4000, learning_rate=2e-3, warmup=250, weight_decay=0.05, grad_clip=1.0)
    config.teacher.label_smoothing = 0.1
    config.steps = 600
    config.optimizer.update(learning_rate=5e-4, warmup=20)
    config.plan.update(budget=0.5, multiple=4)
    labels_only = {"beta": 0.0, "steps": 200}
    config.runs = {
        "rb_lra_wr": base.run(branch="wr", **labels_only),
        "rb_lra_zero": base.run(branch="zero", **labels_only),
        "rb_lra_kd": base.run(decomposition="whitened", branch="zero"),
    }
    config.quant.granularity = "per_token_dynamic"
    config.quant.methods = {
        "int8_naive": base.quantizer(granularity="per_tensor"),
        "int8_per_token": base.quantizer(granularity="per_token"),
        "int8_per_token_dynamic": base.quantizer(granularity="per_token_dynamic"),
        "int8_wads": base.quantizer(method="wads"),
    }
    return config
