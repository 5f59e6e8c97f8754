"""Structures that overlap in most rows because one is meant to lie in the other: told once.

A source that knows structures by their names only does not know which lies in which, so that each
such row is flagged. Where nearly all rows show the same, it is meant.
"""

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Final

from etl.findings import Finding, SampleKey, counted
from etl.labels import LabelScheme

# Of the smaller one's pixels: the borders of two drawings never meet exactly.
INSIDE_SHARE: Final = 95.0  # percent
MOST: Final = 0.9  # of the images that show both, and of the patients, in most of whose images
MIN_PATIENTS: Final = 3

_QUOTED: Final = r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
# As `drawing.check_shared` writes them: the one painted first, then the one on top of it.
_PAIR: Final = re.compile(rf" to {_QUOTED} and {_QUOTED} \(([0-9.]+)% of the smaller\)")
_MORE: Final = re.compile(r", and [0-9]+ more pairs?\. The mask shows")


def find_nested(
    findings: Iterable[Finding], drawn: Mapping[int, Mapping[SampleKey, float]], scheme: LabelScheme
) -> tuple[list[Finding], frozenset[Finding]]:
    """Return a finding on each pair of which one lies in the other, and those that it explains.

    Parameters
    ----------
    findings : iterable of Finding
        Those with the code structures-overlap count.
    drawn : mapping of int to mapping
        Code of a structure → key of a row that shows it → its area there.
    """
    codes = {one.name: one.code for one in scheme}
    overlaps = [one for one in findings if one.code == "structures-overlap"]
    within: defaultdict[tuple[int, int], list[SampleKey]] = defaultdict(list)
    pairs_of: dict[Finding, set[tuple[int, int]]] = {}
    for one in overlaps:
        found = [
            (_code(around, codes), _code(inner, codes), float(share))
            for around, inner, share in _PAIR.findall(one.message)
        ]
        pairs_of[one] = {(around, inner) for around, inner, _ in found}
        for around, inner, share in found:
            areas = drawn.get(around, {}), drawn.get(inner, {})
            if one.key is not None and share >= INSIDE_SHARE and _is_smaller(one.key, *areas):
                within[around, inner].append(one.key)
            else:
                pairs_of[one].add((0, 0))  # which is no pair that may be meant
    told: list[Finding] = []
    meant: set[tuple[int, int]] = set()
    for (around, inner), keys in within.items():
        both = drawn[around].keys() & drawn[inner].keys()
        n_rows, n_within = (Counter(key.patient_id for key in some) for some in (both, keys))
        n_agreeing = sum(2 * n_within[patient] > n for patient, n in n_rows.items())
        if len(n_rows) < MIN_PATIENTS or n_agreeing < MOST * len(n_rows):
            continue
        if len(keys) >= MOST * len(both):
            meant.add((around, inner))
            names = scheme[inner].name, scheme[around].name
            told.append(_told(*names, len(keys), len(both), n_agreeing, len(n_rows)))
    explained = (
        one for one, pairs in pairs_of.items() if pairs <= meant and not _MORE.search(one.message)
    )
    return told, frozenset(explained)


def _told(
    inner: str, around: str, n_within: int, n_both: int, n_agreeing: int, n_patients: int
) -> Finding:
    message = (
        f"{inner!r} lies inside of {around!r} on {n_within} of {counted(n_both, 'image')} that "
        f"show both, in {n_agreeing} of {n_patients} patients: these overlaps are not flagged. Say "
        f"so in a mapping file for --structures, as [{inner!r}] with inside_of = {around!r}; then "
        "parts outside of it are flagged."
    )
    return Finding("structures-nested", "", message)


def _code(name: str, codes: Mapping[str, int]) -> int:
    return codes.get(str(ast.literal_eval(name)), 0)


def _is_smaller(
    key: SampleKey, around: Mapping[SampleKey, float], inner: Mapping[SampleKey, float]
) -> bool:
    """Say whether the one on top is the smaller: under the other one it would be lost."""
    return key in around and key in inner and inner[key] < around[key]
