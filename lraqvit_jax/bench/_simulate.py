"""Compiles one distillation step for devices that are not there, and says what it computes and sends.

A process of its own, because XLA learns how many devices to simulate when it starts: `python -m
lraqvit_jax.bench._simulate` reads a question as JSON and answers in JSON. Nothing runs and nothing is allocated.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

FLAGS = (
    "--xla_backend_optimization_level=0",  # LLVM's work, which nobody will run
    "--xla_allow_excess_precision=false",  # keeps the roundings to bfloat16, which tell the true width of an array
    "--xla_disable_hlo_passes=all-reduce-promotion",
)


def ask(question: Mapping[str, Any]) -> dict[str, Any]:
    """Starts the process.

    Args:
        question: model, batch (global), image_size, mesh, sharding, plan, dtype, run, remat, accumulate.

    Returns:
        flops of one device, bytes (parameters and optimizer, temporary), collectives, as `_collectives` finds them.
    """
    devices = question["mesh"]["data"] * question["mesh"]["fsdp"] * question["mesh"]["tensor"]
    flags = " ".join((f"--xla_force_host_platform_device_count={devices}", *FLAGS))
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-m", "lraqvit_jax.bench._simulate"],
        input=json.dumps(question),
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def _answer(question: Mapping[str, Any]) -> dict[str, Any]:
    import dataclasses

    from lraqvit_jax import models
    from lraqvit_jax.bench import _collectives
    from lraqvit_jax.devices import sharding
    from lraqvit_jax.lowrank import reparam
    from lraqvit_jax.options.plan import PlanOptions
    from lraqvit_jax.options.records import parse
    from lraqvit_jax.options.training import Recipe, Run
    from lraqvit_jax.plan import ranks
    from lraqvit_jax.plan import records as plan_lib
    from lraqvit_jax.training import objective as objectives

    mesh = sharding.make_mesh(question["mesh"], rules=question["sharding"])
    shape = {"num_classes": 1000, "image_size": question["image_size"]}
    layers, run = models.spec(question["model"], **shape).layers, parse(Run, question["run"])
    pairs = plan_lib.low_rank(ranks.make_plan(layers, parse(PlanOptions, question["plan"])), reparam.form(run.branch))
    student = models.create(question["model"], plan=pairs, dtype=question["dtype"], **shape)
    teacher = models.create(question["model"], dtype=question["dtype"], **shape)
    objective = objectives.of_run(run, student, teacher)
    recipe = Recipe(steps=1000, learning_rate=1e-5)
    with sharding.use(mesh):
        compiled = objectives.compile_step(
            objective, recipe, question["image_size"], mesh, question["accumulate"], question["remat"]
        )
        frozen = sharding.abstract_params(teacher, question["image_size"], mesh)
        batch = objectives.abstract_batch(question["batch"], question["image_size"], mesh)
        program = compiled.step.lower(compiled.abstract, frozen, batch).compile()
    collectives = _collectives.parse(program.as_text(), mesh.size(sharding.AXES))
    memory = program.memory_analysis()
    return {
        "flops": program.cost_analysis()["flops"],
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
        "collectives": [dataclasses.asdict(collective) for collective in collectives],
    }


if __name__ == "__main__":
    print(json.dumps(_answer(json.load(sys.stdin))))
