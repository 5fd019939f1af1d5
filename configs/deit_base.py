"""DeiT-Base on ImageNet-1k at the paper's size: 86.57 -> 44.40 M parameters, 33.7 -> 17.1 GFLOPs in linear layers
(Table 1: 44.4 M, 17.1).

python -m lraqvit_jax.main --config configs/deit_base.py --workdir DIR --config.data.data_dir=TFDS_DATA

Weights come from the Hugging Face hub; imagenet2012 must have been prepared by tfds once, as ArrayRecord.
"""

from lraqvit_jax import config as base


def get_config():
    config = base.imagenet("deit_base", "timm:timm/deit_base_patch16_224.fb_in1k")
    config.plan.update(method="by_kind", attention_rank=240, mlp_rank=320)
    return config
