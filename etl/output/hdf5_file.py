"""Rows → HDF5 file: its layout, then the rows by the workers, then the small datasets.

h5py makes the metadata in memory; every byte is written by a checked write, at its offset, and what
is small is read back from the disk before the file takes its name.
"""

import errno
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import xxhash

from etl.findings import SampleKey
from etl.output.row_writer import Plan, ReadBackError, forget, read_at, row_digest, write_at
from etl.output.skeleton import Skeleton, text_dtype
from loader import format as file_format
from loader.format import Attribute

_READ_WRITE: Final = os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
_BLOCK_BYTES: Final = 8 << 20
_MANIFEST_ROW_BYTES: Final = 2048  # more than a row of the small datasets takes; cut off at the end
_N_CHECKED_ROWS: Final = 32  # whose pixels are read back


def create(
    path: Path,
    n_rows: int,
    rows: int,
    columns: int,
    image_dtype: str,
    n_vertices: int,
    mask_dtype: str = file_format.MASK_DTYPE,
) -> Plan:
    """Reserve the space of a file, and return the places of the big datasets in it.

    Raises
    ------
    OSError
        The space cannot be had; found here, before the work.
    """
    plan = laid_out(path, n_rows, rows, columns, image_dtype, n_vertices, mask_dtype)
    reserve(plan)
    return plan


def laid_out(
    path: Path,
    n_rows: int,
    rows: int,
    columns: int,
    image_dtype: str,
    n_vertices: int,
    mask_dtype: str = file_format.MASK_DTYPE,
) -> Plan:
    """Return the places of the big datasets of a file; writes nothing."""
    plan = Plan(
        str(path), n_rows, rows, columns, image_dtype, n_vertices, {}, mask_dtype=mask_dtype
    )
    return replace(plan, offsets=_begun(plan).offsets)


def reserve(plan: Plan, *, is_adopted: bool = False) -> None:
    """Make the file of a plan with its space reserved.

    Parameters
    ----------
    is_adopted : bool
        The file is there: its rows and vertices stay, and zeros replace all between and behind
        them, as in a new file.

    Raises
    ------
    OSError
        The space cannot be had; found here, before the work.
    """
    flags = os.O_CREAT | (0 if is_adopted else os.O_TRUNC)
    with _opened(plan.path, flags) as descriptor:
        if is_adopted:
            _clear_all_but_datasets(descriptor, plan)
        _reserve(descriptor, _begun(plan).size + plan.n_rows * _MANIFEST_ROW_BYTES)


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
    digests: dict[str, str] = {}
    try:
        size = plan.rows, plan.columns
        new = create(path, len(rows), *size, plan.image_dtype, n_vertices, plan.mask_dtype)
        with _opened(plan.path) as source, _opened(path) as target:
            for name in plan.offsets:
                if name in plan.digests:
                    _require_digest(source, plan, name)
                    digests[name] = _copy(source, target, plan, new, name, vertices)
                else:
                    _copy(source, target, plan, new, name, stretches)
        path.replace(plan.path)
    finally:
        path.unlink(missing_ok=True)
    return replace(new, path=plan.path, digests=digests)


