"""Draw one epoch of batches from a file that dicom-etl built, and resume it in the middle.

Run: python examples/draw_batches.py out.h5
"""

import sys

import loader

path = sys.argv[1] if len(sys.argv) > 1 else "out.h5"
options = {"batch_size": 8, "remainder": "keep", "seed": 7}

try:
    batches = loader.Batches(path, **options)
except loader.LoaderError as error:
    sys.exit(str(error))
print(f"{len(batches.dataset)} samples, {len(batches)} batches in an epoch")

state = batches.state_dict()
for images, masks in batches:
    print(f"images {images.shape} {images.dtype}, masks {masks.shape} {masks.dtype}", end=", ")
    print(f"rows {batches.indices.tolist()}")
    if batches.epochs_completed == 0:
        state = batches.state_dict()  # plain JSON: save it beside the model's weights
print(f"epochs completed: {batches.epochs_completed}")

resumed = loader.Batches(path, **options)
resumed.load_state_dict(state)
resumed.next_batch()
print(f"resumed before the last batch: rows {resumed.indices.tolist()}")
