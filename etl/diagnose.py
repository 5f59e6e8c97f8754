"""Audited contours that fit no image → what they have in common, and what mends it.

The audit measures contours where they are. Where most of them, or most of one patient, lie by no
clear edge, a few are read again and tried under other coordinates; see `etl.quality.misfit`. That
is done for those only, so that data that fit pay nothing for it.
"""

import dataclasses
import functools
import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import numpy as np

from etl.contours.checks import MAX_COORDINATE, has_three_points
from etl.contours.transform import PixelGrid
from etl.dicom.pixels import modality_values, read_frame
from etl.errors import SourceError
from etl.findings import Finding
from etl.labels import BRIGHTER, LabelScheme
from etl.model import Image, Instance, Link, Vertices
from etl.options import BuildOptions
from etl.quality import misfit
from etl.quality.alignment import (
    DATA_SET,
    MEASURED,
    NOT_AUDITED,
    about_patient,
    audited,
    audited_code,
    mark_audited,
)
from etl.render import Rendered
from etl.sources.dicom_file import read_header
from etl.sources.files import open_source, read_all
from etl.sources.source import Discovery, ReadRegion, Source
from etl.workers.engine import Engine, Work

MIN_CONTOURS: Final = 4  # audited, for the data set to have a cause in common
MIN_UNNAMED: Final = 18  # three patients' worth, for a warning where nothing makes them fit
PATIENT_CONTOURS: Final = 3  # the same for a patient

_MOST_KEPT: Final = 20_000  # links: what a build remembers of them does not grow with the input
_MOST_TRIED: Final = 24  # contours of the data set
_PATIENT_TRIED: Final = 4  # contours of each patient
_MOST_PATIENTS: Final = 8

_MEND_PATIENT: Final = "rewrite its files, or build this patient by itself"

_Item = TypeVar("_Item")


class Diagnosis(NamedTuple):
    """What is said about contours that fit no image."""

    findings: list[Finding]
    patients: frozenset[str]  # that they explain; `DATA_SET` means all


NOTHING_WRONG: Final = Diagnosis([], frozenset())


def choose_audited(source: Source, found: Discovery, options: BuildOptions) -> list[Link]:
    """Mark the links to audit; return those that can be tried under other coordinates.

    That are contours as a program wrote them, of a structure whose edges are clear: of the heart
    the inner ones. Around the outer ones lie fat, lung and blood, which prove nothing.
    """
    if not options.has_audit:
        return []
    mark_audited(found.links, found.scheme, options.audit_contours)
    if not source.has_text_contours:
        return []
    return _some([link for link in found.links if _can_be_tried(link, found.scheme)], _MOST_KEPT)


def diagnose(
    engine: Engine,
    source: Source,
    found: Discovery,
    options: BuildOptions,
    chosen: Sequence[Link],
    findings: Iterable[Finding],
    rendered: Rendered | None = None,
) -> Diagnosis:
    """Say which audited contours fit no image, and what would make them fit.

    Parameters
    ----------
    chosen : sequence of Link
        As `choose_audited` gave them.
    findings : iterable of Finding
        Those of the examination: a contour outside of its image fits it least of all.
    rendered : Rendered, optional
        All rows with their alignment; None where there are none.
    """
    n_audited, n_clear, n_outside = _counts(chosen, findings, rendered)
    if not n_audited:
        return NOTHING_WRONG
    attempt = functools.partial(_try, engine, source, found, options)
    if n_audited.total() >= MIN_CONTOURS and 2 * n_clear.total() < n_audited.total():
        verdict = attempt(_some(chosen, _MOST_TRIED), "build with it")
        if verdict is None or verdict.fits:
            return NOTHING_WRONG
        if not verdict.is_named and n_audited.total() < MIN_UNNAMED:
            return NOTHING_WRONG
        message = (
            f"{_clear(n_clear.total(), n_audited.total())} of their images"
            f"{_outside(n_outside.total())}. {verdict.advice}"
        )
        return Diagnosis([Finding("contours-misfit", "", message)], frozenset({DATA_SET}))
    by_patient = defaultdict(list)
    for link in chosen:
        by_patient[link.key.patient_id].append(link)
    unclear = [
        patient_id
        for patient_id, n_contours in n_audited.items()
        if n_contours >= PATIENT_CONTOURS and 2 * n_clear[patient_id] <= n_contours
    ]
    named: dict[str, Finding] = {}
    for patient_id in _some(unclear, _MOST_PATIENTS):
        links = by_patient[patient_id]
        verdict = attempt(_some(links, _PATIENT_TRIED), _MEND_PATIENT)
        if verdict is not None and verdict.is_named:
            folder = posixpath.commonpath([posixpath.dirname(link.frame.path) for link in links])
            message = (
                f"{_clear(n_clear[patient_id], n_audited[patient_id])} of its images"
                f"{_outside(n_outside[patient_id])}; the other patients' do. {verdict.advice}"
            )
            named[patient_id] = about_patient(patient_id, folder, message)
    return Diagnosis(list(named.values()), frozenset(named))


