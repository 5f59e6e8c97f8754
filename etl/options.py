"""What the content of a file depends on besides its sources: BuildOptions and its checks."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, cast, get_args

from etl.errors import LIMITS, Limits
from etl.findings import FLAG_CODES

Kind = Literal["i", "o"]  # inner (blood pool) and outer (heart muscle) contour
Rasterizer = Literal["center", "pillow"]
NotDrawn = Literal["background", "ignore"]
SamePerson = Literal["keep", "separate"]
MaskKind = Literal["labels", "bits"]

PatientId = Literal["tag", "folder"]
Size = Literal["exact", "most", "fit"]
FitAbout = Literal["image", "structures"]

KINDS: Final[tuple[Kind, ...]] = ("i", "o")

# Steps of a contour transform; `etl.contours.transform` does them.
TRANSFORM_STEPS: Final = ("swap", "flip-x", "flip-y", "rotate-90", "mm")
SCALE_STEP: Final = "scale"  # with its factor: scale=F

_RANGES: Final = (  # of the options that are whole numbers
    ("rows", 1, 65535),
    ("columns", 1, 65535),
    ("contour_origin", 0, 1),
    ("split_seed", 0, math.inf),
    ("folds", 2, 9999),
    ("audit_contours", 1, math.inf),
)
_SWITCHES: Final = (  # options that are on or off
    *("partial", "qc", "audit", "exclude_structures", "background"),
    "keep_tags_anyway",
)
NEWEST: Final = "newest"
ALL: Final = "all"

MOST_OF_A_LIMIT: Final = 1 << 53  # JSON has whole numbers up to there

_ROUNDING: Final = 1e-9  # of shares in percent, when they are summed

# Contours audited of each patient: their median is within a third of a pixel in hand-drawn ones.
AUDIT_CONTOURS: Final = 6


class StructureChoice(NamedTuple):
    """A structure of a mapping file: its name, the names that mean it, and its code."""

    name: str
    patterns: tuple[str, ...]
    code: int
    inside_of: str = ""  # the name of the structure that it lies in


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What the content of the file depends on, besides the input.

    Parameters
    ----------
    contours : tuple of {"i", "o"}, optional
        Contour kinds of a folder with link.csv; None: the inner ones.
    rows, columns : int
        The size of the images in the file, after `resample`.
    size : {"exact", "most", "fit"}
        Images of another size are refused ("exact"), or padded and cropped to it ("fit"). "most":
        the size is the commonest of the accepted images, whatever `rows` and `columns` are; where
        two are as common, that of more pixels, then that of more rows.
    resample : float or pair of floats, optional
        The distance between pixels that all images get, mm: between rows and between columns.
        Contours are scaled, not their masks.
    fit_about : {"image", "structures"}
        With "fit", the middle of the part that is kept of an image larger than the file's: its
        own, or that of the structures drawn on it.
    rasterizer : {"center", "pillow"}
        The rule that turns a polygon into a mask; see `etl.contours.rasterise`.
    contour_origin : {0, 1}
        1 subtracts one pixel from x and y, for contour files that count from 1.
    contour_transform : tuple of str
        What turns the contours of files into pixels of their images, left to right, after the
        origin: "swap" (y, x), "flip-x" (columns - 1 - x, y), "flip-y" (x, rows - 1 - y),
        "rotate-90" (rows - 1 - y, x), "scale=F" (both times F), "mm" (divided by the pixel
        spacing).
    partial : bool
        With two kinds, also write pairs that lack one of the two.
    masks : {"labels", "bits"}
        "labels": a mask has one code a pixel, of the structure painted last. "bits": it has a bit
        of each structure, so that none covers another; 32 structures at most.
    not_drawn : {"background", "ignore"}
        What a mask has where a structure that was not drawn in its row may be: 0, or 255, which
        bit masks cannot have.
    split : tuple of three floats, optional
        Percent of the samples for train, validation and test.
    split_seed : int
        Key of the hash that orders the patients.
    folds : int, optional
        Number of cross-validation folds over the patients that are not test.
    split_file : str, optional
        The user's own split file (patient_id,split[,fold]).
    splits_from : str, optional
        An older file: its patients keep their split and fold, and only new ones are assigned, by
        `split` and `folds` or, without these, near the older file's shares. Not recorded.
    stratify : str, optional
        Column of the manifest, or of `patients_csv`: each part of `split` and `folds` gets its
        share of each value. A number with more than 8 values is cut into quarters.
    patients_csv : str, optional
        The user's own table with patient_id and the column that `stratify` names.
    same_person : {"keep", "separate"}
        Whether `split` and `folds` keep patients together that seem to be one person; see
        `etl.quality.people`.
    qc : bool
        Check what was drawn and how the rows agree; see `etl.quality.rows`.
    audit : bool
        Measure how far contours lie off the images' edges as well; see `etl.quality.alignment`.
    audit_contours : int, optional
        How many contours of each patient; None measures all.
    exclude_flagged : tuple of str
        Codes of `FLAG_CODES`: rows with such a finding are left out. "CODE:PATIENT" leaves out
        those of one patient, by either id.
    exclude_file : str, optional
        The user's own row list: rows that it excludes, or wants redrawn, are left out.
    exclude_structures : bool
        Leave out only the structure that a finding or line names, and the row where it has no
        other.
    layout : str
        The layout of the input, a key of `etl.sources.layouts.LAYOUTS`; "auto" finds it.
    structures : tuple of str, or mapping, optional
        The structures of a table, of structure sets or segmentations to take, in the order of their
        codes; where two overlap, the later one's code stands in the mask. A name fits whatever its
        case; one with `*`, `?` or `[` takes each name that it fits as a structure of its own. A
        mapping gives a structure the names that it fits: name → patterns, or name → {"patterns":
        ..., "code": ...}. None: all, in alphabetical order.
    patient_id : {"tag", "folder"}
        Where DICOM files in any folders have their patient from: PatientID, and the first folder
        below the input where it is empty; or always that folder.
    structure_sets : str
        With structure sets (RTSTRUCT) or segmentations, which of several that a series has:
        "newest", "all", or the SOPInstanceUID of one.
    background : bool
        With structure sets or segmentations, also write the images of an annotated series on which
        no structure is.
    plane_tolerance : float
        With structure sets or segmentations, how far off its image's plane an annotation may lie,
        mm.
    segment_threshold : float
        With fractional segmentations, the share of the highest value from which a pixel belongs to
        the segment.
    keep_tags : tuple of str
        Keywords of DICOM attributes that become columns of the manifest, `tag_<keyword>`, such as
        "MagneticFieldStrength". Those of equipment and acquisition may be kept; the documentation's
        page on the file lists them.
    keep_tags_anyway : bool
        Also keep attributes by which patients may be found.
    limits : mapping of str to int
        What one source file may have at most, where it is not the default; a key of
        `etl.errors.LIMITS`, such as "contour-points".
    """

    contours: tuple[Kind, ...] | None = None
    rows: int = 256
    columns: int = 256
    rasterizer: Rasterizer = "center"
    contour_origin: int = 0
    contour_transform: tuple[str, ...] = ()
    partial: bool = False
    masks: MaskKind = "labels"
    not_drawn: NotDrawn = "background"
    split: tuple[float, float, float] | None = None
    split_seed: int = 0
    folds: int | None = None
    split_file: str | None = None
    splits_from: str | None = None
    stratify: str | None = None
    patients_csv: str | None = None
    same_person: SamePerson = "keep"
    qc: bool = True
    audit: bool = True
    audit_contours: int | None = AUDIT_CONTOURS
    exclude_flagged: tuple[str, ...] = ()
    exclude_file: str | None = None
    exclude_structures: bool = False
    layout: str = "auto"
    structures: tuple[str | StructureChoice, ...] | None = None
    patient_id: PatientId = "tag"
    structure_sets: str = NEWEST
    background: bool = False
    plane_tolerance: float = 0.25
    segment_threshold: float = 0.5
    keep_tags: tuple[str, ...] = ()
    keep_tags_anyway: bool = False
    size: Size = "exact"  # behind what version 1 had, so that positions mean what they did
    resample: tuple[float, float] | None = None
    fit_about: FitAbout = "image"
    limits: Limits = ()

    def __post_init__(self) -> None:
        """Refuse what no build can do, and put the contours in order, the inner first.

        Raises
        ------
        TypeError, ValueError
            An option is not what it should be.
        """
        codes = _excluded(self.exclude_flagged)
        _require_among("rasterizer", self.rasterizer, get_args(Rasterizer))
        _require_among("same_person", self.same_person, get_args(SamePerson))
        _require_masks(self.masks, self.not_drawn)
        _require_size(self.size, self.fit_about)
        for name, low, high in _RANGES:
            if getattr(self, name) is not None:
                _require_whole(name, getattr(self, name), low, high)
        _require_among("patient_id", self.patient_id, get_args(PatientId))
        for name in _SWITCHES:
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: expected True or False, found {getattr(self, name)!r}.")
        _require_strings(self.layout, self.structure_sets)
        if self.split is not None and self.split_file is not None:
            raise ValueError("split: expected either split or split_file, found both.")
        if self.splits_from is not None and self.split_file is not None:
            raise ValueError("splits_from: expected either splits_from or split_file, found both.")
        if self.patients_csv is not None and self.stratify is None:
            raise ValueError("patients_csv: expected stratify, the name of its column, found None.")
        # As frozen as before, in the one form in which the file records them.
        ordered = {
            "exclude_flagged": codes,
            "contours": _contours(self.contours),
            "contour_transform": transform_steps(self.contour_transform),
            "structures": _structures(self.structures),
            "resample": _spacing(self.resample),
            "keep_tags": tuple(sorted(set(_strings("keep_tags", self.keep_tags)))),
            "split": None if self.split is None else shares(self.split),
            "plane_tolerance": _positive("plane_tolerance", self.plane_tolerance, math.inf),
            "segment_threshold": _positive("segment_threshold", self.segment_threshold, 1),
            "limits": _limits(self.limits),
        }
        for name, value in ordered.items():
            object.__setattr__(self, name, value)
        if self.exclude_structures and self.contours == KINDS and not self.partial:
            raise ValueError(
                "exclude_structures: expected partial=True with both contours, which keeps pairs "
                "that lack one, found False."
            )

    @property
    def has_audit(self) -> bool:
        """Whether contours are audited, which takes both switches."""
        return self.qc and self.audit

    @property
    def is_resized(self) -> bool:
        """Whether images get other pixels than their own: resampled, padded or cropped."""
        return self.size == "fit" or self.resample is not None

    def to_json(self) -> dict[str, object]:
        """Return the options without paths of this machine.

        Options of sizes, and limits, stand there only where they are used, so that other files
        stay as they were before there were any.
        """
        recorded = asdict(self) | {"audit": self.has_audit, "limits": dict(self.limits)}
        for name in ("size", "resample", "fit_about", "limits"):
            if getattr(self, name) == type(self).__dataclass_fields__[name].default:
                del recorded[name]
        if self.structures is not None:  # as it was before a mapping said what lies in what
            recorded["structures"] = [
                one if isinstance(one, str) or one.inside_of else one[:-1]
                for one in self.structures
            ]
        for name in ("split_file", "splits_from", "patients_csv", "exclude_file"):
            del recorded[name]
        return recorded

    def recorded(self, digest: Callable[[Path], str]) -> dict[str, object]:
        """Return the options as the file records them, with the content of files as digests.

        Parameters
        ----------
        digest : function
            Returns the XXH3-128 of a file that an option names, hexadecimal.
        """
        recorded = self.to_json()
        for name in ("split_file", "patients_csv", "exclude_file"):
            path = getattr(self, name)
            if path is not None:
                recorded[f"{name}_xxh3"] = digest(Path(path))
        return recorded

    def excludes(self, code: str, *patient: str) -> bool:
        """Return whether findings of a code are to be left out, of a patient with these ids."""
        return any(
            part == code and (not separator or name in patient)
            for part, separator, name in (one.partition(":") for one in self.exclude_flagged)
        )


