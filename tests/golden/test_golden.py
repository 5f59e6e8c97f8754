import json
from pathlib import Path

import pytest
from golden import make

FOLDER = Path(__file__).parent


def test_a_file_of_version_1_is_read_as_it_was_written():
    assert make.content(FOLDER / "v1.h5") == json.loads((FOLDER / "v1.json").read_text())


def test_the_same_input_still_gives_the_same_rows(tmp_path):
    make.build(tmp_path / "now.h5")
    now = make.content(tmp_path / "now.h5")
    then = json.loads((FOLDER / "v1.json").read_text())
    for name in ("dataset_id", "images", "masks", "manifest/split", "manifest/fold"):
        assert now[name] == then[name]
    for name in ("manifest/mean", "manifest/std", "manifest/p01", "manifest/icontour_area"):
        assert now[name] == pytest.approx(then[name], rel=1e-15)
