"""Open a file that dicom-etl built, as plain arrays over one memory map."""

import functools
import math
import mmap
import operator
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, cast, get_args

import numpy as np
import numpy.typing as npt

from loader.arguments import choice
from loader.channels import Channels, MaskChannels, Unpacker, in_channel_order
from loader.columns import Columns
from loader.digests import damaged
from loader.errors import LoaderError
from loader.format import IGNORE, MASK_BITS, REUSE_GROUP, Attribute, Structure
from loader.mapped import MappedFile
from loader.source_grid import Axis, to_source
from loader.structure import COPY_AGAIN, Extent, not_opened, read_contents, read_reuse

Images: TypeAlias = npt.NDArray[np.int16 | np.uint16 | np.int32 | np.float32]
Masks: TypeAlias = npt.NDArray[np.uint8 | np.uint16 | np.uint32]
Verify: TypeAlias = Literal["columns"]

_N_NAMED: Final = 3  # datasets in a message


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """The arrays of one file, read-only and zero-copy; made by `open_dataset`.

    It holds the memory map and a descriptor of the file, and nothing else: it survives fork, and
    pickles as its path and dataset_id. Pages are read from disk when they are first touched.

    While it is open, nobody may write to the file; renaming another file over it is no change. What
    this class and `Columns` hand out is checked when it is asked for. `images`, `masks` and the
    columns are plain arrays: what is read from them later is not.

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
    file : MappedFile
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
    file: MappedFile

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Images, Masks]:
        """Return the image and the mask of one sample, each (rows, columns), without a copy."""
        row = operator.index(index)
        self.file.check()
        return self.images[row], self.masks[row]

    def __repr__(self) -> str:
        """Return the path, and the number, size and type of the images."""
        n, rows, columns = self.images.shape
        return f"<Dataset {str(self.path)!r}: {n} samples, {rows}x{columns} {self.images.dtype}>"

    @property
    def buffer(self) -> mmap.mmap:
        """The map of the whole file."""
        return self.file.buffer

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
        every = np.arange(len(self))
        # Of an empty list NumPy makes floats, which are no rows.
        listed = every if rows is None else np.asarray(rows)
        chosen = every[listed if listed.size else listed.astype(np.int64)]
        codes = sorted(structure.code for structure in self.structures)
        counts = {code: int(self.manifest[f"n_pixels_{code}"][chosen].sum()) for code in codes}
        if self.has_bits:
            n_background = sum(int(np.count_nonzero(self[row][1] == 0)) for row in chosen)
            return {0: n_background, **counts}
        n_ignored = 0
        if self.attributes[Attribute.MIN_READER_VERSION] > 1:  # version 1 has no 255
            is_drawn = [self.manifest[f"drawn_{code}"][chosen] != 0 for code in codes]
            partial = chosen[~np.logical_and.reduce(is_drawn)]
            n_ignored = sum(int(np.count_nonzero(self[row][1] == IGNORE)) for row in partial)
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

    def to_source(
        self,
        row: int,
        values: npt.NDArray[np.generic],
        *,
        linear: bool = False,
        fill: float = 0,
    ) -> npt.NDArray[np.generic]:
        """Return what was predicted on one sample on the pixels of the image that it was made of.

        Where the build resampled, padded or cropped the images, a prediction has other pixels than
        the DICOM image; this puts it back. In other files both have the same ones.

        Parameters
        ----------
        row : int
            The sample.
        values : array, shape (..., rows, columns)
            A mask, label map or map of probabilities on the pixels of the file.
        linear : bool
            Interpolate linearly, as for probabilities; else each pixel of the image takes the value
            of the nearest pixel of the file, as for labels.
        fill : number
            For pixels of the image that the file does not show: it was cropped there.

        Returns
        -------
        array, shape (..., source rows, source columns)

        Raises
        ------
        ValueError
            `values` has another size than the images of the file; or its type cannot hold `fill`.
        """
        row, size = range(len(self))[row], self.images.shape[1:]
        if values.shape[-2:] != size:
            raise ValueError(
                f"values: expected the shape (..., {size[0]}, {size[1]}) of the file's images, "
                f"found {values.shape}."
            )
        axes = []
        for name, length in zip(("row", "column"), size, strict=True):
            axis = Axis(length, 0.0, 1.0)
            if "source_rows" in self.manifest:
                one = {
                    what: self.manifest[column][row].item()
                    for what, column in (
                        ("length", f"source_{name}s"),
                        ("offset", f"source_{name}_offset"),
                        ("scale", f"source_{name}_scale"),
                    )
                }
                axis = Axis(**one)
            axes.append(axis)
        return to_source(values, *axes, linear=linear, fill=fill)

    def check_whole(self) -> None:
        """Check that nobody has written to the file or cut it short since it was opened; one fstat.

        Batches do so themselves. Touching a page of the map that the file has lost would kill the
        process.

        Raises
        ------
        LoaderError
            Somebody has.
        """
        self.file.check()

    @functools.cached_property
    def reuse(self) -> Columns:
        """What `dicom-etl build --update` needs to take rows over; empty where the file lacks it.

        Training needs none of it, and opening a file reads none: the first use does.
        """
        self.file.check()
        extents = read_reuse(self.buffer, os.fspath(self.path))
        columns = {name: _map_array(self.buffer, extent) for name, extent in extents.items()}
        return Columns(REUSE_GROUP, columns, self.file.check)

    def damaged_columns(self) -> dict[str, str]:
        """Return which small datasets, all but images and masks, differ from their digests.

        Returns
        -------
        dict
            Dataset, such as "manifest/slice" → why.

        Raises
        ------
        LoaderError
            The package xxhash, which the digests need, is not installed; or /reuse cannot be read.
        """
        tables = {
            table.name: table.stored
            for table in (self.manifest, self.contours, self.findings, self.reuse)
        }
        return damaged(tables, self.attributes[Attribute.DIGESTS], os.fspath(self.path))

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle as the file's path and identity; no pixel travels."""
        return _reopen, (os.fspath(self.path), self.dataset_id)


