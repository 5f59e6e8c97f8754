"""Rendered rows → those that are kept, and what only all of them together show."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from etl.diagnose import Diagnosis
from etl.errors import RejectedError
from etl.findings import Finding, SampleKey, counted
from etl.labels import LabelScheme
from etl.options import BuildOptions
from etl.output import hdf5_file
from etl.output.row_writer import Plan
from etl.quality.alignment import Audit, audit, is_audited
from etl.quality.copies import Pictures
from etl.quality.nesting import find_nested
from etl.quality.rows import Rows, check_rows, key_of
from etl.render import ManifestTable, Rendered
from loader.format import MASK_BITS

_EXAMPLES: Final = 3
_ONCE_A_SERIES: Final = ("real-world-values",)
CAUSES: Final = ("contours-misfit", "alignment-patient")  # why there are other findings


Renderer: TypeAlias = Callable[[Mapping[int, Collection[int]]], Rendered]


@dataclass(frozen=True, slots=True)
class Reviewed:
    """What is kept, after the last check."""

    is_good: npt.NDArray[np.bool_]  # by sample
    manifest: ManifestTable  # of the good ones, without the columns that depend on who is kept
    findings: list[Finding]
    alignment: dict[str, object]  # the audit's numbers; empty without one
    lost: Mapping[int, Collection[int]]  # sample → labels of the contours that it has lost
    notes: list[str]  # what was asked for but not had

    @property
    def n_rows(self) -> int:
        """The number of samples that are kept."""
        return int(self.is_good.sum())

    def keeps(self, contours: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return which contours are kept; each is (sample, label, number of vertices)."""
        is_kept = self.is_good[contours[:, 0]]
        for sample, labels in self.lost.items():
            first, stop = np.searchsorted(contours[:, 0], [sample, sample + 1])
            is_kept[first:stop] &= ~np.isin(contours[first:stop, 1], list(labels))
        return is_kept


def review(
    rendered: Rendered,
    findings: list[Finding],
    diagnosis: Diagnosis,
    scheme: LabelScheme,
    options: BuildOptions,
    written: Pictures | None = None,
    render: Renderer | None = None,
) -> Reviewed:
    """Check all rows together, and leave out those with a finding by which the user wants it.

    Parameters
    ----------
    rendered : Rendered
        All rows; its manifest becomes the result's.
    findings : list of Finding
        Those of the stages before.
    diagnosis : Diagnosis
        Of the contours that fit no image.
    written : Pictures, optional
        The good rows; without them nothing tells which of equal contours is the copy.
    render : callable, optional
        Writes samples again without some structures: sample → their codes. Needed where single
        structures are to be left out.
    """
    is_good, manifest = np.array(rendered.is_good, np.bool_), rendered.manifest
    findings = once_a_series(findings) + rendered.findings + diagnosis.findings
    if not manifest:
        return Reviewed(is_good, {}, findings, {}, {}, [])
    audited = Audit([], {})
    explained: frozenset[Finding] = frozenset()
    if options.qc:
        order = np.lexsort((rendered.shapes["row"], rendered.shapes["code"]))
        shapes = rendered.shapes[order]
        marks = rendered.marks
        rows = Rows(
            manifest,
            marks["image"],
            shapes,
            scheme,
            written,
            marks["hash"],
            has_bits=options.masks == MASK_BITS,
            side=(options.columns, options.rows),
            units=marks["unit"],
        )
        findings += check_rows(rows)
        nested, explained = find_nested(findings, _areas(findings, manifest, scheme), scheme)
        findings = [one for one in findings if one not in explained] + nested
    if options.has_audit and is_audited(rendered.marks["alignment"], scheme):
        patients, paths = _texts(manifest, "patient_id"), _texts(manifest, "dicom_path")
        alignments = rendered.marks["alignment"]
        audited = audit(patients, paths, alignments, options.contour_origin, diagnosis.patients)
    findings += audited.findings
    unwanted = _unwanted(findings, manifest, scheme, options)
    findings = unwanted.left_over(findings, scheme) + unwanted.told
    places = np.flatnonzero(is_good).tolist()
    bad: list[int] = []
    if unwanted.structures and render is not None:
        again = render({places[row]: codes for row, codes in unwanted.structures.items()})
        known = {*findings, *explained}  # what is said of the structures that stay is said again
        findings += [one for one in again.findings if one not in known]
        bad = _replace_rows(manifest, list(unwanted.structures), again)
    is_good[is_good] = _drop([*unwanted.rows, *bad], manifest)
    lost = {
        places[row]: {scheme[code].label for code in codes}
        for row, codes in unwanted.structures.items()
    }
    notes = _notes(options, manifest)
    return Reviewed(is_good, manifest, findings, audited.numbers, lost, notes)


