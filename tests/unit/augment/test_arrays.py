import itertools

import numpy as np
import pytest

import loader
from loader import Augment
from loader.augment import arrays, draw_parameters
from loader.augment.arrays import augment_batch
from loader.augment.parameters import N_NORMALS, normals, power_basis, spline_basis

N = 6
RNG = np.random.default_rng(0)


def smooth(rows, columns, n=N):
    """Return images with little detail, and masks that have labels and 255."""
    y, x = np.mgrid[:rows, :columns]
    waves = [np.sin(x / 7 + i) * np.cos(y / 9) + 0.3 * np.sin((x + y) / 5) for i in range(n)]
    images = (100 + 50 * np.stack(waves)).astype(np.float32)
    return images, RNG.choice([0, 1, 2, 255], (n, rows, columns)).astype(np.uint8)


def changed(augment, images, masks, epoch=0):
    shape, rows = images.shape[1:], np.arange(len(images))
    parameters = draw_parameters(augment, shape, seed=7, epoch=epoch, rows=rows)
    return *augment_batch(images, masks, parameters), parameters.parts()


def turned(sample, flips_rows, flips_columns, n_turns):
    sample = sample[::-1] if flips_rows else sample
    sample = sample[:, ::-1] if flips_columns else sample
    return np.rot90(sample, int(n_turns))


def sources(parts, i, shape):
    """Return where each pixel comes from, after turns, as the documentation of the table says."""
    rows, columns = shape
    y, x = np.mgrid[:rows, :columns].astype(np.float64)
    affine, (cy, cx) = parts["affine"][i], ((rows - 1) / 2, (columns - 1) / 2)
    place = affine @ np.stack([(x - cx).ravel(), (y - cy).ravel(), np.ones(x.size)])
    found = [place[0].reshape(shape) + cx, place[1].reshape(shape) + cy]
    if "elastic" in parts:
        for axis, moved in enumerate(parts["elastic"][i]):
            found[axis] += spline_basis(rows) @ moved @ spline_basis(columns).T
    return found


def linear(image, x, y):
    """Interpolate between the four pixels around each place; the border goes on."""
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)

    def at(row, column):
        rows, columns = image.shape
        return image[row.clip(0, rows - 1), column.clip(0, columns - 1)].astype(np.float64)

    fx, fy = x - x0, y - y0
    above = at(y0, x0) * (1 - fx) + at(y0, x0 + 1) * fx
    below = at(y0 + 1, x0) * (1 - fx) + at(y0 + 1, x0 + 1) * fx
    return above * (1 - fy) + below * fy


# Places


@pytest.mark.parametrize("has_opencv", [True, False])
@pytest.mark.parametrize("shape", [(40, 40), (130, 130), (30, 50)])
def test_flips_and_turns_are_exact(shape, has_opencv, monkeypatch):
    if has_opencv:
        pytest.importorskip("cv2")
    else:
        monkeypatch.setattr(arrays, "_opencv_if_there", lambda: None)
    images, masks = smooth(*shape, n=24)
    augment = Augment.none(flip_rows=0.5, flip_columns=0.5, quarter_turns=0.7)
    new_images, new_masks, parts = changed(augment, images, masks)
    assert len(np.unique(parts["turn"], axis=0)) > (9 if shape[0] == shape[1] else 6)
    for i, turn in enumerate(parts["turn"]):
        np.testing.assert_array_equal(new_images[i], turned(images[i], *turn))
        np.testing.assert_array_equal(new_masks[i], turned(masks[i], *turn))


@pytest.mark.parametrize("has_opencv", [True, False])
def test_each_combination_of_flips_and_turns(has_opencv, monkeypatch):
    if not has_opencv:
        monkeypatch.setattr(arrays, "_opencv_if_there", lambda: None)
    image = np.arange(25, dtype=np.int16).reshape(5, 5)
    for turn in itertools.product((0, 1), (0, 1), range(4)):
        out = np.empty_like(image)
        arrays.copy_turned(image, out, *turn)
        np.testing.assert_array_equal(out, turned(image, *turn))


class OpenCV4:
    """OpenCV as version 4 has it: it knows no uint32."""

    def __getattr__(self, name):
        function = getattr(pytest.importorskip("cv2"), name)

        def checked(samples, *arguments, dst, **options):
            if np.uint32 in (samples.dtype, dst.dtype):
                raise TypeError("src data type = uint32 is not supported")
            return function(samples, *arguments, dst=dst, **options)

        return checked if name in {"flip", "transpose", "remap"} else function


def test_words_of_32_bits_are_moved_by_version_4_of_opencv(monkeypatch):
    monkeypatch.setattr(arrays, "_opencv_if_there", OpenCV4)
    words = RNG.integers(0, 2**32, (5, 5), np.uint32)
    words[0, 0] = 2**31
    for turn in itertools.product((0, 1), (0, 1), range(4)):
        out = np.empty_like(words)
        arrays.copy_turned(words, out, *turn)
        np.testing.assert_array_equal(out, turned(words, *turn))
    images, masks = smooth(32, 32), np.tile(words, (N, 7, 7))[:, :32, :32]
    _, moved, _ = changed(Augment.none(rotate=(1, 90, 90)), images[0], masks)
    np.testing.assert_array_equal(moved, np.rot90(masks, 1, (1, 2)))


