import errno
import hashlib
import json
import os
import shutil
from collections import Counter

import h5py
import numpy as np
import pandas as pd
import pytest
import xxhash
from builders import (
    COLUMNS,
    ROWS,
    contour_path,
    copy_tree,
    dicom_bytes,
    gradient,
    instance,
    write_contour,
    write_dicom,
    write_tree,
)

import etl
from etl import examine, render
from etl.check import check
from etl.contours.rasterise import rasterise
from etl.labels import cardiac_scheme
from etl.options import BuildOptions
from etl.output import hdf5_file, target
from etl.workers import chunks
from loader import format as file_format
from loader import open_dataset

OPTIONS = {"rows": ROWS, "columns": COLUMNS, "audit": False}
# Of a build with one kind of contour: a version 1 reader wants the other's columns too.
MANIFEST = {
    *file_format.manifest_columns(cardiac_scheme(["i"])),
    *file_format.VERSION_1_COLUMNS,
}
OLD = b"\x89HDF\r\n\x1a\nprecious"
TWO = (("P1", "A1"), ("P2", "A2"))


@pytest.fixture
def root(tmp_path):
    return write_tree(tmp_path / "data", TWO)


def build(root, out, **options):
    keywords = {
        name: options.pop(name) for name in ("workers", "force", "strict") if name in options
    }
    return etl.build(root, out, BuildOptions(**(OPTIONS | options)), **keywords)


