"""The reparameterizable branch: what its initializations do, what merging keeps, what AdamW makes of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lraqvit_jax.base import trees
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.forms import pair as forms
from lraqvit_jax.forms.pair import Pair
from lraqvit_jax.lowrank import reparam, svd
from lraqvit_jax.plan.records import low_rank
from tests.unit import small

# k - r below, at and above r, tall and wide.
SHAPES = {"u": (5, 2), "v": (2, 4)}
CASES = [((20, 16), 12), ((20, 16), 8), ((20, 16), 5), ((7, 30), 3), ((7, 30), 6)]


@pytest.mark.parametrize(("shape", "rank"), CASES)
def test_wr_adds_exactly_this_error_to_the_truncation(rng, shape, rank):
    """Against truncation, WR adds sum_j S_j S_{r+j}²: |W - U1 (V1 + V2)ᵀ|² = sum of dropped S² + sum_j S_j S_{r+j}²."""
    kernel = rng.standard_normal(shape)
    parts = svd.spectrum(kernel)
    merged = reparam.product(svd.truncate(parts, rank), reparam.wr(kernel, rank, rng))
    values = np.linalg.svd(kernel, compute_uv=False)
    dropped = values[rank:]
    paired = dropped[:rank]
    expected = np.sum(dropped**2) + np.sum(values[: len(paired)] * paired**2)
    np.testing.assert_allclose(np.sum((kernel - merged) ** 2), expected, rtol=1e-10)
    assert np.sum(values[: len(paired)] * paired**2) > 0  # so WR reconstructs nothing


@pytest.mark.parametrize(("shape", "rank"), CASES)
def test_wr_takes_the_leading_discarded_directions_and_pads_with_zeros(rng, shape, rank):
    kernel = rng.standard_normal(shape)
    branch = reparam.wr(kernel, rank, rng)
    kept = min(rank, min(shape) - rank)
    left, values, right = np.linalg.svd(kernel, full_matrices=False)
    assert not branch.u.any()
    assert not branch.v[kept:].any()
    # Eq. 7 up to the sign that an SVD leaves open.
    want = values[rank : rank + kept, None] * right[rank : rank + kept]
    np.testing.assert_allclose(np.abs(branch.v[:kept]), np.abs(want), atol=1e-12)
    discarded = left[:, rank : rank + kept] @ want
    np.testing.assert_allclose(svd.spectrum(kernel).left[:, rank : rank + kept] @ branch.v[:kept], discarded)


def test_the_merged_kernel_with_wr_is_of_rank_r(rng):
    kernel = rng.standard_normal((20, 16))
    merged = reparam.product(svd.decompose(kernel, 5), reparam.wr(kernel, 5, rng))
    assert np.linalg.matrix_rank(merged) == 5


@pytest.mark.parametrize("name", sorted(reparam.INITIALIZATIONS))
def test_a_branch_has_the_shapes_of_the_pair_and_starts_with_a_zero_du(rng, name):
    branch = reparam.branch(name, rng.standard_normal((40, 64)), 15, rng)
    assert branch.u.shape == (40, 15)
    assert branch.v.shape == (15, 64)
    assert not branch.u.any()
    assert branch.v.any() == (name != "zero")


@pytest.mark.parametrize("rank", [10, 20, 30])
def test_the_random_controls_have_their_standard_deviations(rng, rank):
    kernel = rng.standard_normal((40, 200))
    stds = {name: reparam.branch(name, kernel, rank, rng).v.std() for name in reparam.INITIALIZATIONS}
    np.testing.assert_allclose(stds["random"], 1, rtol=0.05)
    np.testing.assert_allclose(stds["small_random"], stds["wr"], rtol=0.05)
    assert stds["wr"] > 0


@pytest.mark.parametrize("name", ["random", "small_random"])
def test_a_seed_decides_the_random_controls(rng, name):
    kernel = rng.standard_normal((10, 12))
    one, same, other = (reparam.branch(name, kernel, 4, np.random.default_rng(seed)).v for seed in (3, 3, 4))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_an_unknown_initialization_is_named_with_the_nearest(rng):
    with pytest.raises(UserError, match=r"'small-random'; did you mean 'small_random'"):
        reparam.branch("small-random", np.eye(3), 1, rng)


def test_the_branch_adds_its_three_cross_terms(rng):
    """Eq. 4-6, in the paper's letters: E = V1 U2ᵀ + V2 U1ᵀ + V2 U2ᵀ, here transposed."""
    u1, u2 = rng.standard_normal((2, 6, 3))
    v1, v2 = rng.standard_normal((2, 5, 3))
    added = reparam.product(Pair(u1, v1.T), Pair(u2, v2.T)) - u1 @ v1.T
    np.testing.assert_allclose(added, (v1 @ u2.T + v2 @ u1.T + v2 @ u2.T).T, rtol=1e-11)


