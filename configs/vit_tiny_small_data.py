r"""A pretrained ViT or DeiT, made smaller on some hundred images of yours, then int8.

    python -m lraqvit_jax.main --config configs/vit_tiny_small_data.py --workdir DIR \
        --config.weights=timm:vit_tiny_patch16_224.safetensors \
        --config.data.train='folder:PHOTOS?labels=none' --config.data.eval=folder:LABELLED

No label is needed. Channels of heads, hidden units and ranks go where the logits feel it least, under `plan.budget`:
the share of the encoder's linear layers that is left. Nothing is trained; below a budget of 0.8 it pays to distil from
the dense model: --config.steps=600 --config.optimizer.learning_rate=5e-5 is half an hour on two CPU cores.
"""

from lraqvit_jax import config as base


def get_config():
    config = base.photographs()
    config.steps = 0
    config.checkpoint_every = 100
    config.optimizer.update(learning_rate=2e-5, warmup=20)
    config.plan.update(method="products", budget=0.9028)
    config.factorize.baselines = ()
    config.runs = {
        "small": base.run(decomposition="weighted_kfac", branch="none", **base.UNLABELLED),
    }
    config.quant.source = "small"
    dynamic = {"granularity": "per_token_dynamic"}
    config.quant.methods = {
        "int8_per_token_dynamic": base.quantizer(**dynamic),
        "int8_per_token_dynamic_7": base.quantizer(**dynamic, weight_bits=7),  # What AVX2 multiplies fastest.
    }
    config.export.artifacts = ("dense", "small", "int8_per_token_dynamic", "int8_per_token_dynamic_7")
    return config
