import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lraqvit_jax.forms.pair import Pair
from lraqvit_jax.lowrank import pivot
from lraqvit_jax.plan.basis import rest_of


@st.composite
def pairs(draw):
    """Pairs of any shape up to 14 x 14, their product of any rank up to the pair's, scales over eight decades."""
    m, n = draw(st.integers(1, 14)), draw(st.integers(1, 14))
    r = draw(st.integers(1, min(m, n)))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    u, v = rng.standard_normal((m, r)), rng.standard_normal((r, n))
    kind = draw(st.sampled_from(["any", "deficient", "duplicated", "decades", "zero"]))
    if kind == "deficient":
        rank = draw(st.integers(1, r))
        u, v = u[:, :rank] @ rng.standard_normal((rank, r)), rng.standard_normal((r, rank)) @ v[:rank]
    if kind == "duplicated":
        u, v = u[rng.integers(0, max(1, m // 2), m)], v[:, rng.integers(0, max(1, n // 2), n)]
    if kind == "decades":
        u, v = u * np.logspace(0, -8, r), v * np.logspace(-3, 3, n)
    if kind == "zero":
        u = 0 * u
    return Pair(u, v)


@settings(max_examples=300, deadline=None)
@given(pairs(), st.sampled_from(["input", "output"]))
def test_the_product_stays_whatever_the_shape_and_the_conditioning(pair, side):
    made = pivot.input_side(pair) if side == "input" else pivot.output_side(pair)
    (m, r), n = pair.u.shape, pair.v.shape[1]
    x = np.random.default_rng(0).standard_normal((5, m))
    if side == "input":
        y = (x[:, made.basis] + x[:, rest_of(made.basis, m)] @ made.first) @ made.second
        block = made.first
    else:
        y = np.empty((5, n))
        y[:, made.basis] = x @ made.first
        y[:, rest_of(made.basis, n)] = x @ made.first @ made.second
        block = made.second
    assert made.first.size + made.second.size == r * (m + n - r)
    np.testing.assert_array_equal(np.diff(made.basis) > 0, True)
    assert np.max(np.abs(block), initial=0) <= pivot.BOUND
    scale = np.abs(x) @ np.abs(pair.u) @ np.abs(pair.v)
    assert np.max(np.abs(y - x @ pair.product()) / np.maximum(scale, 1e-300), initial=0) < 1e-10


def test_a_plain_pivoted_qr_would_leave_larger_coefficients():
    """Kahan's matrix: QR with pivoting exchanges nothing, and its coefficients grow with the size."""
    n, c = 30, 0.3
    s = np.sqrt(1 - c**2)
    kahan = np.diag(s ** np.arange(n)) @ (np.eye(n) - c * np.triu(np.ones((n, n)), 1))
    rows = (kahan * (1 - 1e-7) ** np.arange(n))[: n - 1].T
    first = np.linalg.solve(rows[: n - 1].T, rows[n - 1])
    assert np.abs(first).max() > 10
    made = pivot.interpolate(rows)
    assert np.abs(made.coefficients).max() <= pivot.BOUND
    np.testing.assert_allclose(made.coefficients @ rows[made.basis], rows[rest_of(made.basis, n)], atol=1e-10)


@pytest.mark.parametrize("r", [1, 7, 20])
def test_a_basis_is_as_good_a_choice_as_exchanges_can_make_it(r, rng):
    """No exchange of one row enlarges the volume by more than the bound."""
    rows = rng.standard_normal((20, r))
    basis, _ = pivot.interpolate(rows)
    volume = abs(np.linalg.det(rows[basis]))
    for place in range(r):
        for other in rest_of(basis, 20):
            exchanged = np.where(np.arange(r) == place, other, basis)
            assert abs(np.linalg.det(rows[exchanged])) <= volume * (pivot.BOUND + 1e-9)
