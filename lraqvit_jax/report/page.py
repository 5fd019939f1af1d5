"""Puts the page together: one run in full, or several side by side. Everything but the figures is escaped."""

import importlib.resources
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import markupsafe

from lraqvit_jax import config as config_lib
from lraqvit_jax.config import Config
from lraqvit_jax.options import records
from lraqvit_jax.report import activations, frontier, panels, search, sizes, spectra, table, theme, training, words
from lraqvit_jax.report.blocks import FigureBlock
from lraqvit_jax.report.figures import SERIES
from lraqvit_jax.report.read import Run

LISTS = ("runs.", "quant.methods.")
"""Where the names in a configuration are the user's."""
MEASUREMENTS = ("grid", "quant_grid", "latency", "scaling")
"""Fields of `python -m lraqvit_jax.bench`."""
COSTS = {"size_mb": "MB", "linear_gflops": "GFLOPs in linear layers", "ms": "milliseconds an image"}


def one(run: Run) -> str:
    """The report of a run."""
    scaled = [name for name in table_names(run) if name in run.surfaces]
    name = "int8_wads" if "int8_wads" in scaled else next(iter(scaled), "")
    errors = {name: run.metas[name]["errors"] for name in table_names(run) if "errors" in run.metas.get(name, {})}
    ranks = {path: layer.rank for path, layer in run.plan.items() if layer.rank}
    parts = [
        spectra.spectra(run.spectra, ranks),
        training.training(run.training),
        activations.activations(run.surfaces.get(name, {}), errors, name),
    ]
    rows = table.rows(run)
    return _render(
        title=f"{run.model}: compression report",
        lead=words.lead(run),
        tiles=words.tiles(run),
        points=words.points(run),
        bodies=bodies([run], rows),
        rows=rows,
        costs=tradeoffs(rows),
        grids=[*search.search(run), *frontier.frontier(run, rows)],
        latency=words.latency(run),
        measure=words.measure(run),
        maps=[sizes.size_map(run)],
        plan=sizes.plan_rows(run.plan, run.layers),
        parts=parts,
        examples=examples(run),
        runs=[(run.name, provenance(run), json.dumps(run.config, indent=1))],
        differences=[],
        names=[],
        keys=[],
    )


def several(runs: Sequence[Run]) -> str:
    """Runs side by side: one table, one picture, their maps of ranks, and in what their configurations differ."""
    rows: list[dict[str, Any]] = []
    for run in runs:
        rows += table.rows(run, len(rows) + 1)
    lead, points = words.comparison(runs)
    colors = {run.name: SERIES[index % len(SERIES)] for index, run in enumerate(runs)}
    return _render(
        title=f"{len(runs)} compression runs compared",
        lead=lead,
        tiles=[],
        points=points,
        bodies=bodies(runs, rows),
        rows=rows,
        costs=tradeoffs(rows, colors),
        grids=[],
        latency=" ".join(f"{run.name}: {said}" for run in runs if (said := words.latency(run))),
        measure="" if any(run.latency for run in runs) else words.measure(runs[0]),
        maps=[sizes.size_map(run) for run in runs],
        plan=[],
        parts=[],
        examples=None,
        runs=[(run.name, provenance(run), json.dumps(run.config, indent=1)) for run in runs],
        differences=differences(runs),
        names=[run.name for run in runs],
        keys=[(theme.VARIABLES[color], name) for name, color in colors.items()],
    )


def table_names(run: Run) -> list[str]:
    return [row["name"] for row in run.rows]


