"""Where the lungs and the heart lie on a template of chest films."""

import numpy as np


def template_regions(template) -> dict[str, np.ndarray]:
    """Where the lungs and the heart lie on a template.

    The lungs are the two dark fields beside the middle (Otsu's threshold, 1979, of the mean film within the
    chest); the heart lies between their lower halves.

    Args:
        template: Template.

    Returns:
        {"right_lung", "left_lung", "heart"}: bool (s, s). The patient's right lung lies at the left of the
        film. Empty masks where a template shows no two lungs.
    """
    from scipy import ndimage
    from skimage.filters import threshold_otsu

    size = template.size
    across, down = np.meshgrid((np.arange(size) + 0.5) / size - 0.5, (np.arange(size) + 0.5) / size - 0.5)
    # Air around the chest is as dark as that in it.
    chest = (np.abs(across) < 0.42) & (np.abs(down) < 0.45)
    dark = template.contrast < threshold_otsu(template.contrast[chest])
    dark = ndimage.binary_opening(dark & chest, iterations=max(1, size // 48))
    regions = {}
    for name, side in (("right_lung", across < -0.02), ("left_lung", across > 0.02)):
        regions[name] = _largest(dark & side, size)
    regions["heart"] = np.zeros((size, size), bool)
    if all(regions[name].any() for name in ("right_lung", "left_lung")):
        regions["heart"] = _between(regions["right_lung"], regions["left_lung"])
    return regions


def _largest(mask, size):
    from scipy import ndimage

    parts, count = ndimage.label(mask)
    if not count:
        return mask
    areas = ndimage.sum_labels(mask, parts, np.arange(1, count + 1))
    if areas.max() < 0.01 * size**2:
        return np.zeros_like(mask)
    whole = parts == 1 + int(np.argmax(areas))
    # Ribs and vessels leave gaps in it.
    whole = ndimage.binary_closing(np.pad(whole, size // 8), iterations=size // 32)
    return ndimage.binary_fill_holes(whole)[size // 8 : -(size // 8), size // 8 : -(size // 8)]


def _between(right, left):
    """What lies between two lungs in the lower 45% of the height that both have."""
    size = len(right)
    rows = np.flatnonzero((right | left).any(axis=1))
    top, bottom = rows[0], min(np.flatnonzero(lung.any(axis=1))[-1] for lung in (right, left))
    edges = []
    for row in range(round(top + 0.55 * (rows[-1] - top)), bottom + 1):
        inner, outer = np.flatnonzero(right[row]), np.flatnonzero(left[row])
        if len(inner) and len(outer):
            edges.append((row, inner[-1] + 1, outer[0]))
    found = np.zeros_like(right)
    # Below the domes of the diaphragm a lung's edge is far out; the heart is not.
    first = np.median([start for _, start, _ in edges] or [0]) - size // 16
    last = np.median([end for _, _, end in edges] or [0]) + size // 6
    for row, start, end in edges:
        found[row, int(max(start, first)) : int(min(end, last))] = True
    return found
