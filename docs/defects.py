"""One example of each finding: plant a defect in the phantom, build, and see that it is found.

`write_examples` leaves a JSON file with path and message of each finding, and a picture where the
defect can be seen. The pages in findings/ show them; nothing of it is committed.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

import mask_source  # in examples/
import numpy as np
import numpy.typing as npt
import pydicom
from PIL import Image
from pydicom.encaps import encapsulate
from pydicom.uid import MPEG2MPML

import etl
from etl.contours.rasterise import rasterise
from etl.findings import Finding, FindingRow
from etl.labels import cardiac_scheme
from etl.phantom.objects import write_shapes
from etl.phantom.tree import write_phantom
from etl.report.overlays import overlay
from etl.report.predictions import agreement, disagreements
from etl.sources.layouts import LAYOUTS
from loader import open_dataset

Vertices: TypeAlias = npt.NDArray[np.float64]

EXAMPLES: Final = "examples.json"

_SIDE: Final = 380  # pixels of each half of a picture
_MARGIN: Final = 8  # pixels of the image around the contours
_GAP: Final = 12


@dataclass(frozen=True)
class Planted:
    """What to show of a defect.

    Attributes
    ----------
    pairs : tuple of (patient, slice)
        The images that show it. One is shown beside its clean self, two beside each other.
    text : str
        Lines of the file that is at fault.
    data : str
        What to build, relative to the phantom's folder.
    options : dict
        Options of the build instead of both contours.
    executor : Executor, optional
        Where to build.
    is_predicted : bool
        Whether a model predicts the masks of the clean phantom.
    """

    pairs: tuple[tuple[str, int], ...] = ()
    text: str = ""
    data: str = ""
    options: dict[str, object] | None = None
    executor: Executor | None = None
    is_predicted: bool = False


@dataclass(frozen=True)
class Example:
    """What a page shows of one finding."""

    path: str
    message: str
    text: str
    has_picture: bool
    n_pairs: int


class Tree:
    """A phantom's folder, in which files can be changed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        lines = (root / "link.csv").read_text().splitlines()[1:]
        self.original_ids = dict(line.split(",") for line in lines)
        self.patients = list(self.original_ids)

    def slices(self, patient: str, kind: str = "i") -> list[int]:
        """Return the slice numbers that have a contour."""
        folder = self.root / "contourfiles" / self.original_ids[patient] / f"{kind}-contours"
        return sorted(int(path.name.split("-")[2]) for path in folder.iterdir())

    def middle(self, *, with_outer: bool) -> tuple[str, int]:
        """Return patient and slice of a pair in the middle of a stack."""
        patient = self.patients[1]
        outer = self.slices(patient, "o")
        chosen = [n for n in self.slices(patient) if (n in outer) == with_outer]
        return patient, chosen[len(chosen) // 2]

    def dicom(self, pair: tuple[str, int]) -> Path:
        """Return the path of a pair's image."""
        return self.root / "dicoms" / pair[0] / f"{pair[1]}.dcm"

    def contour(self, pair: tuple[str, int], kind: str = "i") -> Path:
        """Return the path of a pair's contour."""
        name = f"IM-0001-{pair[1]:04d}-{kind}contour-manual.txt"
        folder = self.root / "contourfiles" / self.original_ids[pair[0]]
        return folder / f"{kind}-contours" / name

    def vertices(self, pair: tuple[str, int], kind: str = "i") -> Vertices:
        """Return a contour as the file has it."""
        return np.loadtxt(self.contour(pair, kind), ndmin=2)

    def draw(self, pair: tuple[str, int], vertices: Vertices, kind: str = "i") -> None:
        """Write a contour."""
        np.savetxt(self.contour(pair, kind), vertices, "%.4f")

    def edit(self, pair: tuple[str, int], **attributes: object) -> None:
        """Set attributes of an image; None removes one."""
        dataset = pydicom.dcmread(self.dicom(pair))
        for keyword, value in attributes.items():
            if value is None:
                delattr(dataset, keyword)
            else:
                setattr(dataset, keyword, value)
        dataset.save_as(self.dicom(pair))

    def pixels(self, pair: tuple[str, int]) -> npt.NDArray[np.uint16]:
        """Return the stored pixels of an image."""
        return np.frombuffer(pydicom.dcmread(self.dicom(pair)).PixelData, "<u2").copy()


Plant: TypeAlias = Callable[[Tree], Planted]
PLANTS: Final[dict[str, Plant]] = {}


def plants(code: str) -> Callable[[Plant], Plant]:
    """Register the function that plants a defect."""

    def register(plant: Plant) -> Plant:
        PLANTS[code] = plant
        return plant

    return register


# --------------------------------------------------------------------------------- files and links


def _link_line(tree: Tree, line: str) -> Planted:
    path = tree.root / "link.csv"
    path.write_text(f"{path.read_text()}{line}\n")
    return Planted(text=path.read_text())


@plants("link-invalid")
def _(tree: Tree) -> Planted:
    return _link_line(tree, "PHANTOM005,")


@plants("link-unknown-patient")
def _(tree: Tree) -> Planted:
    return _link_line(tree, "PHANTOM999,SYN-99")


@plants("link-duplicate")
def _(tree: Tree) -> Planted:
    first, second = tree.patients[:2]
    return _link_line(tree, f"{first},{tree.original_ids[second]}")


@plants("slice-ambiguous")
def _(tree: Tree) -> Planted:
    pair = tree.middle(with_outer=False)
    image = tree.dicom(pair)
    twin = image.with_name(f"{pair[1]:03d}.dcm")
    shutil.copyfile(image, twin)
    return Planted(text=f"{image.name}\n{twin.name}\n")


@plants("contour-no-image")
def _(tree: Tree) -> Planted:
    tree.dicom(tree.middle(with_outer=False)).unlink()
    return Planted()


@plants("same-person")
def _(tree: Tree) -> Planted:
    first, second = tree.patients[:2]
    known = pydicom.dcmread(tree.dicom((first, tree.slices(first)[0])))
    for number in tree.slices(second):
        tree.edit((second, number), PatientID=known.PatientID)
    return Planted(options={"split": (50, 25, 25)})


@plants("names-alike")
def _(tree: Tree) -> Planted:
    return _table(tree, "{patient},{image},Pool,{outer}")


@plants("patient-id-differs")
def _(tree: Tree) -> Planted:
    first, second = tree.patients[:2]
    stranger = pydicom.dcmread(tree.dicom((first, tree.slices(first)[0])))
    tree.edit((second, tree.slices(second)[0]), PatientID=f"{stranger.PatientID}-2")
    return Planted()


@plants("file-misnamed")
def _(tree: Tree) -> Planted:
    image = tree.dicom(tree.middle(with_outer=False))
    image.rename(image.with_suffix(".IMA"))
    return Planted()


@plants("file-not-used")
def _(tree: Tree) -> Planted:
    tree.contour(tree.middle(with_outer=False)).with_name("notes.txt").touch()
    return Planted()


@plants("image-no-contour")
def _(tree: Tree) -> Planted:
    tree.contour(tree.middle(with_outer=False)).unlink()
    return Planted()


@plants("contour-missing")
def _(_tree: Tree) -> Planted:
    return Planted()  # the phantom has such pairs


@plants("row-excluded")
def _(tree: Tree) -> Planted:
    _self_crossing(tree)
    return Planted(options={"exclude_flagged": ("contour-self-crossing",)})


def _table(tree: Tree, *lines: str, **options: object) -> Planted:
    """Write a table of two good contours and further lines."""
    pairs = [(tree.patients[1], number) for number in tree.slices(tree.patients[1], "o")[:2]]
    images, inner, outer = (
        [path(pair, *kind).relative_to(tree.root).as_posix() for pair in pairs]
        for path, kind in ((tree.dicom, ()), (tree.contour, "i"), (tree.contour, "o"))
    )
    paths = {"image": images[0], "inner": inner[0], "outer": outer[0]}
    table = [
        "patient_id,image,label,contour",
        *(
            f"{p},{image},pool,{text}"
            for (p, _), image, text in zip(pairs, images, inner, strict=True)
        ),
        *(line.format(patient=pairs[0][0], **paths) for line in lines),
    ]
    (tree.root / "table.csv").write_text("\n".join(table) + "\n")
    return Planted(text="\n".join(table), data="table.csv", options=options)


@plants("annotation-duplicate")
def _(tree: Tree) -> Planted:
    return _table(tree, "{patient},{image},pool,{outer}")


@plants("image-no-frame")
def _(tree: Tree) -> Planted:
    planted = _table(tree)
    first, *others = planted.text.splitlines()
    text = "\n".join([f"{first},frame", *(f"{line},{n}" for n, line in enumerate(others, 1))])
    (tree.root / planted.data).write_text(f"{text}\n")
    return replace(planted, text=text)


@plants("structure-missing")
def _(tree: Tree) -> Planted:
    return _table(tree, structures=("pool", "mucsle"))


@plants("structure-not-chosen")
def _(tree: Tree) -> Planted:
    return _table(tree, "{patient},{image},muscle,{outer}", structures=("pool",))


@plants("structure-excluded")
def _(tree: Tree) -> Planted:
    patient, number = tree.middle(with_outer=True)
    other = tree.patients[2], number
    tree.draw((patient, number), tree.vertices(other, "o"), "o")
    options = {"contours": ("i", "o"), "partial": True}
    flags = {"exclude_flagged": ("identical-contour",), "exclude_structures": True}
    return Planted(options=options | flags)


# ---------------------------------------------------------------------------------- structure sets


def _structure_set(tree: Tree, change: Callable[[pydicom.Dataset], None]) -> Planted:
    """Write shapes with a structure set, and change the set."""
    write_shapes(tree.root / "shapes", patients=2, slices=12)
    path = tree.root / "shapes" / "annotations" / "SHAPES001.dcm"
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)
    return Planted(data="shapes", options={})


