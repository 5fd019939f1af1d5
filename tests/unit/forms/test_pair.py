"""The pair: what it stands for, and what is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lraqvit_jax.forms.pair import Pair, low_rank, reparam

property_test = settings(max_examples=30, deadline=None, derandomize=True)
sizes = st.tuples(*[st.integers(1, 6)] * 3, st.integers(0, 2**32 - 1))


def draw(m, r, n, seed):
    rng = np.random.default_rng(seed)
    return rng, Pair(rng.standard_normal((m, r)), rng.standard_normal((r, n))).check()


@property_test
@given(sizes)
def test_a_pair_stands_for_the_product_of_its_factors(size):
    m, r, n, _ = size
    _, pair = draw(*size)
    assert pair.rank == r
    assert pair.product().shape == (m, n)
    want = sum(np.outer(pair.u[:, channel], pair.v[channel]) for channel in range(r))
    np.testing.assert_allclose(pair.product(), want, atol=1e-12)


@property_test
@given(sizes)
def test_a_pair_is_a_tree_of_its_factors_and_stays_in_float64(size):
    _, pair = draw(*size)
    doubled = jax.tree.map(lambda factor: 2 * factor, pair)
    assert isinstance(doubled, Pair)
    assert doubled.u.dtype == np.float64
    np.testing.assert_array_equal(doubled.product(), 4 * pair.product())


def test_a_compiled_function_takes_a_pair(rng):
    pair = Pair(rng.standard_normal((5, 2)).astype(np.float32), rng.standard_normal((2, 4)).astype(np.float32))
    np.testing.assert_allclose(jax.jit(Pair.product)(pair), pair.product(), rtol=1e-5)


@pytest.mark.parametrize("shapes", [((5, 2), (3, 4)), ((5,), (5, 4)), ((2, 5, 2), (2, 4)), ((5, 2), (2,))], ids=str)
def test_factors_that_do_not_meet_in_a_rank_are_no_pair(shapes):
    with pytest.raises(ValueError, match="no pair"):
        Pair(*(np.zeros(shape) for shape in shapes)).check()


@property_test
@given(sizes)
def test_the_branch_is_added_to_the_factors(size):
    rng, pair = draw(*size)
    branch = jax.tree.map(lambda factor: rng.standard_normal(factor.shape), pair)
    x = rng.standard_normal((3, pair.u.shape[0]))
    four = {"u": pair.u, "v": pair.v, "du": branch.u, "dv": branch.v}
    params = {name: jnp.asarray(value, jnp.float32) for name, value in four.items()}
    want = x @ (pair.product() + branch.u @ pair.v + pair.u @ branch.v + branch.product())
    got = reparam(params, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(got, want, atol=1e-4)
    alone = low_rank({name: params[name] for name in "uv"}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(alone, x @ pair.product(), atol=1e-4)
