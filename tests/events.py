"""Reads TensorBoard's event files as TensorBoard does, from the bytes on."""

import pathlib
import struct
from collections.abc import Iterator

from tensorboardX.proto import event_pb2


def records(path: pathlib.Path) -> Iterator[event_pb2.Event]:
    """The events of a file: length (8 bytes), its checksum (4), the event, its checksum (4), and so on."""
    content, place = path.read_bytes(), 0
    while place < len(content):
        (length,) = struct.unpack_from("<Q", content, place)
        yield event_pb2.Event.FromString(content[place + 12 : place + 12 + length])
        place += 16 + length


def scalars(folder: pathlib.Path) -> dict[int, dict[str, float]]:
    """{step: {name: value}} of a run. A start in the middle makes what was there from its step on void."""
    found: dict[int, dict[str, float]] = {}
    for path in sorted(folder.iterdir()):
        for event in records(path):
            if event.session_log.status == event_pb2.SessionLog.START:
                found = {step: values for step, values in found.items() if step < event.step}
            for value in event.summary.value:
                found.setdefault(event.step, {})[value.tag] = value.simple_value
    return found
