"""The rtstruct layout: DICOM images and RT Structure Sets, whose contours are in millimetres."""

from pathlib import Path
from typing import Final

import numpy as np

from etl.dicom.annotations import AnnotationSet
from etl.dicom.structure_set import STRUCTURE_SET, read_points, read_structure_set
from etl.errors import ContourError, SourceError
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
from etl.sources.source import Source, refuse

_CODE: Final = "structure-set-unreadable"
_CLASSES: Final = frozenset({STRUCTURE_SET})
_LATEST: Final = Latest(_CODE, lambda content: read_points(content[:]))


def index(root: Path, path: str) -> object:
    """Return what a file says: an image's facts, a structure set, or that it is neither.

    Raises
    ------
    SourceError
        It cannot be read.
    """
    return index_file(root, path, _CLASSES, _read, _CODE)


def _read(content: FileBytes) -> AnnotationSet:
    return read_structure_set(content[:])


def read_region(
    root: Path, annotation: AnnotationRef, instance: Instance | None, options: BuildOptions
) -> Region:
    """Return the polygons of one structure on one frame, even-odd together, in pixels.

    Raises
    ------
    SourceError
        The structure set cannot be read or has changed, the image has no place in the patient, or
        a contour lies off its plane.
    """
    points, digest = _LATEST.read(root, annotation.path)
    if instance is None:
        return Region(annotation.code, (), digest)
    plane = instance.plane
    if not plane.is_known:
        raise ContourError(
            "image-no-plane",
            "its image has no usable ImagePositionPatient, ImageOrientationPatient or "
            "PixelSpacing, so that millimetres are no pixels. Export the image again.",
        )
    polygons = []
    for place in map(int, annotation.locator.split()):
        contour = points[place] if place < len(points) else None
        if contour is None:
            raise SourceError("image-changed", "changed during the build. Build again.")
        if isinstance(contour, str):
            raise ContourError("contour-unreadable", f"its contour {contour}. Export it again.")
        distance = float(np.abs(plane.distances(contour)).max())
        if distance > options.plane_tolerance:
            raise ContourError(
                "contour-off-plane",
                f"has points up to {distance:.3g} mm off the plane of its image, expected at most "
                f"{options.plane_tolerance:g} mm. Is it another series'?",
            )
        polygons.append(plane.to_pixels(contour))
    return Region(annotation.code, tuple(polygons), digest)


def _settle(options: BuildOptions) -> BuildOptions:
    refuse(options, ("segment_threshold",), "is for segmentations")
    return settle(options)


SOURCE: Final = Source(
    name="rtstruct",
    recognises=unnamed,
    settle=_settle,
    discover=discover,
    read_region=read_region,
    index=index,
    resolve=resolver("RT Structure Set", "contour"),
    object_classes=_CLASSES,
)
