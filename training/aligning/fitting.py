"""An aligner from training films alone: their template, and a network that learned to undo known motions."""

import dataclasses
import json
import time
from pathlib import Path

import numpy as np

from kxray.io.files import read_npz, replacing, write_whole

STEPS_PER_EPOCH = 40
# Films whose groupwise registration makes the template; more only make the mean of more films.
TEMPLATE_FILMS = 150
LEAST_FILMS = 24
# Every so many films one chooses the epoch and sets the limits of what is accepted.
_HELD_OUT = 6
_ACCEPTED = 0.985
_LEAST_LIKE = 0.05


@dataclasses.dataclass(frozen=True)
class AlignerOptions:
    """How an aligner is made.

    Args:
        size, width, steps: of `kxray.layers.SimilarityAlign`.
        epochs: of 40 steps each.
        films: a step; each in two poses, beside as many pictures to refuse.
        learning_rate: the highest of the cosine.
        template_films: films that make the template, at most.
        foreign: pictures to refuse that are generated.
    """

    size: int = 64
    width: int = 16
    steps: int = 2
    epochs: int = 40
    films: int = 16
    learning_rate: float = 2e-3
    template_films: int = TEMPLATE_FILMS
    foreign: int = 800


def fit_aligner(
    pixels, folder, *, seed=0, image_size=None, progress=None, groups=None, laterals=None, **options
):
    """Trains an aligner on films without labels, or goes on where a killed call stopped.

    Args:
        pixels: float (N, H, W) or (N, H, W, 1) in [0, 1], bone bright: frontal chests, 24 at least. Only
            films of the training split.
        folder: of this training; what is finished there is loaded.
        seed: integer >= 0.
        image_size: (height, width) of the films that the aligner takes; by default those of `pixels`.
        progress: rich progress with a `facts` field, or None.
        groups: the patient of each film, so that held-out films are of other patients; None: each its own.
        laterals: float (M, h, w), more pictures to refuse.
        **options: fields of AlignerOptions, such as epochs.

    Returns:
        keras.Model from films to {"aligned", "pose", "confidence"}, as `kxray.models.build("aligner")`.
        `folder` holds it as model.keras, with template.npz, history.csv and seconds.json: what template and
        network took, over all calls.

    Raises:
        ValueError: too few films, films of one patient, or an unknown option.
    """
    from kxray import models

    folder = Path(folder)
    if (folder / "model.keras").exists():
        return models.load_aligner(folder)
    unknown = sorted(set(options) - {field.name for field in dataclasses.fields(AlignerOptions)})
    if unknown:
        raise ValueError(f"fit_aligner has no option {', '.join(unknown)}")
    chosen = AlignerOptions(**{name: value for name, value in options.items() if value is not None})
    pixels = np.asarray(pixels)
    pixels = pixels[..., 0] if pixels.ndim == 4 else pixels
    if pixels.ndim != 3 or len(pixels) < LEAST_FILMS:
        raise ValueError(
            f"an aligner needs {LEAST_FILMS} films (N, H, W) or more, got an array of {pixels.shape}"
        )
    # Told before the template is made, which takes minutes.
    _held_out(len(pixels), groups, seed)
    folder.mkdir(parents=True, exist_ok=True)
    films = small_copies(pixels, chosen.size)
    template, seconds = _template(films, folder, chosen, seed, progress)
    trainer, history = _trained(films, template, folder, (chosen, seed, progress), groups, laterals)
    aligner = models.build(
        "aligner",
        image_size=tuple(image_size or pixels.shape[1:3]),
        size=chosen.size,
        width=chosen.width,
        steps=chosen.steps,
    )
    aligner.get_layer("align").set_weights(trainer.align.get_weights())
    from training import runs

    runs.write_table(folder / "history.csv", history)
    write_whole(folder / "seconds.json", json.dumps(seconds + history.attrs["seconds"]))
    with replacing(folder / "model.keras") as temporary:
        aligner.save(temporary)
    return aligner


def small_copies(pixels, size) -> np.ndarray:
    """Films (N, H, W) as the network and registration see them, a third finer: float32 (N, s, s)."""
    from kxray.layers.similarity_align import small_copy
    from training.aligning.moved_films import copy_side

    copies = [
        small_copy(np.asarray(pixels[start : start + 64, ..., None], np.float32), copy_side(size))
        for start in range(0, len(pixels), 64)
    ]
    return np.concatenate([np.asarray(copy)[..., 0] for copy in copies])


def _template(films, folder, chosen, seed, progress):
    """((template (size, size), poses (N, 4), scores (N,)), seconds) by groupwise registration; kept."""
    from kxray.data import registration
    from training.aligning.foreign_films import resized

    path, kept = folder / "template.npz", folder / "work" / "poses.npz"
    if not kept.exists():
        kept.parent.mkdir(exist_ok=True)
        began = time.monotonic()
        small = np.stack([resized(film, chosen.size) for film in films])
        first = np.random.default_rng(seed).permutation(len(small))
        first, others = np.split(first, [min(len(small), chosen.template_films)])
        told = _bar(progress, "template")
        template = registration.build_template(small[first], seed=seed, progress=told)
        poses, scores = np.zeros((len(small), 4), np.float32), np.zeros(len(small), np.float32)
        poses[first], scores[first] = template.poses, template.scores
        if len(others):
            told = _bar(progress, "registration")
            poses[others], scores[others] = registration.register(small[others], template, progress=told)
        template.save(path)
        with replacing(kept) as temporary:
            seconds = time.monotonic() - began
            np.savez(temporary, pixels=template.pixels, poses=poses, scores=scores, seconds=seconds)
    found = read_npz(kept, ("pixels", "poses", "scores", "seconds"), "registration")
    return (found["pixels"], found["poses"], found["scores"]), float(found["seconds"])


