"""Compares ways to train on one's own films: `python -m training.compare WHAT [options]`."""

import click

from training import comparisons
from training.registry import FolderGroup


@click.command(cls=FolderGroup, package=comparisons, noun="comparison")
def main():
    """Trains several networks on the same films, splits and budget, beside baselines that are hard to beat by
    accident, and leaves a table with intervals and paired tests."""


if __name__ == "__main__":
    main(prog_name="python -m training.compare")
