"""A backbone of ImageNet with one dense layer on it: as a frozen feature extractor, or to be fine-tuned."""

import keras
from keras import layers

from kxray.models import _backbones, alexnet

MODES = ("feature_extractor", "fine_tune")
BATCH_NORM = ("frozen", "trained")


def build(
    num_labels=2,
    image_size=(224, 224),
    backbone="densenet201",
    mode="feature_extractor",
    trained_stages=None,
    batch_norm="frozen",
    head="softmax",
) -> keras.Model:
    """Builds a flat functional network: film, preprocessing of the backbone's weights, backbone, head.

    The film is repeated in three channels and prepared inside the model, exactly as the ImageNet weights of
    the backbone expect it, so that published kernels and parameter counts hold.

    Args:
        num_labels: number of classes, at least 1.
        image_size: (height, width) of the input in pixels.
        backbone: one of `kxray.models.backbone_names()`.
        mode: "feature_extractor": nothing of the backbone is trainable, its batch normalisation and dropout
            are those of inference, so that a film's features never change. "fine_tune": the backbone is.
        trained_stages: with "fine_tune", how many of the last stages train (`kxray.models.backbone_stages`);
            None: all of them.
        batch_norm: with "fine_tune", "frozen" keeps its statistics and scale, as small batches demand;
            "trained" trains them in the trained stages.
        head: "softmax" for classes that exclude each other, "sigmoid" for findings that may occur together.

    Returns:
        keras.Model from float (N, height, width, 1) in [0, 1], bone bright, to probabilities float32
        (N, num_labels). The layer `features` gives float32 (N, F): the average over the last maps; of AlexNet
        its second dense layer; of ConvNeXt the normalised average. Then `logits` and `probabilities`.
        Random weights; `kxray.models.load_backbone_weights` starts it from trained ones.

    Raises:
        ValueError: an unknown backbone, mode, batch_norm or head, films that are too small, or more trained
            stages than there are.
    """
    height, width = _backbones.check_image_size(backbone, image_size)
    for name, value, known in (("mode", mode, MODES), ("batch_norm", batch_norm, BATCH_NORM)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    if mode == "feature_extractor" and (trained_stages is not None or batch_norm == "trained"):
        raise ValueError(
            "trained_stages and batch_norm='trained' train the backbone; they need mode='fine_tune', got "
            "mode='feature_extractor'"
        )
    if trained_stages is not None and trained_stages < 1:
        raise ValueError(f"trained_stages must be at least 1, or None for all, got {trained_stages}")
    alexnet.check_head(head, num_labels)
    film = keras.Input((height, width, 1), name="film")
    x = _backbones.network(backbone, _backbones.colours(backbone, film))
    # Float32 under any dtype policy, as features may be kept on disk and heads trained on them alone.
    if len(x.shape) == 4:
        x = layers.GlobalAveragePooling2D(dtype="float32", name="features")(x)
    else:
        x = layers.Activation("linear", dtype="float32", name="features")(x)
    model = keras.Model(film, alexnet.classify(x, num_labels, head), name="transfer")
    _backbones.freeze(model, 0 if mode == "feature_extractor" else trained_stages, batch_norm)
    return model
