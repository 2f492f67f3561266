"""The report of a run on findings that may occur together: one HTML file that needs nothing beside it."""

import dataclasses
from pathlib import Path

import numpy as np
from scipy.special import expit

from kxray.io.files import write_whole
from training import finding_scores
from training.report import plots
from training.report.classifier import interval

# Of each finding: films that have it and that the model is surest of, those that it misses most, and films
# without it that it finds it in.
SHOWN = {"found": 3, "missed": 2, "false alarm": 3}
BATCH = 32


@dataclasses.dataclass(frozen=True)
class ExplainedFindings:
    """Films with maps of one finding each.

    Attributes:
        method: of `kxray.explain`.
        seen: whether the kept model was trained on these films.
        rows: int (M,), rows of the prediction table.
        labels: int (M,), the finding that is explained of each.
        groups: M keys of SHOWN.
        maps: float32 (M, h, w), signed and raw.
    """

    method: str
    seen: bool
    rows: np.ndarray
    labels: np.ndarray
    groups: tuple[str, ...]
    maps: np.ndarray


def explain_findings(model, spec, inputs, predictions, seen=False):
    """Explains some test films of each finding, for `write_findings_report`.

    Args:
        model: the model that is kept.
        spec: its ModelSpec.
        inputs: `kxray.data.pipeline.NetworkInputs` that `predictions["position"]` points into.
        predictions: prediction table of the test films.
        seen: whether the model was trained on them.

    Returns:
        ExplainedFindings, or None where there is no film to show.
    """
    from kxray import explain

    truths, _, probabilities, decided = finding_scores.columns_of(predictions, spec)
    chosen = []
    for index in range(spec.num_labels):
        by_probability = np.argsort(-probabilities[:, index], kind="stable")
        there, said = (values[by_probability, index] for values in (truths, decided))
        order = {
            "found": by_probability[(there == 1) & said],
            "missed": by_probability[(there == 1) & ~said][::-1],
            "false alarm": by_probability[(there == 0) & said],
        }
        chosen += [(row, index, group) for group, rows in order.items() for row in rows[: SHOWN[group]]]
    if not chosen:
        return None
    rows, labels, groups = map(np.array, zip(*chosen, strict=True))
    method = explain.default_methods(model)[0]
    positions = predictions["position"].to_numpy()[rows]
    maps, start = [], 0
    for pixels in inputs.batches(positions, BATCH):
        targets = labels[start : start + len(pixels)]
        maps.append(explain.attribute(model, pixels, targets, method).sum(axis=-1))
        start += len(pixels)
    return ExplainedFindings(method, seen, rows, labels, tuple(groups.tolist()), np.concatenate(maps))


def write_findings_report(
    folder, spec, config, scores, predictions, history, explained=None, places=None
) -> Path:
    """Writes RUN/report.html.

    Args:
        folder: run folder.
        spec: ModelSpec of the kept model.
        config: what config.json holds.
        scores: what metrics.json holds.
        predictions: prediction table of validation and test films.
        history: history of the kept model, one row an epoch.
        explained: ExplainedFindings, or None for a report without maps.
        places: dict of what is known of where findings are: `localisation`, of
            `training.report.localisation.section`, and `masks`, a picture or None; or None.
    """
    import jinja2

    from kxray import metrics

    test = predictions[predictions["part"] == "test"].reset_index(drop=True)
    truths, logits, probabilities, _ = finding_scores.columns_of(test, spec)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training", "report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["score"] = interval
    page = environment.get_template("findings.html.j2").render(
        title=f"{config['recipe']}: {Path(folder).name}",
        spec=spec,
        config=config,
        scores=scores,
        reached=finding_scores.reaching(scores),
        best_epoch=int(history["epoch"][history["val_loss"].idxmin()]),
        curves=plots.training_curves(history),
        ranking=plots.roc_curves(truths, probabilities, spec.labels),
        reliability=plots.reliability_diagram(
            metrics.reliability_curve(probabilities, truths),
            metrics.reliability_curve(expit(logits), truths),
            "stated probability (films times findings in the bin beside the point)",
            "share that has the finding",
        ),
        galleries=[] if explained is None else _galleries(explained, test, spec),
        explained=explained,
        **(places or {"localisation": None, "masks": None}),
    )
    path = Path(folder) / "report.html"
    write_whole(path, page)
    return path


def _galleries(explained, predictions, spec):
    """One contact sheet a finding: its films with their maps over them."""
    from kxray.io import FilmError, read_image
    from kxray.io.overlay import overlay

    sheets = []
    for index, name in enumerate(spec.labels):
        films, captions = [], []
        for place in np.flatnonzero(explained.labels == index):
            film = predictions.iloc[explained.rows[place]]
            try:
                pixels = read_image(film["path"]).pixels
            except FilmError:
                continue
            step = max(1, max(pixels.shape) // 256)
            films.append(overlay(pixels[::step, ::step], explained.maps[place]))
            stated = f"{explained.groups[place]} {film[f'probability_{name}']:.2f}"
            captions.append(f"{Path(film['path']).name[-24:]}\n{stated}\nhas {film['label'] or 'none'}"[:80])
        if films:
            columns = min(len(films), sum(SHOWN.values()))
            sheets.append({"name": name, "picture": plots.contact_sheet(films, captions, columns)})
    return sheets
