"""What low rank costs a small Swin trained on CIFAR-10, row by row of the paper's ladder and its controls.

python -m lraqvit_jax.bench lowrank --config configs/swin_cifar10_lowrank.py --workdir DIR

It trains the Swin of configs/swin_cifar10.py first, or takes it as it is, with
--config.weights=artifact:DIR/checkpoints/dense --config.model= --config.teacher.steps=0.
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
    config.checkpoint_every = 0
    config.teacher.update(steps=4000, learning_rate=2e-3, warmup=250, weight_decay=0.05, grad_clip=1.0)
    config.teacher.label_smoothing = 0.1
    config.steps = 150
    config.optimizer.update(warmup=20)
    config.plan.update(multiple=4)
    config.runs = base.ladder(5e-4, alpha=1.0, beta=1.0)
    config.grid.update(methods=("uniform_ratio",), budgets=(0.9, 0.5), runs=tuple(config.runs))
    return config
