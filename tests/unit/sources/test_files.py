import os

import pytest

from etl.errors import SourceError
from etl.sources.files import open_source, read_all, unchanged_since


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
