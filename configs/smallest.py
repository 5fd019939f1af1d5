r"""The smallest model that is good enough: budget, channels, ranks and bits are found, not given.

    python -m lraqvit_jax.main --config configs/smallest.py --workdir DIR --config.goal.max_drop=1.0 \
        --config.weights=timm:vit_tiny_patch16_224.safetensors \
        --config.data.train="folder:PHOTOS?labels=none" --config.data.eval=folder:LABELLED

`configs/smallest.py:float` stays in floats: the fewest parameters, or, with `--config.plan.unit=macs`, operations.

`goal` says what is good enough (lraqvit_jax/options/goal.py): `max_drop` or `min_top1`, `max_mb`, `max_macs`, `params`,
and `max_ms` with `plan.latency`, the table of the device (`python -m lraqvit_jax.bench layers`). Half of data.eval is
asked while searching, the other half only at the end. `--config.steps=400` distils as well, and goes on below what is
found without.
"""

import dataclasses

from lraqvit_jax import config as base
from lraqvit_jax.base.errors import UserError


def get_config(forms: str = "integers"):
    if forms not in ("integers", "float"):
        raise UserError(
            f"configs/smallest.py:{forms} is not known; write configs/smallest.py or configs/smallest.py:float."
        )
    integers = forms == "integers"
    config = base.photographs()
    config.steps = 0
    config.plan.update(method="products", unit="bytes" if integers else "params")
    config.factorize.update(baselines=(), calibration_images=128)
    run = base.run(decomposition="weighted_kfac", branch="none", **base.UNLABELLED)
    config.runs = {"low_rank" if integers else "smallest": run}
    config.optimizer.update(learning_rate=5e-5, warmup=20)
    config.quant.update(source="low_rank", dense=integers)
    config.quant.methods = {}
    if integers:
        config.plan.widths = base.SMALLEST_WIDTHS
        config.quant.methods = {"smallest": base.quantizer(**dataclasses.asdict(base.SMALLEST_QUANTIZER))}
    config.export.artifacts = ("smallest",)
    return config
