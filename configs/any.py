r"""Any JAX function of parameters and a batch, made smaller, then int8.

    python -m lraqvit_jax.main --config configs/any.py --workdir DIR --config.model=import:package.module:function

The function takes nothing and gives a lraqvit_jax.Task: apply, params, batches to calibrate on, and perhaps how to
measure what it makes. `--dry_run` lists what is found in it. Nothing is trained unless --config.steps says so.
"""

from lraqvit_jax import config as base


def get_config():
    return base.function()