def shares(split: object) -> tuple[float, float, float]:
    """Return three shares in percent as floats.

    Raises
    ------
    ValueError
        They are not three numbers, none negative, that sum to 100.
    """
    try:
        train, validation, test = map(float, cast("Iterable[float]", split))
    except (TypeError, ValueError):
        train = validation = test = math.nan
    is_whole = abs(train + validation + test - 100) < _ROUNDING  # not so for NaN
    if not (min(train, validation, test) >= 0 and is_whole):
        raise ValueError(f"split: expected three shares that sum to 100, found {split!r}.")
    return train, validation, test


def _excluded(given: object) -> tuple[str, ...]:
    """Return CODE and CODE:PATIENT, each once, in the order of the codes."""
    entries = sorted(set(_strings("exclude_flagged", given)))
    parts = [entry.partition(":") for entry in entries]
    if unknown := {code for code, _, _ in parts if code not in FLAG_CODES}:
        raise ValueError(f"exclude_flagged: no row is flagged {', '.join(sorted(unknown))}.")
    if nameless := [entry for entry in entries if entry.endswith(":")]:
        raise ValueError(f"exclude_flagged: expected a patient after {nameless[0]!r}, found none.")
    return tuple(sorted(entries, key=lambda entry: FLAG_CODES.index(entry.partition(":")[0])))


