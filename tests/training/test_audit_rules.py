"""What an audit asks of which films, and how its verdict is reached."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kxray.spec import ModelSpec
from training import chosen_labels
from training.audit import judgement, verdict
from training.auditing import audited_data
from training.auditing.audit_question import Question, read_films
from training.auditing.audited_data import _some_groups
from training.auditing.run_films import FinishedRun


@pytest.fixture(autouse=True)
def four_films(tmp_path):
    for index in range(4):
        Image.new("L", (48, 48), index).save(tmp_path / f"{index}.png")


def run_of(labels, folder):
    return FinishedRun(folder, ModelSpec("tiny", labels, "multiclass", (96, 96)), {}, {}, None)


def test_a_question_beside_a_run_is_the_runs(tmp_path):
    """Scores of different questions would be held against each other."""
    table = pd.DataFrame({"path": [f"{i}.png" for i in range(4)]})
    table["view"] = ["frontal", "lateral", "frontal", "odd"]
    table["label"] = ["healthy", "sick", "sick", "healthy"]
    table["Mass"] = [1, 1, 0, 0]
    source = tmp_path / "manifest.csv"
    table.to_csv(source, index=False)

    def asked(question, labels):
        films = read_films(source, question, run_of(labels, tmp_path / "run"))
        return films.question.labels_of(films.table).tolist()

    with pytest.raises(
        ValueError, match="--label-column view asks for frontal, lateral, odd, but .* healthy f"
    ):
        asked(Question("view"), ("healthy", "sick"))
    with pytest.raises(
        ValueError, match="--finding Mass asks for Mass, no Mass, but .* tells healthy from sick"
    ):
        asked(Question(finding="Mass"), ("healthy", "sick"))
    assert asked(Question("label"), ("healthy", "sick")) == ["healthy", "sick", "sick", "healthy"]
    assert asked(Question("view"), ("frontal", "lateral")) == ["frontal", "lateral", "frontal", ""]
    # The absence of a finding goes by the name that the run has for it.
    assert asked(Question(finding="Mass"), ("Mass", "No Finding")) == ["Mass", "Mass", *["No Finding"] * 2]
    assert asked(Question(finding="Mass"), ("Mass", "no Mass")) == ["Mass", "Mass", "no Mass", "no Mass"]


def test_what_nobody_looked_for_is_not_absent(tmp_path):
    table = pd.DataFrame({"path": list("abcdef"), "Mass": [1, 0, 0, np.nan, 0, np.nan]})
    table["Edema"] = [0, 1, 0, 0, np.nan, 1]
    kept, notes = chosen_labels.choose(table, ["Mass", "No Finding"], "label")
    assert dict(zip(kept["path"], kept["label"], strict=True)) == {
        "a": "Mass", "c": "No Finding", "e": "No Finding"
    }  # fmt: skip
    assert "3 films with none of the labels" in notes[1]


def test_some_films_of_very_many_keep_every_class(monkeypatch):
    monkeypatch.setattr(audited_data, "MOST_FILMS", 60)
    # One group is larger than all that may be seen, and the rare class has two groups.
    groups = np.repeat(["big", *(f"g{i}" for i in range(30)), "r0", "r1"], [100, *[2] * 30, 3, 4])
    labels = np.repeat(["a", *["a", "b"] * 15, "rare", "rare"], [100, *[2] * 30, 3, 4])
    folds = np.repeat([0, *[0, 0, 1, 1, 2, 2] * 5, 1, 2], [100, *[2] * 30, 3, 4])
    for seed in range(20):
        notes = []
        rows = _some_groups(groups, labels, folds, seed, notes)
        assert 55 <= len(rows) <= 60 and "big" not in groups[rows]
        assert all((groups[rows] == name).sum() == (groups == name).sum() for name in set(groups[rows]))
        assert all(len(set(folds[rows][labels[rows] == name])) >= 2 for name in ("a", "b", "rare"))
        assert f"saw {len(rows)} of the 167 films" in notes[0]
    # What a class needs is taken even where it is more than that.
    monkeypatch.setattr(audited_data, "MOST_FILMS", 5)
    rows = _some_groups(groups, labels, folds, 0, [])
    assert set(groups[rows]) >= {"r0", "r1"} and len(rows) == 4 * 2 + 7


def test_a_run_names_its_classes(tmp_path):
    def asked(labels):
        films = read_films(tmp_path / "manifest.csv", None, run_of(labels, tmp_path))
        return films.table, films.question, films.notes

    table = pd.DataFrame({"path": [f"{i}.png" for i in range(4)]})
    table["view"] = ["frontal", "lateral", "frontal", "odd"]
    table["Mass"], table["Nodule"] = [1, 1, 0, 0], [0, 1, 0, 1]
    table.to_csv(tmp_path / "manifest.csv", index=False)
    films, question, _ = asked(("frontal", "lateral"))
    assert question.labels_of(films).tolist() == ["frontal", "lateral", "frontal", ""]
    films, question, notes = asked(("Mass", "No Finding"))
    assert question.labels_of(films).tolist() == ["Mass", "Mass", "No Finding"] and notes
    with pytest.raises(ValueError, match="no films labelled thick or thin, which .* tells apart"):
        asked(("thick", "thin"))


def scored(value, spread=0.03):
    score = {"value": value, "low": value - spread, "high": value + spread}
    return {"accuracy": score, "balanced_accuracy": score, "auroc": score, "recall": {"a": {}, "b": {}}}


def test_the_rule_of_the_verdict():
    likely, text = verdict({"histogram": scored(0.95), "all": scored(0.97)})
    assert likely and text.startswith(
        "shortcut likely: a histogram alone reaches 0.95 [0.92, 0.98] balanced accuracy"
    )
    # High, but not surely so; and sure, but not high.
    for almost in (scored(0.92), scored(0.85, 0.01), scored(0.69)):
        level, text = judgement({"histogram": almost})
        assert level == "possible" and not verdict({"histogram": almost})[0]
        assert text.startswith("shortcut possible, not shown to be likely: a histogram alone reaches ")
        assert "likely from 0.90 at the lower end" in text and "--run RUN" in text
    # 0.3 of the way from chance to perfect is 0.65.
    level, text = judgement({"histogram": scored(0.67)})
    assert level == "not seen" and text.startswith("shortcut not seen: no more than this, a histogram alone")
    assert "possible from 0.65 at the lower end" in text
    likely, text = verdict({"histogram": scored(0.6)}, told=["the file's bit depth tells the class"])
    assert likely and text.startswith("shortcut likely: the file's bit depth tells the class")
    # With a run it is the share of what the run is above chance that counts.
    likely, text = verdict({"histogram": scored(0.95)}, {"scores": scored(0.96)})
    assert likely and "a histogram alone reaches 0.95 [0.92, 0.98] of your 0.96" in text
    level, text = judgement({"histogram": scored(0.83)}, {"scores": scored(0.97)})
    assert level == "possible" and "of your 0.97 [0.94, 1.00]" in text and "likely from 0.92, 0.9 of" in text
    assert "--run" not in text
    assert judgement({"histogram": scored(0.6)}, {"scores": scored(0.97)})[0] == "not seen"
    assert verdict({"histogram": scored(0.79)}, {"scores": scored(0.8)})[0]
    # Near, and yet certainly below it.
    near = {"histogram": scored(0.95, 0.005)}
    assert judgement(near, {"scores": scored(0.99, 0.002)})[0] == "possible"
    # The best of six guesses is near a weak run by luck.
    weak = {"histogram": scored(0.61, 0.09), "border": scored(0.57, 0.09)}
    assert judgement(weak, {"scores": scored(0.62, 0.09)})[0] == "possible"
    # A run at chance has nothing to explain.
    likely, text = verdict({"histogram": scored(0.52)}, {"scores": scored(0.51)})
    assert not likely and text.startswith("your run is not shown to be above chance (0.51 [0.48, 0.54]); of ")
    # Nor has one whose labels the data lack.
    undefined = {"scores": {"balanced_accuracy": {"value": None, "low": None, "high": None}}}
    likely, text = verdict({"histogram": scored(0.52)}, undefined)
    assert not likely and text.startswith(
        "your run is not shown to be above chance (undefined); of the data: "
    )
    assert judgement({"histogram": scored(0.95)}, undefined)[0] == "likely"
