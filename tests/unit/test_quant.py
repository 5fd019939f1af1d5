"""Integer arrays, fake quantization and its integer twin, the smoothing methods and their folding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from hypothesis import given, settings
from hypothesis import strategies as st

from lraqvit_jax.quant import fake_quant, qarray, quantize, smoothquant, wads
from lraqvit_jax.quant.quantize import Product
from tests.unit import small

GRANULARITIES = ("per_tensor", "per_token", "per_token_dynamic")
WADS = {"penalty": "printed", "select": "all", "iterations": 40, "learning_rate": 0.01, "strength": 0.5}
property_test = settings(max_examples=25, deadline=None, derandomize=True)


def rounded(x, scale):
    """Float64 NumPy: the grid of [-127, 127]."""
    x, scale = np.asarray(x, np.float64), np.asarray(scale, np.float64)
    return np.round(np.clip(x / scale, -127, 127)) * scale


@property_test
@given(st.sampled_from([(1, 1), (1, 7), (40, 1), (33, 29)]), st.integers(0, 2**16))
def test_kernels_round_to_the_nearest_point_of_a_symmetric_grid(shape, seed):
    kernel = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    array = qarray.quantize_kernel(jnp.asarray(kernel))
    values, scale = np.asarray(array["qvalue"], np.int32), np.asarray(array["scale"])
    assert values.min() >= -127
    assert np.all(np.abs(values).max(0) == 127)
    assert np.all(np.abs(np.asarray(qarray.dequantize_kernel(array)) - kernel) <= scale / 2 * (1 + 1e-5))
    negated = qarray.quantize_kernel(jnp.asarray(-kernel))
    assert np.array_equal(np.asarray(negated["qvalue"]), -values)


def test_an_all_zero_channel_has_scale_one():
    array = qarray.quantize_kernel(jnp.zeros((4, 3)))
    assert np.asarray(array["scale"]).tolist() == [1, 1, 1]
    assert not np.asarray(array["qvalue"]).any()


def test_kernels_agree_with_qwix(rng):
    """qwix spreads max |w| over 127.5 steps and may emit -128; the grids differ by that half step and no more."""
    kernel = jnp.asarray(rng.standard_normal((64, 48)).astype(np.float32))
    ours = qarray.dequantize_kernel(qarray.quantize_kernel(kernel))
    theirs = qwix.dequantize(qwix.quantize(kernel, jnp.int8, channelwise_axes=[1]))
    step = np.abs(np.asarray(kernel)).max(0) / 127
    assert np.all(np.abs(np.asarray(ours) - np.asarray(theirs)) <= 1.01 * step)
    errors = [float(jnp.linalg.norm(one - kernel)) for one in (ours, theirs)]
    assert errors[0] < 1.05 * errors[1]


def test_integer_product_is_exact(rng):
    x, kernel = rng.integers(-127, 128, (33, 500)), rng.integers(-127, 128, (500, 17))
    want = x.astype(np.int64) @ kernel.astype(np.int64)
    for dot in (qarray.integer_dot, qarray.float_dot):
        got = jax.jit(dot)(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.int8))
        assert np.array_equal(np.asarray(got, np.int64), want)


@pytest.mark.parametrize(
    ("granularity", "shape"), [("per_tensor", ()), ("per_token", (5, 1)), ("per_token_dynamic", (3, 5, 1))]
)
def test_input_scales(rng, granularity, shape):
    x = rng.standard_normal((3, 5, 8)).astype(np.float32)
    scale = np.asarray(qarray.input_scale(jnp.asarray(x), granularity, clip=0.5))
    axes = {"per_tensor": (0, 1, 2), "per_token": (0, 2), "per_token_dynamic": 2}[granularity]
    assert scale.shape == shape
    np.testing.assert_allclose(scale.reshape(-1), (0.5 * np.abs(x).max(axes) / 127).reshape(-1), rtol=1e-6)


def test_fake_quantization_is_the_grid(rng):
    x = rng.standard_normal((20, 30)).astype(np.float32)
    np.testing.assert_allclose(fake_quant.fake_quant(jnp.asarray(x), 0.013), rounded(x, 0.013), atol=1e-6)


def test_gradient_passes_inside_the_clipping_range_and_stops_outside():
    scale = 0.01  # clips at 1.27
    x = jnp.array([-2.0, -1.2, 0.3, 1.26, 1.28, 5.0])
    gradient = jax.grad(lambda x: jnp.sum(fake_quant.fake_quant(x, scale)))(x)
    assert np.asarray(gradient).tolist() == [0, 1, 1, 1, 0, 0]


def test_gradient_of_the_scale_is_lsqs(rng):
    x, scale = rng.normal(0, 1, 200).astype(np.float32), 0.0123
    gradient = jax.jacobian(lambda s: fake_quant.fake_quant(jnp.asarray(x), s))(jnp.float32(scale))
    v = x.astype(np.float64) / scale
    want = np.where(np.abs(v) <= 127, np.round(v) - v, 127 * np.sign(v))
    np.testing.assert_allclose(gradient, want, atol=1e-3)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("rank", [0, small.RANK], ids=["dense", "low_rank"])
def test_fake_and_integer_paths_agree_to_the_last_bit(rng, granularity, rank):
    plan = small.quantized_plan(rank, granularity)
    float_plan = small.float_plan(plan)
    params, batch = small.params(float_plan, rng), small.images(rng)
    seen = small.seen(float_plan, params, batch)
    result = quantize.quantize(params, plan, small.LAYERS, seen, "smoothquant", WADS)
    assert any(layer.smoothed for layer in result.plan.values())
    logits = [
        np.asarray(jax.jit(small.model(result.plan, arithmetic=path).apply)({"params": result.params}, batch))
        for path in ("integer", "fake")
    ]
    assert np.array_equal(logits[0], logits[1])
    exact = np.asarray(jax.jit(small.model(float_plan).apply)({"params": params}, batch))
    error = np.linalg.norm(logits[0] - exact) / np.linalg.norm(exact)
    assert 0 < error < 0.1


def test_the_fake_path_has_gradients(rng):
    plan = small.quantized_plan(small.RANK, "per_token")
    params, batch = small.params(small.float_plan(plan), rng), small.images(rng)
    seen = small.seen(small.float_plan(plan), params, batch)
    result = quantize.quantize(params, plan, small.LAYERS, seen, "naive", WADS)
    model = small.model(result.plan, arithmetic="fake")
    gradient = jax.grad(lambda images: jnp.sum(model.apply({"params": result.params}, images) ** 2))(batch)
    assert float(jnp.abs(gradient).max()) > 0


def objective(alpha, x, kernel, granularity, penalty):
    """Eq. 14 in float64 NumPy."""
    scaled, weight = x / alpha, alpha[:, None] * kernel
    axes = {"per_tensor": (0, 1, 2), "per_token": (0, 2), "per_token_dynamic": 2}[granularity]
    inputs = rounded(scaled, np.abs(scaled).max(axes, keepdims=True) / 127)
    weights = rounded(weight, np.abs(weight).max(0) / 127)
    error = np.sum((inputs @ weights - x @ kernel) ** 2)
    if penalty == "printed":
        return error + np.sum((weights - kernel) ** 2)
    return error + (np.sum((weights / alpha[:, None] - kernel) ** 2) if penalty == "weight_error" else 0)


def outliers(rng, channels=24):
    """Inputs with two loud channels, as the paper's Fig. 3 shows them."""
    x = rng.standard_normal((6, 5, channels)).astype(np.float32)
    x[..., [3, 11]] *= 40
    return x, (0.1 * rng.standard_normal((channels, 16))).astype(np.float32)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("penalty", wads.PENALTIES)
