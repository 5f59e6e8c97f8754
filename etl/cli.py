"""The command line: each command parses, calls one function, prints, and sets the exit status.

Heavy modules are imported by the command that needs them, so that --help is quick.
"""

import contextlib
import dataclasses
import datetime
import functools
import io
import math
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TextIO

import click

from etl import signals
from etl.errors import LIMITS, EtlError
from loader.format import VERSION

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from etl.assemble import BuildResult
    from etl.findings import Finding, FindingRow
    from etl.options import (
        FitAbout,
        Kind,
        MaskKind,
        NotDrawn,
        PatientId,
        Rasterizer,
        SamePerson,
        Size,
    )
    from etl.report.compare import Comparison
    from etl.report.summary import Summary
    from loader import Dataset

_CONTOURS: Final[dict[str, tuple["Kind", ...]]] = {
    "i": ("i",),
    "o": ("o",),
    "i,o": ("i", "o"),
    "o,i": ("i", "o"),
}
_EXCLUSIVE: Final = (
    ("size", "fit"),
    ("split", "split_file"),
    ("splits_from", "split_file"),
    ("no_qc", "exclude_flagged"),
    ("no_qc", "audit_contours"),
    ("no_audit", "audit_contours"),
    ("workers", "scheduler"),
    ("quiet", "verbose"),
)
_DIVIDES: Final = {"split", "folds", "splits_from", "update"}
_NEEDS: Final = (  # option, options of which it needs one, why
    (
        "resample",
        {"size", "fit"},
        "--resample gives images of one spacing, not of one size: give --fit ROWSxCOLUMNS, "
        "--size most or --size ROWSxCOLUMNS.",
    ),
    ("fit_about", {"fit"}, "--fit-about is about --fit: give its ROWSxCOLUMNS."),
    (
        "same_person",
        _DIVIDES,
        "--same-person needs --split or --folds.",
    ),
    ("split_seed", _DIVIDES, "--split-seed needs --split or --folds."),
    ("stratify", _DIVIDES, "--stratify needs --split or --folds."),
    ("patients_csv", {"stratify"}, "--patients-csv needs --stratify with the name of its column."),
    ("keep_tags_anyway", {"keep_tags"}, "--keep-tags-anyway needs --keep-tags."),
    ("paranoid", {"update"}, "--paranoid needs --update."),
    (
        "exclude_structures",
        {"exclude_flagged", "exclude_file"},
        "--exclude-structures needs --exclude-flagged or --exclude-file.",
    ),
)
_PYTHON_NAME: Final = re.compile(r"`([a-z_]+)(?:=True)?`")  # of an option, in messages
_OF_PREDICTIONS: Final = "disagrees-with-model"  # the code of a finding
_STDOUT: Final = Path("-")
# What only a check of the pixels can tell.
_OF_PIXELS: Final = {"no_qc", "no_audit", "audit_contours", "exclude_flagged"}
_UNITS: Final = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
_LOG_WORD: Final = b"dicom-etl "  # what a log begins with


