"""Networks for images as backbones: those of `keras.applications`, AlexNet, and a small DenseNet; flat."""

import dataclasses
import difflib
import re

# Means and deviations of the ImageNet colours red, green, blue, in [0, 1], and their averages.
_MEANS, _DEVIATIONS = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_GREY_MEAN, _GREY_DEVIATION = 0.449, 0.226
# Of the channels of networks converted from Caffe, in [0, 255]: blue, green, red, as their kernels read.
_CAFFE_MEANS = (103.939, 116.779, 123.68)
# What film pixels in [0, 1] become (scale, offset), colour by colour, for the ImageNet weights of a network.
_PREPROCESSING = {
    "tf": (2.0, -1.0),
    "torch": (
        [1 / deviation for deviation in _DEVIATIONS],
        [-mean / deviation for mean, deviation in zip(_MEANS, _DEVIATIONS, strict=True)],
    ),
    "caffe": (255.0, [-mean for mean in _CAFFE_MEANS]),
    "raw": (255.0, 0.0),
}
# The same for a network that reads the film as one channel: the average over the colours.
_GREY_PREPROCESSING = {
    "tf": (2.0, -1.0),
    "torch": (1 / _GREY_DEVIATION, -_GREY_MEAN / _GREY_DEVIATION),
    "caffe": (255.0, -255.0 * _GREY_MEAN),
}
# What the layers of heads, and those before the backbone, are called.
_NOT_OF_THE_BACKBONE = ("logits", "layer_relevance", "attend_", "align")
# A stage ends where the side of the maps falls below this share of the side that it began with.
_STAGE_SHRINKS = 0.7
# Of the moving statistics where they are trained. Keras's own 0.99 forgets its starting values in hundreds of
# steps, and a few hundred films make eight an epoch.
_BATCH_NORM_MOMENTUM = 0.9


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A network and what a builder must know of it.

    Args:
        application: its name in `keras.applications`; "AlexNet" and "SmallDenseNet" are ours.
        preprocessing: what its ImageNet weights were trained on: "tf" pixels in [-1, 1], "torch" each colour
            less its mean, over its deviation, "caffe" pixels in [0, 255] less the mean of each channel,
            "raw" pixels in [0, 255], which the network itself rescales.
        min_side: smallest input side in pixels.
        stages: stage name -> the layer whose output closes the stage, after its activation, shallow to deep;
            empty for a network that no model taps.
    """

    application: str
    preprocessing: str
    min_side: int = 32
    stages: dict[str, str] = dataclasses.field(default_factory=dict)


_DENSENET_STAGES = {"block1": "pool2_relu", "block2": "pool3_relu", "block3": "pool4_relu", "block4": "relu"}
_SMALL_DENSENET_STAGES = {f"block{number}": f"block{number}_relu" for number in range(1, 5)}
_XCEPTION_STAGES = {
    "block2": "block3_sepconv1_act",
    "block3": "block4_sepconv1_act",
    "block12": "block13_sepconv1_act",
    "block14": "block14_sepconv2_act",
}


def _resnet_stages(*blocks):
    return {f"conv{2 + index}": f"conv{2 + index}_block{count}_out" for index, count in enumerate(blocks)}


def _family(preprocessing, names, min_side=32):
    return {name.lower(): Backbone(name, preprocessing, min_side) for name in names.split()}


BACKBONES = {
    "densenet121": Backbone("DenseNet121", "torch", stages=_DENSENET_STAGES),
    "densenet169": Backbone("DenseNet169", "torch", stages=_DENSENET_STAGES),
    "densenet201": Backbone("DenseNet201", "torch", stages=_DENSENET_STAGES),
    "resnet50": Backbone("ResNet50", "caffe", stages=_resnet_stages(3, 4, 6, 3)),
    "resnet152": Backbone("ResNet152", "caffe", stages=_resnet_stages(3, 8, 36, 3)),
    "xception": Backbone("Xception", "tf", 71, _XCEPTION_STAGES),
    "small_densenet": Backbone("SmallDenseNet", "torch", stages=_SMALL_DENSENET_STAGES),
    # conv1 and three poolings leave one pixel of 63.
    "alexnet": Backbone("AlexNet", "torch", 63),
    **_family("caffe", "ResNet101 VGG16 VGG19"),
    **_family("tf", "ResNet50V2 ResNet101V2 ResNet152V2 MobileNet MobileNetV2 NASNetMobile NASNetLarge"),
    **_family("tf", "InceptionV3 InceptionResNetV2", min_side=75),
    **_family("raw", "MobileNetV3Small MobileNetV3Large"),
    **_family("raw", " ".join(f"EfficientNetB{size}" for size in range(8))),
    **_family("raw", " ".join(f"EfficientNetV2{size}" for size in ("B0", "B1", "B2", "B3", "S", "M", "L"))),
    **_family("raw", " ".join(f"ConvNeXt{size}" for size in ("Tiny", "Small", "Base", "Large", "XLarge"))),
}


def find(name, tapped=False) -> Backbone:
    """The backbone of that name; with `tapped`, one that has stages. ValueError lists the known ones."""
    known = [backbone for backbone in BACKBONES if BACKBONES[backbone].stages or not tapped]
    if name in known:
        return BACKBONES[name]
    if tapped and name in BACKBONES:
        raise ValueError(f"backbone {name!r} has no stages to tap; those that have are: {', '.join(known)}")
    nearest = difflib.get_close_matches(str(name).lower(), known, n=1)
    suggestion = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"unknown backbone {name!r}; the known ones are: {', '.join(known)}{suggestion}")


def choose_stages(name, taps=3) -> tuple[str, ...]:
    """The stages that a model taps, shallow to deep.

    Args:
        name: of the backbone.
        taps: how many of its last stages, or their names.

    Raises:
        ValueError: more taps than stages, none, a name that is no stage, or a name given twice.
    """
    stages = list(find(name, tapped=True).stages)
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
    """Calls a backbone on a film of one channel.

    Args:
        name: of a backbone with stages.
        film: symbolic (N, H, W, C), in [0, 1], bone bright.
        taps: names of stages.

    Returns:
        dict from stage name to its symbolic (N, h, w, K) output. The first convolution takes the film's own
        number of channels; every layer has the name it has in `keras.applications`, those it leaves
        unnamed are numbered from the input on.
    """
    import keras

    from kxray.models import _small_densenet

    backbone = find(name, tapped=True)
    scale, offset = _GREY_PREPROCESSING[backbone.preprocessing]
    x = keras.layers.Rescaling(scale, offset, name="pixel_range")(film)
    if backbone.application == "SmallDenseNet":
        network = _small_densenet.network(x)
    else:
        network = getattr(keras.applications, backbone.application)(
            include_top=False, weights=None, input_tensor=x
        )
    name_unnamed(network)
    return {stage: network.get_layer(backbone.stages[stage]).output for stage in taps}


def colours(name, film):
    """The film repeated in three channels, as the ImageNet weights of a backbone expect them.

    Args:
        name: of the backbone.
        film: symbolic (N, H, W, 1) or (N, H, W, 3), in [0, 1].

    Returns:
        Symbolic float32 (N, H, W, 3): under any dtype policy, so that no grey level is lost before the first
        convolution.
    """
    from keras import layers

    x = film
    if film.shape[-1] == 1:
        x = layers.Concatenate(name="repeat_channel", dtype="float32")([film, film, film])
    scale, offset = _PREPROCESSING[find(name).preprocessing]
    return layers.Rescaling(scale, offset, name="pixel_range", dtype="float32")(x)


def network(name, x):
    """Calls a backbone with random weights, and no top, on preprocessed colours.

    Args:
        name: of the backbone.
        x: symbolic (N, H, W, 3) of `colours`.

    Returns:
        Symbolic features: maps (N, h, w, K), or vectors (N, F) of AlexNet and of ConvNeXt, which normalises
        what it has pooled.
    """
    import keras

    backbone = find(name)
    if backbone.application == "AlexNet":
        from kxray.models import alexnet

        return alexnet.features(x)
    if backbone.application == "SmallDenseNet":
        from kxray.models import _small_densenet

        return _small_densenet.network(x).outputs[0]
    pooling = "avg" if backbone.application.startswith("ConvNeXt") else None
    made = getattr(keras.applications, backbone.application)(
        include_top=False, weights=None, input_tensor=x, input_shape=tuple(x.shape[1:]), pooling=pooling
    )
    if any(isinstance(layer, keras.Sequential) for layer in made.layers):
        made = keras.models.clone_model(made, input_tensors=made.input, call_function=_call_flat)
    name_unnamed(made)
    return made.outputs[0]


def _call_flat(layer, x, *args, **kwargs):
    """Calls the layers of a Sequential one by one, so that the model holds them itself."""
    import keras

    if not isinstance(layer, keras.Sequential):
        return layer(x, *args, **kwargs)
    for inner in layer.layers:
        x = inner(x)
    return x


def name_unnamed(network):
    """Gives layers that count through the whole process (conv2d_37) the same names in every process."""
    import keras

    numbers = {}
    for operation in network.operations:
        # The name that Keras gives: the class's in snake case, then a number.
        kind = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", type(operation).__name__)
        kind = re.sub("([a-z])([A-Z])", r"\1_\2", kind).lower()
        unnamed = re.fullmatch(rf"{kind}(_\d+)?", operation.name)
        if unnamed and not isinstance(operation, keras.layers.InputLayer):
            numbers[kind] = numbers.get(kind, 0) + 1
            # Xception leaves only those beside its main path unnamed.
            beside = network.name == "xception" and kind in ("conv2d", "batch_normalization", "add")
            operation.name = f"{'shortcut_' if beside else ''}{kind}_{numbers[kind]}"


def feature_count(name) -> int:
    """The length of a backbone's feature vector."""
    import keras

    side = max(find(name).min_side, 64)
    return network(name, keras.Input((side, side, 3))).shape[-1]


