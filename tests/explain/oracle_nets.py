"""The six tiny nets of the oracle files, rebuilt in Keras; every layer carries its oracle name.

nets = runpy.run_path("tests/explain/oracle_nets.py")
arrays = nets["arrays"]("oracle_rap_flat")
model = nets["build"]("flat", arrays, dtype="float64")    # gives logits; input NHWC
films = nets["films"](arrays)
"""

import os
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

NAMES = ("flat", "gap", "gray", "bn", "res", "dense")
FOLDER = Path(__file__).resolve().parents[3] / "shared" / "oracles"


def arrays(name):
    """One oracle file as a dictionary; a skip where it is not on this machine."""
    path = Path(os.environ.get("KXRAY_TEST_ORACLES", FOLDER)) / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"{path} not found; set KXRAY_TEST_ORACLES to the folder of the oracle arrays")
    with np.load(path) as stored:
        return {key: stored[key] for key in stored.files}


def films(oracle, dtype="float64"):
    return channels_last(oracle["x"]).astype(dtype)


def channels_last(maps):
    """(N, C, H, W) to (N, H, W, C); arrays of other ranks pass."""
    return maps.transpose(0, 2, 3, 1) if maps.ndim == 4 else maps


def build(name, oracle, dtype="float64", activation=None):
    """The net `name`, one of NAMES, with the weights of an oracle file.

    Args:
        activation: of the last Dense layer; None leaves its logits.
    """
    film = keras.Input(channels_last(oracle["x"]).shape[1:], dtype=dtype, name="film")
    x = {"flat": _plain, "gap": _plain, "gray": _plain, "bn": _bn, "res": _res, "dense": _dense}[name](
        film, dtype
    )
    if name == "flat":
        x = layers.Flatten(name="flatten", dtype=dtype)(x)
        x = layers.Dense(10, name="fc1", dtype=dtype)(x)
        x = layers.ReLU(name="relu3", dtype=dtype)(x)
        x = layers.Dense(3, activation=activation, name="fc2", dtype=dtype)(x)
    else:
        x = layers.GlobalAveragePooling2D(name="gap", dtype=dtype)(x)
        x = layers.Dense(3, activation=activation, name="fc", dtype=dtype)(x)
    model = keras.Model(film, x, name=name)
    for layer in model.layers:
        if layer.weights:
            layer.set_weights(_weights(layer, oracle))
    return model


def _weights(layer, oracle):
    if isinstance(layer, layers.BatchNormalization):
        return [oracle[f"{layer.name}_{part}"] for part in ("gamma", "beta", "mean", "var")]
    weight = oracle[f"{layer.name}_weight"]
    if layer.name == "fc1":
        weight = oracle["fc1_weight_nhwc"]
    kernel = weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T
    bias = f"{layer.name}_bias"
    return [kernel, oracle[bias]] if bias in oracle else [kernel]


def _conv(x, filters, size, name, dtype, strides=1, bias=False):
    if size == 3 and strides > 1:
        x = layers.ZeroPadding2D(1, name=f"{name}_pad", dtype=dtype)(x)
        return layers.Conv2D(filters, size, strides, use_bias=bias, name=name, dtype=dtype)(x)
    return layers.Conv2D(filters, size, padding="same", use_bias=bias, name=name, dtype=dtype)(x)


def _batch_norm(x, name, dtype):
    return layers.BatchNormalization(epsilon=1e-5, name=name, dtype=dtype)(x)


def _relu(x, name, dtype):
    return layers.ReLU(name=name, dtype=dtype)(x)


def _plain(x, dtype):
    x = _relu(_conv(x, 4, 3, "conv1", dtype, bias=True), "relu1", dtype)
    x = layers.MaxPooling2D(2, name="pool", dtype=dtype)(x)
    return _relu(_conv(x, 6, 3, "conv2", dtype, bias=True), "relu2", dtype)


def _bn(x, dtype):
    x = _batch_norm(_conv(x, 4, 3, "conv1", dtype, strides=2), "bn1", dtype)
    x = layers.MaxPooling2D(2, name="pool", dtype=dtype)(_relu(x, "relu1", dtype))
    return _relu(_batch_norm(_conv(x, 6, 3, "conv2", dtype), "bn2", dtype), "relu2", dtype)


def _res(x, dtype):
    x = _relu(_batch_norm(_conv(x, 4, 3, "conv1", dtype), "bn1", dtype), "relu1", dtype)
    x = layers.MaxPooling2D(2, name="pool", dtype=dtype)(x)
    shortcut = _batch_norm(_conv(x, 8, 1, "b1_down", dtype), "b1_downbn", dtype)
    return _bottleneck(_bottleneck(x, shortcut, "b1", dtype), None, "b2", dtype)


def _bottleneck(x, shortcut, name, dtype):
    shortcut = x if shortcut is None else shortcut
    for index, (filters, size) in enumerate(((2, 1), (2, 3), (8, 1)), start=1):
        x = _batch_norm(_conv(x, filters, size, f"{name}_conv{index}", dtype), f"{name}_bn{index}", dtype)
        x = _relu(x, f"{name}_relu{index}", dtype) if index < 3 else x
    x = layers.Add(name=f"{name}_add", dtype=dtype)([x, shortcut])
    return _relu(x, f"{name}_out", dtype)


def _dense(x, dtype):
    x = _relu(_batch_norm(_conv(x, 4, 3, "conv0", dtype), "bn0", dtype), "relu0", dtype)
    x = layers.MaxPooling2D(2, name="pool", dtype=dtype)(x)
    x = _dense_layer(_dense_layer(x, "l1", "cat1", dtype), "l2", "cat2", dtype)
    x = _conv(_relu(_batch_norm(x, "t_bn", dtype), "t_relu", dtype), 4, 1, "t_conv", dtype)
    x = layers.AveragePooling2D(2, name="t", dtype=dtype)(x)
    x = _dense_layer(x, "l3", "cat3", dtype)
    return _relu(_batch_norm(x, "bn5", dtype), "relu5", dtype)


def _dense_layer(x, name, joined, dtype):
    new = x
    for index, (filters, size) in enumerate(((4, 1), (2, 3)), start=1):
        new = _relu(_batch_norm(new, f"{name}_bn{index}", dtype), f"{name}_relu{index}", dtype)
        new = _conv(new, filters, size, f"{name}_conv{index}", dtype)
    return layers.Concatenate(name=joined, dtype=dtype)([x, new])
