"""Where a finding is on its film: the manifest's `masks` (files) and `boxes` cells as one boolean picture."""

import json
import math
import os
from pathlib import Path

import numpy as np


def truth_mask(row, folder, shape, label=None, labels=()):
    """What a manifest row says about where things are.

    Args:
        row: mapping with any of `masks`, JSON text {finding: file of a mask picture, relative to `folder`},
            and `boxes`, the list of the manifest. Masks are preferred to boxes.
        folder: folder of the manifest.
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
            inside |= _mask_file(Path(folder, masks[finding]), shape)
        return inside
    for box in boxes:
        if box["finding"] in findings:
            left, top = max(0, math.floor(box["x"])), max(0, math.floor(box["y"]))
            right, bottom = math.ceil(box["x"] + box["width"]), math.ceil(box["y"] + box["height"])
            inside[top : max(0, bottom), left : max(0, right)] = True
    return inside


def find_masks(cell, film) -> dict[str, str]:
    """The masks of a manifest's cell as {finding: absolute path}.

    Paths in the cell are relative to the manifest, which stands in the film's folder or in one above it.
    """
    try:
        named = _named_files(cell)
    except ValueError as error:
        raise ValueError(f"{film}: {error}") from None
    found = {}
    for finding, path in named.items():
        places = [Path(os.path.normpath(folder / path)) for folder in Path(film).parents]
        found[finding] = str(next((place for place in places if place.is_file()), places[0]))
    return found


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


def _mask_file(path, shape):
    from PIL import Image

    try:
        with Image.open(path) as picture:
            mask = np.asarray(picture.convert("L")) > 0
    except OSError:
        raise ValueError(f"{path}: no readable mask") from None
    if mask.shape != tuple(shape):
        raise ValueError(f"{path}: a mask of {mask.shape}, its film is {tuple(shape)} pixels")
    return mask
