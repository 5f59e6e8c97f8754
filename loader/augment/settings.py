"""Which parts an augmentation has: how likely and how strong each is."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Final, Literal, NamedTuple, Self, TypeAlias, TypedDict, Unpack, get_args

from loader.arguments import choice
from loader.errors import LoaderError

Chance: TypeAlias = float
Range: TypeAlias = tuple[float, float, float]  # probability, lowest, highest
Interpolation: TypeAlias = Literal["linear", "cubic"]

_MOST_QUOTED: Final = 500  # characters of a message's reason
_FORMAT_VERSION: Final = 1


class Part(NamedTuple):
    """What a part may be: the value that changes nothing, the limits, and the unit in words."""

    neutral: float
    lowest: float
    highest: float
    unit: str


# A part's place is the number of its draws: new parts go to the end.
PARTS: Final[Mapping[str, Part]] = {
    "flip_rows": Part(0, 0, 0, ""),
    "flip_columns": Part(0, 0, 0, ""),
    "quarter_turns": Part(0, 0, 0, "by 90, 180 or 270 degrees"),
    "rotate": Part(0, -360, 360, "degrees, positive anticlockwise"),
    "scale": Part(1, 0.1, 10, "times the size"),
    "shift": Part(0, -1, 1, "of the side, in rows and in columns"),
    "shear": Part(0, -40, 40, "degrees, along rows and along columns"),
    # With B-splines no image folds below 1 / 2.48 of the control points' distance, a quarter.
    "elastic": Part(0, 0, 0.1, "of the side, the most that a control point moves"),
    "gamma": Part(1, 0.1, 10, "as exponent"),
    "brightness": Part(0, -10, 10, "standard deviations of the image, added"),
    "contrast": Part(1, 0, 10, "times the distance from the mean"),
    "noise": Part(0, 0, 10, "standard deviations of the image, as that of the noise"),
    "blur": Part(0, 0, 8, "pixels, the Gaussian's standard deviation"),
    "bias_field": Part(0, 0, 2, "as largest coefficient of the field's logarithm"),
    "low_resolution": Part(1, 0.05, 1, "of the rows and columns"),
}
_CHANCES: Final = ("flip_rows", "flip_columns", "quarter_turns")
_RESAMPLING: Final = ("rotate", "scale", "shift", "shear", "elastic")


class Settings(TypedDict, total=False):
    """The arguments of `Augment`."""

    flip_rows: Chance
    flip_columns: Chance
    quarter_turns: Chance
    rotate: Range | None
    scale: Range | None
    shift: Range | None
    shear: Range | None
    elastic: Range | None
    gamma: Range | None
    brightness: Range | None
    contrast: Range | None
    noise: Range | None
    blur: Range | None
    bias_field: Range | None
    low_resolution: Range | None
    interpolation: Interpolation


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes of images and masks, decided by seed, epoch and row.

    Flips and quarter turns have a probability. Every other part has a triple, (probability, lowest,
    highest): the share of samples that it changes, and the range of which it draws. None is a part
    that never happens. ``Augment()`` is a preset for any image; ``Augment.none(rotate=(1, -5, 5))``
    rotates and does nothing else; ``Augment.ct(elastic=None)`` is a preset but for one part.

    The parts happen in the order below. The first eight move pixels, of image and mask alike, in
    one resampling; flips and quarter turns are exact. The others change the values of images only.

    Parameters
    ----------
    flip_rows, flip_columns : float
        Probability that the order of the rows, or of the columns, is reversed.
    quarter_turns : float
        Probability of a turn by 90, 180 or 270 degrees, each as often; always by 180 where images
        are not square.
    scale : (probability, lowest, highest), optional
        Factor of the size; above 1 enlarges.
    shear : (probability, lowest, highest), optional
        Degrees, drawn along rows and along columns.
    rotate : (probability, lowest, highest), optional
        Degrees; positive turns anticlockwise.
    shift : (probability, lowest, highest), optional
        Fraction of the side, drawn for rows and for columns.
    elastic : (probability, lowest, highest), optional
        The most that each of 7 x 7 control points moves, as a fraction of the side, at most 0.1; a
        cubic B-spline fills in between.
    bias_field : (probability, lowest, highest), optional
        Largest coefficient of a polynomial of degree 3, whose exponential multiplies the distance
        from the image's minimum.
    blur : (probability, lowest, highest), optional
        Standard deviation of a Gaussian, in pixels.
    low_resolution : (probability, lowest, highest), optional
        Fraction of rows and columns that are kept, and interpolated back to the size.
    gamma : (probability, lowest, highest), optional
        Exponent of the values between the image's minimum and maximum.
    contrast : (probability, lowest, highest), optional
        Factor of the distance from the image's mean.
    brightness : (probability, lowest, highest), optional
        Added, in standard deviations of the image.
    noise : (probability, lowest, highest), optional
        Standard deviation of normal noise, in standard deviations of the image.
    interpolation : "linear" or "cubic"
        Of images; masks take the nearest pixel. Beyond the border, the border's pixels go on.

    Raises
    ------
    TypeError, ValueError
        A probability outside of 0 to 1; or a range that is reversed, not finite, or beyond what
        the part can do.
    """

    flip_rows: Chance = 0.0
    flip_columns: Chance = 0.0
    quarter_turns: Chance = 0.0
    rotate: Range | None = (0.3, -15, 15)
    scale: Range | None = (0.3, 0.8, 1.25)
    shift: Range | None = (0.3, -0.05, 0.05)
    shear: Range | None = None
    elastic: Range | None = None
    gamma: Range | None = (0.3, 0.7, 1.5)
    brightness: Range | None = (0.15, -0.25, 0.25)
    contrast: Range | None = (0.15, 0.75, 1.25)
    noise: Range | None = (0.1, 0, 0.2)
    blur: Range | None = (0.1, 0.5, 1)
    bias_field: Range | None = None
    low_resolution: Range | None = (0.1, 0.5, 1)
    interpolation: Interpolation = "linear"

    def __post_init__(self) -> None:
        """Check every part, and hold it as plain floats."""
        for name in PARTS:
            check = _chance if name in _CHANCES else _range
            object.__setattr__(self, name, check(name, getattr(self, name)))
        choice("interpolation", self.interpolation, get_args(Interpolation))

    @classmethod
    def none(cls, **parts: Unpack[Settings]) -> Self:
        """Return an augmentation of only the parts that are given."""
        off: Settings = dict.fromkeys(PARTS)  # type: ignore[assignment]
        off |= {"flip_rows": 0.0, "flip_columns": 0.0, "quarter_turns": 0.0}
        return cls(**off | parts)

    @classmethod
    def cardiac_mr(cls, **parts: Unpack[Settings]) -> Self:
        """Return the preset for short-axis cardiac MR, with other values for the parts given."""
        preset: Settings = {
            "flip_rows": 0.5,
            "flip_columns": 0.5,
            "quarter_turns": 0.5,
            "rotate": (0.5, -45, 45),
            "scale": (0.5, 0.7, 1.4),
            "shift": (0.3, -0.1, 0.1),
            "shear": (0.1, -10, 10),
            "elastic": (0.3, 0.01, 0.04),
            "gamma": (0.3, 0.7, 1.5),
            "brightness": (0.15, -0.25, 0.25),
            "contrast": (0.15, 0.75, 1.25),
            "noise": (0.15, 0, 0.3),
            "blur": (0.2, 0.5, 1),
            "bias_field": (0.3, 0, 0.3),
            "low_resolution": (0.25, 0.5, 1),
        }
        return cls(**preset | parts)

    @classmethod
    def ct(cls, **parts: Unpack[Settings]) -> Self:
        """Return the preset for CT, with other values for the parts given."""
        preset: Settings = {
            "rotate": (0.3, -15, 15),
            "scale": (0.3, 0.8, 1.25),
            "shift": (0.3, -0.05, 0.05),
            "elastic": (0.2, 0.005, 0.02),
            "gamma": None,
            "brightness": (0.15, -0.1, 0.1),
            "contrast": (0.15, 0.9, 1.1),
            "noise": (0.3, 0, 0.2),
            "blur": (0.2, 0.5, 1.2),
            "low_resolution": (0.2, 0.5, 1),
        }
        return cls.none(**preset | parts)

    def range_of(self, name: str) -> Range:
        """Return probability, lowest and highest of a part, also of one that never happens."""
        part = getattr(self, name)
        if name in _CHANCES:
            return part, 0.0, 0.0
        neutral = PARTS[name].neutral
        return part or (0.0, neutral, neutral)

    def has(self, *names: str) -> bool:
        """Return whether any of some parts can happen."""
        return any(self.range_of(name)[0] > 0 for name in names)

    @property
    def resamples(self) -> bool:
        """Whether any part can happen that takes values from between the pixels."""
        return self.has(*_RESAMPLING)

    def describe(self) -> str:
        """Return a text with a line for each part that can happen."""
        lines = []
        for name, part in PARTS.items():
            probability, lowest, highest = self.range_of(name)
            if not probability:
                continue
            amount = "" if name in _CHANCES else f", {lowest:g} to {highest:g}"
            unit = f"{' ' if amount else ', '}{part.unit}" if part.unit else ""
            lines.append(f"{name}: {100 * probability:g} % of the samples{amount}{unit}")
        if self.resamples:
            lines.append(f"interpolation: {self.interpolation}")
        return "\n".join(lines or ["nothing"])

    def to_json(self) -> str:
        """Return it as JSON, from which `from_json` makes an equal one."""
        return json.dumps({"version": _FORMAT_VERSION} | asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return what `to_json` wrote. A part that is not in it never happens.

        Raises
        ------
        LoaderError
            Not such a text, or of a later version.
        """
        try:
            read = json.loads(text)
            version, known = read.pop("version"), {field.name for field in fields(cls)}
            if version != _FORMAT_VERSION or not read.keys() <= known:
                raise ValueError(f"version {version!r} with {', '.join(read)}")
            return cls.none(**read)
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
            why = str(error)
            why = why if len(why) <= _MOST_QUOTED else f"{why[:_MOST_QUOTED]}..."
            raise LoaderError(
                "Augmentation not read: expected the JSON of Augment.to_json, of version "
                f"{_FORMAT_VERSION}, found {type(error).__name__}: {why}. Give what to_json "
                "returned, or install a later dicom-etl."
            ) from error

    def difference(self, other: str | None) -> str:
        """Return in words in which parts the JSON of another one differs."""
        try:
            theirs = {} if other is None else asdict(type(self).from_json(other))
        except LoaderError as error:
            return str(error)
        if not theirs:
            return "augment (expected one, found None)"
        return ", ".join(
            f"augment's {name} (expected {mine!r}, found {theirs[name]!r})"
            for name, mine in asdict(self).items()
            if mine != theirs[name]
        )


def _chance(name: str, value: Chance) -> Chance:
    number = _number(name, value)
    if not 0 <= number <= 1:
        raise ValueError(f"{name}: expected a probability from 0 to 1, found {value!r}.")
    return number


def _range(name: str, value: Range | None) -> Range | None:
    if value is None:
        return None
    if not isinstance(value, tuple | list) or len(value) != len(
        ("probability", "lowest", "highest")
    ):
        raise TypeError(
            f"{name}: expected (probability, lowest, highest) or None, found {value!r}."
        )
    probability, lowest, highest = (_number(name, one) for one in value)
    _chance(f"{name}, the first of the three", probability)
    part = PARTS[name]
    if not part.lowest <= lowest <= highest <= part.highest:
        raise ValueError(
            f"{name}: expected (probability, lowest, highest) with lowest <= highest, from "
            f"{part.lowest:g} to {part.highest:g} ({part.unit}), found {value!r}."
        )
    return probability, lowest, highest


def _number(name: str, value: float) -> float:
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, OverflowError):  # of whole numbers that no float holds
        number = math.nan
    if not math.isfinite(number):
        raise TypeError(f"{name}: expected finite numbers, found {value!r}.")
    return number
