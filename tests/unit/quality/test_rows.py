import copy
import functools
import time
from dataclasses import dataclass, field

import numpy as np
import pytest
import xxhash

from etl.contours.polygon import area
from etl.contours.rasterise import rasterise
from etl.findings import Finding, SampleKey
from etl.labels import CARDIAC, cardiac_scheme
from etl.model import Region
from etl.phantom.heart import Cine, contour_outline, contour_vertices, end_systole
from etl.quality.drawing import MIN_OUTSIDE, check_region
from etl.quality.rows import SHAPES, Rows, check_rows
from etl.quality.statistics import image_statistics

SIZE = 40  # of the images, of which only values and digests count here
STEP = 8.0  # mm from slice to slice
BOTH = cardiac_scheme(("i", "o"))


# ------------------------------------------------------------------------------- rows to check


@dataclass
class Row:
    """One row of a file, as the checks see it."""

    patient_id: str
    number: int
    contours: dict[str, np.ndarray]
    image: np.ndarray
    values: dict[str, float | str] = field(default_factory=dict)
    series: str = ""

    @property
    def dicom_path(self):
        return f"dicoms/{self.patient_id}/{self.number}.dcm"

    def contour_path(self, kind):
        if kind not in self.contours:
            return ""
        return f"contourfiles/{self.patient_id}/{self.number:04d}-{kind}.txt"


def make_row(cine, slice_index, phase, kinds):
    number = cine.number(slice_index, phase)
    outlines = {kind: contour_outline(cine, slice_index, phase, kind) for kind in kinds}
    rng = np.random.default_rng((cine.seed, cine.patient, number))
    drawn = {
        # Nobody draws twice alike, even where the heart rests.
        kind: contour_vertices(outline) + rng.normal(0, 0.05, 2)
        for kind, outline in outlines.items()
    }
    position = (-120.0, -140.0 + 0.6 * STEP * slice_index, 90.0 + 0.8 * STEP * slice_index)
    values = {
        "series_instance_uid": f"1.2.{cine.patient}",
        "instance_number": number,
        "pixel_spacing_row": 1.4,
        "pixel_spacing_column": 1.4,
        "rescale_slope": 1.0,
        "rescale_intercept": 0.0,
        "slice_location": STEP * slice_index,
        "trigger_time": 900.0 * phase / cine.phases + 3.0 * slice_index,
    }
    values |= {f"image_position_{axis}": position[i] for i, axis in enumerate("xyz")}
    values |= {
        f"image_orientation_{half}_{axis}": cosine
        for half, direction in (("row", (1.0, 0, 0)), ("column", (0, 0.8, -0.6)))
        for axis, cosine in zip("xyz", direction, strict=True)
    }
    return Row(
        cine.patient_id,
        number,
        {kind: np.round(vertices, 2) for kind, vertices in drawn.items()},
        np.minimum(rng.exponential(100, (SIZE, SIZE)), 4000).astype(np.int16),
        values,
    )


def study(patients=3, slices=8, phases=4, seed=0, *, every_phase=False):
    """Return the rows of some phantom patients, drawn as `dicom-etl phantom` draws them."""
    return copy.deepcopy(clean_rows(patients, slices, phases, seed, every_phase))


@functools.cache
def clean_rows(patients, slices, phases, seed, every_phase):
    """Return the rows that `study` copies, which most tests change."""
    rows = []
    for patient in range(patients):
        cine = Cine(seed, patient, slices, phases)
        kinds = {}
        for slice_index, phase, kind in cine.contoured():
            kinds.setdefault((slice_index, phase), []).append(kind)
        if every_phase:
            kinds = {(place, phase): ["i"] for place, _ in kinds for phase in range(phases)}
        rows += [make_row(cine, *place, drawn) for place, drawn in kinds.items()]
    return rows


