"""Statistics of an image, the same to the last bit on every machine.

Floating point sums depend on their order, which libraries choose by processor; so sums of whole
numbers are exact integers here, and the others run in one stated order.
"""

import math
from typing import Final, NamedTuple, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from etl.model import Image

_SMALL: Final = 2  # bytes of a pixel of which all values may be counted
_HISTOGRAM_SPAN: Final = 1 << 17  # value span up to which counting by value is the fastest
_INT64_SAFE: Final = 1 << 62
_BLOCK: Final = 8192  # numbers that stay in the processor's cache
_COUNTED: Final = 1 << 16  # pixels that are counted at a time, for the same reason
_MANTISSA_BITS: Final = 53  # of float64
_LOWEST_UNIT: Final = -1000  # from here on float64 has fewer bits

_Values: TypeAlias = npt.NDArray[np.int64] | npt.NDArray[np.float64]
_Counts: TypeAlias = npt.NDArray[np.int64]


class ImageStatistics(NamedTuple):
    """Of one image's modality values but its padding; the deviation is the population's."""

    minimum: float
    maximum: float
    mean: float
    std: float
    p01: float
    p99: float
    n_padding: int = 0  # pixels
    padding_minimum: float = math.nan
    padding_maximum: float = math.nan


def image_statistics(
    image: Image,
    padding: tuple[float, float] | None = None,
    beyond: npt.NDArray[np.bool_] | None = None,
) -> ImageStatistics:
    """Return the statistics of one image.

    Percentiles interpolate linearly between the two nearest values, as ``numpy.percentile`` does.

    Parameters
    ----------
    padding : (float, float), optional
        Lowest and highest value of the pixels that are padding; the statistics leave them out,
        unless the image has no others.
    beyond : bool array, shape (rows, columns), optional
        Pixels that are padding whatever their value, not all of them.
    """
    n_padding = 0
    if beyond is not None and beyond.any():
        n_padding = int(np.count_nonzero(beyond))
        image = image[~beyond]
    values, counts = _histogram(image)
    if padding is not None:
        low, high = (float(image.dtype.type(end)) for end in padding)
        values, counts, n_found = _without(values, counts, low, high)
        n_padding += n_found
    below = counts.cumsum()
    mean, std = _moments(values, counts, int(below[-1]))
    p01, p99 = _percentiles(values, below, (1, 99))
    return ImageStatistics(
        float(values[0]),
        float(values[-1]),
        mean,
        std,
        p01,
        p99,
        n_padding,
        *(padding or (math.nan, math.nan)),
    )


def pooled_moments(
    means: npt.NDArray[np.float64], stds: npt.NDArray[np.float64]
) -> tuple[float, float]:
    """Return mean and deviation over all rows from those of each; all rows have equal weight."""
    n_rows = len(means)
    mean = math.fsum(means.tolist()) / n_rows
    within = math.fsum((stds * stds).tolist())
    between = math.fsum(((means - mean) ** 2).tolist())
    return mean, math.sqrt((within + between) / n_rows)


def _histogram(image: Image) -> tuple[_Values, _Counts]:
    """Return values of an image in order, its extremes among them, and how often each occurs."""
    if image.dtype.kind != "f":
        lowest = int(image.min())
        if image.dtype.itemsize <= _SMALL or int(image.max()) - lowest < _HISTOGRAM_SPAN:
            counts = _counts(image, lowest)
            return np.arange(lowest, lowest + len(counts)), counts
    pixels = np.sort(image, axis=None)
    first = np.flatnonzero(np.concatenate([[True], pixels[1:] != pixels[:-1]]))
    counts = np.diff(first, append=len(pixels))
    if image.dtype.kind == "f":
        return pixels[first].astype(np.float64), counts
    return pixels[first].astype(np.int64), counts


def _counts(image: Image, lowest: int) -> _Counts:
    """Return how often each value from the lowest to the highest one of an image occurs."""
    start = 0
    if lowest < 0 or image.dtype.itemsize > _SMALL:  # else they are places to count at already
        start, unsigned = lowest, np.dtype(f"u{image.dtype.itemsize}")
        image = np.subtract(image, image.dtype.type(start)).view(unsigned)  # modulo 2**bits
    pixels = image.ravel()
    counts = np.zeros(0, np.int64)
    for first in range(0, len(pixels), _COUNTED):
        # Cast here: np.bincount itself casts by a slower way.
        part = pixels[first : first + _COUNTED].astype(np.int64)
        before, counts = counts, np.bincount(part, minlength=len(counts))
        counts[: len(before)] += before
    return counts[lowest - start :]


