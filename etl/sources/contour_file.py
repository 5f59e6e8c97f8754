"""Text contours, one file for each structure of a frame; see `etl.contours.text`."""

from pathlib import Path

import numpy as np
import xxhash

from etl.contours import text
from etl.contours.transform import PixelGrid, transform
from etl.errors import most
from etl.model import AnnotationRef, Instance, Region
from etl.options import BuildOptions
from etl.sources.files import open_source, read_all


def read_region(
    root: Path, annotation: AnnotationRef, instance: Instance | None, options: BuildOptions
) -> Region:
    """Return the polygons of one contour file, in pixels as the origin and transform say.

    Raises
    ------
    SourceError
        The file cannot be read, is not a contour, or cannot be transformed.
    """
    code = "contour-unreadable"
    with open_source(root, annotation.path, code) as (descriptor, stamp):
        if stamp.size > most("contour-bytes"):
            raise text.too_large(stamp.size)
        data = read_all(descriptor, stamp, code)
    polygons = text.parse_contour(data)
    if options.contour_origin or options.contour_transform:
        origin = np.float64(options.contour_origin)
        grid = PixelGrid.of(instance, options.rows, options.columns)
        polygons = [
            transform(vertices - origin, options.contour_transform, grid) for vertices in polygons
        ]
    return Region(annotation.code, tuple(polygons), xxhash.xxh3_128_hexdigest(data))
