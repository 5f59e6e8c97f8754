"""Builds with --keep-tags: the columns in every place that uses columns."""

import json

import h5py
import numpy as np
import pytest
from builders import COLUMNS, ROWS, dicom_bytes, gradient, instance, write_dicom, write_tree
from click.testing import CliRunner
from version_1 import compare

import etl
import loader
from etl.cli import cli
from etl.phantom.objects import write_shapes
from etl.report.page.contents import Subject, contents
from etl.report.summary import summarise
from etl.report.text import summary_text
from etl.verify.file import verify

SIZE = f"{ROWS}x{COLUMNS}"
VENDORS = ("SIEMENS", "Philips", "SIEMENS", "GE")
NAMES = ("EchoTime", "ImageType", "Manufacturer")


def options(**more):
    return etl.BuildOptions(rows=ROWS, columns=COLUMNS, audit=False, keep_tags=NAMES, **more)


@pytest.fixture
def root(tmp_path):
    """Return a folder of four patients, three images each, of three manufacturers."""
    patients = [(f"P{n}", f"A{n}") for n in range(4)]
    root = write_tree(tmp_path / "data", patients)
    for n, vendor in enumerate(VENDORS):
        for number in (1, 2, 3):
            kept = {"Manufacturer": vendor, "ImageType": ["ORIGINAL", "PRIMARY"]}
            echo = f"1.{number}" if vendor != "GE" else None
            pixels = gradient(seed=1000 * n + number)
            image = instance(pixels, uid=f"1.2.3.{n + 1}.{number}", EchoTime=echo, **kept)
            write_dicom(root, f"P{n}", f"{number}.dcm", image)
    return root


def test_columns_hold_what_the_headers_say(root, tmp_path):
    etl.build(root, tmp_path / "out.h5", options())
    data = loader.open_dataset(tmp_path / "out.h5")
    assert data.manifest["tag_Manufacturer"].tolist() == [name for name in VENDORS for _ in "123"]
    assert data.manifest["tag_EchoTime"][:3].tolist() == [1.1, 1.2, 1.3]
    assert np.isnan(data.manifest["tag_EchoTime"][-3:]).all()
    assert set(data.manifest["tag_ImageType"].tolist()) == {"ORIGINAL\\PRIMARY"}
    assert data.attributes["options"]["keep_tags"] == list(NAMES)
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["manifest/tag_EchoTime"].dtype == "<f8"
        assert file["manifest/tag_Manufacturer"].dtype == "S7"


def test_a_file_without_kept_attributes_is_as_before(root, tmp_path):
    etl.build(
        root, tmp_path / "plain.h5", etl.BuildOptions(rows=ROWS, columns=COLUMNS, audit=False)
    )
    etl.build(root, tmp_path / "kept.h5", options())
    plain = loader.open_dataset(tmp_path / "plain.h5")
    assert [name for name in plain.manifest if name.startswith("tag_")] == []
    assert list(compare.differences(tmp_path / "plain.h5", tmp_path / "kept.h5")) == []
    assert summarise(plain).tags == []


def test_the_order_of_the_names_and_the_number_of_workers_change_nothing(root, tmp_path):
    etl.build(root, tmp_path / "a.h5", options())
    backwards = etl.BuildOptions(
        rows=ROWS, columns=COLUMNS, audit=False, keep_tags=[*NAMES[::-1], "EchoTime"]
    )
    etl.build(root, tmp_path / "b.h5", backwards, workers=2)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_rows_are_chosen_by_a_kept_attribute(root, tmp_path):
    etl.build(root, tmp_path / "out.h5", options())
    chosen = loader.Batches(
        tmp_path / "out.h5", batch_size=1, where=lambda m: m["tag_Manufacturer"] == "SIEMENS"
    )
    assert chosen.rows.tolist() == [0, 1, 2, 6, 7, 8]
    quick = loader.Batches(
        tmp_path / "out.h5", batch_size=1, where=lambda m: m["tag_EchoTime"] < 1.2
    )
    assert quick.rows.tolist() == [0, 3, 6]


