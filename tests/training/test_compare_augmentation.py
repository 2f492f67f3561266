"""A comparison of augmentation: its pools, its scores by hand, its words, and a small one from films on."""

import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from training.comparing import augmentation_films, augmentation_pools, augmentation_run, augmentation_scores
from training.comparing import augmentation_verdict as words
from training.comparing.augmentation_fitting import Trainer, Training, augmenting_layers, task_spec
from training.comparing.augmentation_scores import Answers, answers_of, measure, scores_of, swapped
from training.comparing.masks_scores import Draws
from training.comparisons import augmentation
from training.comparisons.augmentation import Recipe, Row


@pytest.fixture
def compare():
    from training.compare import main

    def run(*arguments):
        result = CliRunner().invoke(main, ["augmentation", *map(str, arguments)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return run


# Rows and pools


def test_rows_are_those_of_the_question():
    rows = {row.name: row for row in augmentation.rows_of(Recipe())}
    assert list(rows) == ["real", "weighted", "oversampled", "synthetic@0.5", "synthetic@1"]
    assert [name for name, row in rows.items() if row.strong] == ["oversampled"]
    assert [name for name, row in rows.items() if row.classical] == ["weighted", "oversampled"]
    assert [row.ratio for row in rows.values()] == [None, None, None, 0.5, 1.0]
    only = augmentation.rows_of(Recipe(rows="synthetic-only,real"))
    assert [row.real for row in only] == [True, False]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"rows": "real"}, "give real, which the others are measured against, and at least one more"),
        ({"rows": "weighted,oversampled"}, "give real"),
        ({"rows": "real,smote"}, "no row 'smote'; there are real, weighted"),
        ({"ratios": "0.5,0.5"}, "distinct numbers above 0"),
        ({"ratios": "half"}, "--ratios takes"),
    ],
)
def test_wrong_rows_are_refused(given, told):
    with pytest.raises(ValueError, match=told):
        augmentation.rows_of(Recipe(**given))


# Twelve films: class 0 has 6 + 1 + 1, class 1 has 2 + 1 + 1 of training, validation and test.
CLASSES = np.array([0] * 8 + [1] * 4)
TRAIN = np.array([0, 1, 2, 3, 4, 5, 8, 9])


def test_pools_by_hand():
    real, weighted, oversampled, half, whole = augmentation.rows_of(Recipe())
    made = np.array([1] * 4)
    assert augmentation_pools.missing([real, half, whole], [6, 2]).tolist() == [0, 4]
    pool = augmentation_pools.pool_of(real, CLASSES, TRAIN, made, 0)
    assert pool.rows.tolist() == TRAIN.tolist() and pool.weights.tolist() == [1, 1]
    assert pool.mix == pytest.approx([0.75, 0.25])
    pool = augmentation_pools.pool_of(weighted, CLASSES, TRAIN, made, 0)
    assert pool.rows.tolist() == TRAIN.tolist() and pool.weights == pytest.approx([8 / 12, 2])
    assert pool.mix == pytest.approx([0.5, 0.5])
    pool = augmentation_pools.pool_of(oversampled, CLASSES, TRAIN, made, 0)
    assert sorted(pool.rows) == [0, 1, 2, 3, 4, 5, 8, 8, 8, 9, 9, 9] and pool.real.tolist() == [6, 6]
    # To half of the 6 films of class 0: one synthetic film beside the 2 real ones, then 4.
    pool = augmentation_pools.pool_of(half, CLASSES, TRAIN, made, 0)
    assert pool.rows.tolist() == [*TRAIN, 12] and pool.synthetic.tolist() == [0, 1]
    pool = augmentation_pools.pool_of(whole, CLASSES, TRAIN, made, 0)
    assert pool.rows.tolist() == [*TRAIN, 12, 13, 14, 15] and pool.synthetic.tolist() == [0, 4]
    assert pool.mix == pytest.approx([0.5, 0.5])
    with pytest.raises(ValueError, match="synthetic@1 needs 4 synthetic films of class 1, got 3"):
        augmentation_pools.pool_of(whole, CLASSES, TRAIN, made[:3], 0)


