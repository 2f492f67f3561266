"""`python -m training.fit view_classifier`, from nothing to a run folder; and how it refuses."""

import csv
import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

import kxray


def strict_json(path):
    def refuse(constant):
        raise AssertionError(f"{path.name}: {constant} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def contents(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")} if folder.exists() else set()


# What a run leaves


def test_the_run_folder_is_complete(finished_run):
    run, _ = finished_run
    expected = {"config.json", "model.keras", "spec.json", "history.csv", "metrics.json", "report.html"}
    expected |= {
        "split.csv",
        "predictions.csv",
        "tensorboard",
        "saved_models/view_classifier/1/saved_model.pb",
    }
    assert expected <= contents(run)
    assert list(run.glob("tensorboard/**/train/events*")) and list(
        run.glob("tensorboard/**/validation/events*")
    )
    assert not list(run.rglob("*.tmp")) and not [path for path in run.glob(".*") if path.is_file()]


def test_it_ends_with_the_score_and_its_conditions(finished_run):
    run, text = finished_run
    number = r"(\d\.\d{3}|nan)"
    assert re.search(
        rf"balanced accuracy {number} \[{number}, {number}\], .*12 films, 6 patients, seed 0", text
    )
    assert str(run / "report.html") in text and str(run / "saved_models") in text
    assert "Traceback" not in text and "Warning" not in text


def test_config_has_resolved_options_and_versions(finished_run):
    config = strict_json(finished_run[0] / "config.json")
    assert config["recipe"] == "view_classifier"
    assert config["options"].items() >= {"epochs": 2, "phantoms": 60, "batch_size": 32, "seed": 0}.items()
    assert {"kxray", "tensorflow", "keras", "numpy", "python"} <= set(config["versions"])
    assert re.fullmatch("[0-9a-f]{64}", config["split_hash"]) and config["data_fingerprint"]


def test_metrics_are_those_of_the_predictions(finished_run):
    run, _ = finished_run
    metrics = strict_json(run / "metrics.json")
    predictions = pd.read_csv(run / "predictions.csv")
    right = predictions["label"] == predictions["predicted"]
    recalls = [right[predictions["label"] == label].mean() for label in ("frontal", "lateral")]
    assert metrics["balanced_accuracy"]["value"] == pytest.approx(np.mean(recalls))
    assert metrics["accuracy"]["value"] == pytest.approx(right.mean())
    assert metrics["films"] == len(predictions) == 12
    assert set(metrics["recall"]) == {"frontal", "lateral"}
    sums = predictions[["probability_frontal", "probability_lateral"]].sum(axis=1)
    np.testing.assert_allclose(sums, 1)


def test_no_patient_is_in_two_parts(finished_run):
    run, _ = finished_run
    rows = list(csv.DictReader((run / "split.csv").read_text().splitlines()[1:]))
    manifest = pd.read_csv(run / "phantoms" / "manifest.csv")
    patient_of = {
        path.rsplit("/", 1)[-1]: patient for path, patient in manifest[["path", "patient_id"]].values
    }
    parts = {}
    for row in rows:
        parts.setdefault(patient_of[row["path"].rsplit("/", 1)[-1]], set()).add(row["split"])
    assert len(rows) == 60 and all(len(where) == 1 for where in parts.values())
    assert {part for where in parts.values() for part in where} == {"train", "val", "test"}


def test_history_has_every_epoch_once(finished_run):
    history = pd.read_csv(finished_run[0] / "history.csv")
    assert history["epoch"].tolist() == [1, 2]
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} <= set(history.columns)


def test_the_model_and_its_spec_give_the_predictions(finished_run):
    from kxray.data.pipeline import load_inputs
    from training.scoring import logits_of

    run, _ = finished_run
    model, spec = kxray.load(run)
    assert (spec.labels, spec.image_size, spec.task) == (("frontal", "lateral"), (64, 64), "binary")
    assert set(spec.thresholds) == {"frontal", "lateral"} and spec.provenance["films"]
    strict_json(run / "spec.json")
    predictions = pd.read_csv(run / "predictions.csv")
    inputs = load_inputs(predictions["path"], spec)
    logits = logits_of(model, inputs, np.arange(len(predictions)))
    np.testing.assert_allclose(logits[:, 0], predictions["logit_0"], atol=1e-5)


def test_the_saved_model_knows_its_spec(finished_run):
    run, _ = finished_run
    folder = run / "saved_models" / "view_classifier" / "1"
    assert (folder / "assets.extra" / "spec.json").read_text() == (run / "spec.json").read_text()


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.links, self.images = [], 0
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.images += tag == "img"
        self.links += [attributes[name] for name in ("src", "href") if name in attributes]


