"""WADS and SmoothQuant: the objective, its minimization, the selection, and the folding of what they find."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lraqvit_jax.base import trees
from lraqvit_jax.options.quant import GRANULARITIES, PENALTIES, Quantizer
from lraqvit_jax.plan.records import LayerPlan
from lraqvit_jax.quant import quantize
from lraqvit_jax.quant.quantize import Product
from lraqvit_jax.quant.smoothing import smoothquant, wads
from tests.unit import small
from tests.unit.quant.subjects import as_float, unrounded

OPTIONS = Quantizer(penalty="printed", select="all", iterations=40)
AXES = {"per_tensor": (0, 1, 2), "per_token": (0, 2), "per_token_dynamic": 2}
CHANNELS = 24


def outliers(rng, loud=40):
    """Inputs with two loud channels, whose weights are no smaller than the others'."""
    x = rng.standard_normal((6, 5, CHANNELS))
    x[..., [3, 11]] *= loud
    return x.astype(np.float32), (0.1 * rng.standard_normal((CHANNELS, 16))).astype(np.float32)


def rounded(x, largest):
    return np.round(np.clip(x / (largest / 127), -127, 127)) * (largest / 127)


def eq_14(alpha, x, kernel, granularity, penalty, clip=1.0):
    """Eq. 14 in float64 NumPy."""
    alpha, x, kernel = (np.asarray(value, np.float64) for value in (alpha, x, kernel))
    scaled, weight = x / alpha, alpha[:, None] * kernel
    inputs = rounded(scaled, clip * np.abs(scaled).max(AXES[granularity], keepdims=True))
    weights = rounded(weight, np.abs(weight).max(0))
    error = np.sum((inputs @ weights - x @ kernel) ** 2)
    if penalty == "printed":
        error += np.sum((weights - kernel) ** 2)
    if penalty == "weight_error":
        error += np.sum((weights / alpha[:, None] - kernel) ** 2)
    return error


compiled = jax.jit(wads.objective, static_argnames=("layer", "penalty"))


def int8(granularity, clip=1.0):
    return LayerPlan("quantized", 0, 8, granularity=granularity, clip=clip)


def objective(log_alpha, x, kernel, granularity, penalty, clip=1.0):
    return compiled(log_alpha, x, kernel, int8(granularity, clip), penalty)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize("clip", [1.0, 0.8])
def test_the_objective_is_eq_14(rng, granularity, penalty, clip):
    x, kernel = outliers(rng)
    alpha = np.exp(rng.normal(0, 0.5, CHANNELS))
    got = float(objective(jnp.log(alpha), x, kernel, granularity, penalty, clip))
    assert got == pytest.approx(eq_14(alpha, x, kernel, granularity, penalty, clip), rel=1e-3)


def test_each_penalty_is_what_it_adds(rng):
    """The objective is dominated by its first term here; the differences are the second terms alone."""
    x, kernel = outliers(rng, loud=1)
    alpha = np.exp(rng.normal(0, 0.5, CHANNELS))
    x = 1e-3 * x
    got = {p: float(objective(jnp.log(alpha), x, kernel, "per_tensor", p)) for p in PENALTIES}
    want = {p: eq_14(alpha, x, kernel, "per_tensor", p) for p in PENALTIES}
    for penalty in ("printed", "weight_error"):
        assert got[penalty] - got["none"] == pytest.approx(want[penalty] - want["none"], rel=1e-3)
    assert want["printed"] > 10 * want["weight_error"] > 0


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("penalty", ["none", "weight_error"])
@pytest.mark.parametrize("factor", [0.25, 3])
def test_a_common_factor_of_alpha_changes_nothing(rng, granularity, penalty, factor):
    x, kernel = outliers(rng)
    log_alpha = jnp.asarray(rng.normal(0, 0.5, CHANNELS), jnp.float32)
    one, other = (float(objective(log_alpha + shift, x, kernel, granularity, penalty)) for shift in (0, np.log(factor)))
    assert other == pytest.approx(one, rel=1e-3)


