"""Structures and label schemes: what masks show, by which codes, and what covers what."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from etl.errors import EtlError
from etl.findings import Finding
from etl.options import KINDS, Kind, MaskKind
from loader.format import (
    CORE,
    MASK_DTYPE,
    MASK_LABELS,
    MAX_BITS,
    MAX_CODE,
    STRING,
    VERSION_2,
    Structure,
    bit_dtype,
)

BRIGHTER: Final = "brighter"
DARKER: Final = "darker"

_STEM: Final = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", re.ASCII)
_SHOWN: Final = 4  # names in a message
_CONTRASTS: Final = ("", BRIGHTER, DARKER)


@dataclass(frozen=True)
class LabelScheme:
    """The structures of one file.

    Parameters
    ----------
    structures : tuple of Structure
        In paint order: where two overlap, the later one's code stands in the label map.

    Raises
    ------
    ValueError
        No structure, a code outside 1 to 254, a code, name or stem that two structures share, a
        stem that cannot begin a column's name, or an `inside_of` that names no other structure.
    """

    structures: tuple[Structure, ...]

    def __post_init__(self) -> None:
        """Refuse what no file can hold."""
        if not self.structures:
            raise ValueError("structures: expected at least one, found none.")
        for what in ("code", "name", "stem", "label"):
            counts = Counter(getattr(structure, what) for structure in self.structures)
            value, n_times = counts.most_common(1)[0]
            if n_times > 1:
                raise ValueError(f"structures: expected every {what} once, found {value!r} twice.")
        columns = {name for structure in self.structures for name in structure.columns}
        if taken := sorted(columns & (CORE.keys() | VERSION_2.keys())):
            raise ValueError(f"structures: two columns named {taken[0]!r}; give another stem.")
        for structure in self.structures:
            if problem := self._problem(structure):
                raise ValueError(f"structures: {problem}.")

    def _problem(self, one: Structure) -> str:
        """Return why a structure cannot be; empty where it can."""
        names = {structure.name: structure for structure in self.structures}
        if not 1 <= one.code <= MAX_CODE:
            return f"expected codes 1 to {MAX_CODE}, found {one.code}"
        if not _STEM.fullmatch(one.stem):
            return f"{one.stem!r} cannot begin a column's name"
        if one.contrast not in _CONTRASTS:
            return f"expected a contrast of {_CONTRASTS[1:]}, found {one.contrast!r}"
        if one.inside_of and one.inside_of not in names.keys() - {one.name}:
            return f"{one.name!r} is inside of {one.inside_of!r}, unknown"
        outer = one
        for _ in names:
            if not outer.inside_of:
                return ""
            outer = names.get(outer.inside_of, one)
        return f"{one.name!r} lies in itself"

    @cached_property
    def by_code(self) -> dict[int, Structure]:
        """The structures by their codes, in ascending order."""
        return {one.code: one for one in sorted(self.structures, key=lambda one: one.code)}

    @cached_property
    def places(self) -> dict[int, int]:
        """The place of each code in the paint order."""
        return {one.code: place for place, one in enumerate(self.structures)}

    @cached_property
    def bits(self) -> dict[int, int]:
        """The bit of each code in bit masks: the lowest for the lowest code."""
        return {code: bit for bit, code in enumerate(self.by_code)}

    def mask_dtype(self, kind: MaskKind) -> str:
        """Return the type of masks.

        Raises
        ------
        EtlError
            Bit masks have no bit left for some of the structures.
        """
        if kind == MASK_LABELS:
            return MASK_DTYPE
        if len(self) > MAX_BITS:
            raise EtlError(
                f"Input not usable: it has {len(self)} structures, and bit masks hold at most "
                f"{MAX_BITS}. Choose some with `structures`, or leave `masks` at labels."
            )
        return bit_dtype(len(self))

    def __iter__(self) -> Iterator[Structure]:
        """Yield the structures in the order of their codes."""
        return iter(self.by_code.values())

    def __len__(self) -> int:
        """Return the number of structures."""
        return len(self.structures)

    def __getitem__(self, code: int) -> Structure:
        """Return the structure that has a code."""
        return self.by_code[code]

    @cached_property
    def absent(self) -> dict[str, str | int | float]:
        """The values of all structures' columns in a row that shows none of them."""
        neutral: dict[str, str | int | float] = {STRING: "", "<f8": math.nan, "<i8": 0, "|u1": 0}
        return {column: neutral[kind] for one in self for column, kind in one.columns.items()}

    @cached_property
    def nested(self) -> list[tuple[Structure, Structure]]:
        """Each structure that lies inside another one, with that one."""
        by_name = {structure.name: structure for structure in self.structures}
        return [(one, by_name[one.inside_of]) for one in self if one.inside_of]

    @cached_property
    def kin(self) -> frozenset[tuple[int, int]]:
        """Codes of each two structures of which one lies in the other, directly or not."""
        parents = {inner.code: outer.code for inner, outer in self.nested}
        kin: set[tuple[int, int]] = set()
        for code in parents:
            outer = code
            while outer in parents:
                outer = parents[outer]
                kin |= {(code, outer), (outer, code)}
        return frozenset(kin)

    @property
    def has_contrast(self) -> bool:
        """Whether the audit can look for the edges of any structure."""
        return any(one.contrast for one in self.structures)

    def to_json(self, kind: MaskKind = MASK_LABELS) -> list[dict[str, object]]:
        """Return the attribute `structures`: objects in paint order, with bits in bit masks."""
        recorded = []
        for place, structure in enumerate(self.structures):
            entry = {**structure._asdict(), "contour_label": structure.label, "paint_order": place}
            del entry["bit"]
            if kind != MASK_LABELS:
                entry["bit"] = self.bits[structure.code]
            recorded.append(entry)
        return recorded


