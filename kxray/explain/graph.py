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
# What `keras.ops.sigmoid(x)` and the like leave in a functional model: operations that are no layers.
_ACTIVATIONS = ("Sigmoid", "Softmax", "LogSigmoid", "LogSoftmax", "HardSigmoid", "Tanh")


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
    if len(model.outputs[0].shape) != 2:
        raise ValueError(
            f"explanations need one output of (N, units), model {model.name!r} gives "
            f"{tuple(model.outputs[0].shape)}"
        )


def feature_map(model, name=None):
    """The symbolic (N, h, w, K) output of a layer.

    Args:
        model: functional model.
        name: of the layer; by default the last one with a spatial output before pooling or flattening, after
            its activation.
    """
    made = _tensors_by_operation(model)
    if name is None:
        for layer in reversed(model.layers):
            outputs = made.get(layer, [])
            spatial = len(outputs) > 0 and len(outputs[0].shape) == 4
            if spatial and not isinstance(layer, (*_SHRINKING, layers.InputLayer)):
                return _only(outputs, layer)
        raise ValueError(f"model {model.name!r} has no layer with a (N, h, w, C) output to explain")
    known = [layer.name for layer in model.layers]
    if name not in known:
        raise ValueError(f"model {model.name!r} has no layer {name!r}; it has: {', '.join(known)}")
    layer = model.get_layer(name)
    tensor = _only(made[layer], layer)
    if len(tensor.shape) != 4:
        raise ValueError(f"layer {name!r} gives {tuple(tensor.shape)}; Grad-CAM needs a (N, h, w, K) output")
    return tensor


def _only(tensors, layer):
    if len(tensors) != 1:
        raise ValueError(f"layer {layer.name!r} is used more than once; name a layer with one output")
    return tensors[0]


def _tensors_by_operation(model):
    """Operation -> the symbolic tensors it gives in this model.

    Not `layer.output`, which is the first tensor that the layer ever gave, in whatever model that was.
    """
    made, waiting, seen = {}, [*model.outputs], set()
    while waiting:
        tensor = waiting.pop()
        if id(tensor) not in seen:
            seen.add(id(tensor))
            made.setdefault(tensor._keras_history.operation, []).append(tensor)
            waiting += _inputs_of(tensor)
    return made


def called_with(model, layer) -> list:
    """The symbolic tensors that a layer is called with in this model; ValueError if it is called twice."""
    return _inputs_of(_only(_tensors_by_operation(model)[layer], layer))


def chosen_unit(logits, target):
    """The unit to explain of each film, int32 (N,): `target`, or that of the largest logit where it is -1."""
    top = ops.cast(ops.argmax(logits, axis=-1), "int32")
    return ops.where(target < 0, top, target)


def _inputs_of(tensor):
    operation, node_index, _ = tensor._keras_history
    return operation._inbound_nodes[node_index].input_tensors


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
    last = model.outputs[0]._keras_history.operation
    if isinstance(last, keras.Model):
        raise ValueError(
            f"model {model.name!r} ends in the model {last.name!r}, which hides its logits; build it flat: "
            "call the inner model's layers, or end it before its activation"
        )
    if isinstance(last, layers.Dense) and last.activation is not keras.activations.linear:
        (before,) = _inputs_of(model.outputs[0])

        def logits_of(features):
            features = ops.cast(features, "float32")
            logits = ops.matmul(features, ops.cast(last.kernel, "float32"))
            return logits + ops.cast(last.bias, "float32") if last.use_bias else logits

    else:
        before = model.outputs[0]
        if isinstance(last, (layers.Activation, layers.Softmax)) or type(last).__name__ in _ACTIVATIONS:
            (before,) = _inputs_of(model.outputs[0])

        def logits_of(logits):
            return ops.cast(logits, "float32")

    # A dictionary, because Keras gives a list of one output back as a bare tensor.
    submodel = keras.Model(model.inputs, dict(enumerate([before, *tensors])))

    def run(images):
        outputs = submodel(images, training=False)
        return logits_of(outputs[0]), *(outputs[1 + index] for index in range(len(tensors)))

    return run
