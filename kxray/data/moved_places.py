"""The boxes and masks of a film where they lie on the aligned film."""

import io

import numpy as np

from kxray.data.masks import picture_name
from kxray.data.similarity import quad_box
from kxray.data.truth import find_masks, read_mask
from kxray.io.files import write_whole

# Share of a moved box that must lie on the aligned film.
_LEAST_OF_A_BOX = 0.25


def move_box(box, pose, shape, size):
    """A box of a film on the aligned film: the upright box around its moved corners, cut off at the edges.

    Args:
        box: {"x", "y", "width", "height"} in pixels of the film.
        pose: Similarity of the film stretched to a square.
        shape: (H, W) of the film.
        size: side of the aligned film in pixels.

    Returns:
        A box in pixels of the aligned film, at least 1 pixel wide and high; None where less than a quarter of
        it would be left.
    """
    across, down = size / shape[1], size / shape[0]
    stretched = {"x": box["x"] * across, "y": box["y"] * down}
    stretched |= {"width": box["width"] * across, "height": box["height"] * down}
    moved = quad_box(pose.box_to_aligned(stretched, (size, size), (size, size)))
    left, top = max(0.0, moved["x"]), max(0.0, moved["y"])
    right, bottom = min(size, moved["x"] + moved["width"]), min(size, moved["y"] + moved["height"])
    left_of_it = max(0.0, right - left) * max(0.0, bottom - top)
    if left_of_it < _LEAST_OF_A_BOX * moved["width"] * moved["height"]:
        return None
    left, right = _a_pixel_wide(left, right, size)
    top, bottom = _a_pixel_wide(top, bottom, size)
    return {"x": left, "y": top, "width": right - left, "height": bottom - top}


def _a_pixel_wide(low, high, size):
    """An extent that is widened about its middle, within the film, where it is under a pixel."""
    if high - low >= 1:
        return low, high
    low = min(max(0.0, (low + high - 1) / 2), size - 1.0)
    return low, low + 1


def moved_boxes(row, pose, shape, size):
    """The boxes of a film on the aligned film, None for those outside."""
    boxes = row.get("boxes")
    moved = [(box["finding"], move_box(box, pose, shape, size)) for box in boxes or []]
    return [
        box and {"finding": finding, **{name: round(value, 2) for name, value in box.items()}}
        for finding, box in moved
    ]


def moved_masks(row, pose, shape, size):
    """{finding: bool (size, size)} of a film's masks; those outside are left out. ValueError on a bad one."""
    from PIL import Image

    moved = {}
    for finding, path in find_masks(row.get("masks"), row["path"]).items():
        mask = Image.fromarray(read_mask(path, shape).astype(np.uint8))
        square = np.asarray(mask.resize((2 * size, 2 * size), Image.Resampling.NEAREST), np.float32)
        inside = pose.warp(square, (size, size)) >= 0.5
        if inside.any():
            moved[finding] = inside
    return moved


def write_masks(masks, out, name):
    """Writes masks to masks/NAME/ and returns their places by finding."""
    places = {}
    for finding, inside in masks.items():
        place = f"masks/{name}/{picture_name(finding)}"
        while place.lower() in [other.lower() for other in places.values()]:
            place = place[: -len(".png")] + "-.png"
        (out / place).parent.mkdir(exist_ok=True)
        _write_mask(out / place, inside)
        places[finding] = place
    return places


def _write_mask(path, inside):
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(inside.astype(np.uint8) * 255).save(buffer, "PNG")
    write_whole(path, buffer.getvalue())
