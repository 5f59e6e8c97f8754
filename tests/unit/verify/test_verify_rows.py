"""The check of rows against a plain one, on files of every kind."""

import functools
import math
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from dataset_builder import CARDIAC, with_bits, write_dataset

from etl.output.row_writer import row_digest
from etl.quality.statistics import image_statistics
from etl.verify import reading
from etl.verify.rows import check_rows, forget, key_of
from loader import LoaderError, open_dataset
from loader.format import IGNORE, SOURCE_GRID

N = 6
STATISTICS = ("minimum", "maximum", "mean", "std", "p01", "p99", "n_padding")
BITS = {
    "|u1": with_bits(CARDIAC),
    "<u2": with_bits(CARDIAC, {"i-contour": 9, "o-contour": 3}),
    "<u4": with_bits(CARDIAC, {"i-contour": 31, "o-contour": 0}),
}
KINDS = {
    "int16": {},
    "uint16": {"image_dtype": "<u2", "offset": 60000},
    "int32": {"image_dtype": "<i4", "offset": -70000},
    "float32": {"image_dtype": "<f4", "offset": 0.37},
    "padding": {"padding": (5.0, 5.0)},
    "padding of several values": {"padding": (5.0, 90.0)},
    "beyond the frame": {"grid": (6, 5, -2.0, 1.0, 1.0, 1.0)},
    "padding beyond the frame": {"grid": (6, 5, -2.0, 1.0, 0.0, 1.0), "padding": (5.0, 5.0)},
    "wholly beyond": {"grid": (6, 5, -90.0, 1.0, 0.0, 1.0)},
    "odd size": {"rows": 7, "columns": 9},
    "one pixel": {"rows": 1, "columns": 1},
    "larger": {"rows": 64, "columns": 60},
    "empty masks": {"mask": 0},
    "masks of one code": {"mask": 2},
    "ignored pixels": {"mask": IGNORE},
    **{f"bits {dtype}": {"structures": BITS[dtype], "mask_dtype": dtype} for dtype in BITS},
    "bits, odd": {"structures": BITS["<u2"], "mask_dtype": "<u2", "rows": 3, "columns": 3},
}


def copied(path, kind):
    """Write a file of that kind, which is made once."""
    path.write_bytes(content_of(kind))
    return path


@functools.cache
def content_of(kind):
    with tempfile.TemporaryDirectory() as folder:
        return written(Path(folder) / "some.h5", **KINDS[kind]).read_bytes()


