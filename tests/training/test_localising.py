"""Where maps point, on films whose bright squares are the findings."""

import numpy as np
import pandas as pd
import pytest

from kxray.data.pipeline import ArrayInputs
from training import localising
from training.films import RunFilms
from training.localising import EVIDENCE, FRACTIONS, MASK_ALONE, UNIFORM, column_of
from training.report import localisation
from training.task import ClassifierTask

LABELS = ("Left", "Right")
SIDE = 32
TASK = ClassifierTask(
    "toy", "view_cnn", "multilabel", "label", "thorax", (SIDE, SIDE), None, None, None, LABELS
)


def planted(folder, count=12, film_shape=(64, 64)):
    """Films with a bright square at the left or the right and a box around it; every third has neither."""
    from kxray.io import write_png16

    random = np.random.default_rng(0)
    rows, pixels, truths = [], [], []
    for index in range(count):
        film = np.full((SIDE, SIDE), 0.1, np.float32)
        kind, boxes = index % 3, []
        if kind:
            top, left = random.integers(4, 20), 4 + 16 * (kind - 1)
            film[top : top + 8, left : left + 8] = 0.9
            down, across = film_shape[0] / SIDE, film_shape[1] / SIDE
            place = {"x": left * across, "y": top * down, "width": 8 * across, "height": 8 * down}
            boxes = [{"finding": LABELS[kind - 1], **place}]
        path = folder / f"{index}.png"
        write_png16(path, np.full(film_shape, 0.5, np.float32))
        rows.append(
            {"path": str(path), "patient_id": f"p{index // 2}", "boxes": boxes, "training_only": False}
        )
        pixels.append(film)
        truths.append([float(kind == 1), float(kind == 2)])
    table = pd.DataFrame(rows)
    inputs = ArrayInputs(np.stack(pixels)[..., None])
    return RunFilms(table, inputs, np.array(truths), None, None, ())


def grey_net():
    """Its maps are the film's own grey above 0.5, the same for both labels."""
    import keras

    film = keras.Input((SIDE, SIDE, 1))
    features = keras.layers.Conv2D(1, 1, activation="relu", name="features")(film)
    pooled = keras.layers.GlobalAveragePooling2D()(features)
    model = keras.Model(film, keras.layers.Dense(2, activation="sigmoid")(pooled))
    weights = [np.ones((1, 1, 1, 1)), np.array([-0.5]), np.ones((1, 2)), np.zeros(2)]
    model.set_weights(weights)
    return model


def test_boxes_are_shares_of_the_film_and_only_of_what_it_has(tmp_path):
    films = planted(tmp_path, 3, film_shape=(64, 96))
    films.table.at[0, "boxes"] = [{"finding": "Left", "x": 0, "y": 0, "width": 5, "height": 5}]
    films.table.at[1, "boxes"].append({"finding": "Elsewhere", "x": 0, "y": 0, "width": 5, "height": 5})
    boxes = localising.boxed_findings(TASK, films, [0, 1, 2])
    # Film 0 is known not to have it; of Elsewhere nothing was asked.
    assert boxes["position"].tolist() == [1, 2] and boxes["finding"].tolist() == ["Left", "Right"]
    np.testing.assert_allclose(boxes[["width", "height"]], 0.25)
    assert boxes["x"].tolist() == [4 / 32, 20 / 32]


def test_a_box_is_cut_at_the_edge_of_its_film(tmp_path):
    films = planted(tmp_path, 2)
    films.table.at[1, "boxes"] = [{"finding": "Left", "x": -32, "y": 32, "width": 64, "height": 64}]
    (box,) = localising.boxed_findings(TASK, films, [1])[["x", "y", "width", "height"]].to_numpy()
    np.testing.assert_allclose(box, [0, 0.5, 0.5, 0.5])


def test_maps_that_are_the_finding_hit_everything(tmp_path):
    films = planted(tmp_path)
    table = localising.localise(grey_net(), TASK, films, range(12))
    own, uniform = (table[table["map"] == name] for name in (EVIDENCE, UNIFORM))
    assert len(own) == len(uniform) == 8 and MASK_ALONE not in set(table["map"])
    assert (own["pointing_game"] == 1).all() and (own["outside_inside_ratio"] == 0).all()
    for fraction in FRACTIONS:
        np.testing.assert_allclose(own[column_of("iou", fraction)], 1)
    # Chance: an eighth of the width by an eighth of the height of what there is.
    np.testing.assert_allclose(uniform["pointing_game"], 1 / 16)
    np.testing.assert_allclose(uniform[column_of("iou", 0.5)], 1 / 16)
    scores = localising.summary(localising.cut_by(table, table))
    assert scores["films"] == 8 and scores["patients"] == 6
    found = scores["maps"][EVIDENCE]
    assert found["all"]["pointing_game"] == {"value": 1, "low": 1, "high": 1}
    assert found["all"]["accuracy"]["iou"]["0.7"]["value"] == 1 and set(found["findings"]) == set(LABELS)
    assert scores["maps"][UNIFORM]["mean"]["accuracy"]["iobb"]["0.1"]["value"] == 0


