import contextlib
import json
import time
from concurrent import futures

import grpc
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import kxray
from serving.client import (
    Client,
    DeadlineExceeded,
    InvalidFilm,
    InvalidRequest,
    ModelNotFound,
    ServerBusy,
    ServerUnavailable,
    ServingError,
    SignatureNotFound,
)
from serving.client_program import main


@pytest.fixture(scope="module")
def client(server):
    with Client(server.address, model="view") as client:
        yield client


@pytest.fixture(scope="module")
def dicom(make_film, tmp_path_factory):
    """A 12-bit DICOM film, and its pixels."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    stored = (make_film(3) * 4095).round().astype("uint16")
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.Modality, data.PhotometricInterpretation, data.PatientID = "CR", "MONOCHROME2", "1"
    data.Rows, data.Columns = stored.shape
    data.SamplesPerPixel, data.PixelRepresentation = 1, 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.PixelData = stored.tobytes()
    path = tmp_path_factory.mktemp("dicom") / "film.dcm"
    data.save_as(path, enforce_file_format=True)
    return path


@contextlib.contextmanager
def fake_server(predict):
    """A PredictionService in this process whose Predict is `predict(bytes, context) -> bytes`."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    handlers = {"Predict": grpc.unary_unary_rpc_method_handler(predict)}
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler("tensorflow.serving.PredictionService", handlers)]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0)


def test_importing_the_client_imports_no_tensorflow(run_python):
    done = run_python(
        "import sys, serving.client; serving.client.Client('x:1').close();"
        "print([name for name in ('tensorflow', 'keras', 'tensorflow_serving') if name in sys.modules])"
    )
    assert done.stdout.strip() == "[]", done.stderr


def test_a_path_bytes_a_film_and_an_array_are_answered_alike(client, make_film, keras_answer, spec, tmp_path):
    pixels = make_film(0)
    kxray.io.write_png16(tmp_path / "film.png", pixels)
    probabilities = keras_answer([pixels])[0]
    film = kxray.read_image(tmp_path / "film.png")
    for given in (
        tmp_path / "film.png",
        str(tmp_path / "film.png"),
        (tmp_path / "film.png").read_bytes(),
        film,
        pixels,
    ):
        prediction = client.predict(given)
        np.testing.assert_allclose(list(prediction.probabilities.values()), probabilities, atol=1e-5)
        assert list(prediction.probabilities) == list(spec.labels)
        assert (prediction.label, prediction.decision, prediction.threshold) == ("lateral", "lateral", 0.55)
        assert prediction.probability == prediction.probabilities["lateral"]
        assert (prediction.model, prediction.model_version) == ("view", 1)


def test_batches_keep_their_order_over_several_messages(client, make_film, keras_answer, monkeypatch):
    monkeypatch.setattr("serving.client._MAX_BATCH_FILMS", 3)
    films = [make_film(seed % 5, 40 + seed, 50) for seed in range(8)]
    expected = keras_answer(films)
    got = [list(prediction.probabilities.values()) for prediction in client.predict_batch(films)]
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert client.predict_batch([]) == []


def test_explanations(client, make_film, model, spec):
    from kxray.layers.film_input import film_input

    pixels = make_film(0)
    inputs = np.asarray(film_input(spec)(pixels[None, ..., None]))
    expected = kxray.explain.attribute(model, inputs, 0, "grad_cam")[0, ..., 0]
    for options, sign, label in (
        ({}, 1, "lateral"),
        ({"label": "frontal", "method": "grad_cam"}, -1, "frontal"),
    ):
        explanation = client.explain(pixels, **options)
        np.testing.assert_allclose(explanation.heatmap, sign * expected, atol=1e-5)
        assert explanation.explained_label == label
        assert explanation.prediction == client.predict(pixels)


def test_describe_status_and_version_choice(client, server, spec):
    assert client.describe() == spec
    assert [(entry.version, entry.state, entry.error) for entry in client.status()] == [(1, "AVAILABLE", "")]
    for choice in ({"version": 1}, {"version_label": "stable"}):
        with Client(server.address, "view", **choice) as chosen:
            assert chosen.describe() == spec


def test_errors_have_types(client, server, make_film):
    film = make_film()
    cases = [
        (ModelNotFound, lambda: Client(server.address, "nobody").predict(film)),
        (ModelNotFound, lambda: Client(server.address, "view", version=9).predict(film)),
        (ModelNotFound, lambda: Client(server.address, "empty").status()),
        (InvalidRequest, lambda: Client(server.address, "view", version_label="canary").predict(film)),
        (InvalidRequest, lambda: client.predict(film[:4, :4])),
        (InvalidRequest, lambda: client.explain(film, label="oblique")),
        (SignatureNotFound, lambda: client.explain(film, method="lrp")),
        (ServerBusy, lambda: client.predict(np.random.default_rng(0).random((2500, 2500)))),
    ]
    for error, call in cases:
        with pytest.raises(error) as caught:
            call()
        assert isinstance(caught.value, ServingError)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "film",
    [
        np.zeros((9, 9), np.uint8),
        np.zeros((9, 9, 1)),
        np.full((9, 9), 1.5),
        np.full((9, 9), np.nan),
        np.zeros((0, 9)),
        7,
        None,
    ],
)
def test_arrays_that_are_no_film_are_refused_before_sending(film):
    with pytest.raises(InvalidFilm, match="got "):
        Client("127.0.0.1:1").predict(film)


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="a version or a version label"):
        Client(version=1, version_label="stable")
    with pytest.raises(ValueError, match="timeout must be a positive number"):
        Client(timeout=0)


