"""What commands import, imported once by the process whose forks they are: a start takes a tenth of a second, not 4.

A fork takes along the thread that forks and no other one, so nothing here may start a thread, nor the backend of JAX.
`main` and `bench` stay out, since flags cannot be defined twice; `runtimes`, since ONNX Runtime starts a thread.
"""

import gc
import importlib
import os
import pkgutil
import sys

import grain  # noqa: F401
import jax
import orbax.checkpoint  # noqa: F401
import sklearn.datasets  # noqa: F401
import tensorflow_datasets  # noqa: F401

import lraqvit_jax

LEFT_OUT = ("main", "bench", "runtimes")

for _, name, _ in pkgutil.iter_modules(lraqvit_jax.__path__):
    if name not in LEFT_OUT:
        room = importlib.import_module(f"lraqvit_jax.{name}")
        for module in pkgutil.walk_packages(getattr(room, "__path__", ()), f"{room.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)

gc.collect()
gc.freeze()  # A collection in a fork would touch, and so copy, every page.
assert not jax._src.xla_bridge.backends_are_initialized()
assert "lraqvit_jax.main" not in sys.modules
if os.path.isdir("/proc/self/task"):  # noqa: PTH112
    assert len(os.listdir("/proc/self/task")) == 1, "an import started a thread"  # noqa: PTH208
