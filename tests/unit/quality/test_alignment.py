import json
from collections import Counter
from functools import cache

import numpy as np
import pytest

from etl.findings import SampleKey
from etl.labels import CARDIAC, cardiac_scheme, named_scheme
from etl.model import AnnotationRef, FrameRef, Link, Region
from etl.phantom.heart import (
    Cine,
    contour_outline,
    contour_vertices,
    contraction,
    draw_anatomy,
    end_systole,
)
from etl.phantom.image import short_axis_image, slice_scene
from etl.phantom.objects import Patient
from etl.quality.alignment import (
    ALIGNMENT,
    AT_EDGE,
    MEASURED,
    NOT_AUDITED,
    TOO_LITTLE_CONTRAST,
    audit,
    audited,
    edge_contrast,
    mark_audited,
    measure,
)

PHASES = 4
SLICES = 5  # three of them contoured


@cache
def samples(patient, seed=0):
    """Return (image, contours) of a phantom patient's rows."""
    cine = Cine(seed, patient, SLICES, PHASES)
    rows = []
    for slice_index in range(1, SLICES - 1):
        scene = slice_scene(draw_anatomy(cine), cine.level(slice_index))
        for phase in (0, end_systole(PHASES)):
            noise = cine.rng(slice_index + 1, phase + 1)
            image = short_axis_image(scene, contraction(phase, PHASES), noise)
            contours = {
                kind: np.round(contour_vertices(contour_outline(cine, slice_index, phase, kind)), 2)
                for kind in "io"
            }
            rows.append((image, contours))
    return rows


def audit_moved(shifts, *, kind="i", seed=0, contour_origin=0):
    """Audit one patient for each (dx, dy) that its contours are moved by."""
    patient_ids, paths, rows = [], [], []
    for patient, shift in enumerate(shifts):
        for image, contours in samples(patient, seed):
            patient_ids.append(f"P{patient}")
            paths.append(f"dicoms/P{patient}/{len(paths)}.dcm")
            rows.append(measure(image, contours[kind] + np.array(shift), CARDIAC[kind]))
    return audit(patient_ids, paths, np.array(rows, ALIGNMENT), contour_origin)


def codes(audit_):
    return [(finding.code, finding.path) for finding in audit_.findings]


STILL = [(0, 0)] * 4


# -------------------------------------------------------------------------------- one contour


@pytest.mark.parametrize(
    "shift", [(0, 0), (1, 1), (-0.3, 0.7), (2.4, -1.6), (-2.7, -2.7), (0.5, 0)]
)
@pytest.mark.parametrize("patient", range(4))
def test_a_displacement_is_recovered(patient, shift):
    for image, contours in samples(patient):
        found = measure(image, contours["i"] + np.array(shift), CARDIAC["i"])
        assert found.outcome == MEASURED
        assert (found.dx, found.dy) == pytest.approx(shift, abs=0.25)


@pytest.mark.parametrize("change", ["start", "direction", "half pixels", "few points", "closed"])
def test_how_a_contour_is_written_matters_little(change):
    for image, contours in samples(1):
        vertices = contours["i"] + 1.25
        if change == "half pixels":
            line = np.linspace(vertices, np.roll(vertices, -1, axis=0), 4, endpoint=False)
            vertices = np.round(line.swapaxes(0, 1).reshape(-1, 2) * 2) / 2
        vertices = {
            "start": np.roll(vertices, 17, axis=0),
            "direction": vertices[::-1],
            "half pixels": vertices,
            "few points": vertices[::5],
            "closed": np.vstack([vertices, vertices[:1]]),
        }[change]
        found = measure(image, vertices, CARDIAC["i"])
        assert (found.dx, found.dy) == pytest.approx((1.25, 1.25), abs=0.25)


@pytest.mark.parametrize("dtype", ["<i2", "<u2", "<i4", "<f4"])
def test_every_type_of_image_gives_the_same(dtype):
    image, contours = samples(0)[0]
    expected = measure(image, contours["i"], CARDIAC["i"])
    assert measure(image.astype(dtype), contours["i"], CARDIAC["i"]) == expected
    assert measure((image * 0.5).astype("<f4"), contours["i"], CARDIAC["i"]) == pytest.approx(
        expected
    )


def test_no_contrast_is_left_out():
    image, contours = samples(0)[0]
    noise = np.random.default_rng(0).normal(300, 30, image.shape).astype(np.int16)
    for flat in (np.zeros_like(image), noise, image.max() - image):
        assert measure(flat, contours["i"], CARDIAC["i"]).outcome == TOO_LITTLE_CONTRAST


