"""Makes v2.h5 and v2.json beside this file: run once for a format version, then read for ever.

python tests/golden/make.py
"""

import json
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER.parent))

from builders import (  # noqa: E402
    COLUMNS,
    OUTER_SQUARE,
    ROWS,
    SQUARE,
    write_contour,
    write_dicom,
    write_tree,
)

import etl  # noqa: E402
from loader import open_dataset  # noqa: E402


def build(out: Path, *, as_version_1: bool = False) -> None:
    """Build a small file that has a bit of everything: both labels, splits, folds, findings.

    Parameters
    ----------
    as_version_1 : bool
        Draw all contours alike, as they were when v1.h5 was made.
    """
    with tempfile.TemporaryDirectory() as folder:
        patients = [(f"P{i}", f"A{i}") for i in range(4)]
        header = {"TriggerTime": None, "ImageOrientationPatient": [1, 0, 0, 0, 0.5, -0.5]}
        root = write_tree(Path(folder) / "data", patients, slices=(1, 2), **header)
        for number in (1, 2) if as_version_1 else ():
            for _, original_id in patients:
                write_contour(root, original_id, number, "i", SQUARE)
                write_contour(root, original_id, number, "o", OUTER_SQUARE)
        write_contour(root, "A1", 2, text="-5.5 0\n4.5 0\n4.5 5\n-5.5 5\n")
        write_contour(root, "A2", 1, text="broken")
        write_contour(root, "A3", 9)
        write_dicom(root, "P3", "10.dcm")
        options = etl.BuildOptions(("i", "o"), ROWS, COLUMNS, split=(50.0, 25.0, 25.0), folds=2)
        etl.build(root, out, options, force=True)


def content(path: Path) -> dict[str, object]:
    """Return all that the file holds, as plain JSON; NaN as None."""
    data = open_dataset(path)
    tables = {"manifest": data.manifest, "contours": data.contours, "findings": data.findings}
    values = {
        f"{group}/{name}": [_plain(value) for value in column.tolist()]
        for group, columns in tables.items()
        for name, column in columns.items()
    }
    arrays = {"images": data.images.tolist(), "masks": data.masks.tolist()}
    kept = {
        key: data.attributes[key] for key in ("labels", "image_mean", "image_std", "dataset_id")
    }
    return {**arrays, **values, **kept}


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.decode()
    return None if value != value else value  # noqa: PLR0124  NaN


if __name__ == "__main__":
    build(FOLDER / "v2.h5")
    (FOLDER / "v2.json").write_text(json.dumps(content(FOLDER / "v2.h5")) + "\n")