def _contours(dataset: pydicom.Dataset, n: int = 1) -> list[pydicom.Dataset]:
    """Return the first contours of the torus."""
    return list(dataset.ROIContourSequence[0].ContourSequence[:n])


def _shifted(contour: pydicom.Dataset, mm: float) -> None:
    points = np.array(contour.ContourData, float).reshape(-1, 3) + np.array([0, 0, mm])
    contour.ContourData = [f"{value:.4f}" for value in points.ravel()]


@plants("structure-set-unreadable")
def _(tree: Tree) -> Planted:
    def cut(dataset: pydicom.Dataset) -> None:
        del dataset.SOPClassUID

    return _structure_set(tree, cut)


def _segmentation(tree: Tree, change: Callable[[pydicom.Dataset], None]) -> Planted:
    """Write shapes with a segmentation, and change it."""
    write_shapes(tree.root / "shapes", "seg", patients=2, slices=12)
    path = tree.root / "shapes" / "annotations" / "SHAPES001.dcm"
    dataset = pydicom.dcmread(path)
    change(dataset)
    dataset.save_as(path)
    return Planted(data="shapes", options={})


@plants("segmentation-unreadable")
def _(tree: Tree) -> Planted:
    def cut(dataset: pydicom.Dataset) -> None:
        dataset.PixelData = dataset.PixelData[:1000]

    return _segmentation(tree, cut)


