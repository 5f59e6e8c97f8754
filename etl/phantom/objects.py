"""Synthetic patients with shapes of known volume, as DICOM objects that clinics exchange.

images/<patient>/<n>.dcm                 a series of CT images, or one enhanced MR object
annotations/<patient>.dcm                an RT Structure Set or Segmentation that draws the shapes
truth.csv                                the exact volume of each shape
"""

import csv
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from pydicom.datadict import tag_for_keyword
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as DicomSequence
from pydicom.uid import UID, CTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian

from etl.dicom.structure_set import STRUCTURE_SET
from etl.errors import EtlError
from etl.geometry import ImagePlane
from etl.phantom.folder import TRUTH_FILE, replacing
from etl.phantom.heart import stable_uid
from etl.phantom.shapes import Floats, Shape, draw_shapes

Kind: TypeAlias = Literal["rtstruct", "seg", "enhanced", "table"]
Fixed: TypeAlias = Mapping[str, object]

IMAGES: Final = "images"
ANNOTATIONS: Final = "annotations"
TABLE: Final = "table.csv"

_HEADER: Final = ("patient_id", "structure", "volume")
_OWN_FILES: Final = re.compile(
    rf"(?:{TRUTH_FILE}|{TABLE}|{IMAGES}/SHAPES\d{{3}}/\d+\.dcm|{ANNOTATIONS}/SHAPES\d{{3}}"
    r"(?:\.dcm|/\d+-[a-z]+\.txt))",
    re.ASCII,
)
_FIELD: Final = 176.0, 224.0  # mm: across rows, across columns
_HEIGHT: Final = 50.0  # mm, of the stack
_OBLIQUE: Final = np.array([0.9541666, -0.2080757, 0.2151061, 0.2785886, 0.880128, -0.3843997])
_ORIENTATIONS: Final = {
    "axial": np.array([1.0, 0, 0, 0, 1, 0]),
    "sagittal": np.array([0.0, 1, 0, 0, 0, -1]),
    "oblique": _OBLIQUE,
}
_INTENSITY: Final = {"sphere": 300.0, "box": 420.0, "torus": 520.0, "cylinder": 640.0}
_WATER: Final = 1024  # stored value of 0


@dataclass(frozen=True)
class Patient:
    """One patient: a stack of planes through the shapes.

    Attributes
    ----------
    number : int
        From 0; it decides the orientation.
    rows, columns, slices : int
        Of the images.
    seed : int
    """

    number: int
    rows: int
    columns: int
    slices: int
    seed: int

    @property
    def patient_id(self) -> str:
        """The PatientID."""
        return f"SHAPES{self.number + 1:03d}"

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """What is in the patient, by name."""
        return draw_shapes(np.random.default_rng([self.seed, self.number, 1]), self.number)

    @property
    def spacing(self) -> tuple[float, float]:
        """Between rows and between columns, mm."""
        return round(_FIELD[0] / self.rows, 4), round(_FIELD[1] / self.columns, 4)

    @property
    def thickness(self) -> float:
        """From plane to plane, mm."""
        return round(_HEIGHT / self.slices, 3)

    @property
    def orientation(self) -> Floats:
        """Direction cosines along a row, then along a column."""
        return list(_ORIENTATIONS.values())[self.number % len(_ORIENTATIONS)]

    def height(self, place: int) -> float:
        """Return w of a plane, counted from 0."""
        return (place - (self.slices - 1) / 2) * self.thickness

    def plane(self, place: int) -> ImagePlane:
        """Return the plane of an image, as its header gives it."""
        row, column = np.split(self.orientation, 2)
        corner = self.to_patient(np.array([self.corner]), self.height(place))[0]
        return ImagePlane(tuple(np.round(corner, 4)), tuple(row), tuple(column), self.spacing)

    @property
    def corner(self) -> tuple[float, float]:
        """Return u and v of the centre of the first pixel, mm."""
        (between_rows, between_columns) = self.spacing
        return -(self.columns - 1) / 2 * between_columns, -(self.rows - 1) / 2 * between_rows

    def to_patient(self, points: Floats, w: float) -> Floats:
        """Return where points (u, v) at a height are in the patient, mm; shape (n, 3)."""
        row, column = np.split(self.orientation, 2)
        normal = np.cross(row, column)
        normal /= np.linalg.norm(normal)
        centre = np.random.default_rng([self.seed, self.number]).uniform(-40, 40, 3).round(1)
        return np.asarray(centre + points @ np.stack([row, column]) + w * normal)

    def uid(self, *place: object) -> str:
        """Return a UID that the same phantom always has."""
        return stable_uid(f"dicom-etl shapes {self} {place}")

    def mask(self, name: str, place: int) -> npt.NDArray[np.bool_]:
        """Return the pixels of an image whose centres are inside a shape."""
        v, u = np.indices((self.rows, self.columns)) * np.array(self.spacing)[:, None, None]
        u, v = u + self.corner[0], v + self.corner[1]
        return self.shapes[name].covers(u, v, self.height(place))

    def pixels(self, place: int) -> npt.NDArray[np.uint16]:
        """Return the stored values of an image: 1024 more than the modality values."""
        values = np.full((self.rows, self.columns), 40.0)
        for name in self.shapes:
            values[self.mask(name, place)] = _INTENSITY[name]
        values += np.random.default_rng([self.seed, self.number, place]).normal(0, 9, values.shape)
        stored = np.clip(values.round() + _WATER, 0, 4095)
        return np.asarray(stored, np.uint16)


