"""Generated films judged on features drawn by hand: nearness, fidelity, and conditions told apart."""

import json
import time

import numpy as np
import pytest

from kxray.metrics import equal_rows, frechet_distance, kernel_distance
from training.generating.judged import judge, told_apart

LABELS = ("Effusion", "Mass", "Nodule")


def seen(random, classes, shift=0.0, knows=4.0, features=4):
    """What a feature model would give of films of these classes: scores that are right by `knows`."""
    logits = random.standard_normal((len(classes), len(LABELS))) + knows * np.eye(len(LABELS))[classes]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return {
        "features": (random.standard_normal((len(classes), features)) + classes[:, None] + shift).astype(
            "f4"
        ),
        "probabilities": probabilities.astype("f4"),
        "logits": logits.astype("f4"),
    }


def films(seed, counts, **options):
    classes = np.repeat(np.arange(len(LABELS)), counts)
    return seen(np.random.default_rng(seed), classes, **options), classes


def judged(real, fake, **options):
    return judge(*real, *fake, LABELS, **options)


def test_every_score_of_every_class():
    real, fake = films(0, (40, 30, 20)), films(1, (25, 50, 30), shift=0.5)
    scores = judged(real, fake, resamples=40)
    assert json.loads(json.dumps(scores, allow_nan=False)) == scores
    assert list(scores["classes"]) == list(LABELS)
    counts = [scores["classes"][label]["counts"] for label in LABELS]
    assert counts[0] == {"real": 40, "generated": 25, "compared": 25}
    assert scores["overall"]["counts"] == {"real": 90, "generated": 105, "compared": 25 + 30 + 20}
    for found in (scores["overall"], *scores["classes"].values()):
        for name in ("fdd", "fdd_probabilities", "kid"):
            assert found[name]["low"] <= found[name]["value"] <= found[name]["high"]
            assert found[name]["real"] == found[name]["generated"] == found["counts"]["compared"]
        assert found["fidelity"]["k"] == 5 and 0 <= found["fidelity"]["coverage"] <= 1
    assert scores["conditions"]["dimensions"] == {"features": 4, "probabilities": 3}


def test_scores_are_those_of_the_metrics_on_the_same_films():
    real, fake = films(2, (30, 30, 30)), films(3, (30, 20, 30), shift=1.0)
    scores = judged(real, fake, resamples=0, seed=5)
    rows, others = equal_rows(real[1], fake[1], seed=5)
    real_mass, fake_mass = rows[real[1][rows] == 1], others[fake[1][others] == 1]
    for name, distance in (("fdd", frechet_distance), ("kid", kernel_distance)):
        expected = distance(real[0]["features"][real_mass], fake[0]["features"][fake_mass])
        assert scores["classes"]["Mass"][name]["value"] == pytest.approx(expected)
        expected = distance(real[0]["features"][rows], fake[0]["features"][others])
        assert scores["overall"][name]["value"] == pytest.approx(expected)
    assert scores["overall"]["fdd"]["low"] is None


def test_the_nearer_generator_is_nearer():
    real = films(4, (60, 60, 60))
    near, far = (judged(real, films(5, (60, 60, 60), shift=s), resamples=60) for s in (0.2, 1.0))
    for name in ("fdd", "kid"):
        assert near["overall"][name]["high"] < far["overall"][name]["low"]
    assert near["overall"]["fidelity"]["coverage"] > far["overall"]["fidelity"]["coverage"]


def test_films_of_the_wrong_condition():
    real, fake = films(6, (60, 60, 60)), films(7, (60, 60, 60))
    turned = (fake[0], (fake[1] + 1) % 3)
    right, wrong = judged(real, fake, resamples=60), judged(real, turned, resamples=60)
    # Over all classes these are the very same films; class by class, and by name, they are not.
    assert wrong["overall"]["fdd"]["value"] == pytest.approx(right["overall"]["fdd"]["value"])
    for label in LABELS:
        assert wrong["classes"][label]["fdd"]["value"] > 3 * right["classes"][label]["fdd"]["value"]
    assert (right["told_apart"]["better"], wrong["told_apart"]["better"]) == (3, 0)
    assert right["told_apart"]["accuracy"]["value"] > 0.9 > 0.1 > wrong["told_apart"]["accuracy"]["value"]


