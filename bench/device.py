"""Batches on a device, side by side: the copy limit, DeviceBatches, ResidentBatches, a U-Net.

    python bench/device.py --minutes 5 --json device.json

Makes a file of --rows synthetic rows of 256x256, int16 and uint8, and prints samples per second,
each the median of --rounds stretches of --seconds. It needs torch, numpy and h5py alone, and on a
machine without CUDA runs with --device cpu, for its test. BENCH_TMP names the folder of the file.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import numpy as np

sys.path.pop(0)  # this folder, whose loader.py is not the package
sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]

import torch  # noqa: E402
from dataset_builder import write_dataset  # noqa: E402

import loader  # noqa: E402
import loader.torch as loader_torch  # noqa: E402
from loader import Augment  # noqa: E402

FULL = Augment.none(
    flip_rows=0.5,
    flip_columns=0.5,
    rotate=(1, -15, 15),
    scale=(1, 0.85, 1.15),
    shift=(1, -0.05, 0.05),
    elastic=(0.3, 0.01, 0.03),
    gamma=(0.3, 0.7, 1.5),
    noise=(0.3, 0, 0.1),
)


class Clock:
    """Measures rates until its time is over."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.device = torch.device(arguments.device)
        self.seconds, self.rounds = arguments.seconds, arguments.rounds
        self.end = time.monotonic() + 60 * arguments.minutes
        self.rates: dict[str, float] = {}

    def measure(self, name: str, make: Callable[[], Iterator[int]]) -> None:
        """Print the median rate of a stream of numbers of samples."""
        if time.monotonic() > self.end:
            print(f"{name:58} left out: the time is over", flush=True)
            return
        try:
            stream = make()
            warm = time.monotonic() + self.seconds / 2
            for _ in stream:
                if time.monotonic() > warm:
                    break
            rates = [self._rate(stream) for _ in range(self.rounds)]
        except Exception as error:  # noqa: BLE001  the others are measured still
            print(f"{name:58} failed: {type(error).__name__}: {str(error)[:300]}", flush=True)
            return
        self.rates[name] = statistics.median(rates)
        spread = f"({min(rates):,.0f} to {max(rates):,.0f})"
        print(f"{name:58} {self.rates[name]:>12,.0f} samples/s {spread}", flush=True)

    def _rate(self, stream: Iterator[int]) -> float:
        self.wait()
        begin, n_samples = time.perf_counter(), 0
        while time.perf_counter() - begin < self.seconds:
            n_samples += next(stream)
        self.wait()
        return n_samples / (time.perf_counter() - begin)

    def wait(self) -> None:
        """Wait until the device has done all."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def copies(batch_size: int, device: torch.device) -> Iterator[int]:
    """Copy one pinned batch again and again: the limit of the bus."""
    images = torch.zeros((batch_size, 256, 256), dtype=torch.int16)
    masks = torch.zeros((batch_size, 256, 256), dtype=torch.uint8)
    if device.type == "cuda":
        images, masks = images.pin_memory(), masks.pin_memory()
    while True:
        images.to(device, non_blocking=True)
        masks.to(device, non_blocking=True)
        yield batch_size


def epochs(batches: loader_torch.DeviceBatches) -> Iterator[int]:
    """Yield the length of batch after batch, epoch after epoch."""
    while True:
        for images, _ in batches:
            yield len(images)


def unet() -> torch.nn.Module:
    """Return a small U-Net: four levels from 32 channels on."""

    def block(before: int, after: int) -> torch.nn.Module:
        layers = []
        for channels in (before, after):
            layers += [torch.nn.Conv2d(channels, after, 3, padding=1, bias=False)]
            layers += [torch.nn.BatchNorm2d(after), torch.nn.ReLU(inplace=True)]
        return torch.nn.Sequential(*layers)

    class UNet(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            widths = [32, 64, 128, 256]
            self.down = torch.nn.ModuleList(map(block, [1, *widths[:-1]], widths))
            self.up = torch.nn.ModuleList(
                block(3 * width, width) for width in reversed(widths[:-1])
            )
            self.last = torch.nn.Conv2d(widths[0], 3, 1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            passed = []
            for level in self.down:
                images = level(images)
                passed.append(images)
                images = torch.nn.functional.max_pool2d(images, 2)
            images = passed.pop()
            for level in self.up:
                images = torch.nn.functional.interpolate(images, scale_factor=2.0)
                images = level(torch.cat([images, passed.pop()], 1))
            return self.last(images)

    return UNet()


def steps(
    batches: Iterator[tuple[torch.Tensor, torch.Tensor]], device: torch.device
) -> Iterator[int]:
    """Train on batches, in bfloat16."""
    model = unet().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), fused=device.type == "cuda")
    for images, masks in batches:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            scores = model(images.to(memory_format=torch.channels_last))
            loss = torch.nn.functional.cross_entropy(scores, masks[:, 0].long())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        yield len(images)


def tensors(batches: loader_torch.DeviceBatches) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield batch after batch, epoch after epoch."""
    while True:
        yield from batches