def _can_be_tried(link: Link, scheme: LabelScheme) -> bool:
    if not link.is_audited:
        return False
    code = audited_code((annotation.code for annotation in link.annotations), scheme)
    return code is not None and scheme[code].contrast == BRIGHTER


def _counts(
    chosen: Sequence[Link], findings: Iterable[Finding], rendered: Rendered | None
) -> tuple[Counter[str], Counter[str], Counter[str]]:
    """Return, by patient, the contours that were audited or lie outside, are clear, are outside."""
    keys = {link.key for link in chosen}
    outside = {one.key for one in findings if one.code == "contour-outside" and one.key in keys}
    n_outside = Counter(key.patient_id for key in outside if key is not None)
    n_audited, n_clear = Counter(n_outside), Counter[str]()
    if rendered is not None and len(rendered.marks):
        patients = {link.key.patient_id for link in chosen}
        outcomes = rendered.marks["alignment"]["outcome"]
        for row in np.flatnonzero(outcomes != NOT_AUDITED).tolist():
            patient_id = bytes(rendered.manifest["patient_id"][row]).decode()
            if patient_id in patients:
                n_audited[patient_id] += 1
                n_clear[patient_id] += int(outcomes[row] == MEASURED)
    return n_audited, n_clear, n_outside


def _try(
    engine: Engine,
    source: Source,
    found: Discovery,
    options: BuildOptions,
    links: Sequence[Link],
    mend: str,
) -> misfit.Verdict | None:
    """Return what makes some contours fit; None where none of them can be read."""
    work: Work[Sequence[Link], list[misfit.Fit]] = Work(
        run=functools.partial(fits, found.root, source.read_region, found.scheme, options),
        divide=lambda task: [[link] for link in task],
        give_up=lambda _task, _why: [],
        names=lambda task: [link.frame.path for link in task],
    )
    tasks = [links[first : first + 2] for first in range(0, len(links), 2)]
    tried = [one for part in engine.run(work, tasks) for one in part]
    if not tried:
        return None
    return misfit.judge(tried, options.contour_origin, mend)


def fits(
    root: Path,
    read_region: ReadRegion,
    scheme: LabelScheme,
    options: BuildOptions,
    links: Sequence[Link],
) -> list[misfit.Fit]:
    """Return how well contours fit their images; without those that cannot be read.

    Those have an error finding already. Runs in workers.
    """
    plain = dataclasses.replace(options, contour_origin=0, contour_transform=())
    found: list[misfit.Fit] = []
    for link in links:
        try:
            instance, _ = read_header(root, link.frame)
            image = _image(root, link, instance)
            regions = [
                [read_region(root, one, instance, how) for one in link.annotations]
                for how in (options, plain)
            ]
        except SourceError:
            continue
        built, written = (audited(some, scheme) for some in regions)
        if built is None or written is None:
            continue
        if not options.is_resized and image.shape != (options.rows, options.columns):
            continue
        if not (_is_usable(built[0]) and _is_usable(written[0])):
            continue
        grid = PixelGrid.of(instance, options.rows, options.columns)
        found.append(misfit.fit(link.key.patient_id, image, built[0], written[0], grid, built[1]))
    return found


def _is_usable(vertices: Vertices) -> bool:
    return has_three_points(vertices) and float(np.abs(vertices).max()) <= MAX_COORDINATE


def _image(root: Path, link: Link, instance: Instance) -> Image:
    code = "image-unreadable"
    with open_source(root, link.frame.path, code) as (descriptor, stamp):
        data = read_all(descriptor, stamp, code)
    return modality_values(read_frame(data, instance).stored, instance.pixel_format, "<f4")


def _some(items: Sequence[_Item], most: int) -> list[_Item]:
    """Return at most that number of items, evenly spread."""
    n_taken = min(most, len(items))
    return [items[(2 * k + 1) * len(items) // (2 * n_taken)] for k in range(n_taken)]


def _clear(n_clear: int, n_audited: int) -> str:
    return f"only {n_clear} of {n_audited} contours that were audited lie on a clear edge"


def _outside(n_outside: int) -> str:
    return f", and {n_outside} of them wholly outside" if n_outside else ""
