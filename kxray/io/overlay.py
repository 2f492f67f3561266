"""Draws a signed map over a film: red for, blue against, grey where the map is silent."""

import numpy as np
from PIL import Image


def overlay(pixels, heatmap, strength=0.6):
    """Blends a map over its film with sign kept and one stated normalisation.

    The map is divided by its largest absolute value, so that 0 stays colourless and the strongest place is
    fully coloured; a map of zeros leaves the film grey.

    Args:
        pixels: float (H, W) in [0, 1], bone bright.
        heatmap: float (h, w), any finite range; resized to (H, W) by bilinear interpolation.
        strength: opacity of the strongest place, in [0, 1].

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        ValueError: shapes that are not two-dimensional, or a map that is not finite.
    """
    pixels = np.asarray(pixels, dtype=np.float32)
    heatmap = np.asarray(heatmap, dtype=np.float32)
    if pixels.ndim != 2 or heatmap.ndim != 2:
        raise ValueError(f"expected a film (H, W) and a map (h, w), got {pixels.shape} and {heatmap.shape}")
    if not np.isfinite(heatmap).all():
        raise ValueError("the map holds values that are not finite")
    height, width = pixels.shape
    resized = np.asarray(Image.fromarray(heatmap).resize((width, height), Image.Resampling.BILINEAR))
    peak = np.abs(heatmap).max()
    signed = resized / peak if peak > 0 else np.zeros_like(resized)
    opacity = (strength * np.abs(signed))[..., None]
    red, blue = np.float32([0.85, 0.1, 0.1]), np.float32([0.1, 0.25, 0.9])
    colour = np.where(signed[..., None] >= 0, red, blue)
    blended = (1 - opacity) * pixels[..., None] + opacity * colour
    return np.round(np.clip(blended, 0, 1) * 255).astype(np.uint8)