def weighted_layers(model):
    """Name -> layer for the backbone layers of a model that hold weights; heads and aligners are left out."""
    return {
        layer.name: layer
        for layer in model.layers
        if layer.weights and not layer.name.startswith(_NOT_OF_THE_BACKBONE)
    }


def stages(model) -> list[list[str]]:
    """See `kxray.models.backbone_stages`."""
    from keras import layers

    sides, reaches = {}, {}
    for operation, tensors, consumers in _graph(model):
        shape = tensors[0].shape
        padded = isinstance(operation, layers.ZeroPadding2D)
        sides[operation] = max(shape[1:3]) if len(shape) == 4 and not padded else 0
        reaches[operation] = sides[operation]
        if sides[operation] <= 1:
            # A squeeze-and-excitation convolution works on one pixel but scales the maps of its block.
            reaches[operation] = max([sides[operation], *(reaches[consumer] for consumer in consumers)])
    weighted = [
        layer for layer in weighted_layers(model).values() if not isinstance(layer, layers.Normalization)
    ]
    found, began_with, vectors = [], None, []
    for layer in sorted(weighted, key=lambda layer: -reaches[layer]):
        side = reaches[layer]
        if side == 0:
            vectors.append(layer)
            continue
        if began_with is None or side < _STAGE_SHRINKS * began_with:
            found.append([])
            began_with = side
        found[-1].append(layer.name)
    if any(isinstance(layer, layers.Dense) for layer in vectors):
        found.append([])
    if found:
        found[-1] += [layer.name for layer in vectors]
    return found


