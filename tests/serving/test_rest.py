"""TensorFlow Serving's REST API through a real server process."""

import base64
import json
import re
import urllib.error
import urllib.request

import numpy as np
import pytest


@pytest.fixture(scope="module")
def fetch(server):
    """fetch(path, document or bytes or None) -> (HTTP code, parsed answer)"""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def call(path, body=None):
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"http://{server.rest}{path}", data)
        try:
            with opener.open(request, timeout=30) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    return call


@pytest.fixture(scope="module")
def films(make_film):
    return [make_film(0, 90, 70), make_film(1, 40, 120), make_film(3, 90, 70)]


@pytest.fixture(scope="module")
def b64(films):
    import kxray

    return [{"b64": base64.b64encode(kxray.io.encode_png16(film)).decode()} for film in films]


def test_rows_answer_as_keras_does(fetch, films, b64, keras_answer):
    code, answer = fetch("/v1/models/view:predict", {"instances": b64})
    assert code == 200
    expected = keras_answer(films)
    np.testing.assert_allclose([row["probabilities"] for row in answer["predictions"]], expected, atol=1e-5)
    assert [row["decision"] for row in answer["predictions"]] == ["lateral", "unsure", "frontal"]
    named = {"instances": [{"image_bytes": film} for film in b64], "signature_name": "serving_default"}
    assert fetch("/v1/models/view/versions/1:predict", named) == (200, answer)
    assert fetch("/v1/models/view/labels/stable:predict", named) == (200, answer)


def test_columns_answer_as_keras_does(fetch, films, b64, keras_answer):
    expected = keras_answer(films)
    code, answer = fetch("/v1/models/view:predict", {"inputs": b64})
    assert code == 200
    np.testing.assert_allclose(answer["outputs"]["probabilities"], expected, atol=1e-5)
    pixels = {"signature_name": "predict_pixels", "inputs": films[0][None, ..., None].tolist()}
    code, answer = fetch("/v1/models/view:predict", pixels)
    assert code == 200
    np.testing.assert_allclose(answer["outputs"]["probabilities"], expected[:1], atol=1e-5)


def test_explanations_and_the_description(fetch, b64, spec):
    rows = [{"image_bytes": film, "label": label} for film, label in zip(b64, (0, 1, -1), strict=True)]
    code, answer = fetch("/v1/models/view:predict", {"signature_name": "explain", "instances": rows})
    assert code == 200
    assert np.shape([row["heatmap"] for row in answer["predictions"]]) == (3, 4, 4)
    assert [row["explained_label"] for row in answer["predictions"]] == ["frontal", "lateral", "frontal"]
    code, answer = fetch("/v1/models/view:predict", {"signature_name": "describe", "inputs": {}})
    assert code == 200
    assert type(spec).from_json(answer["outputs"]["spec"][0]) == spec


def test_status_and_metadata(fetch):
    entry = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    for path in ("/v1/models/view", "/v1/models/view/versions/1", "/v1/models/view/labels/stable"):
        assert fetch(path) == (200, {"model_version_status": [entry]})
    code, answer = fetch("/v1/models/view/metadata")
    assert code == 200
    assert answer["model_spec"] == {"name": "view", "signature_name": "", "version": "1"}
    explain = answer["metadata"]["signature_def"]["signature_def"]["explain"]
    assert explain["inputs"]["label"]["dtype"] == "DT_INT32"
    assert explain["method_name"] == "tensorflow/serving/predict"


FILM = {"b64": "bm8gZmlsbQ=="}


