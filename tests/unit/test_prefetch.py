import gc
import multiprocessing
import os
import pickle
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from dataset_builder import write_dataset

import loader
from loader.prefetch import Prefetcher


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("prefetch") / "out.h5"
    write_dataset(path, n=10)
    return path


def n_threads():
    return sum(thread.name == "loader-prefetch" for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def no_thread_is_left():
    gc.collect()  # what other tests have left
    yield
    gc.collect()
    assert n_threads() == 0


def wait_until(condition):
    deadline = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < deadline, "it does not come to pass"
        time.sleep(0.001)


def counter():
    made = []

    def make():
        made.append(len(made))
        return made[-1]

    return made, make


# The thread


def test_values_come_in_order_and_no_more_than_depth_are_made():
    made, make = counter()
    prefetcher = Prefetcher(make, 3)
    prefetcher.start()
    wait_until(lambda: len(made) == 3)
    time.sleep(0.02)
    assert len(made) == 3
    assert [prefetcher.get() for _ in range(100)] == list(range(100))
    prefetcher.close()
    assert len(made) <= 103


@pytest.mark.parametrize("error", [ValueError("broken"), loader.LoaderError("a"), SystemExit(3)])
def test_exception_reaches_who_asks_after_what_was_made_before(error):
    def make():
        made.append(1)
        if len(made) == 3:
            raise error
        return len(made)

    made = []
    prefetcher = Prefetcher(make, 8)
    prefetcher.start()
    assert [prefetcher.get(), prefetcher.get()] == [1, 2]
    for _ in range(2):
        with pytest.raises(type(error)) as caught:
            prefetcher.get()
        assert caught.value is error
    prefetcher.close()


def test_closing_wakes_who_waits():
    release = threading.Event()
    prefetcher = Prefetcher(release.wait, 1)
    prefetcher.start()
    errors = []

    def ask():
        with pytest.raises(loader.LoaderError, match="the prefetch thread has ended"):
            prefetcher.get()
        errors.append(1)

    asking = threading.Thread(target=ask)
    asking.start()
    closing = threading.Thread(target=prefetcher.close)
    closing.start()
    asking.join(300)
    assert errors == [1]
    release.set()
    closing.join(300)
    assert not closing.is_alive()


def test_closing_twice_is_harmless():
    prefetcher = Prefetcher(counter()[1], 1)
    prefetcher.start()
    prefetcher.close()
    prefetcher.close()


# Batches


@pytest.mark.parametrize("depth", [1, 2, 7])
@pytest.mark.parametrize("remainder", ["keep", "pad"])
def test_batches_are_those_without_prefetch(path, depth, remainder):
    options = {"batch_size": 4, "seed": 7, "remainder": remainder, "normalize": "zscore"}
    plain = loader.Batches(path, **options)
    with loader.Batches(path, prefetch=depth, **options) as batches:
        for _ in range(20):
            for found, expected in zip(batches.next_batch(), plain.next_batch(), strict=True):
                assert found.tobytes() == expected.tobytes()
            assert batches.indices.tolist() == plain.indices.tolist()
            assert batches.is_padding.tolist() == plain.is_padding.tolist()
            assert batches.epochs_completed == plain.epochs_completed
            assert batches.state_dict() == plain.state_dict()


def test_iterating_ends_with_the_epoch(path):
    with loader.Batches(path, batch_size=5, prefetch=3) as batches:
        assert [len(list(batches)) for _ in range(3)] == [2, 2, 2]


def test_state_is_that_of_what_was_handed_out(path):
    options = {"batch_size": 2, "seed": 7}
    with (
        loader.Batches(path, prefetch=4, **options) as batches,
        loader.Batches(path, prefetch=2, **options) as restored,
    ):
        for n_drawn in range(12):
            restored.load_state_dict(batches.state_dict())
            expected = loader.Batches(path, **options)
            expected.load_state_dict(batches.state_dict())
            assert expected.epochs_completed == n_drawn // 5
            for other in (batches, restored, expected):
                other.next_batch()
            assert batches.indices.tolist() == restored.indices.tolist()
            assert batches.indices.tolist() == expected.indices.tolist()


def test_dropping_it_ends_the_thread(path):
    batches = loader.Batches(path, batch_size=2, prefetch=2)
    batches.next_batch()
    assert n_threads() == 1
    del batches
    gc.collect()
    assert n_threads() == 0


def test_closed_batches_go_on_where_they_were(path):
    batches = loader.Batches(path, batch_size=2, seed=7, prefetch=2)
    plain = loader.Batches(path, batch_size=2, seed=7)
    for _ in range(3):
        batches.next_batch()
        plain.next_batch()
        assert batches.indices.tolist() == plain.indices.tolist()
        batches.close()
        assert n_threads() == 0


def test_error_in_the_thread_reaches_the_caller_who_may_go_on(path, monkeypatch):
    with loader.Batches(path, batch_size=2, seed=7, prefetch=2) as batches:
        batches.next_batch()
        state = batches.state_dict()
        batches.close()
        with monkeypatch.context() as patch:
            patch.setattr(loader.Dataset, "check_whole", raise_cut_short)
            with pytest.raises(loader.LoaderError, match="cut short"):
                batches.next_batch()
        assert batches.state_dict() == state
        batches.next_batch()
        assert batches.state_dict()["batch"] == 2


def raise_cut_short(_):
    raise loader.LoaderError("cut short")


def test_threads_draw_an_epoch_exactly_once(tmp_path):
    write_dataset(tmp_path / "out.h5", n=999)
    drawn, all_started = [], threading.Barrier(3)
    with loader.Batches(tmp_path / "out.h5", batch_size=3, prefetch=4) as batches:

        def draw():
            all_started.wait()
            for _ in range(111):
                images, _ = batches.next_batch()
                assert images[0, 0].tolist() == batches.indices.tolist()
                drawn.extend(batches.indices.tolist())

        threads = [threading.Thread(target=draw) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(drawn) == list(range(999))


def test_prepared_batch_is_copied_into_the_callers_buffers(path):
    plain = loader.Batches(path, batch_size=4, remainder="keep")
    with loader.Batches(path, batch_size=4, remainder="keep", prefetch=2) as batches:
        out = batches.next_batch()
        plain.next_batch()
        for n_samples in (4, 2, 4):
            images, masks = batches.next_batch(out=out)
            expected = plain.next_batch()
            assert images.shape[2] == n_samples
            assert np.shares_memory(images, out[0])
            np.testing.assert_array_equal(images, expected[0])
            np.testing.assert_array_equal(masks, expected[1])


# Processes


def send_rows(batches, connection):
    connection.send([batches.indices.tolist() for _ in batches])


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("start_method", multiprocessing.get_all_start_methods())
def test_another_process_goes_on_with_a_thread_of_its_own(path, start_method):
    context = multiprocessing.get_context(start_method)
    with loader.Batches(path, batch_size=2, seed=7, prefetch=2) as batches:
        batches.next_batch()
        ours, theirs = context.Pipe()
        process = context.Process(target=send_rows, args=(batches, theirs))
        process.start()
        try:
            assert ours.poll(300), "the process hangs"
            rows = ours.recv()
            process.join(300)
            assert process.exitcode == 0, "the process does not end"
        finally:
            process.kill()
            process.join()
        assert rows == [batches.indices.tolist() for _ in batches]


def test_copy_has_no_thread(path):
    with loader.Batches(path, batch_size=2, seed=7, prefetch=2) as batches:
        batches.next_batch()
        with pickle.loads(pickle.dumps(batches)) as copy:
            assert n_threads() == 1
            for other in (batches, copy):
                other.next_batch()
            assert copy.indices.tolist() == batches.indices.tolist()


SCRIPT = """
import sys
import loader
batches = loader.Batches(sys.argv[1], batch_size=2, prefetch=2)
batches.next_batch()
{}
"""


@pytest.mark.parametrize(
    "last", ["", "raise SystemExit", "iterator = iter(batches); next(iterator)"]
)
def test_process_ends_with_a_thread_at_work(path, last):
    command = [sys.executable, "-c", SCRIPT.format(last), os.fspath(path)]
    done = subprocess.run(command, capture_output=True, timeout=300, check=True)
    assert done.stderr == b""


@pytest.mark.parametrize("value", [-1, 1025])
def test_prefetch_out_of_range(path, value):
    with pytest.raises(ValueError, match="prefetch: expected an integer from 0 to 1024"):
        loader.Batches(path, batch_size=1, prefetch=value)
