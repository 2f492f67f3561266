"""What the score of a finished run is made of: anatomy or border, all films or some of them.

`audit_run` answers `python -m training.audit --run RUN`; `report/_audited_run.html.j2` shows the answer.
"""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd

from training import runs, scoring, shell
from training.auditing.audited_slices import slices_of
from training.auditing.run_films import (
    conditions_of,
    films_to_ask,
    groups_of,
    match_films,
    matching_notes,
    read_finished,
    truth_of,
)

# The border is the outer eighth of each side, the centre what is left: 56% of the area.
BORDER = 0.125
SCORES = ("accuracy", "balanced_accuracy", "auroc")
BATCH = 32
EXAMPLES = 6
# A run's probabilities and those of its kept model agree to rounding; half precision rounds coarsely.
_AGREEMENT = 0.05


def audit_run(run, table, baselines, *, folder, thumbnails=None, progress=None, workers=None) -> dict:
    """Holds the score of a classifier run against its shortcuts.

    Args:
        run: finished run folder of `training.fit` whose labels exclude each other.
        table: the readable films, a manifest: path (absolute), patient_id, the run's labels in some column,
            and whatever else is known of them (view, sex, age, source, bits, ...), by which films are sliced.
        baselines: name of a classifier that sees no anatomy -> dict of accuracy, balanced_accuracy and auroc,
            each {value, low, high}.
        folder: where run_films.csv is written, a row for each film that the kept model looked at.
        thumbnails: uint8 (len(table), 32, 32) of the films, from `kxray.data.audit.thumbnail`; with them a
            film that shows the picture of a training film is not taken for a new one.
        progress: rich progress, see `training.shell.progress_bars`.
        workers: decoding workers; one a core by default.

    Returns:
        dict of JSON values (None where a number is undefined), the variable `run` of _audited_run.html.j2:
        folder, name, recipe, labels, films, conditions, notes, scores (of the run's predictions on films that
        their model had not seen), baselines, blanked (scores of the kept model on films without their centre
        or border), explained (share of explanation mass at the border; None where the model cannot be
        explained) and slices.

    Raises:
        ValueError: no finished classifier run, or a run of other films.
    """
    from kxray import metrics

    finished = read_finished(Path(run))
    spec, predictions = finished.spec, finished.predictions
    truth_column, truth = truth_of(table, spec.labels)
    rows, found_by = match_films(predictions, table, truth)
    if not (rows >= 0).any():
        raise ValueError(
            f"{run}: none of its {len(predictions)} tested films is among the {len(table)} films of the data "
            f"(the first is {predictions['path'].iloc[0]}); give the --data it was trained on, or another run"
        )
    known = predictions[rows >= 0].reset_index(drop=True)
    known_rows = rows[rows >= 0]
    groups = groups_of(known)
    labels, _, probabilities = scoring.columns_of(known, spec)
    scores = metrics.classification_scores(labels, probabilities, groups, spec.labels)
    relabelled = int(((truth[known_rows] != "") & (truth[known_rows] != known["label"].to_numpy())).sum())
    notes = matching_notes(finished, len(known), found_by, relabelled)
    looked_at = films_to_ask(finished, known, known_rows, table, truth, thumbnails)
    answers = _answers(finished, looked_at, progress, workers)
    if looked_at.of_run:
        _check_agreement(finished, looked_at, answers, probabilities, found_by, notes)
    runs.write_table(Path(folder) / "run_films.csv", _film_table(spec, looked_at, answers))
    notes += answers.notes
    own = [
        {"name": name, "same_films": True, **{score: finished.scores[key][score] for score in SCORES}}
        for key, name in (("histogram_baseline", "histogram"), ("baseline", "histogram, border, sharpness"))
        if key in finished.scores and len(known) == len(predictions)
    ]
    given = [
        {"name": name.replace("_", " "), "same_films": False, **{score: row[score] for score in SCORES}}
        for name, row in baselines.items()
    ]
    result = {
        "folder": str(run),
        "name": Path(run).resolve().name,
        "recipe": finished.config["recipe"],
        "labels": list(spec.labels),
        "films": len(known),
        "conditions": conditions_of(finished, scores),
        "notes": notes,
        "scores": {key: scores[key] for key in ("films", "patients", *SCORES, "recall")},
        "baselines": [*own, *given],
        "blanked": _blanked(spec, looked_at, answers),
        "explained": _explained(spec, looked_at, answers),
        "slices": slices_of(known, known_rows, groups, table, truth_column, spec),
    }
    # What is undefined becomes null.
    text = json.dumps(result, default=lambda value: value.tolist())
    return json.loads(text, parse_constant=lambda constant: None)


# What the kept model says of films without centre or border


@dataclasses.dataclass
class _Answers:
    """Of the M films that could be read: their positions, probabilities, border shares, and some pictures."""

    read: np.ndarray
    whole: np.ndarray
    centre_blanked: np.ndarray
    only_centre: np.ndarray
    border_shares: np.ndarray | None
    method: str | None
    examples: list
    notes: list


