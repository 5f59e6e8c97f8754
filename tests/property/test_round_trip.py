"""What is written is what is read: any pixels, encodings and contours, through a whole build."""

import tempfile
from pathlib import Path

import numpy as np
from builders import dicom_bytes, instance, write_contour, write_dicom
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import etl
from etl.contours.rasterise import rasterise
from etl.options import BuildOptions
from loader import open_dataset

ROWS, COLUMNS = 6, 7
DTYPES = ["<i2", "<u2", "<i1", "<u1"]
CORNERS = st.tuples(st.integers(0, 24), st.integers(0, 20)).map(lambda xy: (xy[0] / 4, xy[1] / 4))
TRIANGLES = st.lists(CORNERS, min_size=3, max_size=7, unique=True)


@st.composite
def samples(draw):
    dtype = draw(st.sampled_from(DTYPES))
    return {
        "pixels": draw(hnp.arrays(dtype, (ROWS, COLUMNS))),
        "syntax": draw(st.sampled_from(["explicit", "implicit", "big", "deflated"])),
        "inverted": draw(st.booleans()),
        "slope": draw(st.sampled_from([None, 1, 2, -3, 0.5])),
        "intercept": draw(st.sampled_from([None, 0, -1024, 7, 0.25])),
        "vertices": draw(TRIANGLES),
    }


def expected_image(sample):
    stored = sample["pixels"].astype(np.float64)
    if sample["inverted"]:
        limits = np.iinfo(sample["pixels"].dtype)
        stored = limits.min + limits.max - stored
    return stored * (sample["slope"] or 1) + (sample["intercept"] or 0)


@settings(max_examples=25)
@given(st.lists(samples(), min_size=1, max_size=4))
def test_write_then_read_is_identity(found):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "link.csv").write_text("patient_id,original_id\nP,A\n")
        masks = []
        for number, sample in enumerate(found):
            photometric = "MONOCHROME1" if sample["inverted"] else "MONOCHROME2"
            dataset = instance(
                sample["pixels"],
                PhotometricInterpretation=photometric,
                RescaleSlope=sample["slope"],
                RescaleIntercept=sample["intercept"],
            )
            write_dicom(root, "P", f"{number}.dcm", dicom_bytes(dataset, sample["syntax"]))
            text = "".join(f"{x} {y}\n" for x, y in sample["vertices"])
            write_contour(root, "A", number, text=text)
            masks.append(rasterise(np.array(sample["vertices"]), ROWS, COLUMNS))
        good = [number for number, mask in enumerate(masks) if mask.any()]
        if not good:
            return
        etl.build(root, root / "out.h5", BuildOptions(rows=ROWS, columns=COLUMNS, audit=False))
        data = open_dataset(root / "out.h5")
        assert data.manifest["slice"].tolist() == good
        for row, number in enumerate(good):
            image, mask = data[row]
            assert np.array_equal(image, expected_image(found[number]))
            assert np.array_equal(mask, masks[number])
            start, length = (data.contours[name][row] for name in ("start", "length"))
            x, y = (data.contours[axis][start : start + length].tolist() for axis in "xy")
            assert list(zip(x, y, strict=True)) == found[number]["vertices"]
