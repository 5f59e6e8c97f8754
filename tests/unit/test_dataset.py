import gc
import json
import mmap
import os
import pickle

import h5py
import numpy as np
import pytest
from dataset_builder import CARDIAC, with_bits, write_dataset

import loader
from loader.format import (
    CONTOURS,
    CORE,
    FINDINGS,
    FINDINGS_VERSION_2,
    VERSION_1_COLUMNS,
    VERSION_2,
    Attribute,
    Structure,
    manifest_columns,
)
from loader.structure import read_contents


@pytest.fixture
def path(tmp_path):
    return tmp_path / "out.h5"


ONE = {"name": "a", "code": 1, "meaning": "a", "stem": "label1"}
TWELVE = tuple(
    Structure(f"organ µ{code}", code, f"the organ {code}", f"label{code}")
    for code in range(20, 8, -1)
)


def opened(path):
    return h5py.File(path, "r+", libver=("v110", "v110"))


def replace(name, values, **options):
    """Return a change of a file: one dataset written anew."""

    def change(path):
        with opened(path) as file:
            del file[name]
            file.create_dataset(name, data=values, **options)

    return change


def remove(name):
    def change(path):
        with opened(path) as file:
            del file[name]

    return change


def buffer_of(array):
    return buffer_of(array.base) if isinstance(array, np.ndarray) else array


def refusal(path):
    with pytest.raises(loader.LoaderError) as caught:
        loader.open_dataset(path)
    return str(caught.value)


@pytest.mark.parametrize("image_dtype", ["<i2", "<u2", "<i4", "<f4"])
@pytest.mark.parametrize("alignment", [1, 65536])
def test_arrays_are_what_was_written(path, image_dtype, alignment):
    written = write_dataset(path, image_dtype=image_dtype, alignment=alignment)
    data = loader.open_dataset(path)
    found = {"images": data.images, "masks": data.masks}
    for group in ("manifest", "contours", "findings"):
        found |= {
            f"{group}/{column}": array for column, array in getattr(data, group).stored.items()
        }
    assert found.keys() == written.keys()
    for name, array in written.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


def test_arrays_are_read_only_views_of_one_map(path):
    write_dataset(path)
    data = loader.open_dataset(path)
    arrays = [data.images, data.masks, *data.manifest.stored.values(), *data.contours.values()]
    assert {id(buffer_of(array)) for array in arrays} == {id(data.buffer)}
    for array in arrays:
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True


def test_tables_are_read_only_mappings_of_the_format(path):
    write_dataset(path)
    data = loader.open_dataset(path)
    assert list(data.manifest)[: len(CORE)] == list(CORE)
    assert sorted(data.manifest) == sorted(manifest_columns(CARDIAC))
    assert list(data.contours) == list(CONTOURS)
    assert list(data.findings) == list(FINDINGS | FINDINGS_VERSION_2)
    with pytest.raises(TypeError):
        data.manifest["slice"] = np.arange(7)


def test_sample_is_a_view(path):
    written = write_dataset(path)
    data = loader.open_dataset(path)
    image, mask = data[5]
    assert np.shares_memory(image, data.images)
    assert np.shares_memory(mask, data.masks)
    np.testing.assert_array_equal(image, written["images"][5])
    np.testing.assert_array_equal(mask, written["masks"][5])
    np.testing.assert_array_equal(data[-1][0], written["images"][6])


def test_polygons_are_those_of_the_row(path):
    written = write_dataset(path)
    data = loader.open_dataset(path)
    found = [(row, *polygon) for row in range(len(data)) for polygon in data.polygons(row)]
    names = ("row", "label", "start", "length")
    expected = list(zip(*(written[f"contours/{name}"].tolist() for name in names), strict=True))
    assert [(row, label) for row, label, _ in found] == [
        (row, label) for row, label, *_ in expected
    ]
    for (*_, vertices), (*_, start, length) in zip(found, expected, strict=True):
        assert vertices[:, 0].tolist() == written["contours/x"][start : start + length].tolist()
        assert vertices[:, 1].tolist() == written["contours/y"][start : start + length].tolist()
    assert len(data.polygons(-1)) == len(data.polygons(6))
    with pytest.raises(IndexError):
        data.polygons(7)


