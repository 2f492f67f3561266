"""Rewrites a graph so that relevance rules see what batch normalisation hides (Pahde et al., 2023).

Every rewriting computes the same function.
"""

import dataclasses

import tensorflow as tf
from keras import layers

CANONIZATIONS = (None, "fold", "thresh")


def canonize(graph, how):
    """The graph as it is (None), with convolutions and batch normalisation joined ("fold"), or "thresh".

    "fold": a linear layer whose only consumer is a batch normalisation s z + h takes it in:
    w' = s w, b' = s b + h.
    "thresh" also removes the batch normalisation in BN -> ReLU -> linear layers, as in a DenseNet:
    ReLU(s x + h) = s t(x) + h with t(x) = x where s x + h > 0 and -h / s elsewhere; s and h go into the
    linear layers that follow, through poolings and zero padding. Relevance passes t where s x + h > 0 only.

    Raises:
        ValueError: another word.
    """
    if how not in CANONIZATIONS:
        raise ValueError(f"canonize must be None, 'fold' or 'thresh', got {how!r}")
    if how is not None:
        graph = _fold(graph)
    return _thresholds(graph) if how == "thresh" else graph


def commute_pools(graph):
    """[1x1 convolution, average pooling] as [average pooling, 1x1 convolution], which is the same function.

    A DenseNet's transitions then pool non-negative values, whose shares of the average are never unbounded.
    """
    consumers, steps = graph.consumers(), list(graph.steps)
    for place, conv in enumerate(graph.steps):
        pools = consumers.get(conv.output, [])
        if not (conv.kind == "linear" and _is_pointwise(conv.layer) and len(pools) == 1):
            continue
        pool = pools[0]
        if isinstance(pool.layer, layers.AveragePooling2D) and conv.output != graph.output:
            steps[place] = dataclasses.replace(pool, inputs=conv.inputs, output=conv.output)
            steps[graph.steps.index(pool)] = dataclasses.replace(
                conv, inputs=(conv.output,), output=pool.output
            )
    return dataclasses.replace(graph, steps=tuple(steps))


def _is_pointwise(layer):
    return type(layer) is layers.Conv2D and tuple(layer.kernel_size) == tuple(layer.strides) == (1, 1)


def _fold(graph):
    consumers, steps = graph.consumers(), []
    folded = set()
    for step in graph.steps:
        following = consumers.get(step.output, [])
        if step.output in folded:
            continue
        if step.kind == "linear" and len(following) == 1 and step.output != graph.output:
            (norm,) = following
            if norm.kind == "affine" and isinstance(norm.layer, layers.BatchNormalization):
                folded.add(norm.output)
                step = dataclasses.replace(step, output=norm.output, weights=_folded(step, norm))
        steps.append(step)
    return dataclasses.replace(graph, steps=tuple(steps))


def _folded(linear, norm):
    def weights(dtype):
        (kernel, bias), (scale, offset) = linear.weights(dtype), norm.weights(dtype)
        by_output = tf.reshape(scale, kernel.shape[2:]) if _is_depthwise(linear, kernel) else scale
        return kernel * by_output, offset if bias is None else bias * scale + offset

    return weights


def _is_depthwise(step, kernel):
    if isinstance(step.layer, layers.SeparableConv2D):
        # Its second step is a 1x1 convolution with a bias of its own; only that one meets a normalisation.
        return False
    return isinstance(step.layer, layers.DepthwiseConv2D) and kernel.shape.rank == 4


def _thresholds(graph):
    consumers = graph.consumers()
    replaced, dropped = {}, set()
    for norm in graph.steps:
        found = _threshold(graph, norm, consumers)
        if found is not None:
            relu, paths = found
            dropped.add(norm.output)
            replaced[relu.output] = dataclasses.replace(
                relu,
                kind="threshold",
                apply=_thresholded,
                inputs=norm.inputs,
                name=norm.name,
                layer=norm.layer,
                weights=_scale_and_offset(norm),
                function="",
            )
            for path, linear in paths:
                shape = graph.shapes.get(relu.output)
                replaced[linear.output] = dataclasses.replace(
                    linear, weights=_absorbed(norm, path, linear, shape)
                )
    steps = [replaced.get(step.output, step) for step in graph.steps if step.output not in dropped]
    return dataclasses.replace(graph, steps=tuple(steps))


def _threshold(graph, norm, consumers):
    """The ReLU after a batch normalisation, and the ways from it to linear layers; None if there is other."""
    following = consumers.get(norm.output, [])
    if norm.kind != "affine" or not isinstance(norm.layer, layers.BatchNormalization):
        return None
    if len(following) != 1 or following[0].function != "relu" or following[0].output == graph.output:
        return None
    paths, waiting = [], [((), step) for step in consumers.get(following[0].output, [])]
    while waiting:
        path, step = waiting.pop()
        if step.kind == "linear" and _mixes_channels(step, path):
            paths.append((path, step))
        elif _keeps_channels(step) and step.output != graph.output:
            waiting += [((*path, step), consumer) for consumer in consumers.get(step.output, [])]
        else:
            return None
    if any(_needs_size(path, step) and None in graph.shapes[following[0].output][1:] for path, step in paths):
        return None
    return (following[0], paths) if paths else None


def _mixes_channels(step, path):
    flat = any(isinstance(before.layer, layers.GlobalAveragePooling2D) for before in path)
    ungrouped = type(step.layer) is layers.Conv2D and step.layer.groups == 1
    return ungrouped or (type(step.layer) is layers.Dense and flat)


def _keeps_channels(step):
    pools = (layers.AveragePooling2D, layers.GlobalAveragePooling2D)
    moves = (layers.ZeroPadding2D, layers.Dropout, layers.SpatialDropout2D, layers.Identity)
    return isinstance(step.layer, pools + moves)


def _needs_size(path, step):
    """Whether zero padding makes a difference between border and middle."""
    padded = any(isinstance(before.layer, layers.ZeroPadding2D) for before in path)
    layer = step.layer
    wide = isinstance(layer, layers.Conv2D) and layer.padding == "same" and max(layer.kernel_size) > 1
    return padded or wide


def _scale_and_offset(norm):
    def weights(dtype):
        scale, offset = norm.weights(dtype)
        # A channel that is switched off (gamma = 0) has no threshold: it is its offset, to rounding.
        tiny = tf.cast(1e-12, dtype)
        return tf.where(tf.abs(scale) < tiny, tiny, scale), offset

    return weights


def _thresholded(x, scale, offset):
    return tf.where(x * scale + offset > 0, x, -offset / scale)


def _absorbed(norm, path, linear, shape):
    """The weights of a linear layer that takes s t(x) + h instead of ReLU(s x + h)."""

    def weights(dtype):
        (kernel, bias), (scale, offset) = linear.weights(dtype), _scale_and_offset(norm)(dtype)
        by_input = scale[:, None]
        if _needs_size(path, linear):
            constant = tf.ones((1, *shape[1:]), dtype) * offset
            for step in path:
                constant = step.run(constant)
            added = linear.apply(constant, kernel)
        else:
            # Without padding the result is the same everywhere: that of one receptive field.
            added = tf.tensordot(offset, tf.reduce_sum(kernel, axis=list(range(kernel.shape.rank - 2))), 1)
        return kernel * by_input, added if bias is None else added + bias

    return weights
