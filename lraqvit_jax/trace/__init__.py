"""Any JAX function: where its parameters multiply activations, and the function again with other forms there."""

from lraqvit_jax.trace.products import Site, Sites, find
from lraqvit_jax.trace.rewrite import Rewritten, rewrite

__all__ = ["Rewritten", "Site", "Sites", "find", "rewrite"]
