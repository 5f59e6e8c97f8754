"""Dictionary transforms of MONAI as a transform of the loader.

Run: python examples/with_monai.py out.h5
"""

import sys
from collections.abc import Mapping

import numpy as np
from monai.transforms import Compose, Rand2DElasticd, RandFlipd, RandGaussianNoised, RandRotated

import loader

BOTH = ["image", "label"]
PIPELINE = Compose(
    [
        RandFlipd(BOTH, prob=0.5, spatial_axis=1),
        RandRotated(
            BOTH, range_x=0.3, prob=0.5, mode=["bilinear", "nearest"], padding_mode="border"
        ),
        Rand2DElasticd(
            BOTH,
            spacing=(30, 30),
            magnitude_range=(1, 3),
            prob=0.3,
            mode=["bilinear", "nearest"],
            padding_mode="border",
        ),
        RandGaussianNoised("image", prob=0.5, std=0.1),
    ]
)


def augment(
    image: np.ndarray, mask: np.ndarray, _: Mapping[str, object], generator: np.random.Generator
) -> tuple[object, object]:
    """Change one sample; the loader's generator decides how."""
    PIPELINE.set_random_state(seed=int(generator.integers(2**32)))
    changed = PIPELINE({"image": image[None], "label": mask[None]})  # channels first
    return changed["image"][0], changed["label"][0]  # tensors, which the loader takes as they are


if __name__ == "__main__":
    batches = loader.Batches(
        sys.argv[1], batch_size=4, seed=7, normalize="zscore", transform=augment
    )
    for images, masks in batches:
        print(images.shape, images.dtype, masks.shape, masks.dtype)