def bodies(runs: Sequence[Run], rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """The table's rows under the headings they stand under."""
    by_heading: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        group = table.TITLES[row["group"]]
        heading = f"{row['run']}: {group[0].lower()}{group[1:]}" if len(runs) > 1 else group
        by_heading.setdefault(heading, []).append(row)
    return list(by_heading.items())


def tradeoffs(rows: Sequence[Mapping[str, Any]], colors: Mapping[str, str] | None = None) -> list[FigureBlock]:
    """Top-1 against each cost that is known of two models or more."""
    figures = []
    for key, label in COSTS.items():
        measured = [row for row in rows if row.get(key)]
        if len({row[key] for row in measured}) < 2:
            continue
        front = table.front(measured, key)
        on_it = "; ".join(f"{row['name']}, {row[key]:.3g} {label}, {row['top1']:.1f} %" for row in front)
        svg = panels.tradeoff(f"cost{key.replace('_', '')}", measured, key, label, front, colors)
        title = f"Top-1 accuracy against {label}, {len(measured)} models"
        description = (
            f"No other model is both cheaper and better than these: {on_it}. The result table has all numbers."
        )
        svg = theme.inline(svg, f"cost{key.replace('_', '')}", title, description)
        figures.append(FigureBlock(svg, f"Top-1 against {label}."))
    return figures


def examples(run: Run) -> dict[str, Any]:
    """Images that the dense model and the pick answer differently, or the sentence that stands for them."""
    best = table.pick(run)
    if best is None:
        return {"images": [], "pair": None, "text": "There is no dense and compressed model to compare yet."}
    pair = table.pair(run, best["name"])
    if pair is None:
        text = (
            "What the models said of each image was not kept. Delete results.json and run --stages=evaluate,report to "
            "have them evaluated anew."
        )
        return {"images": [], "pair": None, "text": text}
    if not pair.differ:
        return {
            "images": [],
            "pair": None,
            "text": f"The dense model and {best['name']} answer all {pair.images:,} images alike.",
        }
    stored = run.examples if run.examples.get("model") == best["name"] else {}
    text = f"The dense model and {best['name']} answer {pair.differ:,} of {pair.images:,} images differently."
    if not stored:
        text += " The stage report, where the images are, picks some to show."
    images = [_example(run, image) for image in stored.get("images", ())]
    wrong = pair.images - pair.both - pair.dense - pair.other
    return {"images": images, "text": text, "pair": pair, "wrong": wrong, "name": best["name"]}


def _example(run: Run, image: Mapping[str, Any]) -> dict[str, Any]:
    named = _short_names(run.class_names, [image["label"], *(image[who]["answer"] for who in ("dense", "other"))])
    answers = [
        {
            "name": named[image[who]["answer"]],
            "share": f"{100 * image[who]['probability']:.0f}",
            "right": image[who]["answer"] == image["label"],
        }
        for who in ("dense", "other")
    ]
    src = image["src"] if str(image["src"]).startswith("data:image/") else ""
    return {"index": image["index"], "label": named[image["label"]], "answers": answers, "src": src}


def _short_names(names: Sequence[str], classes: Sequence[int]) -> dict[int, str]:
    """The first of the synonyms that a class has for a name, or all of them where another class has the same first."""
    full = {index: str(names[index]) if 0 <= index < len(names) else f"class {index}" for index in classes}
    first = {index: name.partition(", ")[0] for index, name in full.items()}
    return {index: name if list(first.values()).count(name) == 1 else full[index] for index, name in first.items()}


def differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Fields of the configurations that are not the same in all runs, with their values; "-" where a run has none.

    A run or method that only some have is one row, and the settings of measurements are left out.
    """
    flat = [config_lib.leaves(run.config) for run in runs]
    by_field: dict[str, list[str]] = {}
    for name in sorted(set().union(*flat)):
        whole = next((name[: name.index(".", len(group))] for group in LISTS if name.startswith(group)), "")
        if name.split(".")[0] in MEASUREMENTS:
            continue
        if whole and not all(any(field.startswith(f"{whole}.") for field in fields) for fields in flat):
            by_field[whole] = [
                "set" if any(field.startswith(f"{whole}.") for field in fields) else "-" for fields in flat
            ]
        else:
            by_field[name] = ["-" if name not in fields else _value(fields[name]) for fields in flat]
    return [(name, values) for name, values in by_field.items() if len(set(values)) > 1]


def _value(value: Any) -> str:
    return (value or '""') if isinstance(value, str) else json.dumps(value)


def provenance(run: Run) -> list[tuple[str, str]]:
    """Where the numbers come from: weights, data, draws and versions."""
    meta = run.metas.get("dense") or next(iter(run.metas.values()), {})
    weights, size = meta.get("weights") or {}, (meta.get("preprocess") or {}).get("size", "?")
    source = f"{weights['source']}, sha256 {weights['sha256']}" if weights.get("source") else meta.get("notes", "")
    facts = {
        "model": f"{run.model}, {meta['num_classes']} classes, input {size} x {size}" if meta else run.model,
        "teacher": source,
        **(_configured(run.options) if run.config else {}),
        "versions": ", ".join(f"{name} {version}" for name, version in meta.get("versions", {}).items()),
    }
    return [(name, value) for name, value in facts.items() if value]


def _configured(config: Config) -> dict[str, str]:
    """What the configuration says of data and ranks, for people."""
    mixing = [f"{name} {value}" for name in ("mixup", "cutmix") if (value := getattr(config.mix, name))]
    plan = records.to_dict(config.plan).items()
    return {
        "training data": config.data.train,
        "evaluation data": config.data.eval,
        "augmentation": ", ".join([config.augment or "none", *mixing]),
        "calibration": f"{config.factorize.calibration_images} images for low rank, "
        f"{config.quant.calibration_images} for int8, from {config.data.calibration or 'the training data'}, "
        f"drawn with seed {config.seed}",
        "plan": ", ".join(f"{name} {_value(value)}" for name, value in plan),
    }


def _render(**values: Any) -> str:
    files = importlib.resources.files(__package__)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["signed"] = words.signed
    environment.filters["breakable"] = breakable
    style = files.joinpath("style.css").read_text()
    for name, dark in (("light", False), ("dark", True)):
        style = style.replace(f"/* {name} figures */", theme.css(dark))
    counts = {row["n_images"] for row in values["rows"]}
    template = environment.from_string(files.joinpath("page.html").read_text())
    return template.render(
        **values,
        style=markupsafe.Markup(style),
        images=f"{counts.pop():,}" if len(counts) == 1 else "",
        known={name: any(row[name] is not None for row in values["rows"]) for name in ("diff", "pair", "ms")},
    )


def breakable(name: str) -> markupsafe.Markup:
    """A name that may break behind its underscores."""
    return markupsafe.Markup("<wbr>").join(
        f"{part}{'_' * (index < name.count('_'))}" for index, part in enumerate(name.split("_"))
    )