def write_shapes(
    folder: Path,
    kind: Kind = "rtstruct",
    *,
    patients: int = 3,
    slices: int = 25,
    rows: int = 256,
    columns: int = 256,
    seed: int = 0,
    force: bool = False,
    progress: Callable[[int], object] | None = None,
) -> int:
    """Write synthetic patients with shapes; the same arguments give the same bytes.

    Parameters
    ----------
    folder : Path
        Made where it is missing.
    kind : {"rtstruct", "seg", "enhanced", "table"}
        CT images with an RT Structure Set, or a Segmentation; one enhanced MR object with an RT
        Structure Set; CT images with text contours and a table.
    patients, slices, rows, columns : int
        The patients' orientations are axial, sagittal and oblique by turns.
    seed : int
        Not negative.
    force : bool
        Replace a phantom of this kind that is in `folder` already.
    progress : callable, optional
        Called with the number of images written since its last call.

    Returns
    -------
    int
        The number of images.

    Raises
    ------
    EtlError
        A folder that holds something else, or one that cannot be written.
    """
    stacks = [Patient(number, rows, columns, slices, seed) for number in range(patients)]
    header = _csv([_HEADER])
    try:
        with replacing(folder, _OWN_FILES, header, force=force) as partial:
            volumes = [
                (one.patient_id, name, f"{shape.volume:.6f}")
                for one in stacks
                for name, shape in one.shapes.items()
            ]
            (partial / TRUTH_FILE).write_bytes(_csv([_HEADER, *volumes]))
            lines: list[tuple[object, ...]] = [("patient_id", "image", "label", "contour")]
            for one in stacks:
                _write_images(partial, one, kind)
                if kind == "table":
                    lines += _write_texts(partial, one)
                else:
                    drawn = segmentation(one) if kind == "seg" else structure_set(one, kind)
                    _save(drawn, partial / f"{ANNOTATIONS}/{one.patient_id}.dcm")
                if progress is not None:
                    progress(slices)
            if kind == "table":
                (partial / TABLE).write_bytes(_csv(lines))
    except OSError as error:
        raise EtlError(
            f"Phantom not written: {folder}: {error.strerror or 'input/output error'}. "
            "Give a folder that can be written, on a disk with space left."
        ) from error
    return patients * slices


def _write_images(root: Path, one: Patient, kind: Kind) -> None:
    folder = root / IMAGES / one.patient_id
    if kind == "enhanced":
        _save(enhanced_image(one), folder / "1.dcm")
        return
    for place in range(one.slices):
        _save(image(one, place), folder / f"{place + 1}.dcm")


def _write_texts(root: Path, one: Patient) -> list[tuple[object, ...]]:
    lines: list[tuple[object, ...]] = []
    folder = root / ANNOTATIONS / one.patient_id
    folder.mkdir(parents=True)
    for place in range(one.slices):
        plane = one.plane(place)
        for name, shape in one.shapes.items():
            outlines = shape.outlines(one.height(place))
            if not outlines:
                continue
            polygons = [
                plane.to_pixels(one.to_patient(outline, one.height(place))) for outline in outlines
            ]
            text = "\n".join(
                "".join(f"{x:.5f} {y:.5f}\n" for x, y in vertices) for vertices in polygons
            )
            path = folder / f"{place + 1}-{name}.txt"
            path.write_text(text)
            image_path = f"{IMAGES}/{one.patient_id}/{place + 1}.dcm"
            lines.append((one.patient_id, image_path, name, path.relative_to(root).as_posix()))
    return lines


