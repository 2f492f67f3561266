"""What a JPEG, JPEG-LS, JPEG lossless or JPEG 2000 codestream says about itself, without decoding it."""

import dataclasses
import re
import struct

# Start-of-frame markers (ITU-T T.81 table B.1; 0xF7 is JPEG-LS, T.87). C4, C8 and CC are not frames.
SOF_NAMES = {
    0xC0: "baseline",
    0xC1: "extended sequential",
    0xC2: "progressive",
    0xC3: "lossless",
    0xC5: "differential sequential",
    0xC6: "differential progressive",
    0xC7: "differential lossless",
    0xC9: "arithmetic-coded sequential",
    0xCA: "arithmetic-coded progressive",
    0xCB: "arithmetic-coded lossless",
    0xF7: "JPEG-LS",
}
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
# In entropy-coded data FF is followed by 00 (a stuffed byte; below 80 in JPEG-LS) or by a restart marker.
_AFTER_SCAN = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")


@dataclasses.dataclass(frozen=True)
class Codestream:
    """Header of a codestream: `process` ("progressive", "JPEG 2000", ...), size in pixels, bits a sample,
    number of components, and whether its end marker is there (JPEG family only: real JPEG 2000 streams
    come without, and their decoders notice a truncation by the lengths of the tile parts)."""

    process: str
    height: int
    width: int
    precision: int
    components: int
    complete: bool


def parse_jpeg(data: bytes) -> Codestream:
    """Walks the segments of a JPEG, JPEG lossless or JPEG-LS stream up to its end marker.

    Raises:
        ValueError: the stream does not follow the marker syntax or has no frame header.
    """
    frame, position = None, 2
    if data[:2] != b"\xff\xd8":
        raise ValueError("no JPEG start marker")
    complete = False
    while position + 4 <= len(data) or data[position : position + 2] == b"\xff\xd9":
        if data[position] != 0xFF:
            raise ValueError(f"expected a JPEG marker at byte {position}")
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker == _EOI:
            complete = True
            break
        if marker == 0x01 or 0xD0 <= marker <= _SOI:
            position += 2
            continue
        length = struct.unpack_from(">H", data, position + 2)[0]
        if marker in SOF_NAMES:
            if frame is not None:
                raise ValueError("two JPEG frame headers")
            frame = (marker, *struct.unpack_from(">BHHB", data, position + 4))
        position += 2 + length
        if marker == _SOS:
            following = _AFTER_SCAN.search(data, position)
            if following is None:
                break
            position = following.start()
    if frame is None:
        raise ValueError("no JPEG frame header")
    marker, precision, height, width, components = frame
    return Codestream(SOF_NAMES[marker], height, width, precision, components, complete)


def parse_jpeg2000(data: bytes) -> Codestream:
    """Reads the SIZ segment of a raw JPEG 2000 codestream or of the one inside a JP2 container.

    Raises:
        ValueError: there is no SIZ segment.
    """
    start = data.find(b"\xff\x4f\xff\x51")
    if start < 0 or len(data) < start + 44:
        raise ValueError("no JPEG 2000 size header")
    right, bottom, left, top = struct.unpack_from(">IIII", data, start + 8)
    components, precision = struct.unpack_from(">HB", data, start + 40)
    return Codestream("JPEG 2000", bottom - top, right - left, (precision & 0x7F) + 1, components, True)
