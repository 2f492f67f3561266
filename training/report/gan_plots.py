"""The figures of a conditional GAN's report."""

import base64
import io
from pathlib import Path

import numpy as np

from training.report.plots import INK, SECOND, figure_axes, inline, inline_films

# A sheet of samples is shown no wider, in pixels.
_WIDEST = 900


def figure_two(steps) -> str:
    """Generator loss (left) and discriminator loss (right) by discriminator updates: figure 2 of the paper.

    Args:
        steps: table with discriminator_updates, generator_loss and discriminator_loss.
    """
    figure, axes = figure_axes(columns=2, width=4.4, height=2.8)
    for axis, name in zip(axes, ("generator", "discriminator"), strict=True):
        loss = steps[f"{name}_loss"].to_numpy()
        updates = steps["discriminator_updates"].to_numpy()
        axis.plot(updates, loss, color=INK, linewidth=0.5, alpha=0.45)
        width = max(1, len(loss) // 40)
        if width > 1:
            smooth = np.convolve(loss, np.ones(width) / width, mode="valid")
            axis.plot(updates[width // 2 : width // 2 + len(smooth)], smooth, color=SECOND, linewidth=1.3)
        axis.set_title(f"{name} loss", fontsize=10)
        axis.set_xlabel("discriminator updates", fontsize=8)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    return inline(figure)


def by_epoch(history, shown, kept, levels=None) -> str:
    """Small curves by epoch.

    Args:
        history: one row an epoch.
        shown: dict from a title to the columns that it draws.
        kept: epoch that is marked.
        levels: dict from a title to (value, what it is): a dotted line.
    """
    columns = min(3, len(shown))
    figure, axes = figure_axes(columns=columns, rows=-(-len(shown) // columns), width=3.2, height=2.4)
    for axis, (title, names) in zip(axes, shown.items(), strict=False):
        for number, name in enumerate(names):
            style = {"color": f"C{number}"} if len(names) > 1 else {"color": INK}
            axis.plot(history["epoch"], history[name], linewidth=1.1, label=name, **style)
        axis.axvline(kept, color=SECOND, linewidth=0.8, linestyle="--")
        if levels and title in levels:
            value, what = levels[title]
            axis.axhline(value, color="grey", linewidth=0.9, linestyle=":", label=what)
        if len(names) > 1 or (levels and title in levels):
            axis.legend(fontsize=6)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("epoch", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    for axis in axes[len(shown) :]:
        axis.axis("off")
    figure.tight_layout()
    return inline(figure)


def labelled_sheet(picture, labels) -> str:
    """A sheet of samples (H, W) in [0, 1] with the class of each row beside it."""
    step = -(-picture.shape[1] // _WIDEST)
    picture = picture[::step, ::step]
    height, width = picture.shape
    margin, shown = 1.25, min(6.5, 1.3 * width * len(labels) / height)
    wide = margin + shown
    figure, (axis,) = figure_axes(width=wide, height=shown * height / width)
    axis.imshow(picture, cmap="gray", vmin=0, vmax=1)
    axis.axis("off")
    for number, label in enumerate(labels):
        place = (number + 0.5) * height / len(labels)
        axis.text(-0.01 * width, place, label, ha="right", va="center", fontsize=9)
    figure.subplots_adjust(margin / wide, 0.0, 1.0, 1.0)
    return inline_films(figure)


def sheets(folder, epochs) -> dict[int, str]:
    """The sheets of some epochs of a run that are there, as inline pictures."""
    from PIL import Image

    found = {}
    for epoch in epochs:
        path = Path(folder) / "samples" / f"epoch-{epoch:04d}.png"
        if path.exists():
            with Image.open(path) as opened:
                picture = opened.convert("RGB" if opened.mode == "RGB" else "L")
            picture.thumbnail((_WIDEST, 4 * _WIDEST))
            buffer = io.BytesIO()
            picture.save(buffer, "jpeg", quality=88)
            found[epoch] = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
    return found


def chosen_epochs(count, kept, most=4) -> list[int]:
    """A few epochs from the first to the last, the kept one among them."""
    wanted = {1, count, kept}
    for epoch in np.geomspace(1, count, most + 2).round().astype(int).tolist():
        if len(wanted) < most + 1:
            wanted.add(epoch)
    return sorted(wanted)
