"""Whisper tiny.en: sound to words. What is compressed is the encoder, log-mel features to vectors.

Weights: model.safetensors (Hugging Face's names), tokenizer.json and generation_config.json. Data: speech_19.
"""

import csv
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import soundfile
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from lraqvit_jax.tasks import speech
from tests.real.case import Case, attend, heads, layer_norm, linear

DEPTH, HEAD, EPSILON = 4, 64, 1e-5
RATE, WINDOW, HOP, BANDS, SECONDS = 16_000, 400, 160, 80, 30
LENGTH = 128
"""Tokens of an utterance, at most: the longest of the data takes 50."""


def apply(params: Any, features: jax.Array) -> jax.Array:
    """Log-mel features (b, 80, 3000) as vectors (b, 1500, 384)."""
    dimensions = ("NCH", "OIH", "NCH")
    for name, stride in (("conv1", 1), ("conv2", 2)):
        kernel, bias = (params[f"model.encoder.{name}.{part}"] for part in ("weight", "bias"))
        features = jax.lax.conv_general_dilated(features, kernel, (stride,), [(1, 1)], dimension_numbers=dimensions)
        features = jax.nn.gelu(features + bias[:, None], approximate=False)
    x = features.transpose(0, 2, 1) + params["model.encoder.embed_positions.weight"]
    for index in range(DEPTH):
        block = f"model.encoder.layers.{index}"
        y = layer_norm(params, f"{block}.self_attn_layer_norm", x, EPSILON)
        q, k, v = (heads(linear(params, f"{block}.self_attn.{name}_proj", y), HEAD) for name in "qkv")
        x = x + linear(params, f"{block}.self_attn.out_proj", attend(q, k, v))
        y = layer_norm(params, f"{block}.final_layer_norm", x, EPSILON)
        y = jax.nn.gelu(linear(params, f"{block}.fc1", y), approximate=False)
        x = x + linear(params, f"{block}.fc2", y)
    return layer_norm(params, "model.encoder.layer_norm", x, EPSILON)


def decode(params: Any, encoded: jax.Array, prompt: jax.Array, end: int, allowed: jax.Array) -> jax.Array:
    """The likeliest next token, one after another, (b, LENGTH), `end` behind the last.

    Args:
        params: of the decoder.
        encoded: (b, s, c).
        prompt: the tokens before the first.
        end: the token that ends.
        allowed: (2, vocabulary), which tokens may be the first, and which those after it.
    """
    count, width = len(encoded), encoded.shape[-1]
    table = params["model.decoder.embed_tokens.weight"]
    blocks = [f"model.decoder.layers.{index}" for index in range(DEPTH)]
    seen = [
        [heads(linear(params, f"{block}.encoder_attn.{name}_proj", encoded), HEAD) for name in "kv"] for block in blocks
    ]
    places, start = jnp.arange(LENGTH), len(prompt)

    def step(place: Any, state: Any) -> Any:
        tokens, cache = state
        x = (table[tokens[:, place]] + params["model.decoder.embed_positions.weight"][place])[:, None]
        past = (places <= place)[None, None, None, :]
        for index, block in enumerate(blocks):
            y = layer_norm(params, f"{block}.self_attn_layer_norm", x, EPSILON)
            q, k, v = (linear(params, f"{block}.self_attn.{name}_proj", y) for name in "qkv")
            cache = cache.at[index, :, :, place].set(jnp.stack([k[:, 0], v[:, 0]]))
            y = attend(heads(q, HEAD), *(heads(part, HEAD) for part in cache[index]), past)
            x = x + linear(params, f"{block}.self_attn.out_proj", y)
            y = layer_norm(params, f"{block}.encoder_attn_layer_norm", x, EPSILON)
            y = attend(heads(linear(params, f"{block}.encoder_attn.q_proj", y), HEAD), *seen[index])
            x = x + linear(params, f"{block}.encoder_attn.out_proj", y)
            y = layer_norm(params, f"{block}.final_layer_norm", x, EPSILON)
            y = jax.nn.gelu(linear(params, f"{block}.fc1", y), approximate=False)
            x = x + linear(params, f"{block}.fc2", y)
        logits = layer_norm(params, "model.decoder.layer_norm", x, EPSILON)[:, 0] @ table.T
        may = jnp.where(place < start, *allowed)
        best = jnp.where(may, logits, -jnp.inf).argmax(-1)
        best = jnp.where((tokens[:, place] == end) & (place >= start), end, best)
        given = tokens[:, place + 1]  # what the prompt has there
        return tokens.at[:, place + 1].set(jnp.where(place + 1 < start, given, best)), cache

    tokens = jnp.full((count, LENGTH), end, jnp.int32).at[:, :start].set(prompt)
    cache = jnp.zeros((DEPTH, 2, count, LENGTH, width))
    tokens, _ = jax.lax.fori_loop(0, LENGTH - 1, step, (tokens, cache))
    return tokens[:, start:]


