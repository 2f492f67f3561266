"""A grey film of 12 bits as the bytes of a DICOM file."""

import io

LARGEST = 4095


def encode_dicom(dataset, stored) -> bytes:
    """A dataset with its pixels, uncompressed, and a window of the whole range.

    Args:
        dataset: pydicom Dataset of all else, its SOP class and instance among it; the pixels are added.
        stored: whole numbers (H, W) from 0 to LARGEST.
    """
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    dataset.SamplesPerPixel = 1
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.WindowCenter, dataset.WindowWidth = (LARGEST + 1) // 2, LARGEST + 1
    dataset.PixelData = stored.astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()
