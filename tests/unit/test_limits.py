import io
import re
import struct
from pathlib import Path

import pydicom
import pytest
from builders import COLUMNS, ROWS, dicom_bytes, instance, write_tree

import etl
from etl import errors
from etl.dicom import pydicom_scan
from etl.dicom.instance import read_instance
from etl.dicom.quick_scan import scan_meta
from etl.dicom.segmentation import Segmentation
from etl.dicom.structure_set import read_structure_set
from etl.errors import EtlError, ImageError, SourceError
from etl.sources.csv_table import read_csv

RELIABILITY = Path(__file__).parents[2] / "docs/reliability.md"
LIMITS = {name: value for name, value in vars(errors).items() if name.startswith("MAX_")}
ITEM = b"\xfe\xff\0\xe0"
END = b"\xfe\xff\xdd\xe0\0\0\0\0"


@pytest.mark.parametrize("name", LIMITS)
def test_the_documentation_lists_every_limit(name):
    found = re.search(rf"^\| `{name}` \| ([0-9,]+)", RELIABILITY.read_text(), re.MULTILINE)
    assert found is not None
    assert int(found[1].replace(",", "")) == LIMITS[name]


def with_sequence(content, syntax="explicit"):
    """Return an image with a sequence of undefined length before its attributes."""
    data = dicom_bytes(instance(), syntax)
    start = scan_meta(data, 132, [])[1]
    header = struct.pack("<HH", 7, 2) + b"SQ\0\0" * (syntax == "explicit") + b"\xff" * 4
    return data[:start] + header + content + END + data[start:]


@pytest.mark.parametrize("syntax", ["explicit", "implicit"])
def test_too_many_items_are_refused_before_pydicom_reads_one(monkeypatch, syntax):
    walk = pydicom_scan._walk

    def walk_only_meta(file, *, meta, **how):
        assert meta, "pydicom reads the items, which takes it 22 s and more"
        return walk(file, meta=meta, **how)

    monkeypatch.setattr(pydicom_scan, "_walk", walk_only_meta)
    data = with_sequence((ITEM + bytes(4)) * 500_001, syntax)
    with pytest.raises(ImageError, match="more than 500000 items of sequences"):
        read_instance(io.BytesIO(data))


def test_some_thousand_items_are_read():
    data = with_sequence((ITEM + bytes(4)) * 20_000)
    assert read_instance(io.BytesIO(data)).pixel_format.rows == ROWS


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_items_are_counted_across_blocks(monkeypatch, cut):
    monkeypatch.setattr(pydicom_scan, "_BLOCK_BYTES", 8 + cut)
    monkeypatch.setattr(pydicom_scan, "MAX_ITEMS", 10)
    for n_items in (10, 11):
        file = io.BytesIO((ITEM + bytes(4)) * n_items)
        if n_items == 10:
            pydicom_scan._require_few_items(file, 8 * n_items)
            assert file.tell() == 0
        else:
            with pytest.raises(ImageError, match="more than 10 items"):
                pydicom_scan._require_few_items(file, 8 * n_items)


@pytest.mark.parametrize("depth", [10, 17, 100_000])
def test_sequences_in_sequences_end_in_an_image_or_in_our_error(depth):
    header = b"\x40\0\x75\2SQ\0\0" + b"\xff" * 4
    inner = (ITEM + b"\xff" * 4 + header) * depth + (END + b"\xfe\xff\x0d\xe0\0\0\0\0") * depth
    data = with_sequence(inner)
    if depth < 1000:
        assert read_instance(io.BytesIO(data)).pixel_format.rows == ROWS
    else:
        with pytest.raises(ImageError, match="cannot be read"):
            read_instance(io.BytesIO(data))


@pytest.mark.parametrize("read", [read_structure_set, Segmentation])
def test_annotations_with_too_many_items_are_refused_unread(monkeypatch, read):
    monkeypatch.setattr(pydicom, "dcmread", None)
    with pytest.raises(SourceError, match="more than 500000 items"):
        read(bytes(128) + b"DICM" + (ITEM + bytes(4)) * 500_001)


def test_a_table_too_large_is_refused_unread(tmp_path):
    path = tmp_path / "link.csv"
    with path.open("wb") as file:
        file.truncate(errors.MAX_TABLE_BYTES + 1)
    with pytest.raises(EtlError, match="expected at most 268435456"):
        list(read_csv(path, ("patient_id",)))


@pytest.mark.parametrize("name", ["dicoms/P1/2.dcm", "contourfiles/A1/i-contours"])
def test_a_file_too_large_is_a_finding_and_is_not_read(tmp_path, name):
    root = write_tree(tmp_path / "data")
    path = root / name
    path = sorted(path.iterdir())[1] if path.is_dir() else path
    with path.open("r+b") as file:
        file.truncate(errors.MAX_IMAGE_BYTES + 1)
    result = etl.build(root, tmp_path / "out.h5", etl.BuildOptions(rows=ROWS, columns=COLUMNS))
    assert result.n_rows == 2
    assert any("expected at most" in one.message for one in result.findings)
