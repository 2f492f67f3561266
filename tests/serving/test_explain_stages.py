"""Multi-scale explanations on their way out: exported, in a session, over gRPC and REST, in the client."""

import base64
import json
import urllib.request

import grpc
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import kxray
from serving import explanation_picture, graph
from serving.client import Client, Explanation
from serving.client_program import main
from serving.export import export_model

SIGNATURES = {
    *("serving_default", "predict_pixels", "describe"),
    *("explain", "explain_multiscale_cam", "explain_grad_cam"),
}
EXPLAINED = {"probabilities", "label", "decision", "heatmap", "explained_label"}
STAGED = EXPLAINED | {"stage_maps", "relevance_weights", "stage_names"}


def network_inputs(films, spec):
    from kxray.layers.film_input import film_input

    return np.concatenate([film_input(spec)(film[None, ..., None]) for film in films])


def expect_maps(answer, model, spec, films, labels, method, tolerance=1e-5):
    """The answer's maps are those of `kxray.explain.attribute` for `labels`; -1: the predicted one."""
    inputs = network_inputs(films, spec)
    predicted = answer["probabilities"].argmax(axis=-1)
    chosen = np.where(np.array(labels) < 0, predicted, labels)
    maps = kxray.explain.attribute(model, inputs, chosen, method)[..., 0]
    np.testing.assert_allclose(answer["heatmap"], maps, atol=tolerance * max(1, abs(maps).max()))
    np.testing.assert_allclose(answer["probabilities"].sum(axis=-1), 1, atol=1e-5)
    assert answer["explained_label"].tolist() == [spec.labels[unit].encode() for unit in chosen]


def expect_sum_of_stages(answer):
    weighted = np.einsum("ns,nshw->nhw", answer["relevance_weights"], answer["stage_maps"])
    assert np.ptp(answer["relevance_weights"]) > 0.1, "the weights must differ to be told apart"
    np.testing.assert_allclose(answer["heatmap"], weighted, atol=1e-5 * max(1, abs(weighted).max()))


@pytest.fixture(scope="module")
def films(make_film):
    return [make_film(0, 90, 70), make_film(1, 40, 120), make_film(3, 90, 70)]


@pytest.fixture(scope="module")
def encoded(films):
    return np.array([kxray.io.encode_png16(film) for film in films], dtype=object)


@pytest.fixture(scope="module")
def ask(server):
    """ask(signature, image_bytes, labels) -> arrays by output name, over gRPC"""
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    with grpc.insecure_channel(server.address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)

        def predict(signature, image_bytes, labels):
            request = predict_pb2.PredictRequest()
            request.model_spec.name, request.model_spec.signature_name = "staged", signature
            request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(list(image_bytes)))
            request.inputs["label"].CopyFrom(tf.make_tensor_proto(np.array(labels, np.int32)))
            response = stub.Predict(request, timeout=20)
            return {key: tf.make_ndarray(value) for key, value in response.outputs.items()}

        yield predict


@pytest.fixture(scope="module")
def client(server):
    with Client(server.address, model="staged") as client:
        yield client


def test_the_default_is_what_suits_the_model(model, spec, staged_model, tmp_path):
    assert kxray.explain.default_methods(staged_model[0]) == ("multiscale_cam", "grad_cam")
    assert kxray.explain.default_methods(model) == ("grad_cam",)
    with pytest.raises(ValueError, match="functional"):
        kxray.explain.default_methods(None)
    with pytest.raises(ValueError, match="multiscale_cam needs one LayerRelevance layer"):
        export_model(model, spec, tmp_path / "view", explain=["multiscale_cam"])
    assert not (tmp_path / "view").exists()


