"""The wheel: all of the two packages, and nothing else."""

import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1]
PACKAGES = ("etl", "loader")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Return the opened wheel, built offline from a copy of what a release has."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    ignored = shutil.ignore_patterns("__pycache__")
    # Folders that a checkout also has, or may get: none of them is a package of ours.
    for name in (*PACKAGES, "tests", "bench", "examples"):
        shutil.copytree(PROJECT / name, source / name, ignore=ignored)
    for name in ("docs", "etl_old", "loader_notes"):
        (source / name).mkdir()
        (source / name / "__init__.py").touch()
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation"]
    options = ["--no-index", "--verbose", "--disable-pip-version-check", "--wheel-dir", str(folder)]
    run = subprocess.run(
        [*command, *options], cwd=source, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert "Deprecat" not in run.stdout + run.stderr
    (path,) = folder.glob("*.whl")
    with zipfile.ZipFile(path) as file:
        yield file


def test_it_has_every_module_and_the_mark_of_types_of_both_packages(wheel):
    expected = {
        path.relative_to(PROJECT).as_posix()
        for package in PACKAGES
        for path in (PROJECT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"etl/py.typed", "loader/py.typed", "loader/torch/__init__.py"} <= expected
    found = {name for name in wheel.namelist() if not name.partition("/")[0].endswith("-info")}
    assert found == expected


def test_it_has_nothing_but_the_packages_and_its_metadata(wheel):
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    (metadata,) = tops - set(PACKAGES)
    assert metadata.startswith("dicom_etl-")
    assert metadata.endswith(".dist-info")
    assert f"{metadata}/licenses/LICENSE" in wheel.namelist()
    assert "\nLicense-Expression: Apache-2.0\n" in wheel.read(f"{metadata}/METADATA").decode()


def test_its_command_is_a_function_of_ours(wheel):
    (name,) = [name for name in wheel.namelist() if name.endswith("/entry_points.txt")]
    assert wheel.read(name).decode().split() == [
        "[console_scripts]",
        "dicom-etl",
        "=",
        "etl.__main__:main",
    ]
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="dicom-etl")
    assert command.load().__name__ == "main"
