"""One target per parser, fed by hypothesis with files that are nearly whole.

    make fuzz SECONDS=600

`fuzz_parsers` changes bytes, which most often breaks the outermost level of a file. The strategies
here know the structure: elements, lengths, VRs and nesting of DICOM, cells of tables, keys of
settings, attributes and datasets of HDF5. So what they make gets far into a parser. Each target
requires the documented errors only, bounded time, and where a reader of other make understands
the file, the same values. What a target finds is shown in its smallest form; make it a test.
"""

import contextlib
import copy
import io
import json
import math
import re
import struct
import time
from typing import NamedTuple
from unittest import mock

import h5py
import numpy as np
import pydicom
import pytest
import xxhash
from builders import (
    ROWS,
    SQUARE,
    contour_path,
    dicom_bytes,
    gradient,
    instance,
    write_contour,
    write_tree,
)
from dataset_builder import write_dataset
from fuzz.fuzz_parsers import SECONDS, SEED, SLOWEST
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import StopTest, UnsatisfiedAssumption

import etl
import loader
from etl.contours.text import parse_contour
from etl.dicom import header as dicom_header
from etl.dicom.facts import image_facts
from etl.dicom.instance import read_instance
from etl.dicom.kept_tags import kept_tags
from etl.dicom.pixels import stored_values
from etl.dicom.segmentation import Segmentation
from etl.dicom.structure_set import read_points, read_structure_set
from etl.errors import EtlError, ReuseError, SourceError
from etl.findings import CODES
from etl.options import BuildOptions
from etl.output.split import read_split_file
from etl.output.strata import read_patients
from etl.phantom.objects import write_shapes
from etl.report.card import read_card
from etl.report.predictions import agreement, disagreements
from etl.report.summary import summarise
from etl.report.text import summary_text
from etl.sources import link_csv, table
from etl.sources.row_list import read_row_list
from etl.sources.structures import read_choices
from etl.update.cache import cache_path, read_cache
from etl.update.journal import count_rows, read_begun
from loader.errors import LoaderError
from loader.format import REUSE

pytestmark = pytest.mark.filterwarnings("ignore")  # pydicom's, and hypothesis's on long examples
OPTIONS = BuildOptions(rows=64, columns=64)
LONGEST = 4000  # characters of a message
EXPLICIT, IMPLICIT = "1.2.840.10008.1.2.1", "1.2.840.10008.1.2"
LONG_VRS = {b"OB", b"OW", b"OF", b"OD", b"OL", b"OV", b"SQ", b"UC", b"UN", b"UR", b"UT"}
VRS = [b"CS", b"DS", b"IS", b"LO", b"UI", b"US", b"SS", b"FD", b"PN", b"AT", *sorted(LONG_VRS)]
UNDEFINED = 0xFFFFFFFF


