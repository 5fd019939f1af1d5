"""Every field that a card may carry, and what becomes of it.

The lists are those of timm 1.0 (`PretrainedCfg`, `save_config_for_hf`, the arguments of `VisionTransformer` and
`SwinTransformer`) and of transformers 4 and 5 (`PreTrainedConfig`, `ViTConfig`, `DeiTConfig`, `SwinConfig`,
`ImagesKwargs`). A big_vision .npz has no card. A field that is not listed is refused: it may change what a model
answers.
"""

import functools
import json
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from lraqvit_jax.base.errors import UserError, short


class Fate(NamedTuple):
    """What becomes of a field.

    Attributes:
        kind: "honoured", its reader takes it; "shape", it must be what the tensors show; "fixed", it must be one of
            `values`; "irrelevant", for `reason`.
        reason: why it changes nothing.
        values: the only ones that can be read; None stands for an absent field and may always be.
    """

    kind: str
    reason: str = ""
    values: tuple[Any, ...] = ()


HONOURED, SHAPE = Fate("honoured"), Fate("shape")


def _each(fate: Fate, names: str) -> dict[str, Fate]:
    return dict.fromkeys(names.split(), fate)


def _irrelevant(reason: str, names: str) -> dict[str, Fate]:
    return _each(Fate("irrelevant", reason), names)


def _fixed(*values: Any) -> Fate:
    return Fate("fixed", "", values)


