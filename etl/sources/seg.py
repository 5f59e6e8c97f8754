"""The seg layout: DICOM images and Segmentations, whose frames are masks of single planes."""

from pathlib import Path
from typing import Final

import numpy as np

from etl.dicom.annotations import AnnotationSet
from etl.dicom.segmentation import SEGMENTATIONS, Segmentation
from etl.errors import ContourError, SourceError
from etl.geometry import ImagePlane
from etl.model import AnnotationRef, Instance, Region
from etl.options import BuildOptions
from etl.sources.annotation_sets import (
    Latest,
    discover,
    index_file,
    resolver,
    settle,
    unnamed,
)
from etl.sources.files import FileBytes
from etl.sources.source import Source

_CODE: Final = "segmentation-unreadable"
_LATEST: Final = Latest(_CODE, Segmentation)
# Pixels that the corners of two equal grids may differ: headers round spacings and cosines, which
# adds up to some hundredths across an image, and half a pixel is another place.
_TOLERANCE: Final = 0.25


def index(root: Path, path: str) -> object:
    """Return what a file says: an image's facts, a segmentation, or that it is neither.

    Raises
    ------
    SourceError
        It cannot be read.
    """
    return index_file(root, path, SEGMENTATIONS, _read, _CODE)


def _read(content: FileBytes) -> AnnotationSet:
    return Segmentation(content).contents()


def read_region(
    root: Path, annotation: AnnotationRef, instance: Instance | None, options: BuildOptions
) -> Region:
    """Return the pixels of one segment on one frame.

    Raises
    ------
    SourceError
        The segmentation cannot be read or has changed, or its pixels are not those of the image.
    """
    segmentation, digest = _LATEST.read(root, annotation.path)
    if instance is None:
        return Region(annotation.code, (), digest)
    pixels = instance.pixel_format
    mask = np.zeros((pixels.rows, pixels.columns), np.bool_)
    for place in map(int, annotation.locator.split()):
        if place >= len(segmentation.drawings):
            raise SourceError("image-changed", "changed during the build. Build again.")
        part = segmentation.mask(place, options.segment_threshold)
        if part.shape != mask.shape:
            return Region(annotation.code, (), digest, part)  # the check of sizes says so
        drawn = segmentation.drawings[place].plane
        _require_grid(drawn, instance.plane, part.shape, options.plane_tolerance)
        mask |= part
    return Region(annotation.code, (), digest, mask)


def _require_grid(
    drawn: ImagePlane, image: ImagePlane, size: tuple[int, ...], tolerance: float
) -> None:
    """Require that the pixels of two planes of one size are at the same places.

    Where the image has no place, as a radiograph has none, its segmentation names it, and nothing
    speaks against it.
    """
    if not drawn.is_known and image.is_known:
        raise ContourError(
            "contour-unreadable", "its frame has no place in the patient. Export it again."
        )
    if image == drawn or not image.is_known:
        return
    rows, columns = size
    corners = np.array([(0, 0), (columns - 1, 0), (0, rows - 1)], np.float64)
    places = drawn.to_patient(corners)
    distance = float(np.abs(image.distances(places)).max())
    if distance > tolerance:
        raise ContourError(
            "contour-off-plane",
            f"has pixels up to {distance:.3g} mm off the plane of its image, expected at most "
            f"{tolerance:g} mm. Is it another series'?",
        )
    off = np.abs(image.to_pixels(places) - corners).max()
    if off > _TOLERANCE:
        raise ContourError(
            "mask-grid",
            f"its pixels are up to {off:.3g} pixels off those of the image, by the positions of "
            "both. Export the segmentation of this image.",
        )


SOURCE: Final = Source(
    name="seg",
    recognises=unnamed,
    settle=settle,
    discover=discover,
    read_region=read_region,
    index=index,
    resolve=resolver("DICOM Segmentation", "frame"),
    object_classes=SEGMENTATIONS,
)
