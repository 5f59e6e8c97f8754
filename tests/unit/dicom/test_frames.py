import io
import math
import struct

import numpy as np
import pytest
from builders import SYNTAXES, dicom_bytes, enhanced, gradient, group, groups, instance
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from etl.dicom import frames
from etl.dicom import header as dicom_header
from etl.dicom import instance as dicom_instance
from etl.dicom.instance import read_instance
from etl.dicom.pixels import modality_values, stored_values
from etl.errors import ImageError


def read(data, frame_number=None, stamp=None):
    return read_instance(io.BytesIO(data), frame_number, stamp)


def frame_groups(number):
    """Return functional groups of one frame, all with values of its own."""
    return groups(
        PixelMeasuresSequence=group(PixelSpacing=[number, number + 0.5]),
        PlanePositionSequence=group(ImagePositionPatient=[1, 2, 10 * number]),
        PlaneOrientationSequence=group(ImageOrientationPatient=[0, 1, 0, 0, 0, -1]),
        PixelValueTransformationSequence=group(RescaleIntercept=-number, RescaleSlope=number + 1),
        FrameContentSequence=group(
            StackID="A",
            InStackPositionNumber=number,
            TemporalPositionIndex=70 - number,
            DimensionIndexValues=[1, number],
        ),
        CardiacSynchronizationSequence=group(NominalCardiacTriggerDelayTime=12.5 * number),
    )


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize("n_frames", [1, 3])
def test_each_frame_has_its_own_attributes(syntax, undefined, n_frames):
    dataset = enhanced(n_frames, groups(), [frame_groups(n + 1) for n in range(n_frames)])
    for element in dataset.iterall():
        if element.VR == "SQ":
            element.is_undefined_length = undefined
            for item in element.value:
                item.is_undefined_length_sequence_item = undefined
    data = dicom_bytes(dataset, syntax)
    for number in range(1, n_frames + 1):
        found = read(data, number)
        assert found.pixel_spacing == (number, number + 0.5)
        assert found.image_position == (1, 2, 10 * number)
        assert found.image_orientation == (0, 1, 0, 0, 0, -1)
        assert found.pixel_format.rescale_slope == number + 1
        assert found.pixel_format.rescale_intercept == -number
        assert (found.stack_id, found.in_stack_position) == ("A", number)
        assert (found.temporal_position, found.trigger_time) == (70 - number, 12.5 * number)
        assert found.dimension_indices == (1, number)
        values = modality_values(stored_values(data, found), found.pixel_format, "<i4")
        expected = gradient(seed=number - 1).astype(int) * (number + 1) - number
        assert np.array_equal(values, expected)


def test_the_only_frame_needs_no_number():
    found = read(dicom_bytes(enhanced(1, groups(), [frame_groups(4)])))
    assert found.pixel_spacing == (4, 4.5)
    assert found.pixel_format.rescale_slope == 5


SLOPES = {
    "per frame": ("2", "3", "4", 2),
    "shared": (None, "3", "4", 3),
    "root": (None, None, "4", 4),
    "nowhere": (None, None, None, 1),
    "an empty one counts for nothing": ("", "3", "4", 3),
}


@pytest.mark.parametrize("case", SLOPES)
def test_a_value_is_the_frames_own_then_shared_then_the_roots(case):
    own, shared, root, expected = SLOPES[case]
    in_group = [
        groups()
        if slope is None
        else groups(PixelValueTransformationSequence=group(RescaleSlope=slope))
        for slope in (own, shared)
    ]
    attributes = {"RescaleSlope": root, "PixelSpacing": [5, 6]}
    data = dicom_bytes(enhanced(2, in_group[1], [in_group[0]] * 2, **attributes))
    found = read(data, 2)
    assert found.pixel_format.rescale_slope == expected
    assert found.pixel_spacing == (5, 6)


def test_attributes_of_converted_files_are_found():
    converted = groups(UnassignedPerFrameConvertedAttributesSequence=group(TriggerTime="40"))
    shared = groups(UnassignedSharedConvertedAttributesSequence=group(SliceLocation="-3.5"))
    found = read(dicom_bytes(enhanced(2, shared, [converted] * 2, SliceLocation=None)), 1)
    assert (found.trigger_time, found.slice_location) == (40, -3.5)


def test_shared_groups_are_enough():
    shared = groups(PixelMeasuresSequence=group(PixelSpacing=[2, 3]))
    found = read(dicom_bytes(enhanced(2, shared)), 2)
    assert found.pixel_spacing == (2, 3)
    assert math.isnan(found.in_stack_position)
    assert found.dimension_indices == ()


def test_groups_of_another_number_of_frames_are_contradictory():
    data = dicom_bytes(enhanced(3, groups(), [frame_groups(1)] * 2))
    with pytest.raises(ImageError, match="has 3 frames, but functional groups for 2"):
        read(data, 1)


def item(content):
    return b"\xfe\xff\0\xe0" + struct.pack("<I", len(content)) + content