def test_a_split_is_stratified_by_a_kept_attribute(root, tmp_path):
    more = {"split": (50, 0, 50), "stratify": "tag_Manufacturer"}
    etl.build(root, tmp_path / "out.h5", options(**more))
    data = loader.open_dataset(tmp_path / "out.h5")
    siemens = data.manifest["tag_Manufacturer"] == "SIEMENS"
    assert sorted(set(data.manifest["split"][siemens].tolist())) == [0, 2]
    with pytest.raises(etl.EtlError, match=r"found 'tag_Modality'.*tag_EchoTime, tag_ImageType"):
        etl.build(root, tmp_path / "no.h5", options(split=(50, 0, 50), stratify="tag_Modality"))


def test_the_report_shows_the_values(root, tmp_path):
    etl.build(root, tmp_path / "out.h5", options())
    data = loader.open_dataset(tmp_path / "out.h5")
    summary = summarise(data)
    text = "\n".join(summary_text(summary))
    assert "Tag       Manufacturer: SIEMENS in 6 rows, GE in 3 rows, Philips in 3 rows" in text
    assert "EchoTime: 1.1 in 3 rows, 1.2 in 3 rows, 1.3 in 3 rows, none in 3 rows" in text
    plain = json.loads(json.dumps(summary.to_json(), allow_nan=False))
    assert plain["tags"][0] == {
        "keyword": "EchoTime", "values": [["1.1", 3], ["1.2", 3], ["1.3", 3]], "n_values": 3,
        "n_unknown": 3, "minimum": 1.1, "maximum": 1.3,
    }  # fmt: skip
    assert len(contents(Subject(data, summary, []), 0)["tags"]) == 3
    assert contents(Subject(data, summary, [], pseudonyms=True), 0)["tags"] == []


def test_many_values_of_the_report_are_a_range(root, tmp_path):
    for n in range(4):
        for number in (1, 2, 3):
            image = instance(
                gradient(seed=n * 10 + number), EchoTime=str(10 * n + number), uid=f"9.{n}.{number}"
            )
            write_dicom(root, f"P{n}", f"{number}.dcm", image)
    etl.build(root, tmp_path / "out.h5", options())
    text = "\n".join(summary_text(summarise(loader.open_dataset(tmp_path / "out.h5"))))
    assert "EchoTime: 1 to 33, 12 values" in text
    assert "Manufacturer: no row has a value" in text


def test_an_update_takes_kept_columns_over_and_other_names_make_a_full_build(root, tmp_path):
    out = tmp_path / "out.h5"
    etl.build(root, out, options(), update=True)
    write_dicom(root, "P1", "2.dcm", instance(Manufacturer="Canon", uid="8.8"))
    result = etl.build(root, out, options(), update=True)
    assert any(note.startswith("11 of 12 rows were taken over") for note in result.notes)
    etl.build(root, tmp_path / "full.h5", options())
    assert out.read_bytes() == (tmp_path / "full.h5").read_bytes()
    fewer = etl.BuildOptions(rows=ROWS, columns=COLUMNS, audit=False, keep_tags=NAMES[:2])
    result = etl.build(root, out, fewer, update=True)
    assert any("with other options" in note for note in result.notes)
    assert "tag_Manufacturer" not in loader.open_dataset(out).manifest


@pytest.mark.parametrize("kind", ["table", "rtstruct", "seg", "enhanced"])
def test_every_layout_keeps_attributes_and_is_verified(tmp_path, kind):
    write_shapes(tmp_path / "data", kind, patients=2, slices=4)
    names = ("Modality", "SliceThickness")
    data = tmp_path / "data"
    etl.build(data, tmp_path / "out.h5", etl.BuildOptions(keep_tags=names))
    manifest = loader.open_dataset(tmp_path / "out.h5").manifest
    assert set(manifest["tag_Modality"].tolist()) == {"MR" if kind == "enhanced" else "CT"}
    assert (manifest["tag_SliceThickness"] > 0).all()
    assert verify(tmp_path / "out.h5", source=data, rebuild=True).problems == []


