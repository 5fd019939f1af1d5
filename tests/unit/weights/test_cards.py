"""The table of what cards may carry, and every field of it set to odd values: read or refused in one sentence.

Against timm's and transformers' own logits: tests/parity/test_cards.py, and `python -m tests.slow.cards`.
"""

import json
import random

import numpy as np
import pytest
import safetensors.numpy

from lraqvit_jax import weights
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.weights import cards
from tests.slow import cards as fuzz
from tests.unit import numpy_vit
from tests.unit.weights.test_weights import transformers_names

PICO = {"dim": 32, "depth": 1, "patch": 4, "side": 2, "classes": 3}
TIMM = {"architecture": "vit_tiny_patch16_224", "model_args": {"num_heads": 2, "embed_dim": 32}}
PREPARED = {"input_size": [3, 8, 8], "mean": [0.5] * 3, "std": [0.5] * 3, "crop_pct": 0.9, "interpolation": "bicubic"}
CONFIG = {"model_type": "vit", "hidden_size": 32, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each source, with its tensors."""
    values = numpy_vit.random_tensors(np.random.default_rng(0), **PICO)
    made = {}
    for kind, named in (("timm", values), ("huggingface", transformers_names(values, True))):
        made[kind] = tmp_path_factory.mktemp(kind)
        plain = {name: np.ascontiguousarray(value) for name, value in named.items()}
        safetensors.numpy.save_file(plain, made[kind] / "model.safetensors")
    return made


def read(folders, kind="timm", **fields):
    """The weights with the fields of a kind of card set."""
    source, _, inner = kind.partition(".")
    folder = folders[source]
    if source == "timm":
        card = {**TIMM, "pretrained_cfg": dict(PREPARED), "model_args": dict(TIMM["model_args"])}
        if inner == "flat":
            card |= card.pop("pretrained_cfg")
        card.get(inner, card).update(fields)
    else:
        card = CONFIG | (fields if inner != "processor" else {})
        processor = {"size": 8} | (fields if inner == "processor" else {})
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    (folder / "config.json").write_text(json.dumps(card))
    return weights.read(f"{source}:{folder}")


def test_every_field_has_one_fate_and_what_changes_nothing_a_reason():
    fates = [fate for table in cards.KINDS.values() for fate in table.values()]
    assert {fate.kind for fate in fates} == {"honoured", "shape", "fixed", "irrelevant"}
    assert all(bool(fate.reason) == (fate.kind == "irrelevant") for fate in fates)


def test_odd_values_are_read_or_refused(folders):
    usual = [case for case in fuzz.cases() if case.kind not in ("huggingface.deit", "huggingface.swin")]
    answers = {"logits": 0, "refused": 0}
    for case in random.Random(0).sample(usual, 80):
        said, what = fuzz.answer(lambda case=case: read(folders, case.kind, **{case.field: case.value}))
        assert said in answers, f"{case}: {what}"
        assert said == "logits" or len(str(what).splitlines()) == 1
        answers[said] += 1
    assert min(answers.values()) > 20


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        ("timm.pretrained_cfg", {"input_size": [3, 8, 16]}, "square"),
        ("timm.pretrained_cfg", {"input_size": [1, 8, 8]}, "3 channels"),
        ("timm.pretrained_cfg", {"label_offset": 1}, "label_offset = 1"),
        ("timm.pretrained_cfg", {"sharpness": 2}, "sharpness = 2, a field that is not known"),
        ("timm.flat", {"sharpness": 2}, "sharpness = 2, a field that is not known"),
        ("timm.model_args", {"embed_dim": 48}, "embed_dim 48, and the weights have 32"),
        ("timm.model_args", {"img_size": [8, 16]}, "img_size"),
        ("timm.model_args", {"num_heads": 5}, "5 heads cannot share"),
        ("timm.model_args", {"act_layer": "relu"}, "act_layer = 'relu'"),
        ("timm.model_args", {"global_pool": "map"}, "global_pool = 'map'"),
        ("timm", {"problem_type": "regression"}, "numbers"),
        ("huggingface.vit", {"problem_type": "multi_label_classification"}, "yes or no"),
        ("huggingface.vit", {"intermediate_size": 64}, "intermediate_size 64"),
        ("huggingface.vit", {"num_attention_heads": 5}, "5 heads"),
        ("huggingface.vit", {"id2label": {"0": "a"}}, "1 labels .* the head has 3"),
        ("huggingface.vit", {"num_labels": -1}, "-1 labels"),
        ("huggingface.vit", {"image_size": [8, 16]}, "square"),
        ("huggingface.vit", {"image_size": 16}, "image_size 16"),
        ("huggingface.vit", {"rope_theta": 100.0}, "rope_theta = 100.0, a field that is not known"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(folders, kind, fields, words):
    with pytest.raises(UserError, match=words):
        read(folders, kind, **fields)


@pytest.mark.parametrize(
    ("kind", "fields", "model"),
    [
        ("timm.model_args", {"num_heads": 4}, "vit_pico_depth1_heads4"),
        ("timm.model_args", {"act_layer": "quick_gelu"}, "quick"),
        ("timm.model_args", {"global_pool": "avg"}, "normavg"),
        ("huggingface.vit", {"num_attention_heads": 8}, "heads8"),
        ("huggingface.vit", {"hidden_act": "quick_gelu"}, "quick"),
        ("huggingface.vit", {"layer_norm_eps": 1e-5}, "eps1e-05"),
    ],
)
def test_what_can_be_is_honoured(folders, kind, fields, model):
    name = read(folders, kind, **fields).model
    assert all(part in name for part in model.split("_")), name


def test_labels_of_a_card_are_the_class_names_and_placeholders_are_none(folders):
    assert read(folders, label_names=["a", "b", "c"]).class_names == ["a", "b", "c"]
    assert read(folders, label_names=["a", "b"]).class_names == []
    assert read(folders, "huggingface.vit", id2label={"1": "dog", "0": "cat", "2": "cow"}).class_names[1] == "dog"
    assert read(folders, "huggingface.vit", id2label={str(n): f"LABEL_{n}" for n in range(3)}).class_names == []
