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
    assert Masking(recipe(box_loss=0.0)).boxes(task, films, rows, 3) is None


def test_a_training_without_boxes_has_targets_as_wide_as_one_with_them(task, films):
    unboxed = np.setdiff1d(films.table.index, boxed_rows(films))
    none = Masking(recipe()).boxes(task, films, unboxed, 0)
    assert none.shape == (len(films.inputs), 2, 4) and np.isnan(none).all()
    assert np.isnan(Masking(recipe(box_share=0.0)).boxes(task, films, boxed_rows(films), 0)).all()
    # Where no film has a box, no training has the term.
    bare = RunFilms(films.table.drop(columns="boxes"), films.inputs, films.labels, None, None, ())
    assert Masking(recipe()).boxes(task, bare, unboxed, 0) is None


def test_boxes_of_some_films_are_found_once(task, films, monkeypatch):
    masking, rows = Masking(recipe()), boxed_rows(films)
    masking.boxed(task, films)
    monkeypatch.setattr("kxray.io.headers.film_size", None)
    found = masking.boxed(task, films, rows[3:5])
    assert sorted(set(found["position"])) == rows[3:5].tolist() and found.index[0] == 0


def test_what_would_end_a_training_is_found_before(task, films, tmp_path):
    few = np.arange(23)
    Masking(recipe()).check(task, films, few)
    with pytest.raises(
        ValueError, match="24 frontal training films or more, there are 23; give --align none"
    ):
        Masking(recipe(align="auto")).check(task, films, few)
    Masking(recipe(align="auto")).check(task, films, np.arange(24))
    (tmp_path / "model.keras").write_bytes(b"no model")
    with pytest.raises(ValueError, match="not a readable"):
        Masking(recipe(align=str(tmp_path))).check(task, films, few)
    with pytest.raises(ValueError, match="no picture of a disease"):
        Masking(recipe(masks=str(tmp_path))).check(task, films, few)
    told = Masking(recipe(align=str(tmp_path))).notes()
    assert len(told) == 1 and "may have seen test films" in told[0] and not Masking(recipe()).notes()


def test_a_resumed_training_goes_on_with_the_masks_it_began_with(task, films, tmp_path):
    rows, model = boxed_rows(films), task.build(task.spec)
    Masking(recipe()).prepare(model, task, films, rows[:4], 0, tmp_path, None)
    first = DiseaseMasks.load(tmp_path / "masks").maps

    def looked_by(model):
        attend = next(layer for layer in model.layers if layer.name.startswith("attend_"))
        return attend.masks.numpy()

    before = looked_by(model)
    again = task.build(task.spec)
    Masking(recipe()).prepare(again, task, films, rows, 0, tmp_path, None)
    np.testing.assert_array_equal(looked_by(again), before)
    np.testing.assert_array_equal(DiseaseMasks.load(tmp_path / "masks").maps, first)


def test_a_run_keeps_the_template_that_its_aligner_was_trained_to(tmp_path):
    from kxray.data.registration import Template

    flat = np.full((32, 32), 0.5, np.float32)
    template = Template(flat, flat, np.zeros((2, 4), "float32"), np.ones(2, "float32"), np.ones(2, bool), 0.1)
    training, run = tmp_path / "training", tmp_path / "run"
    (training / "aligner").mkdir(parents=True)
    run.mkdir()
    template.save(training / "aligner" / "template.npz")
    # A run without masks is one to align by as well.
    assert Masking(recipe(align="auto", masking="none")).keep_masks(training, run) is None
    assert Template.load(run / "template.npz").threshold == 0.1


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
    """An aligner that says turned by 15 degrees, half size and shifted: all of that is undone."""
    row = boxed_rows(films)[0]
    box = films.table.loc[row, "boxes"][0]
    turn = np.radians(15)
    pose = np.array([turn, np.log(0.5), 0.1, -0.05])

    class Model:
        layers = ()

    masking = Masking(recipe())
    masking._poses = lambda model, films, positions: [pose] * len(positions)
    placed = dict(masking._aligned(Model, films, masking.used(task, films, [row], 0), (64, 64)))
    corners = placed[box["finding"]]
    x, y, width, height = (box[name] / 64 for name in ("x", "y", "width", "height"))
    on_film = np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]]) - 0.5
    for (right, down), corner in zip(on_film - (0.1, -0.05), corners, strict=True):
        # The chest leans to the left as seen, y down: upright again, what is right of it goes down.
        upright = [
            np.cos(turn) * right - np.sin(turn) * down,
            np.sin(turn) * right + np.cos(turn) * down,
        ]
        np.testing.assert_allclose(corner, np.array(upright) / 0.5, atol=1e-5)