class _Commands(click.Group):
    """Commands in the order a user runs them; our errors as one message and an exit status."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> object:
        from loader.errors import LoaderError

        try:
            return super().invoke(ctx)
        except (EtlError, LoaderError) as error:
            from etl.findings import printable

            raise click.ClickException(printable(_as_typed(str(error)))) from error
        except KeyboardInterrupt as stop:
            why, status = signals.why_stopped(stop)
            _print(f"{why}.", err=True)
            ctx.exit(status)


_MOST: Final = "most"


class _Size(click.ParamType[tuple[int, int] | str]):
    """ROWSxCOLUMNS → (rows, columns); the word "most" as it is, where it may stand."""

    name = "ROWSxCOLUMNS"

    def __init__(self, *, most: bool = False) -> None:
        self._has_most = most

    def convert(
        self, value: str | tuple[int, int], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int] | str:
        if isinstance(value, tuple) or (self._has_most and value == _MOST):
            return value
        parts = value.lower().split("x")
        if len(parts) != 2 or not all(p.isascii() and p.isdecimal() for p in parts):  # noqa: PLR2004
            self.fail(f"expected ROWSxCOLUMNS such as 256x256, found {value!r}", param, ctx)
        rows, columns = map(int, parts)
        if not (1 <= rows <= 65535 and 1 <= columns <= 65535):  # noqa: PLR2004  DICOM's limit
            self.fail(f"rows and columns are 1 to 65535, found {value!r}", param, ctx)
        return rows, columns


class _Spacing(click.ParamType[tuple[float, float]]):
    """MM or MMxMM → the distances between rows and between columns."""

    name = "MM[xMM]"

    def convert(
        self,
        value: str | tuple[float, float],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[float, float]:
        if isinstance(value, tuple):
            return value
        try:
            steps = [float(part) for part in value.lower().split("x")]
        except ValueError:
            steps = []
        if len(steps) not in {1, 2} or not all(0 < step < math.inf for step in steps):
            self.fail(f"expected millimetres such as 1.25 or 1.25x1.5, found {value!r}", param, ctx)
        return steps[0], steps[-1]


class _Split(click.ParamType[tuple[float, ...]]):
    """TRAIN/VALIDATION/TEST in percent → three shares."""

    name = "TRAIN/VALIDATION/TEST"

    def convert(
        self,
        value: str | tuple[float, ...],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value
        from etl.options import shares

        try:
            return shares(value.split("/"))
        except ValueError:
            self.fail(
                f"expected three shares that sum to 100, such as 70/15/15, found {value!r}",
                param,
                ctx,
            )


class _Codes(click.ParamType[tuple[str, ...]]):
    """CODE,... → finding codes in the order in which they are listed."""

    name = "CODE,..."

    def __init__(self, listed: Callable[[], Iterable[str]]) -> None:
        self._listed = listed

    def convert(
        self,
        value: str | tuple[str, ...],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        known = tuple(self._listed())
        given = [code.strip() for code in value.split(",")]
        if unknown := [code for code in given if code not in known]:
            self.fail(f"expected some of {', '.join(known)}, found {unknown[0]!r}", param, ctx)
        return tuple(code for code in known if code in given)


class _Flags(click.ParamType[tuple[str, ...]]):
    """CODE[:PATIENT],... → as given; the code must flag rows."""

    name = "CODE[:PATIENT],..."

    def convert(
        self,
        value: str | tuple[str, ...],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[str, ...]:
        from etl.findings import FLAG_CODES

        if isinstance(value, tuple):
            return value
        given = [entry.strip() for entry in value.split(",")]
        for entry in given:
            code, separator, patient = entry.partition(":")
            if code not in FLAG_CODES:
                known = ", ".join(FLAG_CODES)
                self.fail(f"expected some of {known}, found {code!r}", param, ctx)
            if separator and not patient:
                self.fail(f"expected a patient after {entry!r}", param, ctx)
        return tuple(given)


class _Limit(click.ParamType[tuple[str, int]]):
    """NAME=VALUE → a limit and its value; bytes may have a unit, as 4GiB."""

    name = "NAME=VALUE"

    def convert(
        self,
        value: str | tuple[str, int],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[str, int]:
        from etl.options import MOST_OF_A_LIMIT

        if isinstance(value, tuple):
            return value
        limit, _, number = value.partition("=")
        if limit not in LIMITS:
            self.fail(f"expected some of {', '.join(LIMITS)}, found {limit!r}", param, ctx)
        units = _UNITS if limit.endswith("-bytes") else {}
        unit = next((one for one in units if number.endswith(one)), "")
        digits = number.removesuffix(unit)
        if not (digits.isascii() and digits.isdecimal() and len(digits) <= len(str(1 << 53))):
            known = f", with {', '.join(units)} or without" if units else ""
            self.fail(
                f"expected a whole number after {limit}={known}, found {number!r}", param, ctx
            )
        found = int(digits) * units.get(unit, 1)
        if not 1 <= found <= MOST_OF_A_LIMIT:
            self.fail(f"{limit} is 1 to {MOST_OF_A_LIMIT}, found {number!r}", param, ctx)
        return limit, found


class _Structures(click.ParamType[object]):
    """NAME,... or FILE → names and patterns, or what a mapping file says."""

    name = "NAME,...|FILE"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        if not isinstance(value, str):
            return value
        if Path(value).suffix.lower() in {".toml", ".json"}:
            from etl.sources.structures import read_choices

            return read_choices(Path(value))
        names = tuple(name.strip() for name in value.split(","))
        if not all(names) or len(set(names)) < len(names):
            self.fail(f"expected names, each once, found {value!r}", param, ctx)
        return names


class _Steps(click.ParamType[tuple[str, ...]]):
    """STEP,... → the steps of a contour transform."""

    name = "STEP,..."

    def convert(
        self,
        value: str | tuple[str, ...],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        from etl.options import transform_steps

        try:
            return transform_steps([step.strip() for step in value.split(",")])
        except ValueError as error:
            self.fail(str(error).removeprefix("contour_transform: "), param, ctx)


class _Count(click.ParamType[int | None]):
    """N or all → a number from 1, or None."""

    name = "N|all"

    def convert(
        self, value: str | int, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | None:
        return None if value == "all" else click.IntRange(min=1)(value, param, ctx)


def _all_codes() -> Iterable[str]:
    from etl.findings import CODES

    return CODES


def _severities() -> Iterable[str]:
    from etl.findings import SEVERITY_ORDER

    return SEVERITY_ORDER


def main() -> None:
    """Run `dicom-etl`."""
    try:
        signals.raise_on_stop()
        status = _run()
        signals.ignore_stop()
    except (KeyboardInterrupt, click.Abort) as stop:  # while no command was running
        signals.ignore_stop()
        stop = stop if isinstance(stop, KeyboardInterrupt) else KeyboardInterrupt()
        why, status = signals.why_stopped(stop)
        _print(f"{why}.", err=True)
    sys.exit(status)


def _run() -> int:
    """Run the command that the arguments name, and return the exit status."""
    _open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name may have what the encoding lacks
            stream.reconfigure(errors="backslashreplace")
    try:
        return cli.main(prog_name="dicom-etl", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except OSError:
        try:
            click.echo()  # fails again where it was this that failed
        except OSError as error:
            _silence_stdout()
            _print(f"Error: Not all was printed: stdout: {_reason(error)}.", err=True)
            return 1
        raise


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="dicom-etl")
def cli() -> None:
    """Turn a folder of DICOM images and drawn contours into one HDF5 file, and look into it.

    \b
    dicom-etl check data/           what a build would take and refuse
    dicom-etl build data/ out.h5    parse every DICOM and contour once
    dicom-etl report out.h5         what is in it, and what looks wrong
    """  # noqa: D301  click wants the character itself: lines as they are


# Of the commands that look at an input.
_LAYOUT: Final = click.option(
    "--layout",
    type=click.Choice(["auto", "link", "table", "rtstruct", "seg"]),
    default="auto",
    show_default=True,
    help="How DATA is laid out: a folder with link.csv, a table of annotations, DICOM images with "
    "structure sets or segmentations, or whichever it is.",
)
_CONTOUR_KINDS: Final = click.option(
    "--contours",
    type=click.Choice(list(_CONTOURS)),
    help="With link.csv: i inner (blood pool), o outer (heart muscle), or both.  [default: i]",
)
_STRUCTURES: Final = click.option(
    "--structures",
    type=_Structures(),
    help="Without link.csv: structures to take, codes from 1 in this order, later ones on top; "
    "patterns such as 'kidney*'; or a TOML or JSON file of names with their patterns.  "
    "[default: all]",
)
_PATIENT_ID: Final = click.option(
    "--patient-id",
    type=click.Choice(["tag", "folder"]),
    default="tag",
    show_default=True,
    help="Patients of structure sets and segmentations: by PatientID, or by the first folder "
    "below DATA.",
)
_STRUCTURE_SETS: Final = click.option(
    "--structure-sets",
    metavar="newest|all|UID",
    default="newest",
    show_default=True,
    help="Which structure sets or segmentations of a series to take; UID is the SOPInstanceUID of "
    "one.",
)
_BACKGROUND: Final = click.option(
    "--background",
    is_flag=True,
    help="With structure sets or segmentations: also write the images of their series on which "
    "nothing is drawn.",
)
_PLANE_TOLERANCE: Final = click.option(
    "--plane-tolerance",
    type=click.FloatRange(min=0, min_open=True),
    metavar="MM",
    default=0.25,
    show_default=True,
    help="How far a contour or segment may lie off the plane of its image.",
)
_SEGMENT_THRESHOLD: Final = click.option(
    "--segment-threshold",
    type=click.FloatRange(0, 1, min_open=True),
    default=0.5,
    show_default=True,
    help="With fractional segmentations: the share from which a pixel belongs to a segment.",
)
_SIZE: Final = click.option(
    "--size",
    type=_Size(most=True),
    metavar="ROWSxCOLUMNS|most",
    default="256x256",
    show_default=True,
    help="The size every image must have, or that of most; others are rejected and named.",
)
_FIT: Final = click.option(
    "--fit",
    type=_Size(),
    metavar="ROWSxCOLUMNS",
    help="Instead of --size: pad and crop all images to this size.",
)
_FIT_ABOUT: Final = click.option(
    "--fit-about",
    type=click.Choice(["image", "structures"]),
    default="image",
    show_default=True,
    help="What of a larger image --fit keeps in the middle: its centre, or what is drawn on it.",
)
_RESAMPLE: Final = click.option(
    "--resample",
    type=_Spacing(),
    metavar="MM[xMM]",
    help="Give all images this distance between rows and columns, before --size or --fit.",
)
_CONTOUR_ORIGIN: Final = click.option(
    "--contour-origin",
    type=click.Choice(["0", "1"]),
    default="0",
    show_default=True,
    help="1 for contour files that count pixels from 1.",
)
_CONTOUR_TRANSFORM: Final = click.option(
    "--contour-transform",
    type=_Steps(),
    help="Mend contours in other coordinates, left to right, after the origin: swap, flip-x, "
    "flip-y, rotate-90, scale=F, mm.",
)
_PARTIAL: Final = click.option(
    "--partial", is_flag=True, help="With i,o: also write pairs that lack one of the two."
)
_MASKS: Final = click.option(
    "--masks",
    type=click.Choice(["labels", "bits"]),
    default="labels",
    show_default=True,
    help="One code a pixel, of the structure painted last; or a bit of each structure, so that "
    "none covers another.",
)
_RASTERIZER: Final = click.option(
    "--rasterizer",
    type=click.Choice(["center", "pillow"]),
    default="center",
    show_default=True,
    help="Pixels whose centre is inside, or Pillow's polygon bit for bit.",
)
_KEEP_TAGS: Final = click.option(
    "--keep-tags",
    metavar="KEYWORD,...",
    help="DICOM attributes to keep as columns tag_<keyword>, such as Manufacturer,EchoTime; only "
    "those that describe equipment and acquisition.",
)
_KEEP_TAGS_ANYWAY: Final = click.option(
    "--keep-tags-anyway",
    is_flag=True,
    help="With --keep-tags: also keep attributes by which patients may be found.",
)
_NO_QC: Final = click.option(
    "--no-qc", is_flag=True, help="Leave out the quality checks, and the audit."
)
_NO_AUDIT: Final = click.option(
    "--no-audit", is_flag=True, help="Do not measure whether contours are on edges."
)
_AUDIT_CONTOURS: Final = click.option(
    "--audit-contours",
    type=_Count(),
    metavar="N|all",
    default="6",
    show_default=True,
    help="How many contours of each patient the audit measures.",
)
_EXCLUDE_FLAGGED: Final = click.option(
    "--exclude-flagged",
    type=_Flags(),
    help="Leave out rows with such a warning, of all patients or of one: area-jump,"
    "identical-contour:P1.",
)
_EXCLUDE_FILE: Final = click.option(
    "--exclude-file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="CSV",
    help="Leave out the rows that a row list excludes or wants redrawn.",
)
_EXCLUDE_STRUCTURES: Final = click.option(
    "--exclude-structures",
    is_flag=True,
    help="With the two above: leave out only the structure that is named, not its row.",
)
_LIMITS: Final = click.option(
    "--limit",
    "limits",
    type=_Limit(),
    multiple=True,
    metavar="NAME=VALUE",
    help="What one source file may have at most, such as contour-points=2000000 or "
    "image-bytes=4GiB; may be given several times. The message of a file that was left out names "
    "its limit.",
)
_WORKERS: Final = click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes.  [default: the cores this process may use]",
)


@cli.command()
@click.argument("data", type=click.Path(path_type=Path))
@_LAYOUT
@_CONTOUR_KINDS
@_STRUCTURES
@_STRUCTURE_SETS
@_PATIENT_ID
@_BACKGROUND
@_PLANE_TOLERANCE
@_SEGMENT_THRESHOLD
@_SIZE
@_FIT
@_FIT_ABOUT
@_RESAMPLE
@_RASTERIZER
@_CONTOUR_ORIGIN
@_CONTOUR_TRANSFORM
@_PARTIAL
@_MASKS
@_KEEP_TAGS
@_KEEP_TAGS_ANYWAY
@_NO_QC
@_NO_AUDIT
@_AUDIT_CONTOURS
@_EXCLUDE_FLAGGED
@_EXCLUDE_FILE
@_EXCLUDE_STRUCTURES
@_LIMITS
@click.option(
    "--full", is_flag=True, help="Decode the pixels, too, and make all checks of a build."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result for machines.")
@click.option(
    "--csv",
    "csv_file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write all findings to this table.",
)
@click.option("--force", is_flag=True, help="Replace the file that --csv names.")
@_WORKERS
def check(
    data: Path,
    layout: str,
    contours: str | None,
    structures: object,
    structure_sets: str,
    patient_id: "PatientId",
    background: bool,
    plane_tolerance: float,
    segment_threshold: float,
    size: tuple[int, int] | str,
    fit: tuple[int, int] | None,
    fit_about: "FitAbout",
    resample: tuple[float, float] | None,
    contour_origin: str,
    contour_transform: tuple[str, ...] | None,
    partial: bool,
    masks: "MaskKind",
    rasterizer: "Rasterizer",
    keep_tags: str | None,
    keep_tags_anyway: bool,
    no_qc: bool,
    no_audit: bool,
    audit_contours: int | None,
    exclude_flagged: tuple[str, ...] | None,
    exclude_file: Path | None,
    exclude_structures: bool,
    limits: tuple[tuple[str, int], ...],
    full: bool,
    as_json: bool,
    csv_file: Path | None,
    force: bool,
    workers: int | None,
) -> None:
    """Say what a build of DATA would take and refuse, and write no OUT.

    Reads headers and annotations, which takes seconds.
    """
    import json

    _check_build_options()
    if not full and (given := sorted(_given() & _OF_PIXELS)):
        raise click.UsageError(f"{_option_name(given[0])} needs --full: only pixels tell.")
    with signals.stop_deferred():  # as for a build
        from etl.workers import local_pool

        n_workers = workers or local_pool.available_cores()
        local_pool.start_early(n_workers)
        from etl.check import check as check_input
        from etl.options import BuildOptions

    rows, columns, rule = _file_size(size, fit)
    options = BuildOptions(
        layout=layout,
        contours=_CONTOURS[contours] if contours else None,
        structures=structures,  # type: ignore[arg-type]  # checked there
        structure_sets=structure_sets,
        patient_id=patient_id,
        background=background,
        plane_tolerance=plane_tolerance,
        segment_threshold=segment_threshold,
        rows=rows,
        columns=columns,
        size=rule,
        resample=resample,
        fit_about=fit_about,
        contour_origin=int(contour_origin),
        contour_transform=contour_transform or (),
        partial=partial,
        masks=masks,
        rasterizer=rasterizer,
        keep_tags=_keywords(keep_tags),
        keep_tags_anyway=keep_tags_anyway,
        qc=not no_qc,
        audit=not no_audit,
        audit_contours=audit_contours,
        exclude_flagged=exclude_flagged or (),
        exclude_file=str(exclude_file) if exclude_file else None,
        exclude_structures=exclude_structures,
        limits=limits,
    )
    found = check_input(data, options, workers=n_workers, full=full, progress=True)
    if csv_file is not None:
        found.write_csv(csv_file, force=force)
    lines = [json.dumps(found.to_json(), indent=2)] if as_json else found.text()
    for line in lines:
        click.echo(line)
    if csv_file is not None and not as_json:
        _print(f"Findings written to {csv_file}.")
    found.require_rows()


@cli.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@_LAYOUT
@_CONTOUR_KINDS
@_STRUCTURES
@_STRUCTURE_SETS
@_PATIENT_ID
@_BACKGROUND
@_PLANE_TOLERANCE
@_SEGMENT_THRESHOLD
@_SIZE
@_FIT
@_FIT_ABOUT
@_RESAMPLE
@_RASTERIZER
@_CONTOUR_ORIGIN
@_CONTOUR_TRANSFORM
@_PARTIAL
@_MASKS
@click.option(
    "--not-drawn",
    type=click.Choice(["background", "ignore"]),
    default="background",
    show_default=True,
    help="What a mask has where a structure that was not drawn may be: 0, or 255 (ignore).",
)
@_KEEP_TAGS
@_KEEP_TAGS_ANYWAY
@click.option("--split", type=_Split(), help="Shares by patient, such as 70/15/15.")
@click.option(
    "--split-seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Key of the split: another number gives another one.",
)
@click.option("--folds", type=click.IntRange(2, 9999), help="Cross-validation folds by patient.")
@click.option(
    "--split-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Your own split: patient_id,split[,fold].",
)
@click.option(
    "--splits-from",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="OLD.h5",
    help="Patients keep the split and fold that this file has; only new ones are assigned.",
)
@click.option(
    "--stratify",
    metavar="COLUMN",
    help="Give each part its share of each value of this column of the manifest, or of "
    "--patients-csv.",
)
@click.option(
    "--patients-csv",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="CSV",
    help="With --stratify: your own table, with patient_id and that column.",
)
@click.option(
    "--same-person",
    type=click.Choice(["keep", "separate"]),
    default="keep",
    show_default=True,
    help="Patients that seem to be one person: keep them on one side, or take them as they are.",
)
@_NO_QC
@_NO_AUDIT
@_AUDIT_CONTOURS
@_EXCLUDE_FLAGGED
@_EXCLUDE_FILE
@_EXCLUDE_STRUCTURES
@_WORKERS
@click.option(
    "--scheduler",
    metavar="ADDRESS",
    help="Work on a Dask cluster instead, over a shared file system.",
)
@click.option(
    "--update",
    is_flag=True,
    help="Take over the rows of OUT whose sources are unchanged, parse only the rest, and replace "
    "OUT; patients keep their split.",
)
@click.option(
    "--paranoid",
    is_flag=True,
    help="With --update: tell by the digest of every source whether it is unchanged.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with the rows that a killed build has left beside OUT, and parse only the rest; if "
    "this build is stopped, its rows stay for the next.",
)
@click.option(
    "--sha256", is_flag=True, help="Also write OUT.sha256, which `sha256sum -c` checks OUT with."
)
@click.option(
    "--file-timeout",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    default=60,
    show_default=True,
    help="Leave out a pair whose files take a worker process longer; 0: never.",
)
@_LIMITS
@click.option("--strict", is_flag=True, help="Fail, and write nothing, on any error finding.")
@click.option("--force", is_flag=True, help="Replace OUT if it is an HDF5 file or empty.")
@click.option(
    "--log-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Append every finding to this file.",
)
@click.option("--quiet", "-q", is_flag=True, help="Print only what stops the build.")
@click.option("--verbose", "-v", is_flag=True, help="Print every finding.")
def build(
    data: Path,
    out: Path,
    layout: str,
    contours: str | None,
    structures: object,
    structure_sets: str,
    patient_id: "PatientId",
    background: bool,
    plane_tolerance: float,
    segment_threshold: float,
    size: tuple[int, int] | str,
    fit: tuple[int, int] | None,
    fit_about: "FitAbout",
    resample: tuple[float, float] | None,
    rasterizer: "Rasterizer",
    contour_origin: str,
    contour_transform: tuple[str, ...] | None,
    partial: bool,
    masks: "MaskKind",
    not_drawn: "NotDrawn",
    keep_tags: str | None,
    keep_tags_anyway: bool,
    split: tuple[float, float, float] | None,
    split_seed: int,
    folds: int | None,
    split_file: Path | None,
    splits_from: Path | None,
    stratify: str | None,
    patients_csv: Path | None,
    same_person: "SamePerson",
    no_qc: bool,
    no_audit: bool,
    audit_contours: int | None,
    exclude_flagged: tuple[str, ...] | None,
    exclude_file: Path | None,
    exclude_structures: bool,
    workers: int | None,
    scheduler: str | None,
    update: bool,
    paranoid: bool,
    resume: bool,
    sha256: bool,
    file_timeout: float,
    limits: tuple[tuple[str, int], ...],
    strict: bool,
    force: bool,
    log_file: Path | None,
    quiet: bool,
    verbose: bool,
) -> None:
    """Write the images and masks of DATA, a folder or a table, to the HDF5 file OUT.

    One bad file never stops the build: it is left out and listed. OUT appears only when it is
    whole.
    """
    _check_build_options()
    signals.ignore_stop_once(_is_replaced(out))
    with signals.stop_deferred():  # NumPy fails in its own words where an import breaks off
        from etl.workers import local_pool

        n_workers = workers or local_pool.available_cores()
        is_quick = update and os.path.exists(f"{out}.cache")  # it may parse next to nothing
        if scheduler is None and not is_quick:
            local_pool.start_early(n_workers)  # before all that imports NumPy
        from etl.errors import RejectedError
        from etl.findings import counted
        from etl.options import BuildOptions
        from etl.pipeline import build as build_file

    rows, columns, rule = _file_size(size, fit)
    options = BuildOptions(
        layout=layout,
        contours=_CONTOURS[contours] if contours else None,
        structures=structures,  # type: ignore[arg-type]  # checked there
        structure_sets=structure_sets,
        patient_id=patient_id,
        background=background,
        plane_tolerance=plane_tolerance,
        segment_threshold=segment_threshold,
        rows=rows,
        columns=columns,
        size=rule,
        resample=resample,
        fit_about=fit_about,
        rasterizer=rasterizer,
        contour_origin=int(contour_origin),
        contour_transform=contour_transform or (),
        partial=partial,
        masks=masks,
        not_drawn=not_drawn,
        keep_tags=_keywords(keep_tags),
        keep_tags_anyway=keep_tags_anyway,
        split=split,
        split_seed=split_seed,
        folds=folds,
        split_file=str(split_file) if split_file else None,
        splits_from=str(splits_from) if splits_from else None,
        stratify=stratify,
        patients_csv=str(patients_csv) if patients_csv else None,
        same_person=same_person,
        qc=not no_qc,
        audit=not no_audit,
        audit_contours=audit_contours,
        exclude_flagged=exclude_flagged or (),
        exclude_file=str(exclude_file) if exclude_file else None,
        exclude_structures=exclude_structures,
        limits=limits,
    )
    with _log(log_file, out) as log, _executor(scheduler, n_workers) as (executor, n_workers):
        log.begin(f"build {data} {out}", {**dataclasses.asdict(options), "strict": strict})
        advice = f"--resume goes on with them; this build removes it when {out} is written"
        _say_left(out, advice, is_said=not resume)
        say = functools.partial(_say_layout, log, quiet=quiet or layout != "auto")
        try:
            result = build_file(
                data,
                out,
                options,
                workers=n_workers,
                executor=executor,
                force=force,
                strict=strict,
                progress=not quiet,
                update=update,
                paranoid=paranoid,
                resume=resume,
                on_layout=say,
                sha256=sha256,
                file_seconds=file_timeout,
            )
        except RejectedError as error:
            _list_findings(error.findings, log, verbose=verbose)
            log.end(f"stopped: {error.args[0].splitlines()[0]}")
            text = f"{error.args[0]}\nSee all with --verbose or --log-file FILE."
            raise click.ClickException(_as_typed(text)) from error  # several lines, all printable
        except EtlError as error:
            log.end(f"stopped: {error}")
            _say_left(out, "--resume goes on with them", is_said=resume)
            raise
        except KeyboardInterrupt as stop:  # not when OUT has been replaced: see _is_replaced
            why, status = signals.why_stopped(stop)
            log.end(f"{why}: nothing was written.")
            _print(f"{why}: nothing was written.", err=True)
            _say_left(out, "--resume goes on with them", is_said=resume)
            click.get_current_context().exit(status)
        with _whole_whatever_fails(out):
            _list_findings(result.findings, log, verbose=verbose)
            for note in result.notes:
                if not quiet:
                    _print(f"Note: {note}", err=True)
                log.add(f"note: {note}")
            log.end(f"wrote {counted(result.n_rows, 'row')}{_counts(result.findings)}")
            if not quiet:
                _print_result(result, out)


def _print_result(result: "BuildResult", out: Path) -> None:
    """Print what a build wrote, what is wrong, and what was found."""
    from etl.findings import FindingRow, counted
    from etl.report.findings import group_findings
    from etl.report.text import Terminal, diagnoses_text, findings_text

    terminal = Terminal.of(sys.stdout)
    _print(f"Wrote {out}: {counted(result.n_rows, 'row')}.")
    rows = [FindingRow(f.severity, f.code, f.path, -1, f.message) for f in result.findings]
    for lines in (
        diagnoses_text(result.diagnoses, terminal),
        findings_text(
            group_findings(rows), f"dicom-etl report {out}", ("error", "warning"), terminal
        ),
    ):
        for line in lines:
            click.echo(line)


@cli.command()
@click.argument("file", type=click.Path(path_type=Path), default="out.h5")
@click.option("--json", "as_json", is_flag=True, help="Print the summary for machines.")
@click.option(
    "--csv",
    "csv_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE|-",
    help="Write the findings as a row list: to this table, or with - to stdout.",
)
@click.option(
    "--splits-csv",
    "splits_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE|-",
    help="Write the split of each patient as build --split-file reads it; - is stdout.",
)
@click.option(
    "--overlays",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Draw contour and mask over the images, one PNG per row.",
)
@click.option(
    "--html",
    "page",
    type=click.Path(),
    metavar="PAGE|DIR/",
    help="Write all of it as one page with pictures, in which rows can be accepted or excluded; "
    "with a slash at the end, as a folder with a page for each patient.",
)
@click.option(
    "--gallery",
    type=click.IntRange(min=0),
    metavar="N",
    default=300,
    show_default=True,
    help="With --html: rows with a picture; flagged ones first, then a spread of the others.",
)
@click.option(
    "--pseudonyms",
    is_flag=True,
    help="With --html: show P001 and so on instead of ids, and no paths or messages.",
)
@click.option(
    "--contact-sheet",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PNG",
    help="Draw the same as small tiles of one picture.",
)
@click.option(
    "--severity",
    type=_Codes(_severities),
    default=(),
    metavar="SEVERITY,...",
    help="Show only errors, warnings or infos: error,warning.",
)
@click.option(
    "--code", type=_Codes(_all_codes), default=(), help="Show only findings of these codes."
)
@click.option(
    "--patient",
    multiple=True,
    metavar="ID",
    help="Show only what is about this patient, by either id; may be given several times.",
)
@click.option(
    "--predictions",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Compare the masks with a model's predictions (HDF5 or .npz), the least alike first.",
)
@click.option(
    "--fail-on",
    type=_Codes(_all_codes),
    default=(),
    help="Exit with status 1 where the file has such a finding, shown or not.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Replace files that --csv, --splits-csv, --overlays, --html and --contact-sheet would "
    "write.",
)
@click.option(
    "--compare",
    "old",
    type=click.Path(path_type=Path),
    metavar="OLD.h5",
    help="Instead, say what differs from an older file; with --html the page shows it.",
)
def report(
    file: Path,
    as_json: bool,
    csv_file: Path | None,
    splits_file: Path | None,
    overlays: Path | None,
    page: str | None,
    gallery: int,
    pseudonyms: bool,
    contact_sheet: Path | None,
    severity: tuple[str, ...],
    code: tuple[str, ...],
    patient: tuple[str, ...],
    predictions: Path | None,
    fail_on: tuple[str, ...],
    force: bool,
    old: Path | None,
) -> None:
    """Say what is in FILE, what is missing, and what looks wrong.

    FILE is what `dicom-etl build` wrote; out.h5 where it is not given. The sources are not needed.
    """
    from etl.report.findings import Selection, read_findings
    from etl.report.summary import summarise
    from loader import open_dataset

    _check_report_options()
    dataset = open_dataset(file)
    older = None if old is None else _compared(open_dataset(old), dataset, as_json=as_json)
    if older is not None and page is None:
        return
    selection = Selection(severity, code, patient)
    findings, agreed = read_findings(dataset), None
    if predictions is not None:
        from etl.report.predictions import agreement, disagreements, merged

        agreed = agreement(dataset, predictions)
        findings = merged(findings, disagreements(dataset, agreed))
    chosen = selection.chosen(findings)
    summary = dataclasses.replace(
        summarise(dataset, findings, selection), path=str(file), predictions=agreed
    )
    _write_list(dataset, chosen, csv_file, force=force)
    _write_splits(dataset, splits_file, force=force)
    _draw(dataset, selection.rows(dataset, chosen), chosen, overlays, contact_sheet, force=force)
    where = _write_pages(
        (dataset, summary, chosen),
        page,
        older,
        n_pictures=gallery,
        pseudonyms=pseudonyms,
        force=force,
    )
    if _STDOUT not in {csv_file, splits_file}:
        if older is None:
            _print_summary(summary, as_json=as_json)
        written = (
            ("Findings", csv_file),
            ("Splits", splits_file),
            ("Overlays", overlays),
            ("Contact sheet", contact_sheet),
            ("Page", where),
        )
        for what, path in written if not as_json else ():
            if path is not None and path.exists():
                _print(f"{what} written to {path}.")
    _check_findings(summary, {one.code for one in findings}, fail_on)


def _check_report_options() -> None:
    given = _given()
    of_page = {"page", "gallery", "pseudonyms", "force"} if "page" in given else set()
    if "old" in given and (others := given - {"old", "file", "as_json"} - of_page):
        listed = ", ".join(_option_name(name) for name in sorted(others))
        raise click.UsageError(f"--compare excludes {listed}.")
    params = click.get_current_context().params
    if params["predictions"] is None and _OF_PREDICTIONS in {*params["code"], *params["fail_on"]}:
        raise click.UsageError(f"{_OF_PREDICTIONS}: only predictions tell; give --predictions.")
    if "page" not in given and (others := given & {"gallery", "pseudonyms"}):
        listed = " and ".join(_option_name(name) for name in sorted(others))
        raise click.UsageError(f"{listed}: only with --html.")
    to_stdout = [
        f"{_option_name(one)} -" for one in ("csv_file", "splits_file") if params[one] == _STDOUT
    ]
    to_stdout += ["--json"] * ("as_json" in given)
    if len(to_stdout) > 1:
        raise click.UsageError(f"{' and '.join(to_stdout)} both go to stdout: give one of them.")


def _write_pages(
    shown: "tuple[Dataset, Summary, list[FindingRow]]",
    page: str | None,
    older: "tuple[Dataset, Comparison] | None",
    *,
    n_pictures: int,
    pseudonyms: bool,
    force: bool,
) -> Path | None:
    """Write the page, or a folder of pages; return where."""
    if page is None:
        return None
    from etl.report.page import Subject, write_page, write_pages

    subject = Subject(*shown, pseudonyms=pseudonyms, older=older)
    is_folder = page.endswith(("/", os.sep)) or os.path.isdir(page)
    write = write_pages if is_folder else write_page
    write(subject, Path(page), n_pictures=n_pictures, force=force)
    return Path(page)


def _write_list(
    dataset: "Dataset", findings: "list[FindingRow]", path: Path | None, *, force: bool
) -> None:
    from etl.report.table import csv_text, write_csv

    if path == _STDOUT:
        click.echo(csv_text(dataset, findings, "\n"), nl=False)
    elif path is not None:
        write_csv(dataset, findings, path, force=force)


def _write_splits(dataset: "Dataset", path: Path | None, *, force: bool) -> None:
    from etl.report.table import splits_text, write_splits

    if path == _STDOUT:
        click.echo(splits_text(dataset, "\n"), nl=False)
    elif path is not None:
        write_splits(dataset, path, force=force)


def _draw(
    dataset: "Dataset",
    rows: list[int],
    findings: "list[FindingRow]",
    folder: Path | None,
    sheet: Path | None,
    *,
    force: bool,
) -> None:
    """Draw rows with their findings, where that is wanted."""
    if folder is None and sheet is None:
        return
    if not rows:
        _print("Note: no row is chosen; nothing is drawn.", err=True)
        return
    from etl.report.overlays import remarks_on, write_contact_sheet, write_overlays

    remarks = remarks_on(findings)
    if folder is not None:
        others = write_overlays(dataset, folder, force=force, rows=rows, remarks=remarks)
        if others:
            _print(
                f"Note: {folder} has other files, which were left as they are: {len(others)} "
                f"in all, such as {others[0]}.",
                err=True,
            )
    if sheet is not None:
        n_more = write_contact_sheet(dataset, sheet, force=force, rows=rows, remarks=remarks)
        if n_more:
            shown = f"the first {len(rows) - n_more} of {len(rows)} rows"
            _print(f"Note: {sheet} has {shown}. Choose fewer with --code or --patient.", err=True)


def _print_summary(summary: "Summary", *, as_json: bool) -> None:
    import json

    from etl.report.text import Terminal, summary_text

    if as_json:
        try:
            text = json.dumps(summary.to_json(), indent=2, allow_nan=False)
        except ValueError as error:
            raise EtlError(
                f"Report not possible: {summary.path}: a number in it is not finite, which JSON "
                "cannot say. See it without --json."
            ) from error
        click.echo(text)
        return
    for line in summary_text(summary, Terminal.of(sys.stdout)):
        click.echo(line)


def _compared(old: "Dataset", new: "Dataset", *, as_json: bool) -> "tuple[Dataset, Comparison]":
    """Print what differs from an older file; return both."""
    import json

    from etl.report.compare import compare, comparison_text

    found = compare(old, new)
    lines = [json.dumps(found.to_json(), indent=2)] if as_json else comparison_text(found)
    for line in lines:
        click.echo(line)
    return old, found


def _check_findings(summary: "Summary", codes: set[str], fail_on: tuple[str, ...]) -> None:
    """Fail where the file has such findings, or where the build did not look for them."""
    if unchecked := [code for code in fail_on if code in summary.unchecked]:
        raise EtlError(
            f"--fail-on: {summary.path} was built without the checks for {', '.join(unchecked)}. "
            "Build it again without --no-qc and --no-audit."
        )
    if found := [code for code in fail_on if code in codes]:
        raise EtlError(f"--fail-on: {summary.path} has findings of {', '.join(found)}.")


@cli.command()
@click.argument("file", type=click.Path(path_type=Path), default="out.h5")
@click.option(
    "--card",
    "card_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="card.toml",
    help="What only you know: licence, creators, annotation protocol, and so on.",
)
@click.option(
    "--markdown",
    "markdown_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE|-",
    help="Write the card as Markdown.  [default: to stdout]",
)
@click.option(
    "--json-ld",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE|-",
    help="Write Croissant 1.1, which search engines for data sets read; - is stdout.",
)
@click.option("--force", is_flag=True, help="Replace files that are there.")
def describe(
    file: Path,
    card_file: Path | None,
    markdown_file: Path | None,
    json_file: Path | None,
    force: bool,
) -> None:
    """Describe FILE for its publication: a data card, and Croissant metadata.

    The facts come from FILE, the rest from card.toml. What nobody has stated is said to be missing.
    """
    import json

    from etl.report.card import Card, read_card, sha256
    from etl.report.card import describe as card_lines
    from etl.report.croissant import croissant
    from etl.report.summary import summarise
    from loader import open_dataset

    outputs = {"--markdown": markdown_file, "--json-ld": json_file}
    if all(path == _STDOUT for path in outputs.values()):
        raise click.UsageError("--markdown - and --json-ld - both go to stdout: give one of them.")
    if markdown_file is None and json_file != _STDOUT:
        outputs["--markdown"] = _STDOUT
    card = read_card(card_file) if card_file is not None else Card()
    dataset = open_dataset(file)
    summary, digest = summarise(dataset), sha256(dataset)
    texts = {
        "--markdown": "\n".join(card_lines(summary, card, digest)),
        "--json-ld": json.dumps(croissant(summary, card, digest), indent=2, ensure_ascii=False),
    }
    for option, path in outputs.items():
        _write_text(texts[option], path, force=force)
    if card.not_stated:
        _print(f"Note: not stated: {', '.join(card.not_stated)}. Write them in --card.", err=True)


def _write_text(text: str, path: Path | None, *, force: bool) -> None:
    """Print a text, or write it to a file."""
    from etl.output import target

    if path == _STDOUT:
        click.echo(text)
    elif path is not None:
        with target.replacing(
            target.check_target(path, force=force, only_hdf5=False), force=force
        ) as partial:
            partial.write_text(f"{text}\n", encoding="utf-8")
        _print(f"Written: {path}.", err=True)


@cli.command()
@click.argument("file", type=click.Path(path_type=Path), default="out.h5")
@click.option(
    "--source",
    type=click.Path(path_type=Path),
    metavar="DATA",
    help="Also say which of the sources in DATA are missing, changed or new.",
)
@click.option(
    "--rebuild-check",
    is_flag=True,
    help="With --source: parse every source again by other, plainer code; compare each pixel.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes.  [default: the cores this process may use]",
)
def verify(file: Path, source: Path | None, rebuild_check: bool, workers: int | None) -> None:
    """Prove that FILE is whole: every row and column against its digest and the others.

    FILE is what `dicom-etl build` wrote; out.h5 where it is not given. Exit status 1 on any
    difference.
    """
    if rebuild_check and source is None:
        raise click.UsageError("--rebuild-check needs the sources: give --source DATA.")
    with signals.stop_deferred():
        from etl.verify.file import verify as verify_file
        from etl.workers import local_pool

    result = verify_file(
        file,
        source=source,
        rebuild=rebuild_check,
        workers=workers or local_pool.available_cores(),
        progress=True,
    )
    for problem in result.problems:
        click.echo(str(problem))
    if result.problems:
        n = len(result.problems)
        raise EtlError(f"Not as it was built: {file}: {n} difference{'s' * (n != 1)}.")
    _print(f"Verified {file}: {result.n_rows} rows, no difference.")


@cli.command()
@click.argument("file", type=click.Path(path_type=Path), default="out.h5")
@click.option(
    "--augment",
    required=True,
    metavar="PRESET|FILE",
    help="default, cardiac-mr or ct; or a file with the JSON of Augment.to_json.",
)
@click.option(
    "--png",
    type=click.Path(path_type=Path),
    required=True,
    metavar="SHEET",
    help="The picture to write.",
)
@click.option(
    "--n-rows",
    type=click.IntRange(1, 30),
    default=6,
    show_default=True,
    help="Rows of FILE to show, evenly spaced.",
)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**64 - 1),
    default=0,
    show_default=True,
    help="Seed of the loader.",
)
@click.option("--force", is_flag=True, help="Replace the file that --png names.")
def preview(file: Path, augment: str, png: Path, n_rows: int, seed: int, force: bool) -> None:
    """Draw what an augmentation makes of rows of FILE: each as it is, and in five epochs.

    Needs the extra dicom-etl[augment] for parts that move pixels other than by flips and turns.
    """
    with signals.stop_deferred():
        import loader
        from etl.report.preview import write_preview

    presets: dict[str, Callable[[], loader.Augment]] = {
        "default": loader.Augment,
        "cardiac-mr": loader.Augment.cardiac_mr,
        "ct": loader.Augment.ct,
    }
    if augment in presets:
        chosen = presets[augment]()
    else:
        try:
            text = Path(augment).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise click.UsageError(
                f"--augment: expected {', '.join(presets)} or a file with JSON, found {augment}."
            ) from error
        chosen = loader.Augment.from_json(text)
    dataset = loader.open_dataset(file)
    rows = write_preview(dataset, png, chosen, n_rows=n_rows, seed=seed, force=force)
    for line in chosen.describe().splitlines():
        _print(line)
    _print(f"Preview: {png}: {len(rows)} row{'s' * (len(rows) != 1)}.")


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path), metavar="DIR")
@click.option(
    "--patients",
    type=click.IntRange(1, 999),
    default=6,
    show_default=True,
    help="Patients to make.",
)
@click.option(
    "--slices",
    type=click.IntRange(1, 99),
    default=8,
    show_default=True,
    help="Slices of each patient's stack.",
)
@click.option(
    "--phases",
    type=click.IntRange(1, 99),
    default=10,
    show_default=True,
    help="Phases of each slice's heart beat.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Key of the patients: another number gives others.",
)
@click.option(
    "--as",
    "kind",
    type=click.Choice(["link", "table", "rtstruct", "seg", "enhanced"]),
    default="link",
    show_default=True,
    help="Hearts with link.csv; or shapes of known volume as a table, RT Structure Sets, "
    "Segmentations, or RT Structure Sets with enhanced multi-frame images.",
)
@click.option("--force", is_flag=True, help="Replace a phantom that is there already.")
def phantom(
    folder: Path,
    patients: int,
    slices: int,
    phases: int,
    seed: int,
    kind: str,
    force: bool,
) -> None:
    """Make synthetic patients in DIR: DICOM files and contours to try the tool on."""
    from tqdm import tqdm

    is_cine = kind == "link"
    if not is_cine and "phases" in _given():
        raise click.UsageError("--phases is for hearts that beat: leave out --as.")
    n_images = patients * slices * (phases if is_cine else 1)
    with tqdm(desc="phantom", total=n_images, unit=" images", disable=None) as bar:
        common = {"patients": patients, "slices": slices, "seed": seed, "force": force}
        if is_cine:
            text = _write_hearts(folder, phases, common, bar.update)
        else:
            text = _write_shapes(folder, kind, common, bar.update)
    _print(f"Wrote {folder}: {text}.")


def _write_hearts(
    folder: Path, phases: int, common: dict[str, int], progress: Callable[[int], object]
) -> str:
    from etl.findings import counted
    from etl.phantom.tree import write_phantom

    counts = write_phantom(folder, phases=phases, progress=progress, **common)  # type: ignore[arg-type]
    return (
        f"{counted(counts.n_patients, 'patient')}, {counted(counts.n_dicoms, 'DICOM file')}, "
        f"{counted(counts.n_icontours, 'i-contour')}, {counted(counts.n_ocontours, 'o-contour')}"
    )


def _write_shapes(
    folder: Path, kind: str, common: dict[str, int], progress: Callable[[int], object]
) -> str:
    from etl.findings import counted
    from etl.phantom.objects import write_shapes

    n_images = write_shapes(folder, kind, progress=progress, **common)  # type: ignore[arg-type]
    return f"{counted(common['patients'], 'patient')}, {counted(n_images, 'image')} with shapes"


def _is_replaced(out: Path) -> Callable[[], bool]:
    """Return a function that tells whether OUT is another file by then."""

    def identity() -> tuple[int, int] | None:
        try:
            found = os.stat(out)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    before = identity()
    return lambda: identity() not in {None, before}


@contextmanager
def _whole_whatever_fails(out: Path) -> Iterator[None]:
    """Say that OUT is written where what is told of it cannot be printed: that is no failure."""
    try:
        yield
    except OSError as error:
        _silence_stdout()
        _print(f"Note: {out} is written, but not all was printed: {_reason(error)}.", err=True)


def _given() -> set[str]:
    """Return the names of the parameters that were given."""
    context = click.get_current_context()
    default = click.core.ParameterSource.DEFAULT
    return {name for name in context.params if context.get_parameter_source(name) is not default}


def _option_name(name: str) -> str:
    """Return the option of a parameter, as one types it."""
    command = click.get_current_context().command
    return next(one.opts[0] for one in command.params if one.name == name)


def _check_build_options() -> None:
    """Refuse options that contradict each other, or that would do nothing."""
    context = click.get_current_context()
    given = _given()
    for pair in _EXCLUSIVE:
        if given >= set(pair):
            options = " and ".join(f"--{name.replace('_', '-')}" for name in pair)
            raise click.UsageError(f"{options} exclude each other: give one of them.")
    if "partial" in given and len(_CONTOURS[context.params["contours"] or "i"]) == 1:
        raise click.UsageError("--partial needs two contours: use --contours i,o.")
    names = [name for name, _ in context.params["limits"]]
    if twice := [name for name in names if names.count(name) > 1]:
        raise click.UsageError(f"--limit {twice[0]} is given twice: give it once.")
    for name, others, why in _NEEDS:
        if name in given and not given & others:
            raise click.UsageError(why)
    if context.params["masks"] == "bits" and context.params.get("not_drawn") == "ignore":
        raise click.UsageError(
            "--not-drawn ignore has no value in bit masks, of which the columns drawn_<code> tell "
            "what was not drawn: leave it out, or --masks bits."
        )
    has_two = len(_CONTOURS[context.params["contours"] or "i"]) > 1
    if has_two and "exclude_structures" in given and "partial" not in given:
        raise click.UsageError(
            "--exclude-structures keeps pairs that lack a contour: give --partial as well."
        )


def _keywords(text: str | None) -> tuple[str, ...]:
    """Return the keywords of --keep-tags."""
    return tuple(name.strip() for name in text.split(",")) if text else ()


def _file_size(size: tuple[int, int] | str, fit: tuple[int, int] | None) -> tuple[int, int, "Size"]:
    """Return the size of the file's images, and what becomes of others."""
    if fit is not None:
        return *fit, "fit"
    if isinstance(size, str):
        return 256, 256, "most"  # replaced as soon as the sizes are known
    return *size, "exact"


