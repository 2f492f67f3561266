"""A network of four small stages that goes by DenseNet-121's name, for tests of whole jobs."""

import keras
from keras import layers


def tiny_densenet(include_top, weights, input_tensor):
    """Four small stages with the names of DenseNet-121's."""
    x = input_tensor
    for number, name in enumerate(("pool2_relu", "pool3_relu", "pool4_relu", "relu"), start=1):
        x = layers.Conv2D(4 * number, 3, padding="same", use_bias=False, name=f"conv{number}")(x)
        x = layers.BatchNormalization(name=f"bn{number}")(x)
        x = layers.ReLU(name=name)(x)
        x = layers.AveragePooling2D(2, name=f"pool{number}")(x) if name != "relu" else x
    return keras.Model(input_tensor._keras_history.operation.input, x)