def transform_steps(steps: object) -> tuple[str, ...]:
    """Return the steps of a contour transform in the form in which the file records them.

    Raises
    ------
    TypeError, ValueError
        They are no steps, or a factor is not a finite number above 0.
    """
    return tuple(map(_transform_step, _strings("contour_transform", steps)))


def _transform_step(step: str) -> str:
    name, equals, factor = step.partition("=")
    if step in TRANSFORM_STEPS:
        return step
    if name != SCALE_STEP or not equals:
        known = ", ".join([*TRANSFORM_STEPS, f"{SCALE_STEP}=F"])
        raise ValueError(f"contour_transform: expected steps of {known}, found {step!r}.")
    try:
        value = float(factor)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"contour_transform: expected a factor above 0, found {step!r}.")
    return f"{SCALE_STEP}={value!r}".removesuffix(".0")


def _contours(contours: object) -> tuple[Kind, ...] | None:
    if contours is None:
        return None
    given = _strings("contours", contours)
    if not given or set(given) - set(KINDS):
        raise ValueError(f"contours: expected some of {KINDS}, found {contours!r}.")
    return tuple(kind for kind in KINDS if kind in given)


def _structures(structures: object) -> tuple[str | StructureChoice, ...] | None:
    if structures is None:
        return None
    if isinstance(structures, Mapping):
        return structure_choices(structures)
    if isinstance(structures, str) or not isinstance(structures, Iterable):
        raise TypeError(f"structures: expected a tuple of strings, found {structures!r}.")
    given = tuple(one if isinstance(one, str) else StructureChoice(*one) for one in structures)
    if given and not any(isinstance(one, str) for one in given):  # as a file records a mapping
        choices = [one for one in given if isinstance(one, StructureChoice)]
        return structure_choices({one.name: one._asdict() for one in choices})
    if not given or not all(given) or len(set(given)) < len(given):
        raise ValueError(f"structures: expected names, each once, found {structures!r}.")
    return given


