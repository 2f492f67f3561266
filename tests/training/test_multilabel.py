"""Findings that may occur together: `training.fit ... --findings`, from films to a served answer."""

import contextlib
import io
import json
import textwrap
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from keras import layers
from rich.console import Console

import kxray
from kxray.data import pipeline
from kxray.io import encode_png16
from training import films as film_tables
from training import finding_loss, findings, scoring, shell
from training.fitting import Fitting
from training.recipes import multiscale_cam, transfer

FILMS, SIDE = 48, 40
NAMES = ("Left", "Right", "Rare")


def tiny(include_top, weights, input_tensor, input_shape=None, pooling=None):
    """A small network in the place of MobileNetV2."""
    x = layers.Conv2D(8, 5, strides=2, name="conv1")(input_tensor)
    x = layers.ReLU(name="relu1")(layers.BatchNormalization(name="bn1")(x))
    return keras.Model(keras.utils.get_source_inputs(input_tensor), x, name="tiny")


@pytest.fixture(scope="session")
def squares(tmp_path_factory):
    """A manifest of 48 films of 24 patients: a bright bar left, right, both or none; some are not known."""
    folder, random = tmp_path_factory.mktemp("findings"), np.random.default_rng(0)
    rows = []
    for index in range(FILMS):
        patient = index // 2
        left, right = patient % 2, (patient // 2) % 2
        pixels = random.random((SIDE, SIDE)).astype("float32") * 0.5
        pixels[:, 4:14] += 0.4 * left
        pixels[8:18, 20:] += 0.4 * right
        (folder / f"{index:02}.png").write_bytes(encode_png16(pixels))
        unknown = index % 8 == 7
        facts = {
            "Left": left,
            "Right": "" if unknown else right,
            "Rare": int(patient == 5),
            "age": 50 + patient,
        }
        rows.append({"path": f"{index:02}.png", "patient_id": f"P{patient}", **facts})
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return folder


# The loss


def test_the_loss_by_hand_and_of_what_is_unknown():
    truths = np.array([[1, 0, np.nan], [0, np.nan, np.nan]])
    weights = np.array([3.0, 1.0, 5.0])
    stated = np.array([[0.5, 0.25, 0.9], [0.2, 0.9, 0.1]], np.float32)
    targets = finding_loss.weighted_targets(truths, weights)
    loss = finding_loss.FindingsCrossentropy()
    first, second = (3 * np.log(2) - np.log(0.75)) / 3, -np.log(0.8) / 3
    assert float(loss(targets, stated)) == pytest.approx((first + second) / 2, rel=1e-5)
    films = np.array([1.0, 0.0], np.float32)
    assert float(loss(targets, stated, sample_weight=films)) == pytest.approx(first / 2, rel=1e-5)
    stated[np.isnan(truths)] = 0.01
    assert float(loss(targets, stated)) == pytest.approx((first + second) / 2, rel=1e-5)
    again = keras.losses.deserialize(keras.losses.serialize(loss))
    assert type(again) is type(loss)


def test_weights_are_those_of_the_training_films_and_capped():
    truths = np.zeros((100, 4))
    truths[:25, 0], truths[0, 1], truths[:90, 2], truths[:, 3] = 1, 1, 1, np.nan
    truths[50:, 0] = np.nan
    np.testing.assert_allclose(finding_loss.positive_weights(truths), [1, 20, 1 / 9, 1])


@pytest.mark.parametrize(
    ("name", "more"), [("transfer", {}), ("multiscale_densenet", {"constraint": "penalty"})]
)
def test_weights_are_taken_back_from_the_logits(name, more, backbone, tiny_densenet):
    own = {"backbone": "mobilenetv2"} if name == "transfer" else {"backbone": "densenet121", **more}
    model = kxray.models.build(name, num_labels=3, head="sigmoid", image_size=(40, 40), **own)
    if name != "transfer":
        relevance = model.get_layer("layer_relevance")
        relevance.set_weights([np.random.default_rng(0).random(relevance.scores.shape) + 0.1])
    spec = kxray.ModelSpec(name, NAMES, "multilabel", (40, 40))
    films = np.random.default_rng(0).random((2, 40, 40, 1)).astype("float32")
    before = scoring.traced_logits(model, spec)(films).numpy()
    finding_loss.take_back_weights(model, np.array([4.0, 1.0, 20.0]))
    after = scoring.traced_logits(model, spec)(films).numpy()
    np.testing.assert_allclose(before - after, np.tile(np.log([4.0, 1.0, 20.0]), (2, 1)), atol=1e-5)


# Trainings


@pytest.fixture
def fitting(backbone, tmp_path, squares):
    """A function that makes a Fitting on the films of `squares`; options of the recipe may be given."""

    def make(folder="run", labels=None, **options):
        given = {"backbone": "mobilenetv2", "weights": "none", "image_size": 32, "epochs": 6, "batch_size": 8}
        recipe = transfer.Recipe(**{**given, "findings": "Left,Right", "learning_rate": 0.05, **options})
        task = transfer.task_of(recipe)
        table = kxray.data.read_source(squares).assign(training_only=False)
        inputs = pipeline.load_inputs(table["path"], task.spec)
        truths = findings.truths_of(table, task.labels) if labels is None else labels
        nothing = np.zeros((FILMS, 0))
        films = film_tables.RunFilms(table, inputs, truths, nothing, nothing, ())
        progress = shell.progress_bars(Console(file=io.StringIO()))
        return Fitting(recipe, task, films, tmp_path / folder, progress, (contextlib.nullcontext, 1))

    return make


TRAIN, VALIDATION = np.arange(0, 32), np.arange(32, FILMS)


def train(fitting):
    return fitting.train("work/model", "model", TRAIN, VALIDATION, 0)


@pytest.mark.parametrize("mode", ["feature_extractor", "fine_tune"])
def test_both_findings_are_learned(fitting, mode):
    ours = fitting(mode=mode, epochs=15)
    model, history = train(ours)
    assert list(history.columns) == ["epoch", "loss", "val_loss"] and np.isfinite(history.to_numpy()).all()
    assert history["loss"].iloc[-1] < 0.9 * history["loss"].iloc[0]
    truths, logits = ours.films.labels[VALIDATION], ours.logits_of(VALIDATION)
    # Behind a backbone that is trained a few steps, its moving statistics are not there yet.
    for index in range(2 if mode == "feature_extractor" else 0):
        known = np.isfinite(truths[:, index])
        positive = logits[known, index][truths[known, index] == 1]
        assert positive.mean() > logits[known, index][truths[known, index] == 0].mean() + 1
    np.testing.assert_allclose(logits, scoring.logits_of(model, ours.films.inputs, VALIDATION), atol=1e-4)
    said = ours.progress.console.file.getvalue()
    assert "model: a film with a finding counts (at most 20) Left 1.0, Right 1.3 times one without" in said


def test_what_is_unknown_trains_nothing(fitting):
    truths = np.full((FILMS, 2), np.nan)
    truths[:, 0] = np.arange(FILMS) // 2 % 2
    model, _ = train(fitting(labels=truths))
    kernel, bias = model.get_layer("logits").get_weights()
    assert np.abs(kernel[:, 0]).max() > 0 and not kernel[:, 1].any() and bias[1] == 0


# What is read, and what is refused


def test_names_of_findings():
    assert findings.parse("all") == () and findings.parse(" Mass, Nodule,") == ("Mass", "Nodule")
    for text, words in (("", "takes all, or"), ("Mass,Mass", "distinct"), ("No Finding", "absence of all")):
        with pytest.raises(ValueError, match=words):
            findings.parse(text)


def task_for(text):
    return multiscale_cam.task_of(multiscale_cam.Recipe(findings=text))


def test_all_are_those_that_enough_patients_have(squares):
    table, _, _ = film_tables.read_labelled(squares, task_for("all"), False)
    task, settled, notes = film_tables.settle(task_for("all"), table)
    assert task.labels == ("Left", "Right") and len(settled) == FILMS
    assert notes == ["findings that fewer than 3 patients have, or have not, are left out: Rare (1)"]
    named = task_for("Right")
    _, settled, notes = film_tables.settle(named, table)
    assert len(settled) == FILMS - 6 and notes == ["6 films of which no finding is known are left out"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Left,Rare", "'Rare': 1 independent films with it.* choose others with --findings"),
        ("Left,Cat", "column of 0, 1 or nothing for Cat; its finding columns are Left, Right, Rare"),
    ],
)
def test_findings_that_will_not_do(squares, text, words):
    recipe = multiscale_cam.Recipe(findings=text)
    with pytest.raises(ValueError, match=words):
        table, _, _ = film_tables.read_labelled(squares, task_for(text), False)
        task, table, _ = film_tables.settle(task_for(text), table)
        grouping = kxray.data.film_groups(
            table, thumbnails=np.random.default_rng(0).integers(0, 255, (len(table), 32, 32), dtype=np.uint8)
        )
        film_tables.split_films(recipe, task, table, grouping)


