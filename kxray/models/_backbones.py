"""Networks of `keras.applications` as backbones for one-channel films: flat, with named stages."""

import dataclasses
import zipfile
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A network of `keras.applications` and what a builder must know of it.

    Args:
        application: its name there.
        stages: stage name -> the layer whose output closes the stage, after its activation, shallow to deep.
        min_side: smallest input side in pixels.
        scale, offset: film pixels in [0, 1] become scale * pixels + offset before the first layer, the input
            its ImageNet weights were trained on. Where those take another mean and deviation for each colour,
            this is their average: a film is grey.
    """

    application: str
    stages: dict[str, str]
    min_side: int
    scale: float
    offset: float


_DENSENET_STAGES = {"block1": "pool2_relu", "block2": "pool3_relu", "block3": "pool4_relu", "block4": "relu"}
# Means of the ImageNet colours (0.485, 0.456, 0.406) and deviations (0.229, 0.224, 0.225), averaged.
_GREY_MEAN, _GREY_DEVIATION = 0.449, 0.226


def _densenet(application):
    return Backbone(application, _DENSENET_STAGES, 32, 1 / _GREY_DEVIATION, -_GREY_MEAN / _GREY_DEVIATION)


def _resnet(application, blocks):
    stages = {f"conv{2 + index}": f"conv{2 + index}_block{count}_out" for index, count in enumerate(blocks)}
    return Backbone(application, stages, 32, 255.0, -255.0 * _GREY_MEAN)


_XCEPTION_STAGES = {
    "block2": "block3_sepconv1_act",
    "block3": "block4_sepconv1_act",
    "block12": "block13_sepconv1_act",
    "block14": "block14_sepconv2_act",
}
BACKBONES = {
    "densenet121": _densenet("DenseNet121"),
    "densenet169": _densenet("DenseNet169"),
    "densenet201": _densenet("DenseNet201"),
    "resnet50": _resnet("ResNet50", (3, 4, 6, 3)),
    "resnet152": _resnet("ResNet152", (3, 8, 36, 3)),
    "xception": Backbone("Xception", _XCEPTION_STAGES, 71, 2.0, -1.0),
}


def find(name) -> Backbone:
    """The backbone of that name. Raises ValueError, listing the known ones."""
    if name not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}; the known ones are: {', '.join(BACKBONES)}")
    return BACKBONES[name]


def choose_stages(name, taps=3) -> tuple[str, ...]:
    """The stages that a model taps, shallow to deep.

    Args:
        name: of the backbone.
        taps: how many of its last stages, or their names.

    Raises:
        ValueError: more taps than stages, none, a name that is no stage, or a name given twice.
    """
    stages = list(find(name).stages)
    if isinstance(taps, int):
        if not 1 <= taps <= len(stages):
            raise ValueError(f"{name} has {len(stages)} stages ({', '.join(stages)}), got {taps} taps")
        return tuple(stages[-taps:])
    taps = (taps,) if isinstance(taps, str) else tuple(taps)
    unknown = [tap for tap in taps if tap not in stages]
    if unknown or not taps or len(set(taps)) != len(taps):
        wrong = f"{', '.join(map(repr, unknown))} is none" if unknown else f"got {list(taps)}"
        raise ValueError(f"taps must name different stages of {name}, which are {', '.join(stages)}; {wrong}")
    return tuple(stage for stage in stages if stage in taps)


def check_image_size(name, image_size) -> tuple[int, int]:
    """(height, width), if it is a size that the backbone takes."""
    smallest = find(name).min_side
    if not isinstance(image_size, (tuple, list)) or len(image_size) != 2:
        raise ValueError(f"image_size must be (height, width) in pixels, got {image_size!r}")
    if min(image_size) < smallest:
        raise ValueError(
            f"{name} needs films of at least {smallest} x {smallest} pixels, got {tuple(image_size)}"
        )
    return tuple(image_size)


def features(name, film, taps):
    """Calls a backbone on a film.

    Args:
        name: of the backbone.
        film: keras.Input (N, H, W, C), in [0, 1], bone bright.
        taps: names of stages.

    Returns:
        dict from stage name to its symbolic (N, h, w, K) output. The first convolution takes the film's own
        number of channels; every layer has the name it has in `keras.applications`, those it leaves
        unnamed are numbered from the input on.
    """
    import keras

    backbone = find(name)
    x = keras.layers.Rescaling(backbone.scale, backbone.offset, name="pixel_range")(film)
    network = getattr(keras.applications, backbone.application)(
        include_top=False, weights=None, input_tensor=x
    )
    _name_unnamed(network)
    return {stage: network.get_layer(backbone.stages[stage]).output for stage in taps}


def _name_unnamed(network):
    """Gives layers that count through the whole process (conv2d_37) the same names in every process."""
    numbers = {}
    for layer in network.layers:
        kind = layer.name.rstrip("0123456789").rstrip("_")
        if kind in ("conv2d", "batch_normalization", "add"):
            numbers[kind] = numbers.get(kind, 0) + 1
            layer.name = f"shortcut_{kind}_{numbers[kind]}"


def weighted_layers(model):
    """Name -> layer for the backbone layers of a model that hold weights; heads are left out."""
    return {
        layer.name: layer
        for layer in model.layers
        if layer.weights and not layer.name.startswith(("logits", "layer_relevance"))
    }


def load_weights(model, name, source) -> int:
    """Starts a model's backbone from trained weights; its heads keep theirs.

    A first convolution over RGB is summed over its three channels where the film has one, which gives exactly
    the output of repeating the film in all three.

    Args:
        model: a model made of `features(name, ...)`.
        name: of the backbone.
        source: see `kxray.models.load_backbone_weights`.

    Returns:
        The number of layers that were set.

    Raises:
        FileNotFoundError, ValueError: no such source, or it does not hold this backbone.
    """
    trained = {layer: values.get_weights() for layer, values in _trained_layers(name, source).items()}
    wanted = weighted_layers(model)
    missing = [layer for layer in wanted if layer not in trained]
    if missing:
        raise ValueError(
            f"{source}: {len(missing)} of {len(wanted)} layers of {name} are not in it ({missing[0]} ...); "
            "start from a model of the same backbone with as deep a last stage"
        )
    for layer_name, layer in wanted.items():
        values = [
            _over_channels(value, variable.shape)
            for value, variable in zip(trained[layer_name], layer.weights, strict=False)
        ]
        try:
            layer.set_weights(values)
        except ValueError:
            raise ValueError(f"{source}: its layer {layer_name} has not the shapes of {name}'s") from None
    return len(wanted)


def _over_channels(value, shape):
    if len(shape) == 4 and value.shape != tuple(shape) and value.shape[2] == 3 and shape[2] == 1:
        return value.sum(axis=2, keepdims=True)
    return value


def _trained_layers(name, source):
    import keras

    path = Path(source)
    if source != "imagenet" and not path.exists():
        raise FileNotFoundError(
            f"{source}: no such starting weights; expected imagenet, a run folder, a .keras file, or a "
            ".weights.h5 file of keras.applications"
        )
    if path.is_dir() or path.suffix == ".keras":
        from kxray.models import load

        return weighted_layers(load(path)[0])
    application = getattr(keras.applications, find(name).application)
    side = max(find(name).min_side, 64)
    try:
        network = application(
            include_top=False,
            weights="imagenet" if source == "imagenet" else None,
            input_shape=(side, side, 3),
        )
        if source != "imagenet":
            network.load_weights(path)
    except (ValueError, OSError, KeyError, zipfile.BadZipFile) as error:
        what = (
            "could not be fetched; without a network, give the file (.weights.h5)"
            if source == "imagenet"
            else "does not hold this network"
        )
        raise ValueError(f"{source}: weights of {name}: {what}: {str(error).splitlines()[0]}") from error
    except Exception as error:
        if source != "imagenet":
            raise
        # keras.utils.get_file raises a bare Exception where the download fails.
        raise ValueError(
            f"imagenet: the weights of {name} could not be fetched; without a network give the file: {error}"
        ) from error
    _name_unnamed(network)
    return weighted_layers(network)
