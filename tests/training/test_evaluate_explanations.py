"""Methods of explanation compared by models that are known to look at the finding, and where it is."""

import csv
import json
import os

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from click.testing import CliRunner
from PIL import Image
from rich.progress import Progress

import kxray
from kxray.io import encode_png16
from training.explain import main
from training.explaining import map_judge, map_metrics
from training.explaining.evaluated_films import EvaluatedFilms
from training.explaining.evaluating import Evaluation
from training.explaining.map_makers import BASELINES, MapMaker, TrainedModel, baseline_maps

SIDE = 32
LEFT, RIGHT = (slice(8, 16), slice(4, 12)), (slice(18, 24), slice(22, 30))


def saved(folder, model, labels, task):
    folder.mkdir()
    model.save(folder / "model.keras")
    spec = kxray.ModelSpec("tiny", labels, task, (SIDE, SIDE))
    (folder / "spec.json").write_text(spec.to_json())
    return folder


def bright_spot_model(units=2):
    """Only pixels above one half pass its ReLU: it sees nothing but the square."""
    film = keras.Input((SIDE, SIDE, 1))
    spots = keras.layers.Conv2D(1, 1, activation="relu", name="spots")(film)
    pooled = keras.layers.GlobalAveragePooling2D()(spots)
    model = keras.Model(
        film,
        keras.layers.Dense(units, activation="softmax" if units == 2 else "sigmoid", name="vote")(pooled),
    )
    model.get_layer("spots").set_weights([np.ones((1, 1, 1, 1)), np.array([-0.5])])
    votes = [[-100.0, 100.0]] if units == 2 else [[100.0]]
    model.get_layer("vote").set_weights([np.array(votes), np.array([1.0, 0.0][:units])])
    return model


def two_places_model():
    """The label "left" counts brightness in one square, "right" in another."""
    film = keras.Input((SIDE, SIDE, 1))
    weights = np.zeros((SIDE, SIDE, 2))
    weights[(*LEFT, 0)] = weights[(*RIGHT, 1)] = 0.2
    votes = keras.layers.Dense(2, activation="sigmoid", name="votes")
    model = keras.Model(film, votes(keras.layers.Flatten()(film)))
    votes.set_weights([weights.reshape(-1, 2), np.full(2, -3.0)])
    return model


def film(folder, name, *squares, seed=0):
    pixels = np.random.default_rng(seed).uniform(0.1, 0.3, (SIDE, SIDE)).astype("float32")
    for square in squares:
        pixels[square] = 0.9
    (folder / name).write_bytes(encode_png16(pixels))


def mask(folder, name, *squares):
    pixels = np.zeros((SIDE, SIDE), "uint8")
    for square in squares:
        pixels[square] = 255
    Image.fromarray(pixels).save(folder / name)
    return name


