r"""A ViT-Tiny of ImageNet's, fine-tuned to a few classes at 64 pixels, made half as large, then int8: for a specialist.

    python -m lraqvit_jax.main --config configs/vit_tiny_cifar10.py --workdir DIR \
        --config.weights=timm:vit_tiny_patch16_224.safetensors \
        --config.data.train=folder:CIFAR10 --config.data.eval=folder:CIFAR10

The folder has train/ and test/ with one folder a class, or is tfds:cifar10. Any labelled folder of yours will do.
"""

from lraqvit_jax import config as base


def get_config():
    config = base.default()
    config.data.train = config.data.eval = "tfds:cifar10"
    config.image_size = 64
    config.num_classes = 10
    config.augment = "random_resized_crop(0.6, 1)|flip_lr"
    config.batch_size = 64
    config.eval_batch_size = 250
    config.teacher.update(steps=800, learning_rate=2e-4, warmup=50, weight_decay=0.05, grad_clip=1.0)
    config.steps = 1000
    config.checkpoint_every = 500
    config.optimizer.update(learning_rate=2e-4, warmup=50)
    config.plan.update(method="products", budget=0.5)
    config.factorize.update(baselines=("weighted_kfac",), calibration_images=1024)
    config.runs = {
        "kd": base.run(decomposition="weighted_kfac", branch="none", **base.UNLABELLED),
    }
    config.quant.update(source="kd")
    config.quant.methods = {
        "int8": base.quantizer(granularity="per_token_dynamic"),
        "int8_7": base.quantizer(granularity="per_token_dynamic", weight_bits=7),  # What AVX2 multiplies fastest.
    }
    config.export.artifacts = ("dense", "kd", "int8", "int8_7")
    return config
