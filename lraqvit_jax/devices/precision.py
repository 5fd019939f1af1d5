"""Float products are of the precision that their dtype says."""

import jax


def exact_float32() -> None:
    """From now on float32 products are products of float32 on every device; what the user set for JAX stands.

    By default GPUs round their factors to TF32 and TPUs to bfloat16: logits then differ in the third digit from those
    of a CPU, a merged pair from the branch it came from, and what calibration measures from what the integers do. For
    speed there is `dtype=bfloat16`, which this leaves alone. On a CPU nothing changes.
    """
    if jax.default_backend() != "cpu" and not jax.config.values["jax_default_matmul_precision"]:
        jax.config.update("jax_default_matmul_precision", "highest")
