"""Asks methods of explanation for maps of the same films, in turns, and scores them."""

import contextlib
import functools
import json
import time

import numpy as np
import pandas as pd

from kxray.io.files import replacing
from training import runs
from training.explaining import map_metrics
from training.explaining.map_makers import BASELINES, MapMaker, baseline_maps, reason_of

FORWARD = "forward pass"
ROUNDS, SLOW_SECONDS = 3, 10.0
SENSITIVITY_FILMS, SANITY_FILMS, SANITY_STOPS, EXAMPLES = 16, 6, 4, 5
KINDS = ("absolute_spearman", "spearman", "ssim")


class Judge:
    """The stages of an evaluation, each of which keeps its results in a folder and finds them there again.

    Args:
        trained: TrainedModel.
        films: EvaluatedFilms.
        asked: `training.explaining.evaluating.Evaluation`.
        work: folder.
        progress: rich Progress.

    Attributes:
        skipped: method -> why it cannot read the model, after `probe`.
        examples: the pairs to look at; `example_maps` has those of a method after `scores`.
        counterfactuals: CounterfactualJudge, whose makers are methods too; None: none is asked for.
    """

    def __init__(self, trained, films, asked, work, progress):
        self.trained, self.films, self.asked, self.work, self.progress = trained, films, asked, work, progress
        self.makers, self.skipped, self.counterfactuals = {}, {}, None
        self.examples = _example_rows(films, asked.seed)

    @property
    def readable(self):
        return [method for method in self.asked.methods if method not in self.skipped]

    @property
    def changing(self):
        """The names of the makers of counterfactuals."""
        return self.counterfactuals.names if self.counterfactuals else []

    def probe(self):
        """Which methods can read the model: each explains one batch, unless its scores are kept.

        What a method says of the model is remembered; what the machine says of it holds for this run only.
        """
        import tensorflow as tf

        note = self.work / "skipped.json"
        known = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {}
        self.skipped = {method: reason for method, reason in known.items() if method in self.asked.methods}
        missing = [method for method in self.readable if not self._kept(method).exists()]
        bar = self.progress.add_task("building methods", total=len(missing), facts="")
        for method in missing:
            try:
                self.maker(method)
            except (ValueError, TypeError, NotImplementedError) as error:
                self.skipped[method] = known[method] = reason_of(error)
            except tf.errors.ResourceExhaustedError:
                raise
            except tf.errors.OpError as error:
                self.skipped[method] = reason_of(error)
            self.progress.advance(bar)
        runs.write_json(note, known)

    def maker(self, method):
        """A method's MapMaker, traced."""
        if method not in self.makers:
            maker = MapMaker(self.trained, method)
            maker(*self._first())
            self.makers[method] = maker
        return self.makers[method]

    def _first(self):
        rows = np.arange(min(self.asked.batch_size, len(self.films)))
        return self.films.images(rows), self.films.labels(rows)

    def _kept(self, name, suffix=".csv"):
        if name in self.changing:
            return self.counterfactuals.work / name / f"map_scores{suffix}"
        return self.work / f"{name}{suffix}"

    def example_maps(self, name):
        """float32 (E, h, w), of the E pairs of `examples`."""
        with np.load(self._kept(name, ".npz")) as kept:
            return kept["maps"]

    def speed(self):
        """Seconds a batch of each method and of a forward pass, measured in turns."""
        note = self.work / "speed.json"
        timed = [name for name in self.changing if self.counterfactuals.known_pairs(name).any()]
        if note.exists():
            known = json.loads(note.read_text(encoding="utf-8"))
            if {*self.readable, *timed} <= {*known["seconds"]}:
                return known
        images, labels = self._first()
        calls = {FORWARD: lambda: self.trained.probabilities(images)}
        for method in self.readable:
            calls[method] = functools.partial(self.maker(method), images, labels)
        seconds = {name: [] for name in calls}
        total = ROUNDS * len(calls) + len(timed)
        bar = self.progress.add_task("measuring speed", total=total, facts="")
        calls[FORWARD]()
        for _ in range(ROUNDS):
            for name, call in calls.items():
                if not seconds[name] or seconds[name][0] < SLOW_SECONDS:
                    before = time.perf_counter()
                    call()
                    seconds[name].append(time.perf_counter() - before)
                self.progress.advance(bar)
        measured = {
            "films_a_batch": len(images),
            "seconds": {name: float(np.median(times)) for name, times in seconds.items()},
        }
        for name in timed:
            measured["seconds"][name] = self.counterfactuals.seconds(name, ROUNDS, SLOW_SECONDS)
            self.progress.advance(bar)
        runs.write_json(note, measured)
        return measured

    def scores(self, name):
        """The scores of one method or baseline on every pair, a table; from WORK where it is done."""
        kept = self._kept(name)
        bar = self.progress.add_task(name, total=len(self.films), facts="")
        if kept.exists():
            self.progress.update(bar, completed=len(self.films))
            # By way of text: not every version of pandas reads back the last bit of a number.
            return pd.read_csv(kept, dtype=str).astype(float)
        batches, examples = [], {}
        for start in range(0, len(self.films), self.asked.batch_size):
            rows = np.arange(start, min(start + self.asked.batch_size, len(self.films)))
            maps, table = self._batch(name, rows)
            batches.append(table)
            examples |= {row: maps[row - start] for row in self.examples if row in rows}
            self.progress.update(bar, completed=rows[-1] + 1)
        with replacing(self._kept(name, ".npz")) as temporary:
            np.savez(temporary, maps=np.float32([examples[row] for row in self.examples]))
        table = pd.concat(batches, ignore_index=True)
        with replacing(kept) as temporary:
            table.to_csv(temporary, index=False)
        return table

    def _batch(self, name, rows):
        images, labels = self.films.images(rows), self.films.labels(rows)
        errors, asked = None, self.asked.metrics
        if name in BASELINES:
            maps = baseline_maps(name, images, rows, self.asked.seed)
        elif name in self.changing:
            maps = self.counterfactuals.maps(name, rows)
        else:
            maps, errors = self.maker(name).with_completeness(images, labels)
        finite = np.isfinite(maps).all(axis=(1, 2))
        columns = map_metrics.columns_of(asked)
        table = pd.DataFrame(np.nan, index=range(len(rows)), columns=columns)
        table.insert(0, "pair", rows)
        table.insert(1, "finite", finite.astype(int))

        def note(which, scores):
            for column, values in scores.items():
                table.loc[np.flatnonzero(which), column] = values

        placed = finite & (self.films.pairs["place"].to_numpy()[rows] == 1)
        if placed.any():
            note(
                placed,
                map_metrics.place_scores(asked, maps[placed], np.asarray(self.films.masks[rows])[placed]),
            )
        if finite.any():
            thresholds = self.trained.thresholds(labels[finite])
            note(
                finite,
                map_metrics.perturbation_scores(
                    asked,
                    self.trained.probabilities,
                    images[finite],
                    maps[finite],
                    labels[finite],
                    thresholds,
                    2 * self.asked.batch_size,
                ),
            )
            note(finite, map_metrics.shape_scores(asked, maps[finite]))
        if errors is not None and "completeness_error" in asked:
            table["completeness_error"] = errors
        if "max_sensitivity" in asked and name in self.changing:
            table["max_sensitivity"] = self.counterfactuals.sensitivity(name, rows)
        elif "max_sensitivity" in asked and name not in BASELINES:
            for place in np.flatnonzero(finite & np.isin(rows, noisy_pairs(self.films))):
                one = slice(place, place + 1)
                table.loc[place, "max_sensitivity"] = self._sensitivity(
                    self.maker(name), images[one], labels[one], int(rows[place])
                )
        return maps, table

    def _sensitivity(self, maker, image, label, number):
        """Of one pair, so that neither its noise nor its score depends on the others of a batch."""
        from kxray import metrics

        try:
            found = metrics.sensitivity(
                lambda noisy: maker(noisy, label),
                image,
                radius=map_metrics.RADIUS,
                draws=map_metrics.DRAWS,
                seed=[self.asked.seed, number],
            )
        except ValueError:  # maps that are not finite
            return np.nan
        return found.largest[0]

    def sanity(self):
        """Do maps change when the weights or the class do? Means over a few films, by method."""
        note = self.work / "sanity.json"
        known = json.loads(note.read_text(encoding="utf-8")) if note.exists() else {"methods": {}}
        missing = [method for method in self.readable if method not in known["methods"]]
        if missing:
            rows = _spread(len(self.films), SANITY_FILMS)
            images, labels = self.films.images(rows), self.films.labels(rows)
            known |= {"films": len(rows), "kinds": KINDS}
            bar = self.progress.add_task("sanity", total=1 + len(missing), facts="weights made random")
            known |= self._randomised(missing, images, labels, known["methods"])
            self.progress.advance(bar)
            for method in missing:
                self.progress.update(bar, advance=1, facts=f"another class, {method}")
                known["methods"][method]["random_logit"] = self._other_class(method, images, labels)
            runs.write_json(note, known)
        return {**known, "methods": {method: known["methods"][method] for method in self.readable}}

    def _randomised(self, methods, images, labels, into):
        from kxray import metrics
        from kxray.metrics.sanity import layers_from_the_top

        model, learned = self.trained.model, self.trained.model.get_weights()
        layers = [name for name, _ in layers_from_the_top(model)]
        stops = [layers[place] for place in _spread(len(layers), SANITY_STOPS)]

        def maps_of(clone, images):
            # The traced explainers read the model's own variables; tracing them again for the clone would
            # take longer than all maps.
            model.set_weights(clone.get_weights())
            for method in methods:
                self.maker(method).refresh()
            return {method: self.maker(method)(images, labels) for method in methods}

        def similarity(maps, others):
            return {
                (method, kind): values
                for method in methods
                for kind, values in metrics.map_similarity(maps[method], others[method], KINDS).items()
            }

        for method in methods:
            self.maker(method)
        try:
            found = metrics.weight_randomisation(model, maps_of, images, stops, similarity, self.asked.seed)
        finally:
            model.set_weights(learned)
            for method in methods:
                self.maker(method).refresh()
        for method in methods:
            into[method] = {"randomised": {kind: _means(found.similarity[method, kind]) for kind in KINDS}}
        return {"stops": found.layers, "layers": len(layers)}

    def _other_class(self, method, images, labels):
        from kxray import metrics

        if self.trained.one_unit or self.trained.spec.num_labels < 2:
            return None
        count = self.trained.spec.num_labels
        found = metrics.random_logit(self.maker(method), images, labels, count, KINDS, self.asked.seed)
        return {kind: _means(values[None])[0] for kind, values in found.items()}


