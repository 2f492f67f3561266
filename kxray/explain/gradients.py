"""Maps from gradients at the pixels: how the logit changes as each pixel does.

All of them are (N, H, W, C) at the input's resolution, signed and raw.
"""

import inspect
import numbers

import keras
import numpy as np
import tensorflow as tf

from kxray.explain.graph import chosen_unit
from kxray.explain.head import split_head, with_logits

BASELINES = ("zero", "mean")
_FILMS_AT_ONCE = 8


def gradient(model):
    """The gradient of the logit by the pixels (Simonyan et al., 2014), sign kept.

    Args:
        model: functional model.

    Returns:
        Function (images (N, H, W, C), target int32 (N,)) -> dict of float32 tensors: `heatmap` (N, H, W, C)
        and `logits` (N, L).
    """
    run = with_logits(model)

    def explain(images, target):
        slopes, logits = _slopes(run, images, target)
        return {"heatmap": slopes, "logits": logits}

    return explain


def input_x_gradient(model):
    """Gradient times input (Shrikumar et al., 2016): x * d logit / dx, of pixels as the model gets them.

    Args, returns: see `gradient`.
    """
    run = with_logits(model)

    def explain(images, target):
        slopes, logits = _slopes(run, images, target)
        return {"heatmap": images * slopes, "logits": logits}

    return explain


def smoothgrad(model, samples=20, noise=0.1, seed=0):
    """SmoothGrad (Smilkov et al., 2017): the mean gradient over noisy copies of the film.

    The noise is normal with standard deviation noise * (max - min) of the film. Its `samples` fields follow
    from `seed` alone and are the same for every film, so that a film's map depends neither on its batch nor
    on the call.

    Args:
        model: functional model.
        samples: number of noisy copies; few go through the model at once, so that memory stays bounded.
        noise: standard deviation as a share of the film's range.
        seed: of the noise, an integer.

    Returns:
        See `gradient`; the logits are those of the film without noise.
    """
    _require_count("smoothgrad", "samples", samples)
    if not _is_number(noise) or noise < 0:
        raise ValueError(f"smoothgrad needs noise of at least 0, a share of the film's range, got {noise!r}")
    if not isinstance(seed, numbers.Integral):
        raise ValueError(f"smoothgrad needs a whole number as seed, got {seed!r}")
    run = with_logits(model)

    def explain(images, target):
        (logits,) = run(images)
        units = chosen_unit(logits, target)
        lowest = tf.reduce_min(images, axis=(1, 2, 3), keepdims=True)
        spread = noise * (tf.reduce_max(images, axis=(1, 2, 3), keepdims=True) - lowest)
        size = tf.shape(images)[1:]

        def field(draw):
            # The algorithm is named, because the automatic choice differs between devices.
            return tf.random.stateless_normal(size, [seed, draw], dtype=images.dtype, alg="philox")

        def noisy(draws):
            fields = tf.map_fn(
                field, draws, fn_output_signature=tf.TensorSpec(images.shape[1:], images.dtype)
            )
            return images + spread * fields[:, None]

        weights = tf.fill([samples], tf.constant(1 / samples, images.dtype))
        return {"heatmap": _weighted_slopes(run, noisy, weights, images, units), "logits": logits}

    return explain


def integrated_gradients(model, steps=50, baseline="zero"):
    """Integrated gradients (Sundararajan et al., 2017, eq. 1), integrated by Gauss-Legendre quadrature.

    (x - x') * sum_k v_k g(x' + a_k (x - x')) with the nodes a_k and weights v_k of [0, 1]; by completeness it
    adds up to logit(x) - logit(x').

    Args:
        model: functional model.
        steps: number of nodes; few go through the model at once, so that memory stays bounded.
        baseline: x', the film that says nothing: "zero", "mean" (each film's own mean grey), a grey value, or
            an array (H, W, C) such as the mean film of the training set.

    Returns:
        See `gradient`, and `completeness_error` (N,): sum of the map - (logit(x) - logit(x')).
    """
    _require_count("integrated_gradients", "steps", steps)
    start_of = _baseline(baseline, tuple(model.inputs[0].shape[1:]))
    points, spans = np.polynomial.legendre.leggauss(int(steps))
    points, spans = (1 + points) / 2, spans / 2
    run = with_logits(model)

    def explain(images, target):
        start = start_of(images)
        away = images - start
        (logits,), (start_logits,) = run(images), run(start)
        units = chosen_unit(logits, target)
        at, weights = (tf.constant(values, images.dtype) for values in (points, spans))

        def on_the_way(nodes):
            return start + tf.reshape(tf.gather(at, nodes), [-1, 1, 1, 1, 1]) * away

        maps = away * _weighted_slopes(run, on_the_way, weights, images, units)
        risen = _of_unit(logits, units) - _of_unit(tf.broadcast_to(start_logits, tf.shape(logits)), units)
        total = tf.reduce_sum(maps, axis=(1, 2, 3))
        return {"heatmap": maps, "completeness_error": total - tf.cast(risen, total.dtype), "logits": logits}

    return explain


def guided_backprop(model):
    """Guided backpropagation (Springenberg et al., 2015): at every ReLU only positive gradients pass.

    R_in = 1[x > 0] 1[R > 0] R at a ReLU or ReLU6, wherever it sits: a layer of its own, an activation fused
    into another layer, a function such as keras.ops.relu, inside a nested model. Other activations (leaky,
    SiLU, GELU...) keep their ordinary derivative, and so does a ReLU inside a layer's own code. Known to look
    alike whatever the weights of the top layers are (Adebayo et al., 2018): a picture of edges rather than of
    the decision.

    Args, returns: see `gradient`.

    Raises:
        ValueError: a model without a ReLU, whose guided backpropagation would be its gradient.
    """
    run = _with_guided_logits(model)

    def explain(images, target):
        slopes, logits = _slopes(run, images, target)
        return {"heatmap": slopes, "logits": logits}

    return explain


