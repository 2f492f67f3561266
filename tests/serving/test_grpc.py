"""TensorFlow Serving's gRPC API through a real server process."""

import socket
import threading

import grpc
import numpy as np
import pytest


@pytest.fixture(scope="module")
def channel(server):
    options = [("grpc.max_send_message_length", -1), ("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(server.address, options=options) as channel:
        yield channel


@pytest.fixture(scope="module")
def ask(channel):
    """ask(inputs, name=..., version=..., ...) -> PredictResponse"""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

    def predict(inputs, signature="", name="view", version=None, label="", output_filter=(), timeout=20):
        request = predict_pb2.PredictRequest(output_filter=output_filter)
        request.model_spec.name = name
        request.model_spec.signature_name = signature
        request.model_spec.version_label = label
        if version is not None:
            request.model_spec.version.value = version
        for key, value in inputs.items():
            request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
        return stub.Predict(request, timeout=timeout)

    return predict


@pytest.fixture(scope="module")
def films(make_film):
    return [make_film(0, 90, 70), make_film(1, 40, 120), make_film(3, 90, 70)]


@pytest.fixture(scope="module")
def encoded(films):
    import kxray

    return [kxray.io.encode_png16(film) for film in films]


def arrays(response):
    import tensorflow as tf

    return {key: tf.make_ndarray(value) for key, value in response.outputs.items()}


def test_the_numbers_are_those_of_keras(ask, films, encoded, keras_answer, spec):
    expected = keras_answer(films)
    response = ask({"image_bytes": encoded})
    assert response.model_spec.name == "view"
    assert response.model_spec.version.value == 1
    assert response.model_spec.signature_name == "serving_default"
    np.testing.assert_allclose(arrays(response)["probabilities"], expected, atol=1e-5)
    assert arrays(response)["decision"].tolist() == [b"lateral", b"unsure", b"frontal"]
    pixels = ask({"pixels": films[0][None, ..., None]}, "predict_pixels")
    np.testing.assert_allclose(arrays(pixels)["probabilities"], expected[:1], atol=1e-5)
    described = arrays(ask({}, "describe", output_filter=["spec"]))
    assert list(described) == ["spec"]
    assert type(spec).from_json(described["spec"][0].decode()) == spec


def test_explanations_are_signed_by_label(ask, encoded):
    answers = [ask({"image_bytes": encoded, "label": np.int32([label] * 3)}, "explain") for label in (0, 1)]
    labels = [arrays(answer)["heatmap"] for answer in answers]
    named = ask({"image_bytes": encoded, "label": np.int32([1] * 3)}, "explain_grad_cam")
    assert labels[1].shape == (3, 4, 4)
    np.testing.assert_allclose(labels[0], -labels[1], atol=1e-7)
    np.testing.assert_allclose(arrays(named)["heatmap"], labels[1], atol=1e-7)


def test_answers_hold_typed_values_as_tensorflow_servings_do(ask, encoded):
    response = ask({"image_bytes": encoded[:1]}, output_filter=["probabilities", "label"])
    assert set(response.outputs) == {"probabilities", "label"}
    assert len(response.outputs["probabilities"].float_val) == 2
    assert not response.outputs["probabilities"].tensor_content
    assert list(response.outputs["label"].string_val) == [b"lateral"]


def test_metadata_and_status(channel):
    from tensorflow_serving.apis import (
        get_model_metadata_pb2,
        get_model_status_pb2,
        model_service_pb2_grpc,
        prediction_service_pb2_grpc,
    )

    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    request.model_spec.name = "view"
    response = prediction_service_pb2_grpc.PredictionServiceStub(channel).GetModelMetadata(
        request, timeout=20
    )
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert response.model_spec.version.value == 1
    assert set(signatures.signature_def) >= {
        "serving_default",
        "predict_pixels",
        "explain",
        "explain_grad_cam",
    }
    assert set(signatures.signature_def["explain"].inputs) == {"image_bytes", "label"}

    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = "view"
    stub = model_service_pb2_grpc.ModelServiceStub(channel)
    (status,) = stub.GetModelStatus(request, timeout=20).model_version_status
    assert (status.version, status.state, status.status.error_code) == (1, status.AVAILABLE, 0)
    request.model_spec.name = "empty"
    with pytest.raises(grpc.RpcError, match="Could not find any versions of model empty"):
        stub.GetModelStatus(request, timeout=20)


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        ({"signature": "segment"}, "FAILED_PRECONDITION", 'Serving signature key "segment" not found.'),
        (
            {"signature": "__saved_model_init_op"},
            "FAILED_PRECONDITION",
            "Serving signature key .* not found.",
        ),
        ({"name": "nobody"}, "NOT_FOUND", r"Servable not found for request: Latest\(nobody\)"),
        ({"name": "empty"}, "NOT_FOUND", r"Servable not found for request: Latest\(empty\)"),
        ({"version": 9}, "NOT_FOUND", r"Servable not found for request: Specific\(view, 9\)"),
        ({"label": "canary"}, "INVALID_ARGUMENT", "Unrecognized servable version label: canary"),
        ({"name": ""}, "INVALID_ARGUMENT", "ModelSpec has no name specified."),
        (
            {"output_filter": ["logits"]},
            "INVALID_ARGUMENT",
            "output tensor alias not found in signature: logits",
        ),
        ({"output_filter": ["label", "label"]}, "INVALID_ARGUMENT", "duplicate output tensor alias: label"),
        ({"inputs": {}}, "INVALID_ARGUMENT", "input size does not match signature: 0!=1"),
        ({"inputs": {"image": [b""]}}, "INVALID_ARGUMENT", "Sent extra: {image}"),
        ({"inputs": {"image_bytes": [1.0]}}, "INVALID_ARGUMENT", "must be string, got float32"),
        ({"inputs": {"image_bytes": [[b""]]}}, "INVALID_ARGUMENT", "must have shape"),
        ({"inputs": {"image_bytes": np.zeros((0,), "S1")}}, "INVALID_ARGUMENT", "the batch is empty"),
        ({"inputs": {"image_bytes": [b"no image"]}}, "INVALID_ARGUMENT", "neither a PNG nor a JPEG"),
        ({"inputs": {"image_bytes": [b"x" * (9 << 20)]}}, "RESOURCE_EXHAUSTED", "larger than max"),
    ],
)
def test_errors_are_those_of_tensorflow_serving(ask, encoded, change, code, message):
    with pytest.raises(grpc.RpcError) as caught:
        ask(**{"inputs": {"image_bytes": encoded[:1]}, **change})
    assert caught.value.code().name == code
    assert np.char.count(caught.value.details(), "\n") == 0
    import re

    assert re.search(message, caught.value.details())


