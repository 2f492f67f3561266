import json
import urllib.error
import urllib.request

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import kxray
import serving.export
from kxray import data
from kxray.explain import targets as known_targets
from kxray.explain.targets import target_names
from kxray.layers.film_input import film_input
from kxray.spec import ModelSpec
from serving import warmup
from serving.client import Client, InvalidRequest, SignatureNotFound
from serving.client_program import main
from serving.counterfactual import _opposite, _reached, _targets
from serving.export import export_model

LABELS = ("Mass", "Nodule", "Effusion")
SIDE = 32


@pytest.fixture(scope="module")
def classifier(fixed_weights):
    """A small multi-label classifier of 32 px, and its spec."""
    import keras
    from keras import layers

    film = keras.Input((SIDE, SIDE, 1))
    x = layers.Conv2D(6, 5, 2, "same", activation="relu")(film)
    x = layers.Conv2D(8, 3, 2, "same", activation="relu")(x)
    x = layers.Dense(3, activation="sigmoid")(layers.GlobalAveragePooling2D()(x))
    model = fixed_weights(keras.Model(film, x, name="findings"))
    thresholds = {"Mass": 0.4, "Effusion": 0.55}
    return model, ModelSpec("findings", LABELS, "multilabel", (SIDE, SIDE), "unit_stretch", thresholds, 1.5)


@pytest.fixture(scope="module")
def gan(fixed_weights):
    model = kxray.models.build("counterfactual_gan", num_targets=6, side=SIDE, width=4)
    # Changes of more contrast than those of new weights.
    for name in ("change", "mask"):
        layer = model.generator.get_layer(name)
        layer.kernel.assign(30 * layer.kernel)
    return model


@pytest.fixture(scope="module")
def gan_spec(classifier):
    names = target_names(classifier[1])
    return ModelSpec("counterfactual_gan", names, "counterfactual", (SIDE, SIDE))


@pytest.fixture(scope="module")
def folder(gan, gan_spec, classifier, tmp_path_factory):
    to = tmp_path_factory.mktemp("models") / "changes"
    return export_model(gan, gan_spec, to, ["grad_cam"], classifier)


@pytest.fixture(scope="module")
def changes_server(start_server, folder, version_folder):
    places = {"changes": folder.parent, "view": version_folder.parent}
    entries = " ".join(
        f'config {{ name: "{name}" base_path: "{place}" model_platform: "tensorflow" }}'
        for name, place in places.items()
    )
    with start_server(f"model_config_list {{ {entries} }}") as running:
        yield running


@pytest.fixture(scope="module")
def client(changes_server):
    with Client(changes_server.address, model="changes") as client:
        yield client


@pytest.fixture(scope="module")
def expected(gan, classifier):
    """expected(pixels, target) -> what Python makes of one film, in the names of the signature."""
    model, spec = classifier

    def said(films):
        odds = model.predict(films, verbose=0).astype("float64")
        odds = (odds / (1 - odds)) ** (1 / spec.temperature)
        return odds / (1 + odds)

    def make(pixels, target):
        film = np.asarray(film_input(spec)(pixels[None, ..., None]))
        made = gan.change(film, np.array([target], np.int32))
        return {
            "film": film[0, ..., 0],
            "counterfactual": made["film"][0, ..., 0],
            "difference": (made["film"] - film)[0, ..., 0],
            "mask": made["mask"][0, ..., 0],
            "heatmap": (made["mask"] * np.abs(made["residual"]))[0, ..., 0],
            "probabilities": said(film)[0],
            "probabilities_after": said(made["film"])[0],
        }

    return make


