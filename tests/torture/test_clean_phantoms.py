"""Many clean phantoms: no check of quality says anything about any of them."""

import pytest

import etl
from etl.options import BuildOptions
from etl.phantom.objects import write_shapes
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


@pytest.mark.parametrize("seed", range(2, 10))  # the first: test_exchanged.py, test_half_pixel.py
@pytest.mark.parametrize(
    ("patients", "slices", "size", "codes"),
    [
        (6, 9, (88, 112), {"structures-exchanged"}),
        (3, 8, (176, 224), {"alignment-dataset", "alignment-patient", "contours-misfit"}),
    ],
    ids=["exchanged", "half a pixel"],
)
def test_clean_shapes_give_nothing(tmp_path, patients, slices, size, codes, seed):
    rows, columns = size
    data = tmp_path / "data"
    write_shapes(data, patients=patients, slices=slices, seed=seed, rows=rows, columns=columns)
    result = etl.build(data, tmp_path / "out.h5", BuildOptions(rows=rows, columns=columns))
    assert not codes & {one.code for one in result.findings}
