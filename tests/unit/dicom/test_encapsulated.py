import io
import struct

import numpy as np
import pytest
from builders import dicom_bytes, instance
from pydicom.encaps import encapsulate, encapsulate_extended, fragment_frame
from pydicom.uid import RLELossless

from etl.dicom import header as dicom_header
from etl.dicom.encapsulated import find_frames
from etl.dicom.instance import read_instance
from etl.dicom.pixels import stored_values
from etl.errors import ImageError


def frames_of(value, n_frames):
    """Return the bytes of each frame that is found in a value of PixelData."""
    data = b"before" + value
    found = find_frames(io.BytesIO(data), 6, len(data), n_frames)
    return [b"".join(data[at : at + length] for at, length in frame) for frame in found]


def jpeg_like(number, length):
    return b"\xff\xd8" + bytes([number]) * length + b"\xff\xd9"


FRAMES = [jpeg_like(1, 40), jpeg_like(2, 60), jpeg_like(3, 50)]
END = b"\xfe\xff\xdd\xe0\0\0\0\0"


@pytest.mark.parametrize("fragments", [1, 2, 5])
@pytest.mark.parametrize("has_table", [False, True])
def test_frames_are_found_with_and_without_a_table(fragments, has_table):
    value = encapsulate(FRAMES, fragments_per_frame=fragments, has_bot=has_table) + END
    assert frames_of(value, 3) == FRAMES


@pytest.mark.parametrize("has_table", [False, True])
def test_one_frame_has_all_fragments_whatever_they_look_like(has_table):
    frame = FRAMES[0] + FRAMES[1]  # an end of image in its middle
    value = encapsulate([frame], fragments_per_frame=4, has_bot=has_table) + END
    assert frames_of(value, 1) == [frame]


def test_a_table_that_is_wrong_is_not_needed_where_each_frame_has_one_fragment():
    value = bytearray(encapsulate(FRAMES, has_bot=True) + END)
    value[8:20] = struct.pack("<3I", 0, 0, 0)
    assert frames_of(bytes(value), 3) == FRAMES


def test_an_extended_offset_table_is_not_needed():
    value, _, _ = encapsulate_extended(FRAMES)
    assert frames_of(value + END, 3) == FRAMES


def test_padding_behind_the_end_of_an_image_is_stepped_over():
    odd = [jpeg_like(n, 41) for n in range(4)]
    value = encapsulate(odd, fragments_per_frame=3, has_bot=False) + END
    assert [frame[:45] for frame in frames_of(value, 4)] == odd


BAD = {
    "two of three frames": (encapsulate(FRAMES, fragments_per_frame=2) + END, 4, "unreadable"),
    "no delimiter": (encapsulate(FRAMES), 3, "truncated"),
    "cut": (encapsulate(FRAMES)[:-20], 3, "truncated"),
    "nothing": (b"", 1, "truncated"),
    "no fragment": (encapsulate([b"ab"])[:12] + END, 1, "no-pixels"),
    "another tag": (encapsulate(FRAMES) + b"\xfe\xff\x0d\xe0\0\0\0\0", 3, "unreadable"),
    "an undefined length": (b"\xfe\xff\0\xe0\0\0\0\0\xfe\xff\0\xe0\xff\xff\xff\xff", 1, "unread"),
    "a table without end": (b"\xfe\xff\0\xe0\0\0\0\x70" + bytes(64), 1, "unreadable"),
}


@pytest.mark.parametrize("case", BAD)
def test_items_that_lead_nowhere_are_rejected(case):
    value, n_frames, code = BAD[case]
    with pytest.raises(ImageError) as caught:
        frames_of(value, n_frames)
    assert caught.value.code.startswith(f"image-{code}")


def images(n):
    return [np.random.default_rng(seed).integers(0, 9, (12, 14)).astype("<i2") for seed in range(n)]


def compressed(images):
    """Return a dataset of these frames, compressed."""
    dataset = instance(images[0], NumberOfFrames=len(images))
    dataset.PixelData = np.stack(images).tobytes()
    dicom_bytes(dataset)  # gives it the file meta information that compress needs
    dataset.compress(RLELossless, generate_instance_uid=False)
    return dataset


@pytest.mark.parametrize("n_frames", [1, 3])
def test_every_frame_of_a_file_is_decoded(n_frames):
    data = dicom_bytes(compressed(images(n_frames)), RLELossless)
    for number, image in enumerate(images(n_frames), 1):
        found = read_instance(io.BytesIO(data), number)
        assert np.array_equal(stored_values(data, found), image)
        assert found.number_of_frames == n_frames


def test_what_follows_encapsulated_pixels_is_not_looked_at(monkeypatch):
    (image,) = images(1)
    data = dicom_bytes(compressed([image]), RLELossless)
    for tail in (b"", b"\xfc\xff\xfc\xffOB\0\0\4\0\0\0pads", bytes(100)):
        found = read_instance(io.BytesIO(data + tail))
        assert np.array_equal(stored_values(data + tail, found), image)
        with monkeypatch.context() as patch:
            patch.setattr(dicom_header, "_scan", lambda *_: None)
            assert read_instance(io.BytesIO(data + tail)) == found


def test_fragments_of_a_frame_are_put_together():
    (image,) = images(1)
    dataset = compressed([image])
    (whole,) = frames_of(dataset.PixelData + END, 1)
    dataset.PixelData = encapsulate([whole], fragments_per_frame=3)
    dataset["PixelData"].VR = "OB"
    data = dicom_bytes(dataset, RLELossless)
    found = read_instance(io.BytesIO(data))
    assert len(found.storage.fragments) == len(list(fragment_frame(whole, 3))) == 3
    assert np.array_equal(stored_values(data, found), image)


def test_a_file_cut_in_its_fragments_is_truncated():
    data = dicom_bytes(compressed(images(1)), RLELossless)
    for n_bytes in (1, 8, 9, 60):
        with pytest.raises(ImageError) as caught:
            read_instance(io.BytesIO(data[:-n_bytes]))
        assert caught.value.code == "image-truncated"
