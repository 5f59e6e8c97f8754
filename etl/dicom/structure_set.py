"""An RT Structure Set → its structures and contours, in patient coordinates.

References
----------
DICOM PS3.3 C.8.8.5 (Structure Set), C.8.8.6 (ROI Contour).
"""

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

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
from etl.dicom.pydicom_scan import require_few_items
from etl.errors import SourceError, beyond, most

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

STRUCTURE_SET: Final = "1.2.840.10008.5.1.4.1.1.481.3"  # RT Structure Set Storage

_CONTOUR_DATA: Final = 0x30060050
_CODE: Final = "structure-set-unreadable"
_FEWEST_POINTS: Final = 3  # distinct ones that enclose something


Points = npt.NDArray[np.float64]


def read_structure_set(data: bytes) -> AnnotationSet:
    """Return what a structure set says.

    Raises
    ------
    SourceError
        It cannot be read.
    """
    with plainly(_CODE):
        dataset = _parse(data)
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
            drawings=tuple(_contour(number, item) for number, item in _contours(dataset)),
        )


def read_points(data: bytes) -> list[Points | str]:
    """Return the points of each contour, in the order of `AnnotationSet.drawings`; mm.

    Returns
    -------
    list of float64 array, shape (n_points, 3), or str
        A string says why they cannot be read.
    """
    with plainly(_CODE):
        found = [_points(item) for _, item in _contours(_parse(data))]
    return [problem if points is None else points for points, problem in found]


def _parse(data: bytes) -> "Dataset":
    from pydicom import dcmread

    require_few_items(data, _CODE)
    dataset = dcmread(io.BytesIO(data), force=True)
    if str(dataset.get("SOPClassUID", "")) != STRUCTURE_SET:
        raise SourceError(_CODE, "is not a whole RT Structure Set. Export it again.")
    return dataset


def _contours(dataset: "Dataset") -> "Iterator[tuple[str, Dataset]]":
    """Yield the number of the structure and the item of each contour."""
    for roi in items(dataset, "ROIContourSequence"):
        number = _number(roi, "ReferencedROINumber")
        for contour in items(roi, "ContourSequence"):
            yield number, contour


def _number(item: "Dataset", keyword: str) -> str:
    """Return a whole number as text without the zeros that it may begin with."""
    value = text(item, keyword)
    digits = value.removeprefix("+")
    return str(int(digits)) if digits.isascii() and digits.isdecimal() else value


def _contour(number: str, item: "Dataset") -> Drawing:
    points, problem = _points(item)
    image = next(items(item, "ContourImageSequence"), None)
    frame = "" if image is None else text(image, "ReferencedFrameNumber")
    kind, spread = text(item, "ContourGeometricType"), () if points is None else _spread(points)
    if kind in CLOSED and points is not None and len(spread) < _FEWEST_POINTS:
        kind = FEW_POINTS
    return Drawing(
        number,
        kind,
        "" if image is None else text(image, "ReferencedSOPInstanceUID"),
        int(frame) if frame.isascii() and frame.isdecimal() else 0,
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


def _points(item: "Dataset") -> tuple[Points | None, str]:
    """Return the points of a contour, or None and why they cannot be read.

    The bytes are read, not pydicom's value: it makes an object of each number.
    """
    if _CONTOUR_DATA not in item:
        return None, "has no ContourData"
    value = item.get_item(_CONTOUR_DATA).value
    if not isinstance(value, bytes):
        value = b"\\".join(str(one).encode() for one in (value if value is not None else ()))
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
    stated = text(item, "NumberOfContourPoints")
    if stated.isdecimal() and int(stated) != len(numbers) // 3:
        return None, f"has {len(numbers) // 3} points, but NumberOfContourPoints is {stated}"
    return numbers.reshape(-1, 3), ""
