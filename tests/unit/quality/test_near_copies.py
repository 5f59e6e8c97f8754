import io
import math

import numpy as np
import pytest
from PIL import Image

from etl.quality import near_copies
from etl.quality.near_copies import (
    MAX_BITS,
    MIN_CORRELATION,
    NO_HASH,
    find_near_copies,
    hashed_cells,
    image_hashes,
    similarity,
)


def image_hash(image):
    return tuple(image_hashes([hashed_cells(image)])[0].tolist())


def textured(seed, size=(256, 256)):
    """Return a random image with details of all sizes, as images of a body have them."""
    rng = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None]
    spectrum = np.fft.rfft2(rng.normal(size=size)) / (np.hypot(rows, columns) + 1 / 64) ** 1.5
    image = np.fft.irfft2(spectrum, s=size)
    return np.rint(600 + 150 * image / image.std()).clip(0, 4000).astype(np.int16)


def in_8_bits(image):
    return np.rint(image * (255 / image.max())).astype(np.int16)


def jpeg(image):
    file = io.BytesIO()
    Image.fromarray(in_8_bits(image).astype(np.uint8)).save(file, "JPEG", quality=50)
    return np.asarray(Image.open(file)).astype(np.int16)


def zoomed(image, n_pixels):
    rows, columns = image.shape
    box = (n_pixels, n_pixels, columns - n_pixels, rows - n_pixels)
    picture = Image.fromarray(image.astype(np.float32))
    return np.asarray(picture.resize((columns, rows), Image.Resampling.BILINEAR, box=box))


CHANGES = {
    "scaled": lambda image: 0.37 * image + 20,
    "float32": lambda image: image.astype(np.float32) / 1000,
    "8 bits": in_8_bits,
    "windowed": lambda image: image.clip(*np.percentile(image, [4, 96]).astype(np.int16)),
    "gamma": lambda image: 100 * image**0.6,
    "JPEG": jpeg,
    "noise": lambda image: image + np.random.default_rng(0).normal(0, 40, image.shape),
    "shifted": lambda image: np.roll(image, (2, -2), (0, 1)),
    "cropped": lambda image: zoomed(image, 4),
}


def n_bits(one, other):
    pairs = zip(image_hash(one), image_hash(other), strict=True)
    return sum((a ^ b).bit_count() for a, b in pairs)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("size", [(256, 256), (192, 256), (333, 217), (64, 64)], ids=str)
def test_a_copy_is_close_however_it_was_exported(change, size):
    if min(size) < 100 and change in (CHANGES["shifted"], CHANGES["cropped"]):
        pytest.skip("2 pixels are much there")
    image = textured(1, size)
    copy = change(image)
    assert n_bits(image, copy) <= MAX_BITS
    assert similarity(image, copy) >= MIN_CORRELATION


def test_different_images_are_far_apart():
    images = [textured(seed) for seed in range(20)]
    pairs = [(one, other) for k, one in enumerate(images) for other in images[:k]]
    assert min(n_bits(*pair) for pair in pairs) > 1.5 * MAX_BITS
    assert max(similarity(*pair) for pair in pairs[:40]) < 0.6 * MIN_CORRELATION


@pytest.mark.parametrize(
    "image", [np.zeros((256, 256), np.int16), np.full((64, 64), np.nan, np.float32), np.eye(31)]
)
def test_images_that_show_too_little_have_no_hash(image):
    assert image_hash(image) == NO_HASH


def test_the_hash_of_an_image_stays_what_it_is():
    """Written out: a file that is updated compares hashes of two versions."""
    y, x = np.mgrid[:64, :64]
    image = (1000 + 300 * np.sin(x / 5) * np.cos(y / 7) + x * y / 4).astype(np.int16)
    assert [f"{part:016x}" for part in image_hash(image)] == PINNED


PINNED = ["da937b70b6277571", "8b4e0a8a0d1b423b"]


def plain_hash(cells):
    """Return the hash of one image, cell by cell and bit by bit."""
    ordered = sorted(cells.ravel().tolist())
    low, high = ordered[20], ordered[-21]  # a fiftieth of 1024 at either end
    if low == high:
        return [0, 0]
    cut = np.array([[min(max(one, low), high) - low for one in line] for line in cells.tolist()])
    cosines = [[math.cos(k * (n + 0.5) * math.pi / 32) for n in range(32)] for k in range(16)]
    whole = np.rint(np.array(cosines, np.float32) * 1024).astype(np.int64)
    spectrum = whole @ cut @ whole.T
    places = sorted((y + x, y, x) for y in range(16) for x in range(16))[1:129]
    values = [int(spectrum[y, x]) for _, y, x in places]
    middle = sorted(values)[64]
    bits = [value > middle for value in values]
    numbers = [sum(bits[16 * k + byte] << 7 - k for k in range(8)) for byte in range(16)]
    return [int.from_bytes(numbers[:8], "little"), int.from_bytes(numbers[8:], "little")]


