import pytest

from etl.findings import CODES, FLAG_CODES, QUALITY_CODES, SEVERITY_ORDER, Finding


def test_a_code_keeps_its_bit():
    """Bits stand in files that exist: these fourteen never change."""
    assert FLAG_CODES[:14] == (
        "contour-partly-outside",
        "contour-open-gap",
        "contour-self-crossing",
        "contour-repeated-points",
        "inner-outside-outer",
        "identical-contour",
        "identical-image",
        "area-jump",
        "centroid-jump",
        "area-outlier",
        "image-constant",
        "image-saturated",
        "geometry-changes",
        "instance-number-differs",
    )


def test_bits_are_taken_once_and_without_gaps():
    bits = [entry.flag for entry in CODES.values() if entry.flag is not None]
    assert sorted(bits) == list(range(len(bits)))
    assert len(bits) <= 64
    assert [CODES[code].flag for code in FLAG_CODES] == list(range(len(bits)))


def test_every_code_has_a_severity_and_a_condition():
    assert {entry.severity for entry in CODES.values()} == set(SEVERITY_ORDER)
    assert all(entry.when for entry in CODES.values())
    assert all(CODES[code].severity == "warning" for code in {*FLAG_CODES, *QUALITY_CODES})


@pytest.mark.parametrize(
    ("path", "line"), [("a/b.txt", "warning: area-jump: a/b.txt: x"), ("", "warning: area-jump: x")]
)
def test_a_finding_is_one_line(path, line):
    assert str(Finding("area-jump", path, "x")) == line


def test_a_name_cannot_steer_the_terminal():
    assert str(Finding("image-size", "\x1b[2J.dcm", "a\nb")) == (
        r"error: image-size: \x1b[2J.dcm: a\nb"
    )
