"""One target per parser: mutated files give a value or an EtlError, in bounded time.

    make fuzz SECONDS=600

runs each target that long, from another seed each time; what a target finds is written to
tests/fuzz/found, and belongs into a test when it is mended. `make test` does not collect this
file. It needs no coverage of the interpreter, so that it runs as fast as the parsers do.
"""

import io
import os
import random
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from builders import SYNTAXES, contour_path, dicom_bytes, gradient, instance, write_tree
from pydicom.uid import RLELossless

from etl.contours.text import parse_contour
from etl.dicom import header, inflate, pydicom_scan
from etl.dicom.elements import KEYWORDS
from etl.dicom.encapsulated import find_frames
from etl.dicom.facts import image_facts
from etl.dicom.instance import read_instance
from etl.dicom.pixels import read_frame
from etl.dicom.quick_scan import scan
from etl.dicom.segmentation import Segmentation
from etl.dicom.structure_set import read_points, read_structure_set
from etl.errors import EtlError, SourceError
from etl.findings import CODES
from etl.options import BuildOptions
from etl.phantom.objects import write_shapes
from etl.sources import link_csv, table

SECONDS = float(os.environ.get("FUZZ_SECONDS", "10"))
SEED = int(os.environ.get("FUZZ_SEED", time.time_ns() % 2**32))
SLOWEST = 20.0  # seconds that one input may take: a limit bounds it, whatever is in the file
FOUND = Path(__file__).with_name("found")
OPTIONS = BuildOptions(rows=64, columns=64)

