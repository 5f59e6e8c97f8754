"""The batches as PyTorch takes them: data sets for its `DataLoader`, and batches on a device.

Imported only where it is asked for: ``import loader.torch``.
"""

from loader.torch.datasets import Dataset, IterableDataset
from loader.torch.device import DeviceBatches
from loader.torch.patches import GridPatches
from loader.torch.resident import ResidentBatches

__all__ = ["Dataset", "DeviceBatches", "GridPatches", "IterableDataset", "ResidentBatches"]
