"""Writes small files of the format with h5py alone, so that the loader is tested without etl."""

import json

import h5py
import numpy as np

from loader.layout import (
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
    split=None,
    fold=None,
    seed=0,
    n_findings=2,
    alignment=ALIGNMENT,
    attributes=None,
):
    """Write a valid file and return what it holds, by dataset name.

    Each image holds its own row number in its first pixel. `attributes` replaces some of
    ATTRIBUTES.
    """
    rng = np.random.default_rng(seed)
    arrays = {
        "masks": rng.integers(0, 2, (n, rows, columns)).astype("|u1"),
        "images": rng.integers(0, 1000, (n, rows, columns)).astype(image_dtype),
    }
    arrays["images"][:, 0, 0] = np.arange(n)
    columns_of = {
        "manifest": (MANIFEST, n),
        "contours": (CONTOURS, n),
        "findings": (FINDINGS, n_findings),
    }
    for group, (dtypes, length) in columns_of.items():
        for column, dtype in dtypes.items():
            arrays[f"{group}/{column}"] = _values(column, dtype, length)
    arrays["manifest/split"] = _codes(split, NO_SPLIT, n, "|i1")
    arrays["manifest/fold"] = _codes(fold, NO_FOLD, n, "<i2")
    with h5py.File(
        path,
        "w",
        libver=("v110", "v110"),
        alignment_threshold=1,
        alignment_interval=alignment,
    ) as file:
        for name, value in (ATTRIBUTES | (attributes or {})).items():
            file.attrs[name] = (
                _fixed(np.bytes_(value.encode())) if isinstance(value, str) else value
            )
        for name, array in arrays.items():
            file.create_dataset(name, data=_fixed(array), track_times=False)
    return arrays


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
