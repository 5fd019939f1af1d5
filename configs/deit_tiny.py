"""DeiT-Tiny on ImageNet-1k at the paper's size: 5.72 -> 5.20 M parameters, 2.15 -> 1.95 GFLOPs in linear layers
(Table 1: 5.2 M).

python -m lraqvit_jax.main --config configs/deit_tiny.py --workdir DIR --config.data.data_dir=TFDS_DATA

Weights come from the Hugging Face hub; imagenet2012 must have been prepared by tfds once, as ArrayRecord.
"""

from lraqvit_jax import config as base


def get_config():
    config = base.imagenet("deit_tiny", "timm:timm/deit_tiny_patch16_224.fb_in1k")
    config.plan.update(method="by_kind", attention_rank=112, mlp_rank=144)
    return config
