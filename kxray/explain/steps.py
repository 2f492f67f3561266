"""What each Keras layer does, as plain steps: the table behind `kxray.explain.graph.read`."""

import dataclasses
import functools
import operator

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from kxray.layers.layer_relevance import LayerRelevance


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One thing done to tensors, small enough that every explanation method knows its rule.

    Attributes:
        kind: "linear" (a convolution or matrix product, and a bias), "affine" (a scale and an offset for
            each channel), "activation" (element by element), "threshold" (what canonisation makes of batch
            normalisation and ReLU), "move" (values are copied, padded or cut), "max", "average",
            "concatenate", "sum" (weighted), "gate" (a product of a signal and gates).
        apply: plain TensorFlow function of the inputs and then the weights: (x, kernel) of a linear step,
            whose bias it leaves out.
        inputs: numbers of the tensors that it takes; of a gate the signal first.
        output: number of the tensor that it gives.
        name: of the layer.
        layer: the Keras layer or operation.
        weights: function of a dtype to what the layer learned: linear (kernel, bias or None), affine and
            threshold (scale, offset), sum (one scale an input).
        function: name of the activation function, if that is what it is.
    """

    kind: str
    apply: object
    inputs: tuple[int, ...] = ()
    output: int = -1
    name: str = ""
    layer: object = None
    weights: object = None
    function: str = ""

    def run(self, *inputs):
        """The step's output, in the dtype of its inputs."""
        if self.weights is None:
            return self.apply(*inputs)
        weights = self.weights(inputs[0].dtype)
        if self.kind == "linear":
            outputs = self.apply(inputs[0], weights[0])
            return outputs if weights[1] is None else outputs + weights[1]
        return self.apply(*inputs, *weights)


def steps_of(operation, node):
    """The steps of one call of a layer or operation, in order; each takes the output of the one before.

    Raises:
        ValueError: a layer that explanations do not know, or know under other settings only.
    """
    if getattr(operation, "data_format", None) == "channels_first":
        raise unknown(operation, "with channels first")
    if getattr(operation, "quantization_mode", None):
        raise unknown(operation, "with quantised weights")
    for base in type(operation).__mro__:
        # A subclass with a call of its own does something else.
        if base in _LAYERS and type(operation).call is base.call:
            return _LAYERS[base](operation, node)
    name = type(operation).__name__
    if name in _OPERATIONS and type(operation).__module__.startswith("keras.src.ops"):
        return _OPERATIONS[name](operation, node)
    raise unknown(operation)


def unknown(operation, how=""):
    """The error for what no rule is known of."""
    what = " ".join([type(operation).__name__, how]).strip()
    return ValueError(
        f"relevance has no rule for layer {operation.name!r} ({what}); it knows convolutions, dense layers, "
        "batch normalisation, activations, pools, concatenations, sums and gates: take a gradient method or "
        "grad_cam"
    )


def _cast(values, dtype):
    return tf.cast(tf.convert_to_tensor(values), dtype)


def _kernel_and_bias(layer, kernel, use_bias):
    def weights(dtype):
        return _cast(kernel(layer), dtype), _cast(layer.bias, dtype) if use_bias else None

    return weights


def _linear(layer, apply, kernel=lambda layer: layer.kernel):
    return [
        Step("linear", apply, weights=_kernel_and_bias(layer, kernel, layer.use_bias)),
        *([] if layer.activation is keras.activations.linear else _activation(layer.activation)),
    ]


def _conv(layer, node):
    strides, padding, groups = layer.strides, layer.padding.upper(), layer.groups

    def apply(x, kernel):
        kernel = _stuffed(kernel, layer.dilation_rate)
        if groups == 1:
            return tf.nn.conv2d(x, kernel, strides, padding)
        # Group by group: the adjoint of a grouped convolution exists on some devices only.
        pairs = zip(tf.split(x, groups, axis=-1), tf.split(kernel, groups, axis=-1), strict=True)
        return tf.concat([tf.nn.conv2d(part, weights, strides, padding) for part, weights in pairs], axis=-1)

    return _linear(layer, apply)


def _stuffed(kernel, dilation):
    """A dilated kernel with its zeros written out: the adjoint of a dilation exists on some devices only."""
    for axis, rate in enumerate(dilation):
        if rate > 1:
            shape = kernel.shape.as_list()
            gaps = [[0, 0] for _ in range(5)]
            gaps[axis + 1] = [0, rate - 1]
            spread = tf.pad(tf.expand_dims(kernel, axis + 1), gaps)
            shape[axis] *= rate
            spread = tf.reshape(spread, shape)
            shape[axis] -= rate - 1
            kernel = tf.slice(spread, [0] * 4, shape)
    return kernel