def masked(align):
    """A masked network whose second mask is a square in the upper right of the frame."""
    from kxray import models

    model = models.build(
        "masked_densenet", num_labels=2, image_size=(SIDE, SIDE), backbone="small_densenet", align=align
    )
    masks = np.ones((2, 16, 16), np.float32)
    masks[1] = 0
    masks[1, 2:6, 10:14] = 1
    models.set_masks(model, masks)
    return model


@pytest.mark.parametrize("align", [False, True])
def test_masks_alone_are_laid_on_the_film(tmp_path, align):
    from training.evidence_maps import MapMaker

    films, model = planted(tmp_path), masked(align)
    place = np.array([0.25, -0.25])
    if align:
        from kxray.data.similarity import Similarity

        layer = model.get_layer("align")
        # Every film leans, is small, and lies left and low.
        layer.motion.bias.assign([0.12, -0.1, -0.12, 0.1])
        pose = np.asarray(layer.localise(np.zeros((1, SIDE, SIDE, 1), "float32"))[0])[0]
        assert pose[0] > 0.2 and pose[2] < -0.15 and pose[3] > 0.1
        place = Similarity.from_pose(pose).apply(place)
        assert np.abs(place - (0.25, -0.25)).max() > 0.15
    maker = MapMaker(model)
    assert maker.method == "evidence" and maker.attends
    (pixels,) = films.inputs.batches(np.arange(4), 4)
    labels = np.ones(4, int)
    maps = maker(pixels, labels)
    assert maps[EVIDENCE].shape == maps[MASK_ALONE].shape == (4, SIDE, SIDE)
    for mask in maps[MASK_ALONE]:
        rows, columns = np.nonzero(mask > 0.5 * mask.max())
        middle = np.array([columns.mean(), rows.mean()]) + 0.5
        np.testing.assert_allclose(middle / SIDE - 0.5, place, atol=0.04)
    before = [layer.masks.numpy() for layer in model.layers if hasattr(layer, "set_masks")]
    plain = maker.without_masks(pixels, labels)
    assert np.abs(plain - maps[EVIDENCE]).max() > 0
    after = [layer.masks.numpy() for layer in model.layers if hasattr(layer, "set_masks")]
    np.testing.assert_array_equal(before, after)
    table = localising.localise(model, TASK, films, range(12))
    assert set(table["map"]) == {EVIDENCE, MASK_ALONE, UNIFORM} and len(table) == 24


def test_masks_that_say_nothing_are_no_baseline(tmp_path):
    from kxray import models

    films, model = planted(tmp_path), masked(align=False)
    models.set_masks(model, np.ones((2, 4, 4), np.float32))
    table = localising.localise(model, TASK, films, range(12))
    assert set(table["map"]) == {EVIDENCE, UNIFORM}


def test_no_boxes_no_scores(tmp_path):
    films = planted(tmp_path)
    table = localising.localise(grey_net(), TASK, films, [0, 3])
    assert not len(table) and localising.summary(table) is None
    bare = RunFilms(films.table.drop(columns="boxes"), *(films.inputs, films.labels, None, None, ()))
    assert not len(localising.boxed_findings(TASK, bare, range(12)))


def boxes_of(pointing, iou, findings, patients=None, kind=EVIDENCE, fraction=0.5):
    count = len(findings)
    columns = {column_of(measure, cut): np.zeros(count) for measure in ("iou", "iobb") for cut in FRACTIONS}
    columns[column_of("iou", fraction)] = np.asarray(iou, float)
    return pd.DataFrame(
        {
            "position": range(count),
            "path": [f"film{index}" for index in range(count)],
            "patient": patients or [f"p{index}" for index in range(count)],
            "finding": findings,
            "box": 0,
            "map": kind,
            "pointing_game": np.asarray(pointing, float),
            "outside_inside_ratio": 0.5,
            "fraction": fraction,
            **columns,
        }
    )


def test_scores_by_hand():
    table = boxes_of([1, 1, 1, 0], [0.3, 0.31, 0.8, 0.2], ["a", "a", "a", "b"])
    table.loc[2, ["box", "position", "path"]] = (1, 1, "film1")  # a second box of one pair
    table = pd.concat([table, table.assign(map=UNIFORM)])
    found = localising.summary(table)["maps"][EVIDENCE]
    assert found["all"]["boxes"] == 4 and found["all"]["pairs"] == 3
    # The point is judged once a pair; 0.3 is not above 0.3.
    assert found["all"]["pointing_game"]["value"] == pytest.approx(2 / 3)
    assert found["all"]["accuracy"]["iou"]["0.3"]["value"] == pytest.approx(2 / 4)
    assert found["mean"]["accuracy"]["iou"]["0.3"]["value"] == pytest.approx((2 / 3 + 0) / 2)
    assert found["all"]["outside_inside_ratio"]["value"] == 0.5
    assert found["findings"]["b"]["pointing_game"] == {"value": 0, "low": 0, "high": 0}


