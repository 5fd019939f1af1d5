"""Models of other libraries, none edited: what is found in them, whether pairs of full rank are the same function.

    python -m tests.slow.foreign [NAME ...]

Weights are random and sizes small; requirements-foreign.txt has the libraries, and a model whose library is missing is
left out with a word. A line for each model: sites; share of the parameters in those that can be compressed, and of the
multiply-accumulates with parameters; seconds to find them; the largest difference of a function with pairs of full
rank, over the largest output; parameters after `compress(budget=0.75)`, and bytes with int8; the difference of the
StableHLO file that was written and read back.
"""

import math
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("KERAS_BACKEND", "jax")

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

import lraqvit_jax
from lraqvit_jax.base import console
from lraqvit_jax.base.errors import short
from lraqvit_jax.plan.records import LayerPlan
from lraqvit_jax.trace import compress

KEY = jax.random.key(0)
Case = tuple[Callable[..., Any], Any, list[Any]]
"""A function, its parameters, and batches."""


def images(side: int, count: int = 3) -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.standard_normal((2, side, side, 3)).astype(np.float32) for _ in range(count)]


def tokens(vocabulary: int, length: int, count: int = 3) -> list[np.ndarray]:
    draw = np.random.default_rng(0)
    return [draw.integers(0, vocabulary, (2, length)).astype(np.int32) for _ in range(count)]


def linen(model: nn.Module, batches: list[Any], **options: Any) -> Case:
    variables = model.init({"params": KEY, "dropout": KEY}, batches[0], **options)
    rest = {name: value for name, value in variables.items() if name != "params"}
    return lambda params, x: model.apply({"params": params, **rest}, x, **options), variables["params"], batches


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: Any, _: Any) -> Any:
        x = x + nn.MultiHeadDotProductAttention(4)(nn.LayerNorm()(x))
        return x + nn.Dense(48)(nn.gelu(nn.Dense(192)(nn.LayerNorm()(x)))), None


