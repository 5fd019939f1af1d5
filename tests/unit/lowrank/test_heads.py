import numpy as np
import pytest

from lraqvit_jax.calibration import moments
from lraqvit_jax.lowrank import heads, kfac
from lraqvit_jax.plan.records import LayerPlan, LinearInfo

HEADS, K, DIM, TOKENS = 2, 5, 8, 7


def _attention(rng):
    qkv = {"kernel": rng.standard_normal((DIM, 3 * HEADS * K)), "bias": rng.standard_normal(3 * HEADS * K)}
    proj = {"kernel": rng.standard_normal((HEADS * K, DIM)), "bias": rng.standard_normal(DIM)}
    return qkv, proj


def _softmax(x):
    shares = np.exp(x - x.max(-1, keepdims=True))
    return shares / shares.sum(-1, keepdims=True)


def _dense(x, qkv, proj):
    """Float64: what softmax sees, with the key's bias, and the outputs of the block."""
    parts = (x @ qkv["kernel"] + qkv["bias"]).reshape(*x.shape[:2], 3, HEADS, K)
    query, key, value = np.moveaxis(parts, 2, 0)
    shares = _softmax(np.einsum("bqhk,bthk->bhqt", query, key) * K**-0.5)
    mixed = np.einsum("bhqt,bthk->bqhk", shares, value).reshape(*x.shape[:2], -1)
    return mixed, mixed @ proj["kernel"] + proj["bias"]


def _by_head(x, layers):
    """Float64: the outputs of query, key, value and proj, any widths."""
    query = (x @ layers["query"]["kernel"] + layers["query"]["bias"]).reshape(*x.shape[:2], HEADS, -1)
    key, value = ((x @ layers[name]["kernel"]).reshape(*x.shape[:2], HEADS, -1) for name in ("key", "value"))
    shares = _softmax(np.einsum("bqhk,bthk->bhqt", query, key) * K**-0.5)
    mixed = np.einsum("bhqt,bthk->bqhk", shares, value).reshape(*x.shape[:2], -1)
    return mixed @ layers["proj"]["kernel"] + layers["proj"]["bias"]


def _solved(rng):
    qkv, proj = _attention(rng)
    x = rng.standard_normal((40, TOKENS, DIM)) + rng.standard_normal(DIM)
    mixed, y = _dense(x, qkv, proj)
    gradients = rng.standard_normal((40 * TOKENS, 3 * HEADS * K))
    seen_qkv = moments.of(x.reshape(-1, DIM), gradients)
    seen_proj = moments.of(mixed.reshape(-1, HEADS * K), rng.standard_normal((40 * TOKENS, DIM)))
    kernels = heads.Attention.of(qkv, proj, HEADS)
    return x, y, kernels, kernels.scores(seen_qkv), kernels.values(seen_proj), seen_proj


def test_all_channels_lose_nothing_though_biases_are_gone(rng):
    x, y, kernels, scores, values, seen = _solved(rng)
    layers = kernels.smaller([one.factors(K) for one in scores], [one.factors(K) for one in values], seen.mean)
    assert {name: "bias" in layer for name, layer in layers.items()} == {
        "query": True,
        "key": False,
        "value": False,
        "proj": True,
    }
    np.testing.assert_allclose(_by_head(x, layers), y, atol=1e-12)


def test_the_mean_of_the_outputs_stays_when_values_are_cut(rng):
    x, y, kernels, scores, values, seen = _solved(rng)
    layers = kernels.smaller([one.factors(K) for one in scores], [one.factors(2) for one in values], seen.mean)
    smaller = _by_head(x, layers)
    assert np.abs(smaller - y).max() > 0.1
    np.testing.assert_allclose(smaller.mean((0, 1)), y.mean((0, 1)), atol=1e-10)


@pytest.mark.parametrize("width", [0, 1, 3, K])
def test_no_other_product_of_that_rank_loses_less(width, rng):
    """Eckart-Young: the loss is the tail of the spectrum, and neither noise nor another rank-`width` map goes below."""
    into, felt = (a @ a.T for a in rng.standard_normal((2, K, 9)))
    cut = heads.cut(into, felt)

    def loss(inner):
        return np.trace(felt @ (np.eye(K) - inner).T @ into @ (np.eye(K) - inner))

    a, b = cut.factors(width)
    assert (a.shape, b.shape) == ((K, width), (width, K))
    np.testing.assert_allclose(loss(a @ b), cut.losses()[width], rtol=1e-9, atol=1e-9)
    for _ in range(50):
        noise = rng.standard_normal((2, K, width)) * rng.choice([1e-3, 0.1, 3.0])
        assert loss((a + noise[0]) @ (b + noise[1].T)) >= cut.losses()[width] - 1e-9


def test_heads_that_say_nothing_are_cut_without_a_division_by_zero():
    cut = heads.cut(np.zeros((K, K)), np.eye(K))
    a, b = cut.factors(2)
    assert np.isfinite(a).all() and np.isfinite(b).all() and not np.any(a @ b)


def test_scores_are_cut_where_the_logits_feel_the_queries(rng):
    """One direction of the query that the gradient never has is the first to go."""
    qkv, proj = _attention(rng)
    x = rng.standard_normal((500, DIM))
    gradients = rng.standard_normal((500, 3 * HEADS * K))
    gradients[:, 0] = 0
    kernels = heads.Attention.of(qkv, proj, HEADS)
    seen = moments.of(x, gradients)
    felt = kernels.scores(seen)[0]
    a, b = felt.factors(K - 1)
    plain = heads.cut(np.eye(K), np.eye(K)).factors(K - 1)
    change = lambda inner: np.square((kernels.query[0] @ (np.eye(K) - inner)) @ np.diag([0, 1, 1, 1, 1])).sum()  # noqa: E731
    assert change(a @ b) < change(plain[0] @ plain[1])


def test_damping_is_that_of_kfac(rng):
    *_, kernels, _, values, seen = _solved(rng)
    root = kfac.output_root(seen)
    felt = kernels.out[0] @ root @ root.T @ kernels.out[0].T
    covariance = seen.weighted().covariance[:K, :K]
    np.testing.assert_allclose(values[0].losses(), heads.cut(covariance, felt).losses())
    assert LinearInfo("a", 1, 1, 1, "attention").heads == 0 == LayerPlan().width