def border_mask(image_size) -> np.ndarray:
    """bool (h, w): the outer eighth of each side."""
    mask = np.ones(image_size, bool)
    rows, columns = (max(1, round(BORDER * side)) for side in image_size)
    mask[rows:-rows, columns:-columns] = False
    return mask


def blanked(pixels, mask) -> np.ndarray:
    """Films (N, h, w, 1) whose pixels in `mask` (h, w) have the median grey of the pixels outside it.

    So nothing of what is blanked is left, not even its brightness.
    """
    result = np.array(pixels, np.float32)
    result[:, mask] = np.median(result[:, ~mask], axis=1)[:, None]
    return result


def _answers(finished, looked_at, progress, workers):
    import kxray

    shell.load_tensorflow()
    model, spec = kxray.load(finished.folder)
    logits_of = scoring.traced_logits(model, spec)
    notes = []
    explain, method = _explainer(model, notes)
    border = border_mask(spec.image_size)
    logits = {"whole": [], "centre_blanked": [], "only_centre": []}
    read, shares, examples = [], [], []
    for indices, pixels in _batches(looked_at.paths, spec, notes, progress, workers):
        views = {"centre_blanked": blanked(pixels, ~border), "only_centre": blanked(pixels, border)}
        for name, films in {"whole": pixels, **views}.items():
            logits[name].append(logits_of(films).numpy())
        read += indices
        if explain is not None:
            maps = explain(pixels, np.full(len(pixels), -1, np.int32)).numpy().sum(axis=-1)
            shares.append(_border_shares(maps, border))
            films = zip(shares[-1], indices, pixels[..., 0], maps, strict=True)
            examples += [film for film in films if np.isfinite(film[0])]
            examples = sorted(examples, key=lambda film: -film[0])[:EXAMPLES]
    if not read:
        raise ValueError(f"{finished.folder}: not one of its films can be read ({notes[-1]})")
    return _Answers(
        read=np.array(read),
        **{
            name: scoring.probabilities_of(np.concatenate(some), spec.temperature)
            for name, some in logits.items()
        },
        border_shares=np.concatenate(shares) if shares else None,
        method=method,
        examples=examples,
        notes=notes,
    )


def _batches(paths, spec, notes, progress, workers):
    """Yields (positions in `paths`, float32 (up to BATCH, h, w, 1)) of the films that can be read."""
    from kxray.data.pipeline import stream_inputs
    from kxray.io import FilmError

    bar = progress and progress.add_task("blanking and explaining", total=len(paths), facts="")
    batch = []
    # What a recipe refuses as too small it has not trained on; nothing else is refused here.
    for index, result in stream_inputs(paths, spec, workers=workers, min_side=1):
        if isinstance(result, FilmError):
            notes.append(f"left out: {result}")
        else:
            batch.append((index, result))
        if len(batch) == BATCH:
            yield [index for index, _ in batch], np.stack([pixels for _, pixels in batch])
            batch = []
        if progress:
            progress.update(bar, completed=index + 1)
    if batch:
        yield [index for index, _ in batch], np.stack([pixels for _, pixels in batch])


def _explainer(model, notes):
    from kxray import explain

    try:
        method = explain.default_methods(model)[0]
        return explain.explainer(model, method, upsample=True), method
    except ValueError as error:
        notes.append(f"the model cannot be explained: {error}")
        return None, None


def _border_shares(maps, border):
    """Mean |map| at the border over that of the film, (N,): 1 without preference; NaN for a map of 0."""
    size = np.abs(maps.astype(float))
    everywhere = size.mean(axis=(1, 2))
    return size[:, border].mean(axis=1) / np.where(everywhere > 0, everywhere, np.nan)


def _check_agreement(finished, looked_at, answers, recorded, found_by, notes):
    """Are these the films that the run was tested on? Its kept model tells.

    The model of a single split made the run's predictions, and answers the same. That of folds was trained on
    these films, and is right at least as often as models that had not seen them.
    """
    labels = looked_at.labels[answers.read]
    right = answers.whole.argmax(axis=1) == labels
    if len(looked_at.paths) < len(recorded):
        return
    if looked_at.seen:
        before = np.mean(recorded[answers.read].argmax(axis=1) == labels)
        others = right.mean() < before - 0.1
        how = f"its model gets {right.mean():.2f} of them right, trained on them, and {before:.2f} before"
    else:
        apart = np.abs(answers.whole - recorded[answers.read]).max(axis=1) > _AGREEMENT
        others = apart.mean() > 0.1
        how = f"its model answers otherwise on {int(apart.sum())} of {len(apart)}"
        if apart.any():
            notes.append(
                f"on {int(apart.sum())} of {len(apart)} films the kept model no longer gives the run's "
                "probabilities: these files have changed"
            )
    if others and "name" in found_by:
        raise ValueError(
            f"{finished.folder}: films of the data have the names of its tested films, but {how}: these are "
            "other films; give the --data it was trained on"
        )


