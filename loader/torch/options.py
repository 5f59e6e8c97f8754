"""Options of the data sets, and what all of them have."""

from collections.abc import Mapping, Sequence
from typing import Final, NoReturn, NotRequired, TypeAlias, TypedDict

import torch  # type: ignore[import-not-found, unused-ignore]
from torch import distributed  # type: ignore[import-not-found, unused-ignore]
from torch.utils.data._utils import collate  # type: ignore[import-not-found, unused-ignore]

import loader
from loader.augment.settings import Augment
from loader.batches import Batches, Values, check_plan, warn_left_out
from loader.channels import MaskChannels
from loader.errors import LoaderError
from loader.feed import Arrays, Order
from loader.neighbours import Neighbours
from loader.normalise import Normalize
from loader.patches import Patches
from loader.sampler import Indices, Remainder
from loader.selection import Balance, FoldRole, HasRows, Split, Weights, Where
from loader.transform import Transform

Tensors: TypeAlias = "tuple[torch.Tensor, torch.Tensor]"
Batch: TypeAlias = "tuple[torch.Tensor, ...]"  # images and masks; with is_padding where asked for
State: TypeAlias = dict[str, str | int | None]

CHANNELS_FIRST: Final = "Tensors have their channels first, always."


class Selecting(TypedDict):
    """Options of `loader.Batches` that choose samples and say what an image is."""

    split: NotRequired[Split | None]
    fold: NotRequired[int | None]
    fold_role: NotRequired[FoldRole]
    where: NotRequired[Where | None]
    apart_from: NotRequired[HasRows | None]
    allow_shared_patients: NotRequired[bool]
    dtype: NotRequired[Values | None]
    normalize: NotRequired[Normalize | None]
    augment: NotRequired[Augment | None]
    neighbours: NotRequired[int | Neighbours | None]
    patches: NotRequired[Patches | None]
    transform: NotRequired[Transform | None]
    mask_channels: NotRequired[MaskChannels | None]
    seed: NotRequired[int]


class Batching(Selecting):
    """Options of `loader.Batches`; but for the layout, which is NCHW, all of them.

    Without rank and world_size, they are those of `torch.distributed` where it runs.
    """

    batch_size: int
    weights: NotRequired[Weights | None]
    balance: NotRequired[Balance | None]
    shuffle: NotRequired[bool]
    remainder: NotRequired[Remainder]
    prefetch: NotRequired[int]
    rank: NotRequired[int]
    world_size: NotRequired[int]


class OfFile:
    """Rows of a file, chosen by the options of `loader.Batches`."""

    _batches: Batches

    def _refuse_others(self, options: Mapping[str, object], known: type, hint: str) -> None:
        """Refuse options that the class does not have."""
        unknown = ", ".join(sorted(options.keys() - known.__annotations__.keys()))
        if unknown:
            raise TypeError(
                f"loader.torch.{type(self).__name__}: {unknown}: no option of this class (expected "
                f"{', '.join(known.__annotations__)}). {hint}"
            )

    @property
    def dataset(self) -> loader.Dataset:
        """The open file."""
        return self._batches.dataset

    @property
    def rows(self) -> Indices:
        """The rows of the file that take part, ascending; int64, shape (n,)."""
        return self._batches.rows

    def __repr__(self) -> str:
        """Return the file and the choice of rows."""
        return f"<{type(self).__name__} of {self._batches.description}>"


def ranked_batches(source: object, options: Mapping[str, object]) -> Batches:
    """Return batches of the rank given, else of the one that torch.distributed has."""
    follows = not {"rank", "world_size"} & options.keys()
    ranks = dict(zip(("rank", "world_size"), _rank_and_world_size(), strict=True))
    batches = Batches(source, layout="NCHW", **(ranks if follows else {}), **options)  # type: ignore[arg-type]
    if follows:  # torch.distributed may start later
        batches.feed.ranks = _rank_and_world_size
        batches.feed.on_new_ranks = CheckRanks(batches.dataset)
    return batches


class CheckRanks:
    """Check the order of a rank that torch.distributed gave after the batches were made."""

    def __init__(self, dataset: loader.Dataset) -> None:
        self._dataset = dataset

    def __call__(self, order: Order) -> None:
        """Refuse an order that hands out no batch; warn of rows that it leaves out."""
        check_plan(order.plan, self._dataset)
        if torch.utils.data.get_worker_info() is None:
            warn_left_out(order)


class Whole(tuple[torch.Tensor, ...]):
    """A batch as an IterableDataset hands it out; a DataLoader must not make batches of these."""

    __slots__ = ()


def _refuse_batches(batch: Sequence[object], **_: object) -> NoReturn:
    raise LoaderError(
        f"Batch not made: a DataLoader puts {len(batch)} together of what are batches already. "
        "Give batch_size=None to the DataLoader, and batch_size to the data set."
    )


def refuse_batches_of_batches() -> None:
    """Make the DataLoader of this process, a worker's too, refuse to join what is `Whole`."""
    collate.default_collate_fn_map[Whole] = _refuse_batches


def as_tensors(arrays: Arrays) -> Tensors:
    """Return arrays as tensors that share their memory."""
    images, masks = arrays
    return torch.from_numpy(images), torch.from_numpy(masks)


def _rank_and_world_size() -> tuple[int, int]:
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1
