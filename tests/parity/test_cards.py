"""Cards and common forms of checkpoints as timm and transformers read them: their logits on random tiny models."""

import argparse
import json

import jax
import numpy as np
import pytest
from PIL import Image

from lraqvit_jax import weights
from lraqvit_jax.weights import convert
from tests.golden import recipe

pytorch = pytest.importorskip(
    "tests.parity.pytorch", reason="needs torch, timm and transformers, as bash launch/parity.sh installs them"
)
pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("default")]
torch = pytest.importorskip("torch")

TINY = {"patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "img_size": 32}
SWIN = {"patch_size": 2, "window_size": 4, "embed_dim": 24, "depths": (1, 2), "num_heads": (2, 4), "img_size": 32}
PHOTO = Image.fromarray(np.random.default_rng(7).integers(0, 256, (50, 70, 3), np.uint8))


def filled(model, seed=1):
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    values = recipe.weights(shapes, seed)
    model.load_state_dict({name: torch.as_tensor(value) for name, value in values.items()}, strict=False)
    return model.eval()


def timm_model(name="vit_tiny_patch16_224", classes=5, **fields):
    return filled(pytorch.timm.create_model(name, num_classes=classes, **fields))


def save(path, state, card=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pytorch.save_file({name: value.contiguous().clone() for name, value in state.items()}, path)
    if card is not None:
        (path.parent / "config.json").write_text(json.dumps(card))
    return f"timm:{path}"


def card(args=TINY, name="vit_tiny_patch16_224", **fields):
    args = {key: list(value) if isinstance(value, tuple) else value for key, value in args.items()}
    prepared = {"input_size": [3, 32, 32], **pytorch.STATISTICS}
    return {"architecture": name, "model_args": args, "pretrained_cfg": prepared | fields}


def difference(source, model, **options):
    """The largest of the logits, over their spread."""
    found, params, preprocess = weights.load(source, **options)
    images = recipe.images(2, preprocess.size, seed=2)
    want = pytorch.logits(model, images)
    got = np.asarray(jax.jit(found.apply)({"params": params}, images))
    return float(np.abs(got - want).max() / want.std())


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("vit_tiny_patch16_224", TINY),
        ("vit_tiny_patch16_224", TINY | {"num_heads": 6}),
        ("vit_tiny_patch16_224", TINY | {"global_pool": "avg"}),
        ("vit_tiny_patch16_224", TINY | {"global_pool": "avg", "fc_norm": False}),
        ("vit_tiny_patch16_224", TINY | {"fc_norm": True}),
        ("vit_tiny_patch16_224", TINY | {"act_layer": "quick_gelu"}),
        ("vit_tiny_patch16_224", TINY | {"act_layer": "gelu_tanh"}),
        ("vit_tiny_patch16_224", TINY | {"qkv_bias": False}),
        ("vit_tiny_patch16_224", TINY | {"no_embed_class": True}),
        ("vit_tiny_patch16_224", TINY | {"mlp_ratio": 2.67}),
        ("vit_tiny_patch16_224", TINY | {"init_values": 0.1}),
        ("deit3_small_patch16_224", TINY),
        ("deit_tiny_distilled_patch16_224", TINY),
        ("swin_tiny_patch4_window7_224", SWIN),
        ("swin_tiny_patch4_window7_224", SWIN | {"mlp_ratio": 2.0}),
    ],
    ids=lambda value: (
        value
        if isinstance(value, str)
        else " ".join(
            f"{k}={v}"
            for k, v in value.items()
            if k in ("num_heads", "global_pool", "fc_norm", "act_layer", "qkv_bias", "no_embed_class", "init_values")
            or k == "mlp_ratio"
        )
    ),
)
def test_model_args_are_honoured(tmp_path, name, fields):
    model = timm_model(name, **fields)
    source = save(tmp_path / "model.safetensors", model.state_dict(), card(fields, name))
    assert difference(source, model) < 1e-4


