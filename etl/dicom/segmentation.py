"""A DICOM Segmentation → its segments and frames, and their pixels as masks.

References
----------
DICOM PS3.3 A.51 (Segmentation), C.8.20 (its modules); PS3.5 8.2 (bit packing: the lowest bit
first, and frames follow each other without a gap).
"""

import io
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from etl.dicom.annotations import (
    SEGMENT,
    SEGMENTATION,
    AnnotationSet,
    Drawing,
    DrawnStructure,
    Point,
    items,
    plainly,
    text,
)
from etl.dicom.elements import PER_FRAME_GROUPS, TRANSFER_SYNTAX_UID, Values
from etl.dicom.header import EXPLICIT, IMPLICIT
from etl.dicom.pydicom_scan import require_few_items
from etl.dicom.quick_scan import (
    DELIMITER_BYTES,
    META_OFFSET,
    PIXEL_DATA,
    SEQUENCE_DELIMITER,
    Element,
    scan,
    scan_meta,
)
from etl.dicom.segment_groups import Groups, SourceFrame, of_dataset, of_frames, of_root
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
_NATIVE: Final = frozenset({IMPLICIT, EXPLICIT})
_BITS: Final = frozenset({1, 8, 16})  # of a pixel that is not encoded
_FEW_VALUES: Final = 16  # of a frame of a label map, as most have
_HEAD_BYTES: Final = (1 << 20, 1 << 24)  # in which the pixels may begin; else all is read

Pixels = npt.NDArray[np.generic]


class Content(Protocol):
    """The bytes of a file, in memory or read as they are asked for."""

    def __len__(self) -> int:
        """Return the number of bytes."""
        ...

    def __getitem__(self, part: slice, /) -> bytes:
        """Return some of them."""
        ...


class SegmentFrame(NamedTuple):
    """One drawing: where its pixels are, and in which plane."""

    frame: int  # from 0
    number: int  # of the segment
    plane: ImagePlane
    source: SourceFrame


