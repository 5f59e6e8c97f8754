"""Links → samples: everything that can be checked without decoding pixels.

`examine` and `index_files` run in workers, on stretches of the list of links.
"""

import functools
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Protocol

import numpy as np
import xxhash

from etl.contours import checks
from etl.dicom.kept_tags import kept_tags
from etl.dicom.pixels import modality_range
from etl.errors import SourceError
from etl.findings import Finding, Remark
from etl.labels import LabelScheme
from etl.model import (
    BASICS,
    EMPTY_RANGE,
    Examined,
    FileStamp,
    Instance,
    Link,
    Region,
    Sample,
    Vertices,
)
from etl.options import BuildOptions
from etl.resampling.placing import check_cut, place, resampled_size
from etl.sources.dicom_file import read_header
from etl.sources.source import Discovery, Index, ReadRegion, Source
from etl.spool import Spool
from etl.workers import watchdog
from etl.workers.chunks import chunks, interleaved, runs
from etl.workers.engine import Engine, Work
from etl.workers.progress import bar


def index_headers(
    engine: Engine, source: Source, found: Discovery, options: BuildOptions, *, progress: bool
) -> Discovery:
    """Return the discovery with its final links; reads headers where the source wants them."""
    if source.resolve is None or source.index is None:
        return found
    if not found.to_index:
        return source.resolve(found, {}, options)
    work: Work[Sequence[str], list[object]] = Work(
        run=functools.partial(index_files, found.root, source.index),
        divide=lambda paths: [[path] for path in paths],
        give_up=lambda paths, why: [SourceError("image-unreadable", why) for _ in paths],
        names=list,
    )
    indexed: list[object] = []
    with bar("reading headers", "files", len(found.to_index), shown=progress) as shown:
        for part in engine.run(work, chunks(found.to_index, options)):
            indexed += part
            shown(len(part))
    return source.resolve(found, dict(zip(found.to_index, indexed, strict=True)), options)


def choose_size(
    engine: Engine, source: Source, found: Discovery, options: BuildOptions, *, progress: bool
) -> BuildOptions:
    """Return the options with the size that most accepted images have, where that is wanted.

    All headers and annotations are examined once more for it.
    """
    if options.size != "most":
        return options
    work: Work[Sequence[Link], list[tuple[int, int]]] = Work(
        run=functools.partial(
            accepted_sizes, found.root, source.read_region, found.scheme, options
        ),
        divide=lambda links: [[link] for link in links],
        give_up=lambda _links, _why: [],
        names=lambda links: [link.frame.path for link in links],
    )
    sizes: Counter[tuple[int, int]] = Counter()
    with bar("sizes", "pairs", len(found.links), shown=progress) as shown:
        for part in engine.run(work, chunks(found.links, options)):
            sizes.update(part)
            shown(len(part))
    if not sizes:
        return options
    rows, columns = max(sizes, key=lambda size: (sizes[size], size[0] * size[1], size[0]))
    return replace(options, rows=rows, columns=columns)


class KeptLinks(Protocol):
    """Links that an older file has rows of."""

    @property
    def is_kept(self) -> Sequence[bool]:
        """Which of all links they are."""
        ...

    def examined(self, first: int, stop: int) -> Examined:
        """Return what `examine` would give of some of them."""
        ...


def examine_links(
    engine: Engine,
    source: Source,
    found: Discovery,
    options: BuildOptions,
    spool: Spool,
    *,
    progress: bool,
    kept: KeptLinks | None = None,
) -> None:
    """Put the samples that the links give, and the findings on them, into the spool.

    The links are emptied: what is needed of them is in the spool.

    Parameters
    ----------
    kept : KeptLinks, optional
        Links that need no examination.
    """
    work: Work[Sequence[Link], Examined] = Work(
        run=functools.partial(examine, found.root, source.read_region, found.scheme, options),
        divide=lambda links: [[link] for link in links],
        give_up=functools.partial(give_up, found.scheme),
        names=lambda links: [link.frame.path for link in links],
    )
    with bar("1/2 headers and contours", "pairs", len(found.links), shown=progress) as shown:
        if kept is None:
            parts = engine.run(work, chunks(found.links, options))
        else:
            tasks = (
                task
                for flag, first, stop in runs(kept.is_kept)
                if not flag
                for task in chunks(found.links[first:stop], options)
            )
            parts = interleaved(
                engine.run(work, tasks),
                lambda part: part.n_links,
                kept.is_kept,
                lambda first, stop, _: kept.examined(first, stop),
            )
        for examined in parts:
            spool.add(examined)
            shown(examined.n_links)
    found.links.clear()


def index_files(root: Path, index: Index, paths: Sequence[str]) -> list[object]:
    """Return what a source wants to know of files, or the error of each that cannot be read."""
    found: list[object] = []
    for path in paths:
        watchdog.next_file()
        try:
            found.append(index(root, path))
        except SourceError as error:
            found.append(SourceError(error.code, error.message))
    return found


def accepted_sizes(
    root: Path,
    read_region: ReadRegion,
    scheme: LabelScheme,
    options: BuildOptions,
    links: Sequence[Link],
) -> list[tuple[int, int]]:
    """Return the sizes of the images that a build of any size would take. Runs in workers."""
    whatever = replace(options, size="fit")
    found = examine(root, read_region, scheme, whatever, links)
    return [resampled_size(Sample.unpacked(one).instance, options) for one in found.samples]


