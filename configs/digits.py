"""The fastest end-to-end run: scikit-learn's 8 x 8 digits and a model of two small blocks. For tests.

python -m lraqvit_jax.main --config configs/digits.py --workdir /tmp/digits
"""

from lraqvit_jax import config as base


def get_config():
    config = base.default()
    config.model = "vit_pico"
    config.data.train = config.data.eval = "embedded:digits"
    config.preprocess.update(size=8, crop_pct=1.0, interpolation="bilinear")
    config.batch_size = 32
    config.eval_batch_size = 104
    config.steps = 20
    config.log_every = 5
    config.checkpoint_every = 10
    config.teacher.update(steps=40, learning_rate=3e-3, warmup=5)
    config.optimizer.update(learning_rate=5e-4)
    config.plan.multiple = 4
    config.factorize.calibration_images = 64
    config.runs = {"rb_lra_kd": base.run(decomposition="whitened", branch="zero")}
    config.quant.dense = False
    config.quant.methods.int8_wads.iterations = 20
    return config
