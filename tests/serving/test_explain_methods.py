"""Every explanation method on its way out: said, refused, exported, in a session, over gRPC, drawn."""

import grpc
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import kxray
import serving.export
from serving import explanation_picture, methods
from serving.client import Client, Explanation, ServingError, SignatureNotFound
from serving.client_program import main
from serving.export import export_model
from serving.verifying import compare_maps

# The stages of multiscale_cam and the boxes of evidence have files of their own.
METHODS = tuple(name for name in kxray.explain.METHODS if name not in ("multiscale_cam", "evidence"))
CAMS = ("cam", "grad_cam", "grad_cam_pp", "layer_cam", "hires_cam")
# One of each kind; every method more costs seconds to trace, optimise and load.
KINDS = ("grad_cam", "integrated_gradients", "guided_backprop", "lrp", "rap")
OTHERS = tuple(name for name in METHODS if name not in KINDS)
# Not the defaults, so that an option that is lost on the way is seen.
OPTIONS = {
    "smoothgrad": {"samples": 3, "noise": 0.2, "seed": 4},
    "integrated_gradients": {"steps": 9, "baseline": "mean"},
    "grad_cam": {"layer": "wide", "upsample": True},
    "lrp": {"composite": "epsilon_plus_flat", "canonize": "thresh"},
    "rap": {"mode": "conserving", "commute": False},
}
ANSWERED = {"probabilities", "label", "decision", "heatmap", "explained_label"}
LABELS = np.array([0, 2, -1], np.int32)


@pytest.fixture(scope="module")
def films(make_film):
    return [make_film(0, 90, 70), make_film(1, 40, 120), make_film(3, 24, 20)]


@pytest.fixture(scope="module")
def encoded(films):
    return np.array([kxray.io.encode_png16(film) for film in films], dtype=object)


@pytest.fixture(scope="module")
def network_inputs(films, dense_model):
    from kxray.layers.film_input import film_input

    prepare = film_input(dense_model[1])
    return np.concatenate([prepare(film[None, ..., None]) for film in films])


@pytest.fixture(scope="module", params=[KINDS, pytest.param(OTHERS, marks=pytest.mark.slow)])
def options(request):
    """Options by method."""
    return {method: OPTIONS.get(method, {}) for method in request.param}


@pytest.fixture(scope="module")
def folder(dense_model, options, tmp_path_factory):
    """A version with these methods, asked for as a shell user does."""
    wanted = ",".join(methods.text(method, given) for method, given in options.items())
    return export_model(*dense_model, tmp_path_factory.mktemp("every") / "dense", wanted)


@pytest.fixture(scope="module")
def answers(folder, options, encoded, ask_session):
    """Arrays by output name by signature, from the TF1-style loader in a process without kxray."""
    inputs = {"image_bytes": encoded, "label": LABELS}
    requests = {f"explain_{method}": inputs for method in options} | {"explain": inputs, "describe": {}}
    return ask_session(folder, requests)


@pytest.fixture(scope="module")
def servable(folder):
    """The version as the embedded server holds it, its warm-up replayed."""
    from serving.servable import Servable

    return Servable("dense", 1, folder)


def test_a_session_and_the_server_repeat_the_maps_of_attribute(
    answers, servable, dense_model, options, encoded, network_inputs
):
    import tensorflow as tf

    model, spec = dense_model
    probabilities = model(network_inputs).numpy()
    chosen = np.where(LABELS < 0, probabilities.argmax(axis=-1), LABELS)
    inputs = {"image_bytes": tf.make_tensor_proto(list(encoded)), "label": tf.make_tensor_proto(LABELS)}
    for method, given in options.items():
        maps = kxray.explain.attribute(model, network_inputs, chosen, method, **given).sum(axis=-1)
        at_pixels = method not in CAMS or given.get("upsample", False)
        assert (maps.shape[1:] == spec.image_size) == at_pixels
        extra = {"completeness_error"} if method == "integrated_gradients" else set()
        for answer in (answers[f"explain_{method}"], servable.run(f"explain_{method}", inputs)):
            assert set(answer) == ANSWERED | extra
            assert {value.dtype.name for value in answer.values()} == {"float32", "object"}
            peak = abs(maps).max()
            np.testing.assert_allclose(answer["heatmap"] / peak, maps / peak, atol=1e-5, err_msg=method)
            np.testing.assert_allclose(answer["probabilities"], probabilities, atol=1e-5)
            assert answer["explained_label"].tolist() == [spec.labels[unit].encode() for unit in chosen]


