import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from etl.quality.statistics import exact_sum, image_statistics, median_of, pooled_moments

DTYPES = ["<i2", "<u2", "<i4", "<f4"]


def image(dtype, seed=0):
    rng = np.random.default_rng(seed)
    if dtype == "<f4":
        return rng.normal(3, 100, (31, 17)).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, (31, 17), dtype, endpoint=True)


def plain_statistics(pixels):
    """Return the same from a sorted list, to the last bit."""
    values = sorted(pixels.ravel().tolist())
    n, counts = len(values), Counter(values)
    if pixels.dtype.kind == "f":
        mean = math.fsum(value * count for value, count in counts.items()) / n
        squares = ((value - mean) * (value - mean) * count for value, count in counts.items())
        std = math.sqrt(math.fsum(squares) / n)
    else:
        total, squares = sum(values), sum(value * value for value in values)
        mean, std = total / n, math.sqrt((n * squares - total * total) / (n * n))
    found = [values[0], values[-1], mean, std]
    for percent in (1, 99):
        rank, hundredths = divmod(percent * (n - 1), 100)
        low, high = float(values[rank]), float(values[min(rank + 1, n - 1)])
        found.append(low + (high - low) * (hundredths / 100))
    return found


def as_list(found):
    return [found.minimum, found.maximum, found.mean, found.std, found.p01, found.p99]


@given(
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: st_numpy.arrays(
            dtype,
            st_numpy.array_shapes(min_dims=2, max_dims=2, max_side=30),
            elements=st_numpy.from_dtype(
                np.dtype(dtype), allow_nan=False, allow_infinity=False, allow_subnormal=True
            ),
        )
    )
)
def test_statistics_equal_plain_ones_to_the_last_bit(pixels):
    assert as_list(image_statistics(pixels)) == plain_statistics(pixels)


@pytest.mark.parametrize("largest", [4, 4000, 2**18, 2**31 - 1])
@pytest.mark.parametrize("dtype", ["<i4", "<f4"])
def test_statistics_of_many_pixels_equal_plain_ones(dtype, largest):
    rng = np.random.default_rng(largest)
    pixels = rng.integers(-largest, largest, (130, 140)).astype(dtype)
    if dtype == "<f4":
        pixels *= np.float32(1.37)
    assert as_list(image_statistics(pixels)) == plain_statistics(pixels)


@given(st.lists(st.floats(-1e250, 1e250), max_size=60))
def test_an_exact_sum_is_that_of_fsum(values):
    assert exact_sum(np.array(values, np.float64)) == math.fsum(values)


@pytest.mark.parametrize("spread", [0, 3, 40, 300])
@pytest.mark.parametrize("n", [1, 8191, 8192, 8193, 20001])
def test_an_exact_sum_of_many_numbers_is_that_of_fsum(n, spread):
    rng = np.random.default_rng(n + spread)
    values = rng.normal(0, 1, n) * 10.0 ** rng.uniform(-spread, min(spread, 249), n)
    values = np.concatenate([values, -values[: n // 2]])  # much of it cancels
    assert exact_sum(values) == math.fsum(values.tolist())


@pytest.mark.parametrize("damage", [(np.nan,), (np.inf,), (-np.inf, np.inf), (np.inf, np.nan)])
def test_statistics_of_a_damaged_image_are_no_numbers_and_no_error(damage):
    pixels = image("<f4")
    pixels.ravel()[: len(damage)] = damage
    found = image_statistics(pixels)
    assert not math.isfinite(found.mean)
    assert not math.isfinite(found.std)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(3))
def test_statistics_equal_numpys(dtype, seed):
    pixels = image(dtype, seed)
    found, exact = image_statistics(pixels), pixels.astype(np.float64)
    assert (found.minimum, found.maximum) == (exact.min(), exact.max())
    assert found.mean == pytest.approx(exact.mean(), rel=1e-12)
    assert found.std == pytest.approx(exact.std(), rel=1e-12)
    assert found.p01 == pytest.approx(np.percentile(exact, 1), rel=1e-12)
    assert found.p99 == pytest.approx(np.percentile(exact, 99), rel=1e-12)


def test_whole_numbers_are_summed_exactly():
    pixels = np.full((300, 300), 2**31 - 1, "<i4")
    pixels[0, 0] = -(2**31)
    values = [int(value) for value in pixels.ravel()]
    n, total = len(values), sum(values)
    variance = (n * sum(value * value for value in values) - total**2) / n**2
    found = image_statistics(pixels)
    assert (found.mean, found.std) == (total / n, variance**0.5)


def test_the_order_of_pixels_does_not_matter():
    pixels = image("<f4").ravel()
    assert image_statistics(pixels[None]) == image_statistics(np.sort(pixels)[None])


def test_a_constant_image():
    found = image_statistics(np.full((3, 3), -7, "<i2"))
    assert (found.mean, found.std, found.p01, found.p99) == (-7, 0, -7, -7)


def test_moments_of_all_rows_follow_from_those_of_each():
    rows = np.stack([image("<i2", seed) for seed in range(5)]).astype(np.float64)
    found = pooled_moments(rows.mean(axis=(1, 2)), rows.std(axis=(1, 2)))
    assert found == pytest.approx((rows.mean(), rows.std()), rel=1e-12)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(3))
def test_padding_is_left_out(dtype, seed):
    pixels = image(dtype, seed)
    low, high = np.sort(pixels.ravel())[[10, 60]].astype(float)
    rest = pixels[(pixels < low) | (pixels > high)]
    found, expected = image_statistics(pixels, (low, high)), image_statistics(rest[None])
    names = ("minimum", "maximum", "mean", "std", "p01", "p99")
    assert [getattr(found, name) for name in names] == pytest.approx(
        [getattr(expected, name) for name in names], rel=1e-12
    )
    assert found.n_padding == pixels.size - rest.size > 0
    assert (found.padding_minimum, found.padding_maximum) == (low, high)


def test_without_padding_there_is_no_range():
    found = image_statistics(image("<i2"))
    assert found.n_padding == 0
    assert np.isnan([found.padding_minimum, found.padding_maximum]).all()


def test_padding_that_no_pixel_has_changes_nothing():
    pixels = np.arange(12, dtype="<i2").reshape(3, 4)
    found = image_statistics(pixels, (-5.0, -5.0))
    assert (found.minimum, found.mean, found.n_padding) == (0, 5.5, 0)


def test_an_image_of_nothing_but_padding_has_its_statistics():
    found = image_statistics(np.full((3, 3), -2000, "<i2"), (-2000.0, -2000.0))
    assert (found.minimum, found.maximum, found.mean, found.n_padding) == (-2000, -2000, -2000, 9)


@pytest.mark.parametrize("largest", [3, 1 << 17, 1 << 18])
@pytest.mark.parametrize("lowest", [0, 5, -3, -(1 << 17)])
def test_each_value_is_counted_wherever_the_values_begin(lowest, largest):
    rng = np.random.default_rng(largest)
    pixels = rng.integers(lowest, lowest + largest, (300, 500), np.int32)  # several at a time
    assert as_list(image_statistics(pixels)) == plain_statistics(pixels)


@given(st.lists(st.floats(-1e300, 1e300), max_size=9))
def test_a_median_is_numpys(values):
    expected = np.median(values) if values else math.nan
    assert np.array_equal(median_of(np.array(values)), expected, equal_nan=True)
    assert math.isnan(median_of(np.array([*values, math.nan])))