def once_a_series(findings: Iterable[Finding]) -> list[Finding]:
    """Return findings, those that all images of a series tend to have told once for it.

    Where a source does not tell series apart, once for a patient.
    """
    told: list[Finding] = []
    alike: defaultdict[tuple[str, str, str], list[Finding]] = defaultdict(list)
    for one in findings:
        if one.code in _ONCE_A_SERIES and one.key is not None:
            alike[one.code, one.key.patient_id, one.key.series].append(one)
        else:
            told.append(one)
    for (_, _, series), (first, *others) in alike.items():
        whose = "series" if series else "patient"
        more = f" So it is with {counted(len(others), 'more image')} of the {whose}."
        told.append(replace(first, message=first.message + more) if others else first)
    return told


def rows_by_key(keys: Iterable[SampleKey | None], manifest: ManifestTable) -> dict[SampleKey, int]:
    """Return the row of each of some keys that has one."""
    wanted = {(k.patient_id.encode(), k.series.encode(), *k[2:]): k for k in keys if k is not None}
    if not wanted:
        return {}
    columns = (
        manifest[name].tolist() for name in ("patient_id", "series", "slice", "frame_number")
    )
    return {wanted[key]: row for row, key in enumerate(zip(*columns, strict=True)) if key in wanted}


def can_go_on(n_rows: int, findings: Sequence[Finding], *, strict: bool) -> bool:
    """Say whether there is something to write, and `strict` does not forbid it."""
    return n_rows > 0 and not (strict and any(one.severity == "error" for one in findings))


def require_rows(n_rows: int, findings: Sequence[Finding], missing: str, *, strict: bool) -> None:
    """Stop where there is nothing to write, or where `strict` forbids it.

    Parameters
    ----------
    missing : str
        A sentence on what the input lacks wholly; may be empty.

    Raises
    ------
    RejectedError
        With all findings.
    """
    if can_go_on(n_rows, findings, strict=strict):
        return
    errors = [finding for finding in findings if finding.severity == "error"]
    causes = [finding for finding in findings if finding.code in CAUSES]
    shown = [*causes, *(errors or findings)][:_EXAMPLES]
    examples = "".join(f"\n  {finding}" for finding in shown)
    if not n_rows:
        codes = Counter(finding.code for finding in findings)
        listed = "".join(f", {n} {code}" for code, n in sorted(codes.items()))
        raise RejectedError(
            f"Nothing to build: no usable pair of image and contour{listed}."
            f"{' ' * bool(missing)}{missing}{examples}",
            list(findings),
        )
    raise RejectedError(
        f"Build stopped by `strict=True`: {counted(len(errors), 'finding')} of severity error."
        f"{examples}\nMend them, or build without `strict=True` to leave these pairs out.",
        list(findings),
    )


def keep_good(plan: Plan, reviewed: Reviewed, contours: npt.NDArray[np.int64]) -> Plan:
    """Return the plan of the file without the rows that are not kept, nor their vertices.

    Parameters
    ----------
    contours : int64 array, shape (n, 3)
        (row, label, number of vertices), of all rows.
    """
    is_kept = reviewed.keeps(contours)
    if reviewed.is_good.all() and is_kept.all():
        return plan
    ends = np.cumsum(contours[:, 2])
    stretches = np.stack([ends - contours[:, 2], ends], axis=1)[is_kept]
    vertices = [(start, stop) for start, stop in stretches.tolist()]
    return hdf5_file.keep_rows(plan, np.flatnonzero(reviewed.is_good).tolist(), vertices)


@dataclass(frozen=True, slots=True)
class _Unwanted:
    """What the user wants left out for its findings.

    Attributes
    ----------
    rows : set of int
    structures : dict of int to set of int
        Row that stays → codes of the structures that it loses.
    told : list of Finding
        That they are left out, and why.
    gone : set of (SampleKey, int)
        Key and code of the structures that are left out.
    """

    rows: set[int]
    structures: dict[int, set[int]]
    told: list[Finding]
    gone: set[tuple[SampleKey | None, int]]

    def left_over(self, findings: list[Finding], scheme: LabelScheme) -> list[Finding]:
        """Return findings, those on a structure that its row has lost without the row.

        What lay outside of a lost structure lies outside of none. Which structures overlap without
        the lost one, only the row that is written again tells.
        """
        outer = {one.code: other.code for one, other in scheme.nested}
        changed = {key for key, _ in self.gone}
        return [
            replace(one, key=None, other_key=None) if (one.key, one.label) in self.gone else one
            for one in findings
            if one.code != "inner-outside-outer" or (one.key, outer[one.label]) not in self.gone
            if one.code != "structures-overlap" or one.key not in changed
        ]


