r"""A pretrained ViT-Tiny or DeiT-Tiny compressed as the paper does, without labels: pairs, branch, distillation, int8.

    python -m lraqvit_jax.main --config configs/vit_tiny_paper.py --workdir DIR \
        --config.weights=timm:vit_tiny_patch16_224.safetensors \
        --config.data.train='folder:PHOTOS?labels=none' --config.data.eval=folder:LABELLED

Half an hour on two CPU cores. Ranks 112 (attention) and 144 (MLP) are those of the paper's DeiT-T row.
`vit_tiny_small_data.py` keeps far more of the accuracy at the same size.
"""

from lraqvit_jax import config as base


def get_config():
    config = base.photographs()
    config.steps = 600
    config.checkpoint_every = 100
    config.optimizer.update(learning_rate=2e-5, warmup=20)
    config.plan.update(method="by_kind", attention_rank=112, mlp_rank=144)
    config.factorize.baselines = ("svd", "whitened", "kfac")
    config.runs = {
        "rb_lra_kd": base.run(decomposition="kfac", branch="zero", **base.UNLABELLED),
    }
    dynamic = {"granularity": "per_token_dynamic"}
    config.quant.methods.update(
        int8_per_token_dynamic=base.quantizer(**dynamic),
        int8_per_token_dynamic_7=base.quantizer(**dynamic, weight_bits=7),  # What AVX2 multiplies fastest.
    )
    config.export.artifacts = ("dense", "rb_lra_kd", "int8_per_token_dynamic", "int8_per_token_dynamic_7")
    return config