def image(one: Patient, place: int) -> Dataset:
    """Return one CT image."""
    plane = one.plane(place)
    return _dataset(
        CTImageStorage,
        one.uid("image", place),
        {
            **_common(one, "CT"),
            **_pixel_attributes(one),
            "InstanceNumber": place + 1,
            "ImagePositionPatient": _decimals(plane.position),
            "ImageOrientationPatient": _decimals(one.orientation),
            "PixelSpacing": _decimals(one.spacing),
            "SliceThickness": f"{one.thickness:.3f}",
            "RescaleIntercept": str(-_WATER),
            "RescaleSlope": "1",
            "PixelData": one.pixels(place).tobytes(),
        },
    )


def enhanced_image(one: Patient) -> Dataset:
    """Return all images as one enhanced MR object."""
    frames = []
    for place in range(one.slices):
        position = {"ImagePositionPatient": _decimals(one.plane(place).position)}
        frames.append(_item({"PlanePositionSequence": [_item(position)]}))
    measures = {"PixelSpacing": _decimals(one.spacing), "SliceThickness": f"{one.thickness:.3f}"}
    rescale = {"RescaleIntercept": str(-_WATER), "RescaleSlope": "1", "RescaleType": "US"}
    orientation = {"ImageOrientationPatient": _decimals(one.orientation)}
    shared = {
        "PixelMeasuresSequence": [_item(measures)],
        "PlaneOrientationSequence": [_item(orientation)],
        "PixelValueTransformationSequence": [_item(rescale)],
    }
    return _dataset(
        EnhancedMRImageStorage,
        one.uid("image"),
        {
            **_common(one, "MR"),
            **_pixel_attributes(one),
            "InstanceNumber": 1,
            "NumberOfFrames": one.slices,
            "SharedFunctionalGroupsSequence": [_item(shared)],
            "PerFrameFunctionalGroupsSequence": frames,
            "PixelData": b"".join(one.pixels(place).tobytes() for place in range(one.slices)),
        },
    )


def structure_set(one: Patient, kind: Kind = "rtstruct") -> Dataset:
    """Return the RT Structure Set that draws all shapes on the images of a patient."""
    is_enhanced = kind == "enhanced"
    uids = [one.uid("image") if is_enhanced else one.uid("image", p) for p in range(one.slices)]
    class_uid = EnhancedMRImageStorage if is_enhanced else CTImageStorage

    def reference(place: int) -> Dataset:
        named: Fixed = {
            "ReferencedSOPClassUID": class_uid,
            "ReferencedSOPInstanceUID": uids[place],
        }
        frame = {"ReferencedFrameNumber": place + 1} if is_enhanced else {}
        return _item({**named, **frame})

    series = {
        "SeriesInstanceUID": one.uid("series"),
        "ContourImageSequence": [
            reference(place) for place in range(1 if is_enhanced else one.slices)
        ],
    }
    study = {"RTReferencedSeriesSequence": [_item(series)]}
    frame = {
        "FrameOfReferenceUID": one.uid("frame of reference"),
        "RTReferencedStudySequence": [_item(study)],
    }
    # Numbers in another order than names, and contours in another order than numbers.
    numbers = {name: 7 * place % 5 + 1 for place, name in enumerate(one.shapes, 1)}
    rois = [
        _item(
            {
                "ROINumber": numbers[name],
                "ReferencedFrameOfReferenceUID": one.uid("frame of reference"),
                "ROIName": name,
                "ROIGenerationAlgorithm": "AUTOMATIC",
            }
        )
        for name in one.shapes
    ]
    drawn = [
        _item(
            {
                "ReferencedROINumber": numbers[name],
                "ContourSequence": [
                    contour
                    for place in range(one.slices)
                    for contour in _contours(one, one.shapes[name], place, reference(place))
                ],
            }
        )
        for name in sorted(one.shapes, reverse=True)
    ]
    return _dataset(
        STRUCTURE_SET,
        one.uid("structure set"),
        {
            **_common(one, "RTSTRUCT"),
            "SeriesInstanceUID": one.uid("structure set series"),
            "InstanceNumber": 1,
            "StructureSetLabel": "shapes",
            "StructureSetDate": "20000102",
            "StructureSetTime": "120000",
            "ReferencedFrameOfReferenceSequence": [_item(frame)],
            "StructureSetROISequence": rois,
            "ROIContourSequence": drawn,
            "RTROIObservationsSequence": [
                _item(
                    {
                        "ObservationNumber": number,
                        "ReferencedROINumber": number,
                        "RTROIInterpretedType": "",
                        "ROIInterpreter": "",
                    }
                )
                for number in sorted(numbers.values())
            ],
        },
    )


