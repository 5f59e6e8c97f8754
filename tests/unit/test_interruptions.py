"""Exceptions and signals' handlers at any moment: no batch is lost, none comes twice."""

import functools
import gc
import itertools
import linecache
import os
import signal
import sys
import threading

import numpy as np
import pytest
from dataset_builder import write_dataset

import loader
from loader.feed import Gatherer
from loader.prefetch import Prefetcher

N, BATCH = 40, 4


@pytest.fixture
def path(tmp_path):
    write_dataset(tmp_path / "out.h5", n=N)
    return tmp_path / "out.h5"


def make(path, **options):
    """Return batches of a file, or of one that is open."""
    return loader.Batches(path, batch_size=BATCH, seed=3, **options)


def drawn(batches, n):
    """Return the rows of the next n batches, checked against the pixels."""
    rows = []
    for _ in range(n):
        images, _ = batches.next_batch()
        assert images[0, 0].tolist() == batches.indices.tolist()
        rows.append(batches.indices.tolist())
    return rows


@functools.cache
def is_with(name, number):
    return linecache.getline(name, number).lstrip().startswith("with ")


def raise_at(step):
    """Return a trace function that interrupts at so manyth line of the loader.

    Not at `with`, which is traced again when its block is left: no signal comes in between.
    """
    lines = itertools.count()
    folder = os.path.dirname(loader.__file__)

    def trace(frame, event, _argument):
        name = frame.f_code.co_filename
        if not name.startswith(folder):
            return None
        if event == "line" and not is_with(name, frame.f_lineno) and next(lines) == step:
            sys.settrace(None)
            raise KeyboardInterrupt
        return trace

    return trace


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("n_before", [0, 3, 9])
def test_an_interrupted_batch_is_the_next_one_again(path, prefetch, n_before):
    data = loader.open_dataset(path)
    expected = drawn(make(data), 25)
    before = sys.gettrace()
    for step in range(500):
        with make(data, prefetch=prefetch) as batches:
            assert drawn(batches, n_before) == expected[:n_before]
            state = batches.state_dict()
            sys.settrace(raise_at(step))
            try:
                batches.next_batch()
                break  # there is no such line
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(before)
            assert batches.state_dict() == state
            assert drawn(batches, 12) == expected[n_before : n_before + 12]
    assert step > 20


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_batch_that_failed_is_the_next_one_again(tmp_path, prefetch):
    std = np.ones(N)
    std[7] = np.nan
    write_dataset(tmp_path / "out.h5", n=N, manifest={"std": std})
    batches = make(tmp_path / "out.h5", normalize="zscore", shuffle=False, prefetch=prefetch)
    batches.next_batch()
    for _ in range(3):
        with pytest.raises(loader.LoaderError, match="found NaN"):
            batches.next_batch()
        assert batches.state_dict()["batch"] == 1
    batches.close()


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="the platform has no timer signals")
@pytest.mark.skipif(sys.gettrace() is not None, reason="the handler may wait for a tracer's lock")
@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize(
    "handle",
    [
        lambda batches: batches.close(),
        lambda batches: batches.load_state_dict(batches.state_dict()),
    ],
    ids=["close", "load_state_dict"],
)
def test_the_handler_of_a_signal_may_close_and_load(path, prefetch, handle):
    batches = make(path, prefetch=prefetch)
    expected = drawn(make(path), 400)
    seconds = {}  # to the next signal after each state

    def handler(*_):
        handle(batches)
        # Twice as long each time that no batch has come, however slow the machine is.
        state = str(batches.state_dict())
        seconds[state] = 2 * seconds.get(state, 0.0005)
        signal.setitimer(signal.ITIMER_REAL, seconds[state])  # the next one, never within this one

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.001)
    try:
        found = drawn(batches, 400)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        batches.close()
    # A state loaded between the draw of a batch and its return has that batch still to come.
    assert found == expected


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_batch_that_failed_does_not_turn_back_another_thread(path, monkeypatch, prefetch):
    # Its copy fails only when another thread has drawn the batch after it.
    batches = make(path, prefetch=prefetch)
    expected = drawn(make(path), 4)
    found, out = [], batches.next_batch()
    failing = threading.current_thread()
    gather, copy = Gatherer.gather, Gatherer.copy

    def fail(fill):
        def filled(gatherer, arrays, buffers, *rest):
            if threading.current_thread() is failing and buffers is not None:
                other = threading.Thread(target=lambda: found.append(drawn(batches, 1)))
                other.start()
                other.join()
                raise OSError(5, "Input/output error")
            return fill(gatherer, arrays, buffers, *rest)

        return filled

    monkeypatch.setattr(Gatherer, "gather", fail(gather))
    monkeypatch.setattr(Gatherer, "copy", fail(copy))
    with pytest.raises(OSError, match="Input/output"):
        batches.next_batch(out=out)
    assert found == [[expected[2]]]
    assert drawn(batches, 1) == [expected[3]]
    batches.close()


def test_closing_keeps_nothing_of_what_was_prepared(path):
    batches = make(path, prefetch=2)
    for _ in range(5):
        batches.next_batch()
        batches.close()
    gc.collect()
    makers = [one._make for one in gc.get_objects() if type(one) is Prefetcher]
    streams = [make.__self__ for make in makers if hasattr(make, "__self__")]  # not another test's
    assert [one for one in streams if one._dataset is batches.dataset] == []
