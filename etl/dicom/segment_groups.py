"""The functional groups of a segmentation: the plane, segment and source image of each frame.

`of_frames` reads the groups of all frames by the quick scan, `of_dataset` those of one by pydicom,
which takes ten times as long and reads what the quick scan does not understand with certainty.

References
----------
DICOM PS3.3 C.7.6.16 (functional groups), C.8.20.3 (those of a segmentation).
"""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from etl.dicom.annotations import items, text
from etl.dicom.elements import IMAGE_ORIENTATION, IMAGE_POSITION, PIXEL_SPACING, decimals
from etl.dicom.quick_scan import Element, scan_items
from etl.geometry import ImagePlane

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_PLANE_POSITION: Final = 0x00209113
_PLANE_ORIENTATION: Final = 0x00209116
_PIXEL_MEASURES: Final = 0x00289110
_SEGMENT_IDENTIFICATION: Final = 0x0062000A
_SEGMENT_NUMBER: Final = 0x0062000B
_DERIVATION_IMAGE: Final = 0x00089124
_SOURCE_IMAGE: Final = 0x00082112
_REFERENCED_INSTANCE: Final = 0x00081155
_REFERENCED_FRAME: Final = 0x00081160
_MACROS: Final = frozenset(
    {
        _PLANE_POSITION,
        _PLANE_ORIENTATION,
        _PIXEL_MEASURES,
        _SEGMENT_IDENTIFICATION,
        _DERIVATION_IMAGE,
    }
)
_LONGEST: Final = 256  # bytes of a value that is usual
_US_BYTES: Final = 2
_NAN: Final = (math.nan,)

_Item = dict[int, Element]


class SourceFrame(NamedTuple):
    """The frame of an image that a frame is drawn on; empty or 0 where the file says nothing."""

    sop_instance_uid: str = ""
    frame_number: int = 0


class Groups(NamedTuple):
    """What functional groups say; None where they do not have the group."""

    position: tuple[float, ...] | None = None  # 3 values, mm
    orientation: tuple[float, ...] | None = None  # 6 direction cosines
    spacing: tuple[float, ...] | None = None  # 2 values, mm
    number: int | None = None  # of the segment
    source: SourceFrame = SourceFrame()

    def over(self, shared: "Groups") -> "Groups":
        """Return the groups of a frame, and the shared ones that it does not have itself."""
        position, orientation, spacing, number, source = self
        return Groups(
            shared.position if position is None else position,
            shared.orientation if orientation is None else orientation,
            shared.spacing if spacing is None else spacing,
            shared.number if number is None else number,
            source,
        )

    @property
    def plane(self) -> ImagePlane:
        """The plane of the frame in the patient."""
        orientation = self.orientation or 6 * _NAN
        return ImagePlane(
            self.position or 3 * _NAN,
            orientation[:3],
            orientation[3:],
            self.spacing or 2 * _NAN,
        )


# --------------------------------------------------------------------------------------- by pydicom


def of_dataset(groups: "Dataset") -> Groups:
    """Return what an item of functional groups says, or the root of a file that has none."""
    named = _first(groups, "SegmentIdentificationSequence")
    return Groups(
        _numbers(_first(groups, "PlanePositionSequence"), "ImagePositionPatient", 3),
        _numbers(_first(groups, "PlaneOrientationSequence"), "ImageOrientationPatient", 6),
        _numbers(_first(groups, "PixelMeasuresSequence"), "PixelSpacing", 2),
        None if named is None else int(named.ReferencedSegmentNumber),
        _source(groups),
    )


def of_root(dataset: "Dataset") -> Groups:
    """Return what the root of a file says outside of all groups."""
    number = dataset.get("ReferencedSegmentNumber")
    return Groups(
        _numbers(dataset, "ImagePositionPatient", 3),
        _numbers(dataset, "ImageOrientationPatient", 6),
        _numbers(dataset, "PixelSpacing", 2),
        None if number is None else int(number),
    )


def _first(groups: "Dataset", sequence: str) -> "Dataset | None":
    return next(items(groups, sequence), None)


def _numbers(group: "Dataset | None", keyword: str, n_values: int) -> tuple[float, ...] | None:
    if group is None:
        return None
    values = group.get(keyword)
    if values is None or len(values) != n_values:
        return n_values * _NAN
    return tuple(map(float, values))


