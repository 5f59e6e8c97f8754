"""Rows → HDF5 file, whole or not at all.

h5py makes the file and its two big datasets empty; rows are then written at their offsets by
whoever has them, without HDF5 and without locks; the small datasets come last.
"""

import contextlib
import errno
import itertools
import json
import math
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from io import FileIO
from pathlib import Path
from typing import Final

import h5py
import numpy as np
import numpy.typing as npt
import xxhash

from etl.errors import EtlError
from etl.output.row_writer import Plan
from loader import format as file_format
from loader.format import Attribute

_BLOCK_BYTES: Final = 8 << 20
_MANIFEST_ROW_BYTES: Final = 2048  # more than a row of the small datasets takes; HDF5 cuts it off
_HDF5_SIGNATURE: Final = b"\x89HDF\r\n\x1a\n"
_PARTIAL_CHARACTERS: Final = 48  # of OUT's name: the partial's name, too, has at most 255 bytes
_LIBVER: Final = ("v110", "v110")  # checksummed metadata; the default's reads back wrong in silence


def check_target(out: Path, *, force: bool, only_hdf5: bool = True) -> Path:
    """Require that OUT can be written, before any work.

    Parameters
    ----------
    only_hdf5 : bool
        With `force`, replace nothing but an HDF5 file or an empty one: another is OUT by mistake.

    Returns
    -------
    Path
        The absolute path to write: what OUT points to where it is a symbolic link.

    Raises
    ------
    EtlError
        OUT exists (without `force`), is not what may be replaced, or its folder is missing or not
        writable.
    """
    where = f"Output not usable: {out}"
    target = Path(os.path.realpath(out)) if os.path.islink(out) else out.absolute()
    folder = target.parent
    try:
        mode = _mode(target)
        if stat.S_ISDIR(mode):
            raise EtlError(f"{where}: is a folder. Give the name of a file in it.")
        if not stat.S_ISDIR(_mode(folder)):
            raise EtlError(f"{where}: no folder {folder}. Make it first.")
        if mode and not stat.S_ISREG(mode):
            raise EtlError(f"{where}: is a device or pipe, expected a file's name.")
        if mode and not force:
            raise EtlError(f"{where}: exists already. Use --force to replace it.")
        if mode and only_hdf5:
            with target.open("rb") as file:
                if file.read(len(_HDF5_SIGNATURE)) not in {b"", _HDF5_SIGNATURE}:
                    raise EtlError(
                        f"{where}: is not an HDF5 file: not replaced. Give another name."
                    )
        if not os.access(folder, os.W_OK | os.X_OK):
            raise EtlError(f"{where}: no permission to write in {folder}.")
    except OSError as error:
        raise _failed(out, error) from error
    return target


