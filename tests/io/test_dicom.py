"""DICOM films: what every step of the grey-scale pipeline does to known stored values."""

import io

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from kxray.io import FilmError, read_image

DX = "1.2.840.10008.5.1.4.1.1.1.1"
SR = "1.2.840.10008.5.1.4.1.1.88.11"
RAMP = np.array([[0, 1000, 2000], [3000, 4000, 4095]], np.uint16)


def film(stored=RAMP, bits=12, photometric="MONOCHROME2", sop_class=DX, **elements):
    stored = np.asarray(stored)
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, "1.2.3.4"
    dataset.PatientID, dataset.ViewPosition, dataset.Modality = "p1", "PA", "DX"
    dataset.Rows, dataset.Columns = stored.shape[-2:]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, photometric
    dataset.BitsAllocated, dataset.BitsStored = stored.dtype.itemsize * 8, bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.PixelData = stored.tobytes() + b"\0" * (stored.nbytes % 2)
    dataset["PixelData"].VR = "OW"
    for keyword, value in elements.items():
        setattr(dataset, keyword, value)
    return dataset


def as_bytes(dataset, syntax=ExplicitVRLittleEndian):
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", DX)
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def read(*args, **elements):
    return read_image(as_bytes(film(*args, **elements)))


def refusal(dataset_or_bytes):
    data = dataset_or_bytes if isinstance(dataset_or_bytes, bytes) else as_bytes(dataset_or_bytes)
    with pytest.raises(FilmError) as caught:
        read_image(data)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"<{len(data)} bytes>: ")
    return str(caught.value)


@pytest.mark.parametrize(
    ("photometric", "shape", "inverted"),
    [
        ("MONOCHROME2", None, False),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME1", None, True),
        ("MONOCHROME1", "INVERSE", True),  # one inversion, not two
        # Not allowed by the standard; PresentationLUTShape decides, as in highdicom, dcm4che and Weasis.
        ("MONOCHROME1", "IDENTITY", False),
        ("MONOCHROME2", "INVERSE", True),
    ],
)
@pytest.mark.parametrize("windowed", [False, True])
def test_polarity(photometric, shape, inverted, windowed):
    elements = {"PresentationLUTShape": shape} if shape else {}
    if windowed:
        elements |= {"WindowCenter": 2048, "WindowWidth": 4096}
    result = read(photometric=photometric, **elements)
    expected = RAMP / 4095
    np.testing.assert_allclose(result.pixels, 1 - expected if inverted else expected, atol=1e-6)
    assert result.facts["polarity"] == ("inverted" if inverted else "as stored")
    assert result.facts["photometric_interpretation"] == photometric
    assert result.facts.get("presentation_lut_shape") == shape
    assert ("polarity_conflict" in result.facts) == (
        (photometric, shape) in {("MONOCHROME1", "IDENTITY"), ("MONOCHROME2", "INVERSE")}
    )


def test_pixels_and_facts():
    result = read(BodyPartExamined="CHEST", ImagerPixelSpacing=[0.2, 0.1])
    assert (result.pixels.dtype, result.pixels.shape, result.bits) == (np.float32, (2, 3), 12)
    expected = {
        "source_format": "dicom",
        "transfer_syntax": "Explicit VR Little Endian",
        "patient_id": "p1",
        "view_position": "PA",
        "modality": "DX",
        "body_part": "CHEST",
        "pixel_spacing": [0.2, 0.1],
        "window": {"kind": "full range", "low": 0.0, "high": 4095.0},
    }
    assert expected.items() <= result.facts.items()


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        # Centre 2000, width 1000: LINEAR runs from 1500 to 2499, LINEAR_EXACT from 1500 to 2500.
        (None, [0, 0, 500 / 999, 1, 1]),
        ("LINEAR", [0, 0, 500 / 999, 1, 1]),
        ("LINEAR_EXACT", [0, 0, 0.5, 0.999, 1]),
        (
            "SIGMOID",
            [1 / (1 + np.exp(4)), 1 / (1 + np.exp(2)), 0.5, 1 / (1 + np.exp(-1.996)), 1 / (1 + np.exp(-2))],
        ),
    ],
)
def test_window_functions(function, expected):
    stored = np.array([[1000, 1500, 2000, 2499, 2500]], np.uint16)
    elements = {"VOILUTFunction": function} if function else {}
    result = read(stored, WindowCenter=2000, WindowWidth=1000, **elements)
    np.testing.assert_allclose(result.pixels[0], expected, atol=1e-6)
    assert result.facts["window"] == {
        "kind": "window",
        "center": 2000.0,
        "width": 1000.0,
        "function": function or "LINEAR",
    }


