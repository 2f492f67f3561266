"""The mark that a film was made by a generator: in a PNG's text chunks, or in a DICOM header."""

import hashlib
import io
import os
import re
import struct

_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
PNG_KEYWORD = "Synthetic"
# Synthetic Data (0008,001C) of DICOM PS3.3, YES or NO. The third value of Image Type says it to programs that
# are older than the attribute.
DICOM_TAG = 0x0008001C
DICOM_IMAGE_TYPE = "SYNTHETIC"
# More text than any program writes about a film.
_MOST_TEXT = 1 << 20
SYNTHETIC_TEXTS = {
    "Software": "kxray",
    PNG_KEYWORD: "yes",
    "Comment": "Synthetic film, shows no patient. Not for diagnosis; for training only.",
}
_NO = ("", "no", "false", "0")
_TEXT_CHUNKS = ("tEXt", "iTXt")
# A file name holds 255 bytes, and a character takes up to four of them.
_LONGEST_NAME = 48


def class_folder(label: str) -> str:
    """A class's name as that of a folder or a file; those of two classes differ.

    Letters of any alphabet, digits, "_" and "-" stay; where that is not all of the name, 8 digits of its
    SHA-256 follow.
    """
    name = re.sub(r"[^\w-]+", "_", label)[:_LONGEST_NAME]
    return name if name == label else f"{name}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"


def png_text(kind: str, content: bytes) -> tuple[str, str]:
    """(keyword, text) of a PNG's tEXt or iTXt chunk; no text of a compressed one."""
    keyword, _, text = content.partition(b"\0")
    if kind == "tEXt":
        return keyword.decode("latin-1"), text.decode("latin-1")
    if text[:1] != b"\0":
        return keyword.decode("latin-1"), ""
    return keyword.decode("latin-1"), text[2:].split(b"\0", 2)[-1].decode("utf-8", "replace")


def says_synthetic(texts) -> bool:
    """Whether a PNG's texts, pairs (keyword, text), mark the film as made by a generator."""
    return any(
        keyword.lower() == PNG_KEYWORD.lower() and text.strip().lower() not in _NO for keyword, text in texts
    )


def header_says_synthetic(dataset) -> bool:
    """Whether a pydicom Dataset marks the film as made by a generator."""
    element = dataset.get(DICOM_TAG)
    if element is not None and str(element.value).strip().upper() == "YES":
        return True
    kinds = dataset.get("ImageType") or ()
    return DICOM_IMAGE_TYPE in ([kinds] if isinstance(kinds, str) else list(kinds))


def png_texts(data: bytes) -> dict[str, str]:
    """The texts of an encoded PNG by keyword; none of other data."""
    return dict(_png_texts(io.BytesIO(data))) if data[:8] == _PNG_MAGIC else {}


def film_marks(path) -> dict:
    """What a film's file says of its making, without its pixels being read.

    Args:
        path: the file, of any format.

    Returns:
        The texts of a PNG by keyword; of a DICOM film what `kxray.io.dicom.header_facts` says, and
        `derivation`. With `synthetic`: True where the file is marked. Empty for other files, damaged ones,
        and where there is none: what is wrong with those is told when they are read.
    """
    from kxray.io.read import sniff

    try:
        # Unbuffered: what is skipped is not read.
        with open(path, "rb", buffering=0) as file:
            kind = sniff(file.read(132))
            if kind == "png":
                texts = [*_png_texts(file)]
                return dict(texts) | ({"synthetic": True} if says_synthetic(texts) else {})
    except (OSError, ValueError):
        return {}
    return _dicom_marks(path) if kind == "dicom" else {}


def _png_texts(file):
    """The texts of an open PNG; its pixels are skipped."""
    file.seek(8)
    while len(start := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", start)
        kind = kind.decode("latin-1")
        if kind in _TEXT_CHUNKS and length <= _MOST_TEXT:
            yield png_text(kind, file.read(length))
            file.seek(4, os.SEEK_CUR)
        elif kind == "IEND":
            return
        else:
            file.seek(length + 4, os.SEEK_CUR)


def _dicom_marks(path):
    import pydicom

    from kxray.io.dicom import complete_transfer_syntax, header_facts

    try:
        # Some films lack the preamble, and are read all the same.
        dataset = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        complete_transfer_syntax(dataset)
        derivation = str(dataset.get("DerivationDescription") or "")
        return header_facts(dataset) | ({"derivation": derivation} if derivation else {})
    except Exception:  # whatever a damaged header makes pydicom raise
        return {}
