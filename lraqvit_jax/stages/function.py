"""A run of a function that is not one of our models: its work directory, from dense to integers."""

import functools
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lraqvit_jax.base import console, files
from lraqvit_jax.base.errors import UserError, reason
from lraqvit_jax.options import records
from lraqvit_jax.options.function import FunctionOptions
from lraqvit_jax.report import function as report
from lraqvit_jax.run import lock
from lraqvit_jax.trace import compress, products, saved, task
from lraqvit_jax.trace.compress import Function
from lraqvit_jax.trace.task import Task

FREE = ("export",)
"""Fields that may change between two calls in one work directory."""


def run(options: FunctionOptions, workdir: str) -> None:
    """Makes what is not there yet, measures it, and writes the table, the files and the report.

    Raises:
        UserError: a function that is no task or cannot be made small, a directory that is of another run.
    """
    with lock.alone(workdir):
        directory = pathlib.Path(workdir)
        _claim(directory, options)
        given = task.load(options.model)
        compress.check(options.budget, options.bits, options.quantizer)
        made = {"dense": _dense(given)}
        rows = [_row(directory, "dense", "as it came", made["dense"], given, options)]
        steps = {"small": lambda: _small(given, options)}
        if options.bits:
            name = f"int{options.bits}"
            steps[name] = lambda: compress.integers(made["small"], given.batches, options.bits, options.quantizer)
        for name, make in steps.items():
            started = time.perf_counter()
            made[name] = _kept(directory, name, make, given)
            console.say(f"-- {name}: {time.perf_counter() - started:.1f} s")
            rows.append(_row(directory, name, _how(name, options), made[name], given, options))
        files.write_atomically(directory / "plan.json", _json(saved.to_json(made["small"].plan)))
        if options.export:
            _export(directory, made, given)
        page = report.page(
            options.model, rows, _places(made["small"]), str(made["dense"].sites), records.to_dict(options)
        )
        files.write_atomically(directory / "report.html", page)
        console.result(f"\n{report.table(rows)}\n\n{directory / 'results.json'}\n{directory / 'report.html'}")


def dry_run(options: FunctionOptions) -> None:
    """Prints what is found in the function; writes nothing."""
    given = task.load(options.model)
    compress.check(options.budget, options.bits, options.quantizer)
    print(products.find(given.apply, given.params, compress.listed(given.batches)[0]))


def load(workdir: str | os.PathLike, name: str = "") -> Function:
    """A function that a run made; "" is the last: the integers, where there are some.

    Raises:
        UserError: no such run or model.
    """
    directory = files.locate(workdir)
    options = records.parse(FunctionOptions, files.json_object(directory / "config.json", "run it again")["function"])
    name = name or (f"int{options.bits}" if options.bits else "small")
    given = task.load(options.model)
    return Function.restore(directory / "checkpoints" / name, given.apply, given.params, given.batches[0])


def is_one(workdir: str | os.PathLike) -> bool:
    """Whether a work directory is that of a function."""
    path = pathlib.Path(workdir) / "config.json"
    return path.is_file() and "function" in files.json_object(path, "run it again")


def _json(value: Any) -> str:
    return json.dumps(value, indent=1) + "\n"


def _claim(directory: pathlib.Path, options: FunctionOptions) -> None:
    """Writes config.json; UserError where the directory is of another run."""
    fields, path = json.loads(json.dumps(records.to_dict(options))), directory / "config.json"
    if path.exists():
        before = files.json_object(path, "name another work directory").get("function")
        if before is None:
            raise UserError(f"{directory} is of a model of ours; name another work directory.")
        for name, value in fields.items():
            if name not in FREE and before.get(name) != value:
                raise UserError(
                    f"{directory} belongs to another config: {name} was {before.get(name)!r} and is {value!r}; name "
                    "another work directory or put the field back."
                )
    elif (directory / "checkpoints").exists():
        raise UserError(f"{directory} holds checkpoints but no config.json to tell whose; name another work directory.")
    files.write_atomically(path, _json({"function": fields}))


def _dense(given: Task) -> Function:
    batches = compress.listed(given.batches)
    sites = products.find(given.apply, given.params, batches[0])
    function, params = compress.rewrite.rewrite(given.apply, given.params, {}, sites)
    return Function(function, jax.tree.map(jnp.asarray, params), {}, sites)


def _small(given: Task, options: FunctionOptions) -> Function:
    names = ("budget", "metric", "keep_dense", "multiple", "steps", "learning_rate", "seed")
    fields: dict[str, Any] = {name: getattr(options, name) for name in names}
    return compress.smaller(given.apply, given.params, given.batches, **fields)