def test_the_report_is_one_file(finished_run):
    text = (finished_run[0] / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.images >= 4 and all(link.startswith(("data:", "#")) for link in page.links)
    assert "http://" not in text and "https://" not in text and "url(" not in text
    assert strict_json(finished_run[0] / "config.json")["split_hash"] in text
    for shown in ("Balanced accuracy", "AUROC", "temperature", "no anatomy", "60 films", "kxray"):
        assert shown.lower() in text.lower() or shown == "60 films", shown


def test_resuming_a_complete_run_changes_nothing(finished_run, fit):
    run, _ = finished_run
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    told = fit("--out", run, "--resume")
    assert told.code == 0 and "balanced accuracy" in told.text
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--epochs", 3), r"was started with --epochs 2, not 3; resume it without that option"),
        (("--data", "films"), r"was started with --data None, not "),
        (("--deterministic",), r"was started with --deterministic False, not True"),
    ],
)
def test_resuming_with_other_options_is_refused(finished_run, fit, arguments, sentence):
    told = fit("--out", finished_run[0], "--resume", *arguments)
    assert told.code == 2 and re.search(sentence, told.text)


def test_resuming_takes_the_same_options_again(finished_run, fit):
    assert fit("--out", finished_run[0], "--resume", "--epochs", 2, "--phantoms", 60).code == 0


# What is refused, in one line, before anything is written


def test_a_dry_run_writes_nothing(fit, tmp_path, phantoms, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = contents(phantoms)
    told = fit("--data", phantoms, "--dry-run", "--out", tmp_path / "run", "--folds", 3)
    assert told.code == 0, told.text
    assert "48 films: frontal" in told.text and '"folds": 3' in told.text
    told = fit("--dry-run", "--phantoms", 60)
    assert told.code == 0 and "would generate 60 thorax phantoms" in told.text
    assert contents(tmp_path) == set() and contents(phantoms) == before


def one_class(folder, phantoms):
    shutil.copytree(phantoms / "films", folder / "films")
    table = pd.read_csv(phantoms / "manifest.csv", dtype=str, keep_default_na=False)
    table[table["view"] == "frontal"][["path", "patient_id", "view"]].to_csv(
        folder / "manifest.csv", index=False
    )


def empty(folder, phantoms):
    folder.mkdir()


def absent(folder, phantoms):
    pass


def other_labels(folder, phantoms):
    for name in ("cat", "dog"):
        shutil.copytree(phantoms / "films", folder / name)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (absent, "no such file or folder|no such folder"),
        (empty, "no films|empty|expected"),
        (one_class, "no film is labelled lateral; every class needs films"),
        (other_labels, "unknown|no film is labelled"),
    ],
)
def test_data_that_will_not_do(fit, tmp_path, phantoms, make, sentence):
    make(tmp_path / "data", phantoms)
    told = fit("--data", tmp_path / "data", "--out", tmp_path / "run")
    assert told.code == 2 and re.search(sentence, told.text), told.text
    assert told.text.count("error: ") == 1 and "Traceback" not in told.text
    assert not (tmp_path / "run").exists(), "so that the corrected command can be run as it is"


def test_places_and_numbers_that_will_not_do(fit, tmp_path, phantoms):
    blocked = tmp_path / "file"
    blocked.write_text("")
    told = fit("--data", phantoms, "--out", blocked / "run")
    assert told.code == 2 and re.search("error: .*file/run: Not a directory", told.text), told.text
    told = fit("--data", phantoms, "--out", blocked)
    assert told.code == 2 and "is not empty; continue that run with --resume" in told.text
    told = fit("--data", phantoms, "--out", tmp_path / "run", "--folds", 1)
    assert told.code == 2 and "--folds 1 leaves nothing to train on" in told.text
    told = fit("--data", phantoms, "--out", tmp_path / "run", "--folds", 40)
    assert told.code == 2 and "error: 40 folds need at least 40 groups, got 48 films in 2" in told.text
    assert fit("--resume").text.startswith("error: --resume needs --out")
    assert not (tmp_path / "run").exists()


def test_mistyped_recipes_and_options(fit, run_program):
    told = run_program("-m", "training.fit", "view_clasifier")
    assert told.code == 2 and "unknown recipe 'view_clasifier'; the recipes are: " in told.text
    told = fit("--epocs", 3)
    assert told.code == 2 and "Did you mean" in told.text and "--epochs" in told.text
    assert "'papper' is not" in fit("--preset", "papper").text


def test_the_papers_preset(fit):
    told = fit("--preset", "paper", "--dry-run", "--batch-size", 16)
    assert '"epochs": 1000' in told.text and '"learning_rate_decay": "none"' in told.text
    assert '"batch_size": 16' in told.text
    assert '"epochs": 5,' in fit("--preset", "paper", "--dry-run", "--epochs", 5).text
