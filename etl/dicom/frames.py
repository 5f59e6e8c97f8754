"""Functional groups of multi-frame files: the attributes of each frame.

References
----------
DICOM PS3.3 C.7.6.16: an attribute is in the shared or in the per-frame functional groups; files
converted from single frames, and older multi-frame files, have it at the root.
"""

import io
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from etl.dicom.quick_scan import Element
from etl.errors import ImageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SHARED_GROUPS: Final = 0x52009229
PER_FRAME_GROUPS: Final = 0x52009230

# Sequence of a functional group → its attributes that we read.
_MACROS: Final[dict[int, Sequence[int]]] = {
    0x00289110: [0x00280030],  # Pixel Measures: PixelSpacing
    0x00209113: [0x00200032],  # Plane Position: ImagePositionPatient
    0x00209116: [0x00200037],  # Plane Orientation: ImageOrientationPatient
    0x00289145: [0x00281052, 0x00281053],  # Pixel Value Transformation: intercept and slope
    # Frame Content: StackID, InStackPositionNumber, TemporalPositionIndex, DimensionIndexValues
    0x00209111: [0x00209056, 0x00209057, 0x00209128, 0x00209157],
    0x00189118: [0x00209153],  # Cardiac Synchronization: NominalCardiacTriggerDelayTime
    # Attributes of converted single frames that no other group has: SliceLocation, TriggerTime
    0x00209170: [0x00201041, 0x00181060],
    0x00209171: [0x00201041, 0x00181060],
}


class FunctionalGroups(NamedTuple):
    """The attributes that all frames share, and those of each frame, as data elements by tag."""

    shared: dict[int, Element]
    per_frame: list[dict[int, Element]]

    def has_frame(self, frame_number: int) -> bool:
        """Say whether the groups may be those of a frame; of shared groups nothing tells."""
        return not self.per_frame or 1 <= frame_number <= len(self.per_frame)

    def of_frame(self, frame_number: int) -> dict[int, Element]:
        """Return the attributes of one frame, counted from 1."""
        if not self.per_frame:
            return self.shared
        return self.shared | self.per_frame[frame_number - 1]


def read_groups(
    shared: bytes, per_frame: bytes, *, implicit: bool, little: bool
) -> FunctionalGroups:
    """Return the attributes in the values of the two sequences of functional groups.

    Raises
    ------
    ImageError
        The sequences cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            groups = [
                [_attributes(item) for item in _items(data, implicit=implicit, little=little)]
                for data in (shared, per_frame)
            ]
    except Exception as error:  # pydicom raises whatever its parsing meets
        raise ImageError(
            "image-unreadable", "its functional groups cannot be read. Export it again."
        ) from error
    return FunctionalGroups(groups[0][0] if groups[0] else {}, groups[1])


def _items(data: bytes, *, implicit: bool, little: bool) -> "Sequence[Dataset]":
    from pydicom.filereader import read_sequence

    return read_sequence(io.BytesIO(data), implicit, little, len(data), "iso8859")


def _attributes(item: "Dataset") -> dict[int, Element]:
    found: dict[int, Element] = {}
    for macro, tags in _MACROS.items():
        if macro not in item or not (group := item[macro].value):
            continue
        for tag in tags:
            value = group[0].get_item(tag).value if tag in group[0] else None
            if isinstance(value, bytes) and value.strip(b" \0"):
                found[tag] = Element("", value, 0, len(value))
    return found
