"""Swin-Base on ImageNet-1k at the paper's size: 87.77 -> 59.76 M parameters, 30.3 -> 21.1 GFLOPs in linear layers.

Table 1 says 60.1 M: it counts 0.34 M entries of index buffers, which are no parameters.

python -m lraqvit_jax.main --config configs/swin_base.py --workdir DIR --config.data.data_dir=TFDS_DATA

Weights come from the Hugging Face hub; imagenet2012 must have been prepared by tfds once, as ArrayRecord.
"""

from lraqvit_jax import config as base


def get_config():
    config = base.imagenet("swin_base", "timm:timm/swin_base_patch4_window7_224.ms_in22k_ft_in1k")
    config.plan.update(method="uniform_ratio", budget=2 / 3, multiple=8, keep_dense=("layers_0",))
    config.quant.granularity = "per_token_dynamic"
    config.quant.methods.int8_per_token.granularity = "per_token_dynamic"
    return config
