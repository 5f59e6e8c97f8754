"""`dicom-etl preview`."""

from collections.abc import Callable
from pathlib import Path

import click

from etl.commands.imports import importing
from etl.commands.terminal import print_line


@click.command()
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
    with importing():
        import loader
        from etl.report.preview import write_preview
        from etl.sources.files import read_named

    presets: dict[str, Callable[[], loader.Augment]] = {
        "default": loader.Augment,
        "cardiac-mr": loader.Augment.cardiac_mr,
        "ct": loader.Augment.ct,
    }
    if augment in presets:
        chosen = presets[augment]()
    else:
        try:
            text = read_named(Path(augment), f"Augmentation not read: {augment}").decode("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise click.UsageError(
                f"--augment: expected {', '.join(presets)} or a file with JSON, found {augment}."
            ) from error
        chosen = loader.Augment.from_json(text)
    dataset = loader.open_dataset(file)
    rows = write_preview(dataset, png, chosen, n_rows=n_rows, seed=seed, force=force)
    for line in chosen.describe().splitlines():
        print_line(line)
    print_line(f"Preview: {png}: {len(rows)} row{'s' * (len(rows) != 1)}.")
