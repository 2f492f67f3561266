"""Where the symbolic tensors of a functional model come from."""


def made_by(tensor):
    """The operation (mostly a layer) that gave a symbolic tensor."""
    return tensor._keras_history.operation


def inputs_of(tensor) -> list:
    """The symbolic tensors that a symbolic tensor was made of."""
    return _node(tensor).input_tensors


def made_with(tensor) -> list:
    """All symbolic tensors that came from the same call as this one."""
    return _node(tensor).outputs


def _node(tensor):
    operation, index, _ = tensor._keras_history
    return operation._inbound_nodes[index]
