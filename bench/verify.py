"""Rate of `dicom-etl verify`, beside that of reading the same file from end to end.

    python bench/verify.py --pairs 10000 --rounds 5

Builds a file of --pairs pairs. Each round reads it and verifies it by turns, once from the disk
(its pages are dropped from the page cache before) and once from the page cache, and prints
medians. Last it prints the processor time of one worker, which other programs on the machine change
less. BENCH_TMP names the folder to work in; --file takes a file that is there.
"""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

sys.path.pop(0)  # this folder, whose loader.py is not the package

import loader

BLOCK_BYTES = 8 << 20
COMMAND = Path(sys.executable).with_name("dicom-etl")


def drop(path: Path) -> None:
    """Let the next read of a file come from the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds_of_reading(path: Path) -> float:
    """Return how long one process takes to read all of a file in order."""
    buffer = bytearray(BLOCK_BYTES)
    started = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - started


def seconds_of_verifying(path: Path) -> float:
    """Return how long the command takes, from its start to its end."""
    started = time.perf_counter()
    subprocess.run([COMMAND, "verify", path], check=True, capture_output=True)
    return time.perf_counter() - started


def processor_seconds(path: Path) -> float:
    """Return the processor time of the command with one worker, which is its own process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([COMMAND, "verify", path, "--workers", "1"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def write_file(folder: Path, n_pairs: int) -> Path:
    """Build a file from different pairs."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import build; from pathlib import Path; "
    code += "build.make_tree(Path(sys.argv[2]), int(sys.argv[3]))"
    here = Path(__file__).parent
    subprocess.run([sys.executable, "-c", code, here, folder, str(n_pairs)], check=True)
    out = folder / "out.h5"
    subprocess.run([COMMAND, "build", folder / "tree", out, "--quiet"], check=True)
    return out


@click.command()
@click.option("--pairs", default=10000, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--file", type=click.Path(path_type=Path), help="Build none: verify this one.")
def main(pairs: int, rounds: int, file: Path | None) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_TMP")) as name:
        out = file or write_file(Path(name), pairs)
        size = out.stat().st_size / 1e6
        print(f"{size:.0f} MB")
        for where in ("disk", "page cache"):
            found: dict[str, list[float]] = {"read": [], "verify": []}
            for _ in range(rounds):
                for what, measure in (
                    ("read", seconds_of_reading),
                    ("verify", seconds_of_verifying),
                ):
                    if where == "disk":
                        drop(out)
                    else:
                        seconds_of_reading(out)
                    found[what].append(size / measure(out))
            rates = {what: statistics.median(values) for what, values in found.items()}
            shown = "   ".join(
                f"{what} {rates[what]:6.0f} MB/s ({min(values):.0f} to {max(values):.0f})"
                for what, values in found.items()
            )
            print(f"{where:11s} {shown}   ratio {rates['verify'] / rates['read']:.2f}")
        times = [processor_seconds(out) for _ in range(rounds)]
        n_rows = len(loader.open_dataset(out))
        print(
            f"one worker: {min(times):.2f} s of processor time at least, median "
            f"{statistics.median(times):.2f} s; {min(times) / n_rows * 1e6:.0f} us a row at least"
        )


if __name__ == "__main__":
    main()
