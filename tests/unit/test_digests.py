"""The small datasets of a file against their digests, where the loader is asked to compare them."""

import json
import os
import sys

import h5py
import numpy as np
import pytest
import xxhash
from dataset_builder import write_dataset

import loader
from loader.format import Attribute


def write_with_digests(path, change=lambda digests: digests):
    arrays = write_dataset(path)
    digests = {
        name: xxhash.xxh3_128_hexdigest(np.ascontiguousarray(values).data)
        for name, values in arrays.items()
        if "/" in name
    }
    attributes = {Attribute.DIGESTS: json.dumps(change(digests))}
    return write_dataset(path, attributes=attributes)


def flip_a_bit(path, name):
    with h5py.File(path) as file:
        offset = file[name].id.get_offset()
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


@pytest.fixture
def path(tmp_path):
    write_with_digests(tmp_path / "out.h5")
    return tmp_path / "out.h5"


def test_a_whole_file_opens(path):
    data = loader.open_dataset(path, verify="columns")
    assert data.damaged_columns() == {}
    assert len(data) == 7


def test_a_flipped_bit_is_found_and_its_dataset_named(path):
    with h5py.File(path) as file:
        names = [
            f"{group}/{name}"
            for group in ("manifest", "contours", "findings")
            for name in file[group]
        ]
    assert len(names) > 50
    for name in names:
        flip_a_bit(path, name)
        loader.open_dataset(path)  # by default nothing is compared
        why = rf"^Dataset not opened: {path}: /{name} differs from its digest\. Copy the file again"
        with pytest.raises(loader.LoaderError, match=why):
            loader.open_dataset(path, verify="columns")
        flip_a_bit(path, name)
    loader.open_dataset(path, verify="columns")


def test_pixels_are_left_to_the_command(path):
    flip_a_bit(path, "images")
    flip_a_bit(path, "masks")
    loader.open_dataset(path, verify="columns")


def test_several_datasets_are_named_and_more_are_counted(path):
    for name in ("manifest/slice", "manifest/fold", "contours/x", "contours/y", "findings/row"):
        flip_a_bit(path, name)
    with pytest.raises(loader.LoaderError, match=r"digest; and 2 more\. Copy") as caught:
        loader.open_dataset(path, verify="columns")
    assert str(caught.value).count("differs from its digest") == 3


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda digests: {name: digests[name] for name in digests if name != "manifest/slice"},
            "/manifest/slice has no digest in the file",
        ),
        (lambda digests: digests | {"contours/z": "0"}, "/contours/z is missing, but has a digest"),
    ],
)
def test_datasets_without_digests_and_digests_without_datasets(path, change, why):
    write_with_digests(path, change)
    with pytest.raises(loader.LoaderError, match=why):
        loader.open_dataset(path, verify="columns")


def test_without_xxhash_the_message_says_what_to_install(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "xxhash", None)
    loader.open_dataset(path)
    why = f"^Columns not verified: {path}: .*xxhash is needed.* Install it: pip install xxhash"
    with pytest.raises(loader.LoaderError, match=why):
        loader.open_dataset(path, verify="columns")


@pytest.mark.parametrize("verify", ["all", True, ""])
def test_another_kind_is_refused(path, verify):
    with pytest.raises(ValueError, match="verify: expected one of columns, found"):
        loader.open_dataset(path, verify=verify)


def test_a_file_that_changes_meanwhile_is_told_from_a_damaged_one(path):
    os.utime(path, (10**9, 10**9))
    data = loader.open_dataset(path)
    flip_a_bit(path, "manifest/slice")
    with pytest.raises(
        loader.LoaderError, match=r"Dataset not usable.*written to while it was open"
    ):
        data.damaged_columns()
