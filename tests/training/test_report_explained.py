"""What a report says of maps, on toys whose maps are known: the features of the model are the film."""

import re

import keras
import numpy as np
import pandas as pd
import pytest

import kxray
from kxray.data import pipeline
from kxray.io import encode_png16
from kxray.layers import LayerRelevance
from training import scoring
from training.report import map_plots, overlap, plots
from training.report.classifier import write_report
from training.report.explained import explain_films, sections

SIDE = 20
LABELS = ("left", "right", "dark")


def tiny_model(units=3, constraint="softmax"):
    """Two stages: the film, and its mean over 4 x 4 pixels. "left" and "right" both count brightness."""
    film = keras.Input((SIDE, SIDE, 1))
    fine = keras.layers.Conv2D(1, 1, use_bias=False, name="fine_convolution")(film)
    coarse = keras.layers.Conv2D(1, 4, strides=4, use_bias=False, name="coarse_convolution")(fine)
    votes = [
        keras.layers.Dense(units, name=f"logits_{name}")(keras.layers.GlobalAveragePooling2D()(features))
        for name, features in (("fine", fine), ("coarse", coarse))
    ]
    combined = LayerRelevance(constraint, name="layer_relevance")(votes)
    head = "softmax" if units > 1 else "sigmoid"
    model = keras.Model(film, keras.layers.Activation(head)(combined))
    model.get_layer("fine_convolution").set_weights([np.ones((1, 1, 1, 1))])
    model.get_layer("coarse_convolution").set_weights([np.full((4, 4, 1, 1), 1 / 16)])
    for name in ("fine", "coarse"):
        kernel = np.array([[30.0, 29.0, -30.0]])[:, :units]
        model.get_layer(f"logits_{name}").set_weights([kernel, np.array([0.0, 0.0, 3.0])[:units]])
    return model


@pytest.fixture
def films(tmp_path):
    """Twelve films of 40 x 40 pixels, a bright square in each; the last four are all but dark."""
    paths = []
    for index in range(12):
        pixels = np.full((2 * SIDE, 2 * SIDE), 0.02, "float32")
        pixels[8:24, 16:32] = 0.9 if index < 8 else 0.05
        paths.append(tmp_path / f"film-{index}.png")
        paths[-1].write_bytes(encode_png16(pixels))
    return paths


def predicted(model, films, labels, spec):
    inputs = pipeline.load_inputs(films, spec, workers=1)
    table = pd.DataFrame({"path": list(map(str, films)), "patient_id": [f"P{k}" for k in range(len(films))]})
    rows = np.arange(len(films))
    logits = scoring.logits_of(model, inputs, rows)
    facts = {"fold": 0, "part": "test", "group": table["patient_id"]}
    return inputs, scoring.prediction_table(table, rows, np.array(labels), logits, 1.0, spec, **facts)


@pytest.fixture
def no_pictures(monkeypatch):
    """Films are drawn in one test; the others spare the seconds."""
    for name in ("gallery", "competing_maps", "relevance_bars"):
        monkeypatch.setattr(map_plots, name, lambda *_: "data:,")
    for name in ("contact_sheet", "training_curves", "confusion_matrix", "reliability_diagram"):
        monkeypatch.setattr(plots, name, lambda *_: "data:,")


@pytest.fixture
def explained(films):
    model = tiny_model(constraint="penalty")
    model.get_layer("layer_relevance").set_weights([np.array([[0.7, 0.7, 0.7], [0.3, 0.3, 0.35]])])
    spec = kxray.ModelSpec("tiny", LABELS, "multiclass", (SIDE, SIDE))
    # Films 4 to 7 are called "right" by their owner; the model answers "left" for every bright film.
    inputs, predictions = predicted(model, films, [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2], spec)
    assert list(predictions["predicted"]) == ["left"] * 8 + ["dark"] * 4
    return explain_films(model, spec, inputs, predictions)


def maps_of(*places):
    """Maps (1, 8, 8, L) that are 1 in one square each."""
    maps = np.full((1, 8, 8, len(places)), -0.5)
    for index, (y, x, side) in enumerate(places):
        maps[0, y : y + side, x : x + side, index] = 1 + index
    return maps


