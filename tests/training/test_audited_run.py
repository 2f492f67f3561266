"""A run held against its shortcuts: toy models that look at one corner, or at the centre, alone."""

import functools
import json
import math
import shutil

import keras
import numpy as np
import pandas as pd
import pytest
from PIL import Image

import kxray
from training import runs, scoring
from training.auditing import run_films
from training.auditing.audited_run import audit_run, blanked, border_mask
from training.auditing.audited_slices import age_band
from training.auditing.run_films import match_films

SIDE = 32
LABELS = ("healthy", "ill")
CORNER, CENTRE = (0, 0), (12, 12)
ONE = {"value": 0.8, "low": 0.7, "high": 0.9}
BASELINES = {"centre_blanked": {"accuracy": ONE, "balanced_accuracy": ONE, "auroc": ONE}}


def looking_at(place, units=1):
    """A model that answers by the mean of the 4 x 4 pixels at `place`: ill where it is bright."""
    top, left = place
    sides = ((top, SIDE - 4 - top), (left, SIDE - 4 - left))
    film = keras.Input((SIDE, SIDE, 1))
    seen = keras.layers.ZeroPadding2D(sides)(keras.layers.Cropping2D(sides)(film))
    seen = keras.layers.Conv2D(1, 1, use_bias=False, kernel_initializer="ones")(seen)
    pooled = keras.layers.GlobalAveragePooling2D()(seen)
    last = keras.layers.Dense(units, activation="sigmoid" if units == 1 else "softmax")
    model = keras.Model(film, last(pooled))
    slope = 10 * SIDE * SIDE / 16
    share = 1 / units
    last.set_weights(
        [share * np.array([[-slope, slope]])[:, -units:], share * np.array([5.0, -5.0])[-units:]]
    )
    return model