def finish(
    plan: Plan,
    schema: Mapping[str, Mapping[str, str]],
    groups: Mapping[str, Mapping[str, npt.NDArray[np.generic]]],
    attributes: Mapping[str, str | int | float],
) -> dict[str, str]:
    """Write the small datasets, the attributes and all metadata; read them back from the disk.

    Parameters
    ----------
    schema : mapping
        Group → column → type, as `loader.format` writes them.
    groups : mapping
        Group → column → one-dimensional array; every column of the schema but contours/x and
        contours/y, which are in the file already.
    attributes : mapping
        Attributes of the root group, all but the digests.

    Returns
    -------
    dict of str to str
        The attribute `digests`: column → XXH3-128.

    Raises
    ------
    OSError
        Not all could be written, or the disk returns other bytes than were written.
    """
    names = [f"{group}/{column}" for group, kinds in schema.items() for column in kinds]
    small = {
        f"{group}/{column}": _Column(groups[group][column], kind)
        for group, kinds in schema.items()
        for column, kind in kinds.items()
        if f"{group}/{column}" not in plan.offsets
    }
    skeleton = _begun(plan)
    if skeleton.offsets != plan.offsets:
        raise OSError(errno.EIO, "HDF5 does not place the datasets where it did")
    with skeleton.opened() as steps:
        for name, column in small.items():
            steps.add_dataset(name, column.values.shape, column.dtype)
    with _opened(plan.path) as descriptor:
        digests = dict(plan.digests)
        for name, column in small.items():
            data = column.stored()
            write_at(descriptor, data.data.cast("B") if data.size else b"", skeleton.offsets[name])
            digests[name] = xxhash.xxh3_128_hexdigest(data.data)
        listed = {name: digests[name] for name in names}
        with skeleton.opened() as steps:
            for key, value in {**attributes, Attribute.DIGESTS: json.dumps(listed)}.items():
                steps.set_attribute(key, value)
        regions = skeleton.regions()
        for offset, region in regions:
            write_at(descriptor, region, offset)
        os.ftruncate(descriptor, skeleton.size)
        os.fsync(descriptor)
        _forget_all_but_rows(descriptor, plan, skeleton.size)
        _require_regions(descriptor, regions)
        n_bytes = {name: column.n_bytes for name, column in small.items()}
        n_bytes |= {name: plan.n_vertices * plan.row_bytes[name] for name in plan.digests}
        for name, digest in digests.items():
            _require_bytes(descriptor, name, skeleton.offsets[name], n_bytes[name], digest)
        _require_rows(descriptor, plan, groups["manifest"])
    return listed


@dataclass(frozen=True)
class _Column:
    """One small dataset."""

    values: npt.NDArray[np.generic]
    kind: str

    @property
    def dtype(self) -> np.dtype[np.generic]:
        """Its type in the file."""
        if self.kind == file_format.STRING:
            return text_dtype(self.values.dtype.itemsize)
        return np.dtype(self.kind)

    @property
    def n_bytes(self) -> int:
        return self.values.size * self.dtype.itemsize

    def stored(self) -> npt.NDArray[np.generic]:
        """Return its values as the file has them."""
        dtype = f"S{self.dtype.itemsize}" if self.kind == file_format.STRING else self.kind
        return np.ascontiguousarray(self.values, dtype)


def _begun(plan: Plan) -> Skeleton:
    """Return the groups and the big datasets: the same plan gives the same offsets."""
    n_rows = (plan.n_rows, plan.rows, plan.columns)
    skeleton = Skeleton()
    with skeleton.opened(align_from=1) as steps:  # what a batch touches is page-aligned always
        steps.add_dataset(file_format.IMAGES, n_rows, np.dtype(plan.image_dtype))
        steps.add_dataset(file_format.MASKS, n_rows, np.dtype(plan.mask_dtype))
    with skeleton.opened() as steps:
        for group in (*file_format.GROUPS, file_format.REUSE_GROUP):
            steps.add_group(group)
        for axis in "xy":
            dtype = np.dtype(file_format.CONTOURS[axis])
            steps.add_dataset(f"contours/{axis}", (plan.n_vertices,), dtype)
    return skeleton


