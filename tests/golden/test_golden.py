import json
from pathlib import Path

import numpy as np
import pytest
from golden import make
from version_1 import compare

from loader import open_dataset

FOLDER = Path(__file__).parent


@pytest.mark.parametrize("version", [1, 2])
def test_a_file_of_any_version_is_read_as_it_was_written(version):
    found = make.content(FOLDER / f"v{version}.h5")
    assert found == json.loads((FOLDER / f"v{version}.json").read_text())
    assert open_dataset(FOLDER / f"v{version}.h5").attributes["format_version"] == version


@pytest.mark.parametrize("version", [1, 2])
def test_digests_of_any_version_are_those_of_its_columns(version):
    assert len(open_dataset(FOLDER / f"v{version}.h5", verify="columns")) > 0


@pytest.mark.parametrize("version", [1, 2])
def test_structures_of_any_version_are_the_same(version):
    structures = open_dataset(FOLDER / f"v{version}.h5").structures
    assert [(one.name, one.code, one.label, one.stem, one.meaning) for one in structures] == [
        ("o-contour", 2, 2, "ocontour", "muscle (inside the o-contour, not the i-contour)"),
        ("i-contour", 1, 1, "icontour", "blood pool (inside the i-contour)"),
    ]


@pytest.mark.parametrize("version", [1, 2])
def test_the_same_input_still_gives_the_same_rows(tmp_path, version):
    make.build(tmp_path / "now.h5")
    now = make.content(tmp_path / "now.h5")
    then = json.loads((FOLDER / f"v{version}.json").read_text())
    for name in ("dataset_id", "images", "masks", "manifest/split", "manifest/fold"):
        assert now[name] == then[name]
    for name in ("manifest/mean", "manifest/std", "manifest/p01", "manifest/icontour_area"):
        assert now[name] == pytest.approx(then[name], rel=1e-15)


def test_a_build_still_gives_all_that_version_1_had(tmp_path):
    """What is new since: contours that are alike are told, and cosines that are no directions."""
    make.build(tmp_path / "now.h5", as_version_1=True)
    found = compare.differences(FOLDER / "v1.h5", tmp_path / "now.h5")
    new = ("identical-contour", "geometry-missing")
    assert [line for line in found if not any(code in line for code in new)] == ["manifest/flags"]
    then, now = open_dataset(FOLDER / "v1.h5"), open_dataset(tmp_path / "now.h5")
    is_alike = now.flagged("identical-contour")
    bit = now.attributes["flag_codes"].index("identical-contour")
    flags = then.manifest["flags"] | is_alike.astype(np.uint64) << np.uint64(bit)
    assert now.manifest["flags"].tolist() == flags.tolist()


def test_what_is_not_as_in_version_1_is_found(tmp_path):
    make.build(tmp_path / "now.h5")  # contours drawn differently
    found = set(compare.differences(FOLDER / "v1.h5", tmp_path / "now.h5"))
    assert {"contours/x", "contours/length", "manifest/icontour_xxh3"} <= found
    assert not found & {"images", "masks", "manifest/row_xxh3", "attribute dataset_id"}