def test_the_objective_is_eq_14(rng, granularity, penalty):
    x, kernel = outliers(rng)
    alpha = np.exp(rng.normal(0, 0.5, x.shape[-1]))
    got = jax.jit(wads.objective, static_argnums=(3, 4))(jnp.log(alpha), x, kernel, granularity, penalty)
    want = objective(alpha, x.astype(np.float64), kernel.astype(np.float64), granularity, penalty)
    np.testing.assert_allclose(got, want, rtol=5e-3)  # float32 puts a few values on the other side of a tie


@pytest.mark.parametrize(("penalty", "free"), [("none", True), ("weight_error", True), ("printed", False)])
def test_only_the_printed_penalty_sees_a_common_factor(rng, penalty, free):
    """METHOD section 6."""
    x, kernel = outliers(rng)
    log_alpha = jnp.asarray(rng.normal(0, 0.5, x.shape[-1]), jnp.float32)
    values = [float(wads.objective(log_alpha + shift, x, kernel, "per_token", penalty)) for shift in (0, np.log(4))]
    ratio = values[1] / values[0]
    assert abs(ratio - 1) < 1e-3 if free else ratio > 1.5


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("penalty", ["printed", "weight_error"])
def test_wads_is_never_worse_than_its_starts_and_beats_naive_on_outliers(rng, granularity, penalty):
    x, kernel = outliers(rng)
    product = Product(x, kernel, granularity, 1.0)
    alpha = wads.smooth({"fc:x": product}, {**WADS, "penalty": penalty})["fc:x"]
    assert alpha.shape == (x.shape[-1],)
    assert alpha.min() > 0

    def loss(alpha):
        return float(wads.objective(jnp.log(jnp.asarray(alpha)), x, kernel, granularity, penalty))

    starts = [np.ones(x.shape[-1])]
    starts += [smoothquant.smooth({"": product}, {"strength": a})[""] for a in wads.GRID]
    assert loss(alpha) <= min(map(loss, starts)) * (1 + 1e-4)
    errors = [
        objective(a, x.astype(np.float64), kernel.astype(np.float64), granularity, "none") for a in (alpha, starts[0])
    ]
    assert errors[0] < 0.7 * errors[1]


