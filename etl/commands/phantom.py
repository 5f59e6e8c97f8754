"""`dicom-etl phantom`."""

from collections.abc import Callable
from pathlib import Path

import click

from etl.commands.terminal import given_names, print_line


@click.command()
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
    if not is_cine and "phases" in given_names():
        raise click.UsageError("--phases is for hearts that beat: leave out --as.")
    n_images = patients * slices * (phases if is_cine else 1)
    with tqdm(desc="phantom", total=n_images, unit=" images", disable=None) as bar:
        common = {"patients": patients, "slices": slices, "seed": seed, "force": force}
        if is_cine:
            text = _write_hearts(folder, phases, common, bar.update)
        else:
            text = _write_shapes(folder, kind, common, bar.update)
    print_line(f"Wrote {folder}: {text}.")


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
