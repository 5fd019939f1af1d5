"""One model as a repository of the Hugging Face Hub: config.json, and README.md, a model card."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from lraqvit_jax import models
from lraqvit_jax.base.version import VERSION
from lraqvit_jax.data import preprocess
from lraqvit_jax.data.preprocess import INTERPOLATIONS
from lraqvit_jax.export import card
from lraqvit_jax.options.quant import BITS
from lraqvit_jax.weights import cards
from lraqvit_jax.weights.artifacts import Artifact

LICENCES = {
    *("apache-2.0", "mit", "openrail", "bigscience-openrail-m", "creativeml-openrail-m", "bigcode-openrail-m"),
    *("afl-3.0", "artistic-2.0", "bsl-1.0", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "cc"),
    *("cc0-1.0", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0"),
    *("cc-by-nc-4.0", "cc-by-nd-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0"),
    *("cc-by-nc-sa-4.0", "cdla-permissive-2.0", "wtfpl", "epl-2.0", "eupl-1.2", "agpl-3.0", "gpl", "gpl-2.0"),
    *("gpl-3.0", "lgpl", "lgpl-2.1", "lgpl-3.0", "isc", "ms-pl", "apple-ascl", "apple-amlr", "mpl-2.0", "osl-3.0"),
    *("postgresql", "ofl-1.1", "ncsa", "unlicense", "zlib", "odbl", "odc-by", "pddl"),
}
"""Names that the Hub has for licences; any other is "other" there, with a name beside it."""
DATASETS = {
    "imagenet2012": "ILSVRC/imagenet-1k",
    "mnist": "ylecun/mnist",
    "mnist5k": "ylecun/mnist",
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
}
"""The Hub's names of data sets that sources of ours have."""
FILES = {
    "config.json": "what the model is, as timm has it",
    "preprocessor_config.json": "how its images are prepared, as transformers has it",
    "plan.json": "form, rank and bits of every layer",
    "model.safetensors": "for lraqvit_jax, and for PyTorch by timm's names",
    "model.onnx": "for ONNX Runtime",
}


class Shared(NamedTuple):
    """What the card of a repository is made of.

    Attributes:
        repository: USER/NAME.
        name: of the artefact.
        source: where its weights came from; "" where they were trained.
        licence: of these; "" where nobody says.
        row: of results.json; None where it is not evaluated.
        dense: the dense model's, likewise.
        table: of all results.
        told: NAME.json of the exported files.
        files: of the folder, with their bytes.
        images: data sources of "training", "calibration" and "evaluation".
        trained: whether the dense model was trained, or tuned, here.
    """

    repository: str
    name: str
    source: str
    licence: str
    row: Mapping[str, Any] | None
    dense: Mapping[str, Any] | None
    table: str
    told: Mapping[str, Any]
    files: Mapping[str, int]
    images: Mapping[str, str]
    trained: bool


def config(artifact: Artifact, layout: str = "factors") -> dict[str, Any]:
    """config.json, as timm writes it; `architecture` is there where timm has one that loads these tensors.

    Args:
        artifact: the model.
        layout: of its model.safetensors.
    """
    prepare, meta = artifact.preprocess, artifact.meta
    pretrained = {
        "input_size": [3, prepare.size, prepare.size],
        **{name: value for name, value in prepare.to_json().items() if name not in ("size", "crop_mode")},
        "crop_mode": prepare.crop_mode,
        "num_classes": meta["num_classes"],
    }
    said: dict[str, Any] = {"num_classes": meta["num_classes"], "pretrained_cfg": pretrained}
    name = _architecture(meta["model"], prepare.size)
    if name and (layout == "expanded" or {layer.form for layer in artifact.plan.values()} == {"dense"}):
        said = {"architecture": name, **said}
    if meta["class_names"]:
        said["label_names"] = list(meta["class_names"])
    return said | {"lraqvit_jax": {"version": VERSION, "model": meta["model"], "artifact": artifact.name}}


def _architecture(model: str, size: int) -> str:
    """timm's name of a model; "" where it has none."""
    base, changes = models.split(model)
    family, fields = models.architecture(model, size)
    window = f"_window{fields['window_size']}" if family == "swin" else ""
    name = f"{base}_patch{fields['patch_size']}{window}_{size}"
    known = cards.heads([name]) or cards.published(name)
    return name if known and set(changes) <= {"patch_size", "window_size"} else ""


def text(said: Shared) -> str:
    """README.md, checked by huggingface_hub as far as that works without the Hub: its fields are read back, and results
    are as it has them.

    Raises:
        ValueError: it is no card, a defect of ours.
    """
    import huggingface_hub

    base, licence = card.repository(said.source), said.licence.lower()
    fields: dict[str, Any] = {"license": licence if licence in LICENCES else "other"}
    if licence not in LICENCES:
        fields["license_name"] = re.sub(r"[^a-z0-9.]+", "-", licence).strip("-.") or "not-stated"
    fields |= {"library_name": "onnx", "pipeline_tag": "image-classification", "tags": _tags(said)}
    if base:
        fields |= {"base_model": base, "base_model_relation": "quantized"}
    if said.trained and (dataset := DATASETS.get(_plain(said.images["training"]))):
        fields["datasets"] = [dataset]
    title = said.repository.partition("/")[2]
    data = huggingface_hub.ModelCardData(**fields, model_name=title, eval_results=_results(said))
    written = huggingface_hub.ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_body(said, base)}")
    if written.data.to_dict() != data.to_dict():
        raise ValueError("the card does not say what was put into it")
    return str(written)