def ask_rest(server, document, model="changes"):
    request = urllib.request.Request(
        f"http://{server.rest}/v1/models/{model}:predict", json.dumps(document).encode()
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_a_session_without_kxray_makes_the_films_of_python(
    folder, classifier, gan_spec, expected, make_film, ask_session
):
    spec = classifier[1]
    pixels = [make_film(0), make_film(1, 40, 50), make_film(2, SIDE, SIDE)]
    films = np.array([kxray.io.encode_png16(film) for film in pixels], object)
    wanted = np.array([0, 5, -1], np.int32)
    asked = {"image_bytes": films, "label": wanted}
    answers = ask_session(folder, {"explain_counterfactual": asked, "describe": {}})
    assert set(answers) == {
        *("serving_default", "predict_pixels", "explain", "explain_grad_cam", "explain_counterfactual"),
        "describe",
    }
    answer = answers["explain_counterfactual"]
    before = expected(pixels[2], 0)["probabilities"]
    opposite = known_targets.opposite(spec, int(before.argmax()), before)
    assert gan_spec.labels[opposite].startswith("no ")
    chosen = [0, 5, opposite]
    assert answer["explained_label"].tolist() == [gan_spec.labels[target].encode() for target in chosen]
    for number, target in enumerate(chosen):
        for name, values in expected(pixels[number], target).items():
            np.testing.assert_allclose(answer[name][number], values, atol=1e-5, err_msg=name)
    assert np.abs(answer["difference"]).max() > 0.05
    reached = known_targets.reached(spec, answer["probabilities_after"], np.array(chosen))
    assert answer["reached"].dtype == bool and answer["reached"].tolist() == reached.tolist()
    labels = answer["probabilities"].argmax(axis=1)
    assert answer["label"].tolist() == [LABELS[label].encode() for label in labels]
    described = answers["describe"]
    assert ModelSpec.from_json(described["spec"][0].decode()) == spec
    assert ModelSpec.from_json(described["counterfactual_spec"][0].decode()) == gan_spec
    assert described["counterfactual_targets"].tolist() == [[name.encode() for name in gan_spec.labels]]
    assert described["labels"].tolist() == [[label.encode() for label in LABELS]]


def test_every_signature_is_warmed_up_and_weights_are_stored_once(folder, classifier):
    requests = warmup.read(folder / "assets.extra" / warmup.FILE_NAME)
    assert "explain_counterfactual" in {request.model_spec.signature_name for request in requests}
    assert ModelSpec.read(folder / "assets.extra" / "spec.json") == classifier[1]
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert total < 4_000_000, "weights must be stored once"


def test_what_is_reached_and_the_opposite_are_those_of_python():
    import tensorflow as tf

    random = np.random.default_rng(0)
    for task, labels in (("multilabel", LABELS), ("multiclass", LABELS), ("binary", LABELS[:2])):
        spec = ModelSpec("x", labels, task, (SIDE, SIDE), thresholds={"Nodule": 0.7})
        names = target_names(spec)
        targets = _targets(ModelSpec("gan", names, "counterfactual", (SIDE, SIDE)), spec)
        rows = random.random((60, len(labels))).astype("float32")
        if task != "multilabel":
            rows /= rows.sum(axis=1, keepdims=True)
        top = rows.argmax(axis=1).astype("int32")
        opposite = _opposite(tf.constant(rows), tf.constant(top), targets, spec).numpy()
        assert opposite.tolist() == [
            known_targets.opposite(spec, label, row) for label, row in zip(top, rows, strict=True)
        ]
        chosen = random.integers(0, len(names), 60).astype("int32")
        reached = _reached(tf.constant(rows), tf.constant(chosen), targets, spec).numpy()
        assert reached.tolist() == known_targets.reached(spec, rows, chosen).tolist()
        assert 10 < reached.sum() < 50


def test_the_opposite_is_one_of_few_targets():
    import tensorflow as tf

    spec = ModelSpec("x", LABELS, "multilabel", (SIDE, SIDE))
    rows, top = tf.constant([[0.9, 0.2, 0.6]]), tf.constant([0])
    for names, wanted in (
        (("no Nodule", "no Effusion"), "no Effusion"),
        (("Mass", "Nodule"), "Nodule"),
        (("Nodule", "no Nodule"), "no Nodule"),
    ):
        targets = _targets(ModelSpec("gan", names, "counterfactual", (SIDE, SIDE)), spec)
        assert names[_opposite(rows, top, targets, spec).numpy()[0]] == wanted


def test_the_client_asks_for_a_target(client, expected, gan_spec, make_film):
    pixels = make_film(1)
    answer = client.counterfactual(pixels, "Effusion")
    made = expected(pixels, 5)
    for name in ("film", "counterfactual", "difference", "mask", "heatmap"):
        np.testing.assert_allclose(getattr(answer, name), made[name], atol=1e-4)
    np.testing.assert_allclose(
        list(answer.probabilities_after.values()), made["probabilities_after"], atol=1e-4
    )
    assert (answer.target, answer.label) == ("Effusion", "Effusion")
    assert list(answer.probabilities_after) == list(LABELS)
    assert answer.reached == (answer.probabilities_after["Effusion"] >= 0.55)
    assert answer.prediction.probabilities == client.predict(pixels).probabilities
    other = client.counterfactual(pixels)
    assert other.target == f"no {other.prediction.label}" and other.label == other.prediction.label
    places, films = answer.along(3)
    assert places.tolist() == [0, 0.5, 1]
    np.testing.assert_array_equal(films[0], answer.film)
    np.testing.assert_allclose(films[2], answer.counterfactual, atol=1e-6)
    assert kxray.read_image(answer.png()).facts["synthetic"] is True
    assert client.targets() == gan_spec.labels
    assert client.methods() == ("grad_cam",)
    assert client.explain(pixels, "Mass").explained_label == "Mass"
    assert client.describe().labels == LABELS


def test_wrong_questions_are_one_sentence(client, changes_server, make_film):
    pixels = make_film(0)
    with pytest.raises(InvalidRequest, match="unknown target 'Edema'; the model has: no Mass, Mass, no Nod"):
        client.counterfactual(pixels, "Edema")
    with pytest.raises(InvalidRequest, match="made for a target; ask for them with `counterfactual`"):
        client.explain(pixels, method="counterfactual")
    with Client(changes_server.address, model="view") as other:
        for ask in (
            other.targets,
            lambda: other.counterfactual(pixels),
            lambda: other.counterfactual(pixels, "frontal"),
        ):
            with pytest.raises(SignatureNotFound, match="model 'view' makes no counterfactuals"):
                ask()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([6], r"label must be -1 (the opposite of what the classifier says) or one of: 0 no Mass, 1 Mass"),
        ([-2], "or one of: 0 no Mass, 1 Mass, 2 no Nodule, 3 Nodule, 4 no Effusion, 5 Effusion"),
        ([0, 1], "got 2 labels for 1 films"),
    ],
)
def test_the_server_refuses_bad_input(client, changes_server, make_film, labels, message):
    film = kxray.io.encode_png16(make_film(0))
    with pytest.raises(InvalidRequest) as caught:
        client._run("explain_counterfactual", {"image_bytes": [film], "label": np.array(labels, np.int32)})
    assert caught.value.code == "INVALID_ARGUMENT" and message in str(caught.value)


