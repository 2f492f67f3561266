"""Requests and answers as bytes on disk: what clients and servers of today and tomorrow must agree on.

KXRAY_WRITE_GOLDEN=1 writes the files anew, after a change of the contract that is meant.
"""

import os
from pathlib import Path

import grpc
import numpy as np
import pytest

GOLDEN = Path(__file__).parent / "golden"
# Recording -> the model and the signature it asks.
NAMES = {
    "serving_default": ("view", "serving_default"),
    "predict_pixels": ("view", "predict_pixels"),
    "explain": ("view", "explain"),
    "describe": ("view", "describe"),
    "explain_stages": ("staged", "explain"),
    "explain_pixels": ("dense", "explain"),
}
PREDICT = "/tensorflow.serving.PredictionService/Predict"


def golden_request(name, pixels):
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    import kxray

    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = NAMES[name]
    films = [kxray.io.encode_png16(pixels), kxray.io.encode_png16(1 - pixels)]
    inputs = {
        "serving_default": {"image_bytes": films},
        "predict_pixels": {"pixels": pixels[None, ..., None]},
        "explain": {"image_bytes": films, "label": np.array([1, -1], np.int32)},
        "describe": {},
    }[request.model_spec.signature_name]
    for key, value in inputs.items():
        request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    return request


@pytest.fixture(scope="module")
def send(server, make_film):
    with grpc.insecure_channel(server.address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        call = channel.unary_unary(PREDICT)
        if os.environ.get("KXRAY_WRITE_GOLDEN"):
            for name in NAMES:
                request = golden_request(name, make_film(2, 24, 20)).SerializeToString(deterministic=True)
                (GOLDEN / f"{name}.request.pb").write_bytes(request)
                (GOLDEN / f"{name}.response.pb").write_bytes(call(request, timeout=20))
        yield lambda data: call(data, timeout=20)


@pytest.mark.parametrize("name", NAMES)
def test_recorded_requests_get_the_recorded_answers(send, name):
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    expected = predict_pb2.PredictResponse.FromString((GOLDEN / f"{name}.response.pb").read_bytes())
    got = predict_pb2.PredictResponse.FromString(send((GOLDEN / f"{name}.request.pb").read_bytes()))
    assert got.model_spec == expected.model_spec
    assert set(got.outputs) == set(expected.outputs)
    for key, tensor in expected.outputs.items():
        assert got.outputs[key].dtype == tensor.dtype
        assert got.outputs[key].tensor_shape == tensor.tensor_shape
        assert got.outputs[key].tensor_content == tensor.tensor_content == b""
        values, wanted = tf.make_ndarray(got.outputs[key]), tf.make_ndarray(tensor)
        if wanted.dtype == object:
            assert values.tolist() == wanted.tolist()
        else:
            np.testing.assert_allclose(values, wanted, atol=1e-5)


def test_the_client_sends_the_recorded_request(make_film):
    """Compared as decoded pixels: the bytes of a PNG differ between versions of zlib."""
    from tensorflow_serving.apis import predict_pb2

    import kxray
    from serving.client import Client

    sent = []

    class Recorder(Client):
        def _call(self, stub, method, request):
            sent.append(request)
            name = request.model_spec.signature_name
            return predict_pb2.PredictResponse.FromString((GOLDEN / f"{name}.response.pb").read_bytes())

    pixels = make_film(2, 24, 20)
    predictions = Recorder(model="view").predict_batch([pixels, 1 - pixels])
    recorded = predict_pb2.PredictRequest.FromString((GOLDEN / "serving_default.request.pb").read_bytes())
    describe, predict = sent
    assert describe.model_spec.signature_name == "describe"
    assert list(describe.output_filter) == ["spec"]
    assert predict.model_spec == recorded.model_spec
    assert set(predict.inputs) == set(recorded.inputs)
    for got, wanted in zip(
        predict.inputs["image_bytes"].string_val, recorded.inputs["image_bytes"].string_val, strict=True
    ):
        np.testing.assert_array_equal(kxray.read_image(got).pixels, kxray.read_image(wanted).pixels)
    assert [prediction.model_version for prediction in predictions] == [1, 1]


def test_the_recordings_stay_small():
    files = list(GOLDEN.glob("*.pb"))
    assert len(files) == 2 * len(NAMES)
    assert sum(path.stat().st_size for path in files) < 50_000
