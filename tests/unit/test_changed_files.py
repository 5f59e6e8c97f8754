"""A file that changes while it is open, on every path of the loader."""

import contextlib
import multiprocessing
import os
import shutil
import sys

import numpy as np
import pytest
from dataset_builder import wait_until_prepared, write_dataset

import loader
import loader.dataset
from loader.feed import Gatherer
from loader.format import Attribute

N, SIDE = 12, 64
FLAGS = {Attribute.FLAG_CODES: '["area-jump"]'}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Return a folder with two files, as of long ago.

    Two writes within one tick of the clock look the same.
    """
    folder = tmp_path_factory.mktemp("files")
    for name, offset in (("out.h5", 0), ("other.h5", 1000)):
        write_dataset(folder / name, N, SIDE, SIDE, offset=offset, attributes=FLAGS)
        os.utime(folder / name, (10**9, 10**9))
    return folder


@pytest.fixture
def path(files, tmp_path):
    for name in ("out.h5", "other.h5"):
        shutil.copy2(files / name, tmp_path / name)
    return tmp_path / "out.h5"


def overwrite(path):
    """Write other bytes of the same size into the same file, as `rsync --inplace` does.

    Not as `cp` does, which empties the file first: a thread that prepares batches could see that
    moment, and its message would be another one.
    """
    data = path.with_name("other.h5").read_bytes()
    assert path.stat().st_size == len(data)
    with path.open("r+b") as file:
        file.write(data)


def write_one_byte(path):
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")


def append(path):
    with path.open("ab") as file:
        file.write(b"\x01")


def cut_short(path):
    os.truncate(path, 65536)


WRITTEN = "written to while it was open, so that samples may be wrong .expected .* found "
SHORT = "cut short while it was open .expected .* found 65536"
CHANGES = [(overwrite, WRITTEN), (write_one_byte, WRITTEN), (append, WRITTEN), (cut_short, SHORT)]

READS = {
    "sample": lambda data: data[3],
    "column": lambda data: data.manifest["slice"],
    "text": lambda data: data.manifest["patient_id"],
    "column or default": lambda data: data.manifest.get("slice"),
    "columns": lambda data: data.manifest.values(),
    "named columns": lambda data: data.findings.items(),
    "dict": lambda data: dict(data.contours),
    "joined": lambda data: data.manifest | {},
    "stored": lambda data: data.manifest.stored,
    "copy": lambda data: data.manifest.copy()["slice"],
    "polygons": lambda data: data.polygons(3),
    "flagged": lambda data: data.flagged("area-jump"),
    "label counts": lambda data: data.label_counts([1, 2]),
    "what an update needs": lambda data: data.reuse.stored,
    "columns against digests": lambda data: data.damaged_columns(),
    "check": lambda data: data.check_whole(),
    "batches": lambda data: loader.Batches(data, batch_size=4),
}


@pytest.mark.parametrize(("change", "why"), CHANGES)
@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_what_a_changed_file_is_asked_for_is_refused(path, read, change, why):
    data = loader.open_dataset(path)
    read(data)
    change(path)
    with pytest.raises(loader.LoaderError, match=f"^Dataset not usable: {path}.*{why}") as caught:
        read(data)
    assert "Open the file again once it is whole" in str(caught.value)
    assert repr(data)
    assert repr(data.manifest)


FORMS = {
    "stored": {},
    "prefetch": {"prefetch": 2},
    "float32": {"dtype": "float32"},
    "normalised": {"normalize": "zscore"},
    "augmented": {"augment": loader.Augment(flip_rows=0.5)},
    "patches": {"patches": loader.Patches((16, 16), foreground=0.5)},
    "weighted": {"balance": "patient"},
    "file order": {"shuffle": False},
}


@pytest.mark.parametrize(("change", "why"), CHANGES)
@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS)
def test_batches_of_a_changed_file_are_refused(path, options, change, why):
    with loader.Batches(path, batch_size=2, **options) as batches:
        batches.next_batch()
        wait_until_prepared(batches)
        change(path)
        drawn = []
        with pytest.raises(loader.LoaderError, match=why):
            drawn.extend(batches)
        assert len(drawn) == options.get("prefetch", 0)  # prepared before
        assert batches.state_dict()["batch"] == 1 + len(drawn)
        with pytest.raises(loader.LoaderError, match=why):
            batches.next_batch()


@pytest.mark.parametrize("prefetch", [0, 3])
def test_batches_that_were_prepared_before_a_change_are_whole(path, prefetch):
    with loader.Batches(path, batch_size=2, prefetch=prefetch, layout="NHW") as batches:
        images = loader.open_dataset(path).images.copy()
        handed_out = [(batches.next_batch()[0], batches.indices)]
        overwrite(path)
        with pytest.raises(loader.LoaderError, match=WRITTEN):
            handed_out.extend((found, batches.indices) for found, _ in batches)
    for found, rows in handed_out:
        np.testing.assert_array_equal(found, images[rows])


@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_batch_during_which_the_file_changes_is_not_handed_out(path, monkeypatch, prefetch):
    fill = Gatherer._fill_images

    def fill_and_overwrite(self, rows, images):
        fill(self, rows, images)
        overwrite(path)

    monkeypatch.setattr(Gatherer, "_fill_images", fill_and_overwrite)
    with loader.Batches(path, batch_size=2, prefetch=prefetch) as batches:
        with pytest.raises(loader.LoaderError, match=WRITTEN):
            batches.next_batch()
        assert batches.state_dict()["batch"] == 0


def test_a_file_that_is_written_to_while_it_is_opened_is_refused(path, monkeypatch):
    read = loader.dataset.read_contents

    def read_and_overwrite(buffer, name):
        contents = read(buffer, name)
        overwrite(path)
        return contents

    monkeypatch.setattr(loader.dataset, "read_contents", read_and_overwrite)
    with pytest.raises(loader.LoaderError, match=WRITTEN):
        loader.open_dataset(path)


def rename_over(path):
    os.replace(path.with_name("other.h5"), path)


@pytest.mark.parametrize("change", [rename_over, os.unlink, lambda path: path.chmod(0o400)])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_another_file_of_the_same_name_is_no_change(path, change, prefetch):
    data = loader.open_dataset(path)
    images, masks = data.images.copy(), data.masks.copy()
    with loader.Batches(data, batch_size=4, layout="NHW", prefetch=prefetch) as batches:
        change(path)
        for _ in range(9):  # three epochs
            found = batches.next_batch()
            np.testing.assert_array_equal(found[0], images[batches.indices])
            np.testing.assert_array_equal(found[1], masks[batches.indices])
    assert data.manifest["slice"].tolist() == list(range(N))
    assert data[3][0][0, 0] == 3
    if change is rename_over:
        assert loader.open_dataset(path)[3][0][0, 0] == 1003


def test_reading_a_file_is_no_change(path):
    data = loader.open_dataset(path)
    path.read_bytes()
    os.utime(path, ns=(1, path.stat().st_mtime_ns))
    assert data[3][0][0, 0] == 3


# The descriptor


def n_open(path):
    """Count the descriptors of a file; those of others may close at any moment."""
    found = 0
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that lists the folder is closed
            found += os.readlink(f"/proc/self/fd/{descriptor}") == str(path)
    return found


on_linux = pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="descriptors not told")


@on_linux
def test_nothing_stays_open_of_what_is_dropped(path):
    data = loader.open_dataset(path)
    assert n_open(path) == 2  # of the memory map and ours
    image = data[3][0]
    del data
    assert n_open(path) == 1  # an array holds the map
    del image
    assert n_open(path) == 0


@on_linux
@pytest.mark.parametrize("content", [b"", b"no HDF5"])
def test_nothing_stays_open_of_what_cannot_be_opened(path, content):
    path.write_bytes(content)
    with pytest.raises(loader.LoaderError, match="Dataset not opened"):
        loader.open_dataset(path)
    assert n_open(path) == 0


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors are handles there")
@pytest.mark.parametrize("is_used_again", [False, True])
def test_a_descriptor_that_the_process_has_closed_is_told(path, is_used_again):
    data = loader.open_dataset(path)
    descriptor = data.file._descriptor
    os.close(descriptor)
    if is_used_again:
        with path.with_name("other.h5").open("rb") as other:
            os.dup2(other.fileno(), descriptor)
    with pytest.raises(loader.LoaderError, match="this process has closed the file's descriptor"):
        data[3]


def draw_before_and_after(batches, connection):
    batches.next_batch()
    connection.send("drawn")
    connection.recv()
    try:
        batches.next_batch()
        connection.send("drawn")
    except loader.LoaderError as error:
        connection.send(str(error))


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("start_method", multiprocessing.get_all_start_methods())
@pytest.mark.parametrize("change", [overwrite, rename_over])
def test_other_processes_check_too(path, start_method, change):
    """A forked process has the descriptor, any other one opens the file again."""
    context = multiprocessing.get_context(start_method)
    batches = loader.Batches(path, batch_size=4)
    ours, theirs = context.Pipe()
    process = context.Process(target=draw_before_and_after, args=(batches, theirs))
    process.start()
    try:
        outcomes = []
        for _ in range(2):
            assert ours.poll(300), "the process hangs"
            outcomes.append(ours.recv())
            if len(outcomes) == 1:
                change(path)
                ours.send("go on")
        process.join(300)
    finally:
        process.kill()
    assert outcomes[0] == "drawn"
    assert ("written to while it was open" if change is overwrite else "drawn") in outcomes[1]