def test_verification_compares_kept_columns_with_the_sources(root, tmp_path, monkeypatch):
    out = tmp_path / "out.h5"
    etl.build(root, out, options())
    assert verify(out, source=root, rebuild=True).problems == []
    with h5py.File(out, "r+") as file:
        place = file["manifest/tag_EchoTime"].id.get_offset()
        text = file["manifest/tag_Manufacturer"].id.get_offset()
    data = bytearray(out.read_bytes())
    data[place + 8 : place + 16] = np.float64(7).tobytes()
    data[text : text + 7] = b"SIEMANS"
    out.write_bytes(data)
    found = [str(one) for one in verify(out, source=root, rebuild=True).problems]
    assert any("tag_EchoTime" in one and "digest" in one for one in found)
    assert any("row 1 " in one and "tag_EchoTime differs from its source" in one for one in found)
    assert any("row 0 " in one and "tag_Manufacturer differs" in one for one in found)


def test_the_command_refuses_what_is_not_safe_before_the_build(root, tmp_path):
    out = tmp_path / "out.h5"

    def run(*arguments):
        return CliRunner().invoke(cli, ["build", str(root), str(out), "--size", SIZE, *arguments])

    found = run("--keep-tags", "Manufacturer,PatientName")
    assert found.exit_code == 1
    assert "--keep-tags: PatientName is a person's name" in found.stderr
    assert "--keep-tags-anyway" in found.stderr
    assert not out.exists()
    assert run("--keep-tags-anyway").exit_code == 2
    found = run("--keep-tags", "Manufacturer, PatientName", "--keep-tags-anyway")
    assert found.exit_code == 0
    assert "keeps PatientName, by which patients may be found" in found.stderr
    assert "tag_PatientName" in loader.open_dataset(out).manifest


@pytest.mark.parametrize(
    ("right", "wrong", "expected"),
    [
        ("6.25", "6,25", 6.25),
        ("6.25", ",,,,", np.nan),
        ("6.25", "6.2x", np.nan),
        ("6.25", "6_25", np.nan),
        ("6.25", " inf", np.nan),
        ("6.25", "6\\25", np.nan),
    ],
)
def test_a_number_that_breaks_its_format_is_verified_as_it_was_built(
    root, tmp_path, right, wrong, expected
):
    path = root / "dicoms" / "P0" / "1.dcm"
    path.write_bytes(dicom_bytes(instance(gradient(seed=1), uid="1.2.9", EchoTime=right)))
    data = path.read_bytes()
    assert data.count(right.encode()) == 1
    path.write_bytes(data.replace(right.encode(), wrong.encode()))
    out = tmp_path / "out.h5"
    result = etl.build(root, out, options())
    assert "image-header-invalid" in {one.code for one in result.findings}
    np.testing.assert_equal(loader.open_dataset(out).manifest["tag_EchoTime"][0], expected)
    assert verify(out, source=root, rebuild=True).problems == []


@pytest.mark.parametrize(
    "values",
    [
        {"RescaleSlope": "2.75", "RescaleIntercept": "-6.25"},
        {"PixelSpacing": ["2.75", "3.25"]},
    ],
)
def test_decimal_commas_are_verified_as_they_were_built(root, tmp_path, values):
    path = root / "dicoms" / "P0" / "1.dcm"
    right = instance(gradient(seed=1), uid="1.2.9", **values)
    data = dicom_bytes(right)
    for number in (b"2.75", b"3.25", b"6.25"):
        data = data.replace(number, number.replace(b".", b","))
    path.write_bytes(data)
    out = tmp_path / "out.h5"
    result = etl.build(root, out, options(size="fit", resample=(2.0, 2.0)))
    assert "image-header-invalid" in {one.code for one in result.findings}
    assert loader.open_dataset(out).manifest["patient_id"].tolist().count("P0") == 3
    assert verify(out, source=root, rebuild=True).problems == []
