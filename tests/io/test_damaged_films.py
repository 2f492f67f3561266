"""Whatever happened to a file, reading it gives a film in [0, 1] or a FilmError, and nothing else."""

import io

import numpy as np
import pydicom
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEGLSLossless, RLELossless

from kxray.io import FilmError, read_image

# pydicom remarks on what is odd in a header while it reads it.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom")
PIXELS = (np.add.outer(np.arange(24), np.arange(20)) * 90 % 4096).astype(np.uint16)
relaxed = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))


def saved(array, kind, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def dicom(syntax):
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3"
    dataset.Rows, dataset.Columns = PIXELS.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = (
        1,
        "MONOCHROME1",
        0,
    )
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
    dataset.PixelData = PIXELS.tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    if syntax != ExplicitVRLittleEndian:
        dataset.compress(syntax, generate_instance_uid=False)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def tiff_deflated():
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, PIXELS, compression="zlib")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def films():
    eight = (PIXELS // 16).astype(np.uint8)
    films = {
        "png": saved(PIXELS, "PNG"),
        "jpeg": saved(eight, "JPEG"),
        "progressive jpeg": saved(eight, "JPEG", progressive=True),
        "tiff": saved(PIXELS, "TIFF"),
        "deflated tiff": tiff_deflated(),
        "dicom": dicom(ExplicitVRLittleEndian),
        "rle dicom": dicom(RLELossless),
        "jpeg-ls dicom": dicom(JPEGLSLossless),
    }
    for data in films.values():
        assert read_image(data).pixels.shape == PIXELS.shape
    return films


KINDS = ["png", "jpeg", "progressive jpeg", "tiff", "deflated tiff", "dicom", "rle dicom", "jpeg-ls dicom"]


def film_or_error(data):
    try:
        film = read_image(data)
    except FilmError as error:
        assert "\n" not in str(error) and str(error).startswith(f"<{len(data)} bytes>: ")
        return None
    assert film.pixels.dtype == np.float32 and film.pixels.ndim == 2
    assert np.isfinite(film.pixels).all() and film.pixels.min() >= 0 and film.pixels.max() <= 1
    return film


@relaxed
@given(
    prefix=st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"\x08\0\x05\0"]),
    body=st.binary(max_size=400),
)
def test_random_bytes(prefix, body):
    film_or_error(prefix + body)
    film_or_error(bytes(128) + b"DICM" + body)


@pytest.mark.parametrize("kind", KINDS)
@relaxed
@given(keep=st.floats(0, 1, exclude_max=True))
def test_truncated(films, kind, keep):
    data = films[kind]
    film = film_or_error(data[: int(keep * len(data))])
    # A file whose last bytes are not pixels (tags, padding) may be whole without them.
    if film is not None:
        np.testing.assert_array_equal(film.pixels, read_image(data).pixels)


@pytest.mark.parametrize("kind", KINDS)
@relaxed
@given(
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, max_size=4)
)
def test_flipped_bits(films, kind, flips):
    data = bytearray(films[kind])
    for place, bit in flips:
        data[int(place * len(data))] ^= 1 << bit
    film = film_or_error(bytes(data))
    if kind == "png" and film is not None:  # every byte of a PNG is under a checksum
        assert bytes(data) == films["png"]


@pytest.mark.parametrize("kind", ["dicom", "rle dicom"])
def test_every_header_element_made_nonsense(films, kind):
    for keyword in [element.keyword for element in pydicom.dcmread(io.BytesIO(films[kind]))]:
        for value in (None, 0, -1, 65535, "x" * 20, [1, 2, 3]):
            dataset = pydicom.dcmread(io.BytesIO(films[kind]))
            buffer = io.BytesIO()
            try:
                setattr(dataset, keyword, value)
                dataset.save_as(buffer)
            except Exception:  # pydicom does not write it at all
                continue
            film_or_error(buffer.getvalue())
