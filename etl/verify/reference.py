"""The whole way from sources to one row a second time, as plainly as possible.

It shares no parsing, rescaling or rasterising with the build: pydicom reads every DICOM file,
numbers are read by float(), and a pixel's side of a polygon is asked edge by edge. It is slow and
obvious; a build must equal it pixel by pixel.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image, ImageDraw
from pydicom.datadict import dictionary_VM, dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    AllTransferSyntaxes,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

Polygon = npt.NDArray[np.float64]
Drawn: TypeAlias = list[Polygon] | npt.NDArray[np.bool_]  # on one frame: polygons, or a mask


class Axis(NamedTuple):
    """Pixel k of a row along one axis is at offset + scale * k of its frame, `length` pixels."""

    length: int
    offset: float
    scale: float


Grid: TypeAlias = tuple[Axis, Axis]  # rows, columns

_NUMBERS = {"DS", "IS", "FD", "FL", "US", "SS", "UL", "SL", "UV", "SV"}
_DECIMAL_STRINGS = {"DS", "IS"}
_LONGEST = 1024  # bytes of an attribute that a column keeps
_LEFT_OUT = "\0"  # instead of a longer one


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def _read(path: Path) -> Any:  # noqa: ANN401  pydicom's
    """Return a file; rows come in the order of their files, so that each is parsed once."""
    return _parsed(path, *_stamp(path))


@lru_cache(3)  # an image, and two files that annotate it
def _parsed(path: Path, *_stamp: int) -> Any:  # noqa: ANN401  pydicom's
    dataset = pydicom.dcmread(path, force=True)
    if dataset.file_meta.get("TransferSyntaxUID") not in AllTransferSyntaxes:  # or damaged
        is_implicit, is_little = dataset.original_encoding
        native = ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else native
    return dataset


def modality_image(path: Path, frame_number: int = 1) -> npt.NDArray[np.float64]:
    """Return the modality values of one frame, in float64."""
    dataset = _read(path)
    stored = np.asarray(pixel_array(dataset, index=frame_number - 1)).astype(np.int64)
    bits, is_signed = int(dataset.BitsStored), int(dataset.PixelRepresentation) == 1
    stored &= (1 << bits) - 1
    if is_signed:
        stored -= (stored >> (bits - 1)) << bits
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        low = -(1 << (bits - 1)) if is_signed else 0
        stored = low + (low + (1 << bits) - 1) - stored
    rescale = _of_frame(dataset, "PixelValueTransformationSequence", frame_number)
    slope, intercept = _number(rescale, "RescaleSlope", 1), _number(rescale, "RescaleIntercept", 0)
    return (stored * slope + intercept).astype(np.float64)


def _of_frame(dataset: Any, sequence: str, frame_number: int) -> Any:  # noqa: ANN401  pydicom's
    """Return the functional group of a frame: its own, else the shared one, else the root."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for groups in [*per_frame[frame_number - 1 : frame_number], *shared[:1]]:
        if groups.get(sequence):
            return groups[sequence][0]
    return dataset


def _number(dataset: Any, keyword: str, default: float) -> float:  # noqa: ANN401  pydicom's
    numbers = _numbers(dataset, keyword, 1)
    return numbers[0] if numbers else default


def _numbers(dataset: Any, keyword: str, n_values: int) -> list[float]:  # noqa: ANN401  pydicom's
    """Return the numbers of an attribute; none where it is missing or breaks its format."""
    if keyword not in dataset:
        return []
    tag = tag_for_keyword(keyword)
    assert tag is not None  # noqa: S101  every keyword here is one of DICOM's
    return _as_numbers(_value(dataset, tag), n_values)


def _as_numbers(value: object, n_values: int) -> list[float]:
    """Return so many finite numbers, or none; a decimal comma is a point if all have none."""
    several = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    parts = [str(one).strip(" \0") for one in several]
    if not any("." in part or part.lstrip("+-").startswith(",") for part in parts):
        parts = [part.replace(",", ".") for part in parts]
    if len(parts) != n_values or not all(set(part) <= set("+-.0123456789eE") for part in parts):
        return []
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        return []
    return numbers if all(map(math.isfinite, numbers)) else []