PRETRAINED_CFG: dict[str, Fate] = {
    **_each(HONOURED, "architecture tag input_size interpolation crop_pct crop_mode mean std label_names num_classes"),
    "label_offset": _fixed(0),
    **_irrelevant("says where weights came from", "url file state_dict hf_hub_id hf_hub_filename source custom_load"),
    **_irrelevant("is used only where a test size is asked for", "test_input_size test_crop_pct test_pool_size"),
    **_irrelevant("bounds other sizes than the model's own", "min_input_size fixed_input_size"),
    **_irrelevant("names parts that are found by their tensors", "pool_size first_conv classifier"),
    **_irrelevant(
        "is for readers", "label_descriptions license description origin_url paper_name paper_ids notes library_name"
    ),
}
TIMM: dict[str, Fate] = {
    **_each(HONOURED, "architecture pretrained_cfg model_args label_names global_pool num_classes"),
    "model_type": _fixed("timm_wrapper"),
    "problem_type": _fixed("single_label_classification"),
    "do_pooling": _fixed(True),
    **_irrelevant("is what the tensors say", "num_features"),
    **_irrelevant("is for readers", "label_descriptions license library_name tags architectures transformers_version"),
    **_irrelevant("holds for training alone", "initializer_range"),
    **_irrelevant("weights are computed with in float32", "torch_dtype dtype"),
    **_irrelevant("are the numbers of names", "label2id num_labels"),
    "id2label": HONOURED,
}
MODEL_ARGS: dict[str, Fate] = {
    **_each(HONOURED, "num_heads act_layer global_pool qkv_bias no_embed_class fc_norm"),
    **_each(SHAPE, "img_size patch_size embed_dim depth depths window_size mlp_ratio in_chans"),
    **_each(SHAPE, "class_token reg_tokens pre_norm qk_norm"),
    **_each(_fixed(True), "proj_bias final_norm patch_norm"),
    **_each(_fixed(False), "scale_attn_norm scale_mlp_norm dynamic_img_pad always_partition ape features_only"),
    "pool_include_prefix": _fixed(False),
    "pos_embed": _fixed("learn"),
    **_each(_fixed(), "head_dim embed_layer embed_norm_layer norm_layer block_fn mlp_layer attn_layer out_indices"),
    **_irrelevant("is what the tensors say", "num_classes init_values"),
    **_irrelevant(
        "holds for training alone",
        "drop_rate pos_drop_rate patch_drop_rate proj_drop_rate attn_drop_rate drop_path_rate weight_init fix_init",
    ),
    **_irrelevant("is of other image sizes", "dynamic_img_size strict_img_size"),
    **_irrelevant("is where and how PyTorch computes", "device dtype scriptable exportable no_jit"),
}
_CONFIG: dict[str, Fate] = {
    **_each(HONOURED, "model_type hidden_act layer_norm_eps image_size qkv_bias id2label"),
    "problem_type": _fixed("single_label_classification"),
    "is_encoder_decoder": _fixed(False),
    "is_decoder": _fixed(False),
    "add_cross_attention": _fixed(False),
    "pruned_heads": _fixed({}),
    "per_layer_config": _fixed({}),
    "quantization_config": _fixed(),
    "auto_map": _fixed(),
    **_each(SHAPE, "patch_size num_channels"),
    "num_labels": HONOURED,
    **_irrelevant("is for readers", "architectures transformers_version _name_or_path name_or_path license tags"),
    **_irrelevant("is for readers", "library_name finetuning_task _commit_hash task_specific_params"),
    **_irrelevant("are the numbers of names", "label2id"),
    **_irrelevant(
        "holds for training alone",
        "initializer_range hidden_dropout_prob attention_probs_dropout_prob drop_path_rate gradient_checkpointing",
    ),
    **_irrelevant("is of masked image modeling or of the pooler", "encoder_stride pooler_output_size pooler_act"),
    **_irrelevant("says what else is given back", "output_hidden_states output_attentions return_dict use_return_dict"),
    **_irrelevant("weights are computed with in float32", "torch_dtype dtype use_bfloat16"),
    **_irrelevant("is how PyTorch computes", "torchscript chunk_size_feed_forward _attn_implementation"),
    **_irrelevant("is how PyTorch computes", "attn_implementation tie_last_hidden_states"),
    **_irrelevant("is of text", "tie_word_embeddings tokenizer_class prefix bos_token_id pad_token_id eos_token_id"),
    **_irrelevant("is of text", "sep_token_id decoder_start_token_id cross_attention_hidden_size tie_encoder_decoder"),
    **_irrelevant("names a backbone's features", "out_features out_indices _out_features _out_indices stage_names"),
}
VIT_CONFIG = _CONFIG | {
    **_each(SHAPE, "hidden_size num_hidden_layers intermediate_size"),
    "num_attention_heads": HONOURED,
}
SWIN_CONFIG = _CONFIG | {
    **_each(SHAPE, "embed_dim depths num_heads window_size mlp_ratio hidden_size num_layers"),
    "use_absolute_embeddings": _fixed(False),
    "path_norm": _fixed(True),
}
DINOV2_CONFIG = _CONFIG | {
    **_each(SHAPE, "hidden_size num_hidden_layers mlp_ratio num_register_tokens"),
    **_each(HONOURED, "num_attention_heads use_swiglu_ffn"),
    **_irrelevant("holds for training alone", "layerscale_value"),
    **_irrelevant("is of masked image modeling or of the pooler", "use_mask_token"),
    **_irrelevant("names a backbone's features", "apply_layernorm reshape_hidden_states"),
}
_TOWER_CONFIG = _CONFIG | {
    **_each(SHAPE, "hidden_size num_hidden_layers intermediate_size"),
    "num_attention_heads": HONOURED,
    **_irrelevant("holds for training alone", "attention_dropout dropout initializer_factor"),
    **_irrelevant(
        "is of text",
        "bad_words_ids begin_suppress_tokens diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size "
        "exponential_decay_length_penalty forced_bos_token_id forced_eos_token_id length_penalty max_length min_length "
        "no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_scores remove_invalid_values "
        "repetition_penalty return_dict_in_generate suppress_tokens temperature top_k top_p typical_p tf_legacy_loss",
    ),
}
CLIP_VISION_CONFIG = _TOWER_CONFIG | {"projection_dim": SHAPE}
SIGLIP_VISION_CONFIG = _TOWER_CONFIG | {
    "vision_use_head": _fixed(True),
    **_irrelevant("is of another output", "projection_size"),
}
TOWERS_CONFIG: dict[str, Fate] = {
    **_each(HONOURED, "model_type vision_config vision_config_dict architectures num_labels id2label projection_dim"),
    "quantization_config": _fixed(),
    "auto_map": _fixed(),
    "is_encoder_decoder": _fixed(False),
    **_irrelevant("is of text", "text_config text_config_dict tie_word_embeddings"),
    **_irrelevant("holds for training alone", "initializer_factor logit_scale_init_value"),
    **_irrelevant("is for readers", "transformers_version _name_or_path _commit_hash license tags library_name"),
    **_irrelevant("are the numbers of names", "label2id"),
    **_irrelevant("weights are computed with in float32", "torch_dtype dtype"),
}
PROCESSOR: dict[str, Fate] = {
    **_each(
        HONOURED,
        "image_processor_type feature_extractor_type do_resize size default_to_square resample "
        "do_center_crop crop_size do_rescale rescale_factor do_normalize image_mean image_std",
    ),
    "do_pad": _fixed(False),
    "auto_map": _fixed(),
    **_irrelevant("images are read as RGB", "do_convert_rgb"),
    **_irrelevant("is of padding, which is refused", "pad_size"),
    **_irrelevant("is of label maps", "do_reduce_labels reduce_labels"),
    **_irrelevant("says how arrays are given", "data_format input_data_format return_tensors device"),
    **_irrelevant("is how PyTorch computes", "disable_grouping image_seq_length"),
    **_irrelevant("is for readers", "processor_class transformers_version _valid_processor_keys"),
    **_irrelevant("is for readers", "_processor_class"),
}
KINDS = {
    "timm": TIMM,
    "timm.flat": TIMM | PRETRAINED_CFG,
    "timm.pretrained_cfg": PRETRAINED_CFG,
    "timm.model_args": MODEL_ARGS,
    "huggingface.vit": VIT_CONFIG,
    "huggingface.deit": VIT_CONFIG,
    "huggingface.swin": SWIN_CONFIG,
    **dict.fromkeys(("huggingface.dinov2", "huggingface.dinov2_with_registers"), DINOV2_CONFIG),
    "huggingface.clip_vision_model": CLIP_VISION_CONFIG,
    "huggingface.siglip_vision_model": SIGLIP_VISION_CONFIG,
    **dict.fromkeys(("huggingface.clip", "huggingface.siglip"), TOWERS_CONFIG),
    "huggingface.processor": PROCESSOR,
}
TASKS = {"multi_label_classification": "one yes or no a class", "regression": "numbers"}


