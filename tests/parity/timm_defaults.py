"""What timm says of its published models that we can read: `python -m tests.parity.timm_defaults` writes the table."""

import json
import pathlib
import re
from typing import Any

import torch

from tests.parity import pytorch

PATH = pathlib.Path(__file__).parents[2] / "lraqvit_jax" / "weights" / "timm_models.json"
MODULES = ("vision_transformer", "deit", "swin_transformer")
KNOWN = re.compile(
    r"(cls_token|dist_token|reg_token|pos_embed|patch_embed\.(proj|norm)\.\w+|((fc_)?norm|norm_pre)\.\w+"
    r"|(head|head_dist|head\.fc)\.\w+|attn_pool\.(latent|(q|kv|proj|norm|mlp\.fc[12])\.\w+)"
    r"|blocks\.\d+\.(norm[12]|attn\.(qkv|proj|[qk]_norm)|mlp\.fc[12])\.\w+|blocks\.\d+\.ls[12]\.gamma"
    r"|layers\.\d+\.(downsample\.(norm|reduction)|blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12]))\.\w+"
    r"|layers\.\d+\.blocks\.\d+\.attn\.relative_position_bias_table)"
)
FIELDS = ("input_size", "crop_pct", "interpolation", "mean", "std", "crop_mode")


def table() -> dict[str, Any]:
    """`models`: a row of fields for the names of each; `heads`: of each architecture; `architectures`: what else of one
    is not usual and no tensor tells; `aliases`: timm's older names."""
    from timm.models import _registry as registry

    rows: dict[str, list[str]] = {}
    heads: dict[str, int] = {}
    odd: dict[str, dict[str, Any]] = {}
    for module in MODULES:
        for architecture in sorted(registry._module_to_models[module]):
            model = None if architecture in registry._deprecated_models else _built(architecture)
            if model is None:
                continue
            if hasattr(model, "blocks"):
                heads[architecture] = model.blocks[0].attn.num_heads
                odd |= {architecture: said} if (said := _odd(model)) else {}
            for name, config in registry._model_pretrained_cfgs.items():
                if name.partition(".")[0] == architecture and config.crop_mode in ("center", "squash"):
                    row = {field: getattr(config, field) for field in FIELDS}
                    row["imagenet"] = config.num_classes == 1000 and _imagenet(config.tag or _default_tag(architecture))
                    row |= {"num_classes": 0} if config.num_classes == 0 else {}
                    rows.setdefault(json.dumps(row), []).append(name)
    names = {name for group in rows.values() for name in group}
    aliases = {old: new for old, new in registry._deprecated_models.items() if isinstance(new, str) and new in names}
    models = [json.loads(row) | {"names": sorted(group)} for row, group in rows.items()]
    found = {"heads": heads, "architectures": odd, "aliases": aliases}
    return {"models": models, **{name: dict(sorted(one.items())) for name, one in found.items()}}


def _odd(model: Any) -> dict[str, Any]:
    """What is not usual of a ViT and no tensor tells, as `weights.cards.architecture` has it."""
    mlp, eps = model.blocks[0].mlp, model.blocks[0].norm1.eps
    said = {"gelu": _gelu(mlp)} if _gelu(mlp) != "exact" else {}
    said |= {"norm_eps": eps} if eps != 1e-6 else {}
    said |= {"pool": model.global_pool} if model.global_pool != "token" else {}
    return said | ({"no_embed_class": True} if model.no_embed_class and model.has_class_token else {})


def _gelu(mlp: Any) -> str:
    """Of `models.GELUS`; "" of another."""
    if type(mlp) is pytorch.timm.layers.GluMlp:
        return "swiglu" if isinstance(mlp.act, torch.nn.SiLU) and not mlp.gate_last else ""
    if isinstance(mlp.act, torch.nn.GELU | pytorch.timm.layers.GELUTanh):
        tanh = isinstance(mlp.act, pytorch.timm.layers.GELUTanh) or mlp.act.approximate == "tanh"
        return "tanh" if tanh else "exact"
    return "quick" if type(mlp.act).__name__.lower().startswith("quickgelu") else ""


def _default_tag(architecture: str) -> str:
    from timm.models import _registry as registry

    return registry._model_default_cfgs[architecture].tags[0]


def _imagenet(tag: str) -> bool:
    """Whether the last data set of a tag is ImageNet-1k."""
    return tag.endswith(("in1k", "22kto1k"))


def _built(architecture: str) -> Any:
    """The model without storage; None where it has what ours have not."""
    with torch.device("meta"):
        try:
            model = pytorch.timm.create_model(architecture)
        except (RuntimeError, ValueError, TypeError, AssertionError, NotImplementedError):  # what ours has not
            return None
    state = model.state_dict()
    block = model.blocks[0] if hasattr(model, "blocks") else model.layers[0].blocks[0]
    if not all(hasattr(getattr(block, "mlp", None), layer) for layer in ("fc1", "act", "fc2")):
        return None
    plain = all(KNOWN.fullmatch(name) for name in state)
    if hasattr(model, "blocks"):
        usual = _gelu(block.mlp) and model.global_pool in ("token", "avg", "map") and "pos_embed" in state
        where = "blocks.0"
    else:
        usual = _gelu(block.mlp) == "exact" and block.norm1.eps == 1e-5 and model.global_pool == "avg"
        where = "layers.0.blocks.0"
    biases = {f"{where}.attn.qkv.bias", f"{where}.norm1.bias", f"{where}.mlp.fc1.bias"} <= {*state}
    return model if plain and usual and biases and not getattr(model, "pool_include_prefix", False) else None


if __name__ == "__main__":
    made = table()
    rows = ",\n  ".join(json.dumps(row) for row in made["models"])
    rest = ",\n ".join(f'"{name}": {json.dumps(made[name])}' for name in made if name != "models")
    PATH.write_text(f'{{"models": [\n  {rows}\n ],\n {rest}}}\n')
