"""What `make fuzz` has found, in its smallest form; each is mended."""

import io
import json
import re
import zipfile

import h5py
import numpy as np
import pytest
from builders import dicom_bytes, instance
from dataset_builder import write_dataset

import loader
from etl.dicom import header as dicom_header
from etl.dicom.instance import read_instance
from etl.errors import EtlError
from etl.output.split import read_split_file
from etl.output.strata import read_patients
from etl.report.card import read_card
from etl.report.findings import read_findings
from etl.report.predictions import agreement
from etl.sources.structures import read_choices
from loader.errors import LoaderError

DEEP = "[" * 100_000


def warnings_of(data):
    found = read_instance(io.BytesIO(data))
    return found, [text for code, text in found.warnings if code == "image-header-invalid"]


@pytest.mark.parametrize("is_scanned", [True, False])
@pytest.mark.parametrize(
    ("tag", "vr", "keyword"),
    [
        (b"\x08\0\x18\0", b"UI", "SOPInstanceUID"),
        (b"\x28\0\x30\0", b"DS", "PixelSpacing"),
        (b"\x20\0\x32\0", b"DS", "ImagePositionPatient"),
    ],
)
@pytest.mark.parametrize("binary", [b"US", b"SS", b"AT", b"UL", b"FD"])
def test_text_under_a_vr_of_binary_numbers_is_said(
    monkeypatch, tag, vr, keyword, binary, is_scanned
):
    """pydicom reads the bytes as numbers: our value differs, and must not do so silently."""
    if not is_scanned:
        monkeypatch.setattr(dicom_header, "_scan", lambda *_: None)
    data = dicom_bytes(instance())
    expected, none = warnings_of(data)
    assert none == []
    found, said = warnings_of(data.replace(tag + vr, tag + binary))
    assert found.sop_instance_uid == expected.sop_instance_uid
    assert found.pixel_spacing == expected.pixel_spacing
    text = f"{keyword} is text, but its VR is {binary.decode()}; it is read as text"
    assert any(text in one for one in said)


@pytest.mark.parametrize(
    ("name", "text", "read"),
    [
        ("a.json", DEEP, read_choices),
        ("a.toml", f"a = {DEEP}", read_choices),
        ("a.toml", f"keywords = {DEEP}", read_card),
    ],
)
def test_settings_nested_too_deeply_are_our_error(tmp_path, name, text, read):
    (tmp_path / name).write_text(text)
    with pytest.raises(EtlError, match="nested too deeply"):
        read(tmp_path / name)


def test_an_augmentation_nested_too_deeply_is_our_error():
    with pytest.raises(LoaderError, match="Augmentation not read"):
        loader.Augment.from_json(DEEP)


@pytest.mark.parametrize("n_digits", [400, 4000, 5000])
@pytest.mark.parametrize("value", ["{}", "[{}, 1, 2]", "[0.5, -1, {}]"])
def test_a_whole_number_that_no_float_holds_is_our_error(value, n_digits):
    number = value.format("9" * n_digits)
    with pytest.raises(LoaderError, match="Augmentation not read") as caught:
        loader.Augment.from_json(f'{{"version": 1, "rotate": {number}}}')
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("name", ["format", "mask_kind"])
def test_a_message_quotes_no_endless_attribute(tmp_path, name):
    path = tmp_path / "a.h5"
    write_dataset(path)
    with h5py.File(path, "r+") as file:
        file.attrs[name] = np.bytes_(b"x" * 50_000)
    with pytest.raises(LoaderError) as caught:
        loader.open_dataset(path)
    assert re.search(r"\(5\d\d\d\d characters\)", str(caught.value))
    assert len(str(caught.value)) < 1500


def test_a_message_quotes_no_endless_id_of_predictions(tmp_path):
    write_dataset(tmp_path / "a.h5")
    data = loader.open_dataset(tmp_path / "a.h5")
    with h5py.File(tmp_path / "p.h5", "w") as file:
        file["predictions"] = np.array(data.masks)
        file.attrs["dataset_id"] = np.bytes_(b"x" * 50_000)
    with pytest.raises(EtlError, match=r"\(50000 characters\)") as caught:
        agreement(data, tmp_path / "p.h5")
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize("is_scanned", [True, False])
@pytest.mark.parametrize("text", [b"LO", b"DS", b"UI"])
def test_a_binary_number_under_a_vr_of_text_is_said(monkeypatch, text, is_scanned):
    if not is_scanned:
        monkeypatch.setattr(dicom_header, "_scan", lambda *_: None)
    data = dicom_bytes(instance())
    found, said = warnings_of(data.replace(b"\x28\0\x10\0US", b"\x28\0\x10\0" + text))
    assert found.pixel_format.rows == warnings_of(data)[0].pixel_format.rows
    words = f"Rows is a binary number, but its VR is {text.decode()}; it is read as number"
    assert any(words in one for one in said)


