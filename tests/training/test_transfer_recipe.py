"""The recipe transfer: heads on features computed once, against the whole network trained as it stands."""

import contextlib
import dataclasses
import io
import json
import textwrap

import keras
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from keras import layers
from rich.console import Console

import kxray
from kxray.data import features, pipeline
from kxray.io import encode_png16
from training import films as film_tables
from training import loop, scoring, shell
from training.fitting import Fitting
from training.frozen import scale_of
from training.recipes import transfer

FILMS = 36


def tiny(include_top, weights, input_tensor, input_shape=None, pooling=None):
    """Three small stages in the place of MobileNetV2."""
    x = input_tensor
    for number in (1, 2, 3):
        x = layers.Conv2D(4 * number, 3, padding="same", use_bias=False, name=f"conv{number}")(x)
        x = layers.BatchNormalization(name=f"bn{number}")(x)
        x = layers.ReLU(name=f"relu{number}")(x)
        x = layers.AveragePooling2D(2, name=f"pool{number}")(x) if number < 3 else x
    return keras.Model(keras.utils.get_source_inputs(input_tensor), x, name="tiny")


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Films of noise; those of the second class have a bright square somewhere."""
    folder, random = tmp_path_factory.mktemp("squares"), np.random.default_rng(0)
    paths, labels = [], np.arange(FILMS) % 2
    for index, label in enumerate(labels):
        pixels = random.random((40, 40)).astype("float32") * 0.5
        if label:
            y, x = random.integers(0, 24, 2)
            pixels[y : y + 16, x : x + 16] += 0.5
        paths.append(folder / f"{index:02}.png")
        paths[-1].write_bytes(encode_png16(pixels))
    table = pd.DataFrame({"path": [*map(str, paths)], "training_only": False})
    spec = kxray.ModelSpec("transfer", ("empty", "square"), "multiclass", (32, 32))
    inputs = pipeline.load_inputs(paths, spec)
    nothing = np.zeros((FILMS, 0))
    return film_tables.RunFilms(table, inputs, labels, nothing, nothing, ())


TRAIN, VALIDATION, TEST = np.arange(0, 20), np.arange(20, 28), np.arange(28, FILMS)


@pytest.fixture
def fitting(backbone, films, tmp_path):
    """A function that makes a Fitting; options of the recipe may be given, and fields of the task."""

    def make(task=(), films=films, folder="run", features_folder=None, **options):
        given = {"backbone": "mobilenetv2", "weights": "none", "image_size": 32, "epochs": 3, "batch_size": 8}
        recipe = transfer.Recipe(**{**given, **options})
        own = {"labels": ("empty", "square"), **dict(task)}
        made = dataclasses.replace(transfer.task_of(recipe), **own)
        progress = shell.progress_bars(Console(file=io.StringIO()))
        devices = (contextlib.nullcontext, 1)
        return Fitting(recipe, made, films, tmp_path / folder, progress, devices, features_folder)

    return make


def train(fitting, seed=0, train_rows=TRAIN, validation_rows=VALIDATION, name="work/model"):
    return fitting.train(name, "model", train_rows, validation_rows, seed)


def head_of(model):
    return model.get_layer("logits").get_weights()


def assert_alike(ours, theirs, **tolerance):
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, **tolerance)


def test_heads_on_kept_features_are_those_of_the_naive_training(fitting):
    naive = fitting(
        task={"frozen_features": False}, folder="naive", standardize=False, epochs=4, flips="none"
    )
    naive.task = dataclasses.replace(naive.task, augment=tuple)
    theirs, their_history = train(naive)
    cached = fitting(standardize=False, epochs=4)
    ours, our_history = train(cached)
    assert_alike(head_of(ours), head_of(theirs), atol=1e-4)
    pd.testing.assert_frame_equal(our_history, their_history, atol=1e-4, rtol=1e-3)
    assert len(our_history) == 4 and our_history["loss"].is_monotonic_decreasing
    for rows in (VALIDATION, TEST):
        np.testing.assert_allclose(cached.logits_of(rows), naive.logits_of(rows), atol=1e-4)
    assert cached.feature_seconds > 0 and cached.feature_bytes > 0
    assert naive.feature_seconds == 0 and naive.feature_bytes == 0


def test_a_standardised_head_is_that_of_a_network_with_a_scaler(fitting, films):
    cached = fitting(epochs=4)
    ours, our_history = train(cached)
    values = keras.Model(ours.input, ours.get_layer("features").output)(films.inputs.pixels[TRAIN]).numpy()
    variance = np.maximum(values.var(axis=0), np.median(values.var(axis=0)))
    np.testing.assert_allclose(
        scale_of(values[:, None], np.arange(20)), [values.mean(axis=0), variance], rtol=1e-4
    )
    naive = fitting(task={"frozen_features": False}, folder="naive", epochs=4)
    build = naive.task.build

    def with_scaler(spec):
        model = build(spec)
        scaler = layers.Normalization(mean=values.mean(axis=0), variance=variance, name="scaler")
        x = model.get_layer("logits")(scaler(model.get_layer("features").output))
        return keras.Model(model.input, model.get_layer("probabilities")(x))

    naive.task = dataclasses.replace(naive.task, build=with_scaler, augment=tuple)
    theirs, their_history = train(naive)
    pd.testing.assert_frame_equal(our_history, their_history, atol=1e-4, rtol=1e-3)
    # Folded into the head, the scaler is part of the plain network.
    pixels = films.inputs.pixels[TEST]
    np.testing.assert_allclose(ours(pixels), theirs(pixels), atol=1e-4)
    assert [layer.name for layer in ours.layers][-3:] == ["features", "logits", "probabilities"]


def test_logits_are_those_of_the_returned_network(fitting, films, tmp_path):
    cached = fitting(flips="dihedral")
    model, _ = train(cached)
    for flips in ("none", "horizontal", "dihedral"):
        whole = scoring.logits_of(model, films.inputs, TEST, flips)
        np.testing.assert_allclose(cached.logits_of(TEST, flips), whole, atol=1e-4)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(films.inputs.pixels), model(films.inputs.pixels), atol=1e-6)
    # A second run finds all three sets of features.
    again = fitting(flips="dihedral", folder="again", features_folder=tmp_path / "run" / "work" / "features")
    train(again)
    again.logits_of(TEST, "dihedral")
    assert again.feature_seconds == 0.0


def test_nothing_of_validation_or_test_films_enters_the_head(fitting, films):
    """Other pixels and labels in validation and test films change neither the head nor its scaler."""

    def trained_with(changed, folder):
        pixels, labels = films.inputs.pixels.copy(), films.labels.copy()
        pixels[changed] = 1 - pixels[changed] ** 3
        labels[changed] = 1 - labels[changed]
        inputs = dataclasses.replace(films.inputs, pixels=pixels)
        # One epoch, so that validation chooses nothing; a folder of its own, so that no features are found.
        made = fitting(
            epochs=1, folder=folder, films=dataclasses.replace(films, inputs=inputs, labels=labels)
        )
        model, history = train(made)
        assert made.feature_seconds > 0
        return [*head_of(model), *made._frozen._scaler.get_weights()], history["val_loss"].iloc[0]

    before, loss = trained_with([], "before")
    after, other_loss = trained_with([*VALIDATION, *TEST], "after")
    assert other_loss != loss
    assert_alike(before, after, rtol=0, atol=0)
    after, _ = trained_with(TRAIN[:2], "training")
    assert all(np.abs(one - other).max() > 1e-5 for one, other in zip(before, after, strict=True))


def accuracy_of(fitting, labels):
    return np.mean(fitting.logits_of(TEST).argmax(axis=1) == labels[TEST])


def test_permuted_labels_score_by_chance_on_the_very_same_features(fitting, films, tmp_path):
    honest = fitting(epochs=10, learning_rate=0.05)
    train(honest)
    assert accuracy_of(honest, films.labels) >= 0.85
    scores = []
    for seed in range(6):
        labels = np.random.default_rng(seed).permutation(films.labels)
        permuted = fitting(
            films=dataclasses.replace(films, labels=labels),
            folder=f"permuted-{seed}",
            features_folder=tmp_path / "run" / "work" / "features",
            epochs=10,
            learning_rate=0.05,
        )
        train(permuted)
        assert permuted.feature_seconds == 0.0, "labels are no part of the cache"
        scores.append(accuracy_of(permuted, labels))
    assert 0.25 <= np.mean(scores) <= 0.75, scores


def test_augmented_views_train_and_plain_ones_validate(fitting, films):
    cached = fitting(augment=3, epochs=5)
    model, history = train(cached)
    assert cached._frozen.features.values.shape[:2] == (FILMS, 4)
    _, plain_history = train(fitting(folder="plain", epochs=5))
    assert np.abs(history["loss"] - plain_history["loss"]).max() > 1e-3
    # The kept validation loss is that of the films as they are.
    probabilities = np.asarray(model(films.inputs.pixels[VALIDATION]))
    loss = -np.log(probabilities[np.arange(8), films.labels[VALIDATION]]).mean()
    assert loss == pytest.approx(history["val_loss"].min(), abs=1e-4)
    again = train(fitting(augment=3, epochs=5, folder="again"))[1]
    pd.testing.assert_frame_equal(again, history, check_exact=True)


def test_the_second_training_is_as_if_it_were_the_first(fitting):
    several = fitting()
    train(several, seed=1, name="work/other", train_rows=TRAIN[:12])
    second, _ = train(several, seed=0)
    alone, _ = train(fitting(folder="alone"), seed=0)
    assert_alike(head_of(second), head_of(alone), rtol=0, atol=0)


def test_a_killed_training_ends_as_an_uninterrupted_one(fitting, monkeypatch):
    monkeypatch.setitem(loop.train.__kwdefaults__, "save_every", 0.0)
    given = {"augment": 2, "epochs": 6}
    whole, history = train(fitting(folder="whole", **given))
    killed = fitting(**given)
    update = killed.progress.update

    def stop(bar, **told):
        if told.get("completed") == 3 and "validation" in told.get("facts", ""):
            raise KeyboardInterrupt
        update(bar, **told)

    monkeypatch.setattr(killed.progress, "update", stop)
    with pytest.raises(KeyboardInterrupt):
        train(killed)
    resumed, resumed_history = train(fitting(**given))
    pd.testing.assert_frame_equal(history, resumed_history, check_exact=True)
    assert_alike(whole.get_weights(), resumed.get_weights(), rtol=0, atol=0)
    # And once more from its finished files.
    found, _ = train(fitting(**given))
    assert_alike(whole.get_weights(), found.get_weights(), rtol=0, atol=0)


def backbone_of(model):
    return {
        variable.path: variable.numpy()
        for variable in model.variables
        if not variable.path.startswith("logits")
    }


def test_a_frozen_backbone_stays_and_a_fine_tuned_one_moves_stage_by_stage(fitting):
    def untrained(fitting):
        import random

        random.seed(0)
        return backbone_of(fitting.task.build(fitting.task.spec))

    frozen = fitting()
    start = untrained(frozen)
    for path, value in backbone_of(train(frozen)[0]).items():
        np.testing.assert_array_equal(value, start[path], err_msg=path)
    tuned = fitting(mode="fine_tune", unfreeze_epochs=1, epochs=4, warmup=0.0, folder="tuned")
    update, after = tuned.progress.update, {}

    def look(bar, **told):
        if "facts" in told:
            after.setdefault(told["completed"], backbone_of(tuned._model))
        update(bar, **told)

    tuned.progress.update = look
    train(tuned)
    factors = tuned._model.optimizer.factors
    assert set(factors.values()) == {0.1} and len(factors) == 3, "kernels; batch normalisation is frozen"
    assert sorted(set(tuned._model.optimizer.first_steps.values())) == [3, 6, 9]
    moved = {
        epoch: {path for path in start if (values[path] != start[path]).any()}
        for epoch, values in after.items()
    }
    kernels = [f"conv{number}/kernel" for number in (3, 2, 1)]
    assert moved == {0: set(), 1: set(), 2: {*kernels[:1]}, 3: {*kernels[:2]}, 4: {*kernels}}


def test_the_whole_backbone_is_fine_tuned_at_a_lower_rate(fitting):
    tuned = fitting(mode="fine_tune", epochs=4, learning_rate=0.02)
    model, history = train(tuned)
    assert history["loss"].iloc[-1] < history["loss"].iloc[0] and not tuned.feature_bytes
    import random

    random.seed(0)
    start = tuned.task.build(tuned.task.spec)
    first, last = (
        np.abs(model.get_layer(name).kernel.numpy() - was).max()
        for name, was in (("conv1", start.get_layer("conv1").kernel.numpy()), ("logits", 0.0))
    )
    # A step of Adam is about as long as its rate, and the backbone's is a tenth of the head's.
    assert 0 < first < last / 4
    np.testing.assert_allclose(
        tuned.logits_of(TEST), scoring.logits_of(model, tuned.films.inputs, TEST), atol=1e-5
    )


# From the shell


@pytest.fixture
def fit(backbone):
    from training.fit import main

    def run(*arguments):
        result = CliRunner().invoke(main, ["transfer", *map(str, arguments)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return run


FEW = ("--backbone", "mobilenetv2", "--weights", "none", "--image-size", 32, "--epochs", 2, "--batch-size", 8)


@pytest.mark.slow
@pytest.mark.parametrize("mode", transfer.OF_MODE)
def test_from_films_to_a_served_model(fit, fillets, tmp_path, mode):
    run = tmp_path / "run"
    code, text = fit("--data", fillets, "--out", run, *FEW, "--mode", mode, "--folds", 2, "--test-time-flips")
    assert code == 0, text
    assert f"mobilenetv2 in 3 stages, {mode}: " in text
    model, spec = kxray.load(run)
    assert spec.labels == ("bone", "no_bone") and spec.provenance["recipe"] == "transfer"
    scores = json.loads((run / "metrics.json").read_text())
    assert 0 <= scores["with_test_time_flips"]["value"] <= 1
    # A process that knows nothing of training loads it, optimizer or not.
    assert not keras.saving.load_model(run / "model.keras").compiled
    kept = list((run / "work").glob("features/*.npy"))
    assert len(kept) == (2 if mode == "feature_extractor" else 0)
    resumed = fit("--resume", "--out", run)
    assert resumed[0] == 0 and "this run is complete" in resumed[1]


TWO_DEVICES = """
    import sys
    import keras
    import tensorflow as tf

    device = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * 2)
    sys.path.insert(0, sys.argv[1])
    from test_transfer_recipe import tiny

    keras.applications.MobileNetV2 = tiny
    from training.fit import main

    main(["transfer", *sys.argv[2:]], standalone_mode=False)
