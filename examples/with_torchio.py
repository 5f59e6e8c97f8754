"""TorchIO as a transform of the loader: an image is a volume of one slice.

Run: python examples/with_torchio.py out.h5
"""

import sys
from collections.abc import Mapping

import numpy as np
import torch
import torchio as tio

import loader

PIPELINE = tio.Compose(
    [
        tio.RandomFlip(axes=("Left",), flip_probability=0.5),
        # The third axis has one slice: it is neither scaled, nor turned into the others.
        tio.RandomAffine(
            scales=(0.9, 1.1, 0.9, 1.1, 1, 1),
            degrees=(0, 0, 0, 0, -15, 15),
            default_pad_label=0,
            p=0.5,
        ),
        tio.RandomBiasField(p=0.3),
        tio.RandomNoise(std=0.1, p=0.5),
    ]
)


def augment(
    image: np.ndarray, mask: np.ndarray, _: Mapping[str, object], generator: np.random.Generator
) -> tuple[object, object]:
    """Change one sample; the loader's generator decides how."""
    volume, labels = (torch.from_numpy(array)[None, ..., None] for array in (image, mask))
    subject = tio.Subject(image=tio.ScalarImage(tensor=volume), label=tio.LabelMap(tensor=labels))
    with torch.random.fork_rng(devices=[]):  # TorchIO draws from torch's own generator
        torch.manual_seed(int(generator.integers(2**63)))
        changed = PIPELINE(subject)
    return changed["image"].data[0, ..., 0], changed["label"].data[0, ..., 0]


if __name__ == "__main__":
    batches = loader.Batches(
        sys.argv[1], batch_size=4, seed=7, normalize="zscore", transform=augment
    )
    for images, masks in batches:
        print(images.shape, images.dtype, masks.shape, masks.dtype)
