import time

import numpy as np
import pytest

from etl.contours.text import parse_contour
from etl.errors import ContourError, limited


def test_vertices_are_x_then_y_as_written():
    (found,) = parse_contour(b"115.00 95.50\n1 -2\n.5 3.\n")
    assert found.dtype == np.float64
    assert found.tolist() == [[115, 95.5], [1, -2], [0.5, 3]]


def test_line_ends_blanks_and_exponents_are_read():
    text = b"\n 1.5\t2 \r\n\r\n3e0 +4.0\r5 6.250e+01"
    (found,) = parse_contour(text)
    assert found.tolist() == [[1.5, 2], [3, 4], [5, 62.5]]


def test_an_empty_file_has_no_vertices():
    (found,) = parse_contour(b"\n \n")
    assert found.shape == (0, 2)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("blank", [b"", b" \t"])
@pytest.mark.parametrize("n_blanks", [1, 3])
def test_blank_lines_separate_the_polygons_of_a_region(end, blank, n_blanks):
    one, two = [b"1 1", b"5 1", b"5 5"], [b"7 7", b"9 7", b"9 9", b"7 9"]
    lines = [blank, *one, *[blank] * n_blanks, *two, blank]
    found = parse_contour(end.join(lines))
    assert [part.tolist() for part in found] == [
        [[1, 1], [5, 1], [5, 5]],
        [[7, 7], [9, 7], [9, 9], [7, 9]],
    ]


@pytest.mark.parametrize("lines", ["1 1\n\n5 1\n\n5 5\n", "1 1\n5 1\n5 5\n\n7 7\n9 9\n"])
def test_blank_lines_that_leave_less_than_a_polygon_separate_nothing(lines):
    (found,) = parse_contour(lines.encode())
    assert len(found) == len(lines.split()) / 2


@pytest.mark.parametrize(
    "line",
    [
        b"1,5 2,5", b"1_0 2", b"1 2 3", b"7", b"1;2", b"x y", b"\xd9\xa1 2", b"1 2\x00", b"0x10 2",
        b"1\x0b2", b"\x0c", b"1e 2", b"1-2 3", b"-- 1", b". 1", b"1 2 # note",
        b"\xff\xfe1\x00", b"\xef\xbb\xbf1 2",
    ],
)  # fmt: skip
def test_a_malformed_line_is_named(line):
    with pytest.raises(ContourError) as caught:
        parse_contour(b"1 2\n\n" + line + b"\n5 6\n")
    assert caught.value.code == "contour-unreadable"
    assert "line 3" in caught.value.message


@pytest.mark.parametrize("number", [b"nan", b"NaN", b"-inf", b"Infinity", b"1e999"])
def test_a_number_that_is_not_finite_is_named(number):
    with pytest.raises(ContourError) as caught:
        parse_contour(b"1 2\n" + number + b" 3\n")
    assert caught.value.code == "contour-not-finite"
    assert "line 2" in caught.value.message


@pytest.mark.parametrize("text", [
    b" 1\n2 3\n", b"1 \n2 3\n", b" 2\n3", b"1 2\n 3\n4 5\n", b"1.2.3 4\n", b"+-1 2\n", b"e 1\n",
    b"1e5e5 2\n", b". 2\n", b"1 \r2\n3 \r4\n5 \r6\n", b" 0\r0", b"1 2\r3\n 4\r\n",
])  # fmt: skip
def test_lines_that_only_look_plain_are_refused(text):
    with pytest.raises(ContourError) as caught:
        parse_contour(text)
    assert caught.value.code == "contour-unreadable"


def test_as_many_points_as_the_limit_are_read_and_one_more_is_too_many():
    n_points = 100_000  # a tenth of the limit where none is given, in a tenth of the time
    text = b"1.25 2.5\n" * n_points
    began = time.process_time()
    with limited((("contour-points", n_points),)):
        assert [len(part) for part in parse_contour(text)] == [n_points]
        with pytest.raises(ContourError) as caught:
            parse_contour(text + b"1 2\n")
    assert caught.value.code == "contour-too-large"
    assert time.process_time() - began < 3


def test_a_message_never_holds_a_long_line():
    with pytest.raises(ContourError) as caught:
        parse_contour(b"x" * 100_000)
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("line", [bytes([code]) + b"]0;x" for code in range(256)])
def test_a_message_never_holds_a_control_character(line):
    with pytest.raises(ContourError) as caught:
        parse_contour(line + b" 1 2")
    assert caught.value.message.isascii()
    assert caught.value.message.isprintable()


POINTS = "10.25 20.50\n30.75 20.50\n30.75 41.00\n10.25 41.00\n"


@pytest.mark.parametrize(
    ("text", "is_cut"),
    [
        (POINTS, False),
        (POINTS[:-1], False),  # an editor's: no line end
        (POINTS[:-2], True),
        (POINTS[:-3], True),
        (POINTS[:-4], True),  # 41
        (POINTS[:-5], True),  # 4
        (POINTS[:-1].replace(".50", ".5").replace(".00", ".0"), False),  # no equal decimals
        (POINTS.replace(".00", "")[:-1], False),
        ("1 2\n3 4\n5 6\n7 8", False),
        ("1.5 2.5\n3.5 4.5\n5.5 6", False),  # too few to tell
        (POINTS[:-3] + "\n", False),  # somebody wrote that line
    ],
)
def test_a_file_that_is_cut_off_in_its_last_number_is_no_contour(text, is_cut):
    for data in (
        text.encode(),
        text.replace("\n", "\r\n").encode(),
        text.replace(" ", "\t").encode(),
    ):
        if is_cut:
            with pytest.raises(ContourError, match=r"line 4: ends with .* seems to be cut off"):
                parse_contour(data)
        else:
            assert len(parse_contour(data)[0]) == text.count(" ")
