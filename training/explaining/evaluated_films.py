"""Which films and labels maps are judged on, read once: network inputs, masks on their grid, what is said."""

import contextlib
import dataclasses
import os
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from kxray.io.files import replacing
from training.explaining.film_explainer import PREDICTED

BATCH = 32
_FILES = ("films.npy", "masks.npy", "pairs.csv")


@dataclasses.dataclass(frozen=True)
class EvaluatedFilms:
    """P pairs of a film and a label.

    Attributes:
        pairs: a row a pair: film (its place in `inputs`), path, patient_id, label (an index), name (of the
            label), known (whether it is the film's own), place (whether a mask or box is given), probability
            and right (whether the model says it).
        inputs: float32 (F, h, w, 1), memory-mapped.
        masks: bool (P, h, w), memory-mapped; empty where there is no place.
    """

    pairs: pd.DataFrame
    inputs: np.ndarray
    masks: np.ndarray

    def __len__(self):
        return len(self.pairs)

    def images(self, rows):
        """float32 (n, h, w, 1) of some pairs."""
        return np.asarray(self.inputs[self.pairs["film"].to_numpy()[rows]])

    def labels(self, rows):
        return self.pairs["label"].to_numpy()[rows]

    @property
    def patients(self):
        """Whom each pair belongs to, (P,); films of unknown patients stand for themselves."""
        named = zip(self.pairs["patient_id"], self.pairs["film"], strict=True)
        return np.array([patient or f"film {film}" for patient, film in named])


def choose(table, spec, target, count, seed):
    """Draws films, those with masks or boxes first, and says which label of each is asked for.

    Args:
        table: of `training.explain.find`.
        spec: of the model.
        target: "true": the film's own label (predicted, where it is not known), or every positive finding of
            a multi-label model, of those with a place where any has one; "predicted"; or a label.
        count: most films.
        seed: of the draw.

    Returns:
        List of (row of the table as a dict, label as an index, -1 for the predicted one), in table order.

    Raises:
        ValueError: no film has such a label.
    """
    rows = table.to_dict("records")
    named = [_places(row) for row in rows]
    asked = _asked(rows, named, spec, target)
    if not asked:
        raise ValueError(
            f"none of the {len(rows)} films has a positive finding that the model knows "
            f"({', '.join(spec.labels)}); give columns of them, or --target {PREDICTED}"
        )
    films = sorted({index for index, _ in asked})
    order = np.random.default_rng(seed).permutation(len(films))
    drawn = {*sorted((films[place] for place in order), key=lambda index: not named[index])[:count]}
    return [(rows[index], label) for index, label in asked if index in drawn]


def _asked(rows, named, spec, target):
    if target in spec.labels:
        label = spec.labels.index(target)
        # Of a multi-label model, films that are known not to have the finding say nothing of where it is.
        return [(index, label) for index, row in enumerate(rows) if row.get(target, 1) not in (0, "0")]
    if target == PREDICTED:
        return [(index, -1) for index in range(len(rows))]
    if spec.task != "multilabel":
        known = {label: index for index, label in enumerate(spec.labels)}
        return [(index, known.get(row["label"], -1)) for index, row in enumerate(rows)]
    positive = [
        (index, label)
        for index, row in enumerate(rows)
        for label, name in enumerate(spec.labels)
        if row.get(name) == 1
    ]
    placed = [pair for pair in positive if _has_place(named[pair[0]], spec.labels[pair[1]], spec.labels)]
    return placed or positive


def _has_place(named, label, labels):
    return label in named or bool(named and not named & {*labels})


def _places(row):
    """The findings that a row has masks or boxes of."""
    from kxray.data.truth import find_masks

    boxes = row.get("boxes")
    boxes = boxes if isinstance(boxes, (list, tuple)) else []
    return {*find_masks(row.get("masks"), row["path"])} or {box["finding"] for box in boxes}


