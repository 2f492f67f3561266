"""Trains a recipe: `python -m training.fit RECIPE [options]`."""

import click

from training import recipes
from training.registry import FolderGroup


@click.command(cls=FolderGroup, package=recipes, noun="recipe")
def main():
    """Trains a recipe on a folder of films and leaves a run folder with the trained model, its measured
    scores, a report to look at, and a SavedModel to serve."""


if __name__ == "__main__":
    main(prog_name="python -m training.fit")
