"""Structures whose names are exchanged in some patients: each looks like the other's of the rest.

Size, brightness and place of each structure are compared with those that it has in the other
patients. Of two structures the difference counts: where the names are exchanged, it is the opposite
of what is usual, in everything in which the two differ reliably. What varies from patient to
patient tells nothing; so of structures that are alike, as the two kidneys, only the place tells.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

_Floats: TypeAlias = npt.NDArray[np.float64]
_Integers: TypeAlias = npt.NDArray[np.int64]
_Flags: TypeAlias = npt.NDArray[np.bool_]

# ---------------------------------------------------------------------------------- the thresholds

MIN_PATIENTS: Final = 5  # the one in question, and four others who agree
# Robust deviations between two structures, and what one of them has by itself: what differs less
# is no evidence. Of a difference, the other patients' lie that far from none, and twice as far from
# the opposite.
RELIABLE: Final = 4.0
# Of all evidence together, a number of deviations squared, each at most STRONGEST: one that is 8
# deviations strong, or two of 6.
EVIDENCE: Final = 64.0
LONE_EVIDENCE: Final = 100.0  # for a structure without its counterpart
# Of fewer patients one feature by itself is no evidence: their deviation may be small by chance.
FEW_PATIENTS: Final = 10
STRONGEST: Final = 10.0
# Patients, at most, that are off by more: of two usual places the median knows but one.
MOST_OFF: Final = 0.2
NEAREST: Final = 0.5  # of the usual difference about its opposite, or RELIABLE deviations
MOST_STRUCTURES: Final = 40  # those in most rows; all pairs are compared
_ROBUST: Final = 1.4826  # times the median absolute deviation: a normal distribution's deviation
_FEW: Final = 0.8  # of few values that deviation is too small, by n / (n - 0.8)

# ------------------------------------------------------------------------------------ the features

SIZE, BRIGHTNESS, VALUE, X, Y, Z, COLUMN, ROW = range(8)
# Smaller deviations are the chance of few patients: of the logarithm of the radius, of ranges of
# values, mm, and of the image's width and height.
_FLOORS: Final = np.array([0.03, 0.01, 0.01, 2.0, 2.0, 2.0, 0.01, 0.01])
# What one structure has by itself. Where it lies in the patient says nothing without another one.
_OWN: Final = [SIZE, BRIGHTNESS, VALUE, COLUMN, ROW]
_N_BODILY: Final = 3  # of them are of the structure, not of its place
_WORDS: Final = {  # of more, and of less
    BRIGHTNESS: ("of its images' range brighter", "of its images' range darker"),
    VALUE: ("of all images' range higher in value", "of all images' range lower in value"),
    X: ("mm to the patient's left", "mm to the patient's right"),
    Y: ("mm to the patient's back", "mm to the patient's front"),
    Z: ("mm to the patient's head", "mm to the patient's feet"),
    COLUMN: ("of the image to the right", "of the image to the left"),
    ROW: ("of the image down", "of the image up"),
}


class Confusion(NamedTuple):
    """A structure of one patient that looks like another one."""

    group: int
    structure: int  # place among the structures
    other: int  # that it looks like
    is_exchanged: bool  # and the other one like it
    evidence: str


def find_confusions(features: _Floats, related: _Flags) -> list[Confusion]:
    """Return the structures that look like another one of the other patients.

    Parameters
    ----------
    features : float64 array, shape (n_groups, n_structures, 8)
        Of each patient, or series of a patient: SIZE (logarithm of the radius), BRIGHTNESS (in
        shares of the range of its images), VALUE (of that of the data set, as a CT has it), X, Y,
        Z (mm in the patient), COLUMN, ROW (in shares of the image); NaN where it is not known, or
        the structure not drawn.
    related : bool array, shape (n_structures, n_structures)
        Which structures lie in each other: if both are drawn, another check tells that they are
        exchanged.
    """
    exchanged = _exchanges(features, related)
    told = {(one.group, one.structure) for one in exchanged}
    return sorted([*exchanged, *_renamed(features, told)])


def _exchanges(features: _Floats, related: _Flags) -> list[Confusion]:
    """Return both of each two structures whose difference is the opposite of the usual one."""
    found: list[Confusion] = []
    for one in range(features.shape[1] - 1):
        others = slice(one + 1, None)
        difference = features[:, one, None, :] - features[:, others, :]
        usual, deviation, is_settled, n_known = _statistics(difference)
        ratio = _ratio(difference, usual)
        counts = _reliable(usual, deviation, is_settled) & ~np.isnan(ratio)
        is_opposite = _is_opposite(ratio, usual, deviation, counts)
        is_opposite &= _evidence(usual, deviation, counts) >= EVIDENCE
        is_opposite &= counts.sum(axis=2) > (n_known < FEW_PATIENTS)
        is_opposite &= ~related[one, others]
        for group, place in np.argwhere(is_opposite).tolist():
            other = one + 1 + place
            values = difference[group, place], usual[place], counts[group, place]
            found.append(Confusion(group, one, other, True, _differences(*values)))
            mirrored = -values[0], -values[1], values[2]
            found.append(Confusion(group, other, one, True, _differences(*mirrored)))
    return found


def _renamed(features: _Floats, told: set[tuple[int, int]]) -> list[Confusion]:
    """Return the structures that look like one that is not drawn, or looks like a third one.

    One that is drawn and looks as usual may have a twin, so that nothing is wrong.
    """
    own = features[:, :, _OWN]
    usual, deviation, is_settled, _ = _statistics(own)
    is_drawn: _Flags = np.asarray(~np.isnan(features).all(axis=2))
    found: dict[tuple[int, int], tuple[float, Confusion]] = {}
    n_structures = features.shape[1]
    for one in range(n_structures):
        half = (usual[one] - usual) / 2
        spread = np.maximum(deviation[one], deviation)
        middle = (usual[one] + usual) / 2
        ratio = _ratio(own[:, one, None, :] - middle, half)
        counts = _reliable(half, spread, is_settled[one] & is_settled) & ~np.isnan(ratio)
        counts[:, one] = False
        evidence = _evidence(half, spread, counts)
        is_opposite = _is_opposite(ratio, half, spread, counts)
        is_opposite &= evidence >= EVIDENCE
        # Where a structure lies in the image is no evidence by itself: images are cut out.
        is_opposite &= counts[:, :, :_N_BODILY].any(axis=2)
        off = np.where(counts, np.abs(ratio + 1), 0).sum(axis=2)
        for group, other in np.argwhere(is_opposite).tolist():
            if (group, one) in told:
                continue
            mine = counts[group, other]
            if not (evidence[group, other] >= LONE_EVIDENCE or is_drawn[group, other]):
                continue
            values = own[group, one], usual[one], usual[other], mine
            confusion = Confusion(group, one, other, False, _likeness(*values))
            best = found.get((group, one))
            if best is None or off[group, other] < best[0]:
                found[group, one] = float(off[group, other]), confusion
    while True:  # each that is taken away may have been what another one relied on
        kept = {
            key: value
            for key, value in found.items()
            if not is_drawn[key[0], value[1].other] or (key[0], value[1].other) in found
        }
        if len(kept) == len(found):
            return [confusion for _, confusion in kept.values()]
        found = kept


def _statistics(values: _Floats) -> tuple[_Floats, _Floats, _Flags, _Integers]:
    """Return median and deviation over the first axis, whether nearly all agree, how many."""
    usual, n_known = _medians(values)
    deviation = _ROBUST * _medians(np.abs(values - usual))[0]
    deviation *= n_known / np.maximum(n_known - _FEW, 1)
    floors = _FLOORS if values.shape[-1] == len(_FLOORS) else _FLOORS[_OWN]
    deviation = np.maximum(deviation, floors)
    n_off = np.count_nonzero(np.abs(values - usual) > RELIABLE * deviation, axis=0)
    is_settled = (n_known >= MIN_PATIENTS) & (n_off <= np.maximum(1, MOST_OFF * n_known))
    return usual, deviation, np.asarray(is_settled), n_known.max(axis=-1)


def _medians(values: _Floats) -> tuple[_Floats, _Integers]:
    """Return the median of the known values over the first axis, and how many there are."""
    ordered = np.sort(values, axis=0)  # NaN last
    n_known = np.count_nonzero(~np.isnan(values), axis=0)
    low, high = np.maximum(n_known - 1, 0) // 2, np.minimum(n_known // 2, len(values) - 1)
    ends = [np.take_along_axis(ordered, place[None], 0)[0] for place in (low, high)]
    middle: _Floats = (ends[0] + ends[1]) / 2
    return middle, n_known.astype(np.int64)


def _reliable(usual: _Floats, deviation: _Floats, is_settled: _Flags) -> _Flags:
    is_reliable: _Flags = (np.abs(usual) >= RELIABLE * deviation) & is_settled
    return is_reliable


def _ratio(values: _Floats, usual: _Floats) -> _Floats:
    """Return what is there in shares of the usual: -1 is its opposite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio: _Floats = values / usual
    return ratio