def test_flagged_rows(path):
    codes = {Attribute.FLAG_CODES: '["area-jump", "image-empty"]'}
    write_dataset(path, n=4, attributes=codes, manifest={"flags": [0, 1, 2, 3]})
    data = loader.open_dataset(path)
    assert data.flagged("area-jump").tolist() == [False, True, False, True]
    assert data.flagged("image-empty").tolist() == [False, False, True, True]
    with pytest.raises(ValueError, match="code: expected one of area-jump, image-empty, found 'x'"):
        data.flagged("x")


@pytest.mark.parametrize("source", [None, 3, ["out.h5"]])
def test_what_is_no_path_is_refused(source):
    with pytest.raises(TypeError, match="expected the path of a file that dicom-etl built"):
        loader.open_dataset(source)


@pytest.mark.parametrize("index", [7, -8])
def test_sample_out_of_range_is_an_index_error(path, index):
    write_dataset(path)
    with pytest.raises(IndexError):
        loader.open_dataset(path)[index]


def test_length_and_description(path):
    write_dataset(path)
    data = loader.open_dataset(path)
    assert len(data) == 7
    assert repr(data) == f"<Dataset {str(path)!r}: 7 samples, 4x5 int16>"


def test_tables_without_rows_are_empty_arrays(path):
    write_dataset(path, n=0, n_findings=0)
    data = loader.open_dataset(path)
    assert len(data) == 0
    assert data.images.shape == (0, 4, 5)
    assert data.findings["message"].shape == (0,)
    assert data.findings["message"].dtype.kind == "U"
    assert not data.findings["row"].flags.writeable


def test_attributes_are_decoded(path):
    write_dataset(path, attributes={Attribute.GENERATOR: "dicom-etl µ", Attribute.IMAGE_STD: 2})
    data = loader.open_dataset(path)
    assert data.attributes["generator"] == "dicom-etl µ"
    assert data.attributes["labels"] == {"1": "blood pool", "2": "muscle"}
    assert data.attributes["format_version"] == 2
    assert type(data.attributes["format_version"]) is int
    assert data.attributes["image_mean"] == 1.5
    assert type(data.attributes["image_std"]) is float
    assert data.dataset_id == data.attributes["dataset_id"] == "0123456789abcdef"


def test_unknown_columns_and_attributes_are_ignored(path):
    write_dataset(path)
    with opened(path) as file:
        file.attrs["new"] = "of variable length"
        file["manifest/new"] = h5py.SoftLink("/nowhere")
        file["new"] = [1.0]
    data = loader.open_dataset(path)
    assert "new" not in data.manifest
    assert "new" not in data.attributes


def test_newer_file_that_this_reader_can_read_is_opened(path):
    write_dataset(path, attributes={Attribute.FORMAT_VERSION: 9})
    assert loader.open_dataset(path).attributes["format_version"] == 9


def test_structures_are_those_of_the_file_in_paint_order(path):
    for structures in (CARDIAC, TWELVE):
        written = write_dataset(path, structures=structures)
        data = loader.open_dataset(path)
        assert data.structures == structures
        assert data.attributes["labels"] == {str(one.code): one.meaning for one in structures}
        for code in (one.code for one in structures):
            counted = (data.masks == code).sum(axis=(1, 2))
            assert data.manifest[f"n_pixels_{code}"].tolist() == counted.tolist()
            assert data.manifest[f"drawn_{code}"].tolist() == (counted > 0).tolist()
        assert sorted(data.manifest) == sorted(manifest_columns(structures))
        np.testing.assert_array_equal(data.masks, written["masks"])
    assert "n_pixels_1" not in data.manifest


