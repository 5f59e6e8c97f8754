"""Structures that are drawn over each other: what of them a file keeps, and what it says."""

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest
from builders import (
    SQUARE,
    dicom_bytes,
    gradient,
    instance,
    write_contour,
    write_dicom,
    write_tree,
)
from click.testing import CliRunner

import etl
import loader
from etl.cli import cli
from etl.contours.rasterise import rasterise
from etl.options import BuildOptions
from etl.phantom import objects, shapes
from etl.report.compare import compare
from etl.report.overlays import ignored
from etl.report.page.pictures import drawn_pixels, mask_edge, picture
from etl.workers import chunks
from loader.format import Structure

ROWS, COLUMNS = 12, 14
# First row, row after the last, first column, column after the last; in paint order.
BOXES = {"liver": (2, 9, 1, 8), "kidney": (5, 11, 4, 10), "spine": (0, 3, 10, 13)}
BOTH = np.zeros((ROWS, COLUMNS), bool)
BOTH[5:9, 4:8] = True


def inside(name):
    """Return the pixels of a box."""
    top, bottom, left, right = BOXES[name]
    mask = np.zeros((ROWS, COLUMNS), bool)
    mask[top:bottom, left:right] = True
    return mask


def write_boxes(root, slices=(1, 2, 3), names=tuple(BOXES)):
    """Write images with boxes drawn on them, and a table; return its path."""
    lines = ["patient_id,image,label,contour"]
    for number in slices:
        write_dicom(
            root, "P1", f"{number}.dcm", instance(gradient(seed=number), uid=f"1.2.{number}")
        )
        for kind, name in zip("abcdefg", names, strict=False):
            top, bottom, left, right = np.array(BOXES[name]) - 0.5
            corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
            corners.insert(3, ((2 * left + right) / 3 + number / 100, bottom))  # no two alike
            text = "\n".join(f"{x} {y}" for x, y in corners)
            path = write_contour(root, "A1", number, kind, text).relative_to(root)
            lines.append(f"P1,dicoms/P1/{number}.dcm,{name},{path.as_posix()}")
    table = root / "boxes.csv"
    table.write_text("\n".join(lines) + "\n")
    return table


def options(**others):
    return BuildOptions(rows=ROWS, columns=COLUMNS, audit=False, structures=tuple(BOXES), **others)


