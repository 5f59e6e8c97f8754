import io

import numpy as np
from builders import dicom_bytes

from etl.dicom.instance import read_instance
from etl.findings import SampleKey
from etl.model import AnnotationRef, FileStamp, FrameRef, Link, Region, Sample


def test_a_sample_is_the_same_after_it_was_packed():
    annotations = AnnotationRef(1, "contourfiles/7.txt"), AnnotationRef(2, "a.dcm", "roi 3")
    key = SampleKey("P1", "1.2.3", 7, 4)
    link = Link(key, "C1", FrameRef("dicoms/P1/7.dcm", 4), annotations, is_audited=True)
    mask = np.random.default_rng(0).random((5, 7)) < 0.5
    regions = (
        Region(1, (np.array([[1.25, -0.0], [3, 4], [5, 6]]), np.zeros((4, 2))), "ab"),
        Region(2, (np.empty((0, 2)),), ""),
        Region(3, (), "cd", mask),
    )
    sample = Sample(link, read_instance(io.BytesIO(dicom_bytes())), FileStamp(1, 2, 3), regions)
    found = Sample.unpacked(sample.packed())
    assert repr(found) == repr(sample)
    assert [region.n_vertices for region in found.regions] == [7, 0, 0]
    assert found.regions[2].mask.dtype == mask.dtype
    assert np.array_equal(found.regions[2].mask, mask)
    assert found.instance.pixel_format.n_bytes == sample.instance.pixel_format.n_bytes
    assert isinstance(found.link.key, SampleKey)
