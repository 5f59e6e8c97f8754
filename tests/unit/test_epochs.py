"""The memory by which processes agree on the epoch that is to begin."""

import contextlib
import gc
import multiprocessing
import os
import signal
import threading
import time

import pytest

import loader.epochs
from loader.epochs import Counts, Epochs
from loader.errors import LoaderError


def joined(epochs, tokens, n_workers=2):
    return [epochs.join(token, n_workers) for token in tokens]


def test_the_process_itself_begins_one_epoch_after_the_other():
    epochs = Epochs()
    assert [epochs.begin() for _ in range(3)] == [(0, 0), (1, 0), (2, 0)]
    assert epochs.coming() == (3, 0)


def test_workers_of_an_iteration_begin_the_same_epoch_and_others_the_next():
    assert joined(Epochs(), [7, 7, 8, 9, 9, 8]) == [(e, 0) for e in (0, 0, 1, 2, 2, 1)]


def test_counting_goes_on_from_what_had_begun():
    first = Epochs()
    first.begin()
    other = Epochs(first.counts())
    assert other.begin() == (1, 0)
    assert first.begin() == (1, 0)


def test_who_has_begun_is_told():
    epochs = Epochs()
    epochs.begin()
    assert epochs.counts() == Counts(begun=1, begun_here=1)
    epochs.join(7, 2)
    assert epochs.counts() == Counts(begun=2, begun_here=1)
    epochs.begin()
    assert epochs.counts() == Counts(begun=3, begun_here=3)


def test_a_loaded_position_is_where_the_next_iteration_begins_once():
    epochs = Epochs()
    epochs.load((5, 3))
    assert epochs.coming() == (5, 3)
    assert joined(epochs, [7, 7, 8]) == [(5, 3), (5, 3), (6, 0)]


def test_workers_that_loaded_count_on_from_their_epoch():
    epochs = Epochs()
    epochs.begin()
    assert [epochs.join(7, 2, epoch=4) for _ in range(2)] == [(4, 0), (4, 0)]
    assert epochs.counts() == Counts(begun=5, begun_here=0)
    assert joined(epochs, [8]) == [(5, 0)]


def test_a_late_worker_that_loaded_does_not_turn_back_what_others_began():
    epochs = Epochs()
    epochs.join(7, 2, epoch=4)
    assert joined(epochs, [8]) == [(5, 0)]
    epochs.join(7, 2, epoch=4)
    assert joined(epochs, [9]) == [(6, 0)]


def test_a_worker_may_be_far_behind_the_others():
    epochs = Epochs()
    assert joined(epochs, range(1, 3001)) == [(n, 0) for n in range(3000)]
    assert joined(epochs, range(1, 3001)) == [(n, 0) for n in range(3000)]


def test_iterations_whose_workers_never_came_give_way_from_the_oldest_on():
    epochs = Epochs()
    joined(epochs, range(1, 5001))
    assert joined(epochs, [5000, 1]) == [(4999, 0), (5000, 0)]


@pytest.fixture
def slow(monkeypatch):
    """Make the time between reading and writing long enough for others to come in."""
    counts = Epochs.counts

    def slowly(epochs):
        found = counts(epochs)
        time.sleep(0.01)
        return found

    monkeypatch.setattr(Epochs, "counts", slowly)


def send_begun(epochs, connection, n):
    connection.send([epochs.begin()[0] for _ in range(n)])


def begun_by_processes(epochs, n_processes, n):
    context = multiprocessing.get_context("fork")
    pipes = [context.Pipe(duplex=False) for _ in range(n_processes)]
    processes = [context.Process(target=send_begun, args=(epochs, to, n)) for _, to in pipes]
    for process in processes:
        process.start()
    found = [epoch for receiver, _ in pipes for epoch in receiver.recv()]
    for process in processes:
        process.join()
    return found


def test_processes_at_once_do_not_begin_the_same_epoch(slow):
    assert sorted(begun_by_processes(Epochs(), 3, 4)) == list(range(12))