@pytest.mark.parametrize("factor", [0.25, 3])
def test_the_printed_penalty_does_see_a_common_factor(rng, factor):
    """It pulls alpha to 1."""
    x, kernel = outliers(rng, loud=1)
    one, other = (
        float(objective(jnp.full(CHANNELS, shift), x, kernel, "per_token", "printed")) for shift in (0, np.log(factor))
    )
    assert other > 1.5 * one


def minimize(x, kernel, granularity, penalty, **options):
    alpha = wads.smooth(
        {"fc:x": Product(x, kernel, int8(granularity))}, dataclasses.replace(OPTIONS, penalty=penalty, **options)
    )
    return alpha["fc:x"]


def starts(x, kernel):
    """Alpha = 1 and SmoothQuant's grid, from its formula."""
    x_max, w_max = np.abs(x).max((0, 1)).astype(np.float64), np.abs(kernel).max(1).astype(np.float64)
    return [np.ones(CHANNELS), *(x_max**a / w_max ** (1 - a) for a in np.linspace(0, 1, 11))]


def normalized(alpha):
    return alpha / np.exp(np.log(alpha).mean())


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_minimum_found_is_no_worse_than_any_start_and_better_than_naive(rng, granularity, penalty):
    x, kernel = outliers(rng)
    alpha = minimize(x, kernel, granularity, penalty)
    assert alpha.shape == (CHANNELS,)
    assert alpha.min() > 0
    found = float(objective(jnp.log(alpha), x, kernel, granularity, penalty))
    for start in starts(x, kernel):
        assert found <= float(objective(jnp.log(normalized(start)), x, kernel, granularity, penalty)) * (1 + 1e-4)
    naive, best = (eq_14(one, x, kernel, granularity, "none") for one in (np.ones(CHANNELS), alpha))
    assert best < 0.5 * naive


def test_gradient_steps_improve_on_the_grid(rng):
    """No draw gets worse; how far one goes hangs on the last bits of a sum, so the gain is asked of all together."""
    draws = {f"draw{index}:x": outliers(rng) for index in range(16)}
    products = {key: Product(*pair, int8("per_tensor")) for key, pair in draws.items()}

    def errors(iterations):
        options = dataclasses.replace(OPTIONS, penalty="none", iterations=iterations, learning_rate=0.1)
        alphas = wads.smooth(products, options)
        return np.array([eq_14(alphas[key], *pair, "per_tensor", "none") for key, pair in draws.items()])

    before, after = errors(0), errors(100)
    assert np.all(after <= before * (1 + 1e-3))
    assert np.exp(np.mean(np.log(after / before))) < 0.95
    # Without any step it is the best start.
    grid = [
        min(eq_14(normalized(start), *pair, "per_tensor", "none") for start in starts(*pair)) for pair in draws.values()
    ]
    np.testing.assert_allclose(before, grid, rtol=1e-2)


def test_alpha_is_one_where_nothing_is_better():
    """Inputs and weights on the grid already: no error to take away."""
    x = np.arange(-127, 128, dtype=np.float32)[: 2 * 5 * CHANNELS].reshape(2, 5, CHANNELS)
    kernel = np.full((CHANNELS, 16), 127, np.float32)
    assert np.array_equal(minimize(x, kernel, "per_tensor", "printed", iterations=3), np.ones(CHANNELS))


def test_products_of_one_shape_are_optimized_as_if_alone(rng):
    pairs = [outliers(rng, loud) for loud in (5, 40)]
    products = {f"layer{i}:x": Product(*pair, int8("per_token")) for i, pair in enumerate(pairs)}
    together = wads.smooth(products, dataclasses.replace(OPTIONS, iterations=5))
    for key, product in products.items():
        alone = wads.smooth({key: product}, dataclasses.replace(OPTIONS, iterations=5))[key]
        np.testing.assert_allclose(together[key], alone, rtol=1e-3)


# --- Eq. 13 ---


