"""The reference values, on three real patients (public domain), where they are at hand."""

import math
import os
from collections import Counter
from pathlib import Path

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
from etl.options import BuildOptions
from etl.report import summary as report

pytestmark = pytest.mark.real_data


@pytest.fixture(scope="module")
def patients():
    default = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.get("DICOM_ETL_REAL_DATA", default)) / "sunnybrook"
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
