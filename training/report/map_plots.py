"""The figures of a report that show maps: which stage counts, where, and where two classes compete."""

import dataclasses

import numpy as np

from training.report.plots import inline, inline_films

# The colours of kxray.io.overlay: red for, blue against.
_RED, _BLUE = (0.85, 0.1, 0.1), (0.1, 0.25, 0.9)


@dataclasses.dataclass(frozen=True)
class DrawnFilm:
    """One row of the gallery.

    Attributes:
        pixels: (H, W) in [0, 1].
        group: what the row is an example of.
        caption: of the film.
        explains: name of the label that the map speaks for; `label` is its index.
        heatmap: (h, w), the combined map.
        parts: S maps (h_s, w_s) that add up to it.
    """

    pixels: np.ndarray
    group: str
    caption: str
    explains: str
    label: int
    heatmap: np.ndarray
    parts: tuple


def _signed(alpha):
    """A colour map from blue over nothing to red; `alpha` is the opacity of its ends, or 1 on white."""
    from matplotlib.colors import LinearSegmentedColormap

    if alpha == 1:
        return LinearSegmentedColormap.from_list("signed", [_BLUE, (1, 1, 1), _RED])
    ends = [(0, (*_BLUE, alpha)), (0.5, (*_BLUE, 0)), (0.5, (*_RED, 0)), (1, (*_RED, alpha))]
    return LinearSegmentedColormap.from_list("over_film", ends)


def _over_film(axis, pixels, heatmap, colours, low, high):
    height, width = pixels.shape
    extent = (-0.5, width - 0.5, height - 0.5, -0.5)
    axis.imshow(pixels, cmap="gray", vmin=0, vmax=1)
    axis.imshow(heatmap, cmap=colours, vmin=low, vmax=high, extent=extent, interpolation="bilinear")


def relevance_bars(weights, stages, labels) -> str:
    """Layer relevance weights (S, L): one group of bars a class, one bar a stage."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    num_stages, num_labels = weights.shape
    figure = Figure(figsize=(min(9.0, max(4.6, 1.8 + 0.36 * num_labels * (num_stages + 1))), 3.1))
    axis = figure.subplots()
    width = 0.8 / num_stages
    for index, (stage, row) in enumerate(zip(stages, weights, strict=True)):
        places = np.arange(num_labels) + (index - (num_stages - 1) / 2) * width
        shade = colormaps["Blues"](0.35 + 0.6 * index / max(1, num_stages - 1))
        bars = axis.bar(places, row, width * 0.94, color=shade, label=stage)
        if num_labels * num_stages <= 20:
            axis.bar_label(bars, [f"{value:.2f}" for value in row], fontsize=8, padding=1)
    axis.axhline(0, color="black", linewidth=0.6)
    long = num_labels > 8 or max(map(len, labels)) * num_labels > 60
    axis.set_xticks(range(num_labels), labels, **({"rotation": 35, "ha": "right"} if long else {}))
    axis.set_ylabel("relevance weight")
    axis.margins(y=0.12)
    axis.spines[["top", "right"]].set_visible(False)
    # Beside the bars, so that no bar is hidden whatever their heights.
    axis.legend(title="stage, shallow to deep", fontsize=8, title_fontsize=8, loc="center left",
                bbox_to_anchor=(1.01, 0.5), frameon=False)  # fmt: skip
    return inline(figure)


def gallery(films, stages, weights) -> str:
    """A row a film: the film, its multi-scale CAM over it, and what each stage adds to that map.

    All maps of a row have one scale: the largest absolute value among them is full colour.

    Args:
        films: list of DrawnFilm.
        stages: S names.
        weights: (S, L), layer relevance weights.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    columns = 2 + len(stages)
    figure = Figure(figsize=(1.75 * columns + 0.9, 2.12 * len(films)))
    grid = figure.add_gridspec(
        len(films), columns + 1, width_ratios=[1] * columns + [0.06],
        left=0.035, right=0.93, top=1 - 0.36 / (2.12 * len(films)), bottom=0.05 / len(films),
        wspace=0.07, hspace=0.27,
    )  # fmt: skip
    for row, film in enumerate(films):
        largest = max(np.abs(film.heatmap).max(), *(np.abs(part).max() for part in film.parts)) or 1.0
        axes = [figure.add_subplot(grid[row, column]) for column in range(columns)]
        axes[0].imshow(film.pixels, cmap="gray", vmin=0, vmax=1)
        axes[0].set_title(film.caption, fontsize=8)
        axes[0].set_ylabel(film.group, fontsize=9, color=_RED if film.group == "wrong" else "black")
        _over_film(axes[1], film.pixels, film.heatmap, _signed(0.65), -largest, largest)
        axes[1].set_title(f"multi-scale CAM\nfor {film.explains}", fontsize=8)
        height, width = film.pixels.shape
        for axis, stage, part, weight in zip(
            axes[2:], stages, film.parts, weights[:, film.label], strict=True
        ):
            axis.imshow(part, cmap=_signed(1), vmin=-largest, vmax=largest, extent=(0, width, height, 0))
            axis.set_title(f"{stage}, {part.shape[0]} x {part.shape[1]}\nweight {weight:.2f}", fontsize=8)
        for axis in axes:
            axis.set_xticks([])
            axis.set_yticks([])
        bar = figure.colorbar(
            ScalarMappable(Normalize(-largest, largest), _signed(1)), cax=figure.add_subplot(grid[row, -1])
        )
        bar.set_ticks([-largest, 0, largest], labels=[f"{-largest:.2g}", "0", f"{largest:.2g}"])
        bar.ax.tick_params(labelsize=7, length=2)
    return inline_films(figure)