def _without(
    values: _Values, counts: _Counts, low: float, high: float
) -> tuple[_Values, _Counts, int]:
    """Return a histogram without the values from `low` to `high`, and how many those were.

    It is the same histogram where no others are left.
    """
    is_padding = (values >= low) & (values <= high)
    n_padding = int(counts[is_padding].sum())
    kept = np.flatnonzero((counts > 0) & ~is_padding)
    if n_padding == 0 or len(kept) == 0:
        return values, counts, n_padding
    return values[kept], counts[kept], n_padding


def _moments(values: _Values, counts: _Counts, n: int) -> tuple[float, float]:
    """Return mean and deviation of `n` pixels."""
    if values.dtype.kind == "f":
        return _moments_of_floats(cast("npt.NDArray[np.float64]", values), counts, n)
    return _moments_of_whole_numbers(cast("npt.NDArray[np.int64]", values), counts, n)


def _moments_of_floats(
    values: npt.NDArray[np.float64], counts: _Counts, n: int
) -> tuple[float, float]:
    with np.errstate(all="ignore"):  # in a damaged file they may be infinite, or no numbers
        mean = exact_sum(values * counts) / n
        deviations = values - mean
        return mean, math.sqrt(exact_sum(deviations * deviations * counts) / n)


def _moments_of_whole_numbers(
    values: npt.NDArray[np.int64], counts: _Counts, n: int
) -> tuple[float, float]:
    largest = max(abs(int(values[0])), abs(int(values[-1])))
    if largest * largest * n < _INT64_SAFE:
        return moments_of_sums(int(values @ counts), int((values * values) @ counts), n)
    # The squares of halves, of 16 bits each, are small enough to be added.
    high, low = values >> 16, values & 0xFFFF
    total = (int(high @ counts) << 16) + int(low @ counts)
    squares = (int((high * high) @ counts) << 32) + (int((high * low) @ counts) << 17)
    return moments_of_sums(total, squares + int((low * low) @ counts), n)


def moments_of_sums(total: int, squares: int, n: int) -> tuple[float, float]:
    """Return mean and deviation of `n` whole numbers from their sum and that of their squares."""
    # Whole numbers up to the last step, so both quotients are correctly rounded.
    return total / n, math.sqrt((n * squares - total * total) / (n * n))


def exact_sum(values: npt.NDArray[np.float64]) -> float:
    """Return what `math.fsum` does, faster for many numbers; not finite where one of them is not.

    Each step splits off the leading bits of the numbers: few enough that the sum of these is exact
    in whatever order it is computed. What is left of the numbers is exact too.

    Parameters
    ----------
    values : float64 array, shape (n,)
        Below 1e250, if they are finite.
    """
    exact: list[float] = []
    for first in range(0, len(values), _BLOCK):
        rest = values[first : first + _BLOCK].copy()
        # The sum of a block's parts is a multiple of 2**unit and has no more than 53 bits.
        n_spare = len(rest).bit_length() + 1
        while largest := max(float(rest.max()), -float(rest.min())):
            unit = math.frexp(largest)[1] + n_spare - _MANTISSA_BITS
            if not math.isfinite(largest):
                return float(values.sum())
            if unit < _LOWEST_UNIT:
                exact += rest.tolist()
                break
            rounder = math.ldexp(1.5, unit + _MANTISSA_BITS - 1)
            leading = (rest + rounder) - rounder
            exact.append(float(leading.sum()))
            rest -= leading
    return math.fsum(exact)


def _percentiles(values: _Values, below: _Counts, percents: tuple[int, ...]) -> list[float]:
    """Return the values at `percents` of the way from the first to the last pixel in order.

    Parameters
    ----------
    below : int64 array
        How many pixels have each value or a lower one.
    """
    n = int(below[-1])
    places = [rank_of(percent, n) for percent in percents]
    ranks = [min(rank + step, n - 1) for rank, _ in places for step in (0, 1)]
    found = map(float, values[below.searchsorted(ranks, side="right")].tolist())
    return [
        low + (high - low) * share
        for (low, high), (_, share) in zip(zip(found, found, strict=True), places, strict=True)
    ]


def median_of(values: npt.NDArray[np.floating]) -> float:
    """Return what np.median does, which imports numpy.ma: as long as the checks of 1,000 rows."""
    ordered = np.sort(values)
    if len(ordered) == 0 or np.isnan(ordered[-1]):
        return math.nan
    return float((ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2)


def rank_of(percent: int, n: int) -> tuple[int, float]:
    """Return where a percentile of `n` pixels is: after which in order, from 0, and how far."""
    rank, hundredths = divmod(percent * (n - 1), 100)
    return rank, hundredths / 100