def test_no_pool_has_a_film_that_is_not_for_training():
    made = np.repeat([0, 1], 6)
    for row in augmentation.rows_of(Recipe(rows="real,weighted,oversampled,synthetic,synthetic-only")):
        pool = augmentation_pools.pool_of(row, CLASSES, TRAIN, made, 3)
        known = pool.rows[pool.rows < len(CLASSES)]
        assert set(known) <= set(TRAIN) and bool(len(known)) == row.real, row.name


def test_rare_classes():
    labels = ("a", "b", "c", "d")
    assert augmentation_pools.rare_classes(labels, [100, 40, 44, 9]) == ("d",)
    assert augmentation_pools.rare_classes(labels, [100, 40, 44, 9], ("c", "a")) == ("a", "c")
    # None is that rare: the one with fewest films.
    assert augmentation_pools.rare_classes(labels, [10, 9, 8, 7]) == ("d",)


def test_validation_films_are_weighted_to_the_mix_that_a_row_was_taught():
    weights = augmentation_pools.validation_weights([0.5, 0.5], np.array([0, 0, 0, 1]))
    assert weights == pytest.approx([2 / 3, 2 / 3, 2 / 3, 2]) and weights.mean() == pytest.approx(1)
    assert augmentation_pools.validation_weights([0.75, 0.25], np.array([0, 0, 0, 1])) == pytest.approx(1)


def test_steps_are_those_of_the_real_films_whatever_the_row():
    assert augmentation_run.steps_of(Recipe(), 100) == 40
    assert augmentation_run.steps_of(Recipe(), 1000) == 64  # 62.5, up to a multiple of 8
    assert augmentation_run.steps_of(Recipe(steps=7), 1000) == 7


def test_the_strong_augmentation_is_nowhere_milder():
    mild = augmenting_layers(Recipe(), False)[0].get_config()
    strong = augmenting_layers(Recipe(zoom=0.3), True)[0].get_config()
    assert {mild["rotation"], mild["zoom"]} == {0.0, 0.1}
    assert strong["rotation"] == 15.0 and strong["zoom"] == 0.3


# Scores

LABELS = ("common", "rare")


def cells_of(name, right, seeds=2, part="test", films=40):
    """Every fourth film is rare; the share `right` of the films is told right with 0.8, the others wrong."""
    truth = (np.arange(films) % 4 == 0).astype(int)
    hit = (np.arange(films) * 7) % films < right * films
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "row": name,
                    "seed": seed,
                    "part": part,
                    "path": [f"{part}{index:02d}" for index in range(films)],
                    "group": [f"{part}-g{index}" for index in range(films)],
                    "label": np.array(LABELS)[truth],
                    "probability_common": np.where((truth == 0) == hit, 0.8, 0.2),
                    "probability_rare": np.where((truth == 0) == hit, 0.2, 0.8),
                }
            )
            for seed in range(seeds)
        ]
    )


def facts_of(name, seeds=2):
    films = {"common": 30, "rare": 10}
    return [
        {
            "row": name,
            "seed": seed,
            "real": films,
            "synthetic": {"common": 0, "rare": 20 * name.startswith("synthetic")},
            "mix": [0.75, 0.25],
            "seconds": 10.0,
            "epochs": 3,
            "best_epoch": 2,
            "parameters": 5,
            "recognised": {"rare": 0.55} if name == "real" else None,
        }
        for seed in range(seeds)
    ]


def results_of(shares, films=40, seeds=2, validated=None):
    rows = [row for row in augmentation.rows_of(Recipe()) if row.name in shares]
    cells = [cells_of(name, share, seeds, films=films) for name, share in shares.items()]
    cells += [cells_of(name, share, seeds, "val") for name, share in (validated or shares).items()]
    return augmentation_scores.Results(
        rows=rows,
        cells=pd.concat(cells, ignore_index=True),
        facts=[fact for name in shares for fact in facts_of(name, seeds)],
        baseline=cells_of("no-anatomy", 0.5, seeds, films=films),
        labels=LABELS,
        rare=("rare",),
        counts={label: {"train": 30, "val": 10, "test": 10} for label in LABELS},
        holds_for="forty made-up films",
    )