def _is_opposite(ratio: _Floats, usual: _Floats, deviation: _Floats, counts: _Flags) -> _Flags:
    """Say where all that counts is the opposite of the usual."""
    with np.errstate(divide="ignore", invalid="ignore"):
        tolerance = np.maximum(RELIABLE * deviation / np.abs(usual), NEAREST)
        is_near = np.abs(ratio + 1) <= tolerance
    return np.asarray((is_near | ~counts).all(axis=-1))


def _evidence(usual: _Floats, deviation: _Floats, counts: _Flags) -> _Floats:
    strength = np.minimum(np.abs(usual) / deviation, STRONGEST)
    evidence: _Floats = np.where(counts, strength**2, 0).sum(axis=-1)
    return evidence


def _differences(found: _Floats, usual: _Floats, counts: _Flags) -> str:
    """Return in words how one structure differs from the other, here and elsewhere."""
    parts = []
    for place in np.flatnonzero(counts).tolist():
        here, there = float(found[place]), float(usual[place])
        if place == SIZE:
            parts.append(f"{math.exp(here):.2f} times its radius (usually {math.exp(there):.2f})")
            continue
        form = "{:.0f}" if place in {X, Y, Z} else "{:.0%}"
        words = [f"{form.format(abs(value))} {_WORDS[place][value < 0]}" for value in (here, there)]
        parts.append(f"{words[0]} (usually {words[1]})")
    return ", ".join(parts)


