"""Recipes are flat frozen dataclasses; this turns one into a click command."""

import dataclasses
import typing

import click


def option(default, help, *, choices=None, low=None, high=None):
    """A recipe's field with what `--help` says of it and which values it takes."""
    return dataclasses.field(
        default=default, metadata={"help": help, "choices": choices, "low": low, "high": high}
    )


def click_options(recipe_class):
    """One click option a field. Given ones only reach the command: None means "not given"."""
    hints = typing.get_type_hints(recipe_class)
    return [_click_option(field, hints[field.name]) for field in dataclasses.fields(recipe_class)]


def resolve(recipe_class, presets, given):
    """Combines, in rising order: the recipe's defaults, the preset, what was given at the shell.

    Returns:
        A recipe. Raises ValueError on an unknown preset.
    """
    preset = given.get("preset")
    if preset is not None and preset not in presets:
        raise ValueError(f"unknown preset {preset!r}; the presets are: {', '.join(presets)}")
    return recipe_class(**{**presets.get(preset, {}), **given})


def as_json(recipe) -> dict:
    return {field.name: getattr(recipe, field.name) for field in dataclasses.fields(recipe)}


def _click_option(field, hint):
    names = f"--{field.name.replace('_', '-')}"
    value_type = next(
        (kind for kind in (bool, int, float, str) if kind in (hint, *typing.get_args(hint))), str
    )
    help, choices = field.metadata["help"], field.metadata["choices"]
    shown = None if field.default is None or field.default is False else str(field.default)
    if value_type is bool:
        names = f"{names}/--no-{field.name.replace('_', '-')}" if field.default else names
        shown = "on" if field.default else None
        return click.option(
            names, field.name, is_flag=True, default=None, help=help, show_default=shown or False
        )
    if choices:
        kind = click.Choice(choices)
    elif value_type is int:
        kind = click.IntRange(field.metadata["low"], field.metadata["high"])
    elif value_type is float:
        kind = click.FloatRange(field.metadata["low"], field.metadata["high"])
    else:
        kind = click.STRING
    return click.option(names, field.name, type=kind, default=None, help=help, show_default=shown or False)
