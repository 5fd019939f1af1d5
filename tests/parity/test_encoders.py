"""CLIP, DINOv2, SigLIP and what they are made of, read from files, against timm and transformers: random weights, small
sizes, and the widths of ViT-SO400M."""

import json

import numpy as np
import pytest

from lraqvit_jax import weights
from tests.golden import recipe

pytorch = pytest.importorskip(
    "tests.parity.pytorch", reason="needs torch, timm and transformers, as bash launch/parity.sh installs them"
)
cards = pytest.importorskip("tests.parity.test_cards")
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]

TOLERANCE = 1e-4
SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 28, "patch_size": 7}
SO400M = {"depth": 1, "img_size": 28}
TIMM = [
    ("vit_small_patch14_dinov2", 0, SMALL),
    ("vit_small_patch14_dinov2", 5, SMALL),
    ("vit_small_patch14_reg4_dinov2", 0, SMALL),
    ("vit_base_patch14_reg4_dinov2", 5, SMALL),
    ("vit_giant_patch14_dinov2", 0, SMALL),
    ("vit_giant_patch14_reg4_dinov2", 0, SMALL),
    ("vit_base_patch16_clip_224", 7, SMALL),
    ("vit_base_patch16_clip_224", 0, SMALL),
    ("vit_base_patch32_clip_quickgelu_224", 7, SMALL),
    ("vit_base_patch16_siglip_224", 0, SMALL),
    ("vit_base_patch16_siglip_224", 5, SMALL | {"act_layer": "gelu_tanh"}),
    ("vit_base_patch32_siglip_256", 0, SMALL),
    ("vit_base_patch16_siglip_gap_224", 0, SMALL),
    ("vit_so400m_patch14_siglip_224", 0, SO400M),
    ("vit_so400m_patch14_siglip_gap_224", 0, SO400M),
    ("vit_so400m_patch16_siglip_256", 0, SO400M | {"img_size": 32}),
    ("vit_so400m_patch14_siglip_384", 0, SO400M | {"img_size": 34}),  # 6 rows and columns are left over
    ("vit_medium_patch16_reg4_gap_256", 5, SMALL),
    ("vit_tiny_patch16_224", 5, SMALL | {"reg_tokens": 2}),
    ("vit_tiny_patch16_224", 5, SMALL | {"reg_tokens": 2, "no_embed_class": True}),
    ("vit_tiny_patch16_224", 5, SMALL | {"reg_tokens": 1, "global_pool": "avg", "class_token": False}),
    ("vit_tiny_patch16_224", 5, SMALL | {"pre_norm": True}),
    ("vit_tiny_patch16_224", 5, SMALL | {"qk_norm": True}),
    ("vit_tiny_patch16_224", 5, SMALL | {"class_token": False, "global_pool": "avg"}),
    ("vit_tiny_patch16_224", 5, SMALL | {"global_pool": "map", "reg_tokens": 3}),
    ("deit_tiny_distilled_patch16_224", 0, SMALL),
    ("swin_tiny_patch4_window7_224", 0, cards.SWIN),
]


def label(value):
    """Of a test."""
    if not isinstance(value, dict):
        return str(value)
    shown = {key: one for key, one in value.items() if key not in SMALL and key not in cards.SWIN}
    return " ".join(f"{key}={one}" for key, one in shown.items()) or f"{value.get('embed_dim', 1152)}"


def difference(source, model, record, **options):
    """The largest of logits or features, over their spread."""
    found = cards.difference(source, model, **options)
    record("parity", f"{found:.1e} of their spread")
    return found


@pytest.mark.parametrize(("name", "classes", "fields"), TIMM, ids=label)
def test_timm(tmp_path, record_property, name, classes, fields):
    model = cards.timm_model(name, classes, **fields)
    size = fields["img_size"]
    card = cards.card(fields, name, input_size=[3, size, size]) | {"num_classes": classes}
    source = cards.save(tmp_path / "model.safetensors", model.state_dict(), card)
    assert difference(source, model, record_property) < TOLERANCE
    assert weights.read(source).num_classes == classes


@pytest.mark.parametrize(
    ("name", "size"), [("vit_so400m_patch14_siglip_224", 28), ("vit_small_patch14_reg4_dinov2.lvd142m", 28)]
)
def test_the_name_of_a_published_model_is_enough(tmp_path, record_property, name, size):
    model = cards.timm_model(name.partition(".")[0], 0, depth=1, img_size=size)
    source = cards.save(tmp_path / f"{name}.safetensors", model.state_dict())
    assert difference(source, model, record_property) < TOLERANCE


