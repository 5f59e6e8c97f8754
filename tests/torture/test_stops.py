"""Signals and kills at any moment of a build, from the start of the process on."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from builders import COLUMNS, ROWS, write_contour, write_dicom, write_tree

import etl
from etl.options import BuildOptions

COMMAND = Path(sys.executable).with_name("dicom-etl")
SIZE = ["--size", f"{ROWS}x{COLUMNS}", "--no-audit"]
OPTIONS = BuildOptions(rows=ROWS, columns=COLUMNS, audit=False)
OLD = b"\x89HDF\r\n\x1a\n the old file"
NAMES = ["data", "out.h5", "out.h5.cache"]  # the cache is there from the first build on
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
# A Ctrl-C while Python starts, before it runs the command, ends in its own traceback.
START_UP = ("<frozen", "/lib/python", "/bin/dicom-etl", "site-packages/__editable__", "<string>")

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="signals are POSIX's")


class Build:
    """The same build again and again, over an old file, stopped in between."""

    def __init__(self, folder):
        self.folder = folder
        self.data = write_tree(folder / "data", slices=[1])
        content = (self.data / "dicoms/P1/1.dcm").read_bytes()
        for number in range(2, 60):
            write_dicom(self.data, "P1", f"{number}.dcm", content)
            write_contour(self.data, "A1", number)
        self.out = folder / "out.h5"
        etl.build(self.data, self.out, OPTIONS)
        self.new = self.out.read_bytes()

    def start(self, workers):
        """Start the build as the leader of a process group."""
        self.out.write_bytes(OLD)
        return subprocess.Popen(
            [COMMAND, "build", self.data, self.out, *SIZE, "--force", "--workers", str(workers)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def seconds(self, workers):
        """Return how long it takes."""
        begin = time.monotonic()
        process = self.start(workers)
        _, messages = process.communicate()
        assert process.returncode == 0, messages
        return time.monotonic() - begin

    def names(self):
        return sorted(path.name for path in self.folder.iterdir())


@pytest.fixture
def build(tmp_path):
    return Build(tmp_path)


def moments(build, workers, n, statuses):
    """Yield n moments from the start of the process to a little after its end.

    Where the machine has become so much faster that each build ended before its moment, earlier
    moments follow until a build was stopped; `statuses` tells how each has ended.
    """
    seconds = 1.05 * build.seconds(workers)
    yield from (seconds * (step + 0.5) / n for step in range(n))
    while not any(statuses):
        seconds /= 2
        yield seconds


def wait_until_gone(group):
    """Require that no process of the group is left; helpers end when they see that it ended."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    pytest.fail("a process is left")


def is_python_starting(messages):
    """Return whether a traceback is of the start of Python and of `import etl`, before main()."""
    lines = [line.strip() for line in messages.splitlines() if line.strip().startswith("File ")]
    own = str(Path(etl.__file__).parent)
    ours = [line for line in lines if own in line]
    others = [line for line in lines if own not in line]
    return all(f'{own}/__init__.py"' in line for line in ours) and all(
        any(part in line for part in START_UP) for line in others
    )


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("to_all", [False, True], ids=["one", "group"])
def test_a_request_to_stop(build, is_thorough, workers, to_all):
    n = 102 if is_thorough else 3  # for each of the four ways
    seen = []
    each = zip(moments(build, workers, n, seen), itertools.cycle(SIGNALS), strict=False)
    for moment, number in each:
        process = build.start(workers)
        time.sleep(moment)
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if to_all else os.kill)(process.pid, number)
        _, messages = process.communicate(timeout=600)
        wait_until_gone(process.pid)
        seen.append(process.returncode)
        if "Traceback" in messages and is_python_starting(messages):
            assert build.out.read_bytes() == OLD
            continue
        told = f"{moment:.3f} s, {number.name}: {process.returncode} {messages}"
        assert process.returncode in {0, -number, 128 + number}, told
        assert build.out.read_bytes() == (OLD if process.returncode else build.new), told
        assert "Traceback" not in messages, told
        assert "Exception ignored" not in messages, told
        assert build.names() == NAMES, told


@pytest.mark.parametrize("workers", [1, 2])
def test_a_kill(build, is_thorough, workers):
    n = 100 if is_thorough else 3
    seen = []
    for moment in moments(build, workers, n, seen):
        process = build.start(workers)
        time.sleep(moment)
        process.kill()
        process.communicate()
        seen.append(process.returncode)
        found = build.out.read_bytes()
        assert found in {OLD, build.new}
        assert process.returncode or found == build.new
        assert {name for name in build.names() if not name.startswith(".")} == set(NAMES)
        wait_until_gone(process.pid)
        etl.build(build.data, build.out, OPTIONS, force=True)
        assert build.out.read_bytes() == build.new
        assert build.names() == NAMES
