"""Many clean phantoms: no check of quality says anything about any of them."""

import pytest

import etl
from etl.options import BuildOptions
from etl.phantom.tree import write_phantom

BOTH, INNER = ("i", "o"), ("i",)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    ("shape", "contours"),
    [
        ((3, 6, 3), BOTH),
        ((6, 1, 2), BOTH),
        ((2, 3, 1), BOTH),
        ((1, 10, 2), BOTH),
        ((3, 4, 2), INNER),
    ],
    ids=str,
)
def test_a_clean_phantom_gives_nothing(tmp_path, shape, contours, seed):
    patients, slices, phases = shape
    root = tmp_path / "data"
    write_phantom(root, patients=patients, slices=slices, phases=phases, seed=seed)
    options = BuildOptions(contours, partial=len(contours) > 1)
    result = etl.build(root, tmp_path / "out.h5", options)
    assert [one for one in result.findings if one.severity != "info"] == []
