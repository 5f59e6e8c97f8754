"""Writes small files of the format with h5py alone, so that the loader is tested without etl."""

import json
from contextlib import contextmanager

import h5py
import numpy as np

from loader.format import (
    ALIGNMENT,
    CONTOURS,
    FINDINGS,
    FORMAT,
    FORMAT_VERSION,
    MANIFEST,
    NO_FOLD,
    NO_SPLIT,
    STRING,
    Attribute,
)

ATTRIBUTES = {
    Attribute.FORMAT: FORMAT,
    Attribute.FORMAT_VERSION: FORMAT_VERSION,
    Attribute.MIN_READER_VERSION: FORMAT_VERSION,
    Attribute.REQUIRED_FEATURES: "[]",
    Attribute.GENERATOR: "tests",
    Attribute.OPTIONS: json.dumps({"contours": ["i"]}),
    Attribute.LABELS: json.dumps({"1": "blood pool"}),
    Attribute.SOURCES: json.dumps({"images": 9}),
    Attribute.FLAG_CODES: "[]",
    Attribute.IMAGE_MEAN: 1.5,
    Attribute.IMAGE_STD: 0.5,
    Attribute.DATASET_ID: "0123456789abcdef",
    Attribute.DIGESTS: "{}",
}


def write_dataset(
    path,
    n=7,
    rows=4,
    columns=5,
    image_dtype="<i2",
    offset=0,
    split=None,
    fold=None,
    seed=0,
    n_findings=2,
    alignment=ALIGNMENT,
    attributes=None,
    manifest=None,
):
    """Write a valid file and return what it holds, by dataset name.

    Each image holds its own row number in its first pixel, and each row is a patient of its own.
    `offset` is added to all pixels.
    `attributes` replaces some of ATTRIBUTES, `manifest` some columns.
    """
    rng = np.random.default_rng(seed)
    arrays = {
        "masks": rng.integers(0, 2, (n, rows, columns)).astype("|u1"),
        "images": rng.integers(0, 1000, (n, rows, columns)).astype(image_dtype),
    }
    arrays["images"][:, 0, 0] = np.arange(n)
    arrays["images"] += np.array(offset, image_dtype)
    columns_of = {
        "manifest": (MANIFEST, n),
        "contours": (CONTOURS, n),
        "findings": (FINDINGS, n_findings),
    }
    for group, (dtypes, length) in columns_of.items():
        for column, dtype in dtypes.items():
            arrays[f"{group}/{column}"] = _values(column, dtype, length)
    arrays |= _statistics(arrays["images"], arrays["masks"])
    arrays["manifest/split"] = _codes(split, NO_SPLIT, n, "|i1")
    arrays["manifest/fold"] = _codes(fold, NO_FOLD, n, "<i2")
    for column, values in (manifest or {}).items():
        arrays[f"manifest/{column}"] = np.array(values, arrays[f"manifest/{column}"].dtype)
    with _created(path, alignment, ATTRIBUTES | (attributes or {})) as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=_fixed(array), track_times=False)
    return arrays


def write_sparse(path, n, rows=256, columns=256):
    """Write a valid file whose values are all 0 and take no room on the disk."""
    shapes = {"images": ("<i2", (n, rows, columns)), "masks": ("|u1", (n, rows, columns))}
    for group, dtypes in {"manifest": MANIFEST, "contours": CONTOURS, "findings": FINDINGS}.items():
        for column, dtype in dtypes.items():
            length = n if group == "manifest" else 1
            shapes[f"{group}/{column}"] = ("S40" if dtype == STRING else dtype, (length,))
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    groups = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    groups.set_create_intermediate_group(True)
    with _created(path, ALIGNMENT, ATTRIBUTES) as file:
        for name, (dtype, shape) in shapes.items():
            file_type = h5py.h5t.py_create(_fixed(np.empty(0, dtype)).dtype, logical=True)
            space = h5py.h5s.create_simple(shape)
            h5py.h5d.create(file.id, name.encode(), file_type, space, creation, groups)


@contextmanager
def _created(path, alignment, attributes):
    options = {"alignment_threshold": 1, "alignment_interval": alignment}
    with h5py.File(path, "w", libver=("v110", "v110"), **options) as file:
        for name, value in attributes.items():
            is_text = isinstance(value, str)
            file.attrs[name] = _fixed(np.bytes_(value.encode())) if is_text else value
        yield file


def _statistics(images, masks):
    if not len(images):
        return {}
    flat = images.reshape(len(images), -1).astype(np.float64)
    p01, p99 = np.percentile(flat, (1, 99), axis=1)
    columns = {"minimum": flat.min(1), "maximum": flat.max(1), "p01": p01, "p99": p99}
    columns |= {"mean": flat.mean(1), "std": flat.std(1)}
    columns |= {f"n_pixels_{label}": (masks == label).sum((1, 2)) for label in (1, 2)}
    return {
        f"manifest/{column}": values.astype(MANIFEST[column]) for column, values in columns.items()
    }


def _values(column, dtype, length):
    if dtype == STRING:
        return np.array([f"{column} µ{i}".encode() for i in range(length)], "S40")
    return np.arange(length).astype(dtype)


def _codes(codes, none, n, dtype):
    return np.full(n, none, dtype) if codes is None else np.array(codes, dtype)


def _fixed(array):
    if array.dtype.kind != "S":
        return array
    return np.asarray(array).astype(h5py.string_dtype("utf-8", array.dtype.itemsize))
