import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from builders import dicom_bytes, gradient, instance

from etl.dicom import inflate
from etl.dicom.instance import read_instance
from etl.dicom.pixels import stored_values
from etl.dicom.quick_scan import scan_meta
from etl.errors import ImageError

META = dicom_bytes(syntax="deflated")[: scan_meta(dicom_bytes(syntax="deflated"), 132, [])[1]]


def data_set(dataset=None):
    data = dicom_bytes(dataset)
    return data[scan_meta(data, 132, [])[1] :]


def deflated(content, behind=b""):
    packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
    return META + packer.compress(content) + packer.flush() + behind


def read(data):
    found = read_instance(io.BytesIO(data))
    return stored_values(data, found)


def peak(function, *args):
    """Return the most memory that a call holds beyond what was there, and its error."""
    tracemalloc.start()
    try:
        function(*args)
    except ImageError as error:
        return tracemalloc.get_traced_memory()[1], error
    finally:
        tracemalloc.stop()
    return None


ZEROS = 120_000_000


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (lambda: data_set() + bytes(ZEROS), "unpacks to more than its image"),
        (lambda: bytes(ZEROS), "has more than 33554432 bytes of header when inflated"),
        # PixelData that says to be 120 MB, of a header that needs 336 bytes
        (
            lambda: data_set()[:-340] + struct.pack("<I", ZEROS) + bytes(ZEROS),
            "PixelData has 120000000 bytes, expected 336",
        ),
    ],
    ids=["behind the pixels", "in the header", "in the pixels"],
)
def test_a_bomb_is_bounded_by_the_image(content, text):
    data = deflated(content())
    assert len(data) < 1_000_000
    n_bytes, error = peak(read, data)
    assert error.code == "image-unreadable"
    assert text in error.message
    limit = 100_000_000 if "header" in text else 10_000_000
    assert n_bytes < limit


def test_a_long_header_is_inflated_as_far_as_its_pixels():
    dataset = instance()
    dataset.private_block(0x0029, "ACME", create=True).add_new(1, "OB", bytes(3_000_000))
    assert np.array_equal(read(deflated(data_set(dataset))), gradient())


def test_a_header_out_of_the_ordinary_is_inflated_whole():
    content = data_set()
    falling = content.replace(b"\x28\0\x11\0US", b"\x28\0\x09\0US")
    with pytest.raises(ImageError, match="has no Columns"):
        read(deflated(falling))
    swapped = content.replace(b"\x20\0\x11\0", b"\x08\0\x11\0")
    assert np.array_equal(read(deflated(swapped)), gradient())


def test_elements_behind_the_pixels_are_fine():
    assert np.array_equal(read(deflated(data_set() + bytes(1000))), gradient())


DAMAGED = {
    # Most other bits change values, of which nobody can tell: the format has no checksum.
    "a block of no type": lambda data: (
        META + bytes([data[len(META)] | 0b110]) + data[len(META) + 1 :]
    ),
    "junk behind it": lambda data: data + b"junk",
    "a wrong checksum behind it": lambda data: data + struct.pack("<2I", 1, len(data_set())),
    "cut": lambda data: data[:-5],
    "no end": lambda data: data[:-1],
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_deflated_data_set_is_an_error(case):
    data = deflated(data_set())
    with pytest.raises(ImageError) as caught:
        read(DAMAGED[case](data))
    assert caught.value.code in {"image-unreadable", "image-truncated"}


def test_the_trailer_of_gzip_is_fine_where_it_holds():
    content = data_set()
    trailer = struct.pack("<2I", zlib.crc32(content), len(content))
    assert np.array_equal(read(deflated(content, trailer)), gradient())
    assert np.array_equal(read(deflated(content, b"\0")), gradient())


def test_frames_are_inflated_no_further_than_they_end():
    pixels = [gradient(seed=n) for n in range(3)]
    dataset = instance(pixels[0], NumberOfFrames=3)
    dataset.PixelData = np.stack(pixels).tobytes()
    data = deflated(data_set(dataset))
    for number, image in enumerate(pixels, 1):
        found = read_instance(io.BytesIO(data), number)
        assert np.array_equal(stored_values(data, found), image)


def test_what_is_not_deflated_is_an_error():
    with pytest.raises(ImageError, match="damaged"):
        inflate.whole(b"\x07" * 99)