def spacing_of(path: Path, frame_number: int) -> tuple[float, float]:
    """Return the distances between rows and between columns of a frame, mm."""
    measures = _of_frame(_read(path), "PixelMeasuresSequence", frame_number)
    between_rows, between_columns = _numbers(measures, "PixelSpacing", 2)
    return between_rows, between_columns


def placed(
    frame: tuple[int, ...],
    spacing: tuple[float, float],
    drawn: Sequence[Drawn],
    size: tuple[int, int],
    options: Mapping[str, Any],
) -> Grid:
    """Return where the pixels of a row lie in its frame.

    Parameters
    ----------
    frame, size : (int, int)
        Rows and columns of the frame, and of the file.
    options : mapping
        As the file records them.
    """
    wanted = options.get("resample") or spacing
    is_about_structures = options.get("fit_about") == "structures" and len(drawn) > 0
    axes = []
    for axis in (0, 1):
        scale = wanted[axis] / spacing[axis]
        n_resampled = math.floor(frame[axis] / scale + 0.5)
        # The middles of the frame and of its resampled pixels are at one place.
        first = (frame[axis] - 1) / 2 - (n_resampled - 1) / 2 * scale
        left = n_resampled - size[axis]
        start = left // 2 if left >= 0 else -(-left // 2)
        if is_about_structures and left > 0:
            low, high = _reach(drawn, axis, frame[axis])
            middle = ((low + high) / 2 - first) / scale
            start = math.floor(middle - (size[axis] - 1) / 2 + 0.5)
            start = max(0, min(start, left))
        axes.append(Axis(frame[axis], first + start * scale, scale))
    return axes[0], axes[1]


def _reach(drawn: Sequence[Drawn], axis: int, length: int) -> tuple[float, float]:
    """Return from where to where all that is drawn reaches along an axis of the frame."""
    ends: list[float] = []
    for one in drawn:
        if isinstance(one, list):
            for vertices in one:
                ends += vertices[:, 1 - axis].tolist()
        else:
            places = np.nonzero(one)[axis]
            ends += [places.min() - 0.5, places.max() + 0.5]
    inside = [min(max(end, -0.5), length - 0.5) for end in ends]
    return min(inside), max(inside)


def _holder(axis: Axis, place: int) -> int | None:
    """Return the pixel of the frame that holds the centre of a pixel of the row, if any does."""
    nearest = math.floor(axis.offset + axis.scale * place + 0.5)
    return nearest if 0 <= nearest < axis.length else None