def test_an_aligner_learns_laterals_as_what_to_refuse(task, films, tmp_path, monkeypatch):
    given = {}

    def fit_aligner(pixels, folder, **options):
        given.update(options, pixels=pixels)

    monkeypatch.setattr("training.aligning.fit_aligner", fit_aligner)
    rows = np.arange(4, 34)
    masking = Masking(recipe(align="auto"))
    masking.aligner(task, films, rows, 0, tmp_path / "all", None)
    everyone = np.concatenate(list(films.inputs.batches(rows, 64)))
    np.testing.assert_array_equal(given["pixels"], everyone)
    assert given["laterals"] is None
    table = films.table.assign(view=["lateral" if k % 5 == 0 else "frontal" for k in range(len(films.table))])
    mixed = RunFilms(table, films.inputs, films.labels, None, None, ())
    masking.aligner(task, mixed, rows, 0, tmp_path / "mixed", None)
    np.testing.assert_array_equal(given["pixels"], everyone[rows % 5 > 0])
    np.testing.assert_array_equal(given["laterals"], everyone[rows % 5 == 0, ..., 0])
    assert len(given["groups"]) == len(given["pixels"])


def test_an_aligner_of_any_size_fits_the_network(tmp_path):
    own = {"size": 32, "width": 3, "steps": 1}
    aligner = kxray.models.build("aligner", image_size=(64, 64), **own)
    aligner.save(tmp_path / "model.keras")
    task = masked_densenet.task_of(recipe(align=str(tmp_path)))
    spec = kxray.ModelSpec("masked_densenet", LABELS, "multilabel", (64, 64))
    model = task.build(spec)
    kxray.models.copy_aligner(aligner, model)
    assert {name: getattr(model.get_layer("align"), name) for name in own} == own


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
    from training.job import ClassifierJob

    monkeypatch.setattr("serving.export.export", lambda run, to: to)
    made = []
    finish = ClassifierJob.finish
    monkeypatch.setattr(
        ClassifierJob, "finish", lambda job, table, *others: made.append(table) or finish(job, table, *others)
    )
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
    validation = made[0][made[0]["part"] == "val"]
    for name in LABELS:
        found = validation[f"probability_{name}"][validation[f"truth_{name}"] == 1]
        least = found[found >= spec.threshold(name)].min()
        # A threshold that leaves out one more of them finds fewer than four of five.
        assert (found >= spec.threshold(name)).mean() >= 0.8 > (found > least).mean()
    assert scores["localisation"]["maps"]["evidence"]["all"]["boxes"] > 0
    report = (run / "report.html").read_text()
    assert "finds 80% of the films" in report and "Where findings are looked for" in report
    assert "Where it sees them" in report and "or your pictures" in report
    assert "the validation loss does not" in report and "trained on these films; the scores" not in report
    before = pd.read_csv(run / "predictions.csv")
    (run / "metrics.json").unlink()
    code, text = fit("--resume", "--out", run)
    assert code == 0, text
    pd.testing.assert_frame_equal(before, pd.read_csv(run / "predictions.csv"), atol=1e-5)


def test_too_few_films_to_align_by_end_a_run_before_it_trains(chests, tmp_path, monkeypatch):
    monkeypatch.setattr("training.job.Fitting", None)
    code, text = fit("--data", chests, "--out", tmp_path / "run", *FEW, "--folds", 2)
    assert code == 2 and "24 frontal training films or more, there are 1" in text and "--align none" in text
    assert not (tmp_path / "run").exists()


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
    assert (run / "template.npz").is_file()
    code, text = fit("--preset", "smoke", "--align", run, "--masking", "none", "--out", tmp_path / "next")
    assert code == 0, text
    notes = json.loads((tmp_path / "next" / "config.json").read_text())["notes"]
    assert any("which may have seen test films" in note for note in notes)