@pytest.mark.parametrize("shift", [(3.6, 0), (0, -4.2), (3.8, 3.8)])
def test_what_lies_too_far_off_is_left_out(shift):
    for image, contours in samples(2):
        found = measure(image, contours["i"] + np.array(shift), CARDIAC["i"])
        assert found.outcome in {AT_EDGE, TOO_LITTLE_CONTRAST}
        assert np.isnan([found.dx, found.dy]).all()


def test_contours_at_the_border_of_the_image_are_no_trouble():
    image, contours = samples(0)[0]
    for shift in ((-110, 0), (110, 110), (-400, 9000)):
        assert measure(image, contours["i"] + np.array(shift), CARDIAC["i"]).outcome != MEASURED
    cut = image[:, 120:]
    found = measure(np.ascontiguousarray(cut), contours["i"] - np.array([120, 0]), CARDIAC["i"])
    assert found.outcome != NOT_AUDITED


def disc(dark, bright):
    y, x = np.mgrid[:64, :64]
    inside = np.clip(12.5 - np.hypot(x - 30.3, y - 33.8), 0, 1)
    image = dark + (bright - dark) * inside
    turns = np.linspace(0, 2 * np.pi, 50, endpoint=False)
    return image.astype(np.int16), np.stack(
        [30.3 + 12 * np.cos(turns), 33.8 + 12 * np.sin(turns)], 1
    )


def test_an_outer_contour_is_dark_inside():
    image, vertices = disc(400, 100)
    found = measure(image, vertices + np.array([0.8, -0.4]), CARDIAC["o"])
    assert (found.dx, found.dy) == pytest.approx((0.8, -0.4), abs=0.1)
    assert found.outcome == MEASURED
    assert measure(image, vertices, CARDIAC["i"]).outcome == TOO_LITTLE_CONTRAST
    image, vertices = disc(100, 400)
    assert measure(image, vertices, CARDIAC["o"]).outcome == TOO_LITTLE_CONTRAST


def test_a_straight_edge_tells_no_place():
    image = np.zeros((64, 64), np.int16)
    image[:, :32] = 500
    line = np.array([[31.5, 10], [31.5, 50], [31.4, 50], [31.4, 10]])
    assert measure(image, line, CARDIAC["i"]).outcome == TOO_LITTLE_CONTRAST


# ---------------------------------------------------------------------------------- the choice


BOTH = cardiac_scheme(("i", "o"))


def links(patient_id, numbers, codes=(1,)):
    return [
        Link(
            SampleKey(patient_id, "", n),
            "A",
            FrameRef(f"{n}.dcm"),
            tuple(AnnotationRef(code, f"{code}-{n}") for code in codes),
        )
        for n in numbers
    ]


def marked(found, *options, scheme=BOTH):
    """Return which links the audit takes; nothing else of them may change."""
    before = list(found)
    mark_audited(found, scheme, *options)
    assert [link._replace(is_audited=False) for link in found] == before
    return [link.is_audited for link in found]


def test_six_of_each_patient_evenly_spread():
    chosen = marked(links("P1", range(18)) + links("P2", range(4)) + links("P3", [5]))
    assert [place for place, is_chosen in enumerate(chosen[:18]) if is_chosen] == [
        1,
        4,
        7,
        10,
        13,
        16,
    ]
    assert all(chosen[18:])


@pytest.mark.parametrize(("per_patient", "n_chosen"), [(1, 1), (4, 4), (100, 30), (None, 30)])
def test_fewer_more_or_all(per_patient, n_chosen):
    assert sum(marked(links("P1", range(30)), per_patient)) == n_chosen


def test_outer_contours_only_where_a_patient_has_no_inner_one():
    mixed = links("P1", range(3), [2]) + links("P1", range(3, 6), [1, 2])
    assert marked(mixed + links("P2", range(2), [2])) == [False] * 3 + [True] * 5


@pytest.mark.parametrize(
    ("n", "per_patient", "n_chosen"),
    [(2, 6, 2), (9, 6, 3), (20, 6, 5), (40, 6, 6), (9, 2, 2), (9, 8, 8), (9, None, 9)],
)
def test_of_structures_of_unknown_contrast_few_are_measured(n, per_patient, n_chosen):
    chosen = marked(links("P1", range(n)), per_patient, scheme=named_scheme(["a"]))
    assert sum(chosen) == n_chosen