def noisy_pairs(films):
    """The pairs whose sensitivity is measured, which takes several maps of each."""
    return _spread(len(films), SENSITIVITY_FILMS)


@contextlib.contextmanager
def memory_told(batch_size):
    """Within it, memory that does not suffice is a ValueError that says what to do."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.ResourceExhaustedError:
        raise ValueError(
            f"films in batches of {batch_size} ran out of memory; try a smaller --batch-size"
        ) from None


def _means(similarity):
    """Row means of (K, N), NaN films left out."""
    known = ~np.isnan(similarity)
    with np.errstate(invalid="ignore"):
        return (np.where(known, similarity, 0).sum(axis=1) / known.sum(axis=1)).tolist()


def _spread(count, most):
    """At most `most` numbers below `count`, evenly spread, first and last included."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def _example_rows(films, seed):
    """Pairs to look at: with a place where there are such, labels in turn, no film twice."""
    pairs = films.pairs
    placed = [row for row in np.flatnonzero(pairs["place"] == 1) if films.masks[row].any()]
    rows = np.random.default_rng(seed).permutation(placed or np.arange(len(pairs)))
    turns = {}
    for row in rows:
        mine = turns.setdefault(pairs["label"][row], [])
        mine.append((len(mine), int(pairs["label"][row]), int(row)))
    chosen, seen = [], set()
    for _, _, row in sorted(place for mine in turns.values() for place in mine):
        if len(chosen) < EXAMPLES and pairs["film"][row] not in seen:
            chosen.append(row)
            seen.add(pairs["film"][row])
    return chosen
