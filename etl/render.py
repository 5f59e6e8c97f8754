"""Samples → rows in the file: pixels, masks, statistics, digests and checks of each row.

`render` runs in workers, on stretches of consecutive rows; no pixel goes from process to process.
"""

import functools
import math
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import xxhash

from etl.contours import polygon
from etl.contours.checks import lie_outside
from etl.contours.rasterise import Painted, bit_masks, label_maps
from etl.dicom.kept_tags import columns, kept_tags
from etl.dicom.meaning import UNIT_CHARACTERS
from etl.dicom.pixels import modality_values, padding_range, read_frame
from etl.errors import ImageError, SourceError
from etl.findings import Finding, Remark
from etl.geometry import SourceGrid
from etl.labels import LabelScheme
from etl.model import FileStamp, Image, Region, Sample
from etl.options import BuildOptions
from etl.output.row_writer import Plan, begin_writeback, open_rows, row_digest, strings, write_rows
from etl.quality.alignment import ALIGNMENT, NOT_AUDITED, Alignment, audited, measure
from etl.quality.drawing import Shape, check_overlap, check_regions, check_shared
from etl.quality.near_copies import NO_HASH, Cells, Hash, hashed_cells, image_hashes
from etl.quality.rows import SHAPES
from etl.quality.statistics import image_statistics
from etl.resampling.image import image_on_grid
from etl.resampling.placing import file_plane, share_cut
from etl.resampling.regions import clear_padding, padding_of, region_on_grid
from etl.sources.files import open_source, read_all
from etl.sources.source import Discovery
from etl.spool import Spool
from etl.workers import watchdog
from etl.workers.chunks import chunk_length, interleaved
from etl.workers.engine import Engine, Work
from etl.workers.progress import bar
from loader import format as file_format

ManifestTable: TypeAlias = dict[str, npt.NDArray[np.generic]]
_Checked: TypeAlias = tuple[Shape, list[Remark]]  # of a region

_PLACE: Final = (  # columns of a frame's position, then of its orientation
    *(f"image_position_{axis}" for axis in "xyz"),
    *(f"image_orientation_{half}_{axis}" for half in ("row", "column") for axis in "xyz"),
)
_MAX_VERTICES: Final = 1 << 17  # of contours that are rasterised together
_BLOCK_PARTS: Final = 256  # of some dozen rows each

# What the checks keep of each row until all rows are known.
MARKS: Final = np.dtype(
    [
        *(("image", "<u8"), ("hash", "<u8", (2,)), ("alignment", ALIGNMENT)),
        ("unit", f"S{UNIT_CHARACTERS}"),
    ]
)


@dataclass(frozen=True, slots=True)
class Rendered:
    """What one chunk of samples, or all of them, gave."""

    is_good: list[bool]  # by sample; a bad one has findings and no entry in the other three
    manifest: ManifestTable
    marks: npt.NDArray[np.void]  # of type MARKS; empty where nothing is checked
    shapes: npt.NDArray[np.void]  # of type SHAPES; `row` counts the good samples
    findings: list[Finding]


class KeptRows(Protocol):
    """Rows that an older file has."""

    def rendered(self, first: int, stop: int, plan: Plan, place: int) -> Rendered:
        """Write some of them from a place on, and return what `render` would give of them."""
        ...


def render_samples(
    engine: Engine,
    spool: Spool,
    found: Discovery,
    options: BuildOptions,
    plan: Plan,
    *,
    progress: bool,
    kept: KeptRows | None = None,
    note: Callable[[int, Rendered], None] | None = None,
) -> Rendered:
    """Write the rows of all samples and return their manifest columns.

    Parameters
    ----------
    kept : KeptRows, optional
        The rows whose samples are empty in the spool.
    note : callable, optional
        Called with the first row of each part and the part, when its rows are written.
    """
    parts = engine.run(_work(found, options, plan), spool.tasks(chunk_length(options)))
    if kept is not None:
        parts = interleaved(
            parts,
            lambda part: len(part.is_good),
            spool.is_kept().tolist(),
            lambda first, stop, place: kept.rendered(first, stop, plan, place),
        )
    with bar("2/2 pixels and masks", "pairs", len(spool), shown=progress) as shown:
        return gather(_shown(parts, shown, note))


