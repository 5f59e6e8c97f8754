"""The page that follows one pair through the modules names those that it really passes."""

import re
import sys
from pathlib import Path

from builders import SQUARE, dicom_bytes, instance, write_contour, write_dicom

import etl
import loader
from loader import Batches

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/one-pair.md").read_text()


def entered(run):
    """Return the modules of etl and loader in which a function is called."""
    files = set()

    def note(frame, event, _argument):
        if event == "call" and frame.f_code.co_name != "<module>":
            files.add(frame.f_code.co_filename)

    sys.setprofile(note)
    try:
        run()
    finally:
        sys.setprofile(None)
    packages = [Path(package.__file__).parent for package in (etl, loader)]
    return {
        f"{package.name}/{Path(file).relative_to(package).as_posix()}"
        for file in files
        for package in packages
        if Path(file).is_relative_to(package)
    }


def test_the_modules_of_the_path_are_those_that_a_pair_passes(tmp_path):
    # One pair in each layout, one of them in an encoding that only pydicom reads.
    (tmp_path / "link.csv").write_text("patient_id,original_id\nP1,A1\n")
    write_dicom(tmp_path, "P1", "1.dcm", dicom_bytes(instance(), "deflated"))
    contour = write_contour(tmp_path, "A1", 1, text=SQUARE).relative_to(tmp_path)
    table = tmp_path / "pairs.csv"
    table.write_text(f"patient_id,image,label,contour\nP1,dicoms/P1/1.dcm,pool,{contour}\n")
    out = tmp_path / "out.h5"
    options = {"rows": 12, "columns": 14}

    def run():
        etl.build(tmp_path, out, etl.BuildOptions(**options), force=True)
        etl.build(table, out, etl.BuildOptions(**options), force=True)
        Batches(out, batch_size=1).next_batch()

    passed = entered(run)
    path, rooms = PAGE.split("## Other modules")
    of_path = set(re.findall(r"`((?:etl|loader)/[\w/]+\.py)`", path))
    elsewhere = tuple(re.findall(r"`((?:etl|loader)/[\w/]+(?:\.py|/))`", rooms))
    assert sorted(of_path - passed) == []
    hidden = passed - of_path - {"etl/__init__.py", "loader/__init__.py"}
    assert sorted(name for name in hidden if not name.startswith(elsewhere)) == []
