"""Relative attributing propagation (Nam et al., 2020): what each pixel adds to a logit, or takes from it."""

import tensorflow as tf
from keras import layers

from kxray.explain._canonize import commute_pools
from kxray.explain._relevance import (
    adjoint,
    boxed,
    explain_with,
    padding_apart,
    passed,
    pulled,
    routed,
    signed_parts,
    unmoved,
    won,
)
from kxray.explain.graph import read

MODES = ("conserving", "authors")
SUMS = ("ratio", "abs")
# A denominator below this share of the largest one of its film is rounding, not a contribution.
_NOISE = {"float32": 1e-7, "float64": 1e-16}


def rap(model, mode="conserving", sums="ratio", commute=True):
    """Relative attributing propagation (Nam et al., AAAI 2020), for films as in Nam and Lee (2021).

    The last dense layer's inputs share the logit by the size of their contributions, |x_i w_i|. Every layer
    before hands relevance R_j to the inputs that raise unit j and, by as much as they suppress it, to those
    that lower it; then one number a film is taken from all inputs that got any, so that relevance is
    conserved ("uniform shifting"): neurons of little influence end below zero. The layers that see the film
    follow z^B between its lowest and highest value. Activations pass relevance on as it is (exact for ReLU,
    an approximation for SiLU, GELU and others); products give it to the signal, none to the gate.

    Args:
        model: functional or built Sequential model; see `kxray.explain.graph.read`.
        mode: "conserving": every step hands on all relevance, so that a map's sum is its logit: the layers
            that see the film are found in the graph, batch normalisation and concatenation pass relevance as
            it is, pools and sums of zero hand it out evenly, an input of both signs is taken as two that are
            not negative, and a film of one grey has a flat map. "authors": number for number what the
            authors' released code does: where batch normalisation, pools and concatenations meet exact zeros
            relevance is lost, layers with negative inputs double it, and the layer of the film is known by
            its three channels, so that it suits three-channel films only.
        sums: how an addition of terms of both signs (a ResNet's) hands out relevance when conserving:
            "ratio", in proportion to x_k, as the authors do, so that terms that cancel get relevance of any
            size; "abs", to |x_k|. Averages of values of both signs likewise.
        commute: when conserving, whether [1x1 convolution, average pooling], a DenseNet's transition, is
            taken in the other order, which is the same function: the pool's inputs are then not negative.

    Returns:
        Function (images (N, H, W, C), target int32 (N,)) -> dict of tensors: `heatmap` (N, H, W, C), signed,
        and `logits` (N, L). A negative logit gives mostly negative relevance.

    Raises:
        ValueError: an unknown option, or a layer without a rule, which is named.
    """
    for name, value, known in (("mode", mode, MODES), ("sums", sums, SUMS)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    graph = read(model)
    if mode == "authors":
        return explain_with(model, graph, _as_authors(graph))
    return explain_with(model, *_conserving(commute_pools(graph) if commute else graph, sums))


def _conserving(graph, sums):
    non_negative, first, last = graph.non_negative(), graph.first_linear(), graph.last_linear()
    hidden = graph.before_linear()

    def propagate(values, step, upper):
        inputs = [values[number] for number in step.inputs]
        sure = non_negative.issuperset(step.inputs)
        seen = padding_apart(graph, values, step.inputs[0])
        if step.kind == "linear":
            if step.output in last:
                contributions = _absolute(step, inputs[0], sure, upper, _over)
            elif step.output in first:
                contributions = _of_film(graph, values, step, upper, _over)
            else:
                contributions = _influence(step, signed_parts(inputs[0], sure), upper, _over)
            return [_settled(contributions, upper, seen)]
        if step.kind in ("affine", "activation"):
            return [passed(step, inputs[0], upper)]
        if step.kind == "gate":
            return [passed(step, inputs[0], upper), *[None] * (len(inputs) - 1)]
        if step.kind in ("average", "sum"):
            if sums == "abs" and not sure and step.output in hidden:
                inputs = [tf.abs(x) for x in inputs]
            return _in_proportion(step, inputs, upper, seen)
        if step.kind == "max":
            return [won(step, inputs[0], upper, seen)]
        return routed(step, inputs, upper)

    return graph, propagate


def _as_authors(graph):
    non_negative, last = graph.non_negative(), graph.last_linear()

    def propagate(values, step, upper):
        inputs, output = [values[number] for number in step.inputs], values[step.output]
        divide = tf.math.divide_no_nan
        if step.kind == "linear":
            (x,) = inputs
            if step.output in last:
                return [_absolute(step, x, step.inputs[0] in non_negative, upper, divide)]
            if x.shape.rank == 4 and x.shape[-1] == 3:
                return [_of_film(graph, values, step, upper, divide)]
            parts = signed_parts(x, step.inputs[0] in non_negative)
            # Both parts with the same kernel, each given all relevance.
            return [
                tf.add_n(
                    [
                        _shifted(_influence(step, (part, None), upper, divide), upper)
                        for part in parts
                        if part is not None
                    ]
                )
            ]
        if step.kind == "activation":
            return [passed(step, inputs[0], upper)]
        if step.kind == "affine":
            scale, _ = step.weights(upper.dtype)
            return [passed(step, inputs[0], tf.where((inputs[0] != 0) & (scale != 0), upper, 0))]
        if step.kind == "gate":
            return [passed(step, inputs[0], upper), *[None] * (len(inputs) - 1)]
        if step.kind == "concatenate":
            shares = routed(step, inputs, upper)
            return [tf.where(x != 0, share, 0) for x, share in zip(inputs, shares, strict=True)]
        if step.kind in ("average", "sum", "max"):
            shares = routed(step, inputs, divide(upper, output))
            return [x * share for x, share in zip(inputs, shares, strict=True)]
        return routed(step, inputs, upper)

    return propagate


def _absolute(step, x, non_negative, upper, divide):
    """The last layer: R_j goes to its inputs in proportion to |x_i w_ij| (the paper's eq. 3)."""
    kernel, _ = step.weights(x.dtype)
    x, kernel = x if non_negative else tf.abs(x), tf.abs(kernel)
    return x * pulled(step, kernel, x, divide(upper, step.apply(x, kernel)))


def _influence(step, parts, upper, divide):
    """A layer between, before the shift (eq. 5 to 9): what raises and what suppresses each unit.

    Args:
        parts: non-negative inputs that meet the kernel, and those that meet its negative, or None.
    """
    positive, negative = parts
    kernel, _ = step.weights(positive.dtype)
    rising, falling = signed_parts(kernel, False)
    pairs = [(positive, rising, falling)] + ([] if negative is None else [(negative, falling, rising)])
    raised = sum(step.apply(x, raising) for x, raising, _ in pairs)
    lowered = sum(step.apply(x, lowering) for x, _, lowering in pairs)
    by_lowered = divide(upper, raised + lowered)
    if isinstance(step.layer, layers.Dense):
        by_raised = divide(upper, raised)
    else:
        by_raised = divide(tf.nn.relu(upper), raised)
        by_lowered += divide(tf.minimum(upper, 0), lowered)
    return sum(
        x * (pulled(step, raising, x, by_raised) + pulled(step, lowering, x, by_lowered))
        for x, raising, lowering in pairs
    )


def _of_film(graph, values, step, upper, divide):
    """z^B between the lowest and the highest value of each prepared film."""

    def bound(reduce):
        def filled(film):
            axes = list(range(1, film.shape.rank))
            return tf.zeros_like(film) + reduce(film, axis=axes, keepdims=True)

        return unmoved(graph, values, step.inputs[0], filled)

    low, high = bound(tf.reduce_min), bound(tf.reduce_max)
    return boxed(step, values[step.inputs[0]], low, high, lambda total: divide(upper, total))


def _in_proportion(step, inputs, upper, seen):
    """Sums and averages: in proportion to what each input adds; evenly where that is nothing."""
    total, pull = adjoint(step.run, *inputs)
    shares = pull(tf.math.divide_no_nan(upper, total))
    even = [tf.ones_like(x[:1]) for x in inputs] if seen is None else [seen]
    evenly = pull(tf.where(total == 0, tf.math.divide_no_nan(upper, step.run(*even)), 0))
    return [x * share + one * rest for x, share, one, rest in zip(inputs, shares, even, evenly, strict=True)]


def _over(upper, total):
    """upper / total where total, which is not negative, is more than rounding; 0 elsewhere."""
    axes = list(range(1, total.shape.rank))
    noise = _NOISE[total.dtype.name] * tf.reduce_max(total, axis=axes, keepdims=True)
    return tf.where(total > noise, upper / total, 0)


def _shifted(contributions, upper):
    """Uniform shifting (eq. 10): contributions add up to the relevance above again; zeros stay zero."""
    relevant = contributions != 0
    count = _total(tf.cast(relevant, contributions.dtype))
    excess = tf.math.divide_no_nan(_total(contributions) - _total(upper), count)
    return contributions - tf.cast(excess, upper.dtype) * tf.cast(relevant, upper.dtype)


def _settled(contributions, upper, seen):
    """`_shifted`; a film without any contribution shares its relevance evenly, outside of zero padding."""
    relevant = contributions != 0
    none = ~tf.reduce_any(relevant, axis=list(range(1, relevant.shape.rank)), keepdims=True)
    relevant = relevant | (none if seen is None else none & (seen > 0))
    relevant = tf.cast(relevant, upper.dtype)
    excess = (_total(contributions) - _total(upper)) / _total(relevant)
    return contributions - tf.cast(excess, upper.dtype) * relevant


def _total(x):
    """Sum over all but the batch, in float64 where it matters: terms of both signs nearly cancel."""
    rows = tf.reduce_sum(x, axis=list(range(2, x.shape.rank))) if x.shape.rank > 2 else x
    total = tf.reduce_sum(tf.cast(rows, tf.float64), axis=1)
    return tf.reshape(total, [-1] + [1] * (x.shape.rank - 1))
