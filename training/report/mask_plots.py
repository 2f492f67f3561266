"""The disease probability masks of a model, drawn over the chest that films are aligned to."""

import textwrap

import numpy as np

from training.report.plots import inline_films

_BOX = "#ffd21f"


def disease_mask_panels(masks, template=None, boxes=(), columns=4) -> str:
    """One panel a disease: its mask in colour over the template, with the line of half of its maximum.

    Args:
        masks: kxray.data.DiseaseMasks.
        template: float (s, s) in [0, 1], the film that is aligned to; None: the ellipses of lungs and heart.
        boxes: list of (label, quad (4, 2) in shares of the width), drawn as thin lines where given.
        columns: panels a row.

    Returns:
        A data: URI.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure

    if template is None:
        template = _sketch()
    template = np.asarray(template, float)
    if template.ndim != 2 or not np.isfinite(template).all():
        raise ValueError(f"expected a template (s, s), got {template.shape}")
    columns = min(columns, len(masks.labels))
    rows = -(-len(masks.labels) // columns)
    width, height = 2.3 * columns + 0.7, 2.75 * rows
    figure = Figure(figsize=(width, height))
    right = 1 - 0.7 / width
    grid = figure.add_gridspec(
        rows, columns, left=0.01, right=right, top=1 - 0.55 / height, bottom=0.05 / height,
        wspace=0.05, hspace=0.28,
    )  # fmt: skip
    colours = _heat()
    for index, (label, mask, source) in enumerate(zip(masks.labels, masks.maps, masks.sources, strict=True)):
        axis = figure.add_subplot(grid[divmod(index, columns)])
        # In shares of the width, template, mask and boxes lie on each other whatever their resolutions.
        extent = (-0.5, 0.5, 0.5, -0.5)
        axis.imshow(template, cmap="gray", extent=extent)
        axis.imshow(mask, cmap=colours, vmin=0, vmax=1, extent=extent, interpolation="bilinear")
        if mask.min() < 0.5 and masks.size > 1:
            middles = (np.arange(masks.size) + 0.5) / masks.size - 0.5
            axis.contour(middles, middles, mask, levels=[0.5], colors="white", linewidths=0.9)
        for name, quad in boxes:
            if name == label:
                x, y = np.asarray(quad)[[0, 1, 2, 3, 0]].T
                axis.plot(x, y, color=_BOX, linewidth=0.5, alpha=0.7)
        axis.set_xlim(-0.5, 0.5)
        axis.set_ylim(0.5, -0.5)
        axis.set_title(f"{label}\n{textwrap.fill(source, 36)}", fontsize=7.5)
        axis.set_axis_off()
    bar = figure.colorbar(
        ScalarMappable(Normalize(0, 1), colours),
        cax=figure.add_axes((right + 0.12 / width, 0.05 / height, 0.11 / width, 1 - 0.6 / height)),
    )
    bar.set_ticks([0, 0.5, 1])
    bar.ax.tick_params(labelsize=7, length=2)
    return inline_films(figure)


def _heat():
    """From nothing over blue, green and yellow to red, as the field paints its probability maps."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    levels = np.linspace(0, 1, 256)
    colours = colormaps["turbo"](levels)
    colours[:, 3] = 0.75 * np.minimum(1, levels / 0.35)
    return ListedColormap(colours)


def _sketch(size=128):
    from kxray.data import chest_regions

    regions = chest_regions(size)
    picture = np.full((size, size), 0.75)
    picture[regions["right_lung"] | regions["left_lung"]] = 0.25
    picture[regions["heart"]] = 0.9
    return picture
