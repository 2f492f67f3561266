"""Draws films with their maps: side by side, over each other, or as contour lines; sign kept."""

import io

import numpy as np

STYLES = ("side_by_side", "overlay", "contour")
# The colours of kxray.io.overlay: red for, blue against.
_RED, _BLUE, _WHITE = (0.85, 0.1, 0.1), (0.1, 0.25, 0.9), (1.0, 1.0, 1.0)
_LEVELS = (0.25, 0.5, 0.75)
# Films of fewer pixels are enlarged by a whole number, so that the text beside them can be read.
_SMALLEST_PANEL = 400
_PANEL_INCHES = 4.0


def overlay(film, heatmap, style="side_by_side", colours=None, scale=None, opacity=0.6, title=None):
    """Draws one film with one map, at the film's own resolution.

    One stated normalisation: values are divided by `scale`, so that 0 stays where it is. A map with negative
    values gets colours that are symmetric about 0, any other map colours from 0 up.

    Args:
        film: float (H, W) or (H, W, 1) in [0, 1], bone bright.
        heatmap: float (h, w) or (h, w, C), signed and raw; channels are summed, and the sum is resized to
            (H, W) by bilinear interpolation with half-pixel centres, as tf.image.resize does.
        style: "side_by_side" (film, map, map over film), "overlay" (map over film, fading out towards 0) or
            "contour" (lines over the film at 25, 50 and 75 % of `scale`, dashed where negative).
        colours: name of a matplotlib colour map; by default blue over white to red for signed maps and white
            to red for others.
        scale: the value of full colour; by default the map's largest absolute value. Give one to draw several
            maps alike.
        opacity: of full colour over the film, in [0, 1].
        title: a line above the picture.

    Returns:
        matplotlib.figure.Figure with a colour bar in the map's own units. It belongs to no pyplot window;
        `figure.savefig(path)` or `png(figure)` keep every pixel of the film (enlarged by a whole number where
        its longer side has fewer than 400 pixels).

    Raises:
        ValueError: an unknown style or colour map, shapes that are no film and map, values that are not
            finite or no pixels.
    """
    pixels, values = _checked(film, heatmap)
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}; the known ones are: {', '.join(STYLES)}")
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must be in [0, 1], got {opacity!r}")
    signed = bool((values < 0).any())
    full = float(np.abs(values).max() or 1.0) if scale is None else scale
    if not 0 < full < np.inf:
        raise ValueError(f"scale must be a positive number, got {scale!r}")
    colour_map = _colour_map(colours, signed)
    shares = np.clip(resize(values, pixels.shape) / full, -1 if signed else 0, 1)
    drawn = {"side_by_side": ("film", "map", "overlay")}.get(style, (style,))
    figure, panels, bar = _canvas(pixels.shape, len(drawn), title)
    for axes, kind in zip(panels, drawn, strict=True):
        picture = np.repeat(pixels[..., None], 3, axis=2)
        if kind == "map":
            picture = colour_map(_place(shares, signed))[..., :3]
        elif kind == "overlay":
            inks = _inks(shares, colour_map, colours, signed)
            picture = picture + opacity * np.abs(shares)[..., None] * (inks - picture)
        axes.imshow(picture, interpolation="nearest")
        if kind == "contour":
            _draw_lines(axes, shares, colour_map, colours, signed)
        axes.set_axis_off()
    _draw_bar(figure, bar, colour_map, -full if signed else 0.0, full)
    return figure


