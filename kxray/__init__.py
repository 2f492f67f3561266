"""kxray: from a few hundred X-ray films to a small, explained, served model.

Importing the package is light: no TensorFlow and no Keras until a name that needs them is used (PEP 562).
"""

import importlib

from kxray._registration import register_with_keras

__version__ = "0.1.0"

_PUBLIC = {
    "read_image": "kxray.io",
    "Film": "kxray.io",
    "FilmError": "kxray.io",
    "ModelSpec": "kxray.spec",
    "load": "kxray.models",
}
_ROOMS = ("data", "explain", "io", "layers", "metrics", "models", "spec")

__all__ = ["__version__"] + list(_PUBLIC) + list(_ROOMS)


def __getattr__(name):
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"kxray.{name}")
    raise AttributeError(f"module 'kxray' has no attribute {name!r}; it has {', '.join(__all__)}")


def __dir__():
    return sorted(__all__)


register_with_keras()
