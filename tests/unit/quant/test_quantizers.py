"""Bits, groups, zero points, calibration, rounding, and what is put between the factors of a pair."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lraqvit_jax.base import trees
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.options.quant import BETWEEN, Quantizer
from lraqvit_jax.plan import cost
from lraqvit_jax.plan.records import LayerPlan
from lraqvit_jax.quant import between, qarray, quantize
from lraqvit_jax.quant.fake_quant import fake_quant_input
from lraqvit_jax.quant.quantize import Product, on_grid
from lraqvit_jax.quant.ranges import minmax, mse, percentile
from lraqvit_jax.quant.rounding import gptq, nearest, ridge
from lraqvit_jax.quant.smoothing import repq
from lraqvit_jax.stages.quantize import degenerate
from tests.unit import small

FORMS = [
    ("per_tensor", {"weight_bits": 4}),
    ("per_token", {"bits": 6}),
    ("per_token_dynamic", {"bits": 4, "group": 4}),
    ("per_tensor", {"asymmetric": True}),
    ("per_token", {"bits": 6, "weight_bits": 4, "group": 8, "asymmetric": True}),
    ("per_token_dynamic", {"weight_bits": 6, "asymmetric": True}),
]


def quantized(rng, granularity, fields, **options):
    """A quantized small model, its float parameters and images."""
    one = small.quantized_plan(small.RANK, granularity)
    one = {path: dataclasses.replace(layer, **fields) for path, layer in one.items()}
    float_plan = small.float_plan(one)
    params, batch = small.params(float_plan, rng), small.images(rng)
    seen = small.seen(float_plan, params, batch)
    result = quantize.quantize(params, one, small.LAYERS, seen, Quantizer(**options))
    return result, params, batch


def logits(one_plan, params, batch, **options):
    return np.asarray(jax.jit(small.model(one_plan, **options).apply)({"params": params}, batch))


@pytest.mark.parametrize(("granularity", "fields"), FORMS, ids=str)
def test_every_form_runs_on_integers_as_its_float_twin_says_in_as_many_bytes_as_planned(rng, granularity, fields):
    result, params, batch = quantized(rng, granularity, fields)
    integer, fake = (logits(result.plan, result.params, batch, arithmetic=kind) for kind in ("integer", "fake"))
    np.testing.assert_allclose(integer, fake, rtol=0, atol=1e-5 * np.abs(fake).max())
    exact = logits(small.float_plan(result.plan), params, batch)
    error = np.linalg.norm(integer - exact) / np.linalg.norm(exact)
    coarse = min(fields.get("bits", 8), fields.get("weight_bits", 8))
    assert 1e-5 < error < {8: 0.05, 6: 0.2, 4: 1.0}[coarse]
    for info in small.LAYERS:
        stored = sum(leaf.nbytes for leaf in jax.tree.leaves(trees.get(result.params, info.path)))
        assert cost.layer_cost(info, result.plan[info.path]).bytes == stored, info.path


# --- rounding ---


def correlated(rng, rows=400, m=24, n=10):
    mix = rng.standard_normal((m, m)) * np.geomspace(3, 0.05, m)
    return rng.standard_normal((rows, m)) @ mix, 0.1 * rng.standard_normal((m, n))


def output_error(rounded, kernel, array):
    found = np.asarray(array.dequantize(), np.float64)
    return np.square(rounded @ (found - kernel)).sum()


def brain_surgeon(kernel, hessian, scale, limit):
    """Row by row in float64: round, spread the error by the inverse Hessian of the rows that are left, drop the row."""
    left, inverse = kernel.copy(), np.linalg.inv(hessian)
    codes = np.zeros_like(kernel)
    for row in np.argsort(-np.diag(hessian), kind="stable"):
        codes[row] = np.clip(np.round(left[row] / scale[row]), -limit, limit)
        error = (left[row] - codes[row] * scale[row]) / inverse[row, row]
        left -= np.outer(inverse[:, row], error)
        inverse -= np.outer(inverse[:, row], inverse[row]) / inverse[row, row]
    return codes


@pytest.mark.parametrize(("bits", "group", "m"), [(8, 0, 24), (4, 0, 150), (4, 8, 24), (6, 0, 24)])
def test_gptq_is_optimal_brain_surgery_row_by_row(rng, bits, group, m):
    rounded, kernel = correlated(rng, m=m)
    layer = LayerPlan("quantized", 0, 8, weight_bits=bits, group=group)
    array = gptq.round_kernel(kernel, rounded, None, layer)
    hessian = rounded.T @ rounded
    hessian += 0.01 * np.trace(hessian) / m * np.eye(m)
    scale = np.asarray(array.each_row(), np.float64) * np.ones_like(kernel)
    want = brain_surgeon(kernel, hessian, scale, qarray.qmax(bits))
    assert np.mean(np.asarray(array.unpack()) == want) > 0.99
    plain = nearest.round_kernel(jnp.asarray(kernel, jnp.float32), None, None, layer)
    assert output_error(rounded, kernel, array) < 0.6 * output_error(rounded, kernel, plain)


@pytest.mark.parametrize("rounding", [gptq, ridge])
def test_an_accelerator_rounds_alike(rng, monkeypatch, rounding):
    """Where moments are summed in float32, an entry on an edge may fall to its other side."""
    rounded, kernel = (jnp.asarray(array, jnp.float32) for array in correlated(rng, m=96))
    target = jnp.asarray(rounded @ kernel + 0.1 * rng.standard_normal((len(rounded), kernel.shape[1])), jnp.float32)
    layer = LayerPlan("quantized", 0, 8, weight_bits=5)
    on_host = rounding.round_kernel(kernel, rounded, target, layer)
    monkeypatch.setattr(gptq, "on_accelerator", lambda: True)
    there = rounding.round_kernel(kernel, rounded, target, layer)
    codes = [np.asarray(one.unpack(), int) for one in (on_host, there)]
    assert np.abs(codes[0] - codes[1]).max() <= 1
    assert np.mean(codes[0] != codes[1]) < 0.01
    np.testing.assert_allclose(there.scale, on_host.scale, rtol=0.03)


def test_scales_found_by_search_round_no_worse_than_those_of_the_largest_entries(rng):
    kernel, weight = rng.standard_t(3, (64, 12)), rng.gamma(1, 1, 64)
    layer = LayerPlan("quantized", 0, 8, weight_bits=4)

    def errors(scale):
        rounded = np.clip(np.round(kernel / scale), -7, 7) * scale
        return (weight[:, None] * np.square(rounded - kernel)).sum(0)

    found, full = gptq.search_scale(kernel, weight, layer), np.abs(kernel).max(0) / 7
    assert np.all(errors(found) <= errors(full) * (1 + 1e-6))
    assert errors(found).sum() < 0.9 * errors(full).sum()


def test_the_ridge_correction_is_where_its_gradient_vanishes(rng):
    x, kernel = correlated(rng)
    rounded, wanted = x + 0.1 * rng.standard_normal(x.shape), x @ kernel
    second, errors = rounded.T @ rounded, rounded.T @ (wanted - rounded @ kernel)
    found = ridge.correct(kernel, second, errors, strength=0.1)
    strength = 0.1 * np.trace(rounded.T @ rounded) / len(kernel)
    gradient = rounded.T @ (rounded @ found - wanted) + strength * (found - kernel)
    np.testing.assert_allclose(gradient, 0, atol=1e-8 * np.abs(rounded.T @ wanted).max())
    nothing = ridge.correct(kernel, x.T @ x, x.T @ (wanted - x @ kernel))
    np.testing.assert_allclose(nothing, kernel, atol=1e-9)  # nothing to make good


def test_better_rounding_makes_a_better_model(rng):
    """Four-bit kernels: errors of the products, and of the logits on the calibration images."""
    found = {}
    for rounding in ("nearest", "gptq", "ridge"):
        result, params, batch = quantized(np.random.default_rng(3), "per_tensor", {"weight_bits": 4}, rounding=rounding)
        exact = logits(small.float_plan(result.plan), params, batch)
        found[rounding] = (
            np.linalg.norm(logits(result.plan, result.params, batch) - exact),
            np.mean(list(result.errors.values())),
        )
    assert found["gptq"][1] < 0.9 * found["nearest"][1]
    assert found["ridge"][1] < found["gptq"][1]
    assert found["ridge"][0] < found["nearest"][0]


# --- calibration ---


@pytest.mark.parametrize("granularity", ["per_tensor", "per_token"])
@pytest.mark.parametrize("asymmetric", [False, True])
@pytest.mark.parametrize("module", [percentile, mse], ids=["percentile", "mse"])
def test_clipping_lowers_the_error_of_every_scale(rng, granularity, asymmetric, module):
    x = jnp.asarray(rng.standard_t(2, (40, 5, 60)) + 0.5, jnp.float32)
    layer = LayerPlan("quantized", 0, 4, granularity, asymmetric=asymmetric)
    axes = (0, 2) if granularity == "per_token" else None

    def errors(grid):
        return np.square(on_grid(x, grid, 4) - x).sum(axes)

    plain, clipped = errors(minmax.ranges(x, layer)), errors(module.ranges(x, layer))
    assert np.all(clipped < plain)
    assert (module.ranges(x, layer).center is not None) == asymmetric


@pytest.mark.parametrize("asymmetric", [False, True])
def test_the_best_clip_of_dynamic_scales_goes_into_the_plan(rng, asymmetric):
    x = jnp.asarray(rng.standard_t(3, (10, 5, 60)), jnp.float32)
    layer = LayerPlan("quantized", 0, 4, "per_token_dynamic", asymmetric=asymmetric)

    def error(clip):
        return float(np.square(fake_quant_input(x, dataclasses.replace(layer, clip=clip)) - x).sum())

    clip = mse.ranges(x, layer).clip
    assert clip < 0.96
    assert all(error(clip) <= error(other) * (1 + 1e-6) for other in mse.SHARES)
    result, _, batch = quantized(rng, "per_token_dynamic", {"bits": 4}, calibration="mse")
    one = result.plan["blocks_0/mlp/fc1"]
    assert 0 < one.clip < 1
    assert one.clip_z != one.clip
    assert np.abs(
        logits(result.plan, result.params, batch) - logits(unclipped(result.plan), result.params, batch)
    ).max()


def unclipped(one_plan):
    return {path: dataclasses.replace(layer, clip=1.0, clip_z=0.0) for path, layer in one_plan.items()}


def test_the_percentile_is_the_best_of_three(rng):
    x = jnp.asarray(rng.standard_t(2, (40, 5, 60)), jnp.float32)
    layer = LayerPlan("quantized", 0, 6, "per_tensor")
    ends = [np.quantile(np.abs(x), share) for share in (0.999, 0.9999, 0.99999)]
    errors = [np.square(np.clip(np.round(x / (end / 31)), -31, 31) * (end / 31) - x).sum() for end in ends]
    scale = percentile.ranges(x, layer).scale
    np.testing.assert_allclose(scale, ends[int(np.argmin(errors))] / 31, rtol=1e-4)


# --- RepQ-ViT ---


def test_repq_gives_all_channels_after_a_layer_norm_one_range(rng):
    x = (rng.standard_normal((4, 5, 8)) * np.geomspace(0.1, 10, 8) + rng.normal(0, 3, 8)).astype(np.float32)
    product = Product(x, np.eye(8, dtype=np.float32), LayerPlan("quantized", 0, 8), after_norm=True, takes_shift=True)
    other = product._replace(after_norm=False, takes_shift=False)
    alphas, shifts = (function({"a:x": product, "b:x": other}, Quantizer()) for function in (repq.smooth, repq.shift))
    assert set(alphas) == set(shifts) == {"a:x"}
    moved = (x - shifts["a:x"]) / alphas["a:x"]
    for end in (moved.max((0, 1)), moved.min((0, 1))):
        np.testing.assert_allclose(end, end[0], rtol=1e-3, atol=1e-3 * np.ptp(moved))


def test_repq_gives_channels_that_take_no_shift_one_range_about_zero(rng):
    x = (rng.standard_normal((4, 5, 8)) * np.geomspace(0.1, 10, 8) + rng.normal(0, 3, 8)).astype(np.float32)
    products = {"a:x": Product(x, np.eye(8, dtype=np.float32), LayerPlan("quantized", 0, 8), after_norm=True)}
    assert repq.shift(products, Quantizer()) == {}
    largest = np.abs(x / repq.smooth(products, Quantizer())["a:x"]).max((0, 1))
    np.testing.assert_allclose(largest, largest[0], rtol=1e-5)


# --- between the factors ---


@pytest.mark.parametrize("rank", [1, 6, 8, 24, 112])
def test_hadamard_blocks_are_orthogonal_and_flat(rank):
    matrix = between.hadamard(rank)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(rank), atol=1e-12)
    assert np.all(np.sum(np.abs(matrix) > 1e-12, 0) >= min(rank, 1 << (rank & -rank).bit_length() - 1))


def pair(rng, rank=8):
    """A pair whose rank channels have one outlier."""
    x = rng.standard_normal((20, 6, 12)).astype(np.float32)
    u, v = (rng.standard_normal(shape).astype(np.float32) for shape in ((12, rank), (rank, 9)))
    gain = np.ones(rank, np.float32)
    gain[3] = 30
    layer = LayerPlan("quantized", rank, 4, "per_tensor")
    return {"fc:x": Product(x, u * gain, layer), "fc:z": Product(x @ (u * gain), v / gain[:, None], layer)}


@pytest.mark.parametrize("kind", ["hadamard", "spectrum", "learned"])
def test_what_is_put_between_the_factors_leaves_their_product(rng, kind):
    before = pair(rng)
    after = between.apply(kind, before)
    want = before["fc:x"].kernel.astype(np.float64) @ before["fc:z"].kernel
    np.testing.assert_allclose(after["fc:x"].kernel @ after["fc:z"].kernel, want, atol=1e-3)
    np.testing.assert_allclose(after["fc:z"].x, after["fc:x"].x @ after["fc:x"].kernel, atol=1e-3)
    assert np.abs(after["fc:x"].kernel - before["fc:x"].kernel).max() > 0.1


def test_a_learned_rotation_is_better_than_its_starts(rng):
    products = pair(rng)
    found = {kind: between.apply(kind, products) for kind in BETWEEN}

    def error(kind):
        first, second = found[kind]["fc:x"], found[kind]["fc:z"]
        x = first.x.reshape(-1, 12)

        def snap(value, largest, limit=7):
            return np.clip(np.round(value / (largest / limit)), -limit, limit) * (largest / limit)

        inner = snap(x, np.abs(x).max()) @ snap(first.kernel, np.abs(first.kernel).max(0))
        out = snap(inner, np.abs(inner).max()) @ snap(second.kernel, np.abs(second.kernel).max(0))
        return np.linalg.norm(out - x @ products["fc:x"].kernel @ products["fc:z"].kernel)

    assert error("learned") < 0.95 * min(error("none"), error("hadamard"))
    assert error("spectrum") < 0.95 * min(error("none"), error("hadamard"))


def test_the_spectrum_gives_white_or_orthonormal_rank_channels(rng, monkeypatch):
    """With all of the singular values on v, the channels are white; with all on them, v's rows are orthonormal."""
    products = pair(rng)
    for share, name in ((1.0, "channels"), (0.0, "rows")):
        monkeypatch.setattr(between, "SHARES", (share,))
        errors = iter([2.0, 2.0, 1.0, 2.0])
        monkeypatch.setattr(between, "_pair_error", lambda *_: next(errors))  # noqa: B023
        turned = between.apply("spectrum", products)["fc:z"]
        z, v = turned.x.reshape(-1, 8), turned.kernel
        second = z.T @ z / len(z) if name == "channels" else v @ v.T
        np.testing.assert_allclose(second, np.eye(8), atol=1e-2)


def test_calibration_inputs_that_say_too_little_are_named(rng):
    x = rng.standard_normal((4, 5, 8)).astype(np.float32)
    still = x.copy()
    still[..., [2, 6]] = 0.5
    assert degenerate({"a": {"x": x}}) == []
    constant, few = degenerate({"a": {"x": x, "z": still}, "b": {"x": x[:1]}, "head": {"x": x[:, :1]}})
    assert "2 input channels in 1 products are constant" in constant
    assert "2 of 8 in a:z" in constant
    assert "1 products see fewer tokens than they have channels, such as b:x with 5 for 8" in few


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("method", "wad", "did you mean 'wads'"),
        ("calibration", "percentil", "did you mean 'percentile'"),
        ("rounding", "gpt", "did you mean 'gptq'"),
        ("between", "hadamrd", "did you mean 'hadamard'"),
        ("penalty", "print", "quant.penalty is 'print'; did you mean 'printed'"),
        ("select", "some", "quant.select is 'some'"),
        ("strength", 2.0, "from 0 to 1"),
    ],
)
def test_an_unknown_choice_is_named_with_the_nearest(field, value, says):
    with pytest.raises(UserError, match=says):
        quantize.check(Quantizer(**{field: value}))
