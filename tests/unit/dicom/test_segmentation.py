import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from etl.dicom import segment_groups, segmentation
from etl.dicom.facts import object_class
from etl.dicom.segment_groups import Groups, SourceFrame, of_dataset, of_frames
from etl.dicom.segmentation import Segmentation
from etl.errors import SourceError
from etl.phantom.objects import Patient
from etl.phantom.objects import segmentation as make

SHARED = Path(os.environ.get("DICOM_ETL_REAL_DATA", Path(__file__).parents[4] / "shared" / "data"))
KINDS = ["BINARY", "FRACTIONAL", "LABELMAP"]
ENCODINGS = ["explicit", "implicit", "undefined lengths", "implicit, undefined lengths"]


def content(dataset, encoding="explicit"):
    if "undefined" in encoding:
        make_undefined(dataset)
    if "implicit" in encoding:
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def make_undefined(dataset):
    for element in dataset:
        if element.VR == "SQ":
            element.is_undefined_length = True
            for item in element.value:
                item.is_undefined_length_sequence_item = True
                make_undefined(item)


def by_pydicom(data):
    """Return a segmentation of which pydicom reads all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segmentation, "_scan", lambda _: None)
        return Segmentation(data)


def assert_reads_as_pydicom(data):
    quick, sure = Segmentation(data), by_pydicom(data)
    assert quick.drawings == sure.drawings
    assert quick.contents() == sure.contents()
    for place in range(len(sure.drawings)):
        assert (quick.mask(place, 0.5) == sure.mask(place, 0.5)).all()


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(32, 40), (33, 35)])  # in the other, no frame begins with a byte
def test_the_quick_way_reads_what_pydicom_reads(kind, encoding, size):
    one = Patient(0, *size, 10, 0)
    data = content(make(one, kind), encoding)
    assert segmentation._open_quickly(data) is not None
    assert_reads_as_pydicom(data)


@pytest.mark.real_data
@pytest.mark.parametrize("folder", ["dcmqi", "highdicom"])
def test_the_quick_way_reads_what_pydicom_reads_in_real_files(folder):
    if not (SHARED / "seg" / folder).is_dir():
        pytest.skip("no segmentations here: DICOM_ETL_REAL_DATA names the folder of seg/")
    n_quick = 0
    for path in sorted((SHARED / "seg" / folder).rglob("*.dcm")):
        data = path.read_bytes()
        if object_class(data) in segmentation.SEGMENTATIONS:
            assert_reads_as_pydicom(data)
            n_quick += segmentation._scan(data) is not None
    assert n_quick


def test_big_endian_is_left_to_pydicom():
    dataset = make(Patient(0, 32, 40, 10, 0), "BINARY")
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True, little_endian=False, implicit_vr=False)
    assert segmentation._scan(file.getvalue()) is None


def test_what_a_frame_lacks_is_shared_and_else_at_the_root():
    dataset = make(Patient(0, 32, 40, 10, 0), "BINARY")
    expected = Segmentation(content(dataset)).drawings
    shared = dataset.SharedFunctionalGroupsSequence[0]
    dataset.PixelSpacing = shared.PixelMeasuresSequence[0].PixelSpacing
    del shared.PixelMeasuresSequence
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        frame.PlaneOrientationSequence = shared.PlaneOrientationSequence
    del shared.PlaneOrientationSequence
    assert Segmentation(content(dataset)).drawings == expected


def test_a_frame_of_no_segment_is_refused():
    dataset = make(Patient(0, 32, 40, 10, 0), "BINARY")
    del dataset.PerFrameFunctionalGroupsSequence[1].SegmentIdentificationSequence
    with pytest.raises(SourceError, match="of no segment"):
        Segmentation(content(dataset))


@pytest.mark.parametrize("value", [b"1,5\\2\\3 ", b"1\\2 ", b"x\\2\\3 ", b""])
def test_an_odd_position_is_as_pydicom_has_it(value):
    dataset = make(Patient(0, 32, 40, 10, 0), "BINARY")
    data = content(dataset)
    place = data.index(struct.pack("<HH2s", 0x0020, 0x0032, b"DS")) + 8
    (length,) = struct.unpack_from("<H", data, place - 2)
    damaged = data[:place] + value.ljust(length) + data[place + length :]
    try:
        expected = by_pydicom(damaged).drawings
    except SourceError as error:
        with pytest.raises(SourceError) as caught:
            Segmentation(damaged)
        assert caught.value.message == error.message
    else:
        found = Segmentation(damaged).drawings
        assert repr(found) == repr(expected)  # NaN is not itself


def test_frames_that_repeat_are_read_again():
    one = Patient(0, 32, 40, 10, 0)
    small, big = make(one, "BINARY"), make(one, "BINARY")
    n_frames = int(big.NumberOfFrames)
    big.PerFrameFunctionalGroupsSequence = 20 * list(big.PerFrameFunctionalGroupsSequence)
    big.NumberOfFrames = 20 * n_frames
    big.PixelData = np.packbits(
        np.tile(np.unpackbits(np.frombuffer(big.PixelData, np.uint8), bitorder="little"), 20),
        bitorder="little",
    ).tobytes()
    found = Segmentation(content(big)).drawings
    assert [one.number for one in found] == 20 * [
        one.number for one in Segmentation(content(small)).drawings
    ]


@given(st.binary(max_size=60), st.integers(0, 2000), st.booleans())
def test_damaged_groups_are_none_or_as_pydicom_reads_them(garbage, place, implicit):
    encoding = "implicit" if implicit else "explicit"
    data = content(make(Patient(0, 16, 20, 4, 0), "BINARY"), encoding)
    found = segmentation._scan(data)
    assert found is not None
    groups = data[found[0].offset : found[0].offset + found[0].length]
    place %= len(groups)
    damaged = groups[:place] + garbage + groups[place + len(garbage) :]
    own = of_frames(damaged[: len(groups)], implicit=implicit)
    if own is not None:
        assert all(isinstance(one, Groups) for one in own)
        assert len(own) <= len(groups) // 8


def test_nothing_at_all_is_empty_groups():
    from pydicom.dataset import Dataset

    assert of_dataset(Dataset()) == Groups()
    assert of_frames(b"", implicit=True) == []
    assert Groups().over(Groups(number=3, source=SourceFrame("1", 2))) == Groups(number=3)
    assert np.isnan(Groups().plane.position).all()
    assert segment_groups.of_frames(b"\xfe\xff\0\xe0\0", implicit=True) is None


class Counted:
    """The bytes of a file, which notes what is read of them."""

    def __init__(self, data):
        self.data = data
        self.n_read = []

    def __len__(self):
        return len(self.data)

    def __getitem__(self, part):
        read = self.data[part]
        self.n_read.append(len(read))
        return read


@pytest.mark.parametrize("head_bytes", [(), (100,), (100, 5000), (1 << 30,)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_pixels_may_begin_anywhere(monkeypatch, kind, head_bytes):
    data = content(make(Patient(0, 33, 35, 10, 0), kind))
    expected = Segmentation(data)
    monkeypatch.setattr(segmentation, "_HEAD_BYTES", head_bytes)
    found = Segmentation(data)
    assert found.contents() == expected.contents()
    for place in range(len(expected.drawings)):
        assert (found.mask(place, 0.5) == expected.mask(place, 0.5)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_no_more_than_the_header_and_one_frame_are_read_at_once(monkeypatch, kind):
    data = content(make(Patient(0, 256, 256, 40, 0), kind))
    n_pixels = 256 * 256 // (8 if kind == "BINARY" else 1)
    header = segmentation._scan(data)[1].offset
    monkeypatch.setattr(segmentation, "_HEAD_BYTES", (header + 1,))
    counted = Counted(data)
    found = Segmentation(counted)
    found.contents()
    assert len(data) > 30 * n_pixels
    assert max(counted.n_read) <= header + n_pixels
    before = len(counted.n_read)
    masks = [found.mask(place, 0.5) for place in range(len(found.drawings))]
    assert set(counted.n_read[before:]) == {n_pixels}
    n_frames = len({one.frame for one in found.drawings})
    # Segments of one frame of a label map follow each other.
    assert len(counted.n_read) - before <= n_frames
    assert any(mask.any() for mask in masks)


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.501, 0.502, 1.0])
def test_a_share_is_compared_as_a_number_not_as_a_whole_one(threshold):
    dataset = make(Patient(0, 32, 40, 10, 0), "FRACTIONAL")
    values = np.arange(32 * 40, dtype=np.uint32).reshape(32, 40) % (
        int(dataset.MaximumFractionalValue) + 1
    )
    first = values.astype(np.uint8).tobytes()
    dataset.PixelData = first + dataset.PixelData[len(first) :]
    mask = Segmentation(content(dataset)).mask(0, threshold)
    assert (mask == (values / int(dataset.MaximumFractionalValue) >= threshold)).all()


@pytest.mark.parametrize("dtype", ["u1", "u2"])
@pytest.mark.parametrize("n_values", [1, 3, 16, 17, 200])
def test_the_values_of_a_frame_are_all_found(dtype, n_values):
    rng = np.random.default_rng(n_values)
    pixels = rng.permutation(np.arange(3000) % n_values + 7).astype(dtype).reshape(50, 60)
    assert segmentation._values_of(pixels) == list(range(7, 7 + n_values))
