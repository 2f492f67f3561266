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
from kxray.io.marks import class_folder, png_texts
from kxray.spec import ModelSpec
from serving import generator, warmup
from serving.client import Client, InvalidRequest, SignatureNotFound
from serving.client_program import main
from serving.export import export_model

LABELS = ("Mass", "Nodule", "No Finding")


@pytest.fixture(scope="module")
def gan():
    model = kxray.models.build("attention_cgan", num_classes=3, scales=2, latent=6, width=4)
    # Films of more contrast than those of new weights.
    for side in model.sides:
        kernel = model.generator.get_layer(f"film_{side}").kernel
        kernel.assign(10 * kernel)
    model.set_tau(0.5)
    return model


@pytest.fixture(scope="module")
def generator_spec():
    return ModelSpec("attention_cgan", LABELS, "generator", (128, 128))


@pytest.fixture(scope="module")
def folder(gan, generator_spec, tmp_path_factory):
    return export_model(gan, generator_spec, tmp_path_factory.mktemp("models") / "gan")


@pytest.fixture(scope="module")
def gan_server(start_server, folder, version_folder):
    places = {"gan": folder.parent, "view": version_folder.parent}
    entries = " ".join(
        f'config {{ name: "{name}" base_path: "{place}" model_platform: "tensorflow" }}'
        for name, place in places.items()
    )
    with start_server(f"model_config_list {{ {entries} }}") as running:
        yield running


@pytest.fixture(scope="module")
def client(gan_server):
    with Client(gan_server.address, model="gan") as client:
        yield client