def read(asked, trained, work, *, workers=None, skip_bad=False, progress=None) -> EvaluatedFilms:
    """Decodes the films once and keeps what the network sees of them in WORK, for later runs too.

    Args:
        asked: of `choose`.
        trained: TrainedModel.
        work: folder.
        workers: decoding workers.
        skip_bad: leave out films that cannot be read.
        progress: called with the number of films done.

    Raises:
        kxray.io.FilmError: an unreadable film, unless `skip_bad`.
        ValueError: a mask that does not fit its film, or no film left.
    """
    work = Path(work)
    # The table is written last.
    if not (work / _FILES[2]).exists():
        _read(asked, trained, work, workers, skip_bad, progress or (lambda done: None))
    inputs, masks = (np.load(work / name, mmap_mode="r") for name in _FILES[:2])
    text = {"path": str, "patient_id": str, "name": str}
    pairs = pd.read_csv(
        work / _FILES[2], dtype=text, keep_default_na=False, encoding_errors="surrogateescape"
    )
    return EvaluatedFilms(pairs, inputs, masks)


def _read(asked, trained, work, workers, skip_bad, progress):
    from kxray.data.pipeline import stream_inputs
    from kxray.io import FilmError

    spec = trained.spec
    by_path = {}
    for row, label in asked:
        by_path.setdefault(row["path"], []).append((row, label))
    paths, kept = [*by_path], []
    with (
        memory_map(work / _FILES[0], (len(paths), *spec.image_size, 1), np.float32) as inputs,
        memory_map(work / _FILES[1], (len(asked), *spec.image_size), bool) as masks,
    ):
        stream, done = stream_inputs(paths, spec, measure=np.shape, workers=workers), 0
        while batch := [*islice(stream, BATCH)]:
            done += len(batch)
            for _, result in batch:
                if isinstance(result, FilmError) and not skip_bad:
                    remedy = f"{result.remedy}; " if result.remedy else ""
                    raise FilmError(result.name, result.problem, f"{remedy}--skip-bad leaves such films out")
            batch = [(film, *result) for film, result in batch if not isinstance(result, FilmError)]
            if batch:
                probabilities = trained.probabilities(np.stack([pixels for _, pixels, _ in batch]))
                for (film, pixels, shape), said in zip(batch, probabilities, strict=True):
                    inputs[film] = pixels
                    for row, label in by_path[paths[film]]:
                        pair = _pair(film, row, label, said, trained)
                        mask = _mask(row, shape, pair["name"], spec)
                        pair["place"] = int(mask is not None)
                        if mask is not None:
                            masks[len(kept)] = mask
                        kept.append(pair)
            progress(done)
    if not kept:
        raise ValueError("none of the films could be read")
    with replacing(work / _FILES[2]) as temporary:
        pd.DataFrame(kept).to_csv(temporary, index=False, errors="surrogateescape")


def _pair(film, row, label, said, trained):
    known = label >= 0
    label = label if known else int(said.argmax())
    right = trained.decided(said[None], np.array([label]))[0]
    return {
        "film": film,
        "path": os.path.abspath(row["path"]),
        "patient_id": row["patient_id"],
        "label": label,
        "name": trained.spec.labels[label],
        "known": int(known),
        "probability": float(said[label]),
        "right": int(right),
    }


def _mask(row, shape, label, spec):
    """Where the finding is, on the network's grid, bool; None where the row does not say."""
    from kxray.data.truth import truth_mask
    from kxray.io.resize import resize

    mask = truth_mask(row, shape, label, spec.labels)
    if mask is None:
        return None
    covered = resize(mask.astype(np.float32), spec.image_size)
    # A bone that is thinner than a pixel of the grid covers less than half of any.
    return covered >= 0.5 * covered.max() if mask.any() else np.zeros(spec.image_size, bool)


@contextlib.contextmanager
def memory_map(path, shape, dtype):
    """A new memory-mapped array that takes its name when the block succeeds."""
    with replacing(path) as temporary:
        array = np.lib.format.open_memmap(temporary, mode="w+", shape=shape, dtype=dtype)
        yield array
        array.flush()