def test_equal_maps_overlap_by_one_and_disjoint_ones_by_nothing():
    maps = maps_of((1, 2, 4), (1, 2, 4), (5, 6, 2), (1, 4, 4))
    same, apart, half = (overlap.overlaps(maps, np.array([0]), np.array([k])).iloc[0] for k in (1, 2, 3))
    assert same["overlap"] == 1 and same["area_shared"] == same["area_first"] == 16 / 64
    assert same[["x0", "y0", "x1", "y1"]].tolist() == [2 / 8, 1 / 8, 6 / 8, 5 / 8]
    assert apart["overlap"] == 0 == apart["area_shared"] and apart[["x0", "y1"]].isna().all()
    assert half["overlap"] == pytest.approx(8 / 24) and half["area_shared"] == 8 / 64
    assert half[["x0", "y0", "x1", "y1"]].tolist() == [4 / 8, 1 / 8, 6 / 8, 5 / 8]
    silent = overlap.overlaps(-np.ones((1, 8, 8, 2)), np.array([0]), np.array([1])).iloc[0]
    assert np.isnan(silent["overlap"]) and silent["area_shared"] == 0


def test_which_classes_compete():
    spec = kxray.ModelSpec("tiny", LABELS, "multiclass", (SIDE, SIDE), thresholds={"dark": 0.8})
    probabilities = np.array(
        [[0.8, 0.15, 0.05], [0.2, 0.7, 0.1], [0.5, 0.35, 0.15], [0.1, 0.15, 0.75], [0.05, 0.05, 0.9]]
    )
    table = pd.DataFrame(probabilities, columns=[f"probability_{name}" for name in LABELS])
    table["label"] = ["left", "dark", "left", "dark", "dark"]
    found = overlap.cases(table, spec)
    assert found["kind"].tolist() == ["sure", "wrong", "unsure", "unsure", "sure"]
    # The true and the predicted class of the wrong one, the two likeliest of the others.
    assert found[["first", "second"]].values.tolist() == [[0, 1], [2, 1], [0, 1], [2, 1], [2, 0]]
    # Sure films are compared on every confused pair of their class: left/right and dark/right.
    assert sorted(overlap.compared_pairs(found)) == [(0, 0, 1), (1, 2, 1), (2, 0, 1), (3, 2, 1), (4, 2, 1)]


def compared(confused, sure, boxes=(0.1, 0.2, 0.3, 0.4)):
    rows = [(value, "wrong", row) for row, value in enumerate(confused)]
    rows += [(value, "sure", 100 + row) for row, value in enumerate(sure)]
    table = pd.DataFrame(rows, columns=["overlap", "kind", "row"])
    table = table.assign(first=np.where(table["row"] % 2, 0, 1))
    return table.assign(second=1 - table["first"], **dict(zip(("x0", "y0", "x1", "y1"), boxes, strict=True)))


def test_a_pattern_is_claimed_where_there_is_one():
    table = compared([0.7, 0.8, 0.9, 0.75, 0.85], [0.1, 0.2, 0.15, 0.05, 0.12, 0.08])
    (finding,) = overlap.findings(table, LABELS)
    told = " ".join(finding.sentences)
    assert finding.place and finding.p_value < 0.01 and finding.labels == ("left", "right")
    assert "5 films: 2 left taken for right, 3 right taken for left." in told
    assert "0.80 (median of 5 films), by 0.11 on the 6 films" in told and "corrected for 1 pair)" in told
    assert "take films like those to imitate" in told
    assert "On 5 of 5 films the shared region lies in one part of the film: from 10% to 30%" in told
    assert finding.avoid == (2, 4, 1) and sorted(finding.imitate) == [100, 103, 104, 105]