@plants("mask-grid")
def _(tree: Tree) -> Planted:
    def other_spacing(dataset: pydicom.Dataset) -> None:
        groups = dataset.SharedFunctionalGroupsSequence[0]
        groups.PixelMeasuresSequence[0].PixelSpacing = ["0.7", "0.7"]

    return _segmentation(tree, other_spacing)


@plants("structure-number-invalid")
def _(tree: Tree) -> Planted:
    def other_number(dataset: pydicom.Dataset) -> None:
        dataset.ROIContourSequence[0].ReferencedROINumber = 9

    return _structure_set(tree, other_number)


@plants("structure-ambiguous")
def _(tree: Tree) -> Planted:
    planted = _structure_set(tree, lambda _: None)
    return replace(planted, options={"structures": {"round": ["sphere", "torus"], "box": "box"}})


@plants("structure-name-too-long")
def _(tree: Tree) -> Planted:
    def renamed(dataset: pydicom.Dataset) -> None:
        dataset.StructureSetROISequence[0].ROIName = " ".join(["torus, seen from all sides,"] * 10)

    with pydicom.config.disable_value_validation():  # pydicom warns of such names
        return _structure_set(tree, renamed)


@plants("patient-id-unusable")
def _(tree: Tree) -> Planted:
    planted = _structure_set(tree, lambda _: None)
    for path in (tree.root / "shapes" / "images" / "SHAPES001").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.PatientID = "SHAPES001\x07"
        dataset.save_as(path)
    return planted


@plants("contour-off-plane")
def _(tree: Tree) -> Planted:
    def between(dataset: pydicom.Dataset) -> None:
        for contour in _contours(dataset, 2):
            _shifted(contour, 2.0)

    return _structure_set(tree, between)


@plants("contour-by-position")
def _(tree: Tree) -> Planted:
    def unknown(dataset: pydicom.Dataset) -> None:
        for contour in _contours(dataset, 2):
            contour.ContourImageSequence[0].ReferencedSOPInstanceUID = "1.2.3"

    return _structure_set(tree, unknown)


@plants("contour-not-closed")
def _(tree: Tree) -> Planted:
    def opened(dataset: pydicom.Dataset) -> None:
        _contours(dataset)[0].ContourGeometricType = "OPEN_PLANAR"

    return _structure_set(tree, opened)


@plants("contour-point")
def _(tree: Tree) -> Planted:
    def point(dataset: pydicom.Dataset) -> None:
        (contour,) = _contours(dataset)
        contour.ContourGeometricType = "POINT"
        contour.ContourData, contour.NumberOfContourPoints = contour.ContourData[:3], 1

    return _structure_set(tree, point)