def ask_rest(server, document, model="gan"):
    request = urllib.request.Request(
        f"http://{server.rest}/v1/models/{model}:predict", json.dumps(document).encode()
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_a_session_without_kxray_makes_the_films_of_python(folder, gan, generator_spec, ask_session):
    labels, seeds = np.array([2, 0, 1, 1], np.int32), np.array([7, 0, 2**40, 0], np.int64)
    asked = {"label": labels, "seed": seeds}
    answers = ask_session(folder, {"serving_default": asked, "generate": asked, "describe": {}})
    assert set(answers) == {"serving_default", "generate", "describe"}
    films = [gan.sample([label], seed=int(seed)) for label, seed in zip(labels, seeds, strict=True)]
    for name in ("serving_default", "generate"):
        answer = answers[name]
        assert set(answer) == {"films", "film_64", "film_bytes", "label"}
        for side, output in ((128, "films"), (64, "film_64")):
            expected = np.concatenate([film[side] for film in films])
            np.testing.assert_allclose(answer[output], expected, atol=1e-5)
        assert answer["label"].tolist() == [LABELS[label].encode() for label in labels]
        decoded = [kxray.read_image(film).pixels for film in answer["film_bytes"]]
        np.testing.assert_allclose(decoded, answer["films"][..., 0], atol=1e-5)
    assert np.abs(answers["generate"]["films"][1] - answers["generate"]["films"][3]).max() > 1e-3
    described = answers["describe"]
    assert ModelSpec.from_json(described["spec"][0].decode()) == generator_spec
    assert described["labels"].tolist() == [[label.encode() for label in LABELS]]
    assert described["sides"].tolist() == [[64, 128]]
    assert described["most_films"].tolist() == [generator.MOST_FILMS]


def test_a_film_does_not_depend_on_the_others_of_its_batch(folder):
    import tensorflow as tf

    generate = tf.saved_model.load(str(folder)).signatures["generate"]
    together = generate(label=tf.constant([0, 1, 2]), seed=tf.constant([4, 4, 9], tf.int64))
    alone = generate(label=tf.constant([1]), seed=tf.constant([4], tf.int64))
    np.testing.assert_allclose(together["films"][1], alone["films"][0], atol=1e-6)


def test_a_served_film_says_that_it_is_synthetic(folder, gan, tmp_path):
    import tensorflow as tf

    generate = tf.saved_model.load(str(folder)).signatures["generate"]
    answer = generate(label=tf.constant([2]), seed=tf.constant([1], tf.int64))
    (tmp_path / "film.png").write_bytes(answer["film_bytes"].numpy()[0])
    assert data.is_synthetic(tmp_path / "film.png")
    with Image.open(tmp_path / "film.png") as picture:
        texts = picture.text
    assert (texts["Synthetic"], texts["Condition"], texts["Model"]) == ("yes", "No Finding", "attention_cgan")
    assert texts["Run"] == data.generator_digest(gan, LABELS)


def test_a_label_of_another_alphabet_is_in_the_film():
    import tensorflow as tf

    for label in ("Größe", "骨"):
        chunks = generator._text_chunks("attention_cgan", "ab", label)
        values = tf.zeros([8, 8, 1], tf.uint16)
        png = generator._encoded((values, tf.constant(chunks))).numpy()
        assert png_texts(png)["Condition"] == label
        assert kxray.read_image(png).facts["synthetic"] is True


def test_every_signature_is_warmed_up(folder):
    requests = warmup.read(folder / "assets.extra" / warmup.FILE_NAME)
    assert {request.model_spec.signature_name for request in requests} == {
        *("serving_default", "generate", "describe")
    }
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    assert total < 2_000_000, "weights must be stored once"


def test_the_client_makes_films(client, gan, monkeypatch):
    monkeypatch.setattr("serving.client._MAX_BATCH_FILMS", 2)
    films = client.generate("Nodule", count=np.int64(5), seed=np.int32(3))
    assert [film.seed for film in films] == [3, 4, 5, 6, 7]
    expected = [gan.sample([1], seed=seed)[128][0, ..., 0] for seed in range(3, 8)]
    np.testing.assert_allclose([film.pixels for film in films], expected, atol=1e-5)
    assert {(film.label, film.model, film.model_version) for film in films} == {("Nodule", "gan", 1)}
    assert films[0].texts["Synthetic"] == "yes"
    assert kxray.read_image(films[0].png()).facts["synthetic"] is True


def test_wrong_questions_are_one_sentence(client, gan_server):
    with pytest.raises(
        InvalidRequest, match="unknown label 'Edema'; the model has: Mass, Nodule, No Finding"
    ):
        client.generate("Edema")
    for count, seed in ((0, 0), (1, -1), (1.5, 0), (True, 0), (2, 2**63 - 1)):
        with pytest.raises(InvalidRequest, match="count must be|seed must be|seeds go up to"):
            client.generate("Mass", count, seed)
    with pytest.raises(InvalidRequest, match="model 'gan' makes films, it classifies none"):
        client.predict(np.zeros((64, 64), np.float32))
    with pytest.raises(InvalidRequest, match="model 'gan' makes films, it classifies none"):
        client.explain(np.zeros((64, 64), np.float32))
    with Client(gan_server.address, model="view") as classifier:
        with pytest.raises(SignatureNotFound, match="model 'view' makes no films: it is a classifier"):
            classifier.generate("Nodule")


@pytest.mark.parametrize(
    ("labels", "seeds", "message"),
    [
        ([3], [0], "label must be one of: 0 Mass, 1 Nodule, 2 No Finding"),
        ([-1], [0], "label must be one of: 0 Mass, 1 Nodule, 2 No Finding"),
        ([0], [-1], "seed must be a whole number from 0"),
        ([0, 1], [0], "got 2 labels and 1 seeds"),
        ([], [], "a request may ask for 1 to 64 films, got 0"),
        ([0] * 65, [0] * 65, "a request may ask for 1 to 64 films, got 65"),
    ],
)
def test_the_server_refuses_bad_input(client, gan_server, labels, seeds, message):
    inputs = {"label": np.array(labels, np.int32), "seed": np.array(seeds, np.int64)}
    with pytest.raises(InvalidRequest, match=message) as caught:
        client._run("generate", inputs)
    assert caught.value.code == "INVALID_ARGUMENT"
    if labels:
        code, answer = ask_rest(gan_server, {"inputs": {"label": labels, "seed": seeds}})
        assert code == 400 and message in answer["error"]


def test_rest_makes_the_same_films(gan_server, gan):
    document = {"signature_name": "generate", "instances": [{"label": 1, "seed": 5}, {"label": 0, "seed": 0}]}
    code, answer = ask_rest(gan_server, document)
    assert code == 200
    first, second = answer["predictions"]
    np.testing.assert_allclose(first["films"], gan.sample([1], seed=5)[128][0], atol=1e-5)
    np.testing.assert_allclose(second["film_64"], gan.sample([0], seed=0)[64][0], atol=1e-5)
    assert first["label"] == "Nodule" and set(first["film_bytes"]) == {"b64"}


def test_the_program_writes_marked_films(gan_server, gan, tmp_path):
    to = ["--address", gan_server.address, "--model", "gan"]
    asked = [
        "generate",
        "--class",
        "No Finding",
        "--count",
        "2",
        "--seed",
        "3",
        "--out",
        str(tmp_path / "made"),
    ]
    result = CliRunner().invoke(main, [*asked, *to])
    assert result.exit_code == 0, result.output
    paths = [tmp_path / "made" / f"{class_folder('No Finding')}-seed{seed}.png" for seed in (3, 4)]
    assert result.stdout.splitlines() == [f"{path}: synthetic No Finding  gan version 1" for path in paths]
    film = kxray.read_image(paths[1])
    np.testing.assert_allclose(film.pixels, gan.sample([2], seed=4)[128][0, ..., 0], atol=1e-5)
    assert film.facts["synthetic"] is True
    with Image.open(paths[1]) as picture:
        assert (picture.text["Seed"], picture.text["Served"]) == ("4", "gan version 1")
    wrong = CliRunner().invoke(main, ["generate", "--class", "Edema", "--out", str(tmp_path / "made"), *to])
    assert wrong.exit_code == 2
    assert wrong.stderr == "error: unknown label 'Edema'; the model has: Mass, Nodule, No Finding\n"


def test_a_generator_that_does_not_fit_is_refused(gan, generator_spec, model, tmp_path):
    with pytest.raises(ValueError, match="makes films, there is nothing to explain"):
        export_model(gan, generator_spec, tmp_path / "gan", explain=["grad_cam"])
    smaller = ModelSpec("attention_cgan", LABELS, "generator", (64, 64))
    with pytest.raises(ValueError, match=r"the spec says films of \(64, 64\) of 3 classes"):
        export_model(gan, smaller, tmp_path / "gan")
    with pytest.raises(ValueError, match="the spec says films of"):
        export_model(model, generator_spec, tmp_path / "gan")
    assert not (tmp_path / "gan").exists()


def test_an_export_that_makes_other_films_is_not_published(gan, generator_spec, tmp_path, monkeypatch):
    real = gan.sample
    monkeypatch.setattr(
        gan, "sample", lambda *given, **more: {k: v + 1e-3 for k, v in real(*given, **more).items()}
    )
    with pytest.raises(ValueError, match=r"differs from the Keras model by .* nothing was written"):
        export_model(gan, generator_spec, tmp_path / "gan")
    assert list((tmp_path / "gan").iterdir()) == []


def test_films_that_are_not_numbers_are_not_published(generator_spec, tmp_path):
    gan = kxray.models.build("attention_cgan", num_classes=3, scales=2, latent=6, width=4)
    kernel = gan.generator.get_layer("film_64").kernel
    kernel.assign(np.nan * kernel)
    with pytest.raises(ValueError, match="makes films that are not finite; nothing was written"):
        export_model(gan, generator_spec, tmp_path / "gan")


def test_a_run_folder_is_exported_by_the_program(gan, generator_spec, tmp_path):
    gan.save(tmp_path / "model.keras")
    (tmp_path / "spec.json").write_text(generator_spec.to_json())
    result = CliRunner().invoke(
        serving.export.main, [str(tmp_path), "--to", str(tmp_path / "models" / "gan")]
    )
    assert result.exit_code == 0, result.output
    assert result.output.strip() == str(tmp_path / "models" / "gan" / "1")
