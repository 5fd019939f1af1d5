"""The configuration: a config file's fields become records once, here, at the door."""

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from lraqvit_jax.base.errors import UserError, nearest
from lraqvit_jax.options import records
from lraqvit_jax.options.bench import LatencyOptions, LowRankGrid, PeerOptions, QuantGrid, ScalingOptions
from lraqvit_jax.options.data import DataOptions, PreprocessOptions
from lraqvit_jax.options.devices import MeshSizes, ShardingRules
from lraqvit_jax.options.export import ExportOptions, HubOptions
from lraqvit_jax.options.function import PREFIX, FunctionOptions
from lraqvit_jax.options.goal import GoalOptions
from lraqvit_jax.options.plan import FactorizeOptions, PlanOptions
from lraqvit_jax.options.quant import QUANTIZERS, Quantization, Quantizer
from lraqvit_jax.options.records import named, option
from lraqvit_jax.options.training import Mix, Optimizer, Run, Teacher

__all__ = [
    "FREE",
    "QUANTIZERS",
    "STAGES",
    "UNLABELLED",
    "Config",
    "default",
    "function",
    "imagenet",
    "ladder",
    "parse",
    "photographs",
    "quantizer",
    "run",
]

STAGES = ("teacher", "plan", "factorize", "distill", "merge", "quantize", "evaluate", "export", "report", "share")


@dataclasses.dataclass(frozen=True)
class Config:
    """All that a run is told. The defaults suit a pretrained model."""

    model: str = ""  # variant; "" takes that of the weights
    weights: str = ""  # where the teacher comes from, such as timm:FILE; "" trains `model`
    image_size: int = option(0, low=0)  # of pretrained weights: 0 keeps theirs, another resamples the positions
    num_classes: int = option(0, low=0)  # 0 takes it from the weights or data.train; another than theirs: a new head
    class_names: str = ""  # text file, one name a line; "" takes those of the weights or data.train
    seed: int = option(0, low=0)
    dtype: str = option("float32", choices=("float32", "bfloat16"))  # of the float products while training
    batch_size: int = option(128, above=0)
    eval_batch_size: int = option(250, above=0)
    steps: int = option(1000, low=0)  # of distillation
    epochs: float = option(0.0, low=0)  # where above 0, replaces steps
    log_every: int = option(50, above=0)
    tensorboard: bool = False  # writes event files too, DIR/tensorboard/RUN; needs pip install tensorboardX
    profile: str = ""  # a folder: JAX's profiler writes a trace of a few steps of each training there
    checkpoint_every: int = option(500, low=0)  # 0 keeps only the end of each run
    cache_dir: str = ""  # for what is slow to compute; "" is ~/.cache/lraqvit_jax, "none" keeps nothing
    mesh: MeshSizes = MeshSizes()
    sharding: ShardingRules = ShardingRules()
    accumulate: int = option(1, above=0)  # micro-batches of a step; the gradient is that of the whole batch
    remat: str = option("none", choices=("none", "block"))  # block computes each block again in the backward pass
    data: DataOptions = DataOptions()
    preprocess: PreprocessOptions = PreprocessOptions()
    augment: str = ""  # such as "random_resized_crop(0.4, 1)|flip_lr"; see data/augment.py
    mix: Mix = Mix()
    teacher: Teacher = Teacher()
    plan: PlanOptions = PlanOptions()
    factorize: FactorizeOptions = FactorizeOptions()
    goal: GoalOptions = GoalOptions()
    optimizer: Optimizer = Optimizer()
    runs: dict[str, Run] = named(Run, {"rb_lra_kd": Run()})
    quant: Quantization = Quantization()
    grid: LowRankGrid = LowRankGrid()
    quant_grid: QuantGrid = QuantGrid()
    latency: LatencyOptions = LatencyOptions()
    peers: PeerOptions = PeerOptions()
    scaling: ScalingOptions = ScalingOptions()
    export: ExportOptions = ExportOptions()
    hub: HubOptions = HubOptions()

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it: what config.json and every artefact carry."""
        return json.loads(json.dumps(records.to_dict(self)))


FREE = (
    *("grid", "quant_grid", "latency", "peers", "scaling", "export", "hub", "data.on_bad_image", "class_names"),
    *("mesh", "sharding", "accumulate", "remat", "log_every", "checkpoint_every", "eval_batch_size", "cache_dir"),
    *("profile", "tensorboard"),
)
"""Fields that may change between two calls in one work directory: they do not change what is computed, or, as `export`
and `class_names`, what depends on them is made again."""


def default() -> ConfigDict:
    """All fields with their defaults. A config file starts here and changes what it needs."""
    return ConfigDict(records.to_dict(Config()))


def function() -> ConfigDict:
    """The fields of a function that is not one of our models; see `options.function`."""
    return ConfigDict(records.to_dict(FunctionOptions()))


def run(**fields: Any) -> ConfigDict:
    """One row of the ladder: a low-rank start and how it is trained; fields of `options.training.Run`."""
    return ConfigDict({**records.to_dict(Run()), **fields})


def quantizer(**fields: Any) -> ConfigDict:
    """One quantized model; fields of `options.quant.Quantizer`."""
    return ConfigDict({**records.to_dict(Quantizer()), **fields})


UNLABELLED = {"alpha": 0.0, "beta": 10.0, "normalized": True, "gamma": 1.0}
"""Fields of a run that is distilled without labels: by blocks, relative to the teacher's outputs, and logits."""


