"""A matrix of backbones and modes from films to its report, with a small network."""

import dataclasses
import json
import os
import shlex
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from keras import layers

import kxray
from training import chosen_labels, memory
from training.comparing import compared_films, matrix_run
from training.comparisons import transfer

DATA = Path(os.environ.get("KXRAY_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))
SMALL = ("--preset", "smoke", "--batch-size", 16)


def small_network(input_tensor, **_):
    """Two stages that go by MobileNetV2's name."""
    x = layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False, name="conv1")(input_tensor)
    x = layers.ReLU(name="relu1")(layers.BatchNormalization(name="bn1")(x))
    x = layers.Conv2D(16, 3, strides=2, padding="same", name="conv2")(x)
    return keras.Model(keras.utils.get_source_inputs(input_tensor), x)


@pytest.fixture
def compare(monkeypatch):
    from training.compare import main

    monkeypatch.setattr(keras.applications, "MobileNetV2", small_network)
    monkeypatch.setattr(keras.applications, "DenseNet121", small_network)

    def run(*arguments):
        result = CliRunner().invoke(main, ["transfer", *map(str, arguments)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return run


@pytest.mark.slow
def test_from_films_to_the_report_and_resumed(compare, fillets, tmp_path, monkeypatch):
    out = tmp_path / "out"
    cells = []
    train = matrix_run.Matrix.train

    def counted(self, fitting, cell, folder):
        cells.append(cell.name)
        return train(self, fitting, cell, folder)

    monkeypatch.setattr(matrix_run.Matrix, "train", counted)
    given = ("--data", fillets, "--out", out, *SMALL, "--split", "2:1:1", "--learning-curve", "4,500")
    code, text = compare(*given, "--backbones", "mobilenetv2,densenet121")
    assert code == 0, text
    # Two backbones and two modes; and four films a class for the frozen ones.
    assert len(cells) == 2 * 2 + 2
    assert "films to train, validate and test (bone" in text and "accuracy              frozen" in text
    metrics = json.loads((out / "metrics.json").read_text())
    assert len(metrics["rows"]) == 4 and metrics["films"] == 12
    frozen, tuned = (metrics["rows"][f"mobilenetv2-{mode}"] for mode in transfer.MODES)
    assert frozen["trained_parameters"] == 16 * 2 + 2 < tuned["trained_parameters"] < tuned["parameters"]
    assert frozen["feature_mb"] > 0 == tuned["feature_mb"]
    assert [round(point["films_per_class"]) for point in frozen["learning_curve"]["points"]][0] == 4
    assert tuned["learning_curve"] is None
    config = json.loads((out / "config.json").read_text())
    assert any("500 films a class are not fewer" in note for note in config["notes"])
    report = (out / "report.html").read_text()
    for words in (
        "Accuracy by backbone and mode",
        "Would more films help",
        "RBF SVM",
        "Not tested",
        "McNemar",
    ):
        assert words in report
    assert report.count("<img") == 5
    table = pd.read_csv(out / "table.csv").set_index("row")
    assert table.loc["mobilenetv2-fine_tune", "accuracy"] == pytest.approx(tuned["accuracy"]["value"])
    histories = pd.read_csv(out / "histories.csv")
    assert len(histories) == 2 * len(cells)

    # A lost cell is trained again, alone, and from the same start.
    first = pd.read_csv(out / "cells.csv")
    cells.clear()
    (out / "metrics.json").unlink()
    (out / "work" / "cells" / "mobilenetv2-feature_extractor-4-seed-0-fold-0.csv").unlink()
    code, text = compare("--resume", "--out", out)
    assert code == 0, text
    assert cells == ["mobilenetv2-feature_extractor-4-seed-0-fold-0"]
    again = pd.read_csv(out / "cells.csv")
    np.testing.assert_allclose(again["probability_bone"], first["probability_bone"], atol=1e-4)

    (out / "metrics.json").unlink()
    (fillets_film := Path(first["path"][0])).write_bytes((kept := fillets_film.read_bytes()) + b"\0")
    code, text = compare("--resume", "--out", out)
    fillets_film.write_bytes(kept)
    assert code == 2 and "not those this comparison was started on" in text


@pytest.mark.slow
def test_shuffled_labels_score_by_chance(compare, fillets, tmp_path):
    table = kxray.data.read_source(fillets)[["path", "patient_id", "label"]]
    shuffled = table.assign(label=np.random.default_rng(3).permutation(table["label"]))
    kxray.data.write_manifest(shuffled, tmp_path / "manifest.csv")
    out = tmp_path / "out"
    given = ("--modes", "feature_extractor", "--folds", 4, "--epochs", 10, "--learning-rate", 0.01)
    code, text = compare("--data", tmp_path / "manifest.csv", "--out", out, *SMALL, *given)
    assert code == 0, text
    row = json.loads((out / "metrics.json").read_text())["rows"]["mobilenetv2-feature_extractor"]
    # 48 films: three standard errors about one half.
    assert abs(row["balanced_accuracy"]["value"] - 0.5) < 0.22
    assert abs(row["auroc"]["value"] - 0.5) < 0.25


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--backbones", "resnet512"), "'resnet512' is not one of"),
        (("--backbones", "mobilnetv2"), "did you mean mobilenetv2?"),
        (("--modes", "frozen"), "--modes: 'frozen' is not one of feature_extractor, fine_tune"),
        (("--weights", "nowhere.h5"), "--weights nowhere.h5: no such file"),
        (("--weights", "xception=none"), "--weights xception=none: no such file"),
        (("--backbones", "xception,alexnet", "--weights", "xception=none"), "names none for alexnet"),
        (("--learning-curve", "ten"), "--learning-curve takes films a class"),
        (("--split", "486/44"), "--split takes three parts"),
        (("--split", "486/44/132"), "--split 486/44/132 asks for 662 films; there are 48"),
        (("--folds", 1), "give --folds 2 or more, or --split"),
        (("--folds", 3, "--split", "7:1:2"), "exclude each other"),
        (("--folds", 40), "too few for --folds 40"),
        (("--cache", "stream"), "a comparison reads its films first"),
        (("--labels", "bone"), "--labels takes two labels or more"),
        (("--labels", "bone,scale"), "--labels: no 'scale'; column 'label' has bone, no_bone"),
        (("--phantoms", 0), "0 is not in the range x>=1"),
        (("--findings", "Mass"), "No such option"),
    ],
)
def test_wrong_options_end_at_once(compare, fillets, tmp_path, given, words):
    code, text = compare("--data", fillets, "--out", tmp_path / "out", *SMALL, *given)
    assert code == 2 and words in text, text
    assert not (tmp_path / "out").exists()


def test_weights_that_do_not_fit_are_found_before_films_are_read(compare, fillets, tmp_path):
    file = tmp_path / "wrong.weights.h5"
    file.write_bytes(b"no weights")
    out = tmp_path / "out"
    # Not one of the names that the small network goes by: a real one reads the file.
    given = ("--backbones", "mobilenet", "--weights", file)
    code, text = compare("--data", fillets, "--out", out, *SMALL, *given)
    assert code == 2 and str(file) in text and "films to train" not in text, text
    assert not out.exists()


def test_stages_that_would_never_train_are_found_before_films_are_read(compare, fillets, tmp_path):
    given = ("--epochs", 5, "--fine-tune-epochs", 2, "--unfreeze-epochs", 1)
    code, text = compare("--data", fillets, "--out", tmp_path / "out", *SMALL, *given)
    assert code == 2 and "so 1 would never train in 2 epochs" in text and "films to train" not in text, text
    assert not (tmp_path / "out").exists()


def test_a_class_without_a_test_film_ends_before_anything_is_trained(compare, fillets, tmp_path, monkeypatch):
    monkeypatch.setattr(matrix_run.Matrix, "row_cells", lambda *arguments: 1 / 0)
    table = kxray.data.read_source(fillets)[["path", "patient_id", "label"]]
    rare = table[table["label"] == "bone"].drop_duplicates("patient_id").index[:3]
    table = table.loc[[*rare, *table.index[table["label"] != "bone"]]]
    kxray.data.write_manifest(table, tmp_path / "manifest.csv")
    out = tmp_path / "out"
    code, text = compare("--data", tmp_path / "manifest.csv", "--out", out, *SMALL, "--split", "90:5:5")
    assert code == 2 and "label 'bone' has no film to " in text and text.count("error: ") == 1, text
    assert not out.exists()


def test_every_class_is_in_every_part():
    films = type("Films", (), {"labels": np.array([0, 0, 0, 1, 1, 1])})
    task = type("Task", (), {"labels": ("a", "b")})

    def check(train, validation, *tests):
        splits = {3: [compared_films.Fold(None, np.array(test), None) for test in tests]}
        parts = {(3, number): (np.array(train), np.array(validation)) for number in range(len(tests))}
        compared_films.check_every_class(task, films, splits, parts)

    check([0, 3], [1, 4], [2, 5])
    check([0, 3], [1, 4], [2], [5])  # one fold tests one class, and the other the other
    with pytest.raises(ValueError, match="'b' has no film to test on in the split of seed 3; give that part"):
        check([0, 3], [1, 4], [2])
    with pytest.raises(ValueError, match="'a' has no film to validate on"):
        check([0, 3], [4], [2, 5])
    with pytest.raises(ValueError, match="'b' has no film to train on"):
        check([0], [1, 4], [2, 5])


def matrix_of(recipe, folder):
    return matrix_run.Matrix(recipe, folder, None, transfer.rows_of(recipe))


@pytest.mark.parametrize("preset", [None, "paper", "smoke"])
def test_the_command_to_keep_a_network_trains_what_was_compared(preset, tmp_path, monkeypatch):
    from training.fit import main
    from training.recipes import transfer as trained

    given = {"backbones": "mobilenetv2", "weights": "none", "augment": 2, "mixed_precision": True}
    recipe = transfer.Recipe(**{**transfer.PRESETS.get(preset, {}), **given})
    assert recipe.standardize is (preset != "paper")
    matrix, kept = matrix_of(recipe, tmp_path), []
    monkeypatch.setattr(trained, "run", lambda recipe, given: kept.append(recipe))
    for row in matrix.rows:
        command = matrix.next_command({"chosen": row.name}, "my films")
        assert command.startswith("python -m training.fit transfer --data 'my films' ")
        result = CliRunner().invoke(main, shlex.split(command)[3:])
        assert result.exit_code == 0, result.output
        assert kept.pop() == dataclasses.replace(row.recipe, data="my films", folds=0)


def test_a_resumed_run_finds_the_starting_weights_it_was_started_with(compare, tmp_path):
    start, folder = tmp_path / "start", tmp_path / "out"
    model = kxray.models.build("transfer", backbone="mobilenetv2", image_size=(32, 32))
    for place in (start, folder):
        place.mkdir()
    (start / "spec.json").write_text(
        kxray.ModelSpec("transfer", ("a", "b"), "multiclass", (32, 32)).to_json()
    )
    model.save(start / "model.keras")
    given = {**transfer.PRESETS["smoke"], "weights": f"mobilenetv2={start},densenet121=none"}
    recipe = transfer.Recipe(**{**given, "backbones": "mobilenetv2,densenet121"})
    matrix = matrix_of(recipe, folder)
    config = {"options": {}}
    (folder / "config.json").write_text(json.dumps(config))
    matrix.check_networks()
    assert matrix.digests == {"mobilenetv2": kxray.models.weights_digest(model)}
    (folder / "config.json").write_text(json.dumps({**config, "weights_digests": matrix.digests}))
    matrix.check_networks()
    kernel = model.get_layer("conv1").kernel
    kernel.assign(kernel + 1)
    model.save(start / "model.keras")
    with pytest.raises(ValueError, match=f"--weights {start}: not the weights of mobilenetv2 that this"):
        matrix.check_networks()


def test_options_of_the_other_mode_are_refused(compare, fillets):
    code, text = compare("--data", fillets, *SMALL, "--modes", "feature_extractor", "--trained-stages", 2)
    assert code == 2 and "--trained-stages: only with --mode fine_tune" in text, text


def test_peak_memory_is_of_what_came_after_the_reset():
    if not memory.reset_peak():
        pytest.skip("this system does not tell a process its peak memory")
    before = memory.peak_mb()
    block = np.ones(30_000_000)
    assert memory.peak_mb() > before + 200
    del block
    memory.reset_peak()
    assert memory.peak_mb() < before + 200


def test_a_dry_run_tells_the_cells(compare, fillets, tmp_path):
    given = ("--folds", 5, "--seeds", 3, "--learning-curve", "5,10", "--fine-tune-epochs", 2, "--epochs", 9)
    code, text = compare("--data", fillets, *SMALL, *given, "--dry-run")
    assert code == 0 and not list(tmp_path.iterdir())
    assert "would train mobilenetv2-feature_extractor from none: 45 times" in text
    assert "features of 48 films once" in text
    # 15 trainings of 2 epochs over 4/5 of 48 films, less a sixth to validate on.
    assert "would train mobilenetv2-fine_tune from none: 15 times, 2 epochs of about 32 films" in text


def test_rows_share_everything_but_what_they_are(tmp_path):
    file = tmp_path / "x.h5"
    file.write_bytes(b"")
    recipe = transfer.Recipe(
        backbones="xception,alexnet",
        weights=f"xception={file},alexnet=none",
        fine_tune_epochs=3,
        trained_stages=1,
        augment=4,
        learning_curve="50,10",
    )
    rows = {row.name: row for row in transfer.rows_of(recipe)}
    assert list(rows) == [f"{name}-{mode}" for name in ("xception", "alexnet") for mode in transfer.MODES]
    frozen, tuned = rows["xception-feature_extractor"], rows["xception-fine_tune"]
    assert (frozen.recipe.epochs, tuned.recipe.epochs) == (40, 3)
    assert (frozen.recipe.trained_stages, tuned.recipe.trained_stages) == (None, 1)
    assert (frozen.recipe.augment, tuned.recipe.augment) == (4, 0)
    assert frozen.recipe.weights == str(file) and rows["alexnet-fine_tune"].recipe.weights == "none"
    assert frozen.sizes == (10, 50) and tuned.sizes == ()
    changed = {"epochs", "mode", "trained_stages", "augment"}
    same = {name: getattr(frozen.recipe, name) for name in changed}
    assert dataclasses.replace(tuned.recipe, **same) == frozen.recipe


def test_splits_by_parts_and_by_counts():
    assert compared_films.shares("7:1:2") == pytest.approx([0.7, 0.1, 0.2])
    assert compared_films.counts("80/8/12") is None
    assert compared_films.counts("486/44/132") == [486, 44, 132]
    compared_films.check_counts("486:44:132", 662)
    with pytest.raises(ValueError, match="asks for 662 films; there are 661"):
        compared_films.check_counts("486:44:132", 661)


def test_counts_leave_films_out_and_keep_patients_together():
    from training.films import ClassifierTask, RunFilms

    films = 240
    table = pd.DataFrame(
        {
            "path": [f"/films/{index}.png" for index in range(films)],
            "patient_id": [f"p{index // 2}" for index in range(films)],
            "label": np.where(np.arange(films) // 2 % 2, "a", "b"),
            "training_only": False,
        }
    )
    task = ClassifierTask("t", "t", "multiclass", "label", "fillet", (8, 8), None, None, None, ("a", "b"))
    grouping = kxray.data.film_groups(table)
    run = RunFilms(table, None, None, None, None, ())
    recipe = transfer.Recipe(split="120/20/60")
    (fold,) = compared_films.folds_of(recipe, task, run, grouping, 0)
    train, validation = compared_films.training_rows(fold, task, run, grouping, 0)
    parts = [set(train), set(validation), set(fold.test)]
    assert [len(part) for part in parts] == pytest.approx([120, 20, 60], abs=4)
    assert sum(map(len, parts)) == len(set.union(*parts))
    patients = [set(table.loc[list(part), "patient_id"]) for part in parts]
    assert sum(map(len, patients)) == len(set.union(*patients))


def test_smaller_sizes_are_nested_and_as_many_steps():
    labels = np.repeat([0, 1], [30, 20])
    matrix = matrix_run.Matrix(None, None, None, [])
    matrix.task, matrix.films = (
        type("Task", (), {"labels": ("a", "b")}),
        type("Films", (), {"labels": labels}),
    )
    train = np.arange(50)
    few, distinct = matrix.fewer(train, 5, seed=0)
    more, _ = matrix.fewer(train, 10, seed=0)
    assert len(few) == len(more) == 50 and distinct == 10 == len(set(few))
    assert set(few) < set(more)
    assert np.bincount(labels[few]).tolist() == [30, 20]


def test_two_labels_of_films_with_several_findings():
    findings = {"Pneumonia": [1.0, 1, 0, 0, np.nan], "Mass": [0.0, 1, 0, 1, np.nan]}
    table = pd.DataFrame({"path": [f"/{name}.png" for name in "abcde"], "patient_id": "", **findings})
    table = kxray.data.manifest.as_manifest(table, findings=list(findings))
    kept, notes = chosen_labels.choose(table, ["Pneumonia", "No Finding"], "label")
    assert kept["label"].tolist() == ["Pneumonia", "Pneumonia", "No Finding"]
    assert "whatever else they show" in notes[0] and "2 films with none" in notes[1]
    kept, _ = chosen_labels.choose(table, ["Pneumonia", "Mass"], "label")
    assert kept["path"].tolist() == ["/a.png", "/d.png"]
    with pytest.raises(ValueError, match="no 'Oedema'; the source has the findings"):
        chosen_labels.choose(table, ["Mass", "Oedema"], "label")


@pytest.mark.real_data
@pytest.mark.skipif(not (DATA / "nih").is_dir(), reason="no NIH films in KXRAY_TEST_DATA")
def test_pneumonia_against_no_finding(compare):
    given = ("--data", DATA / "nih", *SMALL, "--dry-run", "--folds", 5)
    code, text = compare(*given)
    assert code == 2 and "say which to tell apart, such as --labels" in text
    code, text = compare(*given, "--labels", "Pneumonia,No Finding")
    assert code == 0 and "691 films: Pneumonia 355, No Finding 336" in text, text
