"""Pixels of structures by their number, against the list of them all."""

import multiprocessing

import numpy as np
import pytest
from dataset_builder import CARDIAC, write_dataset

import loader
from loader.foreground import Foreground
from loader.format import Structure

FEW = CARDIAC[::-1]
MANY = tuple(Structure(f"s{code}", code, f"s{code}", f"s{code}") for code in range(1, 21))


def opened(path, **options):
    write_dataset(path, **{"n": 9, "rows": 8, "columns": 11} | options)
    return loader.open_dataset(path)


@pytest.mark.parametrize(
    ("wanted", "options"),
    [(FEW[:1], {}), (FEW, {}), (MANY[:19], {"structures": MANY})],
)
def test_each_pixel_has_its_number(tmp_path, wanted, options):
    dataset = opened(tmp_path / "out.h5", **options)
    foreground, codes = Foreground(dataset, wanted), [one.code for one in wanted]
    for row, mask in enumerate(dataset.masks):
        pixels = np.argwhere(np.isin(mask, codes))
        shares = (np.arange(len(pixels)) + 0.5) / len(pixels)
        for _ in range(2):  # before and after the row is counted
            found, named = foreground.pixels(np.full(len(pixels), row), shares)
            assert found.tolist() == list(range(len(pixels)))
            np.testing.assert_array_equal(named, pixels)


def test_rows_without_such_pixels_have_none(tmp_path):
    path = tmp_path / "out.h5"
    arrays = write_dataset(path, n=9, rows=4, columns=5, structures=MANY)
    dataset = loader.open_dataset(path)
    has_any = (arrays["masks"] == 3).any(axis=(1, 2))
    assert 0 < has_any.sum() < 9
    found, pixels = Foreground(dataset, MANY[2:3]).pixels(np.arange(9), np.zeros(9))
    assert found.tolist() == np.flatnonzero(has_any).tolist()
    assert len(pixels) == len(found)
    none = np.flatnonzero(~has_any)
    assert len(Foreground(dataset, MANY[2:3]).pixels(none, np.zeros(len(none)))[0]) == 0
    assert len(Foreground(dataset, MANY[2:3]).pixels(none[:0], np.zeros(0))[0]) == 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_masks_are_counted_once_for_all_forked_processes(tmp_path, monkeypatch):
    foreground = Foreground(opened(tmp_path / "out.h5"), CARDIAC)
    rows = np.arange(9)
    process = multiprocessing.get_context("fork").Process(
        target=foreground.pixels, args=(rows, np.zeros(9))
    )
    process.start()
    process.join()
    monkeypatch.setattr(Foreground, "_count", None)
    assert len(foreground.pixels(rows, np.zeros(9))[0]) == 9
