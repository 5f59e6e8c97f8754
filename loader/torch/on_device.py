# mypy: allow-untyped-calls
"""What batches on a device have in common: position, states, one iteration at a time."""

import copy
import os
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol, Self

import torch  # type: ignore[import-not-found, unused-ignore]

import loader
from loader.batches import Batches
from loader.errors import LoaderError
from loader.feed import Drawn, Padding, Position
from loader.sampler import Indices
from loader.torch.options import CHANNELS_FIRST, Batching, OfFile, State, Tensors, ranked_batches


class Made(NamedTuple):
    """A batch on the device, and which rows it has."""

    drawn: Drawn
    tensors: Tensors


class Maker(Protocol):
    """What makes the batches of an epoch, from a position on."""

    def made(self, position: Position) -> Iterator[Made]:
        """Yield batch after batch to the end of the epoch."""

    def close(self) -> None:
        """End what runs in the background."""


def numbered(device: "torch.device") -> "torch.device":
    """Return a CUDA device with its number, so that it stays the same whatever is current later."""
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", torch.cuda.current_device())


class OnDevice(OfFile):
    """Batches on a device; how they get there is the maker's."""

    def __init__(
        self,
        source: str | os.PathLike[str] | loader.Dataset,
        device: "torch.device | str",
        options: Mapping[str, object],
    ) -> None:
        self._refuse_others(options, Batching, CHANNELS_FIRST)
        self._batches: Batches = ranked_batches(source, options)
        self._device = torch.device(device)
        if self._device.type == "cuda":
            self._check_cuda()
        self._iteration: object = None  # the one that may hand out batches
        self._n_loads = 0
        self._position: Position = (0, 0)
        self._indices, self._is_padding = self._batches.indices, self._batches.is_padding
        self._maker: Maker | None = None

    def _make_maker(self) -> Maker:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, object]:
        """Copy and pickle without what runs in the background, and without what is on a device."""
        return {**self.__dict__, "_maker": None, "_iteration": None}

    def __copy__(self) -> Self:
        """Return a copy that iterates on its own."""
        return copy.deepcopy(self)

    def __len__(self) -> int:
        """Return the number of batches in an epoch, on this rank."""
        return len(self._batches)

    def __iter__(self) -> Iterator[Tensors]:
        """Hand out what is left of this epoch: images and masks, (samples, 1, rows, columns).

        With `mask_channels`, masks have a channel of each structure.

        Raises
        ------
        LoaderError
            In an iteration that another one has followed.
        """
        self._iteration = iteration = object()
        return self._handed_out(iteration)

    def __enter__(self) -> Self:
        """Return the object itself, to be closed where the `with` statement ends."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """End the threads that prepare batches; the next batch starts others."""
        if self._maker is not None:
            self._maker.close()
        self._maker = None

    @property
    def epochs_completed(self) -> int:
        """Epochs whose last batch has been handed out."""
        return self._position[0]

    @property
    def indices(self) -> Indices:
        """Rows of the file in the batch just handed out; int64, shape (n,)."""
        return self._indices

    @property
    def is_padding(self) -> Padding:
        """Which samples of that batch repeat others to fill it; bool, shape (n,)."""
        return self._is_padding

    def state_dict(self) -> State:
        """Return the position and what it belongs to, as plain JSON."""
        epoch, batch = self._position
        return self._batches.state_dict() | {"epoch": epoch, "batch": batch}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on from a position that `state_dict` returned; see `loader.Batches`."""
        self._batches.load_state_dict(state)
        found = self._batches.state_dict()
        self._position = int(found["epoch"] or 0), int(found["batch"] or 0)
        self._n_loads += 1

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; see `loader.Batches.set_epoch`."""
        self._batches.set_epoch(epoch)
        self._position = self._batches.epochs_completed, 0
        self._n_loads += 1

    def _check_cuda(self) -> None:
        n_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if n_devices <= (self._device.index or 0):
            raise LoaderError(
                f"Batches not made: {self._batches.dataset.path}: no CUDA device {self._device} "
                f"(torch {torch.__version__} finds {n_devices}). Use another device, such as "
                "'cpu'; or look at what nvidia-smi and torch.version.cuda say."
            )

    def _handed_out(self, iteration: object) -> Iterator[Tensors]:
        epoch = self._position[0]
        while self._position[0] == epoch:
            self._require_current(iteration)
            n_loads = self._n_loads
            maker = self._maker = self._maker or self._make_maker()
            for drawn, tensors in maker.made(self._position):
                self._indices, self._is_padding = drawn.rows, drawn.is_padding
                self._position = drawn.after
                yield tensors
                self._require_current(iteration)
                # What is in flight does not come after a state that was loaded; or it was closed.
                if n_loads != self._n_loads or self._maker is not maker:
                    break

    def _require_current(self, iteration: object) -> None:
        if self._iteration is not iteration:
            raise LoaderError(
                f"Batch not handed out: {self._batches.dataset.path}: another iteration over these "
                "batches has begun. Iterate them once at a time."
            )
