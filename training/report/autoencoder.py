"""The report of an autoencoder: one HTML file that needs nothing beside it."""

from pathlib import Path

from kxray.io.files import write_whole
from training.report import plots

_COLUMNS = 6
_SCORES = {
    "psnr": "peak signal-to-noise ratio, dB",
    "ssim": "structural similarity",
    "error": "mean |error|, share of full range",
}
_AGREEMENT = {
    "same_decisions": "share of decisions that stay the same",
    "drift": "mean change of probabilities",
}


def write_report(folder, config, scores, history, shown) -> Path:
    """Writes RUN/report.html.

    Args:
        folder: run folder.
        config: what config.json holds.
        scores: what metrics.json holds.
        history: one row an epoch.
        shown: dict with `films` and `given_back` (N, h, w) in [0, 1], and `errors` (N,).
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training", "report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("autoencoder.html.j2").render(
        title=f"autoencoder: {Path(folder).name}",
        config=config,
        scores=scores,
        rows={words: scores[name] for name, words in _SCORES.items()},
        agreement={words: scores["classifier"][name] for name, words in _AGREEMENT.items()}
        if "classifier" in scores
        else {},
        curves=plots.training_curves(history),
        films=beside(shown),
    )
    path = Path(folder) / "report.html"
    write_whole(path, page)
    return path


def beside(shown) -> str:
    """Films above what they are given back as, as an inline picture."""
    rows, titles = [], []
    for start in range(0, len(shown["films"]), _COLUMNS):
        some = slice(start, start + _COLUMNS)
        rows += [list(shown["films"][some]), list(shown["given_back"][some])]
        titles += [["" for _ in rows[-1]], [f"|error| {error:.3f}" for error in shown["errors"][some]]]
    names = ["film", "given back"] * (len(rows) // 2)
    return plots.inline_films(plots.film_grid(rows, names, titles, side=1.5))
