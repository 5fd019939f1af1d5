"""The configuration: every field with its default, and the check of what a user gives."""

import json
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from lraqvit_jax.base.errors import UserError, nearest

STAGES = ("teacher", "plan", "factorize", "distill", "merge", "quantize", "evaluate", "export", "report")
TARGETS = ("avx2", "vnni", "arm")
"""Processors whose integer kernels an ONNX file suits; see `export.onnx`."""
UNITS = ("params", "macs", "bytes", "latency")

SHARDING = {
    "batch": ("data", "fsdp"),
    "tokens": (),
    "patch": (),
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "rank": (),  # of a factor that meets "embed"
    "inner_rank": ("fsdp",),  # of one that does not: without it the wide half of every pair is whole everywhere
    "classes": (),
}
"""Logical axes of arrays, and the axes of the mesh over which each is spread; `sharding.check_rules` says what fits."""
RECIPE = {"learning_rate": 1e-5, "warmup": 0, "weight_decay": 0.0, "grad_clip": 0.0, "beta2": 0.999}
RUN = {
    "decomposition": "svd",  # a module of lraqvit_jax.lowrank with `decompose`: svd, asvd, whitened, aafm, rrr, kfac
    "branch": "wr",  # wr | zero | random | small_random; none trains one pair
    "train_base": True,  # False freezes u and v and trains the branch alone
    "alpha": 1.0,  # weight of the cross-entropy
    "beta": 1.0,  # weight of the block distillation
    "teacher_forced": False,
    "normalized": False,  # True divides each block's error by the mean square of the teacher's output
    "last_block": False,  # True compares the outputs of the last block alone
    "gamma": 0.0,  # weight of KL(teacher || student) of the logits
    "temperature": 1.0,  # of that divergence
    "delta": 0.0,  # weight of KL(teacher || student) of the attention maps
    "bound": 0.0,  # weight of PELA's penalty, mean over pairs of (max |u v - W|)²
    "image_size": 0,  # of training; 0 is the model's. Smaller is faster: positions are resampled for it, not trained
    "steps": 0,  # 0 takes the config's `steps`
    "learning_rate": 0.0,  # 0 takes optimizer.learning_rate
    "weight_decay": -1.0,  # below 0 takes optimizer.weight_decay
}
METHOD = {
    "method": "naive",  # a module of lraqvit_jax.quant with `smooth`
    "granularity": "",  # per_tensor | per_token | per_token_dynamic; "" takes the plan's
    "bits": 0,  # of the activations, 8 | 7 | 6 | 4; 0 takes the plan's
    "weight_bits": 0,  # of the kernels; 0 is those of the activations. 7 is what AVX2 multiplies fastest, in a byte
    "group": 0,  # input channels that share a scale of the kernel; 0 is all
    "asymmetric": False,  # True gives the activations a zero point
    "calibration": "minmax",  # of the activations: minmax | percentile | mse
    "rounding": "nearest",  # of the kernels: nearest | gptq | ridge
    "between": "none",  # put between the factors of a pair: none | hadamard | spectrum | learned
    "attention": "",  # products of attention: float | uniform | log_sqrt2; "" takes the plan's
    "budget_mb": 0.0,  # of the model; above 0, chooses the bits of each kernel: the narrowest where it is felt least
    "penalty": "printed",  # WADS: printed | weight_error | none
    "select": "below_mean",  # WADS: below_mean (Eq. 13) | all
    "iterations": 300,  # WADS
    "learning_rate": 0.01,  # WADS
    "strength": 0.5,  # SmoothQuant
    "tuning_steps": 0,  # of fine-tuning the quantized model with the teacher
    "tuning_rate": 1e-5,  # of kernels, biases and norms; 0 leaves them
    "scale_rate": 1e-3,  # of scales and clipping, as a share of themselves
    "alpha": 0.0,  # fine-tuning: weight of the cross-entropy
    "beta": 1.0,  # fine-tuning: weight of the block distillation, relative errors
    "gamma": 0.0,  # fine-tuning: weight of KL(teacher || student) of the logits
}


def run(**fields: Any) -> ConfigDict:
    """One row of the ladder: a low-rank start and how it is trained."""
    return ConfigDict({**RUN, **fields})


