"""Damaged files are told from whole ones; a lock is held by one run, and gone with it."""

import contextlib
import gc
import json
import pathlib
import shutil
import signal
import subprocess
import sys

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from lraqvit_jax.base import errors, files
from lraqvit_jax.base.errors import UserError
from lraqvit_jax.devices import fingerprint, sharding
from lraqvit_jax.run import checkpoint, lock, preemption
from lraqvit_jax.weights import artifacts
from tests.unit.export.test_onnx import artifact


def reference(array: np.ndarray) -> int:
    """The sum of words times odd numbers, in Python's integers."""
    words = array.reshape(-1).view({1: np.uint8, 2: np.uint16, 4: np.uint32}[array.itemsize])
    return sum(int(word) * (2 * place + 1) for place, word in enumerate(words)) % 2**32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "uint8", "int32"])
def test_a_fingerprint_is_the_sum_in_python_and_the_same_on_any_mesh(rng, dtype):
    array = jnp.asarray(rng.normal(size=(8, 3, 4)) * 50).astype(dtype)
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    spread = jax.device_put(array, NamedSharding(mesh.devices, PartitionSpec(("data", "fsdp"), None, "tensor")))
    want = reference(np.asarray(array))
    assert fingerprint.of({"x": array}) == fingerprint.of({"x": spread}) == {"['x']": want}
    assert int(fingerprint._of_sharded(spread)) == want  # as several machines compute it


def test_a_fingerprint_of_many_words(monkeypatch):
    monkeypatch.setattr(fingerprint, "CHUNK", 7)
    array = np.arange(60, dtype=np.float32).reshape(3, 20)
    assert fingerprint.of([array]) == {"[0]": reference(array)}


@given(place=st.integers(0, 23), bit=st.integers(0, 31))
def test_a_fingerprint_sees_any_bit(place, bit):
    array = np.linspace(-1, 1, 24, dtype=np.float32).reshape(4, 6)
    other = array.copy()
    other.reshape(-1).view(np.uint32)[place] ^= np.uint32(1 << bit)
    assert fingerprint.different({"a": {"b": other}}, fingerprint.of({"a": {"b": array}})) == "['a']['b']"
    assert fingerprint.different({"a": {"b": array}}, fingerprint.of({"a": {"b": array}})) == ""


def truncate(file: pathlib.Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: pathlib.Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(bytes(content))


def empty(file: pathlib.Path) -> None:
    file.write_bytes(b"")


@pytest.fixture
def nothing_left(caplog):
    """A restore that failed prints nothing later: not by asyncio, nor what pytest makes a failure of."""
    yield
    gc.collect()
    assert not caplog.records


DAMAGES = {"truncated": truncate, "flipped": flip, "empty": empty, "lost": pathlib.Path.unlink}


def largest(folder: pathlib.Path) -> pathlib.Path:
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != "commit_success.txt"]
    return max(files, key=lambda file: file.stat().st_size)


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("part", ["state", "data"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path, capsys, rng, damage, part):
    batches = iter(grain.MapDataset.range(100).to_iter_dataset())
    states = {step: {"w": jnp.asarray(rng.normal(size=(64, 64)), jnp.float32)} for step in (1, 2)}
    kept = checkpoint.TrainCheckpoints(tmp_path / "run.training", 1)
    for step, state in states.items():
        next(batches)
        kept.save(step, state, batches)
    kept.close()
    damage(largest(tmp_path / "run.training" / "2" / part))

    again = checkpoint.TrainCheckpoints(tmp_path / "run.training", 1)
    fresh = iter(grain.MapDataset.range(100).to_iter_dataset())
    abstract = {"w": jax.ShapeDtypeStruct((64, 64), jnp.float32, sharding=sharding.replicated(sharding.one_device()))}
    restored = again.restore(abstract, fresh)
    np.testing.assert_array_equal(restored["w"], states[1]["w"])
    assert next(fresh) == 1
    assert "run.training/2 is damaged" in capsys.readouterr().err
    assert (tmp_path / "run.training" / "damaged.2").is_dir()
    again.save(2, restored, fresh)
    again.close()
    assert sorted(file.name for file in (tmp_path / "run.training").iterdir()) == ["1", "2", "damaged.2"]


def test_what_orbax_wrote_by_its_v0_api_is_read(tmp_path):
    """tests/golden/orbax_v0: an artefact and a checkpoint, written by the last version that used that API."""
    old = shutil.copytree(pathlib.Path(__file__).parents[2] / "golden" / "orbax_v0", tmp_path / "old")
    read = artifacts.load_artifact(old / "int8")
    assert artifacts.names(old) == ["int8"]
    assert {layer.form for layer in read.plan.values()} == {"quantized"}
    for leaf in jax.tree.leaves(read.params):
        np.testing.assert_array_equal(np.ravel(leaf), np.arange(leaf.size) % 127)

    where = sharding.replicated(sharding.one_device())
    abstract = {
        "step": jax.ShapeDtypeStruct((), jnp.int32, sharding=where),
        "w": jax.ShapeDtypeStruct((2, 3), jnp.float32, sharding=where),
    }
    batches = iter(grain.MapDataset.range(100).to_iter_dataset())
    kept = checkpoint.TrainCheckpoints(old / "run.training", 1)
    state = kept.restore(abstract, batches)
    np.testing.assert_array_equal(state["w"], np.arange(6.0).reshape(2, 3))
    assert (int(state["step"]), next(batches)) == (1, 1)
    for step in (2, 3):
        kept.save(step, state, batches)
    kept.close()
    assert sorted(path.name for path in (old / "run.training").iterdir()) == ["2", "3"]


@pytest.mark.usefixtures("nothing_left")
def test_reads_of_many_arrays_that_fail_together_say_nothing(tmp_path, capsys):
    """What lists the arrays is lost: orbax reports the first that it cannot open, and does not wait for the others."""
    batches = iter(grain.MapDataset.range(100).to_iter_dataset())
    state = {f"w{index}": jnp.full((8, 8), index, jnp.float32) for index in range(200)}
    where = sharding.replicated(sharding.one_device())
    abstract = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where), state)
    kept = checkpoint.TrainCheckpoints(tmp_path, 1)
    kept.save(1, state, batches)
    kept.close()
    for file in (tmp_path / "1" / "state" / "d").iterdir():
        file.unlink()
    for _ in range(8):
        assert checkpoint.TrainCheckpoints(tmp_path, 1).restore(abstract, batches) is None
        gc.collect()
        (tmp_path / "damaged.1").rename(tmp_path / "1")
    assert [line.split()[0] for line in capsys.readouterr().err.splitlines()] == ["warning:"] * 8