def render_again(
    engine: Engine,
    spool: Spool,
    found: Discovery,
    options: BuildOptions,
    plan: Plan,
    without: Mapping[int, Collection[int]],
) -> Rendered:
    """Write some rows again, without some of their structures.

    Parameters
    ----------
    without : mapping of int to collection of int
        Row → codes of the structures that it is to lose, not all of them.
    """
    rows = sorted(without)
    tasks = (
        ([Sample.unpacked(packed).without(without[row]).packed()], row)
        for row, packed in zip(rows, spool.samples(rows), strict=True)
    )
    return gather(engine.run(_work(found, options, plan), tasks))


def _work(
    found: Discovery, options: BuildOptions, plan: Plan
) -> Work[tuple[list[bytes], int], Rendered]:
    return Work(
        run=functools.partial(render, found.root, found.scheme, options, plan),
        divide=lambda task: [([one], task[1] + place) for place, one in enumerate(task[0])],
        give_up=give_up,
        names=names,
    )


def _shown(
    parts: Iterator[Rendered],
    shown: Callable[[int], object],
    note: Callable[[int, Rendered], None] | None,
) -> Iterator[Rendered]:
    """Yield the parts; tell the bar the number of rows of each, and `note` what is written."""
    first = 0
    for part in parts:
        if note is not None:
            note(first, part)
        first += len(part.is_good)
        shown(len(part.is_good))
        yield part


def gather(parts: Iterable[Rendered]) -> Rendered:
    """Return all parts as one; their manifests are emptied.

    It joins the parts in blocks: many small arrays take twice the memory of their content.
    """
    rest = iter(parts)
    return _joined([_joined(some) for some in iter(lambda: list(islice(rest, _BLOCK_PARTS)), [])])


def _joined(parts: list[Rendered]) -> Rendered:
    """Return parts end to end, emptying their manifests column by column to save memory."""
    tables = [part.manifest for part in parts if part.manifest]
    columns = list(tables[0]) if tables else []
    n_rows = 0
    for part in parts:
        part.shapes["row"] += n_rows
        n_rows += sum(part.is_good)
    return Rendered(
        is_good=[good for part in parts for good in part.is_good],
        manifest={name: np.concatenate([table.pop(name) for table in tables]) for name in columns},
        marks=np.concatenate([np.empty(0, MARKS), *(part.marks for part in parts)]),
        shapes=np.concatenate([np.empty(0, SHAPES), *(part.shapes for part in parts)]),
        findings=[finding for part in parts for finding in part.findings],
    )


