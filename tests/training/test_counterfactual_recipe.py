"""The recipe counterfactual_gan: a run and what it leaves, what is refused, kills and resumes, devices."""

import json
import math
import shutil
import signal
import time

import numpy as np
import pandas as pd
import pytest

SMOKE = ("--preset", "smoke", "--export", "none")
SIDE, LABELS = 32, ("Effusion", "Mass")


def fit(*arguments):
    import keras
    from click.testing import CliRunner

    from training.fit import main

    result = CliRunner().invoke(main, ["counterfactual_gan", *map(str, arguments)])
    keras.config.set_dtype_policy("float32")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def write_films(folder, count=48, seed=0):
    """Grey films; Effusion is a bright square on the left, Mass one on the right; two films a patient."""
    from kxray.data import write_manifest
    from kxray.io.image import write_png16

    random = np.random.default_rng(seed)
    truths = np.stack([np.arange(count) // 2 % 2, np.arange(count) // 4 % 2], axis=1)
    rows = []
    (folder / "masks").mkdir(parents=True)
    for number, shown in enumerate(truths):
        pixels = random.uniform(0.2, 0.3, (SIDE, SIDE)).astype(np.float32)
        mask = np.zeros((SIDE, SIDE), np.float32)
        if shown[0]:
            pixels[8:16, 4:12] += 0.6
            mask[8:16, 4:12] = 1.0
        if shown[1]:
            pixels[8:16, 20:28] += 0.6
        write_png16(folder / f"{number:03d}.png", pixels)
        write_png16(folder / "masks" / f"{number:03d}.png", mask)
        masks = json.dumps({"Effusion": str(folder / "masks" / f"{number:03d}.png")}) if shown[0] else ""
        rows.append((str(folder / f"{number:03d}.png"), f"p{number // 2}", *shown, masks))
    table = pd.DataFrame(rows, columns=["path", "patient_id", *LABELS, "masks"])
    write_manifest(table, folder / "manifest.csv")
    return truths


def write_classifier(run, films, task="multilabel", strength=20.0, side=SIDE):
    """A run whose classifier reads the brightness of both squares; with strength 0 it says nothing."""
    import keras
    from keras import layers

    from kxray import data
    from kxray.spec import ModelSpec
    from training import runs

    seen = np.zeros((side, side, 2), np.float32)
    seen[8:16, 4:12, 0] = seen[8:16, 20:28, 1] = 1 / 64
    film = keras.Input((side, side, 1))
    units = {"multilabel": 2, "binary": 1}[task]
    dense = layers.Dense(units, activation="sigmoid", name="probabilities")
    model = keras.Model(film, dense(layers.Flatten(name="features")(film)), name="reader")
    dense.set_weights(
        [strength * seen.reshape(-1, 2)[:, :units], np.full(units, -0.55 * strength, np.float32)]
    )
    run.mkdir(parents=True)
    model.save(run / "model.keras")
    labels = LABELS if task == "multilabel" else ("normal", "Effusion")
    (run / "spec.json").write_text(ModelSpec("reader", labels, task, (side, side)).to_json())
    table = data.read_source(films)
    split = data.patient_split(table, list(LABELS), val=0.25, test=0.25, seed=0)
    data.save_split(table.assign(split=split.parts), run / "split.csv")
    runs.write_json(run / "config.json", {"recipe": "reader", "options": {"data": str(films), "folds": 0}})
    return model


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted") / "films"
    write_films(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, films):
    run = tmp_path_factory.mktemp("reader") / "run"
    write_classifier(run, films)
    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory, classifier):
    """A finished run of a few steps."""
    folder = tmp_path_factory.mktemp("counterfactual") / "run"
    result = fit("--classifier", classifier, *SMOKE, "--least-auroc", 0.6, "--out", folder)
    assert result.exit_code == 0, result.output
    return folder, result.output


def test_a_run_and_what_it_leaves(finished, classifier, films):
    import kxray
    from kxray import data

    folder, told = finished
    assert "epoch 2 of 2: generator" in told and "kept: epoch" in told and "flip rate" in told
    gan, spec = kxray.load(folder)
    assert spec.task == "counterfactual" and spec.image_size == (SIDE, SIDE)
    assert spec.labels == ("no Effusion", "Effusion", "no Mass", "Mass")
    assert spec.provenance["targets"] == [
        ["Effusion", False],
        ["Effusion", True],
        ["Mass", False],
        ["Mass", True],
    ]
    assert gan.num_targets == 4 and gan.side == SIDE
    history, steps = pd.read_csv(folder / "history.csv"), pd.read_csv(folder / "steps.csv")
    assert history["step"].tolist() == [3, 6] and steps["discriminator_updates"].tolist() == [3, 6]
    for column in ("generator_loss", "discriminator_loss", "flip_rate", "drift", "change", "val_objective"):
        assert np.isfinite(history[column]).all(), column
    scores = json.loads((folder / "metrics.json").read_text())
    assert scores["epoch"] == history["epoch"][history["val_objective"].idxmin()]
    assert set(scores["test"]["targets"]) == set(spec.labels)
    assert scores["test"]["all"]["change"]["low"] <= scores["test"]["all"]["change"]["value"]
    pairs, parts = (
        pd.read_csv(folder / "pairs.csv"),
        data.load_split(folder / "split.csv", data.read_source(films)),
    )
    # Judged on test films alone, and the split is the classifier's own.
    assert (parts == data.load_split(classifier / "split.csv", data.read_source(films))).all()
    assert set(parts[pairs["film"]]) == {"test"} and set(pairs["asked"]) == {0, 1}
    for name in ("model.keras", "spec.json"):
        assert (folder / "classifier" / name).read_bytes() == (classifier / name).read_bytes()
    page = (folder / "report.html").read_text()
    assert "not for diagnosis" in page and page.count("data:image") >= 6 and 'type="range"' in page
    assert (folder / "tensorboard").is_dir() and not (folder / "work" / "states").exists()
    from PIL import Image

    with Image.open(folder / "samples" / "epoch-0002.png") as sheet:
        assert sheet.mode == "RGB" and sheet.text["Synthetic"] == "yes"
        assert sheet.size == (2 * SIDE + 2, 12 * SIDE + 22)


def test_a_loaded_run_changes_films_and_knows_its_classifier(finished, classifier):
    from training.counterfactuals.loaded import classifier_digest, load_counterfactual

    loaded = load_counterfactual(finished[0])
    assert [target.name for target in loaded.targets] == list(loaded.spec.labels)
    assert loaded.known.tolist() == [0, 1, 2, 3]
    import kxray

    assert loaded.digest == classifier_digest(*kxray.load(classifier))
    pixels = np.random.default_rng(0).random((3, SIDE, SIDE, 1)).astype(np.float32)
    made = loaded.counterfactuals(pixels, "no Mass")
    assert np.allclose(made.after, loaded.probabilities(made.counterfactuals), atol=1e-5)
    expected = np.clip(pixels + made.masks * loaded.gan.change(pixels, np.full(3, 2))["residual"], 0, 1)
    assert np.allclose(made.counterfactuals, expected, atol=1e-6)


@pytest.mark.slow
def test_some_targets_keep_their_names_and_an_unlearned_one_is_refused(classifier, tmp_path):
    from training.counterfactuals.loaded import load_counterfactual

    asked = ("--targets", "Mass, no Effusion", "--epochs", 1, "--no-attention", "--keep", "last")
    result = fit("--classifier", classifier, *SMOKE, *asked, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    loaded = load_counterfactual(tmp_path / "run")
    assert loaded.spec.labels == ("no Effusion", "Mass") and loaded.known.tolist() == [0, 3]
    pixels = np.full((1, SIDE, SIDE, 1), 0.5, np.float32)
    made = loaded.counterfactuals(pixels, "Mass")
    assert made.targets.tolist() == [3] and (made.masks == 1).all()
    with pytest.raises(ValueError, match="not trained for 'Effusion'; its targets are: no Effusion, Mass"):
        loaded.counterfactuals(pixels, "Effusion")
    page = (tmp_path / "run" / "report.html").read_text()
    assert "An ablation: no attention mask" in page


def test_a_finished_run_is_complete_and_options_of_an_unfinished_one_stay(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    assert "this run is complete" in fit("--resume", "--out", folder).output
    (folder / "metrics.json").unlink()
    result = fit("--resume", "--out", folder, "--width", 8)
    assert result.exit_code == 2 and "was started with --width 4" in result.output


@pytest.mark.slow
def test_a_binary_classifier_has_its_two_labels_as_targets(films, tmp_path):
    from kxray.data import read_manifest, write_manifest

    table = read_manifest(films / "manifest.csv")
    table["label"] = np.where(table["Effusion"] == 1, "Effusion", "normal")
    write_manifest(table.drop(columns=list(LABELS)), films / "classes.csv")
    write_classifier(tmp_path / "reader", films, task="binary")
    given = ("--classifier", tmp_path / "reader", "--data", films / "classes.csv", *SMOKE)
    result = fit(*given, "--least-auroc", 0.6, "--cycle-weight", 1.0, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert set(scores["test"]["targets"]) == {"normal", "Effusion"}
    # Of two labels there is no other that could drift.
    assert scores["test"]["all"]["drift"]["value"] is None
    assert "cycle" in pd.read_csv(tmp_path / "run" / "history.csv")


def test_a_classifier_near_chance_is_refused_and_so_is_one_label_of_it(films, tmp_path):
    write_classifier(tmp_path / "blind", films, strength=0.0)
    result = fit(
        "--classifier",
        tmp_path / "blind",
        "--preset",
        "smoke",
        "--least-auroc",
        0.6,
        "--out",
        tmp_path / "run",
    )
    assert result.exit_code == 2
    assert (
        "error: the classifier tells Effusion by AUROC 0.50 [0.50, 0.50] on 12 validation films"
        in result.output
    )
    assert "near chance, a counterfactual of it would explain nothing" in result.output
    assert not (tmp_path / "run").exists()


def test_labels_near_chance_leave_the_others(finished):
    from kxray.spec import ModelSpec
    from training.counterfactuals import cf_targets
    from training.recipes.counterfactual_gan import Recipe

    spec = ModelSpec("reader", LABELS, "multilabel", (SIDE, SIDE))
    truths = np.array([[1, 0], [0, 1], [1, 1], [0, 0]] * 10, float)
    said = np.stack([truths[:, 0], np.tile([0.2, 0.4, 0.4, 0.2], 10)], axis=1)
    said[:, 1] = np.where(np.arange(40) % 3 == 0, 0.9, 0.1)
    scores = cf_targets.label_scores(spec, truths, said, np.arange(40), "validation films")
    assert scores["Effusion"]["value"] == 1.0 and scores["Mass"]["low"] < 0.5
    learned = cf_targets.choose(Recipe(), spec, truths, np.arange(40), scores)
    assert learned.names == ("no Effusion", "Effusion") and "tells Mass by AUROC" in learned.notes[0]
    assert learned.held.shape == (2, 40)
    # Film 0 has an effusion: from "no Effusion" it is changed back by "Effusion", whatever its labels are.
    assert learned.back(truths)[:, 0].tolist() == [1, 0]
    everything = cf_targets.choose(Recipe(least_auroc=0.0), spec, truths, np.arange(40), scores)
    assert len(everything.targets) == 4
    alike = cf_targets.label_scores(spec, np.ones((4, 2)), np.ones((4, 2)), np.arange(4), "validation films")
    assert math.isnan(alike["Mass"]["value"])
    with pytest.raises(ValueError, match="whether the classifier tells Effusion nobody knows"):
        cf_targets.choose(Recipe(), spec, truths, np.arange(40), alike)


def test_other_films_have_a_split_of_their_own_and_moved_ones_the_classifiers(classifier, films, tmp_path):
    shutil.copytree(films, tmp_path / "moved")
    given = ("--classifier", classifier, *SMOKE, "--dry-run")
    own = fit(*given).output
    assert "train: 24 films: no Effusion" in own and "32-px films; 2 epochs of 3 steps" in own
    assert fit(*given, "--data", tmp_path / "moved").output == own.replace(
        '"data": null', f'"data": "{tmp_path / "moved"}"'
    )
    write_films(tmp_path / "others", count=40, seed=1)
    result = fit(*given, "--data", tmp_path / "others")
    assert result.exit_code == 0, result.output
    assert "the films are not those of the classifier's run: they have a split of their own" in result.output


def test_a_classifier_with_folds_has_seen_all_of_its_films(classifier, tmp_path):
    shutil.copytree(classifier, tmp_path / "folded")
    config = json.loads((tmp_path / "folded" / "config.json").read_text())
    config["options"]["folds"] = 5
    (tmp_path / "folded" / "config.json").write_text(json.dumps(config))
    result = fit("--classifier", tmp_path / "folded", *SMOKE, "--dry-run")
    assert result.exit_code == 0, result.output
    assert "kept after 5 folds and has been trained on all of its films" in result.output


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            ("--targets", "Efusion"),
            "unknown target 'Efusion'; the targets of this classifier are: no Effusion",
        ),
        (("--batch-size", 6, "--accumulate", 4), "does not divide into --accumulate 4 parts"),
        (("--augment", "mirror"), "--augment mirror: expected none, or some of brightness"),
        (("--classifier-weight", 0, "--adversarial-weight", 0), "nothing asks for a change"),
        (("--data", "nowhere"), "nowhere"),
    ],
)
def test_told_before_anything_is_trained(classifier, given, sentence, tmp_path):
    result = fit("--classifier", classifier, *SMOKE, "--out", tmp_path / "run", *given)
    assert result.exit_code == 2 and sentence in result.output
    assert not (tmp_path / "run").exists()


def test_what_is_no_classifier_is_refused(finished, films, tmp_path):
    result = fit(*SMOKE)
    assert result.exit_code == 2 and "--classifier is missing" in result.output
    result = fit("--classifier", films, *SMOKE)
    assert result.exit_code == 2 and "expected a run folder with a trained classifier" in result.output
    result = fit("--classifier", finished[0], *SMOKE)
    assert result.exit_code == 2 and "(task counterfactual) classifies nothing" in result.output
    write_classifier(tmp_path / "odd", films, side=36)
    result = fit("--classifier", tmp_path / "odd", *SMOKE)
    assert result.exit_code == 2 and "takes films of 36x36 pixels" in result.output


def test_another_classifier_cannot_go_on_with_a_run(finished, films, tmp_path):
    folder, run = tmp_path / "run", tmp_path / "reader"
    shutil.copytree(finished[0], folder)
    (folder / "metrics.json").unlink()
    write_classifier(run, films, strength=10.0)
    config = json.loads((folder / "config.json").read_text())
    config["options"]["classifier"] = str(run)
    (folder / "config.json").write_text(json.dumps(config))
    result = fit("--resume", "--out", folder)
    assert result.exit_code == 2 and "is not the one this run was started with" in result.output


def test_presets_name_options_that_there_are():
    from training import options
    from training.counterfactuals import cf_options
    from training.recipes import counterfactual_gan

    for name in counterfactual_gan.PRESETS:
        recipe = options.resolve(counterfactual_gan.Recipe, counterfactual_gan.PRESETS, {"preset": name})
        assert cf_options.kept_by(recipe) == "val_objective" and cf_options.weights_of(recipe).identity == 10
    without = counterfactual_gan.Recipe(classifier_weight=0.0)
    # Without the classifier's word the objective is best where nothing changes: it chooses no epoch.
    assert cf_options.kept_by(without) == ""


def test_pairs_are_drawn_evenly_and_have_partners():
    from training.counterfactuals import cf_scores

    held = np.array([[1, 0, 1, 0, -1, 0], [0, 0, 0, 0, 0, 1]], np.int8)
    pairs = cf_scores.pairs_of(held, np.arange(6), 4, seed=0)
    assert np.bincount(pairs.targets[pairs.asked]).tolist() == [2, 2]
    assert all(
        held[t, f] == (0 if asked else 1)
        for f, t, asked in zip(pairs.films, pairs.targets, pairs.asked, strict=True)
    )
    changed, having = pairs.partners()
    assert len(changed) == 4 and (pairs.targets[changed] == pairs.targets[having]).all()
    assert pairs.asked[changed].all() and not pairs.asked[having].any()
    again = cf_scores.pairs_of(held, np.arange(6), 4, seed=0)
    assert (again.films == pairs.films).all()


def test_what_a_mask_that_says_nothing_is_told_of():
    from training.counterfactuals import cf_epochs

    row = {"epoch": 3, "step": 30, "mask_low": 0.96, "mask_high": 1.0}
    assert "above 0.95 everywhere after epoch 3" in cf_epochs.findings(row, masked=True)[0]["sentence"]
    assert cf_epochs.findings(row, masked=False) == []
    row |= {"mask_low": 0.0, "mask_high": 0.0005}
    assert cf_epochs.findings(row, masked=True)[0]["kind"] == "empty mask"
    assert cf_epochs.findings(row | {"mask_high": 0.5}, masked=True) == []


def test_a_difference_is_red_where_brighter_blue_where_darker_and_white_where_nothing_is():
    from training.report.counterfactual_pictures import difference_picture, strip

    picture = difference_picture(np.array([[0.2, -0.2, 0.0, 0.1]]))
    assert picture[0, 0].tolist() == [217, 26, 26] and picture[0, 1].tolist() == [26, 64, 230]
    assert picture[0, 2].tolist() == [255, 255, 255] and picture[0, 3, 0] > picture[0, 3, 1] > 26
    assert difference_picture(np.zeros((2, 2))).min() == 255
    assert strip(np.zeros((3, 8, 4))).startswith("data:image/jpeg;base64,")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_program_killed_twice_ends_bit_equal(run_program, start_program, classifier, tmp_path):
    """About two minutes on two cores."""
    given = (*SMOKE, "--deterministic", "--steps", 40, "--epochs", 3, "--self-attention")
    command = ("-m", "training.fit", "counterfactual_gan", "--classifier", classifier, *given)
    told = run_program(*command, "--out", tmp_path / "whole")
    assert told.code == 0, told.text
    folder = tmp_path / "killed"
    for wait in (2.0, 6.0):
        resume = ("-m", "training.fit", "counterfactual_gan", "--resume")
        process = start_program(*(resume if (folder / "config.json").exists() else command), "--out", folder)
        until = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < until and not (folder / "split.csv").exists():
            time.sleep(0.1)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
    told = run_program("-m", "training.fit", "counterfactual_gan", "--resume", "--out", folder)
    assert told.code == 0, told.text
    histories = [pd.read_csv(tmp_path / name / "history.csv") for name in ("whole", "killed")]
    pd.testing.assert_frame_equal(*(table.drop(columns="seconds") for table in histories))
    pairs = [pd.read_csv(tmp_path / name / "pairs.csv") for name in ("whole", "killed")]
    pd.testing.assert_frame_equal(*pairs)
    import kxray

    one, other = (kxray.load(tmp_path / name)[0].get_weights() for name in ("whole", "killed"))
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


@pytest.mark.slow
def test_two_devices_and_half_precision(run_program, classifier, tmp_path):
    """About a minute: the whole run under MirroredStrategy on two logical CPUs, and in bfloat16."""
    script = tmp_path / "two.py"
    script.write_text(
        "import sys, tensorflow as tf\n"
        "cpus = tf.config.list_physical_devices('CPU')\n"
        "tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)\n"
        "from training.fit import main\n"
        "main(sys.argv[1:])\n"
    )
    given = ("counterfactual_gan", "--classifier", classifier, *SMOKE)
    told = run_program(script, *given, "--strategy", "mirrored", "--out", tmp_path / "two")
    assert told.code == 0, told.text
    config = json.loads((tmp_path / "two" / "config.json").read_text())
    assert config["replicas"] == 2
    # Nothing of the classifier has changed on either device.
    from training.counterfactuals.loaded import load_counterfactual

    assert load_counterfactual(tmp_path / "two").digest == config["classifier"]["digest"]
    told = run_program(script, *given, "--mixed-precision", "--out", tmp_path / "half")
    assert told.code == 0, told.text
    assert np.isfinite(pd.read_csv(tmp_path / "half" / "history.csv")["generator_loss"]).all()