def test_rest_makes_the_same_films(changes_server, expected, make_film):
    import base64

    pixels = make_film(3)
    film = {"b64": base64.b64encode(kxray.io.encode_png16(pixels)).decode()}
    document = {"signature_name": "explain_counterfactual", "instances": [{"image_bytes": film, "label": 4}]}
    code, answer = ask_rest(changes_server, document)
    assert code == 200
    (row,) = answer["predictions"]
    for name, values in expected(pixels, 4).items():
        np.testing.assert_allclose(row[name], values, atol=1e-4)
    assert row["explained_label"] == "no Effusion" and isinstance(row["reached"], bool)
    document["instances"][0]["label"] = 9
    code, answer = ask_rest(changes_server, document)
    assert code == 400 and "label must be -1 (the opposite of what the classifier says)" in answer["error"]


def test_the_program_draws_a_strip(changes_server, make_film, tmp_path):
    to = ["--address", changes_server.address, "--model", "changes"]
    kxray.io.write_png16(tmp_path / "film.png", make_film(0, 90, 60))
    asked = ["counterfactual", str(tmp_path / "film.png"), "--target", "no Effusion", *to]
    result = CliRunner().invoke(main, [*asked, "--out", str(tmp_path / "strip.png")])
    assert result.exit_code == 0, result.output
    start, end = f"{tmp_path}/film.png: no Effusion ", "changes version 1\n"
    assert result.stdout.startswith(start) and result.stdout.endswith(end) and " -> " in result.stdout
    with Image.open(tmp_path / "strip.png") as picture:
        assert picture.width > 5 * 213 and picture.height > 2 * 320
        assert picture.text["Description"].startswith("counterfactual for no Effusion, ")
        assert picture.text["Served"] == "changes version 1"
    assert data.is_synthetic(tmp_path / "strip.png")
    result = CliRunner().invoke(main, [*asked, "--steps", "0", "--json", "--out", str(tmp_path / "one.png")])
    told = json.loads(result.stdout)
    assert told["target"] == "no Effusion" and set(told["probabilities_after"]) == set(LABELS)
    with Image.open(tmp_path / "one.png") as picture:
        assert picture.height < 2 * 320
    wrong = CliRunner().invoke(main, [*asked[:3], "Edema", *to, "--out", str(tmp_path / "no.png")])
    assert wrong.exit_code == 2 and wrong.stderr.startswith("error: unknown target 'Edema'; the model has:")
    assert not (tmp_path / "no.png").exists()
    listed = CliRunner().invoke(main, ["targets", *to])
    assert listed.stdout.splitlines()[:2] == ["no Mass", "Mass"]


