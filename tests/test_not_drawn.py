"""Not drawn is not background: --not-drawn ignore."""

import json

import numpy as np
import pytest
from builders import OUTER_SQUARE, SQUARE, contour_path, write_contour, write_tree
from click.testing import CliRunner

import etl
import loader
from etl.cli import cli
from etl.contours.rasterise import label_maps, rasterise
from etl.labels import LabelScheme, cardiac_scheme
from etl.model import Region
from etl.options import BuildOptions
from etl.report.overlays import overlay
from loader.format import IGNORE, Structure

INNER, OUTER = (
    np.array([line.split() for line in text.splitlines()], float) for text in (SQUARE, OUTER_SQUARE)
)
INSIDE, AROUND = (rasterise(vertices, 12, 14) for vertices in (INNER, OUTER))
FAR = np.array([[11.5, 9.5], [13.5, 9.5], [13.5, 11.5], [11.5, 11.5]])  # outside of both


def painted(scheme, not_drawn="ignore", **drawn):
    """Return the label map of regions, given by the names of their structures."""
    codes = {structure.name.replace("-", "_"): structure.code for structure in scheme}
    regions = [Region(codes[name], (vertices,), "") for name, vertices in drawn.items()]
    told = [{region.code for region in regions}] if not_drawn == "ignore" else None
    (only,) = label_maps([regions], scheme, 12, 14, "center", told)
    return only.mask


class TestCardiac:
    scheme = cardiac_scheme(("i", "o"))

    def test_both_drawn_leaves_nothing_to_ignore(self):
        drawn = {"i_contour": INNER, "o_contour": OUTER}
        found = painted(self.scheme, **drawn)
        assert np.array_equal(found, painted(self.scheme, "background", **drawn))
        assert np.array_equal(found, np.where(INSIDE, 1, np.where(AROUND, 2, 0)))

    def test_inner_missing_is_doubtful_only_inside_the_outer(self):
        found = painted(self.scheme, o_contour=OUTER)
        assert np.array_equal(found, np.where(AROUND, IGNORE, 0))

    def test_outer_missing_is_doubtful_wherever_the_inner_is_not(self):
        found = painted(self.scheme, i_contour=INNER)
        assert np.array_equal(found, np.where(INSIDE, 1, IGNORE))


class TestNested:
    """A in the image; B in A; C in B; D beside them."""

    scheme = LabelScheme(
        (
            Structure("a", 1, "", "label1"),
            Structure("b", 2, "", "label2", inside_of="a"),
            Structure("c", 3, "", "label3", inside_of="b"),
            Structure("d", 4, "", "label4"),
        )
    )

    def test_the_nearest_drawn_one_around_it_decides(self):
        found = painted(self.scheme, a=OUTER, d=FAR)  # b and c missing: both inside a
        far = rasterise(FAR, 12, 14)
        assert far.any()
        assert np.array_equal(found, np.where(far, 4, np.where(AROUND, IGNORE, 0)))

    def test_what_is_drawn_inside_stays(self):
        found = painted(self.scheme, a=OUTER, c=INNER, d=FAR)  # b missing: a's pixels but c's
        far = rasterise(FAR, 12, 14)
        expected = np.where(far, 4, np.where(INSIDE, 3, np.where(AROUND, IGNORE, 0)))
        assert np.array_equal(found, expected)

    def test_one_that_lies_in_nothing_may_be_on_all_that_is_not_covered(self):
        found = painted(self.scheme, a=OUTER, b=INNER, c=INNER)
        expected = np.where(INSIDE, 3, np.where(AROUND, 1, IGNORE))
        assert np.array_equal(found, expected)


@pytest.fixture
def root(tmp_path):
    """Return three pairs: both contours, without the outer one, without the inner one."""
    root = write_tree(tmp_path / "data")
    (root / contour_path("A1", 2, "o")).unlink()
    (root / contour_path("A1", 3, "i")).unlink()
    return root


