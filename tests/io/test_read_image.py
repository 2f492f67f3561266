"""PNG, JPEG and TIFF: exact pixels, equal to TensorFlow's decoders, and one clear sentence for the rest."""

import io
import os
import pickle
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFile

from kxray.io import Film, FilmError, encode_png16, read_image, write_png16

GREY8 = np.arange(256, dtype=np.uint8).reshape(16, 16)
GREY16 = (np.arange(256, dtype=np.uint32) * 257).astype(np.uint16).reshape(16, 16) ^ 5
SMOOTH = (np.add.outer(np.arange(64), np.arange(80)) * 1.7).astype(np.uint8)


def encode(array, kind="PNG", mode=None, **options):
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(array, **options):
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, bits, colour, rows, *extra):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + b"".join(extra)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def refusal(source):
    with pytest.raises(FilmError) as caught:
        read_image(source)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(source) if not isinstance(source, bytes) else f"<{len(source)} bytes>")
    return message.partition(": ")[2]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_pixels_are_the_stored_value_over_the_largest(kind):
    eight, sixteen = read_image(encode(GREY8, kind)), read_image(encode(GREY16, kind))
    np.testing.assert_array_equal(eight.pixels, GREY8 / np.float32(255))
    np.testing.assert_array_equal(sixteen.pixels, GREY16 / np.float32(65535))
    assert (eight.bits, sixteen.bits) == (8, 16)
    assert eight.pixels.dtype == sixteen.pixels.dtype == np.float32
    assert eight.facts["source_format"] == kind.lower()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_shallow_png(bits):
    packed = bytes([0b00011011])
    width = 8 // bits
    expected = [(packed[0] >> (8 - bits * (i + 1))) & (2**bits - 1) for i in range(width)]
    film = read_image(png(width, 1, bits, 0, b"\0" + packed))
    np.testing.assert_allclose(film.pixels[0], np.array(expected) / (2**bits - 1), atol=1e-7)
    assert film.bits == bits


def test_content_not_name_decides(tmp_path):
    path = tmp_path / "film.dcm"
    path.write_bytes(encode(GREY8))
    assert read_image(path).facts["source_format"] == "png"
    assert read_image(str(path)).facts["source_format"] == "png"
    assert read_image(bytearray(path.read_bytes())).facts["source_format"] == "png"


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_equal_channels_are_a_grey_film(mode):
    film = read_image(encode(GREY8, mode=mode))
    np.testing.assert_array_equal(film.pixels, GREY8 / np.float32(255))
    assert film.facts["stored_as"] == f"{mode} with equal channels"


def test_png_and_jpeg_pixels_are_those_of_tensorflow():
    tf = pytest.importorskip("tensorflow")
    for data in (
        encode(GREY8),
        encode(GREY16),
        encode(GREY8, mode="RGB"),
        encode_png16(GREY16 / np.float32(65535)),
    ):
        theirs = tf.io.decode_png(data, channels=1, dtype=tf.uint16).numpy()[..., 0] / np.float32(65535)
        np.testing.assert_array_equal(read_image(data).pixels, theirs)
    for options in ({}, {"progressive": True}, {"quality": 30}, {"mode": "RGB"}):
        data = encode(SMOOTH, "JPEG", **options)
        theirs = tf.io.decode_jpeg(data, channels=1, dct_method="INTEGER_ACCURATE").numpy()[..., 0]
        np.testing.assert_array_equal(read_image(data).pixels, theirs / np.float32(255))


def test_jpeg_orientation_is_recorded_and_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6
    film = read_image(encode(SMOOTH, "JPEG", exif=exif))
    assert film.pixels.shape == SMOOTH.shape and film.facts["exif_orientation"] == 6


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_minis_white_tiff_is_inverted(dtype, byteorder):
    array = (GREY8 if dtype == np.uint8 else GREY16).astype(np.dtype(dtype).newbyteorder(byteorder))
    film = read_image(tiff(array, photometric="miniswhite", byteorder=byteorder))
    largest = np.iinfo(dtype).max
    expected = (largest - array.astype(np.int32)).astype(np.float32) / np.float32(largest)
    np.testing.assert_array_equal(film.pixels, expected)
    assert film.facts["photometric_interpretation"] == "MONOCHROME1"


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", None])
@pytest.mark.parametrize("array", [GREY8, GREY16], ids=["8 bits", "16 bits"])
def test_compressed_tiff(compression, array):
    film = read_image(encode(array, "TIFF", **({"compression": compression} if compression else {})))
    np.testing.assert_array_equal(film.pixels, array / np.float32(np.iinfo(array.dtype).max))