def segmentation(one: Patient, kind: str = "BINARY") -> Dataset:
    """Return the Segmentation of all shapes on the images of a patient.

    Parameters
    ----------
    kind : {"BINARY", "FRACTIONAL", "LABELMAP"}
        SegmentationType.
    """
    names = list(one.shapes)
    drawn = [
        (place, number, one.mask(name, place))
        for number, name in enumerate(names, 1)
        for place in range(one.slices)
    ]
    drawn = [found for found in drawn if found[2].any()]
    if kind == "LABELMAP":
        maps = {place: np.zeros((one.rows, one.columns), np.uint8) for place, _, _ in drawn}
        for place, number, mask in drawn:
            maps[place][mask] = number
        frames = [(place, 0, labels) for place, labels in sorted(maps.items())]
    else:
        frames = [(place, number, mask.astype(np.uint8)) for place, number, mask in drawn]
    stack = np.stack([values for _, _, values in frames])
    if kind == "BINARY":
        data, bits = np.packbits(stack, axis=None, bitorder="little").tobytes(), 1
    else:
        data, bits = (stack * (200 if kind == "FRACTIONAL" else 1)).astype(np.uint8).tobytes(), 8
    is_map = kind == "LABELMAP"
    measures = {"PixelSpacing": _decimals(one.spacing), "SliceThickness": f"{one.thickness:.3f}"}
    shared = {
        "PixelMeasuresSequence": [_item(measures)],
        "PlaneOrientationSequence": [
            _item({"ImageOrientationPatient": _decimals(one.orientation)})
        ],
    }
    fractional = {"SegmentationFractionalType": "PROBABILITY", "MaximumFractionalValue": 200}
    return _dataset(
        "1.2.840.10008.5.1.4.1.1.66.7" if is_map else "1.2.840.10008.5.1.4.1.1.66.4",
        one.uid("segmentation", kind),
        {
            **_common(one, "SEG"),
            **_pixel_attributes(one),
            "SeriesInstanceUID": one.uid("segmentation series"),
            "InstanceNumber": 1,
            "ContentLabel": "SHAPES",
            "ContentDate": "20000102",
            "ContentTime": "120000",
            "BitsAllocated": bits,
            "BitsStored": bits,
            "HighBit": bits - 1,
            "SegmentationType": kind,
            **(fractional if kind == "FRACTIONAL" else {}),
            "NumberOfFrames": len(frames),
            "SegmentSequence": [_segment(number, name) for number, name in enumerate(names, 1)],
            **_dimensions(one, is_map=is_map),
            "SharedFunctionalGroupsSequence": [_item(shared)],
            "PerFrameFunctionalGroupsSequence": [
                _segment_frame(one, place, number) for place, number, _ in frames
            ],
            "PixelData": data + b"\0" * (len(data) % 2),
        },
    )


def _segment(number: int, name: str) -> Dataset:
    return _item(
        {
            "SegmentNumber": number,
            "SegmentLabel": name,
            "SegmentAlgorithmType": "AUTOMATIC",
            "SegmentAlgorithmName": "dicom-etl phantom",
            "SegmentedPropertyCategoryCodeSequence": [_code("91723000", "Anatomical structure")],
            "SegmentedPropertyTypeCodeSequence": [_code("85756007", "Tissue")],
        }
    )


def _code(value: str, meaning: str) -> Dataset:
    """Return a code of SNOMED CT."""
    coded = {"CodeValue": value, "CodingSchemeDesignator": "SCT", "CodeMeaning": meaning}
    return _item(coded)