def test_what_a_later_version_says_of_structures_besides_is_ignored(path):
    recorded = json.dumps([ONE | {"colour": "red", "source_codes": ["x"]}])
    write_dataset(path, attributes={Attribute.STRUCTURES: recorded})
    assert loader.open_dataset(path).structures == (Structure(**ONE, source_codes=("x",)),)


@pytest.mark.parametrize(
    ("contours", "labels", "expected"),
    [
        (["i"], {"1": "pool"}, [("i-contour", 1, 1, "pool")]),
        (["o"], {"1": "inside"}, [("o-contour", 1, 2, "inside")]),
        (
            ["i", "o"],
            {"1": "pool", "2": "muscle"},
            [("o-contour", 2, 2, "muscle"), ("i-contour", 1, 1, "pool")],
        ),
    ],
)
def test_structures_of_a_version_1_file_are_those_of_its_labels(path, contours, labels, expected):
    attributes = {"options": {"contours": contours}, "labels": labels}
    write_dataset(path, attributes={key: json.dumps(value) for key, value in attributes.items()})
    with opened(path) as file:
        del file.attrs["structures"], file.attrs["mask_kind"]
        for column in [*VERSION_2, "drawn_1", "drawn_2"]:
            del file["manifest"][column]
        for column in FINDINGS_VERSION_2:
            del file["findings"][column]
    data = loader.open_dataset(path)
    assert [(s.name, s.code, s.label, s.meaning) for s in data.structures] == expected
    assert sorted(data.manifest) == sorted(CORE | VERSION_1_COLUMNS)
    assert list(data.findings) == list(FINDINGS)


@pytest.mark.parametrize("dtype", ["|u1", "<u2", "<u4"])
@pytest.mark.parametrize("alignment", [1, 65536])
def test_bit_masks_are_what_was_written(path, dtype, alignment):
    structures = with_bits(CARDIAC)
    arrays = write_dataset(path, structures=structures, mask_dtype=dtype, alignment=alignment)
    data = loader.open_dataset(path)
    assert data.has_bits
    assert data.masks.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(data.masks, arrays["masks"])
    assert data.sample_bytes == 20 * (2 + np.dtype(dtype).itemsize)
    inner, outer = sorted(data.structures, key=lambda one: one.code)
    assert (inner.bit, outer.bit) == (0, 1)
    assert (inner.covers(data.masks) == (arrays["masks"] % 2 == 1)).all()
    assert (outer.covers(data.masks) == (arrays["masks"] // 2 == 1)).all()


@pytest.mark.parametrize("bits", [(0, 0), (1, 8), (-1, 0), (0, True), (0, "1"), (1.0, 0)])
def test_bits_that_cannot_be_are_refused(path, bits):
    structures = [one._replace(bit=bit)._asdict() for one, bit in zip(CARDIAC, bits, strict=True)]
    attributes = {"structures": json.dumps(structures)}
    write_dataset(path, structures=with_bits(CARDIAC), attributes=attributes)
    assert "expected a bit of each structure, 0 to 7 and no two alike, found [" in refusal(path)


def test_label_maps_have_no_bits_whatever_the_structures_say(path):
    structures = [one._asdict() for one in with_bits(CARDIAC)]
    arrays = write_dataset(path, attributes={"structures": json.dumps(structures)})
    data = loader.open_dataset(path)
    assert not data.has_bits
    for one in data.structures:
        assert one.bit is None
        assert (one.covers(data.masks) == (arrays["masks"] == one.code)).all()


def test_label_maps_of_more_than_a_byte_are_refused(path):
    write_dataset(path, mask_dtype="<u2")
    assert "/masks: expected the type |u1, found another" in refusal(path)


def test_no_hdf5_handle_stays_open(path):
    gc.collect()  # what other tests have left must not go meanwhile
    before = h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_ALL)
    write_dataset(path)
    data = loader.open_dataset(path)
    assert h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_ALL) == before
    with opened(path) as file:
        assert file["images"].shape == data.images.shape


