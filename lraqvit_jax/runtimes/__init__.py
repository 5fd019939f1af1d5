"""Runtimes that exported files are timed in by `bench latency`, found by name. A module here offers

    PACKAGE   what pip installs, and with "_" for "-" what is imported
    SUFFIX    of the file that it reads: "onnx", "nncf.xml", "stablehlo", "safetensors" or "tflite"
    load(path, job) -> function from images (batch, size, size, 3) float32 to logits (batch, classes)

and, where it has such a thing,

    MAKER     another package, which makes the file
    KIND      the option that says which kind of file, as "variant" of "litert?variant=dynamic"
    QUANTIZES kinds of file that have integers of a float model's kernels and activations; "" is the file without a kind
    ENGINE    the runtime that does the work, where that is not the one of its own name

and imports its runtime in `load` alone: so that a module can be asked for the first two where nothing is installed, and
that a process holds no other runtime than the one it measures.
"""

import importlib
import importlib.util
import pathlib
import pkgutil
import urllib.parse
from collections.abc import Mapping
from typing import Any, NamedTuple

from lraqvit_jax.base.errors import UserError, nearest


class Job(NamedTuple):
    """What a runtime is to load.

    Attributes:
        threads: that it may use.
        batch: images in a call.
        size: of an image.
        family: module of the model in `lraqvit_jax.models`.
        fields: of the model's variant, such as heads.
        options: of the runtime, by name.
    """

    threads: int
    batch: int
    size: int
    family: str
    fields: Mapping[str, Any]
    options: Mapping[str, str]


def split(name: str) -> tuple[str, dict[str, str]]:
    """ "onnxruntime?session.disable_prepacking=1" is a module and the options it gets."""
    module, _, options = name.partition("?")
    return module, dict(urllib.parse.parse_qsl(options))


def module(name: str) -> Any:
    """The module of a runtime; UserError if there is none."""
    runtime, runtimes = split(name)[0], [one.name for one in pkgutil.iter_modules(__path__) if one.name[0] != "_"]
    if runtime not in runtimes:
        raise UserError(f"There is no runtime {runtime!r}; {nearest(runtime, runtimes)}")
    return importlib.import_module(f"{__name__}.{runtime}")


def kind(name: str) -> str:
    """Which kind of file a runtime reads, by its options; "" where they do not say."""
    return split(name)[1].get(getattr(module(name), "KIND", ""), "")


def suffix(name: str) -> str:
    """Of the file that a runtime reads, with its options: "onnx", or such as "qdq.onnx" and "dynamic.tflite"."""
    return f"{kind(name)}.{module(name).SUFFIX}".lstrip(".")


def options(name: str) -> dict[str, str]:
    """What a runtime is loaded with: its options without the kind of file."""
    which = getattr(module(name), "KIND", "")
    return {option: value for option, value in split(name)[1].items() if option != which}


def quantizes(name: str) -> bool:
    """Whether what a runtime reads has integers even where the model is a float one."""
    return kind(name) in getattr(module(name), "QUANTIZES", ())


def engine(name: str) -> str:
    """The runtime that does the work, whatever its options: "openvino" of "nncf"."""
    return getattr(module(name), "ENGINE", split(name)[0])


def packages(name: str) -> list[str]:
    """What pip installs for a runtime."""
    return [one for one in (module(name).PACKAGE, getattr(module(name), "MAKER", "")) if one]


def imported(name: str) -> str:
    """What is imported of a runtime."""
    return module(name).PACKAGE.replace("-", "_")


def installed(name: str) -> bool:
    return all(importlib.util.find_spec(package.replace("-", "_")) is not None for package in packages(name))


def refuse_options(name: str, path: pathlib.Path, job: Job) -> None:
    """Raises ValueError where a runtime that has no options is given some."""
    if job.options:
        raise ValueError(f"{name} takes no option {next(iter(job.options))!r} ({path.name})")