def test_only_products_that_round_better_than_the_mean_are_scaled(rng):
    x = rng.standard_normal((2, 3, 8)).astype(np.float32)
    kernels = {
        name: (size * rng.standard_normal((8, 4))).astype(np.float32)
        for name, size in {"a": 1.0, "b": 0.01, "c": 0.5, "d": 0.9}.items()
    }
    products = {name: Product(x, kernel, int8("per_tensor")) for name, kernel in kernels.items()}
    errors = {
        name: np.sum((rounded(kernel.astype(np.float64), np.abs(kernel).max(0)) - kernel) ** 2)
        for name, kernel in kernels.items()
    }
    below = {name for name, error in errors.items() if error < np.mean(list(errors.values()))}
    assert set(wads.chosen(products)) == below
    assert 0 < len(below) < 4
    assert set(wads.smooth(products, dataclasses.replace(OPTIONS, select="below_mean", iterations=1))) == below


def test_equal_products_are_none_of_them_below_their_mean(rng):
    x, kernel = outliers(rng)
    products = {name: Product(x, kernel, int8("per_tensor")) for name in ("a", "b")}
    assert wads.smooth(products, dataclasses.replace(OPTIONS, select="below_mean")) == {}


# --- SmoothQuant ---


@pytest.mark.parametrize("strength", [0.3, 0.5, 1.0])
def test_smoothquant_is_its_formula(rng, strength):
    x, kernel = outliers(rng)
    alpha = smoothquant.smooth({"fc:x": Product(x, kernel, int8("per_tensor"))}, Quantizer(strength=strength))["fc:x"]
    want = np.abs(x).max((0, 1)) ** strength / np.abs(kernel).max(1) ** (1 - strength)
    np.testing.assert_allclose(alpha, normalized(want), rtol=1e-5)


def test_smoothquant_stays_positive_on_dead_channels(rng):
    x, kernel = outliers(rng)
    x[..., 0], kernel[1] = 0, 0
    alpha = smoothquant.smooth({"fc:x": Product(x, kernel, int8("per_tensor"))}, Quantizer(strength=0.5))["fc:x"]
    assert np.isfinite(alpha).all()
    assert alpha.min() > 0


# --- folding, in a whole model ---


def mixed_plan():
    """One layer of each way to fold: into a LayerNorm (qkv, fc1), between factors (fc1), and stored (fc2)."""
    forms = {"qkv": LayerPlan("quantized", 0, 8), "fc2": LayerPlan("quantized", 0, 8)}
    forms["fc1"] = LayerPlan("quantized", small.RANK, 8)
    return {info.path: forms.get(info.path.split("/")[-1], LayerPlan()) for info in small.LAYERS}


def with_granularity(plan, granularity):
    return {path: dataclasses.replace(layer, granularity=granularity) for path, layer in plan.items()}


def planted(choose):
    """The steps of OPTIONS with `choose(key, channels)` as smoothing vectors."""

    def smooth(products, options):
        del options
        return {key: choose(key, product.x.shape[-1]).astype(np.float32) for key, product in products.items()}

    return quantize.steps_of(OPTIONS)._replace(smooth=smooth)


def run(plan, params, batch):
    return np.asarray(jax.jit(small.model(plan).apply)({"params": params}, batch))


@pytest.mark.parametrize("plan", [mixed_plan(), small.quantized_plan(small.RANK, "per_tensor")], ids=["mixed", "all"])
def test_folding_leaves_the_float_function(rng, plan):
    """With the rounding of the weights taken out, alphas of a wide range change nothing."""
    float_plan = small.float_plan(plan)
    params, batch = small.params(float_plan, rng), small.images(rng)
    seen = small.seen(float_plan, params, batch)
    steps = planted(lambda key, channels: np.exp(rng.normal(0, 1, channels)))._replace(round_kernel=unrounded)
    result = quantize.quantize(params, plan, small.LAYERS, seen, OPTIONS, steps)
    assert set(result.alphas) == set(quantize.products(params, plan, small.LAYERS, seen))
    want, got = run(float_plan, params, batch), run(float_plan, as_float(result), batch)
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_power_of_two_for_all_channels_changes_not_one_bit(rng, granularity):
    """Then scaling is exact: codes stay, and every scale must take up exactly what the fold put elsewhere."""
    plan = with_granularity(mixed_plan(), granularity)
    float_plan = small.float_plan(plan)
    params, batch = small.params(float_plan, rng), small.images(rng)
    seen = small.seen(float_plan, params, batch)
    naive = quantize.quantize(params, plan, small.LAYERS, seen, OPTIONS)
    powers = {"qkv:x": 4.0, "fc1:x": 0.5, "fc1:z": 8.0, "fc2:x": 0.25}
    steps = planted(lambda key, channels: np.full(channels, powers[key.split("/")[-1]]))
    moved = quantize.quantize(params, plan, small.LAYERS, seen, OPTIONS, steps)
    assert np.array_equal(run(moved.plan, moved.params, batch), run(naive.plan, naive.params, batch))
    for info in small.LAYERS:
        layer = trees.get(moved.params, info.path)
        assert moved.plan[info.path].smoothed == ("smooth" in layer) == info.path.endswith("fc2")
    for name in ("norm1", "norm2"):
        before, after = (trees.get(one, f"blocks_0/{name}/scale") for one in (params, moved.params))
        np.testing.assert_array_equal(after, before / {"norm1": 4.0, "norm2": 0.5}[name])


