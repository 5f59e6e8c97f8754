import errno
import os

import numpy as np
import pytest

from etl import render
from etl.model import Region, Sample
from etl.output import hdf5_file
from etl.output.row_writer import begin_writeback, open_rows, write_rows


@pytest.fixture
def plan(tmp_path):
    return hdf5_file.create(tmp_path / "out.h5", 5, 3, 4, "<i2", 7)


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the platform has no posix_fadvise")
def test_the_disk_begins_on_just_the_rows_that_were_written(plan, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, *what: asked.append(what))
    rows = np.arange(24, dtype="<i2").reshape(2, 3, 4)
    with open_rows(plan) as file:
        write_rows(file, plan, "images", 1, rows)
        begin_writeback(file, plan, "images", 1, 2)
    ((offset, length, advice),) = asked
    with open(plan.path, "rb") as file:
        file.seek(offset)
        assert file.read(length) == rows.tobytes()
    assert advice == os.POSIX_FADV_DONTNEED


def refuse(*_):
    raise OSError(errno.ENOSYS, "Function not implemented")


@pytest.mark.parametrize("advise", [None, refuse])
def test_rows_are_written_where_the_system_takes_no_advice(plan, monkeypatch, advise):
    monkeypatch.setattr(os, "posix_fadvise", advise, raising=False)
    if advise is None:
        monkeypatch.delattr(os, "posix_fadvise")
    with open_rows(plan) as file:
        write_rows(file, plan, "masks", 4, np.ones((1, 3, 4), np.uint8))
        begin_writeback(file, plan, "masks", 4, 1)


def test_huge_contours_are_rasterised_in_groups(monkeypatch):
    monkeypatch.setattr(render, "_MAX_VERTICES", 10)
    regions = [Region(1, (np.zeros((n, 2)),), "") for n in (3, 3, 11, 3, 8)]
    samples = [Sample(None, None, None, (region,)) for region in regions]
    groups = [len(group) for group in render._groups(samples)]
    assert groups == [3, 2]