def test_what_does_not_fit_is_refused(gan, gan_spec, classifier, tmp_path):
    model, spec = classifier
    to = tmp_path / "changes"
    with pytest.raises(ValueError, match="is served with the classifier that it explains"):
        export_model(gan, gan_spec, to)
    fewer = ModelSpec("counterfactual_gan", gan_spec.labels[:4], "counterfactual", (SIDE, SIDE))
    with pytest.raises(ValueError, match=r"the spec says films of \(32, 32\) and 4 targets"):
        export_model(gan, fewer, to, classifier=classifier)
    with pytest.raises(
        ValueError, match=r"changes films of \(32, 32\), classifier 'findings' takes \(64, 64"
    ):
        export_model(
            gan, gan_spec, to, classifier=(model, ModelSpec("findings", LABELS, "multilabel", (64, 64)))
        )
    other = ModelSpec("findings", ("Mass", "Nodule", "Edema"), "multilabel", (SIDE, SIDE))
    with pytest.raises(ValueError, match="makes counterfactuals of 'no Effusion'; the targets of its classi"):
        export_model(gan, gan_spec, to, classifier=(model, other))
    with pytest.raises(
        ValueError, match="classifies nothing .task autoencoder., and nothing of it is served"
    ):
        export_model(model, ModelSpec("autoencoder", ("film",), "autoencoder", (SIDE, SIDE)), to)
    assert not to.exists()


def test_an_export_that_makes_other_films_is_not_published(gan, gan_spec, classifier, tmp_path, monkeypatch):
    real = gan.change

    def moved(*given):
        made = real(*given)
        return {**made, "residual": made["residual"] + 1e-2}

    monkeypatch.setattr(gan, "change", moved)
    with pytest.raises(ValueError, match=r"explain_counterfactual differs from .* nothing was written"):
        export_model(gan, gan_spec, tmp_path / "changes", ["grad_cam"], classifier)
    assert list((tmp_path / "changes").iterdir()) == []


@pytest.mark.slow
def test_a_run_folder_is_exported_by_the_program(gan, gan_spec, classifier, tmp_path):
    run, to = tmp_path / "run", tmp_path / "models" / "changes"
    (run / "classifier").mkdir(parents=True)
    gan.save(run / "model.keras")
    (run / "spec.json").write_text(gan_spec.to_json())
    command = [str(run), "--to", str(to), "--explain", "grad_cam"]
    result = CliRunner().invoke(serving.export.main, command)
    assert result.exit_code == 2 and "without the classifier that it explains" in result.stderr
    classifier[0].save(run / "classifier" / "model.keras")
    (run / "classifier" / "spec.json").write_text(classifier[1].to_json())
    result = CliRunner().invoke(serving.export.main, command)
    assert result.exit_code == 0, result.output
    assert result.output.strip() == str(to / "1")
    with pytest.raises(ValueError, match="a run of 'findings', task multilabel; give a run of training.fit"):
        kxray.models.load_counterfactual(run / "classifier")
