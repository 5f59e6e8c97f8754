"""Batches through pinned memory, on a double of CUDA whose copies come as late as they may.

A copy that `DeviceBatches` asks for is done only when a stream or the host waits for it. Until the
host has waited, the memory that it reads must stay as it is; and what was copied on one stream and
is used on another must be recorded there before it is freed.
"""

import concurrent.futures
import contextlib

import numpy as np
import pytest
from dataset_builder import write_dataset

import loader
from loader import Augment, Patches

torch = pytest.importorskip("torch")

from torch.overrides import TorchFunctionMode  # noqa: E402 torch may be missing

from loader.torch import device as device_module  # noqa: E402
from loader.torch import on_device  # noqa: E402
from loader.torch.device import DeviceBatches  # noqa: E402

N, BATCH = 53, 4
OPTIONS = {"batch_size": BATCH, "seed": 7, "remainder": "keep"}


class Copy:
    """A copy to the device that may not have happened yet."""

    def __init__(self, source, target):
        self.source, self.target = source, target
        self.seen = None  # what it read
        self.is_over = False  # the host knows that it has happened
        self.recorded_on = []

    def run(self):
        if self.seen is None:
            self.seen = self.source.clone()
            self.target.copy_(self.seen)

    def finish(self):
        """Let the host wait for it."""
        self.run()
        if self.is_over:
            return
        self.is_over = True
        assert torch.equal(self.source, self.seen), "memory was written to before it was sent"


class Stream:
    """Copies in the order in which they were asked for."""

    def __init__(self, device=None):
        self.device, self.copies, self.awaited = device, [], []
        self.n_recorded = 0

    def wait_event(self, event):
        for copy in event.copies:
            copy.run()
        self.awaited += event.newest


class Event:
    """How far a stream had come when it was recorded."""

    def __init__(self):
        self.copies, self.newest = [], []

    def record(self, stream):
        self.copies, self.newest = list(stream.copies), stream.copies[stream.n_recorded :]
        stream.n_recorded = len(stream.copies)

    def synchronize(self):
        for copy in self.copies:
            copy.finish()


class FakeCuda(TorchFunctionMode):
    """Turns what goes to "cuda" into copies on the current stream."""

    def __init__(self):
        super().__init__()
        self.default = self.current = Stream()
        self.streams, self.pinned = [], []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.Tensor.pin_memory:
            pinned = args[0].clone()
            self.pinned.append(pinned)
            return pinned
        if function is torch.Tensor.to and len(args) > 1 and _is_cuda(args[1]):
            return self._send(args[0])
        return function(*args, **kwargs)

    def _send(self, source):
        with torch._C.DisableTorchFunction():
            target = torch.full_like(source, 77)
        copy = Copy(source, target)
        if self.current is self.default:
            copy.run()  # what follows on this stream comes after it
        else:
            self.current.copies.append(copy)
        return target

    def record(self, tensor, stream):
        """Note that a tensor is kept until a stream has used it."""
        for copies in self.streams:
            for copy in copies.copies:
                if copy.target is tensor:
                    copy.recorded_on.append(stream)

    def make_stream(self, device):
        self.streams.append(Stream(device))
        return self.streams[-1]

    @contextlib.contextmanager
    def on(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before


def _recorder(fake):
    """Return a function, which a class makes a method of; a method it would not."""

    def record_stream(tensor, stream):
        fake.record(tensor, stream)

    return record_stream


def _is_cuda(device):
    return isinstance(device, torch.device) and device.type == "cuda"


@pytest.fixture
def cuda(monkeypatch):
    fake = FakeCuda()
    monkeypatch.setattr(torch.cuda, "Stream", fake.make_stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", fake.on)
    monkeypatch.setattr(torch.Tensor, "record_stream", _recorder(fake))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: fake.default)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(on_device.OnDevice, "_check_cuda", lambda _: None)
    with fake:
        yield fake
    for copy in fake.default.awaited:
        assert fake.default in copy.recorded_on, "used on a stream that it is not kept for"


@pytest.fixture(scope="module", params=["<i2", "<u2", "<f4"])
def path(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("pinned") / "out.h5"
    offset = 40_000 if request.param == "<u2" else 0
    write_dataset(path, n=N, rows=16, columns=20, image_dtype=request.param, offset=offset)
    return path


def require_epochs(batches, path, n_epochs, **options):
    """Compare with the host, after all batches of the epochs were asked for."""
    found = [[(a.clone(), b.clone()) for a, b in batches] for _ in range(n_epochs)]
    expected = loader.Batches(path, layout="NCHW", **OPTIONS | options)
    for epoch in found:
        others = list(expected)
        assert len(epoch) == len(others)
        for (images, masks), (other_images, other_masks) in zip(epoch, others, strict=True):
            if "augment" in options:
                np.testing.assert_allclose(images.numpy(), other_images, atol=2e-3)
            else:
                np.testing.assert_array_equal(images.numpy(), other_images)
            np.testing.assert_array_equal(masks.numpy(), other_masks)


@pytest.mark.parametrize("prefetch", [0, 1, 4])
@pytest.mark.parametrize("n_together", [1, 3, None])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize": "zscore", "mask_channels": "uint8"},
        {"normalize": "zscore", "augment": Augment.none(flip_rows=0.5, gamma=(0.5, 0.7, 1.4))},
        {"patches": Patches((8, 9), foreground=0.5, pad=True), "normalize": "minmax"},
    ],
)
def test_batches_are_those_of_the_host(cuda, path, monkeypatch, prefetch, n_together, options):
    if n_together:
        monkeypatch.setattr(device_module, "batches_together", lambda _: n_together)
    options = {**options, "prefetch": prefetch}
    with DeviceBatches(path, "cuda", gather_threads=3, **OPTIONS | options) as batches:
        require_epochs(batches, path, 3, **options)
    assert cuda.streams


