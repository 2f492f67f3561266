"""Reads a functional Keras model: its steps, and where its last feature map is."""

import dataclasses

import keras
from keras import layers, ops

from kxray.explain.head import LAST_OPERATIONS, end_of
from kxray.explain.steps import Step, steps_of, unknown
from kxray.layers.symbolic import inputs_of

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
            spatial = len(outputs) > 0 and len(outputs[0].shape) == 4 and outputs[0].shape[1:3] != (1, 1)
            if spatial and not isinstance(layer, _SHRINKING) and _is_learned(outputs[0]):
                return _only(outputs, layer)
        raise ValueError(
            f"model {model.name!r} has no layer with features (N, h, w, C) to explain; where they are inside "
            "a nested model, build it flat"
        )
    known = [layer.name for layer in model.layers]
    if name not in known:
        raise ValueError(f"model {model.name!r} has no layer {name!r}; it has: {', '.join(known)}")
    layer = model.get_layer(name)
    tensor = _only(made[layer], layer)
    if len(tensor.shape) != 4:
        raise ValueError(f"layer {name!r} gives {tuple(tensor.shape)}; Grad-CAM needs a (N, h, w, K) output")
    return tensor


def _is_learned(tensor):
    """Whether anything with weights had a part in a tensor: a rescaled or mirrored film is no feature map."""
    waiting, seen = [tensor], set()
    while waiting:
        tensor = waiting.pop()
        operation = tensor._keras_history.operation
        if getattr(operation, "weights", None) and not isinstance(operation, layers.Normalization):
            return True
        new = [before for before in inputs_of(tensor) if id(before) not in seen]
        seen.update(map(id, new))
        waiting += new
    return False


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
            waiting += inputs_of(tensor)
    return made


def called_with(model, layer) -> list:
    """The symbolic tensors that a layer is called with in this model; ValueError if it is called twice."""
    return inputs_of(_only(_tensors_by_operation(model)[layer], layer))


def chosen_unit(logits, target):
    """The unit to explain of each film, int32 (N,): `target`, or that of the largest logit where it is -1."""
    top = ops.cast(ops.argmax(logits, axis=-1), "int32")
    return ops.where(target < 0, top, target)


FILM = 0
# Layers that change no sign, and functions whose values are never negative or lie in [-1, 1].
_SIGN_KEEPING = ("move", "max", "average", "concatenate", "sum", "gate")
_NON_NEGATIVE = ("relu", "relu6", "sigmoid", "hard_sigmoid", "softmax", "softplus", "exponential")
_GATING = ("sigmoid", "hard_sigmoid", "softmax", "tanh")


@dataclasses.dataclass(frozen=True)
class Graph:
    """A model as a list of steps between numbered tensors; tensor 0 is the film.

    Attributes:
        name: of the model.
        steps: in the order of computation; backwards it is the order of relevance.
        output: number of the logits (N, L), before the last activation.
        shapes: number -> static shape, of tensors that layers give.
        dtype: "float64" where a layer computes in it, else "float32".
        half: whether a layer computes in half precision.
    """

    name: str
    steps: tuple[Step, ...]
    output: int
    shapes: dict
    dtype: str
    half: bool

    def consumers(self) -> dict:
        """Number of a tensor -> the steps that take it."""
        found = {}
        for step in self.steps:
            for number in dict.fromkeys(step.inputs):
                found.setdefault(number, []).append(step)
        return found

    def non_negative(self) -> set:
        """Numbers of the tensors that hold no negative value, whatever the film."""
        found = set()
        for step in self.steps:
            clipped = step.kind == "activation" and step.function in _NON_NEGATIVE
            kept = step.kind in _SIGN_KEEPING and found.issuperset(step.inputs)
            if clipped or (kept and not isinstance(step.layer, layers.Subtract)):
                found.add(step.output)
        return found

    def first_linear(self) -> set:
        """Outputs of the linear steps that no other precedes: they see the film, prepared."""
        after, found = set(), set()
        for step in self.steps:
            if not after.isdisjoint(step.inputs):
                after.add(step.output)
            elif step.kind == "linear":
                after.add(step.output)
                found.add(step.output)
        return found

    def before_linear(self) -> set:
        """Numbers of the tensors that a linear step, near or far, takes."""
        found = set()
        for step in reversed(self.steps):
            if step.kind == "linear" or step.output in found:
                found.update(step.inputs)
        return found

    def last_linear(self) -> set:
        """Outputs of the linear steps that no other follows: they give the logits, or shares of them."""
        linear = {step.output for step in self.steps if step.kind == "linear"}
        return linear - self.before_linear()


