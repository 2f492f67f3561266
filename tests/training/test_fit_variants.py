"""The view classifier's job with its less common options, each on a few small films."""

import json
import re
import shutil
import textwrap

import numpy as np
import pandas as pd
import pytest

FEW = ("--epochs", 1, "--batch-size", 16)


def metrics_of(run):
    return json.loads((run / "metrics.json").read_text())


def config_of(run):
    return json.loads((run / "config.json").read_text())


@pytest.fixture
def data(phantoms, tmp_path):
    """A copy of the phantoms that a test may spoil."""
    return shutil.copytree(phantoms, tmp_path / "data")


@pytest.fixture
def fit_only(fit, monkeypatch):
    """`fit` without its report and its SavedModel, which other tests look at."""
    monkeypatch.setattr("training.report.classifier.write_report", lambda *arguments, **more: None)
    monkeypatch.setattr("serving.export.export", lambda run, to: to)
    return fit


@pytest.mark.slow
def test_folds_test_every_film_once(fit, phantoms, tmp_path):
    told = fit("--data", phantoms, "--out", tmp_path / "run", "--folds", 2, *FEW)
    assert told.code == 0, told.text
    assert "2 patient-grouped folds, 48 films, 24 patients, seed 0" in told.text
    predictions = pd.read_csv(tmp_path / "run" / "predictions.csv")
    assert len(predictions) == 48 and predictions["path"].is_unique
    assert (predictions.groupby("patient_id")["fold"].nunique() == 1).all()
    metrics = metrics_of(tmp_path / "run")
    assert [fold["fold"] for fold in metrics["folds"]] == [0, 1]
    assert sum(fold["films"] for fold in metrics["folds"]) == 48
    assert metrics["calibration"]["fitted_on"] == "out-of-fold test films"
    names = {path.name for path in (tmp_path / "run" / "tensorboard").iterdir()}
    assert names == {"fold-1-of-2", "fold-2-of-2", "final-model"}


@pytest.mark.slow
def test_mixed_precision_trains_and_exports(fit, phantoms, tmp_path):
    out = tmp_path / "run"
    told = fit("--data", phantoms, "--out", out, "--mixed-precision", "--export", tmp_path / "served", *FEW)
    assert told.code == 0, told.text
    assert config_of(out)["dtype_policy"] in ("mixed_bfloat16", "mixed_float16")
    assert (tmp_path / "served" / "1" / "saved_model.pb").is_file()
    assert np.isfinite(metrics_of(out)["auroc"]["value"])


@pytest.mark.slow
def test_broken_films_stop_it_or_are_left_out_and_listed(fit_only, data, tmp_path):
    films = sorted((data / "films").iterdir())
    films[3].write_bytes(films[3].read_bytes()[:100])
    films[5].unlink()
    told = fit_only("--data", data, "--out", tmp_path / "run", *FEW)
    assert told.code == 2 and "row 7: no such file" in told.text
    (tmp_path / "films").mkdir()
    shutil.copy(films[0], films[5])
    told = fit_only("--data", data, "--out", tmp_path / "run", *FEW)
    assert told.code == 2 and re.search(r"1 problem in .*data:\s+row 5: unreadable film: ", told.text), (
        told.text
    )
    assert not (tmp_path / "run").exists()
    films[5].unlink()
    told = fit_only("--data", data, "--out", tmp_path / "run", "--skip-bad", *FEW)
    assert told.code == 0, told.text
    skipped = pd.read_csv(tmp_path / "run" / "skipped.csv")
    assert skipped["row"].tolist() == [7, 5] or skipped["row"].tolist() == [5, 7]
    assert sum(config_of(tmp_path / "run")["films"].values()) == 46
    assert "2 broken rows were left out; skipped.csv lists them" in config_of(tmp_path / "run")["notes"]


@pytest.mark.slow
def test_corrections_are_trained_on_and_never_tested(fit_only, phantoms, tmp_path):
    from kxray.data.phantom import Mix, write_phantoms

    write_phantoms(tmp_path / "archive", "thorax", 6, 99, mix=Mix(size=96, findings="none"), workers=1)
    archive = pd.read_csv(tmp_path / "archive" / "manifest.csv")
    archive = archive[archive["view"] == "frontal"]
    copied = tmp_path / "archive" / "copy-of-a-tested-film.png"
    tested = pd.read_csv(phantoms / "manifest.csv").iloc[0]
    shutil.copy(phantoms / tested["path"], copied)
    # As the review page writes them: path and view only, and by chance of one view only.
    rows = [*(tmp_path / "archive" / archive["path"]), copied]
    corrections = tmp_path / "corrected.csv"
    corrections.write_text("path,view\n" + "".join(f'"{path}","frontal"\n' for path in rows))
    told = fit_only("--data", phantoms, "--corrections", corrections, "--out", tmp_path / "run", *FEW)
    assert told.code == 0, told.text
    config = config_of(tmp_path / "run")
    assert config["training_only_films"] == len(archive) >= 2
    assert sum(config["films"].values()) == 48
    assert any(note.startswith("1 extra training films were left out") for note in config["notes"])
    split = (tmp_path / "run" / "split.csv").read_text()
    predictions = pd.read_csv(tmp_path / "run" / "predictions.csv")
    assert "archive" not in split and not predictions["path"].str.contains("archive").any()


@pytest.mark.slow
def test_every_cache_gives_the_same_model(fit_only, phantoms, tmp_path):
    logits = {}
    for cache in ("memory", "disk", "none"):
        told = fit_only("--data", phantoms, "--out", tmp_path / cache, "--cache", cache, *FEW)
        assert told.code == 0, told.text
        logits[cache] = pd.read_csv(tmp_path / cache / "predictions.csv")["logit_0"]
    np.testing.assert_allclose(logits["disk"], logits["memory"], atol=1e-5)
    np.testing.assert_allclose(logits["none"], logits["memory"], atol=1e-5)