@pytest.mark.parametrize("folds", [0, 3])
def test_parts_are_even_in_each_finding(squares, folds):
    task = task_for("Left,Right")
    table = kxray.data.read_source(squares)
    grouping = kxray.data.splits.Grouping(table["patient_id"].to_numpy(str), "patient_id")
    split = film_tables.split_films(multiscale_cam.Recipe(findings="all", folds=folds), task, table, grouping)
    for part in set(split.parts.tolist()):
        members = table[split.parts == part]
        assert (members["Left"] == 1).mean() == pytest.approx(0.5, abs=0.2)
        assert (members["Right"] == 1).any() and (members["Right"] == 0).any()
    given = table.assign(split=np.where(np.arange(FILMS) < 36, "train", "test"))
    split = film_tables.split_films(multiscale_cam.Recipe(findings="all"), task, given, grouping)
    assert set(split.parts[:36]) == {"train", "val"} and set(split.parts[36:]) == {"test"}


def test_phantoms_have_the_findings_that_are_asked_for():
    assert findings.phantom_mix(task_for("Mass,Fracture")).findings == ("Mass",)
    assert findings.phantom_mix(task_for("all")).findings == "random"
    with pytest.raises(ValueError, match="phantoms have none of Fracture; their findings are Atelectasis"):
        findings.phantom_mix(task_for("Fracture"))


