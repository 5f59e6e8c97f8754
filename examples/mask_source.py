"""A source of your own: masks as NumPy files in DATA/masks/<patient>/<n>.npy beside DATA/dicoms.

Run: python examples/mask_source.py data out.h5
"""

import io
import sys
from pathlib import Path

import numpy as np
import xxhash

import etl
from etl.errors import ContourError
from etl.findings import Finding, SampleKey
from etl.labels import named_scheme
from etl.model import AnnotationRef, FrameRef, Instance, Link, Region
from etl.sources.files import open_source, read_all
from etl.sources.layouts import LAYOUTS
from etl.sources.source import Discovery, Source


def recognises(data: Path) -> str:
    """Return the name by which DATA is of this layout, or an empty string."""
    return "masks" if (data / "masks").is_dir() else ""


def discover(data: Path, options: etl.BuildOptions) -> Discovery:
    """Return a link for each image that has a mask, and a finding for each that has none."""
    images = sorted(path.relative_to(data) for path in data.glob("dicoms/*/*.dcm"))
    if not images:
        raise etl.EtlError(f"Input not usable: {data}: has no dicoms/<patient>/<n>.dcm.")
    links, findings = [], []
    for image in images:
        key = SampleKey(image.parent.name, series="", slice=int(image.stem))
        mask = Path("masks", image.parent.name, f"{image.stem}.npy")
        if (data / mask).exists():
            annotation = AnnotationRef(code=1, path=mask.as_posix())
            links.append(Link(key, "", FrameRef(image.as_posix()), (annotation,)))
        else:
            why = "no mask for this image."
            findings.append(Finding("image-no-contour", image.as_posix(), why, key))
    return Discovery(
        root=data,
        probe=images[0].as_posix(),
        scheme=named_scheme(options.structures or ["blood pool"]),
        links=sorted(links),
        findings=findings,
        counts={"images": len(images), "annotations": len(links)},
    )


def read_region(
    root: Path, annotation: AnnotationRef, _instance: Instance | None, _options: etl.BuildOptions
) -> Region:
    """Return one mask; runs in a worker."""
    with open_source(root, annotation.path, "contour-unreadable") as (descriptor, stamp):
        data = read_all(descriptor, stamp, "contour-unreadable")
    try:
        mask = np.load(io.BytesIO(data), allow_pickle=False)
    except ValueError as error:
        raise ContourError("contour-unreadable", "is no NumPy file. Save it again.") from error
    return Region(annotation.code, (), xxhash.xxh3_128_hexdigest(data), mask > 0)


SOURCE = Source("masks", recognises, lambda options: options, discover, read_region)
LAYOUTS[SOURCE.name] = SOURCE

if __name__ == "__main__":
    result = etl.build(sys.argv[1], sys.argv[2], etl.BuildOptions(layout="masks"))
    print(f"{result.n_rows} rows, {len(result.findings)} findings")