@contextmanager
def _opened(path: str | Path, flags: int = 0) -> Iterator[int]:
    """Yield a descriptor to read and write; closing it may fail, too."""
    descriptor = os.open(path, _READ_WRITE | flags, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _reserve(descriptor: int, size: int) -> None:
    """Make the file `size` bytes long with its space taken, so that a full disk shows now."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}:
                raise
    os.ftruncate(descriptor, size)


def _copy(
    source: int, target: int, plan: Plan, new: Plan, name: str, stretches: Sequence[tuple[int, int]]
) -> str:
    """Copy stretches of rows of one dataset, and return the digest of all that is copied."""
    digest = xxhash.xxh3_128()
    size, offset = plan.row_bytes[name], new.offsets[name]
    for start, stop in _joined(stretches):
        for block in _blocks(source, plan.offsets[name] + start * size, (stop - start) * size):
            write_at(target, block, offset)
            digest.update(block)
            offset += len(block)
    return digest.hexdigest()


def _joined(stretches: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Join neighbouring stretches, so that they are copied at one go."""
    gaps = itertools.accumulate((a[1] != b[0] for a, b in itertools.pairwise(stretches)), initial=0)
    for _, group in itertools.groupby(zip(gaps, stretches, strict=False), key=lambda item: item[0]):
        members = [stretch for _, stretch in group]
        yield members[0][0], members[-1][1]


def _blocks(descriptor: int, offset: int, length: int) -> Iterator[bytes]:
    for first in range(0, length, _BLOCK_BYTES):
        yield read_at(descriptor, min(_BLOCK_BYTES, length - first), offset + first)


def _forget_all_but_rows(descriptor: int, plan: Plan, size: int) -> None:
    """Let the next reads of all that is small come from the disk; rows stay in the page cache."""
    places = [
        (plan.offsets[name], plan.offsets[name] + plan.n_rows * plan.row_bytes[name])
        for name in (file_format.IMAGES, file_format.MASKS)
    ]
    starts, ends = zip(*sorted(places), strict=True)
    for first, end in zip((0, *ends), (*starts, size), strict=True):
        if first < end:  # of length 0 is the rest of the file
            forget(descriptor, first, end - first)


def _clear_all_but_datasets(descriptor: int, plan: Plan) -> None:
    """Let zeros be between the big datasets, and nothing behind the last."""
    counts = dict.fromkeys(plan.offsets, plan.n_vertices)
    counts |= dict.fromkeys((file_format.IMAGES, file_format.MASKS), plan.n_rows)
    places = [
        (plan.offsets[name], plan.offsets[name] + n * plan.row_bytes[name])
        for name, n in counts.items()
        if n
    ]
    end = 0
    for first, stop in sorted(places):
        write_at(descriptor, bytes(first - end), end)
        end = stop
    os.ftruncate(descriptor, end)


def _require_digest(descriptor: int, plan: Plan, name: str) -> None:
    n_bytes = plan.n_vertices * plan.row_bytes[name]
    _require_bytes(descriptor, name, plan.offsets[name], n_bytes, plan.digests[name])


def _require_bytes(descriptor: int, name: str, offset: int, n_bytes: int, digest: str) -> None:
    """Require that a dataset is what was written."""
    found = xxhash.xxh3_128()
    for block in _blocks(descriptor, offset, n_bytes):
        found.update(block)
    if found.hexdigest() != digest:
        raise ReadBackError(name)


def _require_regions(descriptor: int, regions: Sequence[tuple[int, bytes]]) -> None:
    """Require that the metadata is what was written."""
    for offset, region in regions:
        if read_at(descriptor, len(region), offset) != region:
            raise ReadBackError("the metadata")


def _require_rows(
    descriptor: int, plan: Plan, manifest: Mapping[str, npt.NDArray[np.generic]]
) -> None:
    """Require that the disk gives some rows' pixels back, from the first to the last."""
    for row in sorted({round(row) for row in np.linspace(0, plan.n_rows - 1, _N_CHECKED_ROWS)}):
        pixels = []
        for name in (file_format.IMAGES, file_format.MASKS):
            size = plan.row_bytes[name]
            offset = plan.offsets[name] + row * size
            forget(descriptor, offset, size)
            pixels.append(np.frombuffer(read_at(descriptor, size, offset), np.uint8))
        if row_digest(_key(manifest, row), *pixels) != manifest["row_xxh3"][row]:
            raise ReadBackError(f"row {row}")


def _key(manifest: Mapping[str, npt.NDArray[np.generic]], row: int) -> SampleKey:
    patient_id, series = (manifest[name][row].item().decode() for name in ("patient_id", "series"))
    slice_number, frame = (manifest[name][row].item() for name in ("slice", "frame_number"))
    return SampleKey(patient_id, series, slice_number, frame)
