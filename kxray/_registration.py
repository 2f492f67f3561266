"""Registers kxray's layers and GANs with Keras as soon as both are imported, in either order.

`import kxray` is light and must not import Keras; yet a saved model that holds one of our layers loads after
`import kxray` alone. So where Keras is not there yet, an import hook waits for it.
"""

import importlib
import importlib.abc
import importlib.util
import sys


def register_with_keras() -> None:
    if "keras" in sys.modules:
        _register()
    elif not any(isinstance(finder, _KerasWatcher) for finder in sys.meta_path):
        sys.meta_path.insert(0, _KerasWatcher())


def _register() -> None:
    importlib.import_module("kxray.layers")
    if sys.modules["keras"].config.backend() == "tensorflow":
        # Their training steps are TensorFlow's.
        for name in ("_conditional_gan", "counterfactual_gan"):
            importlib.import_module(f"kxray.models.{name}")


class _KerasWatcher(importlib.abc.MetaPathFinder):
    """Stays until Keras is executed: TensorFlow only asks where it is before it imports it."""

    def __init__(self):
        self.asking = False

    def find_spec(self, name, path=None, target=None):
        if name != "keras" or self.asking:
            return None
        self.asking = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.asking = False
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_then_register(module):
                execute(module)
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                _register()

            spec.loader.exec_module = execute_then_register
        return spec