def png(figure, resolution=None) -> bytes:
    """A figure as the bytes of a PNG file.

    Args:
        figure: matplotlib.figure.Figure.
        resolution: pixels an inch; by default the figure's own.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=resolution or figure.dpi)
    return buffer.getvalue()


def resize(values, shape):
    """Bilinear interpolation of (h, w) to `shape` with half-pixel centres, edges held.

    Equal to tf.image.resize(values[..., None], shape)[..., 0], without TensorFlow.
    """
    values = np.asarray(values, np.float32)
    for axis, wanted in enumerate(shape):
        given = values.shape[axis]
        places = np.clip((np.arange(wanted) + 0.5) * given / wanted - 0.5, 0, given - 1)
        before = np.floor(places).astype(int)
        after = np.minimum(before + 1, given - 1)
        share = np.expand_dims((places - before).astype(np.float32), 1 - axis)
        values = (1 - share) * values.take(before, axis) + share * values.take(after, axis)
    return values


def _checked(film, heatmap):
    pixels, values = np.asarray(film, np.float32), np.asarray(heatmap, np.float32)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim != 2 or values.ndim not in (2, 3) or not pixels.size or not values.size:
        raise ValueError(
            f"expected a film (H, W) or (H, W, 1) and a map (h, w) or (h, w, C), got {np.shape(film)} and "
            f"{np.shape(heatmap)}; draw the films of a batch one by one"
        )
    for name, array in (("film", pixels), ("map", values)):
        if not np.isfinite(array).all():
            raise ValueError(f"the {name} holds values that are not finite")
    if pixels.min() < 0 or pixels.max() > 1:
        raise ValueError(
            f"expected film pixels in [0, 1], got {pixels.min():g} to {pixels.max():g}; read films with "
            "kxray.read_image()"
        )
    return pixels, values.sum(axis=-1) if values.ndim == 3 else values


def _colour_map(name, signed):
    from matplotlib import colormaps
    from matplotlib.colors import LinearSegmentedColormap

    if name is None:
        ramp = (_BLUE, _WHITE, _RED) if signed else (_WHITE, _RED)
        return LinearSegmentedColormap.from_list("blue_white_red" if signed else "white_red", ramp)
    if name not in colormaps:
        raise ValueError(f"unknown matplotlib colour map {name!r}; for example: bwr, seismic, Reds, viridis")
    return colormaps[name]


def _place(shares, signed):
    """Where a share of full colour, -1 to 1 or 0 to 1, lies on a colour map, which goes from 0 to 1."""
    return (1 + shares) / 2 if signed else shares


def _inks(shares, colour_map, name, signed):
    """Colours (..., 3) over a film; the default ones pure, since their white is what opacity does."""
    pure = np.where(np.asarray(shares)[..., None] < 0, _BLUE, _RED)
    return pure if name is None else colour_map(_place(shares, signed))[..., :3]


def _draw_lines(axes, shares, colour_map, name, signed):
    levels = np.array([*(-level for level in reversed(_LEVELS)), *_LEVELS])
    # matplotlib warns of levels that the map never reaches.
    levels = levels[(levels > shares.min()) & (levels < shares.max())]
    if levels.size:
        styles = ["dashed" if level < 0 else "solid" for level in levels]
        inks = _inks(levels, colour_map, name, signed)
        axes.contour(shares, levels=levels, colors=inks, linestyles=styles, linewidths=1.0)


def _draw_bar(figure, axes, colour_map, low, high):
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = figure.colorbar(ScalarMappable(Normalize(low, high), colour_map), cax=axes)
    ticks = [low, 0.0, high] if low < 0 else [0.0, high]
    bar.set_ticks(ticks, labels=[f"{tick:.3g}" for tick in ticks])
    bar.ax.tick_params(labelsize=9)


def _canvas(shape, count, title):
    """A figure, `count` axes in which a film pixel covers whole pixels, and those of the bar."""
    from matplotlib.figure import Figure

    zoom = max(1, -(-_SMALLEST_PANEL // max(shape)))
    height, width = (zoom * side for side in shape)
    inch = max(height, width) / _PANEL_INCHES
    gap, bar, text, top = (round(share * inch) for share in (0.12, 0.15, 0.75, 0.35 if title else 0.12))
    whole = (gap + count * (width + gap) + bar + text, gap + height + top)
    # Matplotlib cuts sizes down to whole pixels, so a hair is added against rounding.
    figure = Figure(figsize=[(side + 0.01) / inch for side in whole], dpi=inch)

    def axes(left, wide):
        return figure.add_axes((left / whole[0], gap / whole[1], wide / whole[0], height / whole[1]))

    panels = [axes(gap + index * (width + gap), width) for index in range(count)]
    if title:
        figure.text(gap / whole[0], 1 - 0.25 * inch / whole[1], title, fontsize=10)
    return figure, panels, axes(gap + count * (width + gap), bar)
