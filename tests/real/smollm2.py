"""SmolLM2-135M, a language model of Llama's kind: tokens to logits, or to the loss of each token.

Weights: model.safetensors (Hugging Face's names) and tokenizer.json. Data: wikitext2_test; its first windows of 1,024
tokens to evaluate on, its last ones to calibrate on.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from lraqvit_jax.tasks import language
from tests.real.case import Case, attend, heads, linear

DEPTH, HEAD, QUERIES, KEYS = 30, 64, 9, 3
THETA, EPSILON = 100_000.0, 1e-5
WINDOW, WINDOWS, CALIBRATION = 1024, 8, 512


def rms_norm(params: Any, name: str, x: jax.Array) -> jax.Array:
    return x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + EPSILON) * params[f"{name}.weight"]


def rotate(x: jax.Array) -> jax.Array:
    """Rotary position embedding of (b, t, h, d): pairs of channels half a head apart."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None] * THETA ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angles)[:, None], jnp.sin(angles)[:, None]
    one, other = x[..., :half], x[..., half:]
    return jnp.concatenate([one * cos - other * sin, other * cos + one * sin], -1)


def apply(params: Any, ids: jax.Array) -> jax.Array:
    """Tokens (b, t) as logits (b, t, 49152) of the tokens that follow."""
    table, length = params["model.embed_tokens.weight"], ids.shape[1]
    causal = jnp.tril(jnp.ones((length, length), bool))[None, None]
    x = table[ids]
    for index in range(DEPTH):
        block = f"model.layers.{index}"
        y = rms_norm(params, f"{block}.input_layernorm", x)
        q, k, v = (heads(linear(params, f"{block}.self_attn.{name}_proj", y), HEAD) for name in "qkv")
        k, v = (jnp.repeat(part, QUERIES // KEYS, axis=2) for part in (rotate(k), v))
        x = x + linear(params, f"{block}.self_attn.o_proj", attend(rotate(q), k, v, causal))
        y = rms_norm(params, f"{block}.post_attention_layernorm", x)
        y = jax.nn.silu(linear(params, f"{block}.mlp.gate_proj", y)) * linear(params, f"{block}.mlp.up_proj", y)
        x = x + linear(params, f"{block}.mlp.down_proj", y)
    return jnp.einsum("btc,vc->btv", rms_norm(params, "model.norm", x), table)


def losses(params: Any, ids: jax.Array) -> jax.Array:
    """Tokens (b, t) as the negative log-likelihood (b, t - 1) of each but the first."""
    logits = apply(params, ids)[:, :-1]
    chosen = jnp.take_along_axis(logits, ids[:, 1:, None], -1)[..., 0]
    return jax.nn.logsumexp(logits, -1) - chosen


def tokens(weights: pathlib.Path, data: pathlib.Path) -> np.ndarray:
    """The whole text, without a start token."""
    with (data / "wikitext2_test" / "wiki.test.raw").open(encoding="utf-8", newline="") as file:
        text = file.read()
    tokenizer = Tokenizer.from_file(str(weights / "tokenizer.json"))
    return np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int32)


def case(weights: pathlib.Path, data: pathlib.Path, examples: int, limit: int) -> Case:
    """Calibrated by the losses of true tokens: each token's loss is an output, all of which are kept."""
    ids = tokens(weights, data)
    last = ids[len(ids) - examples * CALIBRATION :].reshape(examples, 1, CALIBRATION)
    words = f"the last {examples} x {CALIBRATION} tokens of wikitext2_test"

    def evaluate(run: Callable[[Any], Any]) -> dict[str, float]:
        windows = ids[: (limit or WINDOWS) * WINDOW].reshape(-1, 1, WINDOW)
        seen = np.stack([np.asarray(run(window)) for window in windows])
        return {"perplexity": language.perplexity(seen), "windows": len(windows)}

    return Case(losses, load_file(weights / "model.safetensors"), list(last), "features", evaluate, words)


def logits_case(weights: pathlib.Path, data: pathlib.Path, examples: int, limit: int) -> Case:
    """The same with logits, all of which are kept alike."""
    made = case(weights, data, examples, limit)
    ids = tokens(weights, data)

    def evaluate(run: Callable[[Any], Any]) -> dict[str, float]:
        windows = ids[: (limit or WINDOWS) * WINDOW].reshape(-1, 1, WINDOW)
        seen = [language.negative_log_likelihoods(run(window)[:, :-1], window[:, 1:]) for window in windows]
        return {"perplexity": language.perplexity(np.stack(seen)), "windows": len(windows)}

    return Case(apply, made.params, made.batches, "logits", evaluate, made.calibrated_on)