def _source(groups: "Dataset") -> SourceFrame:
    sources = (
        source
        for derivation in items(groups, "DerivationImageSequence")
        for source in items(derivation, "SourceImageSequence")
    )
    source = next(sources, None)
    if source is None:
        return SourceFrame()
    frame = text(source, "ReferencedFrameNumber")
    number = int(frame) if frame.isascii() and frame.isdecimal() else 0
    return SourceFrame(text(source, "ReferencedSOPInstanceUID"), number)


# ------------------------------------------------------------------------------------ the quick way


class _UnsureError(Exception):
    """Pydicom must look at it."""


def of_frames(value: bytes, *, implicit: bool) -> list[Groups] | None:
    """Return what the per-frame functional groups say; None where pydicom must look at them.

    Parameters
    ----------
    value : bytes
        Of PerFrameFunctionalGroupsSequence, without the delimiter that may end it.
    implicit : bool
        Whether the encoding is Implicit VR Little Endian; else Explicit VR Little Endian.
    """
    read = _Reader(implicit)
    try:
        return [read.groups(item, value) for item in read.items(value, _MACROS)]
    except _UnsureError:
        return None


class _Reader:
    """Reads sequences and values of one encoding."""

    def __init__(self, implicit: bool) -> None:
        self._implicit = implicit

    def items(self, value: bytes, wanted: Iterable[int]) -> list[_Item]:
        items = scan_items(value, frozenset(wanted), implicit=self._implicit)
        if items is None:
            raise _UnsureError
        return items

    def groups(self, item: _Item, data: bytes) -> Groups:
        """Return what the item of one frame says; `data` is what it was found in."""
        named = self._first(item, _SEGMENT_IDENTIFICATION, _SEGMENT_NUMBER, data)
        return Groups(
            self._numbers(item, _PLANE_POSITION, IMAGE_POSITION, 3, data),
            self._numbers(item, _PLANE_ORIENTATION, IMAGE_ORIENTATION, 6, data),
            self._numbers(item, _PIXEL_MEASURES, PIXEL_SPACING, 2, data),
            None if named is None else self._unsigned(named.get(_SEGMENT_NUMBER)),
            self._source(item, data),
        )

    def _sequence(self, item: _Item, tag: int, wanted: Sequence[int], data: bytes) -> list[_Item]:
        element = item.get(tag)
        if element is None:
            return []
        return self.items(self._value(element, "SQ", data), wanted)

    def _first(self, item: _Item, sequence: int, tag: int, data: bytes) -> _Item | None:
        return next(iter(self._sequence(item, sequence, (tag,), data)), None)

    def _value(self, element: Element, vr: str, data: bytes = b"") -> bytes:
        if element.vr not in {"", vr}:
            raise _UnsureError
        if element.value is not None:
            return element.value
        return data[element.offset : element.offset + element.length]

    def _numbers(
        self, item: _Item, sequence: int, tag: int, n_values: int, data: bytes
    ) -> tuple[float, ...] | None:
        group = self._first(item, sequence, tag, data)
        if group is None:
            return None
        value = self._value(group[tag], "DS") if tag in group else b""
        if len(value) > _LONGEST:
            raise _UnsureError
        numbers, remark = decimals(value, n_values)
        if remark:
            raise _UnsureError
        return numbers

    def _unsigned(self, element: Element | None) -> int:
        value = b"" if element is None else self._value(element, "US")
        if len(value) != _US_BYTES:
            raise _UnsureError
        return int.from_bytes(value, "little")

    def _source(self, item: _Item, data: bytes) -> SourceFrame:
        element = item.get(_DERIVATION_IMAGE)
        if element is None:
            return SourceFrame()
        derivations = self._value(element, "SQ", data)
        tags = _REFERENCED_INSTANCE, _REFERENCED_FRAME
        for derivation in self.items(derivations, (_SOURCE_IMAGE,)):
            for source in self._sequence(derivation, _SOURCE_IMAGE, tags, derivations):
                uid = self._digits(source.get(_REFERENCED_INSTANCE), "UI", b".")
                number = self._digits(source.get(_REFERENCED_FRAME), "IS")
                return SourceFrame(uid, int(number or "0"))
        return SourceFrame()

    def _digits(self, element: Element | None, vr: str, others: bytes = b"") -> str:
        """Return a value that has digits, and some other characters."""
        value = b"" if element is None else self._value(element, vr).strip(b" \0")
        if value.translate(None, b"0123456789" + others):
            raise _UnsureError
        return value.decode("ascii")
