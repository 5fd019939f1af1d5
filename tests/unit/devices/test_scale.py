"""Sharding rules, micro-batches, rematerialization, types of numbers, and estimates, on eight simulated devices."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from lraqvit_jax import config as config_lib
from lraqvit_jax import models
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.calibration import observe as statistics
from lraqvit_jax.data import pipeline, sources
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.devices import sharding
from lraqvit_jax.options.training import Distillation, Recipe
from lraqvit_jax.run import opening
from lraqvit_jax.stages import estimate
from lraqvit_jax.tasks import classification as evaluate
from lraqvit_jax.training import loop as train
from lraqvit_jax.training import objective as training
from lraqvit_jax.training import step as losses
from lraqvit_jax.training.outputs import outputs
from tests.unit import small

CUBE = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
EIGHT = sharding.make_mesh({"data": 8, "fsdp": 1, "tensor": 1})


def rules(**changes):
    return {**sharding.RULES, **changes}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rnk": ("tensor",)}, ["'rnk'", "did you mean 'rank'"]),
        ({"rank": ("tenser",)}, ["sharding.rank", "'tenser'", "did you mean 'tensor'"]),
        ({"batch": ("data", "data")}, ["sharding.batch", "'data' twice"]),
        ({"inner_rank": ("tensor",)}, ["sharding.inner_rank and sharding.heads", "'tensor'"]),
        ({"mlp": ("fsdp",)}, ["sharding.embed and sharding.mlp", "'fsdp'"]),
        ({"tokens": ("data",)}, ["sharding.batch and sharding.tokens", "'data'"]),
    ],
)
def test_a_rule_that_fits_nothing_is_one_sentence(changes, words):
    with pytest.raises(UserError) as raised:
        sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2}, rules=rules(**changes))
    assert all(word in str(raised.value) for word in words)


@pytest.mark.parametrize("name", ["deit_tiny_distilled_depth1", "deit3_tiny_depth1", "swin_pico"])
@pytest.mark.parametrize("form", ["dense", "reparam"])
def test_every_pair_of_axes_that_meets_in_an_array_is_checked(name, form):
    layers = models.spec(name, num_classes=10, image_size=32).layers
    plan = {info.path: small.LayerPlan(form, 8 * (form != "dense")) for info in layers}
    boxed = jax.eval_shape(
        models.create(name, num_classes=10, image_size=32, plan=plan).init,
        jax.random.key(0),
        jnp.ones((1, 32, 32, 3)),
    )
    known = {frozenset(pair) for pair in sharding.TOGETHER}
    found = set()
    for spec in jax.tree.leaves(nn.get_partition_spec(boxed), is_leaf=lambda leaf: isinstance(leaf, tuple)):
        names = [axis for axis in spec if axis]
        assert set(names) <= set(sharding.RULES)
        if len(names) > 1:
            found.add(frozenset(names))
    assert found and found <= known


def test_rules_place_the_parameters():
    changed = rules(
        heads=(), mlp=(), rank=("tensor",), inner_rank=("tensor",), embed=("data", "fsdp"), batch=("tensor",)
    )
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2}, rules=changed)
    placed = sharding.abstract_params(small.model(small.plan("reparam")), 8, mesh)
    qkv = placed["blocks_0"]["attn"]["qkv"]
    assert tuple(qkv["u"].sharding.spec) == (("data", "fsdp"), "tensor")
    assert tuple(qkv["v"].sharding.spec) == ("tensor", None)
    assert sharding.bytes_per_device(qkv["u"]) == 4 * qkv["u"].size // 8
    assert mesh.spread("batch") == 2


def batch(rng, mixed):
    """Sixteen images, labels crowded in one half; most of the other has none."""
    label = np.where(np.arange(16) % 4 < 2, rng.integers(0, 10, 16), -1).astype(np.int32)
    label[1] = -1
    rows = {"image": small.images(rng, 16), "label": label}
    if mixed:
        rows |= {"other_label": label[::-1].copy(), "share": np.full(16, 0.3, np.float32)}
    return rows


def steps(mesh, micro_batches, rng_seed=0, mixed=False, count=2, **options):
    """Losses, gradient norms and parameters after `count` steps of distillation."""
    rng = np.random.default_rng(rng_seed)
    plan = small.plan("reparam")
    student, teacher = small.model(plan), small.model()
    with sharding.use(mesh):
        abstract = sharding.abstract_params(student, 8, mesh)
        params = sharding.put(small.params(plan, rng), abstract)
        frozen = sharding.put(small.params(small.plan(), rng), sharding.abstract_params(teacher, 8, mesh))
        tx = optax.sgd(1e-3, momentum=0.9)
        state_of = train.abstract_state(abstract, tx, mesh)
        smoothing = options.pop("label_smoothing", 0.0)
        loss_fn = losses.distillation(student, teacher, Distillation(**options), smoothing)
        shared = losses.shared(teacher, Distillation(**options))
        step = train.make_step(loss_fn, tx, state_of, mesh, micro_batches, shared)
        state, curve = train.init_state(params, tx, state_of), []
        placed = sharding.put_batch(batch(rng, mixed), mesh)
        for _ in range(count):
            state, metrics = step(state, frozen, placed)
            curve.append({name: float(value) for name, value in metrics.items()})
    return curve, jax.device_get(state["params"])


@pytest.mark.parametrize(
    ("mesh", "mixed", "options"),
    [
        (small.MESH, False, {"gamma": 0.5, "normalized": True}),
        pytest.param(CUBE, False, {"gamma": 0.5, "normalized": True}, marks=pytest.mark.slow),
        pytest.param(CUBE, True, {"delta": 0.5, "label_smoothing": 0.1}, marks=pytest.mark.slow),
    ],
    ids=["labels", "labels-8-devices", "mixed-8-devices"],
)
def test_micro_batches_give_the_step_of_the_whole_batch(mesh, mixed, options):
    """Four micro-batches, on eight devices of an image each; some have no label at all."""
    want, wanted = steps(small.MESH, 1, mixed=mixed, **options)
    got, found = steps(mesh, 4, mixed=mixed, **options)
    for one, other in zip(got, want, strict=True):
        assert one == pytest.approx(other, rel=2e-4)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_micro_batches_are_the_devices_own_rows():
    rows = {"x": jax.device_put(np.arange(16), sharding.over_batch(EIGHT))}
    with sharding.use(EIGHT):
        cut = jax.jit(lambda rows: sharding.micro_batches(rows, 2, EIGHT))
        text = cut.lower(rows).compile().as_text()
        np.testing.assert_array_equal(cut(rows)["x"], np.arange(16).reshape(8, 2).T)
    assert not re.search("all-to-all|all-gather|collective-permute", text)


def test_a_batch_must_divide_into_micro_batches():
    with pytest.raises(UserError, match=r"batch_size is 24.*8 devices times 2 micro-batches; 32 would do"):
        sharding.check_batch(EIGHT, 24, micro_batches=2)


@pytest.mark.parametrize("name", ["vit_pico_depth4", pytest.param("swin_pico", marks=pytest.mark.slow)])
def test_rematerialized_blocks_give_the_same_and_keep_less(name):
    """Kept: what differentiation holds on to. XLA on a CPU undoes it (docs/scaling.md): its memory says nothing."""
    rng = np.random.default_rng(0)
    images = rng.standard_normal((4, 32, 32, 3)).astype(np.float32)
    plain = models.create(name, num_classes=10, image_size=32)
    one = estimate.Training(name, training.Objective(plain), Recipe(1e-3, steps=1), 32, False)
    again: Any = training.rematerialized(one.objective, "block").model
    params = jax.jit(lambda: nn.meta.unbox(plain.init(jax.random.key(0), images[:1])["params"]))()
    other = jax.eval_shape(lambda: nn.meta.unbox(again.init(jax.random.key(0), images[:1])["params"]))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, other)
    rows = {"image": images, "label": np.arange(4)}
    (loss, slope), (loss_again, slope_again) = (
        jax.jit(jax.value_and_grad(lambda params, model=model: losses.supervised(model)(params, None, rows)[0]))(params)
        for model in (plain, again)
    )
    np.testing.assert_allclose(loss_again, loss, rtol=1e-6)
    for two, want in zip(jax.tree.leaves(slope_again), jax.tree.leaves(slope), strict=True):
        np.testing.assert_allclose(two, want, atol=1e-5 * max(1e-3, np.abs(want).max()))
    assert estimate.kept_per_image(one, "block") < 0.35 * estimate.kept_per_image(one, "none")


@pytest.mark.slow
def test_a_rematerialized_model_shows_its_insides(rng):
    plain = small.model(small.plan("reparam"))
    again = plain.clone(options=dataclasses.replace(plain.options, remat="block"))
    params, images = small.params(small.plan("reparam"), rng), small.images(rng, 8)
    rows = {"image": images, "label": np.zeros(8, np.int32), "mask": np.ones(8, bool)}
    want, got = (
        statistics.moments(model, params, small.LAYERS, [rows], small.MESH, gradients=True) for model in (plain, again)
    )
    for path, one in want.items():
        np.testing.assert_allclose(got[path].second, one.second, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(got[path].gradient, one.gradient, rtol=1e-3, atol=1e-5)
    maps = [outputs(model, params, images, True).attention for model in (plain, again)]
    assert jax.tree.structure(maps[0]) == jax.tree.structure(maps[1])


def equations(jaxpr):
    """Every equation, inner functions too."""
    for one in jaxpr.eqns:
        yield one
        for value in one.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                    yield from equations(getattr(inner, "jaxpr", inner))


def test_bfloat16_products_float32_masters():
    plan = small.plan("reparam")
    student, teacher = small.model(plan, dtype="bfloat16"), small.model(dtype="bfloat16")
    abstract = sharding.abstract_params(student, 8, small.MESH)
    tx = train.optimizer(Recipe(steps=10, learning_rate=1e-3))
    state = train.abstract_state(abstract, tx, small.MESH)
    floats = [leaf.dtype for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert set(floats) == {jnp.dtype("float32")} and len(floats) == 3 * len(jax.tree.leaves(abstract))
    frozen = sharding.abstract_params(teacher, 8, small.MESH)
    rows = training.abstract_batch(8, 8, small.MESH)
    step = train.make_step(losses.distillation(student, teacher, Distillation(gamma=1.0)), tx, state, small.MESH)
    traced = jax.make_jaxpr(step)(state, frozen, rows)
    seen: dict[str, set] = {}
    for one in equations(traced.jaxpr):
        for value in one.invars[:1]:
            seen.setdefault(one.primitive.name, set()).add(str(value.aval.dtype))
    assert seen["dot_general"] == {"bfloat16"}
    for name in ("reduce_max", "log", "rsqrt", "sqrt"):  # of softmax, loss, LayerNorm, AdamW
        assert seen[name] == {"float32"}, name
    new, _ = jax.eval_shape(step, state, frozen, rows)
    assert jax.tree.map(lambda leaf: leaf.dtype, new) == jax.tree.map(lambda leaf: leaf.dtype, state)


@pytest.mark.parametrize("sizes", [(8, 1, 1), pytest.param((2, 2, 2), marks=pytest.mark.slow)], ids=str)
def test_counts_and_moments_on_eight_devices_are_those_of_one(rng, sizes):
    """360 images in batches of 56 and 57 images in batches of 16: the last batch is ragged, some devices have none."""
    mesh = sharding.make_mesh(dict(zip(sharding.AXES, sizes, strict=True)))
    source, record, model = sources.load("embedded:digits", "eval"), Preprocess(8, crop_pct=1.0), small.model()
    params = small.params(small.plan(), rng)
    placed = sharding.put(params, sharding.abstract_params(model, 8, mesh))
    some = np.arange(57)
    one, many = (
        (
            evaluate.accuracy(model, values, source, record, batch_size=56, mesh=where),
            statistics.moments(
                model, values, small.LAYERS, pipeline.ordered(source, record, batch_size=16, indices=some), where
            ),
        )
        for values, where in ((params, small.MESH), (placed, mesh))
    )
    assert many[0][:3] == one[0][:3]
    for got, want in zip(many[0].answers[:3], one[0].answers[:3], strict=True):
        assert np.array_equal(got, want)
    for path, want in one[1].items():
        for name in ("second", "mean", "magnitude"):
            value = getattr(want, name)
            np.testing.assert_allclose(getattr(many[1][path], name), value, atol=1e-5 * np.abs(value).max())


def configured(**fields):
    config = config_lib.default()
    config.model, config.num_classes, config.preprocess.size = "vit_pico", 10, 32
    config.data.update(train="embedded:digits", eval="embedded:digits")
    config.teacher.steps, config.batch_size, config.eval_batch_size = 5, 64, 64
    config.runs.rb_lra_kd.update(gamma=1.0)  # so that the teacher's head has a part as well
    config.update(fields)
    return config_lib.parse(config.to_dict())


@pytest.mark.parametrize(
    "fields",
    [{"mesh": {"data": 2, "fsdp": 2, "tensor": 2}}, pytest.param({"accumulate": 2}, marks=pytest.mark.slow)],
    ids=["mesh", "accumulate"],
)
def test_the_estimate_is_what_xla_takes(tmp_path, fields):
    config = configured(**fields)
    ws = opening.open_workspace(config, tmp_path / "none", write=False, make_mesh=estimate.mesh_of)
    names = []
    for one in estimate.trainings(ws):
        names.append(one.name)
        found = estimate.of(config, one, ws.mesh)
        with sharding.use(ws.mesh):
            compiled = training.compile_step(one.objective, one.recipe, 32, ws.mesh, config.accumulate, config.remat)
            frozen = sharding.abstract_params(one.objective.teacher, 32, ws.mesh) if one.teacher else None
            rows = training.abstract_batch(64, 32, ws.mesh)
            program = compiled.step.lower(compiled.abstract, frozen, rows).compile()
        memory = program.memory_analysis()
        assert found.params + found.optimizer + found.teacher + found.batch == memory.argument_size_in_bytes
        assert found.temporary == memory.temp_size_in_bytes
        assert 0.5 < found.activations / found.temporary < 2
        if config.accumulate == 1:
            assert found.flops == pytest.approx(program.cost_analysis()["flops"], rel=0.25)
    assert names == ["teacher", "rb_lra_kd"]
    assert not (tmp_path / "none").exists()


def test_the_estimate_of_a_mesh_that_is_elsewhere(tmp_path):
    here, there = configured(), configured(mesh={"data": 4, "fsdp": 16, "tensor": 1})
    mesh = estimate.mesh_of(there)
    ws = opening.open_workspace(there, tmp_path, write=False, make_mesh=lambda _: mesh)
    one = list(estimate.trainings(ws))[1]
    found, alone = estimate.of(there, one, mesh), estimate.of(here, one, small.MESH)
    assert found.temporary == -1
    # 16 divides the features but not all ranks.
    pairs = one.objective.model.options.plan
    assert bool(found.whole) == any(layer.rank % 16 for _, layer in pairs)
    assert found.batch == alone.batch / 64
    assert found.flops == pytest.approx(alone.flops / 64)
    assert alone.params / 16 <= found.params < alone.params / 8 + found.whole
    with pytest.raises(UserError, match="above 0"):
        sharding.abstract_mesh({"data": -1, "fsdp": 16, "tensor": 1})


def test_adam_is_twice_the_parameters():
    abstract = sharding.abstract_params(small.model(), 8, CUBE)
    state = train.abstract_state(abstract, optax.adam(1e-3), CUBE)
    assert sharding.bytes_per_device(state["opt_state"]) == 2 * sharding.bytes_per_device(abstract) + 4
