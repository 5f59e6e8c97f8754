"""Contours in other coordinates than the image's: --contour-transform mends them."""

import json

import numpy as np
import pytest
from builders import contour_path, copy_tree, write_tree
from click.testing import CliRunner

import etl
import loader
from etl.cli import cli
from etl.options import BuildOptions
from etl.sources import layouts, table

SPACING = np.array([1.5, 1.25])  # of builders.instance: between columns, between rows


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Return a tree of small images that are not square, and its masks."""
    folder = tmp_path_factory.mktemp("transform")
    root = write_tree(folder / "data", slices=range(1, 4))
    return root, build(root, folder / "clean.h5")


def build(root, out, **options):
    options = BuildOptions(**{"contours": ("i", "o"), "rows": 12, "columns": 14} | options)
    etl.build(root, out, options, force=True)
    return loader.open_dataset(out)


def rewrite(root, change):
    for path in root.glob("contourfiles/*/*/*.txt"):
        np.savetxt(path, change(np.loadtxt(path, ndmin=2)), "%.9f")


@pytest.mark.parametrize(
    ("steps", "written"),
    [
        ("swap", lambda v: v[:, ::-1]),
        ("flip-x", lambda v: [13, 0] + v * [-1, 1]),
        ("flip-y", lambda v: [0, 11] + v * [1, -1]),
        ("rotate-90", lambda v: [0, 11] + v[:, ::-1] * [1, -1]),
        ("scale=2", lambda v: v / 2),
        ("mm", lambda v: v * SPACING),
        ("swap,mm", lambda v: (v * SPACING)[:, ::-1]),
        ("mm,flip-x", lambda v: ([13, 0] + v * [-1, 1]) * SPACING),
    ],
)
@pytest.mark.parametrize("origin", [0, 1])
def test_a_build_with_the_transform_gives_the_clean_masks_and_records_it(
    clean, tmp_path, steps, written, origin
):
    root, expected = clean
    copy = copy_tree(root, tmp_path / "data")
    rewrite(copy, lambda vertices: written(vertices) + origin)
    steps = tuple(steps.split(","))
    data = build(copy, tmp_path / "out.h5", contour_transform=steps, contour_origin=origin)
    assert np.array_equal(data.masks, expected.masks)
    np.testing.assert_allclose(data.polygons(0)[0][1], expected.polygons(0)[0][1], atol=1e-6)
    assert data.attributes["options"]["contour_transform"] == list(steps)
    arguments = ["verify", str(tmp_path / "out.h5"), "--source", str(copy), "--rebuild-check"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output


def test_millimetres_without_a_spacing_are_an_error_that_says_so(tmp_path):
    root = write_tree(tmp_path / "data", PixelSpacing=None)
    options = BuildOptions(rows=12, columns=14, contour_transform=("mm",))
    with pytest.raises(etl.EtlError, match="contour-no-spacing") as caught:
        etl.build(root, tmp_path / "out.h5", options)
    findings = [one for one in caught.value.findings if one.code == "contour-no-spacing"]
    assert [one.path for one in findings] == [contour_path("A1", n) for n in (1, 2, 3)]
    assert "PixelSpacing" in findings[0].message


def test_the_command_takes_steps_and_refuses_others(clean, tmp_path):
    root, expected = clean
    out = tmp_path / "out.h5"
    command = ["build", str(root), str(out), "--size", "12x14", "--contours", "i,o"]
    steps = "swap, flip-x,flip-x,swap"
    result = CliRunner().invoke(cli, [*command, "--contour-transform", steps])
    assert result.exit_code == 0
    data = loader.open_dataset(out)
    assert np.array_equal(data.masks, expected.masks)
    assert data.attributes["options"]["contour_transform"] == steps.replace(" ", "").split(",")
    result = CliRunner().invoke(cli, [*command, "--force", "--contour-transform", "turn"])
    assert result.exit_code == 2
    assert "expected steps of swap, flip-x" in result.stderr


def test_a_source_without_text_contours_refuses_a_transform():
    source = layouts.LAYOUTS["table"]
    assert layouts.settle(source, BuildOptions(contour_transform=("swap",)))
    other = table.Source("other", *[source.recognises, source.settle, source.discover], None)
    with pytest.raises(etl.EtlError, match="layout other has no text contours"):
        layouts.settle(other, BuildOptions(contour_transform=("swap",)))
    assert layouts.settle(other, BuildOptions()) == source.settle(BuildOptions())
    assert json.dumps(BuildOptions().to_json()["contour_transform"]) == "[]"