def codes(result):
    return Counter(finding.code for finding in result.findings)


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_images_masks_and_manifest_are_those_of_the_sources(root, tmp_path):
    result = build(root, tmp_path / "out.h5", contours=("i", "o"))
    assert (result.n_rows, result.findings) == (6, [])
    data = open_dataset(tmp_path / "out.h5")
    inner = np.array([[2.0, 2], [9, 2], [9, 9], [2, 9]])
    outer = np.array([[1.0, 1], [11, 1], [11, 10], [1, 10]])
    in_inner, in_outer = rasterise(inner, ROWS, COLUMNS), rasterise(outer, ROWS, COLUMNS)
    expected = np.where(in_inner, 1, np.where(in_outer, 2, 0))
    for row in range(6):
        image, mask = data[row]
        assert np.array_equal(image, gradient(seed=1000 * (row // 3) + row % 3 + 1))
        assert np.array_equal(mask, expected)
    manifest = {name: column.tolist() for name, column in data.manifest.items()}
    assert manifest["patient_id"] == ["P1"] * 3 + ["P2"] * 3
    assert manifest["slice"] == [1, 2, 3] * 2
    assert manifest["icontour_area"] == [49] * 6
    assert manifest["ocontour_area"] == [90] * 6
    assert manifest["n_pixels_1"] == [49] * 6
    assert manifest["n_pixels_2"] == [90 - 49] * 6
    assert manifest["image_orientation_column_z"] == [-0.8] * 6
    assert manifest["minimum"] == data.images.min(axis=(1, 2)).tolist()
    assert manifest["flags"] == [0] * 6
    assert data.contours["row"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert data.contours["label"].tolist() == [1, 2] * 6
    assert data.contours["start"].tolist() == list(range(0, 60, 5))
    assert data.contours["x"][5:9].tolist() == outer[:, 0].tolist()
    assert data.contours["y"][:4].tolist() == inner[:, 1].tolist()
    (label_1, first), (label_2, second) = data.polygons(5)
    assert (label_1, label_2) == (1, 2)
    assert first[:4].tolist() == inner.tolist()
    assert second[:4].tolist() == outer.tolist()


def test_digests_are_those_of_files_rows_and_columns(root, tmp_path):
    build(root, tmp_path / "out.h5")
    data = open_dataset(tmp_path / "out.h5")
    for row, path in enumerate(data.manifest["dicom_path"].tolist()):
        source = (root / path).read_bytes()
        assert data.manifest["dicom_xxh3"][row] == xxhash.xxh3_128_hexdigest(source)
        content = data.manifest["patient_id"][row].encode() + b"\0"
        content += data.manifest["slice"][row].tobytes() + b"".join(a.tobytes() for a in data[row])
        assert data.manifest["row_xxh3"][row] == xxhash.xxh3_64_intdigest(content)
    everything = data.manifest["row_xxh3"].tobytes()
    assert data.dataset_id == xxhash.xxh3_128_hexdigest(everything)
    digests = data.attributes["digests"]
    groups = [*file_format.GROUPS, file_format.REUSE_GROUP]
    assert digests.keys() == {f"{g}/{c}" for g in groups for c in getattr(data, g)}
    assert set(data.reuse) == {*file_format.REUSE}
    assert set(data.manifest) == MANIFEST
    assert set(data.findings) == {*file_format.FINDINGS, *file_format.FINDINGS_VERSION_2}
    with h5py.File(data.path) as file:
        assert {f"{g}/{c}" for g in groups for c in file[g]} == digests.keys()
    for group in groups:
        for column, values in getattr(data, group).stored.items():
            assert digests[f"{group}/{column}"] == xxhash.xxh3_128_hexdigest(values.tobytes())


def test_the_file_opens_in_h5py_and_pandas(root, tmp_path):
    build(root, tmp_path / "out.h5")
    with h5py.File(tmp_path / "out.h5") as file:
        for name in (file_format.IMAGES, file_format.MASKS):
            assert file[name].chunks is None
            assert file[name].compression is None
            assert file[name].id.get_offset() % file_format.ALIGNMENT == 0
        table = pd.DataFrame({key: column[:] for key, column in file["manifest"].items()})
        assert table.shape == (6, len(MANIFEST))
        assert table["slice"].tolist() == [1, 2, 3, 1, 2, 3]
        assert file["manifest/patient_id"].asstr()[0] == "P1"
        strings = [file["findings/code"], file["manifest/dicom_path"]]
        assert all(h5py.check_string_dtype(s.dtype).length is not None for s in strings)
        assert json.loads(file.attrs["options"])["rows"] == ROWS


@pytest.mark.parametrize("workers", [2, 5, 7])
def test_the_bytes_are_the_same_from_any_number_of_workers(root, tmp_path, workers, monkeypatch):
    monkeypatch.setattr(chunks, "MAX_PAIRS", 1)
    (root / contour_path("A1", 2)).write_text("1 2\nbroken\n")
    build(root, tmp_path / "one.h5", contours=("i", "o"))
    build(root, tmp_path / "many.h5", contours=("i", "o"), workers=workers)
    assert digest(tmp_path / "one.h5") == digest(tmp_path / "many.h5")


def test_the_bytes_are_the_same_however_the_parts_are_put_together(root, tmp_path, monkeypatch):
    write_contour(root, "A2", 1, text="2.2 2.2\n2.8 2.2\n2.5 2.8\n")  # a part with no row
    build(root, tmp_path / "one.h5")
    monkeypatch.setattr(chunks, "MAX_PAIRS", 1)
    monkeypatch.setattr(render, "_BLOCK_PARTS", 2)
    build(root, tmp_path / "two.h5")
    assert digest(tmp_path / "one.h5") == digest(tmp_path / "two.h5")


def test_the_bytes_are_the_same_elsewhere_at_another_time_in_another_order(
    root, tmp_path, monkeypatch
):
    write_dicom(root, "P1", "77.dcm")
    build(root, tmp_path / "one.h5", split=(50.0, 25.0, 25.0))
    copy = copy_tree(root, tmp_path / "elsewhere" / "copy")
    for path in copy.rglob("*.*"):
        os.utime(path, (1, 1))
    listdir = os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: listdir(path)[::-1])
    build(copy, tmp_path / "two.h5", split=(50.0, 25.0, 25.0))
    assert digest(tmp_path / "one.h5") == digest(tmp_path / "two.h5")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "image-unreadable"),
        (b"\0" * 128 + b"DICM", "image-truncated"),
        (dicom_bytes()[:-1], "image-truncated"),
        (dicom_bytes(instance(gradient(ROWS, COLUMNS + 1))), "image-size"),
        (dicom_bytes(instance(gradient(ROWS + 1, COLUMNS))), "image-size"),
    ],
)
def test_one_bad_image_costs_its_pair_and_no_other(root, tmp_path, content, code):
    write_dicom(root, "P1", "2.dcm", content)
    result = build(root, tmp_path / "out.h5")
    assert result.n_rows == 5
    assert codes(result) == {code: 1}
    assert result.findings[0].path == "dicoms/P1/2.dcm"


