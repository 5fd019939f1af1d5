"""What is folded into LayerNorms, biases, kernels and scales leaves the float function, whatever the quantizer, on ViT
and on Swin: with windows that tile the map and with padding, with patch merging, which has no bias."""

import dataclasses
import pkgutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lraqvit_jax import models
from lraqvit_jax.base import trees
from lraqvit_jax.options.quant import QUANTIZERS, Quantizer
from lraqvit_jax.plan.cost import layer_cost
from lraqvit_jax.quant import quantize, smoothing
from lraqvit_jax.stages.quantize import with_options
from tests.unit.quant.subjects import SUBJECTS, as_float, unrounded

METHODS = sorted(module.name for module in pkgutil.iter_modules(smoothing.__path__))
GRIDS = [("per_tensor", True), ("per_token_dynamic", False)]
subjects = pytest.mark.parametrize("subject", SUBJECTS.values(), ids=SUBJECTS)


def differs(subject, params):
    """The largest difference of the logits from the float model's, over the largest logit."""
    exact = subject.float_logits(subject.params)
    return np.abs(subject.float_logits(params) - exact).max() / np.abs(exact).max()


def marked(names, fast):
    """Parameters of a test, all but the fast ones slow."""
    return [pytest.param(name, marks=() if name in fast else pytest.mark.slow) for name in names]


@subjects
@pytest.mark.parametrize(("granularity", "asymmetric"), GRIDS)
@pytest.mark.parametrize("method", marked(METHODS, {*METHODS} - {"wads", "qads"}))
def test_no_quantizer_changes_the_float_function(subject, method, granularity, asymmetric):
    """With the rounding of the kernels taken out, logits are those of the float model, to the rounding of float32."""
    options = Quantizer(method=method, select="all", iterations=1)
    steps = quantize.steps_of(options)._replace(round_kernel=unrounded)
    plan = subject.plan(granularity=granularity, asymmetric=asymmetric)
    result = quantize.quantize(subject.params, plan, subject.layers, subject.seen, options, steps)
    norms = {info.norm for info in subject.layers if info.norm}
    before, after = (trees.flatten(one) for one in (subject.params, result.params))
    changed = {name for name in norms if np.any(before[f"{name}/scale"] != after[f"{name}/scale"])}
    assert bool(changed) == (method != "naive")
    assert differs(subject, as_float(result)) < 1e-5


def planted(subject, seed):
    """Steps that divide every product, and shift every one that takes it, by vectors drawn at random."""
    rng = np.random.default_rng(seed)
    plan = subject.plan()
    products = quantize.products(subject.params, plan, subject.layers, subject.seen)
    widths = {key: product.x.shape[-1] for key, product in products.items()}
    alphas = {key: np.exp(rng.normal(0, 1, width)).astype(np.float32) for key, width in widths.items()}
    shifts = {key: rng.normal(0, 1, width).astype(np.float32) for key, width in widths.items()}
    shifts = {key: shift for key, shift in shifts.items() if products[key].takes_shift}
    steps = quantize.steps_of(Quantizer())
    return plan, steps._replace(smooth=lambda *_: alphas, shift=lambda *_: shifts, round_kernel=unrounded)


@subjects
@settings(max_examples=3, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1))
def test_no_vectors_change_the_float_function(subject, seed):
    plan, steps = planted(subject, seed)
    result = quantize.quantize(subject.params, plan, subject.layers, subject.seen, Quantizer(), steps)
    assert set(result.alphas) == set(quantize.products(subject.params, plan, subject.layers, subject.seen))
    for info in subject.layers:
        if info.takes_shift:
            before, after = (trees.get(params, info.path)["bias"] for params in (subject.params, result.params))
            assert np.abs(after - before).max() > 1e-2
    assert differs(subject, as_float(result)) < 2e-5


def test_a_layer_takes_a_shift_behind_a_norm_with_a_bias_and_no_padding():
    def shifted(size):
        layers = models.spec("swin_pico", num_classes=10, image_size=size).layers
        return {info.path.removeprefix("layers_") for info in layers if info.takes_shift}

    fc1 = {f"{stage}/blocks_{block}/mlp/fc1" for stage in (0, 1) for block in (0, 1)}
    first, second = ({f"{stage}/blocks_{block}/attn/qkv" for block in (0, 1)} for stage in (0, 1))
    assert shifted(16) == shifted(8) == fc1 | first | second  # never patch merging
    assert shifted(13) == fc1  # 13 and 7 are no multiples of 4
    assert shifted(12) == fc1 | first  # 6 is none
    assert shifted(3) == fc1 | first | second  # one window each
    vit = models.spec("vit_pico", num_classes=10, image_size=8).layers
    assert {info.path for info in vit if info.takes_shift} == {info.path for info in vit if info.norm}


@pytest.mark.parametrize("path", ["layers_1/downsample/reduction", "layers_0/blocks_1/attn/qkv", "head"])
def test_a_shift_that_nothing_would_make_good_is_refused(path):
    subject = SUBJECTS["swin_padded"]
    plan, steps = planted(subject, 0)
    width = subject.seen[path]["x"].shape[-1]
    steps = steps._replace(shift=lambda *_: {f"{path}:x": np.ones(width, np.float32)})
    layers = [info for info in subject.layers if info.path == path]
    with pytest.raises(ValueError, match=f"{path} takes no shift"):
        quantize.quantize(subject.params, plan, layers, subject.seen, Quantizer(), steps)


FAST = ("naive", "smoothquant", "repq")


@pytest.mark.parametrize("name", marked(QUANTIZERS, FAST))
def test_every_quantizer_makes_a_swin_near_the_float_one_in_as_many_bytes_as_planned(name):
    subject = SUBJECTS["swin_padded"]
    options = dataclasses.replace(QUANTIZERS[name], iterations=2)
    plan = {path: with_options(path, layer, options) for path, layer in subject.plan(granularity="per_token").items()}
    result = quantize.quantize(subject.params, plan, subject.layers, subject.seen, options)
    exact, got = subject.float_logits(subject.params), subject.logits(result)
    assert 1e-5 < np.linalg.norm(got - exact) / np.linalg.norm(exact) < 0.1
    for info in subject.layers:
        stored = sum(leaf.nbytes for leaf in trees.flatten(dict(trees.get(result.params, info.path))).values())
        assert layer_cost(info, result.plan[info.path]).bytes == stored, info.path
