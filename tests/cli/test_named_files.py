"""Files that users name on the command line, and that may have no end."""

import os
import shutil
import signal
import zipfile
from pathlib import Path

import click
import h5py
import numpy as np
import pytest
from builders import COLUMNS, ROWS, write_tree
from click.testing import CliRunner

from etl.cli import cli
from etl.verify.file import verify
from loader import open_dataset

HANGS = 60  # seconds: a command that waits for a pipe would wait for ever
SPARSE = 10 << 30  # bytes

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders here")


@pytest.fixture(autouse=True)
def _alarm():
    """Let a test that hangs fail."""

    def stop(*_):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(HANGS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Return a folder with `data` and `out.h5`."""
    folder = tmp_path_factory.mktemp("named")
    write_tree(folder / "data")
    found = run(*build(folder, "out.h5"))
    assert found.exit_code == 0, found.output
    return folder


def build(folder, out, *more):
    size = ("--size", f"{ROWS}x{COLUMNS}")
    return ("build", folder / "data", folder / out, *size, "--workers", "1", *more)


def run(*arguments):
    return CliRunner().invoke(cli, list(map(str, arguments)))


def commands(folder, path):
    """Return (command, parameter) → a command line in which it names a file that is read."""
    out, data = folder / "out.h5", folder / "data"
    found = {
        ("describe", "file"): ("describe", path),
        ("describe", "card_file"): ("describe", out, "--card", path),
        ("preview", "file"): ("preview", path, "--augment", "ct", "--png", folder / "no.png"),
        ("preview", "augment"): ("preview", out, "--augment", path, "--png", folder / "no.png"),
        ("report", "file"): ("report", path),
        ("report", "predictions"): ("report", out, "--predictions", path),
        ("report", "old"): ("report", out, "--compare", path),
        ("verify", "file"): ("verify", path),
        ("verify", "source"): ("verify", out, "--source", path),
        ("build", "data"): ("build", path, folder / "no.h5"),
        ("check", "data"): ("check", path),
        ("build", "log_file"): build(folder, "no.h5", "--log-file", path),
        ("build", "split_file"): build(folder, "no.h5", "--split-file", path),
        ("build", "splits_from"): build(folder, "no.h5", "--splits-from", path),
        ("build", "patients_csv"): build(
            folder, "no.h5", "--folds", "2", "--stratify", "age", "--patients-csv", path
        ),
    }
    for name in ("exclude_file", "structures"):
        option = f"--{name.replace('_', '-')}"
        found["build", name] = build(folder, "no.h5", option, path)
        found["check", name] = ("check", data, option, path)
    return found


WRITTEN = {  # what stands there is replaced or left as it is, never read as a whole
    ("build", "out"),
    ("check", "csv_file"),
    ("describe", "markdown_file"),
    ("describe", "json_file"),
    ("phantom", "folder"),
    ("preview", "png"),
    ("report", "csv_file"),
    ("report", "splits_file"),
    ("report", "overlays"),
    ("report", "page"),
    ("report", "contact_sheet"),
}
READ = tuple(commands(Path(), "x"))


def test_each_parameter_that_names_a_file_is_here():
    named = {
        (command.name, param.name)
        for command in cli.commands.values()
        for param in command.params
        if isinstance(param.type, click.Path) or "FILE" in str(param.metavar or param.type.name)
    }
    assert named == {*READ} | WRITTEN


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "large"])
@pytest.mark.parametrize("named", READ, ids="-".join)
def test_what_is_no_such_file_is_refused_at_once(built, tmp_path, named, kind):
    path = tmp_path / "named.toml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        with path.open("wb") as file:
            file.truncate(SPARSE)
    found = run(*commands(built, path)[named])
    assert found.exit_code in {1, 2}, found.output
    assert not found.exception or isinstance(found.exception, SystemExit), found.exception
    words = "".join(found.stderr.split())  # lines are wrapped, within words too
    assert str(path) in words or path.name in words
    assert not (built / "no.h5").exists()


@pytest.mark.parametrize("name", ["card_file", "augment", "structures"])
def test_settings_have_a_bound(built, tmp_path, name):
    path = tmp_path / "named.json"
    path.write_bytes(b" " * 2_000_000)
    [(_, line)] = [
        (key, line)
        for key, line in commands(built, path).items()
        if key in {("describe", name), ("preview", name), ("build", name)}
    ]
    found = run(*line)
    assert found.exit_code == 1
    assert "has 2000000 bytes, expected 1048576 at most. Give a file that" in found.stderr


def test_a_source_that_has_become_a_pipe_is_a_difference(built, tmp_path):
    root = tmp_path / "data"
    shutil.copytree(built / "data", root)
    path = root / open_dataset(built / "out.h5").manifest["dicom_path"][0]
    path.unlink()
    os.mkfifo(path)
    found = [str(one) for one in verify(built / "out.h5", source=root, rebuild=True).problems]
    assert len(found) == 2
    assert "is a device, pipe or socket, expected a regular file." in found[0]
    assert "cannot be built again" in found[1]


def test_a_large_array_of_predictions_is_not_unpacked(built, tmp_path):
    path = tmp_path / "model.npz"
    masks = open_dataset(built / "out.h5").masks
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("predictions.npy", "w") as file:
            np.save(file, masks)
            file.write(bytes(50_000_000))
        with archive.open("more.npy", "w") as file:  # an array that nobody asks for is not read
            file.write(bytes(50_000_000))
    found = run("report", built / "out.h5", "--predictions", path)
    assert found.exit_code == 1
    assert "predictions has 50000" in found.stderr
    assert "Write predictions of this file." in " ".join(found.stderr.split())


def test_an_array_of_predictions_that_no_memory_holds_is_a_message(built, tmp_path):
    path = tmp_path / "model.npz"
    header = {"descr": "|u1", "fortran_order": False, "shape": (1 << 60,)}
    with zipfile.ZipFile(path, "w") as archive, archive.open("predictions.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, header)
    found = run("report", built / "out.h5", "--predictions", path)
    assert found.exit_code == 1
    assert "cannot be read as HDF5 or .npz (" in " ".join(found.stderr.split())


def test_rows_of_predictions_are_counted_before_they_are_read(built, tmp_path):
    path = tmp_path / "model.h5"
    with h5py.File(path, "w") as file:
        for name, shape in (("rows", ()), ("predictions", (ROWS, COLUMNS))):
            file.create_dataset(name, (1 << 40, *shape), np.int64, chunks=(1024, *shape))
    found = run("report", built / "out.h5", "--predictions", path)
    assert found.exit_code == 1
    assert "rows: expected 3 at most, found 1099511627776." in " ".join(found.stderr.split())