def test_the_first_of_several_windows_is_used_and_named():
    result = read(
        WindowCenter=[2048, 100], WindowWidth=[4096, 10], WindowCenterWidthExplanation=["NORMAL", "HARD"]
    )
    np.testing.assert_allclose(result.pixels, RAMP / 4095, atol=1e-6)
    assert result.facts["window"]["explanation"] == "NORMAL"


def test_the_window_is_in_modality_units():
    # Stored 0..4095 become -1000..1047.5; the window covers -1000..23 of those, stored 0..2046.
    result = read(RescaleSlope=0.5, RescaleIntercept=-1000, WindowCenter=-488, WindowWidth=1024)
    np.testing.assert_allclose(result.pixels, np.clip(RAMP * 0.5 / 1023, 0, 1), atol=1e-6)
    assert result.facts["rescale_slope"] == 0.5


def test_a_negative_rescale_slope_turns_the_scale():
    result = read(RescaleSlope=-1, RescaleIntercept=4095)
    np.testing.assert_allclose(result.pixels, 1 - RAMP / 4095, atol=1e-6)


def test_a_window_of_width_one_is_a_step():
    result = read(WindowCenter=2000.5, WindowWidth=1)
    np.testing.assert_array_equal(result.pixels, [[0, 0, 0], [1, 1, 1]])


@pytest.mark.parametrize("width", [0, -5, 0.5])
def test_an_impossible_window_is_ignored_and_recorded(width):
    result = read(WindowCenter=2000, WindowWidth=width)
    np.testing.assert_allclose(result.pixels, RAMP / 4095, atol=1e-6)
    assert "ignored_window" in result.facts["window"]


def test_empty_header_values_are_as_if_absent():
    result = read(
        WindowCenter=None, WindowWidth=None, RescaleSlope=None, RescaleIntercept=None, ViewPosition=""
    )
    np.testing.assert_allclose(result.pixels, RAMP / 4095, atol=1e-6)
    assert result.facts["window"]["kind"] == "full range" and "view_position" not in result.facts


def lookup_table(data, first, bits):
    item = Dataset()
    item.LUTDescriptor = [len(data), first, bits]
    item.LUTData = np.asarray(data, np.uint16).tobytes()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    return item


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_voi_lut(photometric):
    # Stored below 1 and above 3 take the first and last entries.
    stored = np.array([[0, 1, 2, 3, 4]], np.uint16)
    result = read(stored, photometric=photometric, VOILUTSequence=[lookup_table([0, 1023, 4095], 1, 12)])
    expected = np.array([[0, 0, 1023 / 4095, 1, 1]])
    np.testing.assert_allclose(
        result.pixels, 1 - expected if photometric == "MONOCHROME1" else expected, atol=1e-6
    )
    assert result.facts["window"] == {"kind": "voi_lut", "entries": 3, "first_value": 1}