@contextmanager
def _executor(scheduler: str | None, n_workers: int) -> "Iterator[tuple[Executor | None, int]]":
    """Yield the Dask cluster's executor and size, or none and the number of local workers."""
    if scheduler is None:
        yield None, n_workers
        return
    from etl.workers.engine import dask_executor

    with dask_executor(scheduler) as (executor, n_tasks):
        yield executor, n_tasks


def _say_layout(log: "_Log", why: str, *, quiet: bool) -> None:
    """Say which layout is found; quietly where it was given."""
    log.add(why)
    if not quiet:
        _print(why, err=True)


def _say_left(out: Path, advice: str, *, is_said: bool) -> None:
    """Name the partial file that a resume could use, where there is one and it is to be said."""
    from etl.update.memory import left_text

    if is_said and (text := left_text(out)):
        _print(f"Note: {text}: {advice}.", err=True)


class _Log:
    """The log file, or none; what it cannot take is told once and stops nothing."""

    def __init__(self, file: TextIO | None) -> None:
        self._file = file
        self._started = time.monotonic()

    def begin(self, command: str, options: dict[str, object]) -> None:
        """Write what is run, when, and with which options."""
        import json

        self.add(f"dicom-etl {VERSION} {command}")
        self.add(f"started {datetime.datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}")
        self.add(f"options {json.dumps(options)}")

    def end(self, outcome: str) -> None:
        """Write how it ended, and after how long."""
        self.add(f"{_as_typed(outcome)} (after {time.monotonic() - self._started:.1f} s)")

    def add(self, text: str) -> None:
        """Write one line."""
        from etl.findings import printable

        if self._file is not None:
            self._try(self._file.write, f"{printable(text)}\n")

    def close(self) -> None:
        if self._file is not None:
            self._try(self._file.close)

    def _try(self, action: Callable[..., object], *arguments: str) -> None:
        try:
            action(*arguments)
        except OSError as error:
            self._file = None
            _print(f"Note: the log file is not whole: {_reason(error)}.", err=True)


