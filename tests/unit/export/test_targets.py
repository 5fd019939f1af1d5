"""Which target `auto` is."""

import pytest

from lraqvit_jax.base.errors import UserError
from lraqvit_jax.export import targets

LINES = "vendor_id\t: one\nflags\t\t: fpu avx2 {}\nmodel name\t: avx512_vnni\n"


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "target"),
    [
        ("x86_64", LINES.format("avx512_vnni amx_int8"), "vnni"),
        ("x86_64", LINES.format("avx_vnni"), "vnni"),
        ("x86_64", LINES.format("bmi2"), "avx2"),
        ("AMD64", "", "avx2"),
        ("aarch64", "", "arm"),
        ("arm64", "", "arm"),
    ],
)
def test_auto_is_the_processor_s(machine, cpuinfo, target):
    assert targets.of_processor(machine, cpuinfo) == target


def test_only_auto_is_resolved():
    assert targets.resolved("qdq") == "qdq"
    assert targets.resolved("auto") in ("avx2", "vnni", "arm")
    with pytest.raises(UserError, match="no ONNX target 'neon'"):
        targets.resolved("neon")
