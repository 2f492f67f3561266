"""Films that a generator made: how they are written, and how they are told from real ones.

A synthetic film is for training and for looking at. It says so in its file, in its table and in its patient's
id, and `kxray.data.splits` lets none of them into validation or test.
"""

import dataclasses
import hashlib
import re
from pathlib import Path

import numpy as np
import pandas as pd

from kxray.data.manifest import as_manifest, write_manifest
from kxray.io.dicom_bytes import LARGEST, encode_dicom
from kxray.io.files import write_whole
from kxray.io.image import encode_png16
from kxray.io.marks import DICOM_IMAGE_TYPE, DICOM_TAG, SYNTHETIC_TEXTS, class_folder, film_marks

FORMATS = ("png", "dicom")
NO_FINDING = "No Finding"
PATIENT_PREFIX = "synthetic-"
_SUFFIXES = {"png": ".png", "dicom": ".dcm"}
# They part values and components of DICOM text (PS3.5 6.2), or end lines.
_SPECIAL = re.compile(r"[\\^=\x00-\x1f]+")


@dataclasses.dataclass(frozen=True)
class SyntheticFacts:
    """What made films, for their files and their table.

    Args:
        model: name of the architecture.
        run: fingerprint of the trained generator, see `generator_digest`.
        conditions: every class that it makes films of.
        findings: whether conditions are findings, a 0/1 column each (`"No Finding"`: none of them), or
            classes, one column `label`.
        view: of all films, for the column `view`; empty for none.
        truncation: of the latents, see `gan.sample`; other films are made with another.
    """

    model: str
    run: str
    conditions: tuple[str, ...]
    findings: bool = True
    view: str = ""
    truncation: float = 1.0


def generator_digest(gan, labels) -> str:
    """The fingerprint of a trained generator: 12 hexadecimal digits of the SHA-256 of its sampling weights
    and the names of its classes.

    Args:
        gan: of `kxray.models.build`, such as "attention_cgan".
        labels: its classes, in order.
    """
    digest = hashlib.sha256("\0".join(labels).encode())
    for variable in gan.sampling_generator.weights:
        digest.update(np.ascontiguousarray(variable.numpy()).tobytes())
    return digest.hexdigest()[:12]


def write_synthetic(folder, films, labels, facts, format="png", *, seed=0, columns=None) -> Path:
    """Writes films and their manifest.csv, every file marked as synthetic.

    Args:
        folder: made where missing; its manifest.csv is replaced.
        films: float (N, H, W) or (N, H, W, 1) in [0, 1], bone bright.
        labels: N conditions.
        facts: SyntheticFacts.
        format: "png" (16 bits) or "dicom" (12 bits).
        seed: of all films, or N of them: film k of a condition and seed is number k, counted here.
        columns: further columns of the table, N values each, such as nearest_film and nearest_distance.

    Returns:
        Path of the manifest: path, patient_id, then as `synthetic_row` says, and `columns`.

    Raises:
        ValueError: an unknown format or condition, or other numbers of films than of labels.
    """
    folder, labels = Path(folder), list(labels)
    films = np.asarray(films)
    films = films[..., 0] if films.ndim == 4 else films
    seeds = np.broadcast_to(seed, len(labels)).tolist()
    if films.ndim != 3 or len(films) != len(labels):
        raise ValueError(f"expected a film (H, W) for each of {len(labels)} labels, got {films.shape}")
    rows, numbers = [], {}
    for pixels, condition, own_seed in zip(films, labels, seeds, strict=True):
        number = numbers.get((condition, own_seed), 0)
        numbers[condition, own_seed] = number + 1
        name = film_name(condition, own_seed, number, format)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_whole(folder / name, encode_synthetic(pixels, condition, own_seed, number, facts, format))
        rows.append(synthetic_row(folder / name, condition, own_seed, number, facts))
    write_manifest(pd.DataFrame(rows).assign(**(columns or {})), folder / "manifest.csv")
    return folder / "manifest.csv"


def film_name(condition, seed, number, format="png") -> str:
    """Where a film is below its folder: films/Nodule/seed0-000017.png."""
    if format not in FORMATS:
        raise ValueError(f"unknown format {format!r}; expected {' or '.join(FORMATS)}")
    return f"films/{class_folder(condition)}/seed{seed}-{number:06d}{_SUFFIXES[format]}"


def synthetic_row(path, condition, seed, number, facts) -> dict:
    """A film's row of the manifest: path, patient_id (one a film), its findings or its label, view (where
    `facts` has one), synthetic (1), condition, seed, number."""
    _check_condition(condition, facts)
    row = {"path": str(path), "patient_id": patient_id(condition, seed, number, facts)}
    if facts.findings:
        row |= {name: float(name == condition) for name in facts.conditions if name != NO_FINDING}
    else:
        row["label"] = condition
    if facts.view:
        row["view"] = facts.view
    return {**row, "synthetic": 1, "condition": condition, "seed": seed, "number": number}


def patient_id(condition, seed, number, facts) -> str:
    """synthetic-<run>-<condition>-<seed>-<number>, and -t<truncation> below 1: no two films share it, but for
    the same film of another side."""
    place = facts.conditions.index(condition)
    truncated = f"-t{facts.truncation:g}" if facts.truncation != 1 else ""
    return f"{PATIENT_PREFIX}{facts.run}-{place:02d}-{seed}-{number:06d}{truncated}"