def hunt(strategy, check):
    """Give a check what a strategy makes, from one seed after the other, as long as there is time.

    What a strategy makes is shown in its smallest form where the check fails on it.
    """
    end = time.monotonic() + SECONDS
    n = [0]
    run = 0
    while time.monotonic() < end:

        @seed(SEED + run)
        @settings(
            max_examples=300,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def attempt(value):
            begin = time.monotonic()
            n[0] += 1
            try:
                check(value)
            except (StopTest, UnsatisfiedAssumption):
                raise
            except (EtlError, LoaderError) as error:
                assert 0 < len(str(error)) < LONGEST, "the message is endless"
            assert time.monotonic() - begin < SLOWEST

        attempt()
        run += 1
    print(f"{n[0]} inputs, seed {SEED}")  # noqa: T201  the rate, by -rP


# ----------------------------------------------------------------------------------- DICOM


class Part(NamedTuple):
    """A data element: its value is bytes, or the items of a sequence."""

    tag: int
    vr: bytes
    value: object
    length: int | None = None  # that the file says; None: the right one

    def encoded(self, *, implicit, is_open):
        value = self.value
        is_sequence = isinstance(value, list)
        if is_sequence:
            value = b"".join(item(parts, implicit=implicit, is_open=is_open) for parts in value)
            value += b"\xfe\xff\xdd\xe0\0\0\0\0" * is_open
        length = UNDEFINED if is_sequence and is_open else len(value)
        length = length if self.length is None else self.length
        head = struct.pack("<HH", self.tag >> 16, self.tag & 0xFFFF)
        if implicit:
            return head + struct.pack("<I", length & UNDEFINED) + value
        if self.vr in LONG_VRS:
            return head + self.vr + b"\0\0" + struct.pack("<I", length & UNDEFINED) + value
        return head + self.vr + struct.pack("<H", length & 0xFFFF) + value


def item(parts, *, implicit, is_open):
    content = b"".join(one.encoded(implicit=implicit, is_open=is_open) for one in parts)
    if is_open:
        return b"\xfe\xff\0\xe0\xff\xff\xff\xff" + content + b"\xfe\xff\x0d\xe0\0\0\0\0"
    return b"\xfe\xff\0\xe0" + struct.pack("<I", len(content)) + content


def parts_of(dataset):
    """Return a data set as parts, each value as pydicom writes it."""
    found = []
    for element in dataset:
        if element.VR == "SQ":
            found.append(Part(int(element.tag), b"SQ", [parts_of(one) for one in element.value]))
            continue
        single, file = pydicom.Dataset(), io.BytesIO()
        single[element.tag] = element
        pydicom.dcmwrite(file, single, implicit_vr=False, little_endian=True)
        data = file.getvalue()
        vr = data[4:6]
        found.append(Part(int(element.tag), vr, data[12 if vr in LONG_VRS else 8 :]))
    return found


def file_of(parts, *, implicit=False, is_open=False):
    meta = dicom_bytes(instance(), "implicit" if implicit else "explicit")
    data = b"".join(one.encoded(implicit=implicit, is_open=is_open) for one in parts)
    return meta[: 132 + 12 + struct.unpack_from("<I", meta, 140)[0]] + data


def levels(parts):
    """Yield the lists of parts of all levels of a data set."""
    yield parts
    for one in parts:
        for inner in one.value if isinstance(one.value, list) else ():
            yield from levels(inner)


NUMBERS = st.one_of(
    st.integers(-3, 70).map(str),
    st.floats(-1e3, 1e3, width=32).map(repr),
    st.sampled_from(
        [
            *("", " ", "nan", "inf", "-inf", "1e400", "1e-400", "1_0", "+1", "0x10", "1,5", "1 2"),
            *("-0", "9" * 20, "\u0663", "1\0", "\t1", "1.", ".5", "1d3"),
        ]
    ),
)
TEXTS = st.one_of(
    st.lists(NUMBERS, max_size=8).map("\\".join),
    st.text(max_size=20),
    st.sampled_from(["MONOCHROME1", "RGB", "CLOSED_PLANAR", "POINT", "BINARY", "1.2.3", "x" * 70]),
    st.sampled_from([64, 65, 1025, 5000, 70_000]).map(lambda n: "x" * n),
)
VALUES = st.one_of(
    TEXTS.map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.binary(max_size=12),
    st.integers(0, 65535).map(lambda n: struct.pack("<H", n)),
    st.integers(0, 2**32 - 1).map(lambda n: struct.pack("<I", n)),
    st.floats().map(lambda value: struct.pack("<d", value)),
)


CHANGE_OF_PART = ["value", "value", "value", "vr", "length", "delete", "twice", "move", "nest"]


@st.composite
def changed(draw, parts):
    """Return the parts of a data set with a few changes at any level."""
    parts = copy.deepcopy(parts)
    for _ in range(draw(st.integers(1, 4))):
        level = draw(st.sampled_from(list(levels(parts))))
        if not level:
            continue
        place = draw(st.integers(0, len(level) - 1))
        one = level[place]
        change = draw(st.sampled_from(CHANGE_OF_PART))
        if change == "value":
            value = draw(VALUES)
            level[place] = one._replace(value=value + b" " * (len(value) % 2))
        elif change == "vr":
            level[place] = one._replace(vr=draw(st.sampled_from(VRS)))
        elif change == "length":
            n = len(one.value) if isinstance(one.value, bytes) else 8
            wrong = st.sampled_from([0, 1, n + 1, n + 2, max(n - 2, 0), UNDEFINED, 1 << 31])
            level[place] = one._replace(length=draw(wrong))
        elif change == "delete":
            del level[place]
        elif change == "twice":
            level.insert(draw(st.integers(0, len(level))), one)
        elif change == "move":
            level.insert(draw(st.integers(0, len(level) - 1)), level.pop(place))
        else:
            level[place] = one._replace(vr=b"SQ", value=[[one], []])
    return parts


def dicom_files(*corpus):
    """Return a strategy for files near those of a corpus, in two encodings."""
    return st.builds(
        lambda parts, implicit, is_open: file_of(parts, implicit=implicit, is_open=is_open),
        st.sampled_from(corpus).flatmap(changed),
        st.booleans(),
        st.booleans(),
    )


def of_image(data):
    quick = outcome(data)
    with mock.patch.object(dicom_header, "_scan", return_value=None):
        sure = outcome(data)
    if isinstance(quick, SourceError) or isinstance(sure, SourceError):
        one = quick if isinstance(quick, SourceError) else sure
        if isinstance(one, SourceError):
            assert one.code in CODES
            assert len(one.message) < LONGEST
    else:
        assert quick == sure, "the two scanners differ"
    found = quick if not isinstance(quick, SourceError) else sure
    if not isinstance(found, SourceError):
        same_as_pydicom(data, read_instance(io.BytesIO(data)))


def outcome(data):
    try:
        found = read_instance(io.BytesIO(data))
        return repr(found), stored_values(data, found).tobytes()
    except SourceError as error:
        return error


def same_as_pydicom(data, found):
    """Require of an image that is taken the values that pydicom has, or a remark on them."""
    dataset = read_by_pydicom(data)
    if dataset is None or any(code == "image-header-invalid" for code, _ in found.warnings):
        return
    if "Rows" not in dataset:  # an open sequence under a tag of text has led pydicom astray
        return
    size = found.pixel_format.rows, found.pixel_format.columns
    assert size == (dataset.Rows, dataset.Columns)
    if found.sop_instance_uid:
        uid = dataset.SOPInstanceUID
        if isinstance(uid, bytes):  # its VR is one of bytes, which pydicom does not make text
            uid = uid.rstrip(b"\0 ").decode()
        assert found.sop_instance_uid == str(uid)
    for keyword, values in (
        ("RescaleSlope", (found.pixel_format.rescale_slope,)),
        ("RescaleIntercept", (found.pixel_format.rescale_intercept,)),
        ("PixelSpacing", found.pixel_spacing),
        ("ImagePositionPatient", found.image_position),
        ("ImageOrientationPatient", found.image_orientation),
    ):
        if keyword in dataset and not any(map(math.isnan, values)):
            theirs = numbers_of(dataset, keyword)
            if theirs is not None:
                assert values == theirs, keyword


def read_by_pydicom(data):
    """Return what pydicom reads; None where it cannot, which is no fault of ours."""
    try:
        return pydicom.dcmread(io.BytesIO(data), force=True)
    except Exception:  # noqa: BLE001  pydicom raises whatever its parsing meets
        return None


def numbers_of(dataset, keyword):
    """Return the numbers that pydicom reads; None where it reads none."""
    try:
        value = dataset[keyword].value
        if isinstance(value, bytes):  # under a VR of bytes; pydicom makes no numbers of them
            return None
        value = [value] if isinstance(value, str | float | int) else value
        return tuple(float(one) for one in value) if value not in (None, "", []) else None
    except Exception:  # noqa: BLE001  pydicom raises whatever its parsing meets
        return None


def of_facts(data):
    image_facts(io.BytesIO(data))


def of_kept_tags(data):
    kept = kept_tags(("EchoTime", "ImageType", "Manufacturer"), anyway=True)
    read_instance(io.BytesIO(data), 1, None, kept)


def of_frames(data):
    for number in (1, 2):
        found = read_instance(io.BytesIO(data), number)
        stored_values(data, found)
        dataset = read_by_pydicom(data)
        if dataset is None or any(code == "image-header-invalid" for code, _ in found.warnings):
            continue
        groups = [
            *(dataset.get("PerFrameFunctionalGroupsSequence") or [])[number - 1 : number],
            *(dataset.get("SharedFunctionalGroupsSequence") or [])[:1],
            dataset,
        ]
        for sequence, keyword, values in (
            ("PlanePositionSequence", "ImagePositionPatient", found.image_position),
            ("PlaneOrientationSequence", "ImageOrientationPatient", found.image_orientation),
            ("PixelMeasuresSequence", "PixelSpacing", found.pixel_spacing),
        ):
            try:
                items = [one[sequence].value[0] for one in groups if one.get(sequence)]
                items = [one for one in [*items, dataset] if keyword in one and one.get(keyword)]
            except OSError:  # pydicom finds no item in the sequence
                continue
            if items and not any(map(math.isnan, values)):
                theirs = numbers_of(items[0], keyword)
                assert theirs is None or values == theirs, keyword


def of_structure_set(data):
    found, points = read_structure_set(data), read_points(data)
    assert len(points) == len(found.drawings)
    dataset = pydicom.dcmread(io.BytesIO(data), force=True)
    contours = [
        contour
        for roi in dataset.get("ROIContourSequence") or ()
        for contour in roi.get("ContourSequence") or ()
    ]
    if not contours:  # an open sequence under a tag of text has led pydicom astray
        return
    assert len(contours) == len(points)
    for contour, ours, drawing in zip(contours, points, found.drawings, strict=True):
        assert isinstance(ours, str) == bool(drawing.problem)
        if not isinstance(ours, str):
            theirs = numbers_of(contour, "ContourData")
            assert theirs is None or tuple(ours.ravel().tolist()) == theirs


def of_segmentation(data):
    found = Segmentation(data)
    drawings = found.contents().drawings
    dataset = pydicom.dcmread(io.BytesIO(data), force=True)
    try:
        frames = np.atleast_3d(dataset.pixel_array)
        frames = frames.reshape(-1, *frames.shape[-2:])
    except Exception:  # noqa: BLE001  pydicom raises whatever its parsing meets
        frames = None
    for place in range(min(len(drawings), 4)):
        mask = found.mask(place, 0.5)
        assert mask.dtype == np.bool_
        frame = found.drawings[place].frame
        if frames is not None and frame < len(frames) and str(dataset.SegmentationType) == "BINARY":
            assert (mask == (frames[frame] != 0)).all()


def images():
    small = pydicom.dcmread(io.BytesIO(dicom_bytes(instance(gradient(4, 6)))))
    wide = instance(gradient(4, 6, "<u2"), bits_stored=12, RescaleSlope=2, RescaleIntercept=-7)
    tagged = instance(gradient(4, 6), EchoTime=1.5, ImageType=["A", "B"], Manufacturer="M")
    sets = [pydicom.dcmread(io.BytesIO(dicom_bytes(one))) for one in (wide, tagged)]
    return [parts_of(one) for one in (small, *sets)]


def objects(folder, kind):
    """Return the annotation files of a small phantom, or its image of several frames."""
    write_shapes(folder, kind, patients=1, slices=2, rows=16, columns=16, seed=1)
    where = "images" if kind == "enhanced" else "annotations"
    paths = [path for path in sorted((folder / where).rglob("*")) if path.is_file()]
    return [parts_of(pydicom.dcmread(path)) for path in paths]


DICOM = {
    "image": (lambda _: images(), of_image),
    "facts": (lambda _: images(), of_facts),
    "kept tags": (lambda _: images(), of_kept_tags),
    "functional groups": (lambda folder: objects(folder, "enhanced"), of_frames),
    "facts of frames": (lambda folder: objects(folder, "enhanced"), of_facts),
    "structure set": (lambda folder: objects(folder, "rtstruct"), of_structure_set),
    "segmentation": (lambda folder: objects(folder, "seg"), of_segmentation),
}


@pytest.mark.parametrize("name", DICOM)
def test_files_of_odd_elements_give_a_value_or_our_error(tmp_path, name):
    corpus, check = DICOM[name]
    hunt(dicom_files(*corpus(tmp_path / "corpus")), check)


# ------------------------------------------------------------------------------------ text

NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
LINES = st.lists(
    st.one_of(
        st.tuples(NUMBERS, st.sampled_from([" ", "  ", "\t", ","]), NUMBERS).map("".join),
        st.sampled_from(["", " ", "\t", "#"]),
    ),
    max_size=12,
)


def of_contour(data):
    parts = parse_contour(data)
    tokens = data.decode("ascii").split()
    assert all(NUMBER.fullmatch(token) for token in tokens)
    assert [value for part in parts for value in part.ravel().tolist()] == list(map(float, tokens))


def test_contours_of_odd_lines_give_the_numbers_or_our_error():
    ends = st.sampled_from(["\n", "\r\n", "\r", "\n\n"])
    texts = st.builds(lambda lines, end, last: end.join(lines) + last, LINES, ends, ends)
    hunt(texts.map(lambda text: text.encode("utf-8", "surrogatepass")), of_contour)


CELLS = st.one_of(
    st.sampled_from(["P1", "P2", "A1", "A2", "dicoms/P1/1.dcm", contour_path("A1", 1), "pool"]),
    st.sampled_from(["train", "validation", "test", "0", "1", "-1", "99999", "exclude", "redraw"]),
    st.sampled_from(["", " ", '"', '""', '="P1"', "..", "/", "a/../b", "C:\\x", "'=1", "\\", "~"]),
    st.sampled_from(["P1\u200b", "\ufeffP1", "\x1b[1m", "\0", "x" * 300, "x" * 5000, "\u0661"]),
    st.text(max_size=8),
    NUMBERS,
)
NAMES = [
    *("patient_id", "original_id", "image", "label", "contour", "frame", "split", "fold"),
    *("series", "slice", "frame_number", "structure", "decision", "comment", "group"),
]


@st.composite
def tables(draw, columns):
    """Return a table near one with these columns."""
    head = list(columns)
    if draw(st.integers(0, 3)) == 0:
        head = draw(st.lists(st.sampled_from([*NAMES, "", "PATIENT_ID", " fold "]), max_size=9))
    separator = draw(st.sampled_from([",", ",", ",", ";", "\t", "|"]))
    lines = [separator.join(head)]
    if separator != "," and draw(st.booleans()):
        lines.insert(0, f"sep={separator}")
    for _ in range(draw(st.integers(0, 5))):
        n = max(0, len(head) + draw(st.sampled_from([0, 0, 0, -1, 1])))
        lines.append(separator.join(draw(st.lists(CELLS, min_size=n, max_size=n))))
    text = draw(st.sampled_from(["\n", "\r\n", "\r"])).join(lines)
    encoding = draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-8-sig", "utf-16", "latin-1"]))
    return text.encode(encoding, "replace")


def of_folder(discover, name):
    def make(folder):
        root = write_tree(folder / "tree")

        def check(data):
            (root / name).write_bytes(data)
            found = discover(root if name == "link.csv" else root / name, OPTIONS)
            assert all(one.code in CODES and len(one.message) < LONGEST for one in found.findings)
            ids = [link.key.patient_id for link in found.links]
            assert all(0 < len(one) <= 256 and one.isprintable() for one in ids)

        return check

    return make


def of_file(name, read):
    def make(folder):
        folder.mkdir(exist_ok=True)

        def check(data):
            path = folder / name
            path.write_bytes(data)
            read(path)

        return check

    return make


ROW_LIST = ("patient_id", "series", "slice", "frame_number", "structure", "decision", "comment")
TABLES = {
    "link.csv": (("patient_id", "original_id"), of_folder(link_csv.discover, "link.csv")),
    "table.csv": (
        ("patient_id", "image", "label", "contour", "frame", "split", "fold"),
        of_folder(table.discover, "table.csv"),
    ),
    "split file": (("patient_id", "split", "fold"), of_file("a.csv", read_split_file)),
    "row list": (ROW_LIST, of_file("a.csv", read_row_list)),
    "patients": (
        ("patient_id", "group"),
        of_file("a.csv", lambda path: read_patients(path, "group")),
    ),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_odd_cells_give_a_value_or_our_error(tmp_path, name):
    columns, make = TABLES[name]
    hunt(tables(columns), make(tmp_path))


# -------------------------------------------------------------------------------- settings

PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.sampled_from([10**400, 2**63, -(2**70), 1e308, math.inf, math.nan]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["liver*", "x" * 5000, "\0", "\x1b", "2024-01-01", "["]),
)
KEYS = [
    *("version", "rotate", "shift", "scale", "elastic", "noise", "gamma", "flip_rows", "blur"),
    *("name", "patterns", "code", "license", "creators", "keywords", "description", "citation"),
    *("date_published", "kind", "url", "email", "affiliation", "a", ""),
]
TREES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5)
    ),
    max_leaves=12,
)
DEEP = st.tuples(st.sampled_from(["[", '{"a":', '[{"a":']), st.integers(100, 200_000)).map(
    lambda one: one[0] * one[1]
)


