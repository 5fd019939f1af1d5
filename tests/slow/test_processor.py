"""Integers on a processor without VNNI, which this one is made to look like: where that is possible."""

import shutil
import subprocess
import sys

import pytest

from tests.unit.export.test_onnx_sums import CPU

RUN = [sys.executable, "-m", "tests.slow.processor", "avx2", sys.executable]


@pytest.mark.slow
@pytest.mark.skipif("cpuid_fault" not in CPU or not shutil.which("cc"), reason="needs CPUID faulting and a C compiler")
def test_sums_without_vnni():
    """The processor has none for NumPy; sums of the target avx2 are exact there, those of vnni are not."""
    features = "import numpy; print(numpy._core._multiarray_umath.__cpu_features__['AVX512_ICL'])"
    seen = subprocess.run([*RUN, "-c", features], check=True, capture_output=True, text=True).stdout
    assert seen.strip() == "False"
    path = "tests/unit/export/test_onnx_sums.py"
    ran = subprocess.run([*RUN, "-m", "pytest", "-q", "-rs", path], check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
    if "vnni" in CPU:
        assert "skipped" not in ran.stdout  # the test that another target is wrong there, too
