"""Synthetic patients: short-axis cine MR with exactly known contours, in the link.csv layout.

`etl.phantom.heart` says where the borders lie, `etl.phantom.image` paints them; this module writes
the files and looks after the folder.
"""

import csv
import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, MRImageStorage

from etl.errors import EtlError
from etl.phantom.folder import TRUTH_FILE, replacing
from etl.phantom.heart import (
    Cine,
    contour_outline,
    contour_vertices,
    contraction,
    draw_anatomy,
    stable_uid,
)
from etl.phantom.image import COLUMNS, ROWS, Scene, short_axis_image, slice_scene
from etl.sources.link_csv import LINK_FILE
from etl.sources.names import CONTOUR_FOLDER, DICOM_FOLDER

MAXIMUM: Final = {"patients": 999, "slices": 99, "phases": 99}  # IM-0001-<nnnn> has four digits

_TRUTH_HEADER: Final = ("patient_id", "slice", "contour", "area", "centre_x", "centre_y")
_OWN_FILES: Final = re.compile(
    rf"(?:{LINK_FILE}|{TRUTH_FILE}"
    rf"|{DICOM_FOLDER}/PHANTOM\d{{3}}/\d+\.dcm"
    rf"|{CONTOUR_FOLDER}/SYN-\d{{2,3}}/(?P<kind>[io])-contours"
    r"/IM-0001-\d{4}-(?P=kind)contour-manual\.txt)",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class PhantomCounts:
    """What `write_phantom` has written."""

    n_patients: int
    n_dicoms: int
    n_icontours: int
    n_ocontours: int


def write_phantom(
    folder: Path,
    *,
    patients: int = 6,
    slices: int = 8,
    phases: int = 10,
    seed: int = 0,
    force: bool = False,
    progress: Callable[[int], object] | None = None,
) -> PhantomCounts:
    """Write a tree of synthetic patients in the link.csv layout.

    The same arguments give the same bytes. `truth.csv` beside `link.csv` has the exact area
    (square pixels) and centre of mass (pixels) of every contour.

    Parameters
    ----------
    folder : Path
        Made where it is missing.
    patients, slices, phases : int
        At least 1, at most `MAXIMUM`; a patient has slices × phases DICOM files.
    seed : int
        Not negative.
    force : bool
        Replace a phantom that is in `folder` already; anything else there is never touched.
    progress : callable, optional
        Called with the number of DICOM files written since its last call.

    Returns
    -------
    PhantomCounts
        What has been written.

    Raises
    ------
    EtlError
        A number out of range, a folder that holds something else, or one that cannot be written.
    """
    for name, value in (("patients", patients), ("slices", slices), ("phases", phases)):
        _require_range(name, value, 1, MAXIMUM[name])
    _require_range("seed", seed, 0, None)
    stacks = [Cine(seed, patient, slices, phases) for patient in range(patients)]
    try:
        with replacing(folder, _OWN_FILES, _csv([_TRUTH_HEADER]), force=force) as partial:
            _write_tables(partial, stacks)
            for cine in stacks:
                _write_contours(partial, cine)
                _write_dicoms(partial, cine, progress)
    except OSError as error:
        raise EtlError(
            f"Phantom not written: {folder}: {error.strerror or 'input/output error'}. "
            "Give a folder that can be written, on a disk with space left."
        ) from error
    kinds = [kind for cine in stacks for _, _, kind in cine.contoured()]
    n_dicoms = patients * slices * phases
    return PhantomCounts(patients, n_dicoms, kinds.count("i"), kinds.count("o"))


def phantom_instance(cine: Cine, slice_index: int, phase: int) -> Dataset:
    """Return one DICOM instance of a synthetic patient, as `write_phantom` writes it."""
    scene = slice_scene(draw_anatomy(cine), cine.level(slice_index))
    return _instance(cine, _slice_header(cine, slice_index), scene, slice_index, phase)


def _write_dicoms(root: Path, cine: Cine, progress: Callable[[int], object] | None) -> None:
    folder = root / DICOM_FOLDER / cine.patient_id
    folder.mkdir(parents=True)
    anatomy = draw_anatomy(cine)
    for slice_index in range(cine.slices):
        scene = slice_scene(anatomy, cine.level(slice_index))
        header = _slice_header(cine, slice_index)
        for phase in range(cine.phases):
            instance = _instance(cine, header, scene, slice_index, phase)
            path = folder / f"{cine.number(slice_index, phase)}.dcm"
            instance.save_as(path, enforce_file_format=True)
            if progress is not None:
                progress(1)


def _instance(cine: Cine, header: Dataset, scene: Scene, slice_index: int, phase: int) -> Dataset:
    """Return `header`, which all phases of the slice share, with what this one adds."""
    contracted = contraction(phase, cine.phases)
    pixels = short_axis_image(scene, contracted, cine.rng(slice_index + 1, phase + 1))
    instance = Dataset()
    instance.update(header)
    instance.SOPInstanceUID = cine.uid("instance", slice_index, phase)
    instance.InstanceNumber = cine.number(slice_index, phase)
    instance.TriggerTime = _decimal(phase * header.NominalInterval / cine.phases)
    # Explicit value representations, or pydicom works them out anew for each file.
    value_vr = "SS" if header.PixelRepresentation else "US"
    instance.add_new("SmallestImagePixelValue", value_vr, int(pixels.min()))
    instance.add_new("LargestImagePixelValue", value_vr, int(pixels.max()))
    instance.add_new("PixelData", "OW", pixels.astype("<u2").tobytes())
    meta = FileMetaDataset()
    meta.update(_FIXED_META)
    meta.MediaStorageSOPInstanceUID = instance.SOPInstanceUID
    instance.file_meta = meta
    return instance


def _slice_header(cine: Cine, slice_index: int) -> Dataset:
    """Return the attributes that all phases of a slice share."""
    rng = cine.rng(0, 1)
    heart_rate = int(rng.integers(52, 92))
    series_time = f"{10 + slice_index // 60:02d}{slice_index % 60:02d}00"
    header = Dataset()
    for keyword, value in _FIXED_ATTRIBUTES.items():
        setattr(header, keyword, value)
    header.PatientName = f"Phantom^{cine.patient + 1:03d}"
    header.PatientID = cine.patient_id
    header.StudyInstanceUID = cine.uid("study")
    header.SeriesInstanceUID = cine.uid("series", slice_index)
    header.FrameOfReferenceUID = cine.uid("frame of reference")
    header.SeriesNumber = slice_index + 1
    header.SeriesTime = header.AcquisitionTime = header.ContentTime = series_time
    header.HeartRate = heart_rate
    header.NominalInterval = 60000 // heart_rate
    header.CardiacNumberOfImages = cine.phases
    header.ImagesInAcquisition = cine.slices * cine.phases
    _add_geometry(header, cine, slice_index, rng)
    # Both ways that scanners store their values; what lies below 4096 has the same bytes.
    is_signed = cine.patient % 2 == 0
    header.PixelRepresentation = int(is_signed)
    header.BitsStored = 16 if is_signed else 12
    header.HighBit = header.BitsStored - 1
    return header


def _add_geometry(header: Dataset, cine: Cine, slice_index: int, rng: np.random.Generator) -> None:
    """Place a slice in the patient: oblique, across the heart's long axis, from base to apex."""
    anatomy = draw_anatomy(cine)
    spacing = round(1.25 + 0.2 * rng.random(), 4)
    length = (62 + 25 * rng.random()) * anatomy.scale
    between = length * (cine.level(1) - cine.level(0)) if cine.slices > 1 else _THICKNESS
    # Patient coordinates rise to the left, the back and the head; the normal leads to the base.
    normal = np.array([-0.70, 0.60, 0.38]) + 0.1 * rng.standard_normal(3)
    normal /= np.linalg.norm(normal)
    down = np.array([0.0, 0.0, -1.0]) + normal[2] * normal
    down /= np.linalg.norm(down)
    across = np.cross(down, normal)
    cosine, sine = math.cos(anatomy.rotation), math.sin(anatomy.rotation)
    row, column = cosine * across - sine * down, sine * across + cosine * down
    heart = np.array([45.0, -25.0, 10.0]) + 12 * rng.standard_normal(3)
    corner = heart - spacing * (anatomy.centre.real * row + anatomy.centre.imag * column)
    corner -= slice_index * between * normal
    header.PixelSpacing = [_decimal(spacing)] * 2
    header.SliceThickness = _decimal(min(between, _THICKNESS))
    header.SpacingBetweenSlices = _decimal(between)
    header.ReconstructionDiameter = _decimal(spacing * ROWS)
    header.ImageOrientationPatient = [_decimal(value) for value in (*row, *column)]
    header.ImagePositionPatient = [_decimal(value) for value in corner]
    header.SliceLocation = _decimal(float(corner @ normal))


def _decimal(value: float) -> str:
    """Return a DS value: the text has room for 16 characters."""
    return f"{value:.6f}"


_THICKNESS: Final = 8.0  # mm
_FIXED_ATTRIBUTES: Final[dict[str, str | int | list[str] | list[int]]] = {
    "SpecificCharacterSet": "ISO_IR 100",
    "ImageType": ["ORIGINAL", "PRIMARY", "CARDIAC", "NONE"],
    "SOPClassUID": MRImageStorage,
    "StudyDate": "20000101",
    "SeriesDate": "20000101",
    "AcquisitionDate": "20000101",
    "ContentDate": "20000101",
    "StudyTime": "100000",
    "AccessionNumber": "",
    "Modality": "MR",
    "Manufacturer": "dicom-etl",
    "ReferringPhysicianName": "",
    "StudyDescription": "Synthetic phantom",
    "SeriesDescription": "Short-axis cine",
    "ManufacturerModelName": "phantom",
    "PatientBirthDate": "",
    "PatientSex": "",
    "ScanningSequence": "GR",
    "SequenceVariant": "SS",
    "ScanOptions": "CG",
    "MRAcquisitionType": "2D",
    "RepetitionTime": "3.4",
    "EchoTime": "1.5",
    "NumberOfAverages": "1",
    "ImagingFrequency": "63.87",
    "ImagedNucleus": "1H",
    "EchoNumbers": 1,
    "MagneticFieldStrength": "1.5",
    "EchoTrainLength": 1,
    "PercentSampling": "100",
    "PercentPhaseFieldOfView": "100",
    "PixelBandwidth": "976",
    "InPlanePhaseEncodingDirection": "COL",
    "FlipAngle": "45",
    "AcquisitionMatrix": [ROWS, 0, 0, COLUMNS],
    "PatientPosition": "HFS",
    "StudyID": "1",
    "AcquisitionNumber": 1,
    "PositionReferenceIndicator": "",
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "Rows": ROWS,
    "Columns": COLUMNS,
    "BitsAllocated": 16,
    "WindowCenter": "350",
    "WindowWidth": "700",
}


def _fixed_meta() -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    # Our own: pydicom's name its version, and another version would write other bytes.
    meta.ImplementationClassUID = UID(stable_uid("dicom-etl phantom"))
    meta.ImplementationVersionName = "DICOM-ETL"
    return meta


_FIXED_META: Final = _fixed_meta()


def _write_contours(root: Path, cine: Cine) -> None:
    for slice_index, phase, kind in cine.contoured():
        folder = root / CONTOUR_FOLDER / cine.original_id / f"{kind}-contours"
        folder.mkdir(parents=True, exist_ok=True)
        vertices = contour_vertices(contour_outline(cine, slice_index, phase, kind))
        text = "".join(f"{x:.4f} {y:.4f}\n" for x, y in vertices)
        name = f"IM-0001-{cine.number(slice_index, phase):04d}-{kind}contour-manual.txt"
        (folder / name).write_bytes(text.encode())


def _write_tables(root: Path, stacks: list[Cine]) -> None:
    links = [("patient_id", "original_id"), *((c.patient_id, c.original_id) for c in stacks)]
    truth: list[tuple[object, ...]] = [_TRUTH_HEADER]
    for cine in stacks:
        for slice_index, phase, kind in cine.contoured():
            outline = contour_outline(cine, slice_index, phase, kind)
            exact = (outline.area, outline.centroid.real, outline.centroid.imag)
            numbers = (f"{value:.6f}" for value in exact)
            truth.append((cine.patient_id, cine.number(slice_index, phase), kind, *numbers))
    # First the file by which the folder is known as a phantom, should the run be cut short.
    (root / TRUTH_FILE).write_bytes(_csv(truth))
    (root / LINK_FILE).write_bytes(_csv(links))


def _csv(table: Sequence[Sequence[object]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(table)
    return text.getvalue().encode()


def _require_range(name: str, value: int, low: int, high: int | None) -> None:
    if value < low or (high is not None and value > high):
        expected = f"{low} to {high}" if high is not None else f"{low} or more"
        raise EtlError(
            f"Phantom not written: {name}: expected {expected}, found {value}. "
            "Give a number in that range."
        )
