"""What JAX must be set to for results to be ours, whatever it is set to elsewhere."""

import contextlib
from collections.abc import Iterator

import jax

from lraqvit_jax.base.errors import UserError, reason

SWITCHES: dict[str, bool | str] = {
    "enable_x64": False,
    "numpy_dtype_promotion": "standard",
    "numpy_rank_promotion": "allow",
    "transfer_guard": "allow",
}
"""Of JAX, each a field of its config and a context: as they are by default."""


def settle() -> None:
    """Sets JAX up for a command, to which the process belongs; switches that check other people's programs are off.

    Raises:
        UserError: there is no device.
    """
    _find_devices()
    for switch, value in SWITCHES.items():
        jax.config.update(f"jax_{switch}", value)
    exact_float32()


def _find_devices() -> None:
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        platforms = jax.config.values["jax_platforms"] or ""
        raise UserError(
            f"JAX finds no device for JAX_PLATFORMS={platforms!r} ({reason(error)}); unset it, or install the JAX of "
            "that device."
        ) from error


@contextlib.contextmanager
def usual() -> Iterator[None]:
    """Around a function of the Python API, in a process that others set up: float32, with the usual promotion.

    Raises:
        UserError: there is no device.
    """
    _find_devices()
    exact_float32()
    with contextlib.ExitStack() as stack:
        for switch, value in SWITCHES.items():
            stack.enter_context(getattr(jax, switch)(value))
        yield


def exact_float32() -> None:
    """From now on float32 products are products of float32 on every device; what the user set for JAX stands.

    By default GPUs round their factors to TF32 and TPUs to bfloat16: logits then differ in the third digit from those
    of a CPU, a merged pair from the branch it came from, and what calibration measures from what the integers do. For
    speed there is `dtype=bfloat16`, which this leaves alone. On a CPU nothing changes.
    """
    if jax.default_backend() != "cpu" and not jax.config.values["jax_default_matmul_precision"]:
        jax.config.update("jax_default_matmul_precision", "highest")
