"""What a run is told of a function that is not one of our models."""

import dataclasses

from lraqvit_jax.options.quant import BITS
from lraqvit_jax.options.records import option

PREFIX = "import:"


@dataclasses.dataclass(frozen=True)
class FunctionOptions:
    """All of it; see `lraqvit_jax.trace.compress`."""

    model: str = ""  # import:package.module:function, which takes nothing and gives a lraqvit_jax.Task
    metric: str = option("logits", choices=("logits", "features", "loss"))  # what is kept of the outputs
    budget: float = option(0.5, above=0, high=1)  # share of the kernels' parameters that stays; 1 leaves them whole
    keep_dense: tuple[str, ...] = ()  # paths of sites, or of what holds them, that stay as they are
    multiple: int = option(1, above=0)  # of which every rank and every width is one
    steps: int = option(0, low=0)  # of distillation from the function as it came
    learning_rate: float = option(0.0, low=0)  # of these, the highest; 0 has one found
    bits: int = option(8, choices=(0, *BITS))  # of kernels and activations; 0 makes no integers
    quantizer: str = "dynamic"  # of lraqvit_jax.config.QUANTIZERS, with one scale for all or one a token
    export: bool = True  # writes StableHLO of every model
    seed: int = option(0, low=0)
