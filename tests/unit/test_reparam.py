"""The reparameterizable branch: what its initializations do, what merging keeps, what AdamW makes of it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lraqvit_jax import layers, plan, trees
from lraqvit_jax.errors import UserError
from lraqvit_jax.lowrank import reparam, svd
from lraqvit_jax.lowrank.svd import Pair
from lraqvit_jax.stages import training
from lraqvit_jax.train import Recipe, gates, optimizer
from tests.unit import small

# k - r below, at and above r, tall and wide.
SHAPES = {"u": (5, 2), "v": (2, 4), "residual": (5, 4)}
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
    merged = plan.low_rank(trained)
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
    trained = reparam.merge(train(layers.reparam, four, x, y, first))
    direct = train(layers.low_rank, pair, x, y, second)
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
        start = float(optax.tree.norm(jax.grad(lambda p: jnp.mean((layers.low_rank(p, x) - y) ** 2))(pair)))

        def clipped(limit):
            four_tx, pair_tx = (optax.adamw(rate, weight_decay=decay) for rate, decay in ((1e-3, 0.1), (2e-3, 0.05)))
            clip = optax.clip_by_global_norm(limit)
            return distance(x, y, four, optax.chain(clip, four_tx), optax.chain(clip, pair_tx))

        assert clipped(0.7 * start) > 1e-3
        assert clipped(1e-2 * start) < 1e-5


# --- a residual behind a gate ---


def test_an_open_gate_gives_the_dense_layer_and_a_closed_one_the_pair(rng):
    kernel = rng.standard_normal((12, 9)).astype(np.float32)
    x = rng.standard_normal((7, 12)).astype(np.float32)
    u, v = (factor.astype(np.float32) for factor in svd.decompose(kernel, 4))
    params = {"u": u, "v": v, "residual": kernel - u @ v}
    for gate, want in ((1.0, x @ kernel), (0.0, x @ u @ v), (0.25, 0.25 * x @ kernel + 0.75 * (x @ u @ v))):
        got = layers.residual(params | {"gate": jnp.float32(gate)}, x)
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_wide_layer_starts_as_the_pair_of_twice_the_rank_and_ends_as_the_pair(rng):
    x, kernel = rng.standard_normal((7, 12)).astype(np.float32), rng.standard_normal((12, 9)).astype(np.float32)
    double, single = svd.decompose(kernel, 8), svd.decompose(kernel, 4)
    params = {"u": double.u[:, :4], "v": double.v[:4], "du": double.u[:, 4:], "dv": double.v[4:]}
    for gate, want in ((np.ones(4), double), (np.zeros(4), single)):
        got = layers.wide(params | {"gate": gate}, x)
        np.testing.assert_allclose(got, x @ want.u @ want.v, atol=1e-5)
    half = layers.wide(params | {"gate": np.array([1.0, 0.5, 0, 0])}, x)
    five, six = (x @ pair.u @ pair.v for pair in (svd.decompose(kernel, 5), svd.decompose(kernel, 6)))
    np.testing.assert_allclose(half, (five + six) / 2, atol=1e-5)
    assert set(reparam.merge(params | {"gate": np.zeros(4), "bias": np.zeros(9)})) == {"u", "v", "bias"}


@pytest.mark.parametrize(
    ("rank", "shape", "want"), [(4, (12, 9), 4), (5, (12, 9), 4), (9, (12, 9), 0), (3, (3, 40), 0)]
)
def test_a_wide_layer_has_no_more_directions_than_its_kernel(rank, shape, want):
    assert plan.extra(rank, *shape) == want


def test_the_gates_of_further_directions_close_from_the_last():
    shares = np.linspace(1, 0, 9)
    rows = np.stack([gates(share, (4,)) for share in shares])
    np.testing.assert_allclose(rows.sum(1), 4 * shares, atol=1e-6)
    np.testing.assert_array_equal(rows[0], 1)
    np.testing.assert_array_equal(rows[-1], 0)
    assert np.all(np.diff(rows, axis=1) <= 0)
    assert np.all(np.diff(rows, axis=0) <= 0)
    assert gates(0.25, ()) == 0.25


def test_gates_close_on_schedule_and_residuals_stay_whatever_the_gradient(rng):
    recipe = Recipe(steps=10, learning_rate=0.1, weight_decay=0.5)
    params = {
        "fc": {name: jnp.asarray(rng.standard_normal(shape, np.float32)) for name, shape in SHAPES.items()},
        "other": {"kernel": jnp.ones((3, 3))},
    }
    params["fc"]["gate"] = jnp.float32(1)
    objective = training.Objective(small.model(), anneal=0.5)
    tx = optimizer(recipe, lambda tree: training.kept(objective, tree), 0.5)
    state, start, shares = tx.init(params), params, []
    for _ in range(10):
        gradients = jax.tree.map(lambda leaf: jnp.ones_like(leaf) * 3, params)
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        shares.append(float(params["fc"]["gate"]))
    want = [(1 + np.cos(np.pi * step / 5)) / 2 for step in range(1, 6)] + [0] * 5
    np.testing.assert_allclose(shares, want, atol=1e-6)
    assert shares[4:] == [0] * 6
    np.testing.assert_array_equal(params["fc"]["residual"], start["fc"]["residual"])
    assert np.abs(params["fc"]["u"] - start["fc"]["u"]).min() > 0.1
    merged = reparam.merge(params["fc"])
    assert set(merged) == {"u", "v"}


def test_an_unknown_branch_is_named_with_the_nearest():
    assert [reparam.form(name) for name in ("none", "zero", "wide", "residual")] == [
        "low_rank",
        "reparam",
        "wide",
        "residual",
    ]
    with pytest.raises(UserError, match=r"'residuals'; did you mean 'residual'"):
        reparam.form("residuals")