def test_a_wrong_size_is_named_with_the_expected_one(root, tmp_path):
    write_dicom(root, "P1", "2.dcm", instance(gradient(20, 30)))
    message = build(root, tmp_path / "out.h5").findings[0].message
    assert "20x30" in message
    assert f"{ROWS}x{COLUMNS}" in message


@pytest.mark.parametrize("kind", ["fifo", "folder", "link"])
def test_what_is_named_like_a_dicom_and_is_none(root, tmp_path, kind):
    path = root / "dicoms/P1/2.dcm"
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        shutil.copy(root / "dicoms/P1/1.dcm", tmp_path / "outside.dcm")
        path.symlink_to(tmp_path / "outside.dcm")
    result = build(root, tmp_path / "out.h5")
    assert (result.n_rows, codes(result)) == (5, {"image-unreadable": 1})


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("1 2\n3,5 4\n", "contour-unreadable"),
        ("1_0 2\n3 4\n5 6\n", "contour-unreadable"),
        ("1 2\n3 nan\n5 6\n", "contour-not-finite"),
        ("1 2\n3 inf\n5 6\n", "contour-not-finite"),
        ("", "contour-too-few-points"),
        ("1 2\n3 4\n1 2\n3 4\n", "contour-too-few-points"),
        ("1e9 2\n3 4\n5 6\n", "contour-outside"),
        ("100 100\n110 100\n105 110\n", "contour-outside"),
        ("2.2 2.2\n2.8 2.2\n2.5 2.8\n", "mask-empty"),
        ("1 1\n" * 1001, "contour-too-large"),
    ],
    ids=lambda value: value[:20],
)
def test_one_bad_contour_costs_its_pair_and_no_other(root, tmp_path, text, code):
    write_contour(root, "A1", 2, text=text)
    result = build(root, tmp_path / "out.h5", limits={"contour-points": 1000})
    assert (result.n_rows, codes(result)) == (5, {code: 1})
    assert result.findings[0].path == contour_path("A1", 2)


def test_a_row_that_drops_out_late_leaves_no_hole(root, tmp_path):
    write_contour(root, "A1", 2, text="2.2 2.2\n2.8 2.2\n2.5 2.8\n")
    build(root, tmp_path / "late.h5")
    (root / "dicoms/P1/2.dcm").unlink()
    (root / contour_path("A1", 2)).unlink()
    build(root, tmp_path / "never.h5")
    late, never = open_dataset(tmp_path / "late.h5"), open_dataset(tmp_path / "never.h5")
    assert late.dataset_id == never.dataset_id
    assert np.array_equal(late.images, never.images)
    assert np.array_equal(late.masks, never.masks)
    for name in file_format.CONTOURS:
        assert np.array_equal(late.contours[name], never.contours[name])
    for name in MANIFEST:
        np.testing.assert_array_equal(late.manifest[name], never.manifest[name])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("data", "late.h5", "late.h5.cache", "never.h5", "never.h5.cache")
    ]


def test_a_file_that_changes_between_header_and_pixels_is_told(root, tmp_path, monkeypatch):
    original = examine.examine

    def examine_then_touch(*arguments):
        result = original(*arguments)
        os.utime(root / "dicoms/P1/2.dcm", (5, 5))
        return result

    monkeypatch.setattr(examine, "examine", examine_then_touch)
    result = build(root, tmp_path / "out.h5")
    assert (result.n_rows, codes(result)) == (5, {"image-changed": 1})


