"""AAFM, ASVD, reduced-rank regression and K-FAC truncation against what they say, written out on samples."""

import jax
import numpy as np
import pytest

from lraqvit_jax.calibration import moments
from lraqvit_jax.lowrank import aafm, asvd, kfac, rrr, whitened
from lraqvit_jax.lowrank.bias import bias_shift

SAMPLES, M, N, RANK = 400, 14, 10, 4
SHAPES = [(14, 10), (10, 14), (9, 9)]


def draw(rng, m=M, n=N):
    """Inputs that are correlated and far from zero mean, a kernel, a bias."""
    x = rng.standard_normal((SAMPLES, m)) @ rng.standard_normal((m, m)) + 3 * rng.standard_normal(m)
    return x, rng.standard_normal((m, n)), rng.standard_normal(n)


def of_two(x, target):
    """The moments of inputs x where the dense layer reads `target`."""
    cross, mean = x.T @ target / len(x), target.mean(0)
    return moments.of(x)._replace(cross=cross, target_mean=mean)


def error(want, x, pair, bias):
    return np.mean(np.sum((want - x @ pair.u @ pair.v - bias) ** 2, 1))


def principal_outputs(y, rank):
    """The best affine approximation of rank `rank` of samples: their mean and leading principal components."""
    mean = y.mean(0)
    right = np.linalg.svd(y - mean, full_matrices=False)[2][:rank]
    return mean + (y - mean) @ right.T @ right


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_aafm_gives_the_principal_components_of_the_outputs(rng, shape):
    x, kernel, bias = draw(rng, *shape)
    known = moments.of(x)
    pair = aafm.decompose(kernel, RANK, known)
    shifted = bias + bias_shift(kernel, pair, known)
    got, want = x @ pair.u @ pair.v + shifted, principal_outputs(x @ kernel + bias, RANK)
    np.testing.assert_allclose(got, want, atol=1e-3 * np.abs(want).max())
    np.testing.assert_allclose(got.mean(0), (x @ kernel + bias).mean(0), atol=1e-9 * np.abs(got).max())
    # Whitening without the mean spends rank on it.
    plain = whitened.decompose(kernel, RANK, known)
    assert error(x @ kernel + bias, x, pair, shifted) < error(x @ kernel + bias, x, plain, bias)


def test_aafm_of_centred_inputs_is_whitened(rng):
    x, kernel, _ = draw(rng)
    x = x - x.mean(0)
    one, other = (module.decompose(kernel, RANK, moments.of(x)) for module in (aafm, whitened))
    np.testing.assert_allclose(one.u @ one.v, other.u @ other.v, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_asvd_is_the_svd_of_the_weighted_kernel(rng, shape):
    x, kernel, _ = draw(rng, *shape)
    weight = np.mean(np.abs(x), 0) ** 0.5
    left, values, right = np.linalg.svd(weight[:, None] * kernel, full_matrices=False)
    want = (left[:, :RANK] / weight[:, None] * values[:RANK]) @ right[:RANK]
    pair = asvd.decompose(kernel, RANK, moments.of(x))
    np.testing.assert_allclose(pair.u @ pair.v, want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rrr_is_least_squares_cut_to_its_principal_outputs(rng, shape):
    """The textbook: fit the targets by least squares with an intercept, keep the leading components of the fit."""
    target, kernel, bias = draw(rng, *shape)
    x = target + 0.7 * rng.standard_normal(target.shape) + 0.3  # what the compressed model's layer reads
    known = of_two(x, target)
    pair = rrr.decompose(kernel, RANK, known, ridge=0.0)
    shifted = bias + bias_shift(kernel, pair, known)
    y = target @ kernel + bias
    design = np.column_stack([x, np.ones(len(x))])
    fitted = design @ np.linalg.lstsq(design, y, rcond=None)[0]
    want = principal_outputs(fitted, RANK)
    np.testing.assert_allclose(x @ pair.u @ pair.v + shifted, want, atol=1e-3 * np.abs(want).max())
    other = aafm.decompose(kernel, RANK, known)
    other_shift = bias + bias_shift(kernel, other, known)
    assert error(y, x, pair, shifted) < error(y, x, other, other_shift)
    for _ in range(5):
        near = jax.tree.map(lambda factor: factor * (1 + 0.05 * rng.standard_normal(factor.shape)), pair)
        assert error(y, x, pair, shifted) < error(y, x, near, bias + bias_shift(kernel, near, known))


def test_rrr_keeps_the_kernel_where_there_is_nothing_to_regress(rng):
    x, kernel, _ = draw(rng)
    pair, plain = rrr.decompose(kernel, RANK, moments.of(x)), aafm.decompose(kernel, RANK, moments.of(x))
    np.testing.assert_allclose(pair.u @ pair.v, plain.u @ plain.v, atol=1e-12)
    heavy = rrr.regression(kernel, of_two(x, x + rng.standard_normal(x.shape)), ridge=1e9)
    np.testing.assert_allclose(heavy, kernel, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kfac_moves_the_logits_least(rng, shape):
    x, kernel, _ = draw(rng, *shape)
    g = rng.standard_normal((60, shape[1])) * np.exp(rng.normal(0, 1, shape[1]))
    known = moments.of(x, g)

    def loss(pair):
        wrong = kernel - pair.u @ pair.v
        return np.trace(known.gradient @ wrong.T @ known.covariance @ wrong)

    pair = kfac.decompose(kernel, RANK, known, damping=0.0)
    best = loss(pair)
    np.testing.assert_allclose(best, np.sum(kfac.losses(kernel, known, damping=0.0)[RANK:]), rtol=1e-3)
    assert best < loss(aafm.decompose(kernel, RANK, known))
    for size in (0.01, 0.1):
        near = jax.tree.map(lambda factor: factor * (1 + size * rng.standard_normal(factor.shape)), pair)  # noqa: B023
        assert best < loss(near)


def test_kfac_with_outputs_that_matter_alike_is_aafm_and_without_any_is_finite(rng):
    x, kernel, _ = draw(rng)
    even = moments.of(x)._replace(gradient=5 * np.eye(N))
    one, other = kfac.decompose(kernel, RANK, even), aafm.decompose(kernel, RANK, even)
    np.testing.assert_allclose(one.u @ one.v, other.u @ other.v, atol=1e-8)
    dead = kfac.decompose(kernel, RANK, even._replace(gradient=np.zeros((N, N))))
    assert all(np.isfinite(factor).all() for factor in (dead.u, dead.v))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("deficient", [False, True])
def test_principal_directions_are_orthonormal_eigenvectors_of_the_outputs(rng, shape, deficient):
    x, kernel, _ = draw(rng, *shape)
    if deficient:
        kernel[:, -3:] = kernel[:, :3]
        x[:, -3:] = x[:, :3]
    metric = x.T @ x / len(x)
    values, right = whitened.principal(kernel, metric, damping=1e-9)
    np.testing.assert_allclose(right @ right.T, np.eye(min(shape)), atol=1e-9)
    want = np.linalg.eigvalsh(kernel.T @ metric @ kernel)[::-1][: min(shape)]
    np.testing.assert_allclose(values, np.maximum(want, 0), atol=1e-6 * want[0])
    assert np.all(np.diff(values) <= 0)
