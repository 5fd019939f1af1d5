"""How a record of options is declared, and read from the mapping that a user gave."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from lraqvit_jax.base.errors import UserError, nearest, short
from lraqvit_jax.base.files import KINDS

Record = TypeVar("Record")
MISSING_MEND = "start from lraqvit_jax.config.default()"


def option(
    default: Any,
    *,
    above: float | None = None,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[Any] = (),
) -> Any:
    """A field of a record with what it may be.

    Args:
        default: a value, whose type is that of the field.
        above: the value is larger.
        low: the value is at least this.
        high: the value is at most this.
        choices: the value is one of these.
    """
    return dataclasses.field(
        default=default, metadata={"above": above, "low": low, "high": high, "choices": tuple(choices)}
    )


def named(kind: type, default: Mapping[str, Any]) -> Any:
    """A field that maps names, which are the user's, to records of one kind."""
    return dataclasses.field(default_factory=lambda: dict(default), metadata={"kind": kind})


def parse(kind: type[Record], values: Any, where: str = "") -> Record:
    """Reads a record from a mapping of its fields; lists become tuples.

    Args:
        kind: a dataclass whose fields all have defaults.
        values: by field; records within it as mappings.
        where: path of the record, with a dot at its end, for the sentences.

    Raises:
        UserError: a field that does not exist, is not there, is of another type, or out of its bounds.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"The config field {where[:-1]!r} is {values!r}; it holds fields of its own.")
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            raise UserError(f"The config has no field {f'{where}{name}'!r}; {nearest(str(name), fields)}")
    for name in fields:
        if name not in values:
            raise UserError(f"The config lacks the field '{where}{name}'; {MISSING_MEND}.")
    return kind(**{name: _value(field, values[name], f"{where}{name}") for name, field in fields.items()})


def _value(field: dataclasses.Field, value: Any, path: str) -> Any:
    if record := field.metadata.get("kind"):
        if not isinstance(value, Mapping):
            raise UserError(f"The config field {path!r} is {value!r}; it holds fields of its own.")
        return {str(name): parse(record, entry, f"{path}.{name}.") for name, entry in value.items()}
    default = field.default
    if dataclasses.is_dataclass(default):
        return parse(type(default), value, f"{path}.")
    value = tuple(value) if isinstance(value, list) else value
    if not _is(value, type(default)):
        raise UserError(
            f"The config field {path!r} is {short(repr(value))}; give {KINDS[type(default)]} such as {default!r}."
        )
    check(value, path, **field.metadata)
    return value


LARGEST = 2**31 - 1


def _is(value: Any, kind: type) -> bool:
    """Whether a value is of the kind of a field: True is no number, and a whole number is a float too."""
    if isinstance(value, bool) or kind is bool:
        return isinstance(value, bool) and kind is bool
    return isinstance(value, kind) or (kind is float and isinstance(value, int))


def check(
    value: Any,
    path: str,
    above: float | None = None,
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[Any] = (),
) -> None:
    """Raises UserError for a value out of its bounds, or one of a tuple; arguments as of `option`.

    No number may be NaN or infinite, and none larger than what NumPy and JAX count with.
    """
    if isinstance(value, tuple):
        for entry in value:
            check(entry, path, above, low, high, choices)
        return
    if choices and value not in choices:
        raise UserError(f"{path} is {short(repr(value))}; {nearest(str(value), map(str, choices))}")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return
    if isinstance(value, int) and abs(value) > LARGEST:
        raise UserError(f"{path} is {short(str(value))}; give a whole number up to {LARGEST:,}.")
    if not math.isfinite(value):
        raise UserError(f"{path} is {value}; give a finite number.")
    if low is not None and high is not None and not low <= value <= high:
        raise UserError(f"{path} is {value}; give a number from {low:g} to {high:g}.")
    if above is not None and not value > above:
        raise UserError(f"{path} is {value}; give a number above {above:g}.")
    if low == 0 and not value >= 0:
        raise UserError(f"{path} is {value}; give a number that is not negative.")
    if low is not None and not value >= low:
        raise UserError(f"{path} is {value}; give a number from {low:g}.")
    if high is not None and not value <= high:
        raise UserError(f"{path} is {value}; give a number up to {high:g}.")


def completed(kind: type, values: Any) -> Any:
    """The mapping with defaults for the fields of `kind` that it lacks, and without those that `kind` does not have."""
    if not isinstance(values, Mapping):
        return values
    defaults = kind()
    complete = {}
    for field in dataclasses.fields(kind):
        default, value = getattr(defaults, field.name), values.get(field.name)
        if field.name not in values:
            value = dataclasses.asdict(defaults)[field.name]
        elif (record := field.metadata.get("kind")) and isinstance(value, Mapping):
            value = {name: completed(record, entry) for name, entry in value.items()}
        elif dataclasses.is_dataclass(default):
            value = completed(type(default), value)
        complete[field.name] = value
    return complete


def to_dict(record: Any) -> dict[str, Any]:
    """The mapping that `parse` reads: plain values, tuples, dicts."""
    return dataclasses.asdict(record)


def part(kind: type[Record], record: Any) -> Record:
    """Those fields of a record that `kind`, which it extends, has."""
    return kind(**{field.name: getattr(record, field.name) for field in dataclasses.fields(kind)})  # type: ignore[arg-type]
