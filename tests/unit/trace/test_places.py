"""What can be made smaller by itself: sizes without loss, and that parts compute what their dense kernels say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lraqvit_jax.plan import blocks
from lraqvit_jax.trace import compress, moments, parts, places, products, rewrite, sizes
from tests.unit.trace.test_attention import HEADS, D, K, causal, fused, grouped, heads, mix, normed, rope, split

UNITS = 40


def biased(p, x):
    """Attention with every bias, then an MLP."""
    x = x + mix(*(heads(x, p[name], p[f"b{name}"]) for name in "qkv")) @ p["o"] + p["bo"]
    return x + jax.nn.gelu(x @ p["up"] + p["bup"]) @ p["down"] + p["bdown"]


def gated(p, x):
    return x + (jax.nn.silu(x @ p["gate"]) * (x @ p["up"])) @ p["down"]


def masked(p, x):
    """Weights that do not sum to one: the value's bias cannot move."""
    q, k, v = (heads(x, p[name], p[f"b{name}"]) for name in "qkv")
    scores = jnp.einsum("bqhk,bthk->bhqt", q, k)
    weights = jnp.where(np.tri(x.shape[1], dtype=bool), jax.nn.softmax(scores), 0)
    return jnp.einsum("bhqt,bthk->bqhk", weights, v).reshape(x.shape) @ p["o"] + p["bo"]


def over_queries(p, x):
    """A softmax over the queries: the key's bias is no constant to it."""
    q, k, v = (heads(x, p[name], p[f"b{name}"]) for name in "qkv")
    weights = jax.nn.softmax(jnp.einsum("bqhk,bthk->bhqt", q, k), axis=2)
    return jnp.einsum("bhqt,bthk->bqhk", weights, v).reshape(x.shape) @ p["o"]


CASES = {
    biased: {"score", "value", "mlp"},
    causal: {"score", "value"},
    fused: {"score", "value"},
    split: {"score", "value"},
    grouped: {"score", "value"},
    rope: {"value", "rank"},
    normed: {"value", "rank"},
    gated: {"mlp"},
    masked: {"value", "rank"},
    over_queries: {"value", "rank"},
}
"""Functions, and the kinds of places that they have."""


class Case:
    def __init__(self, function, rng):
        shapes = {"qkv": (D, 3 * D), "up": (D, UNITS), "gate": (D, UNITS), "down": (UNITS, D)}
        shapes |= dict.fromkeys("qkvo", (D, D))
        shapes |= {f"b{name}": (shape[1],) for name, shape in shapes.items()}
        every = {name: rng.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}
        self.batches = [rng.standard_normal((8, 6, D)).astype(np.float32) + 0.5 for _ in range(6)]
        read = Reads(every)
        function(read, self.batches[0])
        self.apply, self.params = function, {name: every[name] for name in read.names}
        self.sites = products.find(function, self.params, self.batches[0])
        dense, values = rewrite.rewrite(function, self.params, {}, self.sites)
        seen = moments.moments(dense, values, self.sites, self.batches, "features")
        self.layers = {
            site.path: places.Layer.of(
                site, rewrite.kernel_of(self.sites, site.path, values["leaves"]), seen[site.path]
            )
            for site in self.sites
        }
        self.places = sizes.places(self.sites, self.layers)
        self.changes = sizes.Changes(dense, values, self.sites, self.layers, self.batches, "features")

    def outputs(self, made, biases):
        """Of the function with these parts; the other channels of their sites as they came."""
        missing, there = list(made), {part.path for part in made}
        for place in self.places:
            whole, gained = place.made(place.sizes)
            if {part.site for part in whole} & {part.site for part in made} and not {
                part.path for part in whole
            } & there:
                missing += whole
                biases = {**gained, **biases}
        function, values = rewrite.of_parts(self.apply, self.params, missing, biases, self.sites)
        return [jax.jit(function)(values, batch) for batch in self.batches]

    def dense(self):
        return [self.apply(self.params, batch) for batch in self.batches]


class Reads(dict):
    """Remembers which parameters a function has."""

    def __init__(self, values):
        super().__init__(values)
        self.names = set()

    def __getitem__(self, name):
        self.names.add(name)
        return super().__getitem__(name)