def _depthwise_map(layer):
    def apply(x, kernel):
        kernel = _stuffed(kernel, layer.dilation_rate)
        return tf.nn.depthwise_conv2d(x, kernel, (1, *layer.strides, 1), layer.padding.upper())

    return apply


def _depthwise(layer, node):
    return _linear(layer, _depthwise_map(layer))


def _separable(layer, node):
    def pointwise(x, kernel):
        return tf.nn.conv2d(x, kernel, 1, "VALID")

    depthwise = _kernel_and_bias(layer, lambda layer: layer.depthwise_kernel, False)
    return [
        Step("linear", _depthwise_map(layer), weights=depthwise),
        *_linear(layer, pointwise, lambda layer: layer.pointwise_kernel),
    ]


def _dense(layer, node):
    def apply(x, kernel):
        return tf.linalg.matmul(x, kernel) if x.shape.rank == 2 else tf.tensordot(x, kernel, 1)

    return _linear(layer, apply)


def _activation(function):
    if isinstance(function, layers.Layer):
        return steps_of(function, None)
    name = getattr(function, "__name__", type(function).__name__).lower()
    return [Step("move", tf.identity)] if name == "linear" else [Step("activation", function, function=name)]


def _relu_layer(layer, node):
    if layer.negative_slope or layer.threshold < 0:
        return [Step("activation", layer.call, function="leaky_relu")]
    exact = layer.threshold == 0 and layer.max_value is None
    return [Step("activation", layer.call, function="relu" if exact else "relu6")]


def _named(function):
    return lambda layer, node: [Step("activation", layer.call, function=function)]


def _scaled(x, scale, offset):
    return x * scale + offset


def _batch_norm(layer, node):
    axis = layer.axis if isinstance(layer.axis, int) else layer.axis[0]
    if axis not in (-1, layer.input_spec.ndim - 1):
        raise unknown(layer, f"over axis {axis}")

    def weights(dtype):
        scale = tf.math.rsqrt(_cast(layer.moving_variance, dtype) + tf.cast(layer.epsilon, dtype))
        scale = scale * _cast(layer.gamma, dtype) if layer.scale else scale
        offset = -_cast(layer.moving_mean, dtype) * scale
        return scale, offset + _cast(layer.beta, dtype) if layer.center else offset

    return [Step("affine", _scaled, weights=weights)]


def _rescaling(layer, node):
    def weights(dtype):
        return _cast(layer.scale, dtype), _cast(layer.offset, dtype)

    return [Step("affine", _scaled, weights=weights)]


def _normalization(layer, node):
    def weights(dtype):
        mean, deviation = _cast(layer.mean, dtype), tf.sqrt(_cast(layer.variance, dtype))
        deviation = tf.maximum(deviation, tf.cast(keras.backend.epsilon(), dtype))
        return (deviation, mean) if layer.invert else (1 / deviation, -mean / deviation)

    return [Step("affine", _scaled, weights=weights)]


def _identity(layer, node):
    return [Step("move", tf.identity)]


def _called(kind):
    return lambda layer, node: [Step(kind, layer.call)]


def _concatenate(layer, node):
    return [Step("concatenate", lambda *inputs: layer.call(list(inputs)))]


def _upsampling(layer, node):
    if layer.interpolation != "nearest":
        raise unknown(layer, f"with {layer.interpolation} interpolation")
    return [Step("move", layer.call)]


def _sum(*scales):
    """A sum of inputs times `scales`; "mean" is one over their number."""

    def steps(layer, node):
        count = len(node.input_tensors)
        numbers = [1 / count if scale == "mean" else scale for scale in (scales or ("mean",) * count)]

        def weights(dtype):
            return numbers

        return [Step("sum", _weighted_sum, weights=weights)]

    return steps


def _add(layer, node):
    return _sum(*[1.0] * len(node.input_tensors))(layer, node)


def _weighted_sum(*inputs_and_scales):
    half = len(inputs_and_scales) // 2
    pairs = zip(inputs_and_scales[:half], inputs_and_scales[half:], strict=True)
    terms = [x if isinstance(scale, float) and scale == 1 else x * scale for x, scale in pairs]
    return functools.reduce(operator.add, terms)


def _layer_relevance(layer, node):
    def weights(dtype):
        return tf.unstack(_cast(layer.relevance(), dtype), num=layer.scores.shape[0])

    return [Step("sum", _weighted_sum, weights=weights)]


def _gate(layer, node):
    return [Step("gate", lambda *inputs: functools.reduce(operator.mul, inputs))]


