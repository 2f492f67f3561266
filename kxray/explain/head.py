"""The end of a model: which tensor its logits come from, and how."""

import keras
from keras import layers, ops

from kxray.explain.graph import _ACTIVATIONS, called_with, end_of


def split_head(model):
    """Splits a model before its last activation.

    Args:
        model: functional model.

    Returns:
        The symbolic tensor before the head, and a function from its value to the logits (N, L), float32 or
        wider. The head is the last Dense layer without its activation where they are one layer, and nothing
        where they are not.

    Raises:
        ValueError: the last layer is a whole model, whose activation nobody can see.
    """
    end = end_of(model)
    last = end._keras_history.operation
    if isinstance(last, keras.Model):
        raise ValueError(
            f"model {model.name!r} ends in the model {last.name!r}, which hides its logits; build it flat: "
            "call the inner model's layers, or end it before its activation"
        )
    if isinstance(last, layers.Dense) and last.activation is not keras.activations.linear:
        (before,) = called_with(model, last)

        def logits_of(features):
            features = wide(features)
            logits = ops.matmul(features, ops.cast(last.kernel, features.dtype))
            return logits + ops.cast(last.bias, features.dtype) if last.use_bias else logits

        return before, logits_of
    before = end
    if isinstance(last, (layers.Activation, layers.Softmax)) or type(last).__name__ in _ACTIVATIONS:
        (before,) = called_with(model, last)
    return before, wide


def logit_layer(model):
    """The operation whose output, before any activation, are the logits."""
    before, _ = split_head(model)
    last = end_of(model)._keras_history.operation
    fused = isinstance(last, layers.Dense)
    return last if fused else before._keras_history.operation


def wide(values):
    """Half-precision values as float32."""
    return values if values.dtype in ("float32", "float64") else ops.cast(values, "float32")