def encode_synthetic(pixels, condition, seed, number, facts, format="png") -> bytes:
    """A film as the bytes of a file that says that it is synthetic, by what it was made, and of what.

    Args:
        pixels: float (H, W) in [0, 1], bone bright.
        condition, seed, number: of the film.
        facts: SyntheticFacts.
        format: "png": 16 bits, with the texts Software, Synthetic (yes), Model, Run, Condition, Seed,
            Number and Truncation; "dicom": Secondary Capture Image Storage of 12 bits with Synthetic Data
            YES, conversion type SYN and image type DERIVED, SECONDARY, SYNTHETIC.
    """
    _check_condition(condition, facts)
    if format == "dicom":
        return _dicom(np.asarray(pixels), condition, seed, number, facts)
    if format != "png":
        raise ValueError(f"unknown format {format!r}; expected {' or '.join(FORMATS)}")
    texts = {
        **SYNTHETIC_TEXTS,
        "Model": facts.model,
        "Run": facts.run,
        "Condition": condition,
        "Seed": str(seed),
        "Number": str(number),
        "Truncation": f"{facts.truncation:g}",
    }
    return encode_png16(pixels, texts)


def is_synthetic(path) -> bool:
    """Whether a film's file says that a generator made it (PNG text, DICOM header); pixels are not read."""
    return bool(film_marks(path).get("synthetic"))


def synthetic_rows(table, *, marks=False) -> np.ndarray:
    """Which films of a table are synthetic.

    Args:
        table: one row a film.
        marks: also look into the files: a PNG's texts, a DICOM header.

    Returns:
        bool (N,): the column `synthetic` says so, or the patient's id begins with "synthetic-".
    """
    found = np.zeros(len(table), bool)
    for name in ("synthetic", "source_synthetic"):
        if name in table.columns:
            found |= np.array([_says_yes(value) for value in table[name]], bool)
    if "patient_id" in table.columns:
        found |= np.array([str(value).startswith(PATIENT_PREFIX) for value in table["patient_id"]], bool)
    if marks:
        rows = np.flatnonzero(~found)
        paths = as_manifest(table[["path"]])["path"].tolist()
        found[rows] = [is_synthetic(paths[row]) for row in rows]
    return found


def _says_yes(value):
    if isinstance(value, str):
        return value.strip().lower() not in ("", "0", "0.0", "no", "false", "nan")
    return not pd.isna(value) and bool(value)


def _check_condition(condition, facts):
    if condition not in facts.conditions:
        raise ValueError(
            f"unknown class {condition!r}; {facts.model} makes films of: {', '.join(facts.conditions)}"
        )


def _dicom(pixels, condition, seed, number, facts):
    from pydicom.dataset import Dataset
    from pydicom.uid import SecondaryCaptureImageStorage, generate_uid

    if pixels.ndim != 2 or pixels.dtype.kind != "f" or not (pixels.min() >= 0 and pixels.max() <= 1):
        raise ValueError(f"expected float pixels (H, W) in [0, 1], got {pixels.dtype} {pixels.shape}")
    stored = np.rint(pixels * LARGEST).astype("<u2")
    patient, named = patient_id(condition, seed, number, facts), _SPECIAL.sub(" ", condition)

    def uid(*parts):
        return generate_uid(entropy_srcs=["kxray synthetic", *map(str, parts)])

    data = Dataset()
    data.SpecificCharacterSet = "ISO_IR 192"
    data.SOPClassUID = SecondaryCaptureImageStorage
    # Of its pixels: the same film of another side is another image of that patient.
    data.SOPInstanceUID = uid(patient, "image", stored.shape, hashlib.sha256(stored.tobytes()).hexdigest())
    data.StudyInstanceUID, data.SeriesInstanceUID = uid(patient, "study"), uid(patient, "series")
    data.add_new(DICOM_TAG, "CS", "YES")
    data.PatientName, data.PatientID = f"SYNTHETIC^{named[:50]}", patient[:64]
    data.PatientBirthDate, data.PatientSex = "", ""
    data.StudyDate, data.StudyTime, data.StudyID, data.AccessionNumber = "", "", "", ""
    data.ReferringPhysicianName = ""
    data.Modality, data.ConversionType = "OT", "SYN"
    data.SeriesNumber, data.InstanceNumber = seed % 10**9, number + 1
    data.SeriesDescription = f"SYNTHETIC {named}"[:64]
    data.Manufacturer, data.ManufacturerModelName = "kxray", _SPECIAL.sub(" ", facts.model)[:64]
    data.ImageType = ["DERIVED", "SECONDARY", DICOM_IMAGE_TYPE]
    data.ImageComments = "SYNTHETIC film, shows no patient. Not for diagnosis; for training only."
    data.DerivationDescription = (
        f"made by {facts.model}, run {facts.run}, condition {named[:256]}, seed {seed}, number {number}, "
        f"truncation {facts.truncation:g}"
    )
    data.BurnedInAnnotation, data.LossyImageCompression = "NO", "00"
    data.PatientOrientation = ""
    data.PhotometricInterpretation = "MONOCHROME2"
    return encode_dicom(data, stored)