def run(path: Path, clock: Clock, sizes: list[int]) -> None:
    """Measure everything, the most telling first."""
    device = clock.device
    large = sizes[-1]
    middle = sizes[len(sizes) // 2]

    def sending(**options: object) -> Callable[[], Iterator[int]]:
        return lambda: epochs(loader_torch.DeviceBatches(path, device, **options))

    def resident(**options: object) -> Callable[[], Iterator[int]]:
        return lambda: epochs(loader_torch.ResidentBatches(path, device, **options))

    for size in sizes:
        clock.measure(
            f"copy of pinned memory, batch {size}", lambda size=size: copies(size, device)
        )
    for size in sizes:
        for normalize in (None, "zscore"):
            name = f"batch {size} {normalize or 'raw'}"
            options = {"batch_size": size, "normalize": normalize}
            clock.measure(f"DeviceBatches {name}", sending(**options))
            clock.measure(f"ResidentBatches {name}", resident(**options))
    clock.measure(
        f"DeviceBatches batch {large} raw, prefetch 4", sending(batch_size=large, prefetch=4)
    )
    full = {"batch_size": middle, "normalize": "zscore", "augment": FULL}
    clock.measure(f"ResidentBatches batch {middle} full augmentation", resident(**full))
    clock.measure(f"ResidentBatches batch {middle} full, compiled", resident(**full, compiled=True))
    clock.measure(f"DeviceBatches batch {middle} full augmentation", sending(**full))
    for n_threads in (1, 2, 4, 8):
        options = {"batch_size": large, "gather_threads": n_threads}
        clock.measure(f"DeviceBatches batch {large} raw, {n_threads} threads", sending(**options))
    still = next(iter(loader_torch.ResidentBatches(path, device, **full)))
    for kind, make in (
        ("one batch again and again", lambda: cycle([still])),
        (
            "resident, full augmentation",
            lambda: tensors(loader_torch.ResidentBatches(path, device, **full)),
        ),
        (
            "resident, full, compiled",
            lambda: tensors(loader_torch.ResidentBatches(path, device, compiled=True, **full)),
        ),
        (
            "DeviceBatches, full augmentation",
            lambda: tensors(loader_torch.DeviceBatches(path, device, **full)),
        ),
    ):
        clock.measure(f"U-Net batch {middle}, {kind}", lambda make=make: steps(make(), device))


def main() -> None:
    """Measure, print and keep the rates."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--sizes", default="32,64,256", help="batch sizes")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each stretch")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the rates to this file")
    arguments = parser.parse_args()
    clock = Clock(arguments)
    name = torch.cuda.get_device_name() if clock.device.type == "cuda" else "CPU"
    n_cores = len(os.sched_getaffinity(0))
    print(f"{name}, {n_cores} cores, torch {torch.__version__}, {arguments.rows} rows", flush=True)
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_TMP")) as scratch:
        path = Path(scratch) / "rows.h5"
        sizes = {"n": arguments.rows, "rows": 256, "columns": 256}
        numbers = {"mean": np.full(arguments.rows, 500.0), "std": np.full(arguments.rows, 290.0)}
        write_dataset(path, **sizes, manifest=numbers)
        loader.open_dataset(path)
        run(path, clock, sorted(map(int, arguments.sizes.split(","))))
    if arguments.json is not None:
        found = {"device": name, "cores": n_cores, "torch": torch.__version__}
        arguments.json.write_text(
            json.dumps({**found, "samples_per_second": clock.rates}, indent=1)
        )


if __name__ == "__main__":
    main()
