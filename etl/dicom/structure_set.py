"""An RT Structure Set → its structures and contours, in patient coordinates.

Most of the file are its contours. The quick scan finds them, in a fifth of the time that pydicom
takes, and pydicom reads the rest; it reads all where the quick scan is not certain.

References
----------
DICOM PS3.3 C.8.8.5 (Structure Set), C.8.8.6 (ROI Contour).
"""

import io
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from etl.dicom.annotations import (
    CLOSED,
    FEW_POINTS,
    AnnotationSet,
    Drawing,
    DrawnStructure,
    Point,
    items,
    plainly,
    text,
)
from etl.dicom.elements import TRANSFER_SYNTAX_UID, Values
from etl.dicom.header import EXPLICIT, IMPLICIT
from etl.dicom.pydicom_scan import require_few_items
from etl.dicom.quick_scan import (
    DELIMITER_BYTES,
    META_OFFSET,
    SEQUENCE_DELIMITER,
    Element,
    scan_items,
    scan_meta,
    scan_whole,
)
from etl.errors import SourceError, beyond, most

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

STRUCTURE_SET: Final = "1.2.840.10008.5.1.4.1.1.481.3"  # RT Structure Set Storage

_REFERENCED_INSTANCE: Final = 0x00081155
_REFERENCED_FRAME: Final = 0x00081160
_CONTOUR_IMAGE: Final = 0x30060016
_ROI_CONTOUR: Final = 0x30060039
_CONTOURS: Final = 0x30060040
_GEOMETRIC_TYPE: Final = 0x30060042
_N_POINTS: Final = 0x30060046
_CONTOUR_DATA: Final = 0x30060050
_ROI_NUMBER: Final = 0x30060084
_OF_CONTOUR: Final = frozenset({_CONTOUR_IMAGE, _GEOMETRIC_TYPE, _N_POINTS, _CONTOUR_DATA})
# Values that have one spelling, so that the bytes are what pydicom makes of them.
_PLAIN: Final = re.compile(rb"(?:0|[1-9][0-9]*|[A-Z][A-Z_]*|[0-9]+(?:\.[0-9]+)+)?")
_SEQUENCES: Final = frozenset({"", "SQ"})  # VRs
_CODE: Final = "structure-set-unreadable"
_FEWEST_POINTS: Final = 3  # distinct ones that enclose something


Points = npt.NDArray[np.float64]


class _Contour(NamedTuple):
    """One contour, as the file has it."""

    number: str  # of its structure
    kind: str
    sop_instance_uid: str  # of the image that it refers to
    frame: str  # of that
    n_points: str  # as stated
    data: bytes | None  # ContourData; None: it has none


def read_structure_set(data: bytes) -> AnnotationSet:
    """Return what a structure set says.

    Raises
    ------
    SourceError
        It cannot be read.
    """
    with plainly(_CODE):
        dataset, contours = _open(data)
        references = [
            (frame, series)
            for frame in items(dataset, "ReferencedFrameOfReferenceSequence")
            for study in items(frame, "RTReferencedStudySequence")
            for series in items(study, "RTReferencedSeriesSequence")
        ]
        frames = [text(frame, "FrameOfReferenceUID") for frame, _ in references]
        return AnnotationSet(
            what="structure set",
            sop_instance_uid=text(dataset, "SOPInstanceUID"),
            patient_id=text(dataset, "PatientID"),
            label=text(dataset, "StructureSetLabel"),
            when=text(dataset, "StructureSetDate") + text(dataset, "StructureSetTime"),
            frame_of_reference_uid=text(dataset, "FrameOfReferenceUID") or "".join(frames[:1]),
            series=tuple(
                dict.fromkeys(text(series, "SeriesInstanceUID") for _, series in references)
            ),
            structures=tuple(
                DrawnStructure(
                    _number(item, "ROINumber"),
                    text(item, "ROIName"),
                    text(item, "ReferencedFrameOfReferenceUID"),
                )
                for item in items(dataset, "StructureSetROISequence")
            ),
            drawings=tuple(map(_drawing, contours)),
        )


