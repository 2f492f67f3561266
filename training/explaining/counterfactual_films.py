"""Films that counterfactuals are held against: those that have by their true labels what was asked for."""

import dataclasses
import os

import numpy as np
import pandas as pd

from training.explaining import evaluated_films
from training.explaining.begun import check_begun, films_state

# As many again are the floor: real films against real ones.
FILMS_A_PAIR = 2


@dataclasses.dataclass(frozen=True)
class CounterfactualFilms:
    """What is asked of each film.

    P pairs of the evaluation come first, whose label is to go; then Q films that have a target by their true
    labels and are asked for it all the same: nothing of them needs to change.

    Attributes:
        pairs: EvaluatedFilms of the P pairs.
        others: EvaluatedFilms of the Q others, or None where no film is known to have a target.
        targets: int32 (P + Q,), numbers of `kxray.explain.targets_of`.
        before: float (P + Q, L), calibrated probabilities of the films.
    """

    pairs: evaluated_films.EvaluatedFilms
    others: evaluated_films.EvaluatedFilms | None
    targets: np.ndarray
    before: np.ndarray

    def __len__(self):
        return len(self.targets)

    @property
    def num_pairs(self):
        return len(self.pairs)

    def images(self, rows):
        """float32 (n, h, w, 1)."""
        rows = np.asarray(rows, int)
        found = np.empty((len(rows), *self.pairs.inputs.shape[1:]), np.float32)
        own = rows < self.num_pairs
        found[own] = self.pairs.images(rows[own])
        if not own.all():
            found[~own] = self.others.images(rows[~own] - self.num_pairs)
        return found

    @property
    def patients(self):
        """Whom each film belongs to, (P + Q,)."""
        return _joined(self.pairs.patients, self.others and self.others.patients)

    @property
    def paths(self):
        return _joined(*(films and films.pairs["path"].to_numpy() for films in (self.pairs, self.others)))

    def compared(self, usable, seed):
        """Rows for the question whether counterfactuals look like real films of their target.

        Args:
            usable: bool (P + Q,).
            seed: of the draw.

        Returns:
            (pairs, films with their target, others of them), int arrays of equal length whose targets are the
            same place by place: as many of a target as there are pairs, and twice as many films.
        """
        chosen = ([], [], [])
        random = np.random.default_rng(seed)
        places = np.arange(len(self))
        for target in np.unique(self.targets):
            own = usable & (self.targets == target)
            pairs = random.permutation(np.flatnonzero(own & (places < self.num_pairs)))
            real = np.flatnonzero((self.targets == target) & (places >= self.num_pairs))
            # Patient by patient: no more than one has films on both sides.
            order = random.permutation(len(real))
            real = real[order][np.argsort(_first_seen(self.patients[real[order]]), kind="stable")]
            count = min(len(pairs), len(real) // FILMS_A_PAIR)
            for part, rows in zip(chosen, (pairs, real, real[::-1]), strict=True):
                part.append(rows[:count])
        return tuple(np.concatenate(part).astype(int) for part in chosen)


def _first_seen(names):
    order = {name: place for place, name in enumerate(dict.fromkeys(names.tolist()))}
    return np.array([order[name] for name in names.tolist()], int)


def _joined(first, second):
    return first if second is None else np.concatenate([first, second])


def true_labels(table, spec):
    """What a table of `training.explain.find` says of its films, as `kxray.explain.targets.held` takes it."""
    if spec.task != "multilabel":
        known = {label: index for index, label in enumerate(spec.labels)}
        return np.array([known.get(label, -1) for label in table["label"]], int)
    columns = [
        pd.to_numeric(table[name], errors="coerce") if name in table else pd.Series(np.nan, table.index)
        for name in spec.labels
    ]
    return np.stack([column.to_numpy(float) for column in columns], axis=1)


def gather(pairs, table, trained, work, asked, progress=None) -> CounterfactualFilms:
    """Says what each pair's film is to become, draws films that have it, and reads those.

    Args:
        pairs: EvaluatedFilms.
        table: of `training.explain.find`.
        trained: TrainedModel.
        work: folder for what the network sees of the others, in the WORK folder of the evaluation.
        asked: Evaluation: seed, batch_size, workers, skip_bad.
        progress: called with the number of films done.

    Raises:
        ValueError: WORK holds what the network saw of others.
    """
    from kxray.explain.targets import opposite, reached

    spec = trained.spec
    said = _probabilities(pairs, trained, asked.batch_size)
    labels = pairs.labels(slice(None))
    targets = np.array(
        [opposite(spec, label, row) for label, row in zip(labels, said, strict=True)], np.int32
    )
    paths = pairs.pairs["path"].to_numpy()
    wrong = ~reached(spec, said, targets)
    drawn = _draw(table, spec, targets, paths, wrong, asked.seed)
    others = None
    work.mkdir(exist_ok=True)
    state = {"state of the films that have what is asked for": films_state(table, spec.labels, drawn)}
    check_begun(work, state, work.parent.parent)
    if drawn:
        options = {"workers": asked.workers, "skip_bad": asked.skip_bad, "progress": progress}
        try:
            others = evaluated_films.read(drawn, trained, work, **options)
        except ValueError:
            # With --skip-bad, none of them could be read.
            if not asked.skip_bad:
                raise
    if others is not None:
        by_label = {label: target for label, target, _ in _used(spec, targets)}
        more = [by_label[label] for label in others.labels(slice(None))]
        targets = np.concatenate([targets, np.array(more, np.int32)])
        said = np.concatenate([said, _probabilities(others, trained, asked.batch_size)])
    return CounterfactualFilms(pairs, others, targets, said)


def _probabilities(films, trained, batch_size):
    """Calibrated probabilities (n, L) of the film of each row."""
    inputs = films.inputs
    parts = [
        trained.probabilities(inputs[start : start + batch_size])
        for start in range(0, len(inputs), batch_size)
    ]
    return np.concatenate(parts)[films.pairs["film"].to_numpy()]


def _used(spec, targets):
    """(label, target, number of films) of each target that is asked for."""
    from kxray.explain.targets import targets_of

    known = targets_of(spec)
    return [
        (known[target].label, int(target), int((targets == target).sum())) for target in np.unique(targets)
    ]


def _draw(table, spec, targets, paths, wrong, seed):
    """Films that have a target that is asked for, as `evaluated_films.read` takes them.

    Args:
        table, spec: of `gather`.
        targets: int (P,), of the pairs; `paths` (P,) are their films, `wrong` bool (P,) says whose answer is
            another.
        seed: of the draw.
    """
    from kxray.explain.targets import held

    rows = table.to_dict("records")
    having = held(spec, true_labels(table, spec))
    places = {os.path.abspath(row["path"]): place for place, row in enumerate(rows)}
    drawn = []
    for label, target, count in _used(spec, targets):
        own = having[target] == 1
        # A film of a wrong answer may have by its true label what it is to become; it is not its own measure.
        own[[places[path] for path in paths[wrong & (targets == target)] if path in places]] = False
        order = np.random.default_rng([seed, target]).permutation(np.flatnonzero(own))
        for place in order[: FILMS_A_PAIR * count]:
            plain = {name: value for name, value in rows[place].items() if name not in ("masks", "boxes")}
            drawn.append((plain, label))
    return drawn
