"""Where the pixels of a row lie in its frame: by hand, and by what must always hold."""

import io

import numpy as np
import pytest
from builders import dicom_bytes, gradient, instance
from hypothesis import given
from hypothesis import strategies as st

from etl.contours.rasterise import rasterise_region
from etl.dicom.instance import read_instance
from etl.errors import ImageError
from etl.geometry import SourceGrid
from etl.model import Region
from etl.options import BuildOptions
from etl.resampling.placing import check_cut, file_plane, place, resampled_size, share_cut
from etl.resampling.regions import region_on_grid


def frame(rows=12, columns=14, **attributes):
    data = dicom_bytes(instance(gradient(rows, columns), **attributes))
    return read_instance(io.BytesIO(data))


def fit(rows, columns, **options):
    return BuildOptions(rows=rows, columns=columns, size="fit", **options)


def square(low, high, code=1):
    corners = [(low, low), (high, low), (high, high), (low, high)]
    return Region(code, (np.array(corners, np.float64),), "")


@pytest.mark.parametrize(
    ("length", "n_file", "offset"),
    [(12, 12, 0), (12, 8, 2), (12, 9, 1), (12, 16, -2), (12, 15, -1), (13, 8, 2), (12, 13, 0)],
)
def test_an_odd_pixel_is_cut_off_or_added_at_the_end(length, n_file, offset):
    grid = place(frame(length, length), [], fit(n_file, n_file))
    assert grid == SourceGrid(length, length, offset, 1.0, offset, 1.0)


def test_rows_and_columns_are_not_exchanged():
    grid = place(frame(12, 20), [], fit(10, 30, resample=(2.5, 0.75)))
    # 12 rows of 1.25 mm are 6 of 2.5, and two pixels of padding on each side;
    # 20 columns of 1.5 mm are 40 of 0.75, five of which are cut off at each side.
    assert grid == SourceGrid(12, 20, 0.5 - 2 * 2, 2.0, -0.25 + 5 * 0.5, 0.5)


@pytest.mark.parametrize(
    ("low", "high", "offset"),
    [(4, 7, 2), (20, 24, 19), (0, 2, 0), (33, 39, 32), (-9, 2, 0), (0, 39, 16)],
)
def test_a_window_about_structures_stays_in_the_image(low, high, offset):
    options = fit(8, 8, fit_about="structures")
    grid = place(frame(40, 40), [square(low, high)], options)
    assert (grid.row_offset, grid.column_offset) == (offset, offset)


def test_a_window_about_masks_is_that_about_polygons_of_the_same_pixels():
    mask = np.zeros((40, 40), np.bool_)
    mask[10:15, 20:29] = True
    options = fit(16, 16, fit_about="structures")
    outline = np.array([(19.5, 9.5), (28.5, 9.5), (28.5, 14.5), (19.5, 14.5)])
    by_mask = place(frame(40, 40), [Region(1, (), "", mask)], options)
    assert by_mask == place(frame(40, 40), [Region(1, (outline,), "")], options)
    assert (by_mask.row_offset, by_mask.column_offset) == (5, 17)  # 4.5 is rounded up


def test_without_structures_a_window_is_about_the_image():
    options = fit(8, 8, fit_about="structures")
    assert place(frame(40, 40), [], options) == place(frame(40, 40), [], fit(8, 8))


@given(
    st.integers(1, 300), st.floats(0.1, 9), st.integers(1, 300), st.floats(0.1, 9), st.booleans()
)
def test_the_middle_stays_and_no_pixel_of_the_frame_is_passed_over(
    length, spacing, n_file, target, is_about
):
    options = fit(n_file, n_file, resample=target, fit_about="structures" if is_about else "image")
    one = frame(length, length)._replace(pixel_spacing=(spacing, spacing))
    try:
        n_resampled, _ = resampled_size(one, options)
    except ImageError as error:
        assert error.code == "image-no-spacing"
        assert length * spacing < 0.5 * target * (1 + 1e-9)
        return
    grid = place(one, [square(length * 0.6, length * 0.9)], options)
    # As many pixels as have their centre in the frame are shown, or all that there are of it.
    shown, _ = grid.shown(n_file, n_file)
    assert shown.stop - shown.start == min(n_file, n_resampled)
    assert abs(n_resampled * target - length * spacing) <= target / 2 * (1 + 1e-9)
    if n_file >= n_resampled:
        middle = grid.row_offset + grid.row_scale * (shown.start + shown.stop - 1) / 2
        assert middle == pytest.approx((length - 1) / 2, abs=1e-6)


@pytest.mark.parametrize("spacing", [(1e-9, 1.0), (1.0, 1e9), (1e-308, 1e308), (1.0, 5e-324)])
def test_a_spacing_that_makes_no_image_is_refused(spacing):
    one = frame()._replace(pixel_spacing=spacing)
    with pytest.raises(ImageError, match="expected 1 to 65535 along each side") as raised:
        resampled_size(one, BuildOptions(resample=1))
    assert raised.value.code == "image-no-spacing"