def test_hashes_of_images_together_are_those_of_each_the_plain_way():
    images = [textured(seed) for seed in range(5)]
    images += [np.full((40, 40), 7, np.int16), np.eye(31), textured(9, (64, 99)).astype(np.float32)]
    images += [np.random.default_rng(0).integers(0, 1 << 16, (256, 300), np.uint16)]
    cells = [hashed_cells(image) for image in images]
    expected = [[0, 0] if one is None else plain_hash(one) for one in cells]
    assert image_hashes(cells).tolist() == expected
    assert [list(image_hash(image)) for image in images] == expected  # each by itself
    assert expected.count([0, 0]) == 2
    assert image_hashes([]).shape == (0, 2)


def test_the_correlation_over_shifts_is_that_of_the_whole_inverse_transform():
    rng = np.random.default_rng(0)
    for _ in range(20):
        product = (rng.normal(size=(64, 33)) + 1j * rng.normal(size=(64, 33))).astype(np.complex64)
        finer = np.zeros((128, 65), np.complex64)
        finer[:32, :33], finer[-32:, :33] = product[:32], product[32:]
        whole = 4 * np.fft.irfft2(finer, s=(128, 128))
        shifts = range(-16, 17)
        expected = max(float(whole[y, x]) for y in shifts for x in shifts)
        assert near_copies._correlation(product) == pytest.approx(expected, rel=1e-6)


# -------------------------------------------------------------------------------------- of all rows


def found(images, patients, is_compared=None):
    """Return (row, other) of the near copies among images."""
    hashes = np.array([image_hash(image) for image in images], np.uint64)
    chosen = np.ones(len(images), bool) if is_compared is None else np.array(is_compared)
    near = find_near_copies(hashes, np.array(patients), chosen, images.__getitem__)
    assert all(MIN_CORRELATION <= one.correlation <= 1.001 for one in near)
    return [(one.row, one.other) for one in near]


def test_copies_of_another_patients_images_are_found_in_both():
    images = [textured(seed) for seed in range(4)]
    images += [in_8_bits(images[2]), zoomed(images[0], 4)]
    assert found(images, [0, 0, 1, 1, 2, 2]) == [(0, 5), (2, 4), (4, 2), (5, 0)]


def test_copies_in_one_patient_and_rows_that_are_not_compared_are_none():
    images = [textured(0), in_8_bits(textured(0)), textured(1), in_8_bits(textured(1))]
    assert found(images, [0, 0, 1, 1]) == []
    assert found(images, [0, 1, 2, 3], [True, True, False, True]) == [(0, 1), (1, 0)]


def test_images_of_one_patient_or_none_with_a_hash_are_no_near_copies():
    assert found([np.zeros((64, 64), np.int16)] * 2, [0, 1]) == []
    assert found([textured(0)], [0]) == []
    assert found([textured(0), np.zeros((256, 256), np.int16)], [0, 1]) == []


def cine(seed, n_phases):
    """Return images that change a little from one to the next."""
    first, last = textured(seed).astype(float), textured(1000 + seed).astype(float)
    shares = np.linspace(0, 0.3, n_phases)
    return [((1 - share) * first + share * last).astype(np.int16) for share in shares]


def test_the_neighbours_of_one_copied_image_are_not_found():
    mine = cine(0, 6)
    images = [*mine, *cine(1, 5), in_8_bits(mine[2])]
    assert found(images, [0] * 6 + [1] * 6) == [(2, 11), (11, 2)]


def test_of_a_copied_patient_every_row_is_found():
    mine = cine(0, 6)
    images = [*mine, *cine(1, 6), *map(in_8_bits, mine)]
    rows = [row for row, _ in found(images, [0] * 6 + [1] * 6 + [2] * 6)]
    assert rows == [*range(6), *range(12, 18)]


def test_of_many_rows_neighbours_in_the_orders_of_their_hashes_are_compared(monkeypatch):
    for name, value in (("_FEW_ROWS", 10), ("_BLOCK", 8), ("_N_NEIGHBOURS", 4)):
        monkeypatch.setattr(near_copies, name, value)
    images = [textured(seed) for seed in range(40)]
    images += [in_8_bits(image) for image in images[::8]]
    expected = [*range(0, 40, 8), *range(40, 45)]
    assert [row for row, _ in found(images, range(45))] == expected


def test_old_and_new_numpy_count_the_same_bits(monkeypatch):
    images = [textured(seed) for seed in range(6)]
    images += [in_8_bits(image) for image in images[:3]]
    expected = found(images, range(9))
    assert [row for row, _ in expected] == [0, 1, 2, 6, 7, 8]
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert found(images, range(9)) == expected


def test_images_that_are_alike_but_no_copies_are_looked_at_only_so_often(monkeypatch):
    looked = []
    monkeypatch.setattr(near_copies, "_most_misses", lambda _n_rows: 3)
    monkeypatch.setattr(near_copies, "similarity", lambda *_pair: looked.append(1) or 0.5)
    images = [textured(seed) for seed in range(8)] + [
        in_8_bits(textured(seed)) for seed in range(8)
    ]
    assert found(images, range(16)) == []
    assert len(looked) == 3