def check(rows):
    """Return all findings on rows, as a build puts them together."""
    findings, images, shapes, columns = [], [], [], []
    for place, row in enumerate(rows):
        key = SampleKey(row.patient_id, "", row.number)
        for kind, vertices in row.contours.items():
            code = CARDIAC[kind].code
            shape, remarks = check_region(Region(code, (vertices,), ""))
            shapes.append((place, code, *shape))
            path = row.contour_path(kind)
            findings += [Finding(one.code, path, one.message, key, code) for one in remarks]
        statistics = image_statistics(row.image)
        images.append(xxhash.xxh3_64_intdigest(row.image.data))
        columns.append(
            row.values
            | {"patient_id": row.patient_id, "slice": row.number, "dicom_path": row.dicom_path}
            | {"series": row.series, "frame_number": 1}
            | {"maximum": statistics.maximum, "p01": statistics.p01, "p99": statistics.p99}
            | {f"{kind}contour_path": row.contour_path(kind) for kind in "io"}
            | {
                f"{kind}contour_area": area(row.contours[kind]) if kind in row.contours else np.nan
                for kind in "io"
            }
        )
    manifest = {name: [row[name] for row in columns] for name in columns[0]}
    packed = {
        name: np.array([str(value).encode() for value in values])
        if isinstance(values[0], str)
        else np.array(values, np.float64)
        for name, values in manifest.items()
    }
    by_code = np.array(sorted(shapes, key=lambda shape: (shape[1], shape[0])), SHAPES)
    return findings + check_rows(Rows(packed, np.array(images, np.uint64), by_code, BOTH))


def found(rows):
    """Return what is suspicious; rows without a place are an info of their own, tested below."""
    return sorted(
        (finding.code, finding.path) for finding in check(rows) if finding.severity != "info"
    )


def systoles(rows):
    """Return the rows of the first patient's end-systole, from base to apex."""
    return [row for row in rows if row.patient_id == rows[0].patient_id and "o" not in row.contours]


def scaled(vertices, factor):
    centre = vertices.mean(axis=0)
    return centre + factor * (vertices - centre)


# ------------------------------------------------------------------------------- clean drawings


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("shape", [(4, 8, 10), (12, 3, 2), (1, 14, 30), (2, 1, 1)])
def test_clean_phantoms_give_nothing(seed, shape):
    assert check(study(*shape, seed=seed)) == []


@pytest.mark.parametrize("phases", [12, 25])
def test_clean_cines_with_every_phase_drawn_give_nothing(phases):
    assert check(study(2, 9, phases, every_phase=True)) == []


@pytest.mark.parametrize("missing", [["trigger_time"], ["slice_location", "trigger_time"]])
def test_clean_phantoms_without_some_attributes_give_nothing(missing):
    rows = study()
    for row in rows:
        row.values |= dict.fromkeys(missing, np.nan)
    assert check(rows) == []


POSITION = [f"image_position_{axis}" for axis in "xyz"]
ORIENTATION = [f"image_orientation_{half}_{axis}" for half in ("row", "column") for axis in "xyz"]


@pytest.mark.parametrize(
    ("missing", "attribute"),
    [
        (["image_position_x"], "ImagePositionPatient"),
        (["slice_location", *POSITION], "ImagePositionPatient"),
        (["pixel_spacing_row", "pixel_spacing_column"], "PixelSpacing"),
        (ORIENTATION, "ImageOrientationPatient"),
    ],
)
def test_missing_geometry_is_one_info_about_the_data_set_and_no_more(missing, attribute):
    """Such rows are in doubt only where a length in mm or a neighbour in space counts."""
    rows = study()
    for row in rows[:5]:
        row.values |= dict.fromkeys(missing, np.nan)
    (finding,) = check(rows)
    assert (finding.code, finding.severity, finding.path) == ("geometry-missing", "info", "")
    assert finding.key is None
    assert f"no usable {attribute} in 5 of {len(rows)} rows (1 patient)." in finding.message