def structure_choices(structures: Mapping[Any, object]) -> tuple[StructureChoice, ...]:
    """Return the choices of a mapping; codes that it does not give are the lowest free ones.

    Raises
    ------
    TypeError, ValueError
        It is not names with patterns and codes.
    """
    codes: dict[str, int | None] = {}
    patterns: dict[str, tuple[str, ...]] = {}
    outer: dict[str, str] = {}
    for key, value in structures.items():
        name = str(key)
        table = value if isinstance(value, Mapping) else {"patterns": value}
        unknown = table.keys() - {"name", "patterns", "code", "inside_of"}
        outer[name] = str(table.get("inside_of", ""))
        code, fits = table.get("code"), table.get("patterns", (name,))
        patterns[name] = _strings(f"structures: {name}", [fits] if isinstance(fits, str) else fits)
        if not name or unknown or not patterns[name] or not all(patterns[name]):
            raise ValueError(f"structures: {name!r}: expected patterns and code, found {value!r}.")
        if code is not None:
            _require_whole(f"structures: {name}", code, 1, 254)
        codes[name] = None if code is None else cast("int", code)
    taken = [code for code in codes.values() if code is not None]
    if not codes or len(set(taken)) < len(taken):
        raise ValueError(f"structures: expected names and codes, each once, found {structures!r}.")
    free = (code for code in range(1, 255 + len(codes)) if code not in taken)
    choices = [
        StructureChoice(name, patterns[name], next(free) if code is None else code, outer[name])
        for name, code in codes.items()
    ]
    return tuple(sorted(choices, key=lambda one: _depth(one.name, outer)))


