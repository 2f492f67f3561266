"""A signed map as a 16-bit PNG: what any viewer shows, and numbers that can be had back."""

import io

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

_LARGEST = 65535


def map_coding(heatmap):
    """The linear coding of a map's range: value = offset + scale * code, codes 0 to 65535.

    Args:
        heatmap: float (h, w), signed.

    Returns:
        (scale, offset): floats, in the map's unit. The scale is 0 for a map of one value.

    Raises:
        ValueError: not (h, w), or values that are not finite.
    """
    heatmap = np.asarray(heatmap)
    if heatmap.ndim != 2 or 0 in heatmap.shape or heatmap.dtype.kind != "f":
        raise ValueError(f"expected a float map (h, w), got {heatmap.dtype} {heatmap.shape}")
    low, high = float(heatmap.min()), float(heatmap.max())
    scale = (high - low) / _LARGEST
    if not np.isfinite(scale):
        raise ValueError("the map holds values that are not finite")
    return scale, low


def encode_map_png16(heatmap) -> bytes:
    """Encodes a signed map as a 16-bit grey PNG whose text chunks `scale` and `offset` undo it.

    Args:
        heatmap: float (h, w), signed and raw; the smallest value becomes 0, the largest 65535.

    Returns:
        The PNG. `decode_map_png16` gives the map back to half a step, scale / 2.

    Raises:
        ValueError: not (h, w), or values that are not finite.
    """
    scale, offset = map_coding(heatmap)
    steps = (np.asarray(heatmap, np.float64) - offset) / scale if scale else np.zeros(np.shape(heatmap))
    facts = PngInfo()
    facts.add_text("scale", repr(scale))
    facts.add_text("offset", repr(offset))
    buffer = io.BytesIO()
    codes = np.clip(np.rint(steps), 0, _LARGEST).astype(np.uint16)
    Image.fromarray(codes).save(buffer, "PNG", pnginfo=facts)
    return buffer.getvalue()


def decode_map_png16(source):
    """Reads a map that `encode_map_png16` wrote.

    Args:
        source: path, or the PNG's bytes.

    Returns:
        float64 (h, w), signed.

    Raises:
        ValueError: a picture without the two text chunks.
    """
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
        try:
            scale, offset = (float(picture.text[name]) for name in ("scale", "offset"))
        except (AttributeError, KeyError, ValueError):
            raise ValueError("expected a PNG of encode_map_png16 with the texts scale and offset") from None
        return offset + scale * np.asarray(picture, np.float64)