@pytest.mark.parametrize(
    ("cosines", "is_told"),
    [
        ((0, 0, 0, 0, 0, 0), True),
        ((2, 0, 0, 0, 2, 0), True),
        ((1, 0, 0, 1, 0, 0), True),
        ((1, 0, 0, 0, 0.8, -0.6), False),
        ((0.9999, 0.01, 0, -0.01, 0.79, -0.61), False),  # rounded
    ],
)
def test_cosines_that_are_no_directions_are_missing(cosines, is_told):
    rows = study()
    names = [f"image_orientation_{half}_{axis}" for half in ("row", "column") for axis in "xyz"]
    for row in rows:
        row.values |= dict(zip(names, map(float, cosines), strict=True))
    told = [finding.message for finding in check(rows) if finding.code == "geometry-missing"]
    assert bool(told) == is_told
    assert all("no usable ImageOrientationPatient in" in message for message in told)


def test_missing_geometry_names_each_attribute_with_its_rows_and_patients():
    rows = study()
    for row in rows:
        row.values["pixel_spacing_row"] = 0.0  # no spacing either
    for row in rows[-3:]:
        row.values |= dict.fromkeys(POSITION + ORIENTATION, np.nan)
    (message,) = (finding.message for finding in check(rows))
    n = len(rows)
    assert message.startswith(
        f"images have no usable PixelSpacing in {n} of {n} rows (3 patients), ImagePositionPatient "
        f"in 3 of {n} rows (1 patient), ImageOrientationPatient in 3 of {n} rows (1 patient). "
    )


def test_contours_on_a_grid_of_half_pixels_give_nothing():
    """As the real ones: a staircase, one step a point."""
    rows = study()
    for row in rows:
        for kind, vertices in row.contours.items():
            line = np.linspace(vertices, np.roll(vertices, -1, axis=0), 4, endpoint=False)
            steps = np.round(line.swapaxes(0, 1).reshape(-1, 2) * 2) / 2
            row.contours[kind] = steps[(np.diff(steps, axis=0, append=steps[:1]) != 0).any(axis=1)]
    assert check(rows) == []


# --------------------------------------------------------------------------------------- one row


def test_inner_contours_of_phantoms_lie_inside():
    for row in study(1):
        if "o" in row.contours:
            inner, outer = (rasterise(row.contours[kind], 256, 256) for kind in "io")
            assert (inner & ~outer).sum() < MIN_OUTSIDE


# ---------------------------------------------------------------------------- identical drawings


def written(vertices, places):
    """Return vertices as a file with so many decimals gives them back."""
    return np.array([[float(f"{value:.{places}e}") for value in row] for row in vertices])


@pytest.mark.parametrize(
    "copy",
    [
        lambda v: v.copy(),
        lambda v: np.roll(v, 40, axis=0),
        lambda v: v[::-1],
        lambda v: np.vstack([v, v[:1]]),
        lambda v: written(v, 12),
        lambda v: v.astype(np.float32).astype(np.float64),
    ],
    ids=["as it is", "other start", "backwards", "closed", "exponents", "single precision"],
)
@pytest.mark.parametrize("place", [1, 30], ids=["same patient", "another patient"])
def test_a_copied_contour_is_identical(copy, place):
    rows = study()
    one, two = systoles(rows)[3:5]
    if place > 1:
        two = rows[-2]
        two.contours.pop("o", None)
        for row in rows[-7:]:
            row.values["slice_location"] = row.values["image_position_x"] = np.nan  # no neighbours
    two.contours["i"] = copy(one.contours["i"])
    paths = sorted([one.contour_path("i"), two.contour_path("i")])
    assert found(rows) == [("identical-contour", path) for path in paths]
    messages = {finding.path: finding.message for finding in check(rows)}
    assert two.contour_path("i") in messages[one.contour_path("i")]


def test_an_inner_contour_that_is_the_outer_one_is_identical():
    rows = study()
    one = next(row for row in rows if "o" in row.contours)
    one.contours["i"] = one.contours["o"][::-1]
    same = [finding for finding in check(rows) if finding.code == "identical-contour"]
    assert [finding.path for finding in same] == [one.contour_path("i"), one.contour_path("o")]
    assert same[0].message.startswith("is drawn as the o-contour of this image is, ")
    assert same[1].message.startswith("is drawn as the i-contour of this image is, ")


