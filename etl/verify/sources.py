"""A built file against the input it was built from.

`compare_row` and `rebuild_row` run in workers.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import xxhash

from etl.errors import EtlError, SourceError, limited
from etl.options import BuildOptions
from etl.sources import layouts
from etl.sources.source import Discovery, Index
from etl.verify import reference
from etl.verify.problem import Problem
from etl.verify.rows import grid_of, key_of, place_of
from loader import Dataset, open_dataset
from loader.format import TAG_PREFIX, Attribute, Structure

_NOT_RECORDED = {"split_file"}
_ROUNDING: Final = 1e-9  # of numbers that other code computes in another order


def find_sources(dataset: Dataset, data: Path) -> Discovery:
    """Return what the input holds now, found with the options that the file records.

    Raises
    ------
    EtlError
        No such input, or options that this version does not know.
    """
    recorded = dict(dataset.attributes[Attribute.OPTIONS])
    known = BuildOptions.__dataclass_fields__.keys() - _NOT_RECORDED
    options = {name: _frozen(recorded[name]) for name in known & recorded.keys()}
    try:
        build_options = BuildOptions(**options)  # type: ignore[arg-type]
        with limited(build_options.limits):
            source, _ = layouts.choose(data, build_options.layout)
            build_options = layouts.settle(source, build_options)
            found = source.discover(data, build_options)
            if source.resolve is None or source.index is None:
                return found
            return source.resolve(found, _indexed(source.index, found), build_options)
    except (TypeError, ValueError) as error:
        raise EtlError(
            f"Sources not comparable: {dataset.path}: its options are not those of this version "
            f"({error}). Build it again."
        ) from error


def _indexed(index: Index, found: Discovery) -> dict[str, object]:
    indexed: dict[str, object] = {}
    for path in found.to_index:
        try:
            indexed[path] = index(found.root, path)
        except SourceError as error:
            indexed[path] = error
    return indexed


def new_sources(dataset: Dataset, found: Discovery) -> Iterator[Problem]:
    """Yield the images that could be rows by their names, and are neither rows nor findings."""
    listed = {*dataset.manifest["dicom_path"].tolist(), *dataset.findings["path"].tolist()}
    for link in found.links:
        paths = {link.frame.path, *(annotation.path for annotation in link.annotations)}
        if not paths & listed:
            yield Problem(link.frame.path, "is new: the file has no row and no finding of it.")


def compare_rows(path: Path, root: Path, stretch: tuple[int, int]) -> list[Problem]:
    """Return the sources of some rows that are missing or have changed."""
    dataset = open_dataset(path)
    manifest = dataset.manifest
    stems = ["dicom", *(structure.stem for structure in dataset.structures)]
    problems = []
    for row in range(*stretch):
        for stem in stems:
            source, expected = (manifest[f"{stem}_{what}"][row] for what in ("path", "xxh3"))
            if not source:
                continue
            try:
                digest = xxhash.xxh3_128_hexdigest((root / str(source)).read_bytes())
            except OSError as error:
                why = (error.strerror or "input/output error").lower()
                problems.append(Problem(str(source), f"{place_of(dataset, row)}: {why}."))
                continue
            if digest != expected:
                message = f"{place_of(dataset, row)}: has changed since the build."
                problems.append(Problem(str(source), message))
    return problems


def rebuild_rows(path: Path, root: Path, stretch: tuple[int, int]) -> list[Problem]:
    """Return the rows whose image or mask differs from what `reference` makes of their sources."""
    dataset = open_dataset(path)
    return [problem for row in range(*stretch) for problem in _rebuild_row(dataset, root, row)]


def _rebuild_row(dataset: Dataset, root: Path, row: int) -> Iterator[Problem]:
    options, manifest = dataset.attributes[Attribute.OPTIONS], dataset.manifest
    image = dataset.images[row]
    rows, columns = image.shape
    place = place_of(dataset, row)
    try:
        frame = key_of(dataset, row).frame_number
        path = root / str(manifest["dicom_path"][row])
        expected = reference.modality_image(path, frame)
        yield from _tag_problems(dataset, path, row, place)
        drawn = {
            one.code: _drawn(dataset, root, row, one, expected.shape)
            for one in dataset.structures
            if str(manifest[f"{one.stem}_path"][row])
        }
        rule, grid, tolerance = str(options["rasterizer"]), None, 0.0
        if (recorded := grid_of(dataset, row)) is not None:
            spacing = reference.spacing_of(path, frame) if options.get("resample") else (1.0, 1.0)
            drawings, size = list(drawn.values()), (rows, columns)
            placed = reference.placed(expected.shape, spacing, drawings, size, options)
            yield from _grid_problems(dataset, row, placed, place)
            # As recorded, to the last digit: the order of a sum must decide no pixel.
            grid = (
                reference.Axis(recorded.rows, recorded.row_offset, recorded.row_scale),
                reference.Axis(recorded.columns, recorded.column_offset, recorded.column_scale),
            )
            if options.get("resample"):
                tolerance = reference.tolerance(expected, image.dtype)
            expected = reference.regridded(expected, grid, size, _padding(dataset, row))
        masks = [
            (code, reference.painted(one, grid, (rows, columns), rule))
            for code, one in drawn.items()
        ]
    except Exception as error:  # noqa: BLE001  whatever other code meets in these files
        yield Problem(place, f"cannot be built again ({type(error).__name__}).")
        return
    if n_pixels := _n_other(expected, image, tolerance):
        yield Problem(place, f"{n_pixels} pixels of the image differ from its source.")
    yield from _mask_problems(dataset, row, masks, grid)


def _mask_problems(
    dataset: Dataset,
    row: int,
    masks: list[tuple[int, npt.NDArray[np.bool_]]],
    grid: reference.Grid | None,
) -> Iterator[Problem]:
    """Yield what a row's mask, and the count of its shared pixels, have otherwise."""
    options, manifest = dataset.attributes[Attribute.OPTIONS], dataset.manifest
    mask, place = dataset.masks[row], place_of(dataset, row)
    by_name = {one.name: one.code for one in dataset.structures}
    parents = {one.code: by_name.get(one.inside_of, 0) for one in dataset.structures}
    if dataset.has_bits:
        bits = {one.code: one.bit or 0 for one in dataset.structures}
        made = reference.bit_mask([(bits[code], one) for code, one in masks], *mask.shape)
    else:
        made = reference.label_map(masks, *mask.shape)
    if options.get("not_drawn") == "ignore":
        made = reference.with_ignored(made, {code for code, _ in masks}, parents)
        if grid is not None:
            made[reference.beyond(grid, mask.shape)] = 0
    if n_pixels := int((made != mask).sum()):
        yield Problem(place, f"{n_pixels} pixels of the mask differ from its contours.")
    if "n_overlapping" not in manifest.stored:
        return
    written, n_shared = int(manifest["n_overlapping"][row]), reference.n_overlapping(masks, parents)
    if written != n_shared:
        message = f"n_overlapping is {written} in the manifest, {n_shared} in its contours."
        yield Problem(place, message)


