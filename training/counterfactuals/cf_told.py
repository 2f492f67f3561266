"""What a counterfactual GAN's run says at the shell."""

import dataclasses
import json
import math

from training import options, runs
from training.counterfactuals import cf_films, cf_targets
from training.generating import gan_options


def dry_run(recipe, run, console) -> None:
    """Says what would be done: films of each part and target, notes, steps."""
    console.print_json(json.dumps({"recipe": "counterfactual_gan", "options": options.as_json(recipe)}))
    if recipe.out is not None:
        runs.check_free(recipe.out)
    films, notes = cf_films.read(recipe, run), []
    if films.parts is None:
        parts, notes = cf_films.split(recipe, films.task, films.table)
        films = dataclasses.replace(films, parts=parts)
    rows = (films.parts == "train").nonzero()[0]
    learned = cf_targets.choose(recipe, run.spec, films.labels, rows, None)
    for part, counts in cf_films.described(films, learned.held, learned.names).items():
        told = ", ".join(f"{name} {count['with']}" for name, count in counts.items())
        console.print(f"{part}: {int((films.parts == part).sum())} films: {told}", soft_wrap=True)
    for note in [
        *films.notes,
        *notes,
        *learned.notes,
        *(
            f"would skip row {row}: {why}"
            for row, why in films.problems.get(["row", "problem"], films.problems).values
        ),
    ]:
        console.print(note, soft_wrap=True)
    side = run.spec.image_size[0]
    console.print(
        f"{side}-px films; {recipe.epochs} epochs of {gan_options.steps_of(recipe, len(rows))} steps, each "
        f"{recipe.discriminator_updates} discriminator and {recipe.generator_updates} generator updates on "
        f"{recipe.batch_size} films; whether the classifier is near chance is found out with the films",
        soft_wrap=True,
    )


def epoch_line(row, epochs) -> str:
    """One line an epoch, where no bar is shown."""
    told = [
        f"epoch {row['epoch']} of {epochs}: generator {row['generator_loss']:.3f}",
        f"discriminator {row['discriminator_loss']:.3f}",
    ]
    if "flip_rate" in row:
        told.append(
            f"flipped {row['flip_rate']:.2f}, changed by {row['change']:.4f} (unneeded "
            f"{row['change_unneeded']:.4f}), mask {row['mask']:.3f}"
        )
    if "val_objective" in row:
        told.append(f"objective {row['val_objective']:.3f}")
    return ", ".join([*told, f"{row['seconds']:.0f} s"])


def tell(console, folder, scores) -> None:
    """Says what metrics.json holds."""
    whole = scores["test"]["all"]
    lines = [
        f"kept: epoch {scores['epoch']} ({scores['kept_by']})",
        f"{scores['test']['conditions']}: flip rate {interval(whole['flip_rate'])}, mean change "
        f"{interval(whole['change'])}, of films that need none {interval(whole['change_unneeded'])}, drift "
        f"of other labels {interval(whole['drift'])}",
    ]
    if len(scores["test"]["targets"]) > 1:
        lines += [
            f"  {name}: flip rate {interval(score['flip_rate'])}, mean change {interval(score['change'])}"
            for name, score in scores["test"]["targets"].items()
        ]
    lines += [f"watch: {finding['sentence']}" for finding in scores["watch"]]
    if scores["saved_model"]:
        lines.append(f"SavedModel {scores['saved_model']}")
    lines.append(f"report {(folder / 'report.html').resolve()}")
    console.print("\n".join(lines), soft_wrap=True)


def interval(score) -> str:
    """ "0.93 [0.89, 0.96]"; "-" where there is nothing to tell."""
    if score["value"] is None or not math.isfinite(score["value"]):
        return "-"
    told = _number(score["value"])
    if score["low"] is not None and math.isfinite(score["low"]):
        told += f" [{_number(score['low'])}, {_number(score['high'])}]"
    return told


def _number(value):
    if not value:
        return "0"
    return f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.4f}"
