"""DICOM films: header checks, decoding with exactly one decoder, brightness from the header."""

import io
import re
import zlib

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import get_decoder
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    RLELossless,
)

from kxray.io import marks
from kxray.io.codestream import parse_jpeg, parse_jpeg2000
from kxray.io.film import MAX_PIXELS, Film, FilmError, check_size
from kxray.io.native import captured_complaints
from kxray.io.tone import tone_table

# pydicom plugins by transfer syntax, the most reliable and fastest first (measured, benchmarks/dicom.py).
# One decoder answers: where it calls the codestream damaged, no more lenient one is asked.
_JPEG_LOSSLESS = ("gdcm", "pylibjpeg")
_JPEG_LS = ("pyjpegls", "pylibjpeg", "gdcm")
_JPEG_2000 = ("pylibjpeg", "gdcm", "pillow")
_DECODERS = {
    "1.2.840.10008.1.2.4.50": ("pillow", "gdcm", "pylibjpeg"),
    "1.2.840.10008.1.2.4.51": ("pylibjpeg", "pillow", "gdcm"),
    "1.2.840.10008.1.2.4.57": _JPEG_LOSSLESS,
    "1.2.840.10008.1.2.4.70": _JPEG_LOSSLESS,
    "1.2.840.10008.1.2.4.80": _JPEG_LS,
    "1.2.840.10008.1.2.4.81": _JPEG_LS,
    "1.2.840.10008.1.2.4.90": _JPEG_2000,
    "1.2.840.10008.1.2.4.91": _JPEG_2000,
    "1.2.840.10008.1.2.4.201": _JPEG_2000,
    "1.2.840.10008.1.2.4.202": _JPEG_2000,
    "1.2.840.10008.1.2.4.203": _JPEG_2000,
    "1.2.840.10008.1.2.5": ("pylibjpeg", "pydicom"),
}
_PIP_LINES = {
    "1.2.840.10008.1.2.4.51": "pip install pylibjpeg pylibjpeg-libjpeg (GPLv3)",
    "1.2.840.10008.1.2.4.57": "pip install python-gdcm, or pylibjpeg pylibjpeg-libjpeg (GPLv3)",
    "1.2.840.10008.1.2.4.70": "pip install python-gdcm, or pylibjpeg pylibjpeg-libjpeg (GPLv3)",
    "1.2.840.10008.1.2.4.80": "pip install pyjpegls",
    "1.2.840.10008.1.2.4.81": "pip install pyjpegls",
    "1.2.840.10008.1.2.4.90": "pip install pylibjpeg pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.91": "pip install pylibjpeg pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.201": "pip install pylibjpeg pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.202": "pip install pylibjpeg pylibjpeg-openjpeg",
    "1.2.840.10008.1.2.4.203": "pip install pylibjpeg pylibjpeg-openjpeg",
}
_UNSUPPORTED = re.compile(r"does not support|not supported|unsupported|requires", re.IGNORECASE)
_FACTS = {
    "view_position": "ViewPosition",
    "patient_id": "PatientID",
    "modality": "Modality",
    "body_part": "BodyPartExamined",
    "laterality": "ImageLaterality",
    "presentation_lut_shape": "PresentationLUTShape",
    "photometric_interpretation": "PhotometricInterpretation",
    "sop_instance_uid": "SOPInstanceUID",
}
_PIXEL_KEYWORDS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def read_dicom(data: bytes, name: str) -> Film:
    """Reads a single-frame greyscale DICOM film.

    Args:
        data: the whole file.
        name: what errors call it.

    Returns:
        A Film after modality LUT, window and polarity (see `kxray.io.tone.tone_table`).

    Raises:
        FilmError: the file is not such a film, is damaged, or its decoder is not installed.
    """
    dataset = read_header(data, name, with_pixels=True)
    tone = tone_table(dataset, name)
    stored = decode_stored(dataset, name)
    pixels = apply_tone(stored, dataset, tone, name)
    return Film(pixels, int(dataset.BitsStored), {**header_facts(dataset), **tone.facts})


def read_header(data: bytes, name: str, *, with_pixels: bool = False) -> Dataset:
    """Parses and checks the header of a film; the pixels are read with it if `with_pixels`.

    The returned dataset always has `file_meta.TransferSyntaxUID`, `BitsStored`, `HighBit` and
    `PixelRepresentation`.

    Raises:
        FilmError: the header is not that of a single-frame greyscale film we can decode.
    """
    headerless = data[128:132] != b"DICM"
    if not headerless:
        _check_deflated_size(data, name)
    try:
        dataset = pydicom.dcmread(io.BytesIO(data), force=headerless, stop_before_pixels=not with_pixels)
        complete_transfer_syntax(dataset)
    except Exception as error:
        raise FilmError(name, f"its DICOM header cannot be read ({error})", "the file is damaged") from error
    _check_header(dataset, name, with_pixels)
    return dataset