def test_what_a_method_adds_comes_along(answers, options, dense_model, network_inputs):
    for method, given in options.items():
        if method == "integrated_gradients":
            explain = kxray.explain.detailed_explainer(dense_model[0], method, **given)
            expected = explain(network_inputs, LABELS)["completeness_error"]
            np.testing.assert_allclose(
                answers[f"explain_{method}"]["completeness_error"], expected, atol=1e-5
            )


def test_the_first_method_answers_as_explain(answers, options):
    for key, values in answers[f"explain_{next(iter(options))}"].items():
        np.testing.assert_array_equal(answers["explain"][key], values)


def test_describe_tells_the_methods_with_their_options(answers, options):
    told = [text.decode() for text in answers["describe"]["explanations"][0]]
    assert methods.parse(told) == options
    assert list(methods.parse(told)) == list(options)
    assert ("integrated_gradients:steps=9:baseline=mean" in told) == ("integrated_gradients" in options)


def test_weights_are_stored_once_for_all_methods(folder, dense_model):
    import tensorflow as tf
    from tensorflow.core.protobuf import saved_model_pb2

    stored = tf.train.list_variables(str(folder / "variables" / "variables"))
    numbers = sum(int(np.prod(shape)) for name, shape in stored if "VARIABLE_VALUE" in name)
    assert numbers == dense_model[0].count_params()
    saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    functions = saved.meta_graphs[0].graph_def.library.function
    constants = [node for function in functions for node in function.node_def if node.op == "Const"]
    assert constants
    assert max(len(node.attr["value"].tensor.tensor_content) for node in constants) < 2000


def test_every_signature_is_warmed_up(folder, options):
    from serving import warmup

    requests = warmup.read(folder / "assets.extra" / warmup.FILE_NAME)
    assert len(requests) <= 1000
    names = {request.model_spec.signature_name for request in requests}
    assert names == {
        *("serving_default", "predict_pixels", "describe", "explain"),
        *(f"explain_{method}" for method in options),
    }


@pytest.mark.parametrize("method", ["integrated_gradients", "lrp", "rap", "layer_cam"])
def test_each_label_of_one_unit_is_explained_as_itself(method, model, spec, make_film):
    import tensorflow as tf

    from kxray.layers.film_input import film_input
    from serving import graph

    film = make_film(0)
    function = graph.endpoints(model, spec, [method])["explain"][0]
    answer = function(tf.constant([kxray.io.encode_png16(film)] * 2), tf.constant([0, 1]))
    inputs = film_input(spec)(film[None, ..., None])
    expected = kxray.explain.attribute(model, inputs, 0, method)[0, ..., 0]
    heatmap = answer["heatmap"].numpy() / abs(expected).max()
    np.testing.assert_allclose(heatmap[1], expected / abs(expected).max(), atol=1e-5)
    # RAP treats what is for and against a unit differently, and LayerCAM shows only what speaks for it.
    odd = method in ("integrated_gradients", "lrp")
    assert np.allclose(heatmap[0], -heatmap[1], atol=1e-5) == odd
    if method == "rap":
        assert heatmap[0].sum() == pytest.approx(-heatmap[1].sum(), rel=1e-4)
    if method == "integrated_gradients":
        error = answer["completeness_error"].numpy()
        assert error[0] == pytest.approx(-error[1], rel=1e-3) != 0