def render(
    root: Path,
    scheme: LabelScheme,
    options: BuildOptions,
    plan: Plan,
    task: tuple[list[bytes], int],
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
    files = _Files(root)
    with open_rows(plan) as file:
        for sample, painted, checked in _painted(packed, scheme, options, plan.mask_dtype):
            watchdog.next_file()
            row = _render_one(files, sample, painted, checked, scheme, options, plan.image_dtype)
            findings += row.findings
            if row.image is not None:
                # At once: memory that is free again for the next row is still in the cache.
                place = first_row + len(is_good)
                write_rows(file, plan, file_format.IMAGES, place, row.image)
                write_rows(file, plan, file_format.MASKS, place, painted.mask)
                good.append(row._replace(image=None))
            is_good.append(row.image is not None)
        for name in (file_format.IMAGES, file_format.MASKS):
            begin_writeback(file, plan, name, first_row, len(is_good))
    shapes = [
        (place, code, *shape)
        for place, row in enumerate(good)
        for code, shape in row.shapes.items()
    ]
    return Rendered(
        is_good=is_good,
        manifest=_columns([row.manifest for row in good], scheme, options),
        marks=_marks(good),
        shapes=np.array(shapes, SHAPES),
        findings=findings,
    )


def give_up(task: tuple[list[bytes], int], why: str) -> Rendered:
    """Return no row and one finding per sample that tells why it is given up."""
    links = [Sample.unpacked(one).link for one in task[0]]
    findings = [Finding("image-unreadable", link.frame.path, why, link.key) for link in links]
    nothing = np.empty(0, MARKS), np.empty(0, SHAPES)
    return Rendered([False] * len(findings), {}, *nothing, findings)


def names(task: tuple[list[bytes], int]) -> list[str]:
    """Return the DICOM paths of a task's samples."""
    return [Sample.unpacked(one).link.frame.path for one in task[0]]


def _painted(
    packed: list[bytes], scheme: LabelScheme, options: BuildOptions, mask_dtype: str
) -> Iterator[tuple[Sample, Painted, list[_Checked]]]:
    """Yield each sample with its mask, and what the checks of its regions found."""
    for samples in _groups(map(Sample.unpacked, packed)):
        drawn = [region for sample in samples for region in sample.regions]
        checked = iter(check_regions(drawn) if options.qc else ())
        masks = _masks(samples, scheme, options, mask_dtype)
        for sample, painted in zip(samples, masks, strict=True):
            yield sample, painted, list(islice(checked, len(sample.regions)))


def _masks(
    samples: Sequence[Sample], scheme: LabelScheme, options: BuildOptions, mask_dtype: str
) -> Iterator[Painted]:
    """Yield the mask of each sample."""
    size = options.rows, options.columns
    regions = [_regions(sample, options) for sample in samples]
    if options.masks == file_format.MASK_BITS:
        yield from bit_masks(regions, scheme, *size, options.rasterizer, mask_dtype)
        return
    drawn = None
    if options.not_drawn == "ignore":
        drawn = [sample.link.drawn for sample in samples]
    painted = label_maps(regions, scheme, *size, options.rasterizer, drawn)
    for sample, one in zip(samples, painted, strict=True):
        if sample.grid is not None and drawn is not None:
            clear_padding(one.mask, sample.grid)
        yield one


def _regions(sample: Sample, options: BuildOptions) -> Sequence[Region]:
    """Return a sample's regions in pixels of the file."""
    if sample.grid is None:
        return sample.regions
    return [region_on_grid(region, sample.grid, options) for region in sample.regions]


def _groups(samples: Iterable[Sample]) -> Iterator[list[Sample]]:
    """Yield samples whose contours are rasterised together: all, unless there are huge ones."""
    group: list[Sample] = []
    n_vertices = 0
    for sample in samples:
        group.append(sample)
        n_vertices += sum(region.n_vertices for region in sample.regions)
        if n_vertices > _MAX_VERTICES:
            yield group
            group, n_vertices = [], 0
    if group:
        yield group


class _Row(NamedTuple):
    """One row, or without an image the findings that say why it cannot be."""

    findings: list[Finding]
    image: Image | None = None
    manifest: Mapping[str, str | int | float] = {}  # never changed
    marks: tuple[int, Hash, Alignment, bytes] | None = None  # a row of MARKS but for its hash
    cells: Cells | None = None  # that its hash follows from
    shapes: Mapping[int, Shape] = {}  # by code


class _Content(NamedTuple):
    """The bytes of a DICOM file and their digest."""

    data: bytes
    xxh3: str


class _Files:
    """Reads DICOM files; a file of several frames once for frames that follow each other."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._key: tuple[str, FileStamp] | None = None
        self._content = _Content(b"", "")

    def read(self, sample: Sample) -> _Content:
        """Return a sample's DICOM file, which must still be the one that was examined."""
        path = sample.link.frame.path
        if self._key == (path, sample.stamp):
            return self._content
        with open_source(self._root, path, "image-changed") as (descriptor, stamp):
            if stamp != sample.stamp:
                raise ImageError("image-changed", "changed during the build. Build again.")
            data = read_all(descriptor, sample.stamp, "image-changed")
        content = _Content(data, xxhash.xxh3_128_hexdigest(data))
        if sample.instance.number_of_frames > 1:
            self._key, self._content = (path, sample.stamp), content
        return content


def _render_one(
    files: _Files,
    sample: Sample,
    painted: Painted,
    checked: Sequence[_Checked],
    scheme: LabelScheme,
    options: BuildOptions,
    dtype: str,
) -> _Row:
    link, pixels = sample.link, sample.instance.pixel_format
    try:
        content = files.read(sample)
        frame = read_frame(content.data, sample.instance)
        source = modality_values(frame.stored, pixels, dtype)
    except SourceError as error:
        return _Row([link.about_image(Remark(error.code, error.message))])
    empty = _empty(sample, painted, scheme, options)
    if any(finding.code == "mask-empty" for finding in empty):
        return _Row(empty)
    image = source
    if sample.grid is not None:
        size = options.rows, options.columns
        image = image_on_grid(source, sample.grid, *size, padding_range(pixels))
    manifest = _manifest_row(sample, content.xxh3, image, painted, scheme, options)
    warnings = [link.about_image(Remark(code, why)) for code, why in frame.warnings]
    warnings += empty
    if not options.qc:
        return _Row(warnings, image, manifest)
    shapes, findings = _check(sample, painted, checked, scheme, options)
    # Of the frame, where contours are as they were drawn, whatever becomes of its pixels.
    digest, alignment = xxhash.xxh3_64_intdigest(source.data), _alignment(sample, source, scheme)
    marks = digest, NO_HASH, alignment, sample.instance.unit.encode()
    return _Row(warnings + findings, image, manifest, marks, hashed_cells(image), shapes)


def _marks(rows: list[_Row]) -> npt.NDArray[np.void]:
    """Return the marks of rows, of type MARKS; empty where nothing is checked."""
    checked = [row for row in rows if row.marks]
    marks = np.array([row.marks for row in checked], MARKS)
    marks["hash"] = image_hashes([row.cells for row in checked])
    return marks


def _empty(
    sample: Sample, painted: Painted, scheme: LabelScheme, options: BuildOptions
) -> list[Finding]:
    """Return what is to be said of regions without a pixel: why the sample is no row, or a warning.

    A structure that is wholly cut off has none in the file, which is right; not so for all of them.
    Structure sets and segmentations have many structures on an image, which one that is too small
    for a pixel does not cost its row.
    """
    empty = {code for code, n_pixels in painted.n_inside.items() if n_pixels == 0}
    if empty and sample.grid is not None:
        cut = {code for code in empty if code in _wholly_cut(sample, options)}
        empty = empty if len(cut) == len(painted.n_inside) else empty - cut
    is_too_small = bool(sample.link.looked_for) and any(painted.n_inside.values())
    return _without_pixel(sample, empty, scheme, options, is_too_small=is_too_small)


def nothing_left(sample: Sample, scheme: LabelScheme, options: BuildOptions) -> list[Finding]:
    """Return why a sample is no row if `--fit` cuts off all that is drawn; before it is painted."""
    codes = {region.code for region in sample.regions}
    is_cut = bool(codes) and sample.grid is not None and _wholly_cut(sample, options) == codes
    return _without_pixel(sample, codes, scheme, options, is_too_small=False) if is_cut else []


def _wholly_cut(sample: Sample, options: BuildOptions) -> set[int]:
    """Return the structures of which the file shows no pixel, because `--fit` cuts them off."""
    return {
        region.code
        for region in sample.regions
        if sample.grid is not None and share_cut(region, sample.grid, options) == 1.0
    }


def _without_pixel(
    sample: Sample,
    empty: Container[int],
    scheme: LabelScheme,
    options: BuildOptions,
    *,
    is_too_small: bool,
) -> list[Finding]:
    link = sample.link
    message = "no pixel lies inside it, so its mask is empty. Draw it again."
    if sample.grid is not None:
        message = (
            f"no pixel of the {options.rows}x{options.columns} in the file lies inside it, so its "
            "mask is empty. Give a larger --fit, or a smaller --resample."
        )
    code = "mask-empty"
    if is_too_small:
        code = "structure-too-small"
        pixels = sample.instance.pixel_format
        empty = {
            region.code
            for region in sample.regions
            if region.code in empty
            and not (region.polygons and lie_outside(region.polygons, pixels.rows, pixels.columns))
        }  # contour-partly-outside has said so of the others
        message = "no pixel centre lies inside it, so that the mask shows none of it."
    return [
        link.about_annotation(scheme[one.code], Remark(code, message))
        for one in link.annotations
        if one.code in empty
    ]


def _check(
    sample: Sample,
    painted: Painted,
    checked: Sequence[_Checked],
    scheme: LabelScheme,
    options: BuildOptions,
) -> tuple[dict[int, Shape], list[Finding]]:
    """Return what to keep of the regions for the checks of all rows, and what they show."""
    link = sample.link
    shapes: dict[int, Shape] = {}
    findings: list[Finding] = []
    for region, (shape, remarks) in zip(sample.regions, checked, strict=True):
        code = region.code
        shapes[code] = shape if sample.grid is None else _moved(shape, sample.grid)
        findings += [link.about_annotation(scheme[code], remark) for remark in remarks]
    for inner, outer in scheme.nested:
        if (n_outside := painted.n_outside.get(inner.code)) is not None:
            remarks = check_overlap(outer, painted.n_inside[inner.code], n_outside)
            findings += [link.about_annotation(inner, remark) for remark in remarks]
    if painted.shared.of_two and options.masks == file_format.MASK_LABELS:
        names = {structure.code: structure.name for structure in scheme}
        remarks = check_shared(names, painted.n_inside, *painted.shared)
        findings += [link.about_image(remark) for remark in remarks]
    return shapes, findings


def _moved(shape: Shape, grid: SourceGrid) -> Shape:
    """Return a shape with its centre in pixels of the file."""
    ((x, y),) = grid.to_file(np.array([[shape.x, shape.y]])).tolist()
    return shape._replace(x=x, y=y)


def _alignment(sample: Sample, image: Image, scheme: LabelScheme) -> Alignment:
    link = sample.link
    if link.is_audited and (chosen := audited(sample.regions, scheme, link.key)) is not None:
        return measure(image, *chosen)
    return Alignment(math.nan, math.nan, NOT_AUDITED)


def _manifest_row(
    sample: Sample,
    xxh3: str,
    image: Image,
    painted: Painted,
    scheme: LabelScheme,
    options: BuildOptions,
) -> dict[str, str | int | float]:
    """Return the columns of one row that are known without the other rows."""
    link, instance, grid = sample.link, sample.instance, sample.grid
    padding = padding_range(instance.pixel_format)
    position, spacing = instance.image_position, instance.pixel_spacing
    beyond = None
    if grid is not None:
        position, spacing = file_plane(instance, grid, options)
        beyond = padding_of(grid, *image.shape)
    statistics = image_statistics(image, padding, beyond)
    row: dict[str, str | int | float] = {
        "patient_id": link.key.patient_id,
        "original_id": link.original_id,
        "series": link.key.series,
        "slice": link.key.slice,
        "frame_number": link.key.frame_number,
        "instance_number": instance.instance_number,
        "sop_instance_uid": instance.sop_instance_uid,
        "series_instance_uid": instance.series_instance_uid,
        "transfer_syntax_uid": instance.transfer_syntax_uid,
        "dicom_path": link.frame.path,
        "dicom_xxh3": xxh3,
        "pixel_spacing_row": spacing[0],
        "pixel_spacing_column": spacing[1],
        "slice_location": instance.slice_location,
        "trigger_time": instance.trigger_time,
        "dimension_indices": "\\".join(map(str, instance.dimension_indices)),
        "stack_id": instance.stack_id,
        "in_stack_position": instance.in_stack_position,
        "temporal_position": instance.temporal_position,
        "rescale_slope": instance.pixel_format.rescale_slope,
        "rescale_intercept": instance.pixel_format.rescale_intercept,
        "minimum": statistics.minimum,
        "maximum": statistics.maximum,
        "mean": statistics.mean,
        "std": statistics.std,
        "p01": statistics.p01,
        "p99": statistics.p99,
        "n_padding": statistics.n_padding,
        "padding_minimum": statistics.padding_minimum,
        "padding_maximum": statistics.padding_maximum,
        "n_overlapping": painted.shared.n_pixels,
        "row_xxh3": row_digest(link.key, image, painted.mask),
    }
    row.update(zip(_PLACE, position + instance.image_orientation, strict=True))
    if grid is not None:
        row.update((f"source_{name}", value) for name, value in grid._asdict().items())
    if instance.kept:
        row.update(zip(kept_columns(options), instance.kept, strict=True))
    return row | _structure_columns(sample, painted, scheme, options)


def kept_columns(options: BuildOptions) -> dict[str, str]:
    """Return the columns of the attributes that the options keep, with their types."""
    return columns(kept_tags(options.keep_tags, anyway=options.keep_tags_anyway))


def _structure_columns(
    sample: Sample, painted: Painted, scheme: LabelScheme, options: BuildOptions
) -> dict[str, str | int | float]:
    columns = scheme.absent.copy()
    columns.update((f"drawn_{code}", 1) for code in sample.link.drawn)
    # Nothing is painted over the last structure drawn, so that its pixels are counted already.
    top = max((region.code for region in sample.regions), key=scheme.places.__getitem__, default=0)
    is_whole = options.not_drawn == "background"
    has_bits = options.masks == file_format.MASK_BITS
    for annotation, region in zip(sample.link.annotations, sample.regions, strict=True):
        code, stem = region.code, scheme[region.code].stem
        columns[f"{stem}_path"] = annotation.path
        columns[f"{stem}_xxh3"] = region.xxh3
        columns[f"{stem}_area"] = _area(region, sample.grid)
        is_counted = has_bits or (is_whole and code == top)
        columns[f"n_pixels_{code}"] = (
            painted.n_inside[code] if is_counted else int(np.count_nonzero(painted.mask == code))
        )
    return columns


def _area(region: Region, grid: SourceGrid | None) -> float:
    """Return the area of a region in square pixels of the file, cut off or not.

    That is of its polygons, or of its mask's pixels.
    """
    if region.mask is not None:
        area = float(np.count_nonzero(region.mask))
        return area if grid is None else area / (grid.row_scale * grid.column_scale)
    polygons = region.polygons if grid is None else tuple(map(grid.to_file, region.polygons))
    if len(polygons) == 1:
        return polygon.area(polygons[0])
    return sum(polygon.nested_areas(polygons))


def _columns(
    manifest: list[Mapping[str, str | int | float]], scheme: LabelScheme, options: BuildOptions
) -> ManifestTable:
    """Return rows as columns: packed arrays, small on their way to the coordinator."""
    columns: ManifestTable = {}
    kinds = file_format.manifest_columns(scheme, has_source_grid=True) | kept_columns(options)
    for name, kind in kinds.items():
        if manifest and name in manifest[0]:
            values = [row[name] for row in manifest]
            is_text = kind == file_format.STRING
            columns[name] = strings(list(map(str, values))) if is_text else np.array(values, kind)
    return columns