def test_a_contour_over_the_border_is_cut_and_flagged(root, tmp_path):
    write_contour(root, "A2", 1, text="-5.5 0\n4.5 0\n4.5 5\n-5.5 5\n")
    result = build(root, tmp_path / "out.h5")
    data = open_dataset(tmp_path / "out.h5")
    assert codes(result) == {"contour-partly-outside": 1}
    assert "50.0%" in result.findings[0].message
    assert data.findings["row"].tolist() == [3]
    assert data.manifest["flags"].tolist() == [0, 0, 0, 1, 0, 0]
    assert data.attributes["flag_codes"][0] == "contour-partly-outside"


def test_findings_name_their_row_and_stand_errors_first(root, tmp_path):
    write_contour(root, "A1", 2, text="broken")
    write_contour(root, "A2", 9)
    write_dicom(root, "P1", "10.dcm")
    write_dicom(root, "P1", "9.dcm")
    (root / contour_path("A2", 3, "o")).unlink()
    build(root, tmp_path / "out.h5", contours=("i", "o"), partial=True)
    findings = open_dataset(tmp_path / "out.h5").findings
    assert findings["severity"].tolist() == ["error", "warning", *["info"] * 3]
    assert findings["code"].tolist() == [
        "contour-unreadable", "contour-no-image", "contour-missing",
        "image-no-contour", "image-no-contour",
    ]  # fmt: skip
    assert findings["row"].tolist() == [-1, -1, 4, -1, -1]
    assert findings["path"].tolist()[-2:] == ["dicoms/P1/9.dcm", "dicoms/P1/10.dcm"]


def test_contour_origin_1_moves_contours_by_one_pixel(root, tmp_path):
    build(root, tmp_path / "zero.h5")
    build(root, tmp_path / "one.h5", contour_origin=1)
    zero, one = open_dataset(tmp_path / "zero.h5"), open_dataset(tmp_path / "one.h5")
    assert np.array_equal(one.masks[:, :-1, :-1], zero.masks[:, 1:, 1:])
    assert np.array_equal(one.contours["x"], zero.contours["x"] - 1)


def test_one_dtype_holds_all_images(root, tmp_path):
    write_dicom(root, "P1", "2.dcm", instance(gradient(dtype="<u2")))
    build(root, tmp_path / "out.h5")
    data = open_dataset(tmp_path / "out.h5")
    assert data.images.dtype == np.int32
    assert np.array_equal(data.images[1], gradient(dtype="<u2"))
    assert np.array_equal(data.images[0], gradient(seed=1))
    write_dicom(root, "P1", "2.dcm", instance(RescaleSlope="0.5"))
    build(root, tmp_path / "out.h5", force=True)
    data = open_dataset(tmp_path / "out.h5")
    assert data.images.dtype == np.float32
    assert np.array_equal(data.images[1], gradient() * np.float32(0.5))


def test_splits_and_folds_stand_in_the_manifest_by_patient(root, tmp_path):
    (root / "split.csv").write_text("patient_id,split,fold\nP1,test,\nP9,train,0\n")
    result = build(root, tmp_path / "out.h5", split_file=str(root / "split.csv"))
    manifest = open_dataset(tmp_path / "out.h5").manifest
    assert manifest["split"].tolist() == [2, 2, 2, -1, -1, -1]
    assert manifest["fold"].tolist() == [-1] * 6
    assert result.notes == [
        "patients without a split, because the split file does not list them: 1.",
        "patients of the split file that have no row: 1 ('P9').",
        "the split file puts all patients in test.",
    ]
    result = build(root, tmp_path / "out.h5", split=(50.0, 50.0, 0.0), folds=3, force=True)
    manifest = open_dataset(tmp_path / "out.h5").manifest
    assert sorted(set(manifest["split"].tolist())) == [0, 1]
    assert any("folds have no patient" in note for note in result.notes)


def test_no_usable_pair_is_a_failure_with_the_reasons(root, tmp_path):
    with pytest.raises(etl.EtlError, match=r"no usable pair(.|\n)*image-size(.|\n)*12x14"):
        etl.build(root, tmp_path / "out.h5")
    assert not (tmp_path / "out.h5").exists()