@pytest.mark.parametrize("shift", [0.02, 0.5])
def test_a_contour_moved_a_little_is_not_identical(shift):
    rows = study()
    one, two = systoles(rows)[3:5]
    two.contours["i"] = one.contours["i"] + np.array([shift, 0])
    assert found(rows) == []


def test_many_identical_contours_name_a_few_others():
    rows = study(1, 12, 2)
    copies = systoles(rows)
    for row in copies:
        row.contours["i"] = copies[0].contours["i"]
    findings = check(rows)
    assert [finding.code for finding in findings] == ["identical-contour"] * len(copies)
    assert all("and 6 more" in finding.message for finding in findings)
    assert all(finding.path not in finding.message for finding in findings)


def test_the_same_contour_on_the_same_image_is_an_identical_image_only():
    rows = study()
    one, two = systoles(rows)[3:5]
    two.contours, two.image = {"i": one.contours["i"]}, one.image.copy()
    assert found(rows) == [("identical-image", row.dicom_path) for row in (one, two)]


def test_an_image_that_differs_in_one_pixel_is_another():
    rows = study()
    one, two = systoles(rows)[3:5]
    two.image = one.image.copy()
    assert len(found(rows)) == 2
    two.image[3, 4] += 1
    assert found(rows) == []


# ----------------------------------------------------------------------------------- odd values


@pytest.mark.parametrize(
    ("share", "code"),
    [(0.5, None), (0.9, None), (0.985, "image-constant"), (1.0, "image-constant")],
)
def test_images_that_are_almost_constant(share, code):
    rows = study()
    flat = rows[5].image.ravel()
    flat[: round(share * flat.size)] = 60
    assert found(rows) == ([(code, rows[5].dicom_path)] if code else [])


@pytest.mark.parametrize(
    ("percent", "is_found"), [(0.2, False), (0.8, False), (1.5, True), (20, True)]
)
def test_images_cut_off_at_the_top(percent, is_found):
    rows = study()
    top = np.percentile(rows[5].image, 100 - percent)
    rows[5].image = np.minimum(rows[5].image, top.astype(np.int16))
    assert found(rows) == [("image-saturated", rows[5].dicom_path)] * is_found


@pytest.mark.parametrize(
    ("factor", "is_found"), [(0.05, True), (0.1, True), (0.4, False), (1.5, False), (3, True)]
)
def test_areas_far_from_the_data_sets(factor, is_found):
    rows = study(15, 1, 1)  # one slice each: no neighbours
    for row in rows:
        del row.contours["o"]
    rows[4].contours["i"] = scaled(rows[4].contours["i"], factor)
    assert found(rows) == [("area-outlier", rows[4].contour_path("i"))] * is_found


def test_a_few_contours_have_no_usual_area():
    rows = study(9, 1, 1)
    rows[4].contours = {"i": scaled(rows[4].contours["i"], 4)}
    assert found(rows) == []


@pytest.mark.parametrize(
    ("usual", "own", "is_told"),
    [
        ((1, -1024), (1, 0), True),
        ((2, 0), (1, 0), True),
        ((1, 0), (1, -1024), False),  # one that is rescaled among others that are not
        ((1, -1024), (1, -1000), False),
        ((1, 0), (1, 0), False),
        (None, (1, 0), False),  # each image has a slope of its own
    ],
)
def test_an_image_that_is_not_rescaled_as_its_series_is(usual, own, is_told):
    rows = study()
    for place, row in enumerate(rows):
        slope, intercept = (1 + place / 100, 0) if usual is None else usual
        row.values |= {"rescale_slope": slope, "rescale_intercept": intercept}
    rows[5].values |= dict(zip(("rescale_slope", "rescale_intercept"), own, strict=True))
    assert found(rows) == [("rescale-differs", rows[5].dicom_path)] * is_told


# ------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize(("factor", "is_found"), [(1.0005, False), (1.002, True), (0.5, True)])
@pytest.mark.parametrize("axis", ["row", "column"])
def test_a_spacing_that_changes(axis, factor, is_found):
    rows = study()
    rows[5].values[f"pixel_spacing_{axis}"] *= factor
    assert found(rows) == [("geometry-changes", rows[5].dicom_path)] * is_found


