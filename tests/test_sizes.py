"""Builds of images of any size and spacing: what is drawn stays where it is in the patient."""

import json

import h5py
import numpy as np
import pytest
from builders import (
    COLUMNS,
    ROWS,
    contour_path,
    copy_tree,
    gradient,
    instance,
    write_contour,
    write_dicom,
    write_tree,
)
from click.testing import CliRunner

import etl
import loader
from etl import render
from etl.cli import cli
from etl.contours.polygon import nested_areas
from etl.errors import EtlError
from etl.findings import FLAG_CODES
from etl.geometry import ImagePlane
from etl.phantom.objects import Patient, write_shapes
from etl.phantom.tree import write_phantom
from etl.report.compare import compare
from etl.resampling.image import image_on_grid
from etl.update import sources as update_sources
from etl.verify.file import verify

PIXELS = 192, 160  # rows, columns of the shapes' images: spacing 0.9167 x 1.4 mm
SLICES = 7


def build(root, out, **options):
    result = etl.build(root, out, etl.BuildOptions(**options), force=True)
    return loader.open_dataset(out), result


def fit(rows, columns, **options):
    return {"rows": rows, "columns": columns, "size": "fit", **options}


def codes(result):
    return sorted(one.code for one in result.findings if one.severity != "info")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Write the same shapes as each kind of objects, once."""
    folder = tmp_path_factory.mktemp("shapes")
    made = {}

    def make(kind):
        if kind not in made:
            rows, columns = PIXELS
            # Masks must be finer than what they are resampled to.
            fine = 2 if kind == "seg" else 1
            write_shapes(
                folder / kind, kind, slices=SLICES, rows=fine * rows, columns=fine * columns
            )
            made[kind] = fine
        return folder / kind, made[kind]

    return make


def exact(data, patient, row):
    """Return, for each shape, the pixels of a row whose centres are inside, by where they are."""
    manifest = data.manifest
    size = data.images.shape[1:]
    column, line = np.meshgrid(*map(np.arange, size[::-1]))
    plane = ImagePlane(
        *(
            tuple(manifest[f"{what}_{axis}"][row] for axis in "xyz")
            for what in (
                "image_position",
                "image_orientation_row",
                "image_orientation_column",
            )
        ),
        (manifest["pixel_spacing_row"][row], manifest["pixel_spacing_column"][row]),
    )
    pixels = np.stack([column.ravel(), line.ravel()], axis=1).astype(np.float64)
    place = int(manifest["slice"][row]) - 1
    points = patient.plane(place).to_pixels(plane.to_patient(pixels)) * patient.spacing[::-1]
    u, v = (points + patient.corner).T.reshape(2, *size)
    height = patient.height(place)
    return {name: shape.covers(u, v, height) for name, shape in patient.shapes.items()}


RESAMPLED = {
    "1 mm": fit(176, 224, resample=1.0),
    "about structures": fit(200, 190, resample=(0.9, 1.3), fit_about="structures"),
    "most": {"size": "most", "resample": (0.8, 1.1)},
    "padded": fit(400, 330),
}


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        *(("rtstruct", how) for how in RESAMPLED),
        *(("seg", how) for how in RESAMPLED),
        ("enhanced", "most"),
        ("table", "about structures"),
    ],
)
def test_shapes_have_their_exact_areas_and_places_on_any_pixels(shapes, tmp_path, kind, how):
    (root, fine), options = shapes(kind), RESAMPLED[how]
    data, result = build(root, tmp_path / "out.h5", **options)
    # Masks of neighbouring planes may be equal, and all patients have the same four shapes.
    assert set(codes(result)) <= {"identical-contour", "near-duplicate"}
    manifest = data.manifest
    spacing = options.get("resample", Patient(0, *(fine * n for n in PIXELS), SLICES, 0).spacing)
    between_rows, between_columns = spacing if isinstance(spacing, tuple) else (spacing, spacing)
    assert set(manifest["pixel_spacing_row"].tolist()) == {between_rows}
    assert set(manifest["pixel_spacing_column"].tolist()) == {between_columns}
    names = {one.code: one.name for one in data.structures}
    totals = {name: np.zeros(4) for name in names.values()}
    for row in range(len(data)):
        number = int(manifest["patient_id"][row][-3:]) - 1
        patient = Patient(number, *(fine * n for n in PIXELS), SLICES, 0)
        inside = exact(data, patient, row)
        for code, name in names.items():
            expected, found = inside[name], data.masks[row] == code
            totals[name] += expected.sum(), found.sum(), 2 * (expected & found).sum(), 0
            area = patient.shapes[name].area(patient.height(int(manifest["slice"][row]) - 1))
            totals[name][3] += area / (between_rows * between_columns)
    for n_exact, n_found, n_common, area in totals.values():
        assert n_common / (n_exact + n_found) >= 0.98
        # The pixels of a mask are sampled a second time, in between their centres.
        assert n_found == pytest.approx(area, rel=0.015 if kind == "seg" else 0.01)


@pytest.mark.parametrize("kind", ["rtstruct", "seg", "table"])
def test_other_code_builds_the_same_rows(tmp_path, kind):
    root = tmp_path / "shapes"
    write_shapes(root, kind, patients=2, slices=5, rows=64, columns=48)
    for options in (
        fit(24, 30, resample=(6.1, 5.2), fit_about="structures"),
        fit(60, 62, rasterizer="pillow"),
        {"size": "most", "resample": 4.0},
    ):
        build(root, tmp_path / "out.h5", **options)
        found = verify(tmp_path / "out.h5", source=root, rebuild=True)
        assert list(map(str, found.problems)) == []


@pytest.fixture
def two_sizes(tmp_path):
    """Write 8 images of 12x14 and 6 of 14x12 pixels, as RVSC has 216x256 and 256x216."""
    root = write_tree(tmp_path / "data", [("P1", "A1"), ("P2", "A2")], slices=range(1, 5))
    (root / "link.csv").write_text("patient_id,original_id\nP1,A1\nP2,A2\nP3,A3\nP4,A4\n")
    for patient in (3, 4):
        for number in range(1, 4):
            pixels = gradient(COLUMNS, ROWS, seed=100 * patient + number)
            uid = f"1.2.3.{patient}.{number}"
            write_dicom(root, f"P{patient}", f"{number}.dcm", instance(pixels, uid=uid))
            y = 3 + (100 * patient + number) / 1000
            text = f"2 2\n9 2\n9 11\n2 11\n2 {y}\n"
            write_contour(root, f"A{patient}", number, text=text)
            write_contour(root, f"A{patient}", number, "o", f"1 1\n11 1\n11 12\n1 12\n1 {y}\n")
    return root


def test_one_command_takes_images_of_both_orientations(two_sizes, tmp_path):
    out = tmp_path / "out.h5"
    result = CliRunner().invoke(
        cli, ["build", str(two_sizes), str(out), "--fit", "14x14", "--contours", "i,o"]
    )
    assert result.exit_code == 0, result.output
    data = loader.open_dataset(out)
    assert data.images.shape == (14, 14, 14)
    assert data.attributes["options"]["size"] == "fit"
    sides = (data.manifest[f"source_{name}"].tolist() for name in ("rows", "columns"))
    sizes = list(zip(*sides, strict=True))
    assert (sizes.count((ROWS, COLUMNS)), sizes.count((COLUMNS, ROWS))) == (8, 6)
    for row, path in enumerate(data.manifest["dicom_path"].tolist()):
        patient, number = int(path[8]), int(path.split("/")[-1][0])
        pixels = (
            gradient(seed=1000 * (patient - 1) + number)
            if patient < 3
            else gradient(COLUMNS, ROWS, seed=100 * patient + number)
        )
        # One pixel of padding on each side, of the lowest value that the image has.
        down, right = (14 - pixels.shape[0]) // 2, (14 - pixels.shape[1]) // 2
        expected = np.pad(pixels, ((down, down), (right, right)), constant_values=pixels.min())
        assert np.array_equal(data.images[row], expected)
        assert data.manifest["n_padding"][row] == 14 * 14 - 12 * 14
        assert data.manifest["mean"][row] == pytest.approx(pixels.mean())
        assert np.isnan(data.manifest["padding_minimum"][row])
        (_, vertices), *_ = data.polygons(row)
        assert vertices[0].tolist() == [2 + right, 2 + down]
        assert np.array_equal(np.argwhere(data.masks[row] == 1).min(axis=0), [2 + down, 2 + right])
    report = CliRunner().invoke(cli, ["report", str(out)])
    assert "Images    12x14 (8), 14x12 (6); fitted about the centre" in report.output
    drawn = tmp_path / "overlays"
    report = CliRunner().invoke(
        cli, ["report", str(out), "--overlays", str(drawn), "--patient", "P3"]
    )
    assert report.exit_code == 0
    assert len(list(drawn.iterdir())) == 3


def test_most_is_the_same_file_as_that_size_said(two_sizes, tmp_path):
    most, result = build(two_sizes, tmp_path / "most.h5", size="most")
    said, expected = build(two_sizes, tmp_path / "said.h5", rows=ROWS, columns=COLUMNS)
    assert most.attributes["options"] == {**said.attributes["options"], "size": "most"}
    assert most.attributes["digests"] == said.attributes["digests"]
    assert most.dataset_id == said.dataset_id
    assert result.findings == expected.findings
    assert codes(result).count("image-size") == 6
    assert compare(said, most).attributes == {"option size": (None, "most")}


@pytest.mark.parametrize(
    ("broken", "size"),
    [(1, (ROWS, COLUMNS)), (2, (COLUMNS, ROWS)), (3, (COLUMNS, ROWS))],
    ids=["more", "as many: the one of more rows", "fewer"],
)
def test_most_counts_the_images_that_are_accepted(two_sizes, tmp_path, broken, size):
    """An image whose contour is of no use is none of them."""
    for number in range(1, broken + 1):
        (two_sizes / contour_path("A1", number)).write_text("broken\n")
    data, _ = build(two_sizes, tmp_path / "out.h5", size="most")
    assert data.images.shape[1:] == size


def test_most_of_no_accepted_image_says_what_is_wrong_with_them(two_sizes, tmp_path):
    for path in two_sizes.glob("contourfiles/*/i-contours/*.txt"):
        path.write_text("broken\n")
    with pytest.raises(EtlError, match="14 contour-unreadable"):
        build(two_sizes, tmp_path / "out.h5", size="most")


def test_without_these_options_a_file_tells_nothing_of_them(two_sizes, tmp_path):
    data, _ = build(two_sizes, tmp_path / "out.h5", rows=ROWS, columns=COLUMNS)
    assert not {"size", "resample", "fit_about"} & data.attributes["options"].keys()
    with h5py.File(tmp_path / "out.h5") as file:
        assert not [name for name in file["manifest"] if name.startswith("source_")]


def test_workers_and_an_update_give_the_bytes_of_one_process(two_sizes, tmp_path, monkeypatch):
    monkeypatch.setattr(update_sources, "SETTLED_NS", 0)
    options = etl.BuildOptions(
        **fit(11, 13, resample=(1.4, 1.3), fit_about="structures"), audit=False
    )
    held = two_sizes / "dicoms/P3/2.dcm"
    content = held.read_bytes()
    held.unlink()
    etl.build(two_sizes, tmp_path / "updated.h5", options, update=True)
    held.write_bytes(content)
    result = etl.build(two_sizes, tmp_path / "updated.h5", options, update=True)
    assert any("13 of 14 rows were taken over" in note for note in result.notes), result.notes
    files = [tmp_path / "updated.h5"]
    for workers in (1, 2):
        files.append(tmp_path / f"{workers}.h5")
        etl.build(two_sizes, files[-1], options, workers=workers)
    assert len({path.read_bytes() for path in files}) == 1
    other = etl.BuildOptions(**fit(11, 13, resample=(1.4, 1.3)), audit=False)
    result = etl.build(two_sizes, tmp_path / "updated.h5", other, update=True)
    assert any("with other options" in note for note in result.notes)


def test_predictions_come_back_to_the_pixels_of_the_images(shapes, tmp_path):
    root, _ = shapes("rtstruct")
    whole, _ = build(root, tmp_path / "whole.h5", size="most")
    for options in (fit(205, 250, resample=0.9), fit(180, 140), fit(150, 150, resample=1.5)):
        data, _ = build(root, tmp_path / "out.h5", **options)
        back = np.stack([data.to_source(row, data.masks[row]) for row in range(len(data))])
        assert back.shape == whole.masks.shape
        for code in (1, 2, 3, 4):
            one, other = back == code, whole.masks == code
            dice = 2 * (one & other).sum() / (one.sum() + other.sum())
            assert dice > (0.96 if options.get("resample") == 1.5 else 0.98)
            if "resample" not in options:
                assert np.array_equal(one, other)


def test_an_update_of_the_commonest_size_is_that_of_a_full_build(two_sizes, tmp_path, monkeypatch):
    monkeypatch.setattr(update_sources, "SETTLED_NS", 0)
    options = etl.BuildOptions(size="most", audit=False)
    etl.build(two_sizes, tmp_path / "updated.h5", options, update=True)
    write_contour(two_sizes, "A1", 2, text="3 3\n9 3\n9 9\n3 9\n")
    result = etl.build(two_sizes, tmp_path / "updated.h5", options, update=True)
    assert any("7 of 8 rows were taken over" in note for note in result.notes), result.notes
    for number in (1, 2, 3):  # now the others are the most
        (two_sizes / contour_path("A2", number)).write_text("broken\n")
    result = etl.build(two_sizes, tmp_path / "updated.h5", options, update=True)
    assert any("with other options" in note for note in result.notes), result.notes
    etl.build(two_sizes, tmp_path / "full.h5", options)
    assert (tmp_path / "updated.h5").read_bytes() == (tmp_path / "full.h5").read_bytes()
    assert loader.open_dataset(tmp_path / "full.h5").images.shape == (6, COLUMNS, ROWS)


def test_an_update_audits_what_a_full_build_audits(tmp_path, monkeypatch):
    """The audit looks at the frame, which the file does not have: a newly audited row is parsed."""
    monkeypatch.setattr(update_sources, "SETTLED_NS", 0)
    write_phantom(tmp_path / "whole", patients=2, slices=6, phases=2)
    root = copy_tree(tmp_path / "whole", tmp_path / "data")
    options = etl.BuildOptions(**fit(150, 140, resample=1.6), audit_contours=2)
    lacking = sorted(root.glob("contourfiles/*/i-contours/*.txt"))[:3]
    contents = [path.read_bytes() for path in lacking]
    for path in lacking:
        path.unlink()
    etl.build(root, tmp_path / "updated.h5", options, update=True)
    for path, content in zip(lacking, contents, strict=True):
        path.write_bytes(content)
    etl.build(root, tmp_path / "updated.h5", options, update=True)
    etl.build(root, tmp_path / "full.h5", options)
    assert (tmp_path / "updated.h5").read_bytes() == (tmp_path / "full.h5").read_bytes()


def test_a_phantom_heart_gives_no_warning_on_other_pixels_and_is_audited_on_its_own(tmp_path):
    write_phantom(tmp_path / "data", patients=3, slices=6, phases=2)
    _, plain = build(tmp_path / "data", tmp_path / "out.h5", contours=("i", "o"), partial=True)
    measured = loader.open_dataset(tmp_path / "out.h5").attributes["alignment"]
    for options in (fit(128, 120, resample=(2.0, 1.7)), fit(150, 160, fit_about="structures")):
        data, result = build(
            tmp_path / "data", tmp_path / "out.h5", contours=("i", "o"), partial=True, **options
        )
        assert codes(result) == codes(plain) == []
        assert data.attributes["alignment"] == measured


def test_areas_are_in_pixels_of_the_file_and_of_all_that_was_drawn(two_sizes, tmp_path):
    whole, _ = build(two_sizes, tmp_path / "whole.h5", size="most")
    data, _ = build(two_sizes, tmp_path / "out.h5", **fit(8, 5, resample=(0.5, 3.0)))
    factor = (1.25 / 0.5) * (1.5 / 3.0)
    assert data.manifest["icontour_area"][:8] == pytest.approx(
        whole.manifest["icontour_area"] * factor
    )
    for row in range(len(data)):
        area = sum(nested_areas([vertices for _, vertices in data.polygons(row)]))
        assert data.manifest["icontour_area"][row] == pytest.approx(area)


def test_the_area_of_a_mask_is_in_pixels_of_the_file_too(tmp_path):
    write_shapes(tmp_path / "shapes", "seg", patients=1, slices=4, rows=64, columns=48)
    whole, _ = build(tmp_path / "shapes", tmp_path / "whole.h5", size="most")
    data, _ = build(tmp_path / "shapes", tmp_path / "out.h5", **fit(30, 20, resample=(5.5, 7.0)))
    factor = (176 / 64 / 5.5) * (round(224 / 48, 4) / 7)
    for code in (1, 2, 3, 4):
        name = f"label{code}_area"
        is_drawn = ~np.isnan(whole.manifest[name])
        assert is_drawn.any()
        expected = whole.manifest[name][is_drawn] * factor
        assert data.manifest[name][is_drawn] == pytest.approx(expected)


def test_a_file_of_fractions_is_not_rounded(two_sizes, tmp_path):
    for path in two_sizes.glob("dicoms/P1/*.dcm"):
        pixels = gradient(seed=int(path.stem))
        write_dicom(two_sizes, "P1", path.name, instance(pixels, RescaleSlope=0.5, uid=path.stem))
    data, _ = build(two_sizes, tmp_path / "out.h5", **fit(14, 15, resample=1.1))
    assert data.images.dtype == np.float32
    assert (data.images[0] * 2 % 1 != 0).mean() > 0.5
    assert verify(tmp_path / "out.h5", source=two_sizes, rebuild=True).problems == []


# ------------------------------------------------------------------------------ what is cut off


def drawn(tmp_path, **contours):
    """Write one image of 40x40 pixels as a table, with the squares given: label → (low, high)."""
    root = tmp_path / "cut"
    root.mkdir()
    lines = ["patient_id,image,label,contour"]
    pixels = np.random.default_rng(0).integers(0, 900, (40, 40), np.int16)
    write_dicom(root, "P1", "1.dcm", instance(pixels))
    for name, (low, high) in contours.items():
        (root / f"{name}.txt").write_text(f"{low} {low}\n{high} {low}\n{high} {high}\n{low} {high}")
        lines.append(f"P1,dicoms/P1/1.dcm,{name},{name}.txt")
    (root / "table.csv").write_text("\n".join(lines) + "\n")
    return root


def test_a_structure_that_is_cut_is_a_warning_with_its_share(tmp_path):
    root = drawn(tmp_path, inside=(15.5, 20.5), cut=(5.5, 15.5))
    data, result = build(root, tmp_path / "out.h5", **fit(20, 20))
    (finding,) = [one for one in result.findings if one.code == "structure-cut"]
    assert finding.severity == "warning"
    assert finding.path == "cut.txt"
    # Of 10 x 10 pixels from 6 to 15, those from 10 on are left.
    assert finding.message == (
        "64.0% of it lies outside the 20x20 pixels that --fit keeps, and is cut off. "
        "Give a larger --fit, or --fit-about structures."
    )
    assert data.manifest["flags"].tolist() == [1 << FLAG_CODES.index("structure-cut")]
    assert data.flagged("structure-cut").tolist() == [True]
    assert (data.masks[0] == 1).sum() == 36
    assert verify(tmp_path / "out.h5", source=root, rebuild=True).problems == []
    _, result = build(root, tmp_path / "out.h5", **fit(20, 20, fit_about="structures"))
    assert codes(result) == []


def test_a_structure_that_is_wholly_cut_off_has_no_pixel_and_costs_no_row(tmp_path):
    root = drawn(tmp_path, gone=(0.5, 5.5), kept=(15.5, 20.5))
    data, result = build(root, tmp_path / "out.h5", **fit(20, 20))
    assert codes(result) == ["structure-cut"]
    assert "all of it lies outside the 20x20 pixels" in str(result.findings[0])
    assert [data.manifest[f"n_pixels_{code}"][0] for code in (1, 2)] == [0, 25]
    assert [data.manifest[f"drawn_{code}"][0] for code in (1, 2)] == [1, 1]
    assert verify(tmp_path / "out.h5", source=root, rebuild=True).problems == []


@pytest.mark.parametrize("by_list", [False, True])
def test_a_row_stays_about_a_structure_that_it_loses_for_a_finding(tmp_path, by_list):
    """The middle of 2 to 20.5 is 11.25; without the lost one, that of 15.5 to 20.5 is 18."""
    root = drawn(tmp_path, kept=(15.5, 20.5), twice=(2.0, 8.0))
    lines = (root / "twice.txt").read_text().splitlines()
    (root / "twice.txt").write_text("".join(f"{line}\n{line}\n" for line in lines))
    row_list = tmp_path / "list.csv"
    line = f"P1,{instance().InstanceNumber},twice\n" if by_list else ""
    row_list.write_text(f"patient_id,slice,structure\n{line}")
    options = fit(12, 12, fit_about="structures", exclude_structures=True, audit=False)
    options |= {"exclude_file": str(row_list), "exclude_flagged": ("contour-repeated-points",)}
    data, result = build(root, tmp_path / "out.h5", **options)
    assert "structure-excluded" in {one.code for one in result.findings}
    assert data.manifest["drawn_2"].tolist() == [0]
    # 11.25 is half-way between pixels 6 to 17 and 5 to 16.
    assert data.manifest["source_row_offset"].tolist() == [13 if by_list else 6]
    assert verify(tmp_path / "out.h5", source=root, rebuild=True).problems == []


@pytest.mark.parametrize(
    "options", [fit(20, 23), fit(60, 55, resample=0.9), fit(30, 25, fit_about="structures")]
)
def test_bit_masks_keep_what_label_maps_cover(tmp_path, options):
    root = drawn(tmp_path, a=(8.5, 20.5), b=(14.2, 27.0), c=(15.5, 18.5))
    labels, _ = build(root, tmp_path / "labels.h5", **options)
    label_map = np.array(labels.masks[0])
    data, result = build(root, tmp_path / "out.h5", masks="bits", **options)
    assert "structures-overlap" not in codes(result)
    assert set(np.unique(data.masks[0]).tolist()) == {0, 1, 2, 3, 7}
    highest = np.floor(np.log2(np.maximum(data.masks[0], 0.5))).astype(int) + 1
    assert np.array_equal(highest, label_map)
    assert verify(tmp_path / "out.h5", source=root, rebuild=True).problems == []
    back = data.to_source(0, data.masks[0])
    assert set(np.unique(back).tolist()) <= {0, 1, 2, 3, 7}
    assert back.shape == (40, 40)


@pytest.mark.parametrize("options", [fit(20, 20), fit(40, 40, resample=30.0)])
def test_a_row_whose_structures_all_have_no_pixel_is_none(tmp_path, options):
    root = drawn(tmp_path, gone=(0.5, 5.5), lost=(33.5, 38.5))
    with pytest.raises(EtlError, match="2 mask-empty") as raised:
        build(root, tmp_path / "out.h5", **options)
    assert "in the file lies inside it" in str(raised.value)


def test_not_drawn_is_not_ignored_beyond_the_image(two_sizes, tmp_path):
    for number in range(1, 5):
        (two_sizes / contour_path("A1", number, "o")).unlink()
    options = {"contours": ("i", "o"), "partial": True, "not_drawn": "ignore"}
    data, _ = build(two_sizes, tmp_path / "out.h5", **fit(16, 16), **options)
    mask = data.masks[0]
    assert (mask[2:14, 1:15] == 255).sum() == 12 * 14 - (mask == 1).sum()
    assert (mask == 255).sum() == (mask[2:14, 1:15] == 255).sum()
    assert verify(tmp_path / "out.h5", source=two_sizes, rebuild=True).problems == []


@pytest.mark.parametrize("rasterizer", ["center", "pillow"])
def test_what_is_drawn_beyond_the_image_is_not_drawn_on_padding(tmp_path, rasterizer):
    root = drawn(tmp_path, over=(-6, 8))
    data, result = build(root, tmp_path / "out.h5", **fit(50, 50), rasterizer=rasterizer)
    assert codes(result) == ["contour-partly-outside"]
    assert np.argwhere(data.masks[0]).min() == 5
    assert data.manifest["n_pixels_1"][0] == data.masks[0].sum()
    assert verify(tmp_path / "out.h5", source=root, rebuild=True).problems == []


def test_padding_of_the_header_and_beyond_the_image_are_counted_once(tmp_path):
    pixels = np.random.default_rng(0).integers(10, 900, (20, 20), np.int16)
    pixels[:, :3] = -7
    root = write_tree(tmp_path / "data", slices=(1,), outer=False)
    write_dicom(root, "P1", "1.dcm", instance(pixels, PixelPaddingValue=-7))
    data, _ = build(root, tmp_path / "out.h5", **fit(24, 26))
    manifest = data.manifest
    assert manifest["n_padding"][0] == 24 * 26 - 20 * 17
    assert (data.images[0] == -7).sum() == 24 * 26 - 20 * 17
    assert manifest["minimum"][0] == pixels[:, 3:].min()
    assert manifest["mean"][0] == pytest.approx(pixels[:, 3:].mean())
    assert (manifest["padding_minimum"][0], manifest["padding_maximum"][0]) == (-7, -7)
    assert verify(tmp_path / "out.h5", source=root, rebuild=True).problems == []


# ------------------------------------------------------------------------- refusals, and mistakes


def test_an_image_without_spacing_cannot_be_resampled(two_sizes, tmp_path):
    write_dicom(two_sizes, "P1", "1.dcm", instance(PixelSpacing=None))
    data, result = build(two_sizes, tmp_path / "out.h5", **fit(10, 10, resample=1.3))
    assert len(data) == 13
    assert codes(result).count("image-no-spacing") == 1
    data, _ = build(two_sizes, tmp_path / "out.h5", **fit(10, 10))  # fitting needs none
    assert len(data) == 14
    assert np.isnan(data.manifest["image_position_x"][0])


def test_images_of_one_spacing_may_be_of_several_sizes(two_sizes, tmp_path):
    _, result = build(two_sizes, tmp_path / "out.h5", rows=15, columns=21, resample=1.0)
    (message, *_) = [one.message for one in result.findings if one.code == "image-size"]
    assert message == (
        "is 14x12 (rows x columns), and 18x18 by --resample, expected 15x21. "
        "Take all sizes with --fit ROWSxCOLUMNS."
    )


def test_half_a_pixel_is_found_by_the_rebuild(two_sizes, tmp_path, monkeypatch):
    def shifted(image, grid, *rest):
        return image_on_grid(image, grid._replace(row_offset=grid.row_offset + 0.5), *rest)

    monkeypatch.setattr(render, "image_on_grid", shifted)
    build(two_sizes, tmp_path / "out.h5", **fit(12, 12, resample=1.1))
    problems = verify(tmp_path / "out.h5", source=two_sizes, rebuild=True).problems
    assert len(problems) == 14
    assert all("pixels of the image differ" in str(one) for one in problems)


def test_a_wrong_place_in_the_frame_is_found_by_the_rebuild(two_sizes, tmp_path, monkeypatch):
    from etl import examine

    place = examine.place

    def other(*arguments):
        grid = place(*arguments)
        return grid._replace(column_offset=grid.column_offset + 1)

    monkeypatch.setattr(examine, "place", other)
    build(two_sizes, tmp_path / "out.h5", **fit(10, 8))
    problems = verify(tmp_path / "out.h5", source=two_sizes, rebuild=True).problems
    assert {"source_column_offset" in str(one) for one in problems} == {True}
    assert len(problems) == 14


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300, -1e18, 0.0, -1.0])
def test_damaged_columns_of_the_place_are_found(two_sizes, tmp_path, value):
    build(two_sizes, tmp_path / "out.h5", **fit(10, 8, resample=2.0))
    names = [
        f"manifest/source_{axis}_{what}"
        for axis in ("row", "column")
        for what in ("offset", "scale")
    ]
    with h5py.File(tmp_path / "out.h5") as file:
        offsets = [file[name].id.get_offset() for name in names]
    for name, offset in zip(names, offsets, strict=True):
        content = bytearray((tmp_path / "out.h5").read_bytes())
        content[offset : offset + 8] = np.float64(value).tobytes()
        (tmp_path / "damaged.h5").write_bytes(content)
        problems = list(map(str, verify(tmp_path / "damaged.h5").problems))
        assert any(one.startswith(f"{name}: differs") for one in problems)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--fit", "9x9", "--size", "9x9"], "--size and --fit exclude each other"),
        (["--resample", "1.25"], "give --fit ROWSxCOLUMNS, --size most or --size"),
        (["--fit-about", "structures"], "--fit-about is about --fit"),
        (["--fit", "most"], "expected ROWSxCOLUMNS such as 256x256, found 'most'"),
        (["--fit", "9x9", "--resample", "1x2x3"], "expected millimetres such as 1.25 or 1.25x1.5"),
        (["--fit", "9x9", "--resample", "0"], "expected millimetres such as 1.25 or 1.25x1.5"),
        (["--fit", "9x9", "--resample", "nan"], "expected millimetres such as 1.25 or 1.25x1.5"),
    ],
)
@pytest.mark.parametrize("command", ["build", "check"])
def test_usage_is_refused_with_what_to_give(two_sizes, tmp_path, command, arguments, message):
    paths = [str(two_sizes)] + [str(tmp_path / "out.h5")] * (command == "build")
    result = CliRunner().invoke(cli, [command, *paths, *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"size": "all"}, ValueError),
        ({"fit_about": "middle"}, ValueError),
        ({"fit_about": "structures"}, ValueError),
        ({"resample": 0}, ValueError),
        ({"resample": (1, 2, 3)}, ValueError),
        ({"resample": "1.25"}, TypeError),
        ({"resample": (1, "2")}, TypeError),
    ],
)
def test_options_that_no_build_can_do_are_refused(options, error):
    with pytest.raises(error, match=next(iter(options))):
        etl.BuildOptions(**options)


def test_options_come_back_from_their_record():
    options = etl.BuildOptions(**fit(9, 9, resample=1.25, fit_about="structures"))
    recorded = json.loads(json.dumps(options.to_json()))
    assert recorded["resample"] == [1.25, 1.25]
    known = {"rows", "columns", "size", "resample", "fit_about"}
    assert etl.BuildOptions(**{name: recorded[name] for name in known}) == options


def test_the_check_names_the_option_that_takes_all_sizes(two_sizes):
    result = CliRunner().invoke(cli, ["check", str(two_sizes), "--size", f"{ROWS}x{COLUMNS}"])
    assert "The images have 2 sizes: --fit ROWSxCOLUMNS takes all of them." in result.output
    for option in (["--fit", "14x14"], ["--size", "most"]):
        result = CliRunner().invoke(cli, ["check", str(two_sizes), *option])
        assert "takes all of them" not in result.output


@pytest.mark.parametrize("full", [[], ["--full"]])
@pytest.mark.parametrize(
    ("arguments", "n_rows", "size"),
    [
        (["--fit", "11x13"], 14, "11x13"),
        (["--size", "most"], 8, "12x14"),
        (["--size", "most", "--resample", "0.5"], 8, "30x42"),
        (["--fit", "9x9", "--resample", "1.5x2", "--fit-about", "structures"], 14, "9x9"),
    ],
)
def test_the_check_says_what_the_build_does(two_sizes, tmp_path, full, arguments, n_rows, size):
    result = CliRunner().invoke(cli, ["check", str(two_sizes), *arguments, *full])
    assert f"A build would write {n_rows} of 14 pairs" in result.output
    assert f": {size} int16," in result.output
    assert "The commonest size" not in result.output
    out = tmp_path / "out.h5"
    built = CliRunner().invoke(cli, ["build", str(two_sizes), str(out), *arguments])
    assert built.exit_code == 0, built.output
    assert "x".join(map(str, loader.open_dataset(out).images.shape[1:])) == size
    assert len(loader.open_dataset(out)) == n_rows
