"""A phantom film as a DICOM file: Digital X-Ray Image Storage, for presentation, 12 bits, without
compression."""

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import DigitalXRayImageStorageForPresentation, generate_uid

from kxray.io.dicom_bytes import LARGEST, encode_dicom


def dicom(film, patient_id, seed, index):
    """The bytes of a DICOM file of a Phantom.

    About a third of the films are MONOCHROME1 (stored inverted); all of them show bone bright. UIDs and
    everything else follow from `seed` and `index`.
    """
    rng = np.random.default_rng([seed, index, 5])
    inverted = rng.random() < 1 / 3
    stored = np.round(film.pixels * LARGEST).astype(np.uint16)
    if inverted:
        stored = LARGEST - stored
    thorax = film.label in ("frontal", "lateral")
    position = film.facts.get("position", "")
    spacing = [round(film.facts.get("spacing", 0.4), 5)] * 2

    data = Dataset()
    data.SOPClassUID = DigitalXRayImageStorageForPresentation
    data.SOPInstanceUID = _uid(seed, index, "image")
    data.StudyInstanceUID = _uid(seed, patient_id, "study")
    data.SeriesInstanceUID = _uid(seed, index, "series")
    data.PatientName, data.PatientID = f"Phantom^{patient_id}", patient_id
    data.PatientBirthDate, data.PatientSex = "", "O"
    data.StudyDate = data.ContentDate = data.AcquisitionDate = "20200101"
    data.StudyTime = data.ContentTime = data.AcquisitionTime = "120000"
    data.ReferringPhysicianName, data.StudyID, data.AccessionNumber = "", "1", ""
    data.Modality, data.SeriesNumber, data.InstanceNumber = "DX", index + 1, 1
    data.PresentationIntentType = "FOR PRESENTATION"
    data.Manufacturer, data.ManufacturerModelName = "kxray", "phantom"
    data.ImageType = ["DERIVED", "PRIMARY"]
    data.ImageComments = "synthetic film, no patient"
    data.BurnedInAnnotation = "YES"
    data.LossyImageCompression = "00"
    data.BodyPartExamined = "CHEST" if thorax else "WHOLEBODY"
    data.ViewPosition = position
    data.ImageLaterality = "U"
    toward = "L" if position in ("PA", "AP", "") else "A" if film.facts["angle"] > 0 else "P"
    data.PatientOrientation = [toward, "F"]
    data.AnatomicRegionSequence = [
        _code("51185008", "Thorax") if thorax else _code("38266002", "Entire body")
    ]
    if thorax:
        view = (
            _code("399067008", "lateral projection")
            if position == "LL"
            else _code("399348003", "antero-posterior")
        )
        if position == "PA":
            view = _code("399348003", "postero-anterior")
        view.ViewModifierCodeSequence = []
        data.ViewCodeSequence = [view]
    data.AcquisitionContextSequence = []
    data.DetectorType = "DIRECT"
    data.PositionerType = "NONE"
    data.PixelSpacing = data.ImagerPixelSpacing = spacing

    data.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    data.PresentationLUTShape = "INVERSE" if inverted else "IDENTITY"
    data.PixelIntensityRelationship = "LOG"
    data.PixelIntensityRelationshipSign = 1 if inverted else -1
    data.RescaleIntercept, data.RescaleSlope, data.RescaleType = 0, 1, "US"
    return encode_dicom(data, stored)


def _uid(*parts):
    return generate_uid(entropy_srcs=["kxray phantom", *map(str, parts)])


def _code(value, meaning):
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, "SCT", meaning
    return item
