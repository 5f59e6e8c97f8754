"""Links → samples: everything that can be checked without decoding pixels.

Runs in workers, on stretches of the list of links.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import xxhash

from etl.contours import checks, text
from etl.dicom import instance as dicom_instance
from etl.dicom.pixels import modality_range
from etl.errors import SourceError
from etl.findings import Finding
from etl.model import EMPTY_RANGE, Contour, Identity, Instance, Link, Sample, ValueRange, Vertices
from etl.options import BuildOptions, Kind
from etl.sources.files import cannot_read, open_source, read_all

_MAX_DICOM_BYTES: Final = 1 << 31


@dataclass(frozen=True, slots=True)
class Examined:
    """The good samples of a stretch of links, in order, and the findings on all of them."""

    n_links: int
    samples: list[bytes]  # packed: each is opened again only by the worker that renders it
    contours: npt.NDArray[np.int64]  # (n, 3): position in `samples`, label, number of vertices
    vertices: Vertices  # of all these contours, one after the other
    values: ValueRange  # over the samples
    findings: list[Finding]


def examine(root: Path, options: BuildOptions, links: Sequence[Link]) -> Examined:
    """Parse headers and contours; return what can become rows.

    All of a link's files are looked at even where one is bad, so that one run tells everything.
    """
    samples: list[Sample] = []
    findings: list[Finding] = []
    for link in links:
        bad: list[Finding] = []
        warnings: list[Finding] = []
        contours: list[Contour] = []
        try:
            instance, identity = _read_header(root, link.dicom_path)
            checks.check_size(instance.pixel_format, options.rows, options.columns)
        except SourceError as error:
            bad.append(Finding(error.code, link.dicom_path, error.message))
        for kind, path in link.contour_paths():
            try:
                contour = _read_contour(root, path, kind, options.contour_origin)
                size = options.rows, options.columns
                warnings += checks.check_contour(path, contour.vertices, *size)
                contours.append(contour)
            except SourceError as error:
                bad.append(Finding(error.code, path, error.message))
        if bad:
            findings += bad
        else:
            findings += warnings
            samples.append(Sample(link, instance, identity, tuple(contours)))
    return _packed(len(links), samples, findings)


def lost(links: Sequence[Link]) -> Examined:
    """Return what stands for links on which process after process died."""
    why = "the process that read it died, three times. Look at the file; is memory short?"
    findings = [Finding("image-unreadable", link.dicom_path, why) for link in links]
    return _packed(len(links), [], findings)


def _packed(n_links: int, samples: list[Sample], findings: list[Finding]) -> Examined:
    contours = [
        (position, contour.label, len(contour.vertices))
        for position, sample in enumerate(samples)
        for contour in sample.contours
    ]
    vertices = [contour.vertices for sample in samples for contour in sample.contours]
    ranges = [modality_range(sample.instance.pixel_format) for sample in samples]
    return Examined(
        n_links=n_links,
        samples=[sample.packed() for sample in samples],
        contours=np.array(contours, np.int64).reshape(-1, 3),
        vertices=np.concatenate([np.empty((0, 2)), *vertices]),
        values=reduce(or_, ranges, EMPTY_RANGE),
        findings=findings,
    )


def _read_header(root: Path, path: str) -> tuple[Instance, Identity]:
    code = "image-unreadable"
    with open_source(root, path, code) as (descriptor, identity):
        if identity.size > _MAX_DICOM_BYTES:
            message = f"has {identity.size} bytes, expected at most {_MAX_DICOM_BYTES}."
            raise SourceError(code, message)
        try:
            with open(descriptor, "rb", buffering=0, closefd=False) as file:
                return dicom_instance.read_instance(file), identity
        except OSError as error:
            raise cannot_read(error, code) from error


def _read_contour(root: Path, path: str, kind: Kind, origin: int) -> Contour:
    code = "contour-unreadable"
    with open_source(root, path, code) as (descriptor, identity):
        if identity.size > text.MAX_BYTES:
            raise text.too_large(identity.size)
        data = read_all(descriptor, identity, code)
    vertices = text.parse_contour(data) - np.float64(origin)
    return Contour(kind, vertices, xxhash.xxh3_128_hexdigest(data))