def test_structures_of_unknown_contrast_take_turns():
    scheme = named_scheme(["a", "b"])
    assert marked(links("P1", range(3)), scheme=scheme) == [True] * 3
    drawn = [Region(code, (np.full((3, 2), code),), "") for code in (1, 2)]
    assert audited(drawn, scheme) is None
    keys = [SampleKey(f"P{k}", "", number) for k in range(4) for number in range(1, 9)]
    chosen = Counter(audited(drawn, scheme, key)[1].code for key in keys)
    assert min(chosen.values()) > 8
    assert audited(drawn, scheme, keys[0])[1] == audited(drawn[::-1], scheme, keys[0])[1]
    assert audited([Region(1, (), "", np.ones((3, 3), bool))], scheme, keys[0]) is None


def test_the_longest_contour_of_the_first_structure_is_measured():
    inner, outer, part = np.zeros((9, 2)), np.ones((20, 2)), np.zeros((4, 2))
    vertices, structure = audited([Region(2, (outer,), ""), Region(1, (part, inner), "")], BOTH)
    assert vertices is inner
    assert structure == CARDIAC["i"]
    vertices, structure = audited([Region(2, (outer,), ""), Region(1, (), "", part > 0)], BOTH)
    assert vertices is outer
    assert structure == CARDIAC["o"]


# -------------------------------------------------------------------- structures of any contrast

SHAPES = named_scheme(["box", "cylinder", "sphere", "torus"])


@cache
def shapes_of(patient, seed=0, slices=9):
    """Return (image, contours by code) of a phantom patient's planes, in pixels."""
    one = Patient(patient, 176, 256, slices, seed)
    rows = []
    for place in range(slices):
        contours = {
            code: (max(outlines, key=len) - one.corner) / one.spacing[::-1]
            for code, structure in SHAPES.by_code.items()
            if (outlines := one.shapes[structure.name].outlines(one.height(place)))
        }
        if contours:
            rows.append((one.pixels(place).astype(np.int16), contours))
    return rows


def audit_shapes(shifts, *, seed=0, soft=(), change=lambda vertices, _rng: vertices):
    """Audit shapes of one patient for each (dx, dy) that its contours are moved by."""
    rng = np.random.default_rng(seed)
    patient_ids, rows = [], []
    for patient, shift in enumerate(shifts):
        for number, (image, contours) in enumerate(shapes_of(patient, seed)):
            regions = [
                Region(code, (change(vertices, rng) + np.array(shift),), "")
                for code, vertices in contours.items()
            ]
            found = audited(regions, SHAPES, SampleKey(f"P{patient}", "", number))
            noise = rng.normal(300, 30, image.shape)
            patient_ids.append(f"P{patient}")
            rows.append(measure(noise if found[1].code in soft else image, *found))
    return audit_rows(patient_ids, np.array(rows, ALIGNMENT))


@pytest.mark.parametrize("seed", range(10))
def test_clean_shapes_give_nothing(seed):
    result = audit_shapes(STILL, seed=seed)
    assert result.findings == []
    assert (result.numbers["dx"], result.numbers["dy"]) == pytest.approx((0, 0), abs=0.06)
    assert result.numbers["n_too_little_contrast"] == 0


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(
    ("shift", "is_found"),
    [
        ((0.5, 0), True),
        ((0, -0.5), True),
        ((0.5, 0.5), True),
        ((-0.5, 0.5), True),
        ((1, 0), True),
        ((-2.5, 1.5), True),
        ((0.3, 0), False),
        ((-0.3, 0.3), False),
    ],
)
def test_half_a_pixel_is_found_whatever_the_contrast(shift, is_found, seed):
    result = audit_shapes([shift] * 4, seed=seed)
    assert codes(result) == [("alignment-dataset", "")] * is_found
    assert (result.numbers["dx"], result.numbers["dy"]) == pytest.approx(shift, abs=0.1)
    for finding in result.findings:
        is_half = max(map(abs, shift)) == 0.5
        assert ("ImagePositionPatient" in finding.message) == is_half


def test_one_pixel_in_both_axes_names_the_option_of_text_and_the_attribute_of_objects():
    (finding,) = audit_shapes([(1, 1)] * 4).findings
    assert "build with --contour-origin 1. A structure set has millimetres" in finding.message


def test_half_a_pixel_of_one_patient():
    shifts = [(0, 0)] * 5
    shifts[3] = (0.5, -0.5)
    assert codes(audit_shapes(shifts)) == [("alignment-patient", "dicoms/P3")]


