"""Rendered rows → those that are kept, and what only all of them together show."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import numpy as np
import numpy.typing as npt

from etl.findings import Finding
from etl.options import BuildOptions
from etl.output.row_writer import strings
from etl.quality.alignment import Audit, audit
from etl.quality.rows import check_rows
from etl.render import Columns, Rendered

_BLOCK_PARTS: Final = 256  # of some dozen rows each
_PATH_COLUMNS: Final = ("dicom_path", "icontour_path", "ocontour_path")


@dataclass(frozen=True, slots=True)
class Judged:
    """What is kept, after the last check."""

    is_good: npt.NDArray[np.bool_]  # by sample
    manifest: Columns  # of the good ones, without the columns that depend on who is kept
    findings: list[Finding]
    alignment: dict[str, object]  # the audit's numbers; empty without one


def gather(parts: Iterable[Rendered]) -> Rendered:
    """Return all parts as one; their manifests are emptied.

    Now and then the parts at hand are put together: many small arrays take twice their content.
    """
    rest = iter(parts)
    return _joined([_joined(some) for some in iter(lambda: list(islice(rest, _BLOCK_PARTS)), [])])


def judge(rendered: Rendered, findings: list[Finding], options: BuildOptions) -> Judged:
    """Check all rows together, and leave out those with a finding by which the user wants it.

    Parameters
    ----------
    rendered : Rendered
        All rows; its manifest becomes the result's.
    findings : list of Finding
        Those of the stages before.
    """
    is_good, manifest = np.array(rendered.is_good), rendered.manifest
    findings = findings + rendered.findings
    if not manifest:
        return Judged(is_good, {}, findings, {})
    audited = Audit([], {})
    if options.qc:
        findings += check_rows(manifest, rendered.marks["numbers"])
    if options.has_audit:
        patients = [value.decode() for value in manifest["patient_id"].tolist()]
        audited = audit(patients, rendered.marks["alignment"], options.contour_origin)
    findings += audited.findings
    excluded = _excluded(findings, manifest, options.exclude_flagged)
    is_kept = _drop(list(excluded), manifest)
    is_good[is_good] = is_kept
    return Judged(is_good, manifest, findings + list(excluded.values()), audited.numbers)


def rows_of(findings: Sequence[Finding], manifest: Columns) -> list[int]:
    """Return the row that each finding is about: the one that has its path, else -1."""
    rows = {finding.path.encode("utf-8", "backslashreplace"): -1 for finding in findings}
    for column in _PATH_COLUMNS:
        for row, path in enumerate(manifest[column].tolist()):
            if path in rows and path:
                rows[path] = row
    return [rows[path] for path in strings([finding.path for finding in findings]).tolist()]


def _joined(parts: list[Rendered]) -> Rendered:
    """Return parts end to end, emptying their manifests column by column to save memory."""
    tables = [part.manifest for part in parts if part.manifest]
    names = list(tables[0]) if tables else []
    return Rendered(
        is_good=[good for part in parts for good in part.is_good],
        manifest={name: np.concatenate([table.pop(name) for table in tables]) for name in names},
        marks=np.concatenate([part.marks for part in parts]),
        findings=[finding for part in parts for finding in part.findings],
    )


def _excluded(
    findings: list[Finding], manifest: Columns, codes: Sequence[str]
) -> dict[int, Finding]:
    """Return row → the finding that it is left out, of the rows with a finding of such a code."""
    causes = [finding for finding in findings if finding.code in codes]
    excluded: dict[int, Finding] = {}
    for row, cause in zip(rows_of(causes, manifest), causes, strict=True):
        message = f"left out by --exclude-flagged {cause.code}: {cause.message}"
        excluded.setdefault(row, Finding("row-excluded", cause.path, message))
    excluded.pop(-1, None)  # of pairs that became no row at all
    return excluded


def _drop(rows: list[int], manifest: Columns) -> npt.NDArray[np.bool_]:
    """Take rows out of the manifest; return which are left."""
    is_kept = np.ones(len(manifest["slice"]), np.bool_)
    is_kept[rows] = False
    if rows:
        for name in manifest:
            manifest[name] = manifest[name][is_kept]
    return is_kept
