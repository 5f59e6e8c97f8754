"""Build speed, side by side: the copy limit, the scripts people write, and dicom-etl.

    python bench/build.py --pairs 2000 --rounds 3

Makes a tree of --pairs different pairs, then runs every contender in turn, each in a process of
its own, and prints medians over the rounds. BENCH_TMP names the folder to work in: a disk, or a
memory file system such as /dev/shm.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import click
import h5py
import numpy as np
import pydicom
from PIL import Image, ImageDraw

sys.path.pop(0)  # this folder, whose loader.py is not the package

PAIRS_PER_PATIENT = 100
SIZE = 256


def make_tree(folder: Path, n_pairs: int) -> None:
    """Write a tree of `n_pairs` different pairs, multiplied from one phantom patient."""
    from etl.phantom.tree import write_phantom

    seed = folder / "seed"
    write_phantom(seed, patients=1, slices=8, phases=10)
    texts = sorted(seed.glob("contourfiles/*/i-contours/*.txt"))
    numbers = [int(text.name.split("-")[2]) for text in texts]
    sources = [(seed / "dicoms" / "PHANTOM001" / f"{n}.dcm").read_bytes() for n in numbers]
    contours = [np.loadtxt(text) for text in texts]
    lines = ["patient_id,original_id"]
    for first in range(0, n_pairs, PAIRS_PER_PATIENT):
        patient = first // PAIRS_PER_PATIENT
        lines.append(f"B{patient:05d},C{patient:05d}")
        dicoms = folder / "tree" / "dicoms" / f"B{patient:05d}"
        texts_to = folder / "tree" / "contourfiles" / f"C{patient:05d}" / "i-contours"
        dicoms.mkdir(parents=True)
        texts_to.mkdir(parents=True)
        for k in range(first, min(first + PAIRS_PER_PATIENT, n_pairs)):
            base = k % len(sources)
            content = bytearray(sources[base])
            pixels = np.frombuffer(content, "<u2")[-SIZE * SIZE :]
            pixels += np.random.default_rng(k).integers(0, 8, SIZE * SIZE, np.uint16)
            slice_number = k - first + 1
            (dicoms / f"{slice_number}.dcm").write_bytes(content)
            name = f"IM-0001-{slice_number:04d}-icontour-manual.txt"
            shift = np.random.default_rng(k).uniform(-1, 1, 2)
            np.savetxt(texts_to / name, contours[base] + shift, "%.2f")
    (folder / "tree" / "link.csv").write_text("\n".join(lines) + "\n")


def pairs_of(tree: Path) -> Iterator[tuple[Path, Path]]:
    """Yield (dicom, contour) in order, as a script would list them."""
    for line in (tree / "link.csv").read_text().splitlines()[1:]:
        patient, original = line.split(",")
        for dicom in sorted((tree / "dicoms" / patient).iterdir(), key=lambda p: int(p.stem)):
            name = f"IM-0001-{int(dicom.stem):04d}-icontour-manual.txt"
            yield dicom, tree / "contourfiles" / original / "i-contours" / name


def copy(tree: Path, out: Path) -> None:
    """Reach the limit: every DICOM file's bytes read and written to one file, fsync included."""
    with open(out, "wb", buffering=0) as file:
        for dicom, _ in pairs_of(tree):
            with open(dicom, "rb", buffering=0) as source:
                file.write(source.read())
        os.fsync(file.fileno())


def read_pair(pair: tuple[Path, Path]) -> tuple[np.ndarray, np.ndarray]:
    """One pair as a user's script reads it."""
    dataset = pydicom.dcmread(pair[0])
    vertices = [tuple(map(float, line.split())) for line in pair[1].read_text().splitlines()]
    mask = Image.new("L", (dataset.Columns, dataset.Rows), 0)
    ImageDraw.Draw(mask).polygon(vertices, outline=0, fill=1)
    return dataset.pixel_array.astype(np.int16), np.asarray(mask)


def script(tree: Path, out: Path) -> None:
    """Do as the script a user writes: pydicom, Pillow and h5py, row by row."""
    _write_rows(tree, out, map(read_pair, pairs_of(tree)))


def script_pool(tree: Path, out: Path) -> None:
    """Do the same with a process pool."""
    with ProcessPoolExecutor(2) as pool:
        _write_rows(tree, out, pool.map(read_pair, pairs_of(tree), chunksize=16))


def _write_rows(tree: Path, out: Path, rows: Iterator[tuple[np.ndarray, np.ndarray]]) -> None:
    n = sum(1 for _ in pairs_of(tree))
    with h5py.File(out, "w") as file:
        images = file.create_dataset("images", (n, SIZE, SIZE), "<i2")
        masks = file.create_dataset("masks", (n, SIZE, SIZE), "|u1")
        for row, (image, mask) in enumerate(rows):
            images[row], masks[row] = image, mask


