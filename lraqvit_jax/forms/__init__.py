"""What a form computes, one pure function a file: parameters and activations in, activations out.

`models.linear` declares the parameters of a form and calls its function; benchmarks time them alone.
"""

from collections.abc import Mapping

from jaxtyping import Array

Params = Mapping[str, Array]
"""The parameters of one layer, by name."""
