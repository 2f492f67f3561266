"""What a report says of a model with layer relevance weights: its maps, its weights, and what to collect."""

import dataclasses
from pathlib import Path

import numpy as np
import pandas as pd

from training import scoring
from training.report import map_plots, overlap

BATCH = 32
# Films whose maps are compared; beyond that the sure ones are thinned out evenly.
MOST_COMPARED = 2000
MOST_LISTED = 40
MOST_DRAWN = 8
MOST_SURE, LEAST_SURE, WRONG = 3, 2, 3


@dataclasses.dataclass(frozen=True)
class ExplainedFilm:
    """One film of the gallery.

    Attributes:
        row: its index in the prediction table.
        group: why it is shown, such as "most confident".
        label: the class that its map explains, an index: the one that the table predicts.
        heatmap: float32 (h, w), the multi-scale CAM.
        parts: S maps float32 (h_s, w_s), what each stage adds to it: relevance weight times stage map.
    """

    row: int
    group: str
    label: int
    heatmap: np.ndarray
    parts: tuple


@dataclasses.dataclass(frozen=True)
class Explained:
    """Everything that the report's sections on explanations are made of.

    Attributes:
        spec: the model's ModelSpec.
        predictions: prediction table of the films, index 0 ... N - 1.
        stages: names of the S stages, shallow to deep.
        weights: float (S, L), layer relevance weights.
        constraint: how they are kept convex, see `kxray.layers.LayerRelevance`.
        distance_from_convex: largest violation.
        seen: whether the model was trained on these films, and the table made by other models.
        changed: films that the model labels otherwise than the table.
        gallery: films with their maps, by class.
        compared: rows of `overlap.overlaps` with `row`, `kind`, `first` and `second`.
        films_left_out: sure films that were not compared.
        competing: row -> (map of the first class, map of the second), float32 (h, w), of confused films.
        findings: by pair of classes.
    """

    spec: object
    predictions: pd.DataFrame
    stages: tuple[str, ...]
    weights: np.ndarray
    constraint: str
    distance_from_convex: float
    seen: bool
    changed: int
    gallery: tuple[ExplainedFilm, ...]
    compared: pd.DataFrame
    films_left_out: int
    competing: dict
    findings: tuple


def explain_films(model, spec, inputs, predictions, seen=False):
    """Explains the test films of a run, for `write_report(..., explained=...)`.

    Args:
        model: the model that is kept.
        spec: its ModelSpec, with thresholds; its labels exclude each other.
        inputs: `kxray.data.pipeline.NetworkInputs` that `predictions["position"]` points into.
        predictions: prediction table of the test films.
        seen: True where the model was trained on these films, as the final model of a run with folds is,
            whose table was made by other models. The report then says so.

    Returns:
        Explained, or None where the model has no `kxray.layers.LayerRelevance` or there are no films.

    Raises:
        ValueError: a multi-label spec, or layers that `kxray.explain.multiscale_cams` cannot read.
    """
    from kxray import explain
    from kxray.layers import LayerRelevance

    relevance = [layer for layer in model.layers if isinstance(layer, LayerRelevance)]
    if not relevance or not len(predictions):
        return None
    if spec.task == "multilabel":
        raise ValueError("expected labels that exclude each other, got a multi-label spec")
    predictions = predictions.reset_index(drop=True)
    found = overlap.cases(predictions, spec)
    # The one map of a one-unit model speaks for one class exactly where it speaks against the other.
    wanted = [] if spec.task == "binary" else overlap.compared_pairs(found)
    kept, left_out = _thinned(wanted, found)
    gallery = _gallery_rows(predictions, found, spec)
    by_row = {}
    for row, first, second in kept:
        by_row.setdefault(row, []).append((first, second))
    rows = sorted({*by_row, *gallery})
    tables, films, competing, changed = [], {}, {}, 0
    positions = predictions["position"].to_numpy()[rows]
    start = 0
    for pixels in inputs.batches(positions, BATCH):
        cams = _two_sided(explain.multiscale_cams(model, pixels))
        batch = rows[start : start + len(pixels)]
        start += len(pixels)
        said = [spec.labels.index(name) for name in predictions["predicted"][batch]]
        changed += int((cams.logits.argmax(axis=1) != said).sum())
        tables.append(_compared(cams.maps, batch, by_row, found, competing))
        films |= {
            row: _film(cams, index, row, gallery[row], label)
            for index, (row, label) in enumerate(zip(batch, said, strict=True))
            if row in gallery
        }
    compared = pd.concat(tables, ignore_index=True)
    return Explained(
        spec=spec,
        predictions=predictions,
        stages=cams.stages,
        weights=cams.weights,
        constraint=relevance[0].constraint,
        distance_from_convex=relevance[0].distance_from_convex(),
        seen=seen,
        changed=changed,
        gallery=tuple(films[row] for row in gallery),
        compared=compared,
        films_left_out=left_out,
        competing=competing,
        findings=tuple(overlap.findings(compared, spec.labels)),
    )


