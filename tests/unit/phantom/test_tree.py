import csv
from pathlib import Path

import numpy as np
import pydicom
import pydicom.config
import pytest

from etl.contours import polygon
from etl.errors import EtlError
from etl.options import BuildOptions
from etl.phantom.heart import (
    Cine,
    Outline,
    contour_outline,
    contour_vertices,
    contraction,
    draw_anatomy,
    end_systole,
    ventricle_outlines,
)
from etl.phantom.image import short_axis_image, slice_scene
from etl.phantom.tree import PhantomCounts, phantom_instance, write_phantom
from etl.sources import link_csv

SMALL = {"patients": 2, "slices": 4, "phases": 3}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder, **SMALL)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read_truth(folder: Path) -> list[dict[str, str]]:
    with (folder / "truth.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def vertices_of(folder: Path, row: dict[str, str]) -> np.ndarray:
    original_id = row["patient_id"].replace("PHANTOM0", "SYN-")
    kind = row["contour"]
    name = f"IM-0001-{int(row['slice']):04d}-{kind}contour-manual.txt"
    return np.loadtxt(folder / "contourfiles" / original_id / f"{kind}-contours" / name)


def instances_of(folder: Path, patient_id: str) -> list[pydicom.Dataset]:
    paths = sorted((folder / "dicoms" / patient_id).iterdir(), key=lambda path: int(path.stem))
    return [pydicom.dcmread(path) for path in paths]


# --------------------------------------------------------------------------------- the tree


def test_the_same_arguments_give_the_same_bytes(tree, tmp_path):
    write_phantom(tmp_path / "again", **SMALL)
    assert content(tmp_path / "again") == content(tree)


def test_another_seed_gives_other_images_contours_and_uids(tmp_path):
    trees = []
    for seed in (0, 1):
        write_phantom(tmp_path / str(seed), patients=1, slices=1, phases=1, seed=seed)
        trees.append(content(tmp_path / str(seed)))
    assert trees[0].keys() == trees[1].keys()
    same = [path for path in trees[0] if trees[0][path] == trees[1][path]]
    assert same == ["link.csv"]


def test_a_patient_does_not_depend_on_how_many_there_are(tree, tmp_path):
    write_phantom(tmp_path / "one", **{**SMALL, "patients": 1})
    folders = ("dicoms/", "contourfiles/")
    ours = {path: data for path, data in content(tmp_path / "one").items() if "/" in path}
    assert ours
    assert all(path.startswith(folders) and content(tree)[path] == ours[path] for path in ours)


def test_counts_say_what_is_on_disk(tmp_path):
    counts = write_phantom(tmp_path / "tree", **SMALL)
    paths = list(content(tmp_path / "tree"))
    assert counts == PhantomCounts(
        n_patients=len(list((tmp_path / "tree" / "dicoms").iterdir())),
        n_dicoms=sum(path.endswith(".dcm") for path in paths),
        n_icontours=sum(path.endswith("icontour-manual.txt") for path in paths),
        n_ocontours=sum(path.endswith("ocontour-manual.txt") for path in paths),
    )
    assert counts == PhantomCounts(n_patients=2, n_dicoms=24, n_icontours=8, n_ocontours=4)


def test_every_contour_finds_its_image_and_every_o_contour_its_i_contour(tree):
    inner = link_csv.discover(tree, BuildOptions(("i",)))
    both = link_csv.discover(tree, BuildOptions(("i", "o")))
    assert (len(inner.links), len(both.links)) == (8, 4)
    assert {finding.code for finding in inner.findings} == {"image-no-contour"}
    assert {finding.code for finding in both.findings} == {"image-no-contour", "contour-missing"}
    assert both.counts["ignored_files"] == 0


def test_original_ids_differ_from_patient_ids(tree):
    lines = (tree / "link.csv").read_text().splitlines()
    assert lines == ["patient_id,original_id", "PHANTOM001,SYN-01", "PHANTOM002,SYN-02"]


def test_one_phase_has_both_contours_at_end_diastole(tmp_path):
    counts = write_phantom(tmp_path / "tree", patients=1, slices=3, phases=1)
    assert counts == PhantomCounts(n_patients=1, n_dicoms=3, n_icontours=1, n_ocontours=1)


def test_one_slice_has_contours(tmp_path):
    counts = write_phantom(tmp_path / "tree", patients=1, slices=1, phases=4)
    assert counts == PhantomCounts(n_patients=1, n_dicoms=4, n_icontours=2, n_ocontours=1)


def test_progress_adds_up_to_the_dicoms(tmp_path):
    steps = []
    counts = write_phantom(tmp_path / "tree", patients=1, slices=2, phases=2, progress=steps.append)
    assert sum(steps) == counts.n_dicoms


# ------------------------------------------------------------------------------- the headers


def test_headers_are_valid(tree, monkeypatch):
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.RAISE)
    for patient in range(SMALL["patients"]):
        for instance in instances_of(tree, f"PHANTOM00{patient + 1}"):
            values = [element.value for element in instance.iterall()]
            assert len(values) > 50
            assert instance.pixel_array.shape == (256, 256)
            assert instance.pixel_array.min() == instance.SmallestImagePixelValue
            assert instance.pixel_array.max() == instance.LargestImagePixelValue
            assert str(instance.PatientName) == f"Phantom^00{patient + 1}"
            assert instance.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian


def test_instance_number_is_the_file_name_and_time_runs_over_the_beat(tree):
    instances = instances_of(tree, "PHANTOM001")
    assert [instance.InstanceNumber for instance in instances] == list(range(1, 13))
    times = [float(instance.TriggerTime) for instance in instances[:3]]
    assert times == pytest.approx([0, instances[0].NominalInterval / 3, times[1] * 2], abs=1e-5)
    assert times == [float(instance.TriggerTime) for instance in instances[3:6]]


def test_uids_are_valid_and_identify_instance_series_and_study(tree):
    instances = [i for p in (1, 2) for i in instances_of(tree, f"PHANTOM00{p}")]
    for keyword, n_different in (
        ("SOPInstanceUID", 24),
        ("SeriesInstanceUID", 8),
        ("StudyInstanceUID", 2),
        ("FrameOfReferenceUID", 2),
    ):
        uids = {instance[keyword].value for instance in instances}
        assert len(uids) == n_different
        assert all(uid.is_valid for uid in uids)


def test_slices_move_along_their_oblique_normal(tree):
    instances = instances_of(tree, "PHANTOM002")[::3]
    row, column = np.array(instances[0].ImageOrientationPatient, float).reshape(2, 3)
    assert np.array([row @ row, column @ column, row @ column]) == pytest.approx(
        [1, 1, 0], abs=1e-5
    )
    normal = np.cross(row, column)
    assert np.abs(normal).max() < 0.95
    positions = np.array([instance.ImagePositionPatient for instance in instances], float)
    steps = np.diff(positions, axis=0)
    assert steps == pytest.approx(
        np.tile(-float(instances[0].SpacingBetweenSlices) * normal, (3, 1)), abs=1e-3
    )
    locations = [float(instance.SliceLocation) for instance in instances]
    assert locations == pytest.approx(positions @ normal, abs=1e-3)


def test_patients_have_the_two_common_ways_to_store_values(tree):
    stored = [
        (first.BitsStored, first.HighBit, first.PixelRepresentation)
        for first in (instances_of(tree, f"PHANTOM00{p}")[0] for p in (1, 2))
    ]
    assert stored == [(16, 15, 1), (12, 11, 0)]


def test_one_instance_is_the_one_in_the_tree(tree):
    instance = phantom_instance(Cine(seed=0, patient=1, slices=4, phases=3), 2, 1)
    assert instance == instances_of(tree, "PHANTOM002")[2 * 3 + 1]


# ------------------------------------------------------------------------------ the contours


def test_polygons_have_the_true_area_and_centre(tree):
    rows = read_truth(tree)
    assert len(rows) == 12
    for row in rows:
        vertices = vertices_of(tree, row)
        assert polygon.area(vertices) == pytest.approx(float(row["area"]), rel=1e-3)
        x, y = vertices.T
        next_x, next_y = np.roll(vertices, -1, axis=0).T
        cross = x * next_y - next_x * y
        centre = ((x + next_x) @ cross, (y + next_y) @ cross) / (3 * cross.sum())
        truth = (float(row["centre_x"]), float(row["centre_y"]))
        assert centre == pytest.approx(truth, abs=0.01)


def test_an_ellipse_like_outline_has_the_area_of_its_integral():
    outline = Outline(10 + 20j, 8.0, (0.5 + 0.2j, 1 - 0.4j, 0.3j))
    angles = np.arange(100_000) * 2 * np.pi / 100_000
    radii = 8 + sum(
        c.real * np.cos(k * angles) + c.imag * np.sin(k * angles)
        for k, c in enumerate(outline.harmonics, start=1)
    )
    assert outline.area == pytest.approx((radii**2).mean() * np.pi, rel=1e-12)
    moment = (radii**3 * np.exp(1j * angles)).mean() * 2 * np.pi / 3
    assert outline.centroid == pytest.approx(10 + 20j + moment / outline.area, rel=1e-12)