def test_timm_at_another_size(tmp_path, record_property):
    name = "vit_small_patch14_reg4_dinov2"
    model, larger = (cards.timm_model(name, 0, **SMALL | {"img_size": size}) for size in (28, 56))
    state = model.state_dict()
    source = cards.save(tmp_path / "model.safetensors", state, cards.card(SMALL, name) | {"num_classes": 0})
    resampled = pytorch.timm.layers.resample_abs_pos_embed(state["pos_embed"], (8, 8), num_prefix_tokens=0)
    larger.load_state_dict({**state, "pos_embed": resampled})
    assert difference(source, larger, record_property, image_size=56) < TOLERANCE


SHAPE = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 28, "patch_size": 7}
TEXT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}
TOWER = SHAPE | {"intermediate_size": 100}
WIDE = SHAPE | {"hidden_size": 1152, "num_hidden_layers": 1, "num_attention_heads": 16, "intermediate_size": 4304}


def built(name, fields):
    """A model of transformers with random weights."""
    library = pytorch.transformers
    family = next(one for one in ("Dinov2WithRegisters", "Dinov2", "CLIP", "Siglip") if name.startswith(one))
    whole = family in ("CLIP", "Siglip") and "Vision" not in name
    part = "Vision" if family in ("CLIP", "Siglip") and not whole else ""
    if whole:
        labels = {key: fields[key] for key in ("num_labels", "projection_dim") if key in fields}
        vision = {key: value for key, value in fields.items() if key not in labels}
        config = getattr(library, f"{family}Config")(text_config=TEXT, vision_config=vision, **labels)
    else:
        config = getattr(library, f"{family}{part}Config")(**fields)
    return cards.filled(getattr(library, name)(config))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("Dinov2Model", SHAPE),
        ("Dinov2Model", SHAPE | {"use_swiglu_ffn": True}),
        ("Dinov2Model", SHAPE | {"qkv_bias": False, "hidden_act": "gelu_new", "layer_norm_eps": 1e-5}),
        ("Dinov2ForImageClassification", SHAPE | {"num_labels": 5}),
        ("Dinov2WithRegistersModel", SHAPE),
        ("Dinov2WithRegistersForImageClassification", SHAPE | {"num_labels": 5, "num_register_tokens": 2}),
        ("CLIPVisionModel", TOWER),
        ("CLIPVisionModel", TOWER | {"hidden_act": "gelu"}),
        ("CLIPVisionModelWithProjection", TOWER | {"projection_dim": 24}),
        ("CLIPModel", TOWER | {"projection_dim": 24}),
        ("SiglipVisionModel", TOWER),
        ("SiglipModel", TOWER),
        ("SiglipForImageClassification", TOWER | {"num_labels": 5}),
        ("SiglipVisionModel", WIDE | {"patch_size": 14}),
        ("SiglipVisionModel", WIDE | {"patch_size": 14, "image_size": 34}),
    ],
    ids=label,
)
def test_transformers(tmp_path, record_property, name, fields):
    model = built(name, fields)
    model.save_pretrained(tmp_path)
    assert difference(f"huggingface:{tmp_path}", model, record_property) < TOLERANCE
    assert weights.read(f"huggingface:{tmp_path}").num_classes == fields.get("num_labels", 0)


@pytest.mark.parametrize("side", [14, 42])
@pytest.mark.parametrize("name", ["Dinov2Model", "Dinov2WithRegistersModel"])
def test_images_of_the_processors_size_are_seen_as_transformers_does(tmp_path, record_property, name, side):
    model = built(name, SHAPE)
    model.save_pretrained(tmp_path)
    processor = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 48}, "crop_size": side}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    assert weights.read(f"huggingface:{tmp_path}").preprocess.size == side
    assert difference(f"huggingface:{tmp_path}", model, record_property) < TOLERANCE
    assert difference(f"huggingface:{tmp_path}", model, record_property, image_size=56) < TOLERANCE


@pytest.mark.parametrize("name", ["CLIPVisionModel", "SiglipVisionModel"])
def test_another_size_is_interpolated_as_transformers_does(tmp_path, record_property, name):
    model = built(name, TOWER)
    model.save_pretrained(tmp_path)
    found, params, _ = weights.load(f"huggingface:{tmp_path}", image_size=42)
    images = recipe.images(2, 42, seed=2)
    want = pytorch.logits(model, images, interpolate_pos_encoding=True)
    error = np.abs(np.asarray(found.apply({"params": params}, images)) - want).max() / want.std()
    record_property("parity", f"{error:.1e} of their spread")
    assert error < TOLERANCE