@pytest.mark.parametrize(("degrees", "is_found"), [(0.2, False), (1, True), (30, True)])
def test_an_orientation_that_changes(degrees, is_found):
    rows = study()
    turn = np.radians(degrees)
    rows[5].values["image_orientation_row_x"] = np.cos(turn)
    rows[5].values["image_orientation_row_y"] = np.sin(turn)
    assert found(rows) == [("geometry-changes", rows[5].dicom_path)] * is_found


def test_series_differ_from_each_other_in_peace():
    rows = study()
    for row in rows[5:9]:
        row.values |= {"series_instance_uid": "9.9", "pixel_spacing_row": 0.7}
    assert found(rows) == []
    for row in rows:
        row.values["series_instance_uid"] = ""  # no series is known
    assert found(rows) == []


def test_an_instance_number_that_differs():
    rows = study()
    rows[5].values["instance_number"] += 1
    assert found(rows) == [("instance-number-differs", rows[5].dicom_path)]
    rows[5].values["instance_number"] = np.nan
    assert found(rows) == []


def test_instance_numbers_that_are_all_ahead_agree():
    rows = study()
    for row in rows:
        row.values["instance_number"] += 40
    assert found(rows) == []
    rows[5].values["instance_number"] -= 40
    assert found(rows) == [("instance-number-differs", rows[5].dicom_path)]


def test_instance_numbers_that_do_not_agree_say_nothing():
    rows = study()
    for place, row in enumerate(rows):
        row.values["instance_number"] = place % 5
    assert found(rows) == []


# ---------------------------------------------------------------------------------------- jumps


@pytest.mark.parametrize("place", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("factor", "is_found"), [(0.7, True), (0.93, False), (1.1, False), (1.4, True)]
)
def test_a_contour_too_large_or_small_for_its_neighbours(place, factor, is_found):
    rows = study()
    row = systoles(rows)[place]
    row.contours["i"] = scaled(row.contours["i"], factor)
    assert found(rows) == [("area-jump", row.contour_path("i"))] * is_found


@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize(("factor", "is_found"), [(0.8, False), (1.3, False), (2.2, True)])
def test_at_the_ends_only_large_jumps_count(place, factor, is_found):
    rows = study()
    row = systoles(rows)[place]
    row.contours["i"] = scaled(row.contours["i"], factor)
    assert found(rows) == [("area-jump", row.contour_path("i"))] * is_found


@pytest.mark.parametrize("place", [1, 3, 4])
@pytest.mark.parametrize(("pixels", "is_found"), [(1, False), (2.5, False), (6, True), (25, True)])
def test_a_contour_beside_its_neighbours(place, pixels, is_found):
    rows = study()
    row = systoles(rows)[place]
    row.contours["i"] = row.contours["i"] + pixels * np.array([0.6, -0.8])
    assert found(rows) == [("centroid-jump", row.contour_path("i"))] * is_found


def test_two_jumps_in_one_stack():
    rows = study(1, 12, 2)
    low, high = systoles(rows)[2], systoles(rows)[6]
    low.contours["i"] = scaled(low.contours["i"], 1.5)
    high.contours["i"] = scaled(high.contours["i"], 0.6)
    paths = sorted([low.contour_path("i"), high.contour_path("i")])
    assert found(rows) == [("area-jump", path) for path in paths]


def test_the_outer_contour_jumps_alone():
    rows = study()
    row = next(row for row in rows[4:] if "o" in row.contours)
    row.contours["o"] = row.contours["o"] + 12
    assert found(rows) == [("centroid-jump", row.contour_path("o"))]


def test_a_contour_of_the_wrong_phase_jumps():
    """End-diastole's contour, traced on end-systole's image, and a little off."""
    rows = study(1, 10, 4)
    wrong = systoles(rows)[3]
    twin = next(r for r in rows if "o" in r.contours and abs(r.number - wrong.number) < 4)
    wrong.contours["i"] = twin.contours["i"] + 0.2
    assert found(rows) == [("area-jump", wrong.contour_path("i"))]