@pytest.fixture
def table(tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    return write_boxes(root)


def report(out, *arguments):
    result = CliRunner().invoke(cli, ["report", str(out), *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


class TestLabels:
    """One code a pixel: the structure painted last."""

    @pytest.fixture
    def built(self, table, tmp_path):
        result = etl.build(table, tmp_path / "out.h5", options())
        return result, loader.open_dataset(tmp_path / "out.h5")

    def test_the_last_one_covers_and_the_pixels_of_both_are_counted(self, built):
        _, data = built
        expected = np.select([inside("spine"), inside("kidney"), inside("liver")], [3, 2, 1])
        assert (data.masks == expected).all()
        assert data.manifest["n_overlapping"].tolist() == [BOTH.sum()] * 3
        assert data.manifest["n_pixels_1"].tolist() == [(inside("liver") & ~BOTH).sum()] * 3
        assert data.manifest["label1_area"].tolist() == [inside("liver").sum()] * 3

    def test_it_is_a_finding_of_each_row(self, built):
        result, data = built
        found = [one for one in result.findings if one.code == "structures-overlap"]
        assert [one.path for one in found] == [f"dicoms/P1/{n}.dcm" for n in (1, 2, 3)]
        share = BOTH.sum() / inside("kidney").sum()
        assert (
            f"16 pixels are inside of more than one structure: 16 to 'liver' and 'kidney' "
            f"({share:.1%} of the smaller)."
        ) in found[0].message
        assert data.flagged("structures-overlap").all()
        (diagnosis,) = result.diagnoses
        assert diagnosis.code == "structures-overlap"

    def test_the_report_sums_them_up(self, built):
        _, data = built
        line = "Overlap   structures share 48 pixels in 3 rows: there masks show the one painted"
        assert line in report(data.path)
        as_json = json.loads(report(data.path, "--json"))
        assert (as_json["n_overlap_rows"], as_json["n_overlap_pixels"]) == (3, 48)

    def test_other_code_counts_the_same(self, table, built):
        _, data = built
        arguments = ["verify", str(data.path), "--source", str(table), "--rebuild-check"]
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, result.output

    def test_a_row_that_loses_a_structure_is_counted_without_it(self, table, tmp_path):
        rows = tmp_path / "rows.csv"
        rows.write_text("patient_id,slice,structure\nP1,2,kidney\n")
        chosen = options(exclude_file=str(rows), exclude_structures=True)
        result = etl.build(table, tmp_path / "out.h5", chosen)
        data = loader.open_dataset(tmp_path / "out.h5")
        assert data.manifest["n_overlapping"].tolist() == [16, 0, 16]
        assert data.flagged("structures-overlap").tolist() == [True, False, True]
        assert [one.code for one in result.findings].count("structures-overlap") == 2

    def test_an_excluded_structure_takes_its_overlap_along(self, table, tmp_path):
        """Not so a row list, which takes it out before the row is first written."""
        place = table.parent / "contourfiles/A1/b-contours/IM-0001-0002-bcontour-manual.txt"
        first, *others = place.read_text().splitlines()  # the kidney crosses itself
        place.write_text("\n".join([first, "9.5 8", "3.5 8", *others]))
        chosen = options(exclude_flagged=("contour-self-crossing",), exclude_structures=True)
        result = etl.build(table, tmp_path / "out.h5", chosen)
        data = loader.open_dataset(tmp_path / "out.h5")
        assert [one.code for one in result.findings].count("structure-excluded") == 1
        assert data.manifest["n_overlapping"].tolist() == [16, 0, 16]
        assert data.flagged("structures-overlap").tolist() == [True, False, True]

    def test_without_the_checks_it_is_counted_and_no_finding(self, table, tmp_path):
        result = etl.build(table, tmp_path / "out.h5", options(qc=False))
        data = loader.open_dataset(tmp_path / "out.h5")
        assert data.manifest["n_overlapping"].tolist() == [16] * 3
        assert result.findings == []


class TestBits:
    """A bit of each structure: nothing is lost."""

    @pytest.fixture
    def built(self, table, tmp_path):
        result = etl.build(table, tmp_path / "out.h5", options(masks="bits"))
        return result, loader.open_dataset(tmp_path / "out.h5")

    def test_each_structure_is_whole(self, built):
        _, data = built
        assert data.masks.dtype == np.uint8
        for structure in data.structures:
            exact = inside(structure.name)
            assert (structure.covers(data.masks) == exact).all()
            name = f"n_pixels_{structure.code}"
            assert data.manifest[name].tolist() == [exact.sum()] * 3
        assert data.masks[0][BOTH].tolist() == [0b011] * int(BOTH.sum())

    def test_the_overlap_is_counted_and_no_warning(self, built):
        result, data = built
        assert data.manifest["n_overlapping"].tolist() == [BOTH.sum()] * 3
        assert result.findings == []
        assert "there masks show all of them" in report(data.path)
        assert "Masks     bits: uint8, one for each structure" in report(data.path)
        as_json = json.loads(report(data.path, "--json"))
        assert "structures-overlap" in as_json["unchecked"]
        assert (as_json["mask_kind"], as_json["mask_dtype"]) == ("bits", "uint8")

    def test_the_file_says_which_bit_is_whose(self, built):
        _, data = built
        with h5py.File(data.path) as file:
            recorded = json.loads(file.attrs["structures"])
            assert [(one["name"], one["bit"]) for one in recorded] == [
                ("liver", 0),
                ("kidney", 1),
                ("spine", 2),
            ]
            assert file.attrs["mask_kind"] == b"bits"
            assert json.loads(file.attrs["required_features"]) == ["bit-masks"]
            assert file.attrs["min_reader_version"] == 2

    def test_bits_are_in_the_order_of_the_codes_whatever_is_painted_first(self, table, tmp_path):
        choices = {"spine": {"code": 9}, "liver": {"code": 4}, "kidney": {"code": 7}}
        chosen = BuildOptions(rows=ROWS, columns=COLUMNS, structures=choices, masks="bits")
        etl.build(table, tmp_path / "out.h5", chosen)
        data = loader.open_dataset(tmp_path / "out.h5")
        assert [(one.name, one.bit) for one in data.structures] == [
            ("spine", 2),
            ("liver", 0),
            ("kidney", 1),
        ]
        for structure in data.structures:
            assert (structure.covers(data.masks) == inside(structure.name)).all()

    def test_the_file_is_whole_and_what_its_sources_make(self, table, built):
        _, data = built
        arguments = ["verify", str(data.path), "--source", str(table), "--rebuild-check"]
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, result.output

    @pytest.mark.parametrize(
        ("word", "words"),
        [(0b1000_0000, "have a bit of no structure"), (0b010, "n_pixels_1 is")],
    )
    def test_verify_names_what_was_changed(self, built, word, words):
        _, data = built
        with h5py.File(data.path, "r+") as file:
            file["masks"][1, 2, 1] = word
        result = CliRunner().invoke(cli, ["verify", str(data.path)])
        assert result.exit_code == 1
        assert words in result.output

    def test_any_number_of_workers_writes_the_same_bytes(self, table, built, tmp_path, monkeypatch):
        _, data = built
        monkeypatch.setattr(chunks, "MAX_PAIRS", 1)
        etl.build(table, tmp_path / "two.h5", options(masks="bits"), workers=2)
        assert (tmp_path / "two.h5").read_bytes() == data.path.read_bytes()

    def test_an_update_takes_rows_over(self, table, tmp_path):
        out, other = tmp_path / "out.h5", tmp_path / "other.h5"
        etl.build(table, out, options(masks="bits"), update=True)
        write_boxes(table.parent, slices=(1, 2, 3, 4))
        result = etl.build(table, out, options(masks="bits"), update=True)
        assert any("3 of 4 rows were taken over" in note for note in result.notes)
        etl.build(table, other, options(masks="bits"))
        assert out.read_bytes() == other.read_bytes()
        result = etl.build(table, out, options(), update=True)
        assert any("with other options" in note for note in result.notes)
        assert not loader.open_dataset(out).has_bits

    def test_pictures_and_the_page_show_each_structure_whole(self, built, tmp_path):
        _, data = built
        report(
            data.path, "--overlays", str(tmp_path / "pictures"), "--html", str(tmp_path / "a.html")
        )
        assert len(list((tmp_path / "pictures").iterdir())) == 3
        shown = picture(data, 0)
        edges = {one["code"]: one["d"] for one in shown["edges"]}
        for structure in data.structures:
            assert edges[structure.code] == mask_edge(inside(structure.name))
        assert not shown["has_ignored"]
        assert (drawn_pixels(data, 0) >= (data.masks[0] != 0)).all()

    def test_a_picture_of_eight_structures_has_nothing_to_ignore(self):
        """All eight bits are 255, which in a label map means ignore."""
        structures = tuple(Structure(f"s{k}", k + 1, "", f"s{k}", bit=k) for k in range(8))
        mask = np.full((ROWS, COLUMNS), 255, np.uint8)
        assert not ignored(mask, structures).any()
        assert ignored(mask, [one._replace(bit=None) for one in structures]).all()

    def test_both_kinds_are_compared_structure_by_structure(self, table, built, tmp_path):
        _, data = built
        etl.build(table, tmp_path / "labels.h5", options())
        found = compare(loader.open_dataset(tmp_path / "labels.h5"), data)
        assert len(found.rows_changed) == 3
        liver, both = int(inside("liver").sum()), int(BOTH.sum())
        for row in found.rows_changed:
            assert not row.image_changed
            assert row.dice == {"liver": 2 * (liver - both) / (2 * liver - both)}
        assert found.attributes["option masks"] == ("labels", "bits")

    def test_predictions_are_scored_structure_by_structure(self, built, tmp_path):
        _, data = built
        chances = data.mask_channels(data.masks).astype(np.float32)
        chances[:, 1, :7] = 0  # the kidney is found from row 7 on only
        np.savez(tmp_path / "found.npz", probabilities=chances)
        arguments = ["--predictions", str(tmp_path / "found.npz"), "--json"]
        medians = json.loads(report(data.path, *arguments))["predictions"]["medians"]
        kidney = inside("kidney")
        found = kidney[7:].sum()
        dice = 2 * found / (found + kidney.sum())
        assert medians == {"1": 1.0, "2": pytest.approx(dice), "3": 1.0}

    def test_rows_that_are_padded_and_cropped_have_whole_structures(self, table, tmp_path):
        fit = {"size": "fit", "masks": "bits", "structures": tuple(BOXES)}
        etl.build(table, tmp_path / "fit.h5", BuildOptions(rows=10, columns=20, **fit))
        data = loader.open_dataset(tmp_path / "fit.h5")
        for structure in data.structures:
            exact = np.zeros((10, 20), bool)
            exact[:, 3:17] = inside(structure.name)[1:11]
            assert (structure.covers(data.masks) == exact).all()
            n_pixels = data.manifest[f"n_pixels_{structure.code}"]
            assert n_pixels.tolist() == [exact.sum()] * 3
        assert data.manifest["n_overlapping"].tolist() == [BOTH.sum()] * 3
        arguments = ["verify", str(data.path), "--source", str(table), "--rebuild-check"]
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, result.output

    def test_preview_draws_them(self, built, tmp_path):
        _, data = built
        arguments = [
            "preview",
            str(data.path),
            "--augment",
            "default",
            "--png",
            str(tmp_path / "a.png"),
        ]
        result = CliRunner().invoke(cli, arguments)
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("n", "dtype"), [(8, "uint8"), (9, "uint16"), (17, "uint32"), (32, "uint32")]
)
def test_the_number_of_structures_decides_the_type(tmp_path, n, dtype):
    """All overlap, but each has a row that is its own."""
    lines, names = ["patient_id,image,label,contour"], [f"part {k:02d}" for k in range(n)]
    image = instance(gradient(40, 40), Rows=40, Columns=40)
    (tmp_path / "1.dcm").write_bytes(dicom_bytes(image))
    for k, name in enumerate(names):
        text = f"{k - 0.5} -0.5\n39.5 -0.5\n39.5 {k + 0.5}\n{k - 0.5} {k + 0.5}\n"
        (tmp_path / f"{k}.txt").write_text(text)
        lines.append(f"P1,1.dcm,{name},{k}.txt")
    (tmp_path / "table.csv").write_text("\n".join(lines))
    chosen = BuildOptions(rows=40, columns=40, masks="bits")
    etl.build(tmp_path, tmp_path / "out.h5", chosen)
    data = loader.open_dataset(tmp_path / "out.h5")
    assert data.masks.dtype == np.dtype(dtype)
    for k, structure in enumerate(sorted(data.structures, key=lambda one: one.code)):
        exact = np.zeros((40, 40), bool)
        exact[: k + 1, k:] = True
        assert (structure.covers(data.masks[0]) == exact).all()
    arguments = ["verify", str(data.path), "--source", str(tmp_path), "--rebuild-check"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.output


def test_more_than_32_structures_are_refused_with_their_number(tmp_path):
    lines = ["patient_id,image,label,contour"]
    (tmp_path / "1.dcm").write_bytes(dicom_bytes(instance()))
    (tmp_path / "a.txt").write_text(SQUARE)
    lines += [f"P1,1.dcm,part {k},a.txt" for k in range(33)]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    for command in (["build", str(tmp_path), str(tmp_path / "out.h5")], ["check", str(tmp_path)]):
        result = CliRunner().invoke(cli, [*command, "--size", "12x14", "--masks", "bits"])
        assert result.exit_code == 1
        assert "it has 33 structures, and bit masks hold at most 32." in result.stderr
        assert "--structures, or leave --masks at labels." in result.stderr
    assert not (tmp_path / "out.h5").exists()


def test_both_contours_of_a_heart_are_whole(tmp_path):
    root = write_tree(tmp_path / "data")
    etl.build(root, tmp_path / "out.h5", BuildOptions(("i", "o"), ROWS, COLUMNS, masks="bits"))
    data = loader.open_dataset(tmp_path / "out.h5")
    assert data.attributes["labels"]["2"] == "inside the o-contour"
    for label, vertices in data.polygons(0):
        (structure,) = (one for one in data.structures if one.label == label)
        exact = rasterise(vertices, ROWS, COLUMNS)
        assert (structure.covers(data.masks[0]) == exact).all()
    assert not data.manifest["n_overlapping"].any()  # one lies in the other


def test_what_was_not_drawn_has_no_value_in_bits(table, tmp_path):
    with pytest.raises(ValueError, match="not_drawn: expected 'background' with bit masks"):
        options(masks="bits", not_drawn="ignore")
    with pytest.raises(ValueError, match="masks: expected 'labels' or 'bits', found 'words'"):
        options(masks="words")
    command = ["build", str(table), str(tmp_path / "out.h5"), "--masks", "bits"]
    result = CliRunner().invoke(cli, [*command, "--not-drawn", "ignore"])
    assert result.exit_code == 2
    assert "--not-drawn ignore has no value in bit masks" in result.stderr


def test_check_reckons_with_the_bytes_of_the_words(table):
    sizes = []
    for kind in ("labels", "bits"):
        command = ["check", str(table), "--size", "12x14", "--masks", kind, "--full", "--json"]
        sizes.append(json.loads(CliRunner().invoke(cli, command).stdout)["n_bytes"])
    assert sizes == [3 * ROWS * COLUMNS * 3] * 2


@pytest.mark.parametrize("kind", ["rtstruct", "seg"])
def test_structures_of_dicom_objects_that_overlap_are_whole(tmp_path, kind, monkeypatch):
    """The phantom's shapes, of which the box is moved onto the sphere."""
    drawn = shapes.draw_shapes

    def over_each_other(random, number):
        found = drawn(random, number)
        x, y, z = found["sphere"].centre
        found["box"] = replace(found["box"], centre=(x + 6, y - 4, z))
        return found

    monkeypatch.setattr(objects, "draw_shapes", over_each_other)
    size = {"rows": 88, "columns": 112}
    objects.write_shapes(tmp_path / "data", kind, patients=1, slices=8, **size)
    patient = objects.Patient(0, 88, 112, 8, 0)
    found = {}
    for masks in ("labels", "bits"):
        out = tmp_path / f"{masks}.h5"
        result = etl.build(tmp_path / "data", out, BuildOptions(masks=masks, **size))
        codes = {one.code for one in result.findings if one.severity != "info"}
        assert codes == ({"structures-overlap"} if masks == "labels" else set())
        found[masks] = loader.open_dataset(out)
    labels, bits = found["labels"], found["bits"]
    n_shared = 0
    for row, place in enumerate(bits.manifest["slice"].tolist()):
        exact = {one.name: one.covers(bits.masks[row]) for one in bits.structures}
        if kind == "seg":  # which has the pixels of the shapes themselves
            for name, mask in exact.items():
                assert (mask == patient.mask(name, place - 1)).all()
        shared = exact["box"] & exact["sphere"]
        n_shared += int(shared.sum())
        assert bits.manifest["n_overlapping"][row] == shared.sum()
        painted = np.zeros(shared.shape, np.uint8)
        for one in labels.structures:
            painted[exact[one.name]] = one.code
        assert (labels.masks[row] == painted).all()
    assert labels.manifest["n_overlapping"].sum() == n_shared > 500
