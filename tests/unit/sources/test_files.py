import os
import threading
from pathlib import Path

import numpy as np
import pytest
import xxhash

from etl.errors import LIMITS, MAX_SETTINGS_BYTES, EtlError, SourceError, limited
from etl.sources.files import FileBytes, open_source, read_all, read_named, unchanged_since


def read(root, path):
    with open_source(root, path, "image-unreadable") as (descriptor, identity):
        return read_all(descriptor, identity, "image-changed")


def rejection(root, path):
    with pytest.raises(SourceError) as caught:
        read(root, path)
    assert caught.value.code == "image-unreadable"
    return caught.value.message


def test_a_file_is_read_whole(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    assert read(tmp_path, "a") == b"x" * 100_000


def test_a_link_inside_the_folder_is_followed(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    (tmp_path / "b").symlink_to("a")
    assert read(tmp_path, "b") == b"content"


def test_a_linked_folder_is_the_users_own_choice(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "a").write_bytes(b"content")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dicoms").symlink_to(tmp_path / "store")
    assert read(tmp_path / "data", "dicoms/a") == b"content"


def test_a_link_that_leads_out_is_refused(tmp_path):
    (tmp_path / "secret").write_bytes(b"content")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").symlink_to(tmp_path / "secret")
    assert "leads out" in rejection(tmp_path / "data", "a")


@pytest.mark.parametrize("kind", ["missing", "folder", "fifo", "loop", "dangling"])
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path, kind):
    path = tmp_path / "1.dcm"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "dangling":
        path.symlink_to(tmp_path / "nothing")
    words = {"folder": "is a folder", "fifo": "pipe"}.get(kind, "cannot be opened")
    assert words in rejection(tmp_path, "1.dcm")


def test_a_device_is_refused(tmp_path):
    with pytest.raises(SourceError, match="device"):
        read(tmp_path.parent.__class__("/dev"), "zero")


def test_a_file_that_changes_while_it_is_read_is_told(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"before")
    with open_source(tmp_path, "a", "image-unreadable") as (descriptor, identity):
        assert unchanged_since(descriptor, identity)
        with path.open("ab") as file:
            file.write(b" and after")
        assert not unchanged_since(descriptor, identity)
        with pytest.raises(SourceError) as caught:
            read_all(descriptor, identity, "image-changed")
        assert caught.value.code == "image-changed"


# ----------------------------------------------------------------------- files that users name


def test_a_named_file_is_read_up_to_its_bound(tmp_path):
    path = tmp_path / "card.toml"
    for content in (b"", b"x", bytes(MAX_SETTINGS_BYTES)):
        path.write_bytes(content)
        assert read_named(path, "Card") == content
    path.write_bytes(bytes(MAX_SETTINGS_BYTES + 1))
    with pytest.raises(EtlError) as caught:
        read_named(path, f"Card not usable: {path}")
    assert str(caught.value) == (
        f"Card not usable: {path}: has 1048577 bytes, expected 1048576 at most. Give a file that "
        "has nothing but the settings."
    )


def test_a_named_file_of_ten_gigabytes_is_refused_unread(tmp_path, monkeypatch):
    path = tmp_path / "link.csv"
    with path.open("wb") as file:
        file.truncate(10 << 30)
    monkeypatch.setattr(os, "read", None)
    with pytest.raises(EtlError, match=r"has 10737418240 bytes.* --limit table-bytes=10737418240"):
        read_named(path, "Table", limit="table-bytes")
    with pytest.raises(EtlError, match="has 10737418240 bytes, expected 1048576 at most"):
        read_named(path, "Card")


def test_a_file_that_has_more_than_the_system_says_is_read_up_to_the_bound():
    path = Path("/proc/self/maps")
    if not path.exists():
        pytest.skip("no /proc here")
    assert path.stat().st_size == 0
    assert len(read_named(path, "Table", limit="table-bytes")) > 1000
    with (
        limited((("table-bytes", 1000),)),
        pytest.raises(EtlError, match=r"has more than 1000 bytes.* --limit table-bytes=2000"),
    ):
        read_named(path, "Table", limit="table-bytes")


def test_a_named_pipe_is_refused_though_somebody_writes_into_it(tmp_path):
    path = tmp_path / "card.toml"
    os.mkfifo(path)
    # Whoever opens a pipe to write waits for a reader, which this test is at its end.
    writer = threading.Thread(target=path.write_bytes, args=(b"x",))
    writer.start()
    with pytest.raises(EtlError, match="is a device, pipe or socket, expected a regular file"):
        read_named(path, "Card")
    assert writer.is_alive()
    assert path.read_bytes() == b"x"
    writer.join()


@pytest.mark.parametrize("limit", [None, *(name for name in LIMITS if name == "table-bytes")])
def test_devices_and_folders_are_refused_with_what_is_expected(tmp_path, limit):
    for path, kind in ((Path("/dev/zero"), "a device, pipe or socket"), (tmp_path, "a folder")):
        with pytest.raises(EtlError) as caught:
            read_named(path, "Table", limit=limit, expected="the columns a,b")
        assert str(caught.value) == (
            f"Table: is {kind}, expected a file with the columns a,b. Give the name of a file."
        )


# ------------------------------------------------------------------------------ parts of a file


def stamped(root, path):
    with open_source(root, path, "image-unreadable") as (_, stamp):
        return FileBytes(root, path, stamp, "image-unreadable")


def test_parts_of_a_file_are_those_of_its_content(tmp_path):
    data = np.random.default_rng(1).bytes(3_000_000)
    (tmp_path / "a").write_bytes(data)
    with open_source(tmp_path, "a", "image-unreadable") as (descriptor, stamp):
        opened = FileBytes(tmp_path, "a", stamp, "image-unreadable", descriptor)
        for found in (opened, stamped(tmp_path, "a")):
            assert len(found) == len(data)
            for part in (slice(None), slice(5, 10), slice(10, 5), slice(2_999_990, 4_000_000)):
                assert found[part] == data[part]
            assert found.digest() == xxhash.xxh3_128_hexdigest(data)


def test_parts_are_of_one_state_of_the_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"before")
    found = stamped(tmp_path, "a")
    assert found[:3] == b"bef"
    path.write_bytes(b"after, and longer")
    with pytest.raises(SourceError, match="changed while it was read"):
        found[:3]
    path.unlink()
    with pytest.raises(SourceError, match="cannot be opened"):
        found[:3]
