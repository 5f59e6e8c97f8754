"""The places of all datasets in the file, read from HDF5 and checked before the file is mapped."""

import functools
import json
import math
import mmap
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import h5py
import numpy as np
from h5py import h5a, h5d, h5g, h5l, h5o, h5s, h5t

from loader.errors import LoaderError
from loader.format import (
    BIT_DTYPES,
    CONTOURS,
    CORE,
    FINDINGS,
    FINDINGS_VERSION_2,
    FORMAT,
    FORMAT_VERSION,
    IMAGE_DTYPES,
    IMAGES,
    KNOWN_FEATURES,
    MASK_BITS,
    MASK_DTYPE,
    MASK_LABELS,
    MASKS,
    MAX_CODE,
    REUSE,
    REUSE_GROUP,
    SOURCE_GRID,
    STRING,
    TAG_KINDS,
    TAG_PREFIX,
    VERSION_1_STRUCTURES,
    VERSION_2,
    Attribute,
    Structure,
)

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

# In the order in which they are read: the first four decide whether the others can be.
_ATTRIBUTES: Final[dict[str, type]] = {
    Attribute.FORMAT: str,
    Attribute.FORMAT_VERSION: int,
    Attribute.MIN_READER_VERSION: int,
    Attribute.REQUIRED_FEATURES: list,
    Attribute.GENERATOR: str,
    Attribute.OPTIONS: dict,
    Attribute.LABELS: dict,
    Attribute.SOURCES: dict,
    Attribute.FLAG_CODES: list,
    Attribute.IMAGE_MEAN: float,
    Attribute.IMAGE_STD: float,
    Attribute.DATASET_ID: str,
    Attribute.DIGESTS: dict,
}

_TAG_COLUMN: Final = re.compile(rf"{TAG_PREFIX}[A-Za-z0-9]+", re.ASCII)

_OPTIONAL_ATTRIBUTES: Final[dict[str, type]] = {
    Attribute.ALIGNMENT: dict,
    Attribute.STRUCTURES: list,
    Attribute.MASK_KIND: str,
}

_SIGNATURE: Final = b"\x89HDF\r\n\x1a\n"
_CHECKSUMMED_SUPERBLOCKS: Final = (2, 3)  # the byte after the signature; older ones lack checksums
_LAYOUTS: Final = {
    h5d.COMPACT: "compact",
    h5d.CHUNKED: "chunked or compressed",
    h5d.VIRTUAL: "virtual",
}
_MAX_SIDE: Final = 65535  # attributes Rows (0028,0010) and Columns (0028,0011) have 16 bits
_MOST_QUOTED: Final = 500  # characters of a message's reason
_MAX_STRING: Final = 2**31 - 1  # NumPy's longest

_STEM: Final = re.compile(r"[a-z][a-z0-9_]{0,99}", re.ASCII)

# What h5py raises on bytes that are not as they should be.
_HDF5_ERRORS: Final = (
    OSError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    TypeError,
    ValueError,
    MemoryError,
)

_REBUILD: Final = "Build the file again with dicom-etl."
COPY_AGAIN: Final = "Copy the file again, or build it again with dicom-etl."
_OTHER_FILE: Final = "Give a file that dicom-etl has built."


@dataclass(frozen=True)
class Extent:
    """The place of one dataset in the file.

    Attributes
    ----------
    dtype : numpy.dtype
        Little-endian number, or fixed-length string.
    shape : tuple of int
    offset : int
        Position of the first byte in the file; 0 where the dataset is empty.
    """

    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Contents:
    """The file's metadata, once it has passed every check.

    Attributes
    ----------
    attributes : dict of str to JSON value
        The attributes of `loader.format.Attribute`, JSON ones decoded.
    structures : tuple of Structure
        In paint order; of a version 1 file those that its labels name.
    images, masks : Extent
    tables : dict of str to dict of str to Extent
        Group → column → extent: the columns that every file has, and of the others those that this
        one has.
    """

    attributes: dict[str, Json]
    structures: tuple[Structure, ...]
    images: Extent
    masks: Extent
    tables: dict[str, dict[str, Extent]]


