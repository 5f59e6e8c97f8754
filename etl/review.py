"""Rendered rows → those that are kept, and what only all of them together show."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from etl.errors import RejectedError
from etl.findings import Finding, SampleKey
from etl.labels import LabelScheme
from etl.options import BuildOptions
from etl.output import hdf5_file
from etl.output.row_writer import Plan
from etl.quality.alignment import Audit, audit
from etl.quality.rows import Rows, check_rows
from etl.render import Columns, Rendered

_EXAMPLES: Final = 3


@dataclass(frozen=True, slots=True)
class Reviewed:
    """What is kept, after the last check."""

    is_good: npt.NDArray[np.bool_]  # by sample
    manifest: Columns  # of the good ones, without the columns that depend on who is kept
    findings: list[Finding]
    alignment: dict[str, object]  # the audit's numbers; empty without one

    @property
    def n_rows(self) -> int:
        """The number of samples that are kept."""
        return int(self.is_good.sum())


def review(
    rendered: Rendered, findings: list[Finding], scheme: LabelScheme, options: BuildOptions
) -> Reviewed:
    """Check all rows together, and leave out those with a finding by which the user wants it.

    Parameters
    ----------
    rendered : Rendered
        All rows; its manifest becomes the result's.
    findings : list of Finding
        Those of the stages before.
    """
    is_good, manifest = np.array(rendered.is_good, np.bool_), rendered.manifest
    findings = findings + rendered.findings
    if not manifest:
        return Reviewed(is_good, {}, findings, {})
    audited = Audit([], {})
    if options.qc:
        order = np.lexsort((rendered.shapes["row"], rendered.shapes["code"]))
        shapes = rendered.shapes[order]
        findings += check_rows(Rows(manifest, rendered.marks["image"], shapes, scheme))
    if options.has_audit and scheme.has_contrast:
        patients, paths = (
            [value.decode() for value in manifest[name].tolist()]
            for name in ("patient_id", "dicom_path")
        )
        alignments = rendered.marks["alignment"]
        audited = audit(patients, paths, alignments, options.contour_origin)
    findings += audited.findings
    excluded = _excluded(findings, manifest, options.exclude_flagged)
    is_kept = _drop(list(excluded), manifest)
    is_good[is_good] = is_kept
    return Reviewed(is_good, manifest, findings + list(excluded.values()), audited.numbers)


def rows_by_key(keys: Iterable[SampleKey | None], manifest: Columns) -> dict[SampleKey, int]:
    """Return the row of each of some keys that has one."""
    wanted = {(k.patient_id.encode(), k.series.encode(), *k[2:]): k for k in keys if k is not None}
    if not wanted:
        return {}
    columns = (
        manifest[name].tolist() for name in ("patient_id", "series", "slice", "frame_number")
    )
    return {wanted[key]: row for row, key in enumerate(zip(*columns, strict=True)) if key in wanted}


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
    errors = [finding for finding in findings if finding.severity == "error"]
    if n_rows and not (strict and errors):
        return
    examples = "".join(f"\n  {finding}" for finding in (errors or findings)[:_EXAMPLES])
    see_all = "See all with --verbose or --log-file FILE."
    if not n_rows:
        codes = Counter(finding.code for finding in findings)
        listed = "".join(f", {n} {code}" for code, n in sorted(codes.items()))
        raise RejectedError(
            f"Nothing to build: no usable pair of image and contour{listed}."
            f"{' ' * bool(missing)}{missing}{examples}\n{see_all}",
            list(findings),
        )
    raise RejectedError(
        f"Build stopped by --strict: {len(errors)} finding{'s' * (len(errors) != 1)} of severity "
        f"error.{examples}\nMend them, or build without --strict to leave these pairs out. "
        f"{see_all}",
        list(findings),
    )


def keep_good(plan: Plan, reviewed: Reviewed, contours: npt.NDArray[np.int64]) -> Plan:
    """Return the plan of the file without the rows that are not kept, nor their vertices.

    Parameters
    ----------
    contours : int64 array, shape (n, 3)
        (row, label, number of vertices), of all rows.
    """
    is_good = reviewed.is_good
    if is_good.all():
        return plan
    ends = np.cumsum(contours[:, 2])
    stretches = np.stack([ends - contours[:, 2], ends], axis=1)[is_good[contours[:, 0]]]
    vertices = [(start, stop) for start, stop in stretches.tolist()]
    return hdf5_file.keep_rows(plan, np.flatnonzero(is_good).tolist(), vertices)


def _excluded(
    findings: list[Finding], manifest: Columns, codes: Sequence[str]
) -> Mapping[int, Finding]:
    """Return row → the finding that it is left out, of the rows with a finding of such a code."""
    causes = [finding for finding in findings if finding.code in codes]
    rows = rows_by_key((cause.key for cause in causes), manifest)
    excluded: dict[int, Finding] = {}
    for cause in causes:
        if cause.key in rows:  # not so for pairs that became no row at all
            message = f"left out by --exclude-flagged {cause.code}: {cause.message}"
            found = Finding("row-excluded", cause.path, message, cause.key, cause.label)
            excluded.setdefault(rows[cause.key], found)
    return excluded


def _drop(rows: list[int], manifest: Columns) -> npt.NDArray[np.bool_]:
    """Take rows out of the manifest; return which are left."""
    is_kept = np.ones(len(manifest["slice"]), np.bool_)
    is_kept[rows] = False
    if rows:
        for name in manifest:
            manifest[name] = manifest[name][is_kept]
    return is_kept
