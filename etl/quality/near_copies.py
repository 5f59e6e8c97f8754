"""Images of different patients that show the same: exports with other values, sizes or edges.

A worker reduces each image to a hash of 128 bits. Rows of different patients
whose hashes differ in few bits are candidates; the two images as written decide. Neighbours in a
cine are alike by nature, so that rows of one patient are never compared.
"""

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from etl.model import Image

_Floats: TypeAlias = npt.NDArray[np.float32]
_Integers: TypeAlias = npt.NDArray[np.int64]
_Hashes: TypeAlias = npt.NDArray[np.uint64]
Cells: TypeAlias = _Integers  # (32, 32): an image, coarsely
Hash: TypeAlias = tuple[int, int]

NO_HASH: Final = (0, 0)  # of an image too small or too flat to tell it from others

# ---------------------------------------------------------------------------------- the thresholds

# Of 128 bits. Copies with other values, compressed, or moved or zoomed by 1 to 3 % differ in 22 at
# most. Three real patients' images differ in 40 or more, those of phantom patients in 4 or more.
MAX_BITS: Final = 24
# Three real patients' images correlate up to 0.45, those of 60 phantom patients up to 0.9. Such
# copies reach 0.96 and more; less only where a window cuts off a tenth at either end.
MIN_CORRELATION: Final = 0.93
_MIN_UNZOOMED: Final = 0.5  # less than that, no small zoom makes a copy of
COPIED_ROWS: Final = 3  # that are each other's likeliest partners, in a patient that is a copy

_HASHED: Final = 32  # cells along each side of a hashed image, and the least size
_CLIPPED: Final = 0.02  # of the values at either end that count as the lowest and the highest
_GRID: Final = 64  # cells along each side of compared images
_FINE, _COARSE = 3, 7  # cells: details between these sizes are compared
_ZOOMS: Final = (1.0, 0.97, 1.03, 0.94, 1.06)
_MAX_SHIFT: Final = _GRID // 8  # cells
_MOST_SAMPLES: Final = 4  # lines of pixels that a cell averages
_N_BYTES: Final = 16  # of a hash
_N_LEVELS: Final = 1 << 15
_NO_BITS: Final = 255  # more than a hash has
_FEW_ROWS: Final = 2048  # that are compared all with all
_BLOCK: Final = 128  # rows that are compared with others at once
_N_NEIGHBOURS: Final = 64  # of more rows, sorted by hash, those before and after to compare with

# ---------------------------------------------------------------------------------------- the hash


def hashed_cells(image: Image) -> Cells | None:
    """Return what `image_hashes` needs of an image; None where it is too small."""
    return _averages(image, _HASHED) if min(image.shape) >= _HASHED else None


