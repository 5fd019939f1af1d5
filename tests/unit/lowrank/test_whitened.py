"""Whitened truncation against reduced-rank regression, written out on the samples themselves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lraqvit_jax.calibration import moments
from lraqvit_jax.forms.pair import Pair
from lraqvit_jax.lowrank import svd, whitened

property_test = settings(max_examples=25, deadline=None, derandomize=True)
cases = st.tuples(st.integers(3, 20), st.integers(3, 20), st.integers(0, 2**16)).flatmap(
    lambda case: st.tuples(st.just(case), st.integers(1, min(case[:2]) - 1))
)
SAMPLES = 120


def draw(m, n, seed):
    """Inputs with loud and quiet, correlated channels, and a kernel."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((SAMPLES, m)) * np.exp(rng.normal(0, 1.5, m)) + rng.normal(0, 1, m)
    return rng, x, rng.standard_normal((m, n))


def output_error(x, kernel, u, v):
    """Mean over the samples of |x W - x u v|²."""
    return np.sum((x @ (kernel - u @ v)) ** 2) / len(x)


@property_test
@given(cases)
def test_the_error_is_the_energy_of_the_dropped_singular_values_of_the_whitened_kernel(case):
    (m, n, seed), rank = case
    _, x, kernel = draw(m, n, seed)
    moment = x.T @ x / len(x)
    pair = whitened.decompose(kernel, rank, moments.of(x), damping=0.0)
    dropped = np.linalg.svd(np.linalg.cholesky(moment).T @ kernel, compute_uv=False)[rank:]
    np.testing.assert_allclose(output_error(x, kernel, pair.u, pair.v), np.sum(dropped**2), rtol=1e-6, atol=1e-12)


@property_test
@given(cases)
def test_the_product_is_that_of_reduced_rank_regression(case):
    """The right vectors of X W span the best outputs: u v = W V Vᵀ. No moment on this side."""
    (m, n, seed), rank = case
    _, x, kernel = draw(m, n, seed)
    pair = whitened.decompose(kernel, rank, moments.of(x), damping=0.0)
    right = np.linalg.svd(x @ kernel, full_matrices=False)[2][:rank]
    np.testing.assert_allclose(pair.u @ pair.v, kernel @ right.T @ right, rtol=1e-5, atol=1e-6)


@property_test
@given(cases)
def test_no_other_pair_of_that_rank_has_nearer_outputs(case):
    (m, n, seed), rank = case
    rng, x, kernel = draw(m, n, seed)
    pair = whitened.decompose(kernel, rank, moments.of(x), damping=0.0)
    error = output_error(x, kernel, pair.u, pair.v)
    plain = svd.decompose(kernel, rank)
    assert error <= output_error(x, kernel, plain.u, plain.v) * (1 + 1e-9)
    for size in (1e-3, 1e-1, 1):
        other = [factor * (1 + size * rng.standard_normal(factor.shape)) for factor in (pair.u, pair.v)]
        assert output_error(x, kernel, *other) > error
    # The best second factor behind a random first one is least squares.
    u = rng.standard_normal((m, rank))
    v = np.linalg.lstsq(x @ u, x @ kernel, rcond=None)[0]
    assert output_error(x, kernel, u, v) > error


def test_white_inputs_give_the_truncated_svd(rng):
    kernel = rng.standard_normal((12, 9))
    got, want = (one.decompose(kernel, 4, moments.of(np.eye(12))) for one in (whitened, svd))
    np.testing.assert_allclose(got.u @ got.v, want.u @ want.v, atol=1e-10)


def test_uneven_inputs_give_clearly_nearer_outputs_than_svd():
    _, x, kernel = draw(16, 12, 0)
    pairs = [module.decompose(kernel, 4, moments.of(x)) for module in (svd, whitened)]
    errors = [output_error(x, kernel, pair.u, pair.v) for pair in pairs]
    assert errors[1] < 0.6 * errors[0]


def singular_inputs(name, rng):
    if name == "low_dimensional":
        return rng.standard_normal((SAMPLES, 10)) @ rng.standard_normal((10, 16))
    x = rng.standard_normal((SAMPLES, 16)) * np.exp(rng.normal(0, 1, 16))
    return x - x.mean(1, keepdims=True)  # as LayerNorm leaves it: one direction has no input


@pytest.mark.parametrize("wobble", [0, 1e-7, 1e-4])
@pytest.mark.parametrize("name", ["low_dimensional", "centred"])
def test_a_singular_or_slightly_indefinite_moment_still_gives_a_near_optimal_pair(rng, name, wobble):
    x = singular_inputs(name, rng)
    kernel = rng.standard_normal((16, 12))
    noise = rng.standard_normal((16, 16))
    moment = x.T @ x / len(x)
    moment += wobble * np.abs(moment).max() * (noise + noise.T)
    if wobble:
        assert np.linalg.eigvalsh(moment)[0] < 0  # indefinite indeed
    pair = whitened.truncate(kernel, moment, 4)
    best = np.sum(np.linalg.svd(x @ kernel, compute_uv=False)[4:] ** 2) / len(x)
    assert best <= output_error(x, kernel, pair.u, pair.v) <= best * (1.001 if wobble < 1e-5 else 1.05)
    # Nothing blows up along the directions that had no input.
    assert np.linalg.norm(pair.u @ pair.v) < 20 * np.linalg.norm(kernel)


def test_a_moment_of_zero_still_gives_finite_factors(rng):
    pair = whitened.truncate(rng.standard_normal((6, 5)), np.zeros((6, 6)), 2)
    assert all(np.isfinite(factor).all() for factor in (pair.u, pair.v))


def test_balancing_keeps_the_product_and_equalizes_the_norms(rng):
    pair = Pair(rng.standard_normal((9, 4)) * [1e-3, 1, 30, 1e4], rng.standard_normal((4, 7)))
    even = whitened.balance(pair)
    np.testing.assert_allclose(even.u @ even.v, pair.u @ pair.v, rtol=1e-11)
    np.testing.assert_allclose(np.linalg.norm(even.u, axis=0), np.linalg.norm(even.v, axis=1), rtol=1e-12)


def test_balancing_leaves_dead_rank_channels_finite(rng):
    pair = Pair(rng.standard_normal((9, 3)) * [0, 1, 1], rng.standard_normal((3, 7)) * [[1], [0], [1]])
    even = whitened.balance(pair)
    np.testing.assert_allclose(even.u @ even.v, pair.u @ pair.v, rtol=1e-12)
    assert all(np.isfinite(factor).all() for factor in (even.u, even.v))


def test_decompositions_come_out_balanced():
    _, x, kernel = draw(16, 12, 1)
    pair = whitened.decompose(kernel, 5, moments.of(x))
    np.testing.assert_allclose(np.linalg.norm(pair.u, axis=0), np.linalg.norm(pair.v, axis=1), rtol=1e-9)