def manifest(folder, rows):
    with open(folder / "manifest.csv", "w", newline="") as file:
        table = csv.DictWriter(file, [*rows[0]])
        table.writeheader()
        table.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("spots") / "run"
    return saved(folder, bright_spot_model(), ("dark", "bright"), "multiclass")


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Six bright films with the mask of their square, one with an empty mask, two dark ones without any."""
    folder = tmp_path_factory.mktemp("spots") / "films"
    folder.mkdir()
    rows = []
    for index in range(9):
        name, label = f"{index}.png", "bright" if index < 7 else "dark"
        film(folder, name, *([LEFT] if label == "bright" else []), seed=index)
        masked = {"spot": mask(folder, f"mask-{index}.png", *([LEFT] if index < 6 else []))}
        cell = json.dumps(masked) if label == "bright" else ""
        rows.append({"path": name, "patient_id": f"P{index // 2}", "label": label, "masks": cell})
    return manifest(folder, rows)


def evaluate(*arguments):
    result = CliRunner().invoke(main, ["evaluate", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_a_model_that_looks_at_a_square_is_seen_to_do_so(run, films, tmp_path):
    out = tmp_path / "out"
    methods = "gradient,input_x_gradient,cam,grad_cam,multiscale_cam,lrp"
    told = evaluate("--run", run, "--data", films, "--out", out, "--methods", methods, "--batch-size", 4)
    assert told.exit_code == 0, told.output
    assert "9 of 9 films of 5 patients, 7 with a mask or box (1 of them empty: no score)" in told.output
    assert (
        "multiscale_cam" in told.output and "skipped: multiscale_cam needs one LayerRelevance" in told.output
    )
    found = json.loads((out / "metrics.json").read_text())
    rows = found["rows"]
    assert [*rows] == [*methods.replace("multiscale_cam,", "").split(","), *BASELINES]
    assert [*found["skipped"]] == ["multiscale_cam"]
    share = 64 / SIDE**2
    for method in ("gradient", "input_x_gradient", "cam", "grad_cam"):
        # Six films are scored, the seventh mask is empty: counted, never a hit.
        assert {key: rows[method]["mass_inside"][key] for key in ("films", "undefined")} == {
            "films": 6,
            "undefined": 1,
        }
        for metric, value in (
            ("mass_inside", 1.0),
            ("pointing_game", 1.0),
            ("rank_accuracy", 1.0),
            ("outside_inside_ratio", 0.0),
            ("mean_iou", 1.0),
            ("box_iou_0.3", 1.0),
            ("false_boxes", 0.0),
        ):
            cell = rows[method][metric]
            assert cell["value"] == cell["low"] == cell["high"] == pytest.approx(value, abs=1e-6), metric
        assert rows[method]["aopc_gap"]["value"] > 0.3
        assert rows[method]["insertion"]["value"] > rows["random"]["insertion"]["value"]
        assert rows[method]["deletion"]["value"] < rows["random"]["deletion"]["value"]
        # All but the square may go: the bright films keep their label until it is touched.
        assert (
            rows[method]["negative_perturbation"]["value"] > rows["random"]["negative_perturbation"]["value"]
        )
    assert rows["random"]["mass_inside"]["value"] == pytest.approx(share, abs=0.02)
    assert rows["random"]["outside_inside_ratio"]["value"] == pytest.approx(1, abs=0.2)
    assert rows["random"]["pointing_game"]["value"] < 0.5 and abs(rows["random"]["aopc_gap"]["value"]) < 0.2
    assert rows["film"]["pointing_game"]["value"] == 1 and "max_sensitivity" not in rows["film"]
    assert "completeness_error" in rows["lrp"] and "completeness_error" not in rows["gradient"]
    assert found["speed"]["films_a_batch"] == 4 and found["speed"]["seconds"][map_judge.FORWARD] > 0
    assert found["sanity"]["stops"] == ["vote", "spots"]
    assert found["sanity"]["methods"]["cam"]["random_logit"]["spearman"] == pytest.approx(-1)

    long = pd.read_csv(out / "evaluated.csv", keep_default_na=False)
    empty = long[long["path"].str.endswith("6.png") & (long["metric"] == "pointing_game")]
    assert set(empty["value"]) == {"nan"} and len(empty) == len(rows)
    dark = long[long["path"].str.endswith("8.png") & (long["method"] == "cam")]
    assert "pointing_game" not in set(dark["metric"]) and "deletion" in set(dark["metric"])
    table = pd.read_csv(out / "table.csv").set_index("method")
    assert (
        table.loc["cam", "mass_inside"] == pytest.approx(1) and table.loc["cam", "mass_inside_undefined"] == 1
    )
    assert table.loc["multiscale_cam", "skipped"].startswith("multiscale_cam needs")
    page = (out / "evaluated.html").read_text()
    assert page.count("<figure>") == 5 and "needs one LayerRelevance" in page
    assert "99th percentile" in page and "Not tested" in page


def test_interrupted_it_goes_on_where_it_stopped(run, films, tmp_path, monkeypatch):
    options = ("--run", run, "--data", films, "--methods", "grad_cam,gradient", "--films", 5)
    options += ("--metrics", "places,aopc_gap,max_sensitivity", "--batch-size", 2)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert evaluate(*options, "--out", whole).exit_code == 0
    scored, batch = [], map_judge.Judge._batch

    def failing(self, name, rows):
        scored.append((name, rows[0]))
        if len(scored) == 5:
            raise KeyboardInterrupt
        return batch(self, name, rows)

    monkeypatch.setattr(map_judge.Judge, "_batch", failing)
    assert evaluate(*options, "--out", broken).exit_code == 130
    assert (broken / "work" / "grad_cam.csv").exists() and not (broken / "work" / "gradient.csv").exists()
    assert not (broken / "evaluated.html").exists()
    assert evaluate(*options, "--out", broken).exit_code == 0
    # The method that was at work begins again, the finished one does not.
    assert [name for name, _ in scored[5:8]] == ["gradient"] * 3 and scored[5][1] == 0
    assert (broken / "evaluated.csv").read_bytes() == (whole / "evaluated.csv").read_bytes()
    assert (broken / "table.csv").read_bytes() == (whole / "table.csv").read_bytes()
    done = len(scored)
    # Another method joins those that are there.
    more = [*options]
    more[more.index("grad_cam,gradient")] = "grad_cam,gradient,cam"
    assert evaluate(*more, "--out", broken).exit_code == 0
    assert {name for name, _ in scored[done:]} == {"cam"}
    told = evaluate(*options, "--out", broken, "--seed", 3)
    assert told.exit_code == 2 and "was begun with another seed (0); choose another --out" in told.output


def test_every_positive_finding_with_a_place_is_a_pair(tmp_path):
    run = saved(tmp_path / "run", two_places_model(), ("left", "right"), "multilabel")
    folder = tmp_path / "films"
    folder.mkdir()
    rows = []
    for index, (found, masked) in enumerate(
        (({"left", "right"}, ("left", "right")), ({"left"}, ("left",)), ({"right"}, ()), (set(), ()))
    ):
        squares = {"left": LEFT, "right": RIGHT}
        film(folder, f"{index}.png", *(squares[name] for name in found), seed=index)
        masks = {name: mask(folder, f"mask-{index}-{name}.png", squares[name]) for name in masked}
        findings = {name: int(name in found) for name in squares}
        cell = json.dumps(masks) if masks else ""
        rows.append({"path": f"{index}.png", "patient_id": f"P{index}", **findings, "masks": cell})
    manifest(folder, rows)
    out = tmp_path / "out"
    told = evaluate(
        *("--run", run, "--data", folder, "--out", out, "--methods", "gradient"),
        *("--metrics", "places,negative_perturbation"),
    )
    assert told.exit_code == 0, told.output
    assert "2 of 4 films of 2 patients, 3 pairs of a film and a finding, 3 with a mask" in told.output
    long = pd.read_csv(out / "evaluated.csv")
    hits = long[(long["metric"] == "mass_inside") & (long["method"] == "gradient")]
    assert [*zip(hits["path"].str[-5:], hits["label"], strict=True)] == [
        ("0.png", "left"),
        ("0.png", "right"),
        ("1.png", "left"),
    ]
    # The map of each finding lies in the square of that finding, and it is decided alone, by its threshold.
    assert hits["value"].tolist() == [1, 1, 1] and hits["right"].tolist() == [1, 1, 1]
    kept = long[(long["metric"] == "negative_perturbation") & (long["method"] == "gradient")]["value"]
    assert (kept > 0.7).all()
    told = evaluate(
        *("--run", run, "--data", folder, "--out", out / "one", "--methods", "gradient"),
        *("--target", "right", "--metrics", "places"),
    )
    assert "2 of 4 films of 2 patients, 1 with a mask or box; maps of the 'right' label" in told.output


def test_films_without_places_are_compared_all_the_same(run, films, tmp_path):
    folder = tmp_path / "plain"
    (folder / "bright").mkdir(parents=True)
    for index in range(3):
        film(folder / "bright", f"{index}.png", LEFT, seed=index)
    told = evaluate(
        *("--run", run, "--data", folder, "--out", tmp_path / "out", "--methods", "cam"),
        *("--metrics", "places,deletion,speed"),
    )
    assert told.exit_code == 0 and "none with a mask or box; maps of the true label" in told.output
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["metrics"] == ["deletion"] and [*found["rows"]["cam"]] == ["not_finite", "deletion"]
    assert "no film has a mask or box" in (tmp_path / "out" / "evaluated.html").read_text()


def test_changed_films_are_not_mixed_with_scores_of_others(run, tmp_path):
    folder = tmp_path / "films"
    folder.mkdir()
    rows = []
    for index in range(3):
        film(folder, f"{index}.png", LEFT, seed=index)
        cell = json.dumps({"spot": mask(folder, f"mask-{index}.png", LEFT)})
        rows.append({"path": f"{index}.png", "patient_id": f"P{index}", "label": "bright", "masks": cell})
    manifest(folder, rows)
    options = ("--run", run, "--data", folder, "--out", tmp_path / "out", "--methods", "cam")
    options += ("--metrics", "mass_inside,complexity")
    told = evaluate(*options)
    # None of the usual columns was asked for.
    assert told.exit_code == 0 and "mass inside" in told.output and "complexity" in told.output
    assert evaluate(*options).exit_code == 0

    def refused():
        told = evaluate(*options)
        assert told.exit_code == 2 and told.output.count("\n") == 1, told.output
        return "begun with another state of its films, labels, masks or boxes" in told.output

    manifest(folder, [{**rows[0], "label": "dark"}, *rows[1:]])
    assert refused()
    manifest(folder, [{**rows[0], "masks": ""}, *rows[1:]])
    assert refused()
    manifest(folder, rows)
    assert evaluate(*options).exit_code == 0
    for name in ("1.png", "mask-1.png"):
        before = (folder / name).stat()
        os.utime(folder / name, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
        assert refused()
        os.utime(folder / name, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert evaluate(*options).exit_code == 0


def test_a_failure_of_the_machine_is_not_remembered(run, films, tmp_path, monkeypatch):
    options = ("--run", run, "--data", films, "--out", tmp_path / "out", "--methods", "cam,gradient")
    options += ("--metrics", "complexity", "--films", 2)
    works, failure = MapMaker.__call__, tf.errors.ResourceExhaustedError

    def fails(self, images, labels):
        if self.method == "cam":
            raise failure(None, None, "the machine's own trouble")
        return works(self, images, labels)

    with monkeypatch.context() as patched:
        patched.setattr(MapMaker, "__call__", fails)
        told = evaluate(*options)
        assert told.exit_code == 2 and told.output.count("\n") == 1
        assert "batches of 16 ran out of memory; try a smaller --batch-size" in told.output
        failure = tf.errors.InternalError
        told = evaluate(*options)
        assert told.exit_code == 0 and "skipped: the machine's own trouble" in told.output
    told = evaluate(*options, "--batch-size", 1)
    assert told.exit_code == 0 and "skipped" not in told.output
    assert [*json.loads((tmp_path / "out" / "metrics.json").read_text())["rows"]][:2] == ["cam", "gradient"]


def test_wrong_use_is_one_line(run, films, tmp_path):
    good = {"--run": run, "--data": films, "--out": tmp_path / "out"}
    for changed, sentence in (
        ({"--methods": "tea_leaves"}, "unknown method 'tea_leaves'; the known ones are: all, gradient"),
        ({"--methods": ","}, "--methods names none"),
        ({"--metrics": "beauty"}, "unknown metric 'beauty'; the known ones are: all, places, perturbation"),
        (
            {"--target": "grey"},
            "unknown target 'grey'; expected true, predicted or one of the labels: dark, bright",
        ),
        ({"--data": tmp_path / "absent"}, "no such file or folder (--data)"),
        ({"--out": run / "spec.json"}, "is a file; --out names a folder"),
    ):
        told = evaluate(*[part for pair in {**good, **changed}.items() for part in pair])
        assert told.exit_code == 2 and sentence in told.output and told.output.count("\n") == 1, told.output
    assert not (tmp_path / "out").exists()


def test_the_map_against_a_one_unit_model_turns_its_sign(tmp_path):
    trained = TrainedModel(saved(tmp_path / "run", bright_spot_model(1), ("dark", "bright"), "binary"))
    pixels = np.full((2, SIDE, SIDE, 1), 0.2, "float32")
    pixels[:, LEFT[0], LEFT[1]] = 0.9
    against, for_ = MapMaker(trained, "grad_cam")(pixels, np.array([0, 1]))
    assert for_.shape == (SIDE, SIDE) and for_[LEFT].min() > 0 and for_[RIGHT].max() == 0
    np.testing.assert_array_equal(against, -for_)
    np.testing.assert_array_equal(
        trained.decided(trained.probabilities(pixels), np.array([0, 1])), [False, True]
    )


@pytest.mark.parametrize("method", ["layer_cam", "guided_backprop", "rap"])
def test_a_one_unit_model_is_judged_by_the_maps_it_is_explained_with(tmp_path, method):
    trained = TrainedModel(saved(tmp_path / "run", bright_spot_model(1), ("dark", "bright"), "binary"))
    pixels = np.random.default_rng(0).uniform(size=(2, SIDE, SIDE, 1)).astype("float32")
    maker = MapMaker(trained, method)
    expected = kxray.explain.binary_explainer(trained.model, method, upsample=True)
    for turned in (1, -1):
        trained.model.set_weights([turned * weight for weight in trained.model.get_weights()])
        maker.refresh()
        expected.refresh()
        theirs = expected(pixels, np.array([0, 1], np.int32))["heatmap"].numpy()[..., 0]
        np.testing.assert_allclose(maker(pixels, np.array([0, 1])), theirs, atol=1e-6)


def test_the_model_has_its_weights_back(tmp_path):
    trained = TrainedModel(saved(tmp_path / "run", bright_spot_model(), ("dark", "bright"), "multiclass"))
    pixels = np.random.default_rng(0).uniform(size=(2, SIDE, SIDE, 1)).astype("float32")
    pairs = pd.DataFrame({"film": [0, 1], "label": [1, 1], "place": [0, 0]})
    films = EvaluatedFilms(pairs, pixels, np.zeros((2, SIDE, SIDE), bool))
    asked = Evaluation(("gradient",), "true", 2, ("sanity",))
    before = trained.model.get_weights()
    judge = map_judge.Judge(trained, films, asked, tmp_path, Progress(disable=True))
    found = judge.sanity()["methods"]["gradient"]["randomised"]["spearman"]
    # The votes turn from 100 to something small, of one of two signs; the film has but one feature.
    assert np.abs(found[0]) == pytest.approx(1)
    for now, then in zip(trained.model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


class _Explainer:
    """Input times a weight of each pixel; the maps of films that begin with 0.75 are not finite."""

    def __call__(self, images, labels):
        heatmap = np.array(images) * np.linspace(0, 1, SIDE, dtype="float32")[:, None]
        heatmap[images[:, 0, 0, 0] == 0.75] = np.nan
        logits = np.full((len(images), 2), 8, "float32")
        return {"heatmap": tf.constant(heatmap), "logits": tf.constant(logits)}


def test_scores_of_a_film_do_not_depend_on_its_batch(run, tmp_path):
    trained = TrainedModel(run)
    pixels = np.random.default_rng(0).uniform(size=(5, SIDE, SIDE, 1)).astype("float32")
    pixels[:, 0, 0] = 0.5
    pixels[2, 0, 0] = 0.75
    pairs = pd.DataFrame({"film": range(5), "label": 1, "place": 0})
    films = EvaluatedFilms(pairs, pixels, np.zeros((5, SIDE, SIDE), bool))
    tables = []
    for size in (5, 2, 1):
        asked = Evaluation(("lrp",), "true", 5, ("max_sensitivity", "completeness_error"), batch_size=size)
        (tmp_path / str(size)).mkdir()
        judge = map_judge.Judge(trained, films, asked, tmp_path / str(size), Progress(disable=True))
        maker = MapMaker(trained, "lrp")
        maker._explain = _Explainer()
        judge.makers["lrp"] = maker
        tables.append(judge.scores("lrp"))
    assert tables[0]["finite"].tolist() == [1, 1, 0, 1, 1]
    for metric in ("max_sensitivity", "completeness_error"):
        assert np.isnan(tables[0][metric]).tolist() == [False, False, True, False, False]
        assert len({*tables[0][metric].dropna()}) == 4
    pd.testing.assert_frame_equal(tables[0], tables[1], check_exact=True)
    pd.testing.assert_frame_equal(tables[0], tables[2], check_exact=True)


def test_every_kept_film_costs_the_same_number_of_steps():
    order = map_metrics.grouped_patches(np.random.default_rng(0).normal(size=(2, 50, 70)), False)
    assert order.min() == 1 and order.max() <= map_metrics.STEPS
    patches = order[:, ::5, ::5]
    np.testing.assert_array_equal(np.repeat(np.repeat(patches, 5, 1), 5, 2), order)


def test_the_summary_counts_what_has_no_score():
    scores = pd.DataFrame({"outside_inside_ratio": [0.1, 0.2, np.inf, np.nan, 0.3]})
    cell = map_metrics.summed_up("outside_inside_ratio", scores, list("abcde"))
    assert cell["value"] == pytest.approx(0.25) and (cell["films"], cell["undefined"], cell["infinite"]) == (
        3,
        1,
        1,
    )
    assert cell["low"] == 0.1 and cell["high"] == np.inf
    pooled = pd.DataFrame([[0.5, 8, 8, 0, 2], [0.5, 4, 8, 2, 2]], columns=["mean_iou", *map_metrics.OVERLAPS])
    # (12 / 16 + 2 / 4) / 2
    assert map_metrics.summed_up("mean_iou", pooled, ["a", "b"])["value"] == pytest.approx(0.625)


def test_baselines_do_not_depend_on_batches():
    films = np.random.default_rng(0).uniform(size=(3, 8, 6, 1))
    for name in BASELINES:
        one_by_one = [baseline_maps(name, films[[row]], [row], 5)[0] for row in range(3)]
        np.testing.assert_array_equal(baseline_maps(name, films, range(3), 5), one_by_one)
    centre = baseline_maps("centre", films, range(3), 0)[0]
    np.testing.assert_allclose(centre, centre[::-1, ::-1])
