"""Films before and after they were aligned, on one picture."""

import numpy as np

from kxray.data.similarity import Similarity
from kxray.io import FilmError, read_image
from kxray.io.files import replacing
from kxray.io.resize import resize

_SHOWN = 12
_REFUSED_SHOWN = 6
_SIDE = 192


def write_sheet(aligned, refused, out) -> None:
    """Writes before_after.png: films as they came above what was made of them, and below what was refused.

    The aligned frame's middle cross and its outline are drawn on the film as it came.

    Args:
        aligned: manifest of `kxray.data.align_folder`, paths absolute.
        refused: its table of refused films.
        out: the folder that both are of.
    """
    from matplotlib.figure import Figure

    # Evenly over the folder, the least certain first.
    order = aligned["confidence"].to_numpy().argsort(kind="stable")
    picked = order[np.unique(np.linspace(0, len(order) - 1, min(_SHOWN, len(order))).astype(int))]
    left = refused[~refused["reason"].str.startswith("no such file")]
    left = left.iloc[np.unique(np.linspace(0, len(left) - 1, min(_REFUSED_SHOWN, len(left))).astype(int))]
    columns = max(6, min(_SHOWN, len(picked)))
    # Above, below, and refused films in a last row.
    rows = (2 if len(picked) else 0) + (1 if len(left) else 0)
    if not rows:
        return
    figure = Figure(figsize=(1.5 * columns, 1.75 * rows), facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False)
    for place in axes.flat:
        place.set_axis_off()
    for column, k in enumerate(picked):
        row = aligned.iloc[k]
        pose = Similarity(row["rotation"], row["scale"], (row["shift_x"], row["shift_y"]))
        _before(axes[0, column], out / row["source_path"], pose)
        axes[0, column].set_title(
            f"{pose.rotation:+.0f}°  x{pose.scale:.2f}  conf. {row['confidence']:.2f}", fontsize=6, pad=2
        )
        _after(axes[1, column], row)
    for column, row in enumerate(left.to_dict("records")):
        place = axes[-1, column]
        _show(place, _pixels(out / row["source_path"]))
        place.set_title(_wrapped("refused: " + row["reason"]), fontsize=5, pad=2, color="firebrick")
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.93 if rows < 3 else 0.95, wspace=0.04, hspace=0.2)
    with replacing(out / "before_after.png") as temporary:
        figure.savefig(temporary, dpi=130)


def _pixels(path):
    try:
        return resize(read_image(path).pixels, (_SIDE, _SIDE))
    except FilmError:
        return np.zeros((_SIDE, _SIDE), np.float32)


def _show(axes, pixels):
    low, high = np.quantile(pixels, [0.01, 0.99])
    axes.imshow(pixels, cmap="gray", vmin=low, vmax=max(high, low + 1e-3))


def _before(axes, path, pose):
    _show(axes, _pixels(path))
    for line in _FRAME:
        x, y = (pose.to_film(np.array(line) * _SIDE, (_SIDE, _SIDE), (_SIDE, _SIDE)) - 0.5).T
        axes.plot(x, y, color="gold", lw=0.7, ls="--")
    axes.set_xlim(-0.5, _SIDE - 0.5)
    axes.set_ylim(_SIDE - 0.5, -0.5)


def _after(axes, row):
    pixels = read_image(row["path"]).pixels
    _show(axes, pixels)
    side = len(pixels)
    for middle in ([side / 2, side / 2], [0, side]), ([0, side], [side / 2, side / 2]):
        axes.plot(*middle, color="gold", lw=0.5, ls="--")
    boxes = row.get("boxes")
    for box in boxes if isinstance(boxes, list) else []:
        left, top = box["x"] - 0.5, box["y"] - 0.5
        right, bottom = left + box["width"], top + box["height"]
        axes.plot([left, right, right, left, left], [top, top, bottom, bottom, top], color="cyan", lw=0.7)
    axes.set_xlim(-0.5, side - 0.5)
    axes.set_ylim(side - 0.5, -0.5)


# The outline of the aligned frame and its middle cross, as shares of the frame.
_FRAME = (
    ((0, 0), (1, 0), (1, 1), (0, 1), (0, 0)),
    ((0.5, 0), (0.5, 1)),
    ((0, 0.5), (1, 0.5)),
)


def _wrapped(text, width=34):
    import textwrap

    return "\n".join(textwrap.wrap(text, width)[:3])
