import numpy as np
import pytest

from etl.quality.exchanged import (
    BRIGHTNESS,
    COLUMN,
    ROW,
    SIZE,
    VALUE,
    Confusion,
    X,
    Y,
    Z,
    find_confusions,
)

LIVER, SPLEEN, LEFT, RIGHT = range(4)
# Radius (mm), brightness, place in the patient (mm) and in the image of organs, and how they vary.
USUAL = {
    LIVER: (70, 0.62, (-60, 0, 30), (0.35, 0.45)),
    SPLEEN: (35, 0.55, (80, 60, 40), (0.75, 0.6)),
    LEFT: (22, 0.58, (55, 70, -30), (0.63, 0.65)),
    RIGHT: (22, 0.58, (-55, 70, -40), (0.37, 0.65)),
}
NONE_RELATED = np.zeros((4, 4), bool)


def patients(n, seed=0):
    """Return the features of some patients: each of another size, place and scanner."""
    rng = np.random.default_rng(seed)
    features = np.full((n, len(USUAL), 8), np.nan)
    for patient in range(n):
        stature, gain = np.exp(rng.normal(0, 0.08)), np.exp(rng.normal(0, 0.3))
        centre, corner = rng.normal(0, 60, 3), rng.normal(0, 0.03, 2)
        for place, (radius, brightness, where, share) in USUAL.items():
            one = features[patient, place]
            one[SIZE] = np.log(radius * stature) + rng.normal(0, 0.1)
            one[BRIGHTNESS] = brightness + rng.normal(0, 0.03)
            one[VALUE] = gain * one[BRIGHTNESS]
            one[[X, Y, Z]] = centre + np.array(where) * stature + rng.normal(0, 8, 3)
            one[[COLUMN, ROW]] = share + corner + rng.normal(0, 0.02, 2)
    return features


def found(features, related=NONE_RELATED):
    return {(one.group, one.structure, one.other) for one in find_confusions(features, related)}


def exchange(features, patient, *places):
    """Let each of some structures have the features of the next one."""
    features[patient, list(places)] = features[patient, [*places[1:], places[0]]]


@pytest.mark.parametrize("n", [5, 6, 10, 40])
def test_nothing_is_found_where_nothing_is_wrong(n):
    for seed in range(60):
        assert find_confusions(patients(n, seed), NONE_RELATED) == []


@pytest.mark.parametrize("n", [5, 8, 30])
@pytest.mark.parametrize("pair", [(LIVER, SPLEEN), (LEFT, RIGHT)])
def test_two_names_exchanged_in_a_patient_are_found_on_both(n, pair):
    """Left and right are told by their place; of few patients chance hides it at times."""
    one, other = pair
    n_found = 0
    for seed in range(30):
        features = patients(n, seed)
        exchange(features, 2, one, other)
        told = found(features)
        assert told in (set(), {(2, one, other), (2, other, one)})
        n_found += len(told) > 0
    assert n_found >= {5: 12, 8: 20, 30: 30}[n]


def test_what_is_told_is_what_differs():
    features = patients(30)
    features[:, LIVER, SIZE] += 0.5
    exchange(features, 2, LIVER, SPLEEN)
    one, other = find_confusions(features, NONE_RELATED)
    assert (one.is_exchanged, other.is_exchanged) == (True, True)
    assert "times its radius (usually 3." in one.evidence
    assert "mm to the patient's left (usually 1" in one.evidence
    assert "mm to the patient's right), " in one.evidence


def test_structures_that_are_alike_in_all_that_is_known_say_nothing():
    for seed in range(30):
        features = patients(8, seed)[:, [LEFT, RIGHT]]
        features[:, :, [X, Y, Z, COLUMN, ROW]] = np.nan
        exchange(features, 5, 0, 1)
        assert find_confusions(features, NONE_RELATED[:2, :2]) == []


def test_a_patient_who_lies_the_other_way_round_is_none_whose_names_are_exchanged():
    """The image is turned, the place in the patient is not."""
    features = patients(12)
    features[3, :, [COLUMN, ROW]] = 1 - features[3, :, [COLUMN, ROW]]
    assert find_confusions(features, NONE_RELATED) == []


@pytest.mark.parametrize("n", [2, 3, 4])
def test_few_patients_say_nothing(n):
    features = patients(n)
    exchange(features, 1, LIVER, SPLEEN)
    assert find_confusions(features, NONE_RELATED) == []


def test_a_minority_is_found_and_no_half():
    features = patients(20)
    for patient in range(4):
        exchange(features, patient, LIVER, SPLEEN)
    assert {group for group, _, _ in found(features)} == {0, 1, 2, 3}
    for patient in range(4, 10):
        exchange(features, patient, LIVER, SPLEEN)
    assert find_confusions(features, NONE_RELATED) == []


def test_names_passed_on_in_a_ring_are_found():
    features = patients(15)
    features[:, :, VALUE] = features[:, :, BRIGHTNESS] * 3  # as a CT has them, far apart
    features[:, :, [BRIGHTNESS, VALUE]] += np.array([0, 0.8, 1.7, 2.6])[:, None]
    exchange(features, 7, LIVER, SPLEEN, LEFT)
    assert found(features) == {(7, LIVER, SPLEEN), (7, SPLEEN, LEFT), (7, LEFT, LIVER)}


def test_a_wrong_name_is_found_where_the_right_one_is_missing():
    features = patients(15)
    features[:, SPLEEN, SIZE] -= 2.5
    features[:, SPLEEN, [BRIGHTNESS, VALUE]] -= 0.4
    features[4, LIVER] = features[4, SPLEEN]
    assert find_confusions(features, NONE_RELATED) == []  # two that look like one: twins
    features[4, SPLEEN] = np.nan
    (one,) = find_confusions(features, NONE_RELATED)
    assert one[:4] == (4, LIVER, SPLEEN, False)
    assert "its radius is " in one.evidence


def test_what_lies_in_each_other_is_another_checks():
    related = NONE_RELATED.copy()
    related[LIVER, SPLEEN] = related[SPLEEN, LIVER] = True
    features = patients(9)
    exchange(features, 2, LIVER, SPLEEN)
    assert find_confusions(features, related) == []


def test_two_usual_places_are_no_place():
    """In half of the patients one lies left of the other: a median knows but one of the two."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        features = patients(9, seed)[:, [LEFT, RIGHT]]
        for patient in np.flatnonzero(rng.random(9) < 0.4):
            features[patient, :, [X, COLUMN]] = features[patient, ::-1][:, [X, COLUMN]].T
        n_flipped = np.count_nonzero(features[:, 0, X] < features[:, 1, X])
        if 2 <= n_flipped <= 7:
            assert find_confusions(features, NONE_RELATED[:2, :2]) == []


def test_chance_makes_no_confusion():
    """Structures without any order, of few patients and many structures."""
    n_found = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        spread = np.array([0.3, 0.1, 0.1, 40, 40, 40, 0.1, 0.1])
        features = rng.normal(0, 1, (rng.integers(5, 15), 6, 8)) * spread
        n_found += len(find_confusions(features, np.zeros((6, 6), bool)))
    assert n_found == 0


def test_unknown_features_are_no_trouble():
    features = patients(9)
    features[:, :, VALUE:] = np.nan
    features[:, LIVER, [SIZE, BRIGHTNESS]] += 1
    features[3, RIGHT] = np.nan
    exchange(features, 2, LIVER, SPLEEN)
    assert isinstance(find_confusions(features, NONE_RELATED)[0], Confusion)
    assert find_confusions(np.full((9, 4, 8), np.nan), NONE_RELATED) == []
