"""The recipe masked_densenet: boxes of training films alone make masks and teach; what a run leaves."""

import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import kxray
from kxray.data.masks import DiseaseMasks
from training import findings
from training.films import RunFilms
from training.masking import Masking
from training.recipes import masked_densenet

LABELS = ("Cardiomegaly", "Effusion")


@pytest.fixture(scope="module")
def chests(tmp_path_factory):
    from kxray.data.phantom import Mix, write_phantoms

    folder = tmp_path_factory.mktemp("chests") / "films"
    mix = Mix(size=64, views=("frontal",), findings=LABELS, poses="wide")
    write_phantoms(folder, "thorax", 40, 0, mix=mix, workers=1)
    return folder


def recipe(**options):
    own = {"backbone": "small_densenet", "image_size": 64, "align": "none", "findings": ",".join(LABELS)}
    return masked_densenet.Recipe(**{**own, **options})


@pytest.fixture(scope="module")
def films(chests):
    from kxray import data
    from kxray.data import pipeline

    table = data.read_source(chests).assign(training_only=False)
    inputs = pipeline.unread_inputs(table["path"], masked_densenet.task_of(recipe()).spec)
    return RunFilms(table, inputs, findings.truths_of(table, LABELS), None, None, ())


@pytest.fixture
def task():
    return masked_densenet.task_of(recipe())


def boxed_rows(films):
    return films.table.index[films.table["boxes"].map(len) > 0].to_numpy()


def test_boxes_are_shares_of_the_film_and_of_training_films_alone(task, films):
    rows = boxed_rows(films)[:5]
    boxes = Masking(recipe()).boxes(task, films, rows, 0)
    assert boxes.shape == (len(films.inputs), 2, 4)
    known = np.isfinite(boxes).all(axis=-1).any(axis=1)
    assert np.flatnonzero(known).tolist() == rows.tolist()
    first = films.table.loc[rows[0], "boxes"][0]
    there = boxes[rows[0], LABELS.index(first["finding"])]
    expected = [first["x"] / 64, first["y"] / 64, first["width"] / 64, first["height"] / 64]
    np.testing.assert_allclose(there, expected, atol=1e-6)


def test_two_boxes_of_a_finding_are_taken_together(task, films):
    row = boxed_rows(films)[0]
    name = films.table.loc[row, "boxes"][0]["finding"]
    pair = [
        {"finding": name, "x": 8, "y": 16, "width": 8, "height": 8},
        {"finding": name, "x": 32, "y": 32, "width": 16, "height": 8},
    ]
    table = films.table.copy()
    table.at[row, "boxes"] = pair
    two = RunFilms(table, films.inputs, films.labels, None, None, ())
    boxes = Masking(recipe()).boxes(task, two, [row], 0)
    np.testing.assert_allclose(boxes[row, LABELS.index(name)], [0.125, 0.25, 0.625, 0.375])


def test_a_share_of_the_boxed_films_is_drawn_and_a_larger_share_holds_it(task, films):
    rows = boxed_rows(films)
    used = {
        share: set(Masking(recipe(box_share=share)).used(task, films, rows, 3)["position"])
        for share in (0.0, 0.25, 0.5, 1.0)
    }
    assert [len(used[share]) for share in used] == [0, *(int(np.ceil(s * len(rows))) for s in (0.25, 0.5, 1))]
    assert used[0.25] < used[0.5] < used[1.0] == set(rows)
    assert used[0.5] != set(Masking(recipe(box_share=0.5)).used(task, films, rows, 4)["position"])
    assert Masking(recipe(box_share=0.0)).boxes(task, films, rows, 3) is None
    assert Masking(recipe(box_loss=0.0)).boxes(task, films, rows, 3) is None


def test_masks_know_nothing_of_films_that_are_not_trained_on(task, films):
    model = task.build(task.spec)
    rows = boxed_rows(films)
    few, all_of_them = (Masking(recipe()).masks(model, task, films, chosen, 0) for chosen in (rows[:4], rows))
    moved = films.table.copy()
    for row in rows[4:]:
        moved.at[row, "boxes"] = [{**box, "x": 0, "y": 0} for box in moved.at[row, "boxes"]]
    other = RunFilms(moved, films.inputs, films.labels, None, None, ())
    np.testing.assert_array_equal(Masking(recipe()).masks(model, task, other, rows[:4], 0).maps, few.maps)
    assert sum(few.counts) < sum(all_of_them.counts)
    assert not np.allclose(few.maps, all_of_them.maps)


