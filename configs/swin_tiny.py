"""Swin-Tiny on ImageNet-1k at the paper's size: 28.29 -> 21.07 M parameters, 8.7 -> 6.7 GFLOPs in linear layers
(Table 1: 21.1 M, 6.7).

python -m lraqvit_jax.main --config configs/swin_tiny.py --workdir DIR --config.data.data_dir=TFDS_DATA

Weights come from the Hugging Face hub; imagenet2012 must have been prepared by tfds once, as ArrayRecord.
"""

from lraqvit_jax import config as base


def get_config():
    config = base.imagenet("swin_tiny", "timm:timm/swin_tiny_patch4_window7_224.ms_in1k")
    config.plan.update(method="by_dimension", budget=0.55, multiple=4, keep_dense=("layers_0",))
    config.quant.granularity = "per_token_dynamic"
    config.quant.methods.int8_per_token.granularity = "per_token_dynamic"
    return config
