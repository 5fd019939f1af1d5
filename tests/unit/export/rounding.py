"""What float32 may make of a model: a float64 transcription of it, and how far roundings carry from that."""

import numpy as np

from lraqvit_jax.export import safetensors
from lraqvit_jax.models.swin import Swin
from tests.unit import numpy_swin, numpy_vit

EPS = float(np.finfo(np.float32).eps)
ROUNDINGS = 16
"""Roundings of the largest logit that a float32 evaluation may be off by. Each sum of n products is off by at most
n eps Σ|x||w| (Higham 2002, 3.1), and by about its square root where signs are mixed; measured over the families of
`test_onnx`, 2 to 14 layers deep, logits of XLA and of ONNX Runtime were off by 1 to 9."""


FLIPPED = 0.02
"""Of the largest logit, what an image may be off by in which a value lies so near the edge between two integers that
its roundings put it on either side: one code of some thousands is then a step away."""


def exact(artifact, images):
    """Logits in float64 NumPy, transcribed from the papers, of a float artefact."""
    tensors, model = safetensors.tensors(artifact), artifact.model
    gelu = numpy_vit.GELUS[model.gelu]
    if isinstance(model, Swin):
        return numpy_swin.forward(tensors, images, model.window_size, gelu=gelu)[0]
    return numpy_vit.logits(tensors, images, model.heads, model.norm_eps, gelu, model.pool)


def roundings(computed, right):
    """The largest difference, in roundings of the largest right value."""
    return float(np.abs(computed - right).max() / (EPS * np.abs(right).max()))


def same_integers(errors):
    """Whether all images but one at most are right up to roundings, and that one up to a flipped integer.

    Args:
        errors: for each image, the largest difference of the logits, over the largest logit of all.
    """
    *most, largest = sorted(errors)
    return max(most) < ROUNDINGS * EPS and largest < FLIPPED
