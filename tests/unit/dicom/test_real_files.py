"""Real files of other transfer syntaxes and of several frames, where they are at hand."""

import io
import os
from pathlib import Path

import numpy as np
import pydicom
import pytest

from etl.dicom.instance import read_instance
from etl.dicom.pixels import modality_values, stored_values

pytestmark = pytest.mark.real_data


@pytest.fixture(scope="module")
def folder():
    default = Path(__file__).parents[4] / "shared" / "data"
    folder = Path(os.environ.get("DICOM_ETL_REAL_DATA", default))
    if not (folder / "syntaxes").is_dir():
        pytest.skip("no real files here: DICOM_ETL_REAL_DATA names the folder of syntaxes/")
    return folder


def read(path, frame_number=None):
    data = path.read_bytes()
    found = read_instance(io.BytesIO(data), frame_number, stamp=path)
    return found, stored_values(data, found)


def values(found, stored):
    return modality_values(stored, found.pixel_format, "<f4")


def test_one_image_in_nine_files_of_seven_encodings_is_one_image(folder):
    paths = sorted((folder / "syntaxes").glob("same_image_*.dcm"))
    found = [read(path) for path in paths]
    assert len(paths) == 9
    assert len({instance.transfer_syntax_uid for instance, _ in found}) == 7
    for _, stored in found:
        assert np.array_equal(stored, found[0][1])
    assert found[0][1].shape == (384, 384)
    assert (found[0][1].min(), found[0][1].max()) == (0, 2362)


def test_frames_in_fragments_are_those_that_pydicom_decodes(folder):
    paths = sorted((folder / "syntaxes" / "fragments").glob("*.dcm"))
    assert len(paths) == 4
    for path in paths:
        found, stored = read(path)
        assert len(found.storage.fragments) > 1
        assert np.array_equal(stored, pydicom.dcmread(path).pixel_array)


def test_the_frames_of_an_enhanced_file_are_the_images_of_its_classic_files(folder):
    (path,) = (folder / "multiframe" / "philips" / "enhanced").glob("*.dcm")
    data = path.read_bytes()
    frames = {}
    for number in range(1, 213):
        frame = read_instance(io.BytesIO(data), number, stamp=path)
        assert frame.number_of_frames == 212
        frames[values(frame, stored_values(data, frame)).tobytes()] = frame
    classic = sorted((folder / "multiframe" / "philips" / "classic").rglob("*.dcm"))
    slopes, units = set(), set()
    for one in classic:
        found, stored = read(one)
        frame = frames.pop(values(found, stored).tobytes())
        assert frame.image_position == pytest.approx(found.image_position, rel=1e-14)
        assert frame.image_orientation == found.image_orientation
        assert frame.pixel_spacing == found.pixel_spacing
        assert frame.pixel_format == found.pixel_format
        assert frame.temporal_position == found.temporal_position
        assert frame.unit == found.unit
        units.add(frame.unit)
        slopes.add(frame.pixel_format.rescale_slope)
    assert len(classic) == 212
    assert frames == {}
    assert len(slopes) > 1
    assert units == {"no unit", "mrad"}  # magnitudes and phases


def test_enhanced_files_of_another_maker_have_the_frames_that_pydicom_reads(folder):
    for path in (folder / "multiframe" / "siemens_xa10").glob("*.dcm"):
        dataset = pydicom.dcmread(path)
        for number, groups in enumerate(dataset.PerFrameFunctionalGroupsSequence, 1):
            found, stored = read(path, number)
            assert np.array_equal(stored, dataset.pixel_array[number - 1])
            position = groups.PlanePositionSequence[0].ImagePositionPatient
            assert list(found.image_position) == list(map(float, position))
            content = groups.FrameContentSequence[0]
            assert found.dimension_indices == tuple(content.DimensionIndexValues)
            assert found.plane.is_known