def test_modality_lut_then_window():
    data = (np.arange(4096) // 4).tolist()  # 12 bits in, 10 bits out
    result = read(ModalityLUTSequence=[lookup_table(data, 0, 16)], WindowCenter=512, WindowWidth=1024)
    np.testing.assert_allclose(result.pixels, RAMP // 4 / 1023, atol=1e-6)
    assert result.facts["modality_transform"] == "lookup table"


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_modality_lut_then_voi_lut(photometric):
    modality = lookup_table((np.arange(4096) // 1024).tolist(), 0, 16)  # 0, 1, 2, 3
    voi = lookup_table([0, 10, 30, 40], 0, 16)
    result = read(photometric=photometric, ModalityLUTSequence=[modality], VOILUTSequence=[voi])
    expected = np.array([[0, 0, 0.25], [0.75, 1, 1]])  # 1000 // 1024 = 0, 2000 -> 1, 3000 -> 2, 4000 -> 3
    expected[1, 0] = 0.75
    np.testing.assert_allclose(
        result.pixels, 1 - expected if photometric == "MONOCHROME1" else expected, atol=1e-6
    )


def test_signed_pixels():
    stored = np.array([[-2048, 0, 2047]], np.int16)
    np.testing.assert_allclose(read(stored).pixels[0], [0, 2048 / 4095, 1], atol=1e-6)


def test_eight_bit_pixels_scale_like_png():
    stored = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(read(stored, bits=8).pixels, stored / np.float32(255))


def test_padding_is_black_and_does_not_move_the_range():
    plain = read(np.array([[100, 1000, 2000]], np.uint16), photometric="MONOCHROME1")
    padded = read(np.array([[0, 1000, 2000]], np.uint16), photometric="MONOCHROME1", PixelPaddingValue=0)
    np.testing.assert_array_equal(plain.pixels[0, 1:], padded.pixels[0, 1:])
    assert padded.pixels[0, 0] == 0 and padded.facts["pixel_padding"] == [0, 0]


def test_padding_outside_the_stored_bits():
    stored = np.array([[65535, 0, 4095]], np.uint16)
    np.testing.assert_array_equal(read(stored, PixelPaddingValue=65535).pixels, [[0, 0, 1]])


def test_values_outside_the_stored_bits_are_refused():
    message = refusal(film(np.array([[0, 5000]], np.uint16)))
    assert "stored values from 0 to 5000 exceed the 12 bits stored" in message


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_uncompressed_syntaxes_and_missing_file_meta(syntax):
    dataset = film()
    little, implicit = syntax != ExplicitVRBigEndian, syntax == ImplicitVRLittleEndian
    if not little:
        dataset.PixelData = RAMP.astype(">u2").tobytes()
    bare = io.BytesIO()
    pydicom.dcmwrite(bare, dataset, implicit_vr=implicit, little_endian=little)
    for data in (as_bytes(dataset, syntax), bare.getvalue()):
        result = read_image(data)
        np.testing.assert_allclose(result.pixels, RAMP / 4095, atol=1e-6)
        assert result.facts["transfer_syntax"] == syntax.name


def test_deflated_syntax():
    np.testing.assert_allclose(
        read_image(as_bytes(film(), "1.2.840.10008.1.2.1.99")).pixels, RAMP / 4095, atol=1e-6
    )


def test_windows_in_functional_groups():
    window, group = Dataset(), Dataset()
    window.WindowCenter, window.WindowWidth = 2000, 1000
    group.FrameVOILUTSequence = [window]
    result = read(NumberOfFrames=1, SharedFunctionalGroupsSequence=[group])
    assert result.facts["window"]["center"] == 2000


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"NumberOfFrames": 2, "PixelData": bytes(24)},
            "it has 2 frames (Digital X-Ray Image Storage - For Pres",
        ),
        (
            {"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3, "PlanarConfiguration": 0},
            "it is not greyscale (PhotometricInterpretation RGB, 3 samples a pixel)",
        ),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "it is a palette colour picture"),
        ({"BitsAllocated": 32}, "BitsAllocated is 32; expected 8 or 16"),
        ({"HighBit": 15}, "do not fit together; expected HighBit = BitsStored - 1"),
        ({"Rows": 0}, "the header says 0 x 3 pixels"),
        ({"Rows": 20000}, "the header says 20000 x 3 pixels, more than a film has (at most 16,384 a side"),
        ({"PixelData": bytes(4)}, "4 bytes of pixel data, 2 x 3 pixels need 12; the file is truncated"),
        ({"PixelData": bytes(48)}, "48 bytes of pixel data, 2 x 3 pixels need 12; its Rows"),
        ({"VOILUTFunction": "WAVY", "WindowCenter": 1, "WindowWidth": 9}, "its VOILUTFunction is 'WAVY'"),
    ],
)
def test_refusals(changes, sentence):
    assert sentence in refusal(film(**changes))


