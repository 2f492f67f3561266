"""The end of a model: which tensor its logits come from, and how."""

import keras
from keras import layers, ops

from kxray.layers.symbolic import inputs_of, made_by

# What `keras.ops.sigmoid(x)` and the like leave in a functional model: operations that are no layers.
LAST_OPERATIONS = ("Sigmoid", "Softmax", "LogSigmoid", "LogSoftmax", "HardSigmoid", "Tanh")


def end_of(model):
    """The symbolic output of a model, before anything behind its last activation that changes no value.

    Raises:
        ValueError: something else stands behind a sigmoid or softmax, and hides the logits.
    """
    tensor = model.outputs[0]
    while _keeps_values(tensor):
        (tensor,) = inputs_of(tensor)
    last = made_by(tensor)
    if not isinstance(last, layers.Dense) and not _squashes(last):
        for before in inputs_of(tensor):
            squashing = made_by(before)
            if _squashes(squashing):
                raise ValueError(
                    f"model {model.name!r} goes on after {squashing.name!r} with {last.name!r}, "
                    f"{type(last).__name__}, which hides its logits; end it at its sigmoid or softmax"
                )
    return tensor


def _keeps_values(tensor):
    operation = made_by(tensor)
    if isinstance(operation, layers.Activation):
        return operation.activation is keras.activations.linear
    if isinstance(operation, (layers.Reshape, layers.Flatten)):
        return inputs_of(tensor)[0].shape == tensor.shape
    return isinstance(operation, (layers.Identity, layers.Dropout)) or type(operation).__name__ == "Cast"


def _squashes(operation):
    if isinstance(operation, (layers.Dense, layers.Activation)):
        return operation.activation in (keras.activations.sigmoid, keras.activations.softmax)
    return isinstance(operation, layers.Softmax) or type(operation).__name__ in ("Sigmoid", "Softmax")


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
    last = made_by(end)
    if isinstance(last, keras.Model):
        raise ValueError(
            f"model {model.name!r} ends in the model {last.name!r}, which hides its logits; build it flat: "
            "call the inner model's layers, or end it before its activation"
        )
    if isinstance(last, layers.Dense) and last.activation is not keras.activations.linear:
        (before,) = inputs_of(end)

        def logits_of(features):
            features = wide(features)
            logits = ops.matmul(features, ops.cast(last.kernel, features.dtype))
            return logits + ops.cast(last.bias, features.dtype) if last.use_bias else logits

        return before, logits_of
    before = end
    if isinstance(last, (layers.Activation, layers.Softmax)) or type(last).__name__ in LAST_OPERATIONS:
        (before,) = inputs_of(end)
    return before, wide


def with_logits(model, *tensors):
    """Returns a function from images to (logits, *tensors), reading logits before the last activation.

    Gradients of a saturated sigmoid or softmax vanish; those of the logit do not.

    Args:
        model: functional model whose last layer is Dense, Activation, Softmax or anything linear.
        *tensors: symbolic tensors of the model to return beside the logits.

    Returns:
        Callable from (N, H, W, C) to a tuple: float32 logits (N, L), then each tensor.

    Raises:
        ValueError: the last layer is a whole model, whose activation nobody can see.
    """
    before, logits_of = split_head(model)
    # A dictionary, because Keras gives a list of one output back as a bare tensor.
    submodel = keras.Model(model.inputs, dict(enumerate([before, *tensors])))

    def run(images):
        outputs = submodel(images, training=False)
        logits = ops.cast(logits_of(outputs[0]), "float32")
        return logits, *(outputs[1 + index] for index in range(len(tensors)))

    return run


def logit_layer(model):
    """The operation whose output, before any activation, are the logits."""
    before, _ = split_head(model)
    last = made_by(end_of(model))
    fused = isinstance(last, layers.Dense)
    return last if fused else made_by(before)


def wide(values):
    """Half-precision values as float32."""
    return values if values.dtype in ("float32", "float64") else ops.cast(values, "float32")