def _slopes(run, images, target):
    """The gradient (N, H, W, C) of each film's logit by its pixels, and all logits (N, L)."""
    with tf.GradientTape() as tape:
        tape.watch(images)
        (logits,) = run(images)
        score = tf.reduce_sum(_of_unit(logits, chosen_unit(logits, target)))
    return tape.gradient(score, images, unconnected_gradients=tf.UnconnectedGradients.ZERO), logits


def _of_unit(logits, units):
    return tf.gather(logits, units, axis=1, batch_dims=1)


def _weighted_slopes(run, copies, weights, images, units):
    """sum_k weights[k] * gradient at copies(k), (N, H, W, C).

    `copies` makes (K, N, H, W, C) of K numbers. As many go through the model at once as make 8 films, so that
    one film keeps the machine busy and many films take no more memory than their gradient.
    """
    films, count = tf.shape(images)[0], tf.size(weights)
    at_once = tf.maximum(_FILMS_AT_ONCE // tf.maximum(films, 1), 1)

    def add(first, total):
        numbers = tf.range(first, tf.minimum(first + at_once, count))
        made = copies(numbers)
        batch = tf.ensure_shape(
            tf.reshape(made, tf.concat([[-1], tf.shape(images)[1:]], 0)), [None, *images.shape[1:]]
        )
        slopes, _ = _slopes(run, batch, tf.tile(units, [tf.size(numbers)]))
        slopes = tf.reshape(slopes, tf.shape(made))
        shares = tf.reshape(tf.gather(weights, numbers), [-1, 1, 1, 1, 1])
        return first + at_once, total + tf.reduce_sum(shares * slopes, axis=0)

    # Iterations would overlap otherwise, each with the activations of a whole network in memory.
    _, total = tf.while_loop(
        lambda first, _: first < count,
        add,
        (tf.constant(0), tf.zeros_like(images)),
        shape_invariants=(tf.TensorShape([]), images.shape),
        parallel_iterations=1,
    )
    return total


def _baseline(baseline, shape):
    """A function from images to the film that integration starts from, (N or 1, H, W, C)."""
    if isinstance(baseline, str) and baseline == "mean":
        return lambda images: tf.zeros_like(images) + tf.reduce_mean(images, axis=(1, 2, 3), keepdims=True)
    if isinstance(baseline, str) and baseline == "zero":
        baseline = 0.0
    if _is_number(baseline):
        return lambda images: tf.zeros_like(images[:1]) + tf.constant(baseline, images.dtype)
    given = None if isinstance(baseline, str) else np.array(baseline)
    fits = given is not None and given.ndim == len(shape) and np.issubdtype(given.dtype, np.number)
    if not fits or any(want not in (None, got) for want, got in zip(shape, given.shape, strict=True)):
        found = repr(baseline) if given is None else f"{given.dtype} {given.shape}"
        raise ValueError(
            f"integrated_gradients needs a baseline: {', '.join(BASELINES)}, a number or an array {shape}, "
            f"got {found}"
        )
    if not np.isfinite(given).all():
        raise ValueError("the baseline of integrated_gradients holds values that are not finite")
    return lambda images: tf.constant(given, images.dtype)[None]


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and bool(np.isfinite(value))


def _require_count(method, option, value):
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{method} needs {option} of at least 1, got {value!r}")


def _with_guided_logits(model):
    """As `with_logits(model)`, with a gate behind every ReLU that lets only positive gradients back."""
    before, logits_of = split_head(model)
    # A dictionary, because Keras gives a list of one output back as a bare tensor.
    submodel = keras.Model(model.inputs, {"before": before})
    if not any(_ends_in_relu(operation) for operation in _operations(submodel)):
        raise ValueError(
            f"guided_backprop needs a ReLU and model {model.name!r} has none that can be seen; take gradient"
        )

    def gated(operation):
        inner = _graph_inside(operation)
        if inner is not None:
            return lambda *tensors, **_: inner._run_through_graph(tensors, operation_fn=gated)

        def call(*arguments, **options):
            if "training" in inspect.signature(operation.call).parameters:
                options["training"] = False
            outputs = operation(*arguments, **options)
            return _positive_gradients_only(outputs) if _ends_in_relu(operation) else outputs

        return call

    def run(images):
        return (logits_of(submodel._run_through_graph([images], operation_fn=gated)["before"]),)

    return run


@tf.custom_gradient
def _positive_gradients_only(values):
    return tf.identity(values), tf.nn.relu


def _graph_inside(operation):
    """The graph of a nested functional or Sequential model; None of any other operation."""
    operation = getattr(operation, "_functional", None) or operation
    return operation if isinstance(operation, keras.Function) else None


def _operations(graph):
    """All operations of a graph, those of nested models in place of the models."""
    for operation in graph.operations:
        inner = _graph_inside(operation)
        yield from [operation] if inner is None else _operations(inner)


def _ends_in_relu(operation):
    # A function with a name, or an object whose class has one, such as what keras.ops.relu leaves.
    last = getattr(operation, "activation", None) or operation
    name = getattr(last, "__name__", type(last).__name__)
    return name.lower() in ("relu", "relu6") and not getattr(last, "negative_slope", 0)
