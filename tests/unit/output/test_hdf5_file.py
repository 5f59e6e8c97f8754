import os

import h5py
import pytest
from builders import COLUMNS, ROWS, write_contour, write_tree

import etl
from etl.options import BuildOptions
from etl.output import hdf5_file
from loader import open_dataset

OPTIONS = BuildOptions(rows=ROWS, columns=COLUMNS, audit=False)
LEAVES_OUT = BuildOptions(
    rows=ROWS, columns=COLUMNS, exclude_flagged=("contour-partly-outside",)
)  # so that rows are copied


@pytest.fixture
def root(tmp_path):
    root = write_tree(tmp_path / "data", [("P1", "A1"), ("P2", "A2")])
    write_contour(root, "A1", 2, text="2 2\n30 2\n30 9\n2 9\n")
    return root


@pytest.fixture
def places(root, tmp_path):
    """Return where each dataset is in the file, and how many bytes it has."""
    etl.build(root, tmp_path / "whole.h5", OPTIONS)
    found = {}
    with h5py.File(tmp_path / "whole.h5") as file:
        for name in ("images", "masks", "contours/x", "contours/y", "manifest/slice"):
            found[name] = file[name].id.get_offset(), file[name].id.get_storage_size()
    found["the metadata"] = 0, 48
    return found


def flip_when_synced(monkeypatch, offset):
    """Let a disk have another bit than it was given."""
    fsync = os.fsync

    def flip(descriptor):
        fsync(descriptor)
        (byte,) = os.pread(descriptor, 1, offset)
        os.pwrite(descriptor, bytes([byte ^ 8]), offset)

    monkeypatch.setattr(os, "fsync", flip)


@pytest.mark.parametrize("name", ["the metadata", "contours/x", "contours/y", "manifest/slice"])
@pytest.mark.parametrize("at", ["first", "last"])
def test_a_disk_that_has_something_else_is_found_before_the_file_takes_its_name(
    root, tmp_path, monkeypatch, places, name, at
):
    offset, n_bytes = places[name]
    flip_when_synced(monkeypatch, offset + (n_bytes - 1 if at == "last" else 0))
    with pytest.raises(etl.EtlError, match=rf"other bytes than were written \({name}\)"):
        etl.build(root, tmp_path / "out.h5", OPTIONS)
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize("name", ["images", "masks"])
@pytest.mark.parametrize("row", [0, 5])
def test_so_are_the_pixels_of_the_first_and_the_last_row_at_least(
    root, tmp_path, monkeypatch, places, name, row
):
    offset, n_bytes = places[name]
    flip_when_synced(monkeypatch, offset + row * n_bytes // 6)
    with pytest.raises(etl.EtlError, match=rf"written \(row {row}\)"):
        etl.build(root, tmp_path / "out.h5", OPTIONS)
    assert not (tmp_path / "out.h5").exists()


def test_of_many_rows_some_are_read_back(root, tmp_path, monkeypatch):
    seen, row_digest = [], hdf5_file.row_digest

    def count(*arguments):
        seen.append(arguments)
        return row_digest(*arguments)

    monkeypatch.setattr(hdf5_file, "row_digest", count)
    monkeypatch.setattr(hdf5_file, "_N_CHECKED_ROWS", 3)
    etl.build(root, tmp_path / "out.h5", OPTIONS)
    assert len(open_dataset(tmp_path / "out.h5")) == 6
    assert len(seen) == 3


def test_vertices_that_changed_in_the_file_are_not_copied(root, tmp_path, monkeypatch):
    keep_rows = hdf5_file.keep_rows

    def flip_before(plan, *arguments):
        with open(plan.path, "r+b") as file:
            file.seek(plan.offsets["contours/y"])
            file.write(b"\1")
        return keep_rows(plan, *arguments)

    monkeypatch.setattr(hdf5_file, "keep_rows", flip_before)
    with pytest.raises(etl.EtlError, match=r"written \(contours/y\)"):
        etl.build(root, tmp_path / "out.h5", LEAVES_OUT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_rows_that_are_kept_are_those_of_a_build_without_the_others(root, tmp_path):
    etl.build(root, tmp_path / "one.h5", LEAVES_OUT)
    (root / "contourfiles/A1/i-contours").joinpath("IM-0001-0002-icontour-manual.txt").unlink()
    etl.build(root, tmp_path / "two.h5", LEAVES_OUT)
    one, two = open_dataset(tmp_path / "one.h5"), open_dataset(tmp_path / "two.h5")
    assert len(one) == len(two) == 5
    assert one.images.tobytes() == two.images.tobytes()
    assert one.masks.tobytes() == two.masks.tobytes()
    with h5py.File(one.path) as first, h5py.File(two.path) as second:
        for name in first["contours"]:
            assert first["contours"][name][()].tolist() == second["contours"][name][()].tolist()


def test_a_write_that_makes_no_progress_is_an_error(root, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    with pytest.raises(etl.EtlError, match="input/output error"):
        etl.build(root, tmp_path / "out.h5", OPTIONS)
