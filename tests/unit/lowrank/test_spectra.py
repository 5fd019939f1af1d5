"""The memory of spectra: the same bits as without it, whatever happens to its folder; threads that change nothing."""

import os
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import threadpoolctl

from lraqvit_jax.lowrank import spectra, svd

SHAPES = [(12, 7), (7, 12), (9, 9)]
LIMIT_OF_THREE = 54_000
"""Bytes that hold the files of three 40 x 30 kernels."""


def entries(folder):
    """The files of spectra."""
    return [path for path in folder.rglob("output.*") if path.is_file()]


def same(one, other):
    """Equal bits in the same order in memory, on which the bits of later products depend."""
    pairs = zip(one, other, strict=True)
    return all(np.array_equal(a, b) and a.flags.f_contiguous == b.flags.f_contiguous for a, b in pairs)


@pytest.fixture
def count(monkeypatch):
    """How many times an SVD was computed."""
    calls, spectrum = [], svd.spectrum

    def counted(kernel):
        calls.append(kernel.shape)
        return spectrum(kernel)

    monkeypatch.setattr(svd, "spectrum", counted)
    return lambda: len(calls)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_remembered_has_the_same_bits_and_is_not_computed_again(rng, tmp_path, count, shape):
    kernel = rng.standard_normal(shape)
    want = spectra.Memo(None)(kernel)
    cold, warm = spectra.Memo(tmp_path)(kernel), spectra.Memo(tmp_path)(np.asfortranarray(kernel))
    assert count() == 2
    assert same(cold, want)
    assert same(warm, want)
    single = spectra.Memo(tmp_path)(kernel.astype(np.float32))
    assert count() == 3
    assert not same(single, want)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_decompositions_from_memory_have_the_same_bits(rng, tmp_path, shape):
    kernel = rng.standard_normal(shape)
    pair = svd.decompose(kernel, 4)
    for _ in range(2):
        again = svd.decompose(kernel, 4, spectrum=spectra.Memo(tmp_path))
        assert same((again.u, again.v), (pair.u, pair.v))


def test_shapes_of_the_same_bytes_are_told_apart(tmp_path):
    memo = spectra.Memo(tmp_path)
    assert [memo(np.ones(shape)).left.shape for shape in ((2, 6), (6, 2), (3, 4))] == [(2, 2), (6, 2), (3, 3)]


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def save(path, **arrays):
    with path.open("wb") as file:  # np.savez would add a suffix to its name
        np.savez(file, **arrays)


def another_shape(path):
    save(path, left=np.zeros((2, 2)), values=np.zeros(2), right=np.zeros((2, 3)))


def pickles(path):
    save(path, left=np.array([{}], dtype=object), values=np.zeros(2), right=np.zeros((2, 3)))


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        another_shape,
        pickles,
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("no archive"),
        lambda path: save(path, left=np.zeros((12, 7))),
    ],
)
def test_a_damaged_file_is_computed_again_and_replaced(rng, tmp_path, count, damage):
    kernel, memo = rng.standard_normal((12, 7)), spectra.Memo(tmp_path)
    want = memo(kernel)
    (file,) = entries(tmp_path)
    whole = file.read_bytes()
    damage(file)
    assert same(memo(kernel), want)
    assert count() == 2
    assert len(file.read_bytes()) == len(whole)
    assert same(memo(kernel), want)
    assert count() == 2


def test_a_folder_that_cannot_be_made_or_written_is_no_error(rng, tmp_path):
    kernel = rng.standard_normal((12, 7))
    (tmp_path / "file").write_text("")
    blocked = spectra.Memo(tmp_path / "file" / "svd")
    assert same(blocked(kernel), svd.spectrum(kernel))
    memo = spectra.Memo(tmp_path / "svd")
    memo(kernel)
    (file,) = entries(memo.folder)
    file.unlink()
    file.mkdir()  # in its place, as unreadable as it is unwritable
    assert same(memo(kernel), svd.spectrum(kernel))
    assert [one.name for one in file.parent.iterdir()] == [file.name]
    shutil.rmtree(memo.folder)
    memo.folder.write_text("")  # in the place of the folder, between two questions
    assert same(memo(kernel), svd.spectrum(kernel))
    assert same(spectra.Memo(memo.folder)(kernel), svd.spectrum(kernel))


