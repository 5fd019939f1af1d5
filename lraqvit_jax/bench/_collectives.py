"""What the devices send each other in a step, read from the text of a compiled program (optimized HLO)."""

import dataclasses
import math
import re
from collections.abc import Iterator

import numpy as np

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
WIDTHS = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*?)\)(.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_MOVED = ("copy", "bitcast", "transpose", "reshape", "slice", "dynamic-slice", "broadcast", "get-tuple-element")
"""Operations that leave the values of their first operand as they are."""


@dataclasses.dataclass(frozen=True)
class Collective:
    """One operation of a program.

    Attributes:
        kind: one of KINDS.
        bytes: of its result on one device, for an all-reduce that of its operands; in the types of the program: a
            float32 array that a backend widened from bfloat16 counts 2 bytes an entry.
        compiled_bytes: of the same as it is compiled.
        groups: device numbers, one row for each group of devices that take part together.
        times: how often a step runs it; more than 1 inside loops.
    """

    kind: str
    bytes: int
    compiled_bytes: int
    groups: tuple[tuple[int, ...], ...]
    times: int = 1

    @property
    def size(self) -> int:
        """Devices in a group."""
        return len(self.groups[0])


def wire_bytes(kind: str, size: int, result: float) -> float:
    """Bytes that a device sends in a ring of `size` devices.

    Args:
        kind: one of KINDS.
        size: devices in the ring.
        result: bytes of the result on one device (reduce-scatter: of the part it keeps).
    """
    share = (size - 1) / size
    factors = {"all-reduce": 2 * share, "all-gather": share, "reduce-scatter": size - 1.0, "all-to-all": share}
    return factors.get(kind, 1.0) * result


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    type: str
    op: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    def called(self, name: str) -> str:
        match = re.search(rf"{name}=%?([\w.-]+)", self.attributes)
        return match[1] if match else ""


def parse(text: str, devices: int) -> list[Collective]:
    """Finds every collective of a program.

    Args:
        text: optimized HLO, `compiled.as_text()`.
        devices: that the program runs on; one group holds all of them where the text names none.

    Raises:
        ValueError: a loop around a collective does not say how often it runs, or groups are written in no known way.
    """
    computations, entry = _computations(text)
    collectives = []
    for name, times in _times(computations, entry).items():
        by_name = {instruction.name: instruction for instruction in computations[name]}
        for instruction in computations[name]:
            if instruction.op in KINDS:
                sizes = [_bytes(by_name[operand].type) for operand in instruction.operands]
                narrow = [_narrow(by_name[operand], by_name, computations) for operand in instruction.operands]
                share = sum(size / (1 + half) for size, half in zip(sizes, narrow, strict=True)) / max(1, sum(sizes))
                result, groups = _bytes(instruction.type), _groups(instruction.attributes, devices)
                if len(groups[0]) > 1:
                    collectives.append(Collective(instruction.op, round(result * share), result, groups, times))
    return collectives


def _computations(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    computations: dict[str, list[_Instruction]] = {}
    entry = current = ""
    for line in text.splitlines():
        if opened := _COMPUTATION.match(line):
            current = opened[2]
            computations[current], entry = [], current if opened[1] else entry
        elif current and (match := _INSTRUCTION.match(re.sub(r"/\*.*?\*/", "", line))):
            name, kind, op, operands, attributes = match.groups()
            names = tuple(re.findall(r"%([\w.-]+)", operands)) or tuple(
                word for word in operands.split(", ") if word and op != "parameter"
            )
            computations[current].append(
                _Instruction(name, kind, op, names, attributes + " " + operands, "ROOT" in line[:8])
            )
    return computations, entry


def _times(computations: dict[str, list[_Instruction]], entry: str) -> dict[str, int]:
    """How often each computation that holds a collective runs in a step."""
    times_by_name: dict[str, int] = {}

    def visit(name: str, times: int) -> None:
        if any(instruction.op in KINDS for instruction in computations[name]):
            times_by_name[name] = times_by_name.get(name, 0) + times
        for instruction in computations[name]:
            for inner in _callees(instruction):
                trips = 1
                if instruction.op == "while":
                    trip_count = re.search(r'known_trip_count":\{"n":"(\d+)"', instruction.attributes)
                    if trip_count is None and _holds(computations, inner):
                        raise ValueError(
                            f"the loop {instruction.name} around a collective does not say how often it runs"
                        )
                    trips = int(trip_count[1]) if trip_count else 1
                visit(inner, times * trips)

    visit(entry, 1)
    return times_by_name


def _callees(instruction: _Instruction) -> Iterator[str]:
    """Computations that an instruction runs whole (not those that a reduction applies to scalars)."""
    if instruction.op in ("while", "call", "fusion", "async-start", "conditional"):
        for name in ("body", "to_apply", "calls", "true_computation", "false_computation"):
            if inner := instruction.called(name):
                yield inner
        if branches := re.search(r"branch_computations=\{(.*?)\}", instruction.attributes):
            yield from re.findall(r"%?([\w.-]+)", branches[1])


def _holds(computations: dict[str, list[_Instruction]], name: str) -> bool:
    return any(
        instruction.op in KINDS or any(_holds(computations, inner) for inner in _callees(instruction))
        for instruction in computations[name]
    )


def _bytes(kind: str) -> int:
    return sum(
        WIDTHS.get(dtype, 4) * math.prod(int(side) for side in sides.split(",") if side)
        for dtype, sides in _SHAPE.findall(kind)
    )


def _narrow(
    instruction: _Instruction, by_name: dict[str, _Instruction], computations: dict[str, list[_Instruction]]
) -> bool:
    """Whether an array that is stored in float32 holds values that were just rounded to bfloat16."""
    if not instruction.type.startswith("f32") or not instruction.operands:
        return False
    first = by_name.get(instruction.operands[0])
    if instruction.op in _MOVED and first:
        return _narrow(first, by_name, computations)
    if instruction.op == "convert" and first:
        return first.type.startswith("bf16")
    if instruction.op not in ("fusion", "call"):
        return False
    inside = {
        inner.name: inner for inner in computations[instruction.called("calls") or instruction.called("to_apply")]
    }
    last = next(inner for inner in inside.values() if inner.root)
    while last.op in _MOVED:
        last = inside[last.operands[0]]
    if last.op == "parameter":
        index = int(re.findall(r"\d+", last.attributes)[-1])
        source = by_name.get(instruction.operands[index])
        return source is not None and _narrow(source, by_name, computations)
    return _narrow(last, inside, computations)


def _groups(attributes: str, devices: int) -> tuple[tuple[int, ...], ...]:
    """Reads replica_groups, or the pairs of a permutation, in any of XLA's spellings."""
    if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", attributes):
        return _listed(pairs[1])
    if listed := re.search(r"replica_groups=\{(\{.*?\})?\}", attributes):
        return _listed(listed[1]) if listed[1] else (tuple(range(devices)),)
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        return _rows(_iota(iota[2], iota[3]).reshape(_numbers(iota[1])))
    if axes := re.search(
        r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{(.*?)\}", attributes
    ):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", axes[1])}
        names, chosen = list(sizes), re.findall(r"'(\w+)'", axes[4])
        if ":(" not in axes[4]:
            mesh = _iota(axes[2] or str(devices), axes[3]).reshape(list(sizes.values()))
            kept = [index for index, name in enumerate(names) if name not in chosen]
            rows = mesh.transpose(kept + [names.index(name) for name in chosen])
            return _rows(rows.reshape(-1, math.prod(sizes[name] for name in chosen)))
    raise ValueError(f"groups of devices that cannot be read: {attributes[:200]}")


def _iota(shape: str, order: str | None) -> np.ndarray:
    """The numbers from 0 on in this shape, its axes put in another order."""
    sides = _numbers(shape)
    numbers = np.arange(math.prod(sides)).reshape(sides)
    return numbers.transpose(_numbers(order)) if order else numbers


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _rows(numbers: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row) for row in numbers.tolist())


def _listed(text: str) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(_numbers(row)) for row in re.findall(r"\{([\d,]+)\}", text))
