"""Random edits of trees of DICOM objects, under random options.

A build ends in a file or in an error of ours, and an update, with and without its cache, gives what
a full build gives.
"""

import os
import shutil

import numpy as np
import pydicom
import pytest

import etl
from etl.errors import EtlError
from etl.phantom.objects import write_shapes
from etl.update import cache, sources

SIDE = 48
PLACEHOLDERS = ["", "ANONYMOUS", "0000", "new", " new "]


class Tree:
    """An input folder of one layout, and what happens to such folders."""

    def __init__(self, root, kind, rng):
        self.root, self.kind, self.rng = root, kind, rng
        self.data = root / "table.csv" if kind == "table" else root
        self.n_made = 0
        self.heal()

    def heal(self):
        """Make the tree as it was at first."""
        shutil.rmtree(self.root, ignore_errors=True)
        write_shapes(self.root, self.kind, patients=5, slices=6, rows=SIDE, columns=SIDE)

    def edit(self):
        """Make one edit and return its name."""
        edits = sorted(name for name in dir(self) if name.startswith("do_"))
        name = self.rng.choice(edits)
        getattr(self, name)()
        return str(name)

    def choice(self, values):
        return values[self.rng.integers(len(values))]

    def image(self):
        return self.choice(sorted(self.root.glob("images/*/*.dcm")))

    def drawing(self):
        return self.choice(sorted(p for p in self.root.glob("annotations/**/*") if p.is_file()))

    def number(self):
        self.n_made += 1
        return self.n_made

    def change(self, path, change):
        """Let a function change a data set; a file that was broken before stays as it is."""
        try:
            dataset = pydicom.dcmread(path)
        except (pydicom.errors.InvalidDicomError, EOFError):
            return
        change(dataset)
        dataset.save_as(path)

    def set_attribute(self, keyword, values):
        """Give an image, or all of its folder, the value of another one or one of some others."""
        image = self.image()
        images = [image] if self.rng.random() < 0.5 else sorted(image.parent.glob("*.dcm"))
        others = [self.image() for _ in range(2)]
        found = []
        for path in others:
            self.change(path, lambda dataset: found.append(dataset.get(keyword)))
        value = self.choice([*(one for one in found if one is not None), *values])
        for path in images:
            self.change(path, lambda dataset: setattr(dataset, keyword, value))

    def do_nothing(self):
        assert self.data.exists()

    def do_remove_an_image(self):
        if len(list(self.root.glob("images/*/*.dcm"))) > 5:
            self.image().unlink()

    def do_remove_a_drawing(self):
        if len(list(self.root.glob("annotations/**/*"))) > 5:
            self.drawing().unlink()

    def do_change_a_pixel(self):
        path = self.image()
        data = bytearray(path.read_bytes())
        data[-10:] = bytes(self.rng.integers(0, 256, len(data[-10:]), np.uint8))
        path.write_bytes(data)

    def do_copy_an_image_over_another(self):
        source, target = self.image(), self.image()
        if source != target:
            target.write_bytes(source.read_bytes())

    def do_cut_a_file(self):
        path = self.choice([self.image(), self.drawing()])
        path.write_bytes(path.read_bytes()[: self.rng.integers(0, 3000)])

    def do_rename_an_image(self):
        path = self.image()
        path.rename(path.with_name(f"{self.number() + 100}.dcm"))

    def do_touch_all(self):
        for path in self.root.glob("images/*/*.dcm"):
            os.utime(path, (1, 1))

    def do_change_whose_they_are(self):
        self.set_attribute("PatientID", PLACEHOLDERS)

    def do_change_their_study(self):
        self.set_attribute("StudyInstanceUID", ["", "1.2.3"])

    def do_change_their_series(self):
        self.set_attribute("SeriesInstanceUID", ["1.2.7"])

    def do_change_their_rescale(self):
        self.set_attribute("RescaleIntercept", ["0", "40000", "0.25", "-1024"])

    def do_change_their_unit(self):
        self.set_attribute("RescaleType", ["HU", "US"])

    def do_change_their_spacing(self):
        self.set_attribute("PixelSpacing", [["2", "2"], ["1.25", "1.5"]])

    def do_change_their_place(self):
        self.set_attribute("ImagePositionPatient", [["0", "0", "0"], ["1.5", "2", "7"]])

    def do_redraw(self):
        path = self.drawing()
        if path.suffix == ".txt":
            path.write_bytes(self.drawing().read_bytes())
        else:
            self.change(path, self.redraw)

    def redraw(self, dataset):
        """Move, empty or rename what a structure set or segmentation draws."""
        if "ROIContourSequence" in dataset:
            contours = self.choice(dataset.ROIContourSequence).get("ContourSequence") or []
            if contours and self.rng.random() < 0.3:
                del contours[self.rng.integers(len(contours))]
            for contour in contours[:2]:
                off = self.choice([0.5, 0.5, 3000.0])
                contour.ContourData = [f"{float(v) + off:.4f}" for v in contour.ContourData]
            name = self.choice(["sphere", "box", "liver"])
            self.choice(dataset.StructureSetROISequence).ROIName = name
        elif "SegmentSequence" in dataset:
            data = bytearray(dataset.PixelData)
            start = self.rng.integers(len(data))
            data[start : start + 200] = bytes(len(data[start : start + 200]))
            dataset.PixelData = bytes(data)
            self.choice(dataset.SegmentSequence).SegmentLabel = self.choice(["box", "liver"])

    def do_add_a_newer_set(self):
        path = self.drawing()
        if path.suffix == ".dcm":
            n = self.number()
            newer = path.with_name(f"set{n}.dcm")
            shutil.copy(path, newer)
            self.change(newer, lambda dataset: _renew(dataset, n))

    def do_change_a_line_of_the_table(self):
        if self.kind != "table":
            return
        lines = self.data.read_text().splitlines()
        n = self.rng.integers(1, len(lines))
        cells = lines[n].split(",")
        column = self.rng.integers(len(cells))
        cells[column] = self.choice(lines[1:]).split(",")[column]
        lines[n] = ",".join(cells)
        self.data.write_text("\n".join(lines) + "\n")


