import hashlib
import shutil
import subprocess

import pytest
from builders import COLUMNS, ROWS, write_contour, write_tree
from click.testing import CliRunner

import etl
from etl.cli import cli
from etl.options import BuildOptions

OPTIONS = BuildOptions(rows=ROWS, columns=COLUMNS, audit=False)
SHA256SUM = shutil.which("sha256sum")


@pytest.fixture
def root(tmp_path):
    return write_tree(tmp_path / "data")


@pytest.mark.skipif(SHA256SUM is None, reason="there is no sha256sum")
@pytest.mark.parametrize("name", ["out.h5", "a b.h5", "a\\b.h5", "a\nb.h5"])
def test_sha256sum_reads_it(root, tmp_path, name):
    out = tmp_path / name
    etl.build(root, out, OPTIONS, sha256=True)
    command = [SHA256SUM, "--check", "--strict", f"{name}.sha256"]
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 0
    data = bytearray(out.read_bytes())
    data[5000] ^= 1
    out.write_bytes(data)
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 1


def test_an_update_writes_it_anew_and_no_build_without_the_option_does(root, tmp_path):
    out, sidecar = tmp_path / "out.h5", tmp_path / "out.h5.sha256"
    assert etl.build(root, out, OPTIONS).notes == []
    assert not sidecar.exists()
    write_contour(root, "A1", 1, text="2 2\n8 2\n8 8\n2 8\n")
    etl.build(root, out, OPTIONS, update=True, sha256=True)
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    assert sidecar.read_text() == f"{digest}  out.h5\n"
    result = etl.build(root, out, OPTIONS, force=True)
    assert result.notes == [
        "out.h5.sha256 is that of an older file. Give --sha256 to write it anew."
    ]
    assert sidecar.read_text() == f"{digest}  out.h5\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("data", "out.h5", "out.h5.cache", "out.h5.sha256")
    ]


def test_one_that_cannot_be_written_is_a_note(root, tmp_path):
    (tmp_path / "out.h5.sha256").mkdir()
    size = ["--size", f"{ROWS}x{COLUMNS}"]
    done = CliRunner().invoke(
        cli, ["build", str(root), str(tmp_path / "out.h5"), "--sha256", *size]
    )
    assert done.exit_code == 0
    assert "out.h5 is written, but out.h5.sha256 is not." in done.stderr
