"""How many pixels have each label."""

import h5py
import numpy as np
import pytest
from dataset_builder import CARDIAC, with_bits, write_dataset

import loader
from loader.format import Attribute

N = 9


def expected(masks):
    return {code: int((masks == code).sum()) for code in (0, 1, 2)}


@pytest.mark.parametrize("rows", [None, [2, 5, 8], [3, 3], [], np.arange(0), np.arange(N) % 2 == 0])
def test_counts_are_those_of_the_masks(tmp_path, rows):
    masks = write_dataset(tmp_path / "out.h5", n=N)["masks"]
    counts = loader.open_dataset(tmp_path / "out.h5").label_counts(rows)
    assert counts == expected(masks if rows is None else masks[rows])
    assert list(counts) == [0, 1, 2]


@pytest.mark.parametrize("rows", [None, [3, 3], np.arange(N) % 2 == 0])
def test_a_pixel_of_a_bit_mask_counts_for_each_of_its_structures(tmp_path, rows):
    masks = write_dataset(tmp_path / "out.h5", n=N, structures=with_bits(CARDIAC))["masks"]
    counts = loader.open_dataset(tmp_path / "out.h5").label_counts(rows)
    masks = masks if rows is None else masks[rows]
    assert counts == {
        0: int((masks == 0).sum()),
        1: int((masks & 1 != 0).sum()),
        2: int((masks & 2 != 0).sum()),
    }
    assert sum(counts.values()) > masks.size


def test_pixels_that_are_not_known_are_not_counted(tmp_path):
    path = tmp_path / "out.h5"
    is_drawn = np.arange(N) % 3 > 0
    version_2 = {Attribute.MIN_READER_VERSION: 2}
    masks = write_dataset(path, n=N, manifest={"drawn_1": is_drawn}, attributes=version_2)["masks"]
    masks[~is_drawn] = np.where(masks[~is_drawn] == 0, 255, masks[~is_drawn])
    with h5py.File(path, "r+") as file:
        file["masks"][...] = masks
    counts = loader.open_dataset(path).label_counts()
    assert counts == expected(masks)
    assert sum(counts.values()) < masks.size
