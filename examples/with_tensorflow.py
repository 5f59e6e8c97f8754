"""Batches as a tf.data.Dataset, for model.fit or a loop of your own.

Run: python examples/with_tensorflow.py out.h5
"""

import sys
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

import loader


def dataset_of(batches: loader.Batches) -> tf.data.Dataset:
    """Return a data set of which each pass is the next epoch, channels last.

    Parameters
    ----------
    batches : loader.Batches
        With layout="NHW", normalize or dtype="float32", and a fixed number of samples a batch.
    """

    def epoch() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for images, masks in batches:
            yield images[..., None], masks[..., None]

    rows, columns = batches.dataset.images.shape[1:]
    signature = (
        tf.TensorSpec((None, rows, columns, 1), tf.float32),
        tf.TensorSpec((None, rows, columns, 1), tf.uint8),
    )
    dataset = tf.data.Dataset.from_generator(epoch, output_signature=signature)
    # Keras then knows the number of steps; the batches ahead are made in threads of tf.data.
    known = tf.data.experimental.assert_cardinality(len(batches))
    return dataset.apply(known).prefetch(2)


if __name__ == "__main__":
    batches = loader.Batches(sys.argv[1], batch_size=4, seed=7, layout="NHW", normalize="zscore")
    model = tf.keras.Sequential(
        [
            tf.keras.layers.Conv2D(8, 3, padding="same", activation="relu"),
            tf.keras.layers.Conv2D(3, 1),  # background and two structures
        ]
    )
    loss = tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adam", loss)
    history = model.fit(dataset_of(batches), epochs=2, verbose=0)
    print(len(history.history["loss"]), "epochs, completed:", batches.epochs_completed)