def test_boxes_go_into_the_aligned_frame(task, films):
    """An aligner that says half size and shifted: the box is twice as large about the middle, and back."""
    from kxray.data.similarity import Similarity

    row = boxed_rows(films)[0]
    box = films.table.loc[row, "boxes"][0]
    pose = Similarity(0.0, 0.5, (0.1, -0.05)).pose

    class Model:
        layers = ()

    masking = Masking(recipe())
    masking._poses = lambda model, films, positions: [pose] * len(positions)
    placed = dict(masking._aligned(Model, films, masking.used(task, films, [row], 0), (64, 64)))
    left = ((box["x"] / 64 - 0.5) - 0.1) / 0.5
    top = ((box["y"] / 64 - 0.5) + 0.05) / 0.5
    corners = placed[box["finding"]]
    np.testing.assert_allclose(corners[0], [left, top], atol=1e-6)
    np.testing.assert_allclose(
        corners[2] - corners[0], np.array([box["width"], box["height"]]) / 32, atol=1e-6
    )


@pytest.mark.parametrize(
    "options, told",
    [
        ({"align": "nowhere"}, "--align nowhere: expected auto, none"),
        ({"masks": "nowhere"}, "--masks nowhere: no such folder"),
        ({"masks": ".", "masking": "uniform"}, "only with --masking masks"),
        ({"taps": "block9"}, "block9"),
    ],
)
def test_options_that_do_not_fit(options, told):
    with pytest.raises(ValueError, match=told):
        masked_densenet.task_of(recipe(**options))


def test_the_eight_diseases_are_asked_for_by_default(films):
    task = masked_densenet.task_of(recipe(findings=None))
    table = films.table.assign(Hernia=films.table["Effusion"])
    settled, _, _ = findings.settle(task, table)
    assert settled.labels == ("Cardiomegaly", "Effusion")


def fit(*arguments):
    from training.fit import main

    result = CliRunner().invoke(main, ["masked_densenet", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


FEW = ("--findings", ",".join(LABELS), "--backbone", "small_densenet", "--image-size", 64, "--epochs", 2)


def test_a_run_leaves_masks_places_and_thresholds(chests, tmp_path, monkeypatch):
    monkeypatch.setattr("serving.export.export", lambda run, to: to)
    own = tmp_path / "own"
    own.mkdir()
    from PIL import Image

    ramp = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    Image.fromarray(ramp).save(own / "Effusion.png")
    run = tmp_path / "run"
    given = ("--align", "none", "--masks", own, "--box-share", 0.5, "--sensitivity", 0.8)
    code, text = fit("--data", chests, "--out", run, *FEW, *given)
    assert code == 0, text
    masks = DiseaseMasks.load(run / "masks")
    assert masks.labels == LABELS and masks.counts[0] > 0
    # One's own picture is the mask of its disease: brighter to the right.
    assert (np.diff(masks.maps[1].mean(axis=0)) >= -1e-4).all()
    model, spec = kxray.load(run)
    # The kept network looks by the masks that are beside it.
    attend = next(layer for layer in model.layers if layer.name.startswith("attend_"))
    np.testing.assert_allclose(np.moveaxis(attend.masks.numpy(), -1, 0), masks.maps, atol=1e-4)
    scores = json.loads((run / "metrics.json").read_text())
    assert scores["calibration"]["sensitivity"] == 0.8 and set(spec.thresholds) == set(LABELS)
    assert scores["localisation"]["maps"]["evidence"]["all"]["boxes"] > 0
    report = (run / "report.html").read_text()
    assert "finds 80% of the films" in report and "Where findings are looked for" in report
    assert "Where it sees them" in report
    before = pd.read_csv(run / "predictions.csv")
    (run / "metrics.json").unlink()
    code, text = fit("--resume", "--out", run)
    assert code == 0, text
    pd.testing.assert_frame_equal(before, pd.read_csv(run / "predictions.csv"), atol=1e-5)


@pytest.mark.slow
def test_an_aligner_of_the_training_films_and_a_served_map(tmp_path):
    run = tmp_path / "run"
    code, text = fit("--preset", "smoke", "--out", run)
    assert code == 0, text
    kept = kxray.models.load_aligner(run / "work" / "model" / "aligner")
    model, _ = kxray.load(run)
    for ours, theirs in zip(
        model.get_layer("align").get_weights(), kept.get_layer("align").get_weights(), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    # A run of this recipe aligns the next one.
    code, text = fit("--preset", "smoke", "--align", run, "--masking", "none", "--out", tmp_path / "next")
    assert code == 0, text