@pytest.mark.slow
def test_a_run_killed_just_after_its_disk_cache_is_resumed(fit_only, phantoms, tmp_path, monkeypatch):
    from training.films import _Measurements

    class Killed(BaseException):
        pass

    def killed(self, path):
        raise Killed

    out = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(_Measurements, "save", killed)
        with pytest.raises(Killed):
            fit_only("--data", phantoms, "--out", out, "--cache", "disk", *FEW)
    assert list((out / "work" / "cache").glob("*.npy"))
    told = fit_only("--out", out, "--resume")
    assert told.code == 0, told.text
    assert metrics_of(out)["baseline"]["films"] == metrics_of(out)["films"]


@pytest.mark.slow
def test_films_that_changed_are_not_resumed_on(fit, data, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def killed(*arguments, **options):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("training.loop.train", killed)
        with pytest.raises(Killed):
            fit("--data", data, "--out", tmp_path / "run", *FEW)
    first, second = sorted((data / "films").iterdir())[:2]
    first.write_bytes(second.read_bytes())
    told = fit("--out", tmp_path / "run", "--resume")
    assert told.code == 2 and "the films are not those this run was started on" in told.text


TWO_DEVICES = """
    import sys
    import tensorflow as tf

    device = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * 2)
    from training.fit import main

    data, out = sys.argv[1:]
    for name, strategy, batch in (
        ("one", "none", 16), ("again", "none", 16), ("two", "mirrored", 16), ("odd", "mirrored", 15)
    ):
        try:
            main(
                ["view_classifier", "--data", data, "--out", f"{out}/{name}", "--epochs", "2",
                 "--batch-size", str(batch), "--strategy", strategy, "--deterministic"],
                standalone_mode=False,
            )
        except SystemExit as ended:
            print("exit", ended.code)
"""


@pytest.mark.slow
def test_two_devices_give_the_numbers_of_one_and_one_repeats_itself(run_program, data, tmp_path):
    # 33 films to train on: the last batch of an epoch is a single film, and one device has none.
    table = pd.read_csv(data / "manifest.csv", dtype=str, keep_default_na=False).drop(index=[0, 47])
    table["split"] = ["train"] * 33 + ["val"] * 6 + ["test"] * 7
    table.to_csv(data / "manifest.csv", index=False)
    told = run_program("-c", textwrap.dedent(TWO_DEVICES), data, tmp_path)
    assert told.code == 0, told.text
    assert "a batch of 15 films does not divide among 2 devices; choose a multiple" in told.text
    assert not (tmp_path / "odd").exists()
    assert config_of(tmp_path / "two")["replicas"] == 2, told.text
    for table in ("history.csv", "predictions.csv"):
        one, two = (pd.read_csv(tmp_path / name / table) for name in ("one", "two"))
        # Not the training loss: its mean over batches counts the film that fills up the last one.
        columns = [name for name in one.columns if re.match("val_loss|logit", name)]
        assert columns
        np.testing.assert_allclose(two[columns], one[columns], atol=1e-5)
        again = (tmp_path / "again" / table).read_bytes()
        assert again == (tmp_path / "one" / table).read_bytes(), "--deterministic is equal to the bit"


def test_corrected_films_of_tested_patients_are_left_out(fit_only, phantoms, tmp_path):
    table = pd.read_csv(phantoms / "manifest.csv", dtype=str)
    table["path"] = [str(phantoms / path) for path in table["path"]]
    # Of every patient one film is tested, of either view in turn, and the other one comes back corrected.
    chosen = table.groupby("patient_id").cumcount() == table.groupby("patient_id").ngroup() % 2
    columns = ["path", "patient_id", "view"]
    table.loc[chosen, columns].to_csv(tmp_path / "films.csv", index=False)
    table.loc[~chosen, columns].to_csv(tmp_path / "corrected.csv", index=False)
    given = ("--data", tmp_path / "films.csv", "--corrections", tmp_path / "corrected.csv")
    told = fit_only(*given, "--out", tmp_path / "run", *FEW)
    assert told.code == 0, told.text
    config = config_of(tmp_path / "run")
    assert config["training_only_films"] == 0
    assert any("show tested patients" in note for note in config["notes"])


def test_a_source_that_prescribes_train_and_test_gets_its_validation_films_from_train(
    fit_only, phantoms, tmp_path
):
    table = pd.read_csv(phantoms / "manifest.csv", dtype=str)
    table["path"] = [str(phantoms / path) for path in table["path"]]
    patients = sorted(table["patient_id"].unique())
    table["split"] = ["test" if name in patients[::4] else "training" for name in table["patient_id"]]
    table[["path", "patient_id", "view", "split"]].to_csv(tmp_path / "films.csv", index=False)
    told = fit_only("--data", tmp_path / "films.csv", "--out", tmp_path / "run", *FEW)
    assert told.code == 0, told.text
    films = config_of(tmp_path / "run")["split"]["films"]
    assert (
        films["test"] == (table["split"] == "test").sum()
        and films["val"] > 0
        and films["train"] > films["val"]
    )

    table[table["split"] != "test"][["path", "patient_id", "view", "split"]].to_csv(
        tmp_path / "untested.csv", index=False
    )
    told = fit_only("--data", tmp_path / "untested.csv", "--out", tmp_path / "no", *FEW)
    assert told.code == 2 and "the source's split has no test films, only train" in told.text
