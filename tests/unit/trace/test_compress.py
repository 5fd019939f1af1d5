"""`compress` for functions that are not ours."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

import lraqvit_jax
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.trace import compress, rewrite
from tests.unit.trace.test_places import Case, biased


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x = x + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(x))
        return x + nn.Dense(16)(nn.gelu(nn.Dense(32)(nn.LayerNorm()(x)))), None


class Scanned(nn.Module):
    """Flax Linen, its blocks stacked and computed again in the backward pass."""

    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(30, 16)(ids)
        stack = nn.scan(nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        return nn.Dense(7)(stack()(x, None)[0].mean(1))


class Net(nnx.Module):
    def __init__(self, rngs):
        self.first, self.last = nnx.Linear(12, 16, rngs=rngs), nnx.Linear(16, 7, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 16, decode=False, rngs=rngs)

    def __call__(self, x):
        x = self.first(x)
        return self.last((x + self.attention(x)).mean(1))


def linen(rng):
    model, batches = Scanned(), [rng.integers(0, 30, (8, 5)) for _ in range(4)]
    return model.apply, model.init(jax.random.key(0), batches[0]), batches


def modern(rng):
    graph, params, rest = nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)
    batches = [rng.standard_normal((8, 5, 12)).astype(np.float32) for _ in range(4)]
    return lambda params, x: nnx.merge(graph, params, rest)(x), params, batches


MODELS = {"linen": linen, "nnx": modern}


@pytest.mark.parametrize("name", MODELS)
def test_less_budget_costs_less_and_changes_more(name, rng, tmp_path):
    apply, params, batches = MODELS[name](rng)
    dense = apply(params, batches[0])
    sizes, changes = [], []
    for budget in (1, 0.8, 0.4):
        small = lraqvit_jax.compress(apply, params, batches, budget=budget, bits=0)
        sizes.append((small.parameters, small.macs, small.nbytes))
        changes.append(float(jnp.linalg.norm(small(batches[0]) - dense) / jnp.linalg.norm(dense)))
    assert sizes[0][0] == sum(map(np.size, jax.tree.leaves(params)))
    assert sizes == sorted(sizes, reverse=True)
    assert changes == sorted(changes)
    assert changes[0] < 1e-6
    integers = lraqvit_jax.compress(apply, params, batches, budget=0.8)
    assert integers.nbytes < sizes[1][2] / 2
    close = integers(batches[0])
    np.testing.assert_allclose(
        close,
        lraqvit_jax.compress(apply, params, batches, budget=0.8, bits=0)(batches[0]),
        atol=0.15 * jnp.abs(close).max(),
    )
    assert {entry.form for entry in integers.plan.values()} == {"quantized"}
    assert "quantized" in repr(integers)
    integers.export(tmp_path / "small.stablehlo", batches[0])
    again = jax.export.deserialize(bytearray((tmp_path / "small.stablehlo").read_bytes()))
    np.testing.assert_allclose(again.call(batches[1][:3]), integers(batches[1][:3]), atol=1e-5)


def test_the_budget_is_met_exactly_by_what_is_stored(rng):
    apply, params, batches = modern(rng)
    sites = lraqvit_jax.find(apply, params, batches[0])
    kernels = sum(site.features_in * site.features_out for site in sites if site.kind == "mlp")
    small = lraqvit_jax.compress(apply, params, batches, budget=0.7, bits=0)
    saved = sum(map(np.size, jax.tree.leaves(params))) - small.parameters
    assert 0.3 * kernels <= saved <= 0.36 * kernels
    stored = [
        np.size(leaf) for name, leaf in _leaves(small.params) if not name.endswith(("basis", "inputs", "outputs"))
    ]
    assert sum(stored) == small.parameters


def _leaves(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(jax.tree_util.keystr(keys, simple=True, separator="/"), leaf) for keys, leaf in leaves]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"budget": 0}, "budget is 0"),
        ({"budget": 0.001}, "below what sizes"),
        ({"bits": 2}, "bits is 2"),
        ({"quantizer": "none"}, "quantizer is 'none'"),
        ({"metric": "accuracy"}, "metric is 'accuracy'"),
        ({"steps": -3}, "steps is -3"),
        ({"steps": 3, "fields": {"learning_rate": -1e-5}}, "learning_rate is -1e-05"),
        ({"fields": {"plan.method": "logits"}}, "fields has 'plan.method'"),
        ({"fields": ["seed"]}, "fields is"),
        ({"fields": {"keep_dense": ["nowhere"]}}, "names 'nowhere'"),
        ({"preprocess": None, "workdir": "DIR"}, "A function takes"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused_in_a_sentence(options, says, rng):
    apply, params, batches = modern(rng)
    with pytest.raises(UserError, match=says):
        lraqvit_jax.compress(apply, params, batches, **options)


@pytest.mark.parametrize(
    "batches", ["folder:PHOTOS", [], np.zeros((2, 5, 12), np.float32), 3], ids=["text", "none", "array", "number"]
)
def test_batches_that_are_none_are_refused_in_a_sentence(batches, rng):
    apply, params, _ = modern(rng)
    with pytest.raises(UserError, match="batches is"):
        lraqvit_jax.compress(apply, params, batches)


def test_a_function_without_products_is_refused_with_what_was_seen(rng):
    with pytest.raises(UserError, match="No product"):
        lraqvit_jax.compress(lambda p, x: jnp.take(p, x, 0), np.ones((3, 4), np.float32), [np.zeros((2, 1), np.int32)])


@pytest.mark.parametrize(("metric", "rate"), [("logits", 3e-3), ("features", 3e-3), ("logits", 0.0), ("features", 0.0)])
def test_distillation_brings_the_outputs_back(metric, rate, rng):
    apply, params, _ = modern(rng)
    batches = [rng.standard_normal((32, 5, 12)).astype(np.float32) for _ in range(24)]
    unseen = rng.standard_normal((64, 5, 12)).astype(np.float32)
    dense, changes = apply(params, unseen), []
    for steps in (0, 240):
        options = {"steps": steps, "metric": metric, "fields": {"learning_rate": rate}}
        small = lraqvit_jax.compress(apply, params, batches, budget=0.4, bits=0, **options)
        moved = small(unseen) - dense
        changes.append(float(jnp.sum(jnp.square(moved - moved.mean(-1, keepdims=True)))))
        assert small.parameters < 0.8 * sum(map(np.size, jax.tree.leaves(params)))
    assert changes[1] < 0.8 * changes[0]


def test_a_learning_rate_that_harms_leaves_the_function_as_it_was(rng, capsys):
    """And says so; the rate that is found by itself does not harm."""
    apply, params, _ = modern(rng)
    batches = [rng.standard_normal((8, 5, 12)).astype(np.float32) for _ in range(4)]
    options = {"budget": 0.6, "bits": 0, "metric": "features"}
    plain = lraqvit_jax.compress(apply, params, batches, **options)
    for rate, same in ((1.0, True), (0.0, False)):
        fields = {"steps": 12, "fields": {"learning_rate": rate}}
        small = lraqvit_jax.compress(apply, params, batches, **options, **fields)
        assert np.array_equal(small(batches[0]), plain(batches[0])) == same
        assert ("did not lower the loss" in capsys.readouterr().err) == same


def test_distillation_leaves_kernels_alone_that_are_no_site(rng):
    """Their gradients may cost more than all else; biases behind them are trained."""
    apply, params, _ = modern(rng)

    def decoded(params, x):
        dilated = {"window_strides": (1,), "padding": [(2, 2)], "lhs_dilation": (2,)}
        numbers = ("NWC", "WIO", "NWC")
        maps = jax.lax.conv_general_dilated(
            apply(params["encoder"], x)[..., None], params["decoder"]["kernel"], **dilated, dimension_numbers=numbers
        )
        return maps + params["decoder"]["bias"]

    decoder = {"kernel": rng.standard_normal((4, 1, 3)).astype(np.float32), "bias": np.ones(3, np.float32)}
    batches = [rng.standard_normal((8, 5, 12)).astype(np.float32) for _ in range(3)]
    options = {"budget": 0.6, "bits": 0, "metric": "features", "steps": 6}
    small = lraqvit_jax.compress(decoded, {"encoder": params, "decoder": decoder}, batches, **options)
    leaves = small.params["leaves"]
    assert np.array_equal(leaves["decoder/kernel"], decoder["kernel"])
    assert not np.array_equal(leaves["decoder/bias"], decoder["bias"])


def test_a_loss_can_be_what_is_kept(rng):
    apply, params, _ = modern(rng)
    batches = [
        {"x": rng.standard_normal((16, 5, 12)).astype(np.float32), "y": rng.integers(0, 7, 16)} for _ in range(6)
    ]

    def loss(params, batch):
        logs = jax.nn.log_softmax(apply(params, batch["x"]))
        return -jnp.mean(logs[jnp.arange(len(batch["y"])), batch["y"]])

    losses = [float(loss(params, batches[0]))]
    for steps in (0, 60):
        options = {"steps": steps, "metric": "loss", "fields": {"learning_rate": 3e-3}}
        small = lraqvit_jax.compress(loss, params, batches, budget=0.5, bits=0, **options)
        losses.append(float(small(batches[0])))
    assert losses[2] < min(losses[:2])


@pytest.mark.parametrize("quantizer", ["dynamic", "static"])
def test_integers_keep_the_channels_that_are_left(quantizer, rng, tmp_path):
    """Of heads, hidden units, and pairs within them: close to the float function that they are made of."""
    case = Case(biased, rng)
    made, biases = [], {}
    for place in case.places:
        sizes = {part: max(1, (2 * size) // 3) if size else 20 for part, size in place.sizes.items()}
        of_place, changed = place.made(sizes)
        made += of_place
        biases |= {path: biases.get(path, 0) + bias - case.layers[path].bias for path, bias in changed.items()}
    whole = {path: bias + case.layers[path].bias for path, bias in biases.items()}
    function, params = rewrite.of_parts(case.apply, case.params, made, whole, case.sites)
    small = compress.Function(function, jax.tree.map(jnp.asarray, params), function.plan, case.sites)
    integers = compress.integers(small, case.batches, 8, quantizer)
    smoothed = {entry.smoothed_z for entry in integers.plan.values() if entry.copies_between}
    assert smoothed == {quantizer == "static"}
    integers.save(tmp_path / "function")
    stored = lraqvit_jax.Function.restore(tmp_path / "function", case.apply, case.params, case.batches[0])
    np.testing.assert_array_equal(stored(case.batches[0]), integers(case.batches[0]))
    assert {entry.width for entry in integers.plan.values()} >= {5, 26}
    for batch in case.batches:
        moved = integers(batch) - small(batch)
        assert float(jnp.linalg.norm(moved)) < 0.03 * float(jnp.linalg.norm(small(batch)))
    assert integers.nbytes < 0.5 * small.nbytes