def test_scores_by_hand():
    """Four films; the rare one is ranked above one of the three others: AUROC 1/3."""
    answers = Answers(
        np.array([0, 0, 0, 1]),
        np.array([[[0.4, 0.6], [0.3, 0.7], [0.9, 0.1], [0.6, 0.4]]]),
        np.array([[0.75, 0.25]]),
        np.array(["a", "b", "c", "d"]),
    )
    told = measure(answers, np.array([1]), Draws(answers.groups, [0], resamples=0))
    assert told["rare_auroc"][0] == pytest.approx(1 / 3) and told["auroc"][0] == pytest.approx(1 / 3)
    # Of the common ones one is right, of the rare ones none.
    assert told["balanced_accuracy"][0] == pytest.approx((1 / 3 + 0) / 2)
    # Shares divided out: 0.6/0.75 against 0.4/0.25 makes the last film rare, 0.9/0.75 > 0.1/0.25 stays.
    assert told["even_accuracy"][0] == pytest.approx((1 / 3 + 1) / 2)


def test_a_class_without_test_films_is_left_out():
    answers = Answers(
        np.array([0, 0, 1, 1]),
        np.array([np.tile([0.5, 0.3, 0.2], (4, 1))]),
        np.ones((1, 3)),
        np.array(["a", "b", "c", "d"]),
    )
    told = measure(answers, np.array([1, 2]), Draws(answers.groups, [0], resamples=0))
    assert np.isnan(told["classes"][2, 0]) and told["auroc"][0] == 0.5
    assert told["balanced_accuracy"][0] == pytest.approx(0.5)  # of two classes


def test_swaps_find_a_difference_and_none_where_rows_are_equal():
    good, same = (
        answers_of(cells_of("a", share, 2), LABELS, dict.fromkeys((0, 1), [1, 1])) for share in (1, 1)
    )
    bad = answers_of(cells_of("b", 0.4, 2), LABELS, dict.fromkeys((0, 1), [1, 1]))
    clear = swapped(good, bad, np.array([1]), permutations=500)
    assert max(clear.values()) < 0.02
    assert min(swapped(good, same, np.array([1]), permutations=500).values()) == 1


@pytest.mark.parametrize(
    ("synthetic", "classical", "outcome"),
    [(1.0, 0.5, words.HELP), (0.5, 0.5, words.NO_GAIN), (0.4, 1, words.HARM)],
)
def test_verdicts(synthetic, classical, outcome):
    found = scores_of(results_of({"real": 0.5, "weighted": classical, "synthetic@1": synthetic}))
    assert found["outcome"] == outcome and found["verdict"][0].startswith(outcome)
    assert found["chosen"] == {"classical": "weighted", "synthetic": "synthetic@1"}
    text = " / ".join(found["verdict"])
    assert "how sure: " in text and "it holds for forty made-up films, and for no others" in text
    assert "mean AUROC 0.550: they hardly show their class" in text
    if outcome == words.HELP:
        assert "how sure: clear" in text and "2 of 2 seeds agree" in text


@pytest.mark.parametrize(
    ("tested", "outcome", "told"),
    [
        ((1, 0.4, 0.4), words.HARM, "worse than the real films alone"),
        # Better than a remedy that does harm is no help.
        ((1, 0.4, 0.7), words.HARM, "worse than the real films alone"),
        ((0.7, 0.4, 0.7), words.NO_GAIN, "better than weighted, by"),
        ((0.5, 0.4, 1), words.HELP, "better than weighted, by"),
    ],
)
def test_a_remedy_that_does_harm_is_no_measure(tested, outcome, told):
    """On validation films the remedy had looked best."""
    tested = dict(zip(("real", "weighted", "synthetic@1"), tested, strict=True))
    found = scores_of(results_of(tested, validated={"real": 0.5, "weighted": 0.9, "synthetic@1": 0.5}))
    assert found["chosen"]["classical"] == "weighted"
    assert found["outcome"] == outcome and told in found["verdict"][0]
    assert found["verdict"][0].startswith(outcome) and found["verdict"][1].startswith("how sure: ")