@plants("frame-of-reference-differs")
def _(tree: Tree) -> Planted:
    def other(dataset: pydicom.Dataset) -> None:
        dataset.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = "1.2.3"

    return _structure_set(tree, other)


def _draft(tree: Tree, change: Callable[[pydicom.Dataset], None]) -> Planted:
    """Write shapes with a structure set and an older one."""
    planted = _structure_set(tree, lambda _: None)
    path = tree.root / "shapes" / "annotations" / "SHAPES001.dcm"
    dataset = pydicom.dcmread(path)
    dataset.StructureSetLabel, dataset.StructureSetDate = "draft", "20000101"
    dataset.SOPInstanceUID = "1.2.3"
    change(dataset)
    dataset.save_as(path.with_name("draft.dcm"))
    return planted


@plants("structure-set-not-chosen")
def _(tree: Tree) -> Planted:
    return _draft(tree, lambda _: None)


@plants("drawings-not-taken")
def _(tree: Tree) -> Planted:
    def rename(dataset: pydicom.Dataset) -> None:
        dataset.StructureSetROISequence[0].ROIName = "lesion"

    return _draft(tree, rename)


@plants("image-no-plane")
def _(tree: Tree) -> Planted:
    planted = _structure_set(tree, lambda _: None)
    path = tree.root / "shapes" / "images" / "SHAPES001" / "6.dcm"
    dataset = pydicom.dcmread(path)
    del dataset.ImageOrientationPatient
    dataset.save_as(path)
    return planted


@plants("instance-duplicate")
def _(tree: Tree) -> Planted:
    pair = tree.middle(with_outer=False)
    first = pair[0], tree.slices(pair[0])[0]
    tree.edit(pair, SOPInstanceUID=pydicom.dcmread(tree.dicom(first)).SOPInstanceUID)
    return Planted()


@plants("series-not-annotated")
def _(tree: Tree) -> Planted:
    write_shapes(tree.root / "shapes", patients=2, slices=12)
    (tree.root / "shapes" / "annotations" / "SHAPES002.dcm").unlink()
    return Planted(data="shapes", options={})


# ------------------------------------------------------------------------------------------ images


def _edited(tree: Tree, **attributes: object) -> Planted:
    tree.edit(tree.middle(with_outer=False), **attributes)
    return Planted()


@plants("image-unreadable")
def _(tree: Tree) -> Planted:
    tree.dicom(tree.middle(with_outer=False)).write_bytes(b"")
    return Planted()


@plants("image-truncated")
def _(tree: Tree) -> Planted:
    path = tree.dicom(tree.middle(with_outer=False))
    path.write_bytes(path.read_bytes()[:-1000])
    return Planted()


@plants("image-no-pixels")
def _(tree: Tree) -> Planted:
    return _edited(tree, PixelData=None)


@plants("image-not-grayscale")
def _(tree: Tree) -> Planted:
    return _edited(tree, PhotometricInterpretation="PALETTE COLOR")


@plants("image-multiframe")
def _(tree: Tree) -> Planted:
    return _edited(tree, NumberOfFrames=2)


@plants("image-unsupported-encoding")
def _(tree: Tree) -> Planted:
    path = tree.dicom(tree.middle(with_outer=False))
    dataset = pydicom.dcmread(path)
    dataset.PixelData = encapsulate([bytes(1000)])
    dataset["PixelData"].VR = "OB"
    dataset.file_meta.TransferSyntaxUID = MPEG2MPML
    dataset.save_as(path)
    return Planted()


@plants("image-lossy")
def _(tree: Tree) -> Planted:
    return _edited(tree, LossyImageCompression="01")


@plants("image-file-damaged")
def _(tree: Tree) -> Planted:
    path = tree.dicom(tree.middle(with_outer=False))
    path.write_bytes(path.read_bytes()[128 + len("DICM") :])
    return Planted()


@plants("image-header-invalid")
def _(tree: Tree) -> Planted:
    pair = tree.middle(with_outer=False)
    path = tree.dicom(pair)
    spacing = "\\".join(map(str, pydicom.dcmread(path).PixelSpacing)).encode()
    data = path.read_bytes()
    path.write_bytes(data.replace(spacing, spacing.replace(b".", b",")))
    return Planted()


@plants("image-unused-bits")
def _(tree: Tree) -> Planted:
    pair = tree.middle(with_outer=False)  # of a patient whose images have 12 bits stored
    pixels = tree.pixels(pair)
    pixels[:40] |= 1 << 13
    tree.edit(pair, PixelData=pixels.tobytes())
    return Planted()


