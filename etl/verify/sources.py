"""A built file against the input it was built from.

`compare_row` and `rebuild_row` run in workers.
"""

import math
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from etl.errors import EtlError, SourceError, limited
from etl.options import BuildOptions
from etl.sources import layouts
from etl.sources.files import FileBytes, open_source
from etl.sources.source import Discovery, Index
from etl.verify import reference
from etl.verify.problem import Problem
from etl.verify.rows import grid_of, key_of, place_of
from loader import Dataset, open_dataset
from loader.format import TAG_PREFIX, Attribute, Structure

_NOT_RECORDED = {"split_file"}
_BARE: Final = "image-no-contour"
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


def changed_links(dataset: Dataset, found: Discovery) -> Iterator[Problem]:
    """Yield what the input links otherwise than the file: new sources, other ones, lost rows.

    `compare_rows` tells which files of rows are missing or have changed. Of sources that the build
    could not use the file has no digest: nobody can tell whether these have changed.
    """
    known, rows, told = _Known.of(dataset, found.root), _rows_by_frame(dataset), set[Problem]()
    names = {one.code: one.name for one in found.scheme}
    for link in found.links:
        row = rows.pop((link.key.patient_id, link.frame.path, link.key.frame_number), None)
        now = {names[one.code]: one.path for one in link.annotations}
        problems = known.new(link.frame.path, now) if row is None else known.other(row, now)
        for problem in problems:
            # Several structures or frames may be in one file.
            if problem not in told:
                yield problem
            told.add(problem)
    for row in sorted(rows.values()):
        paths = [str(dataset.manifest["dicom_path"][row]), *known.drawings(row).values()]
        if all(os.path.lexists(found.root / path) for path in paths):
            place = place_of(dataset, row)
            yield Problem(paths[0], f"{place}: DATA no longer links it with what is drawn on it.")


def _rows_by_frame(dataset: Dataset) -> dict[tuple[str, str, int], int]:
    """Return the row of each frame of each patient."""
    manifest, n_rows = dataset.manifest, len(dataset)
    frames = manifest["frame_number"].tolist() if "frame_number" in manifest else [1] * n_rows
    columns = (manifest[name].tolist() for name in ("patient_id", "dicom_path"))
    return {frame: row for row, frame in enumerate(zip(*columns, frames, strict=True))}


@dataclass(frozen=True, slots=True)
class _Known:
    """The sources that a file has rows or findings of.

    Attributes
    ----------
    dataset : Dataset
    root : Path
        Of the input.
    paths : set of str
        All of them.
    bare : set of str
        Images of which the file says that nothing is drawn on them, and nothing else.
    """

    dataset: Dataset
    root: Path
    paths: set[str]
    bare: set[str]

    @classmethod
    def of(cls, dataset: Dataset, root: Path) -> "_Known":
        """Return those of a file."""
        codes: dict[str, set[str]] = {}
        columns = (dataset.findings[name].tolist() for name in ("path", "code"))
        for path, code in zip(*columns, strict=True):
            codes.setdefault(path, set()).add(code)
        names = ["dicom_path", *(f"{one.stem}_path" for one in dataset.structures)]
        paths = set(codes).union(*(dataset.manifest[name].tolist() for name in names))
        return cls(dataset, root, paths, {one for one in codes if codes[one] == {_BARE}})

    def drawings(self, row: int) -> dict[str, str]:
        """Return the file of each structure that is drawn in a row, by its name."""
        manifest = self.dataset.manifest
        paths = {
            one.name: str(manifest[f"{one.stem}_path"][row]) for one in self.dataset.structures
        }
        return {name: path for name, path in paths.items() if path}

    def new(self, image: str, now: Mapping[str, str]) -> Iterator[Problem]:
        """Yield what is new where the input links an image that is no row."""
        if not self.paths & {image, *now.values()}:
            yield Problem(image, "is new: the file has no row and no finding of it.")
        elif image in self.bare:  # else the build may have left it out for another reason
            for path in now.values():
                if path not in self.paths:
                    yield Problem(path, f"is new: in the file, nothing is drawn on {image}.")

    def other(self, row: int, now: Mapping[str, str]) -> Iterator[Problem]:
        """Yield what is drawn in a row now and was not, and the reverse."""
        before, place = self.drawings(row), place_of(self.dataset, row)
        for name, path in now.items():
            if name in before and before[name] != path:
                yield Problem(path, f"{place}: takes the place of {before[name]}.")
            elif name not in before and path not in self.paths:
                yield Problem(path, f"{place}: is new: the row was made without it.")
        for name, path in before.items():
            if name not in now and os.path.lexists(self.root / path):
                yield Problem(path, f"{place}: DATA no longer links it with its image.")


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
                digest = _digest(root, str(source))
            except SourceError as error:
                message = f"{place_of(dataset, row)}: {error.message}"
                problems.append(Problem(str(source), message))
                continue
            if digest != expected:
                message = f"{place_of(dataset, row)}: has changed since the build."
                problems.append(Problem(str(source), message))
    return problems


