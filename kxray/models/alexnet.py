"""AlexNet in one tower (Krizhevsky, 2014, "One weird trick"), layer by layer as in torchvision."""

import keras
from keras import layers, ops

from kxray.models import _backbones

# Layer -> its place in torchvision's state dict.
STATE_DICT = {
    "conv1": "features.0",
    "conv2": "features.3",
    "conv3": "features.6",
    "conv4": "features.8",
    "conv5": "features.10",
    "fc6": "classifier.1",
    "fc7": "classifier.4",
    "logits": "classifier.6",
}
_POOLED_SIDE = 6


def build(num_labels=1000, image_size=(224, 224), channels=1, head="softmax") -> keras.Model:
    """Builds AlexNet: 61,100,840 parameters with 1,000 labels.

    Args:
        num_labels: number of classes, at least 1.
        image_size: (height, width) of the input in pixels, at least 63 x 63. The maps of other sizes than 224
            are averaged to 6 x 6 before the dense layers, in the bins of torch's AdaptiveAvgPool2d.
        channels: 1 for a film, which is repeated in three channels, or 3 for colours red, green and blue.
        head: "softmax" for classes that exclude each other, "sigmoid" for findings that may occur together.

    Returns:
        keras.Model from float (N, height, width, channels) in [0, 1], bone bright, to probabilities float32
        (N, num_labels). Layers conv1 ... conv5, fc6, fc7, `features` (N, 4096), `logits`, `probabilities`.
        Random weights; `kxray.models.load_backbone_weights(model, "alexnet", ...)` sets all but `logits`.

    Raises:
        ValueError: films that are too small, or an unknown head or number of channels.
    """
    height, width = _backbones.check_image_size("alexnet", image_size)
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (a film) or 3 (colours), got {channels!r}")
    check_head(head, num_labels)
    film = keras.Input((height, width, channels), name="film")
    x = features(_backbones.colours("alexnet", film))
    x = layers.Activation("linear", dtype="float32", name="features")(x)
    return keras.Model(film, classify(x, num_labels, head), name="alexnet")


def check_head(head, num_labels) -> None:
    """Raises ValueError unless `head` is "softmax" or "sigmoid" and the number of labels suits it."""
    if head not in ("softmax", "sigmoid"):
        raise ValueError(f"head must be one of softmax, sigmoid, got {head!r}")
    smallest = 2 if head == "softmax" else 1
    if num_labels < smallest:
        raise ValueError(f"num_labels must be at least {smallest} with a {head} head, got {num_labels}")


def classify(x, num_labels, head):
    """Features (N, F) to probabilities (N, num_labels), through a dense layer named `logits`."""
    # Float32 under any dtype policy: half-precision probabilities saturate at ordinary confidence.
    x = layers.Dense(num_labels, dtype="float32", name="logits")(x)
    return layers.Activation(head, dtype="float32", name="probabilities")(x)


def features(x):
    """Preprocessed colours (N, H, W, 3) to the second dense layer after its activation, (N, 4096)."""
    x = layers.ZeroPadding2D(2, name="conv1_pad")(x)
    x = layers.Conv2D(64, 11, strides=4, activation="relu", name="conv1")(x)
    x = layers.MaxPooling2D(3, 2, name="pool1")(x)
    x = layers.Conv2D(192, 5, padding="same", activation="relu", name="conv2")(x)
    x = layers.MaxPooling2D(3, 2, name="pool2")(x)
    for number, filters in ((3, 384), (4, 256), (5, 256)):
        x = layers.Conv2D(filters, 3, padding="same", activation="relu", name=f"conv{number}")(x)
    x = layers.MaxPooling2D(3, 2, name="pool5")(x)
    x = _average_to(_POOLED_SIDE, x)
    x = layers.Flatten(name="flatten")(x)
    for number in (6, 7):
        x = layers.Dropout(0.5, name=f"drop{number}")(x)
        x = layers.Dense(4096, activation="relu", name=f"fc{number}")(x)
    return x


def _average_to(side, x):
    """Maps (N, h, w, K) averaged to (N, side, side, K): bins floor(i h / side) to ceil((i + 1) h / side)."""
    for axis in (1, 2):
        length = x.shape[axis]
        if length == side:
            continue
        bins = []
        for index in range(side):
            covered = slice(index * length // side, -(-(index + 1) * length // side))
            cut = x[:, covered] if axis == 1 else x[:, :, covered]
            bins.append(ops.mean(cut, axis=axis))
        x = ops.stack(bins, axis=axis)
    return x


def from_state_dict(arrays) -> dict:
    """Layer name -> [kernel, bias] of this network, from a state dict of torchvision's.

    Args:
        arrays: name -> array, as `features.0.weight`. The last layer, classifier.6, may be missing.

    Raises:
        ValueError: a layer is missing, or has another shape.
    """
    weights = {}
    for layer, place in STATE_DICT.items():
        names = [f"{place}.weight", f"{place}.bias"]
        missing = [name for name in names if name not in arrays]
        if missing and layer != "logits":
            raise ValueError(f"no {missing[0]} in it, which torchvision's alexnet has")
        if missing:
            continue
        kernel, bias = (arrays[name] for name in names)
        if kernel.ndim not in (2, 4) or (layer == "fc6" and kernel.shape[1:] != (256 * _POOLED_SIDE**2,)):
            raise ValueError(f"{names[0]} has the shape {kernel.shape}, which torchvision's alexnet has not")
        if layer == "fc6":
            # Torch flattens (K, h, w), Keras (h, w, K).
            by_place = kernel.reshape(-1, 256, _POOLED_SIDE, _POOLED_SIDE)
            kernel = by_place.transpose(0, 2, 3, 1).reshape(len(kernel), -1)
        weights[layer] = [kernel.transpose(2, 3, 1, 0) if kernel.ndim == 4 else kernel.T, bias]
    return weights