@pytest.mark.parametrize("spacing", [(np.nan, 1.0), (1.0, 0.0), (-1.0, 1.0), (1.0, np.inf)])
def test_resampling_needs_a_spacing(spacing):
    one = frame()._replace(pixel_spacing=spacing)
    with pytest.raises(ImageError, match="no usable PixelSpacing") as raised:
        resampled_size(one, BuildOptions(resample=1))
    assert raised.value.code == "image-no-spacing"
    assert place(one, [], fit(12, 14)) == SourceGrid(12, 14, 0, 1, 0, 1)  # but fitting does not


def test_position_and_spacing_are_those_of_the_pixels_in_the_file():
    one = frame(40, 50)
    options = fit(10, 12, resample=(2.5, 2.0))
    grid = place(one, [], options)
    position, spacing = file_plane(one, grid, options)
    assert spacing == (2.5, 2.0)
    plane = one.plane._replace(position=position, spacing=spacing)
    pixels = np.array([(0.0, 0.0), (3.0, 0.0), (0.0, 5.0), (11.0, 9.0)])
    scale, offset = (grid.column_scale, grid.row_scale), (grid.column_offset, grid.row_offset)
    expected = one.plane.to_patient(pixels * scale + offset)
    assert plane.to_patient(pixels) == pytest.approx(expected)


def test_without_spacing_the_position_is_known_only_where_nothing_is_cut_off_before_it():
    one = frame(20, 14)._replace(pixel_spacing=(np.nan, np.nan))
    options = fit(12, 14)
    position, _ = file_plane(one, place(one, [], options), options)
    assert np.isnan(position[1:]).all()
    options = fit(20, 14)
    assert file_plane(one, place(one, [], options), options)[0] == one.image_position


def test_a_share_is_counted_in_pixels_and_holes_do_not_count():
    ring = Region(1, (square(5.5, 15.5).polygons[0], square(8.5, 12.5).polygons[0]), "")
    grid = place(frame(20, 20), [], fit(20, 12))  # columns 4 to 15
    assert share_cut(ring, grid, fit(20, 12)) == 0.0
    grid = place(frame(20, 20), [], fit(20, 6))  # columns 7 to 12: 44 of 84 pixels
    assert share_cut(ring, grid, fit(20, 6)) == 1 - 44 / 84
    (remark,) = check_cut(ring, grid, fit(20, 6))
    assert remark.message.startswith("47.6% of it lies outside the 20x6 pixels that --fit keeps")
    assert "--fit-about structures" in remark.message
    assert check_cut(ring, grid, fit(20, 6, fit_about="structures"))[0].message.endswith(
        "Give a larger --fit."
    )


@pytest.mark.parametrize("is_mask", [False, True])
def test_of_what_smaller_pixels_show_not_all_is_cut_off(is_mask):
    """No centre of the frame's pixels 0 to 2 is in the file, whose first one has its at 2.75."""
    options = fit(12, 12, resample=(1.0, 1.0))
    one = frame(12, 12, PixelSpacing=[2, 2])
    region = square(0.0, 2.9)
    if is_mask:
        region = Region(1, (), "", rasterise_region(region.polygons, 12, 12))
    grid = place(one, [region], options)
    assert (grid.row_offset, grid.column_offset) == (2.75, 2.75)
    n_shown = 0 if is_mask else 1  # that pixel is nearer to pixel 3 of a mask
    assert share_cut(region, grid, options) == 1 - n_shown / 4 / 9
    (remark,) = check_cut(region, grid, options)
    assert remark.message.startswith("all of it" if is_mask else "97.2% of it")


def test_what_lies_beyond_the_image_is_not_cut_off_by_the_window():
    grid = place(frame(20, 20), [], fit(20, 24))
    over = Region(1, (np.array([(-6.0, 3.0), (6.0, 3.0), (6.0, 9.0), (-6.0, 9.0)]),), "")
    assert share_cut(over, grid, fit(20, 24)) == 0.0
    # And there it is not drawn, though the file has pixels there.
    painted = region_on_grid(over, grid, fit(20, 24))
    assert painted.mask is not None
    assert np.flatnonzero(painted.mask.any(axis=0)).tolist() == list(range(2, 8))


@given(st.integers(2, 40), st.integers(1, 60), st.integers(0, 2**32 - 1), st.booleans())
def test_a_share_is_that_of_the_pixels_that_the_file_lacks(length, n_file, seed, is_mask):
    rng = np.random.default_rng(seed)
    mask = rng.random((length, length)) < 0.3
    mask[rng.integers(length), rng.integers(length)] = True
    region = Region(1, (), "", mask)
    if not is_mask:
        region = square(*np.sort(rng.uniform(0, length - 1, 2)))
    grid = place(frame(length, length), [region], fit(n_file, n_file))
    whole = place(frame(length, length), [], fit(length, length))
    counts = []
    for one, n in ((grid, n_file), (whole, length)):
        shown = region_on_grid(region, one, fit(n, n))
        pixels = rasterise_region(shown.polygons, n, n) if shown.mask is None else shown.mask
        counts.append(np.count_nonzero(pixels))
    expected = 1 - counts[0] / counts[1] if counts[1] else 0.0
    assert share_cut(region, grid, fit(n_file, n_file)) == pytest.approx(expected)
