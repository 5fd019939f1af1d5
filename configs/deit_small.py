"""DeiT-Small on ImageNet-1k, halved as the paper halves DeiT-Base, with ranks of the same shares of the width: 22.05 ->
11.51 M parameters, 8.5 -> 4.3 GFLOPs in linear layers. The paper has no such row.

python -m lraqvit_jax.main --config configs/deit_small.py --workdir DIR --config.data.data_dir=TFDS_DATA

Weights come from the Hugging Face hub; imagenet2012 must have been prepared by tfds once, as ArrayRecord.
"""

from lraqvit_jax import config as base


def get_config():
    config = base.imagenet("deit_small", "timm:timm/deit_small_patch16_224.fb_in1k")
    config.plan.update(method="by_kind", attention_rank=120, mlp_rank=160)
    return config