def test_version_and_label_choose(ask, encoded):
    for choice in ({"version": 1}, {"label": "stable"}):
        assert ask({"image_bytes": encoded[:1]}, **choice).model_spec.version.value == 1


def test_calls_that_are_not_offered_say_so(channel):
    from tensorflow_serving.apis import (
        classification_pb2,
        model_management_pb2,
        model_service_pb2_grpc,
        predict_pb2,
        prediction_service_pb2_grpc,
    )

    prediction = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    models = model_service_pb2_grpc.ModelServiceStub(channel)
    for call, request in (
        (prediction.Classify, classification_pb2.ClassificationRequest()),
        (models.HandleReloadConfigRequest, model_management_pb2.ReloadConfigRequest()),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call(request, timeout=20)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
    with pytest.raises(grpc.RpcError) as caught:
        prediction.Predict(predict_pb2.PredictRequest(), timeout=20)
    assert (caught.value.code().name, caught.value.details()) == ("INVALID_ARGUMENT", "Missing ModelSpec")


def test_garbage_on_the_ports_is_shrugged_off(server, channel, ask, encoded):
    for address in (server.address, server.rest):
        for garbage in (
            b"\0" * 4096,
            b"GET / HTTP/1.1\r\n\r\n",
            bytes(range(256)) * 64,
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ):
            host, port = address.split(":")
            with socket.create_connection((host, int(port)), timeout=10) as connection:
                connection.sendall(garbage)
    # Bytes that are a well-formed call, and no PredictRequest.
    raw = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
    with pytest.raises(grpc.RpcError) as caught:
        raw(b"\xff" * 100, timeout=20)
    assert caught.value.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT)
    assert ask({"image_bytes": encoded[:1]}).model_spec.version.value == 1


def test_many_clients_at_once_get_their_own_answers(ask, films, encoded, keras_answer):
    expected, wrong = keras_answer(films), []

    def client(number):
        got = arrays(ask({"image_bytes": [encoded[number % 3]]}))["probabilities"][0]
        if not np.allclose(got, expected[number % 3], atol=1e-5):
            wrong.append(number)

    threads = [threading.Thread(target=client, args=[number]) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
