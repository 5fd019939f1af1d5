"""The models that `bench latency` times in PyTorch are the models: same logits, in every family and form."""

import jax
import numpy as np
import pytest

from lraqvit_jax import models
from lraqvit_jax.export import safetensors
from lraqvit_jax.models import swin, vit
from tests.unit.export.test_onnx import FAMILIES, artifact

torch = pytest.importorskip("torch", reason="needs torch, as bash launch/parity.sh installs it")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]


def logits(one, images, path):
    """Of PyTorch and of JAX."""
    from safetensors.torch import load_file

    from lraqvit_jax.runtimes import _torch_models

    safetensors.save(one, path)
    family = models.variants()[models.split(one.meta["model"])[0]]
    table = {"vit": vit, "swin": swin}[family].VARIANTS
    fields = {**models.fields(table, one.meta["model"], one.preprocess.size), "image_size": one.preprocess.size}
    model = _torch_models.build(load_file(path), family, fields).eval()
    with torch.inference_mode():
        got = model(torch.from_numpy(images)).numpy()
    return got, np.asarray(jax.jit(one.model.apply)({"params": one.params}, images))


@pytest.mark.parametrize(("model", "size", "rank"), FAMILIES)
def test_float_models_of_every_family(rng, tmp_path, model, size, rank):
    got, want = logits(*artifact(rng, model, size, rank), tmp_path / "one.safetensors")
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()


@pytest.mark.parametrize("method", ["naive", "smoothquant"])
def test_dynamic_int8_comes_close(rng, tmp_path, method):
    """Its own scale, for a whole tensor and of 7 bits, where ours has one for each token."""
    fields = {"granularity": "per_token_dynamic"}
    got, want = logits(*artifact(rng, "vit_pico", 8, 8, fields, method=method), tmp_path / "one.safetensors")
    assert 1e-4 < np.abs(got - want).max() / np.abs(want).max() < 0.2


def test_what_it_has_no_kernels_for_is_refused(rng, tmp_path):
    for fields in ({"granularity": "per_tensor"}, {"granularity": "per_token_dynamic", "weight_bits": 4}):
        with pytest.raises(ValueError, match="dynamic int8"):
            logits(*artifact(rng, "vit_pico", 8, 8, fields), tmp_path / "one.safetensors")