def test_the_real_films_alone_are_the_measure_where_no_remedy_beats_them():
    found = scores_of(results_of({"real": 1, "weighted": 0.4, "synthetic@1": 0.7}))
    assert found["chosen"]["classical"] == "real" and found["outcome"] == words.HARM
    assert "synthetic@1 is worse than real" in found["verdict"][0]


def test_the_rows_of_the_verdict_are_chosen_on_validation_films():
    """On test films the other ratio and the other classical row are the best ones."""
    tested = {"real": 0.5, "weighted": 0.6, "oversampled": 0.9, "synthetic@0.5": 0.5, "synthetic@1": 1}
    validated = {"real": 0.5, "weighted": 0.9, "oversampled": 0.6, "synthetic@0.5": 1, "synthetic@1": 0.5}
    found = scores_of(results_of(tested, validated=validated))
    assert found["chosen"] == {"classical": "weighted", "synthetic": "synthetic@0.5"}
    pairs = [(one["one"], one["other"]) for one in found["differences"]]
    assert pairs == [
        *((name, "real") for name in list(tested)[1:]),
        ("synthetic@0.5", "weighted"),
        ("synthetic@1", "weighted"),
        ("real", "no-anatomy"),
    ]
    for one in found["differences"][:-1]:
        assert one["auroc"]["p_holm"] >= one["auroc"]["p"]


def test_few_patients_show_nothing():
    found = scores_of(results_of({"real": 0.5, "weighted": 0.3, "synthetic@1": 1}, films=32))
    assert found["rare_groups"] == 8 and found["outcome"] == words.NO_GAIN
    assert "are 8, too few to show a gain or a loss" in found["verdict"][0]


def test_without_a_classical_row_the_real_films_are_the_measure():
    found = scores_of(results_of({"real": 0.5, "synthetic@1": 1}, seeds=1))
    assert found["chosen"]["classical"] == "real" and found["outcome"] == words.HELP
    assert "weak, repeat it" in found["verdict"][1] and "one seed" in found["verdict"][1]
    table = augmentation_scores.table_of(found)
    assert list(table["row"]) == ["real", "synthetic@1", "no-anatomy", "chance"]
    assert any(line.startswith("synthetic@1  ") for line in words.told(found))


# From films on


@pytest.fixture(scope="module")
def gan_run(tmp_path_factory):
    """The folder of a run of attention_cgan on 48 phantoms, its generator left out; all have their parts."""
    from kxray import data
    from kxray.data.phantom import Mix, write_phantoms
    from kxray.spec import ModelSpec
    from training import options, runs
    from training.recipes import attention_cgan

    folder = tmp_path_factory.mktemp("gan") / "run"
    asked = ("Cardiomegaly", "Effusion")
    mix = Mix(size=64, views=("frontal",), findings=asked)
    table = data.read_manifest(write_phantoms(folder / "phantoms", "thorax", 64, 0, mix=mix, workers=1))
    recipe = attention_cgan.Recipe(
        phantoms=64, labels=",".join(asked), normal=True, rare="Effusion", imbalance=4.0
    )
    conditions = data.condition_films(table, asked, normal=True)
    parts = data.patient_split(
        conditions.table, conditions.names, val=0.25, test=0.25, grouping=data.film_groups(conditions.table)
    ).parts.astype("U6")
    parts[~data.thin_out(conditions, parts, ("Effusion",), 4.0)] = "unused"
    data.save_split(conditions.table.assign(split=parts), folder / "split.csv")
    config = {
        "recipe": "attention_cgan",
        "options": options.as_json(recipe),
        "labels": list(conditions.labels),
    }
    runs.write_json(folder / "config.json", config)
    (folder / "spec.json").write_text(
        ModelSpec("attention_cgan", conditions.labels, "generator", (64, 64)).to_json()
    )
    (folder / "model.keras").write_bytes(b"stands for a generator")
    return folder


