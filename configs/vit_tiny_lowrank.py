r"""What low rank costs a pretrained ViT-Tiny or DeiT-Tiny: decompositions, ranks and budgets, without any training.

    python -m lraqvit_jax.bench lowrank --config configs/vit_tiny_lowrank.py --workdir DIR \
        --config.weights=timm:vit_tiny_patch16_224.safetensors \
        --config.data.train='folder:PHOTOS?labels=none' --config.data.eval=folder:LABELLED

The images of data.train are for calibration. The rows of `runs` are trained where `grid.runs` names them.

    python -m lraqvit_jax.main --config configs/vit_tiny_lowrank.py --workdir DIR  # the pipeline at one budget
"""

from lraqvit_jax import config as base


def get_config():
    config = base.photographs()
    config.steps = 100
    config.checkpoint_every = 0
    config.optimizer.update(warmup=10)
    config.plan.update(method="logits", budget=0.9)
    config.factorize.calibration_images = 128
    config.runs = base.ladder(1e-4, **base.UNLABELLED)
    return config