CONTENDERS: dict[str, Callable[[Path, Path], None]] = {
    "copy limit": copy,
    "script, row by row": script,
    "script, 2 processes": script_pool,
}
OURS = {  # number of workers, and whether the file is synced as always
    "dicom-etl, 1 worker": (1, True),
    "dicom-etl, 2 workers": (2, True),
    "dicom-etl, 1 worker, no fsync": (1, False),
    "dicom-etl, 2 workers, no fsync": (2, False),
}
NAMES = [*CONTENDERS, *OURS]
LIMIT, BEST = "copy limit", "dicom-etl, 2 workers"


def command(name: str, tree: Path, out: Path) -> list[str | Path]:
    """Return the command line of one contender: of dicom-etl its own, of the others this file's."""
    if name not in OURS:
        return [sys.executable, __file__, "--run", name, tree, out]
    workers, sync = OURS[name]
    run = "import os, etl.cli;" + ("" if sync else "os.fsync = lambda _: None;") + "etl.cli.main()"
    arguments = ["build", tree, out, "--workers", str(workers), "--quiet", "--no-qc"]
    return [sys.executable, "-c", run, *arguments]


def touch_memory(tree: Path) -> None:
    """Use as much memory as the output takes, and free it again.

    Virtual machines give free memory back to their host and get it again page by page, at ten times
    the cost of using it; what is free at the start of a run is then the luck of the run before.
    """
    n_pairs = sum(1 for _ in pairs_of(tree))
    np.ones(n_pairs * SIZE * SIZE * 4, np.uint8)


def run_apart(name: str, tree: Path, out: Path) -> float:
    """Run one contender in a process of its own; return its wall seconds, start-up included."""
    for paths in pairs_of(tree):  # warm the cache, which the runs before may have pushed out
        for path in paths:
            path.read_bytes()
    os.sync()
    touch_memory(tree)
    began = time.perf_counter()
    subprocess.run(command(name, tree, out), check=True)
    seconds = time.perf_counter() - began
    out.unlink()
    return seconds


def anonymous_peaks(name: str, tree: Path, out: Path) -> tuple[float, float]:
    """Return the largest RssAnon of the coordinator and of any worker, in MB; not timed."""
    process = subprocess.Popen(command(name, tree, out))
    peaks: dict[int, float] = {}
    while process.poll() is None:
        for pid in [process.pid, *_descendants(process.pid)]:
            peaks[pid] = max(peaks.get(pid, 0.0), _anonymous(pid))
        time.sleep(0.02)
    out.unlink()
    workers = [peak for pid, peak in peaks.items() if pid != process.pid]
    return peaks[process.pid], max(workers, default=0.0)


def _descendants(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except OSError:
        return []
    children = [int(child) for child in text.split()]
    return children + [below for child in children for below in _descendants(child)]


def _anonymous(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(x.split()[1]) / 1024 for x in lines if x.startswith("RssAnon")), 0.0)


@click.command()
@click.option("--pairs", default=2000, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--only", multiple=True, type=click.Choice(NAMES))
@click.option("--json", "json_file", type=click.Path(path_type=Path))
@click.option("--run", "running", nargs=3, hidden=True)
def main(
    pairs: int,
    rounds: int,
    only: tuple[str, ...],
    json_file: Path | None,
    running: tuple[str, str, str] | None,
) -> None:
    """Compare builds of one tree."""
    if running:
        CONTENDERS[running[0]](Path(running[1]), Path(running[2]))
        return
    names = [name for name in NAMES if not only or name in only]
    folder = Path(tempfile.mkdtemp(prefix="bench-build-", dir=os.environ.get("BENCH_TMP")))
    try:
        make_tree(folder, pairs)
        tree, out = folder / "tree", folder / "out.h5"
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for number in range(rounds):
            for name in names:
                seconds[name].append(run_apart(name, tree, out))
                click.echo(f"round {number + 1}: {name}: {seconds[name][-1]:.2f} s", err=True)
        medians = {name: statistics.median(found) for name, found in seconds.items()}
        memory = anonymous_peaks(BEST, tree, out)
    finally:
        shutil.rmtree(folder)
    for line in table(pairs, medians, memory):
        click.echo(line)
    if json_file:
        facts = {"pairs": pairs, "seconds": seconds, "memory_mb": memory}
        json_file.write_text(json.dumps(facts, indent=2) + "\n")


def table(pairs: int, medians: dict[str, float], memory: tuple[float, float]) -> Iterator[str]:
    """Yield the result as a Markdown table."""
    yield f"{pairs} pairs of {SIZE}x{SIZE}, {os.cpu_count()} cores, medians"
    yield ""
    yield "| contender | s | pairs/s | ms a pair | of the copy limit | dicom-etl is faster |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    limit, best = medians.get(LIMIT), medians.get(BEST)
    for name, found in medians.items():
        of_limit = f"{limit / found:.2f}" if limit else ""
        faster = f"{found / best:.1f} x" if best else ""
        rate = f"{pairs / found:.0f} | {1000 * found / pairs:.3f}"
        yield f"| {name} | {found:.2f} | {rate} | {of_limit} | {faster} |"
    yield ""
    yield (
        f"Largest anonymous memory of {BEST}: coordinator {memory[0]:.0f} MB, "
        f"worker {memory[1]:.0f} MB"
    )


if __name__ == "__main__":
    main()