def beyond(grid: Grid, size: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the pixels of a row whose centres are in no pixel of the frame."""
    rows, columns = (
        np.array([_holder(axis, place) is None for place in range(length)])
        for axis, length in zip(grid, size, strict=True)
    )
    return np.asarray(rows[:, None] | columns[None, :])


def regridded(
    image: npt.NDArray[np.float64],
    grid: Grid,
    size: tuple[int, int],
    padding: tuple[float, float] | None,
) -> npt.NDArray[np.float64]:
    """Return the values of a row's pixels, not rounded.

    The weight of a pixel of the frame falls in a straight line from the middle of a pixel of the
    row to the middle of the next one, or of the next pixel of the frame where that is farther.
    """
    is_image = np.ones(image.shape, np.bool_)
    if padding is not None:
        is_image = (image < padding[0]) | (image > padding[1])
        if not is_image.any():
            is_image[:] = True
    rows, columns = (
        np.array([_weights(axis, place) for place in range(length)])
        for axis, length in zip(grid, size, strict=True)
    )
    sums = rows @ (image * is_image) @ columns.T
    weights = rows @ is_image.astype(np.float64) @ columns.T
    values = sums / np.where(weights > 0, weights, 1)
    lowest = float(image.min()) if padding is None else padding[0]
    values[~sampled(is_image, grid, size)] = lowest
    return np.asarray(values)


def sampled(
    mask: npt.NDArray[np.bool_], grid: Grid, size: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """Return the pixels of a row whose centres are in pixels of a mask of its frame."""
    out = np.zeros(size, np.bool_)
    down, right = (
        [_holder(axis, place) for place in range(length)]
        for axis, length in zip(grid, size, strict=True)
    )
    for row, column in np.ndindex(size):
        at = down[row], right[column]
        out[row, column] = None not in at and bool(mask[at])
    return out


def _weights(axis: Axis, place: int) -> list[float]:
    """Return the weights of a frame's pixels along one axis; beyond its ends, the last repeat."""
    middle, reach = axis.offset + axis.scale * place, max(axis.scale, 1.0)
    weights = [0.0] * axis.length
    for pixel in range(math.floor(middle - reach), math.ceil(middle + reach) + 1):
        weight = max(0.0, 1 - abs(pixel - middle) / reach)
        weights[min(max(pixel, 0), axis.length - 1)] += weight
    total = sum(weights)
    return [weight / total for weight in weights]


def tolerance(image: npt.NDArray[np.float64], dtype: np.dtype[np.generic]) -> float:
    """Return by how much interpolated values may differ: by rounding, and in single precision.

    Pillow has places in single precision, and so 1/30000 pixel.
    """
    rounding = 0.5 if dtype.kind != "f" else 0.0
    spread, largest = float(image.max() - image.min()), float(np.abs(image).max())
    return rounding + 1e-4 * spread + 1e-6 * largest + 1e-9


def painted(
    drawn: Drawn, grid: Grid | None, size: tuple[int, int], rule: str
) -> npt.NDArray[np.bool_]:
    """Return the pixels of a row that belong to what is drawn on its frame."""
    if grid is None:
        return mask_of(drawn, *size, rule) if isinstance(drawn, list) else drawn
    rows, columns = grid
    if isinstance(drawn, list):
        moved = [
            np.array(
                [
                    ((x - columns.offset) / columns.scale, (y - rows.offset) / rows.scale)
                    for x, y in vertices.tolist()
                ]
            )
            for vertices in drawn
        ]
        return mask_of(moved, *size, rule) & ~beyond(grid, size)
    return sampled(drawn, grid, size)


def attribute(path: Path, frame_number: int, keyword: str) -> str | float:
    """Return an attribute of a frame as a column keeps it: one number, else text.

    It is the frame's own, in whichever functional group, else the shared one, else the root's.
    """
    dataset = _read(path)
    tag = tag_for_keyword(keyword)
    assert tag is not None  # noqa: S101  the column is of this attribute
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    value = None
    for groups in [*per_frame[frame_number - 1 : frame_number], *shared[:1]]:
        items = [one.value[0] for one in groups if one.VR == "SQ" and one.value]
        value = next((_value(item, tag) for item in items if keyword in item), value)
        if value not in (None, ""):
            break
    if value in (None, "") and keyword in dataset:
        value = _value(dataset, tag)
    is_number = dictionary_VM(tag) == "1" and dictionary_VR(tag) in _NUMBERS
    if is_number:
        return next(iter(_as_numbers(value, 1)), math.nan)
    if value is None:
        return ""
    if isinstance(value, str) or not isinstance(value, Sequence):
        return str(value).strip(" \0")
    return "\\".join(str(one).strip(" \0") for one in value)


def _value(item: pydicom.Dataset, tag: int) -> Any:  # noqa: ANN401  as pydicom has it
    """Return the value of an attribute; `_LEFT_OUT` where no column has room for it.

    Decimal strings are as the file has them: pydicom refuses those that break their format.
    """
    raw = item.get_item(tag)
    if isinstance(raw, RawDataElement):
        if raw.length > _LONGEST:
            return _LEFT_OUT
        if dictionary_VR(tag) in _DECIMAL_STRINGS and raw.VR in {None, "UN", *_DECIMAL_STRINGS}:
            parts = (raw.value or b"").decode("latin-1").split("\\")
            return parts if len(parts) > 1 else parts[0].strip(" \0")
    return item[tag].value


def polygons_of(text: str, origin: int) -> list[Polygon]:
    """Return the polygons of a contour file: one point a line, a blank line between polygons."""
    parts: list[list[tuple[float, float]]] = [[]]
    for line in text.removeprefix("\ufeff").splitlines():
        if line.strip():
            x, y = line.split()
            parts[-1].append((float(x) - origin, float(y) - origin))
        elif parts[-1]:
            parts.append([])
    joined: list[list[tuple[float, float]]] = []
    for part in parts:
        if joined and min(len(joined[-1]), len(part)) < 3:  # noqa: PLR2004  no polygon of its own
            joined[-1] += part
        elif part:
            joined.append(part)
    return [np.array(part) for part in joined]


def is_structure_set(path: Path) -> bool:
    """Say whether a file is an RT Structure Set."""
    with path.open("rb") as file:
        return b"1.2.840.10008.5.1.4.1.1.481.3" in file.read(2048)


class _Plane(NamedTuple):
    """Where the pixels of a frame are, mm."""

    origin: npt.NDArray[np.float64]
    row: npt.NDArray[np.float64]
    column: npt.NDArray[np.float64]

    def has(self, points: npt.NDArray[np.float64], tolerance: float) -> bool:
        """Say whether all points are in the plane."""
        normal = np.cross(self.row, self.column)
        return bool(np.abs((points - self.origin) @ normal).max() <= tolerance)


class _Contour(NamedTuple):
    """A closed contour: name of its structure, and the image and frame that it refers to."""

    name: str
    uid: str  # empty: none
    frame_number: int  # 0: none
    points: npt.NDArray[np.float64]  # mm


def structure_polygons(
    path: Path,
    names: set[str],
    image: Path,
    frame_number: int,
    root: Path,
    tolerance: float,
) -> list[Polygon]:
    """Return the polygons that a structure set draws on a frame, point by point.

    Parameters
    ----------
    names : set of str
        ROIName of the structures.
    root : Path
        The folder of all images: a contour that refers to another one, and lies in its plane, is
        not drawn here.
    tolerance : float
        How far off the frame's plane a contour may lie, mm.
    """
    dataset = _read(image)
    plane = _plane(dataset, frame_number)
    measures = _of_frame(dataset, "PixelMeasuresSequence", frame_number)
    between_rows, between_columns = _numbers(measures, "PixelSpacing", 2)
    if plane is None:
        return []
    polygons = []
    for contour in _closed_contours(path, *_stamp(path)):
        if contour.name not in names or not plane.has(contour.points, tolerance):
            continue
        is_mine = contour.uid == str(dataset.SOPInstanceUID)
        is_mine &= contour.frame_number in {frame_number} | ({0} if frame_number == 1 else set())
        if is_mine or not _is_on_another(contour, root, path, tolerance):
            points = contour.points - plane.origin
            pixels = [points @ plane.row / between_columns, points @ plane.column / between_rows]
            polygons.append(np.stack(pixels, axis=1))
    return polygons


def _is_on_another(contour: _Contour, root: Path, path: Path, tolerance: float) -> bool:
    """Say whether a contour refers to an image of the folder, in whose plane it lies."""
    planes = _planes(root, *_stamp(path)).get(contour.uid, []) if contour.uid else []
    number = contour.frame_number or 1
    if number > len(planes) or (contour.frame_number == 0 and len(planes) > 1):
        return False
    plane = planes[number - 1]
    centre = contour.points.mean(axis=0, keepdims=True)
    return plane is None or plane.has(centre, tolerance)


@lru_cache(1)
def _planes(root: Path, *_stamp: int) -> dict[str, list[_Plane | None]]:
    """Return the planes of the frames of each image in a folder, by SOPInstanceUID."""
    found: dict[str, list[_Plane | None]] = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        try:
            dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            if "Rows" in dataset:
                frames = range(1, int(dataset.get("NumberOfFrames") or 1) + 1)
                planes = [_plane(dataset, number) for number in frames]
                found.setdefault(str(dataset.SOPInstanceUID), planes)
        except Exception:  # noqa: BLE001, S112  whatever a file has that is no image
            continue
    return found


def _plane(dataset: Any, frame_number: int) -> _Plane | None:  # noqa: ANN401  pydicom's
    place = _of_frame(dataset, "PlanePositionSequence", frame_number)
    turn = _of_frame(dataset, "PlaneOrientationSequence", frame_number)
    position = _numbers(place, "ImagePositionPatient", 3)
    orientation = _numbers(turn, "ImageOrientationPatient", 6)
    if not position or not orientation:
        return None
    return _Plane(np.array(position), np.array(orientation[:3]), np.array(orientation[3:]))


@lru_cache(2)
def _closed_contours(path: Path, *_stamp: int) -> list[_Contour]:
    drawing = pydicom.dcmread(path, force=True)
    names = {
        roi.ROINumber: str(roi.get("ROIName") or "").strip() or f"ROI {roi.ROINumber}"
        for roi in drawing.StructureSetROISequence
    }
    found = []
    for roi in drawing.ROIContourSequence:
        name = names.get(roi.ReferencedROINumber, "")
        for contour in roi.get("ContourSequence") or []:
            reference = (contour.get("ContourImageSequence") or [pydicom.Dataset()])[0]
            points = _points(contour)
            if points is not None and str(contour.ContourGeometricType).startswith("CLOSED"):
                uid = str(reference.get("ReferencedSOPInstanceUID") or "")
                number = int(reference.get("ReferencedFrameNumber") or 0)
                found.append(_Contour(name, uid, number, points))
    return found


def _points(contour: Any) -> Polygon | None:  # noqa: ANN401  pydicom's
    """Return the points of a contour; None where it has none: its image is no row then."""
    element = contour.get_item("ContourData")
    if element is None or "ContourGeometricType" not in contour:
        return None
    parts = element.value.decode("latin-1").split("\\")
    numbers = _as_numbers(["1.", *parts], len(parts) + 1)[1:]  # the point: none has a comma
    stated = contour.get_item("NumberOfContourPoints")
    n_stated = stated.value.decode("latin-1").strip(" \0") if stated is not None else ""
    if len(numbers) % 3 or not numbers or n_stated not in {"", str(len(numbers) // 3)}:
        return None
    return np.array(numbers).reshape(-1, 3)


def is_segmentation(path: Path) -> bool:
    """Say whether a file is a DICOM Segmentation."""
    with path.open("rb") as file:
        return b"1.2.840.10008.5.1.4.1.1.66." in file.read(1024)


def segment_mask(
    path: Path, names: set[str], image: Path, frame_number: int, threshold: float
) -> npt.NDArray[np.bool_]:
    """Return the pixels of the segments with these labels in the plane of a frame."""
    drawing, dataset = _read(path), _read(image)
    place = _of_frame(dataset, "PlanePositionSequence", frame_number)
    places, segments, sources = _segment_frames(path, *_stamp(path))
    if position := _numbers(place, "ImagePositionPatient", 3):
        here = np.array(position)
        is_here = np.abs(places - here).max(axis=1) <= 0.5  # noqa: PLR2004  mm
    else:
        is_here = np.array([one == (dataset.SOPInstanceUID, frame_number) for one in sources])
    numbers = {one.SegmentNumber for one in drawing.SegmentSequence if _segment_name(one) in names}
    mask = np.zeros((int(drawing.Rows), int(drawing.Columns)), np.bool_)
    for frame in np.flatnonzero(is_here).tolist():
        if segments[frame] not in numbers | {None}:
            continue
        values = _segment_pixels(drawing, frame)
        if drawing.SegmentationType == "LABELMAP":
            mask |= np.isin(values, list(numbers))
        else:
            highest = float(drawing.get("MaximumFractionalValue") or 1)
            is_share = drawing.SegmentationType == "FRACTIONAL"
            mask |= values >= threshold * highest if is_share else values > 0
    return mask


def _segment_pixels(drawing: Any, frame: int) -> npt.NDArray[np.integer]:  # noqa: ANN401  pydicom's
    """Return the values of a frame, counted from 0."""
    if drawing.BitsAllocated > 1 or drawing.file_meta.TransferSyntaxUID.is_encapsulated:
        return np.asarray(pixel_array(drawing, index=frame))
    # pydicom does not cut frames that begin within a byte apart.
    n_pixels = drawing.Rows * drawing.Columns
    first = frame * n_pixels
    packed = np.frombuffer(drawing.PixelData[first // 8 : (first + n_pixels + 7) // 8], np.uint8)
    bits = np.unpackbits(packed, bitorder="little")[first % 8 :]
    return bits[:n_pixels].reshape(drawing.Rows, drawing.Columns)


class _Frames(NamedTuple):
    """The frames of a segmentation: position, mm, segment, and image with its frame number."""

    places: npt.NDArray[np.float64]
    segments: list[int | None]  # None: all of a label map
    sources: list[tuple[str, int]]


@lru_cache(2)
def _segment_frames(path: Path, *_stamp: int) -> _Frames:
    drawing = _read(path)
    frames = range(1, int(drawing.get("NumberOfFrames") or 1) + 1)
    places = [
        _numbers(_of_frame(drawing, "PlanePositionSequence", frame), "ImagePositionPatient", 3)
        for frame in frames
    ]
    is_label_map = drawing.SegmentationType == "LABELMAP"
    segments = [
        None
        if is_label_map
        else int(_of_frame(drawing, "SegmentIdentificationSequence", frame).ReferencedSegmentNumber)
        for frame in frames
    ]
    return _Frames(
        np.array([one or [math.nan] * 3 for one in places], np.float64),
        segments,
        [_source(_of_frame(drawing, "DerivationImageSequence", frame)) for frame in frames],
    )


def _source(derivation: Any) -> tuple[str, int]:  # noqa: ANN401  pydicom's
    images = derivation.get("SourceImageSequence") or []
    if not images:
        return "", 0
    return str(images[0].ReferencedSOPInstanceUID), int(images[0].get("ReferencedFrameNumber") or 1)


def _segment_name(segment: Any) -> str:  # noqa: ANN401  pydicom's
    """Return the label of a segment, else the meaning of its type, or of its category."""
    texts = [segment.get("SegmentLabel")]
    for keyword in ("SegmentedPropertyTypeCodeSequence", "SegmentedPropertyCategoryCodeSequence"):
        texts += [code.get("CodeMeaning") for code in segment.get(keyword) or []]
    known = [str(text).strip() for text in texts if text and str(text).strip()]
    return known[0] if known else f"ROI {segment.SegmentNumber}"


def transformed(
    polygons: Sequence[Polygon],
    steps: Sequence[str],
    rows: int,
    columns: int,
    image: Path,
    frame_number: int = 1,
) -> list[Polygon]:
    """Return polygons after the steps of a contour transform, point by point."""
    between_rows = between_columns = 1.0
    if "mm" in steps:
        measures = _of_frame(_read(image), "PixelMeasuresSequence", frame_number)
        between_rows, between_columns = map(float, measures.PixelSpacing)
    done: list[Polygon] = []
    for vertices in polygons:
        points = vertices.tolist()
        for step in steps:
            factor = float(step.partition("=")[2] or 1)
            points = [
                {
                    "swap": (y, x),
                    "flip-x": (columns - 1 - x, y),
                    "flip-y": (x, rows - 1 - y),
                    "rotate-90": (rows - 1 - y, x),
                    "mm": (x / between_columns, y / between_rows),
                }.get(step, (factor * x, factor * y))
                for x, y in points
            ]
        done.append(np.array(points))
    return done


def mask_of(
    polygons: Sequence[Polygon], rows: int, columns: int, rule: str
) -> npt.NDArray[np.bool_]:
    """Return the pixels of a region, its polygons even-odd together."""
    mask = np.zeros((rows, columns), np.bool_)
    for vertices in polygons:
        mask ^= _pillow(vertices, rows, columns) if rule == "pillow" else _even_odd(vertices, mask)
    return mask


def label_map(
    masks: Sequence[tuple[int, npt.NDArray[np.bool_]]], rows: int, columns: int
) -> npt.NDArray[np.integer]:
    """Return a label map of (code, mask) painted one over the other in the order given."""
    labels = np.zeros((rows, columns), np.uint8)
    for code, mask in masks:
        labels[mask] = code
    return labels


def bit_mask(
    masks: Sequence[tuple[int, npt.NDArray[np.bool_]]], rows: int, columns: int
) -> npt.NDArray[np.integer]:
    """Return the sum of 2 to the power of its bit for each (bit, mask) that has the pixel."""
    words = np.zeros((rows, columns), np.int64)
    for bit, mask in masks:
        words += mask * 2**bit
    return words


def n_overlapping(
    masks: Sequence[tuple[int, npt.NDArray[np.bool_]]], parents: dict[int, int]
) -> int:
    """Return the pixels inside two structures or more of which neither lies in the other.

    Parameters
    ----------
    parents : dict of int to int
        The code of the structure that each one lies in; 0: the image.
    """
    shared: npt.NDArray[np.bool_] = np.zeros((), np.bool_)
    for code, mask in masks:
        for other, other_mask in masks:
            around = {code: _around(code, parents), other: _around(other, parents)}
            if code != other and code not in around[other] and other not in around[code]:
                shared = shared | (mask & other_mask)
    return int(shared.sum())


def _around(code: int, parents: dict[int, int]) -> list[int]:
    """Return the structures that one lies in, from the nearest on."""
    chain = []
    while parents[code]:
        code = parents[code]
        chain.append(code)
    return chain


def with_ignored(
    labels: npt.NDArray[np.integer], drawn: set[int], parents: dict[int, int]
) -> npt.NDArray[np.integer]:
    """Return a label map with 255 where a structure that was not drawn may be.

    Parameters
    ----------
    parents : dict of int to int
        The code of the structure that each one lies in; 0: the image.
    """
    out = labels.copy()
    for code in parents:
        chain = [code]
        while chain[-1]:
            chain.append(parents[chain[-1]])
        if code not in drawn:
            nearest = next(one for one in chain if one in drawn or one == 0)
            out[labels == nearest] = 255
    return out


def _pillow(vertices: Polygon, rows: int, columns: int) -> npt.NDArray[np.bool_]:
    image = Image.new("L", (columns, rows), 0)
    ImageDraw.Draw(image).polygon([(x, y) for x, y in vertices.tolist()], outline=0, fill=1)
    return np.asarray(image) > 0


def _even_odd(vertices: Polygon, like: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return the pixels whose centre has an odd number of edges to its left, or on it."""
    rows, columns = like.shape
    column = np.arange(columns)[None, :]
    inside = np.zeros((rows, columns), np.bool_)
    leftmost, rightmost = vertices[:, 0].min(), vertices[:, 0].max()
    for (x0, y0), (x1, y1) in zip(vertices, np.roll(vertices, -1, axis=0), strict=True):
        if y0 > y1:  # from the upper end down, so that both directions cut alike
            x0, y0, x1, y1 = x1, y1, x0, y0  # noqa: PLW2901  the edge, turned round
        if y0 == y1:
            continue
        # The rows from y0 on and before y1.
        crossed = slice(min(max(math.ceil(y0), 0), rows), min(max(math.ceil(y1), 0), rows))
        row = np.arange(rows)[crossed, None]
        crossing = np.clip(x0 + (row - y0) * (x1 - x0) / (y1 - y0), leftmost, rightmost)
        inside[crossed] ^= crossing <= column
    return inside