def test_methods_are_said_as_text():
    assert methods.parse("grad_cam, rap") == {"grad_cam": {}, "rap": {}}
    assert list(methods.parse(["rap", "grad_cam"])) == ["rap", "grad_cam"]
    assert methods.parse("lrp:composite=epsilon_plus:canonize=thresh:epsilon=0.01:high=2") == {
        "lrp": {"composite": "epsilon_plus", "canonize": "thresh", "epsilon": 0.01, "high": 2.0}
    }
    assert methods.parse(["integrated_gradients:steps=20:baseline=0.5", "rap:commute=False"]) == {
        "integrated_gradients": {"steps": 20, "baseline": 0.5},
        "rap": {"commute": False},
    }
    assert methods.parse("grad_cam:layer=conv5:upsample=true,lrp:canonize=none") == {
        "grad_cam": {"layer": "conv5", "upsample": True},
        "lrp": {"canonize": None},
    }
    assert methods.parse("rap,rap") == {"rap": {}}
    mean_film = np.zeros((24, 20, 1))
    given = {"integrated_gradients": {"baseline": mean_film}}
    assert methods.parse(given)["integrated_gradients"]["baseline"] is mean_film
    assert methods.text("integrated_gradients", given["integrated_gradients"]) == (
        "integrated_gradients:baseline=ndarray(24, 20, 1)"
    )
    assert set(methods.parse(methods.EXAMPLE)) == {"grad_cam", "integrated_gradients", "lrp"}


@pytest.mark.parametrize(
    ("explain", "message"),
    [
        ("magic", "unknown explanation method 'magic'; the known ones are: gradient, .*, rap"),
        ("", "unknown explanation method ''"),
        ([], "unknown explanation method ''"),
        ({}, "unknown explanation method ''"),
        ("grad_cam,score_cam", "score_cam cannot be exported: it runs tf-keras-vis, in Python"),
        ("eigen_cam", "eigen_cam cannot be exported: it explains no label"),
        ("activation_maximisation", "activation_maximisation cannot be exported"),
        ("lrp:rule=x", "lrp has no option 'rule'; its options are: composite, canonize, .*, upsample"),
        ({"lrp": {"rule": "x"}}, "lrp has no option 'rule'; its options are: composite"),
        ("lrp:composite", "expected METHOD:OPTION=VALUE, as in grad_cam,.*, got 'lrp:composite'"),
        ("lrp:composite=", "expected METHOD:OPTION=VALUE"),
        ("lrp:composite=best", "unknown composite 'best'; the known ones are: epsilon, "),
        ("lrp:low=dark", "low of lrp is a number such as 0.0, got 'dark'"),
        ("lrp:rules=flat", "rules of lrp cannot be said in text; in Python: serving.export.export"),
        ("rap:commute=maybe", "commute of rap is true or false, got 'maybe'"),
        ("smoothgrad:samples=2.5", "samples of smoothgrad is a number such as 20, got '2.5'"),
        ("smoothgrad:samples=0", "smoothgrad needs samples of at least 1, got 0"),
        ("rap:mode=authors:mode=conserving", "'mode' is given twice"),
        ("rap,rap:mode=authors", "rap is named twice, as rap and as rap:mode=authors"),
        ("grad_cam:layer=nowhere", "has no layer 'nowhere'; it has: "),
        ("grad_cam,multiscale_cam", "multiscale_cam needs one LayerRelevance layer"),
        # Found while tracing only.
        ("lrp:composite=epsilon_gamma_box:low=0:high=-1", "low must be below high"),
    ],
)
def test_what_cannot_be_exported_is_refused_before_anything_is_written(
    dense_model, tmp_path, explain, message
):
    with pytest.raises(ValueError, match=message) as caught:
        export_model(*dense_model, tmp_path / "dense", explain)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "dense").exists()


def test_a_model_that_a_method_finds_unreadable_in_its_trace_leaves_nothing(
    dense_model, tmp_path, monkeypatch
):
    def refuses(model):
        def explain(images, target):
            raise ValueError("not this model")

        return explain

    monkeypatch.setitem(kxray.explain.METHODS, "rap", refuses)
    with pytest.raises(ValueError, match="not this model"):
        export_model(*dense_model, tmp_path / "dense", "rap")
    assert not (tmp_path / "dense").exists()


