"""Batches a second, side by side: a plain copy, this loader, and what people use otherwise.

    python bench/loader.py --rows 2000 --rounds 5 --cold-rows 20000

Writes a file of --rows rows, then runs every contender in turn, each in a process of its own, and
prints medians over the rounds. BENCH_TMP names the folder to work in: it has to be on a disk for
the cold runs, before which the file is dropped from the page cache.

A contender whose library is not installed is left out. They come from `pip install torch monai
grain ffcv`; FFCV also needs Debian's libturbojpeg0-dev, libopencv-dev and pkg-config.
"""

import itertools
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import click
import h5py
import numpy as np

sys.path = [folder for folder in sys.path if Path(folder) != Path(__file__).parent]  # not itself

import loader  # noqa: E402

SIZE, BATCH = 256, 32
ROW_MB = SIZE * SIZE * 3 / 1e6  # int16 image and uint8 mask
WARM_SECONDS = 1.0
COLD_BATCHES = 64
Batch = tuple[object, object]


def write_file(path: Path, n_rows: int, *, is_sparse: bool = False) -> None:
    """Write a file of n_rows rows: those of a phantom over and over, or nothing at all."""
    from etl.phantom.tree import write_phantom
    from etl.pipeline import build

    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        write_phantom(Path(folder, "tree"), patients=4, slices=8, phases=10)
        build(Path(folder, "tree"), Path(folder, "seed.h5"))
        options = {"alignment_threshold": 1, "alignment_interval": 65536}
        with (
            h5py.File(Path(folder, "seed.h5")) as seed,
            h5py.File(path, "w", libver=("v110", "v110"), **options) as file,
        ):
            for name in seed.attrs:
                file.attrs.create(name, seed.attrs[name], dtype=seed.attrs.get_id(name).dtype)
            names: list[str] = []
            seed.visit(names.append)
            for name in names:
                if isinstance(seed[name], h5py.Dataset):
                    is_row = not name.startswith(("contours/", "findings/"))
                    multiply(seed[name], file, n_rows if is_row else len(seed[name]), is_sparse)
    with path.open("rb") as written:
        os.fsync(written.fileno())


def multiply(old: h5py.Dataset, file: h5py.File, length: int, is_sparse: bool) -> None:
    """Write a dataset's rows over and over; where sparse, only make room for them."""
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    links = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    links.set_create_intermediate_group(True)
    space = h5py.h5s.create_simple((length, *old.shape[1:]))
    name = old.name.lstrip("/").encode()
    new = h5py.Dataset(h5py.h5d.create(file.id, name, old.id.get_type(), space, creation, links))
    if is_sparse:
        return
    values = old[:]
    for start in range(0, length, max(1, len(values))):
        stop = min(length, start + len(values))
        new[start:stop] = values[: stop - start]


# Contenders: each yields batches of (images, masks) without end.


