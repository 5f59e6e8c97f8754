"""The plain data that the stages hand on to each other.

What travels between processes for every pair is a NamedTuple, which is made and pickled several
times faster than a dataclass.
"""

import math
import pickle
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Final, Literal, NamedTuple, TypeAlias, cast, get_args

import numpy as np
import numpy.typing as npt

Vertices: TypeAlias = npt.NDArray[
    np.float64
]  # (n_vertices, 2), (x, y) in pixels, integers at centres
Mask: TypeAlias = npt.NDArray[np.bool_]  # (rows, columns)
Image: TypeAlias = npt.NDArray[np.int16 | np.uint16 | np.int32 | np.float32]  # (rows, columns)
LabelMap: TypeAlias = npt.NDArray[np.uint8]  # (rows, columns)

Severity = Literal["error", "warning", "info"]
Kind = Literal["i", "o"]  # inner (blood pool) and outer (heart muscle) contour
Rasterizer = Literal["center", "pillow"]

KINDS: Final[tuple[Kind, ...]] = ("i", "o")
LABELS: Final[dict[Kind, int]] = {"i": 1, "o": 2}  # codes in /contours/label, and in `i,o` masks

# error: a pair that should have been a row is not. warning: written, but suspicious.
# info: nothing wrong, worth knowing.
SEVERITIES: Final[dict[str, Severity]] = {
    "link-invalid": "error",
    "link-unknown-patient": "error",
    "link-duplicate": "error",
    "image-unreadable": "error",
    "image-truncated": "error",
    "image-no-pixels": "error",
    "image-not-grayscale": "error",
    "image-multiframe": "error",
    "image-unsupported-encoding": "error",
    "image-changed": "error",
    "image-size": "error",
    "slice-ambiguous": "error",
    "contour-unreadable": "error",
    "contour-too-few-points": "error",
    "contour-not-finite": "error",
    "contour-outside": "error",
    "contour-too-large": "error",
    "mask-empty": "error",
    "row-excluded": "error",
    "contour-no-image": "warning",
    "contour-partly-outside": "warning",
    "contour-open-gap": "warning",
    "contour-self-crossing": "warning",
    "contour-repeated-points": "warning",
    "inner-outside-outer": "warning",
    "identical-contour": "warning",
    "identical-image": "warning",
    "area-jump": "warning",
    "centroid-jump": "warning",
    "area-outlier": "warning",
    "image-constant": "warning",
    "image-saturated": "warning",
    "geometry-changes": "warning",
    "instance-number-differs": "warning",
    "alignment-dataset": "warning",
    "alignment-patient": "warning",
    "image-no-contour": "info",
    "contour-missing": "info",
}
SEVERITY_ORDER: Final[tuple[Severity, ...]] = ("error", "warning", "info")

# The bit of each code in /manifest/flags is its position here: append, never reorder.
FLAG_CODES: Final = (
    "contour-partly-outside",
    "contour-open-gap",
    "contour-self-crossing",
    "contour-repeated-points",
    "inner-outside-outer",
    "identical-contour",
    "identical-image",
    "area-jump",
    "centroid-jump",
    "area-outlier",
    "image-constant",
    "image-saturated",
    "geometry-changes",
    "instance-number-differs",
)

# What a build with --no-qc, and one with --no-audit, has not looked for.
AUDIT_CODES: Final = ("alignment-dataset", "alignment-patient")
QUALITY_CODES: Final = (
    *(code for code in FLAG_CODES if code != "contour-partly-outside"),
    *AUDIT_CODES,
)

_RANGES: Final = (  # of the options that are whole numbers
    ("rows", 1, 65535),
    ("columns", 1, 65535),
    ("contour_origin", 0, 1),
    ("split_seed", 0, math.inf),
    ("folds", 2, 9999),
    ("audit_contours", 1, math.inf),
)
_ROUNDING: Final = 1e-9  # of shares in percent, when they are summed

