"""Truncated SVD against the theorem that defines it (Eckart-Young)."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lraqvit_jax.lowrank import svd

property_test = settings(max_examples=25, deadline=None, derandomize=True)
shapes = st.tuples(st.integers(3, 24), st.integers(3, 24))
seeds = st.integers(0, 2**16)


def squared_error(kernel, u, v):
    return np.sum((kernel - u @ v) ** 2)


@property_test
@given(shapes, st.data(), seeds)
def test_the_error_is_the_energy_of_the_dropped_singular_values(shape, data, seed):
    rank = data.draw(st.integers(1, min(shape)))
    kernel = np.random.default_rng(seed).standard_normal(shape)
    # Eigenvalues of the Gram matrix: no SVD on this side.
    values = np.sort(np.linalg.eigvalsh(kernel @ kernel.T))[::-1][: min(shape)]
    pair = svd.decompose(kernel, rank)
    assert pair.u.shape == (shape[0], rank)
    assert pair.v.shape == (rank, shape[1])
    np.testing.assert_allclose(squared_error(kernel, pair.u, pair.v), np.sum(values[rank:]), rtol=1e-9, atol=1e-12)


@property_test
@given(shapes, st.data(), seeds)
def test_no_other_pair_of_that_rank_is_nearer(shape, data, seed):
    rank = data.draw(st.integers(1, min(shape) - 1))
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal(shape)
    pair = svd.decompose(kernel, rank)
    error = squared_error(kernel, pair.u, pair.v)
    for size in (1e-4, 1e-2, 1):
        other = [factor + size * rng.standard_normal(factor.shape) for factor in (pair.u, pair.v)]
        assert squared_error(kernel, *other) > error
    # The best pair with a random column space, or with one near the optimal, is the projection onto it.
    for start in (rng.standard_normal(pair.u.shape), pair.u + 0.1 * rng.standard_normal(pair.u.shape)):
        basis, _ = np.linalg.qr(start)
        assert squared_error(kernel, basis, basis.T @ kernel) > error


@property_test
@given(shapes, seeds)
def test_the_error_falls_with_every_rank_and_ends_at_zero(shape, seed):
    kernel = np.random.default_rng(seed).standard_normal(shape)
    pairs = [svd.decompose(kernel, rank) for rank in range(1, min(shape) + 1)]
    errors = [squared_error(kernel, pair.u, pair.v) for pair in pairs]
    assert np.all(np.diff(errors) < 0)
    assert errors[-1] < 1e-20 * np.sum(kernel**2)


def test_both_factors_carry_the_square_root_of_the_singular_values(rng):
    kernel = rng.standard_normal((9, 14))
    pair = svd.decompose(kernel, 5)
    u, v = pair.u, pair.v
    values = np.linalg.svd(kernel, compute_uv=False)[:5]
    np.testing.assert_allclose(u.T @ u, np.diag(values), atol=1e-12)
    np.testing.assert_allclose(v @ v.T, np.diag(values), atol=1e-12)


@property_test
@given(shapes, seeds)
def test_signs_do_not_depend_on_how_the_factorization_was_reached(shape, seed):
    """Permuting or negating columns leaves the left vectors alone, which LAPACK by itself does not promise."""
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal(shape)
    parts = svd.spectrum(kernel)
    largest = np.take_along_axis(parts.left, np.abs(parts.left).argmax(0)[None], axis=0)
    assert np.all(largest > 0)
    order, flips = rng.permutation(shape[1]), rng.choice([-1, 1], shape[1])
    moved = svd.spectrum(kernel[:, order] * flips)
    np.testing.assert_allclose(moved.left, parts.left, atol=1e-7)
    np.testing.assert_allclose(moved.right, parts.right[:, order] * flips, atol=1e-7)


def test_the_same_kernel_gives_the_same_bits(rng):
    kernel = rng.standard_normal((20, 12)).astype(np.float32)
    first, second = svd.decompose(kernel, 7), svd.decompose(kernel.copy(), 7)
    assert all(np.array_equal(one, other) for one, other in ((first.u, second.u), (first.v, second.v)))


def test_float32_kernels_are_decomposed_in_float64(rng):
    kernel = rng.standard_normal((20, 12)).astype(np.float32)
    pair = svd.decompose(kernel, 12)
    assert pair.u.dtype == pair.v.dtype == np.float64
    np.testing.assert_allclose(pair.product(), kernel, atol=1e-13)


def test_a_zero_kernel_gives_zero_factors():
    pair = svd.decompose(np.zeros((5, 4)), 2)
    assert not pair.u.any()
    assert not pair.v.any()