def test_what_was_not_used_for_longest_goes_first(rng, tmp_path, count):
    kernels = [rng.standard_normal((40, 30)) for _ in range(4)]

    def ask(index):
        """In a run of its own, by its clock an hour after the last."""
        for file in entries(tmp_path):
            os.utime(file, (file.stat().st_atime - 3600, file.stat().st_mtime - 3600))
        spectra.Memo(tmp_path, LIMIT_OF_THREE)(kernels[index])

    for index in (0, 1, 2, 0, 3):
        ask(index)
    assert len(entries(tmp_path)) == 3
    assert count() == 4
    for index in (0, 2, 3):
        ask(index)
    assert count() == 4
    ask(1)
    assert count() == 5


def test_a_run_that_needs_more_than_the_limit_finds_as_much_as_fits_the_next_time(rng, tmp_path, count):
    kernels = [rng.standard_normal((40, 30)) for _ in range(5)]
    for computed in (5, 7):
        memo = spectra.Memo(tmp_path, LIMIT_OF_THREE)
        for kernel in kernels:
            memo(kernel)
        assert count() == computed
        assert len(entries(tmp_path)) == 3


def test_threads_share_a_memory_that_is_always_full(rng, tmp_path):
    def ask(kernel):
        return spectra.Memo(tmp_path, LIMIT_OF_THREE)(kernel)

    kernels = [rng.standard_normal((40, 30)) for _ in range(6)] * 4
    for kernel, parts in zip(kernels, spectra.each(ask, kernels), strict=True):
        assert same(parts, svd.spectrum(kernel))
    assert 1 <= len(entries(tmp_path)) <= 3


def test_another_numpy_computes_it_again(rng, tmp_path, count, monkeypatch):
    kernel = rng.standard_normal((12, 7))
    spectra.Memo(tmp_path)(kernel)
    monkeypatch.setattr(np, "__version__", "99.0")
    spectra.Memo(tmp_path)(kernel)
    assert count() == 2


def test_processes_share_a_memory(rng, tmp_path):
    """Another process finds the same bits and computes nothing."""
    kernel = rng.standard_normal((12, 7))
    code = f"""
import numpy as np
from lraqvit_jax.lowrank import spectra, svd
spectra.Memo(spectra.pathlib.Path({str(tmp_path / "memory")!r}))
svd.spectrum = None if {{again}} else svd.spectrum
parts = spectra.Memo(spectra.pathlib.Path({str(tmp_path / "memory")!r}))(np.load({str(tmp_path / "kernel.npy")!r}))
np.savez({str(tmp_path / "parts.npz")!r}, **parts._asdict())
"""
    np.save(tmp_path / "kernel.npy", kernel)
    for again in (False, True):
        subprocess.run([sys.executable, "-c", code.format(again=again)], check=True)
        with np.load(tmp_path / "parts.npz") as parts:
            assert same(svd.Spectrum(**parts), svd.spectrum(kernel))


def test_where_the_memory_is(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert spectra.memo("").folder == tmp_path / "lraqvit_jax" / "svd"
    assert spectra.memo(str(tmp_path / "mine")).folder == tmp_path / "mine" / "svd"
    assert spectra.memo("none").folder is None
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert spectra.memo("").folder == tmp_path / ".cache" / "lraqvit_jax" / "svd"


def test_each_keeps_order_uses_threads_and_holds_blas_to_one():
    def blas(item):
        used = {pool["num_threads"] for pool in threadpoolctl.threadpool_info() if pool["user_api"] == "blas"}
        return item, threading.current_thread() is threading.main_thread(), used <= {1}

    assert spectra.each(blas, range(20)) == [(item, False, True) for item in range(20)]


def test_the_error_of_one_item_is_raised():
    def fail(item):
        if item == 3:
            raise ValueError("three")

    with pytest.raises(ValueError, match="three"):
        spectra.each(fail, range(5))
