"""Trains a recipe: `python -m training.fit RECIPE [options]`."""

import importlib
import pkgutil

import click

from training import options, recipes
from training.shell import program


def recipe_names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(recipes.__path__))


class RecipeGroup(click.Group):
    """The folder training/recipes is the registry; each recipe is a subcommand with its own --help."""

    def list_commands(self, context):
        return recipe_names()

    def get_command(self, context, name):
        if name not in recipe_names():
            return None
        module = importlib.import_module(f"training.recipes.{name}")

        @program
        def body(**given):
            given = {key: value for key, value in given.items() if value is not None}
            given["preset"] = given.get("preset")
            recipe = options.resolve(module.Recipe, module.PRESETS, given)
            module.run(recipe, given)

        command = click.command(name, help=module.__doc__, context_settings={"max_content_width": 100})(body)
        for decorate in options.click_options(module.Recipe):
            command = decorate(command)
        return command

    def resolve_command(self, context, arguments):
        if arguments and arguments[0] not in recipe_names() and not arguments[0].startswith("-"):
            raise click.UsageError(
                f"unknown recipe {arguments[0]!r}; the recipes are: {', '.join(recipe_names())}"
            )
        return super().resolve_command(context, arguments)


@click.command(cls=RecipeGroup)
def main():
    """Trains a recipe on a folder of films and leaves a run folder with the trained model, its measured
    scores, a report to look at, and a SavedModel to serve."""


if __name__ == "__main__":
    main(prog_name="python -m training.fit")
