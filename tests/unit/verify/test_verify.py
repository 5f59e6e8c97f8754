import json
import os
import random

import h5py
import numpy as np
import pytest
from builders import (
    COLUMNS,
    ROWS,
    dicom_bytes,
    gradient,
    instance,
    write_contour,
    write_dicom,
    write_tree,
)
from click.testing import CliRunner
from pydicom.dataset import Dataset

import etl
from etl.cli import cli
from etl.verify import reference
from etl.verify.file import verify
from loader import open_dataset
from loader.errors import LoaderError

OPTIONS = {"rows": ROWS, "columns": COLUMNS, "audit": False}
TWO = (("P1", "A1"), ("P2", "A2"))
N_FLIPS = 150


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Build a file with both contours, splits, folds and findings of every severity."""
    folder = tmp_path_factory.mktemp("verify")
    root = write_tree(folder / "data", TWO)
    write_contour(root, "A1", 2, text="-5.5 0\n4.5 0\n4.5 5\n-5.5 5\n")
    write_contour(root, "A2", 1, text="broken")
    write_dicom(root, "P1", "9.dcm")
    out = folder / "out.h5"
    options = etl.BuildOptions(("i", "o"), partial=True, split=(50, 50, 0), folds=2, **OPTIONS)
    etl.build(root, out, options)
    return root, out


def copied(out, tmp_path):
    path = tmp_path / "copy.h5"
    path.write_bytes(out.read_bytes())
    return path


def problems(path, **options):
    return [str(problem) for problem in verify(path, **options).problems]


def extents(path):
    """Return (name, first byte, byte after the last) of every dataset."""
    found = []

    def visit(name, item):
        if isinstance(item, h5py.Dataset) and item.size:
            first = item.id.get_offset()
            found.append((name, first, first + item.id.get_storage_size()))

    with h5py.File(path) as file:
        file.visititems(visit)
    return found


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_as_it_was_built_has_no_problem(built, workers):
    root, out = built
    result = verify(out, source=root, rebuild=True, workers=workers)
    assert (result.n_rows, result.problems) == (5, [])


def test_a_flipped_bit_is_found_and_named(built, tmp_path):
    """In each dataset one bit at random; and bits anywhere, which HDF5 or the digests must find."""
    _, out = built
    path = copied(out, tmp_path)
    data = bytearray(out.read_bytes())
    rng = random.Random(4)  # noqa: S311  no secret
    places = [(name, rng.randrange(first, stop)) for name, first, stop in extents(out)]
    places += [("", rng.randrange(len(data))) for _ in range(N_FLIPS)]
    written = [place for place, byte in enumerate(data) if byte]
    places += [("", rng.choice(written)) for _ in range(N_FLIPS)]
    holding = [(name, range(first, stop)) for name, first, stop in extents(out)]
    for name, place in places:
        bit = 1 << rng.randrange(8)
        path.write_bytes(data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :])
        inside = next((one for one, span in holding if place in span), "")
        try:
            found = problems(path)
        except LoaderError:
            continue  # the file does not open, which names it as well
        if inside:
            is_pixel = inside in {"images", "masks"}
            assert any("row " in one if is_pixel else inside in one for one in found), inside
        assert found or carries_nothing(data, place), (name, place)


def carries_nothing(data, place):
    """Say whether a byte is between datasets, or of a list of free space, which no reader reads."""
    begins = [data.rfind(mark, 0, place + 4) for mark in (b"FSHD", b"FSSE")]
    others = [data.rfind(mark, 0, place + 1) for mark in (b"OHDR", b"FHDB", b"BTLF", b"BTHD")]
    return data[place] == 0 or max(begins) > max(others)


MANIFEST_TEXTS = ("patient_id", "original_id", "dicom_path", "series")
FINDING_TEXTS = ("severity", "code", "path", "message")


@pytest.mark.parametrize(
    "name",
    [
        *(f"manifest/{column}" for column in MANIFEST_TEXTS),
        *(f"findings/{column}" for column in FINDING_TEXTS),
    ],
)
def test_text_that_is_no_longer_utf8_is_named_and_stops_nothing(built, tmp_path, name):
    """The highest bit of a letter makes the text undecodable, for the messages too."""
    _, out = built
    path = copied(out, tmp_path)
    data = bytearray(out.read_bytes())
    data[next(first for dataset, first, _ in extents(out) if dataset == name)] |= 0x80
    path.write_bytes(data)
    assert f"{name}: differs from its digest." in problems(path)


def edited(out, tmp_path, edit):
    path = copied(out, tmp_path)
    with h5py.File(path, "r+") as file:
        edit(file)
    return path


def with_digests(edit):
    """Return an edit that also puts the digests of the columns right, as a forger would."""

    def whole(file):
        import xxhash

        edit(file)
        digests = {
            f"{group}/{name}": xxhash.xxh3_128_hexdigest(np.ascontiguousarray(column[:]).tobytes())
            for group in ("manifest", "contours", "findings")
            for name, column in file[group].items()
        }
        encoded = json.dumps(digests).encode()
        del file.attrs["digests"]
        dtype = h5py.string_dtype("utf-8", len(encoded))
        file.attrs.create("digests", np.array(encoded, dtype), dtype=dtype)

    return whole


def swap_rows(file):
    for name in ("patient_id", "slice"):
        column = file["manifest"][name]
        column[0], column[1] = column[1], column[0]


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda f: f["manifest/n_pixels_1"].__setitem__(0, 3), "n_pixels_1 is 3 in the manifest"),
        (lambda f: f["manifest/p99"].__setitem__(2, 0.5), "p99 is 0.5 in the manifest"),
        (lambda f: f["manifest/split"].__setitem__(0, 2), "patient P1 is on 2 sides"),
        (lambda f: f["manifest/fold"].__setitem__(0, 9), "patient P1 is on 2 sides"),
        (lambda f: f["manifest/split"].__setitem__(0, 7), "has a code that is not -1 to 2"),
        (lambda f: f["manifest/flags"].__setitem__(0, 1 << 63), "flag_codes does not name"),
        (lambda f: f["manifest/row_xxh3"].__setitem__(1, 5), "differ from the row's digest"),
        (lambda f: f["manifest/slice"].__setitem__(0, 2), "row 1 is out of order"),
        (swap_rows, "row 1 is out of order"),
        (lambda f: f["contours/row"].__setitem__(0, 99), "a row that the file does not have"),
        (lambda f: f["contours/label"].__setitem__(0, 9), "a label of no structure"),
        (lambda f: f["contours/length"].__setitem__(0, 9), "do not cover the vertices"),
        (lambda f: f["contours/x"].__setitem__(0, np.nan), "a vertex that is not finite"),
        (lambda f: f["findings/row"].__setitem__(0, 99), "findings/row: has a row"),
        (lambda f: f["findings/other_row"].__setitem__(0, -2), "findings/other_row: has a row"),
        (lambda f: f["reuse/row"].__setitem__(0, 1), "reuse/row: has a row"),
        (lambda f: f["reuse/row"].__setitem__(-1, 99), "reuse/row: has a row"),
        (lambda f: f["reuse/same_patient"].__setitem__(0, 99), "reuse/same_patient: has a row"),
        (lambda f: f["reuse/same_study"].__setitem__(0, -2), "reuse/same_study: has a row"),
        (lambda f: f["reuse/region_row"].__setitem__(0, 99), "reuse/region_row: has a row"),
        (lambda f: f["findings/severity"].__setitem__(0, b"info"), "is info, but"),
        (lambda f: f.attrs.__setitem__("image_mean", 1.0), "attribute image_mean: is 1.0"),
        (lambda f: f.attrs.__setitem__("labels", np.bytes_(b"{}")), "attribute labels: is {}, but"),
    ],
)
def test_what_contradicts_itself_is_named_even_where_digests_agree(built, tmp_path, edit, words):
    _, out = built
    found = problems(edited(out, tmp_path, with_digests(edit)))
    assert any(words in one for one in found), found


@pytest.mark.parametrize("values", [(1e308,), (1e308, 1e308, 1e308), (np.inf, -np.inf), (np.nan,)])
@pytest.mark.parametrize("column", ["mean", "std"])
def test_columns_that_are_damaged_to_huge_numbers_are_named(built, tmp_path, column, values):
    _, out = built

    def damage(file):
        file[f"manifest/{column}"][: len(values)] = values

    found = problems(edited(out, tmp_path, with_digests(damage)))
    assert any(one.startswith("attribute image_") for one in found)
    assert sum(f"{column} is {values[0]!r}" in one for one in found) >= 1


def test_a_mask_with_a_code_of_no_structure_is_named(built, tmp_path):
    _, out = built
    found = problems(edited(out, tmp_path, lambda f: f["masks"].__setitem__((0, 0, 0), 77)))
    assert any("1 pixels of the mask have a code of no structure" in one for one in found)
    assert any(one.startswith("row 0 (patient P1, slice 1)") for one in found)


class TestSources:
    @pytest.fixture
    def tree(self, built, tmp_path):
        import shutil

        root, out = built
        return shutil.copytree(root, tmp_path / "data"), out

    def test_a_changed_a_missing_and_a_new_source_are_named(self, tree):
        root, out = tree
        write_contour(root, "A1", 1, text="1 1\n5 1\n5 5\n")
        (root / "dicoms/P2/3.dcm").unlink()
        write_dicom(root, "P2", "7.dcm", instance(uid="1.9"))
        write_contour(root, "A2", 7)
        write_contour(root, "A2", 7, "o")
        found = problems(out, source=root)
        assert [one.partition(": ")[0] for one in found] == [
            "dicoms/P2/7.dcm",
            "contourfiles/A1/i-contours/IM-0001-0001-icontour-manual.txt",
            "dicoms/P2/3.dcm",
        ]
        for words, one in zip(("is new", "has changed", "no such file"), found, strict=True):
            assert words in one

    def test_other_sources_are_no_damage_of_the_file(self, tree):
        root, out = tree
        write_contour(root, "A1", 1, text="1 1\n5 1\n5 5\n")
        assert verify(out, source=root).n_in_file == 0
        run = CliRunner().invoke(cli, ["verify", str(out), "--source", str(root)])
        assert run.exit_code == 1
        assert f"Error: File and sources differ: {out}: 1 difference. Build again" in run.stderr

    def test_a_drawing_that_was_added_to_a_known_image_is_named(self, tree):
        root, out = tree
        write_contour(root, "A1", 9)
        write_contour(root, "A1", 9, "o")
        drawn = "contourfiles/A1/{0}-contours/IM-0001-0009-{0}contour-manual.txt"
        assert problems(out, source=root) == [
            f"{drawn.format(kind)}: is new: in the file, nothing is drawn on dicoms/P1/9.dcm."
            for kind in "io"
        ]

    def test_a_second_drawing_of_a_row_is_named(self, tmp_path):
        root = write_tree(tmp_path / "data", TWO, slices=(1,), outer=False)
        options = etl.BuildOptions(("i", "o"), partial=True, **OPTIONS)
        etl.build(root, tmp_path / "out.h5", options)
        assert problems(tmp_path / "out.h5", source=root) == []
        added = write_contour(root, "A2", 1, "o").relative_to(root)
        assert problems(tmp_path / "out.h5", source=root) == [
            f"{added}: row 1 (patient P2, slice 1): is new: the row was made without it."
        ]

    def test_rows_that_are_linked_otherwise_are_named(self, tree):
        """The files are the same ones: only link.csv says which of them belong together."""
        root, out = tree
        (root / "link.csv").write_text("patient_id,original_id\nP1,A2\nP2,A1\n")
        found = problems(out, source=root)
        assert (
            "contourfiles/A2/o-contours/IM-0001-0001-ocontour-manual.txt: row 0 (patient P1, slice "
            "1): takes the place of contourfiles/A1/o-contours/IM-0001-0001-ocontour-manual.txt."
        ) in found
        assert {one.partition(": ")[2].partition(" (")[0] for one in found} == {
            f"row {row}" for row in range(5)
        }

    def test_a_patient_who_is_no_longer_linked_is_named(self, tree):
        root, out = tree
        (root / "link.csv").write_text("patient_id,original_id\nP1,A1\n")
        assert problems(out, source=root) == [
            f"dicoms/P2/{n}.dcm: row {row} (patient P2, slice {n}): DATA no longer links it with "
            "what is drawn on it."
            for row, n in ((3, 2), (4, 3))
        ]

    @pytest.mark.parametrize("rebuild", [False, True])
    def test_a_pipe_in_the_place_of_a_source_is_named_and_stalls_nothing(self, tree, rebuild):
        root, out = tree
        contour = write_contour(root, "A1", 1)
        contour.unlink()
        os.mkfifo(contour)
        found = problems(out, source=root, rebuild=rebuild)
        assert f"{contour.relative_to(root)}: row 0 (patient P1, slice 1): is a device, pipe" in (
            "\n".join(found)
        )
        assert len(found) == 1 + rebuild

    def test_a_touched_source_is_no_difference(self, tree):
        root, out = tree
        for path in root.rglob("*.*"):
            path.touch()
        assert problems(out, source=root) == []

    @pytest.mark.parametrize("rasterizer", ["center", "pillow"])
    @pytest.mark.parametrize("dtype", ["<i2", "<u2", "|u1"])
    def test_the_reference_builds_the_same_rows(self, tmp_path, rasterizer, dtype):
        attributes = {"RescaleSlope": 2, "RescaleIntercept": -1024}
        attributes |= {"PhotometricInterpretation": "MONOCHROME1"}
        root = write_tree(tmp_path / "data", TWO, slices=(1,))
        for patient in ("P1", "P2"):
            pixels = gradient(dtype=dtype, seed=len(patient))
            write_dicom(root, patient, "1.dcm", instance(pixels, **attributes))
        write_contour(root, "A1", 1, text="1 1\n9 2\n8 8\n2 9\n\n4 4\n6 4\n6 6\n4 6\n")
        options = etl.BuildOptions(
            ("i", "o"), rasterizer=rasterizer, contour_origin=1, partial=True, **OPTIONS
        )
        etl.build(root, tmp_path / "out.h5", options)
        assert problems(tmp_path / "out.h5", source=root, rebuild=True) == []

    def test_a_wrong_pixel_shows_against_the_reference(self, tree, monkeypatch):
        root, out = tree
        monkeypatch.setattr(reference, "modality_image", lambda *_: np.zeros((ROWS, COLUMNS)))
        found = problems(out, source=root, rebuild=True)
        assert sum("pixels of the image differ from its source" in one for one in found) == 5


def test_frames_with_a_slope_each_are_built_again_with_their_own(tmp_path):
    """Rescale from the frame's functional group, else the shared one; never another frame's."""
    root = tmp_path / "data"
    root.mkdir()
    frames = np.stack([gradient(seed=number) for number in range(3)])
    frame_groups = []
    for slope in (1.5, 2.25, 3.0):
        values = Dataset()
        values.RescaleSlope, values.RescaleIntercept = slope, -7
        group = Dataset()
        group.PixelValueTransformationSequence = [values]
        frame_groups.append(group)
    attributes = {"PixelData": frames.tobytes(), "NumberOfFrames": 3, "RescaleSlope": 9}
    dataset = instance(frames[0], PerFrameFunctionalGroupsSequence=frame_groups, **attributes)
    (root / "a.dcm").write_bytes(dicom_bytes(dataset))
    (root / "a.txt").write_text("2 2\n9 2\n9 9\n2 9\n")
    lines = ["patient_id,image,label,contour,frame", *(f"P,a.dcm,x,a.txt,{n}" for n in (1, 2, 3))]
    (root / "table.csv").write_text("\n".join(lines) + "\n")
    etl.build(root, tmp_path / "out.h5", etl.BuildOptions(**OPTIONS))
    data = open_dataset(tmp_path / "out.h5")
    assert data.manifest["rescale_slope"].tolist() == [1.5, 2.25, 3.0]
    assert problems(tmp_path / "out.h5", source=root, rebuild=True) == []


def test_the_command_says_what_it_found(built, tmp_path):
    root, out = built
    run = CliRunner().invoke(cli, ["verify", str(out), "--source", str(root), "--workers", "1"])
    assert (run.exit_code, run.stdout) == (0, f"Verified {out}: 5 rows, no difference.\n")
    path = edited(out, tmp_path, lambda f: f["manifest/p01"].__setitem__(0, 0.5))
    run = CliRunner().invoke(cli, ["verify", str(path), "--workers", "1"])
    assert run.exit_code == 1
    assert "manifest/p01: differs from its digest.\n" in run.stdout
    assert f"Not as it was built: {path}: 2 differences. Copy the file again" in run.stderr
    run = CliRunner().invoke(cli, ["verify", str(path), "--rebuild-check"])
    assert (run.exit_code, "--source" in run.stderr) == (2, True)


def test_the_command_says_it_to_machines(built, tmp_path):
    root, out = built
    arguments = ["--json", "--workers", "1"]
    run = CliRunner().invoke(cli, ["verify", str(out), "--source", str(root), *arguments])
    whole = {"n_rows": 5, "n_differences": 0, "n_in_file": 0, "differences": []}
    assert (run.exit_code, json.loads(run.stdout)) == (0, whole)
    path = edited(out, tmp_path, lambda f: f["manifest/p01"].__setitem__(0, 0.5))
    run = CliRunner().invoke(cli, ["verify", str(path), *arguments])
    found = json.loads(run.stdout)
    assert (run.exit_code, found["n_differences"], found["n_in_file"]) == (1, 2, 2)
    first = {"place": "manifest/p01", "message": "differs from its digest."}
    assert found["differences"][0] == first
    assert "Not as it was built" in run.stderr
