"""PNG, JPEG and TIFF films, and the lossless 16-bit PNG that carries pixels to a server."""

import contextlib
import io
import struct
import threading
import zlib
from collections.abc import Mapping

import numpy as np
import tifffile
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from kxray.io import marks
from kxray.io.codestream import parse_jpeg
from kxray.io.files import write_whole
from kxray.io.film import Film, FilmError, check_size

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8\xff"
TIFF_MAGICS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_DAMAGED = "the file is damaged"
_TRUNCATED = "the file is truncated"
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # a pixel, by colour type
# First column and row of each Adam7 pass, and its steps.
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def read_png(data: bytes, name: str) -> Film:
    """Reads a grey PNG of 1, 2, 4, 8 or 16 bits; a value v of b bits becomes v / (2**b - 1).

    Every chunk's checksum is verified (Pillow leaves those of the pixels out).

    Raises:
        FilmError: damaged, truncated, animated, coloured, with a palette or with transparent pixels.
    """
    chunks = _png_chunks(data, name)
    width, height, bits, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks["IHDR"])
    check_size(name, height, width)
    if "acTL" in chunks:
        raise FilmError(name, "it is an animated PNG", "export the one frame that is the film")
    if colour == 3:
        raise FilmError(name, "it is a palette PNG", "save it as 8- or 16-bit grey")
    if bits == 16 and colour != 0:
        raise FilmError(name, "it is a 16-bit colour or transparent PNG", "save it as 16-bit grey")
    _check_png_rows(chunks["IDAT"], width, height, bits * _PNG_SAMPLES.get(colour, 1), interlaced, name)
    facts = {"source_format": "png", "photometric_interpretation": "MONOCHROME2"}
    if "sBIT" in chunks:
        facts["significant_bits"] = chunks["sBIT"][0]
    if marks.says_synthetic(chunks["texts"]):
        facts["synthetic"] = True
    values = _grey(_decode_with_pillow(data, "PNG", name), name, facts)
    return _film(values, bits, 16 if bits == 16 else 8, facts)


def read_jpeg(data: bytes, name: str) -> Film:
    """Reads an 8-bit grey JPEG, baseline or progressive; a value v becomes v / 255.

    The EXIF orientation is recorded in `facts["exif_orientation"]` and not applied: TensorFlow's decoder,
    which reads the same bytes in an exported model, does not apply it either.

    Raises:
        FilmError: damaged, truncated, coloured, or of a kind that no film reader here decodes.
    """
    try:
        stream = parse_jpeg(data)
    except (ValueError, IndexError, struct.error) as error:
        truncated = isinstance(error, (IndexError, struct.error))
        raise FilmError(name, f"malformed JPEG ({error})", _TRUNCATED if truncated else _DAMAGED) from error
    check_size(name, stream.height, stream.width)
    if not stream.complete:
        raise FilmError(name, "the JPEG data stop before their end marker", _TRUNCATED)
    if stream.process not in ("baseline", "extended sequential", "progressive") or stream.precision != 8:
        raise FilmError(
            name, f"it is a {stream.precision}-bit {stream.process} JPEG", "save it as PNG, TIFF or DICOM"
        )
    image = _decode_with_pillow(data, "JPEG", name)
    facts = {
        "source_format": "jpeg",
        "photometric_interpretation": "MONOCHROME2",
        "jpeg_process": stream.process,
    }
    orientation = image.getexif().get(0x0112)
    if orientation not in (None, 1):
        facts["exif_orientation"] = int(orientation)
    return _film(_grey(image, name, facts), 8, 8, facts)


def read_tiff(data: bytes, name: str) -> Film:
    """Reads a single-page grey TIFF of 1 to 16 unsigned bits; MINISWHITE is inverted, so that bone is bright.

    Raises:
        FilmError: damaged, truncated, multi-page, coloured, not unsigned integers, or compressed with a codec
            that is not installed.
    """
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as tiff:
            if len(tiff.pages) != 1:
                raise FilmError(
                    name, f"it has {len(tiff.pages)} pages", "export the one page that is the film"
                )
            return _read_tiff_page(tiff.pages[0], data, name)
    except FilmError:
        raise
    except MemoryError:
        raise
    except Exception as error:
        raise FilmError(name, f"malformed TIFF ({error})", _DAMAGED) from error


