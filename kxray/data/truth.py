"""Where a finding is on its film: the manifest's `masks` (files) and `boxes` cells as one boolean picture."""

import json
import math

import numpy as np


def truth_mask(row, shape, label=None, labels=()):
    """What a manifest row says about where things are.

    Args:
        row: of a table of `kxray.data.read_source`, with any of `masks`, JSON text {finding: mask picture},
            and `boxes`. Masks are preferred to boxes.
        shape: (height, width) of the film, in pixels.
        label: the class that a map explains.
        labels: all classes. Where findings of the row are named like classes, only those named `label` count;
            otherwise (a "bone" mask for the classes thin and thick) all of them do.

    Returns:
        bool (height, width), or None where the row names no place.

    Raises:
        ValueError: a cell or mask file that cannot be read, or a mask of another size than its film.
    """
    masks, boxes = _named_files(row.get("masks")), row.get("boxes")
    boxes = boxes if isinstance(boxes, (list, tuple)) else []
    findings = [*masks] if masks else [box["finding"] for box in boxes]
    if set(findings) & set(labels):
        findings = [finding for finding in findings if finding == label]
    if not findings:
        return None
    inside = np.zeros(shape, bool)
    if masks:
        for finding in findings:
            inside |= read_mask(masks[finding], shape)
        return inside
    for box in boxes:
        if box["finding"] in findings:
            left, top = max(0, math.floor(box["x"])), max(0, math.floor(box["y"]))
            right, bottom = math.ceil(box["x"] + box["width"]), math.ceil(box["y"] + box["height"])
            inside[top : max(0, bottom), left : max(0, right)] = True
    return inside


def find_masks(cell, film) -> dict[str, str]:
    """The masks of a film as {finding: path}; ValueError, naming the film, on a cell that is not that."""
    try:
        return _named_files(cell)
    except ValueError as error:
        raise ValueError(f"{film}: {error}") from None


def _named_files(cell) -> dict:
    if not isinstance(cell, str) or not cell.strip():
        return {}
    try:
        named = json.loads(cell)
    except ValueError:
        named = None
    if not isinstance(named, dict) or not all(isinstance(file, str) for file in named.values()):
        raise ValueError(f"masks must be JSON such as {{'bone': 'masks/1.png'}}, got {cell!r}")
    return named


def read_mask(path, shape) -> np.ndarray:
    """A mask picture as bool (height, width): what is not black.

    Args:
        path: of the picture.
        shape: (height, width) of its film, in pixels.

    Raises:
        ValueError: no readable picture, or one of another size than its film.
    """
    from PIL import Image

    try:
        with Image.open(path) as picture:
            mask = np.asarray(picture.convert("L")) > 0
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        raise ValueError(f"{path}: no readable mask") from None
    if mask.shape != tuple(shape):
        raise ValueError(f"{path}: a mask of {mask.shape}, its film is {tuple(shape)} pixels")
    return mask
