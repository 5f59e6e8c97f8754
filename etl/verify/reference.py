"""The whole way from sources to one row a second time, as plainly as possible.

It shares no parsing, rescaling or rasterising with the build: pydicom reads every DICOM file,
numbers are read by float(), and a pixel's side of a polygon is asked edge by edge. It is slow and
obvious; a build must equal it pixel by pixel.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image, ImageDraw

Polygon = npt.NDArray[np.float64]


def modality_image(path: Path, frame_number: int = 1) -> npt.NDArray[np.float64]:
    """Return the modality values of one frame, in float64."""
    dataset = pydicom.dcmread(path, force=True)
    stored = dataset.pixel_array.astype(np.int64)
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        stored = stored[frame_number - 1]
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
    value = dataset.get(keyword)
    return default if value in (None, "") else float(value)


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


def structure_polygons(
    path: Path,
    names: set[str],
    image: Path,
    frame_number: int,
    others: set[str],
    tolerance: float,
) -> list[Polygon]:
    """Return the polygons that a structure set draws on a frame, point by point.

    Parameters
    ----------
    names : set of str
        ROIName of the structures.
    others : set of str
        SOPInstanceUID of other images: contours that refer to them are not drawn here.
    tolerance : float
        How far off the frame's plane a contour may lie, mm.
    """
    drawing, dataset = pydicom.dcmread(path), pydicom.dcmread(image, stop_before_pixels=True)
    place = _of_frame(dataset, "PlanePositionSequence", frame_number)
    turn = _of_frame(dataset, "PlaneOrientationSequence", frame_number)
    measures = _of_frame(dataset, "PixelMeasuresSequence", frame_number)
    origin = np.array(place.ImagePositionPatient, np.float64)
    row, column = np.array(turn.ImageOrientationPatient, np.float64).reshape(2, 3)
    between_rows, between_columns = map(float, measures.PixelSpacing)
    normal = np.cross(row, column)
    numbers = {
        roi.ROINumber for roi in drawing.StructureSetROISequence if roi.ROIName.strip() in names
    }
    polygons = []
    for roi in drawing.ROIContourSequence:
        for contour in roi.get("ContourSequence") or []:
            reference = contour.get("ContourImageSequence") or [None]
            uid = reference[0].ReferencedSOPInstanceUID if reference[0] is not None else ""
            if roi.ReferencedROINumber not in numbers or uid in others:
                continue
            if not contour.ContourGeometricType.startswith("CLOSED"):
                continue
            points = np.array(contour.ContourData, np.float64).reshape(-1, 3) - origin
            if abs(points @ normal).max() <= tolerance:
                pixels = [points @ row / between_columns, points @ column / between_rows]
                polygons.append(np.stack(pixels, axis=1))
    return polygons


def is_segmentation(path: Path) -> bool:
    """Say whether a file is a DICOM Segmentation."""
    with path.open("rb") as file:
        return b"1.2.840.10008.5.1.4.1.1.66." in file.read(1024)


def segment_mask(
    path: Path, names: set[str], image: Path, frame_number: int, threshold: float
) -> npt.NDArray[np.bool_]:
    """Return the pixels of the segments with these labels in the plane of a frame."""
    drawing, dataset = pydicom.dcmread(path), pydicom.dcmread(image, stop_before_pixels=True)
    place = _of_frame(dataset, "PlanePositionSequence", frame_number)
    here = np.array(place.ImagePositionPatient, np.float64)
    stack = drawing.pixel_array
    stack = stack[None] if stack.ndim == 2 else stack  # noqa: PLR2004  one frame
    numbers = {
        segment.SegmentNumber
        for segment in drawing.SegmentSequence
        if segment.SegmentLabel.strip() in names
    }
    mask = np.zeros(stack.shape[1:], np.bool_)
    for number, values in enumerate(stack, 1):
        there = _of_frame(drawing, "PlanePositionSequence", number).ImagePositionPatient
        if np.abs(np.array(there, np.float64) - here).max() > 0.5:  # noqa: PLR2004  mm
            continue
        if drawing.SegmentationType == "LABELMAP":
            mask |= np.isin(values, list(numbers))
            continue
        named = _of_frame(drawing, "SegmentIdentificationSequence", number)
        if named.ReferencedSegmentNumber in numbers:
            highest = float(drawing.get("MaximumFractionalValue") or 1)
            is_share = drawing.SegmentationType == "FRACTIONAL"
            mask |= values >= threshold * highest if is_share else values > 0
    return mask


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
        dataset = pydicom.dcmread(image, force=True)
        measures = _of_frame(dataset, "PixelMeasuresSequence", frame_number)
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
    row, column = np.arange(rows)[:, None], np.arange(columns)[None, :]
    inside = np.zeros((rows, columns), np.bool_)
    leftmost, rightmost = vertices[:, 0].min(), vertices[:, 0].max()
    for (x0, y0), (x1, y1) in zip(vertices, np.roll(vertices, -1, axis=0), strict=True):
        if y0 > y1:  # from the upper end down, so that both directions cut alike
            x0, y0, x1, y1 = x1, y1, x0, y0  # noqa: PLW2901  the edge, turned round
        if y0 == y1:
            continue
        crossing = np.clip(x0 + (row - y0) * (x1 - x0) / (y1 - y0), leftmost, rightmost)
        inside ^= (y0 <= row) & (row < y1) & (crossing <= column)
    return inside