def test_an_iteration_that_was_left_spoils_nothing(cuda, path, monkeypatch):
    monkeypatch.setattr(device_module, "batches_together", lambda _: 2)
    with DeviceBatches(path, "cuda", gather_threads=2, prefetch=4, **OPTIONS) as batches:
        for n_taken in (1, 2, 5):
            batches.set_epoch(0)
            for n, _ in enumerate(batches, 1):
                if n == n_taken:
                    break
        batches.set_epoch(0)
        require_epochs(batches, path, 2)
    assert len(cuda.streams) == 1


def test_a_slow_training_step_does_not_fill_the_device(cuda, path, monkeypatch):
    """Batches that were sent and not taken are never more than those ahead."""
    monkeypatch.setattr(device_module, "batches_together", lambda _: 1)
    with DeviceBatches(path, "cuda", gather_threads=2, prefetch=3, **OPTIONS) as batches:
        for n_taken, _ in enumerate(batches, 1):
            (stream,) = cuda.streams
            n_sent = len(stream.copies) // len(("images", "masks"))
            assert n_sent - n_taken < 4
            slots = batches._maker._slots
            concurrent.futures.wait([part for slot in slots for part in slot.parts])


def test_pinned_memory_is_taken_once_for_all_epochs(cuda, path):
    with DeviceBatches(path, "cuda", gather_threads=2, prefetch=2, **OPTIONS) as batches:
        require_epochs(batches, path, 1)
        n_pinned = len(cuda.pinned)
        require_epochs(batches, path, 0)
        assert sum(1 for _ in batches) == len(batches)
        assert len(cuda.pinned) == n_pinned


def test_batches_larger_than_the_file_take_no_more_memory_than_its_rows(cuda, path):
    options = OPTIONS | {"batch_size": 10**7}
    with DeviceBatches(path, "cuda", gather_threads=1, **options) as batches:
        ((images, _),) = list(batches)
    assert len(images) == N
    assert max(map(len, cuda.pinned)) == N


def test_an_error_in_a_thread_is_raised_and_the_batch_comes_next(cuda, path, monkeypatch):
    batches = DeviceBatches(path, "cuda", gather_threads=2, prefetch=1, **OPTIONS)
    gather, fails = loader.feed.Stream.gather, [True]

    def failing(*arguments):
        if fails:
            fails.pop()
            raise OSError("no")
        return gather(*arguments)

    monkeypatch.setattr(loader.feed.Stream, "gather", failing)
    with pytest.raises(OSError, match="no"):
        next(iter(batches))
    require_epochs(batches, path, 2)
    batches.close()


def test_the_double_finds_memory_that_is_written_to_too_early(cuda, path, monkeypatch):
    """Without the wait for the copy before, the test above must fail."""
    monkeypatch.setattr(device_module, "batches_together", lambda _: 1)
    monkeypatch.setattr(Event, "synchronize", lambda _: None)
    with DeviceBatches(path, "cuda", gather_threads=1, prefetch=1, **OPTIONS) as batches:
        assert sum(1 for _ in batches) == len(batches)
    (first, *_) = cuda.streams[0].copies
    with pytest.raises(AssertionError, match="written to before it was sent"):
        first.finish()
