"""What language models are measured by: the negative log-likelihood of each token of a text, and perplexity."""

import numpy as np
from jaxtyping import Float, Int
from scipy import special

from lraqvit_jax.base.errors import UserError


def negative_log_likelihoods(
    logits: Float[np.ndarray, "*tokens vocabulary"], targets: Int[np.ndarray, "*tokens"]
) -> Float[np.ndarray, "*tokens"]:
    """-log p of each target, in nats: `logsumexp(logits) - logits[target]`.

    Args:
        logits: of a causal model those at each place but the last, which tell of the token that follows.
        targets: the tokens that follow, from 0.

    Raises:
        UserError: shapes that do not agree, nothing at all, or a target that is no token of the vocabulary.
    """
    logits, targets = np.asarray(logits), np.asarray(targets)
    if not logits.size or logits.shape[:-1] != targets.shape or not np.issubdtype(targets.dtype, np.integer):
        raise UserError(
            f"logits are of shape {logits.shape} and targets {targets.dtype} of {targets.shape}; give a whole number "
            "for each row of logits."
        )
    if targets.min() < 0 or targets.max() >= logits.shape[-1]:
        raise UserError(
            f"targets go from {targets.min()} to {targets.max()}, and there are logits of {logits.shape[-1]:,} tokens."
        )
    chosen = np.take_along_axis(logits, targets[..., None], -1)[..., 0]
    return special.logsumexp(logits.astype(np.float64), axis=-1) - chosen


def perplexity(losses: Float[np.ndarray, "*tokens"]) -> float:
    """exp of the mean negative log-likelihood in nats, over all tokens (Jelinek, Mercer, Bahl, Baker, 1977); infinite
    where that overflows.

    Raises:
        UserError: no token.
    """
    losses = np.asarray(losses, np.float64)
    if not losses.size:
        raise UserError("There is no token to take the perplexity of; give the negative log-likelihoods of some.")
    with np.errstate(over="ignore"):
        return float(np.exp(losses.mean()))