@pytest.mark.parametrize(
    ("name", "text", "read"),
    [
        ("a.json", json.dumps({"liver": {"version": "x" * 50_000}}), read_choices),
        ("a.toml", f"{'x' * 50_000} = 1", read_card),
    ],
)
def test_a_message_quotes_no_endless_setting(tmp_path, name, text, read):
    (tmp_path / name).write_text(text)
    with pytest.raises(EtlError) as caught:
        read(tmp_path / name)
    assert len(str(caught.value)) < 1500


def test_a_message_quotes_no_endless_augmentation():
    with pytest.raises(LoaderError) as caught:
        loader.Augment.from_json(json.dumps({"version": "x" * 50_000}))
    assert len(str(caught.value)) < 1500


def test_predictions_that_are_a_group_or_bytes_are_our_error(tmp_path):
    write_dataset(tmp_path / "a.h5")
    data = loader.open_dataset(tmp_path / "a.h5")
    with h5py.File(tmp_path / "p.h5", "w") as file:
        file["predictions/a"] = np.array(data.masks)
    with pytest.raises(EtlError, match="'predictions' is no array"):
        agreement(data, tmp_path / "p.h5")
    with h5py.File(tmp_path / "p.h5", "w") as file:
        file["predictions"] = np.array(data.masks)
        file["rows/a"] = 1
    with pytest.raises(EtlError, match="'rows' is no array"):
        agreement(data, tmp_path / "p.h5")
    with zipfile.ZipFile(tmp_path / "p.npz", "w") as file:
        file.writestr("predictions.npy", b"")
    with pytest.raises(EtlError, match="is no array"):
        agreement(data, tmp_path / "p.npz")


@pytest.mark.parametrize(
    ("columns", "lines", "read"),
    [
        ("patient_id,split", ("train", "test"), read_split_file),
        ("patient_id,group", ("a", "b"), lambda path: read_patients(path, "group")),
    ],
)
def test_a_message_quotes_no_endless_cell(tmp_path, columns, lines, read):
    path = tmp_path / "a.csv"
    path.write_text("\n".join([columns, *(f"{'x' * 50_000},{one}" for one in lines)]))
    with pytest.raises(EtlError, match=r"\(50000 characters\)") as caught:
        read(path)
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize(
    ("offset", "value"),
    [(4, b"\x40\0"), (6, b"\x01\0"), (8, b"\x63\0")],
    ids=["another version", "a password", "another compression"],
)
def test_archives_of_predictions_that_nothing_reads_are_our_error(tmp_path, offset, value):
    write_dataset(tmp_path / "a.h5")
    data = loader.open_dataset(tmp_path / "a.h5")
    np.savez(tmp_path / "p.npz", predictions=np.array(data.masks))
    content = bytearray((tmp_path / "p.npz").read_bytes())
    for mark, extra in ((b"PK\3\4", 0), (b"PK\1\2", 2)):  # in both headers of the member
        place = content.index(mark) + offset + extra
        content[place : place + 2] = value
    (tmp_path / "p.npz").write_bytes(content)
    with pytest.raises(EtlError, match=r"p\.npz"):
        agreement(data, tmp_path / "p.npz")


@pytest.mark.parametrize(("name", "row"), [("row", -8), ("row", 7_000), ("other_row", 7_000)])
def test_a_finding_on_a_row_that_is_not_there_is_our_error(tmp_path, name, row):
    path = tmp_path / "a.h5"
    write_dataset(path)
    data = loader.open_dataset(path)
    findings = {column: values.copy() for column, values in data.findings.stored.items()}
    assert len(findings["row"])
    findings[name][0] = row
    with h5py.File(path, "r+") as file:
        file[f"findings/{name}"][...] = findings[name]
    with pytest.raises(EtlError, match=f"findings/{name} has a row that the file lacks"):
        read_findings(loader.open_dataset(path))