@plants("image-size")
def _(tree: Tree) -> Planted:
    pair = tree.middle(with_outer=False)
    smaller = tree.pixels(pair).reshape(256, 256)[:240]
    tree.edit(pair, Rows=240, PixelData=smaller.tobytes())
    return Planted()


class _Meddling(Executor):
    """Runs each task at once, and touches a file after it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def submit(self, task: Callable[..., object], /, *args: object, **kwargs: object) -> Future:  # type: ignore[type-arg]
        """Return what the task returned."""
        future: Future[object] = Future()
        future.set_result(task(*args, **kwargs))
        self._path.write_bytes(self._path.read_bytes() + b"\0\0")
        return future


@plants("image-changed")
def _(tree: Tree) -> Planted:
    return Planted(executor=_Meddling(tree.dicom(tree.middle(with_outer=False))))


@plants("image-constant")
def _(tree: Tree) -> Planted:
    pair = tree.middle(with_outer=False)
    tree.edit(pair, PixelData=np.full(256 * 256, 300, "<u2").tobytes())
    return Planted((pair,))


@plants("image-saturated")
def _(tree: Tree) -> Planted:
    pair = tree.middle(with_outer=False)
    pixels = tree.pixels(pair)
    highest = np.sort(pixels)[-len(pixels) // 7]
    tree.edit(pair, PixelData=np.minimum(pixels, highest).tobytes())
    return Planted((pair,))


@plants("identical-image")
def _(tree: Tree) -> Planted:
    patient, number = tree.middle(with_outer=False)
    numbers = tree.slices(patient)
    twin = patient, numbers[numbers.index(number) + 2]
    tree.edit(twin, PixelData=tree.pixels((patient, number)).tobytes())
    return Planted(((patient, number), twin))


@plants("near-duplicate")
def _(tree: Tree) -> Planted:
    first, second = tree.patients[1:3]
    number = tree.middle(with_outer=False)[1]
    pixels = tree.pixels((first, number)).reshape(256, 256).astype(np.float64)
    darker = (0.6 * pixels + 20).astype(np.uint16)
    tree.edit((second, number), PixelData=darker.tobytes())
    options = {"split": (50, 25, 25)}
    return Planted(((first, number), (second, number)), options=options)


@plants("disagrees-with-model")
def _(tree: Tree) -> Planted:
    pair = tree.middle(with_outer=False)
    tree.draw(pair, tree.vertices(pair) + np.array([7.0, 9.0]))
    return Planted((pair,), is_predicted=True)


def _one_series(tree: Tree, patient: str) -> None:
    for number in tree.slices(patient):
        tree.edit((patient, number), SeriesInstanceUID="2.25.1")


@plants("geometry-changes")
def _(tree: Tree) -> Planted:
    pair = tree.middle(with_outer=False)
    _one_series(tree, pair[0])
    tree.edit(pair, PixelSpacing=["1.5000", "1.5000"])
    return Planted()


@plants("rescale-differs")
def _(tree: Tree) -> Planted:
    patient, number = tree.middle(with_outer=False)
    _one_series(tree, patient)
    for other in tree.slices(patient):
        if other != number:
            tree.edit((patient, other), RescaleSlope="1", RescaleIntercept="-1024")
    tree.edit((patient, number), RescaleSlope="1", RescaleIntercept="0")
    return Planted()


@plants("units-differ")
def _(tree: Tree) -> Planted:
    patient, number = tree.middle(with_outer=False)
    for other in tree.slices(patient):
        tree.edit((patient, other), RescaleType="mrad" if other == number else "normalized")
    return Planted()


@plants("real-world-values")
def _(tree: Tree) -> Planted:
    unit = pydicom.Dataset()
    unit.CodeValue, unit.CodingSchemeDesignator, unit.CodeMeaning = "um2/s", "UCUM", "um2/s"
    mapping = pydicom.Dataset()
    mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept = 0.5, 0.0
    mapping.MeasurementUnitsCodeSequence = [unit]
    patient = tree.patients[1]
    for number in tree.slices(patient):
        tree.edit((patient, number), RealWorldValueMappingSequence=[mapping])
    return Planted()


@plants("geometry-missing")
def _(tree: Tree) -> Planted:
    patient = tree.patients[1]
    for number in tree.slices(patient):
        tree.edit((patient, number), PixelSpacing=None, ImagePositionPatient=None)
    return Planted()


@plants("instance-number-differs")
def _(tree: Tree) -> Planted:
    pair = tree.middle(with_outer=False)
    tree.edit(pair, InstanceNumber=pair[1] + 1)
    return Planted()


# ----------------------------------------------------------------------------------- contour files


def _text(tree: Tree, change: Callable[[list[str]], list[str]]) -> Planted:
    """Change the lines of a contour file and show those around the first that differs."""
    path = tree.contour(tree.middle(with_outer=False))
    before = path.read_text().splitlines()
    after = change(list(before))
    path.write_text("\n".join(after) + "\n")
    shown = [f"{number}: {line}" for number, line in enumerate(after[:4], start=1)]
    return Planted(text="\n".join(shown))


@plants("contour-unreadable")
def _(tree: Tree) -> Planted:
    return _text(tree, lambda lines: [*lines[:2], lines[2].replace(" ", ","), *lines[3:]])


@plants("contour-not-finite")
def _(tree: Tree) -> Planted:
    return _text(tree, lambda lines: [*lines[:2], "nan nan", *lines[3:]])


@plants("contour-too-few-points")
def _(tree: Tree) -> Planted:
    planted = _text(tree, lambda lines: [lines[0], lines[len(lines) // 2]])
    return replace(planted, pairs=(tree.middle(with_outer=False),))


@plants("contour-too-large")
def _(tree: Tree) -> Planted:
    pair = tree.middle(with_outer=False)
    there_and_back = np.array([(0.0, 0.0), (60000.0, 60000.0)])
    tree.draw(pair, np.tile(there_and_back, (100, 1)) + np.arange(200)[:, None])
    return Planted()


@plants("contour-no-spacing")
def _(tree: Tree) -> Planted:
    tree.edit(tree.middle(with_outer=False), PixelSpacing=None)
    return Planted(options={"contour_transform": ("mm",)})


@plants("contour-outside")
def _(tree: Tree) -> Planted:
    pair = tree.middle(with_outer=False)
    tree.draw(pair, tree.vertices(pair) * 2 + 30)
    return Planted((pair,))


@plants("mask-empty")
def _(tree: Tree) -> Planted:
    pair = tree.middle(with_outer=False)
    centre = np.floor(tree.vertices(pair).mean(axis=0)) + 0.5
    tree.draw(pair, centre + 0.3 * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]))
    return Planted((pair,))


@plants("image-no-spacing")
def _(tree: Tree) -> Planted:
    tree.edit(tree.middle(with_outer=False), PixelSpacing=None)
    return Planted(options={"size": "fit", "rows": 180, "columns": 180, "resample": 2.0})


@plants("mask-size")
def _(tree: Tree) -> Planted:
    LAYOUTS.setdefault(mask_source.SOURCE.name, mask_source.SOURCE)
    pair = tree.middle(with_outer=False)
    for number, rows in ((pair[1], 240), (tree.slices(pair[0])[0], 256)):
        image = tree.dicom((pair[0], number))
        Image.new("L", (256, rows), "white").save(image.with_suffix(".png"))
    return Planted(data="dicoms", options={"layout": mask_source.SOURCE.name})


# ---------------------------------------------------------------------------------------- drawings


@plants("contour-partly-outside")
def _(tree: Tree) -> Planted:
    pair = tree.middle(with_outer=False)
    vertices = tree.vertices(pair)
    n_columns_in = 2 * np.ptp(vertices[:, 0]) / 3
    tree.draw(pair, vertices - (vertices[:, 0].max() - n_columns_in, 0))
    return Planted((pair,))


@plants("structure-cut")
def _(_tree: Tree) -> Planted:
    return Planted(options={"contours": ("o",), "size": "fit", "rows": 72, "columns": 72})


@plants("structure-too-small")
def _(tree: Tree) -> Planted:
    def sliver(dataset: pydicom.Dataset) -> None:
        for contour in _contours(dataset, 2):  # its outline and its hole in one image
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            points = points[0] + (points - points[0]) / 1000
            contour.ContourData = [f"{value:.4f}" for value in points.ravel()]

    return _structure_set(tree, sliver)


@plants("contour-open-gap")
def _(tree: Tree) -> Planted:
    pair = tree.middle(with_outer=False)
    vertices = tree.vertices(pair)
    tree.draw(pair, vertices[: -len(vertices) // 5])
    return Planted((pair,))


def _self_crossing(tree: Tree) -> tuple[str, int]:
    pair = tree.middle(with_outer=False)
    vertices = tree.vertices(pair)
    right = int(vertices[:, 0].argmax())
    corners = vertices[right] + 6 * np.array([[1, 0.5], [1, -0.5], [0, 0]])
    tree.draw(pair, np.insert(vertices, right + 1, corners, axis=0))
    return pair


@plants("contour-self-crossing")
def _(tree: Tree) -> Planted:
    return Planted((_self_crossing(tree),))


@plants("contour-repeated-points")
def _(tree: Tree) -> Planted:
    pair = tree.middle(with_outer=False)
    vertices = tree.vertices(pair)
    third = vertices[: len(vertices) // 3]
    tree.draw(pair, np.concatenate([third, third[::-1], vertices]))
    return Planted(text=f"{len(third)} of {len(vertices)} points are drawn three times")


@plants("inner-outside-outer")
def _(tree: Tree) -> Planted:
    pair = tree.middle(with_outer=True)
    inner = tree.vertices(pair)
    tree.draw(pair, inner + np.array([np.ptp(inner[:, 0]) / 3, 0]))
    return Planted((pair,))


@plants("structures-overlap")
def _(tree: Tree) -> Planted:
    return _table(tree, "{patient},{image},wall,{outer}")


@plants("structures-nested")
def _(tree: Tree) -> Planted:
    lines = ["patient_id,image,label,contour"]
    for patient in tree.patients:
        for number in tree.slices(patient, "o"):
            pair = patient, number
            image = tree.dicom(pair).relative_to(tree.root)
            for label, kind in (("muscle", "o"), ("pool", "i")):
                contour = tree.contour(pair, kind).relative_to(tree.root)
                lines.append(f"{patient},{image.as_posix()},{label},{contour.as_posix()}")
    (tree.root / "table.csv").write_text("\n".join(lines) + "\n")
    return Planted(text="\n".join(lines[:5]), data="table.csv", options={})


@plants("structures-exchanged")
def _(tree: Tree) -> Planted:
    write_shapes(tree.root / "shapes", patients=6, slices=9)
    path = tree.root / "shapes" / "annotations" / "SHAPES004.dcm"
    dataset = pydicom.dcmread(path)
    names = {"box": "sphere", "sphere": "box"}
    for one in dataset.StructureSetROISequence:
        one.ROIName = names.get(one.ROIName, one.ROIName)
    dataset.save_as(path)
    return Planted(data="shapes", options={})


@plants("identical-contour")
def _(tree: Tree) -> Planted:
    patient, number = tree.middle(with_outer=False)
    numbers = [n for n in tree.slices(patient) if n not in tree.slices(patient, "o")]
    twin = patient, numbers[numbers.index(number) + 1]
    tree.draw(twin, tree.vertices((patient, number)))
    return Planted(((patient, number), twin))


# ------------------------------------------------------------------------------ sizes and positions


def _resized(tree: Tree, pair: tuple[str, int], factor: float) -> Planted:
    vertices = tree.vertices(pair)
    centre = vertices.mean(axis=0)
    tree.draw(pair, centre + factor * (vertices - centre))
    return Planted((pair,))


@plants("area-jump")
def _(tree: Tree) -> Planted:
    return _resized(tree, tree.middle(with_outer=False), 1.6)


@plants("area-outlier")
def _(tree: Tree) -> Planted:
    return _resized(tree, tree.middle(with_outer=True), 3.2)


@plants("centroid-jump")
def _(tree: Tree) -> Planted:
    pair = tree.middle(with_outer=False)
    vertices = tree.vertices(pair)
    tree.draw(pair, vertices + np.ptp(vertices, axis=0) * (0.3, 0.4))
    return Planted((pair,))


# --------------------------------------------------------------------------------------- alignment


def _moved(tree: Tree, patients: list[str], shift: tuple[float, float]) -> Planted:
    for patient in patients:
        for kind in "io":
            for number in tree.slices(patient, kind):
                pair = patient, number
                tree.draw(pair, tree.vertices(pair, kind) + shift, kind)
    return Planted((tree.middle(with_outer=True),))


@plants("contours-misfit")
def _(tree: Tree) -> Planted:
    for patient in tree.patients:
        for kind in "io":
            for number in tree.slices(patient, kind):
                pair = patient, number
                tree.draw(pair, tree.vertices(pair, kind)[:, ::-1], kind)
    return Planted((tree.middle(with_outer=True),))


@plants("alignment-dataset")
def _(tree: Tree) -> Planted:
    return _moved(tree, tree.patients, (1.0, 1.0))


@plants("alignment-patient")
def _(tree: Tree) -> Planted:
    return _moved(tree, [tree.patients[1]], (2.0, -1.5))


# ------------------------------------------------------------------------------------ the examples


def write_examples(folder: Path) -> dict[str, Example]:
    """Plant every defect, and write what was found and the pictures into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        clean = clean_tree(Path(scratch) / "clean")
        examples = {code: example(code, clean, folder) for code in PLANTS}
    plain = {code: asdict(one) for code, one in examples.items()}
    (folder / EXAMPLES).write_text(json.dumps(plain, indent=1))
    return examples