def test_eq_13_selects_the_products_that_round_well(rng):
    x = rng.standard_normal((2, 3, 8)).astype(np.float32)
    sizes = {"a": 1.0, "b": 0.01, "c": 0.02}
    products = {
        name: Product(x, (size * rng.standard_normal((8, 4))).astype(np.float32), "per_tensor", 1.0)
        for name, size in sizes.items()
    }
    assert wads.chosen(products) == ["b", "c"]
    assert set(wads.smooth(products, {**WADS, "select": "below_mean", "iterations": 2})) == {"b", "c"}


def test_smoothquant_is_its_formula(rng):
    x, kernel = outliers(rng)
    alpha = smoothquant.smooth({"fc:x": Product(x, kernel, "per_tensor", 1.0)}, {"strength": 0.5})["fc:x"]
    want = np.sqrt(np.abs(x).max((0, 1)) / np.abs(kernel).max(1))
    np.testing.assert_allclose(alpha, want / np.exp(np.log(want).mean()), rtol=1e-5)


@pytest.mark.parametrize("rank", [0, small.RANK], ids=["dense", "low_rank"])
def test_folding_a_smoothing_vector_changes_nothing_but_the_rounding(rng, rank):
    """Into a LayerNorm, into the first factor's scales, or into the quantizer: with planted vectors of wide range, the
    int8 model stays as near to the float model as without. A wrong fold would be off by factors."""
    plan = small.quantized_plan(rank, "per_token_dynamic")
    float_plan = small.float_plan(plan)
    params, batch = small.params(float_plan, rng), small.images(rng)
    seen = small.seen(float_plan, params, batch)
    exact = np.asarray(jax.jit(small.model(float_plan).apply)({"params": params}, batch))

    class Planted:
        @staticmethod
        def smooth(products, options):
            return {
                key: np.exp(rng.normal(0, 0.5, one.x.shape[-1])).astype(np.float32) for key, one in products.items()
            }

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantize, "method", lambda name: Planted)
        result = quantize.quantize(params, plan, small.LAYERS, seen, "planted", {})
    got = np.asarray(jax.jit(small.model(result.plan).apply)({"params": result.params}, batch))
    assert np.linalg.norm(got - exact) < 0.1 * np.linalg.norm(exact)
    folded = {info.path for info in small.LAYERS if info.norm}
    assert {path for path, layer in result.plan.items() if layer.smoothed} == set(plan) - folded