def _thinned(wanted, found):
    """At most MOST_COMPARED films: all that are confused, then sure ones evenly; and how many were left."""
    rows = list(dict.fromkeys(row for row, _, _ in wanted))
    confused = [row for row in rows if found["kind"][row] != overlap.SURE][:MOST_COMPARED]
    sure = [row for row in rows if found["kind"][row] == overlap.SURE]
    room = MOST_COMPARED - len(confused)
    step = max(1, -(-len(sure) // room)) if room else len(sure) + 1
    chosen = {*confused, *sure[::step]} if room else {*confused}
    return [pair for pair in wanted if pair[0] in chosen], len(rows) - len(chosen)


def _gallery_rows(predictions, found, spec):
    """Row -> why it is shown, by true class: the most and the least confident right ones, then wrong ones."""
    _, _, probabilities = scoring.columns_of(predictions, spec)
    confidence = probabilities.max(axis=1)
    shown = {}
    for label in spec.labels:
        mine = (predictions["label"] == label).to_numpy()
        wrong = (found["kind"] == overlap.WRONG).to_numpy()
        right = np.flatnonzero(mine & ~wrong)
        right = right[np.argsort(-confidence[right], kind="stable")]
        errors = np.flatnonzero(mine & wrong)
        errors = errors[np.argsort(-confidence[errors], kind="stable")]
        least = right[max(MOST_SURE, len(right) - LEAST_SURE) :]
        shown |= dict.fromkeys(right[:MOST_SURE].tolist(), "most confident")
        shown |= dict.fromkeys(least.tolist(), "least confident")
        shown |= dict.fromkeys(errors[:WRONG].tolist(), "wrong")
    return shown


def _two_sided(cams):
    """The maps of both classes of a one-unit model; any other's as they are."""
    if cams.maps.shape[-1] > 1:
        return cams
    return dataclasses.replace(
        cams,
        maps=np.concatenate([-cams.maps, cams.maps], axis=-1),
        stage_maps=tuple(np.concatenate([-maps, maps], axis=-1) for maps in cams.stage_maps),
        weights=np.repeat(cams.weights, 2, axis=1),
        biases=np.concatenate([-cams.biases, cams.biases], axis=1),
        logits=np.concatenate([-cams.logits, cams.logits], axis=1),
    )


def _compared(maps, batch, by_row, found, competing):
    """The overlaps of one batch; the maps of confused films are put into `competing`."""
    pairs = [
        (index, row, first, second)
        for index, row in enumerate(batch)
        for first, second in by_row.get(row, [])
    ]
    indices, rows, firsts, seconds = np.array(pairs, int).reshape(-1, 4).T
    for index, row, first, second in pairs:
        if found["kind"][row] != overlap.SURE:
            competing[row] = maps[index, :, :, first].copy(), maps[index, :, :, second].copy()
    facts = {"row": rows, "kind": found["kind"][rows].to_numpy(), "first": firsts, "second": seconds}
    return pd.concat([pd.DataFrame(facts), overlap.overlaps(maps[indices], firsts, seconds)], axis=1)


def _film(cams, index, row, group, label):
    parts = tuple(
        weight * maps[index, :, :, label]
        for weight, maps in zip(cams.weights[:, label], cams.stage_maps, strict=True)
    )
    return ExplainedFilm(row, group, label, cams.maps[index, :, :, label].copy(), parts)


def sections(explained) -> dict:
    """What the report's template shows of an `Explained`: figures as inline pictures, tables as lists."""
    labels = explained.spec.labels
    galleries = []
    for label in labels:
        mine = explained.predictions["label"] == label
        films = [film for film in explained.gallery if mine[film.row]]
        drawn = [_drawn(explained, film) for film in films]
        drawn = [film for film in drawn if film is not None]
        if drawn:
            picture = map_plots.gallery(drawn, explained.stages, explained.weights)
            galleries.append({"label": label, "count": int(mine.sum()), "picture": picture})
    confused = explained.compared[explained.compared["kind"] != overlap.SURE]
    confused = confused.sort_values("overlap", ascending=False, kind="stable")
    rows = [_confused(explained, film) for film in confused[:MOST_LISTED].to_dict("records")]
    pictured = [row for row in rows if row["pixels"] is not None][:MOST_DRAWN]
    return {
        "stages": explained.stages,
        "seen": explained.seen,
        "changed": explained.changed,
        "films": len({*explained.compared["row"], *(film.row for film in explained.gallery)}),
        "films_left_out": explained.films_left_out,
        "two_classes": len(labels) == 2,
        "one_unit": explained.spec.task == "binary",
        "constraint": explained.constraint,
        "distance_from_convex": explained.distance_from_convex,
        "relevance": map_plots.relevance_bars(explained.weights, explained.stages, labels),
        "galleries": galleries,
        "findings": [_finding(explained, finding) for finding in explained.findings],
        "num_confused": len(confused),
        "confused": rows,
        "competing": map_plots.competing_maps(pictured) if pictured else None,
        "margin": overlap.MARGIN,
    }


def _pixels(path):
    """A film, or None if it went away since."""
    from kxray.io import FilmError, read_image

    try:
        return read_image(path).pixels
    except FilmError:
        return None


def _thumbnail(pixels, side=320):
    step = max(1, max(pixels.shape) // side)
    return pixels[::step, ::step]


def _facts(explained, row):
    film = explained.predictions.iloc[row]
    return {
        "name": Path(film["path"]).name,
        "path": film["path"],
        "label": film["label"],
        "predicted": film["predicted"],
        "probability": float(film[f"probability_{film['predicted']}"]),
    }


def _said(facts):
    return f"is {facts['label']}, says {facts['predicted']} {facts['probability']:.2f}"


def _drawn(explained, film):
    facts = _facts(explained, film.row)
    pixels = _pixels(facts["path"])
    if pixels is None:
        return None
    return map_plots.DrawnFilm(
        pixels=_thumbnail(pixels),
        group=film.group,
        caption=f"{facts['name'][-22:]}\n{_said(facts)}",
        explains=explained.spec.labels[film.label],
        label=film.label,
        heatmap=film.heatmap,
        parts=film.parts,
    )


def _confused(explained, compared):
    """One confused film as the template's table and the figure of competing maps take it."""
    facts = _facts(explained, compared["row"])
    pixels = _pixels(facts["path"])
    first, second = explained.competing[compared["row"]]
    labels = explained.spec.labels
    return {
        **facts,
        **{name: compared[name] for name in ("kind", "overlap", "area_first", "area_second", "area_shared")},
        "first": labels[compared["first"]],
        "second": labels[compared["second"]],
        "maps": (first, second),
        "box": _box(compared, pixels),
        "size": None if pixels is None else pixels.shape[::-1],
        "shares": [compared[name] for name in ("x0", "y0", "x1", "y1")],
        "pixels": None if pixels is None else _thumbnail(pixels),
    }


def _finding(explained, finding):
    """A PairFinding for the template, its films by name with the box that they share."""
    boxes = explained.compared
    pair = set(finding.labels)
    labels = np.array(explained.spec.labels)
    named = boxes[[{*labels[[a, b]]} == pair for a, b in zip(boxes["first"], boxes["second"], strict=True)]]
    named = named.set_index("row").to_dict("index")

    def films(rows):
        told = []
        for row in rows:
            facts, compared = _facts(explained, row), named[row]
            box = _box(compared, _pixels(facts["path"]))
            told.append({**facts, "overlap": compared["overlap"], "box": box})
        return told

    facts = {field.name: getattr(finding, field.name) for field in dataclasses.fields(finding)}
    return {**facts, "films": finding.films, "avoid": films(finding.avoid), "imitate": films(finding.imitate)}


def _box(compared, pixels):
    """The shared region in pixels of the film: x0, y0, x1, y1."""
    if pixels is None or not np.isfinite(compared["x0"]):
        return None
    height, width = pixels.shape
    low = np.floor([compared["x0"] * width, compared["y0"] * height])
    high = np.ceil([compared["x1"] * width, compared["y1"] * height])
    return tuple(np.concatenate([low, high]).astype(int).tolist())
