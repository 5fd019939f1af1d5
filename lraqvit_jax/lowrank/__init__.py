"""Low-rank factorization: decompositions, the reparameterizable branch, ranks. Pure functions on arrays."""

import importlib
import pkgutil
from typing import Any

from lraqvit_jax.base.errors import UserError, nearest


def decomposition(name: str) -> Any:
    """The module of a decomposition: one here with `decompose(kernel, rank, moments) -> Pair`, and

    * STATISTICS, what `moments` must hold: "none"; "inputs", those of the layer's input in the dense model;
      "gradients", also those of the logits at its output;
      "sequential", those of its input in the compressed model so far, and the cross moments with the dense one;
    * CORRECTS_BIAS, whether the bias is to gain `moments.bias_shift`.

    Raises:
        UserError: there is none of that name.
    """
    modules = {file.name: importlib.import_module(f"{__name__}.{file.name}") for file in pkgutil.iter_modules(__path__)}
    decompositions = {key: module for key, module in modules.items() if hasattr(module, "decompose")}
    if name not in decompositions:
        raise UserError(f"There is no decomposition {name!r}; {nearest(name, decompositions)}")
    return decompositions[name]
