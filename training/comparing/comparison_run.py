"""The job that every comparison shares: its options checked, its folder made or resumed, its result told."""

import json
from pathlib import Path

from rich.console import Console

from training import options, runs


def run(name, recipe, given, plan, work, told, phantoms="fillet-phantoms") -> Path | None:
    """Runs or resumes a comparison and returns its folder; None after a dry run.

    Args:
        name: of the comparison.
        recipe: its options, with absolute places.
        given: those that were given at the shell.
        plan: function of a console: raises ValueError on options or films that will not do, and tells of a
            dry run what would be done.
        work: function (recipe, folder, progress) that leaves metrics.json and report.html in the folder.
        told: function of what metrics.json holds: its lines for the shell.
        phantoms: what generated films are called in the name of the folder.
    """
    console = Console(highlight=False, markup=False)
    if recipe.resume:
        folder, recipe = runs.resumed(recipe, given)
    else:
        if recipe.dry_run and recipe.out is not None:
            runs.check_free(recipe.out)
        plan(console)
        if recipe.dry_run:
            return None
        source = Path(recipe.data).resolve().name if recipe.data else phantoms
        folder = runs.create(recipe.out or runs.default_folder(f"compare-{name}", source))
        kept = {"recipe": f"compare {name}", "options": options.as_json(recipe)}
        runs.write_json(folder / "config.json", kept)
    console.print(f"folder {folder}", soft_wrap=True)
    if not (folder / "metrics.json").exists():
        runs.carried_out(folder, recipe.resume, console, lambda progress: work(recipe, folder, progress))
    for line in told(json.loads((folder / "metrics.json").read_text(encoding="utf-8"))):
        console.print(line, soft_wrap=True)
    console.print(f"report {(folder / 'report.html').resolve()}", soft_wrap=True)
    return folder