def photographs() -> ConfigDict:
    """A pretrained model on a folder of images; labels are for evaluation alone."""
    config = default()
    config.data.train = config.data.eval = "folder:images"
    config.augment = "random_resized_crop(0.4, 1)|flip_lr"
    config.batch_size = 24
    config.eval_batch_size = 50
    config.log_every = 10
    return config


def ladder(learning_rate: float, **distillation: Any) -> ConfigDict:
    """The paper's ladder (low rank, with branch, with distillation), what tells its parts apart, and two rivals.

    Args:
        learning_rate: of every row but `lra_kd_lr`, one pair at twice the rate: what a branch that starts at zero does
            to a step of Adam. (There is no weight decay; where there is, it is to be halved.)
        distillation: fields of the rows that end in _kd; the others train on labels alone.
    """
    labels, kd = {"beta": 0.0, "learning_rate": learning_rate}, {"learning_rate": learning_rate, **distillation}
    return ConfigDict(
        {
            "lra_labels": run(branch="none", **labels),
            "rb_lra": run(branch="wr", **labels),
            "lra_kd": run(branch="none", **kd),
            "lra_kd_lr": run(branch="none", **kd | {"learning_rate": 2 * learning_rate}),
            "rb_wr_kd": run(branch="wr", **kd),
            "rb_zero_kd": run(branch="zero", **kd),
            "whitened_kd": run(decomposition="whitened", branch="none", **kd),
            "kfac_kd": run(decomposition="kfac", branch="none", **kd),
            "rb_lra_kd": run(decomposition="kfac", branch="zero", **kd),
            "pela": run(branch="none", alpha=1.0, beta=1.0, bound=1.0, learning_rate=learning_rate),
            "aafm_gfm": run(
                decomposition="aafm", branch="none", alpha=0.0, last_block=True, learning_rate=learning_rate
            ),
        }
    )


def imagenet(model: str, weights: str) -> ConfigDict:
    """The paper's recipe: AdamW 1e-5 with cosine annealing, ImageNet-1k, timm's augmentation.

    What the paper leaves open is our choice: batch 256, 10 epochs, DeiT's augmentation as timm has it.
    """
    config = default()
    config.model, config.weights, config.num_classes = model, weights, 1000
    config.data.train = config.data.calibration = "tfds:imagenet2012@train"
    config.data.eval = "tfds:imagenet2012@validation"
    config.augment = "random_resized_crop(0.08, 1)|flip_lr|rand_augment(2, 9, 0.5)|random_erasing(0.25)"
    config.mix.update(mixup=0.8, cutmix=1.0)
    config.batch_size, config.eval_batch_size, config.dtype = 256, 512, "bfloat16"
    config.epochs, config.checkpoint_every = 10.0, 2000
    config.runs = {
        "rb_lra_wr": run(branch="wr", beta=0.0),
        "rb_lra_wr_kd": run(branch="wr"),
        "rb_lra_kd": run(decomposition="whitened", branch="zero"),
    }
    return config


def parse_function(fields: Mapping[str, Any]) -> FunctionOptions | None:
    """The options of a function; None where the fields are those of our own models.

    Raises:
        UserError: as of `parse`; a model that is no function among fields of one, or the other way round.
    """
    named = str(fields.get("model", "")).startswith(PREFIX)
    if not {*fields} <= {field.name for field in dataclasses.fields(FunctionOptions)}:
        if named:
            raise UserError(f"model is {fields['model']!r}, a function; take configs/any.py, which has its fields.")
        return None
    options = records.parse(FunctionOptions, fields)
    if not named:
        raise UserError(f"model is {options.model!r}; write --config.model={PREFIX}package.module:function.")
    if options.quantizer not in QUANTIZERS:
        raise UserError(f"quantizer is {options.quantizer!r}; {nearest(options.quantizer, QUANTIZERS)}")
    return options


def parse(fields: Mapping[str, Any]) -> Config:
    """The configuration as records.

    Args:
        fields: all of them, nested, as a config file gives them; lists stand for tuples.

    Raises:
        UserError: a field that does not exist, a value of another type or out of range, or two that do not go together.
    """
    config = records.parse(Config, fields)
    if config.quant.methods and config.quant.source not in config.runs:
        hint = nearest(config.quant.source, config.runs)
        raise UserError(f"quant.source is {config.quant.source!r}, which is not a run; {hint}")
    if config.plan.unit == "latency" and not config.plan.latency:
        raise UserError("plan.unit is latency; set plan.latency to the latency.json that bench layers wrote.")
    joint = (config.plan.method, config.plan.unit) == ("products", "bytes") and bool(config.quant.methods)
    if config.plan.widths and not joint:
        raise UserError("plan.widths wants plan.method=products, plan.unit=bytes and a quantizer in quant.methods.")
    if config.plan.groups and not config.plan.widths:
        raise UserError("plan.groups wants plan.widths: the kernels whose bits are chosen are those that have groups.")
    _check_goal(config)
    config.data.source("train")
    check_names(config)
    # A ConfigDict sorts its keys; the run that is quantized is the top of the ladder and comes last.
    runs = dict(sorted(config.runs.items(), key=lambda item: item[0] == config.quant.source))
    return dataclasses.replace(config, runs=runs)


