"""Evidence on its way out: in a session without kxray, its box in pixels of the film sent, drawn."""

import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image

import kxray
from kxray.layers import DiseaseAttention, SimilarityAlign
from serving import explanation_picture, graph
from serving.client import Explanation
from serving.export import export_model

LABELS = ("effusion", "mass", "nodule")
POSE = (0.25, 0.1, 0.05, -0.04)
EXPLAINED = {"probabilities", "label", "decision", "heatmap", "explained_label"}
EVIDENCE = EXPLAINED | {"box", "evidence_aligned", "pose", "alignment_confidence"}


def small(align=True):
    """An aligner with one pose for every film, a convolution, attention; and its spec."""
    film = x = keras.Input((40, 32, 1))
    if align:
        x = SimilarityAlign(32, width=2, steps=1, name="align", trainable=False)(film)["aligned"]
    features = layers.Conv2D(6, 3, 4, "same", activation="relu", name="features")(x)
    attend = DiseaseAttention(3, mask_size=8, name="attend")
    model = keras.Model(film, layers.Activation("sigmoid")(attend(features)["logits"]), name="small")
    random = np.random.default_rng(0)
    model.get_layer("features").kernel.assign(random.normal(size=(3, 3, 1, 6)))
    attend.projection.assign(random.normal(size=(6, 3)))
    attend.attention.assign(random.normal(size=(6, 3)))
    attend.set_masks(random.random((3, 8, 8)))
    if align:
        reach = np.float32([0.8, 0.6, 0.4, 0.4])
        model.get_layer("align").motion.bias.assign(reach * np.arctanh(np.float32(POSE) / reach))
    return model, kxray.ModelSpec("small", LABELS, "multilabel", (40, 32), temperature=1.5)


@pytest.fixture(scope="module")
def model_and_spec():
    return small()


@pytest.fixture(scope="module")
def films(make_film):
    return [make_film(0, 90, 70), make_film(1, 40, 120), make_film(3, 40, 32)]


@pytest.fixture(scope="module")
def encoded(films):
    return np.array([kxray.io.encode_png16(film) for film in films], dtype=object)


def expected(model, spec, films, labels):
    """What `kxray.explain` says, with boxes in pixels of the films."""
    from kxray.layers.film_input import film_input

    inputs = np.concatenate([film_input(spec)(film[None, ..., None]) for film in films])
    details = kxray.explain.detailed_explainer(model, "evidence")(inputs, np.int32(labels))
    details = {name: value.numpy() for name, value in details.items()}
    sizes = [(film.shape[1], film.shape[0], film.shape[1], film.shape[0]) for film in films]
    return details | {"box": details["box"] * sizes}


def test_a_session_without_kxray_gives_the_same_evidence(
    model_and_spec, films, encoded, ask_session, tmp_path
):
    model, spec = model_and_spec
    folder = export_model(model, spec, tmp_path / "small")
    labels = [0, 2, -1]
    inputs = {"image_bytes": encoded, "label": np.array(labels, np.int32)}
    requests = {"explain": inputs, "explain_evidence": inputs, "explain_grad_cam": inputs}
    answers = ask_session(folder, requests)
    assert {name for name in answers if name.startswith("explain")} == set(requests)
    wanted = expected(model, spec, films, labels)
    for name in ("explain", "explain_evidence"):
        answer = answers[name]
        assert set(answer) == EVIDENCE
        assert answer["heatmap"].shape == (3, 40, 32) and answer["box"].shape == (3, 4)
        np.testing.assert_allclose(answer["heatmap"], wanted["heatmap"][..., 0], atol=1e-5)
        np.testing.assert_allclose(answer["evidence_aligned"], wanted["evidence_aligned"], atol=1e-5)
        np.testing.assert_allclose(answer["box"], wanted["box"], atol=1e-3)
        np.testing.assert_allclose(answer["pose"], np.float32([POSE] * 3), atol=1e-5)
        np.testing.assert_allclose(answer["alignment_confidence"], wanted["confidence"], atol=1e-5)
        probabilities = 1 / (1 + np.exp(-wanted["logits"] / 1.5))
        np.testing.assert_allclose(answer["probabilities"], probabilities, atol=1e-5)
    # Maps of the other methods lie on the film too.
    assert set(answers["explain_grad_cam"]) == EXPLAINED
    assert answers["explain_grad_cam"]["heatmap"].shape == (3, 10, 8)


def test_the_box_lies_around_the_peak_on_the_film_as_it_was_sent(films):
    import tensorflow as tf

    model, spec = small(align=False)
    function = graph.endpoints(model, spec, ["evidence"])["explain"][0]
    film = np.zeros((120, 64), np.float32)
    film[60:80, 40:52] = 1
    encoded = tf.constant([kxray.io.encode_png16(film)] * 3)
    answer = {name: value.numpy() for name, value in function(encoded, tf.constant([0, 1, 2])).items()}
    # Nothing is told of an alignment that there is not.
    assert set(answer) == EXPLAINED | {"box", "evidence_aligned"}
    for heatmap, (x, y, width, height) in zip(answer["heatmap"], answer["box"], strict=True):
        if heatmap.max() <= 0:
            assert (x, y, width, height) == (0, 0, 0, 0)
            continue
        row, column = np.unravel_index(heatmap.argmax(), heatmap.shape)
        assert x <= 2 * (column + 0.5) <= x + width and y <= 3 * (row + 0.5) <= y + height
        np.testing.assert_allclose([x % 2, width % 2, y % 3, height % 3], 0, atol=1e-3)