"""


@pytest.mark.slow
def test_two_devices_and_half_precision(fillets, tmp_path, run_program, fit):
    from pathlib import Path

    here, histories = Path(__file__).parent, {}
    for mode in transfer.OF_MODE:
        given = ("--data", fillets, *FEW, "--mode", mode)
        for name, more in (("two", ("--strategy", "mirrored")), ("half", ("--mixed-precision",))):
            run = tmp_path / f"{mode}-{name}"
            told = run_program("-c", textwrap.dedent(TWO_DEVICES), here, *given, "--out", run, *more)
            assert told.code == 0, told.text
            histories[mode, name] = pd.read_csv(run / "history.csv")
        assert json.loads((tmp_path / f"{mode}-two" / "config.json").read_text())["replicas"] == 2
    assert fit("--data", fillets, *FEW, "--out", tmp_path / "one")[0] == 0
    one = pd.read_csv(tmp_path / "one" / "history.csv")
    # Accuracy counts the films that fill up a batch.
    for loss in ("loss", "val_loss"):
        np.testing.assert_allclose(one[loss], histories["feature_extractor", "two"][loss], rtol=1e-2)
    for history in histories.values():
        assert np.isfinite(history.to_numpy()).all()


def test_a_dry_run_tells_what_would_be_trained(fit, fillets):
    code, text = fit("--data", fillets, *FEW, "--dry-run")
    total = 3 * 9 * 4 + 4 * 9 * 8 + 8 * 9 * 12 + 4 * (4 + 8 + 12) + 12 * 2 + 2
    assert code == 0 and f"feature_extractor: 26 of {total:,} parameters are trained" in text, text
    code, text = fit(*FEW, "--dry-run", "--mode", "fine_tune")
    trained = 3 * 9 * 4 + 4 * 9 * 8 + 8 * 9 * 12 + 26
    assert code == 0 and f"in 3 stages, fine_tune: {trained:,} of {total:,}" in text, text


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--backbone", "mobilenet2"), "unknown backbone 'mobilenet2'"),
        (("--image-size", 20), "needs films of at least 32 x 32 pixels"),
        (("--weights", "nowhere.h5"), "nowhere.h5: expected imagenet, none, or a run folder or file"),
        (("--trained-stages", 1), "--trained-stages: only with --mode fine_tune"),
        (("--mode", "fine_tune", "--augment", 2), "--augment: only with --mode feature_extractor"),
        (("--mode", "fine_tune", "--unfreeze-epochs", 2), "the backbone would never train in 2 epochs"),
        (
            ("--mode", "fine_tune", "--unfreeze-epochs", 2, "--epochs", 5),
            "begin one by one, the last after 6 epochs, so 1 would never train in 5 epochs; give more than 6 "
            "epochs, fewer --unfreeze-epochs, or --trained-stages 2",
        ),
        (("--export", "models [tb]"), "TensorFlow writes no SavedModel below a folder with '[' in its name"),
        (("--test-time-flips", "--flips", "none"), "averages over the views of --flips, which are none"),
    ],
)
def test_wrong_options_end_before_any_film_is_read(fit, fillets, tmp_path, given, words, monkeypatch):
    monkeypatch.setattr("kxray.data.pipeline.load_inputs", lambda *arguments, **options: 1 / 0)
    code, text = fit("--data", fillets, "--out", tmp_path / "run", *FEW, *given)
    assert code == 2 and words in text and text.count("error: ") == 1, text
    assert not (tmp_path / "run").exists()


def test_stages_that_all_begin_are_not_refused(fit):
    given = ("--mode", "fine_tune", "--unfreeze-epochs", 2, "--epochs", 5, "--trained-stages", 2)
    code, text = fit(*FEW, *given, "--dry-run")
    assert code == 0 and "in 3 stages, fine_tune: " in text, text


def test_a_folder_that_nothing_can_be_exported_to_is_refused(fit, fillets, tmp_path, monkeypatch):
    monkeypatch.setattr("kxray.data.pipeline.load_inputs", lambda *arguments, **options: 1 / 0)
    out = tmp_path / "with [tb] space" / "run"
    for more in ((), ("--dry-run",)):
        code, text = fit("--data", fillets, "--out", out, *FEW, *more)
        assert code == 2 and f"error: {out}: TensorFlow writes no SavedModel below" in text, text
    assert not out.parent.exists()


def test_starting_weights_are_remembered_by_their_place(fit, fillets, tmp_path, monkeypatch):
    first = tmp_path / "first"
    code, text = fit("--data", fillets, "--out", first, *FEW, "--mode", "fine_tune")
    assert code == 0 and "in 3 stages, fine_tune: " in text and " parameters are trained" in text, text
    monkeypatch.chdir(tmp_path)
    second = tmp_path / "second"
    code, text = fit("--data", fillets, "--out", second, *FEW, "--weights", "first")
    assert code == 0, text
    config = json.loads((second / "config.json").read_text())
    assert config["options"]["weights"] == str(first)
    assert any("were trained on these very films" in note for note in config["notes"])
    before, after = (backbone_of(kxray.load(run)[0]) for run in (first, second))
    for path, value in before.items():
        np.testing.assert_array_equal(after[path], value, err_msg=path)


def test_a_damaged_cache_is_told_of(fitting):
    model, _ = train(fitting())
    (kept,) = fitting().folder.glob("work/features/*.npy")
    kept.write_bytes(kept.read_bytes()[:-1])
    again = fitting(features_folder=kept.parent, folder="again")
    other, _ = train(again)
    assert "computed anew" in again.progress.console.file.getvalue() and again.feature_seconds > 0
    assert_alike(head_of(model), head_of(other), atol=1e-6)
    assert features.load_features(again.films.inputs, again._frozen.network, kept.parent).found