def clean_tree(root: Path) -> Tree:
    """Return a phantom without the images that have no contour."""
    write_phantom(root, patients=4, slices=8, phases=3)
    tree = Tree(root)
    for patient in tree.patients:
        wanted = set(tree.slices(patient))
        for path in (root / "dicoms" / patient).iterdir():
            if int(path.stem) not in wanted:
                path.unlink()
    return tree


def example(code: str, clean: Tree, folder: Path) -> Example:
    """Plant one defect in a copy of a clean tree; return the finding, and draw its picture.

    Raises
    ------
    LookupError
        The build did not find the defect.
    """
    with tempfile.TemporaryDirectory() as scratch:
        tree = Tree(Path(shutil.copytree(clean.root, Path(scratch) / "data")))
        planted = PLANTS[code](tree)
        both = {"contours": ("i", "o"), "partial": True}
        options = both if planted.options is None else planted.options
        result = etl.build(
            tree.root / planted.data,
            Path(scratch) / "out.h5",
            etl.BuildOptions(**options),
            executor=planted.executor,
        )
        said: list[Finding] | list[FindingRow] = result.findings
        if planted.is_predicted:
            said = _disagreements(clean, Path(scratch), etl.BuildOptions(**options))
        found = [finding for finding in said if finding.code == code]
        if not found:
            raise LookupError(f"{code}: planted, but not found; found {result.findings}.")
        if planted.pairs:
            halves = [_half(tree, pair) for pair in planted.pairs]
            if len(halves) == 1:
                halves.insert(0, _half(clean, planted.pairs[0]))
            _picture(halves).save(folder / f"{code}.png", optimize=True)
    return Example(
        found[0].path, found[0].message, planted.text, bool(planted.pairs), len(planted.pairs)
    )