@pytest.fixture
def made_films(monkeypatch):
    """Stands for the generator; remembers what it was asked for."""
    asked = []

    def make_films(run, classes, seed, truncation, side):
        asked.append((np.bincount(classes, minlength=len(run.labels)).tolist(), seed, truncation))
        random = np.random.default_rng(seed)
        return random.random((len(classes), side, side, 1), dtype=np.float32)

    monkeypatch.setattr(augmentation_films.GeneratorRun, "make_films", make_films)
    monkeypatch.setattr(augmentation_films.GeneratorRun, "digest", file_digest)
    return asked


def file_digest(run):
    return hashlib.sha256((run.folder / "model.keras").read_bytes()).hexdigest()


def test_the_films_are_those_of_the_run(gan_run):
    run = augmentation_films.read_run(gan_run)
    chosen = augmentation_films.choose_films(Recipe(run=str(gan_run)), run)
    assert run.side == 64 and chosen.rare == ("Effusion",)
    train = dict(zip(run.labels, chosen.counts("train"), strict=True))
    assert train["Effusion"] == max(2, round(max(train.values()) / 4))
    # Told where the films are, it finds the same ones.
    moved = augmentation_films.choose_films(Recipe(run=str(gan_run), data=str(gan_run / "phantoms")), run)
    assert moved.parts.tolist() == chosen.parts.tolist()


def test_wrong_runs_end_at_once(compare, gan_run, tmp_path):
    for given, told in (
        ((), "give the run of a generator with --run"),
        (("--run", tmp_path), "not a run folder, it has no config.json"),
        (("--run", gan_run, "--image-size", 64, "--ratios", "0"), "--ratios takes distinct numbers"),
    ):
        code, text = compare(*given, "--out", tmp_path / "out")
        assert code == 2 and told in text and not (tmp_path / "out").exists(), text
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"recipe": "transfer", "options": {}}))
    code, text = compare("--run", other)
    assert code == 2 and "a run of 'transfer'; expected one of attention_cgan or cdcgan" in text
    (other / "config.json").write_text(json.dumps({"recipe": "cdcgan", "options": {}}))
    code, text = compare("--run", other)
    assert code == 2 and "not finished, it has no model.keras" in text


def test_a_dry_run_says_what_it_would_do(compare, gan_run):
    code, text = compare("--run", gan_run, "--dry-run")
    assert code == 0 and "would train synthetic@1: real films, classes filled up" in text
    assert "40 steps 24 times, 16 films a step, small_densenet at 64 px" in text
    assert "films to train, validate and test, rare" in text