def test_objects_without_a_picture():
    report = film(sop_class=SR)
    for keyword in ("Rows", "Columns", "PixelData"):
        delattr(report, keyword)
    assert "it holds no picture (Basic Text SR Storage)" in refusal(report)
    header_only = film()
    del header_only.PixelData
    assert "it has no pixel data (Digital X-Ray Image Storage" in refusal(header_only)
    numbers = film()
    del numbers.PixelData
    numbers.FloatPixelData = np.zeros(6, np.float32).tobytes()
    assert "its pixels are floating-point numbers (FloatPixelData)" in refusal(numbers)


def test_a_syntax_that_is_no_picture_is_named():
    dataset = film()
    dataset.PixelData = encapsulate([b"\0\0\1\xb3" * 8])
    message = refusal(as_bytes(dataset, "1.2.840.10008.1.2.4.100"))
    assert "MPEG2 Main Profile" in message


@pytest.mark.parametrize(
    ("syntax", "pip_line"),
    [
        ("1.2.840.10008.1.2.4.70", "pip install python-gdcm, or pylibjpeg pylibjpeg-libjpeg (GPLv3)"),
        ("1.2.840.10008.1.2.4.80", "pip install pyjpegls"),
        ("1.2.840.10008.1.2.4.90", "pip install pylibjpeg pylibjpeg-openjpeg"),
    ],
)
def test_a_missing_decoder_is_named_with_its_pip_line(syntax, pip_line, monkeypatch):
    monkeypatch.setattr("kxray.io.dicom._DECODERS", {})
    if syntax.endswith("90"):
        stream = b"\xff\x4f\xff\x51" + bytes(4) + b"".join(n.to_bytes(4, "big") for n in (3, 2, 0, 0))
        stream += bytes(16) + b"\0\1\x0b\1\1"
    else:
        stream = b"\xff\xd8\xff\xc3\0\x0b\x0c\0\2\0\3\1\1\x11\0\xff\xda\0\x08\1\1\0\1\0\0\xff\xd9"
    dataset = film()
    dataset.PixelData = encapsulate([stream + b"\0" * (len(stream) % 2)])
    message = refusal(as_bytes(dataset, syntax))
    assert f"no installed decoder reads {pydicom.uid.UID(syntax).name}; {pip_line}" in message


def test_a_codestream_larger_than_the_header_is_refused_before_decoding():
    stream = b"\xff\xd8\xff\xc3\0\x0b\x0c\xff\xff\xff\xff\1\1\x11\0\xff\xda\0\x08\1\1\0\1\0\0\xff\xd9"
    dataset = film()
    dataset.PixelData = encapsulate([stream + b"\0" * (len(stream) % 2)])
    message = refusal(as_bytes(dataset, "1.2.840.10008.1.2.4.70"))
    assert "the codestream holds 65535 x 65535 pixels of 1 components, the header says 2 x 3 of 1" in message


def test_reads_what_highdicom_reads():
    highdicom = pytest.importorskip("highdicom")
    generator = np.random.default_rng(0)
    stored = generator.integers(0, 4096, (16, 16)).astype(np.uint16)
    for photometric, shape in [
        ("MONOCHROME1", "INVERSE"),
        ("MONOCHROME1", None),
        ("MONOCHROME2", "IDENTITY"),
    ]:
        dataset = film(stored, photometric=photometric, WindowCenter=1800, WindowWidth=2500)
        dataset.StudyInstanceUID = dataset.SeriesInstanceUID = dataset.FrameOfReferenceUID = "1.2.3"
        if shape:
            dataset.PresentationLUTShape = shape
        data = as_bytes(dataset)
        image = highdicom.imread(io.BytesIO(data))
        theirs = image.get_frame(1, apply_voi_transform=True, apply_presentation_lut=True)
        np.testing.assert_allclose(read_image(data).pixels, theirs, atol=1e-6)
