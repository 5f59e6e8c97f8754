"""A source of your own: `<patient>/<n>.dcm`, and beside each its mask as a picture, `<n>.png`.

Register it, then build as always:

    from etl.sources.layouts import LAYOUTS
    from mask_source import SOURCE

    LAYOUTS["masks"] = SOURCE
    etl.build("data", "out.h5", etl.BuildOptions(layout="masks"), workers=2)
"""

from pathlib import Path

import numpy as np
import xxhash
from PIL import Image

from etl.errors import ContourError
from etl.findings import Finding, SampleKey
from etl.labels import named_scheme
from etl.model import AnnotationRef, FrameRef, Instance, Link, Region
from etl.options import BuildOptions
from etl.sources.source import Discovery, Source


def discover(data: Path, _options: BuildOptions) -> Discovery:
    """Link each DICOM file that has a picture; list those that have none."""
    links, findings = [], []
    images = sorted(data.glob("*/*.dcm"), key=lambda path: (path.parent.name, int(path.stem)))
    for image in images:
        key = SampleKey(image.parent.name, "", int(image.stem))
        path, mask = (
            one.relative_to(data).as_posix() for one in (image, image.with_suffix(".png"))
        )
        if (data / mask).exists():
            links.append(Link(key, "", FrameRef(path), (AnnotationRef(1, mask),)))
        else:
            findings.append(Finding("image-no-contour", path, "no mask beside this image.", key))
    counts = {"patients": len({link.key.patient_id for link in links}), "images": len(images)}
    scheme = named_scheme(["tumour"])
    return Discovery(data, links[0].frame.path if links else "", scheme, links, findings, counts)


def read_region(
    root: Path, annotation: AnnotationRef, _instance: Instance | None, _options: BuildOptions
) -> Region:
    """Read one picture: every pixel that is not black belongs to the structure."""
    try:
        content = (root / annotation.path).read_bytes()
        with Image.open(root / annotation.path) as picture:
            mask = np.asarray(picture.convert("L")) > 0
    except OSError as error:
        raise ContourError("contour-unreadable", "is no picture. Export it again.") from error
    return Region(annotation.code, (), xxhash.xxh3_128_hexdigest(content), mask)


SOURCE = Source(
    name="masks",
    recognises=lambda data: "masks" if any(data.glob("*/*.png")) else "",
    settle=lambda options: options,
    discover=discover,
    read_region=read_region,
)