def read_points(data: bytes) -> list[Points | str]:
    """Return the points of each contour, in the order of `AnnotationSet.drawings`; mm.

    Returns
    -------
    list of float64 array, shape (n_points, 3), or str
        A string says why they cannot be read.
    """
    with plainly(_CODE):
        found = list(map(_points, _open(data)[1]))
    return [problem if points is None else points for points, problem in found]


def _open(data: bytes) -> "tuple[Dataset, list[_Contour]]":
    """Return a structure set, which may lack its contours, and the contours."""
    require_few_items(data, _CODE)
    return _open_quickly(data) or _open_surely(data)


def _open_quickly(data: bytes) -> "tuple[Dataset, list[_Contour]] | None":
    """Return what `_open_surely` does, sooner; None where pydicom must look at the whole file."""
    meta = scan_meta(data, META_OFFSET, []) if data[128:META_OFFSET] == b"DICM" else None
    syntax = Values(meta[0], is_big_endian=False).uid(TRANSFER_SYNTAX_UID) if meta else ""
    if meta is None or syntax not in {IMPLICIT, EXPLICIT}:
        return None
    implicit = syntax == IMPLICIT
    found = scan_whole(data, meta[1], {_ROI_CONTOUR}, implicit=implicit)
    sequence = (found or {}).get(_ROI_CONTOUR)
    if sequence is None or sequence.vr not in _SEQUENCES:
        return None
    try:
        contours = list(_scan_contours(_value_of(data, sequence), implicit=implicit))
    except _UncertainError:
        return None
    end = sequence.offset + sequence.length
    if data[end : end + DELIMITER_BYTES] == SEQUENCE_DELIMITER:
        end += DELIMITER_BYTES
    n_before = 8 if implicit else 12  # bytes of tag, VR and length
    return _parse(data[: sequence.offset - n_before] + data[end:]), contours


class _UncertainError(Exception):
    """The quick scan does not know for certain what pydicom would read."""


def _scan_contours(rois: bytes, *, implicit: bool) -> Iterator[_Contour]:
    """Yield the contours in the value of ROIContourSequence."""

    def items_of(content: bytes, wanted: frozenset[int]) -> list[dict[int, Element]]:
        found = scan_items(content, wanted, implicit=implicit)
        if found is None:
            raise _UncertainError
        return found

    for roi in items_of(rois, frozenset({_ROI_NUMBER, _CONTOURS})):
        number = _plain(roi, _ROI_NUMBER)
        of_roi = _sequence(rois, roi, _CONTOURS)
        for item in items_of(of_roi, _OF_CONTOUR):
            images = items_of(
                _sequence(of_roi, item, _CONTOUR_IMAGE),
                frozenset({_REFERENCED_INSTANCE, _REFERENCED_FRAME}),
            )
            image = images[0] if images else {}
            points = item.get(_CONTOUR_DATA)
            if points is not None and points.value is None:
                raise _UncertainError
            yield _Contour(
                number,
                _plain(item, _GEOMETRIC_TYPE),
                _plain(image, _REFERENCED_INSTANCE),
                _plain(image, _REFERENCED_FRAME),
                _plain(item, _N_POINTS),
                None if points is None else points.value,
            )


def _value_of(content: bytes, element: Element) -> bytes:
    """Return the value of an element, also of a sequence that was stepped over."""
    if element.value is not None:
        return element.value
    return content[element.offset : element.offset + element.length]


def _sequence(content: bytes, item: dict[int, Element], tag: int) -> bytes:
    """Return the value of a sequence in an item of `content`; empty where it has none."""
    element = item.get(tag)
    if element is None:
        return b""
    if element.vr not in _SEQUENCES:
        raise _UncertainError
    return _value_of(content, element)


def _plain(item: dict[int, Element], tag: int) -> str:
    """Return a value as text; empty where there is none."""
    element = item.get(tag)
    value = b"" if element is None else (element.value or b"").rstrip(b" \0")
    if not _PLAIN.fullmatch(value):
        raise _UncertainError
    return value.decode("ascii")


def _open_surely(data: bytes) -> "tuple[Dataset, list[_Contour]]":
    dataset = _parse(data)
    return dataset, list(_contours(dataset))