def test_soft_structures_say_nothing_and_hide_nothing():
    assert audit_shapes(STILL, soft=(1, 2, 3, 4)).numbers["n_contours"] == 0
    shifted = audit_shapes([(0.5, 0)] * 4, soft=(1, 3))
    assert codes(shifted) == [("alignment-dataset", "")]
    assert shifted.numbers["n_too_little_contrast"] > 8


@pytest.mark.parametrize("seed", range(3))
def test_structures_drawn_too_large_or_trembling_are_not_displaced(seed):
    def larger(vertices, rng):
        middle = vertices.mean(axis=0)
        return middle + (vertices - middle) * 1.04 + rng.normal(0, 0.4, (1, 2))

    assert audit_shapes(STILL, seed=seed, change=larger).findings == []


def test_an_edge_on_one_side_is_no_place():
    """A soft structure beside an edge, drawn a little over it, would look displaced."""
    image = np.full((64, 64), 100, np.int16)
    image[:, 40:] = 900
    turns = np.linspace(0, 2 * np.pi, 80, endpoint=False)
    vertices = np.stack([30.5 + 10 * np.cos(turns), 32 + 10 * np.sin(turns)], axis=1)
    assert measure(image, vertices, SHAPES[1]).outcome == TOO_LITTLE_CONTRAST


def test_a_single_structure_that_is_off_is_no_displacement_of_the_images():
    """Three of four lie on their edges: the drawer of the fourth is another one."""
    offsets = {1: (0.6, 0), 2: (0.02, 0), 3: (0, 0.01), 4: (-0.01, 0)}
    rows = np.array(
        [(*offset, MEASURED, code) for code, offset in offsets.items() for _ in range(6)]
        + [(0.6, 0, MEASURED, 1)] * 20,
        ALIGNMENT,
    )
    assert audit_rows([f"P{k % 4}" for k in range(len(rows))], rows).findings == []


# --------------------------------------------------------------------------------- the data set


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", "io")
def test_clean_phantoms_give_nothing(seed, kind):
    assert audit_moved(STILL, kind=kind, seed=seed).findings == []


@pytest.mark.parametrize(
    ("shift", "is_found"),
    [
        ((0.3, 0.3), False),
        ((0, -0.35), False),
        ((0.5, 0), True),
        ((-0.5, -0.5), True),
        ((0.6, 0), True),
        ((-0.5, 0.5), True),
        ((2.5, 1), True),
    ],
)
def test_all_contours_displaced(shift, is_found):
    result = audit_moved([shift] * 4)
    assert codes(result) == [("alignment-dataset", "")] * is_found
    assert (result.numbers["dx"], result.numbers["dy"]) == pytest.approx(shift, abs=0.25)
    assert result.numbers["n_contours"] == 24
    for finding in result.findings:
        assert f"({result.numbers['dx']:+.2f}, {result.numbers['dy']:+.2f})" in finding.message
        assert "4 of 4 patients" in finding.message
        assert "--contour-origin" not in finding.message


@pytest.mark.parametrize(("origin", "shift"), [(0, 1.0), (0, 0.8), (1, -1.0)])
def test_contours_that_count_from_elsewhere_are_told_the_option(origin, shift):
    (finding,) = audit_moved([(shift, shift)] * 4, contour_origin=origin).findings
    assert finding.message.endswith(f"build with --contour-origin {1 - origin}.")


def test_the_option_is_not_advised_twice():
    (finding,) = audit_moved([(1, 1)] * 4, contour_origin=1).findings
    assert "--contour-origin" not in finding.message


def test_one_patient_alone_is_a_data_set():
    assert codes(audit_moved([(1, 1)])) == [("alignment-dataset", "")]


def test_a_displacement_of_few_patients_is_not_the_data_sets():
    assert ("alignment-dataset", "") not in codes(audit_moved([(1, 1), *STILL]))
    assert codes(audit_moved([(1, 1), (0, 0)])) == []


@pytest.mark.parametrize("displaced", range(4))
@pytest.mark.parametrize(
    ("shift", "is_found"),
    [
        ((0.3, 0), False),
        ((0.5, 0), True),
        ((0.9, 0), True),
        ((-0.7, 0.7), True),
        ((2.5, 2.5), True),
        ((7, 0), True),
    ],
)
def test_one_patient_displaced(displaced, shift, is_found):
    shifts = list(STILL)
    shifts[displaced] = shift
    assert codes(audit_moved(shifts)) == [("alignment-patient", f"dicoms/P{displaced}")] * is_found


