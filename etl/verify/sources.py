"""A built file against the input it was built from.

`compare_row` and `rebuild_row` run in workers.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from etl.errors import EtlError, SourceError
from etl.options import BuildOptions
from etl.sources import layouts
from etl.sources.source import Discovery, Index
from etl.verify import reference
from etl.verify.problem import Problem
from etl.verify.rows import key_of, place_of
from loader import Dataset, open_dataset
from loader.format import Attribute, Structure

_NOT_RECORDED = {"split_file"}


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
    image, mask = dataset[row]
    rows, columns = image.shape
    place = place_of(dataset, row)
    try:
        frame = key_of(dataset, row).frame_number
        expected = reference.modality_image(root / str(manifest["dicom_path"][row]), frame)
        drawn = [one for one in dataset.structures if str(manifest[f"{one.stem}_path"][row])]
        masks = [(one.code, _rebuilt_mask(dataset, root, row, one)) for one in drawn]
    except Exception as error:  # noqa: BLE001  whatever other code meets in these files
        yield Problem(place, f"cannot be built again ({type(error).__name__}).")
        return
    if expected.shape != image.shape or not np.array_equal(expected.astype(image.dtype), image):
        n_pixels = int((expected.astype(image.dtype) != image).sum())
        yield Problem(place, f"{n_pixels} pixels of the image differ from its source.")
    names = {one.name: one.code for one in dataset.structures}
    parents = {one.code: names.get(one.inside_of, 0) for one in dataset.structures}
    if dataset.has_bits:
        bits = [one.bit or 0 for one in drawn]
        made = reference.bit_mask(
            list(zip(bits, (m for _, m in masks), strict=True)), rows, columns
        )
    else:
        made = reference.label_map(masks, rows, columns)
    if options.get("not_drawn") == "ignore":
        made = reference.with_ignored(made, {code for code, _ in masks}, parents)
    if not np.array_equal(made, mask):
        n_pixels = int((made != mask).sum())
        yield Problem(place, f"{n_pixels} pixels of the mask differ from its contours.")
    if "n_overlapping" in manifest.stored:
        written, n_pixels = (
            int(manifest["n_overlapping"][row]),
            reference.n_overlapping(masks, parents),
        )
        if written != n_pixels:
            message = f"n_overlapping is {written} in the manifest, {n_pixels} in its contours."
            yield Problem(place, message)


def _rebuilt_mask(
    dataset: Dataset, root: Path, row: int, structure: Structure
) -> npt.NDArray[np.bool_]:
    """Return what `reference` makes of one structure's annotation."""
    options, manifest = dataset.attributes[Attribute.OPTIONS], dataset.manifest
    rows, columns = dataset.images.shape[1:]
    source = root / str(manifest[f"{structure.stem}_path"][row])
    image = root / str(manifest["dicom_path"][row])
    frame = key_of(dataset, row).frame_number
    names = set(structure.source_codes)
    if reference.is_segmentation(source):
        threshold = float(str(options["segment_threshold"]))
        return reference.segment_mask(source, names, image, frame, threshold)
    if reference.is_structure_set(source):
        uids = manifest["sop_instance_uid"]
        others = set(uids.tolist()) - {str(uids[row])}
        tolerance = float(str(options["plane_tolerance"]))
        polygons = reference.structure_polygons(source, names, image, frame, others, tolerance)
    else:
        text = source.read_text(encoding="ascii")
        polygons = reference.polygons_of(text, int(options["contour_origin"]))
        steps = tuple(map(str, options.get("contour_transform", ())))
        polygons = reference.transformed(polygons, steps, rows, columns, image, frame)
    return reference.mask_of(polygons, rows, columns, str(options["rasterizer"]))


def _frozen(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value
