import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from etl.errors import EtlError
from etl.output import target
from etl.output.target import replacing

HOLD = """
import sys, time
from pathlib import Path
from etl.output.target import replacing
with replacing(Path(sys.argv[1]), force=True) as partial:
    partial.write_bytes(b"half")
    Path(f"{partial}.whole").write_bytes(b"a part of it")
    print("ready", flush=True)
    time.sleep(600)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.h5"


@pytest.fixture
def holder(out):
    """Return another process that writes OUT."""
    command = [sys.executable, "-c", HOLD, out]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_the_new_file_takes_the_name_and_nothing_else_is_left(out, tmp_path):
    for content in (b"one", b"two"):
        with replacing(out, force=True) as partial:
            partial.write_bytes(content)
            assert len(names(tmp_path)) == 2 + (content == b"two")
        assert out.read_bytes() == content
        assert names(tmp_path) == ["out.h5"]


def test_a_second_writer_is_refused_and_told_of_the_first(out, holder, tmp_path):
    before = names(tmp_path)
    owner = f"process {holder.pid} on {socket.gethostname()}"
    with (
        pytest.raises(EtlError, match=rf"out\.h5: {owner} is writing it"),
        replacing(out, force=True),
    ):
        pytest.fail("both write")
    assert names(tmp_path) == before


def test_a_second_writer_in_the_same_process_is_refused(out, tmp_path):
    with replacing(out, force=True) as partial:
        with pytest.raises(EtlError, match=f"process {os.getpid()}"), replacing(out, force=True):
            pytest.fail("both write")
        partial.write_bytes(b"first")
    assert out.read_bytes() == b"first"
    assert names(tmp_path) == ["out.h5"]


def test_what_a_killed_writer_left_is_removed_by_the_next(out, holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert len(names(tmp_path)) == 3  # the file, its copy, and the lock that nobody holds
    with replacing(out, force=True) as partial:
        assert len(names(tmp_path)) == 2
        partial.write_bytes(b"new")
    assert names(tmp_path) == ["out.h5"]


def test_what_belongs_to_another_out_stays(tmp_path):
    one, two = (tmp_path / f"{'x' * 60}-{n}.h5" for n in (1, 2))
    other = ".out.h5.0123456789abcdef.partial"
    (tmp_path / other).touch()
    with replacing(one, force=True) as first, replacing(two, force=True) as second:
        first.write_bytes(b"1")
        second.write_bytes(b"2")
    assert (one.read_bytes(), two.read_bytes()) == (b"1", b"2")
    assert names(tmp_path) == [other, one.name, two.name]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EACCES])
def test_where_there_are_no_locks_it_is_written_and_nothing_removed(
    out, tmp_path, monkeypatch, number
):
    def refuse(*_arguments):
        raise OSError(number, os.strerror(number))

    other = ".out.h5.0123456789abcdef.partial"
    (tmp_path / other).touch()
    monkeypatch.setattr(fcntl, "flock", refuse)
    with replacing(out, force=True) as partial:
        partial.write_bytes(b"new")
    assert out.read_bytes() == b"new"
    assert names(tmp_path) == [other, "out.h5"]


def test_a_lock_that_its_owner_removes_at_that_moment_is_taken_anew(out, tmp_path, monkeypatch):
    flock, removed = fcntl.flock, []

    def remove_first(descriptor, operation):
        if not removed:
            removed.append((tmp_path / ".out.h5.lock").unlink())
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with replacing(out, force=True) as partial:
        partial.write_bytes(b"new")
        assert (tmp_path / ".out.h5.lock").exists()
    assert names(tmp_path) == ["out.h5"]


def test_the_platform_may_have_no_locks_at_all(out, tmp_path, monkeypatch):
    monkeypatch.setattr(target, "fcntl", None)
    with replacing(out, force=False) as partial:
        partial.write_bytes(b"new")
    assert names(tmp_path) == ["out.h5"]


@pytest.mark.parametrize("force", [True, False])
def test_what_fails_after_the_change_of_names_is_a_note(out, tmp_path, monkeypatch, force):
    fsync = os.fsync

    def fail_for_folders(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EIO, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_for_folders)
    notes = []
    with replacing(out, force=force, notes=notes) as partial:
        partial.write_bytes(b"new")
    assert out.read_bytes() == b"new"
    assert names(tmp_path) == ["out.h5"]
    (note,) = notes
    assert "is written, but its folder could not be synchronised (input/output error)" in note


def test_a_file_system_without_hard_links_is_renamed_on(out, tmp_path, monkeypatch):
    def refuse(*_arguments):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with replacing(out, force=False) as partial:
        partial.write_bytes(b"new")
    assert names(tmp_path) == ["out.h5"]


@pytest.mark.parametrize("end", [KeyboardInterrupt, EtlError("no"), ZeroDivisionError])
def test_whatever_ends_the_block_removes_the_new_file(out, tmp_path, end):
    def write():
        with replacing(out, force=True) as partial:
            partial.write_bytes(b"half")
            raise end

    with pytest.raises((KeyboardInterrupt, EtlError, ZeroDivisionError)):
        write()
    assert names(tmp_path) == []


def test_a_lock_is_no_business_of_child_processes(out):
    """A worker that outlives the build must not keep OUT locked."""
    with replacing(out, force=True) as partial:
        partial.write_bytes(b"new")
        for entry in Path("/proc/self/fd").iterdir() if Path("/proc/self/fd").exists() else []:
            if entry.exists() and os.readlink(entry).endswith(".lock"):
                assert not os.get_inheritable(int(entry.name))
