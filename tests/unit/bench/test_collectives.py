"""Bytes that devices send, read from programs whose communication is known, and what they cost on a machine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lraqvit_jax import config as config_lib
from lraqvit_jax import models
from lraqvit_jax.bench import _collectives, scaling
from lraqvit_jax.bench._collectives import Collective, parse, wire_bytes
from lraqvit_jax.devices import sharding
from lraqvit_jax.options.training import Distillation, Recipe
from lraqvit_jax.training import objective as training
from tests.unit import small

MESH = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
ROWS = ((0, 1), (2, 3), (4, 5), (6, 7))


def found(function, spec, result=None, shape=(16, 32)):
    """Collectives of a function that every device calls on its part."""
    result = spec if result is None else result
    mapped = jax.shard_map(function, mesh=MESH.devices, in_specs=spec, out_specs=result, check_vma=False)
    x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(MESH.devices, spec))
    return parse(jax.jit(mapped).lower(x).compile().as_text(), 8)


@pytest.mark.parametrize(
    ("kind", "function", "result", "size"),
    [
        ("all-reduce", lambda x: jax.lax.psum(x, "tensor"), PartitionSpec(), 16 * 16 * 4),
        ("all-gather", lambda x: jax.lax.all_gather(x, "tensor", tiled=True), PartitionSpec(), 32 * 16 * 4),
        ("reduce-scatter", lambda x: jax.lax.psum_scatter(x, "tensor", tiled=True), None, 8 * 16 * 4),
        ("all-to-all", lambda x: jax.lax.all_to_all(x, "tensor", 0, 1, tiled=True), None, 16 * 16 * 4),
        ("collective-permute", lambda x: jax.lax.ppermute(x, "tensor", [(0, 1), (1, 0)]), None, 16 * 16 * 4),
    ],
)
def test_every_kind_with_its_bytes_and_groups(kind, function, result, size):
    (one,) = found(function, PartitionSpec(None, "tensor"), result)
    assert (one.kind, one.bytes, one.compiled_bytes, one.times) == (kind, size, size, 1)
    if kind != "collective-permute":
        assert one.groups == ROWS


@pytest.mark.parametrize(
    ("axes", "group"),
    [("data", (0, 4)), ("fsdp", (0, 2)), (("data", "fsdp"), (0, 2, 4, 6)), (("data", "tensor"), None)],
)
def test_groups_of_any_axes(axes, group):
    (one,) = found(lambda x: jax.lax.psum(x, axes), PartitionSpec(), PartitionSpec())
    assert one.groups[0] == (group or (0, 1, 4, 5))
    assert sorted(device for row in one.groups for device in row) == list(range(8))


def test_a_loop_counts_every_trip():
    def looped(x):
        return jax.lax.fori_loop(0, 5, lambda _, y: jax.lax.psum(jnp.sin(y), "tensor"), x)

    (one,) = found(looped, PartitionSpec(None, "tensor"))
    assert (one.times, one.bytes) == (5, 16 * 16 * 4)


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}", ((0, 1), (2, 3))),
        ("replica_groups={}", ((0, 1, 2, 3),)),
        ("replica_groups=[2,2]<=[4]", ((0, 1), (2, 3))),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", ((0, 2), (1, 3))),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0'}", ((0, 2), (1, 3))),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2], device_ids=([2,2]T(1,0)) {'axis_0'}", ((0, 1), (2, 3))),
        ("source_target_pairs={{0,1},{1,0}}", ((0, 1), (1, 0))),
    ],
)
def test_every_spelling_of_groups(text, groups):
    assert _collectives._groups(f", {text}, use_global_device_ids=true", 4) == groups


def test_a_ring_sends_what_a_simulated_ring_sends():
    """An all-reduce passes every part round twice, less what stays."""
    for size in (2, 4, 8):
        parts = np.full(size, 10.0)
        sent = parts[0] * (size - 1) * 2
        assert wire_bytes("all-reduce", size, parts.sum()) == pytest.approx(sent)
        assert wire_bytes("all-gather", size, parts.sum()) == pytest.approx(sent / 2)
        assert wire_bytes("reduce-scatter", size, parts[0]) == pytest.approx(sent / 2)
    assert wire_bytes("collective-permute", 8, 7) == 7


def test_links_between_islands_are_shared():
    node = scaling.MACHINES["h100"]
    assert scaling.bandwidth([tuple(range(8))], node) == 450e9
    assert scaling.bandwidth([(0, 8)], node) == 50e9  # one member a node: one link
    assert scaling.bandwidth([tuple(range(16))], node) == 400e9  # eight members share eight
    one = Collective("all-reduce", 1000, 1000, ((0, 8),), times=3)
    assert scaling.seconds([one], node) == pytest.approx(3 * 1000 / 50e9)


@pytest.mark.slow
def test_bytes_and_flops_are_linear_in_the_depth():
    found = []
    for depth in (1, 2, 3):
        name = f"vit_pico_depth{depth}"
        layers = models.spec(name, num_classes=10, image_size=8).layers
        pairs = {
            info.path: small.LayerPlan("reparam", 6) if info.compressible else small.LayerPlan() for info in layers
        }
        student, teacher = (models.create(name, num_classes=10, image_size=8, plan=one) for one in (pairs, None))
        objective = training.Objective(student, teacher, Distillation())
        with sharding.use(MESH):
            step = training.compile_step(objective, Recipe(1e-5, steps=10), 8, MESH)
            frozen = sharding.abstract_params(teacher, 8, MESH)
            program = step.step.lower(step.abstract, frozen, training.abstract_batch(16, 8, MESH)).compile()
        answer = {"flops": program.cost_analysis()["flops"], "argument_bytes": 0, "temporary_bytes": 0}
        text = program.as_text()
        answer["collectives"] = [one.__dict__ for one in parse(text, 8)]
        found.append(scaling._summary(answer))
    one, two, three = found
    want = scaling.at_depth(one, two, 3)
    for name in ("wire_bytes", "v5e_seconds", "h100_seconds"):
        assert three[name] > 1.2 * two[name]
        assert want[name] == pytest.approx(three[name], rel=2e-3), name
    assert want["flops"] == pytest.approx(three["flops"], rel=2e-3)


def test_the_config_names_layouts_that_exist():
    assert set(config_lib.default().scaling.layouts) <= set(scaling.LAYOUTS)