def decode_stored(dataset: Dataset, name: str) -> np.ndarray:
    """Decodes the stored values: integers (H, W), before any grey-scale transform.

    Raises:
        FilmError: damaged or truncated pixel data, or a decoder that is not installed.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    shape = (dataset.Rows, dataset.Columns)
    check_pixel_data(dataset, name)
    encapsulated = syntax.is_encapsulated
    stored = _decode_with_one(dataset, syntax, name) if encapsulated else _decode(dataset, syntax, "", name)
    if stored.shape != shape or stored.dtype.kind not in "iu":
        raise FilmError(
            name, f"{syntax.name} pixels decode to {stored.dtype} {stored.shape}, the header says {shape}"
        )
    return stored


def check_pixel_data(dataset: Dataset, name: str) -> None:
    """Checks, before decoding, that the pixel data are all there and as large as the header says.

    Raises:
        FilmError: they are not.
    """
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        _check_codestream(dataset, name)
    else:
        _check_native_length(dataset, name)


def apply_tone(stored: np.ndarray, dataset: Dataset, tone, name: str) -> np.ndarray:
    """Looks the stored values up: float32 (H, W) in [0, 1].

    Raises:
        FilmError: values that the header's BitsStored does not allow, and that are not padding.
    """
    bits = int(dataset.BitsStored)
    highest = tone.lowest + 2**bits - 1
    kind = np.iinfo(stored.dtype)
    black = None
    if (kind.min < tone.lowest or kind.max > highest) and (
        stored.min() < tone.lowest or stored.max() > highest
    ):
        outside = (stored < tone.lowest) | (stored > highest)
        if (stored[outside] == dataset.get("PixelPaddingValue")).all():
            black = outside
            stored = np.clip(stored, tone.lowest, highest)
        elif tone.lowest == 0 and _has_embedded_overlay(dataset):
            stored = stored & (2**bits - 1)
        else:
            raise FilmError(
                name,
                f"stored values from {stored.min()} to {stored.max()} exceed the {bits} bits stored "
                "that its header declares",
                "correct BitsStored",
            )
    if tone.lowest:
        stored = stored.astype(np.int32) - tone.lowest
    pixels = tone.values.take(stored)
    if black is not None:
        pixels[black] = 0
    return pixels


def header_facts(dataset: Dataset) -> dict:
    """Plain JSON facts of a header, only where present."""
    facts = {"source_format": "dicom", "transfer_syntax": dataset.file_meta.TransferSyntaxUID.name}
    for key, keyword in _FACTS.items():
        value = dataset.get(keyword)
        if value not in (None, "") and str(value).strip():
            facts[key] = str(value).strip()
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        spacing = dataset.get(keyword)
        if spacing and len(spacing) == 2:
            facts["pixel_spacing"] = [float(step) for step in spacing]
            break
    if marks.header_says_synthetic(dataset):
        facts["synthetic"] = True
    return facts


def complete_transfer_syntax(dataset):
    """A file without file meta says nothing of its transfer syntax; how it parsed does."""
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
    if dataset.file_meta.get("TransferSyntaxUID"):
        return
    implicit, little = dataset.original_encoding
    explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


def _check_deflated_size(data, name):
    """Deflated syntax: the whole file is inflated before any header can be read, so bound that first."""
    if DeflatedExplicitVRLittleEndian.encode() + b"\0" not in data[:2048]:
        return
    try:
        meta = pydicom.filereader.read_file_meta_info(io.BytesIO(data))
        start = 144 + meta.FileMetaInformationGroupLength
        inflater, inflated, rest = zlib.decompressobj(-zlib.MAX_WBITS), 0, data[start:]
        while rest and not inflater.eof:
            inflated += len(inflater.decompress(rest, 1 << 22))
            rest = inflater.unconsumed_tail
            if inflated > 4 * MAX_PIXELS:
                raise FilmError(
                    name, "it inflates to more than a film can hold", "the file is damaged or hostile"
                )
    except FilmError:
        raise
    except Exception as error:
        raise FilmError(name, f"its deflated data cannot be read ({error})", "the file is damaged") from error


def _check_header(dataset, name, with_pixels):
    sop_class = UID(str(dataset.get("SOPClassUID") or ""))
    kind = sop_class.name if sop_class else "DICOM object without SOPClassUID"
    if "Rows" not in dataset or "Columns" not in dataset:
        raise FilmError(name, f"it holds no picture ({kind})", "give image objects only, or a whole file")
    if with_pixels and "PixelData" not in dataset:
        other = [keyword for keyword in _PIXEL_KEYWORDS if keyword in dataset]
        if other:
            raise FilmError(name, f"its pixels are floating-point numbers ({other[0]})", "films are integers")
        raise FilmError(name, f"it has no pixel data ({kind})", "the file is truncated or only a header")
    check_size(name, int(dataset.Rows), int(dataset.Columns))
    frames = dataset.get("NumberOfFrames")
    if frames not in (None, "") and int(frames) != 1:
        raise FilmError(
            name, f"it has {int(frames)} frames ({kind})", "export the one frame that is the film"
        )
    photometric = str(dataset.get("PhotometricInterpretation") or "none")
    if photometric == "PALETTE COLOR":
        raise FilmError(name, "it is a palette colour picture", "films are MONOCHROME1 or MONOCHROME2")
    samples = int(dataset.get("SamplesPerPixel") or 1)
    if samples != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise FilmError(
            name,
            f"it is not greyscale (PhotometricInterpretation {photometric}, {samples} samples a pixel)",
            "films are MONOCHROME1 or MONOCHROME2",
        )
    allocated = dataset.get("BitsAllocated")
    if allocated not in (8, 16):
        raise FilmError(name, f"BitsAllocated is {allocated}", "expected 8 or 16")
    _complete_bits(dataset)
    stored, high_bit = dataset.BitsStored, dataset.HighBit
    if not 2 <= stored <= allocated or high_bit != stored - 1 or dataset.PixelRepresentation not in (0, 1):
        raise FilmError(
            name,
            f"BitsAllocated {allocated}, BitsStored {stored}, HighBit {high_bit} and PixelRepresentation "
            f"{dataset.PixelRepresentation} do not fit together",
            "expected HighBit = BitsStored - 1",
        )


def _complete_bits(dataset):
    if dataset.get("BitsStored") is None:
        dataset.BitsStored = dataset.BitsAllocated
    if dataset.get("HighBit") is None:
        dataset.HighBit = dataset.BitsStored - 1
    if dataset.get("PixelRepresentation") is None:
        dataset.PixelRepresentation = 0
    if dataset.get("SamplesPerPixel") is None:
        dataset.SamplesPerPixel = 1


def _check_native_length(dataset, name):
    row = int(dataset.Columns) * int(dataset.BitsAllocated) // 8
    expected, found = row * int(dataset.Rows), len(dataset.PixelData)
    if found < expected or found >= expected + max(row, 2):
        raise FilmError(
            name,
            f"{found} bytes of pixel data, {dataset.Rows} x {dataset.Columns} pixels need {expected}",
            "the file is truncated" if found < expected else "its Rows, Columns or NumberOfFrames are wrong",
        )


def _check_codestream(dataset, name):
    """Compares the codestream's own header with the dataset's, before a decoder allocates anything."""
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
        if syntax == RLELossless:
            return
        stream = parse_jpeg2000(frame) if syntax in JPEG2000TransferSyntaxes else parse_jpeg(frame)
    except (ValueError, StopIteration, IndexError) as error:
        raise FilmError(
            name, f"{syntax.name}: malformed codestream ({error})", "the file is damaged"
        ) from error
    expected = (int(dataset.Rows), int(dataset.Columns), 1)
    found = (stream.height, stream.width, stream.components)
    if found != expected:
        raise FilmError(
            name,
            f"{syntax.name}: the codestream holds {found[0]} x {found[1]} pixels of {found[2]} components, "
            f"the header says {expected[0]} x {expected[1]} of 1",
            "the file is damaged",
        )
    if not stream.complete:
        raise FilmError(name, f"{syntax.name}: the codestream has no end marker", "the file is truncated")


def _decode_with_one(dataset, syntax, name):
    try:
        available = get_decoder(syntax).available_plugins
    except NotImplementedError:
        raise FilmError(name, f"transfer syntax {syntax.name} ({syntax}) is not for films") from None
    remedy = _PIP_LINES.get(str(syntax), "install a decoder for it")
    reason = ""
    for plugin in _DECODERS.get(str(syntax), ()):
        if plugin not in available:
            continue
        try:
            return _decode(dataset, syntax, plugin, name)
        except NotImplementedError as error:
            reason = f" ({error})"
    raise FilmError(name, f"no installed decoder reads {syntax.name}{reason}", remedy)


def _decode(dataset, syntax, plugin, name):
    """Decodes with one plugin. NotImplementedError: it does not support this kind of stream."""
    failure = None
    with captured_complaints(enabled=plugin != "") as complaints:
        try:
            # pydicom would clear the bits above BitsStored, and so wrap a film whose BitsStored is too small;
            # `apply_tone` looks at them. In signed films that is what extends the sign.
            stored, _ = get_decoder(syntax).as_array(
                dataset,
                index=0,
                raw=True,
                decoding_plugin=plugin,
                correct_unused_bits=bool(dataset.PixelRepresentation),
            )
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic in pylibjpeg-rle's Rust code is not an Exception
            failure = error
    if failure is not None:
        reason = (
            str(failure).strip().splitlines()[-1].strip() if str(failure).strip() else type(failure).__name__
        )
        if _UNSUPPORTED.search(reason):
            raise NotImplementedError(reason)
        if complaints or "NoneType" in reason:  # what GDCM's wrapper says when GDCM gave up
            reason = complaints[0] if complaints else f"{plugin} could not decode it"
        raise FilmError(
            name, f"{syntax.name}: damaged pixel data ({reason})", "the file is damaged"
        ) from failure
    if complaints:
        raise FilmError(name, f"{syntax.name}: damaged pixel data ({complaints[0]})", "the file is damaged")
    return stored


def _has_embedded_overlay(dataset):
    """Retired overlays lie in the bits above BitsStored (PS3.3-2004 C.9.2)."""
    return any(
        dataset.get((group, 0x0100)) is not None and int(dataset[group, 0x0100].value or 1) > 1
        for group in range(0x6000, 0x6020, 2)
    )