@pytest.mark.slow
def test_densenet121_answers_alike_in_a_session_without_kxray(make_film, ask_session, tmp_path):
    from kxray.spec import ModelSpec

    model = kxray.models.build("multiscale_densenet", num_labels=4, image_size=(64, 64))
    numbers = np.random.default_rng(0)
    for layer in model.layers:
        if layer.name.startswith("logits_"):
            layer.bias.assign(numbers.normal(size=4))
    model.get_layer("layer_relevance").scores.assign(numbers.normal(size=(3, 4)))
    spec = ModelSpec("multiscale_densenet", ("a", "b", "c", "d"), "multiclass", (64, 64))
    # One method: a copy of the network less to trace, to write and to load.
    folder = export_model(model, spec, tmp_path / "dense", explain=["multiscale_cam"])

    films = [make_film(0, 90, 70), make_film(1, 40, 120)]
    encoded = np.array([kxray.io.encode_png16(film) for film in films], dtype=object)
    inputs = {"image_bytes": encoded, "label": np.array([2, -1], np.int32)}
    # The other signatures were compared with Keras by the export, and every one costs seconds to optimise.
    answers = ask_session(folder, {"explain": inputs})
    assert set(answers) == SIGNATURES - {"explain_grad_cam"}
    answer = answers["explain"]
    assert set(answer) == STAGED
    expected = model(network_inputs(films, spec)).numpy()
    np.testing.assert_allclose(answer["probabilities"], expected, atol=1e-5)
    expect_maps(answer, model, spec, films, [2, -1], "multiscale_cam")
    expect_sum_of_stages(answer)
    assert answer["stage_names"].tolist() == [[b"block2", b"block3", b"block4"]] * 2
    assert answer["heatmap"].shape == (2, 8, 8), "the largest stage's grid: an eighth of 64 pixels"


def test_every_signature_answers_alike_in_a_session_without_kxray(
    models_root, staged_model, films, encoded, ask_session
):
    model, spec = staged_model
    labels = [0, 2, -1]
    inputs = {"image_bytes": encoded, "label": np.array(labels, np.int32)}
    requests = {
        "serving_default": {"image_bytes": encoded},
        "predict_pixels": {"pixels": films[0][None, ..., None]},
        **{name: inputs for name in SIGNATURES if name.startswith("explain")},
        "describe": {},
    }
    answers = ask_session(models_root / "staged" / "1", requests)
    assert set(answers) == SIGNATURES
    for name, method, outputs in (
        ("explain", "multiscale_cam", STAGED),
        ("explain_multiscale_cam", "multiscale_cam", STAGED),
        ("explain_grad_cam", "grad_cam", EXPLAINED),
    ):
        assert set(answers[name]) == outputs
        expect_maps(answers[name], model, spec, films, labels, method)
        for key in ("probabilities", "label", "decision"):
            np.testing.assert_array_equal(answers[name][key], answers["serving_default"][key])


