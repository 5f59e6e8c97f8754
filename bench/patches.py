"""Random patches against whole images, samples a second, side by side.

    python bench/patches.py --rows 2000 --rounds 5

Writes a file of --rows rows of 256x256, then runs every contender in turn, each in a process of its
own. A rate is that of the quickest of many short stretches of processor time, which other work on
the machine slows down least; the table has medians over the rounds. Patches have 96x96 pixels. Of
patches around structures, the first epoch also counts the pixels of each mask, so that it has a
column of its own.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import click

sys.path = [folder for folder in sys.path if Path(folder) != Path(__file__).parent]  # not itself

import loader  # noqa: E402

BATCH = 32
COUNTED = 6  # epochs after which most masks are counted
STRETCHES = 40
SECONDS = 0.02  # of a stretch, at least
SIZE = (96, 96)
KINDS = {
    "whole images": None,
    "patches": loader.Patches(SIZE),
    "patches, padded": loader.Patches(SIZE, pad=True),
    "patches, half around structures": loader.Patches(SIZE, foreground=0.5),
    "patches, all around structures": loader.Patches(SIZE, foreground=1),
    "patches, padded, half around structures": loader.Patches(SIZE, foreground=0.5, pad=True),
}
VALUES = {
    "stored": {},
    "zscore": {"normalize": "zscore"},
    "zscore, augmented": {"normalize": "zscore", "augment": loader.Augment.cardiac_mr()},
}


def run(values: str, kind: str, path: Path) -> tuple[float, float]:
    """Return the samples a second of the first epoch, and later."""
    warnings.simplefilter("ignore")
    dataset = loader.open_dataset(path)
    for image, mask in dataset:  # into the page cache, and mapped
        image.max()
        mask.max()
    options = VALUES[values] | {"patches": KINDS[kind]}
    batches = loader.Batches(dataset, batch_size=BATCH, layout="NHW", seed=7, **options)
    batches.next_batch()
    began = time.process_time()
    n = sum(len(images) for images, _ in batches)
    first = n / (time.process_time() - began)
    while batches.epochs_completed < COUNTED and kind != "whole images":
        batches.next_batch()
    # As many batches as places of patches are looked up for, so that each stretch has its share.
    rates = []
    for _ in range(STRETCHES):
        began, n = time.process_time(), 0
        while (passed := time.process_time() - began) < SECONDS or n % 256:
            n += len(batches.next_batch()[0])
        rates.append(n / passed)
    return first, max(rates)


@click.command()
@click.option("--rows", default=2000, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--run", "running", nargs=3, hidden=True)
def main(rows: int, rounds: int, running: tuple[str, str, str] | None) -> None:
    """Compare random patches with whole images."""
    if running:
        click.echo(" ".join(map(str, run(*running[:2], Path(running[2])))))
        return
    spec = spec_from_file_location("bench_loader", Path(__file__).with_name("loader.py"))
    sibling = module_from_spec(spec)  # type: ignore[arg-type]
    spec.loader.exec_module(sibling)  # type: ignore[union-attr]
    folder = Path(tempfile.mkdtemp(prefix="bench-patches-", dir=os.environ.get("BENCH_TMP")))
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    try:
        path = folder / "out.h5"
        sibling.write_file(path, rows)
        for number in range(rounds):
            for values in VALUES:
                for kind in KINDS:
                    command = [sys.executable, __file__, "--run", values, kind, os.fspath(path)]
                    out = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
                    first, later = map(float, out.split())
                    found.setdefault((values, kind), []).append((first, later))
                    click.echo(f"round {number + 1}: {values}: {kind}: {later:.0f}", err=True)
    finally:
        shutil.rmtree(folder)
    click.echo("| values | contender | first epoch | later epochs | against whole images |")
    click.echo("| --- | --- | ---: | ---: | ---: |")
    for (values, kind), rates in found.items():
        first, later = (statistics.median(column) for column in zip(*rates, strict=True))
        wholes = [rate for _, rate in found[values, "whole images"]]
        ratio = statistics.median(
            mine / whole for (_, mine), whole in zip(rates, wholes, strict=True)
        )
        click.echo(f"| {values} | {kind} | {first:.0f} | {later:.0f} | {ratio:.1f} x |")


if __name__ == "__main__":
    main()
