import os

import numpy as np
import pytest

from etl import write
from etl.rows import begin_writeback, open_rows, write_rows


@pytest.fixture
def plan(tmp_path):
    return write.create(tmp_path / "out.h5", 5, 3, 4, "<i2", 7)


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


def test_rows_are_written_where_the_platform_gives_no_advice(plan, monkeypatch):
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    with open_rows(plan) as file:
        write_rows(file, plan, "masks", 4, np.ones((1, 3, 4), np.uint8))
        begin_writeback(file, plan, "masks", 4, 1)
