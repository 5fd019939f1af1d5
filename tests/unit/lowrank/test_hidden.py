import itertools

import numpy as np

from lraqvit_jax.calibration import moments
from lraqvit_jax.lowrank import hidden


def _layer(rng, units=6, outputs=4, rows=200):
    x = rng.standard_normal((rows, units)) @ rng.standard_normal((units, units)) + rng.standard_normal(units)
    root = np.linalg.cholesky(np.cov(rng.standard_normal((outputs, 50))))
    return x, rng.standard_normal((units, outputs)), root


def _loss(x, kernel, root, kept):
    """Least squares of the outputs upon the units that are left and a constant: nothing can do better."""
    columns = np.concatenate([x[:, kept], np.ones((len(x), 1))], 1)
    target = x @ kernel @ root
    return np.square(target - columns @ np.linalg.lstsq(columns, target, rcond=None)[0]).sum(1).mean()


def test_losses_are_those_of_least_squares_at_every_width(rng):
    x, kernel, root = _layer(rng, units=150)
    made = hidden.removal(kernel, moments.of(x), root, damping=0)
    for width in (1, 40, 85, 86, 149, 150):
        np.testing.assert_allclose(made.losses[width], _loss(x, kernel, root, made.kept(width)), rtol=1e-6, atol=1e-9)
    assert np.all(np.diff(made.losses) <= 0)


def test_the_first_unit_to_go_is_the_cheapest_and_so_is_each_after_it(rng):
    x, kernel, root = _layer(rng)
    order = hidden.removal(kernel, moments.of(x), root, damping=0).order
    left = set(range(6))
    for unit in order[:-1]:
        costs = {other: _loss(x, kernel, root, sorted(left - {other})) for other in left}
        assert unit == min(costs, key=costs.get)
        left.remove(unit)


def test_greedy_is_near_the_best_subset(rng):
    shares = []
    for _ in range(20):
        x, kernel, root = _layer(rng)
        made = hidden.removal(kernel, moments.of(x), root, damping=0)
        losses = [_loss(x, kernel, root, list(kept)) for kept in itertools.combinations(range(6), 3)]
        assert min(losses) <= made.losses[3] * (1 + 1e-9)
        shares.append((made.losses[3] - min(losses)) / (np.mean(losses) - min(losses)))
    assert np.mean(shares) < 0.2


def test_what_is_left_makes_good_what_is_gone_and_keeps_the_mean(rng):
    x, kernel, root = _layer(rng)
    seen = moments.of(x)
    made = hidden.removal(kernel, seen, root, damping=0)
    kept = made.kept(4)
    smaller, shift = hidden.compensated(kernel, seen, kept, damping=0)
    error = x @ kernel - (x[:, kept] @ smaller + shift)
    np.testing.assert_allclose(error.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(np.square(error @ root).sum(1).mean(), made.losses[4], rtol=1e-6)
    plain = x @ kernel - x[:, kept] @ kernel[kept]
    assert np.square(plain @ root).sum(1).mean() > 2 * made.losses[4]


def test_a_unit_that_others_spell_out_goes_first_and_for_nothing(rng):
    x, kernel, root = _layer(rng, units=5)
    x = np.concatenate([x, x[:, :2] @ [[1.0], [2.0]]], 1)
    kernel = np.concatenate([kernel, rng.standard_normal((1, 4))])
    made = hidden.removal(kernel, moments.of(x), root, damping=1e-9)
    assert made.losses[5] < 1e-4 * made.losses[4]


def test_sums_that_were_rounded_on_one_side_change_nothing(rng):
    x, kernel, root = _layer(rng, units=150, rows=100)
    seen = moments.of(x)
    noise = 1e-7 * np.trace(seen.second) / 150 * rng.standard_normal((150, 150))
    made = hidden.removal(kernel, seen._replace(second=seen.second + np.triu(noise, 1)), root)
    exact = hidden.removal(kernel, seen, root)
    assert np.all(np.isfinite(made.losses))
    np.testing.assert_allclose(made.losses, exact.losses, atol=1e-3 * exact.losses[0])
