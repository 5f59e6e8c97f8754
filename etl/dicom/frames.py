"""Functional groups of multi-frame files: the attributes of each frame.

References
----------
DICOM PS3.3 C.7.6.16: an attribute is in the shared or in the per-frame functional groups; files
converted from single frames, and older multi-frame files, have it at the root.
"""

import io
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from etl.dicom.elements import (
    DIMENSION_INDICES,
    IMAGE_ORIENTATION,
    IMAGE_POSITION,
    IN_STACK_POSITION,
    PIXEL_SPACING,
    REAL_WORLD_MAPPING,
    RESCALE_INTERCEPT,
    RESCALE_SLOPE,
    RESCALE_TYPE,
    SLICE_LOCATION,
    STACK_ID,
    TEMPORAL_POSITION_INDEX,
    TRIGGER_DELAY,
    TRIGGER_TIME,
)
from etl.dicom.meaning import Mappings, mappings_of
from etl.dicom.quick_scan import Element
from etl.errors import ImageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

# A sequence without an item, and the two with an empty one: of length 0, and up to a delimiter.
_EMPTY_ITEMS: Final = frozenset(
    {
        b"",
        b"\xfe\xff\0\xe0",
        b"\xff\xfe\xe0",
        b"\xfe\xff\0\xe0\xff\xff\xff\xff\xfe\xff\x0d\xe0",
        b"\xff\xfe\xe0\0\xff\xff\xff\xff\xff\xfe\xe0\x0d",
    }
)

# Sequence of a functional group → its attributes that we read.
_MACROS: Final[dict[int, Sequence[int]]] = {
    0x00289110: [PIXEL_SPACING],  # Pixel Measures
    0x00209113: [IMAGE_POSITION],  # Plane Position
    0x00209116: [IMAGE_ORIENTATION],  # Plane Orientation
    0x00289145: [RESCALE_INTERCEPT, RESCALE_SLOPE, RESCALE_TYPE],  # Pixel Value Transformation
    # Frame Content
    0x00209111: [STACK_ID, IN_STACK_POSITION, TEMPORAL_POSITION_INDEX, DIMENSION_INDICES],
    0x00189118: [TRIGGER_DELAY],  # Cardiac Synchronization
    # Attributes of converted single frames that no other group has, shared and per frame
    0x00209170: [SLICE_LOCATION, TRIGGER_TIME],
    0x00209171: [SLICE_LOCATION, TRIGGER_TIME],
}


class FunctionalGroups(NamedTuple):
    """The attributes that all frames share, and those of each frame, as data elements by tag."""

    shared: dict[int, Element]
    per_frame: list[dict[int, Element]]
    mappings: Sequence[Mappings] = ()  # of all frames, or one of shared groups; empty: none has any

    def has_frame(self, frame_number: int) -> bool:
        """Say whether the groups may be those of a frame; of shared groups nothing tells."""
        return not self.per_frame or 1 <= frame_number <= len(self.per_frame)

    def is_lost(self, tag: int, elements: Mapping[int, Element]) -> bool:
        """Say whether a frame, with these elements, lacks an attribute that another frame has."""
        return tag not in elements and any(tag in frame for frame in self.per_frame)

    def mappings_of(self, frame_number: int) -> Mappings:
        """Return the mappings to real-world values that one frame has, counted from 1."""
        if not self.mappings:
            return ()
        return self.mappings[frame_number - 1 if self.per_frame else 0]

    def of_frame(self, frame_number: int) -> dict[int, Element]:
        """Return the attributes of one frame, counted from 1."""
        if not self.per_frame:
            return self.shared
        return self.shared | self.per_frame[frame_number - 1]


def read_groups(
    shared: bytes,
    per_frame: bytes,
    more: tuple[int, ...] = (),
    *,
    implicit: bool,
    little: bool,
) -> FunctionalGroups:
    """Return the attributes in the values of the two sequences of functional groups.

    Parameters
    ----------
    shared, per_frame : bytes
        The values.
    more : tuple of int
        Tags of further attributes, to be found in whichever functional group has them.
    implicit, little : bool
        The encoding: Implicit VR, little endian.

    Raises
    ------
    ImageError
        The sequences cannot be read.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            both = [_items(data, implicit=implicit, little=little) for data in (shared, per_frame)]
            groups = [[_attributes(item, more) for item in items] for items in both]
            mappings = [[_mappings(item) for item in items] for items in both]
    except Exception as error:  # pydicom raises whatever its parsing meets
        raise ImageError(
            "image-unreadable", "its functional groups cannot be read. Export it again."
        ) from error
    of_all = mappings[0][0] if mappings[0] else ()
    of_frames = [own or of_all for own in mappings[1]] or [of_all]
    return FunctionalGroups(
        groups[0][0] if groups[0] else {}, groups[1], of_frames if any(of_frames) else ()
    )


def _items(data: bytes, *, implicit: bool, little: bool) -> "Sequence[Dataset]":
    from pydicom.filereader import read_sequence

    return read_sequence(io.BytesIO(data), implicit, little, len(data), "iso8859")


def _attributes(item: "Dataset", more: tuple[int, ...]) -> dict[int, Element]:
    found: dict[int, Element] = {}
    for macro, tags in _MACROS.items():
        if macro in item:
            found |= _values(_first_item(item, macro), tags)
    for macro in item.keys() if more else ():
        if item[macro].VR == "SQ":
            further = _values(_first_item(item, int(macro)), more)
            found |= {tag: one for tag, one in further.items() if tag not in found}
    return found


def _mappings(item: "Dataset") -> Mappings:
    """Return the mappings to real-world values in the functional groups of an item."""
    if REAL_WORLD_MAPPING not in item:
        return ()
    return mappings_of(item[REAL_WORLD_MAPPING].value)


def _values(group: "Dataset", tags: Iterable[int]) -> dict[int, Element]:
    """Return the attributes of a functional group that have a value."""
    found: dict[int, Element] = {}
    for tag in tags:
        raw = group.get_item(tag) if tag in group else None
        if raw is not None and isinstance(raw.value, bytes) and raw.value.strip(b" \0"):
            found[tag] = Element(raw.VR or "", raw.value, 0, len(raw.value))
    return found


def _first_item(item: "Dataset", macro: int) -> "Dataset":
    """Return the one item of a functional group, empty where it has none.

    pydicom passes over bytes that are no item and no element; then the group would seem empty.
    """
    from pydicom.dataset import Dataset

    raw = item.get_item(macro).value
    items = item[macro].value
    group: Dataset = items[0] if items else Dataset()
    if isinstance(raw, bytes) and not len(group) and raw.strip(b"\0") not in _EMPTY_ITEMS:
        raise ValueError(macro)
    return group
