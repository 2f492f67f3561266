"""Trained weights into a model's backbone, and the fingerprint of what is in it."""

import hashlib
import zipfile
from pathlib import Path

import numpy as np

from kxray.models import _imagenet_files, _state_dict
from kxray.models._backbones import find, name_unnamed, weighted_layers

_EFFICIENTNET_DEVIATIONS = (0.229, 0.224, 0.225)


def load_weights(model, name, source) -> int:
    """See `kxray.models.load_backbone_weights`."""
    trained = _trained_weights(name, source)
    wanted = weighted_layers(model)
    missing = [layer for layer in wanted if layer not in trained]
    if missing:
        raise ValueError(
            f"{source}: {len(missing)} of {len(wanted)} layers of {name} are not in it ({missing[0]} ...); "
            "start from a model of the same backbone with as deep a last stage"
        )
    _check_order(source, list(trained), wanted, name)
    values = {}
    for layer_name, layer in wanted.items():
        shapes = [tuple(weight.shape) for weight in layer.weights]
        found = trained[layer_name]
        if len(found) == len(shapes):
            found = [over_channels(value, shape) for value, shape in zip(found, shapes, strict=True)]
        if [value.shape for value in found] != shapes:
            raise ValueError(f"{source}: its layer {layer_name} has not the shapes of {name}'s")
        values[layer_name] = found
    for layer_name, layer in wanted.items():
        layer.set_weights(values[layer_name])
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()
    return len(wanted)


def _check_order(source, trained, wanted, name):
    """Raises ValueError where layers of another network lie between the ones wanted.

    Names alone do not tell VGG16 from VGG19, all of whose layers it shares. Layers behind the last one wanted
    are those of deeper stages, which a model that taps a shallow stage does without.
    """
    last = max(trained.index(layer) for layer in wanted)
    foreign = [layer for layer in trained[:last] if layer not in wanted]
    if foreign:
        raise ValueError(
            f"{source}: holds another network than {name}, which has no {foreign[0]} ({len(foreign)} layers "
            "too many); start from a model of the same backbone"
        )


def over_channels(value, shape):
    """A kernel over RGB summed over its channels, where the film has one; other values as they are."""
    if len(shape) == 4 and value.shape != tuple(shape) and value.shape[2] == 3 and shape[2] == 1:
        return value.sum(axis=2, keepdims=True)
    return value


def digest(model) -> str:
    """See `kxray.models.weights_digest`."""
    fingerprint = hashlib.sha256()
    for name, layer in sorted(weighted_layers(model).items()):
        for index, weight in enumerate(layer.get_weights()):
            value = np.ascontiguousarray(weight)
            value = value.astype(value.dtype.newbyteorder("<"), copy=False)
            fingerprint.update(f"{name}/{index} {value.dtype.name} {value.shape}\n".encode())
            fingerprint.update(value.tobytes())
    return fingerprint.hexdigest()


def _trained_weights(name, source) -> dict:
    """Layer name -> its weights, as arrays."""
    import keras

    backbone = find(name)
    path = _imagenet_files.fetch(backbone.application) if source == "imagenet" else Path(source)
    if not path.exists():
        own = ".pth, .safetensors or .npz file of torchvision's alexnet"
        keras_file = ".weights.h5 file of keras.applications"
        raise FileNotFoundError(
            f"{source}: no such starting weights; expected imagenet, a run folder, a .keras file, or a "
            f"{own if name == 'alexnet' else keras_file}"
        )
    if path.is_dir() or path.suffix == ".keras":
        from kxray.models import load

        return {layer: values.get_weights() for layer, values in weighted_layers(load(path)[0]).items()}
    if name == "alexnet":
        from kxray.models import alexnet

        arrays = _state_dict.read(path)
        try:
            return alexnet.from_state_dict(arrays)
        except ValueError as error:
            raise ValueError(f"{path}: weights of alexnet: {error}") from error
    if not hasattr(keras.applications, backbone.application):
        raise ValueError(f"{source}: {name} starts from a run folder or a .keras file, or at random")
    return _of_application(name, path)


def _of_application(name, path):
    import keras

    backbone = find(name)
    side = max(backbone.min_side, 64)
    network = getattr(keras.applications, backbone.application)(
        include_top=False,
        weights=None,
        input_shape=(side, side, 3),
        pooling="avg" if backbone.application.startswith("ConvNeXt") else None,
    )
    try:
        network.load_weights(path)
    except (ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"{path}: weights of {name}: does not hold this network: {str(error).splitlines()[0]}"
        ) from error
    name_unnamed(network)
    weights = {}
    for layer in network.layers:
        for inner in layer.layers if isinstance(layer, keras.Sequential) else [layer]:
            if inner.weights:
                weights[inner.name] = inner.get_weights()
    if backbone.application.startswith("EfficientNetB"):
        _fold_rescaling(weights)
    return weights


def _fold_rescaling(weights):
    """Divides by the square root of the colours' deviations once more, as EfficientNet V1 of ImageNet does.

    Its files store deviations where Keras's Normalization takes variances, so `keras.applications` adds
    Rescaling(1 / sqrt(deviation)) behind it, but with weights="imagenet" alone. A network that is built
    without weights and given the same file would be another function; the factor goes into the variance.
    """
    for name, values in weights.items():
        if name.startswith("normalization"):
            mean, variance, *rest = values
            weights[name] = [mean, (variance * np.float32(_EFFICIENTNET_DEVIATIONS)).astype("float32"), *rest]
