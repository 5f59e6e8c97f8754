"""`dicom-etl report`."""

import dataclasses
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from etl.commands.param_types import Codes, all_codes, severities
from etl.commands.terminal import STDOUT, given_names, option_name, print_line
from etl.errors import EtlError

if TYPE_CHECKING:
    from etl.findings import FindingRow
    from etl.report.compare import Comparison
    from etl.report.summary import Summary
    from loader import Dataset

_OF_PREDICTIONS: Final = "disagrees-with-model"  # the code of a finding


@click.command()
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
    type=Codes(severities),
    default=(),
    metavar="SEVERITY,...",
    help="Show only errors, warnings or infos: error,warning.",
)
@click.option(
    "--code", type=Codes(all_codes), default=(), help="Show only findings of these codes."
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
    type=Codes(all_codes),
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
    _say_unknown(file, selection.unknown_patients(dataset, findings))
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
    if STDOUT not in {csv_file, splits_file}:
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
                print_line(f"{what} written to {path}.")
    _check_findings(summary, {one.code for one in findings}, fail_on)


def _check_report_options() -> None:
    given = given_names()
    of_page = {"page", "gallery", "pseudonyms", "force"} if "page" in given else set()
    if "old" in given and (others := given - {"old", "file", "as_json"} - of_page):
        listed = ", ".join(option_name(name) for name in sorted(others))
        raise click.UsageError(f"--compare excludes {listed}.")
    params = click.get_current_context().params
    if params["predictions"] is None and _OF_PREDICTIONS in {*params["code"], *params["fail_on"]}:
        raise click.UsageError(f"{_OF_PREDICTIONS}: only predictions tell; give --predictions.")
    if "page" not in given and (others := given & {"gallery", "pseudonyms"}):
        listed = " and ".join(option_name(name) for name in sorted(others))
        raise click.UsageError(f"{listed}: only with --html.")
    to_stdout = [
        f"{option_name(one)} -" for one in ("csv_file", "splits_file") if params[one] == STDOUT
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
    if not is_folder:
        write_page(subject, Path(page), n_pictures=n_pictures, force=force)
        return Path(page)
    others = write_pages(subject, Path(page), n_pictures=n_pictures, force=force)
    _say_others(Path(page), others)
    if pseudonyms and others:
        print_line("Note: these may name patients: look at them before you share it.", err=True)
    return Path(page)


def _say_unknown(file: Path, patients: "list[str]") -> None:
    """Say which patients are not in the file: that they have no finding says nothing of them."""
    if patients:
        listed = ", ".join(map(repr, patients))
        print_line(f"Note: --patient: {file} has no row and no finding of {listed}.", err=True)


def _say_others(folder: Path, others: "list[str]") -> None:
    """Say that a folder has files which this report has not written."""
    if others:
        print_line(
            f"Note: {folder} has other files, which were left as they are: {len(others)} "
            f"in all, such as {others[0]}.",
            err=True,
        )


def _write_list(
    dataset: "Dataset", findings: "list[FindingRow]", path: Path | None, *, force: bool
) -> None:
    from etl.report.table import csv_text, write_csv

    if path == STDOUT:
        click.echo(csv_text(dataset, findings, "\n"), nl=False)
    elif path is not None:
        write_csv(dataset, findings, path, force=force)


def _write_splits(dataset: "Dataset", path: Path | None, *, force: bool) -> None:
    from etl.report.table import splits_text, write_splits

    if path == STDOUT:
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
        print_line("Note: no row is chosen; nothing is drawn.", err=True)
        return
    from etl.report.overlays import remarks_on, write_contact_sheet, write_overlays

    remarks = remarks_on(findings)
    if folder is not None:
        others = write_overlays(dataset, folder, force=force, rows=rows, remarks=remarks)
        _say_others(folder, others)
    if sheet is not None:
        n_more = write_contact_sheet(dataset, sheet, force=force, rows=rows, remarks=remarks)
        if n_more:
            shown = f"the first {len(rows) - n_more} of {len(rows)} rows"
            print_line(
                f"Note: {sheet} has {shown}. Choose fewer with --code or --patient.", err=True
            )


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