@pytest.mark.parametrize(
    "fields",
    [
        {"global_pool": "max"},
        {"act_layer": "relu"},
        {"global_pool": "avgmax"},
        {"pool_include_prefix": True, "global_pool": "avg"},
        {"final_norm": False},
        {"scale_attn_norm": True},
        {"img_size": (32, 64)},
    ],
    ids=str,
)
def test_what_our_models_do_not_do_is_refused(tmp_path, fields):
    fields = TINY | fields
    source = save(tmp_path / "model.safetensors", timm_model(**fields).state_dict(), card(fields))
    with pytest.raises(weights.UserError):
        weights.read(source)


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("crop", [0.8, 1.0])
def test_photographs_are_prepared_as_timm_does(tmp_path, mode, crop):
    fields = {"crop_mode": mode, "crop_pct": crop, "interpolation": "bilinear", "mean": [0.1, 0.2, 0.3]}
    source = save(tmp_path / "model.safetensors", timm_model(**TINY).state_dict(), card(**fields))
    config = {"input_size": (3, 32, 32), "std": (0.5, 0.5, 0.5), **fields}
    want = pytorch.timm.data.create_transform(**config, is_training=False)(PHOTO).permute(1, 2, 0).numpy()
    np.testing.assert_allclose(weights.load(source)[2](PHOTO), want, atol=1e-5)


CONFIGS = {
    "vit": {"hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 192, "image_size": 32, "patch_size": 8},
    "swin": {
        "embed_dim": 24,
        "depths": [2, 1],
        "num_heads": [2, 4],
        "image_size": 32,
        "patch_size": 2,
        "window_size": 4,
    },
}


def transformers_model(kind, directory, teacher=False, **fields):
    library = pytorch.transformers
    name = {"vit": "ViT", "deit": "DeiT", "swin": "Swin"}[kind]
    config = getattr(library, f"{name}Config")(**(CONFIGS.get(kind, CONFIGS["vit"]) | fields))
    model = filled(getattr(library, f"{name}ForImageClassification{'WithTeacher' if teacher else ''}")(config))
    model.save_pretrained(directory, max_shard_size="40KB")
    return model


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("vit", {"num_attention_heads": 6}),
        ("vit", {"num_attention_heads": 3, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}),
        ("vit", {"num_attention_heads": 4, "qkv_bias": False}),
        ("deit", {"num_attention_heads": 6}),
        ("deit", {"num_attention_heads": 4, "teacher": True}),
        ("swin", {}),
        ("swin", {"hidden_act": "gelu_new"}),
        ("swin", {"mlp_ratio": 2.0}),
        ("vit", {"num_attention_heads": 3, "intermediate_size": 37}),
        ("deit", {"num_attention_heads": 3, "intermediate_size": 37}),
    ],
    ids=str,
)
def test_configs_of_transformers_are_honoured_from_shards(tmp_path, kind, fields):
    model = transformers_model(kind, tmp_path, num_labels=5, **fields)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert difference(f"huggingface:{tmp_path}", model) < 1e-4
    assert weights.read(f"huggingface:{tmp_path}").class_names == []  # LABEL_0 is no name