def test_pickle_reopens_the_file_from_any_folder(path, monkeypatch, tmp_path):
    write_dataset(path)
    monkeypatch.chdir(tmp_path)
    data = loader.open_dataset("out.h5")
    pickled = pickle.dumps(data)
    assert len(pickled) < 500
    monkeypatch.chdir("/")
    again = pickle.loads(pickled)
    assert again.path == path
    np.testing.assert_array_equal(again.images, data.images)


def test_pickle_of_a_replaced_file_is_refused(path):
    write_dataset(path)
    pickled = pickle.dumps(loader.open_dataset(path))
    path.unlink()
    write_dataset(path, attributes={Attribute.DATASET_ID: "another"})
    with pytest.raises(loader.LoaderError, match="expected dataset_id 0123456789abcdef, found ano"):
        pickle.loads(pickled)


def test_error_survives_pickling():
    error = pickle.loads(pickle.dumps(loader.LoaderError("Dataset not opened: x. Do y.")))
    assert type(error) is loader.LoaderError
    assert str(error) == "Dataset not opened: x. Do y."


# What is no file of the format at all


def test_missing_file_is_refused(path):
    message = refusal(path)
    assert message.startswith(f"Dataset not opened: {path}: no such file.")
    assert message.endswith("dicom-etl build DATA OUT.")


def test_folder_and_fifo_are_refused(tmp_path):
    assert f"{tmp_path}: a folder" in refusal(tmp_path)
    os.mkfifo(tmp_path / "fifo")
    assert "not a regular file" in refusal(tmp_path / "fifo")


def test_path_that_the_system_refuses(path):
    assert "the system refused" in refusal("with\0nul")
    assert "the system refused" in refusal(path.parent / ("x" * 300))


def test_file_without_permission_is_refused(path, monkeypatch):
    write_dataset(path)

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert "no permission to read it. Ask for read permission" in refusal(path)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "the file is empty"),
        (b"patient_id,original_id\n", "not an HDF5 file"),
        (b"\x89HDF\r\n\x1a\n", "HDF5 of another program"),
        (b"\x89HDF\r\n\x1a\n\x03", "HDF5 cannot read it"),
        (b"\x89HDF\r\n\x1a\n\x03" + bytes(5000), "HDF5 cannot read it"),
    ],
)
def test_other_bytes_are_refused(path, content, why):
    path.write_bytes(content)
    assert why in refusal(path)


@pytest.mark.parametrize(
    ("libver", "why"),
    [("earliest", "expected checksummed metadata"), (("v110", "v110"), 'the attribute "format"')],
)
def test_hdf5_of_another_program_is_refused(path, libver, why):
    with h5py.File(path, "w", libver=libver) as file:
        file["images"] = np.zeros((3, 4, 5))
    message = refusal(path)
    assert "HDF5 of another program" in message
    assert why in message


def test_truncated_file_is_refused_wherever_it_was_cut(path):
    write_dataset(path, n=2, n_findings=1, alignment=1)
    content = path.read_bytes()
    for length in range(1, len(content), 97):
        path.write_bytes(content[:length])
        refusal(path)


def test_extent_beyond_the_end_is_refused(path):
    class Shrunk(mmap.mmap):
        def __len__(self):
            return 65536

    write_dataset(path)
    with path.open("rb") as file, pytest.raises(loader.LoaderError, match="the file is cut short"):
        read_contents(Shrunk(file.fileno(), 0, access=mmap.ACCESS_READ), "out.h5")


def test_hdf5_failure_is_kept_as_the_cause(path):
    path.write_bytes(b"\x89HDF\r\n\x1a\n\x03" + bytes(5000))
    with pytest.raises(loader.LoaderError) as caught:
        loader.open_dataset(path)
    assert isinstance(caught.value.__cause__, OSError)


