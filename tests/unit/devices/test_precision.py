"""What a command makes of the JAX that it finds."""

import jax
import pytest

from lraqvit_jax.base.errors import UserError
from lraqvit_jax.devices import precision


@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize backend 'cuda'"), AssertionError()])
def test_a_platform_that_is_not_there_is_one_sentence(monkeypatch, error):
    def devices():
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    for command in (precision.settle, precision.usual().__enter__):
        with pytest.raises(UserError, match=r"JAX finds no device for JAX_PLATFORMS=.*; unset it"):
            command()
