"""What a matrix of backbones and modes says, by hand and against scikit-learn."""

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sklearn_metrics

from training.comparing import matrix_advice, matrix_scores
from training.comparisons.transfer import Row

LABELS = ["bone", "no_bone"]
FILMS = 60
TRUTH = np.repeat([0, 1], FILMS // 2)


def cells_of(name, wrong, part="test", seed=0, size=0, minutes=1.0, groups=None):
    """Predictions of 60 films of two classes, of which some positions are wrong."""
    chosen = np.where(np.isin(np.arange(FILMS), list(wrong)), 1 - TRUTH, TRUTH)
    certain = 2.0 + np.arange(FILMS) / FILMS
    logits = np.stack([np.where(chosen == 0, certain, 0), np.where(chosen == 1, certain, 0)], axis=1)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return pd.DataFrame(
        {
            "row": name,
            "films_per_class": size,
            "seed": seed,
            "fold": 0,
            "part": part,
            "path": [f"{part}{index:02d}" for index in range(FILMS)],
            "group": [str(index) for index in range(FILMS)] if groups is None else groups,
            "label": [LABELS[index] for index in TRUTH],
            "predicted": [LABELS[index] for index in chosen],
            "logit_0": logits[:, 0],
            "logit_1": logits[:, 1],
            "temperature": 1.0,
            "probability_bone": probabilities[:, 0],
            "probability_no_bone": probabilities[:, 1],
            "training_films": 2 * (size or 80),
            "training_seconds": 60 * minutes,
            "feature_seconds": 0.0,
            "feature_bytes": 1e6,
            "epochs": 40,
            "parameters": 1000,
            "trained_parameters": 10,
            "peak_memory_mb": 500.0,
        }
    )


def every_other(count, start=0):
    """`count` positions spread over both classes."""
    return [start + step * (FILMS // count) for step in range(count)]


def scored(networks, baselines=None, more=(), smallest=80):
    """Scores of networks given as {(backbone, mode): (wrong on test, wrong on validation, minutes)}."""
    rows = [Row(f"{backbone}-{mode}", backbone, mode, None) for backbone, mode in networks]
    cells = []
    for row, (wrong, missed, minutes) in zip(rows, networks.values(), strict=True):
        cells.append(cells_of(row.name, wrong, minutes=minutes))
        cells.append(cells_of(row.name, missed, part="val", minutes=minutes))
    baselines = {"texture": every_other(20), "no-anatomy": every_other(30)} | (baselines or {})
    results = matrix_scores.Results(
        rows=rows,
        cells=pd.concat([*cells, *more], ignore_index=True),
        baselines=pd.concat([cells_of(name, wrong) for name, wrong in baselines.items()]),
        labels=LABELS,
        smallest_class=smallest,
    )
    return {**matrix_scores.scores_of(results), "source": "films", "next": "python -m training.fit transfer"}


FROZEN, TUNED = ("xception", "feature_extractor"), ("xception", "fine_tune")
OTHER = ("alexnet", "feature_extractor")


def test_the_table_by_hand():
    metrics = scored(
        {
            FROZEN: (every_other(3), every_other(2), 1),
            TUNED: (every_other(6), every_other(5), 40),
            OTHER: (every_other(12), every_other(12), 1),
        }
    )
    accuracy = {name: row["accuracy"]["value"] for name, row in metrics["rows"].items()}
    assert accuracy == pytest.approx(
        {"xception-feature_extractor": 0.95, "xception-fine_tune": 0.9, "alexnet-feature_extractor": 0.8}
    )
    assert metrics["baselines"]["texture"]["accuracy"]["value"] == pytest.approx(40 / 60)
    assert metrics["chosen"] == "xception-feature_extractor"
    told = matrix_advice.told(metrics)
    assert told[0].split() == ["accuracy", "frozen", "fine-tuned"]
    assert told[1].startswith("xception") and "0.950 [" in told[1] and "0.900 [" in told[1]
    assert told[2].startswith("alexnet") and "0.800 [" in told[2]
    table = matrix_advice.table_of(metrics).set_index("row")
    assert table.loc["xception-fine_tune", "minutes"] == pytest.approx(40)
    assert set(table.index) == {*accuracy, "texture", "no-anatomy"}
    # Two modes of one backbone first, then the choice against everything else, nothing twice.
    assert [(test["one"], test["other"]) for test in metrics["tests"]] == [
        ("xception-feature_extractor", "xception-fine_tune"),
        ("xception-feature_extractor", "alexnet-feature_extractor"),
        ("xception-feature_extractor", "texture"),
        ("xception-feature_extractor", "no-anatomy"),
    ]
    modes = metrics["tests"][0]
    # every_other(3) = 0, 20, 40 and every_other(6) = 0, 10, ... 50: three films differ, all one way.
    assert (modes["only_one_right"], modes["only_other_right"]) == (3, 0)
    assert modes["p_mcnemar"] == pytest.approx(2 * 0.5**3)
    assert modes["difference"]["value"] == pytest.approx(0.05)
    assert modes["p_mcnemar_holm"] >= modes["p_mcnemar"]


def test_scores_are_scikit_learns_and_a_mean_over_seeds():
    wrong = {0: every_other(6), 1: every_other(10, start=1)}
    more = [cells_of("xception-feature_extractor", wrong[1], seed=1)]
    metrics = scored({FROZEN: (wrong[0], [], 1)}, more=more)
    row = metrics["rows"]["xception-feature_extractor"]
    areas, accuracies, balanced = [], [], []
    for seed in (0, 1):
        cells = cells_of("x", wrong[seed])
        areas.append(sklearn_metrics.roc_auc_score(TRUTH, cells["probability_no_bone"]))
        accuracies.append(sklearn_metrics.accuracy_score(cells["label"], cells["predicted"]))
        balanced.append(sklearn_metrics.balanced_accuracy_score(cells["label"], cells["predicted"]))
    assert row["auroc"]["value"] == pytest.approx(np.mean(areas))
    assert row["accuracy"]["value"] == pytest.approx(np.mean(accuracies))
    assert row["balanced_accuracy"]["value"] == pytest.approx(np.mean(balanced))
    for name in ("accuracy", "balanced_accuracy", "auroc"):
        assert row[name]["low"] < row[name]["value"] < row[name]["high"]


def test_three_labels_are_scored_one_against_the_rest():
    random = np.random.default_rng(0)
    labels = ["a", "b", "c"]
    truth = np.arange(FILMS) % 3
    logits = random.normal(size=(FILMS, 3)) + np.eye(3)[truth]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    cells = cells_of("xception-feature_extractor", []).drop(
        columns=["probability_bone", "probability_no_bone"]
    )
    cells = cells.assign(
        label=[labels[index] for index in truth],
        predicted=[labels[index] for index in logits.argmax(axis=1)],
        **{f"logit_{index}": logits[:, index] for index in range(3)},
        **{f"probability_{name}": probabilities[:, index] for index, name in enumerate(labels)},
    )
    both = pd.concat([cells, cells.assign(part="val")], ignore_index=True)
    results = matrix_scores.Results(
        [Row("xception-feature_extractor", *FROZEN, None)], both, cells.assign(row="no-anatomy"), labels, 20
    )
    row = matrix_scores.scores_of(results)["rows"]["xception-feature_extractor"]
    assert row["auroc"]["value"] == pytest.approx(
        sklearn_metrics.roc_auc_score(truth, probabilities, multi_class="ovr")
    )


def test_the_majority_of_the_seeds_and_the_first_where_they_are_even():
    seeds = [cells_of("x", wrong, seed=seed) for seed, wrong in enumerate(([0, 1], [0, 2], [3]))]
    films = matrix_scores._films(pd.concat(seeds))
    assert films["right"].iloc[:5].tolist() == pytest.approx([1 / 3, 2 / 3, 2 / 3, 2 / 3, 1])
    assert films["majority"].iloc[:5].tolist() == [False, True, True, True, True]
    two = matrix_scores._films(pd.concat(seeds[:2]))
    assert two["majority"].iloc[:4].tolist() == [False, False, True, True]


def test_films_of_one_patient_widen_the_interval():
    alone = matrix_scores._accuracies(cells_of("x", range(0, 60, 4)), LABELS)["accuracy"]
    # Ten patients of six films each, of whom five are always wrong.
    groups = np.repeat(np.arange(10), 6).astype(str)
    wrong = np.flatnonzero(np.repeat(np.arange(10) % 2, 6))
    together = matrix_scores._accuracies(cells_of("x", wrong, groups=groups), LABELS)["accuracy"]
    assert together["high"] - together["low"] > 1.5 * (alone["high"] - alone["low"])


def test_a_network_without_a_score_is_not_chosen():
    """Validation films of one class only: balanced accuracy is not defined for either, and NaN ranks last."""
    metrics = scored({FROZEN: ([5], [], 1), OTHER: ([6], [], 1)})
    rows = {name: dict(row) for name, row in metrics["rows"].items()}
    for undefined in rows:
        ranked = {
            **rows,
            undefined: {**rows[undefined], "validation_balanced_accuracy": np.nan, "validation_loss": np.nan},
        }
        chosen, _ = matrix_scores._choice(None, None, ranked)
        assert chosen != undefined


def test_what_is_not_defined_is_told_as_undefined():
    # As metrics.json holds it: intervals of classes that few draws of the bootstrap meet.
    more = [cells_of(f"{network}-feature_extractor", [5, 35], size=40) for network in ("xception", "alexnet")]
    for whole in (False, True):
        metrics = scored(
            {FROZEN: ([5], [], 1), TUNED: ([6], [], 2), OTHER: (every_other(3), [], 1)}, more=more
        )
        for row in (*metrics["rows"].values(), *metrics["baselines"].values()):
            row["balanced_accuracy"] |= {"low": None, "high": None} | ({"value": None} if whole else {})
            if "auroc" in row:
                row["auroc"] = {"value": None, "low": None, "high": None}
                row["validation_balanced_accuracy"] = None
                if row["learning_curve"]:
                    row["learning_curve"]["doubling"] |= {"low": None, "high": None}
        told = "\n".join(matrix_advice.told(metrics))
        assert "undefined" in told and "Take none" in told
        assert not matrix_advice.above_chance(metrics) and not matrix_advice.shortcut_likely(metrics)
        matrix_advice.table_of(metrics)


# The recommendation


def test_a_clear_winner():
    metrics = scored({FROZEN: ([5], [], 1), TUNED: (every_other(20), every_other(20), 40)})
    headline, *reasons = matrix_advice.recommendation(metrics)
    assert headline.startswith("Take xception frozen: accuracy 0.983 [")
    assert any(
        "Fine-tuned, it is" in line and "worse" in line and "40 times the minutes" in line for line in reasons
    )
    assert not any("cannot tell from chance" in line for line in reasons)
    assert not matrix_advice.shortcut_likely(metrics)


def test_a_tie_goes_to_the_frozen_network():
    # The fine-tuned one is one validation film ahead: within one standard error.
    metrics = scored({FROZEN: ([5, 40], [3], 1), TUNED: ([6, 40], [], 40)})
    assert metrics["chosen"] == "xception-feature_extractor"
    headline, *reasons = matrix_advice.recommendation(metrics)
    assert "within one standard error of xception fine-tuned" in headline
    assert any("cannot tell from chance" in line for line in reasons)
    # Twelve films ahead is more than that.
    metrics = scored({FROZEN: ([5], every_other(12), 1), TUNED: ([6], [], 40)})
    assert metrics["chosen"] == "xception-fine_tune"
    assert "Frozen, it is" in matrix_advice.recommendation(metrics)[1]


def test_the_choice_does_not_look_at_test_films():
    networks = {FROZEN: (every_other(20), [], 1), OTHER: ([], every_other(6), 1)}
    metrics = scored(networks)
    assert metrics["chosen"] == "xception-feature_extractor"
    assert any("alexnet frozen is 0.333 better" in line for line in matrix_advice.recommendation(metrics))


def test_a_shortcut_comes_first():
    metrics = scored({FROZEN: (every_other(4), [], 1)}, {"no-anatomy": every_other(3)})
    headline, then, *_ = matrix_advice.recommendation(metrics)
    assert headline.startswith("No network clearly beats the classifier that sees no anatomy")
    assert headline.endswith("audit the films first: python -m training.audit --data films")
    assert then.startswith("Should the audit find no shortcut: take xception frozen")
    assert matrix_advice.shortcut_likely(metrics)


def test_a_shortcut_that_is_better_than_every_network():
    metrics = scored({FROZEN: (every_other(20), [], 1)}, {"no-anatomy": [3], "texture": [4]})
    headline, _, texture = matrix_advice.recommendation(metrics)
    assert headline.startswith("No network comes near the classifier that sees no anatomy")
    assert texture.startswith("Texture alone does better")


def test_small_probabilities_are_told_as_small():
    assert matrix_advice.probability(0.04321) == "p 0.0432"
    assert matrix_advice.probability(0.00002, 3) == "p < 0.001"


def test_a_baseline_that_explains_nearly_all_of_a_better_network():
    # 27 of 30 films a class against 30: nine tenths of a perfect score, though six films tell them apart.
    metrics = scored({FROZEN: ([], [], 1)}, {"no-anatomy": [*range(2), *range(30, 32)]})
    assert matrix_advice.shortcut_likely(metrics)


def test_no_better_than_chance():
    metrics = scored({FROZEN: (every_other(30), [], 1)})
    assert matrix_advice.recommendation(metrics)[0].startswith("Take none")
    assert not any("train and keep" in line for line in matrix_advice.told(metrics))
    # A blind classifier at chance explains nothing.
    assert not matrix_advice.shortcut_likely(metrics)


def test_texture_alone_may_do():
    metrics = scored({FROZEN: ([5], [], 1)}, {"texture": [7]})
    assert any("Texture alone does as well" in line for line in matrix_advice.recommendation(metrics))


# Learning curves


def test_the_gain_of_the_last_doubling_by_hand():
    name = "xception-feature_extractor"
    more = [
        cells_of(name, every_other(30), size=20),
        cells_of(name, every_other(20), size=40),
        cells_of(name, every_other(20), size=70),
    ]
    metrics = scored({FROZEN: (every_other(6), [], 1), OTHER: (every_other(6), [3], 1)}, more=more)
    curve = metrics["rows"][name]["learning_curve"]
    assert [point["films_per_class"] for point in curve["points"]] == [20, 40, 70, 80]
    assert curve["points"][-1]["all_films"]
    # From 40 to 80: 70 is too near. 20 films wrong, then 6, and one doubling.
    doubling = curve["doubling"]
    assert (doubling["from"], doubling["to"]) == (40, 80)
    assert doubling["value"] == pytest.approx((20 - 6) / 60)
    assert metrics["rows"]["alexnet-feature_extractor"]["learning_curve"] is None
    (line,) = matrix_advice.more_films(metrics)
    assert "more films should help" in line and "another backbone, alexnet frozen" in line


def test_all_films_of_uneven_classes_are_those_of_the_smallest():
    """88 films of one class and 8 of the other are no doubling of 8 and 8, let alone two."""
    name = "xception-feature_extractor"
    more = [cells_of(name, every_other(20), size=4), cells_of(name, every_other(12), size=7)]
    metrics = scored({FROZEN: (every_other(6), [], 1)}, more=more, smallest=8)
    curve = metrics["rows"][name]["learning_curve"]
    assert [point["films_per_class"] for point in curve["points"]] == [4, 7, 8]
    # From 4 to 8: one doubling, though there are 96 films in all.
    assert (curve["doubling"]["from"], curve["doubling"]["to"]) == (4, 8)
    assert curve["doubling"]["value"] == pytest.approx((20 - 6) / 60)
    (line,) = matrix_advice.more_films(metrics)
    assert "with all training films, 8 of the smallest class; from 4 to 8 of it" in line


def test_a_flat_curve_does_not_ask_for_films():
    name = "xception-feature_extractor"
    more = [cells_of(name, [5, 35], size=40)]
    metrics = scored({FROZEN: ([6, 36], [], 1)}, more=more)
    (line,) = matrix_advice.more_films(metrics)
    assert "do not show that more of them would help" in line and "no other backbone was tried" in line
