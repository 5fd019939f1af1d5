"""Which processor an ONNX file is for, where that is left open."""

import pathlib
import platform

from lraqvit_jax.base.errors import UserError, nearest
from lraqvit_jax.options.export import TARGETS

CPUINFO = pathlib.Path("/proc/cpuinfo")


def resolved(target: str) -> str:
    """The target itself; of "auto", that of this machine.

    Raises:
        UserError: no such target.
    """
    if target not in TARGETS:
        raise UserError(f"There is no ONNX target {target!r}; {nearest(target, TARGETS)}")
    if target != "auto":
        return target
    return of_processor(platform.machine(), CPUINFO.read_text() if CPUINFO.exists() else "")


def of_processor(machine: str, cpuinfo: str) -> str:
    """The target of a processor.

    Args:
        machine: as `platform.machine` calls it.
        cpuinfo: what Linux says of it; "" where it says nothing. Then it is avx2, which is right everywhere.
    """
    if machine.lower() in ("aarch64", "arm64"):
        return "arm"
    flags = {flag for line in cpuinfo.splitlines() if line.startswith("flags") for flag in line.split()}
    return "vnni" if flags & {"avx512_vnni", "avx_vnni"} else "avx2"