@pytest.mark.parametrize("task", ["multi_label_classification", "regression"])
def test_heads_that_are_no_choice_of_one_class_are_refused(tmp_path, task):
    transformers_model("vit", tmp_path, num_labels=5, num_attention_heads=3, problem_type=task)
    with pytest.raises(weights.UserError, match=task):
        weights.read(f"huggingface:{tmp_path}")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"resample": 3},
        {"do_normalize": False},
        {"do_rescale": False},
        {"rescale_factor": 1 / 127.5, "image_mean": [1.0, 1.0, 1.0], "image_std": [1.0, 1.0, 1.0]},
        {"size": {"height": 40, "width": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
        {"size": {"shortest_edge": 40}, "do_center_crop": True, "crop_size": {"height": 32, "width": 32}},
    ],
    ids=str,
)
def test_photographs_are_prepared_as_transformers_does(tmp_path, fields):
    transformers_model("vit", tmp_path, num_labels=5, num_attention_heads=3)
    module = pytest.importorskip("transformers.models.vit.image_processing_pil_vit")
    given = {"size": {"height": 32, "width": 32}} | fields
    processor = module.ViTImageProcessorPil(**given)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(given))
    want = processor(PHOTO, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    got = weights.load(f"huggingface:{tmp_path}")[2](PHOTO)
    np.testing.assert_allclose(got, want, atol=1e-5 * max(1, np.abs(want).max()))


PREFIXES = ["module.", "model.", "timm_model.", "state_dict.", "encoder.", "module.model.", "model.encoder._orig_mod."]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_prefixes_of_wrappers_are_taken_off(tmp_path, prefix, name):
    fields = SWIN if name.startswith("swin") else TINY
    model = timm_model(name, **fields)
    state = {prefix + key: value for key, value in model.state_dict().items()}
    assert difference(save(tmp_path / "model.safetensors", state, card(fields, name)), model) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_read(tmp_path, dtype):
    model = timm_model(**TINY).to(dtype)
    source = save(tmp_path / "model.safetensors", model.state_dict(), card())
    assert difference(source, model.float()) < 1e-4


def test_a_backbone_gets_a_new_head(tmp_path, capsys):
    model = timm_model(classes=0, **TINY)
    state = model.state_dict() | {"mask_token": torch.zeros(1, 1, 48)}
    source = save(tmp_path / "model.safetensors", state, card())
    found, params, preprocess = weights.load(source, num_classes=3)
    logits = found.apply({"params": params}, recipe.images(2, preprocess.size, seed=2))
    assert logits.shape == (2, 3)
    assert not np.asarray(logits).any()
    assert "does not use mask_token" in capsys.readouterr().err
    with pytest.raises(weights.UserError, match="num_classes"):
        weights.read(source)


class Odd:
    """What a training script saves beside its tensors."""


@pytest.mark.parametrize("kind", ["timm", "timm ema", "deit", "deit ema", "lightning", "plain"])
def test_training_checkpoints_are_converted(tmp_path, kind):
    last, average = timm_model(**TINY), timm_model(classes=5, **TINY)
    filled(average, seed=9)
    state = {"timm": "state_dict", "deit": "model", "lightning": "state_dict"}.get(kind.split()[0], "")
    saved = {
        "epoch": 7,
        "args": argparse.Namespace(lr=0.1, model="vit", odd=Odd()),
        "optimizer": torch.optim.AdamW(last.parameters()).state_dict(),
        state: last.state_dict(),
    }
    if kind.endswith("ema"):
        saved[f"{state}_ema"] = average.state_dict()
    if kind == "lightning":
        saved = {
            "state_dict": {f"model.{key}": value for key, value in last.state_dict().items()},
            "hyper_parameters": Odd(),
        }
    torch.save(last.state_dict() if kind == "plain" else saved, tmp_path / "last.pth")
    with pytest.raises(weights.UserError, match=r"python -m lraqvit_jax\.weights convert"):
        weights.read(f"timm:{tmp_path}/last.pth")
    convert.command([f"{tmp_path}/last.pth"])
    (tmp_path / "config.json").write_text(json.dumps(card()))
    assert difference(f"timm:{tmp_path}/last.safetensors", average if kind.endswith("ema") else last) < 1e-4


def test_nothing_of_a_pickle_runs(tmp_path):
    class Evil:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    torch.save({"model": timm_model(**TINY).state_dict(), "evil": Evil()}, tmp_path / "last.pth")
    convert.command([f"{tmp_path}/last.pth"])
    assert not (tmp_path / "ran").exists()


def test_the_table_of_published_models_is_timms():
    from tests.parity import timm_defaults

    assert json.loads(timm_defaults.PATH.read_text()) == json.loads(json.dumps(timm_defaults.table()))
