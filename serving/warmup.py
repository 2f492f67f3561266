"""Warm-up records: example requests for every signature, replayed before a version answers."""

from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

FILE_NAME = "tf_serving_warmup_requests"


def write(path, name, signatures) -> None:
    """Writes `assets.extra/tf_serving_warmup_requests`: a TFRecord of PredictionLog, at most 1,000 records.

    Args:
        path: the file to write.
        name: model name put into the requests.
        signatures: of `serving.graph.endpoints` or `serving.generator.endpoints`.
    """
    import tensorflow as tf

    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature_name, (_, inputs) in signatures.items():
            for request in _requests(name, signature_name, {spec.name for spec in inputs}):
                log = prediction_log_pb2.PredictionLog(
                    predict_log=prediction_log_pb2.PredictLog(request=request)
                )
                writer.write(log.SerializeToString())


def read(path):
    """Returns the PredictRequests of a warm-up file, in order."""
    import tensorflow as tf

    logs = (
        prediction_log_pb2.PredictionLog.FromString(raw.numpy()) for raw in tf.data.TFRecordDataset(str(path))
    )
    return [log.predict_log.request for log in logs if log.HasField("predict_log")]


def example_pixels(height=48, width=40):
    """A smooth grey pattern, float32 (height, width) in [0, 1], on the grid of 16-bit values."""
    import numpy as np

    rows, columns = np.mgrid[0:height, 0:width].astype("float64")
    pattern = 0.5 + 0.3 * np.sin(rows / 9.0) * np.cos(columns / 7.0) + 0.2 * (columns / width - 0.5)
    return (np.round(pattern * 65535) / 65535).astype("float32")


def _requests(name, signature_name, inputs):
    import tensorflow as tf

    if "seed" in inputs:
        label, seed = tf.constant([0]), tf.constant([0], tf.int64)
        yield _request(name, signature_name, {"label": label, "seed": seed})
        return
    pixels = example_pixels()
    png = tf.io.encode_png(tf.constant((pixels * 65535).round().astype("uint16"))[..., None]).numpy()
    jpeg = tf.io.encode_jpeg(tf.constant((pixels * 255).round().astype("uint8"))[..., None]).numpy()
    if signature_name == "describe":
        yield _request(name, signature_name, {}, output_filter=["spec"])
    elif signature_name == "predict_pixels":
        yield _request(name, signature_name, {"pixels": pixels[None, ..., None]})
    elif signature_name == "serving_default":
        for film in (png, jpeg):
            yield _request(name, signature_name, {"image_bytes": [film]})
    else:
        yield _request(name, signature_name, {"image_bytes": [png], "label": tf.constant([-1])})


def _request(name, signature_name, inputs, output_filter=()):
    import tensorflow as tf

    # A batching TensorFlow Serving runs a request in line, past its batcher, when the outputs asked for are
    # not exactly those of the signature. `describe` has no input to batch, so it must name its output.
    request = predict_pb2.PredictRequest(output_filter=output_filter)
    request.model_spec.name = name
    request.model_spec.signature_name = signature_name
    for key, value in inputs.items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    return request
