"""Which of equal contours is the copy: the one that does not fit its image, where another one does.

Two things tell: the structure that lies in the other one on the same image, and the image's edges.
Where neither does, none is called the copy.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import numpy as np

from etl.contours.rasterise import rasterise
from etl.labels import LabelScheme
from etl.model import BitMask, Image, LabelMap, Mask, Vertices
from etl.quality.alignment import MIN_CONTRAST, edge_contrast
from etl.quality.drawing import OUTSIDE_SHARE
from loader.format import Structure

# ---------------------------------------------------------------------------------- the thresholds

# Contours that belong together lie in each other; another patient's leave a quarter outside.
MISFIT_SHARE: Final = 0.05
# Three real patients' inner contours reach 0.34 on their own images, and another's 0.1 in the
# median, 0.4 at most.
MISFIT_CONTRAST: Final = 0.3
MIN_DIFFERENCE: Final = 0.2  # of the contrast, from the image that the contour fits

MAX_GROUPS: Final = 2000  # that are measured, in some seconds; others follow their patient's
_MAX_TWINS: Final = 20  # more than that are no single copy; measuring them takes long


class Pictures(Protocol):
    """The rows as they were written."""

    def image(self, row: int) -> Image:
        """Return the modality values of a row."""
        ...

    def mask(self, row: int) -> LabelMap | BitMask:
        """Return the mask of a row."""
        ...

    def polygons(self, row: int) -> list[tuple[int, Vertices]]:
        """Return (label, vertices) of the contours of a row."""
        ...


class Twin(NamedTuple):
    """One of several equal contours."""

    row: int
    structure: Structure


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is known of one group of equal contours.

    Attributes
    ----------
    copies : dict of int to str
        Place of a copy in the group → why it is one.
    original : int, optional
        Place of the only one that is none.
    """

    copies: dict[int, str]
    original: int | None = None


_UNKNOWN: Final = Verdict({})


def judge(
    groups: Sequence[Sequence[Twin]],
    pictures: Pictures,
    scheme: LabelScheme,
    patient: Callable[[int], str],
) -> list[Verdict]:
    """Return which contours of each group are copies.

    Parameters
    ----------
    groups : sequence of sequence of Twin
        Contours with the same points.
    pictures : Pictures
    scheme : LabelScheme
    patient : callable
        Row → patient_id. Where one patient's contours are copies of another's, those that tell
        nothing by themselves are copies too.
    """
    measured = [_judge_one(twins, pictures, scheme) for twins in groups[:MAX_GROUPS]]
    verdicts = measured + [_UNKNOWN] * (len(groups) - len(measured))
    return _extended(groups, verdicts, patient)


def _judge_one(twins: Sequence[Twin], pictures: Pictures, scheme: LabelScheme) -> Verdict:
    if len(twins) > _MAX_TWINS:
        return _UNKNOWN
    drawn = [_drawn(pictures.polygons(twin.row), scheme) for twin in twins]
    by_nesting = _by_nesting(twins, drawn, pictures, scheme)
    by_edges = _by_edges(twins, drawn, pictures)
    copies = by_edges | by_nesting
    others = [place for place in range(len(twins)) if place not in copies]
    # One by the edges, the other by what lies in it: they contradict each other.
    if not others:
        return _UNKNOWN
    return Verdict(copies, others[0] if copies and len(others) == 1 else None)


def _by_nesting(
    twins: Sequence[Twin],
    drawn: Sequence[dict[int, list[Vertices]]],
    pictures: Pictures,
    scheme: LabelScheme,
) -> dict[int, str]:
    size = pictures.image(twins[0].row).shape
    shares = [
        max((_share_outside(own, *pair, size) for pair in _nested(twin, scheme)), default=math.nan)
        for twin, own in zip(twins, drawn, strict=True)
    ]
    best = min((share for share in shares if not math.isnan(share)), default=math.inf)
    if best > OUTSIDE_SHARE:
        return {}
    found = {}
    for place, (twin, share) in enumerate(zip(twins, shares, strict=True)):
        if share >= MISFIT_SHARE:
            inner, outer = _nested(twin, scheme)[0]
            found[place] = (
                f"{share:.1%} of the {inner.name} on its image lies outside the {outer.name}, on "
                f"the other image {best:.1%}"
            )
    return found


