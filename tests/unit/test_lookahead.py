import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from dataset_builder import write_dataset, write_sparse

import loader
from loader import lookahead
from loader.lookahead import LookAhead

NEEDS_ADVICE = pytest.mark.skipif(
    not hasattr(mmap, "MADV_WILLNEED"), reason="this system takes no advice"
)


@pytest.fixture
def data(tmp_path):
    write_dataset(tmp_path / "out.h5", n=300, rows=16, columns=16)
    return loader.open_dataset(tmp_path / "out.h5")


class Recorder:
    """A map that notes what it is asked for."""

    def __init__(self, buffer):
        self.buffer = buffer
        self.asked = []

    def madvise(self, advice, start, length):
        assert advice == mmap.MADV_WILLNEED
        assert start % mmap.PAGESIZE == 0
        self.buffer.madvise(advice, start, length)
        self.asked.append((start, start + length))


@NEEDS_ADVICE
def test_it_asks_for_all_bytes_of_the_rows(data):
    look_ahead = LookAhead(data, 2)
    look_ahead._buffer = recorder = Recorder(data.buffer)
    look_ahead.ask(np.array([0, 299]))
    content = data.buffer[:]
    for array in (data.images, data.masks):
        for row in (0, 299):
            start = content.find(array[row].tobytes())
            assert any(a <= start and start + array[row].nbytes <= b for a, b in recorder.asked)


@NEEDS_ADVICE
@pytest.mark.parametrize("tops", [[0, 3], [-2, 13]])
def test_it_asks_for_all_bytes_of_some_lines(tmp_path, tops):
    write_dataset(tmp_path / "out.h5", n=3, rows=16, columns=1024)
    data = loader.open_dataset(tmp_path / "out.h5")
    look_ahead = LookAhead(data, 2)
    look_ahead._buffer = recorder = Recorder(data.buffer)
    look_ahead.ask(np.array([0, 2]), np.array(tops), 5)
    content = data.buffer[:]
    n_lines = sum(len(range(*slice(max(top, 0), top + 5).indices(16))) for top in tops)
    for array in (data.images, data.masks):
        for row, top in zip((0, 2), tops, strict=True):
            lines = array[row, max(top, 0) : top + 5]
            start = content.find(lines.tobytes())
            assert any(a <= start and start + lines.nbytes <= b for a, b in recorder.asked)
    n_bytes = sum(stop - start for start, stop in recorder.asked)
    assert n_bytes <= n_lines * 1024 * 3 + 4 * mmap.PAGESIZE


@NEEDS_ADVICE
def test_it_asks_for_the_masks(data):
    look_ahead = LookAhead(data, 2)
    look_ahead._buffer = recorder = Recorder(data.buffer)
    look_ahead.ask_masks(np.array([5]))
    start = data.buffer[:].find(data.masks[5].tobytes())
    ((first, stop),) = recorder.asked
    assert first <= start
    assert start + data.masks[5].nbytes <= stop


@pytest.fixture
def read(monkeypatch):
    """Return the thread and what it has read, as the kernel is to tell it."""
    told = {"thread": 1, "n": 5}
    monkeypatch.setattr(lookahead, "_read_by_this_thread", lambda: (told["thread"], told["n"]))
    return told


@NEEDS_ADVICE
def test_it_asks_while_the_kernel_reads_and_some_batches_longer(data, read):
    look_ahead = LookAhead(data, 2)
    assert look_ahead.n_batches == 1
    look_ahead.note()
    assert look_ahead.n_batches == 0
    read["n"] += 1
    for _ in range(lookahead._NOTE_EVERY):
        assert look_ahead.n_batches == 0
        look_ahead.note()
    for _ in range(lookahead._PATIENCE):
        assert look_ahead.n_batches >= 1
        look_ahead.note()
    assert look_ahead.n_batches == 0


@NEEDS_ADVICE
def test_reads_of_different_threads_are_not_compared(data, read):
    look_ahead = LookAhead(data, 2)
    read.update(thread=2, n=99)
    look_ahead.note()
    assert look_ahead.n_batches == 0


@NEEDS_ADVICE
def test_first_batch_of_another_thread_counts(data, read):
    look_ahead = LookAhead(data, 2)
    read.update(thread=2, n=99)
    look_ahead.ask(np.array([0]))
    read["n"] += 1
    look_ahead.note()
    assert look_ahead.n_batches == 8


@NEEDS_ADVICE
def test_large_batches_are_asked_for_one_at_a_time(data, read):
    for batch_size, n_batches in ((2, 8), (10**9, 1)):
        look_ahead = LookAhead(data, batch_size)
        read["n"] += 1
        look_ahead.note()
        assert look_ahead.n_batches == n_batches