def ladder(learning_rate: float, **distillation: Any) -> ConfigDict:
    """The paper's ladder, LRA, RB-LRA and RB-LRA+KD, what tells its parts from each other, and two rivals' recipes.

    Args:
        learning_rate: of every row but `lra_kd_lr`, one pair at twice the rate: what a branch that starts at zero does
            to a step of Adam. (There is no weight decay; where there is, it is to be halved.)
        distillation: fields of the rows that end in _kd; the others train on labels alone.
    """
    labels, kd = {"beta": 0.0, "learning_rate": learning_rate}, {"learning_rate": learning_rate, **distillation}
    return ConfigDict(
        {
            "lra": run(branch="none", **labels),
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


QUANTIZERS = {
    "naive": {**METHOD, "granularity": "per_tensor"},
    "smoothquant": {**METHOD, "method": "smoothquant", "granularity": "per_tensor"},
    "repq": {
        **METHOD,
        "method": "repq",
        "granularity": "per_tensor",
        "asymmetric": True,
        "calibration": "percentile",
    },
    "qads": {**METHOD, "method": "qads", "granularity": "per_tensor", "iterations": 1000},
    "per_token": {**METHOD, "granularity": "per_token"},
    "wads": {**METHOD, "method": "wads", "granularity": "per_tensor"},
    "wads_per_token": {**METHOD, "method": "wads", "granularity": "per_token"},
    "wads_per_token_weight_error": {
        **METHOD,
        "method": "wads",
        "granularity": "per_token",
        "penalty": "weight_error",
    },
    "dynamic": {**METHOD, "granularity": "per_token_dynamic"},
    "gptq": {**METHOD, "granularity": "per_token_dynamic", "rounding": "gptq"},
    "ours": {
        **METHOD,
        "granularity": "per_token_dynamic",
        "asymmetric": True,
        "calibration": "mse",
        "rounding": "ridge",
        "between": "spectrum",
    },
}
"""The rows of the paper's Tables 2 and 9, and of their rivals."""


def quantizer(**fields: Any) -> ConfigDict:
    """One int8 row."""
    return ConfigDict({**METHOD, **fields})


def default() -> ConfigDict:
    """All fields, with defaults that suit a pretrained model. A config file starts here and changes what it needs."""
    return ConfigDict(
        {
            "model": "",  # variant; "" takes that of the weights
            "weights": "",  # where the teacher comes from, such as timm:FILE; "" trains `model`
            "image_size": 0,  # of pretrained weights: 0 keeps theirs, another resamples the position embedding
            "num_classes": 0,  # 0 takes it from the weights or data.train; another than the weights' makes a new head
            "class_names": "",  # text file, one name a line; "" takes those of the weights or data.train
            "seed": 0,
            "dtype": "float32",  # of the float products while training: float32 | bfloat16
            "batch_size": 128,
            "eval_batch_size": 250,
            "steps": 1000,  # of distillation
            "epochs": 0.0,  # where above 0, replaces steps
            "log_every": 50,
            "tensorboard": False,  # writes event files too, DIR/tensorboard/RUN; needs pip install tensorboardX
            "checkpoint_every": 500,  # 0 keeps only the end of each run
            "cache_dir": "",  # for what is slow to compute; "" is ~/.cache/lraqvit_jax, "none" keeps nothing
            "mesh": {"data": -1, "fsdp": 1, "tensor": 1},
            "sharding": {**SHARDING},  # axes of the mesh over which each logical axis of an array is spread
            "accumulate": 1,  # micro-batches of a step, one after another; the gradient is that of the whole batch
            "remat": "none",  # none | block: keeps the inputs of blocks alone, and computes each block again backwards
            # Sources; calibration "" is train. crop_pct 0 keeps the weights'; 1 where the images are cropped already.
            # on_bad_image: fail | skip, for files that hold no image that can be read; see docs/data.md.
            "data": {
                **{"train": "", "eval": "", "calibration": "", "data_dir": "", "crop_pct": 0.0},
                "on_bad_image": "fail",
            },
            "preprocess": {  # of a model trained here; pretrained weights bring their own
                "size": 224,
                "crop_pct": 0.9,
                "interpolation": "bicubic",
                "mean": (0.5, 0.5, 0.5),
                "std": (0.5, 0.5, 0.5),
            },
            "augment": "",
            # Beta parameters, 0 for off; where both are on, cutmix has the probability `switch`.
            "mix": {"mixup": 0.0, "cutmix": 0.0, "switch": 0.5},
            "teacher": {"steps": 0, "label_smoothing": 0.0, **RECIPE, "learning_rate": 1e-3},
            "plan": {
                # uniform_rank | uniform_ratio | by_dimension | by_kind; from calibration images: energy | activation |
                # logits | sensitivity. See plan/ranks.py
                "method": "uniform_ratio",
                "budget": 0.5,  # share of what the encoder's dense linear layers cost
                "unit": "params",  # of the budget, where calibration images decide: params | macs | bytes | latency
                "latency": "",  # the table that `python -m lraqvit_jax.bench layers` wrote, for that unit
                "multiple": 8,
                "attention_rank": 0,
                "mlp_rank": 0,
                "keep_dense": (),  # paths, or beginnings of paths, that are not factorized
            },
            "factorize": {"baselines": ("svd", "whitened"), "calibration_images": 256},
            "optimizer": {**RECIPE},
            "runs": {"rb_lra_kd": {**RUN}},
            "quant": {
                "source": "rb_lra_kd",  # the run that is quantized
                "calibration_images": 32,
                "granularity": "per_token",
                "clip": 1.0,
                "embedding_and_head": True,  # patch embedding and classifier in int8 as well
                "methods": {
                    "int8_naive": {**METHOD, "granularity": "per_tensor"},
                    "int8_per_token": {**METHOD, "granularity": "per_token"},
                    "int8_wads": {**METHOD, "method": "wads"},
                },
            },
            "grid": {  # of `python -m lraqvit_jax.bench lowrank`
                "decompositions": ("svd", "wr", "asvd", "whitened", "aafm", "rrr", "kfac"),
                "methods": ("uniform_ratio", "logits"),  # of choosing ranks, as plan.method
                "budgets": (0.9, 0.8, 0.65, 0.5),
                "seeds": (0,),
                "runs": (),  # of `runs`, trained at every method, budget and seed
            },
            "quant_grid": {  # of `python -m lraqvit_jax.bench quant`
                "sources": ("dense",),  # float artefacts: names in WORKDIR/checkpoints, or paths
                "widths": ("w8a8",),  # bits of kernels and of activations
                "methods": {**QUANTIZERS},
                "only": (),  # names of methods; () is all
                "seeds": (0, 1, 2),  # of the calibration draw
            },
            "latency": {  # of `python -m lraqvit_jax.bench latency` and `bench profile`
                # Artefacts, names in WORKDIR/checkpoints or paths, or random weights in one of the forms below. The
                # others are compared with the first.
                "models": (
                    "random:dense",
                    "random:low_rank",
                    "random:int8_dense",
                    "random:int8_low_rank",
                    "random:int8_low_rank_7",  # kernels of 7 bits
                    "random:int8_dense_dynamic",
                    "random:int8_low_rank_dynamic",
                    "random:int8_low_rank_dynamic_7",
                ),
                # Modules of lraqvit_jax.runtimes. "?NAME=VALUE" after one sets an option of it, such as
                # onnxruntime?session.disable_prepacking=1
                "runtimes": ("onnxruntime", "openvino", "torch", "jax"),
                "threads": (1, 2),
                "batches": (1, 8),
                "rounds": 15,
            },
            "scaling": {  # of `python -m lraqvit_jax.bench scaling`
                "models": ("deit_base", "vit_large"),  # of the ViT family
                "layouts": ("data", "fsdp", "data_fsdp", "mixed"),  # see bench/scaling.py
                "devices": (8, 64, 512),
                "batch_per_device": 128,
            },
            "export": {
                "artifacts": ("rb_lra_kd", "int8_wads"),
                "platforms": ("cpu", "cuda", "tpu"),  # of the StableHLO files
                "onnx_target": "avx2",  # whose integer kernels the ONNX files suit: avx2, right everywhere | vnni | arm
            },
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


FREE = (
    *("grid", "quant_grid", "latency", "scaling", "export", "data.on_bad_image", "class_names", "tensorboard"),
    *("mesh", "sharding", "accumulate", "remat", "log_every", "checkpoint_every", "eval_batch_size", "cache_dir"),
)
"""Fields that may change between two calls in one work directory: they do not change what is computed, or was."""


def check(config: Mapping[str, Any]) -> None:
    """Raises UserError for a field that does not exist, a value of another type, or one out of range."""
    _check_tree(config, default().to_dict(), "")
    for field in ("batch_size", "eval_batch_size", "log_every", "accumulate"):
        if config[field] <= 0:
            raise UserError(f"{field} is {config[field]}; give a number above 0.")
    for field in ("steps", "epochs", "checkpoint_every"):
        if config[field] < 0:
            raise UserError(f"{field} is {config[field]}; give a number that is not negative.")
    _check_choices(config)
    if config["quant"]["methods"] and config["quant"]["source"] not in config["runs"]:
        known = nearest(config["quant"]["source"], config["runs"])
        raise UserError(f"quant.source is {config['quant']['source']!r}, which is no run; {known}")
    _check_mix(config["mix"])
    if config["plan"]["unit"] == "latency" and not config["plan"]["latency"]:
        raise UserError("plan.unit is latency; set plan.latency to the latency.json that bench layers wrote.")
    _check_runs(config["runs"])
    source(config, "train")


def source(config: Mapping[str, Any], role: str) -> str:
    """The data source for "train", "eval" or "calibration"; UserError where there is none."""
    data = config["data"]
    if name := data[role] or ("" if role == "eval" else data["train"]):
        return name
    raise UserError(f"data.{role} is empty; name a data source, such as embedded:mnist5k or folder:PATH.")


CHOICES = {
    "dtype": ("float32", "bfloat16"),
    "remat": ("none", "block"),
    "plan.unit": UNITS,
    "export.onnx_target": TARGETS,
    "data.on_bad_image": ("fail", "skip"),
}
"""Fields that take one of a few words."""


def _check_choices(config: Mapping[str, Any]) -> None:
    given = leaves(config)
    for field, words in CHOICES.items():
        if given[field] not in words:
            raise UserError(f"{field} is {given[field]!r}; {nearest(given[field], words)}")


def _check_runs(runs: Mapping[str, Any]) -> None:
    for name, fields in runs.items():
        if not fields["temperature"] > 0:
            raise UserError(f"runs.{name}.temperature is {fields['temperature']}; give a number above 0.")


def _check_mix(mix: Mapping[str, float]) -> None:
    for field in ("mixup", "cutmix"):
        if not mix[field] >= 0:
            raise UserError(f"mix.{field} is {mix[field]}; give the parameter of a Beta distribution, or 0 for off.")
    if not 0 <= mix["switch"] <= 1:
        raise UserError(f"mix.switch is {mix['switch']}; it is a probability, in [0, 1].")


LISTS = {"runs.": RUN, "quant.methods.": METHOD, "quant_grid.methods.": METHOD}
"""Where the names are the user's, and the fields that each has."""


def leaves(tree: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Every field that holds a value, by its dotted name."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            found |= leaves(value, f"{where}{name}.")
        else:
            found[f"{where}{name}"] = value
    return found


def filled(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of config.json by their dotted names, with defaults for those that an older version did not have."""
    defaults = {name: value for name, value in leaves(default().to_dict()).items() if not name.startswith((*LISTS,))}
    for start, known in LISTS.items():
        for name in {path.removeprefix(start).split(".")[0] for path in fields if path.startswith(start)}:
            defaults |= {f"{start}{name}.{field}": value for field, value in known.items()}
    return {**json.loads(json.dumps(defaults)), **fields}


def _check_tree(given: Mapping[str, Any], known: Mapping[str, Any], where: str) -> None:
    for name, value in given.items():
        path = f"{where}{name}"
        if where in LISTS:
            _check_tree(value, LISTS[where], f"{path}.")
            continue
        if name not in known:
            raise UserError(f"The config has no field {path!r}; {nearest(name, known)}")
        expected = known[name]
        if isinstance(expected, Mapping):
            if not isinstance(value, Mapping):
                raise UserError(f"The config field {path!r} is {value!r}; it holds fields of its own.")
            _check_tree(value, expected, f"{path}.")
        elif not isinstance(value, type(expected)) and not (type(expected) is float and type(value) is int):
            kind = type(expected).__name__
            raise UserError(f"The config field {path!r} is {value!r}; give a {kind} such as {expected!r}.")
    for name in known if where not in LISTS else ():
        if name not in given:
            raise UserError(f"The config lacks the field '{where}{name}'; start from lraqvit_jax.config.default().")