def test_merging_sums_the_factors_and_passes_the_bias_through(rng):
    layer = {name: rng.standard_normal(3).astype(np.float32) for name in ("u", "v", "du", "dv", "bias")}
    merged = reparam.merge(layer)
    assert set(merged) == {"u", "v", "bias"}
    assert np.array_equal(merged["u"], layer["u"] + layer["du"])
    assert np.array_equal(merged["v"], layer["v"] + layer["dv"])
    assert np.array_equal(merged["bias"], layer["bias"])
    assert set(layer) == {"u", "v", "du", "dv", "bias"}  # untouched


def run(one_plan, values, batch):
    return np.asarray(jax.jit(small.model(one_plan).apply)({"params": values}, batch))


def test_merging_a_whole_model_keeps_its_outputs(rng):
    trained = small.plan("reparam")
    merged = low_rank(trained)
    params, batch = small.params(trained, rng), small.images(rng)
    paths = [path for path, layer in trained.items() if layer.rank]
    assert len(paths) == 8
    for path in paths:
        assert all(np.abs(trees.get(params, path)[name]).min() > 0 for name in ("du", "dv"))
    want = run(trained, params, batch)
    got = run(merged, trees.map_layers(reparam.merge, params, paths), batch)
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
    # A merge that forgot du or dv would be far off.
    for kept in ("du", "dv"):
        half = trees.map_layers(
            lambda layer, kept=kept: reparam.merge({**layer, kept: np.zeros_like(layer[kept])}), params, paths
        )
        assert np.abs(run(merged, half, batch) - want).max() > 0.1 * np.abs(want).max()


STEPS = 400


def least_squares(rng):
    """A random regression problem and a starting point of all four tensors, in float64."""
    x, y = rng.standard_normal((32, 6)), rng.standard_normal((32, 4))
    shapes = {"u": (6, 3), "v": (3, 4), "du": (6, 3), "dv": (3, 4)}
    return x, y, {name: jnp.asarray(rng.standard_normal(shape)) for name, shape in shapes.items()}


def train(forward, params, x, y, tx):
    def step(carry, _):
        params, state = carry
        gradient = jax.grad(lambda p: jnp.mean((forward(p, x) - y) ** 2))(params)
        updates, state = tx.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=STEPS)[0][0])(params)


def distance(x, y, four, first, second):
    """Largest relative difference between the merged result of training all four and the directly trained pair."""
    pair = {name: four[name] + four[f"d{name}"] for name in "uv"}
    trained = reparam.merge(train(forms.reparam, four, x, y, first))
    direct = train(forms.low_rank, pair, x, y, second)
    assert all(value.dtype == jnp.float64 for value in direct.values())
    assert all(float(jnp.abs(direct[name] - pair[name]).max()) > 0.1 for name in "uv")  # training went somewhere
    return max(float(jnp.abs(trained[name] - direct[name]).max() / jnp.abs(direct[name]).max()) for name in "uv")


def test_under_adamw_four_tensors_are_one_pair_at_twice_the_rate_and_half_the_decay(rng):
    """Both factors get the gradient twice; a global-norm clip would break it."""
    with jax.enable_x64(True):
        problem = least_squares(rng)
        four, pair = optax.adamw(1e-3, weight_decay=0.1), optax.adamw(2e-3, weight_decay=0.05)
        assert distance(*problem, four, pair) < 1e-12
        # The same rate, or the same decay, is another training.
        assert distance(*problem, four, optax.adamw(1e-3, weight_decay=0.05)) > 1e-3
        assert distance(*problem, four, optax.adamw(2e-3, weight_decay=0.1)) > 1e-3


def test_a_global_norm_clip_breaks_the_identity(rng):
    """Four gradients together are sqrt(2) times as long as two, so the clip lets go of the pair earlier. Where it never
    lets go, Adam divides its factor out again and the identity holds up to epsilon."""
    with jax.enable_x64(True):
        x, y, four = least_squares(rng)
        pair = {name: four[name] + four[f"d{name}"] for name in "uv"}
        start = float(optax.tree.norm(jax.grad(lambda p: jnp.mean((forms.low_rank(p, x) - y) ** 2))(pair)))

        def clipped(limit):
            four_tx, pair_tx = (optax.adamw(rate, weight_decay=decay) for rate, decay in ((1e-3, 0.1), (2e-3, 0.05)))
            clip = optax.clip_by_global_norm(limit)
            return distance(x, y, four, optax.chain(clip, four_tx), optax.chain(clip, pair_tx))

        assert clipped(0.7 * start) > 1e-3
        assert clipped(1e-2 * start) < 1e-5


def test_an_unknown_branch_is_named_with_the_nearest():
    assert [reparam.form(name) for name in ("none", "zero", "wr")] == ["low_rank", "reparam", "reparam"]
    with pytest.raises(UserError, match=r"'zeros'; did you mean 'zero'"):
        reparam.form("zeros")