class Stacked(nn.Module):
    @nn.compact
    def __call__(self, ids: Any) -> Any:
        x = nn.Embed(50, 48)(ids)
        stack = nn.scan(nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return nn.Dense(50)(stack()(x, None)[0])


def scanned_linen() -> Case:
    return linen(Stacked(), tokens(50, 12))


class NnxBlock(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.attention = nnx.MultiHeadAttention(4, 48, decode=False, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(48, rngs=rngs) for _ in range(2)])
        self.first, self.second = nnx.Linear(48, 192, rngs=rngs), nnx.Linear(192, 48, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = x + self.attention(self.norms[0](x))
        return x + self.second(nnx.gelu(self.first(self.norms[1](x))))


class NnxViT(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.patches = nnx.Conv(3, 48, (8, 8), (8, 8), padding="VALID", rngs=rngs)
        self.blocks = nnx.List([NnxBlock(rngs) for _ in range(2)])
        self.head = nnx.Linear(48, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = self.patches(x).reshape(x.shape[0], -1, 48)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def nnx_vit() -> Case:
    graph, params, rest = nnx.split(NnxViT(nnx.Rngs(0)), nnx.Param, ...)
    return lambda params, x: nnx.merge(graph, params, rest)(x), params, images(32)


def equinox(model: Any, batches: list[Any], call: Callable[[Any, Any], Any]) -> Case:
    import equinox as eqx

    params, static = eqx.partition(eqx.nn.inference_mode(model), eqx.is_inexact_array)
    return lambda params, x: jax.vmap(lambda one: call(eqx.combine(params, static), one))(x), params, batches


def equimo_vit() -> Case:
    from equimo import models

    sizes = {"img_size": 32, "patch_size": 8, "dim": 48, "num_heads": [4], "depths": [2], "num_classes": 10}
    model = models.VisionTransformer(in_channels=3, key=KEY, **sizes)
    channels_first = [batch.transpose(0, 3, 1, 2) for batch in images(32)]
    return equinox(model, channels_first, lambda model, one: model(one, key=KEY))


def esm2() -> Case:
    from esm2quinox import ESM2

    model = ESM2(6, 320, 20, token_dropout=False, key=KEY)  # as the smallest published one
    return equinox(model, [batch + 4 for batch in tokens(20, 12)], lambda model, one: model(one).logits)


def jax_models_mixer() -> Case:
    from jax_models.models.mlp_mixer import MLPMixer

    model = MLPMixer(8, 2, 48, 24, 96, attach_head=True, num_classes=10)
    return linen(model, images(32), deterministic=True)


def jax_models_cait() -> Case:
    from jax_models.models.cait import CaiT

    sizes = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4, "mlp_ratio": 4, "mlp_ratio_clstk": 4}
    return linen(CaiT(**sizes, depth_token_only=1, num_classes=10), images(32), deterministic=True)


def flaxmodels_gpt2() -> Case:
    import types

    from flaxmodels.gpt2 import gpt2

    config = types.SimpleNamespace(
        **{"n_positions": 32, "n_embd": 48, "n_head": 4, "n_layer": 2, "vocab_size": 50, "n_inner": 192},
        **dict.fromkeys(("attn_pdrop", "resid_pdrop", "embd_pdrop"), 0.0),
        **{"scale_attn_weights": True, "layer_norm_epsilon": 1e-5, "initializer_range": 0.02},
        **{"use_cache": False, "add_cross_attention": False, "activation_function": "gelu"},
    )

    class Language(nn.Module):
        @nn.compact
        def __call__(self, ids: Any) -> Any:
            x = nn.Embed(50, 48)(ids)
            for _ in range(2):
                x = gpt2.GPT2Block(config=config)(x)[0]
            return nn.Dense(50)(nn.LayerNorm()(x))

    return linen(Language(), tokens(50, 12))


def recurrentgemma_griffin() -> Case:
    from recurrentgemma import common
    from recurrentgemma.jax import griffin

    kinds = (common.TemporalBlockType.RECURRENT, common.TemporalBlockType.ATTENTION)
    config = common.GriffinConfig(50, 48, 96, 4, kinds, True, 16, 30.0, scan_type=common.ScanType.LINEAR_NATIVE)
    batches = tokens(50, 12)
    positions = jnp.tile(jnp.arange(12), (2, 1))
    model = griffin.Griffin(config)
    variables = model.init(KEY, jnp.asarray(batches[0]), positions)  # its own types refuse NumPy's

    def apply(params: Any, ids: Any) -> Any:
        places = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
        return model.apply(params, ids, places, return_cache=False)[0]

    return apply, variables, batches


def haiku_transformer() -> Case:
    import haiku as hk

    def net(x: Any) -> Any:
        for _ in range(2):
            y = hk.LayerNorm(-1, True, True)(x)
            x = x + hk.MultiHeadAttention(4, 12, w_init=hk.initializers.VarianceScaling(1.0))(y, y, y)
            x = x + hk.nets.MLP([192, 48], activation=jax.nn.gelu)(hk.LayerNorm(-1, True, True)(x))
        return hk.Linear(10)(x.mean(1))

    made = hk.without_apply_rng(hk.transform(net))
    draw = np.random.default_rng(0)
    batches = [draw.standard_normal((2, 9, 48)).astype(np.float32) for _ in range(3)]
    return made.apply, made.init(KEY, batches[0]), batches


def keras_case(model: Any, batches: list[Any], read: Callable[[Any], Any] = lambda outputs: outputs) -> Case:
    params = {variable.path: variable.value for variable in model.trainable_variables}
    rest = [variable.value for variable in model.non_trainable_variables]

    def apply(params: Any, x: Any) -> Any:
        values = [params[variable.path] for variable in model.trainable_variables]
        return read(model.stateless_call(values, rest, x, training=False)[0])

    return apply, params, batches


def keras_vit() -> Case:
    from keras_hub.models import ViTBackbone

    return keras_case(ViTBackbone((32, 32, 3), (8, 8), 2, 4, 48, 192), images(32))


def keras_swin() -> Case:
    from keras_hub.models import SwinTransformerBackbone

    return keras_case(SwinTransformerBackbone((32, 32, 3), 24, (2, 2), (2, 4), 4, patch_size=2), images(32))


def keras_vit_det() -> Case:
    from keras_hub.models import ViTDetBackbone

    sizes = {"hidden_size": 48, "num_layers": 2, "intermediate_dim": 192, "num_heads": 4, "patch_size": 8}
    model = ViTDetBackbone(
        **sizes, global_attention_layer_indices=[1], window_size=2, num_output_channels=16, image_shape=(32, 32, 3)
    )
    return keras_case(model, images(32))


def keras_bert() -> Case:
    from keras_hub.models import BertBackbone

    model = BertBackbone(50, 2, 4, 48, 192, max_sequence_length=12)
    masks = np.ones((2, 12), np.int32)
    batches = [{"token_ids": ids, "segment_ids": 0 * ids, "padding_mask": masks} for ids in tokens(50, 12)]
    return keras_case(model, batches)


def keras_whisper() -> Case:
    from keras_hub.models import WhisperBackbone

    model = WhisperBackbone(50, 2, 4, 48, 192, max_encoder_sequence_length=24, max_decoder_sequence_length=8)
    draw = np.random.default_rng(0)
    batches = [
        {
            "encoder_features": draw.standard_normal((2, 24, 80)).astype(np.float32),
            "decoder_token_ids": ids,
            "decoder_padding_mask": np.ones_like(ids),
        }
        for ids in tokens(50, 8)
    ]
    return keras_case(model, batches)


def keras_llama() -> Case:
    from keras_hub.models import LlamaBackbone

    model = LlamaBackbone(50, 2, 4, 48, 96, 2)
    return keras_case(model, [{"token_ids": ids, "padding_mask": np.ones_like(ids)} for ids in tokens(50, 12)])


CASES = {
    "Linen, scan and remat": scanned_linen,
    "NNX ViT": nnx_vit,
    "Equinox: equimo ViT": equimo_vit,
    "Equinox: ESM-2": esm2,
    "Linen: jax_models MLP-Mixer": jax_models_mixer,
    "Linen: jax_models CaiT": jax_models_cait,
    "Linen: flaxmodels GPT-2 blocks": flaxmodels_gpt2,
    "Linen: RecurrentGemma": recurrentgemma_griffin,
    "Haiku transformer": haiku_transformer,
    "Keras: ViT": keras_vit,
    "Keras: ViTDet backbone": keras_vit_det,
    "Keras: Swin backbone": keras_swin,
    "Keras: BERT": keras_bert,
    "Keras: Whisper": keras_whisper,
    "Keras: Llama": keras_llama,
}
HEAD = "| model | sites | parameters | in products | seconds | full rank | at 0.75 | int8 bytes | StableHLO |"


def relative(one: Any, other: Any) -> float:
    """The largest difference of two trees over the largest entry."""
    pairs = list(zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True))
    largest = max(float(jnp.max(jnp.abs(a))) for a, _ in pairs)
    return max(float(jnp.max(jnp.abs(a - b))) for a, b in pairs) / largest


def row(name: str, case: Case) -> dict[str, Any]:
    """What is measured of a model."""
    apply, params, batches = case
    started = time.perf_counter()
    sites = lraqvit_jax.find(apply, params, batches[0])
    seconds = time.perf_counter() - started
    full = {
        site.path: LayerPlan("pivoted", min(site.features_in, site.features_out), basis="output")
        for site in sites
        if site.compressible
    }
    same, values = lraqvit_jax.rewrite(apply, params, full, sites)
    difference = relative(jax.jit(apply)(params, batches[0]), jax.jit(same)(values, batches[0]))
    small = lraqvit_jax.compress(apply, params, batches, budget=0.75, bits=0, metric="features")
    integers = compress.integers(small, batches, 8)
    total = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    inside = sum(site.features_in * site.features_out for site in sites if site.compressible)
    return {
        "name": name,
        "sites": len(sites),
        "skipped": [one for one in sites.skipped if one.macs] + [site for site in sites if site.reason],
        "parameters": inside / total,
        "macs": sites.covered,
        "seconds": seconds,
        "difference": difference,
        "kept": small.parameters / total,
        "bytes": integers.nbytes / (4 * total),
        "exported": exported(small, batches[0]),
    }


def exported(small: Any, batch: Any) -> str:
    """Whether a file of any number of examples, or else of this many, gives the same."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "small.stablehlo"
        small.export(path, batch)
        again = jax.export.deserialize(bytearray(path.read_bytes())).call(batch)
    return f"{relative(small(batch), again):.0e}"


def main(names: list[str]) -> int:
    console.set_level(console.QUIET)
    print(HEAD + "\n" + "|---" * HEAD.count(" | ") + "|---|")
    failed = 0
    for name, make in CASES.items():
        if names and not any(wanted.lower() in name.lower() for wanted in names):
            continue
        try:
            case = make()
            found = row(name, case)
        except ImportError as error:
            print(f"| {name} | not installed: {error} |", flush=True)
            continue
        except Exception as error:  # of one model; the others go on
            failed += 1
            print(f"| {name} | {type(error).__name__}: {short(' '.join(str(error).split()), 300)} |", flush=True)
            continue
        print(
            f"| {name} | {found['sites']} | {found['parameters']:.1%} | {found['macs']:.1%} | {found['seconds']:.2f} "
            f"| {found['difference']:.0e} | {found['kept']:.1%} | {found['bytes']:.1%} | {found['exported']} |",
            flush=True,
        )
        for one in found["skipped"]:
            print(f"    {one}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(min(1, main(sys.argv[1:])))
