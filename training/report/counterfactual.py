"""The report of a counterfactual GAN: one HTML file that needs nothing beside it."""

from pathlib import Path

from kxray.io.files import write_whole
from training.report import gan_plots
from training.report.counterfactual_pictures import for_page

_CURVES = {
    "flip rate": ["flip_rate"],
    "mean change": ["change", "change_unneeded"],
    "mask": ["mask", "mask_low", "mask_high"],
    "drift of other labels": ["drift"],
    "objective": ["objective", "val_objective"],
    "classifier's term": ["classifier", "val_classifier"],
}


def write_report(folder, config, scores, history, steps, examples) -> Path:
    """Writes RUN/report.html.

    Args:
        folder: run folder.
        config: what config.json holds.
        scores: what metrics.json holds, but for saved_model.
        history: one row an epoch.
        steps: one row every few steps, with discriminator_updates and losses.
        examples: list of `training.report.counterfactual_pictures.DrawnCounterfactual`.
    """
    import jinja2

    from training.counterfactuals.cf_told import interval

    curves = {
        title: [name for name in names if name in history and history[name].notna().any()]
        for title, names in _CURVES.items()
    }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training", "report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["interval"] = interval
    page = environment.get_template("counterfactual.html.j2").render(
        title=f"{config['recipe']}: {Path(folder).name}",
        config=config,
        scores=scores,
        examples=[for_page(example) for example in examples],
        figure_two=gan_plots.figure_two(steps),
        curves=gan_plots.by_epoch(history, {k: v for k, v in curves.items() if v}, scores["epoch"]),
        sheets=gan_plots.sheets(folder, gan_plots.chosen_epochs(len(history), scores["epoch"])),
        ablated=ablated(config["options"]),
    )
    path = Path(folder) / "report.html"
    write_whole(path, page)
    return path


def ablated(chosen) -> list[str]:
    """What was left out of the whole model, in words.

    Args:
        chosen: the options of a run.
    """
    left_out = {
        "no residual connection: the film is drawn anew": not chosen["residual"],
        "no attention mask": chosen["residual"] and not chosen["attention"],
        "no classifier term": not chosen["classifier_weight"],
        "no discriminator term": not chosen["adversarial_weight"],
    }
    return [name for name, is_so in left_out.items() if is_so]
