"""Attention as people write it, and whether its kernels make products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from lraqvit_jax import models
from lraqvit_jax.trace import products
from tests.unit import small

D, HEADS, K = 24, 3, 8


def heads(x, w, b=0.0, count=HEADS):
    return (x @ w + b).reshape(*x.shape[:2], count, K)


def mix(q, k, v, mask=None, scale=K**-0.5):
    scores = jnp.einsum("bqhk,bthk->bhqt", q * scale, k)
    scores = scores if mask is None else jnp.where(mask, scores, -1e9)
    return jnp.einsum("bhqt,bthk->bqhk", jax.nn.softmax(scores), v).reshape(*q.shape[:2], -1)


def plain(p, x):
    return x + mix(*(heads(x, p[name], p["b"]) for name in "qkv")) @ p["o"]


def causal(p, x):
    size = x.shape[1]
    return mix(*(heads(x, p[name]) for name in "qkv"), np.tri(size, dtype=bool)) @ p["o"]


def fused(p, x):
    q, k, v = jnp.moveaxis((x @ p["qkv"]).reshape(*x.shape[:2], 3, HEADS, K), 2, 0)
    return mix(q, k, v) @ p["o"]


def split(p, x):
    return mix(*(part.reshape(*x.shape[:2], HEADS, K) for part in jnp.split(x @ p["qkv"], 3, -1))) @ p["o"]


def rotated(x):
    angle = jnp.arange(x.shape[1])[:, None, None] / 10 ** jnp.arange(x.shape[-1] // 2)
    one, two = jnp.split(x, 2, -1)
    return jnp.concatenate(
        [one * jnp.cos(angle) - two * jnp.sin(angle), one * jnp.sin(angle) + two * jnp.cos(angle)], -1
    )


def rope(p, x):
    q, k, v = (heads(x, p[name]) for name in "qkv")
    return mix(rotated(q), rotated(k), v) @ p["o"]


def rope_of_a_part(p, x):
    """Two channels of each head turn, six stay."""
    q, k, v = (heads(x, p[name]) for name in "qkv")
    q, k = (jnp.concatenate([rotated(y[..., :2]), y[..., 2:]], -1) for y in (q, k))
    return mix(q, k, v) @ p["o"]


def normed(p, x):
    q, k, v = (heads(x, p[name]) for name in "qkv")
    q, k = (y * jax.lax.rsqrt(jnp.mean(y**2, -1, keepdims=True)) for y in (q, k))
    return mix(q, k, v) @ p["o"]


def grouped(p, x):
    k, v = (jnp.repeat(heads(x, p[name][:, :K], count=1), HEADS, 2) for name in "kv")
    return mix(heads(x, p["q"]), k, v) @ p["o"]


def gated(p, x):
    """The mixed values are changed before they are projected."""
    return jax.nn.silu(mix(*(heads(x, p[name]) for name in "qkv"))) @ p["o"]


def linear_attention(p, x):
    """Query meets key without a softmax."""
    q, k, v = (heads(x, p[name]) for name in "qkv")
    return jnp.einsum("bqhk,bthk,bthv->bqhv", q, k, v).reshape(x.shape) @ p["o"]


CASES = {
    plain: (1, 1),
    causal: (1, 1),
    fused: (1, 1),
    split: (1, 1),
    rope: (0, 1),
    rope_of_a_part: (0, 1),
    normed: (0, 1),
    grouped: (1, 1),
    gated: (1, 0),
}
"""Whether there is a score product, and a value product."""


@pytest.fixture
def p(rng):
    shapes = {"qkv": (D, 3 * D), "b": (D,)} | dict.fromkeys("qkvo", (D, D))
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("function", CASES, ids=lambda function: function.__name__)
def test_head_products_are_found_and_what_forbids_them_is_named(function, p, rng):
    (block,) = products.find(function, p, rng.standard_normal((2, 5, D)).astype(np.float32)).attention
    assert (block.score_reason == "", block.value_reason == "") == CASES[function]
    assert (block.output, block.head_dim) == ("o", K)
    names = (block.query, block.key, block.value)
    parts = {fused: ("qkv",) * 3, split: ("qkv",) * 3, grouped: ("q", "k[:,0:8]", "v[:,0:8]")}
    assert names == parts.get(function, ("q", "k", "v"))
    if function in (rope, rope_of_a_part, normed):
        assert "mul" in block.score_reason and "between kernel and product" in str(block)


def test_what_is_no_attention_is_not_taken_for_it(p, rng):
    assert products.find(linear_attention, p, rng.standard_normal((2, 5, D)).astype(np.float32)).attention == ()


@pytest.mark.parametrize("name", ["vit_pico", "swin_pico"])
def test_every_block_of_our_own_models_has_both_products(name, rng):
    model = models.create(name, num_classes=10, image_size=8)
    images = rng.standard_normal((2, 8, 8, 3)).astype(np.float32)
    params = small.unboxed(model, images)
    sites = products.find(lambda params, images: model.apply({"params": params}, images), params, images)
    blocks = [site.path.removesuffix("qkv/kernel") for site in sites if site.path.endswith("qkv/kernel")]
    assert [block.output for block in sites.attention] == [f"{block}proj/kernel" for block in blocks]
    assert all(not block.score_reason and not block.value_reason for block in sites.attention)


def test_those_of_flax_are_found(rng):
    x = rng.standard_normal((2, 5, D)).astype(np.float32)
    layer = nn.MultiHeadDotProductAttention(HEADS)
    variables = layer.init(jax.random.key(0), x)
    graph, state = nnx.split(nnx.MultiHeadAttention(HEADS, D, decode=False, rngs=nnx.Rngs(0)))
    for apply, params in ((layer.apply, variables), (lambda params, x: nnx.merge(graph, params)(x), state)):
        (block,) = products.find(apply, params, x).attention
        assert (block.head_dim, block.score_reason, block.value_reason) == (K, "", "")