def _likeness(found: _Floats, own: _Floats, other: _Floats, counts: _Flags) -> str:
    """Return in words what a structure has here, has elsewhere, and the other one has there."""
    names = (
        "its radius is {}",
        "its brightness in its images {}",
        "its values in the range of all images {}",
        "its column {}",
        "its row {}",
    )
    parts = []
    for place in np.flatnonzero(counts).tolist():
        values = [found[place], own[place], other[place]]
        shown = (
            [f"{math.exp(value):.1f}" for value in values]
            if place == 0
            else [f"{value:.0%}" for value in values]
        )
        what = names[place].format(shown[0])
        parts.append(f"{what} (usually {shown[1]}, that one's {shown[2]})")
    return ", ".join(parts)


# --------------------------------------------------------------------------- from rows to features


class Drawn(NamedTuple):
    """Where one structure is drawn, row by row."""

    row: _Integers
    radius: _Floats  # mm, or pixels where these are not known
    place: _Floats  # (n, 3) mm in the patient
    share: _Floats  # (n, 2) x and y in shares of the image


def gather(group: _Integers, n_groups: int, drawn: Sequence[Drawn]) -> _Floats:
    """Return the features of all structures without their brightness.

    Parameters
    ----------
    group : int64 array
        Of each row.
    """
    features = np.full((n_groups, len(drawn), len(_FLOORS)), np.nan)
    for place, one in enumerate(drawn):
        mine = group[one.row]
        n_rows = np.bincount(mine, minlength=n_groups).astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            columns = [np.log(one.radius), *one.place.T, *one.share.T]
            means = [np.bincount(mine, column, n_groups) / n_rows for column in columns]
        features[:, place, [SIZE, X, Y, Z, COLUMN, ROW]] = np.stack(means, axis=1)
    features[~np.isfinite(features)] = np.nan
    return features


def largest(group: _Integers, one: Drawn) -> Iterator[tuple[int, int]]:
    """Yield (group, row) of the row of each group in which a structure is largest."""
    order = np.lexsort((one.row, one.radius, group[one.row]))
    mine = group[one.row][order]
    is_last = np.diff(mine, append=-1) != 0
    yield from zip(mine[is_last].tolist(), one.row[order][is_last].tolist(), strict=True)
