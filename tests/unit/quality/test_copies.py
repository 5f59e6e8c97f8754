import numpy as np
import pytest

from etl.labels import CARDIAC, cardiac_scheme, named_scheme
from etl.quality import copies
from etl.quality.copies import Twin, judge

SIZE = 64
BOTH = cardiac_scheme(("i", "o"))
INNER, OUTER = CARDIAC["i"], CARDIAC["o"]


def circle(x, y, radius):
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], axis=1)


def disc(x, y, radius):
    """Return an image of a bright disc with a soft edge."""
    down, right = np.mgrid[:SIZE, :SIZE]
    distance = np.hypot(right - x, down - y)
    return (1000 / (1 + np.exp(distance - radius))).astype(np.int16)


class Rows:
    """Rows as the checks see them: an image and contours by label each."""

    def __init__(self, *rows):
        self.rows = rows

    def image(self, row):
        return self.rows[row][0]

    def polygons(self, row):
        return list(self.rows[row][1].items())


FLAT = np.zeros((SIZE, SIZE), np.int16)
HERE, THERE = (20, 20, 8), (40, 44, 8)


def verdicts(groups, rows, patients="AB", scheme=BOTH):
    return judge(groups, rows, scheme, lambda row: patients[row])


def test_the_image_whose_edges_the_contour_follows_has_the_original():
    rows = Rows((disc(*THERE), {1: circle(*HERE)}), (disc(*HERE), {1: circle(*HERE)}))
    (verdict,) = verdicts([[Twin(0, INNER), Twin(1, INNER)]], rows)
    assert (list(verdict.copies), verdict.original) == ([0], 1)
    assert "of the edges' contrast, on the other image" in verdict.copies[0]


def test_where_both_images_have_such_an_edge_nothing_tells():
    rows = Rows((disc(*HERE), {1: circle(*HERE)}), (disc(*HERE) + 1, {1: circle(*HERE)}))
    (verdict,) = verdicts([[Twin(0, INNER), Twin(1, INNER)]], rows)
    assert (verdict.copies, verdict.original) == ({}, None)


@pytest.mark.parametrize(("shift", "is_told"), [(0.0, False), (3.2, False), (8.0, True)])
def test_the_inner_contour_tells_whose_an_outer_one_is(shift, is_told):
    outer = circle(20, 20, 12)
    rows = Rows(
        (FLAT, {1: circle(20, 20, 8), 2: outer}),
        (FLAT, {1: circle(20 + shift, 20, 8), 2: outer}),
    )
    (verdict,) = verdicts([[Twin(0, OUTER), Twin(1, OUTER)]], rows)
    assert (list(verdict.copies), verdict.original) == (([1], 0) if is_told else ([], None))
    if is_told:
        assert "% of the i-contour on its image lies outside the o-contour" in verdict.copies[1]


def test_no_contour_is_a_copy_where_none_fits():
    outer = circle(20, 20, 12)
    rows = Rows(*((FLAT, {1: circle(20 + shift, 20, 8), 2: outer}) for shift in (8, 9)))
    (verdict,) = verdicts([[Twin(0, OUTER), Twin(1, OUTER)]], rows)
    assert verdict.copies == {}


def test_of_three_two_that_fit_stay_suspicious():
    outer = circle(20, 20, 12)
    rows = Rows(*((FLAT, {1: circle(20 + shift, 20, 8), 2: outer}) for shift in (0, 9, 1)))
    (verdict,) = verdicts([[Twin(row, OUTER) for row in range(3)]], rows, "ABC")
    assert (list(verdict.copies), verdict.original) == ([1], None)


def test_two_kinds_of_evidence_that_contradict_each_other_tell_nothing():
    drawn = circle(*HERE)
    rows = Rows(
        (disc(*HERE), {1: drawn, 2: circle(40, 44, 12)}),
        (disc(*THERE), {1: drawn, 2: circle(20, 20, 12)}),
    )
    (verdict,) = verdicts([[Twin(0, INNER), Twin(1, INNER)]], rows)
    assert (verdict.copies, verdict.original) == ({}, None)


def test_contours_that_tell_nothing_follow_the_others_of_their_patient():
    outer, other = circle(20, 20, 12), circle(30, 30, 12)
    rows = Rows(
        (FLAT, {1: circle(28, 20, 8), 2: outer}), (FLAT, {1: circle(20, 20, 8), 2: outer}),
        (FLAT, {2: other}), (FLAT, {2: other}),
    )  # fmt: skip
    groups = [[Twin(0, OUTER), Twin(1, OUTER)], [Twin(2, OUTER), Twin(3, OUTER)]]
    first, second = verdicts(groups, rows, "ABBA")
    assert (list(first.copies), first.original) == ([0], 1)
    assert (list(second.copies), second.original) == ([1], 0)  # both times A's
    assert second.copies[1].startswith("1 of the 2 contours that the two patients share")
    _, second = verdicts(groups, rows, "ABCA")  # of another pair of patients
    assert second.copies == {}
    _, second = verdicts(groups, rows, "AAAA")  # one patient's own
    assert second.copies == {}


def test_of_very_many_groups_the_first_are_measured_and_decide(monkeypatch):
    monkeypatch.setattr(copies, "MAX_GROUPS", 1)
    outer = circle(20, 20, 12)
    rows = Rows(*((FLAT, {1: circle(x, 20, 8), 2: outer}) for x in (20, 29, 20, 29)))
    groups = [[Twin(0, OUTER), Twin(1, OUTER)], [Twin(2, OUTER), Twin(3, OUTER)]]
    first, second = verdicts(groups, rows, "ABAB")
    assert (list(first.copies), list(second.copies)) == ([1], [1])
    assert second.copies[1].startswith("1 of the 2 contours")
    _, second = verdicts(groups, rows, "ABCD")
    assert second.copies == {}


def test_regions_that_are_masks_and_structures_without_contrast_tell_nothing():
    scheme = named_scheme(["liver", "spleen"])
    liver = scheme[1]
    rows = Rows((disc(*HERE), {}), (disc(*THERE), {1: circle(*HERE)}))
    (verdict,) = verdicts([[Twin(0, liver), Twin(1, liver)]], rows, scheme=scheme)
    assert (verdict.copies, verdict.original) == ({}, None)