def test_one_patient_who_is_not_displaced_as_the_others_are():
    found = codes(audit_moved([(1, 1), (1, 1), (0, 0), (1, 1), (1, 1)]))
    assert found == [("alignment-dataset", ""), ("alignment-patient", "dicoms/P2")]


def audit_rows(patient_ids, rows):
    return audit(patient_ids, [f"dicoms/{patient_id}/1.dcm" for patient_id in patient_ids], rows)


def rows_of(offsets):
    return np.array([(*offset, MEASURED, 0) for offset in offsets], ALIGNMENT)


def test_scatter_is_not_a_displacement():
    """Drawn by hand, contours are off by a pixel here and there."""
    for seed in range(50):
        rng = np.random.default_rng(seed)
        rows = rows_of(rng.normal(0, 0.9, (36, 2)))
        assert audit_rows([f"P{k // 6}" for k in range(36)], rows).findings == []


def test_a_displacement_is_seen_through_scatter():
    for seed in range(50):
        rng = np.random.default_rng(seed)
        rows = rows_of(rng.normal(1, 0.6, (60, 2)))
        found = codes(audit_rows([f"P{k // 6}" for k in range(60)], rows))
        assert found == [("alignment-dataset", "")]


def test_a_patient_is_named_where_the_folder_does_not():
    offsets = [(0.01 * (k % 3), 0) for k in range(24)] + [(2, 2)] * 6
    patient_ids = [f"P{k // 6}" for k in range(30)]
    paths = [f"images/{k // 6}/series {k % 2}/{k}.dcm" for k in range(30)]
    (finding,) = audit(patient_ids, paths, rows_of(offsets)).findings
    assert (finding.code, finding.path) == ("alignment-patient", "images/4")
    assert finding.message.startswith("patient 'P4': its contours lie")


def test_few_contours_say_nothing():
    assert audit_rows(["P1"] * 3, rows_of([(1, 1)] * 3)).findings == []
    assert audit_rows([], np.zeros(0, ALIGNMENT)).findings == []
    assert audit_rows(["P1"] * 9, np.zeros(9, ALIGNMENT)).findings == []


def test_what_is_left_out_is_counted():
    rows = np.zeros(12, ALIGNMENT)
    rows["outcome"] = [MEASURED] * 5 + [TOO_LITTLE_CONTRAST] * 3 + [AT_EDGE] * 2 + [NOT_AUDITED] * 2
    numbers = audit_rows(["P1"] * 12, rows).numbers
    counts = {name: value for name, value in numbers.items() if name.startswith("n_")}
    assert counts == {
        "n_contours": 5,
        "n_too_little_contrast": 3,
        "n_at_edge": 2,
        "n_patients": 1,
    }


def test_numbers_fit_an_attribute():
    offsets = np.random.default_rng(0).normal(0, 0.2, (6000, 2))
    numbers = audit_rows([f"PATIENT-{k // 2:08d}" for k in range(6000)], rows_of(offsets)).numbers
    assert numbers["n_patients"] == 3000
    assert len(json.dumps(numbers)) < 65536
    small = audit_rows(["P1"] * 5, rows_of([(0.25, -0.5)] * 5)).numbers
    assert small["patients"] == {"P1": {"dx": 0.25, "dy": -0.5, "spread": 0.0, "n_contours": 5}}


@pytest.mark.parametrize("dx", [0.7449, 0.74499, 0.74549, 0.9449999, -0.7449])
def test_a_message_and_a_report_round_the_same_number(dx):
    """Rounded twice, 0.7446 is 0.745 and then 0.74 or 0.75; rounded once, 0.74."""
    result = audit_rows(["P1"] * 5, rows_of([(dx, 0.6)] * 5))
    (finding,) = result.findings
    assert f"({result.numbers['dx']:+.2f}, +0.60)" in finding.message


def test_the_contrast_at_a_contours_place_is_high_there_and_low_elsewhere():
    image, vertices = samples(0)[0][0], samples(0)[0][1]["i"]
    assert edge_contrast(image, vertices, CARDIAC["i"]) > 0.8
    assert edge_contrast(image, vertices + 0.8, CARDIAC["i"]) > 0.8  # at most a pixel off
    assert edge_contrast(image, vertices + 12, CARDIAC["i"]) < 0.3
    assert edge_contrast(image, vertices, CARDIAC["o"]) < 0
    assert edge_contrast(np.zeros_like(image), vertices, CARDIAC["i"]) == 0
