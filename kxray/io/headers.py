"""What a film's file says of it without its pixels being decoded: its size, and whether it is whole."""

import os
import struct

# What Pillow calls grey pictures without transparency.
_GREY = ("1", "L", "I", "I;16", "I;16B", "I;16L")


def film_size(path) -> tuple[int, int]:
    """(height, width) in pixels, from the header; films that Pillow cannot open are decoded.

    Raises:
        kxray.io.FilmError: not a film.
    """
    from PIL import Image

    from kxray.io import read_image

    name = os.fspath(path)
    kind, head = _kind(name)
    if kind == "png" and head[12:16] == b"IHDR":
        # In a collection of 100,000 films, Pillow takes ten times as long.
        width, height = struct.unpack(">II", head[16:24])
        return height, width
    if kind == "dicom":
        header = _dicom_header(name)
        return int(header.Rows), int(header.Columns)
    try:
        with Image.open(name) as picture:
            width, height = picture.size
    except Exception:
        # It says what is wrong, in one line.
        height, width = read_image(name).pixels.shape
    return height, width


def film_problem(path, min_side=1) -> str | None:
    """What is wrong with a film as far as its file tells, in one line that names it; None for nothing.

    Of grey PNG and JPEG films structure, checksums and size are looked at, of DICOM films the header; others
    are decoded.
    """
    from kxray.io import FilmError
    from kxray.io.film import check_size

    name = os.fspath(path)
    try:
        kind, _ = _kind(name)
        if kind == "dicom":
            header = _dicom_header(name)
            shape = (int(header.Rows), int(header.Columns))
        else:
            shape = _checked_shape(name, kind)
        check_size(name, *shape)
        if min(shape) < min_side:
            raise FilmError(name, f"{shape[0]} x {shape[1]} pixels; films have {min_side} a side and more")
    except FilmError as error:
        return str(error)
    return None


def _checked_shape(name, kind):
    from PIL import Image

    from kxray.io import FilmError, read_image
    from kxray.io.codestream import parse_jpeg
    from kxray.io.read import read_file

    if kind not in ("png", "jpeg"):
        return read_image(name).pixels.shape
    try:
        with Image.open(name) as picture:
            width, height = picture.size
            plain = picture.mode in _GREY and "transparency" not in picture.info
            if plain and getattr(picture, "n_frames", 1) == 1:
                picture.verify()
                # Of a JPEG, Pillow verifies nothing.
                if kind == "png" or parse_jpeg(read_file(name)).complete:
                    return height, width
    except FilmError:
        raise
    except Exception as error:
        raise FilmError(name, f"{kind.upper()} that is damaged ({error})") from None
    return read_image(name).pixels.shape


def _kind(name):
    """(png, jpeg, tiff, dicom or None, the first bytes); (None, b"") of what cannot be opened."""
    from kxray.io.read import sniff

    try:
        with open(name, "rb", buffering=0) as file:
            head = file.read(132)
    except OSError:
        return None, b""
    return sniff(head), head


def _dicom_header(name):
    from kxray.io.dicom import read_header
    from kxray.io.read import read_file

    return read_header(read_file(name), name)
