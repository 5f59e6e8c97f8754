"""`dicom-etl verify`."""

from pathlib import Path

import click

from etl.commands.content import WORKERS
from etl.commands.imports import importing
from etl.commands.terminal import print_line
from etl.errors import EtlError


@click.command()
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
@click.option("--json", "as_json", is_flag=True, help="Print the result for machines.")
@WORKERS
def verify(
    file: Path, source: Path | None, rebuild_check: bool, as_json: bool, workers: int | None
) -> None:
    """Prove that FILE is whole: every row and column against its digest and the others.

    FILE is what `dicom-etl build` wrote; out.h5 where it is not given. Exit status 1 on any
    difference.
    """
    import json

    if rebuild_check and source is None:
        raise click.UsageError("--rebuild-check needs the sources: give --source DATA.")
    with importing():
        from etl.verify import processes
        from etl.workers.cores import available_cores

        n_workers = workers or available_cores()
        processes.start(file, n_workers, with_sources=source is not None)
        from etl.verify.file import verify as verify_file

    result = verify_file(
        file,
        source=source,
        rebuild=rebuild_check,
        workers=n_workers,
        progress=True,
    )
    if as_json:
        click.echo(json.dumps(result.to_json(), indent=2))
    for problem in result.problems if not as_json else ():
        click.echo(str(problem))
    if result.problems:
        n = len(result.problems)
        differences = f"{n} difference{'s' * (n != 1)}"
        if result.n_in_file == 0:
            raise EtlError(
                f"File and sources differ: {file}: {differences}. Build again with --update, which "
                "takes in what has changed."
            )
        raise EtlError(
            f"Not as it was built: {file}: {differences}. Copy the file again, or build it again."
        )
    if not as_json:
        print_line(f"Verified {file}: {result.n_rows} rows, no difference.")
