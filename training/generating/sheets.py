"""Sheets that show what a generator has learned: between two latents, between two classes, and truncation."""

from pathlib import Path

import click
import numpy as np

from kxray.io.files import replacing
from training import shell
from training.shell import program

TRUNCATIONS = (0.0, 0.25, 0.5, 0.75, 1.0)
_PAGE_CLASSES = 8


@click.command(context_settings={"max_content_width": 100})
@click.option("--run", required=True, help="Run folder of training.fit attention_cgan or cdcgan.")
@click.option("--out", required=True, help="Folder to write to.")
@click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Of the random vectors."
)
@click.option(
    "--steps", type=click.IntRange(3, 32), default=8, show_default=True, help="Films from end to end."
)
@program
def main(run, out, seed, steps):
    """Look at what a generator has learned.

    \b
    OUT/latents.png     a row a class: from one random vector to another on the arc between them
    OUT/classes.png     a row a pair of classes: the same random vector, its condition shifted from one to the
                        other; the first row goes through all films between
    OUT/truncation.png  a row a class: shorter random vectors give more typical and less varied films
    """
    if Path(out).exists() and not Path(out).is_dir():
        raise ValueError(f"{out} is a file; --out names a folder")
    shell.load_tensorflow()
    from training.generating.generator import load_generator

    generator = load_generator(run)
    Path(out).mkdir(parents=True, exist_ok=True)
    for path in write_sheets(generator, out, seed, steps):
        click.echo(path)


def write_sheets(generator, out, seed=0, steps=8) -> list[Path]:
    """Writes the three sheets; see the program. Returns their paths."""
    from kxray.models import latents

    labels, out = generator.spec.labels, Path(out)
    z = latents(seed, 2, generator.gan.latent)
    arc = slerp(z[0], z[1], np.linspace(0, 1, steps))
    one_hot = np.eye(len(labels), dtype=np.float32)
    sheets = {
        "latents.png": (
            [(label, arc, np.tile(one_hot[row], (steps, 1))) for row, label in enumerate(labels)],
            [f"{share:.2f}" for share in np.linspace(0, 1, steps)],
        ),
        "classes.png": (
            [
                (
                    f"{labels[one]}\n{labels[other]}",
                    np.tile(z[0], (steps, 1)),
                    _between(one_hot, one, other, steps),
                )
                for one, other in _pairs(len(labels))
            ],
            [f"{share:.2f}" for share in np.linspace(0, 1, steps)],
        ),
        "truncation.png": _truncated(generator, labels, one_hot, seed),
    }
    paths = []
    for name, (rows, titles) in sheets.items():
        films = [made(generator, own_z, condition) for _, own_z, condition in rows]
        write_grid(out / name, films, [label for label, *_ in rows], titles)
        paths.append(out / name)
    return paths


def slerp(one, other, shares) -> np.ndarray:
    """Vectors on the arc from one to another (Shoemake, 1985), lengths in between: (len(shares), F).

    Gaussian vectors lie near a sphere; on the straight line between two of them there are none.
    """
    lengths = np.linalg.norm(one), np.linalg.norm(other)
    units = one / max(lengths[0], 1e-12), other / max(lengths[1], 1e-12)
    angle = np.arccos(np.clip(units[0] @ units[1], -1, 1))
    shares = np.asarray(shares, np.float64)[:, None]
    if np.sin(angle) < 1e-6:
        direction = (1 - shares) * units[0] + shares * units[1]
    else:
        direction = (np.sin((1 - shares) * angle) * units[0] + np.sin(shares * angle) * units[1]) / np.sin(
            angle
        )
    return ((1 - shares) * lengths[0] + shares * lengths[1]).astype(np.float32) * direction.astype(np.float32)


def made(generator, z, condition) -> np.ndarray:
    """Largest films of any conditions, one-hot or between: float32 (N, side, side) in [0, 1]."""
    import tensorflow as tf

    inputs = {"z": tf.constant(z, tf.float32), "condition": tf.constant(condition, tf.float32)}
    films = generator.gan.sampling_generator(inputs, training=False)[f"film_{generator.side}"]
    return (films.numpy()[..., 0] + 1) / 2


def _between(one_hot, one, other, steps):
    shares = np.linspace(0, 1, steps, dtype=np.float32)[:, None]
    return (1 - shares) * one_hot[one] + shares * one_hot[other]


def _pairs(count):
    """Each class and the next one, around; of two classes one pair."""
    pairs = [(one, (one + 1) % count) for one in range(count)]
    return pairs[: 1 if count <= 2 else _PAGE_CLASSES]


def _truncated(generator, labels, one_hot, seed):
    from kxray.models import latents

    z = latents(seed, 3, generator.gan.latent)[1:]
    stacked = np.concatenate([np.float32(share) * z for share in TRUNCATIONS])
    titles = [f"{share:g}" for share in TRUNCATIONS for _ in z]
    return [
        (label, stacked, np.tile(one_hot[row], (len(stacked), 1))) for row, label in enumerate(labels)
    ], titles


def write_grid(path, films, rows, columns) -> None:
    """A PNG of rows of films (each (n, s, s) in [0, 1]) with a name a row and a title a column."""
    from training.report.plots import film_grid

    figure = film_grid(films, rows, [columns])
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, metadata={"Software": "kxray", "Synthetic": "yes"})