SMALLEST = "smallest"
"""The name of the row that a goal asks for."""
SMALLEST_QUANTIZER = dataclasses.replace(QUANTIZERS["gptq"], asymmetric=True)
"""Of that row: a zero point of each token costs no bytes."""
SMALLEST_WIDTHS = (8, 6, 5, 4, 3)
"""Bits of which its kernels are chosen."""


def _check_goal(config: Config) -> None:
    """Raises UserError for a goal that the rest of the configuration does not search."""
    goal = config.goal
    if not goal.is_set:
        return
    if config.plan.method != "products":
        raise UserError(
            f"goal wants plan.method=products, and it is {config.plan.method!r}; start from configs/smallest.py."
        )
    if SMALLEST not in (config.quant.methods or config.runs):
        raise UserError(f"goal makes the row {SMALLEST!r}; give a quantizer that name, or a run where there is none.")
    if len(config.runs) != 1 or len(config.quant.methods) > 1:
        raise UserError("goal searches for one model; leave one entry in runs, and one at most in quant.methods.")
    if goal.max_ms and not config.plan.latency:
        raise UserError("goal.max_ms wants plan.latency: the latency.json that bench layers wrote on the device.")
    if goal.lowest > 1 or any(budget > 1 for budget in goal.budgets):
        raise UserError("goal.lowest and goal.budgets are shares; give numbers up to 1.")


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+=-]*")
STEPS = (".start", ".trained", ".training")
"""How the names of what a run makes on its way end."""


def rows(config: Config) -> list[str]:
    """The names of all finished models that this configuration makes, in the order of the table."""
    return ["dense", *config.factorize.rows, *config.runs, *_dense_integers(config), *config.quant.methods]


DENSE_INTEGERS = "dense_int8"
"""The name of the row of `quant.dense`."""


def _dense_integers(config: Config) -> list[str]:
    return [DENSE_INTEGERS] if config.quant.dense and config.quant.methods else []


def check_names(config: Config) -> None:
    """Raises UserError where two models would have one name, or a name is none for a folder.

    Runs, baselines, quantized models and the teacher share one namespace: that of WORKDIR/checkpoints, of the rows of
    results.json and of the exported files. File systems may not tell capitals from small letters.
    """
    taken: dict[str, str] = {}
    for place, name in _named(config):
        if not NAME.fullmatch(name) or name.endswith(STEPS):
            raise UserError(
                f"{place} has the name {name!r}, which cannot name an artefact; use letters, digits and _ . + = -, "
                f"begin with a letter or digit, and do not end with {', '.join(STEPS)}."
            )
        if other_place := taken.get(name.lower()):
            raise UserError(
                f"{place} and {other_place} would both make the artefact {name!r}; give one of them another name."
            )
        taken[name.lower()] = place


def _named(config: Config) -> Iterator[tuple[str, str]]:
    """Every field that makes an artefact, and its name."""
    yield "the teacher", "dense"
    yield from ((f"factorize.baselines {name!r}", row) for row, name in config.factorize.rows.items())
    yield from ((f"runs.{name}", name) for name in config.runs)
    yield from (("quant.dense", name) for name in _dense_integers(config))
    yield from ((f"quant.methods.{name}", name) for name in config.quant.methods)


def leaves(tree: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Every field that holds a value, by its dotted name."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= leaves(value, f"{where}{name}.") if isinstance(value, Mapping) else {f"{where}{name}": value}
    return flat


NAMED: dict[str, type] = {"runs.": Run, "quant.methods.": Quantizer, "quant_grid.methods.": Quantizer}
"""Where the names are the user's, and the record that each stands for."""


def filled(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of config.json by their dotted names, with defaults for those that an older version did not have."""
    defaults = {name: value for name, value in leaves(Config().to_dict()).items() if not name.startswith((*NAMED,))}
    for start, kind in NAMED.items():
        for name in {path.removeprefix(start).split(".")[0] for path in fields if path.startswith(start)}:
            defaults |= {f"{start}{name}.{field}": value for field, value in records.to_dict(kind()).items()}
    return {**json.loads(json.dumps(defaults)), **fields}


def restored(fields: Any, path: str) -> Config:
    """The configuration that a file of this or an older version carries: fields that it lacks have their defaults, and
    what it has besides is passed over.

    Args:
        fields: nested, as JSON has them.
        path: of the file, for the sentence.

    Raises:
        UserError: a field is of another type, or out of its bounds.
    """
    try:
        return records.parse(Config, records.completed(Config, fields))
    except UserError as error:
        raise UserError(f"{path} holds no configuration ({error}); put it back, or name another.") from error