def _bar(progress, name):
    """A bar that is told (done, total), or None."""
    if progress is None:
        return None
    bar = progress.add_task(name, total=None, facts="")
    return lambda done, total: progress.update(bar, completed=done, total=total)


def _trained(films, template, folder, settings, groups, laterals):
    """(trainer with its best weights and its limits, history)."""
    import keras

    from training import loop
    from training.aligning.aligner_trainer import AlignerTrainer
    from training.aligning.foreign_films import foreign_films, resized
    from training.aligning.moved_films import Copies, batches

    chosen, seed, progress = settings
    pixels, poses, scores = template
    # Where registration did not find the chest, its pose would teach the network nonsense.
    sound = scores >= np.median(scores) - 3 * (np.median(scores) - np.quantile(scores, 0.25)) - 1e-6
    held_out = _held_out(len(films), groups, seed)
    foreign = foreign_films(films[~held_out], films.shape[1], chosen.foreign, seed)[0]
    if laterals is not None and len(laterals):
        laterals = np.stack([resized(film, films.shape[1]) for film in laterals])
        # As many as there are generated ones, so that they count.
        foreign = np.concatenate([foreign, laterals[np.arange(chosen.foreign // 2) % len(laterals)]])
    copies = Copies(films, poses, foreign, chosen.size)
    train, validation = (np.flatnonzero(sound & part) for part in (~held_out, held_out))
    if not (len(train) and len(validation)):
        raise ValueError(
            f"of {len(films)} films registration found the chest on {len(train)} to learn from and "
            f"{len(validation)} to choose the epoch by; are they frontal chests of several patients?"
        )
    steps = max(2, min(STEPS_PER_EPOCH // 4, len(validation) // chosen.films + 1))
    validated = batches(copies, validation, films=chosen.films, seed=seed + 7919).take(steps).cache()

    def build():
        import random

        random.seed(seed)
        from kxray.layers import SimilarityAlign

        align = SimilarityAlign(chosen.size, chosen.width, chosen.steps)
        trainer = AlignerTrainer(align)
        trainer.build((None, chosen.size, chosen.size, 1))
        align.template.assign(pixels)
        rate = keras.optimizers.schedules.CosineDecay(
            0.0, chosen.epochs * STEPS_PER_EPOCH, 0.0, warmup_target=chosen.learning_rate, warmup_steps=40
        )
        trainer.compile(
            keras.optimizers.Adam(rate, clipnorm=1.0),
            steps_per_execution=loop.steps_per_execution(STEPS_PER_EPOCH),
            jit_compile=False,
        )
        return trainer

    bar = progress.add_task("aligner", total=chosen.epochs, facts="") if progress else None

    def on_epoch(done, logs):
        if progress:
            facts = f"validation loss {logs['val_loss']:.4f}" if logs else ""
            progress.update(bar, completed=done, facts=facts)

    trainer, history = loop.train(
        folder / "work" / "network",
        build,
        lambda epoch: batches(
            copies, train, films=chosen.films, seed=seed, first_step=epoch * STEPS_PER_EPOCH
        ),
        validated,
        epochs=chosen.epochs,
        steps=STEPS_PER_EPOCH,
        on_epoch=on_epoch,
    )
    limits = _limits(trainer, validated)
    trainer.align.limits.assign(limits)
    write_whole(folder / "work" / "limits.json", json.dumps([float(limit) for limit in limits]))
    return trainer, history


def _held_out(count, groups, seed):
    """Which films choose the epoch: one in six patients."""
    groups = np.arange(count) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    number = groups.max() + 1
    if number < 2:
        raise ValueError("an aligner learns from films of several patients, all of these are of one")
    held_out = max(1, min(number - 1, number // _HELD_OUT))
    chosen = np.random.default_rng([seed, 11]).permutation(number)[:held_out]
    return np.isin(groups, chosen)


def _limits(trainer, batches):
    """(chest logit, correlation) that 98.5% of the held-out chests reach, in any pose and exposure.

    The logit is never above 0, where the network itself says chest; the correlation keeps a little room, and
    is above that of a film of one grey.
    """
    logits, correlations = [], []
    for pictures, asked in batches:
        answer, chest = trainer(pictures).numpy(), asked.numpy()[:, 8] == 1
        logits.append(answer[chest, -2])
        correlations.append(answer[chest, -1])
    low = [float(np.quantile(np.concatenate(values), 1 - _ACCEPTED)) for values in (logits, correlations)]
    return np.array([np.clip(low[0], -3.0, 0.0), max(low[1] - 0.03, _LEAST_LIKE)], np.float32)