@functools.cache
def filters() -> np.ndarray:
    """(80, 201): triangles on the mel scale of Slaney's auditory toolbox, each of area one, 0 to 8,000 Hz."""

    def hertz(mel: np.ndarray) -> np.ndarray:
        return np.where(mel < 15, mel * 200 / 3, 1000 * np.exp((mel - 15) * np.log(6.4) / 27))

    top = 15 + 27 * np.log(RATE / 2 / 1000) / np.log(6.4)
    edges, bins = hertz(np.linspace(0, top, BANDS + 2)), np.linspace(0, RATE / 2, WINDOW // 2 + 1)
    slopes = (bins - edges[:, None]) / np.diff(edges, append=np.inf)[:, None]
    rising, falling = slopes[:-2], 1 - slopes[1:-1]
    return np.maximum(0, np.minimum(rising, falling)) * (2 / (edges[2:] - edges[:-2]))[:, None]


def log_mel(sound: np.ndarray) -> np.ndarray:
    """Sound of 16 kHz, cut or filled with silence to 30 s, as features (80, 3000)."""
    sound = np.pad(sound[: RATE * SECONDS], (0, max(0, RATE * SECONDS - len(sound))))
    padded = np.pad(sound, WINDOW // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, WINDOW)[::HOP][:-1]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    power = np.abs(np.fft.rfft(frames * hann)) ** 2
    levels = np.log10(np.maximum(filters() @ power.T, 1e-10))
    return ((np.maximum(levels, levels.max() - 8) + 4) / 4).astype(np.float32)


def case(weights: pathlib.Path, data: pathlib.Path, examples: int, limit: int) -> Case:
    """Calibrated on changed copies of the utterances that are evaluated: there are no others. What is taken from them
    are second moments; no transcript is read."""
    params = {name: leaf.astype(np.float32) for name, leaf in load_file(weights / "model.safetensors").items()}
    encoder = {name: leaf for name, leaf in params.items() if name.startswith("model.encoder.")}
    decoder = {name: leaf for name, leaf in params.items() if name not in encoder}
    settings = json.loads((weights / "generation_config.json").read_text())
    tokenizer = Tokenizer.from_file(str(weights / "tokenizer.json"))
    with (data / "speech_19" / "transcripts.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[: limit or None]
    sounds = [soundfile.read(data / "speech_19" / row["file"])[0] for row in rows]
    features = np.stack([log_mel(sound) for sound in sounds])
    allowed = np.ones((2, len(params["model.decoder.embed_tokens.weight"])), bool)
    allowed[:, settings["suppress_tokens"]] = False
    allowed[0, settings["begin_suppress_tokens"]] = False
    prompt = np.array([settings["decoder_start_token_id"], settings["no_timestamps_token_id"]])
    end = settings["eos_token_id"]
    write = jax.jit(functools.partial(decode, prompt=prompt, end=end, allowed=jnp.asarray(allowed)))

    def encoded(run: Callable[[Any], Any]) -> np.ndarray:
        return np.concatenate([np.asarray(run(features[index : index + 1])) for index in range(len(features))])

    dense = functools.cache(lambda: encoded(functools.partial(jax.jit(apply), encoder)))

    def evaluate(run: Callable[[Any], Any]) -> dict[str, float]:
        """Word error rate of greedy decoding, and the error of the encoder against the dense one."""
        found = encoded(run)
        texts = [tokenizer.decode(ids) for ids in np.asarray(write(decoder, found)).tolist()]
        return {
            "WER %": speech.word_error_rate([row["text"] for row in rows], texts),
            "error of features %": float(100 * np.linalg.norm(found - dense()) / np.linalg.norm(dense())),
            "utterances": len(rows),
        }

    batches = [changed(sounds[index % len(sounds)], index)[None] for index in range(examples)]
    return Case(apply, encoder, batches, "features", evaluate, f"{examples} changed copies of the same utterances")


def changed(sound: np.ndarray, seed: int) -> np.ndarray:
    """Features of a sound after up to 3 s of silence, at another level, with white noise 20 to 40 dB below it."""
    draw = np.random.default_rng(seed)
    moved = np.concatenate([np.zeros(draw.integers(0, 3 * RATE)), sound]) * draw.uniform(0.3, 1)
    noise = np.std(moved) * 10 ** -draw.uniform(1, 2)
    return log_mel(moved + noise * draw.standard_normal(len(moved)))