INTERESTING = [
    *(b"\0" * 4, b"\xff" * 4, b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\1\0\0\0", b"\xfe\xff\0\xe0"),
    *(
        b"\xfe\xff\x0d\xe0\0\0\0\0",
        b"\xfe\xff\xdd\xe0\0\0\0\0",
        b"\xe0\x7f\x10\0",
        b"SQ",
        b"UN",
        b"OW",
    ),
    *(
        b"\\",
        b"1e999",
        b"-1",
        b"nan",
        b"inf",
        b",",
        b'"',
        b"\n",
        b"\r\n",
        b"\n\n",
        b";",
        b"../",
        b"\xef\xbb\xbf",
    ),
    *(b" ", b"99999999999999999999", b"0x1", b"1_0", b"\0"),
]


class Mutator:
    """Makes files that are like those of a corpus."""

    def __init__(self, corpus, seed):
        self.corpus = corpus
        self.random = random.Random(seed)  # noqa: S311  no secret

    def make(self):
        data = bytearray(self.random.choice(self.corpus))
        for _ in range(self.random.choice([1, 1, 1, 2, 3, 8, 40])):
            data = self.mutated(data)
        return bytes(data)

    def mutated(self, data):
        chance = self.random
        place = chance.randrange(len(data) + 1)
        # Headers are at the start: half of all changes go there.
        place = min(place, chance.randrange(1200)) if chance.random() < 0.5 else place
        length = chance.choice([1, 2, 4, 8, chance.randrange(1, 400)])
        other = chance.choice(self.corpus)
        begin = chance.randrange(len(other) + 1)
        piece = chance.choice(
            [
                chance.randbytes(chance.choice([1, 2, 4])),
                chance.choice(INTERESTING),
                other[begin : begin + length],
                bytes(data[place : place + length]) * chance.choice([1, 2, 50]),
                b"",
            ]
        )
        n_removed = chance.choice([0, len(piece), len(piece), length, 1 << 30])
        if n_removed == 1 << 30 and chance.random() < 0.8:  # seldom cut
            n_removed = len(piece)
        return data[:place] + piece + data[place + n_removed :]


def of_image(data):
    found = read_instance(io.BytesIO(data), None)
    stored, warnings = read_frame(data, found)
    assert stored.shape == (found.pixel_format.rows, found.pixel_format.columns)
    assert all(code in CODES for code, _ in found.warnings + warnings)


def of_facts(data):
    image_facts(io.BytesIO(data))


def of_quick_scan(data):
    header._templates.clear()
    for implicit in (False, True):
        found = scan(data, 0, len(data), KEYWORDS, [], implicit=implicit)
        assert all(0 <= one.offset <= len(data) for one in (found or {}).values())


def of_pydicom_scan(data):
    for implicit, little in ((False, True), (True, True), (False, False)):
        file = io.BytesIO(data)
        try:
            pydicom_scan.elements(
                file, len(data), KEYWORDS, implicit=implicit, little=little, meta=False
            )
        except SourceError as error:
            assert error.code in CODES


def of_inflate(data):
    inflate.head(data, lambda _start: False)
    inflate.whole(data)


def of_fragments(data):
    for n_frames in (1, 2, 3):
        try:
            frames = find_frames(io.BytesIO(data), 0, len(data), n_frames)
        except SourceError as error:
            assert error.code in CODES
        else:
            assert len(frames) == n_frames
            places = [one for frame in frames for one in frame]
            assert all(0 <= one.offset <= one.offset + one.length <= len(data) for one in places)


def of_contour(data):
    parts = parse_contour(data)
    assert all(part.shape[1:] == (2,) and np.isfinite(part).all() for part in parts)


def of_structure_set(data):
    found = read_structure_set(data)
    assert len(read_points(data)) == len(found.drawings)


def of_segmentation(data):
    found = Segmentation(data)
    contents = found.contents()
    for place in range(min(len(contents.drawings), 4)):
        assert found.mask(place, 0.5).dtype == np.bool_


def phantom(folder, kind):
    """Return the annotation files of a small phantom."""
    write_shapes(folder, kind, patients=1, slices=3, seed=1)
    return [path.read_bytes() for path in sorted((folder / "annotations").iterdir())]


def encapsulated():
    dataset = instance()
    dicom_bytes(dataset)
    dataset.compress(RLELossless, generate_instance_uid=False)
    return dicom_bytes(dataset, RLELossless)


def images(_folder):
    wide = instance(gradient(dtype="<u2"), bits_stored=12)
    return [*(dicom_bytes(syntax=one) for one in SYNTAXES), encapsulated(), dicom_bytes(wide)]


def data_sets(folder):
    return [data[132:] for data in images(folder)]


def fragments(_folder):
    def item(content):
        return b"\xfe\xff\0\xe0" + len(content).to_bytes(4, "little") + content

    end = b"\xfe\xff\xdd\xe0\0\0\0\0"
    table = item(b"\0\0\0\0\x0c\0\0\0")
    return [
        item(b"") + item(b"abcd\xff\xd9") + item(b"efgh\xff\xd9") + end,
        table + item(b"abcd") + item(b"efgh") + end,
        item(b"") + item(b"abcd") + end,
    ]


def deflated(_folder):
    import zlib

    return [zlib.compress(content, wbits=-15) for content in (b"x" * 5000, dicom_bytes()[132:])]


def contours(_folder):
    lines = [f"{n / 4} {n % 7}" for n in range(30)]
    return [end.join(lines).encode() for end in ("\n", "\r\n", "\n\n")] + [
        b"\n".join([*map(str.encode, lines), b"", *map(str.encode, lines)])
    ]


def links(_folder):
    return [b"patient_id,original_id\nP1,A1\nP2,A2\n", b"sep=;\r\noriginal_id;patient_id\r\nA1;P1"]


def tables(_folder):
    lines = [f"P1,dicoms/P1/{n}.dcm,pool,{contour_path('A1', n)}" for n in (1, 2, 3)]
    head = "patient_id,image,label,contour"
    return ["\n".join([head, *lines]).encode(), "\n".join([f"{head},split,fold", *lines]).encode()]


def of_folder(folder, name, discover):
    """Return a target that puts its input into a folder of files, and discovers them."""
    root = write_tree(folder / "tree")

    def target(data):
        (root / name).write_bytes(data)
        found = discover(root if name == "link.csv" else root / name, OPTIONS)
        assert all(finding.code in CODES for finding in found.findings)

    return target


TARGETS = {
    "image": (images, of_image),
    "facts": (images, of_facts),
    "quick scan": (data_sets, of_quick_scan),
    "pydicom scan": (data_sets, of_pydicom_scan),
    "inflate": (deflated, of_inflate),
    "fragments": (fragments, of_fragments),
    "contour": (contours, of_contour),
    "structure set": (lambda folder: phantom(folder, "rtstruct"), of_structure_set),
    "segmentation": (lambda folder: phantom(folder, "seg"), of_segmentation),
    "link.csv": (links, lambda folder: of_folder(folder, "link.csv", link_csv.discover)),
    "table.csv": (tables, lambda folder: of_folder(folder, "table.csv", table.discover)),
}


@pytest.mark.filterwarnings("ignore")  # pydicom's, which the callers silence
@pytest.mark.parametrize("name", TARGETS)
def test_mutated_files_give_a_value_or_our_error(tmp_path, name):
    make_corpus, target = TARGETS[name]
    if name.endswith(".csv"):
        target = target(tmp_path)
    mutator = Mutator(make_corpus(tmp_path / "corpus"), SEED)
    state = SimpleNamespace(n=0, slowest=0.0)
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        data = mutator.make()
        begin = time.monotonic()
        try:
            target(data)
        except EtlError as error:
            assert str(error)
        except BaseException as error:
            FOUND.mkdir(exist_ok=True)
            path = FOUND / f"{name.replace(' ', '-')}-{SEED}-{state.n}"
            path.write_bytes(data)
            raise AssertionError(f"{path}: {type(error).__name__}: {error}") from error
        state.n += 1
        state.slowest = max(state.slowest, time.monotonic() - begin)
    told = f"{name}: {state.n} inputs, the slowest took {state.slowest:.2f} s, seed {SEED}\n"
    sys.stdout.write(told)
    assert state.n
    assert state.slowest < SLOWEST