def _film_table(spec, looked_at, answers):
    columns = {
        "path": [looked_at.paths[index] for index in answers.read],
        "label": [spec.labels[index] for index in looked_at.labels[answers.read]],
    }
    for name in ("whole", "centre_blanked", "only_centre"):
        probabilities = getattr(answers, name)
        columns[name] = [spec.labels[index] for index in probabilities.argmax(axis=1)]
        columns |= {f"{name}_{label}": probabilities[:, index] for index, label in enumerate(spec.labels)}
    if answers.border_shares is not None:
        columns["border_share"] = answers.border_shares
    return pd.DataFrame(columns)


def _blanked(spec, looked_at, answers):
    from kxray import metrics

    labels, groups = looked_at.labels[answers.read], looked_at.groups[answers.read]
    decided = answers.whole.argmax(axis=1)
    variants = []
    for name, shown in (
        ("whole", "the whole film"),
        ("centre_blanked", "centre blanked"),
        ("only_centre", "only the centre kept"),
    ):
        probabilities = getattr(answers, name)
        scores = metrics.classification_scores(labels, probabilities, groups, spec.labels)
        now = probabilities.argmax(axis=1)
        variants.append(
            {
                "name": name,
                "shown": shown,
                **{score: scores[score] for score in SCORES},
                "changed": int((now != decided).sum()),
                "decided": {label: int((now == index).sum()) for index, label in enumerate(spec.labels)},
            }
        )
    return {
        "films": len(labels),
        "seen": looked_at.seen,
        "on": looked_at.told,
        "border": BORDER,
        "border_area": float(border_mask(spec.image_size).mean()),
        "variants": variants,
        "reading": _reading(*(variant["auroc"] for variant in variants))
        + (" It was trained on these films: take this as a hint." if looked_at.seen else ""),
    }


def _reading(whole, without_centre, only_centre, chance=0.5):
    """What three AUROCs say; accuracies would also fall where blanking only shifts all probabilities."""
    if not math.isfinite(whole["low"]):
        return "There are too few films of some class to say what blanking does."
    if whole["low"] <= chance:
        return "The model is not above chance on these films, so blanking them says nothing."
    kept = (without_centre["value"] - chance) / (whole["value"] - chance)
    told = f"an AUROC of {without_centre['value']:.2f} of {whole['value']:.2f}"
    if kept >= 0.8:
        text = f"With the centre blanked the model keeps {told}: the border alone is enough for it."
    elif without_centre["low"] > chance:
        text = f"With the centre blanked the model keeps {told}, above chance: it also goes by the border."
    else:
        text = f"With the centre blanked the model falls to {told}, chance: it needs the centre."
    return f"{text} With only the centre kept it reaches {only_centre['value']:.2f}."


# Where its explanations point


def _explained(spec, looked_at, answers):
    from kxray import metrics
    from kxray.io.overlay import overlay
    from training.report import plots

    if answers.border_shares is None:
        return None
    labels, groups = looked_at.labels[answers.read], looked_at.groups[answers.read]
    loud = np.isfinite(answers.border_shares)

    def mean(members):
        members = members & loud
        shares = answers.border_shares[members]
        if not len(shares):
            return {"films": 0, "value": math.nan, "low": math.nan, "high": math.nan}
        low, high = metrics.patient_bootstrap(
            lambda weights: (weights * shares).sum(-1) / weights.sum(-1), groups[members]
        )
        return {"films": len(shares), "value": float(shares.mean()), "low": low, "high": high}

    whole = mean(np.ones(len(labels), bool))
    if not loud.any():
        reading = "The maps are zero everywhere."
    elif whole["low"] > 1:
        reading = (
            f"The border has {whole['value']:.2f} times its share of the explanation: it draws the model."
        )
    elif whole["high"] < 1:
        reading = (
            f"The border has {whole['value']:.2f} times its share of the explanation: it is passed over."
        )
    else:
        reading = f"The border has {whole['value']:.2f} times its share of the explanation: no preference."
    place = {index: row for row, index in enumerate(answers.read.tolist())}
    films, captions = [], []
    for share, index, pixels, heatmap in answers.examples:
        films.append(overlay(pixels, heatmap))
        said = spec.labels[answers.whole[place[index]].argmax()]
        name = Path(looked_at.paths[index]).name[-24:]
        captions.append(f"{name}\nis {spec.labels[looked_at.labels[index]]}, says {said}\nborder {share:.2f}")
    return {
        "method": answers.method,
        "silent": int((~loud).sum()),
        "overall": whole,
        "by_label": {label: mean(labels == index) for index, label in enumerate(spec.labels)},
        "reading": reading,
        "picture": plots.contact_sheet(films, captions) if films else None,
    }
