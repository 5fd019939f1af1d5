"""lraqvit_jax: low-rank and int8 compression of vision transformers, in JAX/Flax."""

__version__ = "0.1.0"
