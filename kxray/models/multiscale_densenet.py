"""Multi-scale network with class-wise layer relevance weights (Sedai et al., 2018), on DenseNet-121."""

import keras
from keras import layers

from kxray.layers.layer_relevance import LayerRelevance
from kxray.models import _backbones

HEADS = ("softmax", "sigmoid")


def build(
    num_labels=2,
    image_size=(100, 100),
    backbone="densenet121",
    taps=3,
    head="softmax",
    constraint="softmax",
    penalty=1.0,
    batch_norm_momentum=0.9,
) -> keras.Model:
    """Builds a flat functional network whose stages each vote, and whose votes are weighted by class.

    Every tapped stage s gives class logits of its own by global average pooling and a dense layer, so that
    each has class activation maps; `LayerRelevance` combines them: logit_c = sum_s pi_sc logit_sc.
    One tap is the plain network with pooling and one dense layer.

    Args:
        num_labels: number of classes, at least 1.
        image_size: (height, width) of the input in pixels.
        backbone: "densenet121", "densenet169", "densenet201", "resnet50", "resnet152" or "xception".
        taps: how many of the last stages are tapped (3: dense blocks 2, 3 and 4 of a DenseNet), or the names
            of the stages: block1 ... block4 of a DenseNet, conv2 ... conv5 of a ResNet, block2, block3,
            block12 and block14 of Xception.
        head: "softmax" for classes that exclude each other, "sigmoid" for findings that may occur together.
        constraint, penalty: see `kxray.layers.LayerRelevance`.
        batch_norm_momentum: of the moving statistics, in [0, 1). Keras's own 0.99 forgets its starting
            values in hundreds of steps, and a few hundred films make eight an epoch.

    Returns:
        keras.Model from float (N, height, width, 1) in [0, 1], bone bright, to probabilities float32
        (N, num_labels). Stage s has the layers `gap_s` and `logits_s`; then come `layer_relevance` and
        `probabilities`. Random weights; `kxray.models.load_backbone_weights` starts it from trained ones.

    Raises:
        ValueError: an unknown backbone, stage, head or constraint, more taps than stages, or films smaller
            than the backbone takes.
    """
    height, width = _backbones.check_image_size(backbone, image_size)
    stages = _backbones.choose_stages(backbone, taps)
    if head not in HEADS:
        raise ValueError(f"head must be one of {', '.join(HEADS)}, got {head!r}")
    if num_labels < 1 or (head == "softmax" and num_labels < 2):
        raise ValueError(f"num_labels must be at least {2 if head == 'softmax' else 1}, got {num_labels}")
    if not 0 <= batch_norm_momentum < 1:
        raise ValueError(f"batch_norm_momentum must be in [0, 1), got {batch_norm_momentum}")
    film = keras.Input((height, width, 1), name="film")
    stage_logits = [
        _vote(features, stage, num_labels)
        for stage, features in _backbones.features(backbone, film, stages).items()
    ]
    # Float32 under any dtype policy: half-precision probabilities saturate at ordinary confidence.
    x = LayerRelevance(constraint, penalty, dtype="float32", name="layer_relevance")(stage_logits)
    x = layers.Activation(head, dtype="float32", name="probabilities")(x)
    model = keras.Model(film, x, name="multiscale_densenet")
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = batch_norm_momentum
    return model


def _vote(features, stage, num_labels):
    pooled = layers.GlobalAveragePooling2D(name=f"gap_{stage}", dtype="float32")(features)
    return layers.Dense(num_labels, dtype="float32", name=f"logits_{stage}")(pooled)