def test_no_pattern_is_claimed_where_there_is_none():
    for confused, sure, sentence in (
        ([0.9, 0.9], [0.1] * 9, "Too few to show a pattern (2 films to measure on)"),
        ([0.9], [0.1] * 9, "Too few to show a pattern (1 film to measure on)"),
        ([0.9] * 5, [0.1, 0.1], "2 films of the two classes right and sure, there is nothing to compare"),
        ([0.3, 0.4, 0.5, 0.6], [0.3, 0.4, 0.5, 0.6], "That is no clear difference"),
        # Beyond chance, but a hundredth.
        ([0.03] * 9, [0.02] * 9, "That is no clear difference"),
        ([np.nan] * 4, [0.1] * 4, "no overlap to measure"),
    ):
        (finding,) = overlap.findings(compared(confused, sure), LABELS)
        told = " ".join(finding.sentences)
        assert not finding.place and sentence in told and "imitate" not in told
    assert overlap.findings(compared([], [0.2] * 5), LABELS) == []


def test_a_place_is_named_only_where_films_agree_on_it():
    table = compared([0.7, 0.8, 0.9], [0.1] * 5)
    table.loc[:2, ["x0", "x1"]] = [[0.0, 0.1], [0.45, 0.55], [0.9, 1.0]]
    assert "lie in different places" in " ".join(overlap.findings(table, LABELS)[0].sentences)
    table = compared([0.7, 0.8, 0.9], [0.1] * 5, boxes=(0, 0, 0.9, 0.8))
    assert "cover 72% of the film (median of 3 films)" in " ".join(
        overlap.findings(table, LABELS)[0].sentences
    )


def test_maps_of_the_toy_are_where_its_squares_are(explained, no_pictures):
    confused = explained.compared[explained.compared["kind"] != "sure"]
    # "right" taken for "left": both classes read the same pixels.
    wrong = confused[(confused["first"] == 1) & (confused["second"] == 0)]
    assert len(wrong) == 4 and wrong["overlap"].to_numpy() == pytest.approx(1)
    shown = sections(explained)
    assert all(row["box"] == (16, 8, 32, 24) for row in shown["confused"] if row["label"] == "right")
    assert shown["num_confused"] == len(confused) and shown["distance_from_convex"] == pytest.approx(0.05)
    assert explained.changed == 0 and explained.films_left_out == 0
    (finding,) = [finding for finding in explained.findings if set(finding.labels) == {"left", "right"}]
    assert finding.second_as_first == 4 and finding.first_as_second == 0


def test_the_gallery_is_bounded_and_its_parts_add_up(explained):
    groups = [(explained.predictions["label"][film.row], film.group) for film in explained.gallery]
    assert groups.count(("right", "wrong")) == 3 and groups.count(("left", "most confident")) == 3
    assert (
        groups.count(("left", "least confident")) == 1 and len({film.row for film in explained.gallery}) == 11
    )
    for film in explained.gallery:
        combined = sum(
            np.asarray(keras.ops.image.resize(part[..., None], film.heatmap.shape, "bilinear"))[..., 0]
            for part in film.parts
        )
        np.testing.assert_allclose(combined, film.heatmap, atol=1e-4)
        assert film.label == LABELS.index(explained.predictions["predicted"][film.row])


def report_of(folder, explained):
    predictions, spec = explained.predictions, explained.spec
    one = {"value": 0.5, "low": 0.4, "high": 0.6}
    scores = {"balanced_accuracy": one, "auroc": one, "accuracy": one, "conditions": "a toy", "minutes": 1.0}
    scores["recall"] = {label: {**one, "films": 4} for label in spec.labels}
    scores |= {"baseline": scores, "calibration": {"fitted_on": "validation films"}, "folds": []}
    scores["expected_calibration_error"] = {"calibrated": 0.1, "uncalibrated": 0.2}
    scores["confusion"] = np.eye(len(spec.labels), dtype=int)
    history = pd.DataFrame({"epoch": [1, 2], "loss": [1.0, 0.5], "val_loss": [1.0, 0.7]})
    config = {
        "recipe": "toy", "films": {"left": 4}, "training_only_films": 0, "notes": [], "options": {},
        "split": {"grouped_by": "patient_id", "groups": 12, "largest_group": 1}, "split_hash": "0",
        "data_fingerprint": "0", "versions": {}, "replicas": 1, "dtype_policy": "float32",
    }  # fmt: skip
    return write_report, (folder, spec, config, scores, predictions, history)