def _digest(root: Path, source: str) -> str:
    """Return the XXH3-128 of a source; it is read in blocks, whatever has become of it."""
    code = "image-unreadable"
    with open_source(root, source, code) as (descriptor, stamp):
        return FileBytes(root, source, stamp, code, descriptor).digest()


def rebuild_rows(path: Path, root: Path, stretch: tuple[int, int]) -> list[Problem]:
    """Return the rows whose image or mask differs from what `reference` makes of their sources."""
    dataset = open_dataset(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of headers: the build has told what matters
        return [problem for row in range(*stretch) for problem in _rebuild_row(dataset, root, row)]


def _rebuild_row(dataset: Dataset, root: Path, row: int) -> Iterator[Problem]:
    options, manifest = dataset.attributes[Attribute.OPTIONS], dataset.manifest
    image = dataset.images[row]
    rows, columns = image.shape
    place = place_of(dataset, row)
    try:
        _require_regular(dataset, root, row)
        frame = key_of(dataset, row).frame_number
        path = root / str(manifest["dicom_path"][row])
        expected = reference.modality_image(path, frame)
        yield from _tag_problems(dataset, path, row, place)
        drawn = {
            one.code: _drawn(dataset, root, row, one, source, expected.shape)
            for one in dataset.structures
            if (source := str(manifest[f"{one.stem}_path"][row]))
        }
        rule, grid, tolerance = str(options["rasterizer"]), None, 0.0
        if (recorded := grid_of(dataset, row)) is not None:
            spacing = reference.spacing_of(path, frame) if options.get("resample") else (1.0, 1.0)
            drawings, size = list(drawn.values()), (rows, columns)
            if options.get("fit_about") == "structures":
                drawings += _lost(dataset, root, row, expected.shape)
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


def _require_regular(dataset: Dataset, root: Path, row: int) -> None:
    """Open each source of a row and close it: `reference` would wait for ever for a pipe."""
    for stem in ("dicom", *(structure.stem for structure in dataset.structures)):
        if source := str(dataset.manifest[f"{stem}_path"][row]):
            with open_source(root, source, "image-unreadable"):
                pass


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
        # A structure set or segmentation tells of all images of its series what is not on them.
        known = {code for code in parents if manifest[f"drawn_{code}"][row]}
        made = reference.with_ignored(made, known, parents)
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


def _lost(
    dataset: Dataset, root: Path, row: int, size: tuple[int, ...]
) -> Iterator[reference.Drawn]:
    """Yield what a row has lost for a finding: it had its place before that was known."""
    findings, by_code = dataset.findings, {one.code: one for one in dataset.structures}
    for place in np.flatnonzero(findings["row"] == row).tolist():
        code, message = (str(findings[name][place]) for name in ("code", "message"))
        if code == "structure-excluded" and "by --exclude-flagged " in message:
            source, structure = str(findings["path"][place]), by_code[findings["label"][place]]
            yield _drawn(dataset, root, row, structure, source, size)


def _drawn(
    dataset: Dataset,
    root: Path,
    row: int,
    structure: Structure,
    path: str,
    size: tuple[int, ...],
) -> reference.Drawn:
    """Return what `reference` reads of one structure's annotation: polygons, or a mask."""
    options, manifest = dataset.attributes[Attribute.OPTIONS], dataset.manifest
    rows, columns = size
    source = root / path
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