def _renew(dataset, n):
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"1.88.{n}"
    for keyword in ("StructureSetDate", "ContentDate"):
        if keyword in dataset:
            setattr(dataset, keyword, "20300101")


def random_options(rng, kind, folder):
    """Return options that fit a layout."""

    def choice(*values):
        return values[rng.integers(len(values))]

    size = {"size": "fit", "rows": 44, "columns": 51, "fit_about": choice("image", "structures")}
    options = {"rows": SIDE, "columns": SIDE} | choice(
        {}, {}, {"size": "most"}, size, size | {"resample": choice((2.0, 2.0), (1.5, 1.0))}
    )
    options |= choice({"masks": "bits"}, {}, {"not_drawn": "ignore"})
    options |= choice({}, {"structures": ("box", "torus")}, {"structures": {"a": "*o*", "b": "*"}})
    options |= choice({}, {"split": (50, 25, 25)}, {"folds": 3}, {"split": (70, 30, 0)})
    options |= choice({}, {}, {"qc": False}, {"audit": False}, {"audit_contours": 2})
    options |= choice({}, {"keep_tags": ("Manufacturer",)})
    if "qc" not in options:
        codes = ("area-jump", "identical-image", "near-duplicate", "structure-too-small")
        options |= choice({}, {"exclude_flagged": codes, "exclude_structures": True})
    if kind != "table":
        options |= choice({}, {"background": True})
        options |= choice({}, {"structure_sets": "all"})
        options |= choice({}, {"patient_id": "folder"})
    if rng.random() < 0.3:
        listed = folder / "list.csv"
        listed.write_text("patient_id,slice\nSHAPES002,3\nSHAPES003,2\n")
        options["exclude_file"] = str(listed)
    return options


def built(data, out, options, **keywords):
    """Return what a build gives: its file and texts, or its error."""
    try:
        result = etl.build(data, out, etl.BuildOptions(**options), **keywords)
    except EtlError as error:
        return str(error).replace(str(out), "OUT")
    return out.read_bytes(), list(map(str, result.findings)), list(map(str, result.diagnoses))


@pytest.mark.parametrize("kind", ["table", "rtstruct", "seg", "enhanced"])
def test_updates_of_random_trees_give_what_full_builds_give(
    tmp_path, monkeypatch, is_thorough, kind
):
    monkeypatch.setattr(sources, "SETTLED_NS", 0)
    rng = np.random.default_rng(len(kind))
    n_same = 0
    for _ in range(25 if is_thorough else 2):
        tree = Tree(tmp_path / "data", kind, rng)
        options = random_options(rng, kind, tmp_path)
        out, old, full, bare = (tmp_path / f"{name}.h5" for name in ("out", "old", "full", "bare"))
        for path in (out, cache.cache_path(out)):
            path.unlink(missing_ok=True)
        if isinstance(built(tree.data, out, options), str):
            continue
        done = []
        for _ in range(6 if is_thorough else 3):
            done += [tree.edit() for _ in range(rng.integers(0, 4))]
            shutil.copyfile(out, old)
            shutil.copyfile(out, bare)  # without a cache
            expected = built(
                tree.data, full, options | {"splits_from": str(old)}, force=True, cache=False
            )
            for path, has_cache in ((bare, False), (out, True)):
                found = built(tree.data, path, options, update=True, cache=has_cache)
                assert found == expected or isinstance(expected, str), (done, options)
                assert isinstance(found, str) == isinstance(expected, str), (done, options)
            n_same += not isinstance(expected, str)
            if isinstance(expected, str):
                tree.heal()
    assert n_same