def read_contents(buffer: mmap.mmap, path: str) -> Contents:
    """Return what a mapped file holds, and where.

    Parameters
    ----------
    buffer : mmap.mmap
        The whole file. HDF5 reads its metadata from it, so that what is checked here is what is
        mapped later, even when another file takes the name meanwhile.
    path : str
        The file's name, for messages.

    Raises
    ------
    LoaderError
        Not a file of this format, of a newer version, damaged, or laid out so that it cannot be
        mapped.
    """
    _check_superblock(buffer, path)
    try:
        with h5py.File(buffer, "r") as file:
            attributes = _read_attributes(file, path)
            structures = _read_structures(attributes, path)
            images = _read_extent(file.id, IMAGES, IMAGE_DTYPES, f"{path}, /{IMAGES}")
            masks = _read_masks(file.id, attributes, path)
            structures = _with_bits(structures, attributes, masks.dtype, path)
            tables = _read_tables(file.id, structures, path)
    except _HDF5_ERRORS as error:
        why = "HDF5 cannot read it, so it is damaged or incomplete"
        raise not_opened(path, why, COPY_AGAIN) from error
    contents = Contents(attributes, structures, images, masks, tables)
    _check_extents(contents, path, len(buffer))
    return contents


def read_reuse(buffer: mmap.mmap, path: str) -> dict[str, Extent]:
    """Return the columns of /reuse, which a file may lack; raises as `read_contents` does."""
    columns = {}
    try:
        with h5py.File(buffer, "r") as file:
            if file.id.links.exists(REUSE_GROUP.encode()):
                where = f"{path}, /{REUSE_GROUP}"
                parent = _open_object(file.id, REUSE_GROUP, h5g.GroupID, where)
                columns = {
                    column: _read_extent(parent, column, (kind,), f"{where}/{column}")
                    for column, kind in REUSE.items()
                    if parent.links.exists(column.encode())
                }
    except _HDF5_ERRORS as error:
        why = "HDF5 cannot read it, so it is damaged or incomplete"
        raise not_opened(path, why, COPY_AGAIN) from error
    _check_inside({f"{REUSE_GROUP}/{k}": v for k, v in columns.items()}, path, len(buffer))
    return columns


def not_opened(where: str, why: str, what_to_do: str = _REBUILD) -> LoaderError:
    """Return the error for a file that cannot be opened; it quotes the file, but not endlessly."""
    if len(why) > _MOST_QUOTED:
        why = f"{why[:_MOST_QUOTED]}... ({len(why)} characters)"
    return LoaderError(f"Dataset not opened: {where}: {why}. {what_to_do}")


def _check_superblock(buffer: mmap.mmap, path: str) -> None:
    n_signature = len(_SIGNATURE)
    if buffer[:n_signature] != _SIGNATURE:
        raise not_opened(path, "not an HDF5 file", _OTHER_FILE)
    if len(buffer) == n_signature or buffer[n_signature] not in _CHECKSUMMED_SUPERBLOCKS:
        why = "HDF5 of another program (expected checksummed metadata, found none)"
        raise not_opened(path, why, _OTHER_FILE)


def _read_attributes(file: h5py.File, path: str) -> dict[str, Json]:
    attributes: dict[str, Json] = {}
    for name, kind in _ATTRIBUTES.items():
        if name == Attribute.FORMAT and not h5a.exists(file.id, name.encode()):
            why = f'HDF5 of another program (expected the attribute "{name}", found none)'
            raise not_opened(path, why, _OTHER_FILE)
        attributes[name] = _read_attribute(file, name, kind, f"{path}, attribute {name}")
        _check_version(name, attributes[name], path)
    for name, kind in _OPTIONAL_ATTRIBUTES.items():
        if h5a.exists(file.id, name.encode()):
            attributes[name] = _read_attribute(file, name, kind, f"{path}, attribute {name}")
            _check_version(name, attributes[name], path)
    return attributes


