"""timm checkpoints of ViT, DeiT, distilled DeiT, DeiT-III, CLIP, DINOv2, SigLIP and Swin: `timm:FILE` or
`timm:HUB_ID[@REVISION]`.

Shapes follow from the tensors, all else from timm's `config.json` beside the file, or from the name of a model that
timm has published. For other names the preparation of images is taken from the family (deit, swin: ImageNet's mean and
std; vit: 0.5), with a warning.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from lraqvit_jax import models
from lraqvit_jax.base import console, files
from lraqvit_jax.base.errors import UserError, reason, short
from lraqvit_jax.data import class_names
from lraqvit_jax.data.preprocess import MAX_SIZE, Preprocess, from_json
from lraqvit_jax.models.vit import MLP_RATIO, NORM_EPS
from lraqvit_jax.models.vit import gates as gates_of
from lraqvit_jax.plan import files as plan_files
from lraqvit_jax.weights import Pretrained, cards, hub, layouts, tensors, wrappers
from lraqvit_jax.weights.layouts import Hints

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
CLIP = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
FAMILIES = {"deit": IMAGENET, "swin": IMAGENET, "vit": HALF}
"""Mean and std of nearly every model whose name begins so."""
USUAL = {"crop_pct": 0.9, "interpolation": "bicubic"}
DEFAULTS = {**IMAGENET, "crop_pct": 0.875, "interpolation": "bicubic"}
"""What timm takes of a card that leaves it open."""
PREPARATION = ("crop_pct", "interpolation", "mean", "std")
GELUS = {"gelu": "exact", "gelu_tanh": "tanh", "gelu_erf": "exact", "quick_gelu": "quick"}
POOLS = ("token", "avg", "map")
MEND = "put timm's config.json beside it, or set data.mean, data.std, data.crop_pct and data.interpolation"
HALLMARK = "patch_embed.proj.weight"
SILU = ("silu", "swish")
"""Activations whose gates make SwiGLU, in an architecture that has these."""
OWN = "lraqvit_jax "
"""How the format of a file begins that `export.safetensors` wrote."""


class Card(NamedTuple):
    """What config.json says.

    Attributes:
        where: the file, to name it by; "" where there is none.
        preparation: of images, the fields of `PREPARATION` that it has, and crop_mode.
        hints: what else no tensor tells.
        model_args: to be compared with the tensors.
        class_names: as it says; may be for another number of classes.
        imagenet: whether it says that the classes are ImageNet's.
    """

    where: str
    preparation: dict[str, Any]
    hints: Hints
    model_args: dict[str, Any]
    class_names: list[str]
    imagenet: bool


def read(name: str) -> Pretrained:
    """Reads a timm checkpoint.

    Raises:
        UserError: missing or broken file, an architecture that is none of ours, tensors that do not fit it, a card
            that says what can not be read.
    """
    path = hub.find(name, ("model.safetensors", tensors.INDEX), pickles=True)
    source = f"timm:{name}"
    values = tensors.read(path)
    if (said := tensors.metadata(path)).get("format", "").startswith(OWN):
        return _exported(values, said, source, tensors.sha256(path))
    values = wrappers.unwrapped(values, HALLMARK, source)
    card = read_card(path.parent / "config.json", path.stem)
    prepared = preparation(card, source)
    pretrained = from_tensors(values, card.hints, source, tensors.sha256(path), prepared)
    cards.agree("timm.model_args", card.model_args, shapes(pretrained, card.model_args), card.where)
    names = card.class_names if len(card.class_names) == pretrained.num_classes else []
    if not names and card.imagenet and pretrained.num_classes == class_names.IMAGENET:
        names = list(class_names.imagenet())
    return pretrained._replace(class_names=names)


def _exported(values: Mapping[str, np.ndarray], said: Mapping[str, str], source: str, sha256: str) -> Pretrained:
    """A file that the stage export wrote, by what it says of itself; UserError where its layers are not timm's."""
    try:
        fields = {name: json.loads(said[name]) for name in ("plan", "preprocess", "class_names")}
        model, classes = said["model"], int(said["num_classes"])
        forms = {layer.form for layer in plan_files.from_json(fields["plan"], source).values()} - {"dense"}
        prepare, names = from_json(fields["preprocess"]), [str(name) for name in fields["class_names"]]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{source} does not say what it is ({reason(error)}); export it again.") from error
    if forms:
        raise UserError(
            f"{source} holds layers of the form {', '.join(sorted(forms))}, which are for PyTorch (docs/howto); name "
            "the artefact itself, DIR/checkpoints/NAME, or export with export.safetensors=expanded."
        )
    layout = layouts.find(values, source)
    params = layouts.convert(layout, layout.normalize(values), model, prepare.size)
    return Pretrained(model, params, prepare, classes, names, source, sha256)


