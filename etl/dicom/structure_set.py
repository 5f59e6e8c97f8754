"""An RT Structure Set → its structures and contours, in patient coordinates.

References
----------
DICOM PS3.3 C.8.8.5 (Structure Set), C.8.8.6 (ROI Contour).
"""

import io
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from etl.errors import SourceError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

STRUCTURE_SET: Final = "1.2.840.10008.5.1.4.1.1.481.3"  # RT Structure Set Storage

POINT: Final = "POINT"
# The second one says what several contours of the first do as well: even-odd together.
CLOSED: Final = frozenset({"CLOSED_PLANAR", "CLOSEDPLANAR_XOR"})

_CONTOUR_DATA: Final = 0x30060050
_MAX_POINTS: Final = 1_000_000  # of one contour; drawn ones have hundreds
_CODE: Final = "structure-set-unreadable"


class DrawnStructure(NamedTuple):
    """A structure of the set: its number, by which contours name it, and its name."""

    number: str
    name: str
    frame_of_reference_uid: str


class DrawnContour(NamedTuple):
    """A contour, without its points; empty or 0 where the set says nothing."""

    number: str  # of its structure
    kind: str  # ContourGeometricType
    sop_instance_uid: str  # of the image that it refers to
    frame_number: int
    centre: tuple[float, float, float]  # the mean of its points, mm
    problem: str = ""  # why its points cannot be read


class StructureSet(NamedTuple):
    """What a structure set says; contours in the order of the file."""

    sop_instance_uid: str
    patient_id: str
    label: str
    when: str  # date and time, as digits
    frame_of_reference_uid: str
    series: tuple[str, ...]  # SeriesInstanceUID of those that it refers to
    structures: tuple[DrawnStructure, ...]
    contours: tuple[DrawnContour, ...]


Points = npt.NDArray[np.float64]


def read_structure_set(data: bytes) -> StructureSet:
    """Return what a structure set says.

    Raises
    ------
    SourceError
        It cannot be read.
    """
    with _plainly():
        dataset = _parse(data)
        references = [
            (frame, series)
            for frame in _items(dataset, "ReferencedFrameOfReferenceSequence")
            for study in _items(frame, "RTReferencedStudySequence")
            for series in _items(study, "RTReferencedSeriesSequence")
        ]
        frames = [_text(frame, "FrameOfReferenceUID") for frame, _ in references]
        return StructureSet(
            sop_instance_uid=_text(dataset, "SOPInstanceUID"),
            patient_id=_text(dataset, "PatientID"),
            label=_text(dataset, "StructureSetLabel"),
            when=_text(dataset, "StructureSetDate") + _text(dataset, "StructureSetTime"),
            frame_of_reference_uid=_text(dataset, "FrameOfReferenceUID") or "".join(frames[:1]),
            series=tuple(
                dict.fromkeys(_text(series, "SeriesInstanceUID") for _, series in references)
            ),
            structures=tuple(
                DrawnStructure(
                    _text(item, "ROINumber"),
                    _text(item, "ROIName"),
                    _text(item, "ReferencedFrameOfReferenceUID"),
                )
                for item in _items(dataset, "StructureSetROISequence")
            ),
            contours=tuple(_contour(number, item) for number, item in _contours(dataset)),
        )


def read_points(data: bytes) -> list[Points | None]:
    """Return the points of each contour, in the order of `StructureSet.contours`; mm.

    Returns
    -------
    list of float64 array, shape (n_points, 3), or None
        None where they cannot be read.
    """
    with _plainly():
        return [_points(item)[0] for _, item in _contours(_parse(data))]


class _plainly(warnings.catch_warnings):  # noqa: N801  a context manager
    """Turn whatever pydicom's parsing meets into an error in our own words, and be quiet."""

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *exc_info: Any) -> None:  # noqa: ANN401
        super().__exit__(*exc_info)
        error = exc_info[1]
        if isinstance(error, Exception) and not isinstance(error, SourceError):
            raise SourceError(
                _CODE, f"cannot be read ({type(error).__name__}). Export it again."
            ) from error


def _parse(data: bytes) -> "Dataset":
    from pydicom import dcmread

    dataset = dcmread(io.BytesIO(data), force=True)
    if str(dataset.get("SOPClassUID", "")) != STRUCTURE_SET:
        raise SourceError(_CODE, "is not a whole RT Structure Set. Export it again.")
    return dataset


def _items(dataset: "Dataset", keyword: str) -> "Iterator[Dataset]":
    yield from dataset.get(keyword) or ()


def _text(dataset: "Dataset", keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip(" \0")


def _contours(dataset: "Dataset") -> "Iterator[tuple[str, Dataset]]":
    """Yield the number of the structure and the item of each contour."""
    for roi in _items(dataset, "ROIContourSequence"):
        number = _text(roi, "ReferencedROINumber")
        for contour in _items(roi, "ContourSequence"):
            yield number, contour


def _contour(number: str, item: "Dataset") -> DrawnContour:
    points, problem = _points(item)
    image = next(_items(item, "ContourImageSequence"), None)
    frame = "" if image is None else _text(image, "ReferencedFrameNumber")
    centre = np.zeros(3) if points is None else points.mean(axis=0)
    return DrawnContour(
        number,
        _text(item, "ContourGeometricType"),
        "" if image is None else _text(image, "ReferencedSOPInstanceUID"),
        int(frame) if frame.isascii() and frame.isdecimal() else 0,
        (float(centre[0]), float(centre[1]), float(centre[2])),
        problem,
    )


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
    if len(parts) > 3 * _MAX_POINTS:
        return None, f"has more than {_MAX_POINTS} points"
    try:
        numbers = np.array(parts, np.float64) if b"_" not in value else np.array([np.nan])
    except ValueError:
        numbers = np.array([np.nan])
    if not np.isfinite(numbers).all():
        return None, "has a coordinate that is not a number"
    if len(numbers) % 3:
        return None, f"has {len(numbers)} coordinates, which is not a multiple of three"
    stated = _text(item, "NumberOfContourPoints")
    if stated.isdecimal() and int(stated) != len(numbers) // 3:
        return None, f"has {len(numbers) // 3} points, but NumberOfContourPoints is {stated}"
    return numbers.reshape(-1, 3), ""