def explanation(box, **details):
    heatmap = np.zeros((10, 10), np.float32)
    heatmap[4, 4] = 1
    details = {"box": np.float32(box), **details}
    nothing = np.zeros(0, np.float32), np.zeros((0, 10, 10), np.float32)
    return Explanation(heatmap, "mass", "evidence", None, (), *nothing, details=details)


def test_the_picture_draws_the_box_and_says_where_it_is():
    film = np.full((100, 80), 0.5, np.float32)
    drawn = np.asarray(explanation_picture.draw(film, explanation([10, 20, 30, 40])), int)
    assert drawn.shape == (100, 80, 3)
    yellow = (drawn == explanation_picture._BOX_INK).all(axis=-1)
    rows, columns = np.nonzero(yellow)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 59, 10, 39)
    assert yellow.sum() == 2 * (30 + 40) - 4, "an outline of one pixel"
    alignment = {"alignment_confidence": np.float32(0.31), "pose": np.zeros(4, np.float32)}
    text = explanation_picture.describe(explanation([10, 20, 30, 40], **alignment))
    assert text == (
        "for (red) and against (blue) mass; peak 1; box 30 x 40 pixels at 10, 20; "
        "alignment confidence 0.31 (not a chest as expected)"
    )


def test_without_a_box_nothing_is_drawn():
    film = np.full((100, 80), 0.5, np.float32)
    silent = explanation([0, 0, 0, 0])
    drawn = np.asarray(explanation_picture.draw(film, silent))
    assert not (drawn == explanation_picture._BOX_INK).all(axis=-1).any()
    assert explanation_picture.describe(silent).endswith("; no box")
    tiny = explanation_picture.draw(film, explanation([79.9, 99.9, 0.1, 0.1]))
    assert isinstance(tiny, Image.Image)


@pytest.mark.slow
def test_the_client_asks_for_evidence_and_its_picture(model_and_spec, films, start_server, tmp_path):
    from click.testing import CliRunner

    from serving.client import Client
    from serving.client_program import main

    model, spec = model_and_spec
    export_model(model, spec, tmp_path / "small", ["evidence"])
    config = (
        f'model_config_list {{ config {{ name: "small" base_path: "{tmp_path}/small" '
        'model_platform: "tensorflow" } }'
    )
    kxray.io.write_png16(tmp_path / "film.png", films[0])
    with start_server(config) as server:
        with Client(server.address, model="small") as client:
            told = client.explain(films[0], label="mass")
        command = ["predict", str(tmp_path / "film.png"), "--explain", str(tmp_path / "why.png")]
        to = ["--address", server.address, "--model", "small", "--label", "mass"]
        result = CliRunner().invoke(main, [*command, *to])
    assert result.exit_code == 0, result.output
    wanted = expected(model, spec, films[:1], [1])
    np.testing.assert_allclose(told.details["box"], wanted["box"][0], atol=1e-3)
    assert set(told.details) == EVIDENCE - EXPLAINED and not told.pixelwise
    with Image.open(tmp_path / "why.png") as picture:
        assert picture.size == (70, 90) and "alignment confidence 0.50" in picture.info["Description"]


@pytest.mark.slow
@pytest.mark.parametrize("masking", ["masks", "none"])
def test_a_masked_densenet_answers_alike_in_a_session(make_film, ask_session, tmp_path, masking):
    model = kxray.models.build(
        "masked_densenet",
        num_labels=3,
        image_size=(64, 64),
        backbone="small_densenet",
        taps=2,
        masking=masking,
        align_size=32,
    )
    spec = kxray.ModelSpec("masked_densenet", LABELS, "multilabel", (64, 64))
    model.get_layer("align").motion.bias.assign([0.1, 0.05, 0.02, 0.03])
    folder = export_model(model, spec, tmp_path / "masked")
    films = [make_film(0, 90, 70), make_film(1, 64, 64)]
    encoded = np.array([kxray.io.encode_png16(film) for film in films], dtype=object)
    answer = ask_session(folder, {"explain": {"image_bytes": encoded, "label": np.int32([1, 2])}})["explain"]
    assert set(answer) == EVIDENCE
    wanted = expected(model, spec, films, [1, 2])
    np.testing.assert_allclose(answer["heatmap"], wanted["heatmap"][..., 0], atol=1e-5)
    np.testing.assert_allclose(answer["probabilities"], 1 / (1 + np.exp(-wanted["logits"])), atol=1e-5)
