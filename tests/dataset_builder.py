"""Writes small files of the format with h5py alone, so that the loader is tested without etl."""

import json
import time
from contextlib import contextmanager

import h5py
import numpy as np

from loader.format import (
    ALIGNMENT,
    BIT_MASKS,
    CONTOURS,
    FINDINGS,
    FINDINGS_VERSION_2,
    FORMAT,
    FORMAT_VERSION,
    MASK_BITS,
    MASK_LABELS,
    NO_FOLD,
    NO_SPLIT,
    STRING,
    Attribute,
    Structure,
    manifest_columns,
    min_reader_version,
)

CARDIAC = (
    Structure("o-contour", 2, "muscle", "ocontour", contrast="darker"),
    Structure("i-contour", 1, "blood pool", "icontour", "o-contour", "brighter"),
)

ATTRIBUTES = {
    Attribute.FORMAT: FORMAT,
    Attribute.FORMAT_VERSION: FORMAT_VERSION,
    Attribute.REQUIRED_FEATURES: "[]",
    Attribute.GENERATOR: "tests",
    Attribute.OPTIONS: json.dumps({"contours": ["i"]}),
    Attribute.MASK_KIND: MASK_LABELS,
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
    structures=CARDIAC,
    mask_dtype="|u1",
):
    """Write a valid file and return what it holds, by dataset name.

    Each image holds its own row number in its first pixel, and each row is a patient of its own.
    `offset` is added to all pixels.
    `attributes` replaces some of ATTRIBUTES, `manifest` some columns. Masks show all codes of
    `structures`, which are in paint order. Where these have bits, masks are bit masks of the type
    `mask_dtype`.
    """
    rng = np.random.default_rng(seed)
    shown = [0, *_codes_of(structures)]
    if structures[0].bit is not None:
        every = np.arange(2 ** len(structures))
        shown = sum((every >> k & 1) << one.bit for k, one in enumerate(structures))
    arrays = {
        "masks": rng.choice(np.array(shown, mask_dtype), (n, rows, columns)),
        "images": rng.integers(0, 1000, (n, rows, columns)).astype(image_dtype),
    }
    arrays["images"][:, 0, 0] = np.arange(n)
    arrays["images"] += np.array(offset, image_dtype)
    for group, dtypes in _tables(structures).items():
        for column, dtype in dtypes.items():
            length = n_findings if group == "findings" else n
            arrays[f"{group}/{column}"] = _values(column, dtype, length)
    arrays |= _statistics(arrays["images"], arrays["masks"], structures)
    arrays["manifest/split"] = _codes(split, NO_SPLIT, n, "|i1")
    arrays["manifest/fold"] = _codes(fold, NO_FOLD, n, "<i2")
    for column, values in (manifest or {}).items():
        dtype = arrays[f"manifest/{column}"].dtype
        # Text may be longer than what it replaces.
        arrays[f"manifest/{column}"] = np.array(values, "S" if dtype.kind == "S" else dtype)
    with _created(path, alignment, _attributes(structures) | (attributes or {})) as file:
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        for name, array in arrays.items():
            fixed = np.ascontiguousarray(_fixed(array))
            _create(file, name, fixed.dtype, fixed.shape, creation).write(
                h5py.h5s.ALL, h5py.h5s.ALL, fixed
            )
    return arrays


def wait_until_prepared(batches):
    """Wait until the prefetch thread of batches, where they have one, has no more to do.

    A file that is cut short while the thread copies from it would end the process (SIGBUS).
    """
    prefetcher = batches._runtime.prefetcher
    while prefetcher is not None and len(prefetcher._ready) < prefetcher._depth:
        assert prefetcher._thread.is_alive()
        time.sleep(0.001)


def write_sparse(path, n, rows=256, columns=256, structures=CARDIAC):
    """Write a valid file whose values are all 0 and take no room on the disk."""
    shapes = {"images": ("<i2", (n, rows, columns)), "masks": ("|u1", (n, rows, columns))}
    for group, dtypes in _tables(structures).items():
        for column, dtype in dtypes.items():
            length = n if group == "manifest" else 1
            shapes[f"{group}/{column}"] = ("S40" if dtype == STRING else dtype, (length,))
    creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    with _created(path, ALIGNMENT, _attributes(structures)) as file:
        for name, (dtype, shape) in shapes.items():
            _create(file, name, _fixed(np.empty(0, dtype)).dtype, shape, creation)


def _create(file, name, dtype, shape, creation):
    """Create a dataset and its group, in a third of the time of `h5py.File.create_dataset`."""
    creation.set_obj_track_times(False)
    groups = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    groups.set_create_intermediate_group(True)
    file_type = h5py.h5t.py_create(dtype, logical=True)
    space = h5py.h5s.create_simple(shape)
    return h5py.h5d.create(file.id, name.encode(), file_type, space, creation, groups)


def _tables(structures):
    return {
        "manifest": manifest_columns(structures),
        "contours": CONTOURS,
        "findings": FINDINGS | FINDINGS_VERSION_2,
    }


def with_bits(structures, bits=None):
    """Return structures of bit masks: bits in the order of the codes, or those given by name."""
    codes = _codes_of(structures)
    bits = bits or {one.name: codes.index(one.code) for one in structures}
    return tuple(one._replace(bit=bits[one.name]) for one in structures)


def _attributes(structures):
    kind = MASK_LABELS if structures[0].bit is None else MASK_BITS
    return ATTRIBUTES | {
        Attribute.MASK_KIND: kind,
        Attribute.REQUIRED_FEATURES: json.dumps([BIT_MASKS] * (kind == MASK_BITS)),
        Attribute.MIN_READER_VERSION: min_reader_version(structures, mask_kind=kind),
        Attribute.LABELS: json.dumps({str(one.code): one.meaning for one in structures}),
        Attribute.STRUCTURES: json.dumps([one._asdict() for one in structures]),
    }


@contextmanager
def _created(path, alignment, attributes):
    options = {"alignment_threshold": 1, "alignment_interval": alignment}
    with h5py.File(path, "w", libver=("v110", "v110"), **options) as file:
        for name, value in attributes.items():
            is_text = isinstance(value, str)
            file.attrs[name] = _fixed(np.bytes_(value.encode())) if is_text else value
        yield file


def _statistics(images, masks, structures):
    if not len(images):
        return {}
    flat = images.reshape(len(images), -1).astype(np.float64)
    p01, p99 = np.percentile(flat, (1, 99), axis=1)
    columns = {"minimum": flat.min(1), "maximum": flat.max(1), "p01": p01, "p99": p99}
    columns |= {"mean": flat.mean(1), "std": flat.std(1)}
    for one in structures:
        columns[f"n_pixels_{one.code}"] = n_pixels = one.covers(masks).sum((1, 2))
        columns[f"drawn_{one.code}"] = n_pixels > 0
    dtypes = manifest_columns(structures)
    return {
        f"manifest/{column}": values.astype(dtypes[column]) for column, values in columns.items()
    }


def _codes_of(structures):
    return sorted(one.code for one in structures)


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
