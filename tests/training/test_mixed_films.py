"""Manifests of real and synthetic films: the synthetic ones are trained on, and nothing else."""

import functools
import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from kxray import data
from kxray.data import shortcuts
from kxray.data.splits import SplitError
from training import films as film_tables
from training import findings
from training.task import ClassifierTask

MADE = 12


def task(kind="multiclass", labels=("a", "b")):
    return ClassifierTask("t", "t", kind, "label", "fillet", (8, 8), None, None, None, labels)


def table_of(real, made, **columns):
    """Real films of their own patients each, then synthetic ones; every second one is an "a"."""
    place = np.arange(real + made)
    patients = [f"p{index}" if index < real else f"synthetic-run-00-0-{index:06d}" for index in place]
    facts = {"path": [f"/films/{index}.png" for index in place], "patient_id": patients}
    return pd.DataFrame({**facts, "label": np.where(place % 2, "b", "a"), "training_only": False, **columns})


# Fit


def test_classes_are_counted_in_real_films():
    table = table_of(4, 40)
    with pytest.raises(ValueError, match="label 'a' has 2 independent films"):
        film_tables.check_classes(task(), table, data.film_groups(table))
    known = table.assign(a=(table["label"] == "a") * 1.0, b=(table["label"] == "b") * 1.0)
    with pytest.raises(ValueError, match="'a': 2 films with it"):
        findings.check(task("multilabel"), known)
    with pytest.raises(ValueError, match="no finding has 3 patients with it and 3 without"):
        findings.settle(task("multilabel", ()), known)


@pytest.mark.parametrize("own", [False, True])
def test_a_split_of_fit_tests_on_real_films(own):
    from training.recipes.transfer import Recipe

    table = table_of(40, 60)
    if own:
        table["split"] = np.where(
            np.arange(100) < 30, "train", np.where(np.arange(100) < 40, "test", "train")
        )
    split = film_tables.split_films(Recipe(), task(), table, data.film_groups(table))
    assert set(split.parts[40:]) == {"train"} and (split.parts[:40] == "test").sum() in (8, 10)
    if own:
        with pytest.raises(SplitError, match="99.png: a synthetic film is for training only"):
            table.loc[99, "split"] = "test"
            film_tables.split_films(Recipe(), task(), table, data.film_groups(table))


def mixed(folder, phantoms, split=None):
    """A manifest of the 48 phantoms and 12 synthetic films, all frontal."""
    facts = data.SyntheticFacts("toy", "0" * 12, ("frontal",), findings=False, view="frontal")
    pixels = np.random.default_rng(0).random((MADE, 96, 96), dtype=np.float32)
    made = data.read_manifest(data.write_synthetic(folder / "made", pixels, ["frontal"] * MADE, facts))
    both = pd.concat([data.read_source(phantoms), made], ignore_index=True)
    if split is not None:
        both["split"] = split
    data.write_manifest(both, folder / "films.csv")
    return folder / "films.csv"


def test_a_run_trains_on_them(fit, phantoms, tmp_path):
    out, films = tmp_path / "run", mixed(tmp_path, phantoms)
    few = ("--epochs", 1, "--batch-size", 16)
    told = fit("--data", films, "--out", out, *few)
    assert told.code == 0, told.text
    split = pd.read_csv(out / "split.csv", comment="#")
    made = split["path"].str.contains("made/")
    assert made.sum() == MADE and set(split["split"][made]) == {"train"}
    assert not pd.read_csv(out / "predictions.csv")["path"].str.contains("made/").any()
    told = fit("--data", films, "--out", tmp_path / "folds", "--folds", 2, *few)
    assert told.code == 2 and "a synthetic film is for training only" in told.text


# Align


def test_an_aligner_is_not_tested_on_them():
    from training.aligning.align_job import _AlignJob
    from training.recipes.align import Recipe

    table = table_of(60, 10, view="frontal")
    table["split"] = np.where(np.arange(70) < 50, "train", np.where(np.arange(70) < 60, "test", "train"))
    job, frontal = _AlignJob(Recipe(), None, None), np.ones(70, bool)
    parts, _ = job.split(table, frontal, [])
    assert (parts == table["split"]).all()
    table.loc[65, "split"] = "test"
    with pytest.raises(SplitError, match="65.png: a synthetic film is for training only"):
        job.split(table, frontal, [])
    parts, _ = job.split(table.drop(columns="split"), frontal, [])
    assert set(parts[60:]) == {"train"} and (parts[:60] == "test").sum() == 12


# Compare


@pytest.mark.parametrize(("split", "real"), [("60/15/45", (60, 15, 45)), ("40/20/20", (80, 40, 40))])
def test_a_split_of_a_comparison_is_of_real_films(split, real):
    """Counts are met in real films, shares are shares of them; the synthetic ones come beside them."""
    from training.comparing import compared_films
    from training.comparisons import transfer

    table = table_of(160, 100)
    run = film_tables.RunFilms(table, None, None, None, None, ())
    grouping, recipe = data.film_groups(table), transfer.Recipe(split=split)
    (fold,) = compared_films.folds_of(recipe, task(), run, grouping, 0)
    parts = (*compared_films.training_rows(fold, task(), run, grouping, 0), fold.test)
    assert [int((part < 160).sum()) for part in parts] == pytest.approx(real, abs=2)
    assert [int((part >= 160).sum()) for part in parts] == [100, 0, 0]
    with pytest.raises(ValueError, match="asks for 200 films; there are 160"):
        compared_films.folds_of(transfer.Recipe(split="100/50/50"), task(), run, grouping, 0)
    with pytest.raises(ValueError, match="label 'a' has 2 independent films"):
        few = table_of(4, 40)
        compared_films.check_independent(task(), few, data.film_groups(few), 3)


def test_folds_of_a_comparison_refuse_them_before_films_are_read():
    from training.comparing import matrix
    from training.comparisons import transfer

    table = table_of(20, 5)
    with pytest.raises(SplitError, match="20.png and 4 more: a synthetic film is for .* give --split"):
        matrix._check_films(transfer.Recipe(), table)
    matrix._check_films(transfer.Recipe(split="10:5:5"), table)
    with pytest.raises(ValueError, match="asks for 120 films; there are 20"):
        matrix._check_films(transfer.Recipe(split="60/30/30"), table)


# Audit


def test_an_audit_is_of_real_films(phantoms, tmp_path, monkeypatch):
    from training.audit import main

    monkeypatch.setattr(shortcuts, "shortcut_scores", functools.partial(shortcuts.shortcut_scores, trees=20))

    def audited(films, *more):
        given = ("--data", films, "--label-column", "view", "--out", tmp_path / "audit", "--folds", 2, *more)
        result = CliRunner().invoke(main, list(map(str, given)))
        return result, json.loads((tmp_path / "audit" / "audit.json").read_text())

    result, found = audited(mixed(tmp_path, phantoms))
    assert result.exit_code == 0, result.output
    assert "12 synthetic films: looked at for duplicates and splits only" in result.output
    assert found["synthetic"] == {"films": MADE, "held_out": {}} and sum(found["films"].values()) == 48
    assert not {"condition", "seed", "number"} & {row["name"] for row in found["associations"]}

    patients = data.read_source(phantoms)["patient_id"]
    own = np.where(patients.isin(sorted(set(patients))[:12]), "train", "test").tolist()
    result, found = audited(mixed(tmp_path, phantoms, [*own, *["train"] * 10, "test", "val"]), "--strict")
    assert result.exit_code == 3 and found["synthetic"]["held_out"] == {"test": 1, "val": 1}, result.output
    assert "leak: 1 synthetic film in split 'test'; for training only" in result.output
