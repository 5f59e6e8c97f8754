"""Random batches for training, straight from the memory-mapped file that dicom-etl builds."""

from loader.batches import Batches
from loader.dataset import Dataset, open_dataset
from loader.errors import LoaderError
from loader.layout import VERSION as __version__  # noqa: N811 the customary name

__all__ = ["Batches", "Dataset", "LoaderError", "__version__", "open_dataset"]
