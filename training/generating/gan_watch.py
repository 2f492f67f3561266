"""What ends a conditional GAN's training early: losses that are no numbers, collapse, copies."""

import dataclasses
import math

import numpy as np

SMALL_SIDE = 32
# Generated films deviate from each other by less than this share of what real films do.
COLLAPSED = 0.1
# The median generated film is nearer to a training film than this share of what held-out films are. Of chest
# films: a mean film is at 0.67, averages of four training films at 0.8, copies with noise of 5% of the range
# or with a tenth less contrast at 0.4.
MEMORISED = 0.4
# A dip of one epoch is no collapse.
_IN_A_ROW = 2
# Spread says nothing about fewer films.
_LEAST_FILMS = 4
_FILMS_AT_ONCE = 256


def grace_epochs(epochs) -> int:
    """The first epochs, in which a collapse is none: a quarter of the run and at least 3.

    A network that has not learned anything yet may make one grey film of every z.
    """
    return max(3, -(-epochs // 4))


def check_losses(values, first_step) -> None:
    """Raises ValueError, which names the step, where a loss or score is not a finite number.

    Args:
        values: dict from a name to float (steps,).
        first_step: number of the first of these steps, from 1.
    """
    for name, series in values.items():
        wrong = np.flatnonzero(~np.isfinite(series))
        if len(wrong):
            step = first_step + int(wrong[0])
            raise ValueError(
                f"{name} became {series[wrong[0]]} in step {step} (limit: a finite number); start a new run "
                "with lower --generator-rate and --discriminator-rate, or without --mixed-precision"
            )


def small_copies(films) -> np.ndarray:
    """Films (N, s, s, 1), s a multiple of 32, as float32 (N, 1024): means of squares of pixels."""
    films = np.asarray(films, np.float32)
    count, side = films.shape[:2]
    if films.shape[1:3] != (side, side) or side % SMALL_SIDE:
        raise ValueError(f"films must be square and a multiple of {SMALL_SIDE} wide, got {films.shape}")
    block = side // SMALL_SIDE
    return films.reshape(count, SMALL_SIDE, block, SMALL_SIDE, block).mean(axis=(2, 4)).reshape(count, -1)


def deviation(copies, classes, num_classes) -> tuple:
    """How far films differ from each other: (of all films, of each class (num_classes,)).

    The standard deviation over films, mean over pixels; NaN for fewer than 4 films.
    """
    copies, classes = np.asarray(copies), np.asarray(classes)

    def of(films):
        return float(films.std(axis=0, ddof=1).mean()) if len(films) >= _LEAST_FILMS else math.nan

    return of(copies), np.array([of(copies[classes == number]) for number in range(num_classes)])


def nearest(vectors, references, count=1) -> tuple:
    """The nearest references of each vector, nearest first.

    Args:
        vectors: float (N, F).
        references: float (M, F).
        count: neighbours, K; M where there are fewer.

    Returns:
        (distances float64 (N, K), root mean squared differences; positions int (N, K)).
    """
    references = np.asarray(references, np.float32)
    count = min(count, len(references))
    lengths = (references.astype(np.float64) ** 2).sum(axis=1)
    distances, places = np.zeros((len(vectors), count)), np.zeros((len(vectors), count), int)
    for start in range(0, len(vectors), _FILMS_AT_ONCE):
        some = np.asarray(vectors[start : start + _FILMS_AT_ONCE], np.float32)
        ranks = lengths[None] - 2.0 * (some @ references.T)
        chosen = np.argpartition(ranks, count - 1, axis=1)[:, :count]
        # Once more for these: of two equal films the expansion above leaves rounding.
        apart = np.sqrt(((some[:, None] - references[chosen]).astype(np.float64) ** 2).mean(axis=2))
        order = np.argsort(apart, axis=1, kind="stable")
        rows = slice(start, start + len(some))
        distances[rows] = np.take_along_axis(apart, order, axis=1)
        places[rows] = np.take_along_axis(chosen, order, axis=1)
    return distances, places


@dataclasses.dataclass(frozen=True)
class Watch:
    """What generated films are held against.

    Args:
        labels: the conditions.
        epochs: of the run.
        references: float32 (N, 1024), small copies of the training films.
        real: (of all training films, of each class) as `deviation` gives.
        real_distance: median distance of held-out films to their nearest training film; NaN without any.
    """

    labels: tuple[str, ...]
    epochs: int
    references: np.ndarray
    real: tuple
    real_distance: float

    @classmethod
    def of(cls, labels, epochs, train, train_classes, held_out) -> "Watch":
        """The watch for small copies of training and of held-out films."""
        apart = float(np.median(nearest(held_out, train)[0])) if len(held_out) else math.nan
        return cls(tuple(labels), epochs, train, deviation(train, train_classes, len(labels)), apart)

    def measure(self, copies, classes) -> dict:
        """What history.csv says of generated films: shares of what real films have.

        Returns:
            dict of `diversity`, deviation of all films; `diversity_lowest` of the class with the least, and
            `lowest_class`, its name; `nearest`, the median distance to a training film; `copies`, the share
            of films that are nearer than the limit of memorisation.
        """
        overall, by_class = deviation(copies, classes, len(self.labels))
        shares = by_class / np.where(self.real[1] > 0, self.real[1], np.nan)
        lowest = int(np.nanargmin(shares)) if np.isfinite(shares).any() else None
        distances = nearest(copies, self.references)[0][:, 0] / self.real_distance
        return {
            "diversity": overall / self.real[0] if self.real[0] else math.nan,
            "diversity_lowest": math.nan if lowest is None else float(shares[lowest]),
            "lowest_class": "" if lowest is None else self.labels[lowest],
            "nearest": float(np.median(distances)),
            "copies": float((distances < MEMORISED).mean()),
        }

    def findings(self, history) -> list[dict]:
        """What is wrong after the last epoch of a history, as dicts of kind, epoch, step and sentence.

        Args:
            history: rows with `epoch`, `step` and what `measure` gives.
        """
        row = history[-1]
        if row["epoch"] <= grace_epochs(self.epochs):
            return []
        found, recent = [], history[-_IN_A_ROW:]
        for name, whose in (
            ("diversity", "all classes"),
            ("diversity_lowest", f"class {row['lowest_class']}"),
        ):
            same = name == "diversity" or len({earlier["lowest_class"] for earlier in recent}) == 1
            if len(recent) == _IN_A_ROW and same and all(earlier[name] < COLLAPSED for earlier in recent):
                sentence = (
                    f"the generator has collapsed by step {row['step']} (epoch {row['epoch']}): generated "
                    f"films of {whose} deviate by {row[name]:.3f} of what real ones do, and the limit is "
                    f"{COLLAPSED}; start a new run with --augment brightness,contrast,translation, --r1 0.1 "
                    "or lower rates, or with --watch warn to go on all the same"
                )
                found.append({"kind": "collapse", **_where(row), "sentence": sentence})
                break
        if row["nearest"] < MEMORISED:
            sentence = (
                f"the generator repeats training films by step {row['step']} (epoch {row['epoch']}): the "
                f"median generated film is {row['nearest']:.3f} times as far from a training film as "
                f"held-out films are, and the limit is {MEMORISED}; start a new run with more films, "
                "--augment brightness,contrast,translation,cutout or fewer --epochs, or with --watch warn to "
                "go on all the same"
            )
            found.append({"kind": "memorisation", **_where(row), "sentence": sentence})
        return found


def _where(row):
    return {"epoch": row["epoch"], "step": row["step"]}
