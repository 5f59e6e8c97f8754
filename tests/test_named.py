"""A finding says which image and structure it is about, where its file has several."""

import itertools

import numpy as np
import pydicom
import pytest

import etl
from etl.options import BuildOptions
from etl.phantom.objects import write_shapes
from loader import open_dataset

ROWS, COLUMNS, SLICES = 64, 72, 7


def build(root, **options):
    out = root.parent / "out.h5"
    size = {"rows": ROWS, "columns": COLUMNS} | options
    result = etl.build(root, out, BuildOptions(**size), force=True)
    return result, open_dataset(out)


def change(path, edit):
    dataset = pydicom.dcmread(path)
    edit(dataset)
    dataset.save_as(path)


def image_of(data, row, kind):
    path = data.manifest["dicom_path"][row]
    return f"{path}, frame {data.manifest['frame_number'][row]}" if kind == "enhanced" else path


@pytest.mark.parametrize("kind", ["rtstruct", "seg", "enhanced"])
def test_of_one_row(tmp_path, kind):
    root = tmp_path / "data"
    write_shapes(root, kind, patients=1, slices=SLICES, rows=ROWS, columns=COLUMNS)
    result, data = build(root, rows=30, columns=34, size="fit")
    rows = {(*key,): row for row, key in enumerate(keys(data))}
    names = {one.code: one.name for one in data.structures}
    told = [one for one in result.findings if one.code == "structure-cut"]
    assert {one.label for one in told} == set(names)
    for one in told:
        image = image_of(data, rows[one.key], kind)
        assert one.message.startswith(f"{names[one.label]} on {image}: ")
    assert len({one.message for one in told}) == len(told)


def keys(data):
    names = ("patient_id", "series", "slice", "frame_number")
    return zip(*(data.manifest[name].tolist() for name in names), strict=True)


@pytest.mark.parametrize("kind", ["rtstruct", "enhanced"])
def test_of_two_rows(tmp_path, kind):
    root = tmp_path / "data"
    write_shapes(root, kind, patients=1, slices=SLICES, rows=ROWS, columns=COLUMNS)

    def copy(dataset):
        numbers = {one.ROIName: one.ROINumber for one in dataset.StructureSetROISequence}
        (drawn,) = (
            one.ContourSequence
            for one in dataset.ROIContourSequence
            if one.ReferencedROINumber == numbers["sphere"]
        )
        one, other = (np.reshape(drawn[k].ContourData, (-1, 3)).astype(float) for k in (1, 3))
        copied = np.column_stack([one[:, :2], np.full(len(one), other[0, 2])])
        drawn[3].ContourData = [f"{value:.4f}" for value in copied.ravel()]
        drawn[3].NumberOfContourPoints = len(copied)

    change(root / "annotations" / "SHAPES001.dcm", copy)
    result, data = build(root)
    told = [one for one in result.findings if one.code == "identical-contour"]
    rows = {(*key,): row for row, key in enumerate(keys(data))}
    images = [image_of(data, rows[one.key], kind) for one in told]
    assert len(told) == 2
    for mine, other, one in zip(images, reversed(images), told, strict=True):
        assert one.message.startswith(
            f"sphere on {mine}: has the same points as annotations/SHAPES001.dcm (sphere on "
            f"{other}), of another image."
        )


def test_of_a_frame(tmp_path):
    root = tmp_path / "data"
    write_shapes(root, "enhanced", patients=1, slices=SLICES, rows=ROWS, columns=COLUMNS)

    def blank(dataset):
        pixels = np.frombuffer(dataset.PixelData, f"<u{dataset.BitsAllocated // 8}").copy()
        pixels.reshape(SLICES, -1)[[2, 4]] = 7
        dataset.PixelData = pixels.tobytes()

    change(root / "images" / "SHAPES001" / "1.dcm", blank)
    result, _ = build(root)
    messages = [one.message for one in result.findings if one.code == "image-constant"]
    assert [one.split(": ")[0] for one in messages] == ["frame 3", "frame 5"]
    twins = [one.message for one in result.findings if one.code == "identical-image"]
    for mine, other, message in zip(("3", "5"), ("5", "3"), twins, strict=True):
        expected = f"frame {mine}: has the same pixels as images/SHAPES001/1.dcm, frame {other}. "
        assert message.startswith(expected)


def test_not_where_the_path_tells_it(tmp_path):
    root = tmp_path / "data"
    write_shapes(root, "table", patients=1, slices=SLICES, rows=ROWS, columns=COLUMNS)
    result, data = build(root, rows=30, columns=34, size="fit")
    told = [one for one in result.findings if one.code == "structure-cut"]
    assert told
    names = [one.name for one in data.structures]
    for one, name in itertools.product(told, names):
        assert not one.message.startswith(f"{name} on ")
