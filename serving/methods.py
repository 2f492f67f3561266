"""Which explanations to serve, said as text: METHOD[:OPTION=VALUE]..., commas between methods."""

import inspect
from collections.abc import Mapping

EXAMPLE = "grad_cam,integrated_gradients:steps=20,lrp:composite=epsilon_plus:canonize=thresh"
# Explanations that are no graph of TensorFlow ops.
_NOT_EXPORTABLE = {
    "score_cam": "it runs tf-keras-vis, in Python, between its many forward passes",
    "activation_maximisation": "it makes a film instead of explaining one, in a loop of tf-keras-vis",
    "eigen_cam": "it explains no label, and its decomposition runs in NumPy",
}
_ONLY_IN_PYTHON = ("rules",)


def parse(explain) -> dict[str, dict]:
    """Reads what to export.

    Args:
        explain: text such as `EXAMPLE`, or a sequence of such texts; or a dict from the method to its options
            for values that no text can say: `{"integrated_gradients": {"baseline": mean_film}}`.

    Returns:
        Options by method, in the order given.

    Raises:
        ValueError: no method, an unknown one or one that no SavedModel can hold, an unknown option, a value
            that the option does not take, or one method twice with different options.
    """
    if isinstance(explain, Mapping):
        pairs = [(method, dict(options)) for method, options in explain.items()]
    else:
        texts = [explain] if isinstance(explain, str) else list(explain)
        named = [part.strip() for text in texts for part in str(text).split(",")]
        pairs = [_read(part) for part in (named or [""])]
    found = {}
    for method, options in pairs or [("", {})]:
        _require_exportable(method)
        if found.setdefault(method, options) is not options and found[method] != options:
            raise ValueError(
                f"{method} is named twice, as {text(method, found[method])} and as {text(method, options)}; "
                "a model answers with one of each method"
            )
    return found


def text(method, options) -> str:
    """A method and its options as `parse` reads them; of arrays and other objects only what they are."""
    return ":".join([method, *(f"{name}={_shown(value)}" for name, value in options.items())])


def _require_exportable(method):
    from kxray.explain import METHODS

    if method in _NOT_EXPORTABLE:
        raise ValueError(f"{method} cannot be exported: {_NOT_EXPORTABLE[method]}")
    if method not in METHODS:
        raise ValueError(f"unknown explanation method {method!r}; the known ones are: {', '.join(METHODS)}")


def _read(part):
    method, *settings = part.split(":")
    _require_exportable(method)
    defaults, options = _defaults(method), {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not value:
            raise ValueError(f"expected METHOD:OPTION=VALUE, as in {EXAMPLE}, got {part!r}")
        if name not in defaults:
            raise ValueError(f"{method} has no option {name!r}; its options are: {', '.join(defaults)}")
        if name in options:
            raise ValueError(f"{name!r} is given twice in {part!r}")
        options[name] = _value(method, name, value, defaults[name])
    return method, options


def _defaults(method):
    from kxray.explain import METHODS

    parameters = [*inspect.signature(METHODS[method]).parameters.values()][1:]
    return {parameter.name: parameter.default for parameter in parameters} | {"upsample": False}


def _value(method, name, value, default):
    """Text as a value of the kind that an option's default is."""
    if name in _ONLY_IN_PYTHON:
        raise ValueError(
            f"{name} of {method} cannot be said in text; in Python: "
            f"serving.export.export(run, to, explain={{{method!r}: {{{name!r}: ...}}}})"
        )
    if isinstance(default, bool):
        if value.lower() not in ("true", "false"):
            raise ValueError(f"{name} of {method} is true or false, got {value!r}")
        return value.lower() == "true"
    if default is None:
        return None if value.lower() == "none" else value
    kinds = (int, float) if isinstance(default, str) else (type(default),)
    for kind in kinds:
        try:
            return kind(value)
        except ValueError:
            continue
    if isinstance(default, str):
        return value
    raise ValueError(f"{name} of {method} is a number such as {default}, got {value!r}")


def _shown(value):
    if value is None or isinstance(value, (bool, int, float, str)):
        return str(value).lower() if value is None or isinstance(value, bool) else str(value)
    shape = getattr(value, "shape", None)
    return type(value).__name__ if shape is None else f"{type(value).__name__}{tuple(shape)}"