def _unwanted(
    findings: list[Finding], manifest: ManifestTable, scheme: LabelScheme, options: BuildOptions
) -> _Unwanted:
    unwanted = _Unwanted(set(), {}, [], set())
    if not options.exclude_flagged:
        return unwanted
    both = zip(_texts(manifest, "patient_id"), _texts(manifest, "original_id"), strict=True)
    originals = dict(both)
    causes = [one for one in findings if _is_unwanted(one, originals, options)]
    rows = rows_by_key((cause.key for cause in causes), manifest)
    by_row: defaultdict[int, list[Finding]] = defaultdict(list)
    for cause in causes:
        if cause.key in rows:  # not so for pairs that became no row at all
            by_row[rows[cause.key]].append(cause)
    for row, mine in by_row.items():
        drawn = {one.code for one in scheme if manifest[f"drawn_{one.code}"][row]}
        codes = {cause.label for cause in mine}
        if options.exclude_structures and 0 not in codes and codes < drawn:
            unwanted.structures[row] = codes
            firsts = {cause.label: cause for cause in reversed(mine)}.values()
            unwanted.told.extend(_told("structure-excluded", cause) for cause in firsts)
            unwanted.gone.update((mine[0].key, code) for code in codes)
        else:
            unwanted.rows.add(row)
            unwanted.told.append(_told("row-excluded", mine[0]))
    return unwanted


def _is_unwanted(finding: Finding, originals: Mapping[str, str], options: BuildOptions) -> bool:
    if finding.key is None:
        return False
    patient_id = finding.key.patient_id
    return options.excludes(finding.code, patient_id, originals.get(patient_id, patient_id))


def _told(code: str, cause: Finding) -> Finding:
    message = f"left out by --exclude-flagged {cause.code}: {cause.message}"
    return Finding(code, cause.path, message, cause.key, cause.label)


def _replace_rows(manifest: ManifestTable, rows: Sequence[int], again: Rendered) -> list[int]:
    """Put rows that were written again into the manifest; return those that could not be."""
    ordered = np.sort(np.array(rows, np.int64))
    is_good = np.array(again.is_good, np.bool_)
    for name, values in again.manifest.items():
        manifest[name][ordered[is_good]] = values
    bad: list[int] = ordered[~is_good].tolist()
    return bad


def _notes(options: BuildOptions, manifest: ManifestTable) -> list[str]:
    """Name the patients of `exclude_flagged` that have no row."""
    known = {*_texts(manifest, "patient_id"), *_texts(manifest, "original_id")}
    named = [entry.partition(":")[2] for entry in options.exclude_flagged]
    unknown = sorted({name for name in named if name} - known)
    listed = ", ".join(map(repr, unknown[:_EXAMPLES]))
    more = ", ..." if len(unknown) > _EXAMPLES else ""
    return [f"--exclude-flagged: no row is of {listed}{more}."] if unknown else []


def _areas(
    findings: Iterable[Finding], manifest: ManifestTable, scheme: LabelScheme
) -> dict[int, dict[SampleKey, float]]:
    """Return the area of each structure by row; nothing where no structures overlap."""
    if not any(one.code == "structures-overlap" for one in findings):
        return {}
    keys = [key_of(manifest, row) for row in range(len(manifest["slice"]))]
    areas = {one.code: manifest[f"{one.stem}_area"].astype(np.float64).tolist() for one in scheme}
    return {
        code: {key: area for key, area in zip(keys, values, strict=True) if area == area}  # noqa: PLR0124
        for code, values in areas.items()
    }


def _texts(manifest: ManifestTable, column: str) -> list[str]:
    return [bytes(value).decode() for value in manifest[column].tolist()]


def _drop(rows: list[int], manifest: ManifestTable) -> npt.NDArray[np.bool_]:
    """Take rows out of the manifest; return which are left."""
    is_kept = np.ones(len(manifest["slice"]), np.bool_)
    is_kept[rows] = False
    if rows:
        for name in manifest:
            manifest[name] = manifest[name][is_kept]
    return is_kept
