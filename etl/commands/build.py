"""`dicom-etl build`."""

import dataclasses
import functools
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from etl import signals
from etl.commands.content import (
    WORKERS,
    build_options,
    check_build_options,
    input_options,
    quality_options,
)
from etl.commands.imports import importing
from etl.commands.log import Log, opened_log
from etl.commands.param_types import Split
from etl.commands.terminal import as_typed, print_line, whole_whatever_fails
from etl.errors import EtlError

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from etl.assemble import BuildResult
    from etl.findings import Finding


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@input_options
@click.option(
    "--not-drawn",
    type=click.Choice(["background", "ignore"]),
    default="background",
    show_default=True,
    help="What a mask has where a structure that was not drawn may be: 0, or 255 (ignore).",
)
@click.option("--split", type=Split(), help="Shares by patient, such as 70/15/15.")
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
    type=click.Path(dir_okay=False, path_type=str),
    help="Your own split: patient_id,split[,fold].",
)
@click.option(
    "--splits-from",
    type=click.Path(dir_okay=False, path_type=str),
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
    type=click.Path(dir_okay=False, path_type=str),
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
@quality_options
@WORKERS
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
    "--no-cache",
    is_flag=True,
    help="Leave no OUT.cache, with which the next --update need not read what is unchanged.",
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
    workers: int | None,
    scheduler: str | None,
    update: bool,
    paranoid: bool,
    no_cache: bool,
    resume: bool,
    sha256: bool,
    file_timeout: float,
    strict: bool,
    force: bool,
    log_file: Path | None,
    quiet: bool,
    verbose: bool,
    **content: object,
) -> None:
    """Write the images and masks of DATA, a folder or a table, to the HDF5 file OUT.

    One bad file never stops the build: it is left out and listed. OUT appears only when it is
    whole.
    """
    check_build_options()
    signals.ignore_stop_once(_is_replaced(out))
    with importing():
        from etl.workers.cores import available_cores

        n_workers = workers or available_cores()
        is_quick = update and os.path.exists(f"{out}.cache")  # it may parse next to nothing
        if scheduler is None and n_workers > 1 and not is_quick:
            from etl.workers import local_pool

            local_pool.start_early(n_workers)  # before all that imports NumPy
        from etl.errors import RejectedError
        from etl.findings import counted
        from etl.pipeline import build as build_file

    options = build_options(content)
    with (
        opened_log(log_file, out) as log,
        _executor(scheduler, n_workers) as (executor, n_workers),
    ):
        log.begin(f"build {data} {out}", {**dataclasses.asdict(options), "strict": strict})
        advice = f"--resume goes on with them; this build removes it when {out} is written"
        _say_left(out, advice, is_said=not resume)
        say = functools.partial(_say_layout, log, quiet=quiet or options.layout != "auto")
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
                cache=not no_cache,
                on_layout=say,
                sha256=sha256,
                file_seconds=file_timeout,
            )
        except RejectedError as error:
            _list_findings(error.findings, log, verbose=verbose)
            log.end(f"stopped: {error.args[0].splitlines()[0]}")
            text = f"{error.args[0]}\nSee all with --verbose or --log-file FILE."
            raise click.ClickException(as_typed(text)) from error  # several lines, all printable
        except EtlError as error:
            log.end(f"stopped: {error}")
            _say_left(out, "--resume goes on with them", is_said=resume)
            raise
        except KeyboardInterrupt as stop:  # not when OUT has been replaced: see _is_replaced
            why, status = signals.why_stopped(stop)
            log.end(f"{why}: nothing was written.")
            print_line(f"{why}: nothing was written.", err=True)
            _say_left(out, "--resume goes on with them", is_said=resume)
            click.get_current_context().exit(status)
        with whole_whatever_fails(out):
            _list_findings(result.findings, log, verbose=verbose)
            for note in result.notes:
                if not quiet:
                    print_line(f"Note: {note}", err=True)
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
    print_line(f"Wrote {out}: {counted(result.n_rows, 'row')}.")
    rows = [FindingRow(f.severity, f.code, f.path, -1, f.message) for f in result.findings]
    for lines in (
        diagnoses_text(result.diagnoses, terminal),
        findings_text(
            group_findings(rows), f"dicom-etl report {out}", ("error", "warning"), terminal
        ),
    ):
        for line in lines:
            click.echo(line)


def _list_findings(findings: "list[Finding]", log: Log, *, verbose: bool) -> None:
    for finding in findings:
        log.add(str(finding))
        if verbose:
            print_line(str(finding), err=True)


def _counts(findings: "list[Finding]") -> str:
    """Return how many findings there are of each severity, to follow a number of rows."""
    from etl.findings import SEVERITY_ORDER, counted

    numbers = Counter(finding.severity for finding in findings)
    return "".join(f", {counted(numbers[one], one)}" for one in SEVERITY_ORDER if numbers[one])


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
def _executor(scheduler: str | None, n_workers: int) -> "Iterator[tuple[Executor | None, int]]":
    """Yield the Dask cluster's executor and size, or none and the number of local workers."""
    if scheduler is None:
        yield None, n_workers
        return
    from etl.workers.engine import dask_executor

    with dask_executor(scheduler) as (executor, n_tasks):
        yield executor, n_tasks


def _say_layout(log: "Log", why: str, *, quiet: bool) -> None:
    """Say which layout is found; quietly where it was given."""
    log.add(why)
    if not quiet:
        print_line(why, err=True)


def _say_left(out: Path, advice: str, *, is_said: bool) -> None:
    """Name the partial file that a resume could use, where there is one and it is to be said."""
    from etl.update.memory import left_text

    if is_said and (text := left_text(out)):
        print_line(f"Note: {text}: {advice}.", err=True)