class Segmentation:
    """A segmentation whose frames are read and decoded when they are asked for.

    Of native pixels one frame is in memory at a time; encoded ones are all kept.

    Parameters
    ----------
    data : Content
        The file.

    Raises
    ------
    SourceError
        It cannot be read.
    """

    def __init__(self, data: Content) -> None:
        self._values: dict[int, list[int]] = {}  # by frame; see `_shown`
        self._latest: tuple[int, Pixels] | None = None  # frame and its values
        with plainly(_CODE):
            self._dataset, self._own, self._pixels = _open_quickly(data) or _open(data)
            dataset = self._dataset
            self._kind = text(dataset, "SegmentationType")
            self._size = int(dataset.Rows), int(dataset.Columns)
            self._bits = int(dataset.BitsAllocated)
            self._n_frames = int(dataset.get("NumberOfFrames") or 1)
            self._highest = _highest(dataset, self._kind)
            self._require_length()
            self._corners_of: dict[ImagePlane, tuple[Point, ...]] = {}
            self.drawings = list(self._drawings())

    def contents(self) -> AnnotationSet:
        """Return what it says, with the drawings in the order of `drawings`."""
        with plainly(_CODE):
            dataset = self._dataset
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
                    Drawing(
                        number=str(one.number),
                        kind=SEGMENT,
                        sop_instance_uid=one.source.sop_instance_uid,
                        frame_number=one.source.frame_number,
                        centre=_point(one.plane.position),
                        spread=self._corners(one.plane),
                        problem="" if one.plane.is_known else "has no place in the patient",
                        strength=self._strength(one),
                    )
                    for one in [*self.drawings, *self._unknown()]
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
                # The least whole number of that share, so that no array of floats is made.
                return np.greater_equal(values, math.ceil(threshold * self._highest))
            return np.asarray(values != 0)

    def _corners(self, plane: ImagePlane) -> tuple[Point, ...]:
        """Return the centres of three pixels in the corners of a frame."""
        if not plane.is_known:
            return ()
        if plane not in self._corners_of:  # the segments of a place have one plane
            rows, columns = self._size
            corners = np.array([(0, 0), (columns - 1, 0), (0, rows - 1)], np.float64)
            places = plane.to_patient(corners).tolist()
            self._corners_of[plane] = tuple(_point(place) for place in places)
        return self._corners_of[plane]

    def _strength(self, one: SegmentFrame) -> float:
        """Return the highest share of a segment in a frame; 0 where the frame has none of it."""
        packed = self._packed(one.frame) if self._kind == BINARY else None
        if packed is not None and packed.is_whole:
            return float(packed.data.any())
        if self._kind == LABELMAP:
            return float(one.number in self._shown(one.frame))
        values = self._frame(one.frame)
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
        for one in {one.frame: one for one in self.drawings}.values():
            for number in self._shown(one.frame):
                if number not in known:
                    yield one._replace(number=number)

    def _shown(self, frame: int) -> list[int]:
        """Return the values that a frame of a label map has, the lowest first."""
        if frame not in self._values:
            self._values[frame] = _values_of(self._frame(frame))
        return self._values[frame]

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
        expected = -(-self._n_frames * rows * columns * self._bits // 8)
        found = len(dataset.PixelData) if self._pixels is None else self._pixels.length
        if found < expected:
            raise SourceError(_CODE, "ends before its pixels do. Copy it again.")
        if found > expected + 1:
            raise SourceError(
                _CODE,
                f"PixelData has {found} bytes, expected {expected} for {self._n_frames} frames of "
                f"{rows} x {columns} pixels of {self._bits} bits. Export it again.",
            )

    def _drawings(self) -> Iterator[SegmentFrame]:
        dataset = self._dataset
        own = self._own
        if own and len(own) != self._n_frames:
            raise SourceError(
                _CODE,
                f"has {self._n_frames} frames, but functional groups for {len(own)}. "
                "Export it again.",
            )
        root = of_dataset(dataset).over(of_root(dataset))
        shared = root
        if (item := next(items(dataset, "SharedFunctionalGroupsSequence"), None)) is not None:
            shared = of_dataset(item).over(root)
        numbers = [int(item.SegmentNumber) for item in items(dataset, "SegmentSequence")]
        background = self._background
        segments = [number for number in numbers if number not in background]
        for frame in range(self._n_frames):
            groups = (own[frame] if own else Groups(source=root.source)).over(shared)
            plane, source = groups.plane, groups.source
            if self._kind == LABELMAP:
                for number in segments:
                    yield SegmentFrame(frame, number, plane, source)
            elif groups.number is None:
                raise SourceError(_CODE, "has a frame of no segment. Export it again.")
            else:
                yield SegmentFrame(frame, groups.number, plane, source)

    def _packed(self, frame: int) -> "_Packed | None":
        """Return the bits of a frame; None where a pixel has more than one bit, or is encoded."""
        if self._bits > 1 or self._pixels is None:
            return None
        n_pixels = self._size[0] * self._size[1]
        first = frame * n_pixels
        data = np.frombuffer(self._bytes(first // 8, (first + n_pixels + 7) // 8), np.uint8)
        return _Packed(data, first % 8, is_whole=n_pixels % 8 == first % 8 == 0)

    def _bytes(self, first: int, stop: int) -> bytes:
        """Return some bytes of native pixels."""
        assert self._pixels is not None  # noqa: S101  who asks knows
        content, begin, length = self._pixels
        return content[begin + first : begin + min(stop, length)]

    def _frame(self, frame: int) -> Pixels:
        latest = self._latest  # another thread may change it
        if latest is None or latest[0] != frame:
            self._latest = latest = frame, self._read(frame)
        return latest[1]

    def _read(self, frame: int) -> Pixels:
        rows, columns = self._size
        n_pixels = rows * columns
        if (packed := self._packed(frame)) is not None:
            bits = np.unpackbits(packed.data, bitorder="little")[packed.skipped :]
            return bits[:n_pixels].reshape(rows, columns)
        if self._pixels is None:
            from pydicom.pixels.utils import pixel_array

            return np.asarray(pixel_array(self._dataset, index=frame)).reshape(rows, columns)
        n_bytes = n_pixels * self._bits // 8
        data = self._bytes(frame * n_bytes, (frame + 1) * n_bytes)
        return np.frombuffer(data, f"<u{self._bits // 8}", n_pixels).reshape(rows, columns)


class _Packed(NamedTuple):
    """The bytes that have the bits of a frame."""

    data: npt.NDArray[np.uint8]
    skipped: int  # bits of the frame before
    is_whole: bool  # they have no bit of another frame


def _values_of(pixels: Pixels) -> list[int]:
    """Return the values that pixels have, the lowest first."""
    if pixels.dtype != np.uint8:
        values: list[int] = np.unique(pixels).tolist()
        return values
    rest = pixels.tobytes()
    found: list[int] = []
    while rest and len(found) < _FEW_VALUES:  # five times as fast as `unique` for few of them
        found.append(rest[0])
        rest = rest.translate(None, rest[:1])
    return sorted({*found, *rest})


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


def _point(position: Sequence[float]) -> Point:
    x, y, z = position
    return x, y, z


def _name(item: "Dataset") -> str:
    """Return the label of a segment, else the meaning of its code."""
    if label := text(item, "SegmentLabel"):
        return label
    for sequence in ("SegmentedPropertyTypeCodeSequence", "SegmentedPropertyCategoryCodeSequence"):
        for code in items(item, sequence):
            if meaning := text(code, "CodeMeaning"):
                return meaning
    return ""


class _Opened(NamedTuple):
    """A segmentation without its pixels and the groups of its frames, and those beside it."""

    dataset: "Dataset"
    own: list[Groups]  # of each frame; empty where the file has none
    pixels: "_Native | None"  # None where they are encoded


class _Native(NamedTuple):
    """Where the pixels of all frames are that no codec has encoded."""

    content: Content
    offset: int
    length: int


def _open_quickly(data: Content) -> _Opened | None:
    """Return what `_open` does, sooner; None where pydicom must look at the whole file.

    Most of a segmentation are its pixels and the groups of its frames: pydicom reads the rest.
    """
    found = _scan(data)
    if found is None:
        return None
    groups, pixels, implicit = found
    require_few_items(data[: pixels.offset], _CODE)
    end = groups.offset + groups.length
    own = of_frames(data[groups.offset : end], implicit=implicit)
    if data[end : end + DELIMITER_BYTES] == SEQUENCE_DELIMITER:
        end += DELIMITER_BYTES
    n_before = 8 if implicit else 12  # bytes of tag, VR and length
    dataset = _parse(data[: groups.offset - n_before] + data[end : pixels.offset - n_before])
    if own is None or dataset.get("BitsAllocated") not in _BITS:
        return None
    return _Opened(dataset, own, _Native(data, pixels.offset, pixels.length))


def _scan(data: Content) -> tuple[Element, Element, bool] | None:
    """Return the per-frame groups and the pixels of a file, and whether it is in Implicit VR."""
    if data[128:META_OFFSET] != b"DICM":
        return None
    lengths = [*(n_bytes for n_bytes in _HEAD_BYTES if n_bytes < len(data)), len(data)]
    return next(filter(None, (_scan_head(data[:length], len(data)) for length in lengths)), None)


def _scan_head(head: bytes, size: int) -> tuple[Element, Element, bool] | None:
    """Return the same of the first bytes of a file; None where its pixels begin behind them."""
    meta = scan_meta(head, META_OFFSET, [])
    syntax = Values(meta[0], is_big_endian=False).uid(TRANSFER_SYNTAX_UID) if meta else ""
    if meta is None or syntax not in _NATIVE:
        return None
    implicit = syntax == IMPLICIT
    found = scan(head, meta[1], size, {PER_FRAME_GROUPS}, [], implicit=implicit)
    if found is None or PER_FRAME_GROUPS not in found:
        return None
    groups, pixels = found[PER_FRAME_GROUPS], found[PIXEL_DATA]
    is_usual = {groups.vr, pixels.vr} <= {"", "SQ", "OB", "OW"}
    return (groups, pixels, implicit) if is_usual else None


def _open(data: Content) -> _Opened:
    whole = data[:]
    require_few_items(whole, _CODE)
    dataset = _parse(whole)
    if "PixelData" not in dataset:
        raise _not_whole()
    is_native = str(dataset.file_meta.TransferSyntaxUID) in _NATIVE
    is_native = is_native and int(dataset.BitsAllocated) in _BITS
    own = [of_dataset(item) for item in items(dataset, "PerFrameFunctionalGroupsSequence")]
    pixels = _Native(dataset.PixelData, 0, len(dataset.PixelData)) if is_native else None
    return _Opened(dataset, own, pixels)


def _parse(data: bytes) -> "Dataset":
    from pydicom import dcmread

    dataset = dcmread(io.BytesIO(data), force=True)
    if str(dataset.get("SOPClassUID", "")) not in SEGMENTATIONS:
        raise _not_whole()
    return dataset


def _not_whole() -> SourceError:
    return SourceError(_CODE, "is not a whole DICOM Segmentation. Export it again.")
