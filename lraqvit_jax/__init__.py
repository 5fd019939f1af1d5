"""lraqvit_jax: low-rank and int8 compression of vision transformers, in JAX/Flax.

    import lraqvit_jax

    model = lraqvit_jax.load("DIR")  # a work directory, or an artefact in it
    model.predict("photo.jpg")

    teacher, params, preprocess = lraqvit_jax.weights.load("timm:vit_tiny_patch16_224.safetensors")
    small = lraqvit_jax.compress(teacher, params, photos, preprocess=preprocess, budget=0.7)
    small.export_onnx("small.onnx")

Any JAX function of parameters and a batch, too:

    print(lraqvit_jax.find(apply, params, batch))
    small = lraqvit_jax.compress(apply, params, batches, budget=0.7)
    small(batch)

What is named here is imported when it is first used: this import takes no time.
"""

import importlib
from typing import TYPE_CHECKING, Any

from lraqvit_jax.base import early  # noqa: F401  (Ctrl-C during the imports of a command)
from lraqvit_jax.base.version import VERSION

if TYPE_CHECKING:
    from lraqvit_jax import weights
    from lraqvit_jax.api.compress import compress
    from lraqvit_jax.api.model import Model, load
    from lraqvit_jax.api.search import smallest
    from lraqvit_jax.trace.compress import Function
    from lraqvit_jax.trace.products import find
    from lraqvit_jax.trace.rewrite import rewrite
    from lraqvit_jax.trace.task import Task

__all__ = ["Function", "Model", "Task", "__version__", "compress", "find", "load", "rewrite", "smallest", "weights"]
__version__ = VERSION

_PLACES = {
    "Function": "trace.compress",
    "Model": "api.model",
    "Task": "trace.task",
    "compress": "api.compress",
    "find": "trace.products",
    "load": "api.model",
    "rewrite": "trace.rewrite",
    "smallest": "api.search",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
    if name == "weights":
        return importlib.import_module(f"{__name__}.weights")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
