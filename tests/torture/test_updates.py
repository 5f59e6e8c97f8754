"""Random edits of a tree: an update gives the bytes of a full build, each time."""

import contextlib
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from builders import (
    COLUMNS,
    ROWS,
    SQUARE,
    contour_path,
    dicom_bytes,
    gradient,
    instance,
    write_contour,
    write_dicom,
    write_tree,
)

import etl
from etl import examine
from etl.errors import RejectedError
from etl.update import cache, sources

PLAIN = {"split": (50, 25, 25), "folds": 2, "partial": True}
EXCLUDING = PLAIN | {
    "exclude_flagged": ("area-jump", "identical-contour", "identical-image"),
    "exclude_structures": True,
}
FITTED = PLAIN | {"size": "fit", "rows": ROWS + 2, "columns": COLUMNS - 1}


class Tree:
    """An input folder, and the edits that people make."""

    def __init__(self, root, rng):
        self.root = write_tree(root, [(f"P{n}", f"A{n}") for n in range(6)])
        self.rng = rng
        self.n_made = 100

    def heal(self):
        """Bring back what the tree had at first."""
        write_tree(self.root, [(f"P{n}", f"A{n}") for n in range(6)])

    def edit(self):
        """Make one edit and return its name."""
        edits = [name for name in dir(self) if name.startswith("do_")]
        name = edits[self.rng.integers(len(edits))]
        getattr(self, name)()
        return name

    def one(self, pattern):
        found = sorted(self.root.glob(pattern))
        return found[self.rng.integers(len(found))]

    def dicom(self):
        return self.one("dicoms/*/*.dcm")

    def contour(self):
        return self.one("contourfiles/*/?-contours/*.txt")

    def number(self):
        self.n_made += 1
        return self.n_made

    def do_add_a_pair(self):
        n, patient = self.number(), self.rng.integers(6)
        write_dicom(
            self.root, f"P{patient}", f"{n}.dcm", instance(gradient(seed=n), uid=f"1.9.{n}")
        )
        write_contour(self.root, f"A{patient}", n, "io"[n % 2], f"{SQUARE}2 {3 + n / 1000}\n")

    def do_remove_an_image(self):
        if len(list(self.root.glob("dicoms/*/*.dcm"))) > 12:
            self.dicom().unlink()

    def do_remove_a_contour(self):
        if len(list(self.root.glob("contourfiles/*/*/*.txt"))) > 24:
            self.contour().unlink()

    def do_change_a_contour(self):
        self.contour().write_text(f"{SQUARE}2 {3 + self.number() / 1000}\n")

    def do_enlarge_a_contour(self):
        self.contour().write_text("0 0\n13 0\n13 11\n0 11\n")

    def do_break_a_contour(self):
        self.contour().write_text("1 2\nno number\n")

    def do_copy_a_contour(self):
        text = self.contour().read_bytes()
        self.contour().write_bytes(text)

    def do_copy_an_image(self):
        data = self.dicom().read_bytes()
        self.dicom().write_bytes(data)

    def do_change_an_image_but_not_its_size_and_time(self):
        path = self.dicom()
        before = path.stat()
        data = bytearray(path.read_bytes())
        data[-10] ^= 1
        path.write_bytes(data)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def do_change_the_type_of_values(self):
        wide = instance(
            gradient(), RescaleSlope=1, RescaleIntercept=int(self.rng.choice([0, 40000]))
        )
        self.dicom().write_bytes(dicom_bytes(wide))

    def do_rename_an_image_to_another_slice(self):
        path = self.dicom()
        path.rename(path.with_name(f"{self.number()}.dcm"))

    def do_move_an_image_to_another_patient(self):
        path = self.dicom()
        path.rename(self.dicom().parent / f"{self.number()}.dcm")

    def do_touch_files(self):
        for path in [*self.root.glob("dicoms/P1/*"), self.contour()]:
            os.utime(path)

    def do_replace_a_file_by_its_copy(self):
        path = self.dicom()
        shutil.copy(path, path.with_name("copy"))
        path.with_name("copy").replace(path)

    def do_add_or_remove_a_patient(self):
        link = self.root / "link.csv"
        lines = link.read_text().splitlines()
        if len(lines) > 5 and self.rng.random() < 0.5:
            del lines[self.rng.integers(1, len(lines))]
        else:
            known = {line.split(",")[0] for line in lines}
            gone = [f"P{n}" for n in range(6) if f"P{n}" not in known]
            if gone:
                lines.append(f"{gone[0]},A{gone[0][1:]}")
            else:
                n = self.number()
                write_dicom(self.root, f"N{n}", "1.dcm", instance(gradient(seed=n), PatientID="7"))
                write_contour(self.root, f"B{n}", 1, text=f"{SQUARE}2 {3 + n / 1000}\n")
                lines.append(f"N{n},B{n}")
        link.write_text("\n".join(lines) + "\n")

    def do_nothing(self):
        assert contour_path("A1", 1)