@pytest.mark.parametrize("missing", ["trigger_time", "image_position_x", None])
def test_neighbours_are_found_without_times_or_positions(missing):
    rows = study()
    for row in rows if missing else []:
        row.values[missing] = np.nan
    row = systoles(rows)[3]
    row.contours["i"] = scaled(row.contours["i"], 1.5)
    assert found(rows) == [("area-jump", row.contour_path("i"))]


def test_slices_cut_out_of_the_plane_differently_are_no_jump():
    rows = study()
    for place, row in enumerate(rows):
        shift = np.array([7.0 * (place % 3), -4.0 * (place % 2)])
        row.values["image_position_x"] += 1.4 * shift[0]
        row.values["image_position_y"] += 1.4 * 0.8 * shift[1]
        row.values["image_position_z"] -= 1.4 * 0.6 * shift[1]
        row.contours = {kind: vertices - shift for kind, vertices in row.contours.items()}
    assert found(rows) == []


@pytest.mark.parametrize(("factor", "is_found"), [(1.1, False), (1.35, True)])
def test_one_phase_of_a_cine_that_jumps(factor, is_found):
    rows = study(1, 9, 25, every_phase=True)
    row = rows[3 * 25 + 8]
    row.contours["i"] = scaled(row.contours["i"], factor)
    assert found(rows) == [("area-jump", row.contour_path("i"))] * is_found


def test_a_slice_of_a_cine_may_differ_from_its_neighbours_if_all_its_phases_do():
    """What jumps between slices but not between phases may be anatomy; it is left alone."""
    rows = study(1, 9, 25, every_phase=True)
    for row in rows[3 * 25 : 4 * 25]:
        row.contours["i"] = scaled(row.contours["i"], 1.35)
    assert found(rows) == []


def test_order_of_the_rows_does_not_matter():
    rows = study()
    row = systoles(rows)[3]
    row.contours["i"] = scaled(row.contours["i"], 1.5)
    order = np.random.default_rng(0).permutation(len(rows))
    assert found([rows[place] for place in order]) == found(rows)


# -------------------------------------------------------------------------------- broken headers


@pytest.mark.parametrize("seed", range(20))
def test_senseless_headers_stop_nothing(seed):
    """Neither an exception nor a NumPy warning, which here is one."""
    rng = np.random.default_rng(seed)
    rows = study(2)
    values = [0.0, -1.0, 1e-300, 1e300, -1e300, np.nan, np.inf, 1.5, 2.0**53]
    for row in rows:
        for name in [name for name in row.values if name != "series_instance_uid"]:
            if rng.random() < 0.3:
                row.values[name] = rng.choice(values)
    check(rows)


# -------------------------------------------------------------------------------------- numbers


def test_numbers_of_a_region_are_small():
    assert SHAPES.itemsize <= 40


def test_findings_name_sample_structure_and_partner():
    rows = study()
    one, two = systoles(rows)[3:5]
    two.contours["i"] = one.contours["i"]
    first, second = sorted(check(rows), key=lambda finding: finding.key)
    keys = sorted(SampleKey(row.patient_id, "", row.number) for row in (one, two))
    assert [first.key, second.key] == keys
    assert [first.other_key, second.other_key] == keys[::-1]
    assert first.label == second.label == CARDIAC["i"].code
    two.contours, two.image = {"i": one.contours["i"]}, one.image.copy()
    assert {(finding.label, finding.other_key) for finding in check(rows)} == {
        (0, key) for key in keys
    }


def test_slices_of_series_that_are_told_apart_are_no_numbers_of_files():
    rows = study()
    for row in rows:
        row.series = "1.2"
    rows[5].values["instance_number"] += 1
    assert found(rows) == []


def test_all_rows_are_checked_in_little_time():
    rows = study(2)
    start = time.process_time()
    check(rows * 20)
    assert time.process_time() - start < 5


def test_end_systole_is_what_the_systoles_are():
    rows = study(phases=10)
    assert (systoles(rows)[0].number - 1) % 10 == end_systole(10)