def _read_attribute(file: h5py.File, name: str, kind: type, where: str) -> Json:
    if not h5a.exists(file.id, name.encode()):
        raise not_opened(where, "missing")
    attribute = h5a.open(file.id, name.encode())
    if attribute.get_space().get_simple_extent_type() != h5s.SCALAR:
        raise not_opened(where, "expected one value, found an array or nothing")
    hdf5_type = attribute.get_type()
    if kind in (int, float):
        classes = (h5t.TypeIntegerID,) if kind is int else (h5t.TypeIntegerID, h5t.TypeFloatID)
        if not isinstance(hdf5_type, classes):
            raise not_opened(where, "expected a number, found another type")
        value = _read_value(attribute)
        return int(value) if kind is int else float(value)
    if not isinstance(hdf5_type, h5t.TypeStringID) or hdf5_type.is_variable_str():
        raise not_opened(where, "expected a fixed-length string, found another type")
    return _decode(_read_value(attribute).item(), kind, where)


def _read_value(attribute: h5a.AttrID) -> np.ndarray[tuple[()], np.dtype[np.generic]]:
    """Return the one value of an attribute, for which `h5py.File.attrs` takes ten times as long."""
    value: np.ndarray[tuple[()], np.dtype[np.generic]] = np.zeros((), attribute.dtype)
    attribute.read(value)
    return value


def _decode(encoded: bytes, kind: type, where: str) -> Json:
    try:
        text = encoded.decode()
        value: Json = text if kind is str else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise not_opened(where, "not UTF-8 text, or not JSON") from error
    if not isinstance(value, kind):
        why = f"expected a JSON {kind.__name__}, found {type(value).__name__}"
        raise not_opened(where, why)
    return value


def _check_version(name: str, value: Json, path: str) -> None:
    """Refuse what this version does not know, before anything that depends on it is read."""
    upgrade = "Install a newer dicom-etl, or build the file again with this one."
    if name == Attribute.FORMAT and value != FORMAT:
        why = f'expected the format "{FORMAT}", found "{value}"'
        raise not_opened(path, why, _OTHER_FILE)
    if name == Attribute.MIN_READER_VERSION and isinstance(value, int) and value > FORMAT_VERSION:
        why = f"it needs a reader of format version {value}, this one knows {FORMAT_VERSION}"
        raise not_opened(path, why, upgrade)
    if name == Attribute.MASK_KIND and value not in {MASK_LABELS, MASK_BITS}:
        why = f'it has masks of the kind "{value}", expected {MASK_LABELS} or {MASK_BITS}'
        raise not_opened(path, why, upgrade)
    if name == Attribute.REQUIRED_FEATURES and isinstance(value, list):
        unknown = sorted({str(feature) for feature in value} - KNOWN_FEATURES)
        if unknown:
            why = f"it needs features that this version lacks: {', '.join(unknown)}"
            raise not_opened(path, why, upgrade)


def _read_structures(attributes: dict[str, Json], path: str) -> tuple[Structure, ...]:
    """Return the structures in paint order; of version 1, which lacks them, by its labels."""
    recorded = attributes.get(Attribute.STRUCTURES)
    if recorded is None:
        return _version_1_structures(attributes)
    where = f"{path}, attribute {Attribute.STRUCTURES}"
    try:
        return tuple(map(_structure, recorded if isinstance(recorded, list) else []))
    except (TypeError, ValueError, KeyError) as error:
        raise not_opened(where, "expected objects with name, code, meaning and stem") from error


def _with_bits(
    structures: tuple[Structure, ...],
    attributes: dict[str, Json],
    dtype: np.dtype[np.generic],
    path: str,
) -> tuple[Structure, ...]:
    """Return the structures: each with its own bit in bit masks, without any in label maps."""
    if attributes.get(Attribute.MASK_KIND) != MASK_BITS:
        return tuple(one._replace(bit=None) for one in structures)
    bits = [one.bit for one in structures]
    known = range(8 * dtype.itemsize)
    if len(set(bits)) < len(bits) or not all(type(bit) is int and bit in known for bit in bits):
        where = f"{path}, attribute {Attribute.STRUCTURES}"
        why = f"expected a bit of each structure, 0 to {known[-1]} and no two alike, found {bits}"
        raise not_opened(where, why)
    return structures