def test_threads_at_once_do_not_begin_the_same_epoch(slow):
    epochs, found = Epochs(), []
    threads = [
        threading.Thread(target=lambda: found.extend(epochs.begin() for _ in range(4)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [(n, 0) for n in range(12)]


@contextlib.contextmanager
def held(monkeypatch, inside):
    """Do something within the lock of the next change."""
    counts = Epochs.counts

    def do(epochs):
        monkeypatch.setattr(Epochs, "counts", counts)
        inside()
        return counts(epochs)

    monkeypatch.setattr(Epochs, "counts", do)
    yield
    monkeypatch.setattr(Epochs, "counts", counts)


def test_a_fork_while_a_thread_holds_the_lock_waits_for_nobody(monkeypatch):
    epochs = Epochs()
    is_held, may_end = threading.Event(), threading.Event()

    def hold():
        is_held.set()
        may_end.wait(10)

    with held(monkeypatch, hold):
        thread = threading.Thread(target=epochs.begin)
        thread.start()
        is_held.wait(10)
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=send_begun, args=(epochs, sender, 1))
        process.start()
        time.sleep(0.05)
        may_end.set()
        assert receiver.poll(10)
        assert receiver.recv() == [1]
        process.join()
        thread.join()


def hold_for_ever(epochs, connection):
    epochs.counts = lambda: connection.send("held") or time.sleep(60)
    epochs.begin()


def test_the_lock_ends_with_the_process_that_holds_it():
    epochs = Epochs()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=hold_for_ever, args=(epochs, sender))
    process.start()
    receiver.recv()
    process.kill()
    assert epochs.begin() == (0, 0)
    process.join()


def test_the_handler_of_a_signal_may_ask_and_begin(monkeypatch):
    epochs, seen = Epochs(), []

    def handle(*_):
        seen.append((epochs.counts(), epochs.coming(), epochs.begin()))

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        with held(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGUSR1)):
            epochs.begin()
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert seen == [(Counts(), (0, 0), (0, 0))]


@pytest.mark.parametrize("change", [Epochs.begin, lambda epochs: epochs.join(7, 2)])
def test_an_interruption_at_any_call_leaves_no_lock(monkeypatch, change):
    epochs = Epochs()
    # As a signal's handler does: the call itself was made.
    for name in ("_lock_file", "Epochs.counts"):
        called = Epochs.counts if name == "Epochs.counts" else loader.epochs._lock_file

        def interrupt(*arguments, called=called):
            monkeypatch.undo()
            called(*arguments)
            raise KeyboardInterrupt

        monkeypatch.setattr(f"loader.epochs.{name}", interrupt)
        with pytest.raises(KeyboardInterrupt):
            change(epochs)
        assert begun_by_processes(epochs, 1, 1) == [epochs.counts().begun - 1]


def n_open():
    """Return how many descriptors of such memory this process has; others may come and go."""
    gc.collect()
    links = [os.path.join("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return sum("loader-epochs" in os.readlink(link) for link in links if os.path.islink(link))


def test_nothing_stays_open():
    before = n_open()
    epochs = [Epochs() for _ in range(20)]
    epochs += [Epochs(file=os.dup(one.file)) for one in epochs]
    assert n_open() > before
    del epochs
    assert n_open() == before


def test_without_memory_files_one_in_the_folder_for_temporary_files_serves(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    epochs = Epochs()
    assert sorted(begun_by_processes(epochs, 2, 2)) == [0, 1, 2, 3]
    assert list(tmp_path.iterdir()) == []


def test_workers_need_locks_between_processes(monkeypatch):
    monkeypatch.setattr("loader.epochs._HAS_LOCKS", False)
    epochs = Epochs()
    assert epochs.begin() == (0, 0)
    with pytest.raises(LoaderError, match=r"no locks \(fcntl\).*num_workers=0"):
        epochs.join(7, 2)
