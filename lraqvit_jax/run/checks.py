"""What can be known to be wrong before any work: names that match nothing, data that are not there or too few, batches
that no memory holds."""

import os
from collections.abc import Collection, Sequence

from lraqvit_jax.base import files
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.config import Config
from lraqvit_jax.data import augment, matching, sources
from lraqvit_jax.data.matching import Classes
from lraqvit_jax.data.sources import Source
from lraqvit_jax.lowrank import decomposition, reparam
from lraqvit_jax.plan import ranks
from lraqvit_jax.quant import quantize
from lraqvit_jax.run import metrics
from lraqvit_jax.run.workspace import labels_count
from lraqvit_jax.weights import hub


def modules(config: Config) -> None:
    """Raises UserError for a name in the configuration that matches nothing, before hours of training find out."""
    augment.parse(config.augment)
    if config.profile:
        files.locate_new(config.profile)
    if config.tensorboard:
        metrics.tensorboard()
    if config.hub.push:
        hub.checked(config.hub.push, revision=False)
    for name in config.factorize.baselines:
        decomposition(name)
    for run in config.runs.values():
        decomposition(run.decomposition)
        reparam.form(run.branch)
    for quantizer in config.quant.methods.values():
        quantize.check(quantizer)


def inputs(config: Config, classes: Classes, roles: Sequence[str], fetch: bool = True) -> dict[str, Source]:
    """Opens the data of the roles.

    Args:
        config: names them.
        classes: of the model, to which labels are to lead where they count.
        roles: of `sources.ROLES`.
        fetch: False leaves out what is not files of this machine.

    Raises:
        UserError: data that are missing, or whose labels do not fit.
    """
    opened = {}
    for role in roles:
        name = config.data.source(role)
        if fetch or sources.local(name):
            opened[role] = sources.load(name, role, config.data.data_dir)
            if labels_count(config, role):
                matching.matched(opened[role], classes, f"data.{role}")
    return opened


def counts(config: Config, images: int, stages: Collection[str]) -> None:
    """Raises UserError where one of the stages draws more calibration images than there are."""
    names = {*config.factorize.baselines, *(run.decomposition for run in config.runs.values())}
    measured = config.plan.method in ranks.MEASURED
    quantizes = config.quant.methods and "quantize" in stages
    asked = {"quant": config.quant.calibration_images} if quantizes else {}
    draws = measured or any(decomposition(name).STATISTICS != "none" for name in names)
    if draws and {"plan", "factorize"} & set(stages):
        asked["factorize"] = config.factorize.calibration_images
    for part, count in asked.items():
        if count > images:
            role = "calibration" if config.data.calibration else "train"
            raise UserError(
                f"{part}.calibration_images is {count:,} and data.{role} has {images:,} images to draw from; set it to "
                f"{images:,} at most, or name more images."
            )


def memory(config: Config, image_size: int, processes: int) -> None:
    """Raises UserError for a batch whose images alone, in float32, are more than this machine's memory."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    image = 4 * 3 * image_size**2
    for name in ("batch_size", "eval_batch_size"):
        rows = getattr(config, name)
        if rows // processes * image > there:
            raise UserError(
                f"{name} is {rows:,}: its images alone take {rows * image / 1e9:,.1f} GB, and this machine has "
                f"{there / 1e9:,.1f} GB; set it to much less than {there * processes // image:,}."
            )