def _version_1_structures(attributes: dict[str, Json]) -> tuple[Structure, ...]:
    """Return the structures that the labels of a version 1 file name."""
    labels, options = attributes[Attribute.LABELS], attributes[Attribute.OPTIONS]
    meanings = labels if isinstance(labels, dict) else {}
    structures: tuple[Structure, ...] = VERSION_1_STRUCTURES
    if isinstance(options, dict) and options.get("contours") == ["o"]:
        # The outer contour by itself: 1 in the masks, and 2 in /contours/label all the same.
        structures = (structures[0]._replace(code=1, contour_label=2),)
    return tuple(
        one._replace(meaning=str(meanings[str(one.code)]))
        for one in structures
        if str(one.code) in meanings
    )


def _structure(recorded: Json) -> Structure:
    """Return one structure; further keys are ignored."""
    if not isinstance(recorded, dict):
        raise TypeError("expected an object")
    known = {key: value for key, value in recorded.items() if key in Structure._fields}
    codes = known.pop("source_codes", [])
    structure = Structure(**known, source_codes=tuple(map(str, codes)))  # type: ignore[arg-type]
    if not (isinstance(structure.code, int) and 1 <= structure.code <= MAX_CODE):
        raise ValueError("a code that no mask has")
    if structure.inside_of == structure.name:
        raise ValueError("a structure inside itself")
    if not _STEM.fullmatch(structure.stem):
        raise ValueError("a stem that begins no column's name")
    return structure


def _read_tables(
    root: h5g.GroupID, structures: Sequence[Structure], path: str
) -> dict[str, dict[str, Extent]]:
    """Return the columns of each group: the required ones, and the optional ones that it has."""
    of_structures = {
        column: kind
        for structure in (*VERSION_1_STRUCTURES, *structures)
        for column, kind in structure.columns.items()
    }
    groups: tuple[tuple[str, dict[str, str], dict[str, str]], ...] = (
        ("manifest", CORE, VERSION_2 | SOURCE_GRID | of_structures),
        ("contours", CONTOURS, {}),
        ("findings", FINDINGS, FINDINGS_VERSION_2),
    )
    tables = {}
    for group, required, optional in groups:
        parent = _open_object(root, group, h5g.GroupID, f"{path}, /{group}")
        names = {bytes(name).decode("utf-8", "replace") for name in parent}
        tables[group] = {
            column: _read_extent(parent, column, (kind,), f"{path}, /{group}/{column}")
            for column, kind in (required | optional).items()
            if column in required or column in names
        }
        if group == "manifest":
            tables[group] |= {
                column: _read_extent(parent, column, TAG_KINDS, f"{path}, /{group}/{column}")
                for column in sorted(filter(_TAG_COLUMN.fullmatch, names))
            }
    return tables


def _open_object(
    parent: h5g.GroupID, name: str, kind: type, where: str
) -> h5g.GroupID | h5d.DatasetID:
    if not parent.links.exists(name.encode()):
        raise not_opened(where, "missing")
    if parent.links.get_info(name.encode()).type != h5l.TYPE_HARD:
        raise not_opened(where, "expected the object itself, found a link to another place")
    found = h5o.open(parent, name.encode())
    if not isinstance(found, kind):
        raise not_opened(where, f"expected a {'group' if kind is h5g.GroupID else 'dataset'}")
    return found


def _read_masks(root: h5g.GroupID, attributes: dict[str, Json], path: str) -> Extent:
    is_bits = attributes.get(Attribute.MASK_KIND) == MASK_BITS
    dtypes = tuple(BIT_DTYPES.values()) if is_bits else (MASK_DTYPE,)
    return _read_extent(root, MASKS, dtypes, f"{path}, /{MASKS}")


