"""Burned-in text, side markers, redaction boxes and blank strips at the borders of films.

They say who made a film and where, not what it shows; a network reads them all the same (Zech et al., 2018:
laterality markers told the hospital, and with it the disease).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

KINDS = ("text", "box", "strip")
APPEARANCE_SIDE = 16
# Larger films are looked at with every n-th pixel, which keeps constant areas constant and strokes bright.
LONGEST_SIDE = 1024
BORDER_SHARE = 0.22

_FLAT = 1.5 / 255
_LEAST_STEP = 0.04
_SAME_APPEARANCE = 0.75
# Letters have few shapes; of more, the rest is noise, and each would be compared with all of them.
_MOST_SHAPES = 2000


@dataclasses.dataclass(frozen=True, eq=False)
class Marker:
    """Something at the border of a film that no patient put there.

    Attributes:
        kind: "text" (letters, signs, lead markers), "box" (a rectangle of one grey value) or "strip" (a side
            of the film that is blank along its whole length).
        x, y, width, height: in pixels of the film, origin top left.
        tone: its grey value, in [0, 1].
        place: "top left", "top", "top right", "left", "right", "bottom left", "bottom" or "bottom right"; the
            side for a strip.
        appearance: uint8 (16, 16), the text's shape stretched to 0..255; zeros for a box or strip.
    """

    kind: str
    x: int
    y: int
    width: int
    height: int
    tone: float
    place: str
    appearance: np.ndarray


def find_markers(pixels: np.ndarray) -> list[Marker]:
    """Text, boxes and blank strips at the borders of a film.

    Text: connected strokes that stand out of their surroundings on all sides (white or black top-hat, then a
    step of at least 0.2 between the darker quarter of the strokes and the brighter quarter of their rim), of
    the size of letters and within the outer 22% of a side. Neighbours on a line are one marker. Box: a
    rectangle of one grey value with a step to the film on each of its inner sides. Strip: a margin of one
    grey value along a whole side, of at least 1% of it.

    Args:
        pixels: float (H, W) in [0, 1].

    Returns:
        Markers, texts first.

    Raises:
        ValueError: not one grey film.
    """
    pixels = np.asarray(pixels, np.float32)
    if pixels.ndim != 2 or not pixels.size:
        raise ValueError(f"expected one grey film (H, W), got an array of shape {pixels.shape}")
    step = -(-max(pixels.shape) // LONGEST_SIDE)
    small = pixels[::step, ::step]
    if min(small.shape) < 16:
        return []
    strips, inner = _strips(small)
    top, left = inner[0].start, inner[1].start
    field = small[inner]
    if min(field.shape) < 16:
        return [_marker("strip", *strip, small, step) for strip in strips]
    boxes = [(y + top, x + left, height, width) for y, x, height, width in _boxes(field)]
    texts = _texts(small)
    # The ground between the strokes of a letter is flat too.
    boxes = [box for box in boxes if not any(_is_part(box, text) for text in texts)]
    found = [_marker("text", *text, small, step) for text in texts]
    found += [_marker("box", *box, small, step) for box in boxes]
    return found + [_marker("strip", *strip, small, step) for strip in strips]


def marker_properties(
    markers: Sequence[Sequence[Marker]], shapes: Sequence[Sequence[int]] | None = None, *, least: int = 5
) -> dict[str, np.ndarray]:
    """What can be said of the markers of each film, as properties of few values for `association`.

    Args:
        markers: of each film, from `find_markers`.
        shapes: theirs, from `marker_shapes`, where they are known already.
        least: films that must differ from the rest for a property to be worth testing.

    Returns:
        Property to str (N,), "yes" or "no": "text top left" (any text there), "box bottom", "strip left",
        ..., and "text like #3 (mostly top right)": a text of the third most frequent shape, wherever it is.
    """
    found = {}
    for kind in KINDS:
        places = sorted({marker.place for film in markers for marker in film if marker.kind == kind})
        of_kind = {f"any {kind}": [any(m.kind == kind for m in film) for film in markers]} if places else {}
        for place in places:
            of_kind[f"{kind} {place}"] = [
                any(m.kind == kind and m.place == place for m in film) for film in markers
            ]
        found |= of_kind
    shapes = marker_shapes(markers) if shapes is None else shapes
    for number in sorted({shape for film in shapes for shape in film if shape > 0}):
        places = [
            marker.place
            for film, numbers in zip(markers, shapes, strict=True)
            for marker, shape in zip(film, numbers, strict=True)
            if shape == number
        ]
        place = max(sorted(set(places)), key=places.count)
        found[f"text like #{number} (mostly {place})"] = [number in film for film in shapes]
    answers = {name: np.where(present, "yes", "no") for name, present in found.items()}
    return {name: a for name, a in answers.items() if least <= (a == "yes").sum() <= len(a) - least}


def marker_shapes(markers: Sequence[Sequence[Marker]], *, most: int = 12) -> list[list[int]]:
    """Number of each marker's shape: 1 the most frequent, ...; 0 a rare shape, or no text.

    A text belongs to the shape whose first picture it is most like, if the two correlate by at least 0.75,
    else it starts a shape of its own; after 2,000 shapes none is started.
    """
    leaders, count, numbers = np.zeros((64, APPEARANCE_SIDE**2), np.float32), 0, []
    for film in markers:
        of_film = []
        for marker in film:
            if marker.kind != "text":
                of_film.append(-1)
                continue
            picture = marker.appearance.astype(np.float32).ravel()
            picture -= picture.mean()
            picture /= max(float(np.linalg.norm(picture)), 1e-6)
            alike = leaders[:count] @ picture
            if count and alike.max() >= _SAME_APPEARANCE:
                of_film.append(int(alike.argmax()))
            elif count == _MOST_SHAPES:
                of_film.append(-1)
            else:
                if count == len(leaders):
                    leaders = np.concatenate([leaders, np.zeros_like(leaders)])
                leaders[count] = picture
                of_film.append(count)
                count += 1
        numbers.append(of_film)
    counts = np.bincount([n for film in numbers for n in set(film) if n >= 0], minlength=count)
    frequent = [int(n) for n in np.argsort(-counts, kind="stable")[:most] if counts[n] > 1]
    rank = {number: k + 1 for k, number in enumerate(frequent)}
    return [[rank.get(number, 0) for number in film] for film in numbers]


def _marker(kind, y, x, height, width, small, step) -> Marker:
    window = small[y : y + height, x : x + width]
    appearance = np.zeros((APPEARANCE_SIDE, APPEARANCE_SIDE), np.uint8)
    tone = float(np.median(window))
    if kind == "text":
        # The strokes, not the ground between them.
        rim = float(np.median(_rim(small, y, x, height, width)))
        tone = float(max(window.max(), window.min(), key=lambda value: abs(value - rim)))
        appearance = _stretched(window if tone > rim else -window)
    place = (
        _side(y, x, height, width, small.shape)
        if kind == "strip"
        else _place(y + height / 2, x + width / 2, small.shape)
    )
    return Marker(kind, x * step, y * step, width * step, height * step, tone, place, appearance)


def _stretched(window):
    from PIL import Image

    side = APPEARANCE_SIDE
    low, high = float(window.min()), float(window.max())
    grey = Image.fromarray((window - low) / max(high - low, 1e-6))
    grey = np.asarray(grey.resize((side, side), Image.Resampling.BILINEAR))
    return np.round(grey * 255).clip(0, 255).astype(np.uint8)


def _place(y, x, shape):
    vertical = ("top", "", "bottom")[min(2, int(3 * y / shape[0]))]
    horizontal = ("left", "", "right")[min(2, int(3 * x / shape[1]))]
    return f"{vertical} {horizontal}".strip() or "middle"


def _side(y, x, height, width, shape):
    if width == shape[1]:
        return "top" if y == 0 else "bottom"
    return "left" if x == 0 else "right"


def _rim(pixels, y, x, height, width, reach=2):
    outer = pixels[max(0, y - reach) : y + height + reach, max(0, x - reach) : x + width + reach].copy()
    inner_y, inner_x = y - max(0, y - reach), x - max(0, x - reach)
    mask = np.ones(outer.shape, bool)
    mask[inner_y : inner_y + height, inner_x : inner_x + width] = False
    return outer[mask] if mask.any() else outer.ravel()


def _is_part(box, text):
    """Whether a box meets a text and is not much larger."""
    apart = any(box[k] >= text[k] + text[k + 2] or text[k] >= box[k] + box[k + 2] for k in (0, 1))
    return not apart and box[2] * box[3] <= 4 * text[2] * text[3]


def _strips(pixels):
    """Blank margins (y, x, height, width), and the slices of the film between them."""
    height, width = pixels.shape
    depth = []
    for lines in (pixels, pixels[::-1], pixels.T, pixels.T[::-1]):
        tone = float(np.median(lines[0]))
        # One corner pixel may differ; a compressed margin ripples.
        blank = np.mean(np.abs(lines - tone) <= _FLAT, axis=1) >= 0.995
        count = len(lines) if blank.all() else int(np.argmin(blank))
        # A film that is flat as far as its middle has no margin, it shows little.
        depth.append(count if max(2, 0.01 * len(lines)) <= count <= 0.4 * len(lines) else 0)
    top, bottom, left, right = depth
    found = [(0, 0, top, width), (height - bottom, 0, bottom, width)]
    found += [(0, 0, height, left), (0, width - right, height, right)]
    found = [strip for strip in found if strip[2] and strip[3]]
    return found, (slice(top, height - bottom), slice(left, width - right))


def _boxes(pixels):
    """Rectangles of one grey value, (y, x, height, width)."""
    shape = pixels.shape
    least = max(3, round(0.015 * max(shape)))
    spread = ndimage.maximum_filter(pixels, 3, mode="nearest") - ndimage.minimum_filter(
        pixels, 3, mode="nearest"
    )
    numbers, _ = ndimage.label(spread <= _FLAT)
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(numbers), start=1):
        # The rim of a rectangle is not flat: it is one pixel larger, but at the edge of the film.
        y, x = max(0, rows.start - 1), max(0, columns.start - 1)
        bottom, right = min(shape[0], rows.stop + 1), min(shape[1], columns.stop + 1)
        height, width = bottom - y, right - x
        if min(height, width) < least or height * width < 4 * least**2 or height * width > 0.2 * pixels.size:
            continue
        if not _near_border(y + height / 2, x + width / 2, shape):
            continue
        if np.mean(numbers[rows, columns] == number) < 0.95:
            continue
        tone = float(np.median(pixels[y:bottom, x:right]))
        if np.mean(np.abs(pixels[y:bottom, x:right] - tone) <= 2 * _FLAT) < 0.97:
            continue
        sides = []
        if y > 1:
            sides.append(pixels[y - 2, x:right])
        if bottom < shape[0] - 1:
            sides.append(pixels[bottom + 1, x:right])
        if x > 1:
            sides.append(pixels[y:bottom, x - 2])
        if right < shape[1] - 1:
            sides.append(pixels[y:bottom, right + 1])
        steps = [np.mean(np.abs(side - tone) >= _LEAST_STEP) for side in sides]
        # A white box may run into a white belly for a while.
        if len(steps) >= 2 and min(steps) >= 0.4 and np.mean(steps) >= 0.75:
            found.append((y, x, height, width))
    return found


def _near_border(y, x, shape, share=BORDER_SHARE):
    return min(y / shape[0], 1 - y / shape[0], x / shape[1], 1 - x / shape[1]) <= share


def _texts(pixels):
    """Lines of glyphs (y, x, height, width)."""
    side = max(pixels.shape)
    reach = max(5, round(0.025 * side) | 1)
    glyphs = []
    for image in (pixels, 1 - pixels):
        hat = image - ndimage.grey_opening(image, reach, mode="nearest")
        numbers, _ = ndimage.label(hat > 0.2, np.ones((3, 3)))
        for number, box in enumerate(ndimage.find_objects(numbers), start=1):
            if _is_glyph(image, numbers, number, box, side):
                rows, columns = box
                size = (rows.stop - rows.start, columns.stop - columns.start)
                glyphs.append((rows.start, columns.start, *size))
    return _lines(glyphs)


def _is_glyph(image, numbers, number, box, side):
    rows, columns = box
    height, width = rows.stop - rows.start, columns.stop - columns.start
    least, most = max(5, 0.014 * side), 0.12 * side
    if not least <= height <= most or width > 2.5 * most or width < 0.15 * height:
        return False
    if (
        rows.start < 1
        or columns.start < 1
        or rows.stop > image.shape[0] - 1
        or columns.stop > image.shape[1] - 1
    ):
        return False
    if not _near_border((rows.start + rows.stop) / 2, (columns.start + columns.stop) / 2, image.shape):
        return False
    around = (
        slice(max(0, rows.start - 3), rows.stop + 3),
        slice(max(0, columns.start - 3), columns.stop + 3),
    )
    strokes, window = numbers[around] == number, image[around]
    grown = ndimage.binary_dilation(strokes, np.ones((3, 3)))
    rim = ndimage.binary_dilation(grown, np.ones((3, 3)), iterations=2) & ~grown
    if not rim.any():
        return False
    inside, outside = np.percentile(window[strokes], 25), np.percentile(window[rim], 75)
    return bool(inside - outside >= 0.2)


def _lines(glyphs):
    """Glyphs that stand beside each other at one height, joined."""
    lines = []
    for y, x, height, width in sorted(glyphs, key=lambda glyph: glyph[1]):
        for k, (top, left, tall, wide) in enumerate(lines):
            overlap = min(y + height, top + tall) - max(y, top)
            if overlap >= 0.5 * min(height, tall) and x - (left + wide) <= 1.2 * max(height, tall):
                first, bottom = min(y, top), max(y + height, top + tall)
                lines[k] = (first, left, bottom - first, max(x + width, left + wide) - left)
                break
        else:
            lines.append((y, x, height, width))
    # One upright stroke alone is more often the gap beside an arm than a letter.
    return sorted(line for line in lines if line[3] >= 0.35 * line[2])
