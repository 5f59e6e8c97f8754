"""Random batches for training, straight from the memory-mapped file that dicom-etl builds."""

from typing import TYPE_CHECKING

from loader.format import VERSION as __version__  # noqa: N811 the customary name

if TYPE_CHECKING:
    from loader.augment.settings import Augment
    from loader.batches import Batches
    from loader.dataset import Dataset, open_dataset
    from loader.errors import LoaderError
    from loader.grid_patches import GridPatches
    from loader.neighbours import Neighbours
    from loader.patches import Patches
    from loader.transform import PerBatch

__all__ = [
    "Augment",
    "Batches",
    "Dataset",
    "GridPatches",
    "LoaderError",
    "Neighbours",
    "Patches",
    "PerBatch",
    "__version__",
    "open_dataset",
]


def __getattr__(name: str) -> object:  # noqa: PLR0911 one return for each module
    """Import a public name when it is first used: the command line needs `loader.format` only."""
    match name:
        case "Augment":
            from loader.augment.settings import Augment

            return Augment
        case "Batches":
            from loader.batches import Batches

            return Batches
        case "Dataset" | "open_dataset":
            from loader import dataset

            return getattr(dataset, name)
        case "GridPatches":
            from loader.grid_patches import GridPatches

            return GridPatches
        case "Neighbours":
            from loader.neighbours import Neighbours

            return Neighbours
        case "LoaderError":
            from loader.errors import LoaderError

            return LoaderError
        case "Patches":
            from loader.patches import Patches

            return Patches
        case "PerBatch":
            from loader.transform import PerBatch

            return PerBatch
    hint = "; import loader.torch first" if name == "torch" else ""
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")


def __dir__() -> list[str]:
    """Return the public names, for completion."""
    return __all__