def open_dataset(path: str | os.PathLike[str], *, verify: Verify | None = None) -> Dataset:
    """Open a file that dicom-etl built.

    Parameters
    ----------
    path : str or path-like
        The file.
    verify : "columns", optional
        Compare all datasets but images and masks with the digests in the file; this reads all of
        them, and needs the package xxhash. `dicom-etl verify` checks images and masks too.

    Returns
    -------
    Dataset
        Read-only arrays over one memory map. No HDF5 handle stays open.

    Raises
    ------
    TypeError
        Not a path.
    ValueError
        No such kind of `verify`.
    LoaderError
        No such file, not of this format, of a newer version, damaged, cut short, written to
        meanwhile, or laid out so that it cannot be mapped.
    """
    if verify is not None:
        verify = choice("verify", verify, get_args(Verify))
    if not isinstance(path, str | bytes | os.PathLike):
        raise TypeError(
            "expected the path of a file that dicom-etl built, or what open_dataset returned, "
            f"found {type(path).__name__}."
        )
    name = os.fsdecode(path)
    file = MappedFile(name)
    buffer = file.buffer
    contents = read_contents(buffer, name)
    tables = {
        group: Columns(
            group,
            {key: _map_array(buffer, extent) for key, extent in columns.items()},
            file.check,
        )
        for group, columns in contents.tables.items()
    }
    dataset = Dataset(
        path=Path(os.path.abspath(name)),
        dataset_id=str(contents.attributes[Attribute.DATASET_ID]),
        attributes=contents.attributes,
        structures=contents.structures,
        images=cast("Images", _map_array(buffer, contents.images)),
        masks=cast("Masks", _map_array(buffer, contents.masks)),
        file=file,
        **tables,
    )
    if verify is not None:
        _require_whole_columns(dataset, name)
    file.check()  # what was read is of one and the same file
    return dataset


def _require_whole_columns(dataset: Dataset, path: str) -> None:
    found = [f"/{name} {why.rstrip('.')}" for name, why in dataset.damaged_columns().items()]
    if found:
        n_more = len(found) - _N_NAMED
        more = [f"and {n_more} more"] if n_more > 0 else []
        raise not_opened(path, "; ".join(found[:_N_NAMED] + more), COPY_AGAIN)


def _reopen(path: str, dataset_id: str) -> Dataset:
    dataset = open_dataset(path)
    if dataset.dataset_id != dataset_id:
        raise LoaderError(
            f"Dataset not reopened: {path}: the file was replaced by another one (expected "
            f"dataset_id {dataset_id}, found {dataset.dataset_id}). Start again with the new file."
        )
    return dataset


def _map_array(buffer: mmap.mmap, extent: Extent) -> npt.NDArray[np.generic]:
    if 0 in extent.shape:  # without storage in the file
        array = np.empty(extent.shape, extent.dtype)
        array.flags.writeable = False
        return array
    return np.ndarray(extent.shape, extent.dtype, buffer=buffer, offset=extent.offset)