def _mode(path: Path) -> int:
    """Return the mode of what is there, 0 where there is nothing."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0


def check_space(out: Path, n_pixels: int) -> None:
    """Require room for so many pixels of images and masks, before any work.

    Raises
    ------
    EtlError
        Less is free; what `create` reserves later is exact.
    """
    needed = n_pixels * (np.dtype(file_format.IMAGE_DTYPES[0]).itemsize + 1)
    free = shutil.disk_usage(out.parent).free
    if free < needed:
        raise EtlError(
            f"Output not written: {out}: no space left (needs {needed / 1e6:.0f} MB, "
            f"{free / 1e6:.0f} MB free). Free some, or choose another disk."
        )


@contextlib.contextmanager
def replacing(out: Path, *, force: bool) -> Iterator[Path]:
    """Yield a new file beside OUT that takes its name when it is whole and on disk.

    On any error, and on Ctrl-C, the new file is removed and OUT is as it was.
    """
    name = out.name[:_PARTIAL_CHARACTERS]
    partial = out.with_name(f".{name}.{secrets.token_hex(8)}.partial")
    try:
        os.close(os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666))
        yield partial
        _sync(partial)
        if force:
            partial.replace(out)
        else:
            _take_free_name(partial, out)
        _sync(out.parent)
    except OSError as error:
        raise _failed(out, error) from error
    finally:
        with contextlib.suppress(OSError):  # it would hide what went wrong before
            partial.unlink(missing_ok=True)


def create(
    path: Path, n_rows: int, rows: int, columns: int, image_dtype: str, n_vertices: int
) -> Plan:
    """Make the HDF5 file with its big datasets, reserve the space, and say where they lie.

    Raises
    ------
    OSError
        The space cannot be had; found here, before the work.
    """
    plan = Plan(str(path), n_rows, rows, columns, image_dtype, n_vertices, {})
    shapes: dict[str, tuple[tuple[int, ...], str]] = {
        file_format.IMAGES: ((n_rows, rows, columns), image_dtype),
        file_format.MASKS: ((n_rows, rows, columns), file_format.MASK_DTYPE),
        "contours/x": ((n_vertices,), file_format.CONTOURS["x"]),
        "contours/y": ((n_vertices,), file_format.CONTOURS["y"]),
    }
    offsets: dict[str, int] = {}
    with _open(path, "w", align_from=1) as file:  # what a batch touches is page-aligned always
        for name in (file_format.IMAGES, file_format.MASKS):
            offsets[name] = _create_contiguous(file, name, *shapes[name])
    with _open(path, "r+") as file:
        for group in file_format.GROUPS:
            file.create_group(group)
        for name in ("contours/x", "contours/y"):
            offsets[name] = _create_contiguous(file, name, *shapes[name])
    end = max(
        offsets[name] + math.prod(shape) * np.dtype(dtype).itemsize
        for name, (shape, dtype) in shapes.items()
    )
    _reserve(path, end + n_rows * _MANIFEST_ROW_BYTES)
    return replace(plan, offsets=offsets)


def keep_rows(plan: Plan, rows: Sequence[int], vertices: Sequence[tuple[int, int]]) -> Plan:
    """Replace the file by one that has some of its rows, in order and without holes.

    A contiguous dataset cannot be resized, so what is kept is copied once.

    Parameters
    ----------
    rows : sequence of int
        The rows to keep.
    vertices : sequence of (start, stop)
        The stretches of contours/x and contours/y to keep.
    """
    path = Path(f"{plan.path}.whole")
    stretches = [(row, row + 1) for row in rows]
    n_vertices = sum(stop - start for start, stop in vertices)
    try:
        new = create(path, len(rows), plan.rows, plan.columns, plan.image_dtype, n_vertices)
        with open(plan.path, "rb", buffering=0) as source, open(path, "r+b", buffering=0) as target:
            for name, size in plan.row_bytes.items():
                target.seek(new.offsets[name])
                for start, stop in _joined(vertices if name.startswith("contours/") else stretches):
                    source.seek(plan.offsets[name] + start * size)
                    _copy(source, target, (stop - start) * size)
        path.replace(plan.path)
    finally:
        path.unlink(missing_ok=True)
    return replace(new, path=plan.path)


def finish(
    plan: Plan,
    schema: Mapping[str, Mapping[str, str]],
    groups: Mapping[str, Mapping[str, npt.NDArray[np.generic]]],
    attributes: Mapping[str, str | int | float],
) -> None:
    """Write the small datasets, their digests and the attributes.

    Parameters
    ----------
    schema : mapping
        Group → column → type, as `loader.format` writes them.
    groups : mapping
        Group → column → one-dimensional array; every column of the schema but contours/x and
        contours/y, which are in the file already.
    attributes : mapping
        Attributes of the root group, all but the digests.
    """
    with _open(Path(plan.path), "r+") as file:
        digests = {}
        for group, columns in schema.items():
            for column, kind in columns.items():
                name = f"{group}/{column}"
                if name in plan.offsets:
                    digests[name] = _digest(plan, name)
                    continue
                values = np.ascontiguousarray(groups[group][column])
                if kind == file_format.STRING:
                    width = max(values.dtype.itemsize, 1)
                    dtype = h5py.string_dtype("utf-8", width)
                    values = values.astype(f"S{width}").astype(dtype)
                else:
                    values = values.astype(kind)
                file[group].create_dataset(column, data=values)
                digests[name] = xxhash.xxh3_128_hexdigest(values.tobytes())
        for key, value in {**attributes, Attribute.DIGESTS: json.dumps(digests)}.items():
            _set_attribute(file, key, value)


def _open(path: Path, mode: str, align_from: int = file_format.ALIGNMENT) -> h5py.File:
    """Open for writing; what has `align_from` bytes or more begins on a page of its own."""
    return h5py.File(
        path,
        mode,
        libver=_LIBVER,
        alignment_threshold=align_from,
        alignment_interval=file_format.ALIGNMENT,
        locking=False,  # nobody else knows this name, and shared file systems often lack locks
    )


def _create_contiguous(file: h5py.File, name: str, shape: tuple[int, ...], dtype: str) -> int:
    """Make a dataset whose bytes HDF5 never touches, and return its offset, fixed from now on."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    properties.set_obj_track_times(False)
    space = h5py.h5s.create_simple(shape)
    kind = h5py.h5t.py_create(np.dtype(dtype), logical=True)
    dataset = h5py.h5d.create(file.id, name.encode(), kind, space, properties)
    return int(dataset.get_offset() or 0)  # an empty one has no place


