"""What a decomposition may know of a layer's input."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

FELT = 0.7
"""Share of the tokens' weight that follows their gradients. All of it leaves too few tokens where the logits read one
token alone; on ViT-Tiny 0.5 to 0.9 change the logits alike, 0 by a sixth to two thirds more."""


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
        felt_second: E[x xᵀ] with each token weighted by the square of its g, or of its g at the queries where the layer
            is a "qkv": where the logits feel the token. None where gradients were not asked for.
        felt_mean: E[x], likewise.
    """

    second: Float[np.ndarray, "m m"]
    mean: Float[np.ndarray, " m"]
    magnitude: Float[np.ndarray, " m"]
    cross: Float[np.ndarray, "m m"] | None = None
    target_mean: Float[np.ndarray, " m"] | None = None
    gradient: Float[np.ndarray, "n n"] | None = None
    felt_second: Float[np.ndarray, "m m"] | None = None
    felt_mean: Float[np.ndarray, " m"] | None = None

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

    def weighted(self, share: float = FELT) -> "Moments":
        """The moments over tokens drawn so: with probability `share` by their weight, else any. Without weights, these
        moments."""
        if self.felt_second is None or self.felt_mean is None:
            return self
        second = share * self.felt_second + (1 - share) * self.second
        return self._replace(second=second, mean=share * self.felt_mean + (1 - share) * self.mean)

    def narrowed(self, kept: Int[np.ndarray, " kept"]) -> "Moments":
        """The moments of some of the inputs."""
        square = np.ix_(kept, kept)
        return Moments(
            self.second[square],
            self.mean[kept],
            self.magnitude[kept],
            gradient=self.gradient,
            felt_second=None if self.felt_second is None else self.felt_second[square],
            felt_mean=None if self.felt_mean is None else self.felt_mean[kept],
        )


def of(x: Float[np.ndarray, "tokens m"], gradients: Float[np.ndarray, "tokens n"] | None = None) -> Moments:
    """The moments of inputs at hand, and of gradients at the outputs."""
    x = np.asarray(x, np.float64)
    gradient = None if gradients is None else gradients.T @ gradients / len(gradients)
    moments = Moments(x.T @ x / len(x), x.mean(0), np.abs(x).mean(0), gradient=gradient)
    if gradients is None or len(gradients) != len(x):  # of other tokens than the inputs, no weights of these
        return moments
    weights = np.square(gradients).sum(1, keepdims=True)
    total = weights.sum()
    return moments._replace(felt_second=(x * weights).T @ x / total, felt_mean=(x * weights).sum(0) / total)