def _operation(kind, function=""):
    """An operation of `keras.ops`, called as it was when the model was made."""

    def steps(operation, node):
        def apply(*inputs):
            values = {id(tensor): x for tensor, x in zip(node.input_tensors, inputs, strict=True)}
            arguments, named = node.arguments.fill_in(values)
            return operation.call(*arguments, **named)

        return [Step(kind, apply, function=function)]

    return steps


def _arithmetic(of_tensors, of_constant):
    """`x op y`: of two tensors, or (scale, offset) from (constant, whether the tensor comes first)."""

    def steps(operation, node):
        if len(node.input_tensors) == 2:
            return of_tensors(operation, node)
        first, second = (*node.arguments.args, *node.arguments.kwargs.values())
        tensor_first = first is node.input_tensors[0]
        found = of_constant(np.asarray(second if tensor_first else first, "float64"), tensor_first)
        if found is None:
            raise unknown(operation)
        return [Step("affine", _scaled, weights=lambda dtype: tuple(_cast(value, dtype) for value in found))]

    return steps


def _no_two(operation, node):
    raise unknown(operation)


_LAYERS = {
    layers.Conv2D: _conv,
    layers.DepthwiseConv2D: _depthwise,
    layers.SeparableConv2D: _separable,
    layers.Dense: _dense,
    layers.BatchNormalization: _batch_norm,
    layers.Rescaling: _rescaling,
    layers.Normalization: _normalization,
    layers.Activation: lambda layer, node: _activation(layer.activation),
    layers.ReLU: _relu_layer,
    layers.LeakyReLU: _named("leaky_relu"),
    layers.ELU: _named("elu"),
    layers.PReLU: _named("prelu"),
    layers.Softmax: _named("softmax"),
    layers.MaxPooling2D: _called("max"),
    layers.GlobalMaxPooling2D: _called("max"),
    layers.AveragePooling2D: _called("average"),
    layers.GlobalAveragePooling2D: _called("average"),
    layers.UpSampling2D: _upsampling,
    layers.Concatenate: _concatenate,
    layers.Add: _add,
    layers.Subtract: _sum(1.0, -1.0),
    layers.Average: _sum(),
    layers.Multiply: _gate,
    LayerRelevance: _layer_relevance,
    **dict.fromkeys(
        (layers.ZeroPadding2D, layers.Cropping2D, layers.Flatten, layers.Reshape, layers.Permute),
        _called("move"),
    ),
    # What does nothing at inference.
    **dict.fromkeys(
        (
            layers.Identity,
            layers.Dropout,
            layers.SpatialDropout2D,
            layers.GaussianNoise,
            layers.GaussianDropout,
            layers.ActivityRegularization,
            *(layers.RandomFlip, layers.RandomRotation, layers.RandomTranslation, layers.RandomZoom),
            *(layers.RandomContrast, layers.RandomBrightness),
        ),
        _identity,
    ),
}
# What `keras.ops` leaves in a functional model, by class name.
_OPERATIONS = {
    **{
        name: _operation("activation", function)
        for name, function in {
            "Relu": "relu",
            "Relu6": "relu6",
            "Sigmoid": "sigmoid",
            "HardSigmoid": "hard_sigmoid",
            "Softmax": "softmax",
            "Softplus": "softplus",
            "Silu": "silu",
            "HardSilu": "hard_silu",
            "Gelu": "gelu",
            "Elu": "elu",
            "Selu": "selu",
            "LeakyRelu": "leaky_relu",
            "Tanh": "tanh",
            "LogSigmoid": "log_sigmoid",
            "LogSoftmax": "log_softmax",
        }.items()
    },
    **dict.fromkeys(("Reshape", "GetItem", "Transpose", "Squeeze", "ExpandDims", "Flip"), _operation("move")),
    **dict.fromkeys(("Concatenate", "Stack"), _operation("concatenate")),
    **dict.fromkeys(("Mean", "AveragePool"), _operation("average")),
    **dict.fromkeys(("Max", "MaxPool"), _operation("max")),
    "Add": _arithmetic(_add, lambda constant, first: (1.0, constant)),
    "Subtract": _arithmetic(
        _sum(1.0, -1.0), lambda constant, first: (1.0, -constant) if first else (-1.0, constant)
    ),
    "Multiply": _arithmetic(_gate, lambda constant, first: (constant, 0.0)),
    **dict.fromkeys(
        ("Divide", "TrueDivide"),
        _arithmetic(_no_two, lambda constant, first: (1 / constant, 0.0) if first else None),
    ),
}