def examine(
    root: Path,
    read_region: ReadRegion,
    scheme: LabelScheme,
    options: BuildOptions,
    links: Sequence[Link],
) -> Examined:
    """Parse headers and annotations; return what can become rows.

    All of a link's files are looked at even where one is bad, so that one run tells everything.
    """
    samples: list[Sample] = []
    findings: list[Finding] = []
    kept = kept_tags(options.keep_tags, anyway=options.keep_tags_anyway)
    for link in links:
        watchdog.next_file()
        instance: Instance | None = None
        is_sized = False
        stamp: FileStamp | None = None
        bad: list[Finding] = []
        warnings: list[Finding] = []
        regions: list[Region] = []
        size = options.rows, options.columns  # of the image, for its regions
        try:
            instance, stamp = read_header(root, link.frame, kept)
            _check_size(instance, options)
            is_sized = True
            size = instance.pixel_format.rows, instance.pixel_format.columns
            warnings += [link.about_image(Remark(*one)) for one in instance.warnings]
        except SourceError as error:
            bad.append(link.about_image(Remark(error.code, error.message)))
        for annotation in link.annotations:
            structure = scheme[annotation.code]
            try:
                region = read_region(root, annotation, instance, options)
                # Else the image's size is the one mistake.
                if is_sized or (region.mask is None and not options.is_resized):
                    remarks = _check_region(region, size, is_of_set=bool(link.looked_for))
                    warnings += [link.about_annotation(structure, one) for one in remarks]
                regions.append(region)
            except SourceError as error:
                bad.append(link.about_annotation(structure, Remark(error.code, error.message)))
        bad += _outside(link, regions, warnings, scheme, size)
        if bad or instance is None or stamp is None:
            findings += bad
        else:
            sample = Sample(link, instance, stamp, tuple(regions))
            if options.is_resized:
                sample = sample._replace(grid=place(instance, regions, options))
                warnings += _cut(sample, scheme, options)
            findings += warnings
            samples.append(sample)
    return _packed(len(links), samples, findings, scheme)


def give_up(scheme: LabelScheme, links: Sequence[Link], why: str) -> Examined:
    """Return an empty result with one finding per link that tells why it is given up."""
    findings = [Finding("image-unreadable", link.frame.path, why, link.key) for link in links]
    return _packed(len(links), [], findings, scheme)


def _check_size(instance: Instance, options: BuildOptions) -> None:
    """Require the size of the file, where images are not fitted to it.

    Raises
    ------
    ImageError
        As `checks.check_size` and `resampled_size` say.
    """
    if not options.is_resized:
        checks.check_size(instance.pixel_format, options.rows, options.columns)
        return
    size = resampled_size(instance, options)
    if options.size != "fit":
        checks.check_resampled_size(size, instance.pixel_format, options.rows, options.columns)


def _cut(sample: Sample, scheme: LabelScheme, options: BuildOptions) -> list[Finding]:
    """Warn of the structures of which the row lacks a part that the frame has."""
    grid = sample.grid
    if grid is None or options.size != "fit":
        return []
    return [
        sample.link.about_annotation(scheme[region.code], remark)
        for region in sample.regions
        for remark in check_cut(region, grid, options)
    ]


def _check_region(region: Region, size: tuple[int, int], *, is_of_set: bool) -> list[Remark]:
    """Require a region that touches the image; return what to say of a part that lies outside.

    Of the many structures of a structure set some may be outside, as where it was drawn on a larger
    field of view: `_outside` asks whether all are.

    Raises
    ------
    ContourError
        As `checks.check_contour` and `checks.check_mask` say.
    """
    if region.mask is not None:
        checks.check_mask(region.mask, *size)
    return checks.check_polygons(region.polygons, *size, may_be_outside=is_of_set)


def _outside(
    link: Link,
    regions: Sequence[Region],
    warnings: Sequence[Finding],
    scheme: LabelScheme,
    size: tuple[int, int],
) -> list[Finding]:
    """Return an error for each region of a link where all that are polygons are outside."""
    polygons = [region.polygons for region in regions if region.mask is None]
    is_warned = any(finding.code == "contour-partly-outside" for finding in warnings)
    if not is_warned or not all(checks.lie_outside(some, *size) for some in polygons):
        return []
    error = checks.outside(*size)
    return [
        link.about_annotation(scheme[one.code], Remark(error.code, error.message))
        for one in link.annotations
    ]


def _packed(
    n_links: int, samples: list[Sample], findings: list[Finding], scheme: LabelScheme
) -> Examined:
    contours = [
        (position, scheme[region.code].label, len(vertices))
        for position, sample in enumerate(samples)
        for region in sample.regions
        for vertices in region.polygons
    ]
    drawn = [_in_file(sample) for sample in samples]
    ranges = [modality_range(sample.instance.pixel_format) for sample in samples]
    return Examined(
        n_links=n_links,
        samples=[sample.packed() for sample in samples],
        contours=np.array(contours, np.int64).reshape(-1, 3),
        vertices=np.concatenate([np.empty((0, 2)), *itertools.chain(*drawn)]),
        values=reduce(or_, ranges, EMPTY_RANGE),
        identities=np.array([one.instance.identity for one in samples], np.uint64).reshape(-1, 2),
        basics=np.array(
            [
                (one.link.digest(), _digest(mine), held.lowest, held.highest, held.is_whole)
                for one, mine, held in zip(samples, drawn, ranges, strict=True)
            ],
            BASICS,
        ),
        findings=findings,
    )


def _in_file(sample: Sample) -> list[Vertices]:
    """Return the vertices of each polygon in pixels of the file."""
    return [
        vertices if sample.grid is None else sample.grid.to_file(vertices)
        for region in sample.regions
        for vertices in region.polygons
    ]


def _digest(polygons: Sequence[Vertices]) -> int:
    digest = xxhash.xxh3_64()
    for vertices in polygons:
        digest.update(np.ascontiguousarray(vertices).data)
    return digest.intdigest()
