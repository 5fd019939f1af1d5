"""The command `python -m tests.slow.files` on small models: every kind of file, none of which is another model."""

import jax
import numpy as np
import pytest

from tests.slow import files
from tests.unit.export.test_onnx import artifact


@pytest.mark.slow
@pytest.mark.parametrize("fields", [None, {"granularity": "per_token_dynamic"}, {"granularity": "per_tensor"}])
def test_every_file_of_a_model_is_that_model(rng, capsys, fields):
    one, _ = artifact(rng, "vit_pico", 8, 8, fields)
    pixels = rng.integers(0, 256, (6, 8, 8, 3)) / 255
    images = ((pixels - one.preprocess.mean) / one.preprocess.std).astype(np.float32)
    answers = np.asarray(jax.jit(one.model.apply)({"params": one.params}, images)).argmax(-1)
    wrong, left = files.table(one, images, answers)
    said = capsys.readouterr().out
    assert not wrong
    assert not [reason for reason in left if "stablehlo" in reason or "mlir" in reason]
    whole = ("onnx avx2", "onnx vnni", "onnx arm", "onnx opset 17", "stablehlo", "mlirbc", "mlir")
    assert all(f"| one | {name} | " in said for name in whole)
    assert ("| one | ~ onnx int4 weights | " in said) == (fields is None)
    assert ("| one | onnx qdq | " in said) == (fields is None or fields["granularity"] == "per_tensor")


def test_the_first_images_of_a_source_and_what_is_no_count():
    with pytest.raises(files.UserError, match="--count is 0"):
        files.prepared(None, "embedded:mnist5k", 0)
