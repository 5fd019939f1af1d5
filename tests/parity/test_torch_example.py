"""examples/torch_vit.py, which knows nothing of this package: the JAX model's logits, of every form that it takes."""

import dataclasses
import importlib.util
import json
import pathlib
import sys

import jax
import numpy as np
import pytest

from lraqvit_jax.export import safetensors
from tests.unit.export import test_by_head as by_head
from tests.unit.export.test_onnx import artifact

torch = pytest.importorskip("torch", reason="needs torch, as bash launch/parity.sh installs it")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]
PATH = pathlib.Path(__file__).parents[2] / "examples" / "torch_vit.py"


@pytest.fixture(scope="module")
def torch_vit():
    spec = importlib.util.spec_from_file_location("torch_vit", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def logits(torch_vit, one, images, path, layout="factors"):
    """Of PyTorch, of JAX, and what the file says."""
    safetensors.save(one, path, layout)
    model, said = torch_vit.load(path, one.model.heads)
    with torch.inference_mode():
        got = model(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
    return got, np.asarray(jax.jit(one.model.apply)({"params": one.params}, images)), said


def close(got, want):
    return np.abs(got - want).max() < 1e-4 * max(1.0, np.abs(want).max())


@pytest.mark.parametrize(
    ("model", "size", "rank"),
    [
        ("vit_pico", 8, 0),
        ("vit_pico_tanh", 8, 8),
        ("deit_tiny_distilled_patch8_depth2", 16, 8),
        ("deit3_tiny_patch8_depth2", 16, 0),
        ("deit_tiny_dim192_depth1_heads3", 32, 96),
    ],
)
def test_dense_models_and_pairs(rng, tmp_path, torch_vit, model, size, rank):
    got, want, said = logits(torch_vit, *artifact(rng, model, size, rank), tmp_path / "one.safetensors")
    assert close(got, want)
    assert said["preprocess"]["size"] == size
    assert said["num_classes"] == 10


@pytest.mark.parametrize("layout", ["factors", "expanded"])
@pytest.mark.parametrize("name", ["vit_pico", "distilled", "deit3"])
def test_narrower_heads_identity_blocks_and_ranks(rng, tmp_path, torch_vit, name, layout):
    one, images = by_head._float(name, rng)
    assert {"input", "leading", "output"} & {layer.basis for layer in one.plan.values()}
    assert any(layer.rank for layer in one.plan.values()) and any(layer.width for layer in one.plan.values())
    got, want, _ = logits(torch_vit, one, images, tmp_path / "one.safetensors", layout)
    assert close(got, want)


def test_the_paper_s_pairs_with_identity_blocks(rng, tmp_path, torch_vit):
    """Each kind of basis: of inputs, of outputs, and the leading outputs."""
    from configs import digits
    from lraqvit_jax.bench import _random
    from lraqvit_jax.config import parse
    from lraqvit_jax.run import opening

    ws = opening.open_workspace(parse(digits.get_config().to_dict()), tmp_path, write=False)
    one = _random.artifact(ws, "random:pivoted")
    assert {"input", "leading", "output"} <= {layer.basis for layer in one.plan.values()}
    images = rng.standard_normal((3, one.preprocess.size, one.preprocess.size, 3)).astype(np.float32)
    got, want, _ = logits(torch_vit, one, images, tmp_path / "one.safetensors")
    assert close(got, want)


@pytest.mark.parametrize(
    ("granularity", "method", "fields"),
    [
        ("per_token_dynamic", "dynamic", {}),
        ("per_tensor", "smoothquant", {}),
        ("per_token_dynamic", "dynamic", {"asymmetric": True}),
    ],
)
def test_int8_is_what_its_kernels_stand_for(rng, tmp_path, torch_vit, granularity, method, fields):
    """As near the model of integers as that is to floats: activations are not rounded."""
    floats, images = by_head._float("vit_pico", rng)
    one = by_head._quantized(floats, images, granularity, method, **fields)
    got, want, _ = logits(torch_vit, one, images, tmp_path / "one.safetensors")
    assert 0 < np.abs(got - want).max() < 0.15 * np.abs(want).max()
    exact = np.asarray(jax.jit(floats.model.apply)({"params": floats.params}, images))
    assert np.abs(got - exact).max() < 0.1 * np.abs(exact).max()


@pytest.mark.parametrize(
    ("model", "fields", "says"),
    [
        ("swin_pico", None, "layers.0"),
        ("vit_pico_avg", None, "avg"),
        ("vit_pico_quick", None, "activation"),
        ("dinov2_giant_dim32_depth2_heads2_mlp24_patch4_reg2", None, "reg_token"),
        ("vit_pico", {"granularity": "per_token_dynamic", "weight_bits": 4}, "weight_packed"),
        ("vit_pico", {"granularity": "per_token_dynamic", "group": 8}, "weight_scale"),
    ],
)
def test_what_it_has_not_is_refused_in_one_sentence(rng, tmp_path, torch_vit, model, fields, says):
    one, _ = artifact(rng, model, 8, 0, fields)
    safetensors.save(one, tmp_path / "one.safetensors")
    with pytest.raises(ValueError, match=f"{says}.*run its ONNX file instead"):
        torch_vit.load(tmp_path / "one.safetensors")


def test_it_names_what_is_in_a_photograph(rng, tmp_path, monkeypatch, capsys):
    from PIL import Image

    one, _ = artifact(rng, "vit_tiny_dim64_depth1_heads1_patch8", 16, 8)
    one = dataclasses.replace(one, meta={**one.meta, "class_names": [f"name {index}" for index in range(10)]})
    safetensors.save(one, tmp_path / "one.safetensors")
    Image.fromarray(rng.integers(0, 256, (40, 30, 3)).astype(np.uint8)).save(tmp_path / "photo.png")
    monkeypatch.syspath_prepend(str(PATH.parent))
    spec = importlib.util.spec_from_file_location("classify", PATH.parent / "classify.py")
    classify = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(classify)
    classify.main(str(tmp_path / "one.safetensors"), str(tmp_path / "photo.png"))
    sys.modules.pop("torch_vit", None)
    assert capsys.readouterr().out.count("name ") == 5
    assert json.loads(json.dumps(one.meta["class_names"])) == one.meta["class_names"]
