"""What a model has to keep and what it may cost, where the budget is not known; see `stages.search`."""

import dataclasses

from lraqvit_jax.options.records import option

RULES = ("expected", "mean", "bound")
"""How a drop is judged; see `tasks.search.Rule`."""
FAMILIES = ("both", "pairs", "products", "integers")
"""Ways to make a model smaller, on the frontier; see `stages.search`."""


@dataclasses.dataclass(frozen=True)
class GoalOptions:
    """The smallest model that is good enough. Nothing is searched where no field of the first two groups is set."""

    max_drop: float = option(-1.0, low=-1, high=100)  # points of top-1 below the dense model's; below 0 sets none
    min_top1: float = option(0.0, low=0, high=100)  # in percent; 0 sets none

    max_mb: float = option(0.0, low=0)  # of the model's arrays as they are stored; 0 sets no bound, as below
    max_ms: float = option(0.0, low=0)  # of an image, by the table plan.latency
    max_macs: float = option(0.0, low=0)  # multiply-accumulates of the linear layers, of an image
    params: float = option(0.0, low=0)  # at most

    by: str = option("expected", choices=RULES)  # what has to keep within the drop
    confidence: float = option(0.95, above=0, high=0.9999)  # of intervals, both ends together
    held_out: float = option(0.5, low=0, high=0.9)  # share of data.eval that only the final numbers see
    resolution: float = option(0.01, above=0, high=0.5)  # of the budget, a share of what the encoder costs when dense
    lowest: float = option(0.1, above=0, high=1)  # the smallest budget that is tried
    trained: int = option(3, low=0)  # where `steps` is above 0: how many models are distilled to go on below
    families: tuple[str, ...] = option(("pairs", "products", "integers"), choices=FAMILIES)  # beside, to compare
    budgets: tuple[float, ...] = option((0.85, 0.7, 0.5), above=0, high=1)  # of each of these families

    @property
    def accuracy(self) -> bool:
        """Whether an accuracy is asked for."""
        return self.max_drop >= 0 or self.min_top1 > 0

    @property
    def bounds(self) -> dict[str, float]:
        """What is bounded, by the names that costs have in search.json."""
        values = {"size_mb": self.max_mb, "ms": self.max_ms, "macs": self.max_macs, "params": self.params}
        return {name: value for name, value in values.items() if value}

    @property
    def is_set(self) -> bool:
        return self.accuracy or bool(self.bounds)