def encode_png16(pixels: np.ndarray, texts: Mapping[str, str] | None = None) -> bytes:
    """Encodes pixels as a 16-bit grey PNG, losslessly for films of 16 bits or fewer.

    Args:
        pixels: float (H, W) in [0, 1].
        texts: by keyword, written as text chunks before the pixels.

    Returns:
        The PNG. `read_image` gives `round(65535 * pixels) / 65535` back.

    Raises:
        ValueError: not float (H, W) in [0, 1].
    """
    pixels = np.asarray(pixels)
    if pixels.ndim != 2 or pixels.dtype.kind != "f" or 0 in pixels.shape:
        raise ValueError(f"expected float pixels (H, W) in [0, 1], got {pixels.dtype} {pixels.shape}")
    low, high = float(pixels.min()), float(pixels.max())
    if not (low >= 0 and high <= 1):
        raise ValueError(f"expected float pixels in [0, 1], got values from {low} to {high}")
    values = np.rint(pixels * np.float64(65535) if pixels.dtype == np.float64 else pixels * np.float32(65535))
    written = PngInfo()
    for keyword, text in (texts or {}).items():
        written.add_text(keyword, text)
    buffer = io.BytesIO()
    Image.fromarray(values.astype(np.uint16)).save(buffer, "PNG", compress_level=1, pnginfo=written)
    return buffer.getvalue()


def write_png16(path, pixels: np.ndarray, texts: Mapping[str, str] | None = None) -> None:
    """Writes `encode_png16(pixels, texts)` to `path`; a reader sees the whole file or none."""
    write_whole(path, encode_png16(pixels, texts))


