"""TensorFlow Serving's JSON: tensors of a predict request and of its answer.

https://www.tensorflow.org/tfx/serving/api_rest describes both; the rules below are those of
tensorflow/serving, util/json_tensor.cc.
"""

import base64
import binascii
import json
import math

import numpy as np
import tensorflow as tf

from serving.status import INVALID_ARGUMENT, ServingStatus

ROW, COLUMNAR = "instances", "inputs"


def parse_body(body: bytes) -> dict:
    """The JSON object of a request body. Raises ServingStatus on anything else."""
    if not body:
        raise _bad("JSON Parse error: The document is empty")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise _bad(f"JSON Parse error: {error}") from None
    if not isinstance(document, dict):
        raise _bad("JSON Value: Is not object")
    if not isinstance(document.get("signature_name", ""), str):
        raise _bad("JSON Value: not formatted correctly. 'signature_name' key must be a string value.")
    return document


def read_inputs(document: dict, signature):
    """Tensors of a request.

    Args:
        document: from `parse_body`.
        signature: SignatureDef.

    Returns:
        (TensorProto by input name, `ROW` or `COLUMNAR`). A signature without inputs takes `"inputs": {}`,
        which TensorFlow Serving's own REST API does not offer.

    Raises:
        ServingStatus: INVALID_ARGUMENT.
    """
    if (ROW in document) == (COLUMNAR in document):
        if ROW in document:
            raise _bad(
                "JSON Value: Not formatted correctly expecting only one of 'inputs' or 'instances' "
                "keys to exist"
            )
        raise _bad("Missing 'inputs' or 'instances' key")
    form = ROW if ROW in document else COLUMNAR
    value = document[form]
    try:
        columns = (
            _columns_of_rows(value, signature.inputs) if form == ROW else _columns(value, signature.inputs)
        )
        protos = {name: _proto(column, signature.inputs[name], name) for name, column in columns.items()}
    except RecursionError:
        raise _bad("JSON Value: nested too deeply") from None
    return protos, form


def write_outputs(outputs: dict[str, np.ndarray], form: str) -> str:
    """The answer's JSON: `{"predictions": [...]}` for rows, `{"outputs": ...}` for columns."""
    if form == ROW:
        sizes = {name: array.shape[0] if array.ndim else -1 for name, array in outputs.items()}
        if len(set(sizes.values())) != 1 or -1 in sizes.values():
            raise _bad(
                f"outputs have no common batch size: {sizes}; ask with 'inputs' instead of 'instances'"
            )
    columns = {name: _json_values(array, name) for name, array in sorted(outputs.items())}
    if form == COLUMNAR:
        return json.dumps({"outputs": columns if len(columns) > 1 else next(iter(columns.values()))})
    if len(columns) == 1:
        return json.dumps({"predictions": next(iter(columns.values()))})
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return json.dumps({"predictions": rows})


def _columns_of_rows(rows, inputs):
    if not isinstance(rows, list):
        raise _bad("JSON Value: Excepting 'instances' to be an list/array")
    if not rows:
        raise _bad("JSON Value: No values in 'instances' array")
    named = _is_object(rows[0])
    if not named and len(inputs) != 1:
        raise _bad(
            "instances is a plain list, but expecting list of objects as multiple input tensors required "
            "as per tensorinfo_map"
        )
    columns = {name: [] for name in inputs}
    for number, row in enumerate(rows):
        if _is_object(row) != named:
            raise _bad(
                f"Failed to process element: {number} of 'instances' list: objects and values are mixed"
            )
        if named and set(row) != set(inputs):
            raise _bad(
                f"Failed to process element: {number} of 'instances' list. JSON object keys must be equal "
                f"to: {','.join(sorted(inputs))}"
            )
        for name, column in columns.items():
            column.append(row[name] if named else row)
    return columns


def _columns(value, inputs):
    if _is_object(value):
        for name in inputs:
            if name not in value:
                raise _bad(f"Missing named input: {name} in 'inputs' object.")
        return {name: value[name] for name in inputs}
    if len(inputs) != 1:
        raise _bad(
            "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
            "tensorinfo_map"
        )
    return {next(iter(inputs)): value}


def _proto(value, info, name):
    dtype = tf.as_dtype(info.dtype)
    shape, probe = [], value
    while isinstance(probe, list):
        shape.append(len(probe))
        probe = probe[0] if probe else None
    flat = []
    _flatten(value, shape, 0, _reader(dtype, name), flat)
    array = np.array(flat, dtype=object if dtype == tf.string else dtype.as_numpy_dtype).reshape(shape)
    return tf.make_tensor_proto(array, dtype=dtype, shape=shape)


def _flatten(value, shape, level, read, flat):
    if not isinstance(value, list):
        if level != len(shape):
            raise _bad(
                f"JSON Value found at incorrect level: {level + 1} in the JSON DOM. "
                f"Expected at level: {len(shape)}"
            )
        flat.append(read(value))
        return
    if level >= len(shape):
        raise _bad(f"Encountered list at unexpected level: {level} expected < {len(shape)}")
    if len(value) != shape[level]:
        raise _bad(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
        )
    for item in value:
        _flatten(item, shape, level + 1, read, flat)


def _reader(dtype, name):
    def wrong(value):
        shown = json.dumps(value)
        shown = shown if len(shown) < 80 else shown[:77] + "..."
        return _bad(f'JSON Value: {shown} of input "{name}" is not of expected type: {dtype.name}')

    def read_string(value):
        if isinstance(value, str):
            return value.encode("utf-8", "surrogatepass")
        if not (_is_base64(value)):
            raise wrong(value)
        try:
            return base64.b64decode(value["b64"], validate=True)
        except (binascii.Error, ValueError):
            raise _bad("Unable to base64 decode") from None

    def read_number(value):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise wrong(value)
        if dtype.is_integer and not (isinstance(value, int) and dtype.min <= value <= dtype.max):
            raise wrong(value)
        # Against Python floats: an integer of any length compares with them, but need not convert to one.
        if dtype.is_floating and float(dtype.max) < abs(value) < math.inf:
            raise wrong(value)
        return value

    def read_bool(value):
        if not isinstance(value, bool):
            raise wrong(value)
        return value

    return {tf.string: read_string, tf.bool: read_bool}.get(dtype, read_number)


def _json_values(array, name):
    if array.dtype == object:
        read = _as_base64 if name.endswith("_bytes") else _as_text
        return [_nested(row, read) for row in array] if array.ndim else read(array.item())
    if array.dtype == np.float32:
        # The shortest digits that give the float32 back: 0.2, not 0.20000000298023224.
        return array.astype(str).astype(np.float64).tolist()
    return array.tolist()


def _nested(value, read):
    return [_nested(item, read) for item in value] if isinstance(value, np.ndarray) else read(value)


def _as_base64(value):
    return {"b64": base64.b64encode(value).decode("ascii")}


def _as_text(value):
    return value.decode("utf-8", "replace")


def _is_base64(value):
    return isinstance(value, dict) and set(value) == {"b64"} and isinstance(value["b64"], str)


def _is_object(value):
    return isinstance(value, dict) and not _is_base64(value)


def _bad(message):
    return ServingStatus(INVALID_ARGUMENT, message)