def loud_params(params):
    """The same function with loud channels: in the LayerNorms' outputs and between the factors of fc1."""
    changes = {}
    for block in ("blocks_0", "blocks_1"):
        norm, fc1 = (trees.get(params, f"{block}/{name}") for name in ("norm2", "mlp/fc1"))
        gain = np.ones(small.LAYERS[0].features_out, np.float32)
        gain[[2, 9]] = 60
        changes[f"{block}/norm2"] = {name: value * gain for name, value in norm.items()}
        rank_gain = np.ones(small.RANK, np.float32)
        rank_gain[1] = 60
        u, v = fc1["u"] / gain[:, None] * rank_gain, fc1["v"] / rank_gain[:, None]
        changes[f"{block}/mlp/fc1"] = {**fc1, "u": u, "v": v}
    return trees.replace(params, changes)


def test_wads_undoes_planted_channel_outliers_in_a_whole_model(rng):
    """Folded into LayerNorms, scales and factors, it is several times nearer to the float model than naive PTQ."""
    plan = with_granularity(mixed_plan(), "per_tensor")
    float_plan = small.float_plan(plan)
    quiet = small.params(float_plan, rng)
    params, batch = loud_params(quiet), small.images(rng)
    exact = run(float_plan, params, batch)
    np.testing.assert_allclose(exact, run(float_plan, quiet, batch), rtol=1e-3, atol=1e-4)
    seen = small.seen(float_plan, params, batch)
    errors, products = {}, {}
    for name in ("naive", "wads"):
        result = quantize.quantize(
            params, plan, small.LAYERS, seen, dataclasses.replace(OPTIONS, method=name, penalty="weight_error")
        )
        errors[name] = np.linalg.norm(run(result.plan, result.params, batch) - exact) / np.linalg.norm(exact)
        products[name] = result.errors
    assert errors["wads"] < 0.4 * errors["naive"]
    assert errors["wads"] < 0.05
    for key in ("blocks_0/mlp/fc1:x", "blocks_1/mlp/fc1:z"):
        assert products["wads"][key] < 0.3 * products["naive"][key]


def test_product_errors_are_those_of_the_products(rng):
    """Against the float64 transcription, for smoothed and plain products; the second factor reads what the first one
    puts out."""
    plan = with_granularity(mixed_plan(), "per_token")
    float_plan = small.float_plan(plan)
    params, batch = small.params(float_plan, rng), small.images(rng)
    seen = small.seen(float_plan, params, batch)
    result = quantize.quantize(params, plan, small.LAYERS, seen, dataclasses.replace(OPTIONS, method="smoothquant"))
    products = quantize.products(params, plan, small.LAYERS, seen)
    assert set(result.errors) == set(products)
    put_out = {}
    for key, product in products.items():
        exact = product.x.astype(np.float64) @ product.kernel
        alpha = result.alphas[key].astype(np.float64)
        x = (put_out[f"{key[:-1]}x"] if key.endswith(":z") else product.x) / alpha
        kernel = alpha[:, None] * product.kernel
        inputs = rounded(x, np.abs(x).max((0, 2), keepdims=True))
        put_out[key] = inputs @ rounded(kernel, np.abs(kernel).max(0))
        want = np.linalg.norm(put_out[key] - exact) / np.linalg.norm(exact)
        assert result.errors[key] == pytest.approx(want, rel=2e-3)
