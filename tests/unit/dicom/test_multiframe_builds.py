"""Builds of multi-frame files: a row for each frame, and each file read once."""

from collections import Counter

import numpy as np
import pytest
from builders import COLUMNS, ROWS, SQUARE, dicom_bytes, gradient, instance
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

import etl
from etl import render
from etl.dicom import header as dicom_header
from etl.dicom import instance as dicom_instance
from etl.options import BuildOptions
from loader import open_dataset

N_FRAMES = 5
OPTIONS = BuildOptions(rows=ROWS, columns=COLUMNS, audit=False)


def frame_groups(slope):
    item, values = Dataset(), Dataset()
    values.RescaleSlope, values.RescaleIntercept = slope, 0
    item.PixelValueTransformationSequence = Sequence([values])
    return item


@pytest.fixture
def root(tmp_path):
    """Return a folder of two files of five frames, each with its slope, and their table."""
    lines = ["patient_id,image,label,contour,frame"]
    for place, name in enumerate("ab"):
        pixels = [gradient(seed=10 * place + n) for n in range(N_FRAMES)]
        dataset = instance(pixels[0], uid=f"1.2.{place}", NumberOfFrames=N_FRAMES)
        dataset.PixelData = np.stack(pixels).tobytes()
        slopes = range(1, N_FRAMES + 1)
        dataset.PerFrameFunctionalGroupsSequence = Sequence(map(frame_groups, slopes))
        (tmp_path / f"{name}.dcm").write_bytes(dicom_bytes(dataset))
        lines += [f"P{place},{name}.dcm,heart,c.txt,{n}" for n in slopes]
    (tmp_path / "c.txt").write_text(SQUARE)
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_each_frame_is_a_row_with_its_own_pixels_and_slope(root, tmp_path):
    etl.build(root, tmp_path / "out.h5", OPTIONS, workers=1)
    dataset = open_dataset(tmp_path / "out.h5")
    manifest = dataset.manifest
    assert manifest["frame_number"].tolist() == [1, 2, 3, 4, 5] * 2
    assert manifest["rescale_slope"].tolist() == [1, 2, 3, 4, 5] * 2
    for row, image in enumerate(dataset.images):
        place, frame = divmod(row, N_FRAMES)
        expected = gradient(seed=10 * place + frame).astype(int) * (frame + 1)
        assert np.array_equal(image, expected)


def test_each_frame_has_its_place_among_the_others(root, tmp_path):
    pixels = [gradient(seed=n) for n in range(2)]
    dataset = instance(pixels[0], uid="1.2.9", NumberOfFrames=2, TriggerTime=None)
    dataset.PixelData = np.stack(pixels).tobytes()
    groups = []
    for number in (1, 2):
        item, content = Dataset(), Dataset()
        content.StackID, content.InStackPositionNumber = "A", 3 - number
        content.TemporalPositionIndex, content.DimensionIndexValues = 40 + number, [1, number]
        item.FrameContentSequence = Sequence([content])
        groups.append(item)
    dataset.PerFrameFunctionalGroupsSequence = Sequence(groups)
    (root / "c.dcm").write_bytes(dicom_bytes(dataset))
    (root / "d.dcm").write_bytes(dicom_bytes(instance(TemporalPositionIdentifier=4, uid="1.2.8")))
    lines = [f"P2,c.dcm,heart,c.txt,{n}" for n in (1, 2)]
    with (root / "table.csv").open("a") as table:
        table.write("\n".join([*lines, "P3,d.dcm,heart,c.txt,"]) + "\n")
    etl.build(root, tmp_path / "out.h5", OPTIONS, workers=1)
    manifest = open_dataset(tmp_path / "out.h5").manifest
    places = ("dimension_indices", "stack_id", "in_stack_position", "temporal_position")
    rows = list(zip(*(manifest[name].tolist() for name in places), strict=True))
    assert rows[-3:-1] == [("1\\1", "A", 2, 41), ("1\\2", "A", 1, 42)]
    assert rows[-1][:2] == rows[0][:2] == ("", "")
    assert np.isnan(rows[-1][2])
    assert rows[-1][3] == 4
    assert np.isnan(rows[0][2:]).all()


def test_a_file_is_parsed_and_read_once_for_all_frames(root, tmp_path, monkeypatch):
    done = Counter()
    read_groups, read_all = dicom_header.read_groups, render.read_all

    def count(name, function):
        def counted(*args, **options):
            done[name] += 1
            return function(*args, **options)

        return counted

    monkeypatch.setattr(dicom_header, "read_groups", count("parsed", read_groups))
    monkeypatch.setattr(render, "read_all", count("read", read_all))
    dicom_instance._opened.clear()
    etl.build(root, tmp_path / "out.h5", OPTIONS, workers=1)
    assert done == {"parsed": 2, "read": 2}
