"""An explanation as one picture: the map over its film, the maps of every stage, or the film changed."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from kxray.io.overlay import overlay

# Longer side of a panel where there are several: captions need room, and maps have few points.
_MIN_PANEL, _MAX_PANEL = 320, 1024
_INK = (235, 235, 235)
_BOX_INK = (255, 220, 60)
# Of absolute values: from here on pixelwise maps, of which a few pixels stand out, have full colour.
_PERCENTILE = 99.5


def draw(pixels, explanation) -> Image.Image:
    """Draws an explanation over its film: red speaks for the explained label, blue against it.

    Every map is divided by its own largest absolute value, so that 0 stays grey and signs are kept; a map
    with a value for every pixel by the 99.5th percentile of its absolute values, and cut off at full colour.
    Where the explanation has a box, its outline is drawn in yellow.

    Args:
        pixels: float (H, W) in [0, 1], bone bright.
        explanation: a serving.client.Explanation.

    Returns:
        RGB image. Without stages: the film at its own size. With stages: a row of panels, at least 320 and at
        most 1,024 pixels on the longer side, the combined map first, each under its name, its relevance
        weight and the value that full colour stands for; and a colour bar.
    """
    if not explanation.stage_names:
        full = _full_colour(explanation)
        picture = Image.fromarray(overlay(pixels, np.clip(explanation.heatmap, -full, full)))
        _draw_box(picture, explanation.details.get("box"))
        return picture
    film = _panel_film(np.asarray(pixels, np.float32))
    rows = zip(explanation.stage_names, explanation.relevance_weights, explanation.stage_maps, strict=True)
    panels = [
        (f"{explanation.explained_label}: all stages", explanation.heatmap),
        *((f"{name}: weight {weight:.3f}", stage_map) for name, weight, stage_map in rows),
    ]
    captions = [f"{title}\nfull colour: {np.abs(values).max():.3g}" for title, values in panels]
    pictures = [overlay(film, values) for _, values in panels]
    return _row([*captions, "for: +full\nagainst: -full"], [*pictures, _colour_bar(film.shape[0])])


def draw_counterfactual(pixels, answer, along=()) -> Image.Image:
    """Draws a counterfactual as a strip: film, counterfactual, difference, mask; and the way between.

    The difference lies over the film, red where the counterfactual is brighter and blue where it is darker,
    with full colour from the 99.5th percentile of its absolute values on. The mask is white where it is 1.

    Args:
        pixels: float (H, W), the film that was sent: all panels have its proportions.
        answer: a serving.client.Counterfactual.
        along: (t, film (h, w), probability by label) of each film on the way from film to counterfactual,
            for a second row.

    Returns:
        RGB image; panels have at least 320 and at most 1,024 pixels on the longer side.
    """
    label, before, after = answer.label, answer.prediction.probabilities, answer.probabilities_after

    def panel(values):
        return _resized(values, np.shape(pixels), max(answer.film.shape))

    def grey(values):
        return overlay(panel(values), np.zeros((1, 1)))

    full = _full_of(answer.difference)
    difference = overlay(panel(answer.film), np.clip(answer.difference, -full, full))
    panels = {
        f"film\n{label}: {before[label]:.3f}": grey(answer.film),
        f"asked for: {answer.target}\n{label}: {after[label]:.3f}, {_told(answer)}": grey(
            answer.counterfactual
        ),
        f"difference\nfull colour: {full:.3g}": difference,
        "brighter: +full\ndarker: -full": _colour_bar(difference.shape[0]),
        f"mask\nmean: {answer.mask.mean():.3g}": grey(answer.mask),
    }
    rows = [_row(list(panels), list(panels.values()))]
    if along:
        captions = [f"t = {t:.2f}\n{label}: {said[label]:.3f}" for t, _, said in along]
        rows.append(_row(captions, [grey(film) for _, film, _ in along]))
    sheet = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)))
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    return sheet


def describe_counterfactual(answer) -> str:
    """What `draw_counterfactual` shows, in one line."""
    before, after = answer.prediction.probabilities[answer.label], answer.probabilities_after[answer.label]
    return (
        f"counterfactual for {answer.target}, {_told(answer)}; {answer.label} {before:.6g} -> {after:.6g}; "
        f"difference brighter (red) and darker (blue), mean absolute {np.abs(answer.difference).mean():.6g}, "
        f"full colour from {_full_of(answer.difference):.6g}; mean mask {answer.mask.mean():.6g}"
    )


def _told(answer):
    return "reached" if answer.reached else "not reached"


def describe(explanation) -> str:
    """What `draw` shows, in one line: the label, the peaks that full colour stands for, weights, the box."""
    whole = f"for (red) and against (blue) {explanation.explained_label}; peak {_peak(explanation.heatmap)}"
    if explanation.pixelwise and not explanation.stage_names:
        whole += f", full colour from {_full_colour(explanation):.6g} (99.5th percentile of absolute values)"
    rows = zip(explanation.stage_names, explanation.relevance_weights, explanation.stage_maps, strict=True)
    stages = [f"{name}: weight {weight:.6g}, peak {_peak(values)}" for name, weight, values in rows]
    return "; ".join([whole, *stages, *_placed(explanation.details)])


def _placed(details):
    """Of the box and the alignment, where there are some."""
    if "box" in details:
        x, y, width, height = (f"{side:.6g}" for side in details["box"])
        yield f"box {width} x {height} pixels at {x}, {y}" if details["box"][2] > 0 else "no box"
    if "alignment_confidence" in details:
        confidence = float(details["alignment_confidence"])
        yield f"alignment confidence {confidence:.2f}" + (" (not a chest as expected)" * (confidence < 0.5))


def _draw_box(picture, box):
    if box is None or not box[2] > 0:
        return
    x, y, width, height = map(float, box)
    thickness = max(1, round(max(picture.size) / 300))
    left, top = round(x), round(y)
    # The last pixels inside: at least one.
    right, bottom = max(left, round(x + width) - 1), max(top, round(y + height) - 1)
    ImageDraw.Draw(picture).rectangle([left, top, right, bottom], outline=_BOX_INK, width=thickness)


def _full_colour(explanation):
    return _full_of(explanation.heatmap) if explanation.pixelwise else np.abs(explanation.heatmap).max()


def _full_of(values):
    absolute = np.abs(values)
    # 0 where nearly all of a map is silent.
    return np.percentile(absolute, _PERCENTILE) or absolute.max()


def _peak(values):
    return f"{np.abs(values).max():.6g}"


def _panel_film(pixels):
    return _resized(pixels, pixels.shape, max(pixels.shape))


def _resized(values, proportions, longer):
    """Values (h, w) with the proportions of a film and about `longer` pixels on the longer side."""
    scale = np.clip(longer, _MIN_PANEL, _MAX_PANEL) / max(proportions)
    height, width = (max(1, round(side * scale)) for side in proportions)
    resized = Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR)
    return np.clip(np.asarray(resized), 0, 1)


def _colour_bar(height):
    ramp = np.linspace(1, -1, height, dtype=np.float32)[:, None]
    return overlay(np.full((height, max(12, height // 24)), 0.5, np.float32), ramp)


def _row(captions, pictures):
    """Pictures (H, w_i, 3) side by side, each under its caption."""
    height = pictures[0].shape[0]
    font = ImageFont.load_default(size=int(np.clip(height // 24, 13, 30)))
    gap = int(font.size)
    top = 3 * gap + gap // 2
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    boxes = [pen.multiline_textbbox((0, 0), caption, font=font) for caption in captions]
    widths = [
        max(picture.shape[1], int(np.ceil(box[2]))) for picture, box in zip(pictures, boxes, strict=True)
    ]
    sheet = Image.new("RGB", (sum(widths) + gap * (len(widths) + 1), top + height + gap))
    pen = ImageDraw.Draw(sheet)
    left = gap
    for caption, picture, width in zip(captions, pictures, widths, strict=True):
        pen.multiline_text((left, gap // 2), caption, fill=_INK, font=font)
        sheet.paste(Image.fromarray(picture), (left, top))
        left += width + gap
    return sheet