# Contours audited of each patient: their median is within a third of a pixel in hand-drawn ones.
AUDIT_CONTOURS: Final = 6


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing rejected, unmatched or suspicious.

    `path` is relative to DATA, and empty where a finding is about all of it; a finding about a row
    names one of that row's files.
    """

    code: str
    path: str
    message: str

    @property
    def severity(self) -> Severity:
        """The severity that the code has."""
        return SEVERITIES[self.code]

    def __str__(self) -> str:
        """Return one line for people: severity, code, where and why."""
        return f"{self.severity}: {self.code}: {located(self.path, self.message)}"


def located(path: str, message: str) -> str:
    """Return a message after the path that it is about, if any, as one printable line."""
    return printable(f"{path}: {message}" if path else message)


def printable(text: str) -> str:
    """Return text with what a terminal obeys or cannot show, line ends too, as Python escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class Link(NamedTuple):
    """One DICOM file and its contour files; paths relative to DATA, empty where there is none."""

    patient_id: str
    original_id: str
    slice: int
    dicom_path: str
    icontour_path: str = ""
    ocontour_path: str = ""
    is_audited: bool = False  # whether its contours are compared with the image's edges

    def contour_paths(self) -> list[tuple[Kind, str]]:
        """Return (kind, path) of the contours that the link has, the inner first."""
        paths: list[tuple[Kind, str]] = [("i", self.icontour_path), ("o", self.ocontour_path)]
        return [(kind, path) for kind, path in paths if path]


class Identity(NamedTuple):
    """What tells one state of a file from another."""

    inode: int
    size: int
    mtime_ns: int


class PixelFormat(NamedTuple):
    """How the pixels of one instance lie in its file and what they mean.

    `offset` counts from the start of the file, or of the inflated data set when `is_deflated`.
    """

    rows: int
    columns: int
    bits_allocated: int
    bits_stored: int
    is_signed: bool
    is_inverted: bool  # MONOCHROME1
    is_big_endian: bool
    is_word_swapped: bool  # bytes in big-endian 16-bit words: 8-bit pixels with VR OW
    is_deflated: bool
    offset: int
    rescale_slope: float
    rescale_intercept: float

    @property
    def n_bytes(self) -> int:
        """Length of the pixels, without padding."""
        return self.rows * self.columns * self.bits_allocated // 8


@dataclass(frozen=True, slots=True)
class ValueRange:
    """The values that images may have by their headers."""

    lowest: float
    highest: float
    is_whole: bool  # every slope and intercept is a whole number

    def __or__(self, other: "ValueRange") -> "ValueRange":
        """Return the range that covers both."""
        return ValueRange(
            min(self.lowest, other.lowest),
            max(self.highest, other.highest),
            self.is_whole and other.is_whole,
        )


EMPTY_RANGE: Final = ValueRange(math.inf, -math.inf, is_whole=True)


class Instance(NamedTuple):
    """The attributes of one DICOM file that the manifest keeps; NaN or empty where it has none."""

    pixel_format: PixelFormat
    sop_instance_uid: str
    series_instance_uid: str
    instance_number: float
    pixel_spacing: tuple[float, ...]  # 2 values, mm: between rows, between columns
    image_position: tuple[float, ...]  # 3 values, mm, patient coordinates
    image_orientation: tuple[float, ...]  # 6 direction cosines: along a row, then along a column
    slice_location: float  # mm
    trigger_time: float  # ms


class Contour(NamedTuple):
    """One closed polygon as it will be rasterised, and the digest of the file it came from."""

    kind: Kind
    vertices: Vertices
    xxh3: str

    @property
    def label(self) -> int:
        """The code in /contours/label."""
        return LABELS[self.kind]


