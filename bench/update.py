"""Speed of an update, beside that of copying the old file.

    python bench/update.py --pairs 4000 --rounds 5

Makes a tree of --pairs different pairs and builds it. Each round changes one contour in a hundred,
then times a copy of the old file with fsync, the same with a rename over another copy, and, in
turn, `dicom-etl build --update`, with and without the cache of the build before, and prints
medians. BENCH_TMP names the folder to work in.
"""

import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

sys.path.pop(0)  # this folder, whose loader.py is not the package


def make_tree(folder: Path, n_pairs: int) -> None:
    """Write the tree that `bench/build.py` writes."""
    spec = importlib.util.spec_from_file_location(
        "bench_build", Path(__file__).with_name("build.py")
    )
    if spec is None or spec.loader is None:
        raise click.ClickException("bench/build.py is missing.")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, "")
    spec.loader.exec_module(module)
    module.make_tree(folder, n_pairs)


def copy(source: Path, target: Path) -> None:
    """Copy a file and wait until it is on disk."""
    with source.open("rb", buffering=0) as old, target.open("wb", buffering=0) as new:
        while block := old.read(8 << 20):
            new.write(block)
        os.fsync(new.fileno())


def seconds_of_copy(out: Path) -> tuple[float, float]:
    """Return how long a copy of the old file takes, and a copy that replaces the last copy."""
    target, last = out.with_name("copy.h5"), out.with_name("last.h5")
    if not last.exists():
        copy(out, last)
    started = time.perf_counter()
    copy(out, target)
    copied = time.perf_counter()
    target.replace(last)
    return copied - started, time.perf_counter() - started


def seconds_of_build(tree: Path, out: Path, *options: str) -> float:
    """Return how long the command takes, from its start to its end."""
    command = Path(sys.executable).with_name("dicom-etl")
    started = time.perf_counter()
    subprocess.run([command, "build", tree, out, "--quiet", *options], check=True)
    return time.perf_counter() - started


def change(paths: list[Path]) -> None:
    """Change some contours."""
    for path in paths:
        path.write_text(path.read_text() + "\n")


@click.command()
@click.option("--pairs", default=4000)
@click.option("--rounds", default=5)
def main(pairs: int, rounds: int) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_TMP")) as name:
        folder = Path(name)
        make_tree(folder, pairs)
        tree, out = folder / "tree", folder / "out.h5"
        time.sleep(3)  # so that the stamps of the sources are settled
        first = seconds_of_build(tree, out)
        contours = sorted(tree.glob("contourfiles/*/*/*.txt"))
        copies, replaced, updates, by_digest = [], [], [], []
        for n in range(rounds):
            change(contours[2 * n :: len(contours) // max(1, pairs // 100)])
            for times, seconds in zip((copies, replaced), seconds_of_copy(out), strict=True):
                times.append(seconds)
            updates.append(seconds_of_build(tree, out, "--update"))
            change(contours[2 * n + 1 :: len(contours) // max(1, pairs // 100)])
            out.with_name(f"{out.name}.cache").unlink()
            by_digest.append(seconds_of_build(tree, out, "--update"))
        print(f"full build             {first:6.2f} s   {out.stat().st_size / 1e6:.0f} MB")
        updated = statistics.median(updates)
        for what, times in (
            ("copy with fsync", copies),
            ("copy that replaces", replaced),
            ("update of 1 %", updates),
            ("without its cache", by_digest),
        ):
            middle, all_times = statistics.median(times), sorted(round(one, 2) for one in times)
            print(f"{what:22} {middle:6.2f} s   {all_times}   update: {updated / middle:.2f} times")


if __name__ == "__main__":
    main()