def _png_chunks(data, name):
    """First occurrence of every chunk kind, all IDAT joined, all "texts" in a list; checks the whole
    structure and all checksums."""
    chunks, pixels, texts, position, kind, ends = {}, [], [], len(PNG_MAGIC), "", False
    while not ends:
        if position + 12 > len(data):
            raise FilmError(name, f"the PNG stops at byte {len(data)} before its end chunk", _TRUNCATED)
        length = struct.unpack_from(">I", data, position)[0]
        end = position + 12 + length
        if end > len(data):
            raise FilmError(name, f"the PNG stops at byte {len(data)} inside a chunk", _TRUNCATED)
        if zlib.crc32(data[position + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            raise FilmError(name, f"checksum error in the PNG chunk at byte {position}", _DAMAGED)
        kind = data[position + 4 : position + 8].decode("latin-1")
        if not chunks and (kind != "IHDR" or length != 13):
            raise FilmError(name, "the PNG does not begin with its header chunk", _DAMAGED)
        content = data[position + 8 : end - 4]
        if kind == "IDAT":
            pixels.append(content)
        elif kind in ("tEXt", "iTXt"):
            texts.append(marks.png_text(kind, content))
        else:
            chunks.setdefault(kind, content)
        position, ends = end, kind == "IEND"
    return {**chunks, "IDAT": b"".join(pixels), "texts": texts}


def _check_png_rows(compressed, width, height, bits, interlaced, name):
    """Pillow leaves the rows black that a short stream does not hold, without a word."""
    passes = _ADAM7 if interlaced else [(0, 0, 1, 1)]
    expected = 0
    for left, top, across, down in passes:
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and rows > 0:
            expected += rows * (1 + (columns * bits + 7) // 8)
    try:
        found = len(zlib.decompressobj().decompress(compressed, expected))
    except zlib.error as error:
        raise FilmError(name, f"PNG data that do not decode ({error})", _DAMAGED) from error
    if found < expected:
        raise FilmError(name, f"{found} bytes of PNG pixels, its size needs {expected}", _TRUNCATED)


class _Strictness:
    """How many decodes are running with Pillow's leniency switched off, and what it was before."""

    lock = threading.Lock()
    running = 0
    lenient_before = False


@contextlib.contextmanager
def _strict_pillow():
    """Pillow's process-wide LOAD_TRUNCATED_IMAGES, which some programs set, would fill damaged films with
    grey; it is off while a film decodes, and afterwards what it was."""
    with _Strictness.lock:
        if _Strictness.running == 0:
            _Strictness.lenient_before = ImageFile.LOAD_TRUNCATED_IMAGES
            ImageFile.LOAD_TRUNCATED_IMAGES = False
        _Strictness.running += 1
    try:
        yield
    finally:
        with _Strictness.lock:
            _Strictness.running -= 1
            if _Strictness.running == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES = _Strictness.lenient_before


def _decode_with_pillow(data, kind, name):
    try:
        with _strict_pillow():
            image = Image.open(io.BytesIO(data), formats=(kind,))
            if getattr(image, "n_frames", 1) != 1:
                raise FilmError(
                    name, f"it holds {image.n_frames} pictures", "export the one that is the film"
                )
            image.load()
    except (FilmError, MemoryError):
        raise
    except Exception as error:
        raise FilmError(name, f"{kind} data that do not decode ({error})", _DAMAGED) from error
    return image


def _grey(image, name, facts):
    """Integer (H, W) of a Pillow image whose pixels are all grey and opaque; records how it was stored."""
    transparent = image.info.get("transparency")
    if image.mode == "1":
        image = image.convert("L")
    values = np.asarray(image)
    if image.mode in ("L", "I;16", "I;16B", "I;16L"):
        if isinstance(transparent, int) and (values == transparent).any():
            raise FilmError(name, "it has transparent pixels", "flatten it first")
        return values
    if image.mode not in ("LA", "RGB", "RGBA"):
        raise FilmError(name, f"it is a {image.mode} picture", "save it as 8- or 16-bit grey")
    if image.mode in ("LA", "RGBA"):
        if (values[..., -1] != 255).any():
            raise FilmError(name, "it has transparent pixels", "flatten it first")
        values = values[..., :-1]
    elif transparent is not None and (values == np.asarray(transparent, values.dtype)).all(axis=-1).any():
        raise FilmError(name, "it has transparent pixels", "flatten it first")
    if any((values[..., 0] != values[..., other]).any() for other in range(1, values.shape[-1])):
        raise FilmError(name, "it is a colour picture", "films are grey")
    facts["stored_as"] = f"{image.mode} with equal channels"
    return values[..., 0]


def _read_tiff_page(page, data, name):
    photometric, bits = int(page.photometric), page.bitspersample
    height, width = int(page.imagelength), int(page.imagewidth)
    check_size(name, height, width)
    if page.imagedepth != 1:
        raise FilmError(name, "it is a volume", "export the one slice that is the film")
    if photometric == 3:
        raise FilmError(name, "it is a palette TIFF", "save it as 8- or 16-bit grey")
    if photometric not in (0, 1, 2, 6) or page.samplesperpixel not in ((1,) if photometric < 2 else (3,)):
        raise FilmError(
            name,
            f"it is not greyscale (photometric {page.photometric!s}, {page.samplesperpixel} samples a pixel)",
            "save it as 8- or 16-bit grey",
        )
    if page.sampleformat != 1 or not isinstance(bits, int) or not 1 <= bits <= 16:
        raise FilmError(
            name,
            f"its pixels are {bits}-bit {page.sampleformat!s}",
            "expected unsigned integers of at most 16 bits",
        )
    _check_tiff_segments(page, data, name)
    facts = {
        "source_format": "tiff",
        "photometric_interpretation": "MONOCHROME1" if photometric == 0 else "MONOCHROME2",
        "polarity": "inverted" if photometric == 0 else "as stored",
        "compression": getattr(page.compression, "name", str(page.compression)).lower(),
    }
    orientation = page.tags.valueof(274)
    if orientation not in (None, 1):
        facts["orientation"] = int(orientation)
    values = _tiff_values(page, data, name)
    if values.ndim == 3:
        values = values if values.shape[-1] == 3 else np.moveaxis(values, 0, -1)
        if (values != values[..., :1]).any():
            raise FilmError(name, "it is a colour picture", "films are grey")
        values, facts["stored_as"] = values[..., 0], "RGB with equal channels"
    if values.shape != (height, width):
        raise FilmError(
            name, f"its pixels decode to {values.shape}, the header says {(height, width)}", _DAMAGED
        )
    if photometric == 0:
        values = (2**bits - 1) - values.astype(np.int32)
    return _film(values, bits, bits, facts)


def _check_tiff_segments(page, data, name):
    """Missing strips would decode as black without a word."""
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
        if offset <= 0 or count <= 0 or offset + count > len(data):
            raise FilmError(name, f"the TIFF stops at byte {len(data)}, its pixels reach further", _TRUNCATED)
    if not page.dataoffsets or len(page.dataoffsets) != len(page.databytecounts):
        raise FilmError(name, "the TIFF does not say where its pixels are", _DAMAGED)
    if page.compression == 1 and sum(page.databytecounts) * 8 < (
        page.imagelength * page.imagewidth * page.samplesperpixel * page.bitspersample
    ):
        raise FilmError(
            name, f"{sum(page.databytecounts)} bytes of pixels are fewer than its size needs", _TRUNCATED
        )


def _tiff_values(page, data, name):
    """Stored values. Codecs that tifffile has only with imagecodecs are tried in Pillow (libtiff)."""
    try:
        return np.squeeze(page.asarray())
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
    kind = getattr(page.compression, "name", str(page.compression))
    remedy = f"its compression {kind} needs a decoder: pip install imagecodecs"
    try:
        with _strict_pillow():
            image = Image.open(io.BytesIO(data), formats=("TIFF",))
            image.load()
    except Exception as error:
        raise FilmError(name, f"its compressed pixels do not decode ({error})", remedy) from error
    if image.mode not in ("L", "I;16", "I;16B", "RGB") or page.bitspersample not in (8, 12, 16):
        raise FilmError(name, f"compressed TIFF of mode {image.mode}", remedy)
    if page.tags.valueof(274) not in (None, 1):  # Pillow would turn it, tifffile does not
        raise FilmError(name, "it is a compressed TIFF with an orientation tag", remedy)
    values = np.asarray(image)
    # Pillow undoes MINISWHITE for 8 bits and not for 16.
    return 255 - values if page.photometric == 0 and image.mode == "L" else values


def _film(values, bits, container, facts):
    largest = np.float32(2**container - 1)
    return Film(np.true_divide(values, largest, dtype=np.float32), bits, facts)
