import io
import struct

import pytest
from builders import (
    COLUMNS,
    ROWS,
    SYNTAXES,
    dicom_bytes,
    enhanced,
    group,
    groups,
    instance,
    write_tree,
)
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

import etl
from etl.check import check
from etl.dicom.instance import read_instance
from loader import open_dataset

CODE = "real-world-values"


def mapping(slope=None, intercept=None, unit="um2/s", table=None):
    """Return a RealWorldValueMappingSequence of one item."""
    item = Dataset()
    values = {"Slope": slope, "Intercept": intercept, "LUTData": table}
    for name, value in values.items():
        if value is not None:
            setattr(item, f"RealWorldValue{name}", value)
    if unit is not None:
        item.MeasurementUnitsCodeSequence = group(CodeValue=unit, CodeMeaning="a unit")
    return Sequence([item])


def read(dataset, syntax="explicit", number=None):
    return read_instance(io.BytesIO(dicom_bytes(dataset, syntax)), number)


def remarks(found):
    return [message for code, message in found.warnings if code == CODE]


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("undefined", [False, True])
def test_a_mapping_that_is_not_the_rescale_is_told_in_every_encoding(syntax, undefined):
    dataset = instance(RealWorldValueMappingSequence=mapping(0.5, -3.0))
    for element in dataset.iterall():
        if element.VR == "SQ":
            element.is_undefined_length = undefined
            for item in element.value:
                item.is_undefined_length_sequence_item = undefined
    found = read(dataset, syntax)
    assert remarks(found) == [
        "its RealWorldValueMappingSequence maps stored values to 'um2/s' by slope 0.5 and "
        "intercept -3, and is not applied: the row has RescaleSlope 1 and RescaleIntercept 0 "
        "applied."
    ]
    assert found.unit == ""


@pytest.mark.parametrize(
    ("sequence", "rescale", "words"),
    [
        (mapping(1.0, 0.0), (), ""),  # stored values are those of the unit
        (mapping(2.0, -1024.0), ("2", "-1024"), ""),
        (mapping(1.29157509157509, 0.0), ("1.2915750915", "0"), ""),
        (mapping(1.0, 0.0), ("2", "0"), "to 'um2/s' by slope 1 and intercept 0, and is not"),
        (mapping(1.0, 5.0), (), "by slope 1 and intercept 5"),
        (mapping(table=[1.0, 2.0]), (), "to 'um2/s' by a table"),
        (mapping(0.5, 0.0, unit=None), (), "to a unit that it does not name by slope"),
        (mapping(0.5, 0.0, unit="Doe, Jane"), (), "to a unit that it does not name by slope"),
        ([*mapping(0.5, 0.0), *mapping(0.25, 0.0)], (), "Sequence, the first of 2, maps stored"),
        ([*mapping(0.5, 0.0), *mapping(1.0, 0.0)], (), ""),
        (Sequence([Dataset()]), (), "to a unit that it does not name by a table"),
        (Sequence([]), (), ""),
    ],
)
def test_what_is_told_of_a_mapping(sequence, rescale, words):
    named = dict(zip(("RescaleSlope", "RescaleIntercept"), rescale, strict=False))
    found = remarks(read(instance(RealWorldValueMappingSequence=Sequence(sequence), **named)))
    assert len(found) == bool(words)
    assert words in "".join(found)


def test_a_mapping_that_cannot_be_read_is_told_and_the_image_is_read():
    data = dicom_bytes(instance(RealWorldValueMappingSequence=mapping(0.5, 0.0)))
    begin = data.index(struct.pack("<HH2s", 0x0040, 0x9096, b"SQ")) + 12
    found = read_instance(io.BytesIO(data[:begin] + b"\7" * 8 + data[begin + 8 :]))
    assert len(remarks(found)) == 1


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_table_larger_than_other_values_may_be_is_no_error(syntax):
    table = [float(n) for n in range(8_000)]  # an element of VR FD has less than 64 KiB
    both = Sequence([*mapping(table=table), *mapping(table=table)])
    found = read(instance(RealWorldValueMappingSequence=both), syntax)
    assert "by a table" in remarks(found)[0]