def test_told_apart_by_hand():
    # Three films of each of two conditions; two of the first are surer of it than any of the second.
    sure = np.array([0.9, 0.8, 0.3, 0.4, 0.2, 0.1])
    features = {"features": np.zeros((6, 1)), "probabilities": np.stack([sure, 1 - sure], axis=1)}
    classes = np.array([0, 0, 0, 1, 1, 1])
    found = told_apart(features, classes, features, classes, ("a", "b"), resamples=0)
    # 8 of 9 pairs are in order; P(U >= 8) of 20 orders: 2/20. Chosen are 2 of 3 and 3 of 3.
    for score in found["classes"].values():
        assert score["auroc"]["value"] == pytest.approx(8 / 9) == score["real_auroc"]
        assert score["p"] == pytest.approx(2 / 20) and score["p_holm"] == pytest.approx(4 / 20)
        assert score["balanced_accuracy"] == pytest.approx(5 / 6) and not score["better"]
    assert found["accuracy"] == {"value": pytest.approx(5 / 6), "low": None, "high": None}
    assert found["chance"] == 0.5 and found["of"] == 2


def test_a_generator_that_ignores_its_condition_is_not_told_apart():
    real, fake = films(8, (50, 50, 50)), films(9, (50, 50, 50), knows=0.0)
    found = judged(real, fake, resamples=200)["told_apart"]
    assert found["better"] <= 1 and found["accuracy"]["low"] < found["chance"] < found["accuracy"]["high"]
    assert all(score["real_auroc"] > 0.9 for score in found["classes"].values())


def test_conditions_that_the_classifier_does_not_know():
    real, fake = films(10, (20, 20, 20)), films(11, (20, 20, 20))
    for features in (real[0], fake[0]):
        features["scores"] = np.full((60, 3), np.nan, "f4")
    scores = judged(real, fake, resamples=0)
    assert scores["told_apart"] is None and scores["overall"]["fdd_probabilities"]["value"] is not None
    for features in (real[0], fake[0]):
        features["scores"] = features["probabilities"]
        features["probabilities"] = features["probabilities"][:, :2]
    assert judged(real, fake, resamples=0)["told_apart"]["better"] == 3


def test_absent_and_rare_conditions():
    real, fake = films(12, (30, 3, 0)), films(13, (30, 30, 0))
    scores = judged(real, fake, resamples=30)
    assert json.dumps(scores, allow_nan=False)
    rare, absent = scores["classes"]["Mass"], scores["classes"]["Nodule"]
    assert not rare["fdd"]["reliable"] and rare["fdd"]["low"] is None and rare["fidelity"] is None
    assert absent["fdd"]["value"] is None and absent["fdd"]["note"] == "no films of this condition"
    told = scores["told_apart"]
    assert told["classes"]["Nodule"]["auroc"]["value"] is None and told["of"] == 2 and told["chance"] == 0.5


def test_without_intervals_it_takes_well_under_a_second():
    real, fake = films(14, (120, 120, 120), features=256), films(15, (300, 300, 300), features=256)
    judged(real, fake, resamples=0)
    started = time.process_time()
    judged(real, fake, resamples=0)
    assert time.process_time() - started < 4, "0.2 s on an idle machine"


def test_wrong_input():
    real, fake = films(16, (10, 10, 10)), films(17, (10, 10, 10))
    with pytest.raises(ValueError, match="class of each of 30 generated films, got int64 of shape"):
        judged(real, (fake[0], fake[1][:5]))
    with pytest.raises(ValueError, match="classes of generated films are 0 to 2, got 1 to 3"):
        judged(real, (fake[0], fake[1] + 1))
    fake[0]["features"][12] = np.nan
    with pytest.raises(ValueError, match=r"1 of 30 generated films are not finite, the first made of Mass"):
        judged(real, fake)
