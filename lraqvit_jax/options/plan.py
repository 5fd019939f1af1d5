"""Which ranks a model gets, and from what its pairs are made."""

import dataclasses

from lraqvit_jax.options.quant import BITS
from lraqvit_jax.options.records import option

UNITS = ("params", "macs", "bytes", "latency")


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """How ranks are chosen."""

    # uniform_rank | uniform_ratio | by_dimension | by_kind; from calibration images: energy | activation | logits |
    # sensitivity; products: heads, hidden units and ranks together. See plan/ranks.py and plan/blocks.py
    method: str = "uniform_ratio"
    budget: float = option(0.5, above=0)  # share of what the encoder's dense linear layers cost
    unit: str = option("params", choices=UNITS)  # of the budget, where calibration images decide
    latency: str = ""  # the table that `python -m lraqvit_jax.bench layers` wrote, for that unit
    multiple: int = option(8, above=0)  # of which ranks are, and hidden widths where they are chosen
    head_multiple: int = option(4, above=0)  # of which the channels of a head are, where they are chosen
    measured_images: int = option(48, above=0)  # of products: on which predictions are measured
    rounds: int = option(3, low=0)  # of products: how often they are measured and the sizes chosen anew
    # Of products, in bytes: bits of which each kernel's are chosen with the sizes, such as (8,6,4); () leaves that.
    widths: tuple[int, ...] = option((), choices=BITS)
    groups: tuple[int, ...] = option((), above=0)  # input channels that may share a scale, below the most of these bits
    attention_rank: int = option(0, low=0)
    mlp_rank: int = option(0, low=0)
    pivot: bool = False  # pairs with an identity block, r (m + n - r) numbers: every rank below the full one saves
    keep_dense: tuple[str, ...] = ()  # paths, or beginnings of paths, that are not factorized


@dataclasses.dataclass(frozen=True)
class FactorizeOptions:
    """Decompositions without training, and the images that they are calibrated on."""

    baselines: tuple[str, ...] = ("svd", "whitened")  # modules of lraqvit_jax.lowrank with `decompose`
    calibration_images: int = option(256, above=0)

    @property
    def rows(self) -> dict[str, str]:
        """The artefact of each baseline, and its decomposition: `lra` for the paper's, truncated SVD."""
        return {"lra" if name == "svd" else f"lra_{name}": name for name in self.baselines}