def _tag_problems(dataset: Dataset, path: Path, row: int, place: str) -> Iterator[Problem]:
    """Yield the kept attributes that the image has otherwise."""
    frame = key_of(dataset, row).frame_number
    for name, values in dataset.manifest.items():
        if name.startswith(TAG_PREFIX):
            value = reference.attribute(path, frame, name.removeprefix(TAG_PREFIX))
            if not np.array_equal([values[row]], [value], equal_nan=isinstance(value, float)):
                yield Problem(place, f"{name} differs from its source.")


def _n_other(
    expected: npt.NDArray[np.float64], image: npt.NDArray[np.generic], tolerance: float
) -> int:
    """Return how many pixels are other than expected; all where the size is."""
    if expected.shape != image.shape:
        return image.size
    if tolerance:
        return int((np.abs(expected - image.astype(np.float64)) > tolerance).sum())
    return int((expected.astype(image.dtype) != image).sum())


def _grid_problems(
    dataset: Dataset, row: int, grid: reference.Grid, place: str
) -> Iterator[Problem]:
    """Yield the columns that say something else of a row's place in its frame."""
    for name, (length, offset, scale) in zip(("row", "column"), grid, strict=True):
        for column, expected in (
            (f"source_{name}s", length),
            (f"source_{name}_offset", offset),
            (f"source_{name}_scale", scale),
        ):
            found = float(dataset.manifest[column][row])
            if not abs(found - expected) <= _ROUNDING * max(1.0, abs(expected)):
                yield Problem(place, f"{column} is {found!r}, expected {expected!r}.")


def _padding(dataset: Dataset, row: int) -> tuple[float, float] | None:
    low, high = (float(dataset.manifest[f"padding_{end}"][row]) for end in ("minimum", "maximum"))
    return None if math.isnan(low) else (low, high)


def _drawn(
    dataset: Dataset, root: Path, row: int, structure: Structure, size: tuple[int, ...]
) -> reference.Drawn:
    """Return what `reference` reads of one structure's annotation: polygons, or a mask."""
    options, manifest = dataset.attributes[Attribute.OPTIONS], dataset.manifest
    rows, columns = size
    source = root / str(manifest[f"{structure.stem}_path"][row])
    image = root / str(manifest["dicom_path"][row])
    frame = key_of(dataset, row).frame_number
    names = set(structure.source_codes)
    if reference.is_segmentation(source):
        threshold = float(str(options["segment_threshold"]))
        return reference.segment_mask(source, names, image, frame, threshold)
    if reference.is_structure_set(source):
        tolerance = float(str(options["plane_tolerance"]))
        polygons = reference.structure_polygons(source, names, image, frame, root, tolerance)
    else:
        text = source.read_text(encoding="ascii")
        polygons = reference.polygons_of(text, int(options["contour_origin"]))
        steps = tuple(map(str, options.get("contour_transform", ())))
        polygons = reference.transformed(polygons, steps, rows, columns, image, frame)
    return polygons


def _frozen(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value
