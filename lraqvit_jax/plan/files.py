"""A plan as JSON: in `plan.json`, and in what is written about every artefact."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from lraqvit_jax.base import files
from lraqvit_jax.base.errors import UserError, nearest
from lraqvit_jax.plan.records import LayerPlan, Plan

MEND = "mend it or delete it to have it written anew"


def to_json(plan: Plan) -> dict[str, Any]:
    return {path: dataclasses.asdict(layer) for path, layer in plan.items()}


def from_json(data: Mapping[str, Any], where: str = "the plan") -> dict[str, LayerPlan]:
    """Reads a plan back from parsed JSON; UserError where it does not have the shape of one."""
    types = {field.name: type(field.default) for field in dataclasses.fields(LayerPlan)}
    if not isinstance(data, Mapping):
        raise UserError(
            f"{where} is not a JSON object of layer paths; restore it or delete it to have it written anew."
        )
    plan = {}
    for path, fields in data.items():
        if not isinstance(fields, Mapping):
            raise UserError(f"Layer {path!r} in {where} is not an object; give it fields such as form and rank.")
        for name, value in fields.items():
            if name not in types:
                raise UserError(f"Layer {path!r} in {where} has an unknown field {name!r}; {nearest(name, types)}")
            number = types[name] is float and type(value) is int
            if type(value) is not types[name] and not number:
                raise UserError(f"Layer {path!r} in {where} has {name} = {value!r}; it is a {types[name].__name__}.")
        plan[path] = LayerPlan(**fields)
    return plan


def read_plan(path: pathlib.Path) -> dict[str, LayerPlan]:
    """Reads plan.json; UserError if it is no JSON or no plan."""
    return from_json(files.json_object(path, MEND), str(path))
