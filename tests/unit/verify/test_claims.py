import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from etl.quality.statistics import image_statistics
from etl.verify.claims import Claim, is_confirmed

WRONG = [math.nan, math.inf, -math.inf, 1e300, -1e300, 0.5]


def claim_of(image, padding=None):
    """Return what `image_statistics`, the plainer way, says of an image."""
    found = image_statistics(image, padding)
    return Claim(*(getattr(found, name) for name in Claim._fields))


def smooth(dtype, low, high, shape=(64, 48), seed=0):
    """Return an image whose values are crowded at its low end, as an MR image's are."""
    rng = np.random.default_rng(seed)
    return (low + (high - low) * rng.random(shape) ** 3).astype(dtype)


images = st.sampled_from(["<i2", "<u2", "<i4"]).flatmap(
    lambda dtype: st_numpy.arrays(
        dtype,
        st_numpy.array_shapes(min_dims=2, max_dims=2, max_side=25),
        elements=st.integers(0, 9) | st_numpy.from_dtype(np.dtype(dtype)),
    )
)


@given(images, st.none() | st.integers(0, 3), st.data())
def test_what_is_confirmed_is_true(image, padding, data):
    """Of true claims with one figure changed, or none, those confirmed are what was computed."""
    padding = None if padding is None else (float(padding), float(padding))
    true = claim_of(image, padding)
    name = data.draw(st.sampled_from(Claim._fields))
    value = getattr(true, name)
    near = [value + step for step in (-1, 1, 0.25)] + [math.nextafter(value, math.inf)]
    claim = true._replace(**{name: data.draw(st.sampled_from([value, *near, *WRONG]))})
    if is_confirmed(image, claim, padding):
        assert claim == true


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [
        ("<i2", 0, 923),
        ("<i2", -1024, 3071),
        ("<u2", 0, 4095),
        ("<u2", 60000, 65535),
        ("<i2", -32768, 32767),
        ("<i4", -9000, 90000),
        ("<i2", 5, 5.5),
    ],
)
@pytest.mark.parametrize("shape", [(64, 48), (256, 256), (1, 1), (101, 1), (7, 3)])
def test_true_claims_are_confirmed(dtype, low, high, shape):
    """So that no histogram is needed for files as they are."""
    for seed in range(5):
        image = smooth(dtype, low, high, shape, seed)
        claim = claim_of(image)
        is_crowded = image.size > high - low  # else percentiles lie between distant values
        assert is_confirmed(image, claim) or not is_crowded
        for name, value in claim._asdict().items():
            assert not is_confirmed(image, claim._replace(**{name: value + 1}))


@pytest.mark.parametrize("value", [-2000, 0, 40, 700])
def test_true_claims_about_images_with_padding_are_confirmed(value):
    """The padding is below, among or above the other values."""
    image = smooth("<i2", -1000 if value == 0 else 1, 600, (64, 64))
    image[:, :20] = value
    padding = float(value), float(value)
    claim = claim_of(image, padding)
    assert claim.n_padding >= 20 * 64
    assert is_confirmed(image, claim, padding)
    for name, one in claim._asdict().items():
        assert not is_confirmed(image, claim._replace(**{name: one + 1}), padding)
    assert not is_confirmed(image, claim)


@pytest.mark.parametrize("padding", range(7))
def test_of_all_values_around_the_padding_one_is_confirmed(padding):
    rng = np.random.default_rng(padding)
    for shape in ((1, 7), (9, 9), (30, 40)):
        image = rng.integers(0, 7, shape, np.int16)
        span = float(padding), float(padding)
        true = claim_of(image, span)
        for name in ("minimum", "maximum", "p01", "p99"):
            for value in {*range(-1, 9), getattr(true, name)}:
                claim = true._replace(**{name: float(value)})
                assert is_confirmed(image, claim, span) == (claim == true)


def test_padding_that_no_pixel_has_is_confirmed():
    image = smooth("<i2", 0, 600)
    assert is_confirmed(image, claim_of(image), (-2000.0, -2000.0))
    assert is_confirmed(image, claim_of(image), (1e9, 1e9))


@pytest.mark.parametrize(
    ("image", "padding"),
    [
        (smooth("<f4", 0, 100), None),
        (np.full((4, 4), 7, "<i2"), (7.0, 7.0)),  # nothing but padding
        (smooth("<i2", 0, 600), (3.0, 8.0)),
        (smooth("<i2", 0, 600), (0.5, 0.5)),
        (smooth("<i4", -(2**31), 2**31 - 1), None),
    ],
)
def test_what_cannot_be_confirmed_is_left_to_be_computed(image, padding):
    assert not is_confirmed(image, claim_of(image, padding), padding)


def test_a_percentile_between_two_values_is_confirmed():
    """Of 11 pixels, 1 % of the way is a tenth of that from the first to the second."""
    for gap in (1, 2, 7):
        image = np.array([[0, *range(gap, gap + 10)]], "<i2")
        claim = claim_of(image)
        assert claim.p01 == pytest.approx(gap / 10)
        assert is_confirmed(image, claim)
        assert not is_confirmed(image, claim._replace(p01=claim.p01 + 0.1))
