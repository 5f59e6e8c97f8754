"""Random batches for training, straight from the memory-mapped file that dicom-etl builds."""

import importlib
from typing import TYPE_CHECKING

from loader.format import VERSION as __version__  # noqa: N811 the customary name

if TYPE_CHECKING:
    from loader.batches import Batches
    from loader.dataset import Dataset, open_dataset
    from loader.errors import LoaderError

__all__ = ["Batches", "Dataset", "LoaderError", "__version__", "open_dataset"]

# Imported when first used: the command line needs `loader.format` alone, and is quick for it.
_HOMES = {
    "Batches": "loader.batches",
    "Dataset": "loader.dataset",
    "LoaderError": "loader.errors",
    "open_dataset": "loader.dataset",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used."""
    if name not in _HOMES:
        hint = "; import loader.torch first" if name == "torch" else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Return the public names, for completion."""
    return __all__
