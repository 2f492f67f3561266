"""A comparison from films to its table, with a small network; and what its scores are by hand."""

import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from training.comparing import baselines, multiscale_run, multiscale_scores
from training.comparisons import multiscale

SMALL = ("--image-size", 40, "--epochs", 1, "--batch-size", 8, "--seeds", 1, "--split", "3:1:1")


@pytest.fixture
def compare(tiny_densenet):
    from training.compare import main

    def run(*arguments):
        result = CliRunner().invoke(main, ["multiscale", *map(str, arguments)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return run


@pytest.mark.slow
def test_from_films_to_the_table_and_resumed(compare, tmp_path, monkeypatch):
    out = tmp_path / "out"
    given = ("--phantoms", 40, "--out", out, *SMALL, "--candidates", "backbone=densenet121,taps=2")
    train = multiscale_run.Comparison.train
    trained = []

    def killed(self, row, *arguments):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(row.name)
        return train(self, row, *arguments)

    monkeypatch.setattr("training.comparing.multiscale_run.Comparison.train", killed)
    assert compare(*given)[0] == 130
    monkeypatch.setattr(
        "training.comparing.multiscale_run.Comparison.train",
        lambda self, row, *arguments: trained.append(row.name) or train(self, row, *arguments),
    )
    code, text = compare("--resume", "--out", out)
    assert code == 0, text
    # Nothing is trained twice.
    assert sorted(trained) == sorted(
        [
            *("naive-densenet121-coarse", "naive-densenet121-fine", "multiscale-densenet121-coarse"),
            *("multiscale-densenet121-fine", "candidate1-densenet121-coarse", "candidate1-densenet121-fine"),
        ]
    )
    metrics = json.loads((out / "metrics.json").read_text())
    table = pd.read_csv(out / "table.csv").set_index("row")
    assert set(table.index) == {*trained, "texture-coarse", "texture-fine", "no-anatomy-coarse"}
    assert metrics["rows"]["naive-densenet121-fine"]["classes"] > 2
    assert metrics["chosen"] in trained and not metrics["chosen"].startswith("naive")
    for row in metrics["rows"].values():
        assert 0 <= row["coarse_accuracy"]["low"] <= row["coarse_accuracy"]["value"] <= 1
    # The phantoms have bone masks: maps are scored, and only of films with a bone.
    for name in trained:
        maps = metrics["rows"][name]["maps"]
        assert 0 < maps["films"] < metrics["films"] and 0 <= maps["pointing_game"]["value"] <= 1
    report = (out / "report.html").read_text()
    assert "Do the maps point at the defect?" in report and "RBF SVM" in report
    assert compare("--resume", "--out", out)[0] == 0


@pytest.mark.slow
def test_films_without_size_classes_are_relabelled(compare, fillets, tmp_path):
    out = tmp_path / "out"
    source = tmp_path / "source"
    import kxray

    table = kxray.data.read_source(fillets).drop(columns=["masks", "boxes", "calibre", "calibre_px"])
    source.mkdir()
    kxray.data.write_manifest(table, source / "manifest.csv")
    code, text = compare("--data", source, "--classes", 2, "--out", out, *SMALL)
    assert code == 0, text
    assert (out / "relabelled" / "index.html").exists() and "bone is cut at" in text
    cells = pd.read_csv(out / "cells.csv")
    fine = cells[cells["row"] == "multiscale-densenet121-fine"]
    assert set(fine["label"]) == {"bone_scale1", "bone_scale2", "no_bone"}
    assert set(fine["coarse_predicted"]) <= {"bone", "no_bone"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--split", "7:3"), "--split takes three parts, training, validation and test, as 7:1:2"),
        (("--folds", 1), "give --folds 2 or more, or --split"),
        (("--folds", 3, "--split", "7:1:2"), "exclude each other"),
        (("--classes", 1), "--classes 1 splits nothing"),
        (("--cache", "stream"), "a comparison reads its films first"),
        (("--candidates", "seed=4"), "a candidate shares seed with the others"),
        (("--candidates", "backbone=vgg"), "backbone=vgg: 'vgg' is not one of"),
        (("--candidates", "bakcbone=xception"), "expected name=value with an option's name"),
        (("--candidates", "xception"), "give trained ones with --init"),
        (("--taps", "9"), "got 9 taps"),
    ],
)
def test_wrong_options_end_at_once(compare, tmp_path, given, words):
    code, text = compare("--phantoms", 20, "--out", tmp_path / "out", *given)
    assert code == 2 and words in text, text
    assert not (tmp_path / "out").exists()


def test_the_rows_share_everything_but_their_stages_and_classes():
    rows = multiscale.rows_of(multiscale.Recipe(epochs=7), fine=True)
    assert [row.name for row in rows] == [
        *("naive-densenet121-coarse", "naive-densenet121-fine"),
        *("multiscale-densenet121-coarse", "multiscale-densenet121-fine"),
    ]
    differing = {
        name
        for row in rows
        for name in vars(row.recipe)
        if getattr(row.recipe, name) != getattr(rows[0].recipe, name)
    }
    assert differing == {"taps"} and rows[0].recipe.epochs == 7


def cells_of(name, right, seeds=2):
    """Predictions of ten films of two classes: `right` says which are right."""
    truth = ["bone"] * 5 + ["no_bone"] * 5
    parts = []
    for seed in range(seeds):
        wrong = {"bone": "no_bone", "no_bone": "bone"}
        chosen = [label if hit else wrong[label] for label, hit in zip(truth, right, strict=True)]
        parts.append(
            pd.DataFrame(
                {
                    "row": name,
                    "path": [f"film{index}" for index in range(10)],
                    "group": [str(index) for index in range(10)],
                    "seed": seed,
                    "fold": 0,
                    "label": truth,
                    "predicted": chosen,
                    "coarse": truth,
                    "coarse_predicted": chosen,
                    "coarse_predicted_flips": chosen,
                    "coarse_probability_bone": [0.9 if label == "bone" else 0.1 for label in chosen],
                    "coarse_probability_no_bone": [0.1 if label == "bone" else 0.9 for label in chosen],
                    "training_seconds": 1.0,
                    "epochs": 1,
                    "parameters": 5,
                    **dict.fromkeys(("pointing_game", "mass_inside", "iou_at_half"), ""),
                }
            )
        )
    cells = pd.concat(parts)
    return pd.concat([cells.assign(part="test"), cells.assign(part="val")])


def test_scores_by_hand():
    rows = multiscale.rows_of(multiscale.Recipe(), fine=False)
    naive = cells_of("naive-densenet121-coarse", [1] * 6 + [0] * 4)
    several = cells_of("multiscale-densenet121-coarse", [1] * 9 + [0])
    cells = pd.concat([naive, several], ignore_index=True)
    baseline = several[several["part"] == "test"].assign(row="texture-coarse")
    metrics = multiscale_scores.scores_of(
        multiscale_scores.Results(rows, cells, baseline, ["bone", "no_bone"])
    )
    assert metrics["rows"]["naive-densenet121-coarse"]["coarse_accuracy"]["value"] == pytest.approx(0.6)
    best = metrics["rows"]["multiscale-densenet121-coarse"]
    assert best["coarse_accuracy"]["value"] == pytest.approx(0.9) and best["maps"] is None
    assert best["coarse_recall"] == {"bone": 1.0, "no_bone": 0.8}
    assert best["validation_loss"] == pytest.approx(-(0.9 * np.log(0.9) + 0.1 * np.log(0.1)))
    (test,) = metrics["tests"]
    assert test["difference"]["value"] == pytest.approx(0.3)
    # Three films differ, all one way: two of the eight sign patterns are as extreme.
    assert test["p"] == pytest.approx(0.25, abs=0.02) == test["p_holm"]
    assert metrics["chosen"] == "multiscale-densenet121-coarse" and not metrics["chosen_with_flips"]
    assert any("0.300" in line for line in multiscale_scores.told(metrics))


def test_texture_does_not_see_exposure_and_sees_stripes():
    random = np.random.default_rng(0)
    plain = [random.random((48, 48)) for _ in range(20)]
    stripes = [film + 0.8 * (np.arange(48) % 6 < 3) for film in plain]
    films = [film / film.max() for film in plain + stripes]
    alone = np.arange(40)
    features = np.stack([baselines.texture_features(film.astype("float32")) for film in films])
    darker = baselines.texture_features((0.5 * films[0] + 0.1).astype("float32"))
    np.testing.assert_allclose(darker, features[0], atol=0.02)
    labels = np.repeat([0, 1], 20)
    folds = np.arange(40) % 4
    scores = baselines.texture_scores(features, labels, folds, alone)
    assert (scores.argmax(axis=1) == labels).all()
    shuffled = np.random.default_rng(1).permutation(labels)
    by_chance = baselines.texture_scores(features, shuffled, folds, alone).argmax(axis=1) == shuffled
    assert by_chance.mean() < 0.8
    split = np.where(np.arange(40) % 5 == 0, 0, -1)
    assert np.isnan(baselines.texture_scores(features, labels, split, alone)[split == -1]).all()
    # A class that no training film has is never the answer.
    third = np.where(folds == 0, 2, labels)
    assert set(baselines.texture_scores(features, third, folds, alone)[folds == 0].argmax(axis=1)) <= {0, 1}
