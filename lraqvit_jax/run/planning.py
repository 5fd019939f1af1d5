"""The plan of a work directory: plan.json as it was left, or a new one from the configuration."""

import dataclasses
import pathlib

from lraqvit_jax import models
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.config import Config
from lraqvit_jax.plan import check, files, ranks
from lraqvit_jax.plan import records as plan_lib
from lraqvit_jax.plan.files import read_plan
from lraqvit_jax.run import claim
from lraqvit_jax.weights import artifacts


def current(
    config: Config, spec: models.ModelSpec, directory: pathlib.Path, measured_later: bool
) -> dict[str, plan_lib.LayerPlan]:
    """plan.json as the user or the stage `plan` left it, or a new one from the configuration.

    Args:
        config: gives how ranks are chosen, and what is quantized.
        spec: of the model.
        directory: of work.
        measured_later: whether the stage `plan` has yet to choose the ranks.

    Raises:
        UserError: plan.json is no plan of this model, or was changed after it was used.
    """
    written = directory / "plan.json"
    if written.exists() and not measured_later and (claim.started(directory) or claim.edited(directory)):
        plan = read_plan(written)
    else:
        plan = quantized(config, spec, ranks.make_plan(spec.layers, config.plan))
    check.check(plan, spec.layers)
    if any(layer.form == "reparam" for layer in plan.values()):
        raise UserError("plan.json has a layer of form 'reparam', which is only a training form; write 'low_rank'.")
    factorized = directory / "checkpoints"
    for path in sorted(factorized.glob("*.start")):
        made = files.from_json(artifacts.read_meta(path)["plan"])
        if plan_lib.low_rank(made) != plan_lib.low_rank(plan):
            raise UserError(
                f"{written} was changed after the stage factorize used it; put it back, or start a new work directory."
            )
    return plan


def provisional(config: Config, directory: pathlib.Path) -> bool:
    """Whether ranks are still to be measured: neither the stage `plan` nor the user has written them."""
    if config.plan.method not in ranks.MEASURED or claim.edited(directory):
        return False
    return claim.claimed(directory).get("provisional", True)


def quantized(config: Config, spec: models.ModelSpec, plan: plan_lib.Plan) -> dict[str, plan_lib.LayerPlan]:
    """A float plan with what `quant` says of each layer."""
    if not config.quant.methods:
        return dict(plan)
    infos = plan_lib.resolved(spec.layers, plan)
    return {info.path: quantized_layer(config, info, plan[info.path]) for info in infos}


def quantized_layer(config: Config, info: plan_lib.LinearInfo, layer: plan_lib.LayerPlan) -> plan_lib.LayerPlan:
    """A layer of a float plan with what `quant` says of it."""
    quant = config.quant
    if not quant.methods or not (info.compressible or quant.embedding_and_head):
        return layer
    return dataclasses.replace(layer, form="quantized", bits=8, granularity=quant.granularity, clip=quant.clip)
