r"""What low rank costs a pretrained ViT-Tiny or DeiT-Tiny: decompositions, ranks and budgets, without any training.

    python -m lraqvit_jax.bench lowrank --config configs/vit_tiny_lowrank.py --workdir DIR \
        --config.weights=timm:vit_tiny_patch16_224.safetensors \
        --config.data.train='folder:PHOTOS?labels=none' --config.data.eval=folder:LABELLED

The images of data.train are for calibration. The rows of `runs` are trained where `grid.runs` names them.

    python -m lraqvit_jax.main --config configs/vit_tiny_lowrank.py --workdir DIR  # the pipeline at one budget
"""

from lraqvit_jax import config as base


def get_config():
    config = base.default()
    config.data.train = config.data.eval = "folder:images"
    config.augment = "random_resized_crop(0.4, 1)|flip_lr"
    config.batch_size = 24
    config.eval_batch_size = 50
    config.steps = 100
    config.checkpoint_every = 0
    config.log_every = 10
    config.optimizer.update(warmup=10)
    config.plan.update(method="logits", budget=0.9)
    config.factorize.calibration_images = 128
    config.runs = base.ladder(1e-4, alpha=0.0, beta=10.0, normalized=True, gamma=1.0)
    return config
