"""What a conditional GAN's run says at the shell."""

import json

import numpy as np

from training import options, runs
from training.generating import gan_films, gan_options


def dry_run(recipe, task, console) -> None:
    """Says what would be done: films of each part and condition, notes, steps."""
    console.print_json(json.dumps({"recipe": task.name, "options": options.as_json(recipe)}))
    if recipe.out is not None:
        runs.check_free(recipe.out)
    if recipe.data is None:
        console.print(f"would generate {recipe.phantoms} thorax phantoms")
        return None
    table, problems, notes = gan_films.read(recipe)
    conditions = gan_films.conditions_of(recipe, table)
    parts, own_notes = gan_films.split(recipe, conditions)
    for part in np.unique(parts):
        counts = conditions.counts(parts == part)
        told = ", ".join(f"{label} {count}" for label, count in counts.items())
        console.print(f"{part}: {sum(counts.values())} films: {told}", soft_wrap=True)
    for note in [
        *notes,
        *conditions.notes,
        *own_notes,
        *(f"would skip row {row}: {why}" for row, why in problems[["row", "problem"]].values),
    ]:
        console.print(note, soft_wrap=True)
    steps = gan_options.steps_of(recipe, int((parts == "train").sum()))
    console.print(
        f"{task.side}-px films; {recipe.epochs} epochs of {steps} steps, each {recipe.discriminator_updates} "
        f"discriminator and {recipe.generator_updates} generator updates on {recipe.batch_size} films"
    )
    return None


def epoch_line(row, epochs):
    """One line an epoch, where no bar is shown."""
    told = [
        f"epoch {row['epoch']} of {epochs}: generator {row['generator_loss']:.3f}",
        f"discriminator {row['discriminator_loss']:.3f}",
    ]
    if "fdd" in row:
        told.append(f"FDD {row['fdd']:.4g}, KID {row['kid']:.4g}")
    told.append(f"diversity {row['diversity']:.2f}, nearest {row['nearest']:.2f}, {row['seconds']:.0f} s")
    return ", ".join(told)


def tell(console, folder, scores) -> None:
    """Says what metrics.json holds."""
    lines = [f"kept: epoch {scores['epoch']} ({scores['kept_by']})"]
    if scores.get("fdd") is not None:
        first = scores["first_epoch"]
        lines[0] += (
            f", FDD {scores['fdd']:.4g} (first epoch {first['fdd']:.4g}), KID {scores['kid']:.4g} (first "
            f"{first['kid']:.4g}), {scores['compared_films']} validation films and as many generated ones"
        )
    lines.append(
        f"films differ by {_number(scores['diversity'])} of what real ones do; the median one is "
        f"{_number(scores['nearest'])} times as far from a training film as held-out films are"
    )
    lines += [f"watch: {finding['sentence']}" for finding in scores["watch"]]
    if scores["saved_model"]:
        lines.append(f"SavedModel {scores['saved_model']}")
    lines.append(f"report {(folder / 'report.html').resolve()}")
    console.print("\n".join(lines), soft_wrap=True)


def _number(value):
    return "nan" if value is None else f"{value:.2f}"