_INNER: Final = Structure(
    name="i-contour",
    code=1,
    meaning="blood pool (inside the i-contour)",
    stem="icontour",
    inside_of="o-contour",
    contrast=BRIGHTER,
)
_OUTER: Final = Structure(
    name="o-contour",
    code=2,
    meaning="muscle (inside the o-contour, not the i-contour)",
    stem="ocontour",
    contrast=DARKER,
)
_WHOLE_OUTER: Final = "inside the o-contour"
CARDIAC: Final[dict[Kind, Structure]] = {"i": _INNER, "o": _OUTER}


def cardiac_scheme(kinds: Sequence[Kind], masks: MaskKind = MASK_LABELS) -> LabelScheme:
    """Return the scheme of inner and outer contours of the heart's left ventricle.

    One kind: its code is 1. Both: the outer contour is painted first, so that the blood pool inside
    the inner one wins. In /contours/label the outer contour is always 2.
    """
    if len(kinds) == len(KINDS):
        if masks == MASK_LABELS:
            return LabelScheme((_OUTER, _INNER))
        return LabelScheme((_OUTER._replace(meaning=_WHOLE_OUTER), _INNER))
    if kinds[0] == "i":
        return LabelScheme((_INNER._replace(inside_of=""),))
    return LabelScheme((_OUTER._replace(code=1, meaning=_WHOLE_OUTER, contour_label=2),))


def plain_name(name: str) -> str:
    """Return a name without what people spell differently: case, blanks, marks, leading zeros."""
    pieces = re.findall(r"0*([0-9]+)|([^\W\d_]+)", unicodedata.normalize("NFKC", name).casefold())
    return "-".join(digits or letters for digits, letters in pieces)


def names_alike(patients: Iterable[str], scheme: LabelScheme) -> list[Finding]:
    """Return a warning of each two patients, or structures, whose names are spelled alike.

    They are two for the build: with codes of their own, and on any side of a split.
    """
    return [
        *(
            Finding(
                "names-alike",
                "",
                f"the patients {ids} are spelled alike: one person under several ids? A split "
                "takes them as several. Write one id everywhere.",
            )
            for ids in _alike(patients)
        ),
        *(
            Finding(
                "names-alike",
                "",
                f"the structures {names} are spelled alike, and each has a code of its own. If "
                "they are one, join them with a mapping for --structures.",
            )
            for names in _alike(one.name for one in scheme)
        ),
    ]


def _alike(names: Iterable[str]) -> list[str]:
    """Return the names that are alike, in groups, as messages have them."""
    groups: dict[str, set[str]] = {}
    for name in set(names):
        groups.setdefault(plain_name(name), set()).add(name)
    # Letters that look the same in two normal forms of Unicode are told apart as escapes.
    return sorted(
        " and ".join(map(_shown, sorted(group)[:_SHOWN])) + ", ..." * (len(group) > _SHOWN)
        for plain, group in groups.items()
        if plain and len(group) > 1
    )


def _shown(name: str) -> str:
    return repr(name) if unicodedata.is_normalized("NFC", name) else ascii(name)


def named_scheme(names: Iterable[str]) -> LabelScheme:
    """Return a scheme of structures known by their names only: codes from 1, later ones on top."""
    return LabelScheme(
        tuple(
            Structure(name, code, meaning=name, stem=f"label{code}", source_codes=(name,))
            for code, name in enumerate(names, 1)
        )
    )