def image_hashes(images: Sequence[Cells | None]) -> _Hashes:
    """Return 128 bits that are alike for images that look alike; `NO_HASH` where nothing tells.

    They say which of the lowest frequencies are above the median, so that brightness, contrast and
    fine details hardly count. All sums are of whole numbers and exact, so that every processor
    finds the same bits.

    Parameters
    ----------
    images : sequence of Cells or None
        `hashed_cells` of each image. Together they take a third of the time of one by one.

    Returns
    -------
    uint64 array, shape (n, 2)
    """
    hashes = np.full((len(images), 2), NO_HASH, np.uint64)
    cells = [one for one in images if one is not None]
    if not cells:
        return hashes
    averages, _ = _clipped(np.stack(cells))
    spectra = (_COSINES @ averages.astype(np.float64) @ _COSINES.T).reshape(len(cells), -1)
    lowest = spectra[:, _LOWEST]
    middle = np.sort(lowest, axis=1)[:, lowest.shape[1] // 2]
    bits = lowest > middle[:, None]  # none where the image is flat
    # Each byte has low and high ones: in a byte of the lowest, all images would be alike.
    mixed = np.packbits(bits.reshape(len(cells), -1, _N_BYTES), axis=1).tobytes()
    found = np.frombuffer(mixed, "<u8").reshape(-1, 2)
    hashes[[one is not None for one in images]] = found
    return hashes


def _averages(image: Image, n_cells: int) -> _Integers:
    """Return a grid of sums over some lines of pixels each way: means, but for a factor."""
    rows, columns = (_sampled(size, n_cells) for size in image.shape)
    lines = _whole(image.take(rows, axis=0)).reshape(n_cells, -1, image.shape[1])
    # 16 pixels of 16 bits fit 32 bits.
    dtype = np.int64 if lines.dtype.itemsize > 2 else np.int32  # noqa: PLR2004
    summed: _Integers = np.add.reduce(lines, axis=1, dtype=dtype)
    cells, n_samples = summed.take(columns, axis=1), len(columns) // n_cells
    total = cells[:, ::n_samples].copy()  # faster than a sum over a short last axis
    for place in range(1, n_samples):
        total += cells[:, place::n_samples]
    return total


def _whole(pixels: Image) -> Image:
    """Return whole numbers; floating-point ones as the levels between lowest and highest."""
    if pixels.dtype.kind != "f":
        return pixels
    low, high = float(pixels.min()), float(pixels.max())
    if not low < high:  # NaN too
        return np.zeros(pixels.shape, np.int16)
    return np.asarray((pixels - low) * (_N_LEVELS / (high - low)), np.int32)


@functools.cache
def _sampled(size: int, n_cells: int) -> _Integers:
    """Return the lines of pixels that are looked at, the same number of each cell, in order."""
    n_samples = min(max(size // n_cells, 1), _MOST_SAMPLES)
    return (np.arange(n_cells * n_samples) * 2 + 1) * size // (2 * n_cells * n_samples)


def _clipped(averages: _Integers) -> tuple[_Integers, npt.NDArray[np.bool_]]:
    """Return averages of images from 0 on, their ends cut off, and which images are flat."""
    ordered = np.sort(averages.reshape(len(averages), -1), axis=1)
    n_cut = round(_CLIPPED * ordered.shape[1])
    low, high = (ordered[:, place, None, None] for place in (n_cut, -1 - n_cut))
    clipped: _Integers = np.maximum(averages, low)
    np.minimum(clipped, high, out=clipped)
    clipped -= low
    return clipped, (low == high).ravel()


def _cosines(n_frequencies: int, n_values: int) -> _Floats:
    """Return the first rows of the discrete cosine transform."""
    places = (np.arange(n_values) + 0.5) * math.pi / n_values
    return np.asarray(np.cos(np.outer(np.arange(n_frequencies), places)), np.float32)


_COSINES: Final = np.rint(_cosines(16, _HASHED) * 1024).astype(np.float64)  # exact in sums
# By the sum of both frequencies; without the mean, which other values change.
_LOWEST: Final = np.argsort(np.add.outer(np.arange(16), np.arange(16)).ravel(), kind="stable")[
    1 : 8 * _N_BYTES + 1
]

# ---------------------------------------------------------------------------------- the candidates


class NearCopy(NamedTuple):
    """Two rows of different patients that show the same."""

    row: int
    other: int
    correlation: float


def find_near_copies(
    hashes: _Hashes,
    patients: _Integers,
    is_compared: npt.NDArray[np.bool_],
    image: Callable[[int], Image],
) -> list[NearCopy]:
    """Return the rows that show what another patient's row shows, each with its likeliest partner.

    Parameters
    ----------
    hashes : uint64 array, shape (n, 2)
    patients : int64 array, shape (n,)
        Equal for rows of one patient.
    is_compared : bool array, shape (n,)
    image : callable
        Row → modality values.
    """
    rows = np.flatnonzero(is_compared & hashes.any(axis=1))
    if (patients[rows] == patients[rows[:1]]).all():  # of one patient, or none
        return []
    partner, n_bits = _closest(hashes[rows], patients[rows])
    near = np.flatnonzero(n_bits <= MAX_BITS)
    ordered = near[np.argsort(n_bits[near], kind="stable")]
    is_mutual = partner[partner[ordered]] == ordered
    found = _Found(image, _most_misses(len(rows)))
    found.look_at(rows[ordered[is_mutual]], rows[partner[ordered[is_mutual]]])
    # The neighbours of one copied image are like the copy, too; of a copied patient each row is.
    n_shared = Counter(
        (int(patients[one.row]), int(patients[one.other])) for one in found.by_row.values()
    )
    others = [
        (row, other)
        for row, other in zip(
            rows[ordered[~is_mutual]].tolist(),
            rows[partner[ordered[~is_mutual]]].tolist(),
            strict=True,
        )
        if n_shared[int(patients[row]), int(patients[other])] >= COPIED_ROWS
    ]
    found.look_at(*np.array(others, np.int64).reshape(-1, 2).T)
    return [found.by_row[row] for row in sorted(found.by_row)]


class _Found:
    """Near copies by row, as more and more pairs are compared.

    Images that are no copies take longest: where many look alike, not all are compared.
    """

    def __init__(self, image: Callable[[int], Image], n_misses: int) -> None:
        self.by_row: dict[int, NearCopy] = {}
        self._image = image
        self._n_misses_left = n_misses

    def look_at(self, rows: _Integers, others: _Integers) -> None:
        """Compare the images of pairs of rows, unless both rows are found."""
        for row, other in zip(rows.tolist(), others.tolist(), strict=True):
            if self._n_misses_left and not (row in self.by_row and other in self.by_row):
                correlation = similarity(self._image(row), self._image(other))
                if correlation >= MIN_CORRELATION:
                    self.by_row.setdefault(row, NearCopy(row, other, correlation))
                    self.by_row.setdefault(other, NearCopy(other, row, correlation))
                else:
                    self._n_misses_left -= 1


def _most_misses(n_rows: int) -> int:
    return 10 + n_rows // 400


def _closest(hashes: _Hashes, patients: _Integers) -> tuple[_Integers, _Integers]:
    """Return, for each hash, the place of a close one of another patient, and the bits between."""
    patients = patients.astype(np.int32)  # sooner compared
    partner = np.full(len(hashes), -1, np.int64)
    closest = np.full(len(hashes), _NO_BITS, np.int64)
    for some, others in _compared(hashes):
        n_bits = _n_bits(hashes[some], hashes[others])
        n_bits[patients[some][:, None] == patients[others]] = _NO_BITS
        best = n_bits.argmin(axis=1)
        n_best = n_bits[np.arange(len(some)), best]
        is_closer = n_best < closest[some]
        closest[some[is_closer]] = n_best[is_closer]
        partner[some[is_closer]] = others[best[is_closer]]
    return partner, closest


def _compared(hashes: _Hashes) -> Iterator[tuple[_Integers, _Integers]]:
    """Yield places, and the places to compare all of them with.

    Of many hashes, each is compared with its neighbours in 16 orders: by the bits from each byte
    on. Of 20,000 hashes, those with a byte in common are neighbours, which 29 in 30 pairs have
    that differ in 24 bits, and nearly all that differ in fewer.
    """
    if len(hashes) <= _FEW_ROWS:
        every = np.arange(len(hashes))
        yield from ((every[start : start + _BLOCK], every) for start in every[::_BLOCK].tolist())
        return
    parts = np.ascontiguousarray(hashes).view(np.uint8)
    for first in range(_N_BYTES):
        keys = np.ascontiguousarray(np.roll(parts, -first, axis=1)[:, :8]).view(">u8")[:, 0]
        order = np.argsort(keys, kind="stable")
        for start in range(0, len(order), _BLOCK):
            around = slice(max(start - _N_NEIGHBOURS, 0), start + _BLOCK + _N_NEIGHBOURS)
            yield order[start : start + _BLOCK], order[around]


def _n_bits(some: _Hashes, others: _Hashes) -> npt.NDArray[np.uint8]:
    """Return the number of bits between each of some hashes and each of others."""
    words = zip(some.T.copy(), others.T.copy(), strict=True)  # each in one piece of memory
    first, second = (_n_set(one[:, None] ^ other) for one, other in words)
    return np.asarray(first + second, np.uint8)


def _n_set(values: _Hashes) -> npt.NDArray[np.uint8]:
    """Return the number of set bits of each value."""
    if hasattr(np, "bitwise_count"):  # from NumPy 2 on
        return np.asarray(np.bitwise_count(values), np.uint8)
    parts = _n_set_of_16()[values.view(np.uint16)].reshape(*values.shape, 4)
    return np.asarray(parts.sum(axis=-1, dtype=np.uint8))


@functools.cache
def _n_set_of_16() -> npt.NDArray[np.uint8]:
    """Return the number of set bits of each value of 16 bits."""
    return np.array([value.bit_count() for value in range(1 << 16)], np.uint8)


# --------------------------------------------------------------------------------- the two images


def similarity(one: Image, other: Image) -> float:
    """Return the correlation of the details of two images, where they fit best.

    Tried are zooms about the centre and shifts; only until it is `MIN_CORRELATION`.
    """
    clipped, is_flat = _clipped(np.stack([_averages(image, _GRID) for image in (one, other)]))
    if is_flat.any():
        return 0.0
    first, second = (np.asarray(part / part.max(), np.float32) for part in clipped)
    details = _details(first, 1.0)
    best = float((details * _details(second, 1.0)).sum())
    if best >= MIN_CORRELATION:
        return best
    spectrum = np.fft.rfft2(details)
    for zoom in _ZOOMS:
        if best >= MIN_CORRELATION or (zoom != 1.0 and best < _MIN_UNZOOMED):
            break
        moved = np.fft.rfft2(_details(second, zoom))
        best = max(best, _correlation(spectrum * moved.conj()))
    return best


def _correlation(product: npt.NDArray[np.complexfloating]) -> float:
    """Return the best correlation over shifts by half cells, from the product of two spectra."""
    half = _GRID // 2
    finer = np.zeros((2 * _GRID, half + 1), product.dtype)
    finer[:half], finer[-half:] = product[:half], product[half:]
    # As np.fft.irfft2 does, without the rows of other shifts.
    lines = np.fft.ifft(finer, axis=0)[_SHIFTS]
    correlations = 4 * np.fft.irfft(lines, 2 * _GRID, axis=1)
    return float(correlations[:, _SHIFTS].max())


def _details(averages: _Floats, zoom: float) -> _Floats:
    """Return what is between fine and coarse, fading to the edges, with length 1."""
    fine, coarse = _filter(_FINE, zoom), _filter(_COARSE, zoom)
    details = (fine @ averages @ fine.T - coarse @ averages @ coarse.T) * _FADE
    details -= details.mean()
    return np.asarray(details / max(float(np.linalg.norm(details)), 1e-6), np.float32)


@functools.cache  # as most builds find no pair to compare
def _filter(n_cells: int, zoom: float) -> _Floats:
    """Return the matrix that zooms a line of cells about its centre, and averages over some."""
    centre = (_GRID - 1) / 2
    places = np.clip((np.arange(_GRID) - centre) / zoom + centre, 0, _GRID - 1)
    sampled = np.maximum(1 - np.abs(places[:, None] - np.arange(_GRID)), 0)
    window = np.abs(np.subtract.outer(np.arange(_GRID), np.arange(_GRID))) <= n_cells // 2
    averaged = window / window.sum(axis=1, keepdims=True)
    return np.asarray(averaged @ sampled, np.float32)


_FADE: Final = np.sqrt(np.outer(*[np.hanning(_GRID + 2)[1:-1]] * 2)).astype(np.float32)
_SHIFTS: Final = np.arange(-2 * _MAX_SHIFT, 2 * _MAX_SHIFT + 1)  # half cells
