"""Samples → rows in the file: pixels, masks, statistics and digests.

Runs in workers, on stretches of consecutive rows; no pixel goes from process to process.
"""

import math
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import xxhash

from etl import polygon
from etl.errors import ImageError, SourceError
from etl.files import open_source, read_all, unchanged_since
from etl.model import BuildOptions, Finding, Image, LabelMap, Sample
from etl.parse_dicom import modality_values, stored_values
from etl.rasterise import label_map
from etl.rows import Plan, strings, write_rows
from etl.statistics import image_statistics
from loader import layout

Columns: TypeAlias = dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class Rendered:
    """What one chunk of samples gave."""

    is_good: list[bool]  # by sample; a bad one has findings and no entry in the manifest
    manifest: Columns
    findings: list[Finding]


def render(
    root: Path, options: BuildOptions, plan: Plan, task: tuple[list[bytes], int]
) -> Rendered:
    """Write the rows of consecutive samples and return their manifest columns.

    Parameters
    ----------
    task : (list of bytes, int)
        Consecutive samples, pickled as `examine` gave them, and the row of the first.

    Raises
    ------
    OSError
        The rows cannot be written; unlike a bad source, this ends the run.
    """
    pickled, first_row = task
    samples = map(pickle.loads, pickled)  # our own, from `examine`
    rows = [_render_one(root, sample, options, plan.image_dtype) for sample in samples]
    hole = np.zeros((options.rows, options.columns), plan.image_dtype)
    # Bad rows are filled too, to keep the place of the others; they are taken out at the end.
    images = [row.image if isinstance(row, _Row) else hole for row in rows]
    masks = [row.mask if isinstance(row, _Row) else hole.astype(np.uint8) for row in rows]
    write_rows(plan, layout.IMAGES, first_row, images)
    write_rows(plan, layout.MASKS, first_row, masks)
    return Rendered(
        is_good=[isinstance(row, _Row) for row in rows],
        manifest=_columns([row.manifest for row in rows if isinstance(row, _Row)]),
        findings=[finding for row in rows if not isinstance(row, _Row) for finding in row],
    )


def lost(task: tuple[list[bytes], int]) -> Rendered:
    """Return what stands for rows on which process after process died."""
    why = "the process that rendered it died, three times. Look at the file; is memory short?"
    samples: list[Sample] = list(map(pickle.loads, task[0]))
    findings = [Finding("image-unreadable", sample.link.dicom_path, why) for sample in samples]
    return Rendered([False] * len(samples), {}, findings)


def names(task: tuple[list[bytes], int]) -> list[str]:
    """Return the DICOM paths of a task's samples."""
    samples: list[Sample] = list(map(pickle.loads, task[0]))
    return [sample.link.dicom_path for sample in samples]


class _Row(NamedTuple):
    image: Image
    mask: LabelMap
    manifest: dict[str, str | int | float]


def _render_one(
    root: Path, sample: Sample, options: BuildOptions, dtype: str
) -> _Row | list[Finding]:
    """Return one row, or the findings that say why it cannot be."""
    link, pixels = sample.link, sample.instance.pixel_format
    try:
        data = _read_unchanged(root, sample)
        image = modality_values(stored_values(data, pixels), pixels, dtype)
    except SourceError as error:
        return [Finding(error.code, link.dicom_path, error.message)]
    mask, empty = label_map(
        sample.contours, options.contours, options.rows, options.columns, options.rasterizer
    )
    if empty:
        paths = dict(link.contour_paths())
        message = "no pixel lies inside it, so its mask is empty. Draw it again."
        return [Finding("mask-empty", paths[kind], message) for kind in empty]
    return _Row(image, mask, _manifest_row(sample, data, image, mask))


def _read_unchanged(root: Path, sample: Sample) -> bytes:
    """Return the DICOM file's bytes, which must still be the ones that were examined."""
    with open_source(root, sample.link.dicom_path, "image-changed") as (descriptor, _):
        if not unchanged_since(descriptor, sample.identity):
            raise ImageError("image-changed", "changed during the build. Build again.")
        return read_all(descriptor, sample.identity, "image-changed")


def _manifest_row(
    sample: Sample, data: bytes, image: Image, mask: LabelMap
) -> dict[str, str | int | float]:
    """Return the columns of one row that are known without the other rows."""
    link, instance = sample.link, sample.instance
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
    }
    row |= {f"n_pixels_{code}": int(np.count_nonzero(mask == code)) for code in (1, 2)}
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
    for name, kind in layout.MANIFEST.items():
        if manifest and name in manifest[0]:
            values = [row[name] for row in manifest]
            is_text = kind == layout.STRING
            columns[name] = strings(list(map(str, values))) if is_text else np.array(values, kind)
    return columns
