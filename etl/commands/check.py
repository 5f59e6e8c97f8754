"""`dicom-etl check`."""

from pathlib import Path
from typing import Final

import click

from etl.commands.content import (
    WORKERS,
    build_options,
    check_build_options,
    input_options,
    quality_options,
)
from etl.commands.imports import importing
from etl.commands.terminal import given_names, option_name, print_line

# What only a check of the pixels can tell.
_OF_PIXELS: Final = {"no_qc", "no_audit", "audit_contours", "exclude_flagged"}


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@input_options
@quality_options
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
@WORKERS
def check(
    data: Path,
    full: bool,
    as_json: bool,
    csv_file: Path | None,
    force: bool,
    workers: int | None,
    **content: object,
) -> None:
    """Say what a build of DATA would take and refuse, and write no OUT.

    Reads headers and annotations, which takes seconds.
    """
    import json

    check_build_options()
    if not full and (given := sorted(given_names() & _OF_PIXELS)):
        raise click.UsageError(f"{option_name(given[0])} needs --full: only pixels tell.")
    with importing():
        from etl.workers import local_pool
        from etl.workers.cores import available_cores

        n_workers = workers or available_cores()
        local_pool.start_early(n_workers)
        from etl.check import check as check_input

    options = build_options(content)
    found = check_input(data, options, workers=n_workers, full=full, progress=True)
    if csv_file is not None:
        found.write_csv(csv_file, force=force)
    lines = [json.dumps(found.to_json(), indent=2)] if as_json else found.text()
    for line in lines:
        click.echo(line)
    if csv_file is not None and not as_json:
        print_line(f"Findings written to {csv_file}.")
    found.require_rows()