def write_films(folder, places, count=24, bright=220, dark=30):
    """Grey films whose `places` are bright in the ill ones; two films a patient."""
    rows = []
    for index in range(count):
        pixels = np.full((SIDE, SIDE), 100, np.uint8)
        pixels[-1, -1] = index
        for top, left in places:
            pixels[top : top + 4, left : left + 4] = bright if index % 2 else dark
        path = folder / LABELS[index % 2] / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        rows.append((str(path), f"patient {index // 4}", LABELS[index % 2], "FM"[index // 2 % 2]))
    return pd.DataFrame(rows, columns=["path", "patient_id", "label", "sex"])


def finished(folder, model, table, folds=0):
    """A run folder as training.fit leaves it, whose model was tested on all films of `table`."""
    folder.mkdir()
    units = model.outputs[0].shape[-1]
    spec = kxray.ModelSpec("toy", LABELS, "binary" if units == 1 else "multiclass", (SIDE, SIDE))
    model.save(folder / "model.keras")
    (folder / "spec.json").write_text(spec.to_json())
    runs.write_json(folder / "config.json", {"recipe": "toy", "options": {"folds": folds}})
    from kxray.data.pipeline import load_inputs

    inputs = load_inputs(table["path"], spec)
    rows = np.arange(len(table))
    labels = np.array([LABELS.index(label) for label in table["label"]])
    facts = {"fold": rows % max(1, folds), "group": table["patient_id"].to_numpy()}
    logits = scoring.logits_of(model, inputs, rows)
    predictions = scoring.prediction_table(table, rows, labels, logits, 1.0, spec, **facts)
    runs.write_table(folder / "predictions.csv", predictions)
    scores = scoring.scores_of(predictions, spec, 0, "patient_id")
    runs.write_json(folder / "metrics.json", {**scores, "baseline": scores})
    return folder


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Films that show their class in a corner and in the centre."""
    return write_films(tmp_path_factory.mktemp("both"), (CORNER, CENTRE))


def variant(result, name):
    return next(one for one in result["blanked"]["variants"] if one["name"] == name)


@pytest.mark.parametrize("units", [1, 2])
def test_a_model_that_looks_at_a_corner_only(both, tmp_path, units):
    run = finished(tmp_path / "run", looking_at(CORNER, units), both)
    result = audit_run(run, both, BASELINES, folder=tmp_path)
    assert result["scores"]["auroc"]["value"] == 1.0 and result["films"] == 24
    assert result["conditions"] == "patient-grouped test split, 24 films, 6 patients, seed 0"
    without_centre, without_border = variant(result, "centre_blanked"), variant(result, "only_centre")
    assert without_centre["accuracy"]["value"] == 1.0 and without_centre["changed"] == 0
    # The corner takes the grey of the centre, 100: every film is called healthy.
    assert without_border["auroc"]["value"] == 0.5 and without_border["changed"] == 12
    assert without_border["decided"] == {"healthy": 24, "ill": 0}
    assert "keeps an AUROC of 1.00 of 1.00: the border alone is enough" in result["blanked"]["reading"]
    assert not result["blanked"]["seen"] and "not trained on" in result["blanked"]["on"]
    # All of the map lies in the border, whose share of the area is 1 - 0.75^2.
    assert result["explained"]["overall"]["value"] == pytest.approx(1 / (1 - 0.75**2), rel=1e-5)
    assert result["explained"]["by_label"]["ill"]["films"] == 12
    assert result["explained"]["picture"].startswith("data:image/png;base64,")
    assert "it draws the model" in result["explained"]["reading"]
    assert [row["name"] for row in result["baselines"]] == ["histogram, border, sharpness", "centre blanked"]
    kept = pd.read_csv(tmp_path / "run_films.csv")
    assert len(kept) == 24 and (kept["whole"] == kept["centre_blanked"]).all()
    assert (kept["only_centre"] == "healthy").all() and (kept["border_share"] > 2.2).all()


def test_a_model_that_looks_at_the_centre_only(both, tmp_path):
    run = finished(tmp_path / "run", looking_at(CENTRE), both)
    result = audit_run(run, both, BASELINES, folder=tmp_path)
    without_centre = variant(result, "centre_blanked")
    assert without_centre["auroc"]["value"] == 0.5 and without_centre["changed"] == 12
    assert without_centre["balanced_accuracy"] == {"value": 0.5, "low": 0.5, "high": 0.5}
    assert variant(result, "only_centre")["changed"] == 0
    assert "falls to an AUROC of 0.50 of 1.00, chance: it needs the centre" in result["blanked"]["reading"]
    assert result["explained"]["overall"]["value"] == 0 and "passed over" in result["explained"]["reading"]


def test_what_is_blanked_leaves_nothing_behind():
    mask = border_mask((16, 24))
    assert mask.sum() == 16 * 24 - 12 * 18 and not mask[2:-2, 3:-3].any()
    films = np.random.default_rng(0).random((3, 16, 24, 1)).astype(np.float32)
    others = np.where(mask[..., None], films, 0.5).astype(np.float32)
    np.testing.assert_array_equal(blanked(films, ~mask), blanked(others, ~mask))
    np.testing.assert_array_equal(blanked(films, ~mask)[:, mask], films[:, mask])
    assert border_mask((1, 2)).all() or border_mask((1, 2)).sum() == 2


def test_slices_find_the_place_where_the_model_fails(tmp_path):
    """Films of source B show their class in the centre only: a model of the corner is lost there."""
    here, there = (
        write_films(tmp_path / name, places, 80)
        for name, places in (("A", (CORNER, CENTRE)), ("B", (CENTRE,)))
    )
    there["patient_id"] = "B " + there["patient_id"]
    table = pd.concat([here.assign(source="A"), there.assign(source="B")], ignore_index=True)
    table["age"] = np.where(np.arange(160) // 2 % 2, "034Y", "71")
    table["number"] = np.arange(160)
    table["angle"] = np.tile(np.arange(80) / 100, 2)
    table["accession"] = [f"x{index // 2}" for index in range(160)]
    table["boxes"] = [[] for _ in range(160)]
    result = audit_run(finished(tmp_path / "run", looking_at(CORNER), table), table, {}, folder=tmp_path)
    rows = {(row["slice"], row["value"]): row for row in result["slices"]["rows"]}
    assert set(rows) == {("sex", "F"), ("sex", "M"), ("source", "A"), ("source", "B")} | {
        ("age", "20-39"), ("age", "60+"),
        ("angle", "up to 0.26"), ("angle", "0.26 to 0.53"), ("angle", "above 0.53"),
    }  # fmt: skip
    assert rows["source", "B"]["accuracy"]["value"] == 0.5
    assert rows["source", "B"]["differs"] == ["accuracy", "balanced_accuracy"]
    assert rows["source", "B"]["p_holm"] < 0.05 < rows["sex", "F"]["p_holm"]
    assert rows["source", "B"]["auroc"]["low"] is None, "an AUROC of one probability cannot be resampled"
    assert "source A, source B differ from the other films" in result["slices"]["reading"]
    assert result["slices"]["too_many_values"] == ["number", "accession"]
    json.dumps(result, allow_nan=False)


def test_few_films_are_not_sliced_value_by_value(tmp_path):
    table = write_films(tmp_path / "films", (CORNER,), 12)
    table["rotation"] = np.linspace(-2.5, 3.5, 12)
    table.loc[0, "rotation"] = np.nan
    table["follow_up"] = [0, 1, 2, 3, 4, 5] * 2
    table["bits"] = [8, 16] * 6
    table["station"] = list("abcdefghijkl")
    result = audit_run(finished(tmp_path / "run", looking_at(CORNER), table), table, {}, folder=tmp_path)
    values = {}
    for row in result["slices"]["rows"]:
        values.setdefault(row["slice"], set()).add(row["value"])
    assert values["rotation"] == {"up to -0.136", "-0.136 to 1.68", "above 1.68", "unknown"}
    assert len(values["follow_up"]) == 3 and values["bits"] == {"8", "16"}
    assert result["slices"]["too_many_values"] == ["station"]


def test_ages():
    assert [age_band(age) for age in (7, "007Y", 18.0, "30M", "60", 59.9, "119")] == [
        "0-19", "0-19", "0-19", "0-19", "60+", "40-59", "60+"
    ]  # fmt: skip
    assert [age_band(age) for age in ("", None, math.nan, "old", -1, 999)] == [""] * 6


# Films of the run among those of the data


def test_moved_and_renamed_films_are_found(both, tmp_path):
    moved = tmp_path / "moved"
    table = both.copy()
    for index, path in enumerate(both["path"]):
        new = moved / LABELS[index % 2] / f"{index:03d}.png"
        new.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, new)
        table.loc[index, "path"] = str(new)
    gone = both.assign(path=[path.replace("both", "gone") for path in both["path"]])
    truth = both["label"].to_numpy()
    shuffled = table.iloc[::-1].reset_index(drop=True)
    rows, how = match_films(both, shuffled, truth[::-1])
    assert rows.tolist() == list(range(23, -1, -1)) and how == {"content": 24}
    rows, how = match_films(gone, shuffled, truth[::-1])
    assert rows.tolist() == list(range(23, -1, -1)) and how == {"name": 24}
    rows, how = match_films(gone, both, truth)
    assert how == {"name": 24}
    rows, how = match_films(gone, table[:10], truth[:10])
    assert rows.tolist() == [*range(10), *[-1] * 14]
    rows, _ = match_films(gone, table, np.array([""] * 24))
    assert (rows < 0).all(), "a name without its label is not enough"


def test_equal_names_are_told_apart_by_their_folders():
    def films(root):
        return pd.DataFrame(
            {"path": [f"{root}/p{patient}/{film}.png" for patient in (1, 2) for film in (0, 1)], "label": "a"}
        )

    rows, how = match_films(films("/old/place"), films("/new/place")[::-1], np.array(["a"] * 4))
    assert rows.tolist() == [3, 2, 1, 0] and how == {"name": 4}
    doubled = pd.DataFrame({"path": ["/x/0.png", "/y/0.png"], "label": "a"})
    rows, how = match_films(films("/old/place"), doubled, np.array(["a"] * 2))
    assert (rows < 0).all() and how == {}


def test_a_moved_run_says_so(both, tmp_path):
    run = finished(tmp_path / "run", looking_at(CORNER), both)
    predictions = pd.read_csv(run / "predictions.csv")
    predictions["path"] = [path.replace("both", "gone") for path in predictions["path"]]
    predictions.to_csv(run / "predictions.csv", index=False)
    result = audit_run(run, both[:20], {}, folder=tmp_path)
    assert result["films"] == 20 and result["conditions"] == "20 of the run's 24 tested films"
    assert result["notes"] == [
        "4 of the run's 24 tested films are not in the data",
        "the films have moved since the run: 20 were found by file name and label",
    ]
    assert result["baselines"] == [], "those of the run are of other films"


@pytest.mark.parametrize("folds", [0, 2])
def test_other_films_of_the_same_names_are_refused(both, tmp_path, folds):
    run = finished(tmp_path / "run", looking_at(CORNER), both, folds)
    others = write_films(tmp_path / "others", (CORNER,), bright=20, dark=200)
    predictions = pd.read_csv(run / "predictions.csv")
    predictions["path"] = [path.replace("both", "gone") for path in predictions["path"]]
    predictions.to_csv(run / "predictions.csv", index=False)
    with pytest.raises(ValueError, match="have the names of its tested films, but its model .*other films"):
        audit_run(run, others, {}, folder=tmp_path)


def test_a_run_of_other_data_and_no_run(both, tmp_path):
    run = finished(tmp_path / "run", looking_at(CORNER), both)
    others = both.assign(path=[path.replace(".png", "-other.png") for path in both["path"]])
    with pytest.raises(ValueError, match="none of its 24 tested films is among the 24 films of the data"):
        audit_run(run, others, {}, folder=tmp_path)
    (run / "metrics.json").unlink()
    with pytest.raises(ValueError, match="no metrics.json in it; expected a finished classifier run"):
        audit_run(run, both, {}, folder=tmp_path)
    with pytest.raises(ValueError, match="no config.json in it"):
        audit_run(tmp_path / "nothing", both, {}, folder=tmp_path)


# Which films the kept model is asked about


def test_with_folds_the_kept_model_is_asked_about_new_patients_or_it_is_said(both, tmp_path):
    run = finished(tmp_path / "run", looking_at(CORNER), both, folds=2)
    result = audit_run(run, both, {}, folder=tmp_path)
    assert result["blanked"]["seen"] and "the kept model has seen these films" in result["blanked"]["on"]
    assert "It was trained on these films" in result["blanked"]["reading"]
    new = write_films(tmp_path / "new", (CENTRE,), 28)
    # Four films show a patient of the run: only the others are new.
    new["patient_id"] = [name if name == "patient 0" else f"new {name}" for name in new["patient_id"]]
    result = audit_run(run, pd.concat([both, new], ignore_index=True), {}, folder=tmp_path)
    assert not result["blanked"]["seen"] and result["blanked"]["films"] == 24
    assert result["blanked"]["on"] == "the 24 films of the data that are not in the run, of other patients"
    assert "not above chance on these films" in result["blanked"]["reading"]
    assert result["films"] == 24 and result["scores"]["auroc"]["value"] == 1.0


@pytest.fixture(scope="module")
def folded(both, tmp_path_factory):
    """A run of folds, whose kept model was trained on all of `both`."""
    return finished(tmp_path_factory.mktemp("folded") / "run", looking_at(CORNER), both, folds=2)


def test_films_of_the_run_are_not_new_where_it_lost_some(both, folded, tmp_path, monkeypatch):
    """Moved, and half of the labels corrected: 12 films are those of the run, which the others might be."""
    moved = both.copy()
    for index, path in enumerate(both["path"]):
        new = tmp_path / "moved" / path.split("/")[-1]
        new.parent.mkdir(exist_ok=True)
        shutil.copy(path, new)
        moved.loc[index, "path"] = str(new)
    moved["patient_id"] = ""
    moved.loc[:11, "label"] = both["label"].to_numpy()[1:13]
    monkeypatch.setattr(run_films, "FEWEST_NEW_FILMS", 4)
    run = shutil.copytree(folded, tmp_path / "run")
    predictions = pd.read_csv(run / "predictions.csv")
    predictions["path"] = [path.replace("both", "gone") for path in predictions["path"]]
    predictions.to_csv(run / "predictions.csv", index=False)
    result = audit_run(run, moved, {}, folder=tmp_path)
    assert result["films"] == 12 and result["blanked"]["seen"]
    assert result["blanked"]["on"].startswith("all 12 films of the run's folds")


@pytest.mark.parametrize("how", ["bytes", "picture"])
def test_copies_of_the_runs_films_are_not_new(both, folded, tmp_path, how):
    table = both.assign(patient_id="")
    copies = table.copy()
    for index, path in enumerate(table["path"]):
        new = tmp_path / "copies" / f"{index}-copy.{'png' if how == 'bytes' else 'tif'}"
        new.parent.mkdir(exist_ok=True)
        shutil.copy(path, new) if how == "bytes" else Image.open(path).save(new)
        copies.loc[index, "path"] = str(new)
    together = pd.concat([table, copies], ignore_index=True)
    # One picture for each class would join all of a class; here each film has its own.
    thumbnails = np.random.default_rng(0).integers(0, 256, (24, 32, 32)).astype(np.uint8)
    thumbnails = None if how == "bytes" else np.concatenate([thumbnails, thumbnails])
    result = audit_run(folded, together, {}, folder=tmp_path, thumbnails=thumbnails)
    assert result["blanked"]["seen"] and result["blanked"]["films"] == 24
    if how == "picture":
        result = audit_run(folded, together, {}, folder=tmp_path)
        assert not result["blanked"]["seen"], "without thumbnails another file is another film"


def test_corrections_that_went_away_leave_nothing_new(both, folded, tmp_path):
    run = shutil.copytree(folded, tmp_path / "run")
    new = write_films(tmp_path / "new", (CENTRE,), 24)
    new["patient_id"] = "new " + new["patient_id"]
    together = pd.concat([both, new], ignore_index=True)
    write = functools.partial(runs.write_json, run / "config.json")
    corrections = tmp_path / "corrections.csv"
    write({"recipe": "toy", "options": {"folds": 2, "corrections": str(corrections)}})
    other = write_films(tmp_path / "other", (CORNER,), 2)
    other.to_csv(corrections, index=False)
    assert not audit_run(run, together, {}, folder=tmp_path)["blanked"]["seen"]
    (tmp_path / "other" / LABELS[0] / "000.png").unlink()
    assert audit_run(run, together, {}, folder=tmp_path)["blanked"]["seen"]


def test_unreadable_films_are_left_out_and_named(both, tmp_path):
    films = write_films(tmp_path / "films", (CORNER,))
    run = finished(tmp_path / "run", looking_at(CORNER), films)
    with open(films["path"][5], "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n broken")
    result = audit_run(run, films, {}, folder=tmp_path)
    assert result["blanked"]["films"] == 23 and result["films"] == 24
    assert any(note.startswith("left out: ") and "005.png" in note for note in result["notes"])


# What is shown


@pytest.fixture
def page():
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training", "report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template("_audited_run.html.j2").render


def test_the_page_shows_every_part(both, tmp_path, page):
    run = finished(tmp_path / "run", looking_at(CORNER), both)
    result = audit_run(run, both, BASELINES, folder=tmp_path)
    text = page(run=json.loads(json.dumps(result)))
    for shown in (
        "the border alone is enough", "centre blanked", "0.80", "12.5% of each side (44% of the area)",
        "12 of 24", "2.29", "data:image/png", "sex", "grad_cam",
    ):  # fmt: skip
        assert shown in text, shown
    text = text.replace(result["explained"]["picture"], "")
    assert "nan" not in text.lower() and "None" not in text
    text = page(run={**result, "explained": None, "slices": {**result["slices"], "rows": []}})
    assert "The model cannot be explained" in text


def test_a_run_of_the_view_classifier(finished_run, tmp_path):
    run, told = finished_run
    (line,) = [line for line in told.splitlines() if line.startswith("no anatomy: ")]
    assert "grey histogram alone " in line and "with borders and sharpness " in line and "this model " in line
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["histogram_baseline"]["films"] == metrics["baseline"]["films"] == 12
    assert "grey histogram alone" in (run / "report.html").read_text()
    table = kxray.data.read_source(run / "phantoms")
    result = audit_run(run, table, BASELINES, folder=tmp_path)
    assert result["scores"]["balanced_accuracy"]["value"] == metrics["balanced_accuracy"]["value"]
    assert variant(result, "whole")["auroc"]["value"] == metrics["auroc"]["value"]
    assert [row["name"] for row in result["baselines"][:2]] == ["histogram", "histogram, border, sharpness"]
    assert result["explained"]["method"] == "grad_cam" and result["notes"] == []