@st.composite
def settings_texts(draw, base):
    """Return JSON near that of some settings, or any JSON, or what is none."""
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return draw(DEEP)
    if kind == 1:
        return draw(st.text(max_size=30))
    if kind < 4:
        return json.dumps(draw(TREES))
    content = copy.deepcopy(base)
    for _ in range(draw(st.integers(1, 3))):
        content[draw(st.sampled_from([*content, *KEYS]))] = draw(TREES)
    return json.dumps(content)


def toml_of(text):
    """Return as TOML what is JSON, where TOML can say it; else the text."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(content, dict):
        return text
    return "\n".join(f"{json.dumps(key)} = {inline(value)}" for key, value in content.items())


def inline(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {inline(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    return "nil" if value is None else json.dumps(value)


def of_text(name, read, form=str):
    def make(folder):
        check = of_file(name, read)(folder)
        return lambda text: check(form(text).encode("utf-8", "surrogatepass"))

    return make


def described(path):
    assert read_card(path).not_stated is not None


CARD = {"license": "CC0-1.0", "keywords": ["a"], "creators": [{"name": "N"}], "citation": "c"}
MAPPING = {"liver": ["liver*"], "kidney": {"patterns": ["k*"], "code": 7}}
AUGMENT = json.loads(loader.Augment().to_json())
SETTINGS = {
    "mapping, JSON": (MAPPING, of_text("a.json", read_choices)),
    "mapping, TOML": (MAPPING, of_text("a.toml", read_choices, toml_of)),
    "card": (CARD, of_text("card.toml", described, toml_of)),
    "augmentation": (
        AUGMENT,
        of_text(
            "a.json", lambda path: loader.Augment.from_json(path.read_text("utf-8", "replace"))
        ),
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_odd_values_give_a_value_or_our_error(tmp_path, name):
    base, make = SETTINGS[name]
    hunt(settings_texts(base), make(tmp_path))


# ------------------------------------------------------------------------------------ HDF5

ARRAYS = st.builds(
    lambda kind, shape, fill: np.full(shape, fill).astype(kind),
    st.sampled_from(["u1", "<i2", ">i2", "<u2", "<f4", "<f8", "<i8", "S3", "?", "<c8"]),
    st.sampled_from([(), (0,), (1,), (7,), (7, 4, 5), (6, 4, 5), (7, 5, 4), (7, 1, 4, 5), (2, 2)]),
    st.sampled_from([0, 1, 7, 255]),
)
STORAGE = st.sampled_from(
    [{}, {}, {"chunks": True}, {"compression": "gzip"}, {"maxshape": None}, {"fletcher32": True}]
)
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("attribute"), st.integers(0, 99), TREES.map(json.dumps)),
        st.tuples(st.just("attribute"), st.integers(0, 99), ARRAYS),
        st.tuples(st.just("attribute"), st.integers(0, 99), st.text(max_size=9)),
        st.tuples(st.just("attribute"), st.integers(0, 99), DEEP.map(lambda text: text[:60_000])),
        st.tuples(st.just("no attribute"), st.integers(0, 99), st.none()),
        st.tuples(st.just("dataset"), st.integers(0, 99), st.tuples(ARRAYS, STORAGE)),
        st.tuples(st.just("values"), st.integers(0, 99), st.integers(-(2**63), 2**63 - 1)),
        st.tuples(st.just("no dataset"), st.integers(0, 99), st.none()),
        st.tuples(st.just("link"), st.integers(0, 99), st.sampled_from(["/images", "/no", "."])),
        st.tuples(st.just("byte"), st.integers(0, 2**20), st.integers(0, 255)),
        st.tuples(st.just("cut"), st.integers(0, 2**20), st.none()),
    ),
    min_size=1,
    max_size=3,
)


def change_file(path, changes):
    """Change attributes, datasets, links and bytes of an HDF5 file."""
    for kind, place, value in changes:
        if not path.stat().st_size:
            return
        if kind in {"byte", "cut"}:
            data = bytearray(path.read_bytes())
            if kind == "cut":
                data = data[: place % len(data)]
            elif data:
                data[place % len(data)] = value
            path.write_bytes(data)
            continue
        try:
            with h5py.File(path, "r+") as file:
                change_one(file, kind, place, value)
        except (OSError, KeyError, RuntimeError, ValueError, TypeError, OverflowError):
            return  # what a change before this one has made is enough


def change_one(file, kind, place, value):
    names = []
    file.visit(lambda name: names.append(name) if isinstance(file[name], h5py.Dataset) else None)
    if not names or not len(file.attrs):
        return
    if "attribute" in kind:
        name = sorted(file.attrs)[place % len(file.attrs)]
        del file.attrs[name]
        if kind == "attribute":
            file.attrs[name] = np.bytes_(value.encode()) if isinstance(value, str) else value
        return
    name = names[place % len(names)]
    if kind == "values":
        shape, dtype = file[name].shape, file[name].dtype
        if dtype.kind in "iuf":
            file[name][...] = np.full(shape, value).astype(dtype)
        return
    del file[name]
    if kind == "dataset":
        array, storage = value
        storage = {"maxshape": (None,) * array.ndim} if "maxshape" in storage else storage
        file.create_dataset(name, data=array, **(storage if array.ndim else {}))
    elif kind == "link":
        file[name] = h5py.SoftLink(value)


def read_all(path):
    """Look at all that a report and a loader show of a file."""
    data = loader.open_dataset(path)
    assert len(data.images) == len(data.masks) == len(data)
    for name in data.manifest:
        assert len(data.manifest[name]) == len(data)
    for row in range(min(len(data), 2)):
        data[row]
        data.polygons(row)
    summary = summarise(data)
    assert list(summary_text(summary))
    json.dumps(summary.to_json())
    loader.open_dataset(path, verify="columns")


def test_hdf5_files_of_odd_parts_open_or_give_our_error(tmp_path):
    clean, path = tmp_path / "clean.h5", tmp_path / "a.h5"
    write_dataset(clean, rows=4, columns=5)
    content = clean.read_bytes()

    def check(changes):
        path.unlink(missing_ok=True)  # another file: the loader's maps of the old one stay whole
        path.write_bytes(content)
        change_file(path, changes)
        read_all(path)

    hunt(CHANGES, check)


REUSE_EDITS = st.lists(
    st.tuples(
        st.sampled_from(sorted(REUSE)),
        st.integers(0, 9),
        st.one_of(
            st.integers(-3, 12),
            st.sampled_from([2**63 - 1, -(2**63), 255]),
            st.floats(width=32),
            st.binary(max_size=6),
        ),
    ),
    min_size=1,
    max_size=3,
)


def edit_reuse(path, edits):
    """Change values of /reuse, or their number; the digests are right."""
    with h5py.File(path, "r+") as file:
        digests = json.loads(file.attrs["digests"])
        for name, place, value in edits:
            values = file[f"reuse/{name}"][:]
            if place >= len(values):
                values = values[: place % 3]
            elif isinstance(value, bytes) and values.dtype.kind != "S":
                values = np.append(values, values)
            else:
                with contextlib.suppress(OverflowError, ValueError, TypeError):
                    values[place] = value
            attributes = file[f"reuse/{name}"].id
            kind, plist = attributes.get_type(), attributes.get_create_plist()
            del file[f"reuse/{name}"]
            space = h5py.h5s.create_simple(values.shape)
            made = h5py.h5d.create(file.id, f"reuse/{name}".encode(), kind, space, plist)
            if values.size:
                made.write(h5py.h5s.ALL, h5py.h5s.ALL, values, kind)
            stored = file[f"reuse/{name}"][:]
            digests[f"reuse/{name}"] = xxhash.xxh3_128_hexdigest(stored.tobytes())
        file.attrs["digests"] = np.bytes_(json.dumps(digests))


def test_an_update_believes_no_reuse_that_contradicts_itself(tmp_path):
    root, built, out = write_tree(tmp_path / "data"), tmp_path / "built.h5", tmp_path / "out.h5"
    options = BuildOptions(rows=ROWS, columns=14)
    etl.build(root, built, options, cache=False)
    write_contour(root, "A1", 2, text=f"{SQUARE}2 5.5\n")
    content = built.read_bytes()

    def check(edits):
        out.unlink(missing_ok=True)
        out.write_bytes(content)
        edit_reuse(out, edits)
        assert etl.build(root, out, options, update=True, cache=False).n_rows == 3
        assert len(loader.open_dataset(out, verify="columns")) == 3

    hunt(REUSE_EDITS, check)


def test_predictions_of_odd_parts_give_a_value_or_our_error(tmp_path):
    write_dataset(tmp_path / "data.h5", rows=4, columns=5)
    data = loader.open_dataset(tmp_path / "data.h5")
    good = tmp_path / "good.h5"
    with h5py.File(good, "w") as file:
        file["predictions"] = np.array(data.masks)
        file["rows"] = np.arange(len(data))
        file.attrs["dataset_id"] = "0123456789abcdef"
    np.savez(
        tmp_path / "good.npz", probabilities=np.full((7, 2, 4, 5), 0.25, "f4"), rows=np.arange(7)
    )
    packed = (tmp_path / "good.npz").read_bytes()
    odd = st.dictionaries(
        st.sampled_from(["predictions", "probabilities", "rows", "dataset_id"]), ARRAYS, max_size=4
    )
    flips = st.lists(st.tuples(st.integers(0, len(packed) - 1), st.integers(0, 255)), max_size=3)

    def check(value):
        kind, content = value
        path = tmp_path / ("a.h5" if kind == "h5" else "a.npz")
        path.unlink(missing_ok=True)
        if kind == "h5":
            path.write_bytes(good.read_bytes())
            change_file(path, content)
        elif kind == "arrays":
            np.savez(path, **content)
        else:
            changed_bytes = bytearray(packed)
            for place, byte in content:
                changed_bytes[place] = byte
            path.write_bytes(changed_bytes)
        disagreements(data, agreement(data, path))

    kinds = {"h5": CHANGES, "arrays": odd, "bytes": flips}
    hunt(
        st.one_of(*(st.tuples(st.just(kind), one) for kind, one in kinds.items())),
        check,
    )


# ----------------------------------------------------------------------- cache and journal


def damaged(content):
    """Return a strategy for content with a few bytes changed, removed, doubled or cut off."""
    place = st.integers(0, len(content) - 1)
    piece = st.tuples(place, st.integers(0, 40), st.binary(max_size=8))
    return st.lists(piece, min_size=0, max_size=4).map(lambda pieces: spliced(content, pieces))


def spliced(content, pieces):
    for start, length, new in pieces:
        content = content[:start] + new + content[start + length :]
    return content


def test_damaged_caches_are_refused_or_read_as_they_were(tmp_path):
    root, out = write_tree(tmp_path / "data"), tmp_path / "out.h5"
    etl.build(root, out, BuildOptions(rows=ROWS, columns=14), update=True)
    path = cache_path(out)
    content = path.read_bytes()
    whole = read_cache(path)

    def check(data):
        path.write_bytes(data)
        try:
            found = read_cache(path)
        except ReuseError:
            assert data != content
        else:
            assert found.stamps == whole.stamps
            assert (found.identities == whole.identities).all()

    hunt(damaged(content), check)


def test_damaged_journals_have_fewer_rows_and_no_other(tmp_path, monkeypatch):
    root, out = write_tree(tmp_path / "data"), tmp_path / "out.h5"
    kept = {}

    def stop(*arguments):
        [journal] = out.parent.glob(".*.journal")
        kept[journal.name] = journal.read_bytes()
        raise KeyboardInterrupt

    monkeypatch.setattr("etl.pipeline.assemble", stop)
    with pytest.raises(KeyboardInterrupt):
        etl.build(root, out, BuildOptions(rows=ROWS, columns=14), resume=True)
    [(name, content)] = kept.items()
    journal = tmp_path / name
    partial = journal.with_suffix(".partial")
    partial.touch()
    journal.write_bytes(content)
    whole = count_rows(partial)
    begun = read_begun(partial)
    assert whole == (3, 3)

    def check(data):
        journal.write_bytes(data)
        n_rows, n_all = count_rows(partial)
        assert 0 <= n_rows <= whole[0]
        assert n_all in {0, whole[1]}
        found = read_begun(partial)
        assert found is None or found.basis == begun.basis

    hunt(damaged(content), check)
