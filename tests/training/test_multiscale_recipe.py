"""The recipe multiscale_cam from films to a served model, on a tiny network that goes by DenseNet's name."""

import json
import shutil
import textwrap
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import kxray

FEW = ("--epochs", 2, "--batch-size", 8, "--image-size", 40)


@pytest.fixture
def fit(tiny_densenet):
    """Runs `training.fit multiscale_cam` in this process."""
    from training.fit import main

    def run(*arguments):
        result = CliRunner().invoke(main, ["multiscale_cam", *map(str, arguments)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    yield run
    keras.config.set_dtype_policy("float32")


def history_of(run):
    return pd.read_csv(run / "history.csv")


@pytest.mark.slow
def test_from_films_to_a_served_explanation(fit, fillets, tmp_path, run_program):
    run = tmp_path / "run"
    code, text = fit("--data", fillets, "--out", run, *FEW, "--test-time-flips")
    assert code == 0, text
    model, spec = kxray.load(run)
    assert spec.task == "multiclass" and spec.labels == ("bone", "no_bone") and spec.image_size == (40, 40)
    scores = json.loads((run / "metrics.json").read_text())
    assert 0 <= scores["with_test_time_flips"]["value"] <= 1
    report = (run / "report.html").read_text()
    for section in ("relevance", "block2", "averaged over the mirror images"):
        assert section in report.lower(), section
    # In a process of its own: the .keras file and the SavedModel give the same numbers.
    films = np.random.default_rng(0).random((3, 40, 40, 1)).astype("float32")
    np.save(tmp_path / "films.npy", films)
    code = """
        import sys, numpy as np, kxray, tensorflow as tf
        run, folder, exported = sys.argv[1:]
        films = np.load(folder + "/films.npy")
        model, spec = kxray.load(run)
        loaded = tf.saved_model.load(exported)
        answers = loaded.signatures["predict_pixels"](pixels=tf.constant(films))["probabilities"]
        np.savez(folder + "/answers.npz", keras=model(films), served=answers)
    """
    told = run_program("-c", textwrap.dedent(code), run, tmp_path, scores["saved_model"])
    assert told.code == 0, told.text
    answers = np.load(tmp_path / "answers.npz")
    np.testing.assert_allclose(answers["keras"], model(films), atol=1e-6)
    logits = np.log(answers["keras"]) / spec.temperature
    served = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(answers["served"], served, atol=1e-5)


@pytest.fixture
def fit_only(fit, monkeypatch):
    """`fit` without its report and its SavedModel."""
    monkeypatch.setattr("training.report.classifier.write_report", lambda *arguments, **more: None)
    monkeypatch.setattr("serving.export.export", lambda run, to: to)
    return fit


@pytest.mark.slow
def test_the_second_training_of_a_process_is_as_if_it_were_the_first(fit_only, fillets, tmp_path):
    # Folds share one compiled network, which every training starts afresh.
    run = tmp_path / "run"
    assert fit_only("--data", fillets, "--out", run, *FEW, "--folds", 2)[0] == 0
    before = pd.read_csv(run / "predictions.csv")
    (run / "metrics.json").unlink()
    (run / "work" / "fold-1.csv").unlink()
    shutil.rmtree(run / "work" / "fold-2-of-2")
    # Resumed, the second fold is trained alone, in a network that is compiled for it.
    assert fit_only("--resume", "--out", run)[0] == 0
    pd.testing.assert_frame_equal(before, pd.read_csv(run / "predictions.csv"), atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_early_stopping_keeps_the_best_epoch(fit_only, fillets, tmp_path):
    run = tmp_path / "run"
    given = ("--epochs", 30, "--patience", 1, "--learning-rate", 0.9)
    assert fit_only("--data", fillets, "--out", run, *FEW, *given)[0] == 0
    history = history_of(run)
    assert len(history) < 30 and history["val_loss"].idxmin() == len(history) - 2


@pytest.mark.slow
def test_starting_weights_and_a_frozen_backbone(fit_only, fillets, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert fit_only("--data", fillets, "--out", first, *FEW, "--label-column", "calibre")[0] == 0
    before, spec = kxray.load(first)
    assert spec.labels == ("medium", "none", "thick", "thin")
    assert fit_only("--data", fillets, "--out", second, *FEW, "--init", first, "--freeze")[0] == 0
    after, _ = kxray.load(second)
    for name in ("conv1", "bn1", "conv4", "bn4"):
        for was, now in zip(
            before.get_layer(name).get_weights(), after.get_layer(name).get_weights(), strict=True
        ):
            np.testing.assert_array_equal(was, now)


@pytest.mark.slow
def test_penalty_and_half_precision(fit_only, fillets, tmp_path):
    run = tmp_path / "run"
    given = ("--constraint", "penalty", "--mixed-precision", "--taps", "block1,block4")
    code, text = fit_only("--data", fillets, "--out", run, *FEW, *given)
    assert code == 0, text
    model, _ = kxray.load(run)
    relevance = model.get_layer("layer_relevance")
    assert relevance.constraint == "penalty" and 0 < relevance.distance_from_convex() < 0.5
    assert model.get_layer("conv1").compute_dtype == "bfloat16" and model.outputs[0].dtype == "float32"


TWO_DEVICES = """
    import sys
    import keras
    import tensorflow as tf

    device = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * 2)
    sys.path.insert(0, sys.argv[1])
    from tiny_densenet import tiny_densenet

    keras.applications.DenseNet121 = tiny_densenet
    from training.fit import main

    main(
        ["multiscale_cam", "--data", sys.argv[2], "--out", sys.argv[3], "--epochs", "1", "--batch-size", "8",
         "--image-size", "40", "--strategy", "mirrored", "--constraint", "penalty"],
        standalone_mode=False,
    )
"""


@pytest.mark.slow
def test_two_devices(fillets, tmp_path, run_program):
    here = Path(__file__).parent
    told = run_program("-c", textwrap.dedent(TWO_DEVICES), here, fillets, tmp_path / "run")
    assert told.code == 0, told.text
    assert json.loads((tmp_path / "run" / "config.json").read_text())["replicas"] == 2
    assert np.isfinite(history_of(tmp_path / "run")["val_loss"]).all()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--taps", "block2,conv3"), "'conv3' is none"),
        (("--taps", "5"), "has 4 stages (block1, block2, block3, block4), got 5 taps"),
        (("--image-size", 20), "needs films of at least 32 x 32 pixels, got (20, 20)"),
        (("--freeze",), "give trained ones with --init"),
        (("--init", "nowhere/run"), "nowhere/run: no such run folder or file of weights"),
        (("--test-time-flips", "--flips", "none"), "averages over the views of --flips, which are none"),
        (("--label-column", "nothing"), "expected a column 'nothing'"),
    ],
)
def test_wrong_options_end_before_any_film_is_read(fit, fillets, tmp_path, given, words, monkeypatch):
    monkeypatch.setattr("kxray.data.pipeline.load_inputs", lambda *arguments, **options: 1 / 0)
    table = pd.read_csv(fillets / "manifest.csv").drop(columns="label")
    if "nothing" in given:
        table.assign(path=[str(fillets / path) for path in table["path"]]).drop(columns=["masks"]).to_csv(
            tmp_path / "manifest.csv", index=False
        )
    data = tmp_path if "nothing" in given else fillets
    code, text = fit("--data", data, "--out", tmp_path / "run", *given)
    assert code == 2 and words in text and text.count("error: ") == 1, text
    assert not (tmp_path / "run").exists()


def test_films_that_cannot_be_trained_on(fit, fillets, tmp_path):
    table = kxray.data.read_source(fillets)
    alone = table[table["label"] == "no_bone"].head(20)
    one_bone = pd.concat([alone, table[table["label"] == "bone"].head(1)])
    kxray.data.write_manifest(one_bone.drop(columns=["masks", "boxes"]), tmp_path / "manifest.csv")
    for given in ((), ("--dry-run",)):
        code, text = fit("--data", tmp_path, "--out", tmp_path / "run", *FEW, *given)
        assert code == 2 and "label 'bone' has 1 " in text, text
    kxray.data.write_manifest(alone.drop(columns=["masks", "boxes"]), tmp_path / "manifest.csv")
    code, text = fit("--data", tmp_path, "--out", tmp_path / "run", *FEW)
    assert code == 2 and "every film is labelled 'no_bone'" in text, text
    from kxray.io.image import write_png16

    write_png16(tmp_path / "small.png", np.full((20, 20), 0.5, np.float32))
    few = pd.concat([alone, table[table["label"] == "bone"].head(5)]).drop(columns=["masks", "boxes"])
    few.iloc[0, few.columns.get_loc("path")] = str(tmp_path / "small.png")
    kxray.data.write_manifest(few, tmp_path / "manifest.csv")
    code, text = fit("--data", tmp_path, "--out", tmp_path / "run", *FEW)
    assert code == 2 and "20 x 20 pixels are too few; this model takes films of 32" in text, text
