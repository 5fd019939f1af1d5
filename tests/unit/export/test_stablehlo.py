"""StableHLO modules: their version, who reads them, what they compute."""

import jax
import jax.export
import numpy as np
import pytest
from jaxlib.mlir.dialects import stablehlo as dialect

from lraqvit_jax.base.errors import UserError
from lraqvit_jax.export import stablehlo
from tests.unit.export import rounding
from tests.unit.export.test_onnx import artifact


def numbers(version):
    return tuple(map(int, version.split(".")))


@pytest.mark.parametrize(
    ("model", "rank", "fields"),
    [("vit_pico", 8, None), ("swin_pico", 0, None), ("vit_pico", 8, {"granularity": "per_token_dynamic"})],
)
def test_modules_compute_what_the_model_does(rng, tmp_path, model, rank, fields):
    one, images = artifact(rng, model, 8, rank, fields)
    want = np.asarray(jax.jit(one.model.apply)({"params": one.params}, images))
    for name in ("one.mlirbc", "one.mlir"):
        stablehlo.export_module(one.model, one.params, 8, "cpu", tmp_path / name)
        by_image = np.abs(stablehlo.load_module(tmp_path / name)(images) - want).max(-1) / np.abs(want).max()
        assert rounding.same_integers(by_image) if fields else by_image.max() < rounding.ROUNDINGS * rounding.EPS


@pytest.mark.parametrize("model", ["vit_pico", "swin_pico"])
def test_files_take_any_batch(rng, tmp_path, model):
    one, images = artifact(rng, model, 8)
    stablehlo.export(one.model, one.params, 8, ["cpu"], tmp_path / "one.stablehlo")
    call = jax.export.deserialize(bytearray((tmp_path / "one.stablehlo").read_bytes())).call
    for batch in (1, 3):
        want = np.asarray(jax.jit(one.model.apply)({"params": one.params}, images[:batch]))
        off = np.abs(np.asarray(call(images[:batch])) - want).max(-1) / np.abs(want).max()
        assert off.max() < rounding.ROUNDINGS * rounding.EPS


def test_a_portable_artefact_names_a_version_that_is_read(rng, tmp_path):
    """And is read by StableHLO itself; the text is StableHLO and functions alone, without paths of this machine."""
    one, _ = artifact(rng, "vit_pico", 8)
    stablehlo.export_module(one.model, one.params, 8, "cpu", tmp_path / "one.mlirbc")
    stablehlo.export_module(one.model, one.params, 8, "cpu", tmp_path / "one.mlir")
    version = stablehlo.version(tmp_path / "one.mlirbc")
    assert numbers(dialect.get_minimum_version()) <= version <= numbers(dialect.get_current_version())
    assert dialect.deserialize_portable_artifact_str((tmp_path / "one.mlirbc").read_bytes())
    module = (tmp_path / "one.mlir").read_text()
    assert "func.func public @main" in module
    assert "tensor<1x8x8x3xf32>" in module
    assert "stablehlo.custom_call" not in module
    assert str(tmp_path) not in module
    assert ".py" not in module


def test_an_exported_file_carries_a_calling_convention_that_is_read(rng, tmp_path):
    one, _ = artifact(rng, "vit_pico", 8)
    stablehlo.export(one.model, one.params, 8, ["cpu"], tmp_path / "one.stablehlo")
    stored = jax.export.deserialize(bytearray((tmp_path / "one.stablehlo").read_bytes()))
    least, most = (
        jax.export.minimum_supported_calling_convention_version,
        jax.export.maximum_supported_calling_convention_version,
    )
    assert least <= stored.calling_convention_version <= most


def test_what_is_no_module_is_refused(rng, tmp_path):
    (tmp_path / "one.mlirbc").write_bytes(b"module {}")
    with pytest.raises(UserError, match=r"one\.mlirbc is no portable artefact"):
        stablehlo.version(tmp_path / "one.mlirbc")
    (tmp_path / "one.mlirbc").write_bytes(b"nonsense")
    with pytest.raises(UserError, match=r"one\.mlirbc cannot be compiled by jaxlib"):
        stablehlo.load_module(tmp_path / "one.mlirbc")
    one, _ = artifact(rng, "vit_pico", 8)
    stablehlo.export_module(one.model, one.params, 8, "cpu", tmp_path / "one.mlirbc")
    newer = (tmp_path / "one.mlirbc").read_bytes().replace(b"StableHLO_v1.", b"StableHLO_v9.", 1)
    (tmp_path / "newer.mlirbc").write_bytes(newer)
    assert stablehlo.version(tmp_path / "newer.mlirbc")[0] == 9
