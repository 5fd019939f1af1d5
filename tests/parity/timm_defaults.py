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
    r"(cls_token|dist_token|pos_embed|patch_embed\.(proj|norm)\.\w+|(fc_)?norm\.\w+|(head|head_dist|head\.fc)\.\w+"
    r"|blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.\w+|blocks\.\d+\.ls[12]\.gamma"
    r"|layers\.\d+\.(downsample\.(norm|reduction)|blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12]))\.\w+"
    r"|layers\.\d+\.blocks\.\d+\.attn\.relative_position_bias_table)"
)
FIELDS = ("input_size", "crop_pct", "interpolation", "mean", "std", "crop_mode")


def table() -> dict[str, Any]:
    """`models`: a row of fields for the names of each; `heads`: of each architecture; `aliases`: timm's older names."""
    from timm.models import _registry as registry

    rows: dict[str, list[str]] = {}
    heads: dict[str, int] = {}
    for module in MODULES:
        for architecture in sorted(registry._module_to_models[module]):
            model = None if architecture in registry._deprecated_models else _built(architecture)
            if model is None:
                continue
            if hasattr(model, "blocks"):
                heads[architecture] = model.blocks[0].attn.num_heads
            for name, config in registry._model_pretrained_cfgs.items():
                if name.partition(".")[0] == architecture and config.crop_mode in ("center", "squash"):
                    row = {field: getattr(config, field) for field in FIELDS}
                    row["imagenet"] = config.num_classes == 1000 and _imagenet(config.tag or _default_tag(architecture))
                    rows.setdefault(json.dumps(row), []).append(name)
    names = {name for group in rows.values() for name in group}
    aliases = {old: new for old, new in registry._deprecated_models.items() if isinstance(new, str) and new in names}
    models = [json.loads(row) | {"names": sorted(group)} for row, group in rows.items()]
    return {"models": models, "heads": dict(sorted(heads.items())), "aliases": dict(sorted(aliases.items()))}


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
    plain = all(KNOWN.fullmatch(name) for name in state) and "head" in " ".join(state)
    exact = isinstance(block.mlp.act, torch.nn.GELU) and block.mlp.act.approximate == "none"
    eps = block.norm1.eps == (1e-6 if hasattr(model, "blocks") else 1e-5)
    pooled = model.global_pool == "token" if hasattr(model, "blocks") else model.global_pool == "avg"
    bias = f"{'blocks.0' if hasattr(model, 'blocks') else 'layers.0.blocks.0'}.attn.qkv.bias" in state
    return model if plain and exact and eps and pooled and bias else None


if __name__ == "__main__":
    made = table()
    rows = ",\n  ".join(json.dumps(row) for row in made["models"])
    rest = ",\n ".join(f'"{name}": {json.dumps(made[name])}' for name in ("heads", "aliases"))
    PATH.write_text(f'{{"models": [\n  {rows}\n ],\n {rest}}}\n')
