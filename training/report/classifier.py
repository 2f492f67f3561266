"""The report of a classifier run: one HTML file that needs nothing beside it."""

from pathlib import Path

import numpy as np

from kxray.io.files import write_whole
from training import scoring
from training.report import plots
from training.report.explained import sections

FILMS_SHOWN = 24


def write_report(folder, spec, config, scores, predictions, history, explained=None) -> Path:
    """Writes RUN/report.html.

    Args:
        folder: run folder.
        spec: ModelSpec of the kept model.
        config: what config.json holds.
        scores: what metrics.json holds.
        predictions: prediction table of validation and test films.
        history: history of the kept model, one row an epoch.
        explained: what `training.report.explained.explain_films` found, or None for a report without maps.
    """
    import jinja2

    from kxray import metrics

    test = predictions[predictions["part"] == "test"].reset_index(drop=True)
    labels, logits, probabilities = scoring.columns_of(test, spec)
    uncalibrated = scoring.probabilities_of(logits, 1.0)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training", "report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["score"] = interval
    environment.filters["share"] = _share
    page = environment.get_template("classifier.html.j2").render(
        explained=None if explained is None else sections(explained),
        title=f"{config['recipe']}: {Path(folder).name}",
        spec=spec,
        config=config,
        scores=scores,
        verdict=_verdict(scores),
        best_epoch=int(history["epoch"][history["val_loss"].idxmin()]),
        curves=plots.training_curves(history),
        confusion=plots.confusion_matrix(scores["confusion"], spec.labels),
        reliability=plots.reliability_diagram(
            metrics.reliability_curve(probabilities, labels), metrics.reliability_curve(uncalibrated, labels)
        ),
        wrong=_sheet(test[test["predicted"] != test["label"]], spec),
        num_wrong=int((test["predicted"] != test["label"]).sum()),
        uncertain=_sheet(test[test["predicted"] == test["label"]], spec),
    )
    path = Path(folder) / "report.html"
    write_whole(path, page)
    return path


def interval(score) -> str:
    """A score with its 95% interval."""
    return f"{score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}]"


def _share(value):
    return f"{value:.2f}" if np.isfinite(value) else "undefined"


def _verdict(scores):
    model, near = scores["balanced_accuracy"], scoring.reaching(scores)
    if near is not None:
        return (
            f"shortcut likely: a classifier that sees no anatomy reaches {near['value']:.3f} of the "
            f"model's {model['value']:.3f} balanced accuracy on the same films; python -m training.audit "
            "--run looks into it"
        )
    baseline = scores["baseline"]["balanced_accuracy"]
    return (
        f"a classifier that sees no anatomy reaches {baseline['value']:.3f}, the model {model['value']:.3f} "
        "balanced accuracy on the same films: grey levels, border and sharpness do not explain the score"
    )


def _sheet(predictions, spec):
    """The films of a prediction table with the least probability for their true label, as a picture."""
    from kxray.io import FilmError, read_image

    if not len(predictions):
        return None
    labels, _, probabilities = scoring.columns_of(predictions, spec)
    of_truth = probabilities[np.arange(len(labels)), labels]
    films, captions = [], []
    for row in np.argsort(of_truth)[:FILMS_SHOWN]:
        film = predictions.iloc[row]
        try:
            pixels = read_image(film["path"]).pixels
        except FilmError:
            continue
        step = max(1, max(pixels.shape) // 256)
        films.append(pixels[::step, ::step])
        certain = probabilities[row].max()
        captions.append(
            f"{Path(film['path']).name[-24:]}\nis {film['label']}\nsays {film['predicted']} {certain:.2f}"
        )
    return plots.contact_sheet(films, captions) if films else None
