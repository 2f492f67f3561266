"""The job of `training.compare transfer`: options and films checked, a matrix run made or told of."""

from pathlib import Path

from training import chosen_labels, findings, runs
from training import films as film_tables
from training.comparing import compared_films, comparison_run, matrix_advice
from training.comparing.matrix_scores import FROZEN
from training.recipes import transfer


def run(recipe, given, rows_of) -> Path | None:
    """Runs or resumes a matrix run and returns its folder."""
    recipe, given = runs.with_absolute_places(recipe, given)

    def work(recipe, folder, progress):
        from training.comparing.matrix_run import Matrix

        Matrix(recipe, folder, progress, rows_of(recipe)).run()

    return comparison_run.run(
        "transfer",
        recipe,
        given,
        lambda console: _plan(recipe, given, rows_of, console),
        work,
        matrix_advice.told,
    )


def _plan(recipe, given, rows_of, console):
    compared_films.check_options(recipe, given)
    if recipe.labels is not None:
        if recipe.data is None:
            raise ValueError("--labels chooses among the labels of --data; there is none")
        chosen_labels.parse(recipe.labels)
    rows = rows_of(recipe)
    for row in rows:
        transfer.task_of(row.recipe)
    table, notes = chosen_labels.read(recipe)
    if table is not None:
        _check_films(recipe, table)
    if recipe.dry_run:
        _tell(recipe, rows, table, notes, console)


def _check_films(recipe, table):
    """What can be told of films that were not read yet."""
    from kxray.data import held_out

    if recipe.split is not None:
        compared_films.check_counts(recipe.split, len(findings.real_films(table)[0]))
    else:
        made = held_out.synthetic_films(table)
        held_out.refuse(
            table, made, "a fold would test on it; give --split, which is of the real films alone"
        )
    column = recipe.label_column if recipe.label_column in table.columns else "label"
    if column in table.columns and recipe.split is None:
        for label, count in table[column].value_counts().items():
            if label != "" and count < recipe.folds:
                raise ValueError(
                    f"label {label!r} has {count} films, too few for --folds {recipe.folds}; give fewer "
                    "folds, or --split"
                )


def _tell(recipe, rows, table, notes, console):
    """What a run would train."""
    films = recipe.phantoms or film_tables.DEFAULT_PHANTOMS
    if table is not None:
        films = len(table)
        column = recipe.label_column if recipe.label_column in table.columns else "label"
        if column in table.columns:
            counts = ", ".join(f"{name} {count}" for name, count in table[column].value_counts().items())
            console.print(f"{films} films: {counts}", soft_wrap=True)
    for note in notes:
        console.print(note, soft_wrap=True)
    repeated = recipe.seeds * (1 if recipe.split else recipe.folds)
    if recipe.split:
        share = compared_films.shares(recipe.split)[0]
        films_in = min(sum(compared_films.counts(recipe.split) or [films]), films)
    else:
        share, films_in = (1 - 1 / recipe.folds) * (1 - film_tables.VALIDATION_SHARE), films
    trained = round(share * films_in)
    for row in rows:
        cells = repeated * (1 + len(row.sizes))
        passes = cells * row.recipe.epochs * trained
        work = (
            f"features of {films} films once, then heads in seconds each"
            if row.mode == FROZEN
            else f"about {passes:,} films forward and backward through the network"
        )
        curve = (
            f" ({repeated} for each of {', '.join(map(str, row.sizes))} and all films)" if row.sizes else ""
        )
        console.print(
            f"would train {row.name} from {row.recipe.weights}: {cells} times{curve}, {row.recipe.epochs} "
            f"epochs of about {trained} films: {work}",
            soft_wrap=True,
        )
