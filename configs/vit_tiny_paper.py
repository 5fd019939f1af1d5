r"""A pretrained ViT-Tiny or DeiT-Tiny compressed as the paper does, without labels: pairs, branch, distillation, int8.

    python -m lraqvit_jax.main --config configs/vit_tiny_paper.py --workdir DIR \
        --config.weights=timm:vit_tiny_patch16_224.safetensors \
        --config.data.train='folder:PHOTOS?labels=none' --config.data.eval=folder:LABELLED

Half an hour on two CPU cores. Ranks 112 (attention) and 144 (MLP) are those of the paper's DeiT-T row.
`vit_tiny_small_data.py` keeps far more of the accuracy at the same size.
"""

from lraqvit_jax import config as base


def get_config():
    config = base.default()
    config.data.train = config.data.eval = "folder:images"
    config.augment = "random_resized_crop(0.4, 1)|flip_lr"
    config.batch_size = 24
    config.eval_batch_size = 50
    config.steps = 600
    config.checkpoint_every = 100
    config.log_every = 10
    config.optimizer.update(learning_rate=2e-5, warmup=20)
    config.plan.update(method="by_kind", attention_rank=112, mlp_rank=144)
    config.factorize.baselines = ("svd", "whitened", "kfac")
    config.runs = {
        "rb_lra_kd": base.run(decomposition="kfac", branch="zero", alpha=0.0, beta=10.0, normalized=True, gamma=1.0),
    }
    dynamic = {"granularity": "per_token_dynamic"}
    config.quant.methods.update(
        int8_per_token_dynamic=base.quantizer(**dynamic),
        int8_per_token_dynamic_7=base.quantizer(**dynamic, weight_bits=7),  # What AVX2 multiplies fastest.
    )
    config.export.artifacts = ("dense", "rb_lra_kd", "int8_per_token_dynamic", "int8_per_token_dynamic_7")
    return config