def transformation(content):
    """Return the sequence of a Pixel Value Transformation with this value."""
    return b"\x28\0\x45\x91SQ\0\0" + struct.pack("<I", len(content)) + content


SLOPE = b"\x28\0\x53\x10DS\x02\0" + b"2 "


@pytest.mark.parametrize(
    "content",
    [
        b"\x28\0\x45\x91SQ\0\0\xff\xff\xff\xffno items",
        transformation(b"no items"),
        transformation(item(b"none")),
    ],
    ids=["no end", "no item", "no element"],
)
def test_groups_that_cannot_be_read_are_an_error(content):
    with pytest.raises(ImageError, match="functional groups cannot be read"):
        frames.read_groups(b"", item(content), implicit=False, little=True)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (transformation(item(SLOPE)), [b"2 "]),
        (transformation(b""), []),
        (transformation(item(b"")), []),
        (b"\x28\0\x45\x91SQ\0\0\xff\xff\xff\xff\xfe\xff\xdd\xe0\0\0\0\0", []),
    ],
    ids=["a slope", "no item", "an empty item", "no item up to a delimiter"],
)
def test_groups_may_be_empty(content, found):
    groups = frames.read_groups(item(content), b"", implicit=False, little=True)
    assert [element.value for element in groups.of_frame(1).values()] == found


CINE = {
    "one time for all": ({"FrameTime": "25"}, [100, 125, 150]),
    "a time for each": ({"FrameTimeVector": ["0", "20", "30"]}, [100, 120, 150]),
    "no time": ({}, [100, 100, 100]),
    "one time too few": ({"FrameTimeVector": ["0", "20"], "FrameTime": "5"}, [100, 120, 110]),
}


@pytest.mark.parametrize("case", CINE)
def test_a_plain_cine_has_the_roots_attributes_and_the_times_of_its_frames(case):
    times, expected = CINE[case]
    attributes = {"PixelSpacing": [1, 2], "TriggerTime": "100", **times}
    data = dicom_bytes(enhanced(3, **attributes))
    found = [read(data, number) for number in (1, 2, 3)]
    assert [one.trigger_time for one in found] == expected
    assert [one.pixel_spacing for one in found] == [(1, 2)] * 3


def test_a_classic_file_has_its_temporal_position():
    assert read(dicom_bytes(instance(TemporalPositionIdentifier=9))).temporal_position == 9
    assert math.isnan(read(dicom_bytes()).temporal_position)


def test_the_header_of_a_file_is_parsed_once_for_all_frames(monkeypatch):
    data = dicom_bytes(enhanced(3, groups(), [frame_groups(n) for n in (1, 2, 3)]))
    parsed = []
    read_groups = frames.read_groups
    monkeypatch.setattr(
        dicom_header, "read_groups", lambda *a, **k: parsed.append(1) or read_groups(*a, **k)
    )
    dicom_instance._opened.clear()
    assert [read(data, n, stamp="a").pixel_spacing[0] for n in (1, 2, 3)] == [1, 2, 3]
    assert len(parsed) == 1
    other = dicom_bytes(enhanced(2, groups(), [frame_groups(n) for n in (8, 9)]))
    assert read(other, 2, stamp="b").pixel_spacing[0] == 9
    assert read(data, 2).pixel_spacing[0] == 2
    assert len(parsed) == 3


def test_headers_are_kept_of_a_few_files_of_several_frames():
    dicom_instance._opened.clear()
    data = dicom_bytes(enhanced(2, groups(), [frame_groups(1)] * 2))
    for stamp in range(20):
        read(data, 1, stamp)
    assert list(dicom_instance._opened) == [(stamp, (), ()) for stamp in (16, 17, 18, 19)]
    read(dicom_bytes(), None, stamp="single")
    assert ("single", ()) not in dicom_instance._opened


@pytest.mark.parametrize("where", ["nowhere", "shared", "root"])
def test_a_frame_that_lost_its_slope_is_no_image(where):
    """Its stored values would pass for rescaled ones."""
    stack = np.stack([gradient(seed=number) for number in range(3)])
    dataset = instance(stack[0], PixelData=stack.tobytes(), NumberOfFrames=3)
    frame_items = [frame_groups(number) for number in (1, 2, 3)]
    del frame_items[1].PixelValueTransformationSequence
    dataset.PerFrameFunctionalGroupsSequence = Sequence(frame_items)
    own = {"RescaleSlope": 9, "RescaleIntercept": 4}
    shared = (
        groups(PixelValueTransformationSequence=group(**own)) if where == "shared" else Dataset()
    )
    dataset.SharedFunctionalGroupsSequence = Sequence([shared])
    if where == "root":
        dataset.RescaleSlope, dataset.RescaleIntercept = own.values()
    data = dicom_bytes(dataset)
    assert read(data, 1).pixel_format.rescale_slope == 2
    if where == "nowhere":
        with pytest.raises(ImageError, match="frame 2 has no RescaleSlope, which other frames"):
            read(data, 2)
    else:
        assert read(data, 2).pixel_format.rescale_slope == 9