def order(n_rows: int) -> Iterator[np.ndarray]:
    """Yield random batches of rows, epoch after epoch."""
    for epoch in itertools.count():
        drawn = np.random.default_rng((7, epoch)).permutation(n_rows)
        yield from drawn[: n_rows // BATCH * BATCH].reshape(-1, BATCH)


def in_turn(n_rows: int) -> Iterator[slice]:
    """Yield consecutive batches of rows."""
    while True:
        for start in range(0, n_rows - BATCH + 1, BATCH):
            yield slice(start, start + BATCH)


def copy_fresh(path: Path) -> Iterator[Batch]:
    """Copy consecutive rows as one piece into new arrays: the limit."""
    data = loader.open_dataset(path)
    for rows in in_turn(len(data)):
        yield data.images[rows].copy(), data.masks[rows].copy()


def copy_kept(path: Path) -> Iterator[Batch]:
    """Copy them into arrays that are kept: the limit without new memory."""
    data = loader.open_dataset(path)
    images, masks = data.images[:BATCH].copy(), data.masks[:BATCH].copy()
    for rows in in_turn(len(data)):
        np.copyto(images, data.images[rows])
        np.copyto(masks, data.masks[rows])
        yield images, masks


def take_kept(path: Path) -> Iterator[Batch]:
    """Take random rows into arrays that are kept: the limit of any random order."""
    data = loader.open_dataset(path)
    images, masks = data.images[:BATCH].copy(), data.masks[:BATCH].copy()
    for rows in order(len(data)):
        np.take(data.images, rows, axis=0, out=images, mode="clip")
        np.take(data.masks, rows, axis=0, out=masks, mode="clip")
        yield images, masks


def ours(path: Path, **options: object) -> Iterator[Batch]:
    """Draw from the loader, fresh arrays."""
    batches = loader.Batches(path, batch_size=BATCH, layout="NHW", remainder="pad", **options)
    while True:
        yield batches.next_batch()


def ours_out(path: Path) -> Iterator[Batch]:
    """Draw from the loader into arrays that are kept."""
    batches = loader.Batches(path, batch_size=BATCH, layout="NHW", remainder="pad")
    out = batches.next_batch()
    while True:
        yield batches.next_batch(out=out)


def ours_torch(path: Path) -> Iterator[Batch]:
    """Draw from the loader inside a torch DataLoader."""
    from torch.utils.data import DataLoader

    import loader.torch

    dataset = loader.torch.IterableDataset(path, batch_size=BATCH, remainder="pad")
    while True:
        yield from DataLoader(dataset, batch_size=None)


def float32_by_hand(path: Path) -> Iterator[Batch]:
    """Take, convert and scale with NumPy."""
    data = loader.open_dataset(path)
    means, stds = data.manifest["mean"], data.manifest["std"]
    for rows in order(len(data)):
        images = np.take(data.images, rows, axis=0).astype(np.float32)
        images -= means[rows].astype(np.float32)[:, np.newaxis, np.newaxis]
        images /= stds[rows].astype(np.float32)[:, np.newaxis, np.newaxis]
        yield images, np.take(data.masks, rows, axis=0)


def memmap(path: Path) -> Iterator[Batch]:
    """Index a memory map by random rows."""
    data = loader.open_dataset(path)
    for rows in order(len(data)):
        yield data.images[rows], data.masks[rows]


def sequential(path: Path) -> Iterator[Batch]:
    """Read as many bytes as a batch, one after the other: the disk's own rate."""
    buffer = bytearray(SIZE * SIZE * 3 * BATCH)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            yield buffer, buffer


def h5py_sorted(path: Path) -> Iterator[Batch]:
    """Read sorted rows of a batch with h5py's fancy index."""
    with h5py.File(path) as file:
        images, masks = file["images"], file["masks"]
        for rows in order(len(images)):
            chosen = np.sort(rows)
            yield images[chosen], masks[chosen]


def torch_loader(path: Path, *, source: str, workers: int) -> Iterator[Batch]:
    """Draw from a torch DataLoader over a map-style data set, as its tutorials have it."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    class Rows(Dataset):
        def __init__(self) -> None:
            self.file: SimpleNamespace | None = None

        def __len__(self) -> int:
            return n_rows

        def __getitem__(self, row: int) -> Batch:
            if self.file is None:
                if source == "h5py":
                    file = h5py.File(path)
                    self.file = SimpleNamespace(images=file["images"], masks=file["masks"])
                else:
                    self.file = loader.open_dataset(path)
            image, mask = self.file.images[row], self.file.masks[row]
            return torch.from_numpy(np.array(image)), torch.from_numpy(np.array(mask))

    n_rows = len(loader.open_dataset(path))
    batches = DataLoader(Rows(), BATCH, shuffle=True, num_workers=workers, drop_last=True)
    while True:
        yield from batches


def monai_cache(path: Path) -> Iterator[Batch]:
    """Draw from MONAI's data set that caches samples in memory."""
    import monai.data

    data = loader.open_dataset(path)

    def load(row: int) -> dict[str, np.ndarray]:
        return {"image": np.array(data.images[row]), "label": np.array(data.masks[row])}

    cached = monai.data.CacheDataset(range(len(data)), load, progress=False)
    batches = monai.data.DataLoader(cached, batch_size=BATCH, shuffle=True, drop_last=True)
    while True:
        for batch in batches:
            yield batch["image"], batch["label"]


def grain_map(path: Path) -> Iterator[Batch]:
    """Draw from Google's grain over the memory map."""
    import grain

    source = loader.open_dataset(path)
    dataset = grain.MapDataset.source(source).shuffle(seed=7).repeat()
    yield from dataset.batch(BATCH).to_iter_dataset()


def ffcv_loader(path: Path, *, workers: int) -> Iterator[Batch]:
    """Draw from FFCV, of a file in its own format that is written once."""
    from ffcv.fields import NDArrayField
    from ffcv.fields.decoders import NDArrayDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor
    from ffcv.writer import DatasetWriter

    data, own = loader.open_dataset(path), path.with_suffix(".beton")
    if not own.exists():
        arrays = {"image": data.images, "label": data.masks}
        fields = {n: NDArrayField(a.dtype, a.shape[1:]) for n, a in arrays.items()}
        rows = [(image.copy(), mask.copy()) for image, mask in zip(*arrays.values(), strict=True)]
        DatasetWriter(os.fspath(own), fields, num_workers=1).from_indexed_dataset(rows)
    pipelines = {name: [NDArrayDecoder(), ToTensor()] for name in ("image", "label")}
    options = {"num_workers": workers, "order": OrderOption.RANDOM, "os_cache": True}
    batches = Loader(os.fspath(own), BATCH, pipelines=pipelines, drop_last=True, **options)
    while True:
        yield from batches


CONTENDERS: dict[str, tuple[Callable[[Path], Iterator[Batch]], str]] = {
    "copy, fresh arrays": (copy_fresh, "numpy"),
    "copy, kept buffer": (copy_kept, "numpy"),
    "np.take, kept buffer": (take_kept, "numpy"),
    "loader": (ours, "numpy"),
    "loader, out=": (ours_out, "numpy"),
    "loader, prefetch=2": (lambda path: ours(path, prefetch=2), "numpy"),
    "loader, float32 zscore": (lambda path: ours(path, normalize="zscore"), "numpy"),
    "float32 zscore by hand": (float32_by_hand, "numpy"),
    "loader in torch DataLoader": (ours_torch, "torch"),
    "memmap[rows]": (memmap, "numpy"),
    "h5py, sorted rows": (h5py_sorted, "h5py"),
    "torch, h5py, 0 workers": (lambda p: torch_loader(p, source="h5py", workers=0), "torch"),
    "torch, h5py, 2 workers": (lambda p: torch_loader(p, source="h5py", workers=2), "torch"),
    "torch, memmap, 0 workers": (lambda p: torch_loader(p, source="map", workers=0), "torch"),
    "torch, memmap, 2 workers": (lambda p: torch_loader(p, source="map", workers=2), "torch"),
    "MONAI CacheDataset": (monai_cache, "monai"),
    "grain": (grain_map, "grain"),
    "FFCV, 1 worker": (lambda path: ffcv_loader(path, workers=1), "ffcv"),
    "FFCV, 2 workers": (lambda path: ffcv_loader(path, workers=2), "ffcv"),
    "sequential read": (sequential, "numpy"),
}
COLD = ("sequential read", "loader", "loader, prefetch=2", "memmap[rows]", "h5py, sorted rows")
OTHERS = (
    "h5py, sorted rows",
    *[n for n in CONTENDERS if n.startswith(("torch", "MONAI", "grain", "FFCV"))],
)


# Measuring


def take(batches: Iterator[Batch], seconds: float, least: int) -> float:
    """Return the batches a second over some seconds, and at least some batches."""
    began = time.perf_counter()
    for n in itertools.count(1):
        next(batches)
        passed = time.perf_counter() - began
        if passed >= seconds and n >= least:
            return n / passed
    raise AssertionError


def run_warm(name: str, path: Path) -> float:
    """Return MB/s of a contender that has run for a while."""
    for _ in sequential(path):  # everything into the page cache
        pass
    batches = CONTENDERS[name][0](path)
    take(batches, WARM_SECONDS, 4)
    return take(batches, WARM_SECONDS, 8) * BATCH * ROW_MB


def run_cold(name: str, path: Path) -> float:
    """Return MB/s of a contender's first batches of a file that is not in memory."""
    batches = CONTENDERS[name][0](path)
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_inblock
    rate = take(batches, 0, COLD_BATCHES) * BATCH * ROW_MB
    if resource.getrusage(resource.RUSAGE_SELF).ru_inblock == before:
        click.echo(f"{name}: nothing was read from a disk", err=True)
    return rate


def run_first(_: str, path: Path) -> float:
    """Return the milliseconds of opening a file and drawing a batch."""
    passed = []
    for _ in range(9):
        began = time.perf_counter()
        loader.Batches(path, batch_size=BATCH, remainder="pad").next_batch()
        passed.append(time.perf_counter() - began)
    return 1000 * min(passed)


def run_memory(_: str, path: Path) -> float:
    """Return by how many MB the anonymous memory of epochs 26 to 50 is above that of 6 to 25."""
    batches = loader.Batches(path, batch_size=BATCH, remainder="pad", prefetch=2)
    after = []
    for _ in range(50):
        for _ in batches:
            pass
        after.append(anonymous())
    return max(after[25:]) - max(after[5:25])


def anonymous() -> float:
    """Return this process's anonymous memory in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


IMPORTS = ("import numpy, h5py", "import loader; loader.Batches")
RUNS = {"warm": run_warm, "cold": run_cold, "first": run_first, "memory": run_memory}


def run_apart(kind: str, name: str, path: Path) -> float:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--run", kind, name, os.fspath(path)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def import_time(modules: str, path: Path) -> float:
    """Return the milliseconds that imports take a new process once compiled; median of five."""
    timed = f"import time; t = time.perf_counter(); {modules}; print(time.perf_counter() - t)"
    command = [sys.executable, "-c", timed]
    environment = os.environ | {"PYTHONPYCACHEPREFIX": f"{path}.pycache"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    runs = [
        subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
        for _ in range(5)
    ]
    return 1000 * statistics.median(float(run.stdout) for run in runs)


@click.command()
@click.option("--rows", default=2000, show_default=True)
@click.option("--cold-rows", default=0, show_default=True, help="Rows of the cold file; 0: none.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--only", multiple=True, type=click.Choice(list(CONTENDERS)))
@click.option("--json", "json_file", type=click.Path(path_type=Path))
@click.option("--run", "running", nargs=3, hidden=True)
def main(
    rows: int,
    cold_rows: int,
    rounds: int,
    only: tuple[str, ...],
    json_file: Path | None,
    running: tuple[str, str, str] | None,
) -> None:
    """Compare random batches of one file."""
    if running:
        kind, name, path = running
        click.echo(RUNS[kind](name, Path(path)))
        return
    folder = Path(tempfile.mkdtemp(prefix="bench-loader-", dir=os.environ.get("BENCH_TMP")))
    found: dict[str, list[float]] = {}
    try:
        jobs = list(plan(folder, rows, cold_rows, only))
        for number, (kind, name, path) in itertools.product(range(rounds), jobs):
            try:
                value = import_time(name, path) if kind == "import" else run_apart(kind, name, path)
            except subprocess.CalledProcessError:
                click.echo(f"{kind}: {name}: it failed and is left out", err=True)
                continue
            found.setdefault(f"{kind}: {name}", []).append(value)
            click.echo(f"round {number + 1}: {kind}: {name}: {value:.4g}", err=True)
    finally:
        shutil.rmtree(folder)
    medians = {name: statistics.median(values) for name, values in found.items()}
    for line in itertools.chain(table(rows, cold_rows, medians), ratios(medians)):
        click.echo(line)
    if json_file:
        json_file.write_text(json.dumps({"rows": rows, "found": found}, indent=2) + "\n")


def plan(
    folder: Path, rows: int, cold_rows: int, only: tuple[str, ...]
) -> Iterator[tuple[str, str, Path]]:
    """Write the files, and yield kind, name and file of each measurement."""
    warm, cold, sparse = (folder / f"{name}.h5" for name in ("warm", "cold", "sparse"))
    write_file(warm, rows)
    for name, (_, module) in CONTENDERS.items():
        if only and name not in only:
            continue
        if find_spec(module) is None:
            click.echo(f"{name}: {module} is not installed", err=True)
        elif name != "sequential read":
            yield "warm", name, warm
    if cold_rows:
        write_file(cold, cold_rows)
        yield from (("cold", name, cold) for name in COLD if not only or name in only)
    if only:
        return
    small = folder / "small.h5"
    write_file(small, 1000, is_sparse=True)
    write_file(sparse, 10_000_000, is_sparse=True)
    yield from (("first", path.stem, path) for path in (small, sparse))
    yield "memory", "50 epochs", warm
    yield from (("import", modules, warm) for modules in IMPORTS)


def table(rows: int, cold_rows: int, medians: dict[str, float]) -> Iterator[str]:
    """Yield the rates as a Markdown table."""
    yield f"{rows} rows warm, {cold_rows} cold, batch {BATCH}, {SIZE}x{SIZE} int16 + uint8, "
    yield f"{os.cpu_count()} cores, medians"
    yield ""
    yield "| contender | MB/s | samples/s | of a plain copy | loader is faster |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for key, rate in medians.items():
        kind, name = key.split(": ", 1)
        if kind not in {"warm", "cold"}:
            continue
        reference = "copy, fresh arrays" if kind == "warm" else "sequential read"
        of_limit, faster = (
            f"{rate / other:.2f}" if turned else f"{other / rate:.1f} x"
            for other, turned in (
                (medians.get(f"{kind}: {reference}", float("nan")), True),
                (medians.get(f"{kind}: loader", float("nan")), False),
            )
        )
        yield f"| {kind}: {name} | {rate:.0f} | {rate / ROW_MB:.0f} | {of_limit} | {faster} |"
    yield ""


def ratios(medians: dict[str, float]) -> Iterator[str]:
    """Yield the figures that the loader is held to."""

    def ratio(numerator: str, denominator: str) -> str:
        if not {numerator, denominator} <= set(medians):
            return "not measured"
        return f"{medians[numerator] / medians[denominator]:.2f}"

    others = {name: medians[f"warm: {name}"] for name in OTHERS if f"warm: {name}" in medians}
    best = max(others, key=lambda name: others[name], default="none")
    memory = medians.get("memory: 50 epochs")
    yield "| figure | found | at least |"
    yield "| --- | ---: | ---: |"
    fresh, kept = "warm: copy, fresh arrays", "warm: copy, kept buffer"
    yield f"| warm, raw, against a copy into fresh arrays | {ratio('warm: loader', fresh)} | 0.9 |"
    yield f"| warm, `out=`, against a kept buffer | {ratio('warm: loader, out=', kept)} | 0.95 |"
    taken = "warm: np.take, kept buffer"
    yield f"| warm, `out=`, against np.take alone | {ratio('warm: loader, out=', taken)} | |"
    yield f"| warm, against {best} | {ratio('warm: loader', f'warm: {best}')} | 2 |"
    yield f"| cold, against a memory map | {ratio('cold: loader', 'cold: memmap[rows]')} | 2.5 |"
    cold = ratio("cold: loader", "cold: sequential read")
    yield f"| cold, against the disk's sequential rate | {cold} | (0.9) |"
    hand = ratio("warm: loader, float32 zscore", "warm: float32 zscore by hand")
    yield f"| float32, against NumPy by hand | {hand} | 0.9 |"
    first = ratio("first: sparse", "first: small")
    yield f"| first batch, 10 million rows against 1,000 | {first} | at most 1.5 |"
    imported = ratio(*(f"import: {modules}" for modules in reversed(IMPORTS)))
    yield f"| import, against numpy and h5py | {imported} | at most 1.15 |"
    if memory is not None:
        yield f"| RssAnon over 50 epochs with prefetch | {memory:+.1f} MB | flat |"


if __name__ == "__main__":
    main()
