"""The look at an input before it is built: the stages of a build, which write nothing here."""

import contextlib
import functools
import itertools
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from etl.assemble import diagnosed, finding_order
from etl.diagnose import choose_audited, diagnose
from etl.dicom.codecs import CODECS
from etl.dicom.elements import COLUMNS, ROWS, SERIES_INSTANCE_UID, Values
from etl.dicom.header import BIG_ENDIAN, NATIVE, read_header
from etl.dicom.kept_tags import KeptTag, kept_tags, notes_on
from etl.dicom.pixels import image_dtype
from etl.errors import SourceError, limited
from etl.examine import choose_size, examine_links, index_headers
from etl.findings import Finding, SampleKey
from etl.labels import LabelScheme, names_alike
from etl.model import Link, Sample
from etl.options import BuildOptions
from etl.output.row_writer import Plan
from etl.quality.diagnoses import Diagnosis as Cause
from etl.quality.people import finding as same_person
from etl.quality.people import identifiers, mixed_people, repeated_instances, same_people
from etl.render import ManifestTable, nothing_left, render_again, render_samples
from etl.report.checked import Checked, Patient, StructureCount, Summary
from etl.report.summary import Tag, tag_of
from etl.review import Reviewed, once_a_series, review
from etl.sources import layouts
from etl.sources.files import open_source
from etl.sources.row_list import check_row_list, exclude_listed
from etl.sources.source import Discovery
from etl.spool import Spool
from etl.workers.chunks import chunks, n_chunks
from etl.workers.engine import Engine, Work, local_engine
from etl.workers.progress import bar
from loader import format as file_format

_Flags: TypeAlias = npt.NDArray[np.bool_]

_BLOCK_SAMPLES: Final = 1024
_BIG_DATASETS: Final = ("images", "masks")


class ImageFacts(NamedTuple):
    """What the header of an image says, whether or not a build takes it."""

    rows: int
    columns: int
    transfer_syntax_uid: str
    series_instance_uid: str


class _Images(NamedTuple):
    """All links, and the facts of their images: by path, of those that can be read."""

    links: list[Link]
    facts: Mapping[str, ImageFacts]


class _Row(NamedTuple):
    """What is kept of a row that a build would write."""

    key: SampleKey
    dicom_path: str
    codes: tuple[int, ...]  # of the structures in it
    series_instance_uid: str
    sop_instance_uid: str
    kept: tuple[str | float, ...]  # values of the attributes that a build would keep


def check(
    data: Path,
    options: BuildOptions,
    *,
    workers: int = 1,
    full: bool = False,
    progress: bool = False,
) -> Checked:
    """Say what a build would take and refuse.

    Parameters
    ----------
    data : Path
        Input folder, or table.
    options : BuildOptions
        Those of the build.
    workers : int
        Processes on this machine; 1 works in this one.
    full : bool
        Decode the pixels and make the checks on them as well; without it, headers and annotations
        only are read.
    progress : bool
        Show progress bars on stderr where that is a terminal.

    Raises
    ------
    EtlError
        The input is not usable at all.
    """
    kept = kept_tags(options.keep_tags, anyway=options.keep_tags_anyway)
    with limited(options.limits):
        return _checked(data, options, kept, workers=workers, full=full, progress=progress)