@pytest.mark.usefixtures("tiny_densenet")
def test_a_small_comparison_resumes_and_ends(compare, gan_run, made_films, tmp_path, monkeypatch):
    out = tmp_path / "out"
    options = (
        "--run",
        gan_run,
        "--out",
        out,
        "--preset",
        "smoke",
        "--backbone",
        "densenet121",
        "--image-size",
        32,
    )
    train, names = Trainer.train, []

    def killed(self, training, folder):
        names.append(training.name)
        if len(names) == 3:
            raise KeyboardInterrupt
        return train(self, training, folder)

    monkeypatch.setattr(Trainer, "train", killed)
    code, _ = compare(*options)
    assert code == 130 and not (out / "metrics.json").exists()
    code, text = compare("--resume", "--out", out)
    assert code == 0, text
    # What was finished is not trained again, and its synthetic films are made once.
    assert names == ["real seed 0", "weighted seed 0"] + 2 * ["oversampled seed 0"] + ["synthetic@1 seed 0"]
    counts = json.loads((out / "metrics.json").read_text())["counts"]
    train_counts = np.array([parts["train"] for parts in counts.values()])
    assert made_films == [((train_counts.max() - train_counts).tolist(), 0, 1.0)]
    found = json.loads((out / "metrics.json").read_text())
    assert found["rare"] == ["Effusion"] and found["seeds"] == 1 and found["outcome"] in text
    assert found["rows"]["synthetic@1"]["films"] == 3 * train_counts.max()
    assert set(found["recognised"]) and "chance" in found["baselines"]
    report = (out / "report.html").read_text()
    assert "Films of the rare classes" in report and report.count("data:image") == 3
    assert "2 x 4 steps of 8 films" in report
    table = pd.read_csv(out / "table.csv")
    assert table["row"].tolist() == ["real", "weighted", "oversampled", "synthetic@1", "no-anatomy", "chance"]
    cells = pd.read_csv(out / "cells.csv")
    assert cells.groupby("row")["path"].apply(tuple).nunique() == 1
    split = pd.read_csv(gan_run / "split.csv", comment="#")
    held_out = split["path"][split["split"].isin(["val", "test"])]
    assert sorted(Path(path).name for path in cells["path"].unique()) == sorted(
        Path(path).name for path in held_out
    )
    # Another generator is another comparison.
    (out / "metrics.json").unlink()
    kept = (gan_run / "model.keras").read_bytes()
    try:
        (gan_run / "model.keras").write_bytes(b"another")
        code, text = compare("--resume", "--out", out)
    finally:
        (gan_run / "model.keras").write_bytes(kept)
    assert code == 2 and "not the generator that this comparison was started with" in text


@pytest.mark.usefixtures("tiny_densenet")
def test_rows_start_alike_and_a_killed_training_ends_as_a_whole_one(tmp_path, monkeypatch):
    """Steps that do not divide the passes over the films are gone on with at the right film."""
    import contextlib

    from rich.progress import Progress

    from training import loop

    recipe = Recipe(backbone="densenet121", epochs=3, batch_size=4)
    spec = task_spec(recipe, ("a", "b"), 32)
    random = np.random.default_rng(0)
    pixels, classes = random.random((14, 32, 32, 1), dtype=np.float32), np.arange(14) % 2
    row = Row("real", "")
    pool = augmentation_pools.pool_of(row, classes, np.arange(10), [], 0)
    training = Training("real", pool, pixels, classes, np.arange(10, 14), False, 5)
    progress = Progress(disable=True)
    trainer = Trainer(recipe, spec, 2, tmp_path, progress, (contextlib.nullcontext, 1))
    whole, history = trainer.train(training, "whole")
    expected = whole.get_weights()
    again, _ = trainer.train(training, "again")
    assert all(np.array_equal(one, other) for one, other in zip(expected, again.get_weights(), strict=True))

    class Killed(Exception):
        pass

    original = loop._Checkpoint.on_epoch_end

    def dies(self, epoch, logs=None):
        self.save_every = 0
        original(self, epoch, logs)
        if epoch == 0:
            raise Killed

    monkeypatch.setattr(loop._Checkpoint, "on_epoch_end", dies)
    with pytest.raises(Killed):
        trainer.train(training, "killed")
    monkeypatch.setattr(loop._Checkpoint, "on_epoch_end", original)
    resumed, own = trainer.train(training, "killed")
    assert np.allclose(own["val_loss"], history["val_loss"], atol=1e-6)
    assert all(
        np.allclose(one, other, atol=1e-6) for one, other in zip(expected, resumed.get_weights(), strict=True)
    )


