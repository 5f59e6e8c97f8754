import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from builders import COLUMNS, ROWS, SQUARE, dicom_bytes, gradient, instance, write_tree
from click.testing import CliRunner
from PIL import Image

import etl
from etl.cli import cli
from etl.errors import EtlError
from etl.options import BuildOptions
from etl.phantom.objects import write_shapes
from etl.sources import layouts
from loader import open_dataset

EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.fixture
def link_root(tmp_path):
    return write_tree(tmp_path / "link")


@pytest.fixture
def table_root(tmp_path):
    root = tmp_path / "table"
    root.mkdir()
    (root / "table.csv").write_text("patient_id,image,label,contour\nP1,a.dcm,heart,a.txt\n")
    (root / "a.dcm").write_bytes(dicom_bytes())
    (root / "a.txt").write_text(SQUARE)
    return root


def test_names_decide_and_the_choice_is_said(link_root, table_root):
    source, why = layouts.choose(link_root)
    assert (source.name, why) == ("link", "Layout link: found link.csv.")
    for data in (table_root, table_root / "table.csv"):
        source, why = layouts.choose(data)
        assert (source.name, why) == ("table", "Layout table: found table.csv.")


def test_two_that_fit_are_refused_with_the_candidates(link_root, table_root):
    (link_root / "table.csv").write_bytes((table_root / "table.csv").read_bytes())
    with pytest.raises(EtlError, match=r"link \(link\.csv\), table \(table\.csv\).*`layout`"):
        layouts.choose(link_root)
    assert layouts.choose(link_root, "link")[0].name == "link"
    assert layouts.choose(link_root, "table")[0].name == "table"


def test_none_that_fits_is_refused_with_what_was_looked_for(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "scan.dcm").touch()
    for name in ("empty", "scan.dcm"):
        with pytest.raises(
            EtlError, match=r"no layout fits.*link\.csv, table\.csv, RT Structure Sets"
        ):
            layouts.choose(tmp_path / name)
    with pytest.raises(EtlError, match="no such file or folder"):
        layouts.choose(tmp_path / ("x" * 300))
    with pytest.raises(
        ValueError,
        match="expected one of 'auto', 'link', 'table', 'rtstruct', 'seg', found 'tabel'",
    ):
        layouts.choose(tmp_path, "tabel")


def test_the_command_line_offers_the_layouts_there_are():
    (option,) = (one for one in cli.commands["build"].params if one.name == "layout")
    assert option.type.choices == (layouts.AUTO, *layouts.LAYOUTS)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_source_of_ones_own_with_masks(tmp_path, monkeypatch, workers):
    """The documentation's example builds, in other processes as well."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "mask_source", raising=False)
    from mask_source import SOURCE

    monkeypatch.setitem(layouts.LAYOUTS, "masks", SOURCE)
    masks = np.random.default_rng(3).random((40, ROWS, COLUMNS)) < 0.3
    for number, mask in enumerate(masks):
        folder = tmp_path / "data" / f"P{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        dataset = instance(gradient(seed=number), uid=f"1.2.{number}")
        (folder / f"{number}.dcm").write_bytes(dicom_bytes(dataset))
        if number % 10:
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{number}.png")
    Image.fromarray(np.zeros((3, 4), np.uint8)).save(tmp_path / "data" / "P1" / "1.png")
    (tmp_path / "data" / "P2" / "2.png").write_bytes(b"not a picture")
    options = etl.BuildOptions(rows=ROWS, columns=COLUMNS, audit=False)
    result = etl.build(tmp_path / "data", tmp_path / "out.h5", options, workers=workers)
    data = open_dataset(tmp_path / "out.h5")
    kept = [n for n in range(40) if n % 10 and n not in {1, 2}]
    kept.sort(key=lambda n: (n % 3, n))
    assert data.manifest["slice"].tolist() == kept
    assert np.array_equal(data.masks, masks[kept])
    assert data.manifest["label1_area"].tolist() == masks[kept].sum(axis=(1, 2)).tolist()
    assert data.polygons(0) == []
    errors = {f.code: f.path for f in result.findings if f.severity == "error"}
    assert errors == {"mask-size": "P1/1.png", "contour-unreadable": "P2/2.png"}
    assert sum(f.code == "image-no-contour" for f in result.findings) == 4


def test_a_command_looks_for_the_layout_once_and_opens_each_file_once_for_its_index(
    tmp_path, monkeypatch
):
    write_shapes(tmp_path / "data", "rtstruct", patients=1, slices=4)
    opened, real = Counter(), os.open

    def note(path, *arguments, **keywords):
        if str(path).endswith(".dcm"):
            opened[Path(path).name] += 1
        return real(path, *arguments, **keywords)

    monkeypatch.setattr(os, "open", note)
    source, _ = layouts.choose(tmp_path / "data")
    found = source.discover(tmp_path / "data", BuildOptions())
    for path in found.to_index:
        if path.endswith(".dcm"):
            source.index(found.root, path)
    assert set(opened.values()) == {2}  # to find the layout, and for the index
    opened.clear()
    out = str(tmp_path / "out.h5")
    # The cache reads the first bytes of eight sources.
    command = ["build", str(tmp_path / "data"), out, "--workers", "1", "--no-cache"]
    assert CliRunner().invoke(cli, command).exit_code == 0
    assert max(opened[f"{n}.dcm"] for n in (1, 2, 3, 4)) == 4  # and to be examined and rendered
