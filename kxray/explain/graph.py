"""Reads a functional Keras model: where its logits are, and where its last feature map is."""

import keras
from keras import layers, ops

_SHRINKING = (
    layers.AveragePooling2D,
    layers.MaxPooling2D,
    layers.GlobalAveragePooling2D,
    layers.GlobalMaxPooling2D,
    layers.Dropout,
    layers.SpatialDropout2D,
    layers.Reshape,
    layers.ZeroPadding2D,
)


def require_functional(model) -> None:
    """Raises ValueError unless `model` is functional, or Sequential and built, with one input and output."""
    if not isinstance(model, keras.Model) or not getattr(model, "inputs", None):
        raise ValueError(
            f"explanations need a built functional or Sequential keras.Model, got {type(model).__name__}"
        )
    if len(model.inputs) != 1 or len(model.outputs) != 1:
        raise ValueError(
            f"explanations need one input and one output, model {model.name!r} has {len(model.inputs)} "
            f"inputs and {len(model.outputs)} outputs; make a keras.Model of the pair you mean"
        )


def last_feature_layer(model) -> layers.Layer:
    """The layer that gives the last spatial tensor before pooling or flattening, after its activation."""
    for layer in reversed(model.layers):
        shape = getattr(layer.output, "shape", ()) if not isinstance(layer, layers.InputLayer) else ()
        if len(shape) == 4 and not isinstance(layer, _SHRINKING):
            return layer
    raise ValueError(f"model {model.name!r} has no layer with a (N, h, w, C) output to explain")


def with_logits(model, *tensors):
    """Returns a function from images to (logits, *tensors), reading logits before the last activation.

    Gradients of a saturated sigmoid or softmax vanish; those of the logit do not.

    Args:
        model: functional model whose last layer is Dense, Activation, Softmax or anything linear.
        *tensors: symbolic tensors of the model to return beside the logits.

    Returns:
        Callable from (N, H, W, C) to a tuple: float32 logits (N, L), then each tensor.
    """
    last = model.outputs[0]._keras_history.operation
    if isinstance(last, layers.Dense) and last.activation is not keras.activations.linear:
        before = last.input

        def logits_of(features):
            features = ops.cast(features, "float32")
            logits = ops.matmul(features, ops.cast(last.kernel, "float32"))
            return logits + ops.cast(last.bias, "float32") if last.use_bias else logits

    else:
        before = last.input if isinstance(last, (layers.Activation, layers.Softmax)) else model.outputs[0]

        def logits_of(logits):
            return ops.cast(logits, "float32")

    # A dictionary, because Keras gives a list of one output back as a bare tensor.
    submodel = keras.Model(model.inputs, dict(enumerate([before, *tensors])))

    def run(images):
        outputs = submodel(images, training=False)
        return logits_of(outputs[0]), *(outputs[1 + index] for index in range(len(tensors)))

    return run