@pytest.mark.parametrize(
    ("attributes", "unit"),
    [
        ({}, ""),
        ({"RescaleType": "HU"}, "HU"),
        ({"RescaleType": "US"}, ""),  # unspecified
        ({"RescaleType": "Doe, Jane"}, ""),
        ({"RescaleType": "x" * 25}, ""),
        ({"RealWorldValueMappingSequence": mapping(1.0, 0.0, "[hnsf'U]")}, "HU"),
        ({"RealWorldValueMappingSequence": mapping(1.0, 0.0, "1")}, "no unit"),
        (
            {"RescaleType": "US", "RealWorldValueMappingSequence": mapping(1.0, 0.0, "mrad")},
            "mrad",
        ),
        ({"RescaleType": "OD", "RealWorldValueMappingSequence": mapping(2.0, 0.0, "mrad")}, "OD"),
        ({"Units": "BQML", "DecayCorrection": "START"}, "BQML/START"),
        ({"Units": "BQML", "DecayCorrection": "ADMIN"}, "BQML/ADMIN"),
        ({"Units": "GML", "SUVType": "LBM", "DecayCorrection": "START"}, "GML/LBM/START"),
        ({"Units": "CNTS", "RescaleType": "US"}, "CNTS"),
        ({"DecayCorrection": "START"}, ""),
    ],
)
def test_the_unit_of_an_image(attributes, unit):
    assert read(instance(**attributes)).unit == unit


def test_each_frame_has_its_own_unit_and_mapping():
    frames = [
        groups(
            PixelValueTransformationSequence=group(RescaleSlope=2, RescaleIntercept=0),
            RealWorldValueMappingSequence=mapping(2.0, 0.0, "mrad"),
        ),
        groups(
            PixelValueTransformationSequence=group(
                RescaleSlope=3, RescaleIntercept=0, RescaleType="OD"
            )
        ),
    ]
    shared = groups(RealWorldValueMappingSequence=mapping(7.0, 0.0))
    dataset = enhanced(2, shared, frames)
    first, second = (read(dataset, number=number) for number in (1, 2))
    assert (first.unit, remarks(first)) == ("mrad", [])
    assert second.unit == "OD"
    assert "by slope 7 and" in remarks(second)[0]
    only_shared = enhanced(2, shared)
    assert "by slope 7 and" in remarks(read(only_shared, number=2))[0]


def test_a_mapping_is_told_once_for_a_patient_and_again_by_an_update(tmp_path):
    patients = (("P1", "A1"), ("P2", "A2"))
    root = write_tree(tmp_path / "data", patients, RealWorldValueMappingSequence=mapping(0.5, 0.0))
    options = etl.BuildOptions(rows=ROWS, columns=COLUMNS)
    out = tmp_path / "out.h5"
    found = etl.build(root, out, options).findings
    told = [one for one in found if one.code == CODE]
    assert [(one.severity, one.path) for one in told] == [
        ("info", "dicoms/P1/1.dcm"),
        ("info", "dicoms/P2/1.dcm"),
    ]
    assert all("So it is with 2 more images of the patient." in one.message for one in told)
    rows = open_dataset(out).findings["row"][open_dataset(out).findings["code"] == CODE]
    assert rows.tolist() == [0, 3]
    for full in (False, True):
        assert [one for one in check(root, options, full=full).findings if one.code == CODE] == told
    first = out.read_bytes()
    (root / "dicoms/P1/1.dcm").touch()
    etl.build(root, out, options, update=True)
    assert out.read_bytes() == first


def test_a_unit_that_differs_stays_told_by_an_update(tmp_path):
    root = write_tree(tmp_path / "data", RescaleType="HU")
    path = root / "dicoms/P1/2.dcm"
    path.write_bytes(path.read_bytes().replace(b"HU", b"OD"))
    options = etl.BuildOptions(rows=ROWS, columns=COLUMNS)
    out = tmp_path / "out.h5"
    etl.build(root, out, options)
    assert open_dataset(out).flagged("units-differ").tolist() == [False, True, False]
    first = out.read_bytes()
    (root / "dicoms/P1/1.dcm").touch()
    etl.build(root, out, options, update=True)
    assert out.read_bytes() == first
