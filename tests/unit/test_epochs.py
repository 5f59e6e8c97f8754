"""The file by which processes agree on the epoch that is to begin."""

import json
import multiprocessing
import os
from pathlib import Path

import pytest

from loader.epochs import Epochs
from loader.errors import LoaderError


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path / "epochs")


def test_the_process_itself_begins_one_epoch_after_the_other(folder):
    epochs = Epochs(folder, 1)
    assert [epochs.begin(None) for _ in range(3)] == [(0, 0), (1, 0), (2, 0)]


def test_workers_of_an_iteration_begin_the_same_epoch_and_others_the_next(folder):
    epochs = Epochs(folder, 1)
    assert [epochs.begin(token) for token in "aabbab"] == [(0, 0)] * 2 + [(1, 0)] * 2 + [
        (0, 0),
        (1, 0),
    ]


def test_another_object_of_the_same_process_goes_on(folder):
    Epochs(folder, 1).begin(None)
    assert Epochs(folder, 1).begin(None) == (1, 0)


def test_another_process_counts_on_its_own_from_where_it_started(folder):
    epochs = Epochs(folder, 1)
    epochs.begin("a")
    other = Epochs(folder, 2, epochs.read())
    assert other.begin("a") == (1, 0)  # an iteration of the first is none of the second's
    assert epochs.begin("b") == (1, 0)


def test_who_has_begun_is_told(folder):
    epochs = Epochs(folder, 1)
    epochs.begin(None)
    assert epochs.read()["begun"] == epochs.read()["begun_here"] == 1
    epochs.begin("a")
    assert (epochs.read()["begun"], epochs.read()["begun_here"]) == (2, 1)


def test_a_loaded_position_is_where_the_next_iteration_begins_once(folder):
    epochs = Epochs(folder, 1)
    epochs.load((5, 3))
    assert [epochs.begin(token) for token in ("a", "a", "b")] == [(5, 3), (5, 3), (6, 0)]


def test_workers_that_loaded_count_on_from_their_epoch(folder):
    epochs = Epochs(folder, 1)
    epochs.begin_loaded("a", 7)
    assert epochs.begin("b") == (8, 0)


def test_iterations_long_past_are_forgotten(folder):
    epochs = Epochs(folder, 1)
    for n in range(200):
        epochs.begin(str(n))
    assert epochs.begin("199") == (199, 0)
    size = Path(folder, "1").stat().st_size
    for n in range(200, 400):
        epochs.begin(str(n))
    assert Path(folder, "1").stat().st_size == size


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_at_once_agree(folder, method):
    n_iterations, n_workers = 20, 3
    context = multiprocessing.get_context(method)
    with context.Pool(n_workers) as pool:
        asked = [(folder, str(n)) for n in range(n_iterations) for _ in range(n_workers)]
        found = pool.starmap(begin, asked, chunksize=1)
    of_token = {token: epoch for (_, token), epoch in zip(asked, found, strict=True)}
    assert [of_token[token] for _, token in asked] == found
    assert sorted(of_token.values()) == [(n, 0) for n in range(n_iterations)]


def begin(folder, token):
    return Epochs(folder, 1).begin(token)


def test_who_is_killed_before_writing_leaves_the_record_as_it_was(folder, monkeypatch):
    epochs = Epochs(folder, 1)
    epochs.load((123456, 7))
    before = epochs.read()

    def die(*_):
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", die)
        with pytest.raises(SystemExit):
            epochs.load((0, 0))  # a shorter text
    assert epochs.read() == before


def test_a_shorter_record_leaves_nothing_of_a_longer_one(folder):
    epochs = Epochs(folder, 1)
    epochs.load((123456, 7))
    epochs.load((0, 0))
    assert json.loads(Path(folder, "1").read_bytes())["loaded"] == [0, 0]


def test_removed_with_its_folder(folder):
    one, other = Epochs(folder, 1), Epochs(folder, 2)
    one.begin(None)
    other.begin(None)
    one.remove()
    assert os.listdir(folder) == ["2"]
    other.remove()
    assert not os.path.exists(folder)
    other.remove()  # nothing is left to do


def test_a_full_disk_says_what_to_do(folder, monkeypatch):
    def is_full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", is_full)
    with pytest.raises(LoaderError, match=r"No space left on device.*TMPDIR"):
        Epochs(folder, 1).begin(None)


def test_workers_need_locks(folder, monkeypatch):
    monkeypatch.setattr("loader.epochs.fcntl", None)
    assert Epochs(folder, 1).begin(None) == (0, 0)
    with pytest.raises(LoaderError, match=r"no fcntl.flock.*num_workers=0"):
        Epochs(folder, 1).begin("a")


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LoaderError, match=r"file/folder/1: .*Not a directory.*TMPDIR"):
        Epochs(str(tmp_path / "file" / "folder"), 1).begin(None)
