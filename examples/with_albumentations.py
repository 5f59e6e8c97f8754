"""Albumentations as a transform of the loader.

Run: python examples/with_albumentations.py out.h5
"""

import sys
from collections.abc import Mapping

import albumentations as A  # noqa: N812 as its users call it
import numpy as np

import loader

PIPELINE = A.Compose(
    [
        A.HorizontalFlip(p=0.5),
        A.Affine(rotate=(-15, 15), scale=(0.9, 1.1), p=0.5),
        A.ElasticTransform(alpha=30, sigma=6, p=0.3),
        A.RandomBrightnessContrast(p=0.5),  # of float32 images within 0..1
    ]
)


def augment(
    image: np.ndarray, mask: np.ndarray, _: Mapping[str, object], generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Change one sample; the loader's generator decides how."""
    PIPELINE.set_random_seed(int(generator.integers(2**32)))
    changed = PIPELINE(image=image, mask=mask)
    return changed["image"], changed["mask"]


if __name__ == "__main__":
    batches = loader.Batches(
        sys.argv[1], batch_size=4, seed=7, normalize="minmax", transform=augment
    )
    for images, masks in batches:
        print(images.shape, images.dtype, masks.shape, masks.dtype)