def _kept(directory: pathlib.Path, name: str, make: Callable[[], Function], given: Task) -> Function:
    """A function from its checkpoint, which is written where there is none."""
    folder = directory / "checkpoints" / name
    if not folder.exists():
        console.heading(f"-- {name}")
        folder.parent.mkdir(exist_ok=True)
        made = make()
        made.save(folder)
        return made
    return Function.restore(folder, given.apply, given.params, given.batches[0])


def _how(name: str, options: FunctionOptions) -> str:
    if name == "small":
        trained = f", {options.steps:,} steps" if options.steps else ", no training"
        return f"{options.budget:.0%} of the kernels{trained}" if options.budget < 1 else "kernels whole"
    return f"{options.bits} bits, {options.quantizer}"


def _row(
    directory: pathlib.Path, name: str, how: str, made: Function, given: Task, options: FunctionOptions
) -> dict[str, Any]:
    """What is measured of a function, from results.json where it is there."""
    path = directory / "results.json"
    rows = files.json_object(path, "delete it")["rows"] if path.exists() else []
    for row in rows:
        if row["name"] == name:
            return dict(row)
    console.say(f"evaluate {name}")
    started, run = time.perf_counter(), functools.partial(jax.jit(made.apply), made.params)
    measured = _measured(given, run)
    row = {
        "name": name,
        "how": how,
        "params": made.parameters,
        "macs": made.macs,
        "size_mb": made.nbytes / 1e6,
        "change": _change(given, run),
        "metrics": measured,
        "seconds": time.perf_counter() - started,
    }
    files.write_atomically(path, _json({"schema": 1, "model": options.model, "rows": [*rows, row]}))
    return row


def _measured(given: Task, run: Callable[[Any], Any]) -> dict[str, float]:
    if given.evaluate is None:
        return {}
    try:
        measured = given.evaluate(run)
    except UserError:
        raise
    except Exception as error:  # the user's program
        raise UserError(f"evaluate of the task fails ({type(error).__name__}: {reason(error)}).") from error
    if not isinstance(measured, Mapping) or not all(files.number(value) for value in measured.values()):
        raise UserError(f"evaluate of the task gives {measured!r}; let it give numbers by name.")
    return {str(name): float(value) for name, value in measured.items()}


def _change(given: Task, run: Callable[[Any], Any]) -> float:
    """Root of the mean square change of the outputs on the batches, over that of the outputs."""
    moved = whole = 0.0
    dense = jax.jit(given.apply)
    for batch in given.batches:
        for one, other in zip(
            *(jax.tree.leaves(made) for made in (run(batch), dense(given.params, batch))), strict=True
        ):
            if jnp.issubdtype(one.dtype, jnp.floating):
                moved += float(jnp.sum(jnp.square(one.astype(jnp.float32) - other.astype(jnp.float32))))
                whole += float(jnp.sum(jnp.square(other.astype(jnp.float32))))
    return math.sqrt(moved / whole) if whole else 0.0


def _export(directory: pathlib.Path, made: Mapping[str, Function], given: Task) -> None:
    """Writes NAME.stablehlo of each, and checks it against the function."""
    (directory / "export").mkdir(exist_ok=True)
    for name, function in made.items():
        path = directory / "export" / f"{name}.stablehlo"
        if path.exists():
            continue
        function.export(path, given.batches[0])
        again = jax.export.deserialize(bytearray(path.read_bytes())).call(given.batches[0])
        pairs = zip(jax.tree.leaves(again), jax.tree.leaves(function(given.batches[0])), strict=True)
        largest = max(float(np.max(np.abs(np.subtract(one, other, dtype=np.float64)))) for one, other in pairs)
        console.say(f"{path}: {path.stat().st_size / 1e6:.3f} MB, at most {largest:.1e} from the function")


def _places(small: Function) -> list[dict[str, Any]]:
    """What became of every site, for the report."""
    rows = []
    for site in small.sites:
        names = small.apply.parts.get(site.path, ())
        left = sum(compress.layer_cost(small.apply.infos[name], small.plan[name]).params for name in names)
        whole = site.features_in * site.features_out
        rows.append(
            {
                "path": site.path,
                "shape": f"{site.features_in:,} \N{MULTIPLICATION SIGN} {site.features_out:,}",
                "tokens": site.tokens,
                "form": "; ".join(_form(name, site.path, small) for name in names) or site.reason or "as it came",
                "share": left / whole if names else 1.0,
            }
        )
    return rows


def _form(name: str, path: str, small: Function) -> str:
    entry, info = small.plan[name], small.apply.infos[name]
    part = name.removeprefix(path).removeprefix("/")
    words = [f"rank {entry.rank}"] if entry.rank else []
    if entry.width:
        words.append(f"{info.heads} heads of {entry.width}" if info.heads else f"{entry.width} channels left")
    return " ".join(filter(None, [part, ", ".join(words) or "whole"]))
