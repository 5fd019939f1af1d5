"""Who may read files that are replaced in one step."""

import os
import stat

import numpy as np
import pytest

from lraqvit_jax.base import files


@pytest.fixture(params=[0o022, 0o027, 0o077, 0o002], ids=oct)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_whoever_may_read_a_new_file_may_read_these(tmp_path, umask):
    plain = tmp_path / "plain"
    plain.write_text("")
    files.write_atomically(tmp_path / "one.json", "{}")
    files.write_arrays(tmp_path / "folder" / "two.npz", {"x": np.zeros(3)})
    for path in (tmp_path / "one.json", tmp_path / "folder" / "two.npz"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == stat.S_IMODE(plain.stat().st_mode) == 0o666 & ~umask