def read(model) -> Graph:
    """Reads a model into its steps: inner models opened, activations apart, the last one left out.

    Args:
        model: functional or built Sequential keras.Model of one input and one output.

    Raises:
        ValueError: a layer without a rule, named with its class; no functional model.
    """
    require_functional(model)
    reader = _Reader(model)
    output = reader.number(end_of(model))
    steps = {step.output: step for step in reader.steps}
    last = steps.get(output)
    if last is not None and last.kind == "activation" and _ends_models(last.layer):
        output = last.inputs[0]
    steps = _leading_to(output, reader.steps)
    relevant = _relevant(output, steps)
    for step in relevant:
        if step.function in ("softmax", "log_softmax"):
            raise unknown(step.layer, "of softmax before the last layer")
    computed_in = {getattr(step.layer, "compute_dtype", None) for step in steps}
    return Graph(
        name=model.name,
        steps=tuple(steps),
        output=output,
        shapes=reader.shapes,
        dtype="float64" if "float64" in computed_in else "float32",
        half=not computed_in.isdisjoint(("float16", "bfloat16")),
    )


def _ends_models(layer):
    dense = isinstance(layer, (layers.Dense, layers.Activation, layers.Softmax))
    return dense or type(layer).__name__ in LAST_OPERATIONS


def _leading_to(output, steps):
    needed, kept = {output}, []
    for step in reversed(steps):
        if step.output in needed:
            needed.update(step.inputs)
            kept.append(step)
    return kept[::-1]


def _relevant(output, steps):
    """The steps that relevance goes through: not those that make gates."""
    reached, found = {output}, []
    for step in reversed(steps):
        if step.output in reached:
            reached.update(step.inputs[:1] if step.kind == "gate" else step.inputs)
            found.append(step)
    return found


class _Reader:
    """Numbers the tensors of a model, following them from its output to its film."""

    def __init__(self, model):
        self.steps, self.shapes = [], {FILM: tuple(model.inputs[0].shape)}
        self._numbers = {((), id(model.inputs[0])): FILM}
        # Scope (the calls of inner models that lead into it) -> id of its input -> (scope, tensor) outside.
        self._bound = {(): {}}
        self._made_by = {}

    def number(self, tensor):
        waiting = [((), tensor)]
        while waiting:
            scope, current = self._resolved(*waiting[-1])
            key = (scope, id(current))
            if key in self._numbers:
                waiting.pop()
                continue
            operation, index, _ = current._keras_history
            node = operation._inbound_nodes[index]
            inputs = [self._resolved(scope, tensor) for tensor in node.input_tensors]
            missing = [pair for pair in inputs if (pair[0], id(pair[1])) not in self._numbers]
            if missing:
                waiting += missing
                continue
            if not inputs or len(node.outputs) != 1:
                raise unknown(operation)
            numbers = [self._numbers[inside, id(tensor)] for inside, tensor in inputs]
            self._numbers[key] = self._add(operation, node, numbers, tuple(current.shape))
            waiting.pop()
        scope, tensor = self._resolved((), tensor)
        return self._numbers[scope, id(tensor)]

    def _add(self, operation, node, inputs, shape):
        for step in steps_of(operation, node):
            if step.kind == "gate":
                step, inputs = self._gated(step, operation, inputs, shape)
            step = dataclasses.replace(
                step,
                inputs=tuple(inputs),
                output=len(self._made_by) + 1,
                name=operation.name,
                layer=operation,
            )
            self.steps.append(step)
            self._made_by[step.output] = step
            inputs = [step.output]
        self.shapes[step.output] = shape
        return step.output

    def _gated(self, step, operation, inputs, shape):
        """Puts the signal of a product first: the one input that is neither spread out nor bounded."""
        spread = [number for number in inputs if self.shapes.get(number) != shape]
        signals = [number for number in inputs if number not in spread and not self._gates(number)]
        if len(signals) != 1:
            raise unknown(operation, f"of {len(signals)} signals, not of one signal and gates")
        return step, signals + [number for number in inputs if number != signals[0]]

    def _gates(self, number):
        step = self._made_by.get(number)
        while step is not None and step.kind in ("move", "affine"):
            step = self._made_by.get(step.inputs[0])
        return step is not None and step.function in _GATING

    def _resolved(self, scope, tensor):
        """The same tensor where it is made: out of the inner models that it enters or leaves."""
        while True:
            if id(tensor) in self._bound[scope]:
                scope, tensor = self._bound[scope][id(tensor)]
                continue
            if (scope, id(tensor)) in self._numbers:
                return scope, tensor
            operation, index, place = tensor._keras_history
            if not isinstance(operation, keras.Model):
                return scope, tensor
            if type(operation).__name__ not in ("Functional", "Sequential") or not operation.inputs:
                raise unknown(operation)
            inner = (*scope, (id(operation), index))
            if inner not in self._bound:
                given = operation._inbound_nodes[index].input_tensors
                self._bound[inner] = {
                    id(inside): (scope, outside)
                    for inside, outside in zip(operation.inputs, given, strict=True)
                }
            scope, tensor = inner, operation.outputs[place]
