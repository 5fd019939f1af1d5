"""Integer arrays against NumPy, and against qwix where the two grids are meant to agree."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import qwix
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from qwix._src.core.qarray import quantize_with_scale_zero_point

from lraqvit_jax.plan.cost import packed_rows
from lraqvit_jax.quant import qarray
from lraqvit_jax.quant.qarray import QArray

property_test = settings(max_examples=30, deadline=None, derandomize=True)
# One shape, so that each function compiles once.
kernels = arrays(np.float32, (12, 7), elements=st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False)).map(
    lambda kernel: np.where(np.abs(kernel) < 2.0**-60, np.float32(0), kernel)
)
quantize = jax.jit(qarray.quantize_kernel)
dequantize = jax.jit(QArray.dequantize)


@property_test
@given(kernels)
def test_values_stay_on_the_symmetric_grid_and_within_half_a_step(kernel):
    array = quantize(kernel)
    values, scale = np.asarray(array.qvalue), np.asarray(array.scale, np.float64)
    assert values.dtype == np.int8
    assert values.min() >= -127  # never -128
    assert scale.shape == (7,)
    assert np.all(scale > 0)
    assert np.all(np.abs(np.asarray(dequantize(array), np.float64) - kernel) <= scale * (0.5 + 1e-4))


@property_test
@given(kernels)
def test_the_largest_entry_of_each_channel_is_the_end_of_the_grid(kernel):
    values = np.asarray(quantize(kernel).qvalue, np.int32)
    assert np.array_equal(np.abs(values).max(0), np.where(kernel.any(0), 127, 0))


@property_test
@given(kernels)
def test_a_kernel_and_its_negative_round_alike(kernel):
    one, other = quantize(kernel), quantize(-kernel)
    assert np.array_equal(np.asarray(one.qvalue), -np.asarray(other.qvalue))
    assert np.array_equal(np.asarray(one.scale), np.asarray(other.scale))


def test_zero_channels_have_scale_one(rng):
    kernel = rng.standard_normal((6, 4)).astype(np.float32) * [1, 0, 1, 0]
    array = quantize(kernel)
    assert np.asarray(array.scale)[[1, 3]].tolist() == [1, 1]
    assert not np.asarray(array.qvalue)[:, [1, 3]].any()
    for granularity in ("per_tensor", "per_token", "per_token_dynamic"):
        assert np.all(np.asarray(qarray.input_scale(jnp.zeros((2, 3, 4)), granularity)) == 1)


@pytest.mark.parametrize("size", [1e-44, 1e-37, 1e-36, 1e-30, 1, 1e30, 3e38])
def test_any_finite_range_gives_finite_codes(size):
    """Down to ranges whose scale, or its reciprocal, float32 cannot hold."""
    x = jnp.asarray(np.array([[0, size], [size / 2, -size]], np.float32))
    scale = qarray.max_scale(x, axis=None)
    assert float(scale) > 0
    assert np.isfinite(np.asarray(qarray.codes(x, scale))).all()


@pytest.mark.parametrize("axis", [None, 0, 1, (0, 1)])
def test_the_gradient_of_a_scale_is_that_of_its_largest_entry(rng, axis):
    """By both ways of differentiation; entries that are largest together share it, and zeros have none."""
    x = rng.standard_normal((5, 4)).astype(np.float32)
    x[1], x[:, 2] = 0, 0
    x[0, 0], x[3, 1] = 9, -9  # Two are the largest of all.
    largest = np.abs(x) == np.abs(x).max(axis, keepdims=True)
    expected = largest * np.sign(x) / np.maximum(largest.sum(axis, keepdims=True), 1) / 127

    def total(x):
        return jnp.sum(qarray.max_scale(x, axis=axis))

    for gradient in (jax.grad(total), jax.jit(jax.jacfwd(total))):
        np.testing.assert_allclose(gradient(jnp.asarray(x)), expected, rtol=1e-6)


def test_rounding_is_to_nearest_with_ties_to_even():
    x = jnp.array([0.5, 1.5, 2.5, -0.5, -1.5, 126.5, 127.5, -500.0, 0.49, 0.51])
    assert np.asarray(qarray.codes(x, jnp.float32(1))).tolist() == [0, 2, 2, 0, -2, 126, 127, -127, 0, 1]


@pytest.mark.parametrize(("bits", "limit"), [(8, 127), (7, 63), (6, 31), (4, 7), (2, 1)])
def test_narrower_grids_are_symmetric_too(rng, bits, limit):
    assert qarray.qmax(bits) == limit
    array = qarray.quantize_kernel(rng.standard_normal((50, 6)).astype(np.float32), bits)
    values = np.asarray(array.unpack(), np.int32)
    assert np.abs(values).max() == limit


@pytest.mark.parametrize("bits", [3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 7, 8, 50])
def test_packing_keeps_every_value_in_as_many_bytes_as_bits_need(rng, bits, rows):
    limit = qarray.qmax(bits)
    values = rng.integers(-limit, limit + 1, (rows, 5)).astype(np.int8)
    packed = qarray.pack(jnp.asarray(values), bits)
    assert packed.nbytes == packed_rows(rows, bits) * 5
    assert packed.nbytes * 8 < (rows * (8 if bits == 7 else bits) + 40) * 5
    np.testing.assert_array_equal(qarray.unpack(packed, bits, rows), values)


@st.composite
def integers(draw):
    """Integers of some width with scales, packed: all that a kernel may be."""
    bits = draw(st.sampled_from([3, 4, 5, 6, 7, 8]))
    rows, group = draw(st.sampled_from([(5, 8), (7, 0), (9, 3), (10, 4), (20, 0)]))
    limit, shape = qarray.qmax(bits), (-(-rows // group), 3) if group else (3,)
    values = draw(arrays(np.int8, (rows, 3), elements=st.integers(-limit, limit)))
    scale = draw(arrays(np.float32, shape, elements=st.floats(2.0**-60, 2.0**60, width=32)))
    return values, QArray(qarray.pack(jnp.asarray(values), bits), jnp.asarray(scale), bits, group, rows)


@property_test
@given(integers())
def test_a_kernel_comes_back_from_its_bytes_and_from_what_a_model_stores(kernel):
    values, array = kernel
    np.testing.assert_array_equal(array.unpack(), values)
    back = qarray.of(array.stored(), array.bits, array.group, array.rows)
    np.testing.assert_array_equal(back.qvalue, array.qvalue)
    np.testing.assert_array_equal(back.scale, array.scale)
    step = np.repeat(array.scale, array.group, 0)[: array.rows] if array.group else np.asarray(array.scale)
    np.testing.assert_array_equal(array.dequantize(), values * step)


@property_test
@given(integers())
def test_a_kernel_is_a_tree_of_two_arrays_that_keeps_the_rest(kernel):
    _, array = kernel
    assert len(jax.tree.leaves(array)) == 2
    doubled = jax.tree.map(lambda leaf: leaf * 2, array)
    assert (doubled.bits, doubled.group, doubled.rows) == (array.bits, array.group, array.rows)
    np.testing.assert_array_equal(doubled.scale, 2 * np.asarray(array.scale))
    flat, shape = jax.tree.flatten(array)
    assert jax.tree.unflatten(shape, flat).check() is not array


def test_a_compiled_function_takes_and_gives_kernels(rng):
    array = qarray.quantize_kernel(rng.standard_normal((10, 3)).astype(np.float32), 6, 4)
    louder = jax.jit(lambda kernel: dataclasses.replace(kernel, scale=3 * kernel.scale).check())(array)
    assert (louder.bits, louder.group, louder.rows) == (6, 4, 10)
    np.testing.assert_allclose(louder.dequantize(), 3 * np.asarray(array.dequantize()), rtol=1e-6)


BROKEN = {
    "too few rows": {"rows": 11},
    "rows packed that are not": {"bits": 6},
    "floats": {"qvalue": jnp.zeros((10, 3))},
    "one scale": {"scale": jnp.ones(())},
    "scales of groups": {"scale": jnp.ones((2, 3))},
    "groups without scales": {"group": 4},
    "scales of other columns": {"scale": jnp.ones(4)},
    "half precision": {"scale": jnp.ones(3, jnp.bfloat16)},
    "the end that a symmetric grid has not": {"qvalue": jnp.full((10, 3), -128, jnp.int8)},
    "too wide for its bits": {"bits": 7},
    "a scale of zero": {"scale": jnp.asarray([1.0, 0.0, 1.0])},
    "a negative scale": {"scale": jnp.asarray([1.0, 1.0, -1.0])},
    "no number": {"scale": jnp.asarray([1.0, jnp.nan, 1.0])},
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_what_breaks_an_invariant_is_refused(change):
    array = QArray(jnp.full((10, 3), 127, jnp.int8), jnp.ones(3), 8, 0, 10).check()
    with pytest.raises(ValueError, match=r"rows|integers|scale"):
        dataclasses.replace(array, **change).check()


def test_a_stored_kernel_of_another_shape_is_refused_even_while_it_is_traced():
    stored = qarray.quantize_kernel(jnp.ones((10, 3)), 4).stored()
    read = jax.jit(qarray.of, static_argnums=(1, 2, 3))
    assert read(stored, 4, 0, 10).unpack().shape == (10, 3)
    with pytest.raises(ValueError, match="12 rows of 4 bits"):
        read(stored, 4, 0, 12)


@pytest.mark.parametrize(("rows", "group"), [(12, 4), (10, 4), (5, 8)])
def test_groups_of_input_channels_have_scales_of_their_own(rng, rows, group):
    kernel = (rng.standard_normal((rows, 6)) * np.geomspace(0.1, 10, rows)[:, None]).astype(np.float32)
    array = qarray.quantize_kernel(kernel, 4, group)
    parts = [kernel[start : start + group] for start in range(0, rows, group)]
    np.testing.assert_allclose(array.scale, np.stack([np.abs(part).max(0) / 7 for part in parts]), rtol=1e-6)
    steps = np.repeat(array.scale, group, 0)[:rows]
    found = array.dequantize()
    assert np.all(np.abs(found - kernel) <= steps * 0.5001)
    x = rng.integers(-127, 128, (9, rows)).astype(np.float32)
    for dot in (qarray.integer_dot, qarray.float_dot):
        got = qarray.scaled_dot(x, array.unpack(), array.scale, group, dot)
        np.testing.assert_allclose(got, x @ np.asarray(found, np.float64), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("granularity", ["per_tensor", "per_token", "per_token_dynamic"])
def test_an_asymmetric_grid_spans_the_values_about_a_whole_zero_point(rng, granularity):
    x = (rng.gamma(0.5, 1, (3, 5, 40)) - 0.17).astype(np.float32)
    axes = {"per_tensor": None, "per_token": (0, 2), "per_token_dynamic": 2}[granularity]
    scale, center = qarray.input_center(jnp.asarray(x), granularity)
    width = x.max(axes, keepdims=True) - x.min(axes, keepdims=True)
    np.testing.assert_allclose(np.ravel(scale), np.ravel(width) / 254, rtol=1e-5)
    np.testing.assert_allclose(center / scale, np.round(center / scale), atol=1e-3)
    found = qarray.codes(x - center, scale) * scale + center
    assert np.all(np.abs(found - x) <= np.asarray(scale) * 1.001)  # half a step, and half more at the ends
    assert np.mean(np.abs(found - x)) < 0.3 * np.mean(scale)


@pytest.mark.parametrize(
    ("granularity", "shape", "axes"),
    [("per_tensor", (), (0, 1, 2)), ("per_token", (5, 1), (0, 2)), ("per_token_dynamic", (3, 5, 1), 2)],
)
def test_input_scales_by_granularity(rng, granularity, shape, axes):
    x = rng.standard_normal((3, 5, 8)).astype(np.float32)
    scale = np.asarray(qarray.input_scale(jnp.asarray(x), granularity, clip=0.5))
    assert scale.shape == shape
    assert scale.dtype == np.float32
    np.testing.assert_allclose(scale.ravel(), np.ravel(0.5 * np.abs(x).max(axes) / 127), rtol=1e-6)


def test_codes_are_qwixs_on_the_same_scales(rng):
    """qwix spreads max |w| over 127.5 steps and so reaches -128; given our scales it rounds to our codes."""
    kernel = jnp.asarray(rng.standard_normal((64, 48)).astype(np.float32))
    ours = quantize(kernel)
    theirs = quantize_with_scale_zero_point(kernel, jnp.int8, ours.scale[None], None)
    assert np.array_equal(np.asarray(ours.qvalue), np.asarray(theirs.qvalue))


def test_per_channel_int8_agrees_with_qwix_but_for_the_asymmetric_end(rng):
    kernel = jnp.asarray(rng.standard_normal((64, 48)).astype(np.float32))
    ours, theirs = quantize(kernel), qwix.quantize(kernel, jnp.int8, channelwise_axes=[1])
    assert np.asarray(theirs.qvalue).min() == -128  # what ours leaves out
    np.testing.assert_allclose(np.asarray(ours.scale) * 127, np.asarray(theirs.scale)[0] * 127.5, rtol=1e-6)
    apart = np.abs(np.asarray(ours.qvalue, np.int32) - np.asarray(theirs.qvalue, np.int32))
    assert apart.max() == 1
    errors = [float(jnp.linalg.norm(one - kernel)) for one in (dequantize(ours), qwix.dequantize(theirs))]
    assert abs(errors[0] / errors[1] - 1) < 0.02


@pytest.mark.parametrize("dot", [qarray.integer_dot, qarray.float_dot])
@pytest.mark.parametrize("m", [1, 37, 1040])
def test_products_are_those_of_whole_numbers(rng, dot, m):
    x, kernel = rng.integers(-127, 128, (9, m)), rng.integers(-127, 128, (m, 5))
    x[0], kernel[:, 0], x[1], kernel[:, 1] = 127, 127, -127, 127  # the largest sums there are
    got = jax.jit(dot)(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.int8))
    assert got.dtype == jnp.float32
    assert np.array_equal(np.asarray(got, np.int64), x.astype(np.int64) @ kernel.astype(np.int64))


def test_integer_products_accumulate_in_int32(rng):
    """Wider layers than float32 could sum exactly: only the final cast rounds."""
    m = 4096
    x, kernel = rng.integers(100, 128, (3, m)), rng.integers(100, 128, (m, 4))
    got = jax.jit(qarray.integer_dot)(jnp.asarray(x, jnp.float32), jnp.asarray(kernel, jnp.int8))
    want = x.astype(np.int64) @ kernel.astype(np.int64)
    assert want.min() > 2**24
    assert np.array_equal(np.asarray(got), want.astype(np.float32))


def test_the_integer_product_compiles_to_int8_operands():
    lowered = jax.jit(qarray.integer_dot).lower(jnp.ones((2, 3)), jnp.ones((3, 4), jnp.int8))
    assert "(tensor<2x3xi8>, tensor<3x4xi8>) -> tensor<2x4xi32>" in lowered.as_text()
