"""A DICOM Segmentation → its segments and frames, and their pixels as masks.

References
----------
DICOM PS3.3 A.51 (Segmentation), C.8.20 (its modules); PS3.5 8.2 (bit packing: the lowest bit
first, and frames follow each other without a gap).
"""

import io
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from etl.dicom.annotations import (
    SEGMENT,
    SEGMENTATION,
    AnnotationSet,
    Drawing,
    DrawnStructure,
    items,
    plainly,
    text,
)
from etl.dicom.pydicom_scan import require_few_items
from etl.errors import SourceError
from etl.geometry import ImagePlane

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

SEGMENTATIONS: Final = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation Storage
        "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation Storage
    }
)
BINARY: Final = "BINARY"
LABELMAP: Final = "LABELMAP"
FRACTIONAL: Final = "FRACTIONAL"

_CODE: Final = "segmentation-unreadable"
_NATIVE: Final = frozenset({"1.2.840.10008.1.2", "1.2.840.10008.1.2.1"})
_NAN: Final = (math.nan,) * 3

Values = npt.NDArray[np.generic]


class SegmentFrame(NamedTuple):
    """One drawing: where its pixels are, and in which plane."""

    frame: int  # from 0
    number: int  # of the segment
    plane: ImagePlane


class Segmentation:
    """A segmentation whose frames are decoded when they are asked for.

    Raises
    ------
    SourceError
        It cannot be read.
    """

    def __init__(self, data: bytes) -> None:
        with plainly(_CODE):
            self._dataset = _parse(data)
            self._kind = text(self._dataset, "SegmentationType")
            self._size = int(self._dataset.Rows), int(self._dataset.Columns)
            self._n_frames = int(self._dataset.get("NumberOfFrames") or 1)
            self._highest = _highest(self._dataset, self._kind)
            self._require_length()
            self.drawings = list(self._drawings())

    def contents(self) -> AnnotationSet:
        """Return what it says, with the drawings in the order of `drawings`."""
        with plainly(_CODE):
            dataset = self._dataset
            groups = list(items(dataset, "PerFrameFunctionalGroupsSequence"))
            drawings = [*self.drawings, *self._unknown()]
            strengths = [self._strength(one) for one in drawings]
            return AnnotationSet(
                what=SEGMENTATION,
                sop_instance_uid=text(dataset, "SOPInstanceUID"),
                patient_id=text(dataset, "PatientID"),
                label=text(dataset, "ContentLabel"),
                when=text(dataset, "ContentDate") + text(dataset, "ContentTime"),
                frame_of_reference_uid=text(dataset, "FrameOfReferenceUID"),
                series=tuple(
                    text(series, "SeriesInstanceUID")
                    for series in items(dataset, "ReferencedSeriesSequence")
                ),
                structures=tuple(
                    DrawnStructure(
                        text(item, "SegmentNumber"),
                        _name(item),
                        text(dataset, "FrameOfReferenceUID"),
                    )
                    for item in items(dataset, "SegmentSequence")
                ),
                drawings=tuple(
                    _drawing(one, groups[one.frame] if groups else dataset, strength)
                    for one, strength in zip(drawings, strengths, strict=True)
                ),
            )

    def mask(self, place: int, threshold: float) -> npt.NDArray[np.bool_]:
        """Return the pixels of a drawing; shape (rows, columns).

        Parameters
        ----------
        threshold : float
            Of a fractional segmentation: pixels with this share of the highest value, or more.
        """
        with plainly(_CODE):
            one = self.drawings[place]
            values = self._frame(one.frame)
            if self._kind == LABELMAP:
                return np.asarray(values == one.number)
            if self._kind == FRACTIONAL:
                return np.asarray(values.astype(np.float64) >= threshold * self._highest)
            return np.asarray(values != 0)

    def _strength(self, one: SegmentFrame) -> float:
        """Return the highest share of a segment in a frame; 0 where the frame has none of it."""
        values = self._frame(one.frame)
        if self._kind == LABELMAP:
            return float((values == one.number).any())
        highest = values.max(initial=0)
        if self._kind == FRACTIONAL:
            if highest > self._highest:
                raise SourceError(
                    _CODE,
                    f"has pixels of {highest}, but MaximumFractionalValue is {self._highest:g}. "
                    "Export it again.",
                )
            return float(highest) / self._highest
        if ((values != 0) & (values != highest)).any():
            raise SourceError(
                _CODE, "is BINARY, but its pixels have more than two values. Export it again."
            )
        return float(highest != 0)

    def _unknown(self) -> Iterator[SegmentFrame]:
        """Yield what a label map shows under numbers that no segment has; background apart."""
        if self._kind != LABELMAP:
            return
        known = {one.number for one in self.drawings} | self._background
        for frame, plane in {one.frame: one.plane for one in self.drawings}.items():
            for number in np.unique(self._frame(frame)).tolist():
                if number not in known:
                    yield SegmentFrame(frame, number, plane)

    @property
    def _background(self) -> set[int]:
        """Values of a label map that are no segment: 0, and PixelPaddingValue."""
        padding = self._dataset.get("PixelPaddingValue")
        return {0} if padding is None else {0, int(padding)}

    def _require_length(self) -> None:
        """Require as many bytes of native pixels as the frames have, but for one of padding.

        More tell that frames do not begin where they should: some programs fill the last byte of
        each frame of an odd size.
        """
        dataset = self._dataset
        if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
            return
        rows, columns = self._size
        bits = int(dataset.BitsAllocated)
        expected = -(-self._n_frames * rows * columns * bits // 8)
        found = len(dataset.PixelData)
        if found < expected:
            raise SourceError(_CODE, "ends before its pixels do. Copy it again.")
        if found > expected + 1:
            raise SourceError(
                _CODE,
                f"PixelData has {found} bytes, expected {expected} for {self._n_frames} frames of "
                f"{rows} x {columns} pixels of {bits} bits. Export it again.",
            )

    def _drawings(self) -> Iterator[SegmentFrame]:
        dataset = self._dataset
        shared = next(items(dataset, "SharedFunctionalGroupsSequence"), dataset)
        per_frame = list(items(dataset, "PerFrameFunctionalGroupsSequence"))
        if per_frame and len(per_frame) != self._n_frames:
            raise SourceError(
                _CODE,
                f"has {self._n_frames} frames, but functional groups for {len(per_frame)}. "
                "Export it again.",
            )
        numbers = [int(item.SegmentNumber) for item in items(dataset, "SegmentSequence")]
        for frame in range(self._n_frames):
            groups = [*per_frame[frame : frame + 1], shared, dataset]
            plane = _plane(groups)
            if self._kind == LABELMAP:
                segments = [number for number in numbers if number not in self._background]
                yield from (SegmentFrame(frame, number, plane) for number in segments)
            else:
                named = _group(groups, "SegmentIdentificationSequence")
                yield SegmentFrame(frame, int(named.ReferencedSegmentNumber), plane)

    def _frame(self, frame: int) -> Values:
        dataset = self._dataset
        rows, columns = self._size
        n_pixels = rows * columns
        bits = int(dataset.BitsAllocated)
        if str(dataset.file_meta.TransferSyntaxUID) not in _NATIVE or bits not in {1, 8, 16}:
            from pydicom.pixels.utils import pixel_array

            return np.asarray(pixel_array(dataset, index=frame)).reshape(rows, columns)
        data = dataset.PixelData
        if bits > 1:
            dtype = np.dtype(f"<u{bits // 8}")
            values = np.frombuffer(data, dtype, n_pixels, frame * n_pixels * dtype.itemsize)
            return values.reshape(rows, columns)
        first = frame * n_pixels
        some = np.frombuffer(data, np.uint8)[first // 8 : (first + n_pixels + 7) // 8]
        unpacked = np.unpackbits(some, bitorder="little")[first % 8 :]
        return unpacked[:n_pixels].reshape(rows, columns)


def _highest(dataset: "Dataset", kind: str) -> float:
    """Return the value of a pixel that wholly belongs to its segment."""
    if kind not in {BINARY, FRACTIONAL, LABELMAP}:
        raise SourceError(
            _CODE,
            f"SegmentationType is {kind!r}, expected {BINARY}, {FRACTIONAL} or {LABELMAP}. "
            "Export it again.",
        )
    if kind != FRACTIONAL:
        return 1.0
    highest = float(dataset.get("MaximumFractionalValue") or 0)
    if highest <= 0:
        raise SourceError(
            _CODE, "is FRACTIONAL, but has no MaximumFractionalValue. Export it again."
        )
    return highest


def _drawing(one: SegmentFrame, group: "Dataset", strength: float) -> Drawing:
    sources = [
        source
        for derivation in items(group, "DerivationImageSequence")
        for source in items(derivation, "SourceImageSequence")
    ]
    source = sources[0] if sources else None
    frame = "" if source is None else text(source, "ReferencedFrameNumber")
    x, y, z = one.plane.position
    return Drawing(
        number=str(one.number),
        kind=SEGMENT,
        sop_instance_uid="" if source is None else text(source, "ReferencedSOPInstanceUID"),
        frame_number=int(frame) if frame.isascii() and frame.isdecimal() else 0,
        centre=(x, y, z),
        problem="" if one.plane.is_known else "has no place in the patient",
        strength=strength,
    )


def _name(item: "Dataset") -> str:
    """Return the label of a segment, else the meaning of its code."""
    if label := text(item, "SegmentLabel"):
        return label
    for sequence in ("SegmentedPropertyTypeCodeSequence", "SegmentedPropertyCategoryCodeSequence"):
        for code in items(item, sequence):
            if meaning := text(code, "CodeMeaning"):
                return meaning
    return ""


def _plane(groups: "list[Dataset]") -> ImagePlane:
    place = _group(groups, "PlanePositionSequence")
    turn = _group(groups, "PlaneOrientationSequence")
    measures = _group(groups, "PixelMeasuresSequence")
    orientation = _numbers(turn, "ImageOrientationPatient", 6)
    return ImagePlane(
        _numbers(place, "ImagePositionPatient", 3),
        orientation[:3],
        orientation[3:],
        _numbers(measures, "PixelSpacing", 2),
    )


def _group(groups: "list[Dataset]", sequence: str) -> "Dataset":
    """Return the item of a functional group: the frame's own, the shared one, or the root."""
    for group in groups:
        if (item := next(items(group, sequence), None)) is not None:
            return item
    return groups[-1]


def _numbers(dataset: "Dataset", keyword: str, n_values: int) -> tuple[float, ...]:
    values = dataset.get(keyword)
    if values is None or len(values) != n_values:
        return (math.nan,) * n_values
    return tuple(map(float, values))


def _parse(data: bytes) -> "Dataset":
    from pydicom import dcmread

    require_few_items(data, _CODE)
    dataset = dcmread(io.BytesIO(data), force=True)
    if str(dataset.get("SOPClassUID", "")) not in SEGMENTATIONS or "PixelData" not in dataset:
        raise SourceError(_CODE, "is not a whole DICOM Segmentation. Export it again.")
    return dataset
