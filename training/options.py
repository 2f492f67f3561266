"""Recipes are flat frozen dataclasses; this turns one into a click command."""

import dataclasses
import typing

import click


def option(default, help, *, choices=None, low=None, high=None):
    """A recipe's field with what `--help` says of it and which values it takes."""
    return dataclasses.field(
        default=default, metadata={"help": help, "choices": choices, "low": low, "high": high}
    )


def click_options(recipe_class, without=()):
    """One click option a field. Given ones only reach the command: None means "not given"."""
    hints = typing.get_type_hints(recipe_class)
    fields = [field for field in dataclasses.fields(recipe_class) if field.name not in without]
    return [_click_option(field, hints[field.name]) for field in fields]


def parse(recipe_class, text) -> dict:
    """Reads options written as `name=value,name=value`, such as "backbone=xception,freeze=true".

    Raises:
        ValueError: an unknown name, or a value that its option does not take.
    """
    hints = typing.get_type_hints(recipe_class)
    fields = {field.name: field for field in dataclasses.fields(recipe_class)}
    read = {}
    items = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        # A value may hold commas itself: taps=block2,block4,backbone=densenet169
        if "=" not in part and items:
            items[-1] += f",{part}"
        else:
            items.append(part)
    for item in items:
        name, equals, value = item.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or name not in fields:
            raise ValueError(f"expected name=value with an option's name, got {item!r}; see --help")
        kind = _type(fields[name], hints[name])
        try:
            read[name] = kind.convert(value.strip(), None, None)
        except click.BadParameter as error:
            raise ValueError(f"{name}={value.strip()}: {error.message}") from None
    return read


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
    help = field.metadata["help"]
    shown = None if field.default is None or field.default is False else str(field.default)
    if _value_type(hint) is bool:
        names = f"{names}/--no-{field.name.replace('_', '-')}" if field.default else names
        shown = "on" if field.default else None
        return click.option(
            names, field.name, is_flag=True, default=None, help=help, show_default=shown or False
        )
    return click.option(
        names, field.name, type=_type(field, hint), default=None, help=help, show_default=shown or False
    )


def _type(field, hint):
    value_type = _value_type(hint)
    if value_type is bool:
        return click.BOOL
    if field.metadata["choices"]:
        return click.Choice(field.metadata["choices"])
    if value_type in (int, float):
        ranged = click.IntRange if value_type is int else click.FloatRange
        return ranged(field.metadata["low"], field.metadata["high"])
    return click.STRING


def _value_type(hint):
    return next((kind for kind in (bool, int, float, str) if kind in (hint, *typing.get_args(hint))), str)
