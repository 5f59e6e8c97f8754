"""Modules of our names, or of our libraries', in the current folder: none of them is ours."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from builders import COLUMNS, ROWS, write_tree

import etl
from etl.options import BuildOptions
from etl.workers import local_pool

COMMAND = Path(sys.executable).with_name("dicom-etl")
STRANGERS = ["loader.py", "etl/__init__.py", "numpy.py", "click.py", "signal.py", "socket.py"]
OPTIONS = ["--size", f"{ROWS}x{COLUMNS}", "--no-audit"]

# A script of the user's, in a folder of its own: the current one is not where Python looks.
SPAWN = """
from etl.cli import main
from etl.workers import local_pool

local_pool._START_METHOD = "spawn"
if __name__ == "__main__":
    main()
"""
WHERE = """
import sys
sys.path.insert(0, sys.argv[1])
import etl
from etl.workers import local_pool

local_pool._START_METHOD = sys.argv[2]
def where():
    from etl import render
    return etl.__file__, render.__file__

if __name__ == "__main__":
    with local_pool.LocalPool(1) as pool:
        print(*pool.submit(where).result())
"""


@pytest.fixture
def folder(tmp_path):
    """Return a current folder full of strangers; one that runs leaves a mark."""
    found = tmp_path / "current"
    for name in STRANGERS:
        path = found / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r} + ' ')\n")
    return found


def run(folder, *command):
    names = ("PYTHONSAFEPATH", "PYTHONPATH", "PYTHONDONTWRITEBYTECODE")
    env = {name: value for name, value in os.environ.items() if name not in names}
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=600
    )


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_build_runs_its_own_code_in_any_folder(tmp_path, folder, workers, method):
    data = write_tree(tmp_path / "data", slices=[1, 2, 3])
    command = [COMMAND]
    if method == "spawn":
        (tmp_path / "scripts").mkdir()
        script = tmp_path / "scripts" / "spawn.py"
        script.write_text(SPAWN)
        command = [sys.executable, script]
    found = run(folder, *command, "build", data, "out.h5", *OPTIONS, "--workers", str(workers))
    assert found.stderr in {"", "Layout link: found link.csv.\n"}
    assert found.stdout.startswith("Wrote out.h5: 3 rows.")
    assert not (tmp_path / "ran").exists()
    etl.build(data, tmp_path / "here.h5", BuildOptions(rows=ROWS, columns=COLUMNS, audit=False))
    assert (folder / "out.h5").read_bytes() == (tmp_path / "here.h5").read_bytes()


@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_workers_import_what_the_coordinator_imports(tmp_path, folder, method):
    """The coordinator may have put another copy first, while this one is installed."""
    if method == "forkserver" and sys.platform != "linux":
        pytest.skip("workers are spawned here")
    copy, script = tmp_path / "copy", tmp_path / "where.py"
    for package in ("etl", "loader"):
        shutil.copytree(Path(etl.__file__).parents[1] / package, copy / package)
    script.write_text(WHERE)
    found = run(folder, sys.executable, script, copy, method)
    assert found.stderr in {"", "Layout link: found link.csv.\n"}
    expected = [copy / "etl" / name for name in ("__init__.py", "render.py")]
    assert found.stdout.split() == [str(path) for path in expected]
    assert not (tmp_path / "ran").exists()


def test_the_environment_is_as_it_was(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "somewhere")
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    before = dict(os.environ)
    with local_pool.LocalPool(1) as pool:
        assert pool.submit(max, 3, 4).result() == 4
    assert dict(os.environ) == before


@pytest.mark.parametrize("name", ["loader.py", "loader/__init__.py"])
def test_a_stranger_named_loader_is_told_by_its_path_and_not_run(tmp_path, name):
    stranger = tmp_path / "current" / name
    stranger.parent.mkdir(parents=True)
    stranger.write_text(f"open({str(tmp_path / 'ran')!r}, 'a')\n")
    found = run(tmp_path / "current", sys.executable, "-c", "import etl")
    last = found.stderr.splitlines()[-1]
    own = Path(etl.__file__).parents[1] / "loader"
    assert last == (
        f"ImportError: Package loader not usable: {stranger}: is not dicom-etl's own, which is "
        f"{own}. Rename the other one, or take its folder out of PYTHONPATH and sys.path."
    )
    assert not (tmp_path / "ran").exists()


def test_a_folder_named_loader_is_passed_over_or_told_by_its_path(tmp_path):
    """Python takes a folder without code for a package where ours is found by a later finder."""
    (tmp_path / "loader").mkdir()
    found = run(tmp_path, sys.executable, "-c", "import etl; print(etl.__version__)")
    is_told = f"not usable: {tmp_path / 'loader'}: is not dicom-etl's own" in found.stderr
    assert found.stdout.split() == [etl.__version__] or is_told