def build(root, out, **options):
    options = BuildOptions(("i", "o"), rows=12, columns=14, partial=True, **options)
    etl.build(root, out, options, force=True)
    return loader.open_dataset(out)


def test_the_file_has_what_was_drawn_and_what_is_not_known(root, tmp_path):
    plain, data = build(root, tmp_path / "a.h5"), build(root, tmp_path / "b.h5", not_drawn="ignore")
    assert np.array_equal(data.masks[0], plain.masks[0])
    assert [(mask == IGNORE).any() for mask in data.masks] == [False, True, True]
    assert not (plain.masks == IGNORE).any()
    for code in (1, 2):
        expected = [int((mask == code).sum()) for mask in data.masks]
        assert data.manifest[f"n_pixels_{code}"].tolist() == expected
    assert data.manifest["drawn_1"].tolist() == [1, 1, 0]
    assert data.manifest["drawn_2"].tolist() == [1, 0, 1]
    assert data.attributes["options"]["not_drawn"] == "ignore"
    assert (data.attributes["min_reader_version"], plain.attributes["min_reader_version"]) == (2, 1)
    same = data.manifest["row_xxh3"] == plain.manifest["row_xxh3"]
    assert same.tolist() == [True, False, False]  # the digest is over the mask as written


def test_the_file_is_whole_and_what_its_sources_make(root, tmp_path):
    build(root, tmp_path / "out.h5", not_drawn="ignore")
    arguments = ["verify", str(tmp_path / "out.h5"), "--source", str(root), "--rebuild-check"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output


def test_the_report_says_in_how_many_rows_what_is_not_known(root, tmp_path):
    for value, words in (("ignore", "255 (ignore)"), ("background", "0 (background)")):
        build(root, tmp_path / "out.h5", not_drawn=value)
        text = CliRunner().invoke(cli, ["report", str(tmp_path / "out.h5")]).stdout
        assert (
            f"Partial   a structure is not drawn in 2 rows: there masks are {words} where it may be"
            in text
        )
        as_json = CliRunner().invoke(cli, ["report", str(tmp_path / "out.h5"), "--json"]).stdout
        assert json.loads(as_json)["n_not_drawn"] == 2
    write_contour(root, "A1", 2, "o", OUTER_SQUARE)
    write_contour(root, "A1", 3, "i", SQUARE)
    build(root, tmp_path / "out.h5", not_drawn="ignore")
    assert "Partial" not in CliRunner().invoke(cli, ["report", str(tmp_path / "out.h5")]).stdout


def test_the_loader_hands_out_what_is_not_known(root, tmp_path):
    data = build(root, tmp_path / "out.h5", not_drawn="ignore")
    _, masks = loader.Batches(data, batch_size=3, shuffle=False).next_batch()
    assert np.array_equal(np.moveaxis(masks, -1, 0), data.masks)


def test_overlays_stripe_what_is_not_known():
    structures = TestCardiac.scheme.structures
    image = np.full((12, 14), 100, np.int16)
    mask = np.zeros((12, 14), np.uint8)
    plain = np.array(overlay(image, mask, [], "", structures))
    mask[:, 7:] = IGNORE
    striped = np.array(overlay(image, mask, [], "", structures))
    half = plain.shape[1] // 2
    below = slice(40, None)  # the caption
    assert np.array_equal(plain[below, :half], striped[below, :half])
    share = (plain[below, half:] != striped[below, half:]).any(axis=2).mean()
    assert 0.2 < share < 0.3


def test_the_option_is_one_of_two(root, tmp_path):
    with pytest.raises(ValueError, match="not_drawn: expected 'background' or 'ignore'"):
        BuildOptions(not_drawn="zero")
    command = ["build", str(root), str(tmp_path / "out.h5"), "--size", "12x14", "--contours", "i,o"]
    result = CliRunner().invoke(cli, [*command, "--partial", "--not-drawn", "ignore"])
    assert result.exit_code == 0
    assert (loader.open_dataset(tmp_path / "out.h5").masks == IGNORE).any()
