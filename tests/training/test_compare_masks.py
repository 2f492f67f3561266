"""A comparison of masks: its networks, its scores by hand, its words, and a small one from films on."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from training import localising
from training.comparing import masks_run, masks_scores
from training.comparing.masks_scores import BASE, FULL
from training.comparisons import masks
from training.evidence_maps import EVIDENCE, MASK_ALONE
from training.localising import FRACTIONS, MEASURES, UNIFORM, column_of
from training.report import localisation


@pytest.fixture
def compare():
    from training.compare import main

    def run(*arguments):
        result = CliRunner().invoke(main, ["masks", *map(str, arguments)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return run


def differing(one, other):
    return {
        field.name
        for field in dataclasses.fields(one)
        if getattr(one, field.name) != getattr(other, field.name)
    }


def test_networks_differ_in_what_they_leave_out_alone():
    rows = {row.name: row for row in masks.rows_of(masks.Recipe(epochs=7, box_share=0.05))}
    assert tuple(rows) == masks.ROWS
    base = rows["neither"].recipe
    assert differing(rows["full"].recipe, base) == {"align", "masking", "box_loss"}
    assert differing(rows["no-box-loss"].recipe, base) == {"align", "masking"}
    assert differing(rows["aligned-only"].recipe, base) == {"align"}
    assert differing(rows["boxes-only"].recipe, base) == {"box_loss"}
    assert differing(rows["masks-only"].recipe, rows["full"].recipe) == {"align"}
    assert differing(rows["uniform"].recipe, rows["full"].recipe) == {"masking"}
    assert base.epochs == 7 and base.box_share == 0.05 and not rows["masks-only"].aligned


def test_without_a_loss_of_boxes_nothing_is_compared_twice(tmp_path):
    rows = masks.rows_of(masks.Recipe(box_loss=0.0, masks=str(tmp_path)))
    assert [row.name for row in rows] == ["full", "uniform", "aligned-only", "masks-only", "neither"]
    # One's own pictures are of no use to networks without masks.
    assert [row.recipe.masks is None for row in rows] == [False, True, True, False, True]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("--rows", "full,naive"), "no network 'naive'; there are full"),
        (("--rows", "full"), "needs two networks or more"),
        (("--align", "none"), "alignment is what is compared"),
        (("--align", "nowhere"), "expected auto, none, or a run of the recipe align"),
        (("--folds", 1), "--folds 1 leaves nothing to train on"),
        (("--cache", "stream"), "a comparison reads its films first"),
        (("--data", ".", "--phantoms", 5), "with --data there are films"),
    ],
)
def test_wrong_options_end_at_once(compare, tmp_path, given, words):
    code, text = compare("--out", tmp_path / "out", *given)
    assert code == 2 and words in text, text
    assert not (tmp_path / "out").exists()


def test_a_dry_run_says_what_it_would_do(compare, tmp_path):
    code, text = compare("--preset", "phantoms", "--dry-run", "--out", tmp_path / "out")
    assert code == 0 and "would generate 1500 wide thorax phantoms" in text
    assert "would train neither: neither: plain network, 3 times" in text and not (tmp_path / "out").exists()


LABELS = ["Mass", "Nodule"]
ROWS = {row.name: row for row in masks.rows_of(masks.Recipe())}


def cells_of(name, right, seeds=2, films=40):
    """Every other film has a Mass; the share `right` of the films is ranked right, the others opposite."""
    truth = np.arange(films) % 2
    told = np.where(np.arange(films) < right * films, truth, 1 - truth)
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "row": name,
                    "seed": seed,
                    "fold": 0,
                    "path": [f"film{index}" for index in range(films)],
                    "group": [f"g{index}" for index in range(films)],
                    "truth_Mass": truth,
                    "truth_Nodule": "",  # unknown of all films
                    "probability_Mass": 0.2 + 0.6 * told,
                    "probability_Nodule": 0.5,
                    "training_seconds": 10.0,
                    "epochs": 3,
                    "parameters": 5,
                }
            )
            for seed in range(seeds)
        ],
        ignore_index=True,
    )


def boxes_of(name, hits, kind=EVIDENCE, seeds=2):
    """One box a film of 20; of the share `hits` the map points into the box and overlaps it by 0.4."""
    found = np.arange(20) < hits * 20
    columns = {
        column_of(measure, cut): np.where(found, 0.4, 0.1) for measure in MEASURES for cut in FRACTIONS
    }
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "row": name,
                    "seed": seed,
                    "fold": 0,
                    "position": range(20),
                    "path": [f"film{index}" for index in range(20)],
                    "group": [f"g{index}" for index in range(20)],
                    "finding": "Mass",
                    "box": 0,
                    "map": kind,
                    "fraction": 0.5,
                    "pointing_game": found.astype(float),
                    "outside_inside_ratio": np.where(found, 0.2, np.inf),
                    **columns,
                }
            )
            for seed in range(seeds)
        ],
        ignore_index=True,
    )


def scored(full, plain, blind=0.3):
    """Scores of two networks, each (share of films ranked right, share of boxes hit)."""
    names = {FULL: full, BASE: plain}
    cells = pd.concat([cells_of(name, right) for name, (right, _) in names.items()])
    boxes = pd.concat(
        [
            *(boxes_of(name, hits) for name, (_, hits) in names.items()),
            *(boxes_of(name, 0.1, UNIFORM) for name in names),
            boxes_of(FULL, blind, MASK_ALONE),
        ]
    )
    baseline = cells_of("no-anatomy", 0.5)
    return masks_scores.scores_of(
        masks_scores.Results([ROWS[FULL], ROWS[BASE]], cells, boxes, baseline, LABELS)
    )


def test_scores_by_hand():
    scores = scored((1.0, 0.8), (1.0, 0.2))
    assert list(scores["rows"]) == [FULL, BASE, "no-anatomy", "mask-alone", "uniform-map"]
    full = scores["rows"][FULL]
    # Nodule is unknown of every film: the mean is that of Mass.
    assert full["auroc"] == {"value": 1, "low": 1, "high": 1}
    assert np.isnan(full["findings"]["Nodule"]["auroc"]["value"])
    assert full["pointing_game"]["value"] == full["iou_0.3"]["value"] == pytest.approx(0.8)
    assert full["outside_inside_ratio"]["value"] == pytest.approx(0.2)
    assert np.isinf(scores["rows"][BASE]["outside_inside_ratio"]["value"])
    assert [seed["pointing_game"] for seed in full["by_seed"]] == pytest.approx([0.8, 0.8])
    assert scores["rows"]["mask-alone"]["pointing_game"]["value"] == pytest.approx(0.3)
    assert scores["rows"]["no-anatomy"]["auroc"]["value"] == pytest.approx(0.5)
    assert (scores["films"], scores["groups"], scores["boxes"]) == (40, 40, 20)
    change = scores["differences"][0]["pointing_game"]
    assert change["value"] == pytest.approx(0.6) and change["by_seed"] == pytest.approx([0.6, 0.6])
    assert 0.35 < change["low"] < 0.5 < 0.7 < change["high"] < 0.85
    table = masks_scores.table_of(scores).set_index("row")
    assert table.loc[FULL, "iou_0.3"] == pytest.approx(0.8) and table.loc[FULL, "parameters"] == 5
    told = "\n".join(masks_scores.told(scores))
    assert "40 test films in 40 groups, 20 boxes, 2 seeds" in told and "+0.600 [" in told


@pytest.mark.parametrize(
    ("full", "plain", "words"),
    [
        ((1.0, 0.8), (1.0, 0.2), "localise better than the same network without"),
        ((1.0, 0.2), (1.0, 0.8), "localise worse than"),
        ((1.0, 0.5), (1.0, 0.5), "no gain in localisation"),
        ((1.0, 0.5), (0.6, 0.5), "they also tell findings apart better"),
        ((0.6, 0.5), (1.0, 0.5), "they tell findings apart worse"),
        ((0.9, 0.5), (0.9, 0.5), "no gain or loss in telling findings apart"),
        ((1.0, 0.3), (1.0, 0.2), "localises no better than the mask alone"),
        ((1.0, 0.1), (1.0, 0.0), "the mask alone, laid without what is in the lungs, localises"),
        ((1.0, 0.9), (1.0, 0.2), "knows more of the place than the mask alone"),
        ((0.5, 0.9), (0.5, 0.2), "shortcut likely"),
    ],
)
def test_the_verdict_in_words(full, plain, words):
    assert words in "\n".join(scored(full, plain)["verdict"])


def test_few_patients_decide_nothing():
    sure = {"value": 0.5, "low": 0.5, "high": 0.5, "by_seed": [0.5], "groups": 9}
    assert masks_scores._outcome(sure) == "unclear"
    assert masks_scores._outcome({**sure, "groups": 10}) == "better"
    # One seed that disagrees is enough.
    assert masks_scores._outcome({**sure, "groups": 10, "by_seed": [1.1, -0.1]}) == "unclear"


def test_draws_are_paired_and_the_first_is_the_set():
    draws = masks_scores.Draws(["a", "a", "b"], [0, 1])
    weights = draws.of_groups(["a", "b", "a"])
    assert weights.shape == (1001, 3) and (weights[0] == 1).all()
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    np.testing.assert_array_equal(weights[:, 0] + weights[:, 1], 2)
    assert set(draws.of_seeds([1])[:, 0]) == {0, 1, 2}
    with pytest.raises(ValueError, match="'c' is not among the 2 groups"):
        draws.of_groups(["a", "c"])
    with pytest.raises(ValueError, match="7 is not among the 2"):
        draws.of_seeds([0, 7])


def test_judged_boxes_come_back_as_they_were_kept(tmp_path):
    from training import runs

    boxes = boxes_of(FULL, 0.5).assign(patient="0012", group="7")
    boxes.loc[0, "outside_inside_ratio"] = np.nan
    runs.write_table(tmp_path / "boxes.csv", boxes)
    again = localising.read_table(tmp_path / "boxes.csv")
    assert again["patient"][0] == "0012" and again["group"][0] == "7"
    np.testing.assert_array_equal(again["outside_inside_ratio"], boxes["outside_inside_ratio"])


def test_examples_come_back_as_they_were_kept(tmp_path):
    random = np.random.default_rng(0)
    one = localisation.ExampleFilm(
        finding="Mass",
        caption="1.png",
        pixels=random.random((8, 8)),
        aligned=None,
        mask=random.random((8, 8)),
        plain=random.random((8, 8)),
        evidence=random.random((8, 8)),
        boxes=np.array([[0.1, 0.2, 0.3, 0.4]]),
        fraction=0.3,
    )
    localisation.save_examples(tmp_path / "examples" / "full.npz", [one, one])
    again = localisation.load_examples(tmp_path / "examples" / "full.npz")
    assert len(again) == 2 and again[1].finding == "Mass" and again[1].fraction == 0.3
    assert again[0].aligned is None
    np.testing.assert_array_equal(again[0].mask, one.mask)


@pytest.mark.slow
def test_from_films_to_the_report_and_resumed(compare, tmp_path, monkeypatch):
    from kxray import models

    # An aligner that was not trained: every film is upright.
    models.build("aligner", image_size=(64, 64)).save(tmp_path / "aligner.keras")
    out = tmp_path / "out"
    train, trained = masks_run.MaskComparison.train, []

    def killed(self, row, *arguments):
        if trained:
            raise KeyboardInterrupt
        trained.append(row.name)
        return train(self, row, *arguments)

    monkeypatch.setattr("training.comparing.masks_run.MaskComparison.train", killed)
    given = ("--preset", "smoke", "--align", tmp_path / "aligner.keras", "--out", out)
    assert compare(*given)[0] == 130
    monkeypatch.setattr(
        "training.comparing.masks_run.MaskComparison.train",
        lambda self, row, *arguments: trained.append(row.name) or train(self, row, *arguments),
    )
    code, text = compare("--resume", "--out", out)
    assert code == 0, text
    # Nothing is trained twice.
    assert trained == [FULL, BASE]
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics["rows"]) == [FULL, BASE, "no-anatomy", "mask-alone", "uniform-map"]
    assert 0 < metrics["boxes"] and 0 <= metrics["rows"][FULL]["pointing_game"]["value"] <= 1
    config = json.loads((out / "config.json").read_text())
    assert config["parts"][0].startswith("seed 0: ") and config["parts"][0].endswith(" boxes")
    report = (out / "report.html").read_text()
    assert "Is the difference real?" in report and "data:image/jpeg" in report
    assert compare("--resume", "--out", out)[0] == 0
