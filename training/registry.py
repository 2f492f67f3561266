"""A folder of modules as the subcommands of a program."""

import importlib
import pkgutil

import click

from training import options
from training.shell import program


class FolderGroup(click.Group):
    """Every module of a package is a subcommand.

    A module has `Recipe` (a flat frozen dataclass of options), `PRESETS` (named sets of them) and
    `run(recipe, given)`; its docstring is the help. `UNUSED`, if it has it, names options that its Recipe
    inherits and does not take.

    Args:
        package: the folder.
        noun: what a module of it is called in messages.
    """

    def __init__(self, *args, package, noun, **kwargs):
        super().__init__(*args, **kwargs)
        self.package = package
        self.noun = noun

    def names(self) -> list[str]:
        return sorted(
            module.name
            for module in pkgutil.iter_modules(self.package.__path__)
            if not module.name.startswith("_")
        )

    def list_commands(self, context):
        return self.names()

    def get_command(self, context, name):
        if name not in self.names():
            return None
        module = importlib.import_module(f"{self.package.__name__}.{name}")

        @program
        def body(**given):
            given = {key: value for key, value in given.items() if value is not None}
            given["preset"] = given.get("preset")
            recipe = options.resolve(module.Recipe, module.PRESETS, given)
            module.run(recipe, given)

        command = click.command(name, help=module.__doc__, context_settings={"max_content_width": 100})(body)
        for decorate in options.click_options(module.Recipe, without=getattr(module, "UNUSED", ())):
            command = decorate(command)
        return command

    def resolve_command(self, context, arguments):
        if arguments and arguments[0] not in self.names() and not arguments[0].startswith("-"):
            raise click.UsageError(
                f"unknown {self.noun} {arguments[0]!r}; the {self.noun}s are: {', '.join(self.names())}"
            )
        return super().resolve_command(context, arguments)