@NEEDS_ADVICE
def test_batches_looked_ahead_are_the_batches(data, monkeypatch):
    options = {"batch_size": 7, "seed": 7, "remainder": "keep"}
    expected = loader.Batches(data, **options)
    rows = [expected.indices.tolist() for _ in range(200) if expected.next_batch()]
    reads = iter(range(10**6))
    monkeypatch.setattr(lookahead, "_read_by_this_thread", lambda: (0, next(reads)))
    asked = []
    monkeypatch.setattr(LookAhead, "ask", lambda _, coming, *__: asked.append(coming.tolist()))
    batches = loader.Batches(data, **options)
    assert [batches.indices.tolist() for _ in range(200) if batches.next_batch()] == rows
    assert asked[:200] == rows
    assert len(asked) == 207  # each once, and those of the next 7 in advance


@NEEDS_ADVICE
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"patches": loader.Patches((4, 4))}, {"lines"}),
        ({"patches": loader.Patches((4, 4), foreground=0.5)}, {"masks", "lines"}),
        ({"patches": loader.Patches((4, 4), 1), "augment": loader.Augment()}, {"rows", "masks"}),
    ],
)
def test_of_patches_their_lines_are_asked_for(data, monkeypatch, options, expected):
    if "augment" in options:
        pytest.importorskip("cv2")
    reads = iter(range(10**6))
    monkeypatch.setattr(lookahead, "_read_by_this_thread", lambda: (0, next(reads)))
    asked = {"rows": [], "lines": [], "masks": []}

    def ask(_, rows, tops=None, n_lines=0):
        assert n_lines == (0 if tops is None else 4)
        asked["rows" if tops is None else "lines"] += rows.tolist()

    monkeypatch.setattr(LookAhead, "ask", ask)
    monkeypatch.setattr(LookAhead, "ask_masks", lambda _, rows, *__: asked["masks"].extend(rows))
    batches = loader.Batches(data, batch_size=7, seed=7, remainder="keep", **options)
    rows = [row for _ in batches for row in batches.indices.tolist()]
    for kind, found in asked.items():
        assert found[: len(rows)] == (rows if kind in expected else [])


def test_file_system_that_takes_no_advice(data, read):
    class Refusing(Recorder):
        def madvise(self, *_):
            raise OSError(22, "Invalid argument")

    look_ahead = LookAhead(data, 2)
    look_ahead._buffer = Refusing(data.buffer)
    look_ahead.ask(np.array([0]))
    read["n"] += 1
    look_ahead.note()
    assert look_ahead.n_batches == 0


@pytest.mark.parametrize("missing", ["_WHOSE", "_WILL_NEED"])
def test_platform_that_lacks_it(data, monkeypatch, missing):
    monkeypatch.setattr(lookahead, missing, {"_WHOSE": None, "_WILL_NEED": -1}[missing])
    batches = loader.Batches(data, batch_size=10)
    assert sum(1 for _ in batches) == 30
    assert lookahead.LookAhead(data, 2).n_batches == 0


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the cache cannot be dropped")
def test_rows_that_were_dropped_from_memory_are_read(tmp_path):
    written = write_dataset(tmp_path / "out.h5", n=200, rows=64, columns=64)
    with (tmp_path / "out.h5").open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    batches = loader.Batches(tmp_path / "out.h5", batch_size=8, layout="NHW")
    for images, masks in batches:
        np.testing.assert_array_equal(images, written["images"][batches.indices])
        np.testing.assert_array_equal(masks, written["masks"][batches.indices])


# Cost in the number of samples

FIRST_BATCH = """
import sys, time
from pathlib import Path
import numpy, h5py
import loader
def rss_anon():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])
def first_batch(path):
    start = time.thread_time()  # what the machine does meanwhile costs nothing
    loader.Batches(path, batch_size=32, remainder="keep", seed=7).next_batch()
    return time.thread_time() - start
first_batch(sys.argv[2])  # loads what Python and HDF5 load but once
before = rss_anon()
print(min(first_batch(sys.argv[1]) for _ in range(9)), rss_anon() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is not told")
def test_ten_million_samples_cost_what_a_thousand_cost(tmp_path):
    small, large = tmp_path / "small.h5", tmp_path / "large.h5"
    write_sparse(small, 1000)
    try:
        write_sparse(large, 10_000_000)
    except OSError as error:
        pytest.skip(f"no file of 2 TB here: {error}")

    def measured(path):
        command = [sys.executable, "-c", FIRST_BATCH, path, small]
        run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        seconds, kilobytes = run.stdout.split()
        return float(seconds), int(kilobytes)

    seconds, kilobytes = zip(*(measured(large) for _ in range(3)), strict=True)
    expected = min(measured(small)[0] for _ in range(3))
    assert min(seconds) < 3 * expected + 0.005  # 8 bytes a row would cost 0.02 s and more
    assert max(kilobytes) < 20_000
