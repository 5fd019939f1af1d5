"""StableHLO modules outside JAX: compiled by IREE and run by its own program, and made a Core ML package.

Skipped without requirements-modules.txt. Core ML runs on macOS alone: the program that was made is what is checked.
"""

import importlib.util
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from lraqvit_jax.export import stablehlo
from tests.unit.export.test_onnx import artifact

FORMS = [
    ("vit_pico", 8, None),
    ("swin_pico", 0, None),
    ("vit_pico", 8, {"granularity": "per_token_dynamic"}),
]


def without(*names):
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(absent), reason=f"{', '.join(absent)}: pip install -r requirements-modules.txt")


def module(tmp_path, model, rank, fields):
    one, images = artifact(np.random.default_rng(0), model, 8, rank, fields)
    for name in ("one.mlirbc", "one.mlir"):
        stablehlo.export_module(one.model, one.params, 8, "cpu", tmp_path / name)
    return images[:1], np.asarray(jax.jit(one.model.apply)({"params": one.params}, images[:1]))


@pytest.mark.slow
@without("iree")
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("name", ["one.mlirbc", "one.mlir"])
def test_iree_runs_it(tmp_path, form, name):
    import iree.compiler
    import iree.runtime

    images, want = module(tmp_path, *form)
    made = iree.compiler.compile_file(str(tmp_path / name), input_type="stablehlo", target_backends=["llvm-cpu"])
    (tmp_path / "one.vmfb").write_bytes(made)
    np.save(tmp_path / "images.npy", images)
    program = pathlib.Path(iree.runtime.__file__).parents[1] / "_runtime_libs" / "iree-run-module"
    arguments = [f"--module={tmp_path / 'one.vmfb'}", f"--input=@{tmp_path / 'images.npy'}"]
    arguments += ["--device=local-sync", f"--output=@{tmp_path / 'logits.npy'}"]
    subprocess.run([program, *arguments], check=True, capture_output=True)
    assert np.abs(np.load(tmp_path / "logits.npy") - want).max() < 1e-5 * np.abs(want).max()


COREML = r"""
import sys
import coremltools as ct
from jax._src.interpreters import mlir
from jax._src.lib.mlir import ir
from stablehlo_coreml import build_pass_pipeline, convert

text = open(sys.argv[1]).read()
program = convert(ir.Module.parse(text, context=mlir.make_ir_context()), minimum_deployment_target=ct.target.iOS18)
options = {"source": "milinternal", "minimum_deployment_target": ct.target.iOS18}
made = ct.convert(program, **options, pass_pipeline=build_pass_pipeline())
made.save(sys.argv[2])
body = made.get_spec().mlProgram.functions["main"].block_specializations.values()
print(*sorted({operation.type for block in body for operation in block.operations}))
"""


@pytest.mark.slow
@without("stablehlo_coreml", "coremltools")
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_core_ml_has_a_program_of_it(tmp_path, form):
    """Of float models; its products of integers are those of weights alone."""
    module(tmp_path, *form)
    command = [sys.executable, "-c", COREML, tmp_path / "one.mlir", tmp_path / "one.mlpackage"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if form[2]:
        assert "['fp16', 'fp32', 'int32'] but got tensor[4,48,int8]" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert {"gelu", "linear", "scaled_dot_product_attention"} <= set(done.stdout.split())
        assert (tmp_path / "one.mlpackage" / "Manifest.json").exists()