def test_a_rotation_by_90_degrees_is_a_quarter_turn():
    pytest.importorskip("cv2")
    images, masks = smooth(32, 32)
    new_images, new_masks, _ = changed(Augment.none(rotate=(1, 90, 90)), images, masks)
    np.testing.assert_allclose(new_images, np.rot90(images, 1, (1, 2)), atol=1e-3)
    np.testing.assert_array_equal(new_masks, np.rot90(masks, 1, (1, 2)))


@pytest.mark.parametrize("shape", [(64, 64), (40, 90), (300, 260)])
@pytest.mark.parametrize(
    "flips", [{}, {"flip_rows": 0.5, "flip_columns": 0.5, "quarter_turns": 0.6}]
)
def test_one_resampling_holds_all_moves(shape, flips):
    """Against flips, then interpolation in float64 at the places of the documentation."""
    pytest.importorskip("cv2")
    images, masks = smooth(*shape)
    augment = Augment.none(
        rotate=(0.7, -60, 60),
        scale=(0.7, 0.7, 1.4),
        shift=(0.7, -0.1, 0.1),
        shear=(0.7, -10, 10),
        elastic=(0.7, 0.02, 0.05),
        **flips,
    )
    new_images, new_masks, parts = changed(augment, images, masks)
    n_ties = 0
    for i in range(N):
        turn = parts["turn"][i] if flips else (0, 0, 0)
        x, y = sources(parts, i, shape)
        image, mask = turned(images[i], *turn), turned(masks[i], *turn)
        # A pixel of version 4 of OpenCV is divided into 32 places.
        np.testing.assert_allclose(new_images[i], linear(image, x, y), atol=0.5)
        nearest = np.rint(y).clip(0, shape[0] - 1), np.rint(x).clip(0, shape[1] - 1)
        expected = mask[nearest[0].astype(int), nearest[1].astype(int)]
        is_tie = np.minimum(abs(x % 1 - 0.5), abs(y % 1 - 0.5)) < 1e-3
        np.testing.assert_array_equal(new_masks[i][~is_tie], expected[~is_tie])
        n_ties += is_tie.sum()
    assert n_ties < 0.01 * masks.size


def test_samples_that_no_move_meets_are_exact_copies():
    pytest.importorskip("cv2")
    images, masks = smooth(40, 40, n=20)
    new_images, new_masks, parts = changed(Augment.none(rotate=(0.5, 5, 9)), images, masks)
    is_same = parts["is_resampled"] == 0
    assert 0 < is_same.sum() < 20
    np.testing.assert_array_equal(new_images[is_same], images[is_same])
    np.testing.assert_array_equal(new_masks[is_same], masks[is_same])
    assert (new_images[~is_same] != images[~is_same]).any((1, 2)).all()