def _checked(
    data: Path,
    options: BuildOptions,
    kept: Sequence[KeptTag],
    *,
    workers: int,
    full: bool,
    progress: bool,
) -> Checked:
    check_row_list(options)
    source, why = layouts.choose(data, options.layout)
    options = layouts.settle(source, options)
    found = source.discover(data, options)
    n_tasks = n_chunks(max(len(found.links), len(found.to_index)), options)
    with (
        contextlib.closing(Spool()) as spool,
        local_engine(min(workers, max(n_tasks, 1))) as engine,
    ):
        found = index_headers(engine, source, found, options, progress=progress)
        found = exclude_listed(found, options)
        spool.findings += found.findings
        options = choose_size(engine, source, found, options, progress=progress)
        mask_dtype = found.scheme.mask_dtype(options.masks)
        images = _survey_links(engine, found, options, progress=progress)
        chosen = choose_audited(source, found, options) if full else []
        examine_links(engine, source, found, options, spool, progress=progress)
        reviewed = None
        if full and len(spool):
            plan = _nowhere(spool, options, mask_dtype)
            rendered = render_samples(engine, spool, found, options, plan, progress=progress)
            diagnosis = diagnose(engine, source, found, options, chosen, spool.findings, rendered)
            again = functools.partial(render_again, engine, spool, found, options, plan)
            reviewed = review(
                rendered, spool.findings, diagnosis, found.scheme, options, render=again
            )
        elif full:
            spool.findings += diagnose(
                engine, source, found, options, chosen, spool.findings
            ).findings
        dtype = image_dtype(spool.values)
        is_good = _left(spool, found.scheme, options) if reviewed is None else reviewed.is_good
        rows = _rows(spool, reviewed, is_good, found.scheme)
        summary = _summary(found, images, rows, dtype, options)
        findings = once_a_series(spool.findings) if reviewed is None else reviewed.findings
        findings = findings + _same_people(rows, spool.identities()[is_good], options)
        findings += names_alike([one.key.patient_id for one in rows], found.scheme)
        findings = sorted(findings, key=finding_order)
        diagnoses: list[Cause] = []
        if full:
            manifest = reviewed.manifest if reviewed is not None else {}
            diagnoses = diagnosed(findings, manifest or _of_no_row(found.scheme), found.scheme)
        notes = [*notes_on(kept), *found.notes, *(reviewed.notes if reviewed else ())]
        tags = _tags(rows, kept)
        return Checked(str(data), why, full, summary, findings, diagnoses, tags, notes)


def survey(root: Path, paths: Sequence[str]) -> list[ImageFacts | None]:
    """Return what headers say; None for files that cannot be read. Runs in workers."""
    facts: list[ImageFacts | None] = []
    for path in paths:
        try:
            facts.append(_read_facts(root, path))
        except SourceError:  # it becomes a finding when its links are examined
            facts.append(None)
    return facts


def _read_facts(root: Path, path: str) -> ImageFacts:
    with (
        open_source(root, path, "image-unreadable") as (descriptor, _),
        open(descriptor, "rb", buffering=0, closefd=False) as file,
    ):
        header = read_header(file)
    values = Values(header.elements, is_big_endian=header.syntax == BIG_ENDIAN)
    rows, columns = values.required(ROWS), values.required(COLUMNS)
    return ImageFacts(rows, columns, header.syntax, values.uid(SERIES_INSTANCE_UID))


def _survey_links(
    engine: Engine, found: Discovery, options: BuildOptions, *, progress: bool
) -> _Images:
    """Return the links with what their images' headers say."""
    work: Work[Sequence[str], list[ImageFacts | None]] = Work(
        run=functools.partial(survey, found.root),
        divide=lambda paths: [[path] for path in paths],
        give_up=lambda paths, _why: [None] * len(paths),
        names=list,
    )
    paths = list(dict.fromkeys(link.frame.path for link in found.links))
    facts: list[ImageFacts | None] = []
    with bar("sizes and encodings", "files", len(paths), shown=progress) as shown:
        for part in engine.run(work, chunks(paths, options)):
            facts += part
            shown(len(part))
    known = zip(paths, facts, strict=True)
    return _Images(list(found.links), {path: one for path, one in known if one is not None})


def _nowhere(spool: Spool, options: BuildOptions, mask_dtype: str) -> Plan:
    """Return the plan of a file that swallows all rows: pixels are checked, and not kept."""
    offsets = dict.fromkeys(_BIG_DATASETS, 0)
    size = options.rows, options.columns
    dtype = image_dtype(spool.values)
    return Plan(os.devnull, len(spool), *size, dtype, 0, offsets, mask_dtype=mask_dtype)


def _of_no_row(scheme: LabelScheme) -> ManifestTable:
    """Return the manifest of an input of which nothing becomes a row."""
    kinds = file_format.manifest_columns(scheme)
    return {
        name: np.empty(0, "S1" if kind == file_format.STRING else kind)
        for name, kind in kinds.items()
    }


