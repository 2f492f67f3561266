"""The line of training.fit that holds a score against classifiers that see no anatomy."""

import math

from training import classifier, runs, scoring

LABELS = ("healthy", "ill")
ONE = {"value": 0.8, "low": 0.7, "high": 0.9}


def scores(model, *baselines):
    names = ("baseline", "histogram_baseline")
    made = {name: {"balanced_accuracy": one} for name, one in zip(names, baselines, strict=False)}
    return {"balanced_accuracy": model, "recall": dict.fromkeys(LABELS), **made}


def test_the_one_line_of_a_fit(tmp_path):
    runs.write_json(tmp_path / "config.json", {"options": {"data": "/films of mine"}})
    model = {"value": 0.975, "low": 0.95, "high": 1.0}
    told = classifier._without_anatomy(tmp_path, scores(model, {**ONE, "value": 0.875}, ONE))
    assert told == (
        "no anatomy: grey histogram alone 0.80 [0.70, 0.90], with borders and sharpness 0.88 [0.70, 0.90]; "
        "this model 0.97 [0.95, 1.00]"
    )
    near = {"value": 0.93, "low": 0.9, "high": 0.96}
    told = classifier._without_anatomy(tmp_path, scores(model, ONE, near))
    command = f"python -m training.audit --data '/films of mine' --run {tmp_path}"
    assert told.endswith(f"this model 0.97 [0.95, 1.00] -> shortcut likely? run {command}")
    runs.write_json(tmp_path / "config.json", {"options": {"data": None}})
    assert f"--data {tmp_path / 'phantoms'} " in classifier._without_anatomy(tmp_path, scores(model, near))


def test_the_line_of_an_old_run_and_of_undefined_scores(tmp_path):
    told = classifier._without_anatomy(
        tmp_path, scores({"value": 0.9, "low": 0.85, "high": 1.0}, {**ONE, "high": 0.8})
    )
    assert told == "no anatomy: with borders and sharpness 0.80 [0.70, 0.80]; this model 0.90 [0.85, 1.00]"
    for nothing in (math.nan, None):
        undefined = dict.fromkeys(("value", "low", "high"), nothing)
        told = classifier._without_anatomy(tmp_path, scores(undefined, undefined, undefined))
        assert told.endswith("this model nan [nan, nan]")
    # No better than chance: nothing that a shortcut would explain.
    poor = {"value": 0.55, "low": 0.4, "high": 0.7}
    assert scoring.reaching(scores(poor, poor)) is None