def disturb(how, tree, out, old, options):
    """Do to OUT and its cache what may happen between two updates: at every other step something.

    OUT keeps its split: it is what `old`, a copy, is built to.
    """
    place = cache.cache_path(out)
    if how == 1:
        place.unlink(missing_ok=True)
    elif how == 3 and place.exists():  # damaged
        data = bytearray(place.read_bytes())
        data[len(data) // 2] ^= 1
        place.write_bytes(data)
    elif how == 5 and place.exists():  # that of another OUT
        other = out.with_name("other.h5")
        etl.build(tree.root, other, replace(options, rasterizer="pillow"), force=True)
        shutil.copy(cache.cache_path(other), place)
    elif how == 7:  # OUT by a plain build
        with contextlib.suppress(RejectedError):  # no row is left
            etl.build(tree.root, out, replace(options, splits_from=str(old)), force=True)
            shutil.copyfile(out, old)


@pytest.mark.parametrize(
    "options", [PLAIN, EXCLUDING, FITTED], ids=["plain", "excluding", "fitted"]
)
def test_an_update_gives_the_bytes_of_a_full_build(tmp_path, monkeypatch, is_thorough, options):
    rng = np.random.default_rng(len(options))
    tree = Tree(tmp_path / "data", rng)
    out, old, full = (tmp_path / name for name in ("out.h5", "old.h5", "full.h5"))
    options = {"rows": ROWS, "columns": COLUMNS, "contours": ("i", "o")} | options
    etl.build(tree.root, out, etl.BuildOptions(**options), update=True)
    n_parsed = {"update": 0, "full": 0}
    now = ["update"]
    read_header = examine.read_header

    def counted(*arguments):
        n_parsed[now[0]] += 1
        return read_header(*arguments)

    monkeypatch.setattr(examine, "read_header", counted)
    done = []
    for step in range(200 if is_thorough else 15):
        done += [tree.edit() for _ in range(rng.integers(1, 3))]
        monkeypatch.setattr(sources, "SETTLED_NS", int(rng.choice([0, 2_000_000_000])))
        shutil.copyfile(out, old)
        disturb(step % 8, tree, out, old, etl.BuildOptions(**options))
        results = []
        for what, path, extra, keywords in (
            ("update", out, {}, {"update": True, "paranoid": step % 5 == 4, "cache": step % 7 > 0}),
            ("full", full, {"splits_from": str(old)}, {"force": True}),
        ):
            now[0] = what
            try:
                result = etl.build(
                    tree.root, path, etl.BuildOptions(**options, **extra), **keywords
                )
            except RejectedError as error:  # no row is left: then neither build has one
                result = str(error)
            results.append(result)
        if isinstance(results[0], str):
            assert results[0] == results[1], done
            assert out.read_bytes() == old.read_bytes()
            tree.heal()
            continue
        assert out.read_bytes() == full.read_bytes(), done
        one, other = (list(map(str, result.findings)) for result in results)
        assert one == other, done
        assert list(map(str, results[0].diagnoses)) == list(map(str, results[1].diagnoses))
    if "exclude_flagged" not in options:  # what is left out is parsed each time
        assert n_parsed["update"] < 0.7 * n_parsed["full"]
