"""How models are quantized."""

import dataclasses

from lraqvit_jax.options.records import named, option
from lraqvit_jax.options.training import Distillation

BITS = (3, 4, 5, 6, 7, 8)
GRANULARITIES = ("per_tensor", "per_token", "per_token_dynamic")
ATTENTION = ("float", "uniform", "log_sqrt2")
PENALTIES = ("printed", "weight_error", "none")
SELECTIONS = ("below_mean", "all")
BETWEEN = ("none", "hadamard", "spectrum", "learned")


@dataclasses.dataclass(frozen=True)
class Quantizer:
    """One quantized model: what smooths, calibrates and rounds, on how many bits, and whether it is tuned after."""

    method: str = "naive"  # a module of lraqvit_jax.quant.smoothing
    granularity: str = option("", choices=("", *GRANULARITIES))  # of the activations; "" takes the plan's
    bits: int = option(0, choices=(0, *BITS))  # of the activations; 0 takes the plan's
    weight_bits: int = option(0, choices=(0, *BITS))  # of the kernels; 0 is `bits`. 7 is what AVX2 multiplies fastest
    group: int = option(0, low=0)  # input channels that share a scale of the kernel; 0 is all
    asymmetric: bool = False  # True gives the activations a zero point
    calibration: str = "minmax"  # of the activations, a module of lraqvit_jax.quant.ranges
    rounding: str = "nearest"  # of the kernels, a module of lraqvit_jax.quant.rounding
    between: str = option("none", choices=BETWEEN)  # put between the factors of a pair
    attention: str = option("", choices=("", *ATTENTION))  # products of attention; "" takes the plan's
    budget_mb: float = option(0.0, low=0)  # of the model; above 0, chooses the bits of each kernel
    penalty: str = option("printed", choices=PENALTIES)  # WADS
    select: str = option("below_mean", choices=SELECTIONS)  # WADS; below_mean is Eq. 13
    iterations: int = option(300, low=0)  # WADS
    learning_rate: float = option(0.01, low=0)  # WADS
    strength: float = option(0.5, low=0, high=1)  # SmoothQuant
    tuning_steps: int = option(0, low=0)  # of fine-tuning the quantized model with the teacher
    tuning_rate: float = option(1e-5, low=0)  # of kernels, biases and norms; 0 leaves them
    scale_rate: float = option(1e-3, low=0)  # of scales and clipping, as a share of themselves
    alpha: float = option(0.0, low=0)  # fine-tuning: weight of the cross-entropy
    beta: float = option(1.0, low=0)  # fine-tuning: weight of the block distillation, relative errors
    gamma: float = option(0.0, low=0)  # fine-tuning: weight of KL(teacher || student) of the logits

    @property
    def distillation(self) -> Distillation:
        """Towards what it is tuned."""
        return Distillation(alpha=self.alpha, beta=self.beta, gamma=self.gamma, normalized=True)


@dataclasses.dataclass(frozen=True)
class Quantization:
    """The quantized models of a work directory."""

    source: str = "rb_lra_kd"  # the run that is quantized
    calibration_images: int = option(32, above=0)
    granularity: str = option("per_token", choices=GRANULARITIES)
    clip: float = option(1.0, above=0, high=1)
    embedding_and_head: bool = True  # patch embedding and classifier in integers as well
    dense: bool = True  # a row of the dense model too, scales by token as they come: what integers do without low rank
    methods: dict[str, Quantizer] = named(
        Quantizer,
        {
            "int8_naive": Quantizer(granularity="per_tensor"),
            "int8_per_token": Quantizer(granularity="per_token"),
            "int8_wads": Quantizer(method="wads"),
        },
    )


QUANTIZERS = {
    "naive": Quantizer(granularity="per_tensor"),
    "smoothquant": Quantizer(method="smoothquant", granularity="per_tensor"),
    "repq": Quantizer(method="repq", granularity="per_tensor", asymmetric=True, calibration="percentile"),
    "qads": Quantizer(method="qads", granularity="per_tensor", iterations=1000),
    "per_token": Quantizer(granularity="per_token"),
    "wads": Quantizer(method="wads", granularity="per_tensor"),
    "wads_per_token": Quantizer(method="wads", granularity="per_token"),
    "wads_per_token_weight_error": Quantizer(method="wads", granularity="per_token", penalty="weight_error"),
    "static": Quantizer(method="smoothquant", granularity="per_tensor", strength=0.8, rounding="ridge"),
    "dynamic": Quantizer(granularity="per_token_dynamic"),
    "gptq": Quantizer(granularity="per_token_dynamic", rounding="gptq"),
    "ours": Quantizer(
        granularity="per_token_dynamic", asymmetric=True, calibration="mse", rounding="ridge", between="spectrum"
    ),
}
"""The rows of the paper's Tables 2 and 9, and of their rivals."""