# What says that it is of the format, and is not


@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        ({"format": "other"}, 'expected the format "dicom-etl", found "other"'),
        ({"min_reader_version": 3}, "needs a reader of format version 3, this one knows 2"),
        ({"required_features": '["tiles", "zstd"]'}, "features that this version lacks: tiles, zs"),
        ({"required_features": '{"tiles": 1}'}, "required_features: expected a JSON list, found d"),
        ({"labels": "not JSON"}, "attribute labels: not UTF-8 text, or not JSON"),
        ({"labels": "[" * 100_000}, "attribute labels: not UTF-8 text, or not JSON"),
        ({"generator": np.bytes_(b"\xff")}, "attribute generator: not UTF-8 text"),
        ({"generator": 7}, "attribute generator: expected a fixed-length string"),
        ({"format_version": "1"}, "attribute format_version: expected a number"),
        ({"format_version": 1.5}, "attribute format_version: expected a number"),
        ({"image_mean": [1.0, 2.0]}, "attribute image_mean: expected one value"),
        ({"image_mean": h5py.Empty("f8")}, "attribute image_mean: expected one value"),
        ({"mask_kind": "runs"}, 'masks of the kind "runs", expected labels or bits'),
        ({"mask_kind": "bits"}, "structures: expected a bit of each structure, 0 to 7 and no two"),
        ({"structures": "{}"}, "attribute structures: expected a JSON list, found dict"),
        ({"structures": "[7]"}, "attribute structures: expected objects"),
        ({"structures": '[{"name": "a"}]'}, "attribute structures: expected objects"),
        *(
            ({"structures": json.dumps([ONE | wrong])}, "attribute structures: expected objects")
            for wrong in (
                {"code": 0},
                {"code": 255},
                {"code": "1"},
                {"stem": "../x"},
                {"inside_of": "a"},
                {"source_codes": 7},
            )
        ),
    ],
)
def test_attribute_that_cannot_be_used_is_refused(path, attributes, why):
    write_dataset(path, attributes=attributes)
    assert why in refusal(path)


def test_attribute_of_variable_length_is_refused(path):
    write_dataset(path)
    with opened(path) as file:
        file.attrs["generator"] = "dicom-etl"
    assert "attribute generator: expected a fixed-length string" in refusal(path)


def test_missing_attribute_is_refused(path):
    write_dataset(path)
    with opened(path) as file:
        del file.attrs["dataset_id"]
    assert "attribute dataset_id: missing" in refusal(path)


IMAGES = np.zeros((7, 4, 5), "<i2")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (remove("images"), "/images: missing"),
        (remove("manifest"), "/manifest: missing"),
        (remove("manifest/p99"), "/manifest/p99: missing"),
        (remove("findings/message"), "/findings/message: missing"),
        (replace("images", IMAGES, chunks=(1, 4, 5)), "contiguous storage, found chunked"),
        (replace("images", IMAGES, compression="gzip"), "contiguous storage, found chunked"),
        (replace("images", IMAGES.astype(">i2")), "/images: expected the type <i2 or <u2"),
        (replace("images", IMAGES.astype("<f8")), "/images: expected the type <i2 or <u2"),
        (replace("masks", IMAGES), "/masks: expected the type |u1, found another"),
        (replace("masks", np.zeros((7, 4, 5), np.bool_)), "/masks: expected the type |u1"),
        (replace("masks", np.zeros((7, 5, 4), "u1")), r"expected the shape (7, 4, 5), found (7, 5"),
        (replace("images", IMAGES[0]), "expected the shape (n, rows, columns), found (4, 5)"),
        (
            replace("images", IMAGES[:, :0]),
            "expected the shape (n, rows, columns), found (7, 0, 5)",
        ),
        (
            replace("images", np.zeros((1, 1, 65536), "<i2")),
            "expected the shape (n, rows, columns), found (1, 1, 65536)",
        ),
        (replace("images", np.int16(3)), "expected an array, found a single value"),
        (
            replace("images", h5py.Empty("<i2")),
            "expected an array, found a single value or nothing",
        ),
        (replace("manifest/split", np.zeros(6, "i1")), "expected the shape (7,), found (6,)"),
        (replace("contours/y", np.zeros(6)), "expected the shape (7,), found (6,)"),
        (
            replace("contours/label", np.zeros((7, 1), "u1")),
            "expected the shape (7,), found (7, 1)",
        ),
        (replace("findings/row", np.zeros(3, "i8")), "expected the shape (2,), found (3,)"),
        (replace("manifest/patient_id", np.zeros(7)), "expected fixed-length strings"),
        (replace("manifest/patient_id", ["a"] * 7), "expected fixed-length strings"),
        (replace("manifest", np.zeros(7)), "/manifest: expected a group"),
    ],
)
def test_dataset_that_cannot_be_mapped_is_refused(path, change, why):
    write_dataset(path)
    change(path)
    assert why in refusal(path)


