"""Batches as JAX arrays on the default device, one batch ahead of the step.

Run: python examples/with_jax.py out.h5
"""

import sys
from collections.abc import Iterator

import jax
import jax.numpy as jnp

import loader


def on_device(batches: loader.Batches) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Hand out what is left of an epoch; the next batch travels while a step runs."""
    ahead = None
    for arrays in batches:  # fresh arrays, which JAX may keep without a copy
        coming = jax.device_put(arrays)  # returns before the copy has arrived
        if ahead is not None:
            yield ahead
        ahead = coming
    if ahead is not None:
        yield ahead


@jax.jit
def share_of_foreground(images: jax.Array, masks: jax.Array) -> jax.Array:
    """Return a figure of a batch: in place of a training step."""
    return jnp.where(masks > 0, images, 0).sum() / jnp.maximum(1, (masks > 0).sum())


if __name__ == "__main__":
    with loader.Batches(
        sys.argv[1], batch_size=4, seed=7, layout="NHW", normalize="zscore", prefetch=2
    ) as batches:
        for _ in range(2):  # each pass is an epoch
            for images, masks in on_device(batches):
                print(images.shape, masks.dtype, float(share_of_foreground(images, masks)))
