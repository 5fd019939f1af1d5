"""Options are read once: every field known, of its type and in its bounds, and two models never share a name."""

import dataclasses
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lraqvit_jax import config
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.options import records
from lraqvit_jax.options.training import Distillation, Optimizer, Recipe, Run


def fields(**changes):
    """The default configuration with data, and fields changed by their dotted names."""
    tree = config.default()
    tree.data.update(train="embedded:digits", eval="embedded:digits")
    values = tree.to_dict()
    for path, value in changes.items():
        *outer, last = path.split("__")
        node = values
        for name in outer:
            node = node[name]
        node[last] = value
    return values


def test_the_default_is_read_back_as_it_was_written():
    parsed = config.parse(fields())
    assert config.parse(parsed.to_dict()) == parsed  # lists of JSON become tuples
    with pytest.raises(dataclasses.FrozenInstanceError):
        parsed.seed = 3


def numbers(kind=config.Config, where=""):
    """Every numeric field with a lower bound, by its path, and the bound."""
    for field in dataclasses.fields(kind):
        path = f"{where}{field.name}"
        if record := field.metadata.get("kind"):
            entry = "rb_lra_kd" if record is Run else "int8_naive" if path.startswith("quant__") else "naive"
            yield from numbers(record, f"{path}__{entry}__")
        elif dataclasses.is_dataclass(field.default):
            yield from numbers(type(field.default), f"{path}__")
        elif (low := field.metadata.get("low")) is not None or (low := field.metadata.get("above")) is not None:
            yield path, low, type(field.default)


@pytest.mark.parametrize(("path", "low", "kind"), list(numbers()), ids=str)
def test_a_number_below_its_bound_is_refused_by_name(path, low, kind):
    values = {low - 1.0, math.nan} if kind is float else {low - 1, low - 7}
    for value in [(3, value) for value in values] if kind is tuple else values:
        with pytest.raises(UserError, match=re.escape(path.replace("__", ".")) + " is "):
            config.parse(fields(**{path: value}))


@pytest.mark.parametrize("path", ["teacher__steps", "quant__methods__int8_wads__iterations", "latency__rounds"])
def test_counts_that_are_negative_are_among_them(path):
    assert path in {path.replace("int8_naive", "int8_wads") for path, _, _ in numbers()}


def test_mistakes_are_one_sentence_that_names_the_field():
    cases = {
        r"no field 'teacher\.step'; did you mean 'steps'": {"teacher__step": 3},
        "'seed' is 'x'; give a whole number such as 0": {"seed": "x"},
        "'seed' is True; give a whole number": {"seed": True},
        "'teacher.learning_rate' is True; give a number": {"teacher__learning_rate": True},
        "'tensorboard' is 1; give True or False": {"tensorboard": 1},
        "seed is 12345678901234567890123; give a whole number up to 2,147,483,647": {
            "seed": 10**22 + 2345678901234567890123
        },
        r"steps is 1000000000.*\.\.\.": {"steps": 10**4000},
        "runs.rb_lra_kd.weight_decay is inf; give a finite": {"runs__rb_lra_kd__weight_decay": math.inf},
        "optimizer.learning_rate is inf; give a finite": {"optimizer__learning_rate": math.inf},
        "latency.threads is 0; give a number above 0": {"latency__threads": [1, 0]},
        "data.std is 0.0; give a number above 0": {"data__std": (0.5, 0.0, 0.5)},
        "'mix' is 3; it holds fields of its own": {"mix": 3},
        "'runs' is 3; it holds": {"runs": 3},
        "dtype is 'float16'; .*Known: bfloat16, float32": {"dtype": "float16"},
        "'none', which is not a run": {"quant__source": "none"},
        "no field 'runs.rb_lra_kd.betta'; did you mean 'beta'": {"runs__rb_lra_kd__betta": 1.0},
    }
    for words, changes in cases.items():
        with pytest.raises(UserError, match=words):
            config.parse(fields(**changes))
    whole = fields()
    del whole["teacher"]["beta2"]
    with pytest.raises(UserError, match=r"lacks the field 'teacher\.beta2'"):
        config.parse(whole)


def models(**changes):
    run, quantizer = config.run().to_dict(), config.quantizer().to_dict()
    names = {"runs": ["rb_lra_kd"], "methods": ["int8"], "baselines": ("svd", "whitened"), **changes}
    return fields(
        runs=dict.fromkeys(names["runs"], run),
        quant__methods=dict.fromkeys(names["methods"], quantizer),
        quant__source=names["runs"][0],
        factorize__baselines=names["baselines"],
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"runs": ["lra"]}, r"runs\.lra and factorize\.baselines 'svd' would both make the artefact 'lra'"),
        ({"runs": ["lra_whitened"]}, r"would both make the artefact 'lra_whitened'"),
        ({"runs": ["LRA"]}, r"would both make the artefact 'LRA'"),
        ({"runs": ["dense"]}, r"runs\.dense and the teacher"),
        ({"methods": ["dense"]}, r"quant\.methods\.dense and the teacher"),
        ({"runs": ["a"], "methods": ["a"]}, r"quant\.methods\.a and runs\.a"),
        ({"runs": ["a.start"]}, "cannot name an artefact"),
        ({"runs": ["a/b"]}, "cannot name an artefact"),
        ({"runs": [".."]}, "cannot name an artefact"),
        ({"methods": ["int8 wads"]}, "cannot name an artefact"),
        ({"methods": [""]}, "cannot name an artefact"),
        ({"methods": ["x*"]}, "cannot name an artefact"),
    ],
    ids=str,
)
def test_two_models_never_share_a_name(changes, words):
    with pytest.raises(UserError, match=words):
        config.parse(models(**changes))


def test_without_the_baseline_the_name_is_free():
    parsed = config.parse(models(runs=["lra"], baselines=()))
    assert config.rows(parsed) == ["dense", "lra", "dense_int8", "int8"]


@given(st.lists(st.sampled_from(["a", "b", "A", "lra", "dense", "x.y", "x_1"]), min_size=1, max_size=4, unique=True))
def test_names_are_taken_where_and_only_where_they_differ(names):
    free = len({"dense", *map(str.lower, names)}) == len(names) + 1
    try:
        config.parse(models(runs=names, methods=[], baselines=()))
    except UserError:
        assert not free
    else:
        assert free


def test_the_run_that_is_quantized_comes_last():
    values = models(runs=["a", "z", "b"])
    values["quant"]["source"] = "a"
    assert list(config.parse(values).runs) == ["z", "b", "a"]


def test_a_run_takes_what_it_does_not_say_from_the_optimizer():
    optimizer = Optimizer(learning_rate=1e-3, warmup=7, weight_decay=0.1)
    assert Run().recipe(optimizer, 50) == Recipe(1e-3, warmup=7, weight_decay=0.1, steps=50)
    run = Run(learning_rate=2e-3, weight_decay=0.0, steps=9, gamma=0.5)
    assert run.recipe(optimizer, 50) == Recipe(2e-3, warmup=7, weight_decay=0.0, steps=9)
    assert run.distillation == Distillation(gamma=0.5)


def test_older_files_are_filled_with_defaults():
    old = config.parse(fields()).to_dict()
    for part, name in (
        (old, "profile"),
        (old["runs"]["rb_lra_kd"], "delta"),
        (old["quant"]["methods"]["int8_wads"], "group"),
    ):
        del part[name]
    assert config.filled(config.leaves(old)) == config.leaves(config.parse(fields()).to_dict())


def test_a_record_within_a_record_is_taken_apart():
    assert records.part(Optimizer, Recipe(1e-4, steps=3)) == Optimizer(1e-4)