def _tags(said: Shared) -> list[str]:
    bits = [f"{bits}-bit" for bits in reversed(BITS) if re.search(rf"int{bits}(?!\d)", said.name)]
    litert = ["litert"] * any(name.endswith("tflite") for name in said.files)
    return ["image-classification", "vision-transformer", "lraqvit_jax", "onnx", *litert, "quantized", *bits]


def _plain(source: str) -> str:
    """A data source without its kind, its folders and what it asks for: "folder:a/photos?labels=none" is "photos"."""
    return re.split(r"[?@]", source.partition(":")[2])[0].rstrip("/").rpartition("/")[2]


def _results(said: Shared) -> list[Any] | None:
    """The accuracies for the card's model-index, shares, as the Hub's metrics are; None where there are none."""
    import huggingface_hub

    if said.row is None:
        return None
    name = _plain(said.images["evaluation"])
    measured = [("accuracy", "top-1 accuracy", "top1"), ("top_5_accuracy", "top-5 accuracy", "top5")]
    return [
        huggingface_hub.EvalResult(
            task_type="image-classification",
            task_name="Image classification",
            dataset_type=DATASETS.get(name, "imagefolder"),
            dataset_name=name or "images",
            metric_type=metric,
            metric_name=words,
            metric_value=round(said.row[field] / 100, 6),
        )
        for metric, words, field in measured
    ]


def _body(said: Shared, base: str) -> str:
    lines = [f"# {said.repository.partition('/')[2]}", "", *_summary(said, base), "", "## Use it", ""]
    lines += ["With the Python package `lraqvit_jax`:", "", "```python", *_with_package(said.repository), "```", ""]
    if "model.onnx" in said.files:
        given = {**said.told, **said.told.get("onnx_contract", {})}
        lines += [
            "Without it, in ONNX Runtime:",
            "",
            "```python",
            *_with_onnxruntime(said.repository, given),
            "```",
            "",
        ]
        lines += ["It prints the number of a class, by the order of `label_names` in config.json.", ""]
    if "frontier.svg" in said.files:
        lines += ["## Accuracy against size", "", "![Accuracy against size](frontier.svg)", ""]
    lines += ["## Results", "", "Accuracies in percent; MB are 10⁶ bytes of parameters as they are stored.", ""]
    lines += ["```text", said.table, "```", "", "## Data", ""]
    roles = [role for role in said.images if role != "training" or said.trained]
    lines += [f"* {role}: {_plain(said.images[role]) or 'images'}" for role in roles]
    files = {name: size for name, size in said.files.items() if name != "README.md"}
    lines += ["", "## Files", "", *(f"* `{name}`: {size / 1e6:.3f} MB{_what(name)}" for name, size in files.items())]
    return "\n".join([*lines, "", "## Licence", "", _licence(said), ""])


def _summary(said: Shared, base: str) -> list[str]:
    of = f" of [{base}](https://huggingface.co/{base})" if base else ""
    if not base and said.source:
        of = f" of `{said.source.rpartition('/')[2].rpartition(':')[2]}`"
    lines = [f"A small form{of}: `{said.name}` of a run of lraqvit_jax {VERSION}."]
    if said.row is None:
        return lines
    row, dense = said.row, said.dense
    size = f"**{row['size_mb']:.3f} MB, {row['top1']:.2f} % of {row['n_images']:,} images right (top-1)**"
    of_dense = ""
    if dense and dense is not row:
        of_dense = f"; the dense model: {dense['size_mb']:.3f} MB, {dense['top1']:.2f} %"
    return [*lines, "", f"{size}{of_dense}."]


def _licence(said: Shared) -> str:
    if said.licence:
        return f"Of the weights that this was made of: {said.licence}."
    if said.source:
        return "The card of the weights that this was made of states no licence; ask where they came from."
    return "Who trained these weights states no licence."


def _what(name: str) -> str:
    what = FILES.get(name, "for LiteRT" if name.endswith("tflite") else "")
    return f", {what}" if what else ""


def _with_package(repository: str) -> list[str]:
    return [
        "import lraqvit_jax",
        "",
        f'model = lraqvit_jax.load("hub:{repository}")',
        'print(model.predict("photo.jpg"))',
    ]


def _with_onnxruntime(repository: str, given: Mapping[str, Any]) -> list[str]:
    """From a photograph to a class, prepared as the file says."""
    prepare = preprocess.from_json(given["preprocess"])
    size, edge = prepare.size, int(prepare.size / prepare.crop_pct)
    center = prepare.crop_mode == "center"
    shape = f"[int({edge} * side / min(image.size)) for side in image.size]" if center else f"({edge}, {edge})"
    crop = [
        f"left, top = (round((side - {size}) / 2) for side in image.size)",
        f"image = image.crop((left, top, left + {size}, top + {size}))",
    ]
    values = f"(np.asarray(image) / 255 - {list(prepare.mean)}) / {list(prepare.std)}"
    pixels = given["input"]["dtype"] == "uint8"
    return [
        "import huggingface_hub",
        "import numpy as np",
        "import onnxruntime",
        "from PIL import Image",
        "",
        f'session = onnxruntime.InferenceSession(huggingface_hub.hf_hub_download("{repository}", "model.onnx"))',
        'image = Image.open("photo.jpg").convert("RGB")',
        f"image = image.resize({shape}, {int(INTERPOLATIONS[prepare.interpolation])})",
        *(crop if center or edge != size else []),
        "images = np.asarray(image)[None]" if pixels else f"images = np.asarray({values}, np.float32)[None]",
        'logits = session.run(None, {"images": images})[0]',
        "print(logits[0].argmax())",
    ]
