"""The models that PyTorch runs from our files are the models: same logits, in every family and form; and timm's own are
that load an expanded file."""

import jax
import numpy as np
import pytest

from lraqvit_jax.export import safetensors
from tests.unit.export import test_by_head as by_head
from tests.unit.export.test_onnx import FAMILIES, artifact

torch = pytest.importorskip("torch", reason="needs torch, as bash launch/parity.sh installs it")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]


def logits(one, images, path):
    """Of PyTorch and of JAX."""
    from lraqvit_jax.runtimes.torch import model

    safetensors.save(one, path)
    with torch.inference_mode():
        got = model(path)(torch.from_numpy(images)).numpy()
    return got, of_jax(one, images)


def of_jax(one, images):
    return np.asarray(jax.jit(one.model.apply)({"params": one.params}, images))


@pytest.mark.parametrize(("model", "size", "rank"), FAMILIES)
def test_float_models_of_every_family(rng, tmp_path, model, size, rank):
    got, want = logits(*artifact(rng, model, size, rank), tmp_path / "one.safetensors")
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()


@pytest.mark.parametrize(
    "model", ["siglip_base_dim32_depth1_heads2_patch4", "clip_base_dim32_depth1_heads2_patch4_proj12"]
)
def test_features(rng, tmp_path, model):
    got, want = logits(*artifact(rng, model, 8, classes=0), tmp_path / "one.safetensors")
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


@pytest.mark.parametrize("name", by_head.by_head.VARIANTS)
def test_blocks_by_head(rng, tmp_path, name):
    got, want = logits(*by_head._float(name, rng), tmp_path / "one.safetensors")
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()


def test_dynamic_int8_of_blocks_by_head_comes_close(rng, tmp_path):
    floating, images = by_head._float("vit_pico", rng)
    one = by_head._quantized(floating, images, "per_token_dynamic", "smoothquant")
    got, want = logits(one, images, tmp_path / "one.safetensors")
    assert 1e-4 < np.abs(got - want).max() / np.abs(want).max() < 0.2


TIMM = {
    "vit_pico": ("vit_tiny_patch16_224", {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}),
    "distilled": ("deit_tiny_distilled_patch16_224", {"patch_size": 8, "depth": 2}),
    "deit3": ("deit3_small_patch16_224", {"patch_size": 8, "embed_dim": 192, "depth": 2, "num_heads": 3}),
    "gated": (
        "vit_giant_patch14_reg4_dinov2",
        {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 1.5, "reg_tokens": 2},
    ),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"patch_size": 1, "window_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (2, 4)},
    ),
}
"""What timm calls the models of `by_head.VARIANTS`; its Swin shifts a padded map otherwise."""


@pytest.mark.parametrize("name", TIMM)
def test_timm_loads_an_expanded_file(rng, tmp_path, name):
    from safetensors.torch import load_file

    from tests.parity import pytorch

    one, images = by_head._float(name, rng)
    safetensors.save(one, tmp_path / "one.safetensors", "expanded")
    variant, fields = TIMM[name]
    model = pytorch.timm.create_model(variant, num_classes=5, img_size=images.shape[1], **fields)
    model.load_state_dict(load_file(tmp_path / "one.safetensors"), strict=True)
    want = of_jax(one, images)
    assert np.abs(pytorch.logits(model.eval(), images) - want).max() < 1e-4 * np.abs(want).max()
