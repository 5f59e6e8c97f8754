"""Samples → rows in the file: pixels, masks, statistics, digests and checks of each row.

Runs in workers, on stretches of consecutive rows; no pixel goes from process to process.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import xxhash

from etl.contours import polygon
from etl.contours.rasterise import label_maps
from etl.dicom.pixels import modality_values, stored_values
from etl.errors import ImageError, SourceError
from etl.findings import Finding
from etl.model import Image, LabelMap, Sample
from etl.options import KINDS, BuildOptions, Kind
from etl.output.row_writer import Plan, begin_writeback, open_rows, strings, write_rows
from etl.quality.alignment import ALIGNMENT, NOT_AUDITED, Alignment, measure
from etl.quality.rows import ROW_NUMBERS, Shape, check_contour, check_overlap, row_numbers
from etl.quality.statistics import image_statistics
from etl.sources.files import open_source, read_all, unchanged_since
from loader import format as file_format

Columns: TypeAlias = dict[str, npt.NDArray[np.generic]]

_MAX_VERTICES: Final = 1 << 17  # of contours that are rasterised together

# What the checks keep of each row until all rows are known: 65 bytes.
MARKS: Final = np.dtype([("numbers", ROW_NUMBERS), ("alignment", ALIGNMENT)])


@dataclass(frozen=True, slots=True)
class Rendered:
    """What one chunk of samples gave."""

    is_good: list[bool]  # by sample; a bad one has findings and no entry in the other two
    manifest: Columns
    marks: npt.NDArray[np.void]  # of type MARKS; empty where nothing is checked
    findings: list[Finding]


def render(
    root: Path, options: BuildOptions, plan: Plan, task: tuple[list[bytes], int]
) -> Rendered:
    """Write the rows of consecutive samples and return their manifest columns.

    Parameters
    ----------
    task : (list of bytes, int)
        Consecutive samples, packed as `examine` gave them, and the row of the first.

    Raises
    ------
    OSError
        The rows cannot be written; unlike a bad source, this ends the run.
    """
    packed, first_row = task
    good: list[_Row] = []
    is_good: list[bool] = []
    findings: list[Finding] = []
    with open_rows(plan) as file:
        for sample, mask, n_inside in _drawn(packed, options):
            row = _render_one(root, sample, mask, n_inside, options, plan.image_dtype)
            findings += row.findings
            if row.pixels is not None:
                # At once: memory that is free again for the next row is still in the cache.
                for name, pixels in zip(
                    (file_format.IMAGES, file_format.MASKS), row.pixels, strict=True
                ):
                    write_rows(file, plan, name, first_row + len(is_good), pixels)
                good.append(row._replace(pixels=None))
            is_good.append(row.pixels is not None)
        for name in (file_format.IMAGES, file_format.MASKS):
            begin_writeback(file, plan, name, first_row, len(is_good))
    return Rendered(
        is_good=is_good,
        manifest=_columns([row.manifest for row in good]),
        marks=np.array([row.marks for row in good if row.marks], MARKS),
        findings=findings,
    )


def lost(task: tuple[list[bytes], int]) -> Rendered:
    """Return what stands for rows on which process after process died."""
    why = "the process that rendered it died, three times. Look at the file; is memory short?"
    samples = map(Sample.unpacked, task[0])
    findings = [Finding("image-unreadable", sample.link.dicom_path, why) for sample in samples]
    return Rendered([False] * len(findings), {}, np.empty(0, MARKS), findings)


def names(task: tuple[list[bytes], int]) -> list[str]:
    """Return the DICOM paths of a task's samples."""
    return [Sample.unpacked(one).link.dicom_path for one in task[0]]


def _drawn(
    packed: list[bytes], options: BuildOptions
) -> Iterator[tuple[Sample, LabelMap, dict[Kind, int]]]:
    """Yield each sample with its label map, and how many pixels lie inside each of its contours."""
    sizes = options.contours, options.rows, options.columns, options.rasterizer
    for samples in _groups(map(Sample.unpacked, packed)):
        contours = [sample.contours for sample in samples]
        for sample, (mask, n_inside) in zip(samples, label_maps(contours, *sizes), strict=True):
            yield sample, mask, n_inside