@pytest.mark.parametrize("text", ["broken", "2.2 2.2\n2.8 2.2\n2.5 2.8\n"])
def test_strict_writes_nothing_on_an_error(root, tmp_path, text):
    write_contour(root, "A1", 2, text=text)
    with pytest.raises(etl.EtlError, match="strict=True"):
        build(root, tmp_path / "out.h5", strict=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_strict_lets_warnings_pass(root, tmp_path):
    write_contour(root, "A1", 9)
    assert build(root, tmp_path / "out.h5", strict=True).n_rows == 6


class TestOutput:
    @pytest.mark.parametrize("content", [OLD, b""])
    def test_an_existing_file_stays_without_force(self, root, tmp_path, content):
        out = tmp_path / "out.h5"
        out.write_bytes(content)
        with pytest.raises(etl.EtlError, match="force=True"):
            build(root, out)
        assert out.read_bytes() == content
        build(root, out, force=True)
        assert open_dataset(out).images.shape == (6, ROWS, COLUMNS)

    @pytest.mark.parametrize("name", ["link.csv", "dicoms/P1/1.dcm", "link to a dicom"])
    def test_what_is_no_hdf5_file_stays_even_with_force(self, root, name):
        (root / "link to a dicom").symlink_to(root / "dicoms/P1/1.dcm")
        before = (root / name).read_bytes()
        with pytest.raises(etl.EtlError, match=r"not an HDF5 file: not replaced\. Give another"):
            build(root, root / name, force=True)
        assert (root / name).read_bytes() == before

    @pytest.mark.parametrize("length", [222, 235, 255])
    def test_a_name_may_be_as_long_as_the_system_lets_it(self, root, tmp_path, length):
        out = tmp_path / ("x" * (length - 3) + ".h5")
        assert build(root, out, exclude_flagged=("area-jump",)).n_rows == 6
        assert build(root, out, force=True).n_rows == 6
        names = {path.name for path in tmp_path.iterdir()} - {"data", out.name}
        assert names == {target.beside(out, ".cache").name}
        assert etl.build(root, out, BuildOptions(**OPTIONS), update=True).notes[-1] == (
            "6 of 6 rows were taken over from the older file; 0 pairs parsed."
        )

    @pytest.mark.parametrize("parts", [("x" * 256,), ("x" * 300, "out.h5"), ("loop", "out.h5")])
    def test_a_path_that_cannot_be_is_refused_in_our_words(self, tmp_path, parts):
        (tmp_path / "loop").symlink_to(tmp_path / "loop")
        for force in (False, True):
            with pytest.raises(etl.EtlError, match=r"name too long|symbolic links"):
                target.check_target(tmp_path.joinpath(*parts), force=force)

    def test_the_target_is_what_a_link_points_to(self, tmp_path):
        assert target.check_target(tmp_path / "out.h5", force=False) == tmp_path / "out.h5"
        (tmp_path / "link").symlink_to("not there yet")
        found = target.check_target(tmp_path / "link", force=False)
        assert found == tmp_path / "not there yet"
        (tmp_path / "loop").symlink_to("loop")
        with pytest.raises(etl.EtlError, match="symbolic links"):
            target.check_target(tmp_path / "loop", force=True)

    def test_a_folder_that_may_not_be_looked_into(self, tmp_path, monkeypatch):
        def refuse(*_arguments, **_keywords):
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(os, "stat", refuse)
        with pytest.raises(etl.EtlError, match="permission denied"):
            target.check_target(tmp_path / "out.h5", force=True)

    def test_a_file_that_comes_meanwhile_stays(self, root, tmp_path, monkeypatch):
        out = tmp_path / "out.h5"
        finish = hdf5_file.finish

        def finish_late(*arguments):
            finish(*arguments)
            out.write_bytes(b"precious")

        monkeypatch.setattr(hdf5_file, "finish", finish_late)
        with pytest.raises(etl.EtlError, match="was created while the build"):
            build(root, out)
        assert out.read_bytes() == b"precious"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out.h5"]

    @pytest.mark.parametrize(
        ("place", "words"),
        [("folder", "is a folder"), ("none/out.h5", "no folder"), ("fifo", "device or pipe")],
    )
    def test_an_output_of_no_use_is_refused_before_the_work(self, root, tmp_path, place, words):
        (tmp_path / "folder").mkdir()
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(etl.EtlError, match=words):
            build(root, tmp_path / place, force=True)

    def test_a_link_is_written_through(self, root, tmp_path):
        (tmp_path / "disk").mkdir()
        (tmp_path / "disk" / "big.h5").write_bytes(OLD)
        (tmp_path / "out.h5").symlink_to(tmp_path / "disk" / "big.h5")
        build(root, tmp_path / "out.h5", force=True)
        assert (tmp_path / "out.h5").is_symlink()
        assert open_dataset(tmp_path / "disk" / "big.h5").images.shape[0] == 6

    @pytest.mark.parametrize("place", ["posix_fallocate", "pwrite", "fsync"])
    def test_a_full_disk_is_told_and_leaves_the_old_file(self, root, tmp_path, place, monkeypatch):
        out = tmp_path / "out.h5"
        out.write_bytes(OLD)

        def full(*_arguments):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, place, full)
        with pytest.raises(etl.EtlError, match="no space left"):
            build(root, out, force=True)
        assert out.read_bytes() == OLD
        assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out.h5"]

    def test_an_interrupt_leaves_nothing(self, root, tmp_path, monkeypatch):
        def interrupt(*_arguments):
            raise KeyboardInterrupt

        monkeypatch.setattr(render, "render", interrupt)
        with pytest.raises(KeyboardInterrupt):
            build(root, tmp_path / "out.h5")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


