"""What commands import, imported once by the process whose forks they are: a start takes 0.3 s of a core, not 6.

A fork takes along the thread that forks and no other one, so nothing here may start a thread, nor the backend of JAX.
`main` and `bench` stay out, since flags cannot be defined twice; `runtimes`, since ONNX Runtime starts a thread.
"""

import gc
import importlib
import pathlib
import pkgutil
import sys

import grain  # noqa: F401
import jax  # noqa: F401
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
if "lraqvit_jax.main" in sys.modules:
    raise ImportError("lraqvit_jax.main is imported by another room; a command would define its flags twice")
THREADS = pathlib.Path("/proc/self/task")
if THREADS.is_dir() and len(list(THREADS.iterdir())) > 1:
    raise ImportError("an import started a thread, of which a fork would have nothing")