def compare(got, move=0.0, expected=((1.0, -2.0), (3.0, 4.0))):
    """What the export says of a map, where the Keras model's moves by `move` with the film."""
    film = np.zeros((1, 2, 2, 1), np.float32)

    def maps(images):
        return np.float32([expected]) * (1 + move * (np.abs(images).max() > 0))

    compare_maps("explain_lrp", np.float32([got]), maps, film, 1e-5)


def test_maps_are_compared_by_how_far_they_jump_under_rounding():
    expected = np.float32([[1, -2], [3, 4]])
    compare(expected * (1 + 5e-6))
    compare(1e-9 * expected, expected=1e-9 * expected)
    with pytest.raises(ValueError, match=r"explain_lrp differs from the Keras model by 1.0e-03 of its norm"):
        compare(1.001 * expected)
    with pytest.raises(ValueError, match=r"differs .* by 2.0e\+00 of its norm"):
        compare(-1e-9 * expected, expected=1e-9 * expected)
    compare(1.001 * expected, move=0.001)
    with pytest.raises(ValueError, match=r"differs .* by 2.0e\+00 of its norm, more than 5e-01"):
        compare(-expected, move=0.4)
    with pytest.raises(
        ValueError, match=r"rounding noise on this model: a change of 1e-06 in the film .* 0.6"
    ):
        compare(1.1 * expected, move=0.6)
    with pytest.raises(ValueError, match="not finite on this model; give it other options"):
        compare(expected, expected=np.full((2, 2), np.inf))
    compare(np.zeros((2, 2)), expected=np.zeros((2, 2)))