def _by_edges(
    twins: Sequence[Twin], drawn: Sequence[dict[int, list[Vertices]]], pictures: Pictures
) -> dict[int, str]:
    contrasts = [
        edge_contrast(
            pictures.image(twin.row), max(own[twin.structure.code], key=len), twin.structure
        )
        if twin.structure.contrast and own.get(twin.structure.code)
        else math.nan
        for twin, own in zip(twins, drawn, strict=True)
    ]
    known = [place for place, contrast in enumerate(contrasts) if not math.isnan(contrast)]
    if not known:
        return {}
    fitting = max(known, key=contrasts.__getitem__)
    best = contrasts[fitting]
    if best < MIN_CONTRAST[twins[fitting].structure.contrast]:
        return {}
    return {
        place: (
            f"on its image it follows {max(contrasts[place], 0):.0%} of the edges' contrast, on "
            f"the other image {best:.0%}"
        )
        for place in known
        if contrasts[place] <= min(MISFIT_CONTRAST, best - MIN_DIFFERENCE)
    }


def _extended(
    groups: Sequence[Sequence[Twin]], verdicts: list[Verdict], patient: Callable[[int], str]
) -> list[Verdict]:
    """Call copies, too, the contours of a patient whose others are the same patient's copies."""
    votes: defaultdict[tuple[str, str, int], Counter[str]] = defaultdict(Counter)
    for twins, verdict in zip(groups, verdicts, strict=True):
        if (pair := _pair(twins, patient)) is not None:
            if verdict.original is None:
                votes[pair][""] += 1
            else:
                votes[pair][patient(twins[1 - verdict.original].row)] += 1
    extended = []
    for twins, verdict in zip(groups, verdicts, strict=True):
        pair = _pair(twins, patient)
        blamed = set(votes[pair]) - {""} if pair is not None else set()
        if pair is not None and verdict.original is None and len(blamed) == 1:
            (name,) = blamed
            copy = next(place for place in (0, 1) if patient(twins[place].row) == name)
            n, n_all = votes[pair][name], votes[pair].total()
            why = f"{n} of the {n_all} contours that the two patients share do not fit its images"
            extended.append(Verdict({copy: why}, 1 - copy))
        else:
            extended.append(verdict)
    return extended


def _pair(twins: Sequence[Twin], patient: Callable[[int], str]) -> tuple[str, str, int] | None:
    """Return the two patients and the structure of a group of two; None for any other group."""
    if len(twins) != 2 or twins[0].structure != twins[1].structure:  # noqa: PLR2004
        return None
    one, other = sorted(patient(twin.row) for twin in twins)
    return None if one == other else (one, other, twins[0].structure.code)


def _nested(twin: Twin, scheme: LabelScheme) -> list[tuple[Structure, Structure]]:
    """Return the inner and outer structures of which a contour is one."""
    return [pair for pair in scheme.nested if twin.structure in pair]


def _drawn(
    polygons: Iterable[tuple[int, Vertices]], scheme: LabelScheme
) -> dict[int, list[Vertices]]:
    """Return code → polygons of one row."""
    codes = {structure.label: structure.code for structure in scheme}
    drawn: defaultdict[int, list[Vertices]] = defaultdict(list)
    for label, vertices in polygons:
        drawn[codes[label]].append(vertices)
    return dict(drawn)


def _share_outside(
    drawn: dict[int, list[Vertices]], inner: Structure, outer: Structure, size: tuple[int, ...]
) -> float:
    """Return the share of a region outside the one that it lies in; NaN where one is not drawn."""
    if inner.code not in drawn or outer.code not in drawn:
        return math.nan
    inside, around = (_mask(drawn[one.code], size) for one in (inner, outer))
    n_inside = int(inside.sum())
    return int((inside & ~around).sum()) / n_inside if n_inside else math.nan


def _mask(polygons: Sequence[Vertices], size: tuple[int, ...]) -> Mask:
    rows, columns = size
    mask = np.zeros((rows, columns), np.bool_)
    for vertices in polygons:
        mask ^= rasterise(vertices, rows, columns)
    return mask