def competing_maps(films) -> str:
    """A row a confused film: the film, the maps of its two classes, and where both are strong.

    Args:
        films: list of dicts: pixels (H, W), name, label, predicted, probability, first, second (names), maps
            (two (h, w) arrays), overlap, shares (x0, y0, x1, y1 of the box in shares of the film, or NaN).
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(9.2, 2.45 * len(films)))
    grid = figure.add_gridspec(
        len(films), 4, left=0.01, right=0.99, top=1 - 0.42 / (2.45 * len(films)), bottom=0.05 / len(films),
        wspace=0.06, hspace=0.24,
    )  # fmt: skip
    for row, film in enumerate(films):
        axes = [figure.add_subplot(grid[row, column]) for column in range(4)]
        positive = [np.maximum(heatmap, 0) / max(heatmap.max(), 1e-30) for heatmap in film["maps"]]
        axes[0].imshow(film["pixels"], cmap="gray", vmin=0, vmax=1)
        axes[0].set_title(
            f"{film['name'][-26:]}\nis {film['label']}, says {film['predicted']} {film['probability']:.2f}",
            fontsize=8.5,
        )
        for axis, heatmap, name in zip(axes[1:3], film["maps"], (film["first"], film["second"]), strict=True):
            largest = np.abs(heatmap).max() or 1.0
            _over_film(axis, film["pixels"], heatmap, _signed(0.65), -largest, largest)
            axis.set_title(f"for {name}\nstrongest {heatmap.max():.2g}", fontsize=8.5)
        _over_film(axes[3], film["pixels"], np.minimum(*positive), _signed(0.75), -1, 1)
        axes[3].set_title(f"both\noverlap {film['overlap']:.2f}", fontsize=8.5)
        height, width = film["pixels"].shape
        x0, y0, x1, y1 = film["shares"]
        if np.isfinite(x0):
            corner, size = (x0 * width - 0.5, y0 * height - 0.5), ((x1 - x0) * width, (y1 - y0) * height)
            axes[3].add_patch(Rectangle(corner, *size, fill=False, edgecolor="gold", linewidth=1.6))
        for axis in axes:
            axis.axis("off")
    return inline_films(figure)