def squared(ones, others, examples):
    return sum(float(jnp.sum(jnp.square(one - other))) for one, other in zip(ones, others, strict=True)) / examples


@pytest.mark.parametrize("function", CASES, ids=lambda function: function.__name__)
def test_parts_compute_what_their_kernels_say_and_lose_what_is_measured(function, rng):
    case = Case(function, rng)
    assert {place.name.rpartition(":")[2] for place in case.places} == CASES[function]
    dense, norm = case.dense(), squared(case.dense(), [0] * 6, 48)
    for place in case.places:
        whole = case.outputs(*place.made(place.sizes))
        assert squared(whole, dense, 48) < 1e-9 * norm, place.name
        losses = []
        for part, size in place.sizes.items():
            smaller = {**place.sizes, part: max(1, (2 * size) // 3) if size else D - 4}
            made, biases = place.made(smaller)
            changed = squared(case.outputs(made, biases), dense, 48)
            assert changed == pytest.approx(case.changes(made, biases), rel=1e-3), (place.name, part)
            predicted = place.loss(part, smaller)
            assert 0.1 < changed / predicted < 10, (place.name, part)
            losses.append(changed)
        assert all(loss < norm / 2 for loss in losses)


@pytest.mark.parametrize("function", [biased, grouped, gated], ids=lambda function: function.__name__)
def test_costs_are_those_of_what_is_stored(function, rng):
    case = Case(function, rng)
    scales = {key: blocks.Scale() for key in places.unmeasured(case.places)}
    for place in case.places:
        for choice in place.choices(scales, 1):
            made, _ = place.made({**place.sizes, **choice.size})
            stored = [
                np.size(value) for part in made for name, value in part.layer.items() if name in ("kernel", "u", "v")
            ]
            assert sum(stored) == choice.cost, (place.name, choice.size)


def test_a_gauge_costs_nothing_and_saves_parameters(rng):
    """Head products at full size: `head_dim**2` fewer parameters for each key and each value, the same function."""
    case = Case(biased, rng)
    heads_of = [place for place in case.places if isinstance(place, places.Scores | places.Values)]
    made = [part for place in heads_of for part in place.made(place.sizes)[0]]
    biases = {}
    for place in heads_of:
        biases |= place.made(place.sizes)[1]
    stored = sum(np.size(part.layer["kernel"]) for part in made)
    assert stored == 4 * D * D - 2 * HEADS * K * K
    for one, other in zip(case.outputs(made, biases), case.dense(), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * float(jnp.abs(other).max()))


def test_parts_of_one_site_have_all_of_its_channels(rng):
    for function in (fused, split, rope):
        case = Case(function, rng)
        made = [part for place in case.places for part in place.made(place.sizes)[0]]
        for path in {part.site for part in made}:
            channels = [
                part.layer.get("outputs", np.arange(len(case.layers[path].bias))) for part in made if part.site == path
            ]
            np.testing.assert_array_equal(np.sort(np.concatenate(channels)), np.arange(len(case.layers[path].bias)))
        assert all(isinstance(part, parts.Part) for part in made)


def test_sharded_parameters_and_batches_are_used_where_they_lie(rng):
    """Kernels over one axis of the mesh, examples over the other: the same sizes, and the same outputs."""
    case = Case(biased, rng)
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))

    def over(*axes):
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))

    params = {
        name: jax.device_put(leaf, over(None, "model") if leaf.ndim == 2 else over("model"))
        for name, leaf in case.params.items()
    }
    batches = [jax.device_put(batch, over("data")) for batch in case.batches]
    options = {"budget": 0.7, "metric": "features", "bits": 0}
    spread = compress.compress(biased, params, batches, **options)
    alone = compress.compress(biased, case.params, case.batches, **options)
    assert spread.plan == alone.plan
    assert len(spread(batches[0]).sharding.device_set) == 8
    np.testing.assert_allclose(spread(batches[0]), alone(case.batches[0]), atol=1e-3 * np.abs(case.dense()[0]).max())
    function, values = rewrite.rewrite(biased, params, {}, case.sites)
    np.testing.assert_array_equal(jax.jit(function)(values, batches[0]), jax.jit(biased)(params, batches[0]))
    assert jax.jit(function)(values, batches[0]).sharding.is_equivalent_to(
        jax.jit(biased)(params, batches[0]).sharding, 3
    )
