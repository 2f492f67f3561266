"""One builder a file; the folder is the registry.

model = kxray.models.build("view_cnn")
"""

import importlib
import inspect
import pkgutil
import zipfile
from pathlib import Path

__all__ = ["build", "check_backbone", "freeze_backbone", "load", "load_backbone_weights", "names"]


def names() -> list[str]:
    """The models that `build` knows."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def build(name: str, /, **options):
    """Builds a model by name.

    Args:
        name: one of `names()`.
        **options: the arguments of that model's own `build` function, which documents them.

    Returns:
        keras.Model, functional and uncompiled.

    Raises:
        ValueError: an unknown name (the known ones are listed) or an option the builder does not take.
    """
    if name not in names():
        raise ValueError(f"unknown model {name!r}; the known models are: {', '.join(names())}")
    builder = importlib.import_module(f"{__name__}.{name}").build
    taken = inspect.signature(builder).parameters
    for option in options:
        if option not in taken:
            raise ValueError(f"model {name!r} has no option {option!r}; its options are: {', '.join(taken)}")
    return builder(**options)


def check_backbone(backbone, taps, image_size) -> None:
    """Raises ValueError unless the backbone is known, has those stages, and takes films of that size."""
    from kxray.models import _backbones

    _backbones.choose_stages(backbone, taps)
    _backbones.check_image_size(backbone, image_size)


def load_backbone_weights(model, backbone, source) -> int:
    """Starts a model's backbone from trained weights; its heads keep theirs.

    Args:
        model: a model on a named backbone, such as `build("multiscale_densenet", backbone=...)`.
        backbone: its name.
        source: `"imagenet"` (Keras downloads it), a `.weights.h5` file of `keras.applications` without top, a
            `.keras` file or a run folder with a model of the same backbone. A first convolution over RGB is
            summed over its channels, which gives exactly the output of a film repeated in all three.

    Returns:
        The number of layers that were set.

    Raises:
        FileNotFoundError, ValueError: no such source, or it does not hold this backbone.
    """
    from kxray.models import _backbones

    return _backbones.load_weights(model, backbone, source)


def freeze_backbone(model) -> None:
    """Leaves only the heads of a model trainable; its batch normalisation keeps its statistics."""
    from kxray.models import _backbones

    for layer in _backbones.weighted_layers(model).values():
        layer.trainable = False


def load(path):
    """Reads a trained model with its contract.

    Args:
        path: a run folder (holding model.keras and spec.json), or a .keras file with spec.json beside it.

    Returns:
        (keras.Model, kxray.ModelSpec)

    Raises:
        FileNotFoundError: nothing there, or the spec is missing.
        ValueError: a file that is not what it should be.
    """
    import keras

    from kxray.spec import ModelSpec

    path = Path(path)
    model_path = path / "model.keras" if path.is_dir() else path
    spec_path = model_path.with_name("spec.json")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such run folder or .keras file")
    for needed, what in ((model_path, "trained model"), (spec_path, "model spec")):
        if not needed.is_file():
            raise FileNotFoundError(
                f"{path}: {what} {needed.name} is missing; a run folder of training.fit holds both "
                "model.keras and spec.json (an interrupted run gets them with --resume)"
            )
    try:
        model = keras.saving.load_model(model_path, compile=False)
    except (ValueError, OSError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{model_path}: not a readable .keras file: {str(error).splitlines()[0]}") from error
    return model, ModelSpec.read(spec_path)