def test_values_that_were_never_written_are_refused(path):
    write_dataset(path)
    with opened(path) as file:
        del file["images"]
        file.create_dataset("images", (7, 4, 5), "<i2")
    assert "/images: no values were ever written" in refusal(path)


def test_values_outside_of_the_file_are_refused(path, tmp_path):
    write_dataset(path)
    (tmp_path / "secret").write_bytes(bytes(280))
    replace("images", None, shape=(7, 4, 5), dtype="<i2", external=[(tmp_path / "secret", 0, 280)])(
        path
    )
    assert "/images: expected values in this file, found them in external files" in refusal(path)


def test_virtual_dataset_is_refused(path, tmp_path):
    write_dataset(path)
    write_dataset(tmp_path / "other.h5")
    layout = h5py.VirtualLayout((7, 4, 5), "<i2")
    layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "images", (7, 4, 5))
    with opened(path) as file:
        del file["images"]
        file.create_virtual_dataset("images", layout)
    assert "/images: expected contiguous storage, found virtual" in refusal(path)


def test_compact_dataset_is_refused(path):
    write_dataset(path)
    with opened(path) as file:
        del file["masks"]
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_layout(h5py.h5d.COMPACT)
        space = h5py.h5s.create_simple((7, 4, 5))
        h5py.h5d.create(file.id, b"masks", h5py.h5t.STD_U8LE, space, creation)
    assert "/masks: expected contiguous storage, found compact" in refusal(path)


def test_named_type_is_refused(path):
    write_dataset(path)
    with opened(path) as file:
        del file["masks"]
        file["type"] = np.dtype("u1")
        file.create_dataset("masks", (7, 4, 5), dtype=file["type"])
        file["masks"][...] = 1
    assert "/masks: expected a plain type, found a named one" in refusal(path)


def test_strings_padded_with_spaces_are_refused(path):
    write_dataset(path)
    with opened(path) as file:
        del file["manifest/patient_id"]
        text = h5py.h5t.C_S1.copy()
        text.set_size(8)
        text.set_strpad(h5py.h5t.STR_SPACEPAD)
        space = h5py.h5s.create_simple((7,))
        h5py.h5d.create(file["manifest"].id, b"patient_id", text, space)
    assert "/manifest/patient_id: expected fixed-length strings padded with NUL" in refusal(path)


@pytest.mark.parametrize("link", [h5py.SoftLink("/masks"), h5py.ExternalLink("b.h5", "/images")])
@pytest.mark.parametrize("name", ["images", "findings", "manifest/slice"])
def test_links_are_refused(path, link, name):
    write_dataset(path)
    with opened(path) as file:
        del file[name]
        file[name] = link
    assert f"/{name}: expected the object itself, found a link" in refusal(path)
