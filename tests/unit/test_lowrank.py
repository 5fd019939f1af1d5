"""Decompositions and the branch against float64 NumPy and the properties that define them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lraqvit_jax import layers, plan, trees
from lraqvit_jax.errors import UserError
from lraqvit_jax.lowrank import reparam, svd, whitened
from tests.unit import small

property_test = settings(max_examples=25, deadline=None, derandomize=True)
shapes = st.tuples(st.integers(3, 24), st.integers(3, 24)).flatmap(
    lambda shape: st.tuples(st.just(shape), st.integers(1, min(shape) - 1), st.integers(0, 2**16))
)


def draw(shape, seed):
    rng = np.random.default_rng(seed)
    return rng, rng.standard_normal(shape)


def moment_of(rng, size, samples=200):
    """A second moment with uneven directions, as activations have."""
    x = rng.standard_normal((samples, size)) * np.exp(rng.normal(0, 1.5, size)) + rng.normal(0, 1, size)
    return x.T @ x / samples


def output_error(kernel, pair, moment):
    """E |x W - x u v|², in float64: trace of Dᵀ C D."""
    difference = kernel - pair.u @ pair.v
    return np.trace(difference.T @ moment @ difference)


@property_test
@given(shapes)
def test_truncated_svd_is_the_nearest_pair(case):
    shape, rank, seed = case
    rng, kernel = draw(shape, seed)
    pair = svd.decompose(kernel, rank)
    error = np.sum((kernel - pair.u @ pair.v) ** 2)
    np.testing.assert_allclose(error, np.sum(np.linalg.svd(kernel)[1][rank:] ** 2), rtol=1e-9)
    for size in (1e-3, 1):
        other = [factor + size * rng.standard_normal(factor.shape) for factor in pair]
        assert np.sum((kernel - other[0] @ other[1]) ** 2) >= error


@property_test
@given(shapes)
def test_truncation_error_falls_with_the_rank(case):
    shape, _, seed = case
    _, kernel = draw(shape, seed)
    errors = [np.linalg.norm(kernel - np.matmul(*svd.decompose(kernel, r))) for r in range(1, min(shape) + 1)]
    assert all(np.diff(errors) < 1e-12)
    assert errors[-1] < 1e-9


@property_test
@given(shapes)
def test_whitening_is_optimal_in_the_output(case):
    shape, rank, seed = case
    rng, kernel = draw(shape, seed)
    moment = moment_of(rng, shape[0])
    pair = whitened.decompose(kernel, rank, moment, damping=0.0)
    error = output_error(kernel, pair, moment)
    dropped = np.linalg.svd(np.linalg.cholesky(moment).T @ kernel)[1][rank:]
    np.testing.assert_allclose(error, np.sum(dropped**2), rtol=1e-6, atol=1e-9)
    assert error <= output_error(kernel, svd.decompose(kernel, rank), moment) * (1 + 1e-9)
    for size in (1e-3, 1):
        other = svd.Pair(*(factor + size * rng.standard_normal(factor.shape) for factor in pair))
        assert output_error(kernel, other, moment) >= error


def test_whitening_differs_from_svd_where_inputs_are_uneven(rng):
    kernel, moment = rng.standard_normal((16, 12)), moment_of(rng, 16)
    errors = [output_error(kernel, one.decompose(kernel, 4, moment), moment) for one in (svd, whitened)]
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.parametrize("noise", [0, 1e-7])
def test_whitening_survives_a_singular_moment(rng, noise):
    """LayerNorm outputs span one direction less than they have, and float32 sums leave the moment indefinite."""
    x = rng.standard_normal((300, 10)) @ rng.standard_normal((10, 16))
    moment = x.T @ x / 300
    wobble = rng.standard_normal((16, 16)) * noise * np.abs(moment).max()
    kernel = rng.standard_normal((16, 12))
    pair = whitened.decompose(kernel, 4, moment + wobble + wobble.T)
    values, vectors = np.linalg.eigh(moment)
    dropped = np.linalg.svd((np.sqrt(np.maximum(values, 0))[:, None] * vectors.T) @ kernel)[1][4:]
    np.testing.assert_allclose(output_error(kernel, pair, moment), np.sum(dropped**2), rtol=1e-2)


def test_balancing_keeps_the_product_and_evens_the_factors(rng):
    pair = svd.Pair(rng.standard_normal((9, 4)) * [1e-3, 1, 30, 0], rng.standard_normal((4, 7)))
    even = whitened.balance(pair)
    np.testing.assert_allclose(even.u @ even.v, pair.u @ pair.v, rtol=1e-12)
    live = slice(0, 3)
    np.testing.assert_allclose(np.linalg.norm(even.u, axis=0)[live], np.linalg.norm(even.v, axis=1)[live])


@pytest.mark.parametrize(("size", "rank"), [((20, 16), 12), ((20, 16), 8), ((20, 16), 5), ((7, 30), 3)])
def test_wr_moves_away_from_the_kernel_by_exactly_this_much(rng, size, rank):
    """METHOD section 4: against truncation, WR adds sum_j S_j S_{r+j}² to the squared error."""
    kernel = rng.standard_normal(size)
    parts = svd.spectrum(kernel)
    product = reparam.product(svd.truncate(parts, rank), reparam.wr(parts, rank, rng))
    values = np.linalg.svd(kernel)[1]
    paired = values[rank : 2 * rank]
    expected = np.sum(values[rank:] ** 2) + np.sum(values[: len(paired)] * paired**2)
    np.testing.assert_allclose(np.sum((kernel - product) ** 2), expected, rtol=1e-10)


def test_branch_initializations(rng):
    parts = svd.spectrum(rng.standard_normal((40, 64)))
    rank = 15
    starts = {name: reparam.branch(name, parts, rank, np.random.default_rng(3)) for name in reparam.INITIALIZATIONS}
    for branch in starts.values():
        assert branch.u.shape == (40, rank)
        assert branch.v.shape == (rank, 64)
        assert not branch.u.any()
    assert not starts["zero"].v.any()
    np.testing.assert_allclose(starts["random"].v.std(), 1, rtol=0.1)
    np.testing.assert_allclose(starts["small_random"].v.std(), starts["wr"].v.std(), rtol=0.1)
    again = reparam.branch("random", parts, rank, np.random.default_rng(3))
    assert np.array_equal(again.v, starts["random"].v)
    with pytest.raises(UserError, match="small_random"):
        reparam.branch("small-random", parts, rank, rng)


def test_the_branch_adds_the_three_cross_terms(rng):
    pair, extra = (svd.Pair(rng.standard_normal((6, 3)), rng.standard_normal((3, 5))) for _ in range(2))
    terms = pair.u @ extra.v + extra.u @ pair.v + extra.u @ extra.v
    np.testing.assert_allclose(reparam.product(pair, extra), pair.u @ pair.v + terms, rtol=1e-12)


def test_merging_leaves_the_outputs(rng):
    trained = small.plan("reparam")
    merged = plan.low_rank(trained)
    params = small.params(trained, rng)
    paths = [path for path, layer in trained.items() if layer.rank]
    after = trees.map_layers(reparam.merge, params, paths)
    batch = small.images(rng)
    want = np.asarray(jax.jit(small.model(trained).apply)({"params": params}, batch))
    got = np.asarray(jax.jit(small.model(merged).apply)({"params": after}, batch))
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
    assert set(trees.get(after, "blocks_0/mlp/fc1")) == {"u", "v", "bias"}
    ignored = trees.map_layers(lambda layer: {name: layer[name] for name in ("u", "v", "bias")}, params, paths)
    without = np.asarray(jax.jit(small.model(merged).apply)({"params": ignored}, batch))
    assert np.abs(without - want).max() > 0.1 * np.abs(want).max()  # the branch did something


def fit_least_squares(forward, params, tx, steps=400):
    """Trains on one fixed regression problem and returns the parameters."""
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((32, 6)), rng.standard_normal((32, 4))

    @jax.jit
    def step(params, state):
        gradient = jax.grad(lambda p: jnp.mean((forward(p, x) - y) ** 2))(params)
        updates, state = tx.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params


@pytest.mark.parametrize("clip", [0, 1.0], ids=["plain", "clipped"])
def test_the_branch_under_adamw_is_one_pair_with_twice_the_rate_and_half_the_decay(rng, clip):
    """METHOD section 3, in float64; a global-norm clip breaks the identity."""
    with jax.enable_x64(True):
        four = {
            name: jnp.asarray(rng.standard_normal(shape))
            for name, shape in (("u", (6, 3)), ("v", (3, 4)), ("du", (6, 3)), ("dv", (3, 4)))
        }
        pair = {"u": four["u"] + four["du"], "v": four["v"] + four["dv"]}
        cut = [optax.clip_by_global_norm(clip)] if clip else []
        adamw = [optax.adamw(rate, eps=1e-30, weight_decay=decay) for rate, decay in ((1e-3, 0.1), (2e-3, 0.05))]
        four = fit_least_squares(layers.reparam, four, optax.chain(*cut, adamw[0]))
        pair = fit_least_squares(layers.low_rank, pair, optax.chain(*cut, adamw[1]))
        gap = max(float(jnp.abs(four[name] + four[f"d{name}"] - pair[name]).max()) for name in "uv")
    # The four gradients together are longer than the two, so the clip takes hold at other steps.
    assert gap < 1e-11 if not clip else gap > 1e-3
