"""Eight CPU devices for every test, and cache folders of its own for every session, set before JAX starts."""

import atexit
import os
import shutil
import tempfile

from tests.integration import command

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {command.xla_flags(devices=8)}"
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="lraqvit_jax_tests_cache_")

import numpy as np
import pytest
from hypothesis import settings

atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
for _name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
    os.environ.pop(_name, None)  # No test, and no command of a page, pushes to a Hub that is really there.
os.environ["HF_TOKEN_PATH"] = os.path.join(os.environ["XDG_CACHE_HOME"], "none")  # noqa: PTH118
if "TESTS_COMPILED" not in os.environ:
    # Programs compiled by the tests and the commands under test; the workers of one session inherit the folder.
    os.environ["TESTS_COMPILED"] = tempfile.mkdtemp(prefix="lraqvit_jax_tests_compiled_")
    atexit.register(shutil.rmtree, os.environ["TESTS_COMPILED"], ignore_errors=True)
os.environ |= command.compiled()
settings.register_profile(
    "any machine", deadline=None, derandomize=True
)  # a busy one is slow, and no test may be red by chance
settings.load_profile("any machine")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