@pytest.mark.slow
def test_a_comparison_with_a_generator(compare, gan_run, tmp_path):
    """The generator is untrained: its films are grey, and do not help."""
    import shutil

    from kxray import models
    from training.generating.generator import load_generator

    run = tmp_path / "run"
    shutil.copytree(gan_run, run)
    models.build("attention_cgan", num_classes=3, scales=1, latent=8, width=4).save(run / "model.keras")
    out = tmp_path / "out"
    code, text = compare("--run", run, "--out", out, "--preset", "smoke", "--image-size", 32)
    assert code == 0, text
    with np.load(out / "work" / "synthetic" / "seed-0.npz") as kept:
        films, classes = kept["films"], kept["classes"]
    assert films.dtype == np.uint16 and films.shape == (len(classes), 32, 32, 1)
    # A film does not depend on how many follow, and other seeds give other films.
    source = augmentation_films.read_run(run)
    first, other = (source.make_films(classes[:2], seed, 1.0, 64) for seed in (0, 1))
    assert np.array_equal(first, source.make_films(classes[:4], 0, 1.0, 64)[:2])
    assert np.abs(first - other).max() > 1e-4
    # training.generate makes the same ones, by the same names.
    generator = load_generator(run)
    for place in np.unique(classes[:4]):
        own = source.make_films(classes[:4], 0, 1.0, 64)[classes[:4] == place]
        assert np.array_equal(own, generator.films(source.labels[place], 0, len(own)))
    assert json.loads((out / "config.json").read_text())["generator"] == generator.facts.run


def test_of_a_training_only_what_is_stated_differs_between_rows():
    fields = {field.name for field in dataclasses.fields(Row)}
    assert fields == {"name", "told", "ratio", "weighted", "repeated", "strong", "real"}


def blobs(classes, seed, side=32):
    """Noisy films of nothing (0), a disc (1) or a ring (2) anywhere: float32 (N, side, side, 1)."""
    random = np.random.default_rng(seed)
    grid = np.stack(np.mgrid[:side, :side])
    films = []
    for kind in classes:
        away = np.hypot(*(grid - random.uniform(8, side - 8, 2)[:, None, None]))
        shape = np.zeros((side, side)) if kind == 0 else away < 5 if kind == 1 else np.abs(away - 5) < 1.5
        films.append(0.4 + 0.2 * shape + random.normal(0, 0.1, (side, side)))
    return np.clip(np.stack(films), 0, 1).astype(np.float32)[..., None]


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_densenet")
def test_films_of_a_perfect_generator_help(compare, tmp_path, monkeypatch):
    """Two training films of rings cannot show where rings may lie; 58 more from the same source do."""
    from kxray import data
    from kxray.data.manifest import write_manifest
    from kxray.io.image import encode_png16
    from kxray.spec import ModelSpec
    from training import options, runs
    from training.recipes import attention_cgan

    names, run, place = ("blank", "disc", "ring"), tmp_path / "run", 0
    (run / "films").mkdir(parents=True)
    lines, parts = [], []
    for part, counts in {"train": (60, 60, 2), "val": (20, 20, 20), "test": (40, 40, 40)}.items():
        for kind in np.repeat(np.arange(3), counts):
            path = run / "films" / f"{place:04d}.png"
            path.write_bytes(encode_png16(blobs([kind], 1000 + place)[0, ..., 0], {}))
            lines.append({"path": str(path), "patient_id": f"p{place}", "label": names[kind]})
            parts.append(part)
            place += 1
    write_manifest(pd.DataFrame(lines), run / "films" / "manifest.csv")
    table = data.condition_films(data.read_source(run / "films")).table
    data.save_split(table.assign(split=parts), run / "split.csv")
    recipe = attention_cgan.Recipe(data=str(run / "films"))
    config = {"recipe": "attention_cgan", "options": options.as_json(recipe), "labels": list(names)}
    runs.write_json(run / "config.json", config)
    (run / "spec.json").write_text(ModelSpec("attention_cgan", names, "generator", (32, 32)).to_json())
    (run / "model.keras").write_bytes(b"stands for a generator")
    monkeypatch.setattr(
        augmentation_films.GeneratorRun, "make_films", lambda run, classes, seed, *_: blobs(classes, seed)
    )
    monkeypatch.setattr(augmentation_films.GeneratorRun, "digest", file_digest)
    out = tmp_path / "out"
    given = (
        "--run",
        run,
        "--out",
        out,
        "--backbone",
        "densenet121",
        "--ratios",
        1,
        "--blur",
        0,
    )
    code, text = compare(*given, "--epochs", 10, "--steps", 24)
    assert code == 0, text
    found = json.loads((out / "metrics.json").read_text())
    assert found["rare"] == ["ring"] and found["outcome"] == words.HELP, text