def test_cubic_interpolation_is_cubic_convolution():
    """Keys's kernel with a = -0.75, which PyTorch has as well."""
    pytest.importorskip("cv2")
    images, masks = smooth(64, 64, n=1)
    quarter = (1, 0.25 / 64, 0.25 / 64)
    new_images, _, _ = changed(Augment.none(shift=quarter, interpolation="cubic"), images, masks)
    a, distances = -0.75, np.array([1.75, 0.75, 0.25, 1.25])
    near = (a + 2) * distances**3 - (a + 3) * distances**2 + 1
    far = a * distances**3 - 5 * a * distances**2 + 8 * a * distances - 4 * a
    weights = np.where(distances < 1, near, far)
    image = images[0].astype(np.float64)
    rows = sum(w * image[i : i + 61] for i, w in enumerate(weights))
    expected = sum(w * rows[:, i : i + 61] for i, w in enumerate(weights))
    np.testing.assert_allclose(new_images[0, 2:63, 2:63], expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int16", "int32"])
def test_masks_keep_their_type_and_labels(dtype):
    pytest.importorskip("cv2")
    images, masks = smooth(50, 50)
    masks = masks.astype(dtype)
    _, new_masks, _ = changed(Augment.cardiac_mr(), images, masks)
    assert new_masks.dtype == dtype
    assert set(np.unique(new_masks)) <= {0, 1, 2, 255}


# Values


def alone(images, **parts):
    masks = np.zeros(images.shape, np.uint8)
    new_images, _, drawn = changed(Augment.none(**parts), images, masks)
    assert np.isfinite(new_images).all()
    return new_images, drawn


def test_gamma_keeps_the_extremes():
    images, _ = smooth(40, 50)
    new_images, drawn = alone(images, gamma=(0.7, 0.5, 2))
    for image, new, gamma in zip(images.astype(float), new_images, drawn["gamma"], strict=True):
        low, high = image.min(), image.max()
        expected = ((image - low) / (high - low)) ** gamma * (high - low) + low
        np.testing.assert_allclose(new, expected, rtol=1e-5)


def test_contrast_and_brightness():
    images, _ = smooth(40, 50)
    new_images, drawn = alone(images, contrast=(0.7, 0.5, 2), brightness=(0.7, -1, 1))
    for image, new, contrast, brightness in zip(
        images.astype(float), new_images, drawn["contrast"], drawn["brightness"], strict=True
    ):
        mean = image.mean()
        expected = (image - mean) * contrast + mean + brightness * image.std()
        np.testing.assert_allclose(new, expected, rtol=1e-5)


def test_noise_has_its_deviation_and_is_read_from_the_table():
    images, _ = smooth(40, 50)
    new_images, drawn = alone(images, noise=(1, 0.5, 0.5))
    y, x = np.mgrid[:40, :50]
    for image, new, (deviation, start, stride) in zip(
        images, new_images, drawn["noise"].tolist(), strict=True
    ):
        numbers = normals()[((start + y * stride + x) % N_NORMALS).astype(int)]
        np.testing.assert_allclose(new, image + deviation * image.std() * numbers, rtol=1e-5)
        assert (new - image).std() == pytest.approx(0.5 * image.std(), rel=0.1)


def test_blur_is_a_gaussian_with_the_border_going_on():
    images = np.zeros((2, 21, 31), np.float32)
    images[:, 10, 15] = 1
    images[:, 0, 0] = 1
    new_images, drawn = alone(images, blur=(1, 1, 1))
    half = drawn["blur"][0]
    kernel = np.concatenate([half[:0:-1], half])
    np.testing.assert_allclose(new_images[0, 7:14, 12:19], np.outer(kernel, kernel), atol=1e-7)
    assert new_images[0, 0, 0] == pytest.approx((half.sum()) ** 2, rel=1e-6)


def test_low_resolution_keeps_some_pixels_and_lies_between_them():
    images = np.tile(np.arange(20, dtype=np.float32), (1, 20, 1))
    new_images, drawn = alone(images, low_resolution=(1, 0.5, 0.5))
    assert drawn["low_resolution"].tolist() == [[10, 10]]
    # Of each two pixels the second is kept; between them values rise evenly.
    expected = np.interp(np.arange(20), np.arange(0.5, 20, 2), np.arange(1, 20, 2))
    np.testing.assert_allclose(new_images[0], np.tile(expected, (20, 1)), rtol=1e-6)


def test_the_bias_field_multiplies_from_the_minimum_on():
    images, _ = smooth(40, 50)
    new_images, drawn = alone(images, bias_field=(0.7, 0.2, 0.5))
    assert 0 < drawn["bias_field"].any((1, 2)).sum() < N
    for image, new, coefficients in zip(images, new_images, drawn["bias_field"], strict=True):
        field = np.exp(power_basis(40) @ coefficients @ power_basis(50).T)
        np.testing.assert_allclose(new, (image - image.min()) * field + image.min(), rtol=1e-5)


def test_a_constant_image_stays_constant_but_for_noise():
    images = np.full((N, 30, 30), 7, np.float32)
    parts = {"gamma": (1, 0.5, 2), "contrast": (1, 0.5, 2), "brightness": (1, -1, 1)}
    new_images, _ = alone(
        images, **parts, noise=(1, 1, 2), bias_field=(1, 0.5, 1), low_resolution=(1, 0.3, 0.5)
    )
    np.testing.assert_allclose(new_images, images, rtol=1e-6)


def test_all_parts_of_all_presets_give_finite_values():
    pytest.importorskip("cv2")
    images, masks = smooth(64, 48, n=64)
    for augment in (Augment(), Augment.cardiac_mr(), Augment.ct()):
        new_images, _, _ = changed(augment, images, masks)
        assert np.isfinite(new_images).all()
        assert new_images.dtype == np.float32


# What does not go


def test_the_arrays_that_were_given_stay_as_they_are():
    pytest.importorskip("cv2")
    images, masks = smooth(40, 40)
    kept = images.copy(), masks.copy()
    changed(Augment.cardiac_mr(), images, masks)
    np.testing.assert_array_equal(images, kept[0])
    np.testing.assert_array_equal(masks, kept[1])


def test_arrays_of_another_type_or_shape_are_refused():
    images, masks = smooth(40, 40)
    with pytest.raises(TypeError, match=r"expected float32 and one of uint8, .* found float64"):
        changed(Augment(), images.astype(np.float64), masks)
    with pytest.raises(TypeError, match="found float32 and int64"):
        changed(Augment(), images, masks.astype(np.int64))
    with pytest.raises(ValueError, match=r"expected \(6, 40, 40\), found .* and \(5, 40, 40\)"):
        changed(Augment(), images, masks[:5])


def test_without_opencv_only_resampling_is_refused(monkeypatch):
    monkeypatch.setattr(arrays, "_opencv_if_there", lambda: None)
    images, masks = smooth(40, 40)
    plain = Augment.none(flip_rows=0.5, quarter_turns=0.5, gamma=(1, 0.5, 2), blur=(1, 0.5, 1))
    changed(plain, images, masks)
    with pytest.raises(loader.LoaderError, match=r"pip install 'dicom-etl\[augment\]'"):
        changed(Augment.none(rotate=(1, -5, 5)), images, masks)
