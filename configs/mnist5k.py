"""The demo: 5,000 real MNIST digits (4,000 to train, 1,000 held out), a four-block ViT, every stage.

python -m lraqvit_jax.main --config configs/mnist5k.py --workdir /tmp/mnist5k
"""

from lraqvit_jax import config as base


def get_config():
    config = base.default()
    config.model = "vit_nano"
    config.data.train = config.data.eval = "embedded:mnist5k"
    config.preprocess.update(size=28, crop_pct=1.0)
    config.augment = "random_affine(9, 0.08, 0.88, 1.12, 6)"
    config.batch_size = 128
    config.steps = 600
    config.checkpoint_every = 200
    config.teacher.update(steps=1300, learning_rate=2e-3, warmup=100, weight_decay=0.05, grad_clip=1.0)
    config.teacher.label_smoothing = 0.1
    config.optimizer.update(learning_rate=5e-4, warmup=20)
    config.plan.update(budget=0.5, multiple=4)
    labels_only = {"beta": 0.0, "steps": 150}
    config.runs = {
        "rb_lra_wr": base.run(branch="wr", **labels_only),
        "rb_lra_zero": base.run(branch="zero", **labels_only),
        "rb_lra_random": base.run(branch="random", **labels_only),
        "rb_lra_small_random": base.run(branch="small_random", **labels_only),
        "rb_lra_kd": base.run(decomposition="whitened", branch="zero"),
    }
    config.quant.methods = {
        "int8_naive": base.quantizer(granularity="per_tensor"),
        "int8_per_token": base.quantizer(granularity="per_token"),
        "int8_per_token_dynamic": base.quantizer(granularity="per_token_dynamic"),
        "int8_wads": base.quantizer(method="wads"),
        "int8_wads_weight_error": base.quantizer(method="wads", penalty="weight_error"),
    }
    return config
