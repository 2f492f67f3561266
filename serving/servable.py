"""One loaded version of a model: checks tensors against a signature, runs it, gives tensors back."""

from pathlib import Path

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow.core.protobuf import saved_model_pb2

from serving import warmup
from serving.status import FAILED_PRECONDITION, INVALID_ARGUMENT, ServingStatus, from_tensorflow

_PROTO_FIELDS = {
    tf.float32: "float_val",
    tf.float64: "double_val",
    tf.int32: "int_val",
    tf.int16: "int_val",
    tf.int8: "int_val",
    tf.uint8: "int_val",
    tf.int64: "int64_val",
    tf.bool: "bool_val",
    tf.string: "string_val",
}
# A few bytes of protocol buffer can stand for a tensor of any size, one value repeated.
_MAX_TENSOR_BYTES = 2**31


class Servable:
    """A SavedModel in memory.

    Args:
        name: the model's name.
        version: its version number.
        path: the version's folder.

    Raises:
        Exception: whatever TensorFlow raises on a SavedModel it cannot load or warm up.
    """

    def __init__(self, name: str, version: int, path):
        self.name, self.version = name, version
        path = Path(path)
        # TensorFlow's Python loader keeps no SignatureDef; clients ask for it through GetModelMetadata.
        saved = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
        if not saved.meta_graphs:
            raise ValueError("saved_model.pb is empty")
        self.signature_defs = dict(saved.meta_graphs[0].signature_def)
        self._loaded = tf.saved_model.load(str(path))
        self._functions = dict(self._loaded.signatures)
        requests = path / "assets.extra" / warmup.FILE_NAME
        if requests.is_file():
            for request in warmup.read(requests):
                self.run(request.model_spec.signature_name, dict(request.inputs), request.output_filter)

    def signature_def(self, signature_name: str):
        """The SignatureDef of a signature; an empty name means serving_default."""
        signature_name = signature_name or "serving_default"
        if signature_name not in self._functions:
            raise ServingStatus(FAILED_PRECONDITION, f'Serving signature key "{signature_name}" not found.')
        return self.signature_defs[signature_name]

    def run(self, signature_name: str, inputs: dict, output_filter=()) -> dict[str, np.ndarray]:
        """Runs one signature.

        Args:
            signature_name: empty for serving_default.
            inputs: TensorProto by input name.
            output_filter: names of the outputs wanted; empty for all.

        Returns:
            Array by output name; strings as bytes in object arrays.

        Raises:
            ServingStatus: as TensorFlow Serving would answer.
        """
        signature = self.signature_def(signature_name)
        _check_names(signature, inputs, output_filter)
        tensors = {key: _from_proto(key, inputs[key], info) for key, info in signature.inputs.items()}
        try:
            outputs = self._functions[signature_name or "serving_default"](**tensors)
            wanted = output_filter or sorted(outputs)
            return {key: outputs[key].numpy() for key in wanted}
        except tf.errors.OpError as error:
            raise from_tensorflow(error) from error


def to_proto(array: np.ndarray) -> tensor_pb2.TensorProto:
    """Array -> TensorProto with typed values, as TensorFlow Serving answers; `tensor_content` stays empty."""
    dtype = tf.string if array.dtype == object else tf.as_dtype(array.dtype)
    if dtype not in _PROTO_FIELDS:
        return tf.make_tensor_proto(array)
    proto = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum)
    for side in array.shape:
        proto.tensor_shape.dim.add(size=side)
    getattr(proto, _PROTO_FIELDS[dtype]).extend(array.ravel().tolist())
    return proto


def _check_names(signature, inputs, output_filter):
    missing, extra = sorted(set(signature.inputs) - set(inputs)), sorted(set(inputs) - set(signature.inputs))
    if missing or extra:
        got, expected = ",".join(sorted(inputs)), ",".join(sorted(signature.inputs))
        raise ServingStatus(
            INVALID_ARGUMENT,
            f"input size does not match signature: {len(inputs)}!={len(signature.inputs)} len({{{got}}}) != "
            f"len({{{expected}}}). Sent extra: {{{','.join(extra)}}}. "
            f"Missing but required: {{{','.join(missing)}}}.",
        )
    seen = set()
    for alias in output_filter:
        if alias not in signature.outputs:
            expected = ",".join(sorted(signature.outputs))
            raise ServingStatus(
                INVALID_ARGUMENT,
                f"output tensor alias not found in signature: {alias} "
                f"Outputs expected to be in the set {{{expected}}}.",
            )
        if alias in seen:
            raise ServingStatus(INVALID_ARGUMENT, f"duplicate output tensor alias: {alias}")
        seen.add(alias)


def _from_proto(key, proto, info):
    expected = tf.as_dtype(info.dtype)
    if proto.dtype != info.dtype:
        got = tf.dtypes.DType(proto.dtype).name if proto.dtype else "no type"
        raise ServingStatus(INVALID_ARGUMENT, f'input "{key}" must be {expected.name}, got {got}')
    sides = [dimension.size for dimension in proto.tensor_shape.dim]
    allowed = [dimension.size for dimension in info.tensor_shape.dim]
    fits = (
        proto.tensor_shape.unknown_rank is False and len(sides) == len(allowed) and min(sides, default=0) >= 0
    )
    if not info.tensor_shape.unknown_rank and not (
        fits and all(want in (-1, got) for want, got in zip(allowed, sides, strict=True))
    ):
        shape = tuple("?" if side == -1 else side for side in allowed)
        raise ServingStatus(
            INVALID_ARGUMENT, f'input "{key}" must have shape {_shape(shape)}, got {_shape(sides)}'
        )
    count = int(np.prod(sides, dtype=object)) if sides else 1
    if count * max(1, expected.size or 16) > _MAX_TENSOR_BYTES:
        raise ServingStatus(
            INVALID_ARGUMENT, f'input "{key}" is too large: {_shape(sides)} of {expected.name}'
        )
    try:
        return tf.constant(tf.make_ndarray(proto).reshape(sides), dtype=expected)
    except (ValueError, TypeError, OverflowError, tf.errors.OpError):
        raise ServingStatus(INVALID_ARGUMENT, f"tensor parsing error: {key}") from None


def _shape(sides):
    return f"({', '.join(map(str, sides))}{',' if len(sides) == 1 else ''})"