def test_a_circle_is_pi_r_squared_about_its_centre():
    circle = Outline(3 + 4j, 2.0)
    assert circle.area == pytest.approx(4 * np.pi)
    assert circle.centroid == pytest.approx(3 + 4j)


@pytest.mark.parametrize("seed", range(10))
def test_the_wall_is_nowhere_thinner_than_four_pixels(seed):
    anatomy = draw_anatomy(Cine(seed, patient=seed, slices=8, phases=10))
    for level in (0.0, 0.3, 0.6, 1.0):
        for contracted in (0.0, 0.5, 1.0):
            inner, outer = ventricle_outlines(anatomy, level, contracted)
            gaps = contour_vertices(inner)[:, None] - contour_vertices(outer, 360)
            assert np.hypot(gaps[..., 0], gaps[..., 1]).min() > 4
            assert inner.area < outer.area


def test_the_ventricle_shrinks_to_the_apex_and_in_systole_while_its_wall_thickens():
    anatomy = draw_anatomy(Cine(0, 0, 8, 10))
    radii = [ventricle_outlines(anatomy, level, 0.0)[0].radius for level in (0, 0.25, 0.5, 1)]
    assert radii == sorted(radii, reverse=True)
    (rest_in, rest_out), (beat_in, beat_out) = (
        ventricle_outlines(anatomy, 0.5, contracted) for contracted in (0.0, 1.0)
    )
    assert beat_in.radius < 0.8 * rest_in.radius
    assert beat_out.radius - beat_in.radius > 1.2 * (rest_out.radius - rest_in.radius)


@pytest.mark.parametrize("phases", [1, 2, 3, 10, 30])
def test_the_beat_starts_at_rest_and_is_strongest_at_end_systole(phases):
    beat = [contraction(phase, phases) for phase in range(phases)]
    assert beat[0] == 0
    assert beat[end_systole(phases)] == max(beat)
    assert phases == 1 or end_systole(phases) > 0


# -------------------------------------------------------------------------------- the images


def profile(image: np.ndarray, outline: Outline, displacements: np.ndarray) -> np.ndarray:
    """Mean intensity along curves displaced outwards along the outline's normals (bilinear)."""
    vertices = contour_vertices(outline, 360)
    tangents = np.roll(vertices, -1, axis=0) - np.roll(vertices, 1, axis=0)
    normals = np.stack([tangents[:, 1], -tangents[:, 0]], axis=1)
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    x, y = np.moveaxis(vertices + displacements[:, None, None] * normals, -1, 0)
    left, top = x.astype(int), y.astype(int)
    to_right, to_bottom = x - left, y - top
    upper = image[top, left] * (1 - to_right) + image[top, left + 1] * to_right
    lower = image[top + 1, left] * (1 - to_right) + image[top + 1, left + 1] * to_right
    return (upper * (1 - to_bottom) + lower * to_bottom).mean(axis=1)


@pytest.mark.parametrize("patient", range(4))
@pytest.mark.parametrize("phase", [0, 4])
def test_the_inner_contour_lies_on_the_image_edge(patient, phase):
    cine = Cine(5, patient, slices=8, phases=10)
    anatomy = draw_anatomy(cine)
    for slice_index in (1, 4, 6):
        scene = slice_scene(anatomy, cine.level(slice_index))
        image = short_axis_image(scene, contraction(phase, 10), cine.rng(slice_index, phase))
        displacements = np.arange(-60, 61) / 20
        along = profile(
            image.astype(float), contour_outline(cine, slice_index, phase, "i"), displacements
        )
        contrast = along[:-20] - along[20:]
        steepest = displacements[10:-10][contrast.argmax()]
        assert abs(steepest) <= 0.25
        inside, outside = along[displacements == -2], along[displacements == 2]
        assert inside > 2 * outside


def test_phases_and_slices_change_smoothly():
    cine = Cine(0, 0, slices=9, phases=20)
    anatomy = draw_anatomy(cine)
    quiet = np.random.default_rng(0)

    def image(slice_index: int, phase: int) -> np.ndarray:
        scene = slice_scene(anatomy, cine.level(slice_index))
        return short_axis_image(scene, contraction(phase, 20), quiet).astype(float)

    here = image(4, 3)
    assert np.corrcoef(here.ravel(), image(4, 4).ravel())[0, 1] > 0.98
    assert np.corrcoef(here.ravel(), image(5, 3).ravel())[0, 1] > 0.9