def test_bigtiff_and_tiles():
    np.testing.assert_array_equal(read_image(tiff(GREY16, bigtiff=True)).pixels, GREY16 / np.float32(65535))
    np.testing.assert_array_equal(read_image(tiff(GREY16, tile=(16, 16))).pixels, GREY16 / np.float32(65535))


def colourful(kind):
    array = np.stack([GREY8, GREY8, GREY8], -1)
    array[4:12, 4:12, 1] = 200
    return encode(array, kind, **({"quality": 95, "subsampling": 0} if kind == "JPEG" else {}))


def animated():
    buffer = io.BytesIO()
    frames = [Image.fromarray(GREY8), Image.fromarray(255 - GREY8)]
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def transparent():
    array = np.stack([GREY8, np.full_like(GREY8, 255)], -1)
    array[0, 0, 1] = 254
    return encode(array)


def damaged(data, at, to=None):
    data = bytearray(data)
    data[at] = data[at] ^ 0x10 if to is None else to
    return bytes(data)


PNG8 = encode(np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8))
JPEG = encode(SMOOTH, "JPEG")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "it is empty; expected 8- or 16-bit PNG, JPEG, TIFF or DICOM"),
        (b"patient,view\n1,PA\n", "it is text; expected 8- or 16-bit PNG, JPEG, TIFF or DICOM"),
        (b"%PDF-1.7 \x00\x01", "it is a PDF; expected 8- or 16-bit PNG, JPEG, TIFF or DICOM"),
        (b"GIF89a\1\0\1\0", "it is a GIF; expected 8- or 16-bit PNG, JPEG, TIFF or DICOM"),
        (bytes(200), "it is not an image that is known here; expected 8- or 16-bit PNG, JPEG, TIFF or DICOM"),
        (colourful("PNG"), "it is a colour picture; films are grey"),
        (colourful("JPEG"), "it is a colour picture; films are grey"),
        (colourful("TIFF"), "it is a colour picture; films are grey"),
        (encode(GREY8, mode="P"), "it is a palette PNG; save it as 8- or 16-bit grey"),
        (encode(GREY8, "TIFF", mode="P"), "it is a palette TIFF; save it as 8- or 16-bit grey"),
        (encode(GREY8, "JPEG", mode="CMYK"), "it is a CMYK picture; save it as 8- or 16-bit grey"),
        (transparent(), "it has transparent pixels; flatten it first"),
        (encode(GREY8, transparency=7), "it has transparent pixels; flatten it first"),
        (animated(), "it is an animated PNG; export the one frame that is the film"),
        (
            png(1, 1, 16, 2, b"\0" + bytes(6)),
            "it is a 16-bit colour or transparent PNG; save it as 16-bit grey",
        ),
        (
            png(20000, 1, 8, 0, bytes(20001)),
            "the header says 1 x 20000 pixels, more than a film has "
            "(at most 16,384 a side and 80,000,000 in all); scale it down first",
        ),
        (PNG8[:-30], f"the PNG stops at byte {len(PNG8) - 30} inside a chunk; the file is truncated"),
        (PNG8[:-12], f"the PNG stops at byte {len(PNG8) - 12} before its end chunk; the file is truncated"),
        (damaged(PNG8, 100), "checksum error in the PNG chunk at byte 33; the file is damaged"),
        (JPEG[: len(JPEG) // 2], "the JPEG data stop before their end marker; the file is truncated"),
        (tiff(np.stack([GREY8, GREY8]), photometric="minisblack"), "it has 2 pages; export the one page"),
        (tiff(GREY8)[:-40], "its pixels reach further; the file is truncated"),
        (tiff(GREY8.astype(np.float32)), "its pixels are 32-bit"),
        (tiff(GREY8.astype(np.int16)), "its pixels are 16-bit"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
@pytest.mark.parametrize("lenient", [False, True], ids=["", "LOAD_TRUNCATED_IMAGES"])
def test_refusals(data, sentence, lenient, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", lenient)
    assert sentence in refusal(data)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient


def test_a_png_with_too_few_rows_is_refused_even_where_pillow_is_lenient(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    assert "153 bytes of PNG pixels, its size needs 272" in refusal(png(16, 16, 8, 0, bytes(17 * 9)))


def test_interlaced_png():
    # Adam7 of one 3 x 3 picture, by hand: passes 1, 4 (columns 2), 5 (row 2), 6 (column 1) and 7 (row 1).
    rows = b"\0\x00" + b"\0\x02" + b"\0\x06\x08" + b"\0\x01" + b"\0\x07" + b"\0\x03\x04\x05"
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 3, 3, 8, 0, 0, 0, 1))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(read_image(data).pixels * np.float32(255), np.arange(9).reshape(3, 3))


def test_a_twelve_bit_jpeg_is_named():
    data = bytearray(JPEG)
    data[data.index(b"\xff\xc0") + 4] = 12
    assert "it is a 12-bit baseline JPEG" in refusal(bytes(data))


def test_paths_that_are_no_film(tmp_path):
    missing = tmp_path / "missing.png"
    assert refusal(missing) == "there is no such file; check the path"
    assert refusal(tmp_path) == "it is a folder; give a film file"
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe") == "it is not a regular file; give a film file"
    empty = tmp_path / "empty.dcm"
    empty.touch()
    assert refusal(empty).startswith("it is empty")
    assert "cannot be opened" in refusal("a\0b")
    with pytest.raises(TypeError, match="expected a path or bytes, got NoneType"):
        read_image(None)


def test_compression_without_its_codec(monkeypatch):
    def no_codec(page):
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    data = encode(GREY16, "TIFF", compression="tiff_lzw")
    monkeypatch.setattr(tifffile.TiffPage, "asarray", no_codec)
    np.testing.assert_array_equal(read_image(data).pixels, GREY16 / np.float32(65535))  # through libtiff
    monkeypatch.setattr(Image, "open", lambda *args, **kwargs: 1 / 0)
    assert "its compression LZW needs a decoder: pip install imagecodecs" in refusal(data)


def test_film_error_is_one_line_and_pickles():
    error = FilmError("a.dcm", "two\nlines", "do this")
    assert str(error) == "a.dcm: two lines; do this" and isinstance(error, ValueError)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.name, copy.problem, copy.remedy) == ("a.dcm", "two\nlines", "do this")


def test_film_refuses_other_pixels():
    with pytest.raises(ValueError, match="must be float32"):
        Film(GREY8, 8, {})


def test_encode_png16_round_trip(tmp_path):
    values = np.random.default_rng(1).integers(0, 65536, (40, 30)).astype(np.uint16)
    pixels = values / np.float32(65535)
    film = read_image(encode_png16(pixels))
    np.testing.assert_array_equal(film.pixels, pixels)
    assert film.bits == 16
    eight = GREY8 / np.float32(255)
    np.testing.assert_array_equal(read_image(encode_png16(eight)).pixels, eight)
    write_png16(tmp_path / "film.png", pixels)
    np.testing.assert_array_equal(read_image(tmp_path / "film.png").pixels, pixels)
    assert [path.name for path in tmp_path.iterdir()] == ["film.png"]


@pytest.mark.parametrize(
    "pixels", [GREY8, np.zeros((2, 2, 1)), np.full((2, 2), 1.5), np.full((2, 2), np.nan)]
)
def test_encode_png16_says_what_it_expected(pixels):
    with pytest.raises(ValueError, match=r"expected float pixels .*in \[0, 1\], got"):
        encode_png16(pixels)


def test_importing_the_room_is_light():
    check = "import kxray.io, sys; sys.exit(bool({'tensorflow', 'keras', 'pydicom'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", check], cwd=os.getcwd()).returncode == 0
