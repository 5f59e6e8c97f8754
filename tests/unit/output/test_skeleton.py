import io
import itertools

import h5py
import numpy as np
import pytest

from etl.output.skeleton import Skeleton, _Memory, text_dtype


def filled(skeleton, values):
    """Return the whole file: metadata, and the values at their offsets."""
    content = bytearray(skeleton.size)
    for offset, data in skeleton.regions():
        content[offset : offset + len(data)] = data
    for name, array in values.items():
        offset = skeleton.offsets[name]
        content[offset : offset + array.nbytes] = array.tobytes()
    return bytes(content)


def make():
    skeleton = Skeleton()
    with skeleton.opened(align_from=1) as steps:
        steps.add_dataset("images", (2, 3), np.dtype("<i2"))
    with skeleton.opened() as steps:
        steps.add_group("texts")
        steps.add_dataset("texts/name", (2,), text_dtype(5))
        steps.add_dataset("texts/none", (0,), np.dtype("<f8"))
    with skeleton.opened() as steps:
        steps.set_attribute("word", "Größe" * 300)
        steps.set_attribute("number", 2.5)
    return skeleton


def test_values_written_at_the_offsets_are_what_hdf5_reads():
    skeleton = make()
    images = np.arange(6, dtype="<i2").reshape(2, 3)
    names = np.array(["Ärm".encode(), b"x"], "S5")
    with h5py.File(io.BytesIO(filled(skeleton, {"images": images, "texts/name": names}))) as file:
        assert file["images"][()].tolist() == images.tolist()
        assert file["texts/name"].asstr()[()].tolist() == ["Ärm", "x"]
        assert file["texts/none"].shape == (0,)
        assert file.attrs["word"].decode() == "Größe" * 300
        assert file.attrs["number"] == 2.5
    assert skeleton.offsets["images"] % 65536 == 0


def test_the_same_steps_give_the_same_bytes_and_no_dataset_lies_in_the_metadata():
    one, two = make(), make()
    assert (one.regions(), one.offsets, one.size) == (two.regions(), two.offsets, two.size)
    taken = [(offset, offset + len(data)) for offset, data in one.regions()]
    taken += [(one.offsets["images"], one.offsets["images"] + 12)]
    taken += [(one.offsets["texts/name"], one.offsets["texts/name"] + 10)]
    taken.sort()
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(taken))


def test_a_dataset_of_terabytes_takes_no_memory():
    skeleton = Skeleton()
    with skeleton.opened() as steps:
        steps.add_dataset("images", (1 << 26, 256, 256), np.dtype("<i2"))
        steps.add_dataset("masks", (1 << 26, 256, 256), np.dtype("|u1"))
    assert skeleton.size > 1 << 43
    assert sum(len(data) for _, data in skeleton.regions()) < 1 << 16


@pytest.mark.parametrize("seed", range(20))
def test_memory_is_as_a_file_is(seed):
    rng = np.random.default_rng(seed)
    memory, file = _Memory(), io.BytesIO()
    written = np.zeros(400, bool)
    for step in range(60):
        offset, length = int(rng.integers(200)), int(rng.integers(1, 50))
        data = bytes([step + 1]) * length
        for one in (memory, file):
            assert one.seek(offset) == one.tell() == offset
            assert one.write(memoryview(data)) == length
        written[offset : offset + length] = True
    assert memory.seek(0, 2) == file.seek(0, 2) == memory.size
    for one in (memory, file):
        one.seek(30)
    assert memory.read(150) == file.read(150)
    for one in (memory, file):
        one.truncate(180)
    found = np.zeros(400, bool)
    content = bytearray(180)
    for offset, data in memory.regions():
        assert not found[offset : offset + len(data)].any()
        found[offset : offset + len(data)] = True
        content[offset : offset + len(data)] = data
    assert content == file.getvalue()
    assert (found[:180] == written[:180]).all()
    assert not found[180:].any()