def test_whole_patients_are_resampled():
    one = boxes_of([1] * 10 + [0] * 10, [0] * 20, ["a"] * 20, ["p0"] * 10 + ["p1"] * 10)
    many = boxes_of([1] * 10 + [0] * 10, [0] * 20, ["a"] * 20)
    wide, narrow = (
        localising.summary(pd.concat([table, table.assign(map=UNIFORM)]))["maps"][EVIDENCE]["all"]
        for table in (one, many)
    )
    assert wide["pointing_game"]["low"] == 0 and wide["pointing_game"]["high"] == 1
    assert 0.2 < narrow["pointing_game"]["low"] < 0.4


def test_the_fraction_is_chosen_on_enough_boxes():
    many = boxes_of([1] * 12, [0.6] * 12, ["a"] * 12, fraction=0.3)
    assert localising.choose_fractions(many)[EVIDENCE] == 0.3
    assert localising.choose_fractions(many)[UNIFORM] == localising.USUAL_FRACTION
    assert localising.choose_fractions(many[:9])[EVIDENCE] == localising.USUAL_FRACTION
    values = localising.values_of(pd.concat([localising.cut_by(many, many), many.assign(fraction=0.5)]))
    assert values["iou_0.5"].tolist() == [1] * 12 + [0] * 12


def test_medians_and_means_leave_out_what_is_undefined():
    values = np.array([1.0, np.inf, np.nan, 2.0])
    weights = np.array([[1.0, 1, 1, 1], [1, 3, 0, 1], [0, 0, 5, 0]])
    medians = localising.weighted_medians(values, weights)
    assert medians[0] == 2 and np.isinf(medians[1]) and np.isnan(medians[2])
    assert localising.weighted_means(np.array([1, np.nan, 3.0]), np.ones((1, 3)))[0] == 2


def test_infinite_ratios_are_kept_in_means_and_intervals():
    draws = np.array([1.0] * 500 + [np.inf] * 400 + [np.nan] * 100)
    told = localising.with_interval(1.0, draws)
    assert told == {"value": 1, "low": 1, "high": np.inf}
    assert np.isnan(localising.with_interval(1.0, np.full(1000, np.nan))["low"])
    means = localising._known_mean(np.array([[1.0, 1.0, np.nan], [np.inf, 3.0, np.nan]]))
    assert np.isinf(means[0]) and means[1] == 2 and np.isnan(means[2])
    table = boxes_of([1] * 4, [0.3] * 4, ["a", "a", "b", "b"]).assign(
        outside_inside_ratio=[1, 1, np.inf, np.inf]
    )
    found = localising.summary(pd.concat([table, table.assign(map=UNIFORM)]))["maps"][EVIDENCE]
    assert np.isinf(found["mean"]["outside_inside_ratio"]["value"])
    assert found["findings"]["a"]["outside_inside_ratio"] == {"value": 1, "low": 1, "high": 1}


def test_tables_without_rows_change_no_other(recwarn):
    table = boxes_of([1, 0], [0.3, 0.2], ["a", "b"])
    pd.testing.assert_frame_equal(localising.joined([table[:0].astype(object), table]), table)
    assert not len(localising.joined([table[:0], table[:0]])) and not len(recwarn)


def test_examples_are_one_of_each_finding_and_drawn(tmp_path):
    films = planted(tmp_path)
    boxes = localising.boxed_findings(TASK, films, range(12))
    pairs = localisation.choose_examples(boxes, LABELS, count=3)
    assert [pair["finding"].iloc[0] for pair in pairs] == ["Left", "Left", "Right"]
    examples = localisation.example_films(grey_net(), TASK, films, pairs)
    assert all(example.aligned is None and example.mask is None for example in examples)
    assert localisation.example_rows(examples).startswith("data:image/jpeg")
    assert localisation.example_rows([]) is None


def test_the_section_says_whether_the_map_beats_chance(tmp_path):
    import jinja2

    films = planted(tmp_path)
    table = localising.localise(grey_net(), TASK, films, range(12))
    few = localisation.section(localising.summary(localising.cut_by(table, table)), [])
    assert few["verdict"].endswith("too few patients (6) to tell.")
    # As many films of as many patients, twice.
    table = pd.concat([table, table.assign(patient="other " + table["patient"])], ignore_index=True)
    shown = localisation.section(localising.summary(localising.cut_by(table, table)), [], seen=True)
    assert "more than the uniform map reaches without looking at the film" in shown["verdict"]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("training", "report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("_localisation.html.j2").render(localisation=shown)
    assert "Left" in page and "16 boxes on 8 test films of 12 patients" in page
    assert "trained on these films" not in page
    page = environment.get_template("_localisation.html.j2").render(
        localisation={**shown, "picture": "data:image/jpeg"}
    )
    assert "The maps are of the kept model, which was trained on these films" in page
    page = environment.get_template("_localisation.html.j2").render(
        localisation=localisation.section(None, [])
    )
    assert "cannot be measured" in page