def _depth(name: str, outer: Mapping[str, str]) -> int:
    """Return in how many structures one lies: the outer ones are painted first."""
    depth, inner = 0, name
    while around := outer[inner]:
        depth += 1
        if around not in outer or depth > len(outer):
            raise ValueError(
                f"structures: {name!r}: expected inside_of to name another structure that does "
                f"not lie in it, found {outer[name]!r}."
            )
        inner = around
    return depth


def _spacing(value: object) -> tuple[float, float] | None:
    if value is None:
        return None
    pair = (value, value) if isinstance(value, int | float) else value
    if isinstance(pair, str) or not isinstance(pair, Iterable):
        raise TypeError(f"resample: expected one or two numbers, found {value!r}.")
    spacing = tuple(_positive("resample", one, math.inf) for one in pair)
    if len(spacing) != 2:  # noqa: PLR2004  between rows, between columns
        raise ValueError(f"resample: expected one or two numbers, found {value!r}.")
    return spacing


def _limits(given: object) -> Limits:
    """Return the limits that are not the defaults, in alphabetical order."""
    pairs = given.items() if isinstance(given, Mapping) else given
    if not isinstance(pairs, Iterable):
        raise TypeError(f"limits: expected names with numbers, found {given!r}.")
    limits = {str(name): value for name, value in pairs}
    for name, value in limits.items():
        if name not in LIMITS:
            raise ValueError(f"limits: expected some of {', '.join(LIMITS)}, found {name!r}.")
        _require_whole(f"limits: {name}", value, 1, MOST_OF_A_LIMIT)
    return tuple(sorted((k, v) for k, v in limits.items() if v != LIMITS[k].value))


def _positive(name: str, value: object, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: expected a number, found {value!r}.")
    if not 0 < value <= high or value == math.inf:
        expected = "more than 0" if high == math.inf else f"more than 0, {high:g} at most"
        raise ValueError(f"{name}: expected {expected}, found {value}.")
    return float(value)


def _strings(name: str, values: object) -> tuple[str, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name}: expected a tuple of strings, found {values!r}.")
    return tuple(map(str, values))


def _require_strings(layout: object, structure_sets: object) -> None:
    for name, value in (("layout", layout), ("structure_sets", structure_sets)):
        if not isinstance(value, str):
            raise TypeError(f"{name}: expected a string, found {value!r}.")


def _require_masks(masks: object, not_drawn: object) -> None:
    _require_among("masks", masks, get_args(MaskKind))
    _require_among("not_drawn", not_drawn, get_args(NotDrawn))
    if masks == "bits" and not_drawn == "ignore":
        raise ValueError(
            "not_drawn: expected 'background' with bit masks, of which the columns drawn_<code> "
            "tell what was not drawn, found 'ignore'."
        )


def _require_size(size: object, fit_about: object) -> None:
    _require_among("size", size, get_args(Size))
    _require_among("fit_about", fit_about, get_args(FitAbout))
    if fit_about != "image" and size != "fit":
        raise ValueError(f"fit_about: expected size='fit' with {fit_about!r}, found {size!r}.")


def _require_among(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        listed = " or ".join(map(repr, choices))
        raise ValueError(f"{name}: expected {listed}, found {value!r}.")


def _require_whole(name: str, value: object, low: int, high: float) -> None:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name}: expected a whole number, found {value!r}.")
    if not low <= value <= high:
        expected = f"{low} or more" if high == math.inf else f"{low} to {high}"
        raise ValueError(f"{name}: expected {expected}, found {value}.")
