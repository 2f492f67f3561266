"""A DenseNet-BC (Huang et al., 2017) of 18 dense layers of growth 12, which two processor cores train."""

import keras
from keras import layers

# Layers a dense block. The published networks have 6-12-24-16 of growth 32.
LAYERS = (1, 3, 6, 8)
GROWTH = 12
_STEM = 16
_EPSILON = 1.001e-5


def network(x) -> keras.Model:
    """Builds the convolutions on a film; random weights.

    Maps end at a sixteenth of the film's side, DenseNet-121's at a thirty-second: of 128 pixels 8 x 8 places,
    so that a small lesion has one of its own.

    Args:
        x: symbolic (N, H, W, C), preprocessed.

    Returns:
        keras.Model from the inputs of `x` to the maps of the last stage. Stage `block<n>` (n = 1 ... 4)
        closes with the layer `block<n>_relu`.
    """
    inputs = keras.utils.get_source_inputs(x)
    x = layers.Conv2D(_STEM, 3, 2, "same", use_bias=False, name="stem_conv")(x)
    x = _activated(x, "stem")
    for stage, count in enumerate(LAYERS, start=1):
        name = f"block{stage}"
        x = dense_block(x, count, GROWTH, name)
        x = _activated(x, name)
        if stage < len(LAYERS):
            x = transition(x, f"transition{stage}")
    return keras.Model(inputs, x, name="small_densenet")


def dense_block(x, count, growth, name):
    """Layers of bottleneck and 3 x 3 convolution, each of which reads all before it."""
    for number in range(1, count + 1):
        layer = f"{name}_{number}"
        new = _activated(x, f"{layer}_0")
        new = layers.Conv2D(4 * growth, 1, use_bias=False, name=f"{layer}_1_conv")(new)
        new = _activated(new, f"{layer}_1")
        new = layers.Conv2D(growth, 3, padding="same", use_bias=False, name=f"{layer}_2_conv")(new)
        x = layers.Concatenate(name=f"{layer}_concat")([x, new])
    return x


def transition(x, name):
    """Half the features, half the side."""
    x = layers.Conv2D(x.shape[-1] // 2, 1, use_bias=False, name=f"{name}_conv")(x)
    return layers.AveragePooling2D(2, name=f"{name}_pool")(x)


def _activated(x, name):
    x = layers.BatchNormalization(epsilon=_EPSILON, name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x)