def _graph(model):
    """Operations of a functional model from its output on: (operation, its outputs, operations it feeds)."""
    consumers = {operation: [] for operation in model.operations}
    made = {}
    waiting, seen = [*model.outputs], set()
    while waiting:
        tensor = waiting.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        operation, node_index, _ = tensor._keras_history
        made.setdefault(operation, []).append(tensor)
        for given in operation._inbound_nodes[node_index].input_tensors:
            feeding = given._keras_history.operation
            if operation not in consumers[feeding]:
                consumers[feeding].append(operation)
            waiting.append(given)
    for operation in reversed(model.operations):
        yield operation, made[operation], consumers[operation]


def freeze(model, trained_stages, batch_norm) -> None:
    """Makes the last stages of a backbone trainable, and nothing before them; heads are left alone.

    Args:
        model: a model on a backbone.
        trained_stages: how many of `stages(model)`; 0 freezes the backbone, None trains all of it.
        batch_norm: "frozen" (its statistics and its scale stay) or "trained", in the trained stages.

    Raises:
        ValueError: more stages than there are.
    """
    from keras import layers

    named = stages(model)
    trained_stages = len(named) if trained_stages is None else trained_stages
    if not 0 <= trained_stages <= len(named):
        raise ValueError(
            f"the backbone has {len(named)} stages, got trained_stages={trained_stages}; give 1 to "
            f"{len(named)}, or none for all"
        )
    trained = {name for stage in named[len(named) - trained_stages :] for name in stage}
    reached = False
    for layer in model.layers:
        if layer.name in ("features", "logits", "probabilities"):
            continue
        reached = reached or layer.name in trained
        if isinstance(layer, layers.BatchNormalization):
            layer.trainable = layer.name in trained and batch_norm == "trained"
            if layer.trainable:
                layer.momentum = _BATCH_NORM_MOMENTUM
        elif layer.weights:
            layer.trainable = layer.name in trained
        else:
            layer.trainable = trained_stages > 0
        if not reached:
            _silence(layer)


def _silence(layer):
    """Stops dropout and stochastic depth, which `trainable=False` does not: frozen features never change."""
    for rate in ("rate", "drop_path_rate"):
        if isinstance(getattr(layer, rate, None), float):
            setattr(layer, rate, 0.0)