def _parse(data: bytes) -> "Dataset":
    from pydicom import dcmread

    dataset = dcmread(io.BytesIO(data), force=True)
    if str(dataset.get("SOPClassUID", "")) != STRUCTURE_SET:
        raise SourceError(_CODE, "is not a whole RT Structure Set. Export it again.")
    return dataset


def _contours(dataset: "Dataset") -> Iterator[_Contour]:
    """Yield the contours of a structure set that pydicom has read."""
    for roi in items(dataset, "ROIContourSequence"):
        number = _number(roi, "ReferencedROINumber")
        for item in items(roi, "ContourSequence"):
            image = next(items(item, "ContourImageSequence"), None)
            yield _Contour(
                number,
                text(item, "ContourGeometricType"),
                "" if image is None else text(image, "ReferencedSOPInstanceUID"),
                "" if image is None else text(image, "ReferencedFrameNumber"),
                text(item, "NumberOfContourPoints"),
                _data(item),
            )


def _number(item: "Dataset", keyword: str) -> str:
    """Return a whole number as text without the zeros that it may begin with."""
    value = text(item, keyword)
    digits = value.removeprefix("+")
    return str(int(digits)) if digits.isascii() and digits.isdecimal() else value


def _data(item: "Dataset") -> bytes | None:
    """Return the bytes of ContourData, not pydicom's value: it makes an object of each number."""
    if _CONTOUR_DATA not in item:
        return None
    value = item.get_item(_CONTOUR_DATA).value
    if isinstance(value, bytes):
        return value
    return b"\\".join(str(one).encode() for one in (value if value is not None else ()))


def _drawing(one: _Contour) -> Drawing:
    points, problem = _points(one)
    kind, spread = one.kind, () if points is None else _spread(points)
    if kind in CLOSED and points is not None and len(spread) < _FEWEST_POINTS:
        kind = FEW_POINTS
    return Drawing(
        one.number,
        kind,
        one.sop_instance_uid,
        int(one.frame) if one.frame.isascii() and one.frame.isdecimal() else 0,
        (0.0, 0.0, 0.0) if points is None else _point(points.mean(axis=0)),
        spread,
        problem,
    )


def _point(place: npt.NDArray[np.float64]) -> Point:
    x, y, z = place.tolist()
    return x, y, z


def _spread(points: Points) -> tuple[Point, ...]:
    """Return distinct points of a contour, three or more if it has them.

    A plane that has them all has the contour. Those at the ends of its extent along x, y and z are
    such points, unless they are two.
    """
    ends = points[[*points.argmin(axis=0), *points.argmax(axis=0)]]
    found = dict.fromkeys(map(_point, ends))
    return tuple(found if len(found) >= _FEWEST_POINTS else dict.fromkeys(_far_apart(points)))


def _far_apart(points: Points) -> tuple[Point, Point, Point]:
    """Return three points of a contour as far apart as it has them; alike if it has fewer."""
    first = points[np.square(points - points.mean(axis=0)).sum(axis=1).argmax()]
    offsets = points - first
    second = points[np.square(offsets).sum(axis=1).argmax()]
    # Farthest from the line through both; on one line, farthest from both.
    off_line = np.square(np.cross(offsets, second - first)).sum(axis=1)
    if not off_line.any():
        off_line = np.minimum(np.abs(offsets), np.abs(points - second)).sum(axis=1)
    return _point(first), _point(second), _point(points[off_line.argmax()])


def _points(one: _Contour) -> tuple[Points | None, str]:
    """Return the points of a contour, or None and why they cannot be read."""
    value, stated = one.data, one.n_points
    if value is None:
        return None, "has no ContourData"
    parts = value.split(b"\\")
    if len(parts) > 3 * most("contour-points"):
        return None, beyond("contour-points", len(parts) // 3)
    try:
        numbers = np.array(parts, np.float64) if b"_" not in value else np.array([np.nan])
    except ValueError:
        numbers = np.array([np.nan])
    if not np.isfinite(numbers).all():
        return None, "has a coordinate that is not a number"
    if len(numbers) % 3:
        return None, f"has {len(numbers)} coordinates, which is not a multiple of three"
    if stated.isdecimal() and int(stated) != len(numbers) // 3:
        return None, f"has {len(numbers) // 3} points, but NumberOfContourPoints is {stated}"
    return numbers.reshape(-1, 3), ""
