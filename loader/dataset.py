"""Open a file that dicom-etl built, as plain arrays over one memory map."""

import math
import mmap
import operator
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast, get_args

import numpy as np
import numpy.typing as npt

from loader.arguments import choice
from loader.channels import Channels, MaskChannels, Unpacker, in_channel_order
from loader.columns import Columns
from loader.errors import LoaderError
from loader.format import IGNORE, MASK_BITS, Attribute, Structure
from loader.structure import Extent, not_opened, read_contents

Images: TypeAlias = npt.NDArray[np.int16 | np.uint16 | np.int32 | np.float32]
Masks: TypeAlias = npt.NDArray[np.uint8 | np.uint16 | np.uint32]


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """The arrays of one file, read-only and zero-copy; made by `open_dataset`.

    It holds the memory map and nothing else: it survives fork, and pickles as its path and
    dataset_id. Pages are read from disk when they are first touched.

    Attributes
    ----------
    path : pathlib.Path
        Absolute.
    dataset_id : str
        Digest over all samples; the same for the same images, masks and order.
    attributes : dict of str to JSON value
        What `loader.format.Attribute` names: format, generator, options, labels, and so on.
    structures : tuple of Structure
        What masks and contours show, in paint order: name, code, meaning, stem of its columns.
    images : int16, uint16, int32 or float32 array, shape (n, rows, columns)
        Modality values.
    masks : uint8, uint16 or uint32 array, shape (n, rows, columns)
        Label maps, uint8: `attributes["labels"]` says what the codes mean. Or bit masks, where
        `attributes["mask_kind"]` is "bits": `structures` says whose bit is which.
    manifest : mapping of column to array, shape (n,)
        The link-manifest. Text is `str`; `manifest.stored` has it as UTF-8 bytes, as in the file.
    contours : mapping of column to array
        `x` and `y` of shape (m,) in pixels; `row`, `label`, `start` and `length` of shape (c,). See
        `polygons`.
    findings : mapping of column to array, shape (k,)
        What the build rejected or found suspicious.
    buffer : mmap.mmap
        The map of the whole file, which holds the arrays.
    """

    path: Path
    dataset_id: str
    attributes: dict[str, Any]
    structures: tuple[Structure, ...]
    images: Images
    masks: Masks
    manifest: Columns
    contours: Columns
    findings: Columns
    buffer: mmap.mmap

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Images, Masks]:
        """Return the image and the mask of one sample, each (rows, columns), without a copy."""
        row = operator.index(index)
        return self.images[row], self.masks[row]

    def __repr__(self) -> str:
        """Return the path, and the number, size and type of the images."""
        n, rows, columns = self.images.shape
        return f"<Dataset {str(self.path)!r}: {n} samples, {rows}x{columns} {self.images.dtype}>"

    def flagged(self, code: str) -> npt.NDArray[np.bool_]:
        """Return which rows the build found suspicious in one way; shape (n,).

        Parameters
        ----------
        code : str
            Of a warning about single rows, such as "area-jump"; one of `attributes["flag_codes"]`.

        Raises
        ------
        ValueError
            No such code.
        """
        codes = tuple(self.attributes[Attribute.FLAG_CODES])
        bit = codes.index(choice("code", code, codes))
        flagged: npt.NDArray[np.bool_] = (self.manifest["flags"] >> np.uint64(bit) & 1) != 0
        return flagged

    def label_counts(self, rows: npt.ArrayLike | None = None) -> dict[int, int]:
        """Return how many pixels have each label, for class weights.

        Parameters
        ----------
        rows : int or bool array, optional
            Rows of the file, such as `Batches.rows`; by default all of them.

        Returns
        -------
        dict
            Label → pixels, of the background, 0, and each structure. Pixels of 255, which belong
            to no class, are not counted. The numbers are those of the manifest; only masks that may
            have 255, those that lack a structure, are read. A pixel of a bit mask counts for each
            structure that it belongs to; for the background all of these masks are read.
        """
        chosen = np.arange(len(self))[slice(None) if rows is None else np.asarray(rows)]
        codes = sorted(structure.code for structure in self.structures)
        counts = {code: int(self.manifest[f"n_pixels_{code}"][chosen].sum()) for code in codes}
        if self.has_bits:
            n_background = sum(int(np.count_nonzero(self.masks[row] == 0)) for row in chosen)
            return {0: n_background, **counts}
        n_ignored = 0
        if self.attributes[Attribute.MIN_READER_VERSION] > 1:  # version 1 has no 255
            is_drawn = [self.manifest[f"drawn_{code}"][chosen] != 0 for code in codes]
            partial = chosen[~np.logical_and.reduce(is_drawn)]
            n_ignored = sum(int(np.count_nonzero(self.masks[row] == IGNORE)) for row in partial)
        n_pixels = len(chosen) * math.prod(self.masks.shape[1:])
        return {0: n_pixels - n_ignored - sum(counts.values()), **counts}

    @property
    def has_bits(self) -> bool:
        """Whether masks have a bit of each structure, instead of one code a pixel."""
        return self.attributes.get(Attribute.MASK_KIND) == MASK_BITS

    @property
    def channels(self) -> tuple[Structure, ...]:
        """The structures in the order of mask channels: of their bits, or of their codes."""
        return in_channel_order(self.structures)

    def mask_channels(self, masks: npt.ArrayLike, dtype: MaskChannels = "bool") -> Channels:
        """Return masks of this file with a channel of each structure, in the order of `channels`.

        Parameters
        ----------
        masks : array, shape (..., rows, columns)
            As the file has them.
        dtype : "bool", "uint8" or "float32"
            A channel is 1 inside its structure and 0 elsewhere, also where a label map has 255.

        Returns
        -------
        array, shape (..., structures, rows, columns)
        """
        dtype = choice("dtype", dtype, get_args(MaskChannels))
        words = np.asarray(masks, self.masks.dtype)
        *others, rows, columns = words.shape
        found = np.empty((*others, len(self.structures), rows, columns), dtype)
        unpacker = Unpacker(self.structures, dtype, (rows, columns), words.dtype)
        flat = found.reshape(-1, *found.shape[-3:])
        for mask, channels in zip(words.reshape(-1, rows, columns), flat, strict=True):
            unpacker.write(mask, channels)
        return found

    @property
    def sample_bytes(self) -> int:
        """Bytes that the image and the mask of one sample take."""
        itemsize = self.images.itemsize + self.masks.itemsize
        return math.prod(self.images.shape[1:]) * itemsize

    def polygons(self, row: int) -> list[tuple[int, npt.NDArray[np.float64]]]:
        """Return the contours of one sample: label, and vertices (k, 2), x and y in pixels."""
        row = range(len(self))[row]
        first, last = np.searchsorted(self.contours["row"], [row, row + 1])
        label, start, length = (
            self.contours[name][first:last].tolist() for name in ("label", "start", "length")
        )
        x, y = self.contours["x"], self.contours["y"]
        return [
            (code, np.stack([x[begin : begin + n], y[begin : begin + n]], axis=1))
            for code, begin, n in zip(label, start, length, strict=True)
        ]

    def check_whole(self) -> None:
        """Check that the file was not cut short since it was opened; one fstat.

        Touching a page of the map that the file has lost would kill the process.

        Raises
        ------
        LoaderError
            It was.
        """
        n_bytes = self.buffer.size()
        if n_bytes < len(self.buffer):
            raise LoaderError(
                f"Dataset not usable: {self.path}: the file was cut short while it was open "
                f"(expected {len(self.buffer)} bytes, found {n_bytes}). Write a new file and "
                "rename it over the old one instead of writing into it."
            )

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle as the file's path and identity; no pixel travels."""
        return _reopen, (os.fspath(self.path), self.dataset_id)


