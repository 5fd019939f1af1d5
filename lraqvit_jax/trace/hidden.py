"""Hidden units: channels that one site alone reads, each made from the same channel of other sites and no other."""

import dataclasses

import numpy as np
from jaxtyping import Int


@dataclasses.dataclass(frozen=True, eq=False)
class Hidden:
    """An MLP, gated or not.

    Attributes:
        producers: paths of the sites whose outputs they are: fc1, or what is multiplied and its gate.
        reader: path of fc2.
        rows: for each channel of the producers, the row of the reader's kernel.
    """

    producers: tuple[str, ...]
    reader: str
    rows: Int[np.ndarray, " units"]

    def __str__(self) -> str:
        return f"{', '.join(self.producers)} and {self.reader}: {len(self.rows):,}"