def _read_extent(parent: h5g.GroupID, name: str, dtypes: Sequence[str], where: str) -> Extent:
    dataset = _open_object(parent, name, h5d.DatasetID, where)
    creation = dataset.get_create_plist()
    layout = creation.get_layout()
    if layout != h5d.CONTIGUOUS:
        found = _LAYOUTS.get(layout, "unknown")
        raise not_opened(where, f"expected contiguous storage, found {found} storage")
    if creation.get_nfilters():
        raise not_opened(where, "expected plain values, found compressed or filtered ones")
    if creation.get_external_count():
        raise not_opened(where, "expected values in this file, found them in external files")
    space = dataset.get_space()
    if space.get_simple_extent_type() != h5s.SIMPLE:
        raise not_opened(where, "expected an array, found a single value or nothing")
    shape = tuple(int(length) for length in space.get_simple_extent_dims())
    dtype = _read_dtype(dataset.get_type(), dtypes, where)
    if 0 in shape:
        return Extent(dtype, shape, 0)
    offset = dataset.get_offset()
    if offset is None:
        raise not_opened(where, "no values were ever written")
    return Extent(dtype, shape, int(offset))


def _read_dtype(hdf5_type: h5t.TypeID, dtypes: Sequence[str], where: str) -> np.dtype[np.generic]:
    if hdf5_type.committed():
        raise not_opened(where, "expected a plain type, found a named one")
    if tuple(dtypes) == (STRING,):
        return _read_string_dtype(hdf5_type, where)
    if STRING in dtypes and hdf5_type.get_class() == h5t.STRING:
        return _read_string_dtype(hdf5_type, where)
    for dtype in dtypes:
        if dtype != STRING and hdf5_type.equal(_hdf5_type(dtype)):
            return np.dtype(dtype)
    raise not_opened(where, f"expected the type {' or '.join(dtypes)}, found another")


@functools.cache
def _hdf5_type(dtype: str) -> h5t.TypeID:
    return h5t.py_create(np.dtype(dtype))


def _read_string_dtype(hdf5_type: h5t.TypeID, where: str) -> np.dtype[np.generic]:
    is_string = isinstance(hdf5_type, h5t.TypeStringID)
    if not is_string or hdf5_type.is_variable_str() or hdf5_type.get_strpad() != h5t.STR_NULLPAD:
        raise not_opened(where, "expected fixed-length strings padded with NUL, found another type")
    n_bytes = int(hdf5_type.get_size())
    if n_bytes > _MAX_STRING:
        raise not_opened(where, f"expected shorter strings, found {n_bytes} bytes each")
    return np.dtype(f"S{n_bytes}")


def _check_inside(extents: Mapping[str, Extent], path: str, n_file_bytes: int) -> None:
    for name, extent in extents.items():
        end = extent.offset + math.prod(extent.shape) * extent.dtype.itemsize
        if end > n_file_bytes:
            why = f"the file is cut short (expected {end} bytes or more, found {n_file_bytes})"
            raise not_opened(f"{path}, /{name}", why, COPY_AGAIN)


def _check_extents(contents: Contents, path: str, n_file_bytes: int) -> None:
    """Check that all is inside the file, and that what belongs together is equally long."""
    images, tables = contents.images.shape, contents.tables
    extents = {IMAGES: contents.images, MASKS: contents.masks} | {
        f"{group}/{column}": extent
        for group, columns in tables.items()
        for column, extent in columns.items()
    }
    _check_inside(extents, path, n_file_bytes)
    _, *sides = images or (0,)
    if len(sides) != len(("rows", "columns")) or not all(0 < side <= _MAX_SIDE for side in sides):
        why = f"expected the shape (n, rows, columns), found {images}"
        raise not_opened(f"{path}, /{IMAGES}", why)
    n_vertices, n_contours, n_findings = (
        extents[name].shape[:1] for name in ("contours/x", "contours/row", "findings/severity")
    )
    expected = {MASKS: images}
    expected |= {f"manifest/{column}": images[:1] for column in tables["manifest"]}
    expected |= {f"contours/{column}": n_contours for column in tables["contours"]}
    expected |= dict.fromkeys(("contours/x", "contours/y"), n_vertices)
    expected |= {f"findings/{column}": n_findings for column in tables["findings"]}
    for name, shape in expected.items():
        if extents[name].shape != shape:
            why = f"expected the shape {shape}, found {extents[name].shape}"
            raise not_opened(f"{path}, /{name}", why)
