"""The way in: a film from a path or from bytes, whatever its format."""

import os
import stat
from pathlib import Path

from kxray.io.film import Film, FilmError

MAX_FILE_BYTES = 2**30
# What people give by mistake, so that the error can call it by its name.
_OTHERS = {
    b"%PDF": "a PDF",
    b"GIF8": "a GIF",
    b"BM": "a BMP",
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip file",
    b"RIFF": "a RIFF file (WebP, WAV, AVI)",
    b"\0\0\0\x0cjP  ": "a bare JPEG 2000 file",
    b"\xff\x4f\xff\x51": "a bare JPEG 2000 codestream",
    b"\x89HDF": "an HDF5 file",
    b"<svg": "an SVG",
    b"<!DOCTYPE": "an HTML page",
    b"<html": "an HTML page",
}
_EXPECTED = "expected 8- or 16-bit PNG, JPEG, TIFF or DICOM"


def read_image(path_or_bytes: str | os.PathLike | bytes) -> Film:
    """Reads one film; its content, not its name, says which format it is.

    Args:
        path_or_bytes: a file, or the content of one.

    Returns:
        A `Film`: `.pixels` float32 (H, W) in [0, 1], bone bright; `.bits`; `.facts`.

    Raises:
        FilmError: anything that is not one readable greyscale film, in one line that names the file.
        TypeError: neither a path nor bytes.
    """
    if isinstance(path_or_bytes, (bytes, bytearray, memoryview)):
        data = bytes(path_or_bytes)
        name = f"<{len(data)} bytes>"
    elif isinstance(path_or_bytes, (str, os.PathLike)):
        name = os.fspath(path_or_bytes)
        name = name if isinstance(name, str) else os.fsdecode(name)
        data = read_file(name)
    else:
        raise TypeError(f"expected a path or bytes, got {type(path_or_bytes).__name__}")
    return decode(data, name)


def read_file(name: str) -> bytes:
    """The content of a regular file. Raises FilmError where there is none, or one too large for a film."""
    try:
        status = os.stat(name)
        if stat.S_ISDIR(status.st_mode):
            raise FilmError(name, "it is a folder", "give a film file")
        if not stat.S_ISREG(status.st_mode):
            raise FilmError(name, "it is not a regular file", "give a film file")
        if status.st_size > MAX_FILE_BYTES:
            raise FilmError(name, f"{status.st_size:,} bytes are more than a film has", "give a film file")
        return Path(name).read_bytes()
    except FileNotFoundError:
        raise FilmError(name, "there is no such file", "check the path") from None
    except PermissionError:
        raise FilmError(name, "permission denied", "make it readable") from None
    except FilmError:
        raise
    except (OSError, ValueError) as error:
        raise FilmError(name, f"it cannot be opened ({error})", "check the path") from None


def sniff(data: bytes) -> str | None:
    """`"png"`, `"jpeg"`, `"tiff"` or `"dicom"` by the first bytes of a file (132 are enough), or None."""
    from kxray.io.image import JPEG_MAGIC, PNG_MAGIC, TIFF_MAGICS

    # A DICOM preamble may hold anything, a TIFF header for instance (PS3.10 7.1), so it is looked at first.
    if data[128:132] == b"DICM":
        return "dicom"
    if data.startswith(PNG_MAGIC):
        return "png"
    if data.startswith(JPEG_MAGIC):
        return "jpeg"
    if data.startswith(TIFF_MAGICS):
        return "tiff"
    if looks_like_bare_dicom(data):
        return "dicom"
    return None


def looks_like_bare_dicom(data: bytes) -> bool:
    """True where the bytes begin with a data element of group 0002 or 0008: DICOM without preamble."""
    if len(data) < 16 or data[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
        return False
    return int.from_bytes(data[2:4], "big" if data[:2] == b"\x00\x08" else "little") <= 0x0070


def decode(data: bytes, name: str) -> Film:
    """Decodes the content of a file. Raises FilmError, and nothing else, on content that is not a film."""
    if not data:
        raise FilmError(name, "it is empty", _EXPECTED)
    kind = sniff(data)
    if kind is None:
        raise FilmError(name, f"it is {_describe(data)}", _EXPECTED)
    try:
        return _reader(kind)(data, name)
    except FilmError:
        raise
    except MemoryError:
        raise FilmError(
            name, "there is not enough memory to decode it", "free some, or scale it down"
        ) from None
    except Exception as error:  # a decoder's own surprise must not stop an archive of films
        problem = f"it cannot be read as {kind.upper()} ({type(error).__name__}: {error})"
        raise FilmError(name, problem, "the file is damaged") from error


def _reader(kind):
    # Imported when first needed: pydicom and highdicom take 0.4 s.
    if kind == "dicom":
        from kxray.io.dicom import read_dicom

        return read_dicom
    from kxray.io import image

    return {"png": image.read_png, "jpeg": image.read_jpeg, "tiff": image.read_tiff}[kind]


def _describe(data):
    for magic, description in _OTHERS.items():
        if data.lstrip().startswith(magic) or data.startswith(magic):
            return description
    head = data[:512]
    if all(byte in b"\t\n\r\f" or byte >= 32 for byte in head) and b"\0" not in head:
        return "text"
    return "not an image that is known here"
