import h5py
import numpy as np
import pytest
from dataset_builder import write_dataset

import loader
from loader.format import IMAGE_DTYPES


def images_of(path, **options):
    batches = loader.Batches(path, batch_size=7, shuffle=False, layout="NHW", **options)
    images, _ = batches.next_batch()
    assert images.dtype == np.float32
    return images


def by_hand(stored, kind):
    """Normalise in float64, an image at a time."""
    scaled = []
    for image in stored.astype(np.float64):
        p01, p99 = np.percentile(image, (1, 99))
        scaled.append(
            {
                "minmax": (image - image.min()) / (image.max() - image.min()),
                "percentile": ((image - p01) / (p99 - p01)).clip(0, 1),
                "zscore": (image - image.mean()) / image.std(),
                "dataset": (image - 1.5) / 0.5,
            }[kind]
        )
    return np.array(scaled)


@pytest.mark.parametrize("kind", ["minmax", "percentile", "zscore", "dataset"])
@pytest.mark.parametrize("image_dtype", IMAGE_DTYPES)
@pytest.mark.parametrize("alignment", [1, 65536])
def test_images_are_scaled_by_their_statistics(tmp_path, kind, image_dtype, alignment):
    written = write_dataset(tmp_path / "a.h5", image_dtype=image_dtype, alignment=alignment)
    expected = by_hand(written["images"], kind)
    found = images_of(tmp_path / "a.h5", normalize=kind)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("image_dtype", IMAGE_DTYPES)
def test_float32_without_scaling_keeps_the_values(tmp_path, image_dtype):
    written = write_dataset(tmp_path / "a.h5", image_dtype=image_dtype)
    np.testing.assert_array_equal(images_of(tmp_path / "a.h5", dtype="float32"), written["images"])


@pytest.mark.parametrize("kind", ["minmax", "percentile"])
def test_scaled_values_lie_within_0_and_1(tmp_path, kind):
    for seed in range(3):
        write_dataset(tmp_path / "a.h5", rows=9, seed=seed)
        images = images_of(tmp_path / "a.h5", normalize=kind)
        assert images.min() == 0
        assert 0.999999 < images.max() <= 1


PADDED = {"minimum": [100] * 7, "maximum": [600] * 7, "n_padding": [3] * 7}


@pytest.mark.parametrize("image_dtype", IMAGE_DTYPES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"patches": loader.Patches((4, 5))},
        {"patches": loader.Patches((9, 5), pad=True)},
        {"augment": loader.Augment.none(flip_rows=1)},
    ],
)
def test_padding_is_clipped_to_0_and_1(tmp_path, image_dtype, options):
    """Statistics leave padding out, so that it may be below the minimum or above the maximum."""
    path = tmp_path / "a.h5"
    stored = write_dataset(path, image_dtype=image_dtype, manifest=PADDED)["images"]
    assert stored.min() < 100
    assert stored.max() > 600
    expected = ((stored.astype(np.float64) - 100) / 500).clip(0, 1)
    found = images_of(path, normalize="minmax", **options)
    if "augment" in options:
        expected = expected[:, ::-1]
    if found.shape[1] == 9:
        expected = np.pad(expected, ((0, 0), (2, 3), (0, 0)))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_padding_of_a_file_of_version_1_is_clipped_too(tmp_path):
    """It has no column that counts padding."""
    write_dataset(tmp_path / "a.h5", manifest=PADDED)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        del file["manifest/n_padding"]
    images = images_of(tmp_path / "a.h5", normalize="minmax")
    assert (images.min(), images.max()) == (0, 1)


@pytest.mark.parametrize("kind", ["minmax", "percentile", "zscore"])
@pytest.mark.parametrize(
    ("image_dtype", "offset"), [("<i4", -917_096_192), ("<i4", 2**31 - 2000), ("<f4", 2.0**24)]
)
def test_small_differences_of_large_values_are_kept(tmp_path, kind, image_dtype, offset):
    written = write_dataset(tmp_path / "a.h5", image_dtype=image_dtype, offset=offset)
    found = images_of(tmp_path / "a.h5", normalize=kind)
    np.testing.assert_allclose(found, by_hand(written["images"], kind), rtol=1e-6, atol=1e-6)
    if kind != "zscore":
        assert found.min() == 0
        assert found.max() <= 1


@pytest.mark.parametrize("divisor", [1.5, 3.0, 1e-30, 2**-127, 1e-45])
def test_no_divisor_is_too_small(tmp_path, divisor):
    options = {"image_dtype": "<f4", "manifest": {"mean": [0] * 7, "std": [divisor] * 7}}
    written = write_dataset(tmp_path / "a.h5", **options)
    found = images_of(tmp_path / "a.h5", normalize="zscore")
    by = divisor if divisor >= 2**-126 else 1
    np.testing.assert_allclose(found, written["images"] / np.float64(by), rtol=1e-6)


@pytest.mark.parametrize("kind", ["minmax", "percentile", "zscore"])
def test_constant_image_becomes_0(tmp_path, kind):
    constant = dict.fromkeys(("minimum", "maximum", "mean", "p01", "p99"), [500] * 7)
    write_dataset(tmp_path / "a.h5", manifest=constant | {"std": [0] * 7})
    images = images_of(tmp_path / "a.h5", normalize=kind)
    assert np.isfinite(images).all()
    stored = loader.open_dataset(tmp_path / "a.h5").images
    assert (images[stored == 500] == 0).all()


def test_a_range_beyond_float32_is_refused(tmp_path):
    limits = {"minimum": [-3e38] * 7, "maximum": [3e38] * 7}
    write_dataset(tmp_path / "a.h5", image_dtype="<f4", manifest=limits)
    with pytest.raises(loader.LoaderError, match="found NaN or infinity"):
        images_of(tmp_path / "a.h5", normalize="minmax")


def test_statistics_that_are_no_numbers_are_refused(tmp_path):
    write_dataset(tmp_path / "a.h5", manifest={"std": [1, 1, np.nan, 1, 1, 1, 1]})
    with pytest.raises(loader.LoaderError, match="statistics that are numbers, found NaN"):
        images_of(tmp_path / "a.h5", normalize="zscore")
    images_of(tmp_path / "a.h5", normalize="minmax")


def test_options_that_contradict_each_other(tmp_path):
    write_dataset(tmp_path / "a.h5")
    with pytest.raises(ValueError, match="dtype: normalised images are float32"):
        images_of(tmp_path / "a.h5", dtype="stored", normalize="minmax")
    with pytest.raises(ValueError, match="normalize: expected one of minmax, zscore, percentile"):
        images_of(tmp_path / "a.h5", normalize="unit")
    with pytest.raises(ValueError, match="dtype: expected one of stored, float32, found 'float64'"):
        images_of(tmp_path / "a.h5", dtype="float64")
