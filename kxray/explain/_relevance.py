"""What LRP and RAP share: a forward pass that keeps its tensors, the way back, and rules without choices."""

import tensorflow as tf
from keras import layers

from kxray.explain.graph import FILM, chosen_unit
from kxray.explain.head import with_logits

_MONOTONE = ("relu", "relu6", "sigmoid", "hard_sigmoid", "softplus", "tanh", "elu", "leaky_relu", "selu")


def explain_with(model, graph, propagate):
    """Builds the explanation function of a relevance method.

    Args:
        model: the Keras model.
        graph: its `kxray.explain.graph.Graph`, perhaps rewritten.
        propagate: function (values, step, upper) -> a relevance or None for each input of the step, given the
            relevance of its output.

    Returns:
        Function (images (N, H, W, C), target int32 (N,)) -> dict of tensors: `heatmap` (N, H, W, C) and
        `logits` (N, L), float32 (float64 for float64 images). It computes in float32 whatever the layers'
        policy, in float64 where that is a layer's. Its attribute `of_layers` is a function of the same
        arguments to a dict from a layer's name to the relevance of its output.
    """
    # A half-precision model's own logits, so that its prediction is the one explained.
    own_logits = with_logits(model) if graph.half else None

    def propagated(images, target):
        values = forward(graph, tf.cast(images, graph.dtype))
        logits = values[graph.output]
        answer = own_logits(images)[0] if own_logits else logits
        one_hot = tf.one_hot(chosen_unit(answer, target), logits.shape[-1], dtype=logits.dtype)
        relevance = backward(graph, values, one_hot * logits, propagate)
        relevance.setdefault(FILM, tf.zeros_like(values[FILM]))
        return answer, relevance

    def explain(images, target):
        answer, relevance = propagated(images, target)
        results = "float64" if images.dtype == tf.float64 else "float32"
        return {"heatmap": tf.cast(relevance[FILM], results), "logits": tf.cast(answer, results)}

    def of_layers(images, target):
        relevance = propagated(images, target)[1]
        return {step.name: relevance[step.output] for step in graph.steps if step.output in relevance}

    explain.of_layers = of_layers
    return explain


def forward(graph, images) -> dict:
    """Number -> tensor: all that the model computes on a batch of films (N, H, W, C)."""
    values = {FILM: images}
    for step in graph.steps:
        values[step.output] = step.run(*(values[number] for number in step.inputs))
    return values


def backward(graph, values, start, propagate) -> dict:
    """Number -> relevance of each tensor that relevance reaches, from `start` at the logits.

    A tensor with several consumers has the sum of what they send.
    """
    arriving, relevance = {graph.output: [start]}, {}
    for step in (*reversed(graph.steps), None):
        number = FILM if step is None else step.output
        if number in arriving:
            relevance[number] = tf.add_n(arriving.pop(number))
            if step is not None:
                # Nothing for this step is computed, and kept in memory, before its relevance is there.
                with tf.control_dependencies([relevance[number]]):
                    shares = propagate(values, step, relevance[number])
                for source, share in zip(step.inputs, shares, strict=True):
                    if share is not None:
                        arriving.setdefault(source, []).append(share)
    return relevance


def adjoint(function, *inputs):
    """The output of a function, and its vector-Jacobian product: upper -> one tensor an input."""
    inputs = [tf.identity(x) for x in inputs]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(inputs)
        output = function(*inputs)

    def pull(upper):
        return tape.gradient(output, inputs, upper, unconnected_gradients=tf.UnconnectedGradients.ZERO)

    return output, pull


def pulled(step, kernel, x, upper):
    """The adjoint of a linear step's map, without bias: upper -> the shape of x."""
    return adjoint(lambda x: step.apply(x, kernel), x)[1](upper)[0]


def routed(step, inputs, upper):
    """Relevance of steps that copy or choose values: back to where they came from."""
    return adjoint(step.run, *inputs)[1](upper)


def won(step, x, upper, seen):
    """Relevance of max pooling: to the largest value; `seen` is 0 on zero padding (see `padding_apart`)."""
    if seen is not None:
        # Zero padding wins over zeros, and would keep what it gets.
        x = tf.where(seen > 0, x, x.dtype.min)
    return routed(step, [x], upper)[0]


def passed(step, x, upper):
    """Relevance of steps that scale, shift or bend values one by one: as it is, summed where they spread."""
    if x.shape[1:].as_list() == upper.shape[1:].as_list():
        return upper
    return adjoint(lambda x: x + tf.zeros_like(upper), x)[1](upper)[0]


def signed_parts(x, non_negative):
    """The parts max(x, 0) and max(-x, 0) of a tensor; the second is None where it is known to be zero."""
    return (x, None) if non_negative else (tf.nn.relu(x), tf.nn.relu(-x))


def box(graph, number, known):
    """Lowest and highest values of a tensor, from those of tensors before it.

    Args:
        graph: a Graph.
        number: of the tensor that is bounded.
        known: number -> (low, high), tensors.

    Raises:
        ValueError: a step between that keeps no order.
    """
    known = dict(known)
    for step in graph.steps:
        if number in known:
            break
        if step.kind == "linear" or not all(source in known for source in step.inputs):
            continue
        if step.kind in ("activation", "gate") and step.function not in _MONOTONE:
            continue
        ends = [step.run(*(known[source][side] for source in step.inputs)) for side in (0, 1)]
        known[step.output] = (tf.minimum(*ends), tf.maximum(*ends))
    if number not in known:
        raise ValueError(f"model {graph.name!r}: z_box cannot bound what its first linear layers see")
    return known[number]


def unmoved(graph, values, number, fill):
    """What a map of the tensor before its padding and reshaping becomes by them.

    Args:
        graph, values: a Graph and its tensors.
        number: of a tensor.
        fill: function from the tensor before to a map of its height, width and channels.
    """
    moves = _moves_before(graph, number)
    filled = fill(values[moves[0].inputs[0] if moves else number])
    for step in moves:
        filled = step.run(filled)
    return filled


def padding_apart(graph, values, number):
    """1 where a tensor (N, H, W, C) holds values and 0 where zero padding, (1, H, W, C); None without any."""
    if any(isinstance(step.layer, layers.ZeroPadding2D) for step in _moves_before(graph, number)):
        return unmoved(graph, values, number, lambda before: tf.ones_like(before[:1]))
    return None


def _moves_before(graph, number):
    made_by = {step.output: step for step in graph.steps}
    moves = []
    while number in made_by and made_by[number].kind == "move":
        moves.insert(0, made_by[number])
        (number,) = moves[0].inputs
    return moves


def boxed(step, x, low, high, share):
    """z^B (Montavon et al., 2017, eq. 13) through a linear step whose input lies between low and high.

    Written with x - low and high - x, so that no large terms cancel.

    Args:
        share: function of the denominators to the relevance a unit of them carries.
    """
    kernel, _ = step.weights(x.dtype)
    rising, falling = signed_parts(kernel, False)
    above, below = x - low, high - x
    shares = share(step.apply(above, rising) + step.apply(below, falling))
    return above * pulled(step, rising, above, shares) + below * pulled(step, falling, below, shares)
