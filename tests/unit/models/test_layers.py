"""The linear layer in its four forms against NumPy; its parameters against what the plan says they cost; what
calibration sees of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lraqvit_jax.base import trees
from lraqvit_jax.calibration import observe as statistics
from lraqvit_jax.devices import sharding
from lraqvit_jax.lowrank import reparam
from lraqvit_jax.models.linear import Linear, LinearOptions
from lraqvit_jax.options.quant import GRANULARITIES
from lraqvit_jax.plan.cost import layer_cost
from lraqvit_jax.plan.records import LayerPlan
from tests.unit import small

M, N, RANK = 24, 16, 5


def apply(layer, params, x, arithmetic="integer"):
    """One layer by itself: its path is empty."""
    model = Linear(N, LinearOptions(plan=(("", layer),), arithmetic=arithmetic))
    return np.asarray(jax.jit(model.apply)({"params": params}, x))


def float_params(rng, form):
    shapes = {"kernel": (M, N), "u": (M, RANK), "v": (RANK, N), "du": (M, RANK), "dv": (RANK, N), "bias": (N,)}
    names = {"dense": ["kernel"], "low_rank": ["u", "v"], "reparam": ["u", "v", "du", "dv"]}[form]
    return {name: rng.standard_normal(shapes[name]).astype(np.float32) for name in (*names, "bias")}


def float_kernel(params):
    """The kernel that the layer applies, in float64."""
    p = {name: value.astype(np.float64) for name, value in params.items()}
    if "kernel" in p:
        return p["kernel"]
    return (p["u"] + p.get("du", 0)) @ (p["v"] + p.get("dv", 0))


@pytest.mark.parametrize("form", ["dense", "low_rank", "reparam"])
@pytest.mark.parametrize("shape", [(4, M), (3, 7, M), (2, 3, 5, M)], ids=str)
def test_float_forms_are_the_product_and_the_bias(rng, form, shape):
    params, x = float_params(rng, form), rng.standard_normal(shape).astype(np.float32)
    got = apply(LayerPlan(form, 0 if form == "dense" else RANK), params, x)
    want = x.astype(np.float64) @ float_kernel(params) + params["bias"]
    assert got.shape == (*shape[:-1], N)
    np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_reparam_multiplies_twice_and_not_four_times():
    """The branch costs additions only."""
    layer = LayerPlan("reparam", RANK)
    model = Linear(N, LinearOptions(plan=(("", layer),)))
    params = float_params(np.random.default_rng(0), "reparam")
    text = jax.jit(model.apply).lower({"params": params}, jnp.zeros((8, M))).as_text()
    assert text.count("dot_general") == 2


# --- the quantized form ---


def rounded(x, scale):
    return np.round(np.clip(x / scale, -127, 127)) * scale


def quantized_params(rng, rank, granularity, tokens, smoothed):
    """Random codes and scales; the scales of the inputs clip a few of them."""

    def qarray(m, n):
        scale = rng.uniform(0.5, 2, n).astype(np.float32) / 127
        return {"qvalue": rng.integers(-127, 128, (m, n)).astype(np.int8), "scale": scale}

    def scale(size):
        shape = (tokens, 1) if granularity == "per_token" else ()
        return np.asarray(rng.uniform(2, 3, shape) * size / 127, np.float32)

    params = {"u": qarray(M, RANK), "v": qarray(RANK, N)} if rank else {"kernel": qarray(M, N)}
    params["bias"] = rng.standard_normal(N).astype(np.float32)
    if granularity != "per_token_dynamic":
        params["x_scale"] = scale(1)
        if rank:
            params["z_scale"] = scale(M**0.5)
    if smoothed:
        params["smooth"] = np.exp(rng.normal(0, 0.3, M)).astype(np.float32)
    return params


def quantized_reference(params, x, clip):
    """Eq. 11 in float64: each product on rounded inputs and dequantized weights."""
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    y = x.astype(np.float64) / wide.get("smooth", 1)
    for name, scale_name in (("kernel", "x_scale"), ("u", "x_scale"), ("v", "z_scale")):
        if name in wide:
            scale = wide.get(scale_name, clip * np.abs(y).max(-1, keepdims=True) / 127)
            y = rounded(y, scale) @ (wide[name]["qvalue"] * wide[name]["scale"])
    return y + wide["bias"]


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("rank", [0, RANK], ids=["dense", "low_rank"])
@pytest.mark.parametrize("smoothed", [False, True], ids=["plain", "smoothed"])
def test_the_quantized_form_is_eq_11(rng, granularity, rank, smoothed):
    x = rng.standard_normal((3, 7, M)).astype(np.float32)
    params = quantized_params(rng, rank, granularity, 7, smoothed)
    layer = LayerPlan("quantized", rank, 8, granularity, clip=0.9, smoothed=smoothed)
    want = quantized_reference(params, x, 0.9)
    for arithmetic in ("integer", "fake"):
        got = apply(layer, params, x, arithmetic)
        # A value in ten thousand may fall on the other side of a tie in float32: none does for these numbers.
        np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_head_reads_one_token(rng, granularity):
    x = rng.standard_normal((6, M)).astype(np.float32)
    params = quantized_params(rng, 0, granularity, 1, False)
    got = apply(LayerPlan("quantized", 0, 8, granularity), params, x)
    want = quantized_reference(params, x, 1.0)
    np.testing.assert_allclose(got, want, atol=2e-5 * np.abs(want).max())


# --- costs ---


def layer_leaves(one_plan, info):
    abstract = sharding.abstract_params(small.model(one_plan), 8, small.MESH)
    return dict(trees.get(abstract, info.path))


@pytest.mark.parametrize("form", ["dense", "low_rank"])
def test_float_forms_cost_what_their_arrays_take(form):
    one = small.plan(form)
    for info in small.LAYERS:
        leaves = jax.tree.leaves(layer_leaves(one, info))
        cost = layer_cost(info, one[info.path])
        assert cost.params == sum(leaf.size for leaf in leaves)
        assert cost.bytes == sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        assert all(leaf.dtype == jnp.float32 for leaf in leaves)


def test_a_reparam_layer_costs_what_it_merges_to():
    one = small.plan("reparam")
    for info in small.LAYERS:
        leaves = layer_leaves(one, info)
        if one[info.path].rank:
            assert set(leaves) == {"u", "v", "du", "dv", "bias"}
            leaves = jax.eval_shape(reparam.merge, leaves)
        cost = layer_cost(info, one[info.path])
        assert cost.params == sum(leaf.size for leaf in leaves.values())
        assert cost.bytes == 4 * cost.params


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("rank", [0, small.RANK], ids=["dense", "low_rank"])
@pytest.mark.parametrize("smoothed", [False, True], ids=["plain", "smoothed"])
def test_the_quantized_form_costs_what_its_arrays_take(granularity, rank, smoothed):
    """Scales and smoothing vectors count as bytes, not as parameters."""
    one = {
        path: dataclasses.replace(layer, smoothed=smoothed)
        for path, layer in small.quantized_plan(rank, granularity).items()
    }
    for info in small.LAYERS:
        leaves = layer_leaves(one, info)
        cost = layer_cost(info, one[info.path])
        assert cost.bytes == sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(leaves))
        kernels = [leaves[name] for name in ("kernel", "u", "v") if name in leaves]
        assert cost.params == sum(kernel["qvalue"].size for kernel in kernels) + leaves["bias"].size
        assert {kernel["qvalue"].dtype for kernel in kernels} == {jnp.dtype("int8")}
        assert ("smooth" in leaves) == smoothed


# --- what calibration sees ---

EIGHT = sharding.make_mesh({"data": -1, "fsdp": 1, "tensor": 1})


def calibration(rng, count, size):
    """Batches of `size` images, the last padded with noise that must not count."""
    images = small.images(rng, count)
    batches = []
    for start in range(0, count, size):
        part = images[start : start + size]
        rows = np.concatenate([part, 100 + small.images(rng, size - len(part))]) if len(part) < size else part
        mask = np.arange(size) < len(part)
        batches.append({"image": rows, "label": np.zeros(size, np.int32), "mask": mask})
    return images, batches


@pytest.fixture(scope="module")
def observed():
    """A dense model on eight devices, twelve images in batches of eight: its inputs and their moments."""
    rng = np.random.default_rng(0)
    params = small.params(small.plan(), rng)
    images, batches = calibration(rng, 12, 8)
    model = small.model()
    inputs = statistics.inputs(model, params, small.LAYERS, batches, EIGHT)
    return params, images, inputs, statistics.moments(model, params, small.LAYERS, batches, EIGHT)


def test_inputs_are_those_of_the_forward_pass_without_the_padding(observed):
    params, images, inputs, _ = observed
    patches = images.reshape(12, 2, 4, 2, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(12, 4, 48)
    np.testing.assert_array_equal(inputs["patch_embed"]["x"], patches)
    for info in small.LAYERS:
        assert inputs[info.path]["x"].shape == (12, info.tokens, info.features_in)
    # The head's input gives the logits.
    logits = inputs["head"]["x"][:, 0] @ params["head"]["kernel"] + params["head"]["bias"]
    want = np.asarray(jax.jit(small.model().apply)({"params": params}, images))
    np.testing.assert_allclose(logits, want, atol=1e-4 * np.abs(want).max())


def test_moments_are_means_over_images_and_tokens_without_the_padding(observed):
    _, _, inputs, moments = observed
    for info in small.LAYERS:
        x = inputs[info.path]["x"].reshape(-1, info.features_in).astype(np.float64)
        got, want = moments[info.path], {"second": x.T @ x / len(x), "mean": x.mean(0), "magnitude": np.abs(x).mean(0)}
        for name, value in want.items():
            assert getattr(got, name).dtype == np.float64
            np.testing.assert_allclose(getattr(got, name), value, atol=1e-5 * np.abs(value).max())
        assert got.cross is None and got.target_mean is None


@pytest.mark.parametrize("form", ["low_rank", "reparam"])
def test_z_is_what_the_second_factor_reads(rng, form):
    one = small.plan(form)
    params, batch = small.params(one, rng), small.images(rng)
    seen = small.seen(one, params, batch)
    for info in small.LAYERS:
        assert ("z" in seen[info.path]) == info.compressible
        if info.compressible:
            layer = trees.get(params, info.path)
            want = seen[info.path]["x"] @ (layer["u"] + layer.get("du", 0))
            np.testing.assert_allclose(seen[info.path]["z"], want, atol=1e-4 * np.abs(want).max())
