"""Sites of functions that are written in every way: what the kernel is, and that forms in its place do the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lraqvit_jax.base.errors import UserError
from lraqvit_jax.plan.records import LayerPlan
from lraqvit_jax.trace import product, products, rewrite

D, N = 12, 20


def dense(p, x):
    return x @ p["w"]


def transposed(p, x):
    return jnp.einsum("bti,oi->bto", x, p["wt"])


def weight_first(p, x):
    return jnp.moveaxis(jnp.einsum("oi,bti->obt", p["wt"], x), 0, -1)


def to_heads(p, x):
    return jnp.einsum("bti,ihd->bthd", x, p["w"].reshape(D, 4, 5)).reshape(*x.shape[:2], N)


def from_heads(p, x):
    return jnp.einsum("bthd,hdo->bto", x.reshape(*x.shape[:2], 3, 4), p["w"].reshape(3, 4, N))


def jitted(p, x):
    return jax.jit(lambda x, w: x @ w)(x, p["w"])


def rematerialized(p, x):
    return jax.checkpoint(lambda w, x: jnp.tanh(x) @ w)(p["w"], x)


@jax.custom_vjp
def _custom(w, x):
    return x @ w


_custom.defvjp(lambda w, x: (x @ w, (w, x)), lambda kept, g: (jnp.einsum("bti,bto->io", kept[1], g), g @ kept[0].T))


def custom(p, x):
    return _custom(p["w"], x)


def cast(p, x):
    return (x.astype(jnp.bfloat16) @ p["w"].astype(jnp.bfloat16)).astype(jnp.float32)


def scaled(p, x):
    return x @ (p["w"] * 0.5 / 2)


def same_kernel_twice(p, x):
    return x @ p["w"] + jnp.tanh(x) @ p["w"]


FUNCTIONS = {
    dense: lambda p: p["w"],
    transposed: lambda p: p["wt"].T,
    weight_first: lambda p: p["wt"].T,
    to_heads: lambda p: p["w"],
    from_heads: lambda p: p["w"],
    jitted: lambda p: p["w"],
    rematerialized: lambda p: p["w"],
    custom: lambda p: p["w"],
    cast: lambda p: p["w"],
    scaled: lambda p: p["w"] / 4,
    same_kernel_twice: lambda p: p["w"],
}


@pytest.fixture
def p(rng):
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in {"w": (D, N), "wt": (N, D)}.items()}


@pytest.fixture
def x(rng):
    return rng.standard_normal((2, 3, D)).astype(np.float32)


def full(sites):
    """Pairs of full rank everywhere: the same function."""
    return {
        site.path: LayerPlan("pivoted", min(site.features_in, site.features_out), basis="output")
        for site in sites
        if site.compressible
    }


def same(one, other, tolerance=2e-5):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(np.asarray(a, np.float64)).max())


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_the_kernel_is_found_and_a_pair_of_full_rank_computes_the_same(function, p, x):
    sites = products.find(function, p, x)
    (site,) = sites
    assert (site.features_in, site.features_out, site.tokens, site.reason) == (D, N, 3, "")
    assert site.calls == (2 if function is same_kernel_twice else 1)
    kernel = rewrite.kernel_of(sites, site.path, p)["kernel"]
    np.testing.assert_allclose(kernel, FUNCTIONS[function](p), rtol=1e-2 if function is cast else 1e-6)
    small, params = rewrite.rewrite(function, p, full(sites))
    assert site.leaf not in params["leaves"]
    tolerance = 2e-2 if function is cast else 2e-5
    same(function(p, x), jax.jit(small)(params, x), tolerance)
    same(
        jax.grad(lambda x: jnp.sum(function(p, x) ** 2))(x),
        jax.grad(lambda x: jnp.sum(small(params, x) ** 2))(x),
        tolerance,
    )


CONVOLUTIONS = {
    "NHWC": ("NHWC", "HWIO", "NHWC", (2, 9, 8, 3), (4, 4, 3, 6)),
    "NCHW": ("NCHW", "OIHW", "NCHW", (2, 3, 9, 8), (6, 3, 4, 4)),
    "NWC": ("NWC", "WIO", "NWC", (2, 9, 3), (2, 3, 6)),
    "across": ("NHWC", "HWIO", "NCHW", (2, 4, 6, 3), (1, 2, 3, 6)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_whose_windows_tile_is_a_product_of_patches(name, rng):
    *layout, image, window = CONVOLUTIONS[name]
    p, x = (rng.standard_normal(shape).astype(np.float32) for shape in (window, image))
    strides = [window[axis] for axis, letter in enumerate(layout[1]) if letter not in "IO"]

    def function(p, x):
        return jax.lax.conv_general_dilated(x, p["w"], strides, "VALID", dimension_numbers=tuple(layout))

    sites = products.find(function, {"w": p}, x)
    (site,) = sites
    assert (site.features_in, site.features_out, site.kind) == (p.size // 6, 6, "embed")
    small, params = rewrite.rewrite(function, {"w": p}, full(sites))
    same(function({"w": p}, x), small(params, x))


OVERLAPPING = {
    "same": ((1, 1), "SAME", (1, 1)),
    "strides": ((2, 3), "SAME", (1, 1)),
    "edges": ((2, 1), ((0, 2), (3, 1)), (1, 1)),
    "cut": ((1, 1), ((-1, 0), (2, -2)), (1, 1)),
    "gaps": ((1, 2), "VALID", (3, 2)),
}


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("name", OVERLAPPING)
def test_a_convolution_whose_windows_overlap_is_a_product_of_windows(name, layout, rng):
    strides, padding, gaps = OVERLAPPING[name]
    window, image, layouts = {
        "NHWC": ((3, 2, 4, 6), (2, 9, 8, 4), ("NHWC", "HWIO", "NHWC")),
        "NCHW": ((6, 4, 3, 2), (2, 4, 9, 8), ("NCHW", "OIHW", "NCHW")),
    }[layout]
    p, x = (rng.standard_normal(shape).astype(np.float32) for shape in (window, image))

    def function(p, x):
        convolved = {"rhs_dilation": gaps, "dimension_numbers": layouts}
        return jax.lax.conv_general_dilated(x, p["w"], strides, padding, **convolved)

    sites = products.find(function, {"w": p}, x)
    (site,) = sites
    dense = function({"w": p}, x)
    assert (site.features_in, site.features_out, site.tokens, site.reason) == (24, 6, dense.size // 12, "")
    small, params = rewrite.rewrite(function, {"w": p}, full(sites))
    same(dense, jax.jit(small)(params, x))
    slope, other = (
        jax.grad(lambda x, f=f: jnp.sum(f(x) ** 2))(x)
        for f in (lambda x: function({"w": p}, x), lambda x: small(params, x))
    )
    same(slope, other)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda p, x: x @ (p[0] * p[0]), "changed by mul"),
        (lambda p, x: jax.lax.cond(x[0, 0, 0] > 0, lambda: x @ p[0], lambda: 2 * x @ p[0]), "conditional"),
        (lambda p, x: jax.lax.while_loop(lambda y: y[0, 0, 0] < 0, lambda y: y @ p[0][:, :D], x), "inside of while"),
        (lambda p, x: (x @ p[0]) @ p[0].T, "different layouts"),
        (lambda p, x: x @ p[0] + p[0][0], "also read by"),
        (
            lambda p, x: jax.lax.conv_general_dilated(
                x, p, (1,), ((1, 1),), (2,), dimension_numbers=("NWC", "WIO", "NWC")
            ),
            "gaps between pixels",
        ),
    ],
    ids=["changed", "conditional", "loop", "tied", "read", "transposed"],
)
def test_what_cannot_be_compressed_is_listed_with_the_reason(function, reason, rng, x):
    p = rng.standard_normal((3, D, N)).astype(np.float32)
    sites = products.find(function, p, x)
    reasons = [site.reason for site in sites if site.reason] + [one.reason for one in sites.skipped]
    assert any(reason in one for one in reasons), reasons
    for site in sites:
        if site.reason:
            with pytest.raises(UserError, match="cannot be compressed"):
                rewrite.rewrite(function, p, {site.path: LayerPlan("low_rank", 2)})


EXPERTS = {
    "first": (lambda p, x: jnp.einsum("bti,tio->bto", x, p), (5, D, N), "[{}]"),
    "last": (lambda p, x: jnp.einsum("bti,oit->bot", x, p), (N, D, 5), "[:,:,{}]"),
    "mapped": (lambda p, x: jax.vmap(lambda w: jnp.tanh(x) @ w)(p), (5, D, N), ""),
    "kernel first": (lambda p, x: jnp.einsum("tio,bti->tob", p, x), (5, D, N), "[{}]"),
}


@pytest.mark.parametrize("name", EXPERTS)
def test_kernels_side_by_side_are_sites_of_their_own(name, rng, monkeypatch):
    """Experts, blocks along a diagonal, a kernel for each position."""
    function, shape, path = EXPERTS[name]
    x = rng.standard_normal((2, 5, D)).astype(np.float32)
    p = rng.standard_normal(shape).astype(np.float32)
    sites = products.find(function, p, x)
    if not path:  # one product with all of them
        assert [(site.features_in, site.features_out) for site in sites] == [(D, 5 * N)]
        return
    assert [site.path for site in sites] == [path.format(index) for index in range(5)]
    assert {(site.features_in, site.features_out, site.tokens) for site in sites} == {(D, N, 1)}
    small, params = rewrite.rewrite(function, p, full(sites))
    same(function(p, x), jax.jit(small)(params, x))
    one, params = rewrite.rewrite(function, p, {path.format(2): LayerPlan("low_rank", 3)})
    kernel = params["sites"][path.format(2)]["u"] @ params["sites"][path.format(2)]["v"]
    changed = p.copy()
    changed[(slice(None), slice(None), 2) if name == "last" else 2] = kernel.T if name == "last" else kernel
    same(function(changed, x), jax.jit(one)(params, x))
    monkeypatch.setattr(product, "MOST", 4)
    assert "is 5 kernels" in str(products.find(function, p, x))


def test_layers_of_a_scan_are_sites_of_their_own(rng, x):
    p = {
        name: rng.standard_normal((3, *shape)).astype(np.float32)
        for name, shape in {"w": (D, N), "v": (N, D), "b": (N,)}.items()
    }

    def function(p, x):
        def body(x, layer):
            return x + jnp.tanh(x @ layer["w"] + layer["b"]) @ layer["v"] * 0.1, jnp.sum(x)

        return jax.lax.scan(jax.checkpoint(body), x, p, reverse=True)

    sites = products.find(function, p, x)
    assert [site.path for site in sites] == [f"{name}[{index}]" for index in (2, 1, 0) for name in "wv"]
    assert sites["w[1]"].bias == "b[1]"
    small, params = rewrite.rewrite(
        function, p, {"w[1]": LayerPlan("low_rank", 3), **{k: v for k, v in full(sites).items() if k != "w[1]"}}
    )
    kernel = params["sites"]["w[1]"]["u"] @ params["sites"]["w[1]"]["v"]
    changed = {**p, "w": np.stack([p["w"][0], kernel, p["w"][2]])}
    same(function(changed, x), jax.jit(small)(params, x))
    assert set(params["leaves"]) == {"b"}
    one, params = rewrite.rewrite(function, p, {"w[1]": LayerPlan("low_rank", 3)})
    assert set(params["leaves"]) == {"b", "v"}
    same(function(changed, x), one(params, x))


def test_a_recurrence_keeps_its_loop_and_has_one_kernel_in_all_rounds(rng):
    p = {name: rng.standard_normal((D, D)).astype(np.float32) / 4 for name in ("inner", "outer")}
    x = rng.standard_normal((2, 40, D)).astype(np.float32)

    def function(p, x):
        def step(state, row):
            state = jnp.tanh(state @ p["inner"] + row @ p["outer"])
            return state, state

        return jax.lax.scan(step, jnp.zeros((x.shape[0], D)), x.swapaxes(0, 1))

    sites = products.find(function, p, x)
    assert [(site.path, site.calls, site.tokens, site.reason) for site in sites] == [
        ("inner", 40, 1, ""),
        ("outer", 40, 1, ""),
    ]
    small, params = rewrite.rewrite(function, p, full(sites))
    same(function(p, x), jax.jit(small)(params, x))
    assert str(jax.make_jaxpr(small)(params, x)).count("scan[") == 1


def test_a_leaf_of_which_a_part_must_stay_stays_whole(rng, x):
    p = rng.standard_normal((2, D, D)).astype(np.float32)

    def function(p, x):
        y = jnp.tanh(x @ p[1])
        return jax.lax.cond(x[0, 0, 0] > 0, lambda y: y @ p[0], lambda y: y, y)

    reasons = {site.path: site.reason for site in products.find(function, p, x)}
    assert reasons == {"[1]": "is of one leaf with [0], which stays", "[0]": "is inside a conditional"}
    twice = products.find(lambda p, x: x @ p[0] + jnp.sum(p[0] @ p[1]), p, x)
    assert twice["[0]"].reason == "is also read by dot_general"


def test_parts_of_one_leaf_and_the_kinds_of_sites(rng, x):
    p = {
        "qkv": rng.standard_normal((D, 3 * D)).astype(np.float32),
        "out": rng.standard_normal((D, 5)).astype(np.float32),
    }

    def function(p, x):
        q, k, v = (jnp.tanh(x) @ p["qkv"][:, part * D : (part + 1) * D] for part in range(3))
        return jax.nn.softmax(q @ k.swapaxes(1, 2)) @ v @ p["out"]

    sites = products.find(function, p, x)
    assert [(site.path, site.kind) for site in sites] == [
        ("qkv[:,0:12]", "embed"),
        ("qkv[:,12:24]", "embed"),
        ("qkv[:,24:36]", "embed"),
        ("out", "head"),
    ]
    small, params = rewrite.rewrite(function, p, full(sites))
    assert not params["leaves"]
    same(function(p, x), small(params, x))


def test_an_empty_plan_gives_the_same_bits_and_batches_may_have_any_size(p, x, rng):
    products.find(dense, p, x)
    small, params = rewrite.rewrite(dense, p, {})
    np.testing.assert_array_equal(jax.jit(dense)(p, x), jax.jit(small)(params, x))
    small, params = rewrite.rewrite(dense, p, {"w": LayerPlan("dense")})
    np.testing.assert_array_equal(jax.jit(dense)(p, x), jax.jit(small)(params, x))
    small, params = rewrite.rewrite(dense, p, {"w": LayerPlan("low_rank", 4)})
    many = rng.standard_normal((7, 5, D)).astype(np.float32)
    want = many @ (params["sites"]["w"]["u"] @ params["sites"]["w"]["v"])
    same(want, small(params, many))
    same(want, jax.vmap(lambda one: small(params, one[None])[0])(many))
    spec = jax.ShapeDtypeStruct(jax.export.symbolic_shape("batch, 5, 12"), jnp.float32)
    same(want, jax.export.export(jax.jit(small))(params, spec).call(params, many))
    assert jax.tree.map(np.shape, jax.grad(lambda params: jnp.sum(small(params, many)))(params)) == jax.tree.map(
        np.shape, params
    )


def test_factors_have_the_precision_of_their_leaf(p, x):
    half = {name: jnp.asarray(value, jnp.bfloat16) for name, value in p.items()}
    sites = products.find(cast, half, x)
    small, params = rewrite.rewrite(cast, half, {"w": LayerPlan("low_rank", 5)}, sites)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    want = x @ (params["sites"]["w"]["u"].astype(np.float32) @ params["sites"]["w"]["v"].astype(np.float32))
    same(want, small(params, x), 2e-2)


def _impure(p, x):
    return x @ p["w"] + np.random.default_rng().random()


def _printing(p, x):
    jax.debug.print("{}", x)
    return x @ p["w"]


@pytest.mark.parametrize(
    ("function", "batch", "says"),
    [
        (_impure, np.ones((2, 3, D), np.float32), "another computation each time"),
        (_printing, np.ones((2, 3, D), np.float32), "side effects"),
        (dense, np.ones((2, 3, D + 1), np.float32), "cannot be traced"),
        (dense, {"a": np.ones((2, D)), "b": np.ones((3, D))}, "cannot be traced"),
        (
            lambda p, x: x["a"] @ p["w"] + x["b"][:2],
            {"a": np.ones((2, D), np.float32), "b": np.ones((3, N), np.float32)},
            "first axis",
        ),
    ],
    ids=["impure", "printing", "width", "tree", "examples"],
)
def test_what_cannot_be_searched_is_refused_in_a_sentence(function, batch, says, p):
    with pytest.raises(UserError, match=says):
        products.find(function, p, batch)


def test_what_cannot_be_rewritten_is_refused_in_a_sentence(p, x):
    with pytest.raises(UserError, match="call find"):
        rewrite.rewrite(lambda p, x: x, p, {})
    products.find(dense, p, x)
    with pytest.raises(UserError, match="where no product is"):
        rewrite.rewrite(dense, p, {"v": LayerPlan("low_rank", 2)})
    with pytest.raises(UserError, match="rank 11"):
        rewrite.rewrite(dense, p, {"w": LayerPlan("low_rank", 11)})
    with pytest.raises(UserError, match="no array"):
        products.find(dense, {**p, "name": "vit"}, x)


def test_a_head_is_one_behind_a_loss_too_and_the_end_of_a_stream_is_none(rng, x):
    p = {name: rng.standard_normal((D, D)).astype(np.float32) for name in ("first", "second", "head")}

    def logits(p, x):
        return jnp.tanh(jnp.tanh(x @ p["first"]) @ p["second"]) @ p["head"]

    functions = {
        "logits": logits,
        "loss": lambda p, x: -jnp.mean(jax.nn.log_softmax(logits(p, x))[..., 0]),
        "unit": lambda p, x: logits(p, x) / jnp.linalg.norm(logits(p, x), axis=-1, keepdims=True),
    }
    for name, function in functions.items():
        assert [site.kind for site in products.find(function, p, x)] == ["embed", "mlp", "head"], name

    def stream(p, x):
        y = jnp.tanh(x @ p["first"])
        y = y + jnp.tanh(y @ p["second"]) @ p["head"]
        return y / jnp.linalg.norm(y, axis=-1, keepdims=True)

    assert [site.kind for site in products.find(stream, p, x)] == ["embed", "mlp", "mlp"]