def from_tensors(
    values: Mapping[str, np.ndarray], hints: Hints, source: str, sha256: str, preparation: Mapping[str, Any]
) -> Pretrained:
    """Builds the model from tensors with timm's names.

    Args:
        values: by timm's name, PyTorch layout.
        hints: what no tensor tells.
        source: for the record.
        sha256: likewise.
        preparation: the fields of `Preprocess` but the size.

    Returns:
        the model; `num_classes` is 0 where there is no head, and its parameters then have one of one zero, or, of a
        model that is meant to have none, none.
    """
    layout = layouts.find(values, source)
    marks = {"fc_norm": np.zeros(1)} if "fc_norm.weight" in values and "norm.weight" not in values else {}
    values, has_head = layout.normalize(values), True
    if not hints.headless:
        values, has_head = layouts.with_head(values)
    values = values if hints.qkv_bias else layouts.with_bias(values)
    model, image_size = layout.architecture({**values, **marks}, hints, source)
    preprocess = Preprocess(size=image_size, **preparation)
    params = layouts.convert(layout, values, model, image_size)
    classes = values["head.weight"].shape[0] if has_head and "head.weight" in values else 0
    return Pretrained(model, params, preprocess, classes, [], source, sha256)


def shapes(pretrained: Pretrained, said: Mapping[str, Any]) -> dict[str, Any]:
    """What the tensors show, by the names of the cards' fields; of ratios for the same units, that of `said`."""
    size = pretrained.preprocess.size
    module, fields = models.architecture(pretrained.model, size)
    units = fields["mlp_dim"] or MLP_RATIO * fields["dim"]
    shown = {"img_size": size, "patch_size": fields["patch_size"], "in_chans": 3, "num_channels": 3}
    ratio = said.get("mlp_ratio")
    gates = gates_of(fields["gelu"])
    wide = int(ratio * fields["dim"]) if files.number(ratio) else 0
    agrees = gates * units == wide or (gates == 2 and units == -(-int(wide * 2 / 3) // 8) * 8)
    shown["mlp_ratio"] = ratio if agrees else gates * units / fields["dim"]
    if module == "swin":
        stages = {"depths": list(fields["depths"]), "num_heads": list(fields["heads"])}
        last = {"num_layers": len(fields["depths"]), "hidden_size": fields["dim"] * 2 ** (len(fields["depths"]) - 1)}
        return shown | stages | last | {"embed_dim": fields["dim"], "window_size": fields["window_size"]}
    deep = {"depth": fields["depth"], "num_hidden_layers": fields["depth"], "num_heads": fields["heads"]}
    sizes = {"embed_dim": fields["dim"], "hidden_size": fields["dim"], "intermediate_size": units}
    tokens = {"reg_tokens": fields["registers"], "num_register_tokens": fields["registers"]}
    tokens |= {name: fields[name] for name in ("class_token", "pre_norm", "qk_norm")}
    projection = {"projection_dim": fields["projection"]} if fields["projection"] else {}
    return shown | deep | sizes | tokens | projection


def read_card(path: pathlib.Path, name: str) -> Card:
    """What config.json says: timm's of today, with `pretrained_cfg`, or of old, where its fields lay at the top.

    Args:
        path: the file; there may be none.
        name: of the weights, which may be that of an architecture.
    """
    if not path.is_file():
        table = cards.published(name)
        hints = Hints(name, usual_heads=cards.heads([name]), **_of_architecture(name), headless=_headless({}, {}, name))
        return Card("", {}, hints, {}, [], bool(table.get("imagenet")) and "." in name)
    where, fields = str(path), files.json_object(path, "mend it or take it away")
    nested = "pretrained_cfg" in fields
    cards.check("timm" if nested else "timm.flat", fields, where)
    card, args = (_object(fields, key, where) for key in ("pretrained_cfg", "model_args"))
    card = card if nested else fields
    if nested:
        cards.check("timm.pretrained_cfg", card, where)
    cards.check("timm.model_args", args, where)
    architecture = fields.get("architecture") or card.get("architecture") or ""
    if not isinstance(architecture, str):
        raise UserError(f"{where} has the architecture {short(repr(architecture))}; it is a name.")
    prepared = {field: _tuple(card[field]) for field in (*PREPARATION, "crop_mode") if card.get(field) is not None}
    names = fields.get("label_names") or card.get("label_names") or cards.class_names(fields.get("id2label"))
    tag = card.get("tag") or architecture.partition(".")[2]
    size = _square(card.get("input_size"), where)
    return Card(
        where,
        prepared,
        _hints(fields, args, architecture, size, name, where),
        args,
        [str(one) for one in names] if isinstance(names, list | tuple) else [],
        isinstance(tag, str) and tag.endswith("in1k"),
    )


def _hints(
    fields: Mapping[str, Any], args: Mapping[str, Any], architecture: str, size: int, name: str, where: str
) -> Hints:
    told = _of_architecture(architecture or name)
    act = args.get("act_layer") or ""
    gelus = dict.fromkeys(SILU, "swiglu") if told["gelu"] == "swiglu" else GELUS
    if not isinstance(act, str) or act not in ("", *gelus):
        raise UserError(f"{where} has act_layer = {short(repr(act))}; these can be read: {', '.join(gelus)}.")
    pool = next((one["global_pool"] for one in (args, fields) if one.get("global_pool") is not None), "token")
    known = any(one.get("global_pool") is not None for one in (args, fields)) or args.get("fc_norm") is True
    if not known and told["pool"]:
        pool, known = told["pool"], True
    if pool not in POOLS:
        raise UserError(f"{where} has global_pool = {short(repr(pool))}; these can be read: {', '.join(POOLS)}.")
    heads = args.get("num_heads")
    if heads is not None and not isinstance(heads, list | tuple) and not files.whole(heads, 1, MAX_SIZE):
        raise UserError(f"{where} has num_heads = {short(repr(heads))}; it is a whole number.")
    usual = cards.heads([architecture] if architecture else [name])
    if not isinstance(heads, int):
        heads = usual if args.get("embed_dim") else 0
    bias = {field: args.get(field) for field in ("qkv_bias", "no_embed_class", "fc_norm")}
    if not all(value is None or isinstance(value, bool) for value in bias.values()):
        raise UserError(f"{where} has {short(repr(bias))}; each is true or false.")
    embed_class = told["embed_class"] if bias["no_embed_class"] is None else not bias["no_embed_class"]
    return Hints(
        architecture or name,
        args["img_size"] if files.whole(args.get("img_size"), 1, MAX_SIZE) else size,
        heads,
        usual,
        gelus.get(act, told["gelu"]),
        told["norm_eps"],
        pool=pool if known else "",
        qkv_bias=bias["qkv_bias"] is not False,
        embed_class=embed_class,
        headless=_headless(fields, fields.get("pretrained_cfg") or {}, architecture or name),
        mend='write {"model_args": {"num_heads": N}} into a config.json beside the file',
    )


def _of_architecture(name: str) -> dict[str, Any]:
    """What timm's code says of an architecture, as `Hints` has it; of one that it has not, what is unknown."""
    said, known = cards.architecture(name), bool(cards.heads([name]))
    embed_class = False if name.startswith("flexivit") or said.get("no_embed_class") else None
    eps = said.get("norm_eps", NORM_EPS) if known else 0.0
    return {
        "gelu": said.get("gelu", "exact"),
        "norm_eps": eps,
        "pool": said.get("pool", ""),
        "embed_class": embed_class,
    }


def _headless(fields: Mapping[str, Any], nested: Mapping[str, Any], name: str) -> bool:
    """Whether a card, or timm's of that name, says that there are no classes."""
    said = [one["num_classes"] for one in (fields, nested) if one.get("num_classes") is not None]
    return (said[0] if said else cards.published(name).get("num_classes")) == 0


def _object(fields: Mapping[str, Any], key: str, where: str) -> dict[str, Any]:
    value = fields.get(key) or {}
    if not isinstance(value, dict):
        raise UserError(f"{where} has the {key} {short(repr(value))}; mend it or take it away.")
    return value


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _square(size: Any, where: str) -> int:
    """The side of an input_size (3, side, side); 0 where there is none."""
    if size is None:
        return 0
    if not isinstance(size, list | tuple) or len(size) != 3 or not all(files.whole(one, 1, MAX_SIZE) for one in size):
        raise UserError(f"{where} has the input_size {short(repr(size))}; it is 3, height and width.")
    if size[0] != 3 or size[1] != size[2]:
        raise UserError(f"{where} has the input_size {size}; here images have 3 channels and are square.")
    return size[1]


def preparation(card: Card, source: str) -> dict[str, Any]:
    """The fields of `Preprocess` but the size: what the card says, or else a published name, or else, with a warning,
    the family.

    Raises:
        UserError: neither tells mean and std, or a value that is none.
    """
    name, said = card.hints.name, card.preparation
    missing = [field for field in PREPARATION if field not in said]
    table = {
        field: _tuple(value) for field, value in cards.published(name).items() if field in (*PREPARATION, "crop_mode")
    }
    if not missing:
        return said
    family = next((family for family in FAMILIES if name.startswith(family)), "")
    if table and not any(field in said for field in PREPARATION):
        return table | said
    assumed = DEFAULTS if len(missing) < len(PREPARATION) else {**USUAL, **FAMILIES.get(family, {})}
    if not set(missing) <= set(assumed):
        raise UserError(
            f"{source} does not tell the mean and std of its images; give the file timm's name, such as "
            "deit_tiny_patch16_224.safetensors, or put timm's config.json beside it."
        )
    warn_assumed(source, {field: assumed[field] for field in missing}, family or "such", MEND)
    return assumed | said


def warn_assumed(source: str, assumed: Mapping[str, Any], kind: str, mend: str) -> None:
    shown = ", ".join(f"{field} {value}" for field, value in assumed.items())
    console.warn_once(
        f"{source} does not say how its images are prepared. Assumed is what {kind} models usually have: {shown}. "
        f"If that is wrong, {mend}."
    )