def written(path, padding=None, grid=None, mask=None, rows=8, columns=8, **options):
    """Write a file whose columns are those of its arrays."""
    write_dataset(path, N, rows, columns, **options)
    with h5py.File(path, "r+") as file:
        if mask is not None:
            file["masks"][...] = mask
        if padding is not None:
            file["images"][:, : rows // 2] = padding[0]
        if grid is not None:
            for column, dtype in SOURCE_GRID.items():
                name = column.removeprefix("source_")
                value = grid[("rows", "columns", *GRID).index(name)]
                file[f"manifest/{column}"] = np.full(N, value, dtype)
    put_right(path, padding)
    return path


GRID = ("row_offset", "row_scale", "column_offset", "column_scale")


def put_right(path, padding=None):
    dataset = open_dataset(path)
    found = [plain_statistics(dataset, row, padding) for row in range(N)]
    digests = [row_digest(key_of(dataset, row), *map(np.array, dataset[row])) for row in range(N)]
    with h5py.File(path, "r+") as file:
        manifest = file["manifest"]
        for name in (*STATISTICS, "padding_minimum", "padding_maximum"):
            manifest[name][...] = [getattr(one, name) for one in found]
        manifest["row_xxh3"][...] = digests
        for one in dataset.structures:
            manifest[f"n_pixels_{one.code}"][...] = one.covers(dataset.masks).sum((1, 2))


def plain_statistics(dataset, row, padding):
    manifest = dataset.manifest
    beyond = None
    if "source_rows" in manifest:
        _, rows, columns = dataset.images.shape
        beyond = np.array(
            [
                [
                    not all(
                        0 <= math.floor(offset + scale * place + 0.5) < length
                        for length, offset, scale, place in (
                            (*_axis(manifest, row, "row"), r),
                            (*_axis(manifest, row, "column"), c),
                        )
                    )
                    for c in range(columns)
                ]
                for r in range(rows)
            ]
        )
        beyond = None if beyond.all() else beyond
    return image_statistics(np.array(dataset.images[row]), padding, beyond)


def _axis(manifest, row, name):
    columns = (f"source_{name}s", f"source_{name}_offset", f"source_{name}_scale")
    return [manifest[column][row].item() for column in columns]


def plain_messages(dataset, row):
    """Return what is wrong with a row, computed as plainly as possible."""
    manifest, (image, mask) = dataset.manifest, map(np.array, dataset[row])
    messages = []
    if row_digest(key_of(dataset, row), image, mask) != manifest["row_xxh3"][row]:
        messages.append("image, mask or key differ from the row's digest (row_xxh3).")
    low, high = (manifest[f"padding_{end}"][row].item() for end in ("minimum", "maximum"))
    statistics = plain_statistics(dataset, row, None if math.isnan(low) else (low, high))
    for name in STATISTICS:
        expected, value = getattr(statistics, name), float(manifest[name][row])
        if expected != value:
            messages.append(f"{name} is {value!r} in the manifest, {expected!r} in the image.")
    known = np.isin(mask, [0, IGNORE])
    for one in sorted(dataset.structures, key=lambda one: one.code):
        found, expected = int(one.covers(mask).sum()), int(manifest[f"n_pixels_{one.code}"][row])
        known |= one.covers(mask)
        if found != expected:
            message = f"n_pixels_{one.code} is {expected} in the manifest, {found} in the mask."
            messages.append(message)
    if dataset.has_bits:
        bits = sum(1 << one.bit for one in dataset.structures)
        known = np.array([not int(word) & ~bits for word in mask.ravel()])
    if n := int((~known).sum()):
        kind = "bit" if dataset.has_bits else "code"
        messages.append(f"{n} pixels of the mask have a {kind} of no structure.")
    return messages


def flip_pixel(file, rng):
    name = rng.choice(["images", "masks"])
    array = file[name][...]
    flat = array.view(np.uint8).reshape(-1)
    flat[rng.integers(flat.size)] ^= 1 << rng.integers(8)
    file[name][...] = array


def change_statistic(file, rng):
    column = file[f"manifest/{rng.choice(STATISTICS)}"]
    row = rng.integers(N)
    column[row] = rng.choice([column[row] + 1, np.nextafter(float(column[row]), np.inf), 0])


def change_count(file, rng):
    name = rng.choice(["n_pixels_1", "n_pixels_2", "slice", "row_xxh3"])
    column, row = file[f"manifest/{name}"], rng.integers(N)
    column[row] = int(column[row]) ^ 1


@pytest.fixture(params=list(KINDS))
def file(request, tmp_path):
    return copied(tmp_path / "some.h5", request.param)


def compared(path):
    forget()
    dataset = open_dataset(path)
    found = check_rows(path, (0, N))
    expected = [(row, message) for row in range(N) for message in plain_messages(dataset, row)]
    assert [one.message for one in found] == [message for _, message in expected]
    for one, (row, _) in zip(found, expected, strict=True):
        assert one.place.startswith(f"row {row} (")
    return found


def test_a_file_whose_columns_agree_has_no_problem(file):
    assert compared(file) == []


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("change", [flip_pixel, change_statistic, change_count])
def test_what_differs_is_what_a_plain_check_finds(file, change, seed):
    """Also where the digest of the changed column would be right: nothing here reads it."""
    with h5py.File(file, "r+") as opened, np.errstate(all="ignore"):
        change(opened, np.random.default_rng(seed))
    found = compared(file)
    assert found or change is change_statistic  # 0 may be what it was


@pytest.mark.parametrize("kind", ["beyond the frame", "padding beyond the frame"])
@pytest.mark.parametrize("n_padding", [0, 1, 64])
def test_padding_beyond_the_frame_is_counted(tmp_path, kind, n_padding):
    """Both as in the pixels of the frame, and as all of them."""
    path = copied(tmp_path / "some.h5", kind)
    with h5py.File(path, "r+") as file:
        file["manifest/n_padding"][1] = n_padding
    (found,) = compared(path)
    assert found.message.startswith(f"n_padding is {n_padding:.1f} in the manifest")


def test_any_part_of_a_file_is_checked_by_itself(tmp_path):
    path = written(tmp_path / "some.h5")
    with h5py.File(path, "r+") as file:
        file["images"][3, 0, 0] += 1
    forget()
    places = [one.place for first in range(N) for one in check_rows(path, (first, first + 1))]
    assert {place.partition(" (")[0] for place in places} == {"row 3"}


def test_a_float_image_that_is_damaged_to_no_numbers_is_named(tmp_path):
    """Both infinities are in it, whose sum Python's fsum refuses."""
    path = written(tmp_path / "some.h5", image_dtype="<f4")
    with h5py.File(path, "r+") as file:
        file["images"][2, 0, :3] = np.inf, -np.inf, np.nan
    forget()
    messages = [one.message for one in check_rows(path, (0, N))]
    assert messages[0] == "image, mask or key differ from the row's digest (row_xxh3)."
    assert any(message.startswith("mean is ") for message in messages)


class TestReading:
    def test_tasks_are_all_rows_in_order(self, tmp_path, monkeypatch):
        dataset = open_dataset(written(tmp_path / "some.h5"))
        assert reading.tasks(dataset) == [(0, N)]
        for n_bytes, n_rows in ((1, 1), (2 * dataset.sample_bytes, 2), (5 * 192, 5)):
            monkeypatch.setattr(reading, "_TASK_BYTES", n_bytes)
            found = reading.tasks(dataset)
            assert [row for task in found for row in range(*task)] == list(range(N))
            assert max(stop - first for first, stop in found) == n_rows

    @pytest.mark.parametrize("kind", ["int16", "bits <u4", "odd size"])
    def test_rows_are_those_of_the_map(self, tmp_path, kind):
        dataset = open_dataset(copied(tmp_path / "some.h5", kind))
        reader = reading.RowReader(dataset)
        for row in (3, 0, N - 1, 3):
            image, mask = reader.read(row)
            np.testing.assert_array_equal(image, dataset.images[row])
            np.testing.assert_array_equal(mask, dataset.masks[row])

    @pytest.mark.parametrize("first", [0, N - 1, N, 10 * N])
    def test_to_read_ahead_at_and_beyond_the_end_does_no_harm(self, tmp_path, monkeypatch, first):
        dataset = open_dataset(written(tmp_path / "some.h5"))
        for ahead in (1, 2 * dataset.sample_bytes, 1 << 30):
            monkeypatch.setattr(reading, "_AHEAD_BYTES", ahead)
            reading.begin_to_read(dataset)
            reading.read_ahead(dataset, (first, first + 2))

    def test_what_the_disk_cannot_read_is_named_and_the_rest_is_checked(
        self, tmp_path, monkeypatch
    ):
        path = written(tmp_path / "some.h5")
        read = reading.RowReader.read

        def failing(self, row):
            if row == 2:
                raise OSError(5, "Input/output error")
            return read(self, row)

        monkeypatch.setattr(reading.RowReader, "read", failing)
        forget()
        (found,) = check_rows(path, (0, N))
        assert found.place.startswith("row 2 (")
        assert "cannot be read (Input/output error)" in found.message

    def test_a_file_that_is_cut_short_meanwhile_is_refused(self, tmp_path):
        path = written(tmp_path / "some.h5", rows=64, columns=64)
        forget()
        check_rows(path, (0, 1))
        from etl.verify import rows

        status = path.stat()
        opened = rows._opened(path, status.st_ino, status.st_size, status.st_mtime_ns)
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size - 8192)
        with pytest.raises(LoaderError, match="cut short while it was open"):
            opened.check_whole()
        forget()


@pytest.mark.parametrize("number", [5.5, 70000.0, -1e300, np.inf])
def test_padding_that_is_damaged_to_what_no_pixel_has_is_named(tmp_path, number):
    path = written(tmp_path / "some.h5", **KINDS["padding"])
    with h5py.File(path, "r+") as file:
        file["manifest/padding_maximum"][2] = number
    forget()
    (found,) = check_rows(path, (0, N))
    told = f"padding_maximum is {number!r} in the manifest, which no pixel of int16 can have."
    assert found.message == told


@pytest.mark.parametrize("number", [np.nan, 1e300])
def test_padding_of_floats_that_is_damaged_to_what_no_pixel_has_is_named(tmp_path, number):
    path = written(tmp_path / "some.h5", padding=(5.0, 5.0), image_dtype="<f4")
    with h5py.File(path, "r+") as file:
        file["manifest/padding_maximum"][2] = number
    forget()
    (found,) = check_rows(path, (0, N))
    assert "padding_maximum" in found.message
    assert "float32" in found.message
