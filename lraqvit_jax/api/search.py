"""`smallest`: a dense model, some images, and what it may lose; the smallest model that keeps within that."""

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flax import linen as nn

from lraqvit_jax import config as config_lib
from lraqvit_jax.api import compress
from lraqvit_jax.api import model as inference
from lraqvit_jax.base import files
from lraqvit_jax.base.errors import whole_number
from lraqvit_jax.config import SMALLEST
from lraqvit_jax.data.preprocess import Preprocess
from lraqvit_jax.data.sources import memory
from lraqvit_jax.devices import precision
from lraqvit_jax.devices.sharding import Mesh


@precision.usual()
def smallest(
    model: nn.Module,
    params: Mapping[str, Any],
    images: str | Iterable[Any],
    evaluation: str | tuple[Iterable[Any], Sequence[int] | Sequence[str]],
    *,
    preprocess: Preprocess,
    max_drop: float = 1.0,
    workdir: str | os.PathLike,
    steps: int = 0,
    class_names: Sequence[str] = (),
    fields: Mapping[str, Any] | None = None,
    mesh: Mesh | None = None,
) -> Any:
    """Finds the smallest model, in bytes, that loses at most `max_drop` points of top-1.

    Example:
        >>> teacher, params, preprocess = lraqvit_jax.weights.load("timm:vit_tiny_patch16_224.safetensors")
        >>> small = lraqvit_jax.smallest(
        ...     teacher, params, "folder:PHOTOS", "folder:LABELLED", preprocess=preprocess, max_drop=1, workdir="DIR"
        ... )

    Args:
        model: dense, of `weights.load` or `models.create`.
        params: its parameters.
        images: to calibrate on, and to distil with; as of `compress`.
        evaluation: labelled images to judge by: a data source, or (images, labels). Half of them only the final row of
            results.json sees.
        preprocess: of the model's images.
        max_drop: points of top-1.
        workdir: for what is tried, the frontier (search/search.json), results.json and report.html; called again, it
            goes on from there.
        steps: of distillation, to go on below what is found without.
        class_names: in the order of the logits.
        fields: any other field of `lraqvit_jax.config` by its dotted name, such as {"goal.by": "mean", "goal.max_mb":
            4.0}; the run is called "low_rank", the quantizer "smallest".
        mesh: where it is computed; None is all devices.

    Returns:
        The model, on one device; `load(workdir, "smallest")` gives it again.

    Raises:
        UserError: what does not fit, as of `compress`; nothing keeps within the drop.
    """
    preprocess, folder = compress.checked(preprocess), files.locate_new(workdir)
    source, _held = memory.named(images)
    steps = whole_number(steps, "steps", low=0)
    chosen = compress.options(model, preprocess, source, 0.5, {}, steps)
    chosen["data"]["eval"], _labelled = memory.named(*([evaluation] if isinstance(evaluation, str) else evaluation))
    chosen["plan"] |= {"unit": "bytes", "widths": config_lib.SMALLEST_WIDTHS}
    chosen["quant"]["methods"] = {SMALLEST: dataclasses.asdict(config_lib.SMALLEST_QUANTIZER)}
    chosen["goal"]["max_drop"] = max_drop
    chosen["export"]["artifacts"] = (SMALLEST,)
    compress.set_fields(chosen, fields or {})
    config = config_lib.parse(chosen)
    stages = (*compress.STAGES, "evaluate", "report")
    compress.run(config, folder, params, mesh, class_names, stages)
    return inference.load(folder, SMALLEST)