class Sample(NamedTuple):
    """One pair that passed every check made without its pixels."""

    link: Link
    instance: Instance
    identity: Identity
    contours: tuple[Contour, ...]

    def packed(self) -> bytes:
        """Return what `unpacked` makes this again of; four times as fast as pickling it.

        Plain tuples and bytes name no class, and are made without asking for one.
        """
        link, instance, identity, contours = self
        pixels, *attributes = instance
        drawn = [(kind, vertices.tobytes(), xxh3) for kind, vertices, xxh3 in contours]
        plain = tuple(link), tuple(pixels), attributes, tuple(identity), drawn
        return pickle.dumps(plain, pickle.HIGHEST_PROTOCOL)

    @classmethod
    def unpacked(cls, packed: bytes) -> "Sample":
        """Return the sample that `packed` was called on."""
        link, pixels, attributes, identity, drawn = pickle.loads(packed)  # noqa: S301  our own
        return cls(
            Link(*link),
            Instance(PixelFormat(*pixels), *attributes),
            Identity(*identity),
            tuple(
                Contour(kind, np.frombuffer(vertices).reshape(-1, 2), xxh3)
                for kind, vertices, xxh3 in drawn
            ),
        )


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """What the content of the file depends on, besides the input.

    Parameters
    ----------
    contours : tuple of {"i", "o"}
        Contour kinds, the inner first.
    rows, columns : int
        The size that every image must have.
    rasterizer : {"center", "pillow"}
        The rule that turns a polygon into a mask; see `etl.contours.rasterise`.
    contour_origin : {0, 1}
        1 subtracts one pixel from x and y, for contour files that count from 1.
    partial : bool
        With two kinds, also write pairs that lack one of the two.
    split : tuple of three floats, optional
        Percent of the samples for train, validation and test.
    split_seed : int
        Key of the hash that orders the patients.
    folds : int, optional
        Number of cross-validation folds over the patients that are not test.
    split_file : str, optional
        The user's own split file (patient_id,split[,fold]).
    qc : bool
        Check what was drawn and how the rows agree; see `etl.quality.rows`.
    audit : bool
        Measure how far contours lie off the images' edges as well; see `etl.quality.alignment`.
    audit_contours : int, optional
        How many contours of each patient; None measures all.
    exclude_flagged : tuple of str
        Codes of `FLAG_CODES`: rows with such a finding are left out.
    """

    contours: tuple[Kind, ...] = ("i",)
    rows: int = 256
    columns: int = 256
    rasterizer: Rasterizer = "center"
    contour_origin: int = 0
    partial: bool = False
    split: tuple[float, float, float] | None = None
    split_seed: int = 0
    folds: int | None = None
    split_file: str | None = None
    qc: bool = True
    audit: bool = True
    audit_contours: int | None = AUDIT_CONTOURS
    exclude_flagged: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what no build can do, and put the contours in order, the inner first.

        Raises
        ------
        TypeError, ValueError
            An option is not what it should be.
        """
        contours, codes = (
            _strings(name, getattr(self, name)) for name in ("contours", "exclude_flagged")
        )
        if not contours or contours - set(KINDS):
            raise ValueError(f"contours: expected some of {KINDS}, found {self.contours!r}.")
        if unknown := codes - set(FLAG_CODES):
            raise ValueError(f"exclude_flagged: no row is flagged {', '.join(sorted(unknown))}.")
        _require_among("rasterizer", self.rasterizer, get_args(Rasterizer))
        for name, low, high in _RANGES:
            if getattr(self, name) is not None:
                _require_whole(name, getattr(self, name), low, high)
        for name in ("partial", "qc", "audit"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: expected True or False, found {getattr(self, name)!r}.")
        if self.split is not None and self.split_file is not None:
            raise ValueError("split: expected either split or split_file, found both.")
        # As frozen as before, in the one form in which the file records them.
        object.__setattr__(self, "contours", tuple(kind for kind in KINDS if kind in contours))
        object.__setattr__(
            self, "exclude_flagged", tuple(code for code in FLAG_CODES if code in codes)
        )
        if self.split is not None:
            object.__setattr__(self, "split", shares(self.split))

    @property
    def has_audit(self) -> bool:
        """Whether contours are audited, which takes both switches."""
        return self.qc and self.audit

    def to_json(self) -> dict[str, object]:
        """Return the options as the file records them: no path of this machine."""
        recorded = asdict(self) | {"audit": self.has_audit}
        del recorded["split_file"]
        return recorded


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


def _strings(name: str, values: object) -> set[str]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise TypeError(f"{name}: expected a tuple of strings, found {values!r}.")
    return set(map(str, values))


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
