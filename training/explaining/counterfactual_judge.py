"""Counterfactuals of the evaluated films: made once by every maker, kept, scored, held against real films."""

import time

import numpy as np
import pandas as pd

from kxray.io.files import replacing
from training.explaining import counterfactual_films, counterfactual_scores, map_metrics
from training.explaining.begun import check_begun
from training.explaining.counterfactual_scores import ASKED, KEPT
from training.explaining.evaluated_films import memory_map
from training.explaining.map_judge import noisy_pairs

# Films that a maker is given at once, to be split into its batches: some makers are traced at every call.
_CALL = 128
# Pairs of every maker that the page shows, and films that need no change.
_SHOWN, _SHOWN_KEPT = 3, 1
_PLACES = ("outside_inside_ratio", "mean_iou", "pointing_game", "mass_inside")
_FIELDS = ("films", "counterfactuals", "reference", "masks", "maps", "before", "after", "targets")


class CounterfactualJudge:
    """What every maker makes of the films; kept in a folder and found there again.

    Args:
        trained: TrainedModel.
        films: CounterfactualFilms.
        makers: list of CounterfactualMaker.
        asked: Evaluation.
        work: folder; each maker has one of its own in it.

    Raises:
        ValueError: a folder was begun with another maker of the same name.
    """

    def __init__(self, trained, films, makers, asked, work):
        self.trained, self.films, self.asked, self.work = trained, films, asked, work
        self.makers = {maker.name: maker for maker in makers}
        for name, maker in self.makers.items():
            folder = work / name
            folder.mkdir(parents=True, exist_ok=True)
            check_begun(folder, {f"maker of the name {name}": maker.state}, work.parent.parent)

    @property
    def names(self):
        return [*self.makers]

    @property
    def needs(self):
        """Whose answer is to change: pairs of which the classifier does not say the target yet, bool (M,)."""
        from kxray.explain.targets import reached

        films = self.films
        pairs = np.arange(len(films)) < films.num_pairs
        return pairs & ~reached(self.trained.spec, films.before, films.targets)

    def predict(self, films):
        """Calibrated probabilities (n, L) of films, batch by batch."""
        size = 2 * self.asked.batch_size
        starts = range(0, len(films), size)
        return np.concatenate([self.trained.probabilities(films[start : start + size]) for start in starts])

    def known(self, name):
        """Which films' targets a maker can be asked for, bool (M,)."""
        return np.isin(self.films.targets, [*self.makers[name].known])

    def known_pairs(self, name):
        return self.known(name)[: self.films.num_pairs]

    def make(self, name, noisy, shown, progress=None):
        """Makes and scores a maker's counterfactuals, unless its folder has them.

        Args:
            name: of the maker.
            noisy: pairs whose map is asked for again under noise; empty: none.
            shown: pairs to look at.
            progress: called with the number of films done.
        """
        folder, films = self.work / name, self.films
        if (folder / "scores.csv").exists():
            return
        known = self.known(name)
        table = pd.DataFrame(np.nan, range(len(films)), ["wanted_before", *counterfactual_scores.SCORES])
        table.insert(0, "known", known.astype(int))
        shown = np.array([*shown[:_SHOWN], *range(films.num_pairs, len(films))[:_SHOWN_KEPT]], int)
        examples = []
        shape = (films.num_pairs, *self.trained.spec.image_size)
        with (
            memory_map(folder / "counterfactuals.npy", shape, np.float32) as changed,
            memory_map(folder / "maps.npy", shape, np.float32) as maps,
        ):
            changed[:] = maps[:] = np.nan
            for start in range(0, len(films), _CALL):
                rows = np.arange(start, min(start + _CALL, len(films)))
                rows = rows[known[rows]]
                if len(rows):
                    made = self.makers[name](films.images(rows), films.targets[rows])
                    own = rows < films.num_pairs
                    changed[rows[own]], maps[rows[own]] = made.counterfactuals[own, ..., 0], made.maps[own]
                    for column, values in self._scored(made, rows).items():
                        table.loc[rows, column] = values
                    examples.append((rows[np.isin(rows, shown)], made.take(np.isin(rows, shown))))
                if progress:
                    progress(min(start + _CALL, len(films)))
            table["max_sensitivity"] = self._sensitivity(name, np.asarray(noisy, int), maps)
        with replacing(folder / "examples.npz") as temporary:
            arrays = {field: [getattr(made, field) for _, made in examples] for field in _FIELDS}
            arrays["rows"] = [rows for rows, _ in examples]
            np.savez(temporary, **{field: np.concatenate(parts) for field, parts in arrays.items() if parts})
        with replacing(folder / "scores.csv") as temporary:
            table.to_csv(temporary, index=False)

    def _scored(self, made, rows):
        return counterfactual_scores.film_scores(
            made, self.trained.spec, self.predict, self.films.before[rows], rows, self.asked.seed
        )

    def _sensitivity(self, name, rows, maps):
        """Largest relative change of the maps of some pairs under noise, NaN of all others, (M,)."""
        from kxray import metrics

        largest = np.full(len(self.films), np.nan)
        rows = rows[self.known(name)[rows]]
        rows = rows[np.isfinite(maps[rows]).all(axis=(1, 2))]
        if not len(rows):
            return largest
        images, targets = self.films.images(rows), self.films.targets[rows]
        copies = [
            metrics.noisy(images, map_metrics.RADIUS, [self.asked.seed, draw], rows)
            for draw in range(map_metrics.DRAWS)
        ]
        # What is asked for stays the same when the film changes; makers take films in [0, 1] only.
        made = self.makers[name](np.concatenate(copies), np.tile(targets, len(copies)))
        own = maps[rows].reshape(len(rows), -1)
        moved = made.maps.reshape(len(copies), len(rows), -1) - own
        norms = np.linalg.norm(own, axis=1)
        changes = np.linalg.norm(moved, axis=2).max(axis=0)
        largest[rows] = np.where(norms > 0, changes / np.where(norms > 0, norms, 1), np.nan)
        return largest

    def maps(self, name, rows):
        """The maps float (n, h, w) of some pairs; NaN where the maker does not know the target."""
        return np.array(np.load(self.work / name / "maps.npy", mmap_mode="r")[rows])

    def sensitivity(self, name, rows):
        """What `_sensitivity` found of some pairs."""
        kept = pd.read_csv(self.work / name / "scores.csv", usecols=["max_sensitivity"], dtype=str)
        return kept["max_sensitivity"].astype(float).to_numpy()[rows]

    def scores(self, name):
        """A row a film, pairs first: see `counterfactual_scores.summed_up`, and path, patient_id, target."""
        from kxray.explain.targets import targets_of

        films, known = self.films, targets_of(self.trained.spec)
        # By way of text: not every version of pandas reads back the last bit of a number.
        table = pd.read_csv(self.work / name / "scores.csv", dtype=str).astype(float)
        kinds = np.where(np.arange(len(films)) < films.num_pairs, ASKED, KEPT)
        facts = {
            "path": films.paths,
            "patient_id": films.patients,
            "kind": kinds,
            "target": [known[target].name for target in films.targets],
            "needs": self.needs.astype(int),
        }
        return pd.concat([pd.DataFrame(facts), table], axis=1)

    def examples(self, name):
        """(rows, `kxray.explain.Counterfactuals` of them): pairs to look at, and films without need."""
        from kxray.explain import Counterfactuals

        with np.load(self.work / name / "examples.npz") as kept:
            if "rows" not in kept:
                return np.zeros(0, int), None
            return kept["rows"], Counterfactuals(**{field: kept[field] for field in _FIELDS})

    def seconds(self, name, rounds, slow):
        """Seconds that a maker takes for one batch of pairs that it knows the target of, the median."""
        rows = np.flatnonzero(self.known_pairs(name))[: self.asked.batch_size]
        films, targets, taken = self.films.images(rows), self.films.targets[rows], []
        self.makers[name](films, targets)
        while len(taken) < rounds and not (taken and taken[0] >= slow):
            before = time.perf_counter()
            self.makers[name](films, targets)
            taken.append(time.perf_counter() - before)
        # Of as many films as the other methods' batches have.
        return float(np.median(taken)) * min(self.asked.batch_size, self.films.num_pairs) / len(rows)

    def realism(self) -> dict:
        """Are counterfactuals like real films of their target, for the classifier itself?

        Every set has the same number of films of every target; the same real ones are the measure of all.

        Returns:
            dict: compared (films a set), left_out (pairs without enough real films), and floor (other real
            films of the target), before (the films before any change) and makers: name -> each a dict of fdd
            and kid, see `kxray.metrics.fdd`; None and none where there are fewer than two real films, or the
            classifier has no features, which reason says.
        """
        from kxray import metrics
        from kxray.metrics.fdd import fdd
        from training.generating.feature_model import FeatureModel

        films, usable = self.films, self.needs
        for name in self.names:
            usable = usable & self.known(name)
        pairs, real, others = films.compared(usable, self.asked.seed)
        told = {"compared": len(pairs), "left_out": int(usable.sum()) - len(pairs), "reason": ""}
        none = {**told, "compared": 0, "floor": None, "before": None, "makers": {}}
        if len(pairs) < 2:
            return {**none, "reason": "too few real films have what is asked for"}
        try:
            model = FeatureModel(self.trained.model, self.trained.spec)
        except ValueError as error:
            return {**none, "reason": str(error)}

        def seen(pixels):
            return model.features(pixels, 2 * self.asked.batch_size)["features"]

        measure = seen(films.images(real))
        options = {"patients": films.patients[real], "seed": self.asked.seed}

        def distances(pixels):
            features = seen(pixels)
            return {
                "fdd": fdd(measure, features, **options)["overall"],
                "kid": metrics.kid(measure, features, **options)["overall"],
            }

        made = {name: np.load(self.work / name / "counterfactuals.npy", mmap_mode="r") for name in self.names}
        return {
            **told,
            "floor": distances(films.images(others)),
            "before": distances(films.images(pairs)),
            "makers": {name: distances(changed[pairs][..., None]) for name, changed in made.items()},
        }

    def places(self, scores) -> dict | None:
        """How well maps point at the finding where the answer was to be turned, methods by metrics.

        A maker that sees that a film has what is asked for changes nothing, and its map is empty; a method of
        another kind gives a map of such a film too. None where all pairs with a mask are to be turned.

        Args:
            scores: name -> table of `Judge.scores`.
        """
        films, shown = self.films, [name for name in _PLACES if name in self.asked.metrics]
        placed = films.pairs.pairs["place"].to_numpy() == 1
        which = placed & self.needs[: films.num_pairs]
        if not shown or not which.any() or which.sum() == placed.sum():
            return None
        patients = films.pairs.patients[which]
        return {
            "pairs": int(which.sum()),
            "rows": {
                name: {metric: map_metrics.summed_up(metric, table[which], patients) for metric in shown}
                for name, table in scores.items()
            },
        }

    def summary(self, scores) -> dict:
        """What metrics.json and the page say of the counterfactuals; `scores` as of `places`."""
        films, patients = self.films, self.films.patients
        rows = {name: counterfactual_scores.summed_up(self.scores(name), patients) for name in self.names}
        needs = self.needs
        return {
            "makers": {
                name: {
                    "told": maker.told,
                    "pairs": int((needs & self.known(name)).sum()),
                    "unknown_targets": int((needs & ~self.known(name)).sum()),
                }
                for name, maker in self.makers.items()
            },
            "pairs": films.num_pairs,
            "need": int(needs.sum()),
            "needless": len(films) - films.num_pairs,
            "rows": rows,
            "realism": self.realism(),
            "places": self.places(scores),
        }


def begin(judge, table, makers) -> CounterfactualJudge:
    """Draws the films that counterfactuals are held against, and makes them all.

    Args:
        judge: `training.explaining.map_judge.Judge`, whose films, options, folder and progress are taken.
        table: of `training.explain.find`.
        makers: list of CounterfactualMaker.
    """
    progress = judge.progress
    bar = progress.add_task("films that have what is asked for", total=None, facts="")
    films = counterfactual_films.gather(
        judge.films,
        table,
        judge.trained,
        judge.work / "others",
        judge.asked,
        lambda done: progress.update(bar, completed=done),
    )
    progress.update(bar, total=1, completed=1)
    found = CounterfactualJudge(judge.trained, films, makers, judge.asked, judge.work / "counterfactuals")
    noisy = noisy_pairs(judge.films) if "max_sensitivity" in judge.asked.metrics else ()
    for name in found.names:
        bar = progress.add_task(f"{name}: counterfactuals", total=len(films), facts="")
        found.make(name, noisy, judge.examples, lambda done, bar=bar: progress.update(bar, completed=done))
        progress.update(bar, completed=len(films))
    return found