def _disagreements(clean: Tree, scratch: Path, options: etl.BuildOptions) -> list[FindingRow]:
    """Return what predictions say that are the masks of the clean tree."""
    etl.build(clean.root, scratch / "clean.h5", options)
    np.savez(scratch / "model.npz", predictions=open_dataset(scratch / "clean.h5").masks)
    dataset = open_dataset(scratch / "out.h5")
    return disagreements(dataset, agreement(dataset, scratch / "model.npz"))


class _Half(NamedTuple):
    """What one half of a picture shows."""

    image: npt.NDArray[np.uint16]
    contours: list[tuple[int, Vertices]]  # label and vertices, the inner one first


def _half(tree: Tree, pair: tuple[str, int]) -> _Half:
    kinds = [kind for kind in "io" if tree.contour(pair, kind).exists()]
    contours = [("io".index(kind) + 1, tree.vertices(pair, kind)) for kind in kinds]
    return _Half(tree.pixels(pair).reshape(256, 256), contours)


def _picture(halves: list[_Half]) -> Image.Image:
    """Return two halves side by side, both cut to the square that holds all contours."""
    every = np.concatenate([vertices for half in halves for _, vertices in half.contours])
    low, high = every.min(axis=0) - _MARGIN, every.max(axis=0) + _MARGIN
    side = float((high - low).max())
    corner = (low + high - side) / 2
    is_inside = every.min() >= 0 and every.max() <= 255  # noqa: PLR2004
    n_around = 0 if is_inside else int(np.ceil(max(-corner.min(), (corner + side).max() - 255)))
    if is_inside:
        corner = np.clip(corner, -0.5, 255.5 - side)
    picture = Image.new("RGB", (2 * _SIDE + _GAP, _SIDE), "white")
    for place, half in enumerate(halves):
        drawn = _drawn(half, n_around)
        scale = drawn.width / (256 + 2 * n_around)
        box = np.append(corner, corner + side) + 0.5 + n_around
        cut = drawn.crop(tuple(np.rint(box * scale).astype(int).tolist()))
        cut = cut.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS)
        picture.paste(cut, (place * (_SIDE + _GAP), 0))
    return picture


def _drawn(half: _Half, n_around: int) -> Image.Image:
    """Return the overlay that `report --overlays` draws, with a gray border of some pixels."""
    mask = np.zeros((256, 256), np.uint8)
    for label, vertices in reversed(half.contours):  # the inner one last: it covers the outer one
        mask[rasterise(vertices, 256, 256)] = label
    gray = int(np.percentile(half.image, 99.5)) // 4
    image = np.pad(half.image, n_around, constant_values=gray)
    moved = [(label, vertices + n_around) for label, vertices in half.contours]
    structures = cardiac_scheme(("i", "o")).structures
    return overlay(image, np.pad(mask, n_around), moved, "", structures)
