"""What training code puts round a model's tensors: prefixes of wrappers, optimizer state, averages, unused tensors.

Where the model lies is told by one tensor that it surely has, whatever stands before its name.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from lraqvit_jax.base import console
from lraqvit_jax.base.errors import UserError, short

AVERAGES = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "model_averaged", "ema")
"""Averages of the weights over training. They are taken before the last weights, as timm takes them: they are what its
validation reports."""
MOMENTS = {"mu", "nu", "state", "exp_avg", "exp_avg_sq", "momentum_buffer", "trace", "param_states"}
TRAINING = re.compile(
    r"(optimizer|optim|opt|lr_scheduler|lr_schedulers|scheduler|amp|amp_scaler|scaler|loss|loss_fn|criterion|epoch|step"
    r"|global_step|iteration|metric|best_\w+|n_averaged|rng_state|callbacks|loops|chrono|extra)\w*([./].*)?"
)
"""Names outside the model that hold no weights of it."""
UNUSED = re.compile(
    r"(embeddings\.)?mask_token|pooler\..*|decoder[._].*|(.*\.)?embeddings\.position_ids|text_(model|projection)\..*"
    r"|logit_(scale|bias)"
)
"""Tensors of pretraining, of text or of another output, which a classifier does not use."""
HEADS = ("classifier", "fc")
"""What a head is called that stands outside the model's wrapper."""


def unwrapped(
    values: Mapping[str, np.ndarray], hallmark: str, source: str, separator: str = "."
) -> dict[str, np.ndarray]:
    """The model's tensors by its own names; the same where none has the name of `hallmark`.

    Raises:
        UserError: several models, or two tensors of one name.
    """
    ends = [key for key in values if key == hallmark or key.endswith(separator + hallmark)]
    prefixes = [key.removesuffix(hallmark) for key in ends if not set(key.split(separator)) & MOMENTS]
    if not prefixes:
        return dict(values)
    prefix = _chosen(prefixes, source, separator)
    parts = prefix.split(separator)[:-1]
    outer = [separator.join([*parts[:count], ""]) for count in range(len(parts), -1, -1)]
    others = tuple(other for other in prefixes if other not in outer)
    inside, left_out = dict[str, np.ndarray](), []
    for key, value in values.items():
        stem = next(stem for stem in outer if key.startswith(stem))
        name = key.removeprefix(stem)
        if key.startswith(others) or (stem != prefix and TRAINING.fullmatch(key)) or UNUSED.fullmatch(name):
            left_out.append(key)
        elif name in inside:
            raise UserError(f"{source} has two tensors for {name}, inside {short(prefix)!r} and outside; keep one.")
        else:
            inside[name] = value
    if left_out:
        more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
        console.warn_once(f"{source}: the classifier does not use {', '.join(map(short, left_out[:3]))}{more}.")
    return _headed(inside, outer, values) if prefix else inside


def _chosen(prefixes: Sequence[str], source: str, separator: str) -> str:
    averages = [prefix for name in AVERAGES for prefix in prefixes if name in prefix.split(separator)]
    if len(prefixes) > 1 and len(set(averages)) != 1:
        shown = ", ".join(repr(short(prefix)) for prefix in prefixes)
        raise UserError(f"{source} holds {len(prefixes)} models, below {shown}; save one of them in a file of its own.")
    if len(prefixes) > 1:
        console.warn_once(f"{source} holds its last weights and their averages; {averages[0]!r} are taken, as in timm.")
    return averages[0] if averages else prefixes[0]


def _headed(
    inside: dict[str, np.ndarray], outer: Sequence[str], values: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """With the head that stands outside the wrapper under its usual name."""
    if any(name.startswith("head") for name in inside):
        return inside
    found = next((head for head in HEADS if any(f"{stem}{head}.weight" in values for stem in outer[1:])), None)
    return {re.sub(rf"^{found}\.", "head.", name): value for name, value in inside.items()} if found else inside