@pytest.mark.parametrize(
    ("lines", "kind", "words"),
    [
        ("", "i", r"3 image-no-contour\. link.csv links no patient"),
        ("P1,A1\n", "o", r"3 image-no-contour\. No o-contour file was found"),
    ],
)
def test_nothing_to_build_says_what_is_missing(tmp_path, lines, kind, words):
    root = write_tree(tmp_path / "data", outer=False)
    (root / "link.csv").write_text(f"patient_id,original_id\n{lines}")
    with pytest.raises(etl.EtlError, match=words):
        build(root, tmp_path / "out.h5", contours=(kind,))


FOUR = (("P1", "A1"), ("P2", "A2"), ("P3", "A3"), ("P4", "A4"))


def write_people(root, ids):
    """Write four patients with a PatientID and a study each."""
    write_tree(root, FOUR)
    for seed, patient_id in enumerate(ids):
        for number in (1, 2, 3):
            pixels = gradient(seed=1000 * seed + number)
            uid, study = f"1.2.3.{seed + 1}.{number}", f"1.2.4.{seed}"
            attributes = {"PatientID": patient_id, "StudyInstanceUID": study}
            dataset = instance(pixels, uid=uid, SeriesInstanceUID=f"{study}.1", **attributes)
            write_dicom(root, f"P{seed + 1}", f"{number}.dcm", dataset)
    return root


def sides_of(path):
    columns = (open_dataset(path).manifest[name].tolist() for name in ("patient_id", "split"))
    return dict(zip(*columns, strict=True))


@pytest.mark.parametrize("workers", [1, 2])
def test_one_person_under_two_ids_is_told_and_kept_on_one_side(tmp_path, workers):
    root = write_people(tmp_path / "data", ["SECRET77", "B", "C", "SECRET77"])
    out = tmp_path / "out.h5"
    n_apart = 0
    for seed in range(6):
        options = {"split": (50, 25, 25), "split_seed": seed, "folds": 2, "workers": workers}
        result = build(root, out, force=True, **options)
        sides = sides_of(out)
        assert sides["P1"] == sides["P4"]
        (found,) = result.findings
        assert (found.code, found.severity, found.path) == (
            "same-person", "warning", "dicoms/P1/1.dcm",
        )  # fmt: skip
        assert found.message.startswith("patients 'P1' and 'P4' have the same PatientID:")
        assert open_dataset(out).findings["row"].tolist() == [-1]
        assert b"SECRET77" not in out.read_bytes()
        result = build(root, out, force=True, same_person="separate", **options)
        sides = sides_of(out)
        n_apart += sides["P1"] != sides["P4"]
        assert ("You asked for that" in result.findings[0].message) == (
            sides["P1"] != sides["P4"] or "two folds" in result.findings[0].message
        )
    assert n_apart > 0


