"""The reference values, on three real patients (public domain), where they are at hand."""

import itertools
import math
import os
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
from builders import copy_tree
from PIL import Image, ImageDraw

import etl
import loader
from etl.check import check
from etl.contours.polygon import area
from etl.contours.rasterise import rasterise
from etl.errors import EtlError
from etl.labels import cardiac_scheme
from etl.options import BuildOptions
from etl.quality.copies import Twin, judge
from etl.report import summary as report

pytestmark = pytest.mark.real_data


SHARED = Path(os.environ.get("DICOM_ETL_REAL_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture(scope="module")
def patients():
    folder = SHARED / "sunnybrook"
    if not folder.is_dir():
        pytest.skip("no real patients here: DICOM_ETL_REAL_DATA names the folder of sunnybrook/")
    return folder


@pytest.fixture(scope="module")
def built(patients, tmp_path_factory):
    """Build the file with both contour kinds under a rule; return it and the result."""
    folder = tmp_path_factory.mktemp("real")

    def build(rasterizer="center", contours=("i", "o"), **options):
        out = folder / f"{rasterizer}-{'-'.join(contours)}.h5"
        options = BuildOptions(contours=contours, rasterizer=rasterizer, **options)
        result = etl.build(patients, out, options, force=True)
        return result, loader.open_dataset(out)

    return build


def contours(data):
    """Yield (row, label, vertices) of every contour in the file."""
    for row in range(len(data)):
        for label, vertices in data.polygons(row):
            yield row, label, vertices


def test_56_pairs_and_15_images_without_contour(built):
    result, data = built(contours=("i",))
    assert (result.n_rows, len(data)) == (56, 56)
    codes = Counter(finding.code for finding in result.findings)
    assert codes == {"image-no-contour": 15, "alignment-dataset": 1}
    assert data.images.dtype == np.int16


def test_two_patients_who_are_one_are_told(patients, tmp_path):
    root = copy_tree(patients, tmp_path / "data")
    first, second, third = (root / "dicoms" / name for name in sorted(os.listdir(root / "dicoms")))
    for path in [*first.iterdir(), *second.iterdir()]:
        dataset = pydicom.dcmread(path)
        dataset.PatientID = "0123456"  # overwritten with X in all three
        dataset.save_as(path)
    result = etl.build(root, tmp_path / "out.h5", BuildOptions(split=(50, 25, 25)))
    (found,) = (one for one in result.findings if one.code == "same-person")
    ids = f"patients {first.name!r} and {second.name!r} have the same PatientID"
    assert found.message.startswith(ids)
    data = loader.open_dataset(tmp_path / "out.h5")
    sides = dict(zip(data.manifest["patient_id"].tolist(), data.manifest["split"], strict=True))
    assert sides[first.name] == sides[second.name] != sides[third.name]


def test_28_pairs_have_both_contours(built):
    result, data = built()
    assert (result.n_rows, data.images.shape) == (28, (28, 256, 256))
    codes = Counter(finding.code for finding in result.findings)
    assert codes == {"image-no-contour": 15, "contour-missing": 28, "alignment-dataset": 1}


def test_student_t_and_dice_of_the_seed(built):
    _, data = built("pillow")
    masks = {label: np.zeros(data.masks.shape, bool) for label in (1, 2)}
    for row, label, vertices in contours(data):
        masks[label][row] = rasterise(vertices, 256, 256, "pillow")
    blood, muscle = masks[1] & masks[2], masks[1] ^ masks[2]
    images = data.images.astype(float)
    low = images.min(axis=(1, 2), keepdims=True)
    scaled = (images - low) / (images.max(axis=(1, 2), keepdims=True) - low)
    assert student_t(scaled[muscle], scaled[blood]) == pytest.approx(-211.79530055309442, rel=1e-13)
    predicted = (scaled >= 0.14) & (blood | muscle)
    both = (predicted & blood).sum(axis=(1, 2))
    dice = 2 * both / (predicted.sum(axis=(1, 2)) + blood.sum(axis=(1, 2)))
    assert 100 * dice.mean() == pytest.approx(87.40097106112017, rel=1e-13)


def student_t(a, b):
    """Return Student's two-sample t with pooled variance."""
    freedom = len(a) + len(b) - 2
    pooled = (a.var(ddof=1) * (len(a) - 1) + b.var(ddof=1) * (len(b) - 1)) / freedom
    return (a.mean() - b.mean()) / math.sqrt(pooled * (1 / len(a) + 1 / len(b)))


def test_the_pillow_rule_is_pillows_own_on_every_contour(built):
    _, data = built("pillow", partial=True)
    n_contours = 0
    for _, _, vertices in contours(data):
        image = Image.new("L", (256, 256), 0)
        ImageDraw.Draw(image).polygon(list(map(tuple, vertices)), outline=0, fill=1)
        assert np.array_equal(rasterise(vertices, 256, 256, "pillow"), np.array(image))
        n_contours += 1
    assert n_contours == 84


def test_the_center_rule_keeps_areas(built):
    _, data = built("center", partial=True)
    pixels, areas = [], []
    for row, label, vertices in contours(data):
        pixels.append(rasterise(vertices, 256, 256).sum())
        areas.append(area(vertices))
        assert data.manifest[f"{' io'[label]}contour_area"][row] == areas[-1]
    ratio = np.array(pixels) / np.array(areas)
    assert len(ratio) == 84
    assert abs(sum(pixels) / sum(areas) - 1) < 0.0006
    assert np.abs(ratio - 1).max() < 0.014


def test_an_epoch_of_batches_of_8_is_complete_after_the_7th(built):
    _, data = built(contours=("i",))
    batches = loader.Batches(data, batch_size=8)
    for number in range(1, 8):
        assert batches.epochs_completed == 0
        images, masks = batches.next_batch()
        assert (images.shape, masks.shape) == ((256, 256, 8), (256, 256, 8))
        assert number == 7 or batches.epochs_completed == 0
    assert batches.epochs_completed == 1


@pytest.mark.parametrize("n_contours", [6, None])
def test_the_contours_count_from_1_which_the_option_mends(built, n_contours):
    result, data = built(contours=("i",), audit_contours=n_contours)
    (finding,) = (found for found in result.findings if found.code == "alignment-dataset")
    assert "build with --contour-origin 1." in finding.message
    alignment = report.summarise(data).alignment
    assert 0.7 <= alignment["dx"] <= 1.0
    assert 0.7 <= alignment["dy"] <= 1.0
    assert alignment["n_patients"] == 3
    result, data = built(contours=("i",), audit_contours=n_contours, contour_origin=1)
    assert {finding.code for finding in result.findings} == {"image-no-contour"}
    assert abs(report.summarise(data).alignment["dx"]) < 0.5


@pytest.mark.parametrize("label", [1, 2])
def test_the_original_of_a_copied_contour_is_never_called_the_copy(built, label):
    """Each contour is given to every other image in turn; who tells, tells the truth."""
    _, data = built(partial=True, contour_origin=1)
    scheme = cardiac_scheme(("i", "o"))
    drawn = [dict(data.polygons(row)) for row in range(len(data))]
    patients = data.manifest["patient_id"].tolist()
    rows = [row for row, own in enumerate(drawn) if label in own]
    told = Counter()
    for original, copy in itertools.permutations(rows[::2], 2):
        contours = {original: drawn[original], copy: drawn[copy] | {label: drawn[original][label]}}
        pictures = SimpleNamespace(
            image=lambda row: data.images[row],
            polygons=lambda row, contours=contours: list(contours[row].items()),
        )
        twins = [Twin(row, scheme[label]) for row in (original, copy)]
        (verdict,) = judge([twins], pictures, scheme, patients.__getitem__)
        assert verdict.original in {None, 0}
        told[patients[original] == patients[copy], verdict.original] += 1
    for is_same, least in ((False, 0.7), (True, 0.3)):
        assert told[is_same, 0] > least * (told[is_same, 0] + told[is_same, None])


@pytest.mark.parametrize("kind", ["i", "o"])
def test_a_patient_with_anothers_contours_is_told_from_the_other(patients, tmp_path, kind):
    ids = [line.split(",") for line in (patients / "link.csv").read_text().split()[1:]]
    for (copier, mine), (owner, other) in itertools.permutations(ids, 2):
        root = copy_tree(patients, tmp_path / f"{copier}-{owner}")
        both = (root / "contourfiles" / one / f"{kind}-contours" for one in (other, mine))
        files = list(zip(*(sorted(folder.iterdir()) for folder in both), strict=False))
        for source, target in files:
            shutil.copyfile(source, target)
        result = etl.build(root, root / "out.h5", BuildOptions(("i", "o"), partial=True))
        found = [one for one in result.findings if one.code == "identical-contour"]
        assert {one.path for one in found} == {
            target.relative_to(root).as_posix() for _, target in files
        }
        (told,) = (one for one in result.diagnoses if one.code == "identical-contour")
        assert (told.patient_id, told.original_id) == (copier, mine)
        assert f"{kind}-contours are copies of {owner} ({other})'s" in told.text


def test_workers_and_a_copy_elsewhere_give_the_same_bytes(patients, tmp_path):
    copy = copy_tree(patients, tmp_path / "copy")
    for path in copy.rglob("*.*"):
        os.utime(path, (1, 1))
    for out, source, workers in (("a", patients, 1), ("b", patients, 2), ("c", copy, 5)):
        etl.build(source, tmp_path / out, workers=workers)
    assert len({(tmp_path / out).read_bytes() for out in "abc"}) == 1


@pytest.mark.parametrize("full", [False, True])
def test_a_check_says_what_the_build_does(patients, built, full):
    found = check(patients, BuildOptions(contours=("i",)), full=full)
    result, _ = built(contours=("i",))
    assert found.summary.n_rows == result.n_rows == 56
    assert found.summary.sizes == [((256, 256), 56)]
    assert found.summary.n_series == 3
    expected = [f for f in result.findings if full or f.code != "alignment-dataset"]
    assert found.findings == expected


class TestStructureSets:
    """CT with structure sets: the references of two of them are of no use."""

    @pytest.fixture
    def root(self):
        folder = SHARED / "rtstruct"
        if not folder.is_dir():
            pytest.skip("no structure sets: DICOM_ETL_REAL_DATA names the folder of rtstruct/")
        return folder

    def test_two_squares_of_one_structure_are_a_frame(self, root, tmp_path):
        out = tmp_path / "out.h5"
        result = etl.build(root / "mock_data", out, BuildOptions(rows=512, columns=512))
        data = loader.open_dataset(out)
        assert data.manifest["dicom_path"].tolist() == ["ct_1.dcm"]
        assert int((data.masks[0] == 1).sum()) == 1443
        codes = {finding.code for finding in result.findings}
        assert codes == {
            "drawings-not-taken",
            "frame-of-reference-differs",
            "image-no-contour",
        }

    def test_a_set_whose_images_are_not_there_is_one_finding(self, root, tmp_path):
        with pytest.raises(EtlError, match="1 contour-no-image") as caught:
            etl.build(root / "empty", tmp_path / "out.h5")
        assert len(caught.value.findings) == 1


# ------------------------------------------------------------------------------------------ sizes


@pytest.mark.parametrize("about", ["image", "structures"])
def test_cropped_rows_have_the_masks_of_whole_ones(patients, built, tmp_path, about):
    _, whole = built(partial=True)
    options = {"size": "fit", "rows": 140, "columns": 152, "fit_about": about}
    etl.build(
        patients,
        tmp_path / "out.h5",
        BuildOptions(contours=("i", "o"), partial=True, **options),
    )
    data = loader.open_dataset(tmp_path / "out.h5")
    assert not data.flagged("structure-cut").any()
    assert data.attributes["alignment"] == whole.attributes["alignment"]
    for row in range(len(whole)):
        assert np.array_equal(data.to_source(row, data.masks[row]), whole.masks[row])
        back = data.to_source(row, data.images[row], fill=-1)
        assert np.array_equal(back[back >= 0], whole.images[row][back >= 0])
        assert (back >= 0).sum() == 140 * 152


def test_real_contours_keep_their_areas_on_other_pixels(patients, built, tmp_path):
    _, whole = built("center", ("i",))
    # Patients differ in the spacing of their pixels: 1.29 and 1.37 mm.
    options = BuildOptions(size="fit", rows=400, columns=400, resample=0.9)
    etl.build(patients, tmp_path / "out.h5", options)
    data = loader.open_dataset(tmp_path / "out.h5")
    expected = whole.manifest["icontour_area"] * whole.manifest["pixel_spacing_row"] ** 2
    assert data.manifest["icontour_area"] * 0.81 == pytest.approx(expected)
    n_pixels = data.manifest["n_pixels_1"] * 0.81
    assert n_pixels.sum() == pytest.approx(expected.sum(), rel=0.001)
    assert n_pixels == pytest.approx(expected, rel=0.015)


def test_images_of_three_sizes_in_one_file(tmp_path):
    folder = SHARED / "seg" / "dcmqi"
    if not folder.is_dir():
        pytest.skip("no segmentations: DICOM_ETL_REAL_DATA names the folder of seg/")
    options = {"structure_sets": "all"}
    etl.build(
        folder, tmp_path / "all.h5", BuildOptions(size="fit", rows=500, columns=400, **options)
    )
    data = loader.open_dataset(tmp_path / "all.h5")
    paths = data.manifest["dicom_path"].tolist()
    sizes = set()
    for rows, columns in ((512, 512), (38, 23), (38, 24)):
        etl.build(
            folder,
            tmp_path / "one.h5",
            BuildOptions(rows=rows, columns=columns, **options),
            force=True,
        )
        one = loader.open_dataset(tmp_path / "one.h5")
        for row, path in enumerate(one.manifest["dicom_path"].tolist()):
            back = data.to_source(paths.index(path), data.masks[paths.index(path)])
            shown = data.to_source(paths.index(path), np.ones(data.masks.shape[1:], np.bool_))
            assert np.array_equal(back[shown], one.masks[row][shown])
            sizes.add(back.shape)
    assert sizes == {(512, 512), (38, 23), (38, 24)}