@pytest.mark.usefixtures("nothing_left")
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_artefact_is_refused_by_name(tmp_path, rng, damage):
    found, _ = artifact(rng, "vit_pico", 8)
    artifacts.save_artifact(tmp_path / "one", found.params, found.meta)
    artifacts.load_artifact(tmp_path / "one")
    damage(largest(tmp_path / "one" / "params"))
    with pytest.raises(UserError, match=r"one is damaged .*delete that folder"):
        artifacts.load_artifact(tmp_path / "one")


def test_sigterm_while_an_artefact_is_read_is_no_damage(tmp_path, rng, monkeypatch):
    found, _ = artifact(rng, "vit_pico", 8)
    artifacts.save_artifact(tmp_path / "one", found.params, found.meta)

    def stop(*_):
        raise errors.Preempted("Stopped by SIGTERM.")

    monkeypatch.setattr(artifacts, "check", stop)
    with pytest.raises(errors.Preempted):
        artifacts.load_artifact(tmp_path / "one")


HOLD = """
import pathlib, sys, time
from lraqvit_jax.run import lock
with lock.hold(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of tmp_path."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_run_is_refused_until_the_first_is_gone_even_by_sigkill(tmp_path, holder):
    with pytest.raises(UserError, match=rf"in use by process {holder.pid} on"), lock.hold(tmp_path):
        pass
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock.hold(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["host"]
    assert (tmp_path / ".lock").read_text() == ""


def test_a_holder_on_another_machine_is_believed_while_it_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 2.0)
    there = {"host": "another-machine", "pid": 1, "beats": 3}
    (tmp_path / ".lock").write_text(json.dumps(there))
    with lock.hold(tmp_path):  # It does not beat.
        pass
    (tmp_path / ".lock").write_text(json.dumps(there))
    beaten = json.dumps({**there, "beats": 4})
    monkeypatch.setattr(lock.time, "sleep", lambda _: (tmp_path / ".lock").write_text(beaten))
    with pytest.raises(UserError, match="in use by process 1 on another-machine"), lock.hold(tmp_path):
        pass


def test_a_file_system_without_locks_goes_by_the_process(tmp_path, holder, monkeypatch):
    monkeypatch.setattr(lock, "_lock", lambda file: None)
    with pytest.raises(UserError, match="in use"), lock.hold(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with lock.hold(tmp_path):
        pass


def test_a_lock_leaves_nothing_where_nothing_was_made(tmp_path):
    with lock.hold(tmp_path / "new"):
        pass
    assert not (tmp_path / "new").exists()


def test_a_read_only_place_is_one_sentence():
    with pytest.raises(UserError, match="cannot be written"), lock.hold(pathlib.Path("/proc/lraqvit_jax")):
        pass


def test_a_write_that_fails_leaves_the_file_and_no_rest(tmp_path):
    (tmp_path / "results.json").write_text("before")
    with pytest.raises(UnicodeEncodeError):
        files.write_atomically(tmp_path / "results.json", "\ud800")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


def test_errors_of_the_disk_are_known_by_number_and_by_words():
    assert "is full" in errors.storage(OSError(28, "No space left on device"))
    chained = RuntimeError("saving failed")
    chained.__cause__ = ValueError("RESOURCE_EXHAUSTED: write [OS error 28: No space left on device]")
    assert "is full" in errors.storage(chained)
    assert errors.storage(ValueError("shapes do not match")) == ""


def test_an_interrupt_that_a_library_kept_for_itself_stops_the_run_at_the_next_chance(monkeypatch):
    before = [signal.getsignal(kind) for kind in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setitem(preemption._state, "interrupted", False)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
        preemption.watch()
        assert not preemption.reached()
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            preemption.stop_if_reached()
    finally:
        for kind, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
            signal.signal(kind, handler)
