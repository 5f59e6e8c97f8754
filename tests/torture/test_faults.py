"""Whatever call of a build fails: OUT is the new file or the old one, and the status says which."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from builders import COLUMNS, ROWS, write_contour, write_tree

import etl
from etl.options import BuildOptions

HERE = Path(__file__).parent
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
KINDS = {"write": 0, "fsync": 1, "truncate": 2, "allocate": 3, "rename": 4, "close": 5}

pytestmark = [
    pytest.mark.skipif(COMPILER is None, reason="there is no C compiler"),
    pytest.mark.skipif(sys.platform != "linux", reason="LD_PRELOAD and /proc are Linux's"),
]


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    path = tmp_path_factory.mktemp("shim") / "faults.so"
    command = [COMPILER, "-shared", "-fPIC", "-O1", "-o", path, HERE / "faults.c", "-ldl"]
    subprocess.run(command, check=True)
    return path


@pytest.fixture
def data(tmp_path):
    root = write_tree(tmp_path / "data", [("P1", "A1"), ("P2", "A2")])
    write_contour(root, "A1", 2, text="2 2\n30 2\n30 9\n2 9\n")
    return root


@pytest.mark.parametrize("what", ["replace", "new"])
def test_one_failing_call_anywhere(tmp_path, shim, data, what, is_thorough):
    depth = "thorough" if is_thorough else "quick"
    script = [sys.executable, HERE / "inject.py", data, tmp_path / "out"]
    run = subprocess.run(
        [*script, what, depth, f"{ROWS}x{COLUMNS}"],
        env={**os.environ, "LD_PRELOAD": str(shim)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["wrong"] == {}
    assert found["calls"]["write"] > 100
    assert all(n > 0 for n in found["calls"].values())
    assert found["failed"] > 0.5 * found["builds"]


IN_WORKERS = """
import json, os, sys
if __name__ == "__main__":
    os.environ.update(json.loads(sys.argv.pop(1)))  # this process has read its environment
    from etl.cli import main
    main()
"""


def points(is_thorough):
    """Return (kind, which call) of calls in worker processes."""
    if not is_thorough:
        return [("write", 1), ("write", 30), ("close", 1)]
    return [("write", at) for at in range(1, 70)] + [("close", 1), ("close", 2)]


def test_a_failing_call_in_workers(tmp_path, shim, is_thorough):
    data = write_tree(tmp_path / "data", slices=range(1, 50))  # for more than one worker
    out, script = tmp_path / "out.h5", tmp_path / "build.py"
    etl.build(data, out, BuildOptions(rows=ROWS, columns=COLUMNS))
    old, new = b"\x89HDF\r\n\x1a\n the old file", out.read_bytes()
    script.write_text(IN_WORKERS)
    size = ["--size", f"{ROWS}x{COLUMNS}", "--workers", "2", "--force"]
    statuses = []
    for kind, at in points(is_thorough):
        out.write_bytes(old)
        fault = {"FAULT_KIND": KINDS[kind], "FAULT_AT": at, "FAULT_ERRNO": 28, "FAULT_LASTS": 0}
        fault = json.dumps({name: str(value) for name, value in fault.items()})
        run = subprocess.run(
            [sys.executable, script, fault, "build", data, out, *size],
            env={**os.environ, "LD_PRELOAD": str(shim)},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        statuses.append(run.returncode)
        assert run.returncode in {0, 1}, run.stderr
        assert out.read_bytes() == (old if run.returncode else new)
        assert "Traceback" not in run.stderr
        assert run.returncode == 0 or "Output not written: " in run.stderr
        assert {path.name for path in tmp_path.iterdir()} == {
            *("data", "out.h5", "out.h5.cache", "build.py")
        }
    assert statuses[0] == 1
