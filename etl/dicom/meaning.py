"""What the values of an image mean: their unit, and mappings to real-world values.

References
----------
DICOM PS3.3 C.7.6.16.2.11 (Real World Value Mapping), C.11.1 (RescaleType), C.8.9.1 (Units,
SUVType, DecayCorrection of PET).
"""

import io
import math
import re
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from etl.dicom.elements import DECAY_CORRECTION, RESCALE_TYPE, SUV_TYPE, UNITS, Values

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

MEANING_TAGS: Final = frozenset({RESCALE_TYPE, UNITS})
UNIT_CHARACTERS: Final = 24

# What a unit may be; anything else in its place is no unit, and may be what a person typed.
_UNIT: Final = re.compile(r"[A-Za-z0-9%/.*\[\]{}()'_+-]+")
_UNSPECIFIED: Final = frozenset({"", "US"})  # RescaleType, PS3.3 C.11.1.1.2
_SAME: Final = {"[hnsf'U]": "HU", "1": "no unit"}  # codes of UCUM
_TOLERANCE: Final = 1e-6  # of slopes and intercepts: RescaleSlope has 16 characters, the other FD


class Mapping(NamedTuple):
    """How stored values become real-world values; NaN where a table does it."""

    slope: float
    intercept: float
    unit: str  # empty where it is none that we know how to show

    def __str__(self) -> str:
        """Return where it leads, and how."""
        unit = f"to {self.unit!r}" if self.unit else "to a unit that it does not name"
        if math.isnan(self.slope):
            return f"{unit} by a table"
        return f"{unit} by slope {self.slope:g} and intercept {self.intercept:g}"

    def is_rescale(self, slope: float, intercept: float) -> bool:
        """Say whether slope and intercept of the modality values give the real-world values."""
        return math.isclose(self.slope, slope, rel_tol=_TOLERANCE) and math.isclose(
            self.intercept, intercept, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE
        )


Mappings = tuple[Mapping, ...]


def read_mappings(data: bytes, *, implicit: bool, little: bool) -> Mappings:
    """Return the items of a RealWorldValueMappingSequence; none where it cannot be read.

    Parameters
    ----------
    data : bytes
        The value of the sequence.
    implicit, little : bool
        The encoding: Implicit VR, little endian.
    """
    from pydicom.filereader import read_sequence

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file = io.BytesIO(data)
            return mappings_of(read_sequence(file, implicit, little, len(data), "iso8859"))
    except Exception:  # noqa: BLE001  pydicom raises whatever its parsing meets
        return (Mapping(math.nan, math.nan, ""),) * bool(data)


def mappings_of(items: "Iterable[Dataset]") -> Mappings:
    """Return the mappings that items of a RealWorldValueMappingSequence describe."""
    return tuple(map(_mapping, items))


def _mapping(item: "Dataset") -> Mapping:
    slope, intercept = (
        item.get(f"RealWorldValue{name}", math.nan) for name in ("Slope", "Intercept")
    )
    if not (isinstance(slope, float) and isinstance(intercept, float)):
        slope = intercept = math.nan
    units = item.get("MeasurementUnitsCodeSequence") or [None]
    code = units[0].get("CodeValue") if units[0] is not None else None
    return Mapping(slope, intercept, _unit(str(code or "")))


def unit_of(values: Values, mappings: Mappings, rescale: tuple[float, float]) -> str:
    """Return the unit of an image's modality values; empty where it does not tell.

    Parameters
    ----------
    values : Values
    mappings : tuple of Mapping
    rescale : (float, float)
        RescaleSlope and RescaleIntercept, as they were applied.
    """
    if unit := _unit(values.text(UNITS)):
        parts = (unit, values.text(SUV_TYPE), values.text(DECAY_CORRECTION))
        return _unit("/".join(filter(None, parts)))
    known = [one.unit for one in mappings if one.unit and one.is_rescale(*rescale)]
    return known[0] if known else _unit(values.text(RESCALE_TYPE))


def unapplied(mappings: Sequence[Mapping], rescale: tuple[float, float]) -> str:
    """Return what to say of mappings of which none is the rescale; empty where one is."""
    if not mappings or any(one.is_rescale(*rescale) for one in mappings):
        return ""
    several = f", the first of {len(mappings)}," if len(mappings) > 1 else ""
    return (
        f"its RealWorldValueMappingSequence{several} maps stored values {mappings[0]}, and is not "
        f"applied: the row has RescaleSlope {rescale[0]:g} and RescaleIntercept {rescale[1]:g} "
        "applied."
    )


def _unit(text: str) -> str:
    """Return a unit in one spelling; empty where a text is none."""
    if text in _UNSPECIFIED or len(text) > UNIT_CHARACTERS or not _UNIT.fullmatch(text):
        return ""
    return _SAME.get(text, text)