def test_nobody_there_is_retried_until_the_timeout(make_film):
    began = time.monotonic()
    with pytest.raises(ServerUnavailable, match="no answer from 127.0.0.1:1 within 1 s"):
        Client("127.0.0.1:1", timeout=1).predict(make_film())
    assert 0.5 < time.monotonic() - began < 3


def test_a_server_that_never_answers_ends_with_the_deadline(make_film):
    def never(request, context):
        time.sleep(3)
        return b""

    with fake_server(never) as address:
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded, match=f"no answer from {address} within 0.5 s"):
            Client(address, timeout=0.5).predict(make_film())
        assert time.monotonic() - began < 2


def test_only_unavailable_is_retried(make_film):
    calls = []

    def flaky(request, context):
        calls.append(request)
        code = grpc.StatusCode.UNAVAILABLE if len(calls) < 4 else grpc.StatusCode.INTERNAL
        context.abort(code, "not now")

    with fake_server(flaky) as address:
        with pytest.raises(ServingError, match="not now") as caught:
            Client(address, timeout=10).predict(make_film())
    assert caught.value.code == "INTERNAL"
    assert len(calls) == 4
    assert len(set(calls)) == 1


def test_predict_prints_one_line_a_film(server, dicom, make_film, keras_answer, tmp_path):
    kxray.io.write_png16(tmp_path / "deep.png", make_film(0))
    Image.fromarray((make_film(1) * 255).astype("uint8")).save(tmp_path / "film.jpg")
    films = [tmp_path / "deep.png", tmp_path / "film.jpg", dicom]
    expected = keras_answer([kxray.read_image(film).pixels for film in films])
    to = ["--address", server.address, "--model", "view"]
    result = CliRunner().invoke(main, ["predict", *map(str, films), *to])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == (f"{films[0]}: lateral  lateral {expected[0, 1]:.4f} (threshold 0.55)  view version 1")
    assert f"{dicom}: frontal  frontal {expected[2, 0]:.4f} (threshold 0.60)" in lines[2]
    result = CliRunner().invoke(main, ["predict", str(dicom), "--json", "--version", "1", *to])
    answer = json.loads(result.stdout)
    assert answer["model_version"] == 1
    np.testing.assert_allclose(list(answer["probabilities"].values()), expected[2], atol=1e-5)


def test_explain_saves_an_overlay_at_the_films_own_size(server, dicom, tmp_path):
    picture = tmp_path / "out.png"
    options = ["--explain", str(picture), "--label", "lateral", "--method", "grad_cam"]
    result = CliRunner().invoke(
        main, ["predict", str(dicom), "--address", server.address, "--model", "view", *options]
    )
    assert result.exit_code == 0, result.output
    with Image.open(picture) as image:
        assert (image.size, image.mode) == ((70, 90), "RGB")
        assert "lateral" in image.info["Description"]
        assert np.ptp(np.asarray(image), axis=-1).max() > 50, "the map must be seen"


def test_describe_and_status_print(server, spec):
    to = ["--address", server.address, "--model", "view"]
    described = CliRunner().invoke(main, ["describe", *to])
    assert type(spec).from_json(described.stdout) == spec
    assert CliRunner().invoke(main, ["status", *to]).stdout == "view version 1: AVAILABLE\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "{film}", "--model", "nobody"], "Servable not found for request: Latest(nobody)"),
        (["predict", "no_such.png"], "no_such.png: there is no such file"),
        (
            ["predict", "{film}", "--explain", "{folder}/missing/out.png"],
            "missing/out.png: No such file or directory",
        ),
        (["predict", "{film}", "--label", "lateral"], "--method and --label belong to --explain"),
        (["predict", "{film}", "{film}", "--explain", "x.png"], "--explain takes one film"),
        (["predict", "{film}", "--explain", "x.png", "--label", "oblique"], "unknown label 'oblique'"),
        (["status", "--model", "empty"], "Could not find any versions of model empty"),
        (["describe", "--version", "1", "--version-label", "stable"], "a version or a version label"),
    ],
)
def test_failures_are_one_line_and_exit_code_2(server, dicom, tmp_path, arguments, message):
    filled = [argument.format(film=dicom, folder=tmp_path) for argument in arguments]
    model = [] if "--model" in filled else ["--model", "view"]
    result = CliRunner().invoke(main, [*filled, *model, "--address", server.address])
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_one_bad_film_does_not_stop_the_others(server, dicom):
    result = CliRunner().invoke(
        main, ["predict", "no_such.png", str(dicom), "--address", server.address, "--model", "view"]
    )
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == len(result.stdout.splitlines()) == 1


def test_a_film_the_server_refuses_does_not_stop_the_others(server, dicom, make_film, tmp_path):
    small = tmp_path / "small.png"
    kxray.io.write_png16(small, make_film(0, 8, 8))
    films = [str(dicom), str(small), str(dicom)]
    result = CliRunner().invoke(main, ["predict", *films, "--address", server.address, "--model", "view"])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {small}: ")
    assert "expected sides of 16 to" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert len(result.stdout.splitlines()) == 2


def test_versions_beyond_64_bits_are_refused():
    result = CliRunner().invoke(main, ["status", "--version", str(2**63)])
    assert result.exit_code == 2
    assert "is not in the range" in result.stderr


def test_the_program_itself_writes_nothing_but_its_answer(server, dicom, run_python):
    code = (
        "import runpy, sys; sys.argv[0] = 'client'; runpy.run_module('serving.client', run_name='__main__')"
    )
    done = run_python(code, "predict", dicom, "--address", server.address, "--model", "view")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