def _left(spool: Spool, scheme: LabelScheme, options: BuildOptions) -> _Flags:
    """Return which samples `--fit` leaves anything of; append findings on the others."""
    is_good = np.ones(len(spool), np.bool_)
    for packed, first in spool.tasks(_BLOCK_SAMPLES) if options.is_resized else ():
        for place, sample in enumerate(map(Sample.unpacked, packed), first):
            if lost := nothing_left(sample, scheme, options):
                is_good[place] = False
                spool.findings += lost
    return is_good


def _rows(
    spool: Spool, reviewed: Reviewed | None, is_good: _Flags, scheme: LabelScheme
) -> list[_Row]:
    """Return the rows that a build would write, with the structures that they would have."""
    lost = {} if reviewed is None else reviewed.lost
    packed = (one for block, _ in spool.tasks(_BLOCK_SAMPLES) for one in block)
    rows = [
        _Row(
            sample.link.key,
            sample.link.frame.path,
            tuple(
                region.code
                for region in sample.regions
                if scheme[region.code].label not in lost.get(place, ())
            ),
            sample.instance.series_instance_uid,
            sample.instance.sop_instance_uid,
            sample.instance.kept,
        )
        for place, sample in enumerate(map(Sample.unpacked, packed))
    ]
    return list(itertools.compress(rows, is_good))


def _tags(rows: Sequence[_Row], kept: Sequence[KeptTag]) -> list[Tag]:
    """Return the values that the rows have of the attributes that a build would keep."""
    return [
        tag_of(
            one.keyword,
            np.array([row.kept[place] for row in rows], np.float64 if one.is_number else np.str_),
        )
        for place, one in enumerate(kept)
    ]


def _same_people(
    rows: Sequence[_Row], identities: npt.NDArray[np.uint64], options: BuildOptions
) -> list[Finding]:
    """Return the findings on identifiers: of people, and of images."""
    patient, study = identities.T.tolist()
    series, instance = ([getattr(one, name) for one in rows] for name in _Row._fields[3:5])
    compared = identifiers(patient, study, series, instance)
    patients, paths = [one.key.patient_id for one in rows], [one.dicom_path for one in rows]
    people = same_people(patients, paths, compared)
    mixed = mixed_people(patients, paths, patient)
    repeated = repeated_instances([one.key for one in rows], paths, instance)
    return [*(same_person(person, {}, options) for person in people), *mixed, *repeated]


def _summary(
    found: Discovery, images: _Images, rows: Sequence[_Row], dtype: str, options: BuildOptions
) -> Summary:
    links, facts = images
    known = [facts[link.frame.path] for link in links if link.frame.path in facts]
    drawn = Counter(annotation.code for link in links for annotation in link.annotations)
    written = Counter(code for row in rows for code in row.codes)
    n_pairs = Counter((link.key.patient_id, link.original_id) for link in links)
    n_rows = Counter(row.key.patient_id for row in rows)
    mask_dtype = found.scheme.mask_dtype(options.masks)
    pixel_bytes = np.dtype(dtype).itemsize + np.dtype(mask_dtype).itemsize
    return Summary(
        sources=dict(found.counts),
        missing=found.missing,
        size=(options.rows, options.columns),
        takes_all_sizes=options.is_resized or options.size == "most",
        image_dtype=np.dtype(dtype).name,
        n_pairs=len(links),
        n_unread=len(links) - len(known),
        n_rows=len(rows),
        n_bytes=len(rows) * options.rows * options.columns * pixel_bytes,
        n_series=len({one.series_instance_uid for one in known} - {""}),
        sizes=Counter((one.rows, one.columns) for one in known).most_common(),
        encodings=Counter(_spelled(one.transfer_syntax_uid) for one in known).most_common(),
        structures=[
            StructureCount(one.code, one.name, drawn[one.code], written[one.code])
            for one in found.scheme
        ],
        patients=[Patient(*ids, n, n_rows[ids[0]]) for ids, n in sorted(n_pairs.items())],
    )


def _spelled(syntax: str) -> str:
    """Return a transfer syntax in words."""
    return NATIVE.get(syntax) or CODECS[syntax].name