def check(kind: str, fields: Mapping[str, Any], where: str) -> None:
    """Raises UserError for a field that is not listed, or has a value that cannot be read; None is an absent field.

    Args:
        kind: of `KINDS`.
        fields: of the card.
        where: to name it by.
    """
    for name, value in fields.items():
        fate = KINDS[kind].get(name)
        if value is None or (fate and fate.kind != "fixed"):
            continue
        shown = f"{where} has {short(name)} = {short(repr(value))}"
        if fate is None:
            raise UserError(
                f"{shown}, a field that is not known here and may change what the model answers; if it changes "
                "nothing, take it out of that file."
            )
        if name == "problem_type" and isinstance(value, str) and value in TASKS:
            raise UserError(
                f"{shown}: its logits are {TASKS[value]}, and here they would be taken for one class of many; for a "
                "new head on this backbone, take the field out of that file and set num_classes."
            )
        if not any(type(value) is type(one) and value == one for one in fate.values):
            readable = " or ".join(map(repr, fate.values)) or "none"
            raise UserError(
                f"{shown}, where only {readable} can be read; if it changes nothing, take it out of that file."
            )


def agree(kind: str, fields: Mapping[str, Any], shapes: Mapping[str, Any], where: str) -> None:
    """Raises UserError where a field of the kind "shape" is not what the tensors show, `shapes` by its name."""
    for name, value in fields.items():
        if KINDS[kind].get(name) == SHAPE and value is not None and name in shapes:
            shown = shapes[name]
            if value != shown and _flat(value) != _flat(shown) and _flat(value) != 2 * _flat(shown):
                raise UserError(
                    f"{where} says {name} {short(repr(value))}, and the weights have {shown}; put right whichever is "
                    "wrong, or take the field out of that file."
                )


def class_names(labels: Any, count: int | None = None) -> list[str]:
    """The names of an id2label in the order of its numbers; none where they are not one for each of `count` classes
    (None is as many as there are), or transformers' placeholders."""
    if not isinstance(labels, Mapping):
        return []
    numbers = [str(index) for index in range(len(labels) if count is None else count)]
    if sorted(labels) != sorted(numbers):
        return []
    names = [str(labels[number]) for number in numbers]
    return [] if names == [f"LABEL_{number}" for number in numbers] else names


def _flat(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


@functools.cache
def _published() -> dict[str, Any]:
    return json.loads((pathlib.Path(__file__).parent / "timm_models.json").read_text(encoding="utf-8"))


@functools.cache
def _rows() -> dict[str, dict[str, Any]]:
    rows = {name: row for row in _published()["models"] for name in row["names"]}
    return rows | {old: rows[new] for old, new in _published()["aliases"].items()}


def published(name: str) -> dict[str, Any]:
    """What timm says of a model that it has published under this name; {} for another.

    The table beside this file is timm's, written by `python -m tests.parity.timm_defaults`. Swin's authors have names
    of their own.
    """
    name = re.sub(r"_22k$", ".ms_in22k", re.sub(r"_22kto1k(_finetune)?$", ".ms_in22k_ft_in1k", name))
    return _rows().get(name, {})


def architecture(name: str) -> dict[str, Any]:
    """What timm's code says of an architecture, beyond its heads, where that is not usual: `gelu`, `norm_eps` and
    `pool` of `models.vit`, and `no_embed_class`; {} of another."""
    plain = _published()["aliases"].get(name, name).partition(".")[0]
    said: dict[str, Any] = _published()["architectures"].get(plain, {})
    return said


def heads(names: Iterable[str]) -> int:
    """Attention heads of the first of these names that is an architecture of timm's, 0 where none is."""
    counts: dict[str, int] = _published()["heads"]
    aliases: dict[str, str] = _published()["aliases"]
    plain = (aliases.get(name, name).partition(".")[0] for name in names)
    return next((counts[name] for name in plain if name in counts), 0)