# -------------------------------------------------------------------------------- the folder


def test_a_folder_with_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(EtlError, match=r"^Phantom not written: .*: expected an empty folder"):
        write_phantom(tmp_path, **SMALL)
    assert content(tmp_path) == {"notes.txt": b"mine"}


def test_an_older_phantom_is_refused_without_force(tree):
    before = content(tree)
    with pytest.raises(EtlError, match="force=True"):
        write_phantom(tree, **SMALL)
    assert content(tree) == before


def test_force_replaces_an_older_phantom_completely(tmp_path):
    write_phantom(tmp_path / "tree", patients=2, slices=1, phases=2)
    write_phantom(tmp_path / "tree", patients=1, slices=1, phases=1, force=True)
    write_phantom(tmp_path / "fresh", patients=1, slices=1, phases=1)
    assert content(tmp_path / "tree") == content(tmp_path / "fresh")


@pytest.mark.parametrize(
    "foreign",
    ["notes.txt", "dicoms/SCD0000101/1.dcm", "dicoms/PHANTOM001/scan.dcm", "contourfiles/a/b.txt"],
)
def test_force_leaves_a_phantom_with_foreign_files_alone(tmp_path, foreign):
    write_phantom(tmp_path, patients=1, slices=1, phases=1)
    (tmp_path / foreign).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / foreign).write_text("mine")
    before = content(tmp_path)
    with pytest.raises(EtlError, match=f"found {foreign}"):
        write_phantom(tmp_path, **SMALL, force=True)
    assert content(tmp_path) == before


def test_force_leaves_a_folder_that_is_no_phantom_alone(tmp_path):
    (tmp_path / "link.csv").write_text("patient_id,original_id\nA,B\n")
    (tmp_path / "truth.csv").write_text("mine\n")
    before = content(tmp_path)
    with pytest.raises(EtlError, match="expected only an older phantom's files"):
        write_phantom(tmp_path, **SMALL, force=True)
    assert content(tmp_path) == before


def test_force_follows_no_link_out_of_the_folder(tmp_path):
    write_phantom(tmp_path / "tree", patients=1, slices=1, phases=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "tree" / "dicoms" / "PHANTOM002").symlink_to(tmp_path / "mine")
    with pytest.raises(EtlError, match="found dicoms/PHANTOM002"):
        write_phantom(tmp_path / "tree", patients=1, slices=1, phases=1, force=True)


def test_an_interrupted_run_leaves_the_older_phantom_as_it_was(tmp_path):
    write_phantom(tmp_path / "tree", patients=1, slices=1, phases=1)
    before = content(tmp_path / "tree")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    for folder in ("tree", "new"):
        with pytest.raises(KeyboardInterrupt):
            write_phantom(tmp_path / folder, **SMALL, force=True, progress=interrupt)
    assert content(tmp_path / "tree") == before
    assert not (tmp_path / "new").exists()


def test_a_killed_run_can_be_replaced(tmp_path):
    write_phantom(tmp_path / "tree", patients=1, slices=1, phases=1)
    (tmp_path / "killed").mkdir()
    (tmp_path / "tree").rename(tmp_path / "killed" / ".phantom-partial")
    write_phantom(tmp_path / "killed", patients=1, slices=1, phases=1, force=True)
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == [
        "contourfiles",
        "dicoms",
        "link.csv",
        "truth.csv",
    ]


def test_a_file_in_the_folders_place_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(EtlError, match="expected a folder"):
        write_phantom(tmp_path / "file", **SMALL, force=True)
    with pytest.raises(EtlError, match=r"Phantom not written: .*file/tree"):
        write_phantom(tmp_path / "file" / "tree", **SMALL)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("patients", 0),
        ("patients", 1000),
        ("slices", 0),
        ("slices", 100),
        ("phases", 0),
        ("seed", -1),
    ],
)
def test_a_number_out_of_range_is_refused_before_anything_is_written(tmp_path, name, value):
    with pytest.raises(EtlError, match=f"^Phantom not written: {name}: expected .*found {value}"):
        write_phantom(tmp_path / "tree", **{**SMALL, name: value})
    assert not (tmp_path / "tree").exists()