@pytest.mark.parametrize(
    ("path", "body", "code", "message"),
    [
        ("/v1/models/nobody", None, 404, "Could not find any versions of model nobody"),
        ("/v1/models/empty", None, 404, "Could not find any versions of model empty"),
        ("/v1/models/view/versions/9", None, 404, "Could not find version 9 of model view"),
        ("/v1/models/view/versions/99999999999999999999", None, 400, "Failed to convert version"),
        pytest.param(
            f"/v1/models/view/versions/{'9' * 5000}", None, 400, "Failed to convert", id="5000-digits"
        ),
        ("/v1/models/nobody/metadata", None, 404, r"Servable not found for request: Latest\(nobody\)"),
        ("/v1/models", None, 400, "Missing model name in request."),
        ("/v1/nothing", None, 400, "Malformed request: GET /v1/nothing"),
        ("/favicon.ico", None, 404, "no such path"),
        ("/v1/models/view", b"{}", 400, "Malformed request: POST"),
        ("/v1/models/view:classify", b"{}", 501, "classify is not offered"),
        ("/v1/models/nobody:predict", {"instances": [FILM]}, 404, r"Latest\(nobody\)"),
        ("/v1/models/view/versions/9:predict", {"instances": [FILM]}, 404, r"Specific\(view, 9\)"),
        (
            "/v1/models/view/labels/canary:predict",
            {"instances": [FILM]},
            400,
            "Unrecognized servable version label",
        ),
        ("/v1/models/view:predict", b"", 400, "The document is empty"),
        ("/v1/models/view:predict", b"{", 400, "JSON Parse error"),
        ("/v1/models/view:predict", b"\xff\xfe\x00", 400, "JSON Parse error"),
        ("/v1/models/view:predict", b"[" * 100_000, 400, "JSON Parse error"),
        ("/v1/models/view:predict", [], 400, "Is not object"),
        ("/v1/models/view:predict", {}, 400, "Missing 'inputs' or 'instances' key"),
        ("/v1/models/view:predict", {"inputs": [FILM], "instances": [FILM]}, 400, "expecting only one of"),
        ("/v1/models/view:predict", {"instances": []}, 400, "No values in 'instances' array"),
        ("/v1/models/view:predict", {"inputs": []}, 400, "the batch is empty"),
        ("/v1/models/view:predict", {"instances": FILM}, 400, "to be an list/array"),
        ("/v1/models/view:predict", {"instances": [FILM]}, 400, "neither a PNG nor a JPEG"),
        ("/v1/models/view:predict", {"instances": [{"b64": "?"}]}, 400, "Unable to base64 decode"),
        ("/v1/models/view:predict", {"instances": [1.5]}, 400, "is not of expected type: string"),
        ("/v1/models/view:predict", {"instances": [[FILM]]}, 400, "must have shape"),
        (
            "/v1/models/view:predict",
            {"instances": [{"image": FILM}]},
            400,
            "keys must be equal to: image_bytes",
        ),
        (
            "/v1/models/view:predict",
            {"instances": [FILM], "signature_name": 1},
            400,
            "must be a string value",
        ),
        (
            "/v1/models/view:predict",
            {"instances": [FILM], "signature_name": "segment"},
            400,
            'Serving signature name: "segment" not found in signature def',
        ),
        (
            "/v1/models/view:predict",
            {"instances": [FILM], "signature_name": "explain"},
            400,
            "multiple input tensors required",
        ),
        (
            "/v1/models/view:predict",
            {"inputs": {"image_bytes": [FILM]}, "signature_name": "explain"},
            400,
            "Missing named input: label",
        ),
        (
            "/v1/models/view:predict",
            {"inputs": {"image_bytes": [FILM], "label": [0.5]}, "signature_name": "explain"},
            400,
            "is not of expected type: int32",
        ),
        (
            "/v1/models/view:predict",
            {"inputs": [[[[0.1], [0.2]], [[0.3]]]], "signature_name": "predict_pixels"},
            400,
            "Encountered list at unexpected size: 1 at level: 2 expected size: 2",
        ),
        (
            "/v1/models/view:predict",
            {"inputs": [[[[True]]]], "signature_name": "predict_pixels"},
            400,
            "is not of expected type: float32",
        ),
        pytest.param(
            "/v1/models/view:predict",
            {"inputs": [[[[10**400]]]], "signature_name": "predict_pixels"},
            400,
            "is not of expected type: float32",
            id="400-digit-pixel",
        ),
        pytest.param(
            "/v1/models/view:predict",
            {"inputs": {"image_bytes": [FILM], "label": [10**400]}, "signature_name": "explain"},
            400,
            "is not of expected type: int32",
            id="400-digit-label",
        ),
        ("/v1/models/view:predict", b"x" * (9 << 20), 413, "larger than"),
    ],
)
def test_errors_are_those_of_tensorflow_serving(fetch, path, body, code, message):
    got, answer = fetch(path, body)
    assert got == code, answer
    assert list(answer) == ["error"]
    assert re.search(message, answer["error"]), answer


def test_json_writes_bytes_text_and_short_floats():
    from serving.json_tensors import COLUMNAR, ROW, write_outputs

    outputs = {
        "png_bytes": np.array([b"\xff\x00", b"a"], dtype=object),
        "score": np.array([0.2, np.nan], np.float32),
        "text": np.array([["é".encode()], [b"b"]], dtype=object),
    }
    assert json.loads(write_outputs({"score": outputs["score"][:1]}, ROW)) == {"predictions": [0.2]}
    assert json.loads(write_outputs({"score": outputs["score"][:1]}, COLUMNAR)) == {"outputs": [0.2]}
    first, second = json.loads(write_outputs(outputs, ROW))["predictions"]
    assert first == {"png_bytes": {"b64": "/wA="}, "score": 0.2, "text": ["é"]}
    assert np.isnan(second["score"])
