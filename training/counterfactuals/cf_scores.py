"""How good counterfactuals are, in numbers: pairs of a film and a target, measured and summed up."""

import dataclasses

import numpy as np
import pandas as pd

from training.counterfactuals.loaded import probabilities_of

_BATCH = 64
# What history.csv and metrics.json tell: column of the table of pairs, and of which pairs.
NUMBERS = {
    "flip_rate": ("flipped", True),
    "drift": ("drift", True),
    "change": ("change", True),
    "changed_share": ("changed_share", True),
    "mask": ("mask", True),
    "change_unneeded": ("change", False),
}


@dataclasses.dataclass(frozen=True)
class Pairs:
    """P pairs of a film and a target that it is asked for.

    Attributes:
        films: int (P,), positions of films.
        targets: int (P,), numbers among the run's targets.
        asked: bool (P,), whether the film has not the target; else nothing of it need change.
    """

    films: np.ndarray
    targets: np.ndarray
    asked: np.ndarray

    def __len__(self):
        return len(self.films)

    def take(self, rows) -> "Pairs":
        return Pairs(self.films[rows], self.targets[rows], self.asked[rows])

    def partners(self) -> tuple[np.ndarray, np.ndarray]:
        """(places of pairs that are asked for something, places of pairs whose film has it), int, equal."""
        places, others = [], []
        for target in np.unique(self.targets):
            own = self.targets == target
            changed, having = np.flatnonzero(own & self.asked), np.flatnonzero(own & ~self.asked)
            if len(having):
                places.append(changed)
                others.append(having[np.arange(len(changed)) % len(having)])
        joined = [np.concatenate([np.zeros(0, int), *some]) for some in (places, others)]
        return joined[0], joined[1]


def pairs_of(held, rows, most, seed) -> Pairs:
    """Draws pairs evenly over targets, half of films that have the target and half of films that have not.

    Args:
        held: int8 (T, N), see `kxray.explain.targets.held`.
        rows: int, the films to draw from.
        most: pairs that are asked for a change, at most; as many again have the target already.
        seed: of the draw.

    Returns:
        Pairs, target by target in random order; films of which nobody knows are in none.
    """
    found, share = [], -(-most // len(held))
    for target, own in enumerate(np.asarray(held)[:, rows]):
        for asked in (True, False):
            random = np.random.default_rng([seed, 51, target, int(asked)])
            films = random.permutation(rows[own == (0 if asked else 1)])[:share]
            found.append((films, np.full(len(films), target), np.full(len(films), asked)))
    return Pairs(*(np.concatenate(parts) for parts in zip(*found, strict=True)))


def measure(gan, classifier, targets, pixels, numbers) -> tuple[pd.DataFrame, dict]:
    """Changes films and measures what came of it.

    Args:
        gan: of a run.
        classifier: (keras.Model, ModelSpec).
        targets: T `Target`, what the GAN's conditions are.
        pixels: float32 (P, s, s, 1).
        numbers: int (P,), the condition of each.

    Returns:
        (table, made). A row a pair: target (name), before and after (probability of what is asked for),
        reached, flipped (NaN where the classifier said it before), drift (of the other labels; NaN where
        there are none), change (mean |y - x|), changed_share, mask (its mean), mask_low and mask_high. What
        `gan.change` made.
    """
    from kxray import metrics
    from kxray.explain.targets import other_labels, reached, target_index, wanted_probability

    model, spec = classifier
    made = gan.change(pixels, numbers, batch_size=_BATCH)
    known = np.array([target_index(spec, target.name) for target in targets], int)[numbers]
    before, after = (probabilities_of(model, spec, films) for films in (pixels, made["film"]))
    hits = [reached(spec, said, known) for said in (before, after)]
    masks = made["mask"]
    table = pd.DataFrame(
        {
            "target": np.array([target.name for target in targets], object)[numbers],
            "before": wanted_probability(spec, before, known),
            "after": wanted_probability(spec, after, known),
            "reached": hits[1].astype(int),
            "flipped": metrics.flipped(*hits),
            "drift": metrics.label_drift(before, after, other_labels(spec, before, known)),
            "change": metrics.mean_change(pixels, made["film"]),
            "changed_share": metrics.changed_share(pixels, made["film"]),
            "mask": masks.mean(axis=(1, 2, 3)),
            "mask_low": masks.min(axis=(1, 2, 3)),
            "mask_high": masks.max(axis=(1, 2, 3)),
        }
    )
    return table, made


def measure_pairs(gan, classifier, targets, films, pairs, progress=None) -> pd.DataFrame:
    """`measure` of pairs whose films are read batch by batch; with the columns film and asked.

    Args:
        films: `training.counterfactuals.cf_films.CounterfactualFilms`.
        pairs: Pairs.
        progress: called with the number of pairs done.
    """
    tables = []
    for start in range(0, len(pairs), _BATCH):
        some = pairs.take(slice(start, start + _BATCH))
        pixels = np.asarray(films.pixels(some.films))
        table, _ = measure(gan, classifier, targets, pixels, some.targets)
        tables.append(table.assign(film=some.films, asked=some.asked.astype(int)))
        if progress is not None:
            progress(start + len(some))
    return pd.concat(tables, ignore_index=True)


def means(table) -> dict[str, float]:
    """What history.csv says of a table of pairs with the column asked: NUMBERS, and the mask's extremes."""
    found = {}
    for name, (column, asked) in NUMBERS.items():
        values = table[column][table["asked"] == int(asked)]
        found[name] = float(values.mean()) if values.notna().any() else float("nan")
    return {**found, "mask_low": float(table["mask_low"].min()), "mask_high": float(table["mask_high"].max())}


def summaries(table, patients, names, seed) -> dict:
    """Means with 95% intervals by resampled patients, of all pairs and target by target.

    Args:
        table: of `measure_pairs`.
        patients: (P,), whom each pair's film belongs to.
        names: the targets.
        seed: of the bootstrap.

    Returns:
        {"all": ..., "targets": {name: ...}}, each a dict of NUMBERS: what `kxray.metrics.summarise` says.
    """
    from kxray import metrics

    def of(rows):
        found = {}
        for name, (column, asked) in NUMBERS.items():
            own = rows & (table["asked"] == int(asked)).to_numpy()
            found[name] = metrics.summarise(table[column].to_numpy(float)[own], patients[own], seed=seed)
        return found

    everything = np.ones(len(table), bool)
    by_target = {name: of((table["target"] == name).to_numpy()) for name in names}
    return {"all": of(everything), "targets": by_target}
