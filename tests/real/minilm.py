"""all-MiniLM-L6-v2, a BERT encoder: sentences to vectors.

Weights: model.safetensors (Hugging Face's names) and tokenizer.json. Data: stsb_375 to evaluate on, wikitext2_test to
calibrate on.
"""

import csv
import functools
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from lraqvit_jax.tasks import embedding
from tests.real.case import Case, attend, heads, layer_norm, linear

DEPTH, HEAD, EPSILON = 6, 32, 1e-12
BATCH, LENGTH = 25, 64
CALIBRATION = 24
"""Tokens of a sentence to calibrate on: few enough that nearly all are filled."""


def apply(params: Any, batch: Any) -> jax.Array:
    """{"ids", "mask"} (b, t), the mask 1 at real tokens, as vectors (b, 384) of length 1."""
    ids, mask = batch["ids"], batch["mask"]
    words, kinds = params["embeddings.word_embeddings.weight"], params["embeddings.token_type_embeddings.weight"]
    x = words[ids] + params["embeddings.position_embeddings.weight"][: ids.shape[1]] + kinds[0]
    x = layer_norm(params, "embeddings.LayerNorm", x, EPSILON)
    for index in range(DEPTH):
        block = f"encoder.layer.{index}"
        names = ("query", "key", "value")
        q, k, v = (heads(linear(params, f"{block}.attention.self.{name}", x), HEAD) for name in names)
        y = linear(params, f"{block}.attention.output.dense", attend(q, k, v, mask[:, None, None, :] > 0))
        x = layer_norm(params, f"{block}.attention.output.LayerNorm", x + y, EPSILON)
        y = jax.nn.gelu(linear(params, f"{block}.intermediate.dense", x), approximate=False)
        x = layer_norm(params, f"{block}.output.LayerNorm", x + linear(params, f"{block}.output.dense", y), EPSILON)
    vectors = jnp.einsum("btc,bt->bc", x, mask) / mask.sum(1, keepdims=True)
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)


def case(weights: pathlib.Path, data: pathlib.Path, examples: int, limit: int) -> Case:
    unused = ("pooler.", "embeddings.position_ids")
    leaves = load_file(weights / "model.safetensors")
    params = {name: leaf for name, leaf in leaves.items() if not name.startswith(unused)}
    tokenizer = Tokenizer.from_file(str(weights / "tokenizer.json"))
    sentences = _sentences(data / "wikitext2_test" / "wiki.test.raw", examples)
    with (data / "stsb_375" / "pairs.csv").open(encoding="utf-8") as file:
        pairs = list(csv.DictReader(file))[: limit or None]

    texts = [pair[name] for name in ("sentence1", "sentence2") for pair in pairs]
    scores = np.array([float(pair["score"]) for pair in pairs])

    def vectors(run: Callable[[Any], Any]) -> np.ndarray:
        return np.concatenate([np.asarray(run(batch)) for batch in batches(tokenizer, texts, LENGTH)])[: len(texts)]

    dense = functools.cache(lambda: vectors(functools.partial(jax.jit(apply), params)))

    def evaluate(run: Callable[[Any], Any]) -> dict[str, float]:
        """Spearman's correlation of cosines with scores; to the dense model, mean cosine and equal neighbours."""
        found = vectors(run)
        return {
            "Spearman": embedding.spearman(embedding.cosines(found[: len(pairs)], found[len(pairs) :]), scores),
            "cosine to dense": float(embedding.cosines(found, dense()).mean()),
            "same neighbour %": embedding.neighbour_agreement(found, dense()),
            "pairs": len(pairs),
        }

    words = f"{len(sentences)} sentences of wikitext2_test"
    return Case(apply, params, batches(tokenizer, sentences, CALIBRATION), "features", evaluate, words)


def batches(tokenizer: Tokenizer, texts: list[str], length: int) -> list[dict[str, np.ndarray]]:
    """Batches of 25 texts of that many tokens; the last is filled up with empty texts."""
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    made = []
    for start in range(0, len(texts), BATCH):
        some = texts[start : start + BATCH]
        encoded = tokenizer.encode_batch([*some, *[""] * (BATCH - len(some))])
        ids = np.array([one.ids for one in encoded], np.int32)
        made.append({"ids": ids, "mask": np.array([one.attention_mask for one in encoded], np.float32)})
    return made


def _sentences(path: pathlib.Path, count: int) -> list[str]:
    """Sentences of at least 16 words, spread over a text."""
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    text = [part for line in lines if line and not line.startswith("=") for part in re.split(r"(?<= [.?!]) ", line)]
    whole = [sentence for sentence in text if len(sentence.split()) >= 16]
    return whole[:: max(1, len(whole) // count)][:count]
