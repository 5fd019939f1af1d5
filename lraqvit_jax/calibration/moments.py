"""What a decomposition may know of a layer's input."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Moments(NamedTuple):
    """Means over all tokens of the calibration images, float64.

    Attributes:
        second: E[x xᵀ].
        mean: E[x].
        magnitude: E|x|.
        cross: E[x tᵀ], where the layer reads x in the compressed model and t in the dense one; None where x is t.
        target_mean: E[t], likewise.
        gradient: mean over images of the sum over tokens of g gᵀ, g the gradient of a random projection of the logits
            at the layer's output: what an error there does to the logits. None where it was not asked for.
    """

    second: Float[np.ndarray, "m m"]
    mean: Float[np.ndarray, " m"]
    magnitude: Float[np.ndarray, " m"]
    cross: Float[np.ndarray, "m m"] | None = None
    target_mean: Float[np.ndarray, " m"] | None = None
    gradient: Float[np.ndarray, "n n"] | None = None

    @property
    def covariance(self) -> Float[np.ndarray, "m m"]:
        """E[(x - E[x]) (x - E[x])ᵀ]."""
        return self.second - np.outer(self.mean, self.mean)

    @property
    def cross_covariance(self) -> Float[np.ndarray, "m m"]:
        """E[(x - E[x]) (t - E[t])ᵀ]."""
        if self.cross is None or self.target_mean is None:
            return self.covariance
        return self.cross - np.outer(self.mean, self.target_mean)


def of(x: Float[np.ndarray, "tokens m"], gradients: Float[np.ndarray, "tokens n"] | None = None) -> Moments:
    """The moments of inputs at hand, and of gradients at the outputs."""
    x = np.asarray(x, np.float64)
    gradient = None if gradients is None else gradients.T @ gradients / len(gradients)
    return Moments(x.T @ x / len(x), x.mean(0), np.abs(x).mean(0), gradient=gradient)
