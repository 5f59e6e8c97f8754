import numpy as np
import pytest

from etl.quality.statistics import image_statistics, pooled_moments

DTYPES = ["<i2", "<u2", "<i4", "<f4"]


def image(dtype, seed=0):
    rng = np.random.default_rng(seed)
    if dtype == "<f4":
        return rng.normal(3, 100, (31, 17)).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, (31, 17), dtype, endpoint=True)


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