def open_dataset(path: str | os.PathLike[str]) -> Dataset:
    """Open a file that dicom-etl built.

    Parameters
    ----------
    path : str or path-like
        The file.

    Returns
    -------
    Dataset
        Read-only arrays over one memory map. No HDF5 handle stays open.

    Raises
    ------
    TypeError
        Not a path.
    LoaderError
        No such file, not of this format, of a newer version, damaged, cut short, or laid out so
        that it cannot be mapped.
    """
    if not isinstance(path, str | bytes | os.PathLike):
        raise TypeError(
            "expected the path of a file that dicom-etl built, or what open_dataset returned, "
            f"found {type(path).__name__}."
        )
    name = os.fsdecode(path)
    buffer = _map_file(name)
    contents = read_contents(buffer, name)
    tables = {
        group: Columns(group, {key: _map_array(buffer, extent) for key, extent in columns.items()})
        for group, columns in contents.tables.items()
    }
    return Dataset(
        path=Path(os.path.abspath(name)),
        dataset_id=str(contents.attributes[Attribute.DATASET_ID]),
        attributes=contents.attributes,
        structures=contents.structures,
        images=cast("Images", _map_array(buffer, contents.images)),
        masks=cast("Masks", _map_array(buffer, contents.masks)),
        buffer=buffer,
        **tables,
    )


def _reopen(path: str, dataset_id: str) -> Dataset:
    dataset = open_dataset(path)
    if dataset.dataset_id != dataset_id:
        raise LoaderError(
            f"Dataset not reopened: {path}: the file was replaced by another one (expected "
            f"dataset_id {dataset_id}, found {dataset.dataset_id}). Start again with the new file."
        )
    return dataset


def _map_file(path: str) -> mmap.mmap:
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):  # opening a FIFO would wait for ever
            kind = "a folder" if stat.S_ISDIR(mode) else "not a regular file"
            raise not_opened(path, kind, "Give a file that dicom-etl has built.")
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise not_opened(path, "the file is empty")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        what_to_do = "Check the path, or build the file: dicom-etl build DATA OUT."
        raise not_opened(path, "no such file", what_to_do) from error
    except PermissionError as error:
        what_to_do = "Ask for read permission on the file and its folder."
        raise not_opened(path, "no permission to read it", what_to_do) from error
    except (OSError, ValueError) as error:
        raise not_opened(path, f"the system refused ({error})", "Check the path.") from error


def _map_array(buffer: mmap.mmap, extent: Extent) -> npt.NDArray[np.generic]:
    if 0 in extent.shape:  # without storage in the file
        array = np.empty(extent.shape, extent.dtype)
        array.flags.writeable = False
        return array
    return np.ndarray(extent.shape, extent.dtype, buffer=buffer, offset=extent.offset)