def test_the_report_has_the_sections_only_with_maps(explained, tmp_path):
    write, arguments = report_of(tmp_path, explained)
    without = write(*arguments).read_text()
    assert "What to collect next" not in without and "Which stages count" not in without
    page = write(*arguments, explained=explained).read_text()
    for sentence in (
        "Which stages count", "the largest violation at the end is", "<b>0.0500</b>",
        "which it was not trained on", "Films of class left (4 tested)", "What to collect next",
        "4 right taken for left", "box x 16–32, y 8–24 px", "x 16–32, y 8–24 of 40 x 40",
    ):  # fmt: skip
        assert sentence in page, sentence
    assert len(re.findall('src="data:image/jpeg', page)) == 3 + 1
    assert page.count("<img") == without.count("<img") + 5


def test_the_report_says_that_the_model_was_trained_on_the_films(films, tmp_path, no_pictures):
    model = tiny_model()
    spec = kxray.ModelSpec("tiny", LABELS, "multiclass", (SIDE, SIDE))
    inputs, predictions = predicted(model, films, [0] * 4 + [1] * 4 + [2] * 4, spec)
    # What the model of the film's fold had said.
    predictions.loc[0, "predicted"] = "right"
    predictions.loc[0, ["probability_left", "probability_right"]] = [0.2, 0.75]
    explained = explain_films(model, spec, inputs, predictions, seen=True)
    assert explained.changed == 1
    write, arguments = report_of(tmp_path, explained)
    page = write(*arguments, explained=explained).read_text()
    assert "Maps of the kept model, which was trained on these films" in page
    assert "On 1 of the 12 films looked at, the kept model says something else" in page
    assert "They are a softmax over the stages" in page


def test_models_without_maps_and_with_one(films, no_pictures):
    spec = kxray.ModelSpec("tiny", ("dark", "bright"), "binary", (SIDE, SIDE))
    model = tiny_model(units=1)
    inputs, predictions = predicted(model, films, [1] * 8 + [0] * 4, spec)
    explained = explain_films(model, spec, inputs, predictions)
    assert not len(explained.compared) and explained.findings == () and explained.weights.shape == (2, 2)
    assert sections(explained)["one_unit"]
    film = next(film for film in explained.gallery if film.label == 1)
    assert film.heatmap.max() > 0
    plain = keras.Sequential([keras.Input((SIDE, SIDE, 1)), keras.layers.Flatten(), keras.layers.Dense(1)])
    assert explain_films(plain, spec, inputs, predictions) is None
    assert explain_films(model, spec, inputs, predictions.iloc[:0]) is None


def test_many_films_are_thinned_and_said_so(films, monkeypatch):
    from training.report import explained as module

    monkeypatch.setattr(module, "MOST_COMPARED", 6)
    model = tiny_model()
    spec = kxray.ModelSpec("tiny", LABELS, "multiclass", (SIDE, SIDE), thresholds=dict.fromkeys(LABELS, 0.0))
    inputs, predictions = predicted(model, films, [0] * 4 + [1] * 4 + [2] * 4, spec)
    monkeypatch.setattr(overlap, "MARGIN", 0.0)
    monkeypatch.setattr(overlap.cases, "__defaults__", (0.0,))
    explained = explain_films(model, spec, inputs, predictions)
    kinds = explained.compared.drop_duplicates("row")["kind"].tolist()
    assert kinds.count("wrong") == 4 and kinds.count("sure") == 2 and explained.films_left_out == 2


def test_figures_hold_many_long_names():
    names = [f"finding with the number {index}" for index in range(14)]
    weights = np.random.default_rng(0).dirichlet(np.ones(4), 14).T
    history = pd.DataFrame({"epoch": [1, 2], "loss": [1.0, 0.5], "val_loss": [1.0, 0.7]})
    for picture in (
        plots.confusion_matrix(np.eye(14, dtype=int), names),
        plots.confusion_matrix(np.eye(2, dtype=int), names[:2]),
        map_plots.relevance_bars(weights, ("a", "b", "c", "d"), names),
        plots.training_curves(history),
        plots.training_curves(history.assign(accuracy=0.5, val_accuracy=0.5)),
    ):
        assert picture.startswith("data:image/png;base64,")