# From the shell


@pytest.fixture
def program(backbone, tiny_densenet):
    from training.fit import main

    def run(*arguments):
        result = CliRunner().invoke(main, [*map(str, arguments)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return run


FEW = ("--image-size", 40, "--epochs", 2, "--batch-size", 8, "--findings", "all")
NETWORK = {"transfer": ("--backbone", "mobilenetv2", "--weights", "none"), "multiscale_cam": ()}


@pytest.fixture(scope="module")
def ran():
    """Runs of this module's tests, by recipe, so that each is made once."""
    return {}


@pytest.fixture(params=["transfer", "multiscale_cam"])
def finished(request, ran, program, squares, tmp_path_factory):
    recipe = request.param
    if recipe not in ran:
        out = tmp_path_factory.mktemp("finding-runs") / recipe
        folds = ("--folds", 2) if recipe == "transfer" else ()
        told = program(recipe, "--data", squares, "--out", out, *FEW, *NETWORK[recipe], *folds)
        assert told[0] == 0, told[1]
        ran[recipe] = out, told[1]
    return recipe, *ran[recipe]


@pytest.mark.slow
def test_what_a_run_leaves(finished, program):
    recipe, out, text = finished
    assert "mean AUROC" in text and "Left   AUROC" in text and "left out: Rare (1)" in text
    model, spec = kxray.load(out)
    assert (spec.labels, spec.task) == (("Left", "Right"), "multilabel")
    assert all(0 < spec.threshold(label) < 1 for label in spec.labels)
    scores = json.loads((out / "metrics.json").read_text())
    predictions = pd.read_csv(out / "predictions.csv")
    area = scores["findings"]["Right"]["auroc"]["value"]
    known = predictions.dropna(subset="truth_Right")
    positive = known["truth_Right"] == 1
    ours = kxray.metrics.auroc(
        positive.astype(int), np.stack([-known["logit_1"], known["logit_1"]], axis=1), 2
    )
    if recipe == "multiscale_cam":
        assert area == pytest.approx(ours)
        inputs = pipeline.load_inputs(predictions["path"], spec)
        logits = scoring.logits_of(model, inputs, np.arange(len(inputs)))
        np.testing.assert_allclose(logits, predictions[["logit_0", "logit_1"]], atol=1e-4)
        assert json.loads((out / "config.json").read_text())["options"]["flips"] == "horizontal"
    else:
        assert len(predictions) == FILMS and len(scores["folds"]) == 2
        assert scores["findings"]["Right"]["unknown"] == 6
    assert 0 <= scores["baseline"]["findings"]["Left"]["auroc"]["value"] <= 1
    report = (out / "report.html").read_text()
    for words in ("Sensitivity and specificity", "no anatomy", "Left", "What the model looks at"):
        assert words in report, words
    again = program(recipe, "--resume", "--out", out)
    assert again[0] == 0 and "this run is complete" in again[1] and "mean AUROC" in again[1]


@pytest.mark.slow
def test_served_answers_and_maps_are_the_models(finished, squares, tmp_path):
    import tensorflow as tf

    recipe, out, _ = finished
    model, spec = kxray.load(out)
    version = json.loads((out / "metrics.json").read_text())["saved_model"]
    signatures = tf.saved_model.load(version).signatures
    film = (squares / "03.png").read_bytes()
    answers = signatures["explain"](image_bytes=tf.constant([film] * 2), label=tf.constant([0, 1]))
    pixels = np.concatenate([*pipeline.load_inputs([squares / "03.png"], spec).batches([0], 1)] * 2)
    logits = scoring.traced_logits(model, spec)(pixels).numpy()
    stated = scoring.calibrated(logits, spec)
    np.testing.assert_allclose(answers["probabilities"], stated, atol=1e-5)
    assert answers["decision"].numpy()[0].decode() == "|".join(spec.decide(stated[0]))
    maps = kxray.explain.attribute(model, pixels, [0, 1], kxray.explain.default_methods(model)[0])
    np.testing.assert_allclose(answers["heatmap"], maps[..., 0], atol=1e-5)


@pytest.mark.slow
def test_maps_of_a_finding_and_of_those_that_are_there(finished, squares):
    from training.explaining.film_explainer import FilmExplainer
    from training.predictor import Predictor

    _, out, _ = finished
    spec = kxray.ModelSpec.read(out / "spec.json")
    pixels = np.concatenate([*pipeline.load_inputs([squares / "03.png"], spec).batches([0], 1)] * 3)
    named = FilmExplainer(out, "grad_cam", "Right")(pixels, ["", "Left", ""])
    assert [one.label for one in named] == [1, 1, 1]
    there = FilmExplainer(out, "grad_cam", "true")(pixels, ["Left", "Right", "Left|Right"])
    best = int(there[0].probabilities.argmax())
    assert [one.label for one in there] == [0, 1, best]
    np.testing.assert_allclose(Predictor(out)(pixels)[0], there[0].probabilities, atol=1e-5)
    table = pd.DataFrame({"Left": [1.0, 0.0], "Right": [1.0, np.nan]})
    assert findings.names_of(table, spec.labels) == ["Left|Right", ""]


@pytest.mark.slow
def test_readers_of_classes_refuse_findings(finished):
    from training.auditing.run_films import read_finished

    with pytest.raises(ValueError, match="labels exclude each other, got a multi-label one"):
        read_finished(finished[1])


def test_a_dry_run_tells_how_many_films_have_each(program, squares):
    code, text = program("multiscale_cam", "--data", squares, *FEW, "--dry-run")
    assert code == 0 and "48 films: Left 24, Right 18 (6 unknown)" in text, text
    code, text = program("multiscale_cam", *FEW, "--dry-run", "--phantoms", 10)
    assert code == 0 and "would generate 10 thorax phantoms" in text
    code, text = program("multiscale_cam", "--data", squares, *FEW, "--test-time-flips")
    assert code == 2 and "with --findings there are none" in text


TWO_DEVICES = """
    import sys
    import keras
    import tensorflow as tf

    device = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * 2)
    sys.path.insert(0, sys.argv[1])
    from test_multilabel import tiny

    keras.applications.MobileNetV2 = tiny
    from training.fit import main

    main(sys.argv[2:], standalone_mode=False)
"""


@pytest.mark.slow
def test_two_devices_in_half_precision(squares, tmp_path, run_program):
    given = (
        "transfer",
        "--data",
        squares,
        *FEW,
        *NETWORK["transfer"],
        "--mode",
        "fine_tune",
        "--out",
        tmp_path / "r",
    )
    more = ("--strategy", "mirrored", "--mixed-precision")
    told = run_program("-c", textwrap.dedent(TWO_DEVICES), Path(__file__).parent, *given, *more)
    assert told.code == 0, told.text
    assert json.loads((tmp_path / "r" / "config.json").read_text())["replicas"] == 2
    assert np.isfinite(pd.read_csv(tmp_path / "r" / "history.csv").to_numpy()).all()


@pytest.mark.slow
def test_one_finding_beside_phantoms_that_have_it_too(program, squares, tmp_path):
    table = pd.read_csv(squares / "manifest.csv").rename(columns={"Left": "Mass"})
    table["path"] = [str(squares / path) for path in table["path"]]
    table.drop(columns="Rare").to_csv(tmp_path / "manifest.csv", index=False)
    given = ("--findings", "Mass", "--phantoms", 4, "--out", tmp_path / "run")
    told = program("transfer", "--data", tmp_path / "manifest.csv", *FEW[:-2], *NETWORK["transfer"], *given)
    assert told[0] == 0, told[1]
    _, spec = kxray.load(tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert spec.labels == ("Mass",) and config["training_only_films"] == 4
    assert config["findings"] == {"Mass": {"positive": 24, "negative": 24, "unknown": 0}}