def _set_attribute(file: h5py.File, key: str, value: str | float) -> None:
    if isinstance(value, str):
        encoded = value.encode()
        dtype = h5py.string_dtype("utf-8", max(len(encoded), 1))
        file.attrs.create(key, np.array(encoded, dtype=dtype), dtype=dtype)
    else:
        file.attrs[key] = value


def _digest(plan: Plan, name: str) -> str:
    """Return the digest of a dataset that lies in the file already."""
    digest = xxhash.xxh3_128()
    left = plan.n_vertices * plan.row_bytes[name]
    with open(plan.path, "rb", buffering=0) as file:
        file.seek(plan.offsets[name])
        while left:
            block = _read_some(file, min(left, _BLOCK_BYTES))
            digest.update(block)
            left -= len(block)
    return digest.hexdigest()


def _reserve(path: Path, size: int) -> None:
    """Make the file `size` bytes long with its space taken, so that a full disk shows now."""
    with open(path, "r+b") as file:
        size = max(size, file.seek(0, os.SEEK_END))
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}:
                    raise
        file.truncate(size)


def _joined(stretches: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Join neighbouring stretches, so that they are copied at one go."""
    gaps = itertools.accumulate((a[1] != b[0] for a, b in itertools.pairwise(stretches)), initial=0)
    for _, group in itertools.groupby(zip(gaps, stretches, strict=False), key=lambda item: item[0]):
        members = [stretch for _, stretch in group]
        yield members[0][0], members[-1][1]


def _copy(source: FileIO, target: FileIO, length: int) -> None:
    while length:
        view = memoryview(_read_some(source, min(length, _BLOCK_BYTES)))
        length -= len(view)
        while view:
            view = view[target.write(view) :]


def _read_some(file: FileIO, length: int) -> bytes:
    block = file.read(length)
    if not block:
        raise OSError(errno.EIO, "the file has become shorter")
    return block


def _sync(path: Path) -> None:
    """Wait until a file or folder is on disk; without it a power cut can lose old and new."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        return  # Windows opens no folders
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _take_free_name(partial: Path, out: Path) -> None:
    """Rename, but never over a file that has come since the check."""
    try:
        os.link(partial, out)
    except FileExistsError as error:
        raise EtlError(
            f"Output not usable: {out}: has been made meanwhile. Use --force to replace it."
        ) from error
    except OSError:  # a file system without hard links
        partial.rename(out)


def _failed(out: Path, error: OSError) -> EtlError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return EtlError(f"Output not written: {out}: no space left. Free some, or choose a disk.")
    # Not error.strerror: h5py sets it to a text with addresses and flags.
    reason = os.strerror(error.errno).lower() if error.errno else "input/output error"
    return EtlError(f"Output not written: {out}: {reason}.")