def test_the_program_takes_methods_with_options(dense_model, tmp_path):
    model, spec = dense_model
    model.save(tmp_path / "model.keras")
    (tmp_path / "spec.json").write_text(spec.to_json())
    command = [str(tmp_path / "model.keras"), "--to", str(tmp_path / "dense"), "--explain"]
    result = CliRunner().invoke(serving.export.main, [*command, "gradient,lrp:composite=zplus"])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(tmp_path / "dense" / "1")
    result = CliRunner().invoke(serving.export.main, [*command, "gradient:steps=3"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == "error: gradient has no option 'steps'; its options are: upsample\n"
    text = " ".join(CliRunner().invoke(serving.export.main, ["--help"]).output.split())
    assert "METHOD[:OPTION=VALUE]" in text
    assert "integrated_gradients:steps=20" in text


@pytest.fixture(scope="module")
def client(server):
    with Client(server.address, model="dense") as client:
        yield client


def test_the_client_chooses_the_method(client, dense_model, films, network_inputs):
    model, spec = dense_model
    assert client.methods() == ("integrated_gradients", "rap")
    for method in ("rap", "integrated_gradients", None):
        explanation = client.explain(films[0], label="nodule", method=method)
        given = {} if method == "rap" else {"steps": 8, "baseline": "mean"}
        name = method or "integrated_gradients"
        expected = kxray.explain.attribute(model, network_inputs[:1], 2, name, **given)[0, ..., 0]
        peak = abs(expected).max()
        np.testing.assert_allclose(explanation.heatmap / peak, expected / peak, atol=1e-5)
        assert (explanation.method, explanation.explained_label) == (method or "", "nodule")
        assert explanation.pixelwise
        assert set(explanation.details) == (set() if method == "rap" else {"completeness_error"})
        assert explanation.stage_names == ()


def test_a_method_that_the_server_has_not_gets_a_list_of_those_it_has(client, films, monkeypatch):
    with pytest.raises(SignatureNotFound) as caught:
        client.explain(films[0], method="lrp")
    assert str(caught.value) == (
        "model 'dense' was exported without explanation method 'lrp'; it has: integrated_gradients, rap"
    )
    assert caught.value.code == "FAILED_PRECONDITION"

    def silent(self):
        raise ServingError("no answer")

    monkeypatch.setattr(Client, "methods", silent)
    with pytest.raises(SignatureNotFound, match='Serving signature key "explain_lrp" not found'):
        client.explain(films[0], method="lrp")


def test_over_grpc_the_extras_have_names(server, encoded):
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = "dense", "explain"
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(list(encoded)))
    request.inputs["label"].CopyFrom(tf.make_tensor_proto(LABELS))
    with grpc.insecure_channel(server.address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=20)
    outputs = {key: tf.make_ndarray(value) for key, value in response.outputs.items()}
    assert set(outputs) == ANSWERED | {"completeness_error"}
    assert outputs["completeness_error"].shape == (3,)
    assert outputs["heatmap"].shape == (3, 24, 20)


def test_the_program_draws_what_was_asked_for(server, films, tmp_path):
    kxray.io.write_png16(tmp_path / "film.png", films[0])
    to = ["--address", server.address, "--model", "dense"]
    picture = tmp_path / "why.png"
    command = ["predict", str(tmp_path / "film.png"), "--explain", str(picture), *to]
    result = CliRunner().invoke(main, [*command, "--method", "rap"])
    assert result.exit_code == 0, result.output
    with Image.open(picture) as image:
        assert image.size == (70, 90)
        assert "full colour from" in image.info["Description"]
        assert np.ptp(np.asarray(image), axis=-1).max() > 50, "the map must be seen"
    result = CliRunner().invoke(main, [*command, "--method", "grad_cam"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        "error: model 'dense' was exported without explanation method 'grad_cam'; "
        "it has: integrated_gradients, rap\n"
    )
    assert CliRunner().invoke(main, ["methods", *to]).stdout == "integrated_gradients\nrap\n"
    result = CliRunner().invoke(main, ["methods", "--json", *to])
    assert result.stdout == '["integrated_gradients", "rap"]\n'


def explained(heatmap, pixelwise=True):
    none = np.zeros((0, *heatmap.shape), np.float32)
    return Explanation(heatmap, "mass", "rap", None, (), none[:, 0, 0], none, pixelwise)


def test_pixel_maps_are_drawn_with_their_sign_and_one_outlier_does_not_silence_them():
    heatmap = np.zeros((40, 40), np.float32)
    heatmap[:10], heatmap[30:], heatmap[20, 20] = 1.0, -1.0, 100.0
    film = np.full((40, 40), 0.5, np.float32)
    drawn = np.asarray(explanation_picture.draw(film, explained(heatmap)), int)
    red, blue = drawn[..., 0] - drawn[..., 2], drawn[..., 2] - drawn[..., 0]
    assert red[:10].min() > 50
    assert blue[30:].min() > 50
    assert np.ptp(drawn[15], axis=-1).max() == 0, "silent places stay grey"
    np.testing.assert_array_equal(drawn[20, 20], drawn[0, 0])
    told = explanation_picture.describe(explained(heatmap))
    assert told == (
        "for (red) and against (blue) mass; peak 100, "
        "full colour from 1 (99.5th percentile of absolute values)"
    )
    coarse = np.asarray(explanation_picture.draw(film, explained(heatmap, pixelwise=False)), int)
    assert np.ptp(coarse[:10], axis=-1).max() < 5, "other maps have full colour at their peak"
    assert explanation_picture.describe(explained(heatmap, False)) == (
        "for (red) and against (blue) mass; peak 100"
    )


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_a_map_that_is_nearly_silent_is_drawn_by_its_peak(value):
    heatmap = np.zeros((40, 40), np.float32)
    heatmap[20, 20] = value
    film = np.full((40, 40), 0.5, np.float32)
    drawn = np.asarray(explanation_picture.draw(film, explained(heatmap)), int)
    assert (drawn[20, 20, 0] - drawn[20, 20, 2] > 50) == (value > 0)
    assert np.ptp(drawn[:20], axis=-1).max() == 0
