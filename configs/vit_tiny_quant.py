r"""Quantizers on a pretrained ViT-Tiny or DeiT-Tiny, dense or low rank: bits, methods, calibration draws.

    python -m lraqvit_jax.bench quant --config configs/vit_tiny_quant.py --workdir DIR \
        --config.weights=timm:vit_tiny_patch16_224.safetensors \
        --config.data.train='folder:PHOTOS?labels=none' --config.data.eval=folder:LABELLED \
        --config.quant_grid.sources="('dense','OTHER/checkpoints/rb_lra_kd')" --config.quant_grid.widths="('w8a8',)"

Rows beside `config.QUANTIZERS`: `wads_all`, WADS without the selection of Eq. 13; `mixed`, bits by layer within
4 MB; `tuned`, fine-tuned with the teacher; `log_sqrt2` and `uniform`, the products of attention on integers too;
`asymmetric` and `asymmetric_gptq`, `dynamic` with zero points, and those with GPTQ's rounding. A row on 1,000 images
takes a minute of one CPU core, one with WADS two, and one with QADS four.
"""

import dataclasses

from lraqvit_jax import config as base


def get_config():
    config = base.default()
    config.data.train = config.data.eval = "folder:images"
    config.augment = "random_resized_crop(0.4, 1)|flip_lr"  # Of the images that `tuned` sees.
    config.batch_size = 24
    config.eval_batch_size = 10  # So few fit in a CPU's caches.
    ours = dataclasses.asdict(base.QUANTIZERS["ours"])
    asymmetric = {"granularity": "per_token_dynamic", "asymmetric": True}
    config.quant_grid.methods.update(
        wads_all=base.quantizer(**dataclasses.asdict(base.QUANTIZERS["wads"]) | {"select": "all"}),
        mixed=base.quantizer(**ours | {"budget_mb": 4.0}),
        tuned=base.quantizer(**ours | {"tuning_steps": 60, "gamma": 1.0}),
        log_sqrt2=base.quantizer(**ours | {"attention": "log_sqrt2"}),
        uniform=base.quantizer(**ours | {"attention": "uniform"}),
        asymmetric=base.quantizer(**asymmetric),
        asymmetric_gptq=base.quantizer(**asymmetric, rounding="gptq"),
    )
    return config