def test_a_split_of_the_users_own_that_parts_a_person_is_a_leak(tmp_path):
    root = write_people(tmp_path / "data", ["A", "B", "C", "A"])
    table = tmp_path / "split.csv"
    table.write_text("patient_id,split\nP1,train\nP2,train\nP3,validation\nP4,test\n")
    (found,) = build(root, tmp_path / "out.h5", split_file=str(table)).findings
    assert "on two sides of the split: 'P1' train, 'P4' test. Scores" in found.message
    assert sides_of(tmp_path / "out.h5") == {"P1": 0, "P2": 0, "P3": 1, "P4": 2}


@pytest.mark.parametrize(
    "ids", [["A", "B", "C", "D"], ["", "", "C", "D"], ["ANON", "ANON", "C", "D"], ["S1"] * 4]
)
def test_ids_that_tell_nothing_are_no_finding(tmp_path, ids):
    root = write_people(tmp_path / "data", ids)
    assert build(root, tmp_path / "out.h5").findings == []
    assert check(root, BuildOptions(**OPTIONS)).findings == []


def test_a_check_tells_of_one_person_too(tmp_path):
    root = write_people(tmp_path / "data", ["A", "B", "C", "A"])
    expected = build(root, tmp_path / "out.h5").findings
    assert [finding.code for finding in expected] == ["same-person"]
    for full in (False, True):
        assert check(root, BuildOptions(**OPTIONS), full=full).findings == expected


def test_a_result_prints_what_was_written_and_what_is_wrong(root, tmp_path):
    write_contour(root, "A1", 2, text="broken")
    write_dicom(root, "P1", "9.dcm")
    result = build(root, tmp_path / "out.h5", split=(100, 0, 0), exclude_flagged=("area-jump:P9",))
    assert str(result) == repr(result)
    lines = str(result).splitlines()
    assert lines[0] == "5 rows written."
    assert lines[1].startswith("P1 (A1): contour-unreadable: contourfiles/A1/i-contours/")
    assert lines[2:] == [
        "error: 1 contour-unreadable",
        "info: 1 image-no-contour",
        "Note: --exclude-flagged: no row is of 'P9'.",
    ]


def test_errors_name_the_arguments_of_python_and_findings_come_with_them(root, tmp_path):
    (tmp_path / "out.h5").write_bytes(OLD)
    with pytest.raises(etl.EtlError, match=r"Use `force=True` to replace it"):
        build(root, tmp_path / "out.h5")
    write_contour(root, "A1", 2, text="broken")
    with pytest.raises(etl.EtlError, match=r"build without `strict=True`") as caught:
        build(root, tmp_path / "new.h5", strict=True)
    assert str(caught.value).endswith("has all in its attribute `findings`.")
    assert [one.code for one in caught.value.findings] == ["contour-unreadable"]


def test_what_is_wrong_with_a_structure_that_stays_is_said_once(tmp_path):
    """The row that loses the other one is written and checked a second time."""
    root = write_tree(tmp_path / "data", slices=(1, 2))
    write_contour(root, "A1", 2, "i", "2 2\n9 9\n9 2\n2 9\n3 9.5\n")
    write_contour(root, "A1", 2, "o", "1 1\n11 10\n11 1\n1 10\n1 10.5\n11 9.5\n")
    flagged = {"exclude_flagged": ("inner-outside-outer",), "exclude_structures": True}
    options = BuildOptions(("i", "o"), ROWS, COLUMNS, partial=True, **flagged)
    result = etl.build(root, tmp_path / "out.h5", options)
    assert "structure-excluded" in {one.code for one in result.findings}
    assert "contour-self-crossing" in {one.code for one in result.findings if one.label == 2}
    assert len(set(result.findings)) == len(result.findings)
