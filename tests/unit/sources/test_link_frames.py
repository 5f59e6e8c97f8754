"""The link.csv layout with one multi-frame file for a patient: contours that number its frames."""

from collections import Counter

import numpy as np
import pytest
from builders import COLUMNS, ROWS, SQUARE, gradient, instance, write_contour, write_dicom

import etl
from etl.check import check
from etl.options import BuildOptions
from etl.verify.file import verify
from loader import open_dataset

N_FRAMES = 6
OPTIONS = {"rows": ROWS, "columns": COLUMNS, "audit": False}


def cine(n_frames=N_FRAMES, seed=0, uid="1.2.9"):
    pixels = [gradient(seed=100 * seed + n) for n in range(n_frames)]
    dataset = instance(pixels[0], uid=uid, NumberOfFrames=n_frames, FrameTime="30", TriggerTime=0)
    dataset.PixelData = np.stack(pixels).tobytes()
    return dataset


def write(root, numbers, name="1.dcm", dataset=None, kind="i"):
    """Write one patient with one file, and contours of some numbers."""
    root.mkdir(exist_ok=True)
    (root / "link.csv").write_text("patient_id,original_id\nP1,A1\n")
    write_dicom(root, "P1", name, dataset or cine())
    for number in numbers:
        write_contour(root, "A1", number, kind, f"{SQUARE}2 {3 + number / 100}\n")
    return root


def codes(result):
    return Counter(finding.code for finding in result.findings)


@pytest.mark.parametrize("name", ["1.dcm", "001.DCM", "77.dcm"])
@pytest.mark.parametrize("workers", [1, 2])
def test_numbers_of_contours_count_the_frames_of_the_only_file(tmp_path, name, workers):
    root = write(tmp_path / "data", [2, 1, 5], name)
    result = etl.build(root, tmp_path / "out.h5", BuildOptions(**OPTIONS), workers=workers)
    data = open_dataset(tmp_path / "out.h5")
    assert data.manifest["slice"].tolist() == [1, 2, 5]
    assert data.manifest["frame_number"].tolist() == [1, 2, 5]
    assert data.manifest["trigger_time"].tolist() == [0, 30, 120]
    for row, frame in enumerate((1, 2, 5)):
        assert np.array_equal(data.images[row], gradient(seed=frame - 1))
        assert f"-000{frame}-" in data.manifest["icontour_path"][row]
    assert codes(result)["image-no-contour"] == 3  # of frames 3, 4 and 6
    assert result.counts["dicoms"] == 1
    assert result.counts["pairs"] == 3
    assert verify(tmp_path / "out.h5", source=root, rebuild=True).problems == []


def test_both_contours_of_a_frame_are_one_pair(tmp_path):
    root = write(tmp_path / "data", [1, 2, 3])
    write(root, [2, 3, 4], kind="o")
    options = BuildOptions(("i", "o"), partial=True, **OPTIONS)
    etl.build(root, tmp_path / "out.h5", options)
    manifest = open_dataset(tmp_path / "out.h5").manifest
    assert manifest["frame_number"].tolist() == [1, 2, 3, 4]
    assert manifest["drawn_1"].tolist() == [1, 1, 1, 0]
    assert manifest["drawn_2"].tolist() == [0, 1, 1, 1]


@pytest.mark.parametrize(
    ("numbers", "name", "shown"),
    [
        ([1, 2, 7], "1.dcm", "1 to 7"),  # there is no frame 7
        ([0, 1, 2], "1.dcm", "0 to 2"),  # they count from 0, or something else
        ([3, 4, 5], "4.dcm", "3 to 5"),  # 4 may be slice 4
    ],
)
def test_numbers_that_leave_a_doubt_are_an_error(tmp_path, numbers, name, shown):
    root = write(tmp_path / "data", numbers, name)
    with pytest.raises(etl.EtlError, match="Nothing to build") as error:
        etl.build(root, tmp_path / "out.h5", BuildOptions(**OPTIONS))
    found = Counter(finding.code for finding in error.value.findings)
    assert found == {"image-multiframe": 1, "contour-no-image": len(numbers)}
    (told,) = (one for one in error.value.findings if one.code == "image-multiframe")
    assert told.path == f"dicoms/P1/{name}"
    assert (
        f"has 6 frames, and the numbers of the contours, {shown}, do not say which" in told.message
    )


def test_a_single_contour_with_the_number_of_the_file_says_no_frame(tmp_path):
    root = write(tmp_path / "data", [1])
    with pytest.raises(etl.EtlError) as error:
        etl.build(root, tmp_path / "out.h5", BuildOptions(**OPTIONS))
    assert Counter(one.code for one in error.value.findings) == {"image-multiframe": 1}


def test_two_files_are_two_slices_whatever_they_hold(tmp_path):
    root = write(tmp_path / "data", [1, 2])
    write_dicom(root, "P1", "2.dcm", instance(uid="1.2.3.7"))
    result = etl.build(root, tmp_path / "out.h5", BuildOptions(**OPTIONS))
    assert open_dataset(tmp_path / "out.h5").manifest["slice"].tolist() == [2]
    assert codes(result)["image-multiframe"] == 1


def test_contours_of_absent_slices_stay_so_beside_one_single_frame(tmp_path):
    root = write(tmp_path / "data", [1, 2, 3], dataset=instance())
    result = etl.build(root, tmp_path / "out.h5", BuildOptions(**OPTIONS))
    manifest = open_dataset(tmp_path / "out.h5").manifest
    assert (manifest["slice"].tolist(), manifest["frame_number"].tolist()) == ([1], [1])
    assert codes(result)["contour-no-image"] == 2


def test_a_file_that_cannot_be_read_is_the_finding_it_was(tmp_path):
    root = write(tmp_path / "data", [1, 2])
    (root / "dicoms/P1/1.dcm").write_bytes(b"no DICOM")
    with pytest.raises(etl.EtlError) as error:
        etl.build(root, tmp_path / "out.h5", BuildOptions(**OPTIONS))
    found = Counter(one.code for one in error.value.findings)
    assert found == {"image-unreadable": 1, "contour-no-image": 1}


def test_the_command_check_sees_the_frames(tmp_path):
    root = write(tmp_path / "data", [1, 2, 3])
    found = check(root, BuildOptions(**OPTIONS))
    assert (found.summary.n_pairs, found.summary.n_rows) == (3, 3)


def test_an_update_takes_over_the_rows_of_frames(tmp_path):
    root = write(tmp_path / "data", [1, 2, 3])
    out = tmp_path / "out.h5"
    etl.build(root, out, BuildOptions(**OPTIONS), update=True)
    write_contour(root, "A1", 5, text=f"{SQUARE}2 7.5\n")
    result = etl.build(root, out, BuildOptions(**OPTIONS), update=True)
    assert any(note.startswith("3 of 4 rows were taken over") for note in result.notes)
    etl.build(root, tmp_path / "full.h5", BuildOptions(**OPTIONS))
    assert out.read_bytes() == (tmp_path / "full.h5").read_bytes()


def test_no_header_is_read_where_names_leave_no_question(tmp_path, monkeypatch):
    from etl.sources import link_csv

    root = write(tmp_path / "data", [1], dataset=instance())
    monkeypatch.setattr(link_csv, "count_frames", lambda _: pytest.fail("it was read"))
    assert link_csv.discover(root, BuildOptions(**OPTIONS)).to_index == ()
    etl.build(root, tmp_path / "out.h5", BuildOptions(**OPTIONS))
