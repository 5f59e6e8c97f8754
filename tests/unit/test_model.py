import io

import numpy as np
from builders import dicom_bytes

from etl.model import Contour, Identity, Link, Sample
from etl.parse_dicom import read_instance


def test_a_sample_is_the_same_after_it_was_packed():
    link = Link("P1", "C1", 7, "dicoms/P1/7.dcm", "contourfiles/7.txt", is_audited=True)
    contours = (
        Contour("i", np.array([[1.25, -0.0], [3, 4], [5, 6]]), "ab"),
        Contour("o", np.empty((0, 2)), ""),
    )
    sample = Sample(link, read_instance(io.BytesIO(dicom_bytes())), Identity(1, 2, 3), contours)
    found = Sample.unpacked(sample.packed())
    assert repr(found) == repr(sample)
    assert [contour.label for contour in found.contours] == [1, 2]
    assert found.instance.pixel_format.n_bytes == sample.instance.pixel_format.n_bytes