@contextmanager
def _log(path: Path | None, out: Path) -> Iterator[_Log]:
    """Yield the log, which is appended to."""
    if path is not None and os.path.realpath(path) == os.path.realpath(out):
        raise click.UsageError("--log-file is OUT itself: give another file.")
    log = _Log(None if path is None else _open_log(path))
    try:
        yield log
    finally:
        log.close()


def _open_log(path: Path) -> TextIO:
    where, advice = f"Log file not usable: {path}", "Give another --log-file."
    try:
        if os.path.exists(path):
            if not os.path.isfile(path):  # to open a pipe may last for ever
                raise EtlError(f"{where}: is a folder, device or pipe. {advice}")
            with path.open("rb") as file:
                head = file.read(len(_LOG_WORD))
            if head not in {b"", _LOG_WORD}:
                raise EtlError(f"{where}: is no log of dicom-etl, left as it is. {advice}")
        return path.open("a", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise EtlError(f"{where}: {_reason(error)}. {advice}") from error


def _counts(findings: "list[Finding]") -> str:
    """Return how many findings there are of each severity, to follow a number of rows."""
    from etl.findings import SEVERITY_ORDER, counted

    numbers = Counter(finding.severity for finding in findings)
    return "".join(f", {counted(numbers[one], one)}" for one in SEVERITY_ORDER if numbers[one])


def _as_typed(text: str) -> str:
    """Return a message with the options that one types for the names that Python has."""
    return _PYTHON_NAME.sub(lambda name: f"--{name[1].replace('_', '-')}", text)


def _reason(error: OSError) -> str:
    return (error.strerror or "input/output error").lower()


def _list_findings(findings: "list[Finding]", log: _Log, *, verbose: bool) -> None:
    for finding in findings:
        log.add(str(finding))
        if verbose:
            _print(str(finding), err=True)


def _print(line: str, *, err: bool = False) -> None:
    """Print one line, in which a name, or a path, cannot steer the terminal.

    What stderr does not take stops nothing: there is nowhere to say so.
    """
    from etl.findings import printable

    with contextlib.suppress(OSError) if err else contextlib.nullcontext():
        click.echo(printable(line), err=err)


def _open_what_is_closed() -> None:
    """Give standard streams that the caller has closed a place, or our files would take theirs."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  as long as the process
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


def _silence_stdout() -> None:
    """Send what is left to print nowhere, so that it does not fail again at the exit."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