def _groups(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Yield samples whose contours are rasterised together: all, unless there are huge ones."""
    group: list[Sample] = []
    n_vertices = 0
    for sample in samples:
        group.append(sample)
        n_vertices += sum(len(contour.vertices) for contour in sample.contours)
        if n_vertices > _MAX_VERTICES:
            yield group
            group, n_vertices = [], 0
    if group:
        yield group


class _Marks(NamedTuple):
    """One row of MARKS."""

    numbers: tuple[int | Shape, ...]
    alignment: Alignment


class _Row(NamedTuple):
    """One row, or without pixels the findings that say why it cannot be."""

    findings: list[Finding]
    pixels: tuple[Image, LabelMap] | None = None
    manifest: dict[str, str | int | float] = {}  # noqa: RUF012  a tuple's default, never changed
    marks: _Marks | None = None


def _render_one(
    root: Path,
    sample: Sample,
    mask: LabelMap,
    n_inside: dict[Kind, int],
    options: BuildOptions,
    dtype: str,
) -> _Row:
    link, pixels = sample.link, sample.instance.pixel_format
    try:
        data = _read_unchanged(root, sample)
        image = modality_values(stored_values(data, sample.instance), pixels, dtype)
    except SourceError as error:
        return _Row([Finding(error.code, link.dicom_path, error.message)])
    if empty := [kind for kind, n_pixels in n_inside.items() if n_pixels == 0]:
        paths = dict(link.contour_paths())
        message = "no pixel lies inside it, so its mask is empty. Draw it again."
        return _Row([Finding("mask-empty", paths[kind], message) for kind in empty])
    marks, findings = _check(sample, image, mask, n_inside) if options.qc else (None, [])
    manifest = _manifest_row(sample, data, image, mask, n_inside, options.contours)
    return _Row(findings, (image, mask), manifest, marks)


def _check(
    sample: Sample, image: Image, mask: LabelMap, n_inside: dict[Kind, int]
) -> tuple[_Marks, list[Finding]]:
    """Return what to keep of a row for the checks of all rows, and what this one shows."""
    paths = dict(sample.link.contour_paths())
    shapes: dict[Kind, Shape] = {}
    findings: list[Finding] = []
    for contour in sample.contours:
        shapes[contour.kind], found = check_contour(paths[contour.kind], contour.vertices)
        findings += found
    if len(shapes) == len(KINDS):
        n_outside = int(np.count_nonzero(mask)) - n_inside["o"]
        findings += check_overlap(paths["i"], n_inside["i"], n_outside)
    return _Marks(row_numbers(image, shapes), _alignment(sample, image)), findings


def _alignment(sample: Sample, image: Image) -> Alignment:
    if not sample.link.is_audited:
        return Alignment(math.nan, math.nan, NOT_AUDITED)
    contour = sample.contours[0]  # the inner one where there are both: its contrast is strong
    return measure(image, contour.vertices, contour.kind)


def _read_unchanged(root: Path, sample: Sample) -> bytes:
    """Return the DICOM file's bytes, which must still be the ones that were examined."""
    with open_source(root, sample.link.dicom_path, "image-changed") as (descriptor, _):
        if not unchanged_since(descriptor, sample.identity):
            raise ImageError("image-changed", "changed during the build. Build again.")
        return read_all(descriptor, sample.identity, "image-changed")


def _manifest_row(
    sample: Sample,
    data: bytes,
    image: Image,
    mask: LabelMap,
    n_inside: dict[Kind, int],
    kinds: tuple[Kind, ...],
) -> dict[str, str | int | float]:
    """Return the columns of one row that are known without the other rows."""
    link, instance = sample.link, sample.instance
    n_first = n_inside.get(kinds[0], 0)  # label 1, wherever it is drawn
    n_labelled = int(np.count_nonzero(mask)) if len(n_inside) > 1 else sum(n_inside.values())
    statistics = image_statistics(image)
    contours = {contour.kind: contour for contour in sample.contours}
    row: dict[str, str | int | float] = {
        "patient_id": link.patient_id,
        "original_id": link.original_id,
        "slice": link.slice,
        "instance_number": instance.instance_number,
        "sop_instance_uid": instance.sop_instance_uid,
        "series_instance_uid": instance.series_instance_uid,
        "dicom_path": link.dicom_path,
        "icontour_path": link.icontour_path,
        "ocontour_path": link.ocontour_path,
        "dicom_xxh3": xxhash.xxh3_128_hexdigest(data),
        "pixel_spacing_row": instance.pixel_spacing[0],
        "pixel_spacing_column": instance.pixel_spacing[1],
        "slice_location": instance.slice_location,
        "trigger_time": instance.trigger_time,
        "rescale_slope": instance.pixel_format.rescale_slope,
        "rescale_intercept": instance.pixel_format.rescale_intercept,
        "minimum": statistics.minimum,
        "maximum": statistics.maximum,
        "mean": statistics.mean,
        "std": statistics.std,
        "p01": statistics.p01,
        "p99": statistics.p99,
        "row_xxh3": _row_digest(sample, image, mask),
        "n_pixels_1": n_first,
        "n_pixels_2": n_labelled - n_first,
    }
    axes = "xyz"
    row |= {f"image_position_{axis}": instance.image_position[i] for i, axis in enumerate(axes)}
    for half, name in enumerate(("row", "column")):
        for i, axis in enumerate(axes):
            row[f"image_orientation_{name}_{axis}"] = instance.image_orientation[3 * half + i]
    for kind in ("i", "o"):
        contour = contours.get(kind)
        row[f"{kind}contour_xxh3"] = contour.xxh3 if contour else ""
        row[f"{kind}contour_area"] = polygon.area(contour.vertices) if contour else math.nan
    return row


def _row_digest(sample: Sample, image: Image, mask: LabelMap) -> int:
    digest = xxhash.xxh3_64(sample.link.patient_id.encode() + b"\0")
    digest.update(sample.link.slice.to_bytes(8, "little", signed=True))
    digest.update(image.data)
    digest.update(mask.data)
    return digest.intdigest()


def _columns(manifest: list[dict[str, str | int | float]]) -> Columns:
    """Return rows as columns: packed arrays, small on their way to the coordinator."""
    columns: Columns = {}
    for name, kind in file_format.MANIFEST.items():
        if manifest and name in manifest[0]:
            values = [row[name] for row in manifest]
            is_text = kind == file_format.STRING
            columns[name] = strings(list(map(str, values))) if is_text else np.array(values, kind)
    return columns