def test_an_explanation_holds_one_forward_pass_and_no_backward_one_through_the_network(staged_model):
    """As many convolutions as the model has: the probabilities come from the explainer's own logits."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    signatures = graph.endpoints(*staged_model, ["multiscale_cam", "grad_cam"])
    for name in ("explain_multiscale_cam", "explain_grad_cam"):
        function, input_signature = signatures[name]
        concrete = tf.function(function, input_signature=input_signature).get_concrete_function()
        inlined = convert_variables_to_constants_v2(concrete).graph.as_graph_def()
        kinds = [node.op for node in inlined.node]
        assert (kinds.count("Conv2D"), kinds.count("Conv2DBackpropInput")) == (2, 0), name


def test_over_grpc_the_asked_or_the_predicted_class_is_explained(ask, staged_model, films, encoded):
    model, spec = staged_model
    for labels in ([0, 1, 2], [-1, -1, -1], [1, -1, 1]):
        answer = ask("explain", encoded, labels)
        assert set(answer) == STAGED
        assert answer["stage_maps"].shape == (3, 2, 16, 12) and answer["stage_maps"].dtype == np.float32
        assert answer["stage_names"].tolist() == [[b"shallow", b"deep"]] * 3
        expect_maps(answer, model, spec, films, labels, "multiscale_cam")
        expect_sum_of_stages(answer)
    predicted = ask("explain", encoded, [-1] * 3)
    assert predicted["explained_label"].tolist() == predicted["label"].tolist()
    assert len(set(predicted["label"].tolist())) > 1, "the films must tell the labels apart"
    weights = model.get_layer(index=-2).relevance().numpy()
    asked = ask("explain", encoded, [0, 1, 2])
    np.testing.assert_allclose(asked["relevance_weights"], weights.T, atol=1e-6)
    assert set(ask("explain_grad_cam", encoded, [-1] * 3)) == EXPLAINED


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([3], "label must be -1 (the predicted one) or one of: 0 clear, 1 mass, 2 nodule"),
        ([-2], "label must be -1 (the predicted one) or one of: 0 clear, 1 mass, 2 nodule"),
        ([0, 1], "got 2 labels for 1 films"),
    ],
)
def test_other_labels_are_invalid_arguments(ask, encoded, labels, message):
    with pytest.raises(grpc.RpcError) as caught:
        ask("explain", encoded[:1], labels)
    assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.INVALID_ARGUMENT, message)


def test_over_rest_the_same_numbers_come(server, ask, encoded):
    rows = [
        {"image_bytes": {"b64": base64.b64encode(film).decode()}, "label": label}
        for film, label in zip(encoded, (0, 2, -1), strict=True)
    ]
    body = json.dumps({"signature_name": "explain", "instances": rows}).encode()
    request = urllib.request.Request(f"http://{server.rest}/v1/models/staged:predict", body)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as response:
        predictions = json.load(response)["predictions"]
    expected = ask("explain", encoded, [0, 2, -1])
    assert set(predictions[0]) == STAGED
    for key in ("probabilities", "heatmap", "stage_maps", "relevance_weights"):
        np.testing.assert_allclose([row[key] for row in predictions], expected[key], atol=1e-6)
    assert [row["stage_names"] for row in predictions] == [["shallow", "deep"]] * 3


def test_independent_labels(staged, films, encoded):
    import tensorflow as tf

    model, spec = staged("multilabel")
    function = graph.endpoints(model, spec, ["multiscale_cam"])["explain"][0]
    answer = function(tf.constant(encoded), tf.constant([2, -1, 0]))
    answer = {key: value.numpy() for key, value in answer.items()}
    expect_sum_of_stages(answer)
    inputs = network_inputs(films, spec)
    chosen = [2, int(model(inputs).numpy()[1].argmax()), 0]
    maps = kxray.explain.attribute(model, inputs, chosen, "multiscale_cam")[..., 0]
    np.testing.assert_allclose(answer["heatmap"], maps, atol=1e-5 * abs(maps).max())
    assert answer["label"].tolist()[1] == answer["explained_label"].tolist()[1]


def test_saturated_labels_are_ranked_by_their_logits(staged, films):
    """Two sigmoids of exactly 1.0: the label told is the label explained."""
    import tensorflow as tf

    model, spec = staged("multilabel")
    for name in ("logits_shallow", "logits_deep"):
        model.get_layer(name).bias.assign([300.0, 200.0, 400.0])
    function = graph.endpoints(model, spec, ["multiscale_cam"])["explain"][0]
    answer = function(tf.constant([kxray.io.encode_png16(films[0])]), tf.constant([-1]))
    assert answer["probabilities"].numpy().tolist() == [[1.0, 1.0, 1.0]]
    assert answer["label"].numpy().tolist() == answer["explained_label"].numpy().tolist() == [b"nodule"]


def test_the_two_labels_of_one_unit_are_explained_with_opposite_signs(staged, films):
    import tensorflow as tf

    model, spec = staged("binary")
    function = graph.endpoints(model, spec, ["multiscale_cam"])["explain"][0]
    film = kxray.io.encode_png16(films[0])
    answer = function(tf.constant([film, film]), tf.constant([0, 1]))
    answer = {key: value.numpy() for key, value in answer.items()}
    expect_sum_of_stages(answer)
    expected = kxray.explain.attribute(model, network_inputs(films[:1], spec), 0, "multiscale_cam")[0, ..., 0]
    np.testing.assert_allclose(answer["heatmap"], [-expected, expected], atol=1e-5 * abs(expected).max())
    np.testing.assert_allclose(answer["stage_maps"][0], -answer["stage_maps"][1], atol=1e-6)
    np.testing.assert_array_equal(answer["relevance_weights"][0], answer["relevance_weights"][1])


def test_an_explanation_that_differs_from_keras_is_not_published(staged, tmp_path, monkeypatch):
    def of_the_unit(model, method):
        explain = kxray.explain.detailed_explainer(model, method)
        return lambda images, label: explain(images, 0 * label)

    monkeypatch.setattr(graph, "binary_explainer", of_the_unit)
    with pytest.raises(ValueError, match=r"exported explain_grad_cam differs .* nothing was written"):
        export_model(*staged("binary"), tmp_path / "staged", explain=["grad_cam"])
    assert list((tmp_path / "staged").iterdir()) == []


def test_a_model_of_mixed_precision_is_explained_within_its_rounding(staged, films, encoded, tmp_path):
    import keras
    import tensorflow as tf

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model, spec = staged()
    finally:
        keras.config.set_dtype_policy(before)
    loaded = tf.saved_model.load(str(export_model(model, spec, tmp_path / "staged")))
    labels = [0, 2, -1]
    for name, method in (("explain", "multiscale_cam"), ("explain_grad_cam", "grad_cam")):
        answer = loaded.signatures[name](image_bytes=tf.constant(encoded), label=tf.constant(labels))
        answer = {key: value.numpy() for key, value in answer.items()}
        assert {value.dtype.name for value in answer.values()} == {"float32", "object"}
        expect_maps(answer, model, spec, films, labels, method, tolerance=1e-2)


def test_the_client_gives_stages_where_there_are_some(client, staged_model, films):
    model, spec = staged_model
    explanation = client.explain(films[0], label="mass")
    assert explanation.stage_names == ("shallow", "deep")
    assert explanation.explained_label == "mass"
    assert explanation.stage_maps.shape == (2, 16, 12)
    weighted = np.einsum("s,shw->hw", explanation.relevance_weights, explanation.stage_maps)
    np.testing.assert_allclose(explanation.heatmap, weighted, atol=1e-5 * abs(weighted).max())
    weights = model.get_layer(index=-2).relevance().numpy()[:, spec.labels.index("mass")]
    np.testing.assert_allclose(explanation.relevance_weights, weights, atol=1e-6)
    assert explanation.prediction == client.predict(films[0])

    plain = client.explain(films[0], method="grad_cam")
    assert plain.stage_names == ()
    assert plain.relevance_weights.shape == (0,)
    assert plain.stage_maps.shape == (0, *plain.heatmap.shape)


def planted(names=("early", "late")):
    """One stage for everywhere, one against everywhere, both at their peak; the sum is silent."""
    return Explanation(
        heatmap=np.zeros((2, 2), np.float32),
        explained_label="mass",
        method="",
        prediction=None,
        stage_names=names,
        relevance_weights=np.float32([0.5, 0.5])[: len(names)],
        stage_maps=np.float32([np.full((2, 2), 4), np.full((2, 2), -4)])[: len(names)],
    )


def test_every_stage_is_a_panel_with_its_sign():
    sheet = np.asarray(explanation_picture.draw(np.full((400, 300), 0.5, np.float32), planted()), int)
    row = sheet[sheet.shape[0] // 2]
    red, blue = row[:, 0] - row[:, 2], row[:, 2] - row[:, 0]
    kinds = np.select([red > 50, blue > 50, row.sum(axis=-1) == 0], ["+", "-", " "], "0")
    told = "".join(np.r_[kinds[:1], kinds[1:][kinds[1:] != kinds[:-1]]])
    assert told.split() == ["0", "+", "-", "0"], "combined, early, late, and the middle of the colour bar"
    assert [(kinds == kind).sum() for kind in "+-"] == [300, 300]
    text = explanation_picture.describe(planted())
    assert text == (
        "for (red) and against (blue) mass; peak 0; early: weight 0.5, peak 4; late: weight 0.5, peak 4"
    )


@pytest.mark.parametrize(("size", "panel"), [((90, 70), 320), ((3000, 2400), 1024), ((16, 600), 600)])
def test_panels_have_room_for_captions_and_no_more_pixels_than_a_screen(size, panel):
    drawn = explanation_picture.draw(np.zeros(size, np.float32), planted(("early",)))
    taller = size[0] > size[1]
    assert (drawn.height if taller else drawn.width) > panel
    assert max(drawn.size) < 4 * panel + 400
    alone = explanation_picture.draw(np.zeros(size, np.float32), planted(()))
    assert alone.size == (size[1], size[0]), "without stages the film keeps its size"


def test_the_program_draws_the_stages(server, films, tmp_path):
    kxray.io.write_png16(tmp_path / "film.png", films[0])
    picture = tmp_path / "why.png"
    command = ["predict", str(tmp_path / "film.png"), "--explain", str(picture), "--label", "nodule"]
    to = ["--address", server.address, "--model", "staged"]
    result = CliRunner().invoke(main, [*command, *to])
    assert result.exit_code == 0, result.output
    with Image.open(picture) as image:
        assert image.width > 3 * 249, "three panels, as high as captions need"
        description = image.info["Description"]
    assert (
        "nodule" in description and "shallow: weight 0." in description and "deep: weight 0." in description
    )
    result = CliRunner().invoke(main, [*command, *to, "--method", "grad_cam"])
    assert result.exit_code == 0, result.output
    with Image.open(picture) as image:
        assert image.size == (70, 90)


def test_help_says_what_the_picture_shows():
    text = " ".join(CliRunner().invoke(main, ["predict", "--help"]).output.split())
    for words in ("predict a.dcm --explain why.png", "red speaks for the label", "relevance weight"):
        assert words in text