def _dimensions(one: Patient, *, is_map: bool) -> Fixed:
    """Return by what the frames of a segmentation are ordered: segment, then position."""
    uid = one.uid("dimensions")
    pointers = [] if is_map else [("SegmentIdentificationSequence", "ReferencedSegmentNumber")]
    pointers.append(("PlanePositionSequence", "ImagePositionPatient"))
    return {
        "DimensionOrganizationSequence": [_item({"DimensionOrganizationUID": uid})],
        "DimensionIndexSequence": [
            _item(
                {
                    "DimensionOrganizationUID": uid,
                    "DimensionIndexPointer": tag_for_keyword(keyword),
                    "FunctionalGroupPointer": tag_for_keyword(group),
                }
            )
            for group, keyword in pointers
        ],
    }


def _segment_frame(one: Patient, place: int, number: int) -> Dataset:
    """Return the functional groups of a frame; number 0: it shows all segments."""
    source = {
        "ReferencedSOPClassUID": CTImageStorage,
        "ReferencedSOPInstanceUID": one.uid("image", place),
        "SpatialLocationsPreserved": "YES",
    }
    derivation = {"SourceImageSequence": [_item(source)]}
    position = {"ImagePositionPatient": _decimals(one.plane(place).position)}
    indices = {"DimensionIndexValues": [number, place + 1] if number else [place + 1]}
    groups: dict[str, object] = {
        "DerivationImageSequence": [_item(derivation)],
        "FrameContentSequence": [_item(indices)],
        "PlanePositionSequence": [_item(position)],
    }
    if number:
        named = {"ReferencedSegmentNumber": number}
        groups["SegmentIdentificationSequence"] = [_item(named)]
    return _item(groups)


def _contours(one: Patient, shape: Shape, place: int, reference: Dataset) -> list[Dataset]:
    return [
        _contour(one.to_patient(outline, one.height(place)), reference)
        for outline in shape.outlines(one.height(place))
    ]


def _contour(points: Floats, reference: Dataset) -> Dataset:
    contour = _item(
        {
            "ContourImageSequence": [reference],
            "ContourGeometricType": "CLOSED_PLANAR",
            "NumberOfContourPoints": len(points),
        }
    )
    texts = [f"{value:.4f}" for value in points.ravel().tolist()]
    # As text that needs no conversion: pydicom would make a decimal of each number, which is most
    # of the time that a structure set takes.
    tag = tag_for_keyword("ContourData")
    contour.add(DataElement(tag or 0, "DS", texts, already_converted=True))
    return contour


def _common(one: Patient, modality: str) -> Fixed:
    return {
        "SpecificCharacterSet": "ISO_IR 100",
        "StudyDate": "20000101",
        "StudyTime": "100000",
        "AccessionNumber": "",
        "Modality": modality,
        "Manufacturer": "dicom-etl",
        "ReferringPhysicianName": "",
        "StudyDescription": "Synthetic shapes",
        "PatientName": f"Shapes^{one.number + 1:03d}",
        "PatientID": one.patient_id,
        "PatientBirthDate": "",
        "PatientSex": "",
        "StudyInstanceUID": one.uid("study"),
        "SeriesInstanceUID": one.uid("series"),
        "StudyID": "1",
        "SeriesNumber": 1,
        "FrameOfReferenceUID": one.uid("frame of reference"),
    }


def _pixel_attributes(one: Patient) -> Fixed:
    return {
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": one.rows,
        "Columns": one.columns,
        "BitsAllocated": 16,
        "BitsStored": 12,
        "HighBit": 11,
        "PixelRepresentation": 0,
    }


def _dataset(class_uid: str, uid: str, attributes: Fixed) -> Dataset:
    dataset = _item({"SOPClassUID": class_uid, "SOPInstanceUID": uid, **attributes})
    if "PixelData" in dataset:
        dataset["PixelData"].VR = "OW"
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(class_uid)
    meta.MediaStorageSOPInstanceUID = UID(uid)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = UID(stable_uid("dicom-etl phantom"))
    meta.ImplementationVersionName = "DICOM-ETL"
    dataset.file_meta = meta
    return dataset


def _item(attributes: Fixed) -> Dataset:
    dataset = Dataset()
    for keyword, value in attributes.items():
        if isinstance(value, list) and value and isinstance(value[0], Dataset):
            setattr(dataset, keyword, DicomSequence(value))
        else:
            setattr(dataset, keyword, value)
    return dataset


def _save(dataset: Dataset, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def _decimals(values: "tuple[float, ...] | Floats") -> list[str]:
    return [f"{value:.7f}"[:16] for value in values]


def _csv(table: "list[tuple[object, ...]]") -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(table)
    return text.getvalue().encode()
