"""Perturbation curves: by hand on 4 x 4 films, as invariances, and number by number against an oracle."""

import runpy
import tracemalloc
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.special import softmax

from kxray import metrics
from kxray.metrics.replacement import substrate_of

FILM = np.arange(1.0, 17).reshape(1, 4, 4, 1)
# The upper left patch matters most, then the lower right one.
MAP = np.kron([[4.0, -1], [0, 2]], np.ones((2, 2)))[None]

maps_of_films = arrays.arrays(np.float64, (2, 5, 6), elements=st.integers(-9, 9))


def total(images):
    """A linear score: the sum of the pixels."""
    return images.sum(axis=(1, 2, 3))


def test_orders_by_hand():
    ranks = metrics.patch_order(MAP, 2)
    np.testing.assert_array_equal(ranks[0, ::2, ::2], [[1, 4], [3, 2]])
    np.testing.assert_array_equal(metrics.patch_order(MAP, 2, ascending=True)[0, ::2, ::2], [[4, 1], [2, 3]])
    np.testing.assert_array_equal(metrics.patch_order(MAP, 2, limit=2)[0, ::2, ::2], [[1, 0], [0, 2]])
    # A patch of 3 cuts the grid into 9, 3, 3 and 1 pixels: sums 4 x 4 - 2 + 0 + 2 = 16, -1 x 2 + 2 = 0, 2, 2.
    np.testing.assert_array_equal(metrics.patch_order(MAP, 3)[0, ::3, ::3], [[1, 4], [2, 3]])
    # Equal values in reading order, four pixels a step.
    np.testing.assert_array_equal(
        metrics.pixel_order(MAP)[0], [[1, 1, 4, 4], [1, 1, 4, 4], [3, 3, 2, 2], [3, 3, 2, 2]]
    )
    lowest_first = metrics.fraction_order(MAP, (0.25, 0.5))[0]
    np.testing.assert_array_equal(lowest_first, [[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 0, 0], [2, 2, 0, 0]])
    assert np.bincount(metrics.fraction_order(np.ones((1, 1, 10)))[0, 0]).tolist() == [1] * 10


def test_curves_by_hand():
    # Patches hold 14, 22, 46 and 54 of 136; what is left is 1, the minimum, 4 times.
    curve = metrics.perturbation_curve(total, FILM, metrics.patch_order(MAP, 2))
    assert curve.tolist() == [[136, 126, 76, 34, 16]]
    assert metrics.aopc(curve) == pytest.approx([(10 + 60 + 102 + 120) / 5])
    assert metrics.area_under(curve) == pytest.approx([(68 + 126 + 76 + 34 + 8) / 4])
    assert metrics.area_under(curve, normalised=False) == pytest.approx([68 + 126 + 76 + 34 + 8])
    both = metrics.region_perturbation(total, FILM, MAP, patch=2)
    assert both.most_first.tolist() == curve.tolist()
    assert both.least_first.tolist() == [[136, 118, 76, 26, 16]]
    assert both.gap == pytest.approx([(292 - (18 + 60 + 110 + 120)) / 5])


def test_deletion_and_insertion_by_hand():
    curve, area = metrics.deletion(total, FILM, MAP)
    assert curve.tolist() == [[136, 122, 68, 22, 0]] and area == pytest.approx([(68 + 122 + 68 + 22) / 4])
    curve, area = metrics.insertion(total, FILM, MAP, substrate=0)
    assert curve.tolist() == [[0, 14, 68, 114, 136]] and area == pytest.approx([(14 + 68 + 114 + 68) / 4])
    # Six pixels a step do not divide 16: the last step is the smaller one, in both.
    assert metrics.deletion(total, FILM, MAP, pixels_per_step=6)[0][0, 0] == 136
    assert metrics.insertion(total, FILM, MAP, None, 6, 0)[0][0].tolist() == [
        136 - left for left in metrics.deletion(total, FILM, MAP, pixels_per_step=6)[0][0]
    ]


def test_substrates():
    image = FILM[0]
    assert (substrate_of(image, "minimum") == 1).all() and (substrate_of(image, "mean") == 8.5).all()
    assert (substrate_of(image, 0.25) == 0.25).all() and (substrate_of(image, "zero") == 0).all()
    assert (substrate_of(image, lambda film: film[::-1]) == image[::-1]).all()
    spike = np.zeros((31, 31, 2))
    spike[15, 15, 0] = 1
    blurred = substrate_of(spike, "blur")
    assert (blurred[..., 0] > 0).sum() == 11 * 11 and blurred.sum() == pytest.approx(1)
    assert (blurred[..., 1] == 0).all()
    # Gaussian of sigma 5: neighbours at distance 5 weigh exp(-1 / 2) of the centre.
    assert blurred[15, 20, 0] / blurred[15, 15, 0] == pytest.approx(np.exp(-0.5))
    np.testing.assert_allclose(substrate_of(np.full((9, 9, 1), 3.0), "blur"), 3)


def test_negative_perturbation_by_hand():
    """Two classes: the upper half of a film against its lower half."""
    film = np.concatenate([np.full((5, 2), 3.0), np.full((5, 2), 2.0)]).reshape(1, 10, 2, 1)

    def halves(images):
        return np.stack([images[:, :5].sum(axis=(1, 2, 3)), images[:, 5:].sum(axis=(1, 2, 3))], axis=1)

    good = np.where(np.arange(20).reshape(1, 10, 2) < 10, 1.0, 0.0) - np.arange(20).reshape(1, 10, 2) / 100
    kept = metrics.negative_perturbation(halves, film, good, target=0)
    assert kept.right.all() and kept.area == 1
    assert kept.scores[0].tolist() == [30] * 5 + [24, 18, 12, 6]
    # The true half goes first: 30, 24, then 18 against 20.
    lost = metrics.negative_perturbation(halves, film, -good, target=0)
    assert lost.accuracy.tolist() == [1] + [0] * 8
    assert lost.area == pytest.approx(0.5 / 8)
    above = metrics.negative_perturbation(halves, film, good, target=[0], threshold=12.5)
    assert above.right[0].tolist() == [True] * 7 + [False] * 2
    assert metrics.negative_perturbation(lambda x: total(x), film, good, 0, threshold=30).area > 0


def test_faithfulness_of_a_linear_model():
    random = np.random.default_rng(0)
    weights, films = random.normal(size=(6, 6, 1)), random.uniform(size=(3, 6, 6, 1))

    def linear(images):
        return (images * weights).sum(axis=(1, 2, 3))

    true = ((films - films.min(axis=(1, 2, 3), keepdims=True)) * weights)[..., 0]
    np.testing.assert_allclose(metrics.faithfulness_estimate(linear, films, true), 1)
    np.testing.assert_allclose(metrics.faithfulness_correlation(linear, films, true, draws=20), 1)
    np.testing.assert_allclose(metrics.faithfulness_correlation(linear, films, -true, draws=20), -1)
    again = [
        metrics.faithfulness_correlation(linear, films, true**2, draws=9, seed=seed) for seed in (1, 1, 2)
    ]
    assert (again[0] == again[1]).all() and (again[0] != again[2]).all()
    assert np.isnan(metrics.faithfulness_estimate(linear, films, np.ones((3, 6, 6)))).all()


@settings(max_examples=40, deadline=None)
@given(maps_of_films, st.floats(0.01, 100), st.sampled_from([1, 2, 4]))
def test_orders_do_not_depend_on_scale_and_cover_the_film(maps, factor, size):
    for order in (metrics.pixel_order, metrics.patch_order):
        steps = order(maps, size)
        np.testing.assert_array_equal(steps, order(4 * maps + 0, size))
        np.testing.assert_array_equal(steps[1:], order(maps[1:], size))
        for film in steps:
            assert set(np.unique(film)) == set(range(1, film.max() + 1))
    np.testing.assert_array_equal(metrics.pixel_order(maps), metrics.pixel_order(factor * maps))
    # Sorted by step, the values fall.
    order = metrics.pixel_order(maps[:1], 1).ravel()
    assert (np.diff(maps[0].ravel()[np.argsort(order)]) <= 0).all()


@settings(max_examples=20, deadline=None)
@given(maps_of_films, st.integers(1, 40))
def test_batches_change_nothing(maps, batch_size):
    films = np.random.default_rng(0).uniform(size=(2, 5, 6, 2))
    sizes = []

    def two(images):
        sizes.append(len(images))
        return np.stack([images[..., 0].sum(axis=(1, 2)), images[..., 1].max(axis=(1, 2))], axis=1)

    orders = metrics.pixel_order(maps)
    scores = metrics.perturbed_scores(two, films, orders, batch_size=batch_size)
    assert scores.shape == (2, 6, 2) and max(sizes) <= batch_size and sum(sizes) == 12
    np.testing.assert_array_equal(scores, metrics.perturbed_scores(two, films, orders, batch_size=64))
    # A linear score falls to the same end, whatever the order.
    np.testing.assert_allclose(scores[:, -1, 0], films.min(axis=(1, 2, 3)) * 30)


def test_films_are_made_a_batch_at_a_time():
    films, maps = np.ones((1, 64, 64, 1), np.float32), np.random.default_rng(0).normal(size=(1, 64, 64))
    orders = metrics.pixel_order(maps, 4)
    tracemalloc.start()
    metrics.perturbed_scores(total, films, orders, batch_size=8)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * films.nbytes, "of 1025 perturbed films"


def test_a_keras_model_is_traced_once():
    calls = []

    @keras.saving.register_keras_serializable("kxray_tests")
    class Counted(keras.layers.Layer):
        def call(self, inputs):
            calls.append(1)
            return inputs

    film = keras.Input((4, 4, 1))
    model = keras.Model(
        film, keras.layers.Dense(3, activation="softmax")(keras.layers.Flatten()(Counted()(film)))
    )
    calls.clear()
    films = np.concatenate([FILM, FILM[:, ::-1]]).astype(np.float32) / 16
    maps = np.concatenate([MAP, -MAP])
    first = metrics.region_perturbation(model, films, maps, 1, patch=2, batch_size=3)
    second = metrics.region_perturbation(model, films, maps, 1, patch=1, batch_size=4)
    assert len(calls) == 1
    whole = model(films).numpy()[:, 1]
    np.testing.assert_allclose(first.most_first[:, 0], whole, rtol=1e-6)
    np.testing.assert_allclose(second.least_first[:, 0], whole, rtol=1e-6)
    # Without a target: the unit that is largest on the whole film.
    unit = model(films).numpy().argmax(axis=1)
    curve = metrics.perturbation_curve(model, films, metrics.patch_order(maps, 2))
    np.testing.assert_array_equal(
        curve, metrics.perturbation_curve(model, films, metrics.patch_order(maps, 2), unit)
    )
    with pytest.raises(ValueError, match="needs a threshold"):
        metrics.negative_perturbation(total, films, maps, 0)


def test_wrong_input_is_told():
    orders = metrics.pixel_order(MAP)
    for call, sentence in (
        (lambda: metrics.deletion(total, FILM, MAP[:, :2]), "stretch them with kxray.io.resize"),
        (lambda: metrics.deletion(total, FILM.astype(np.uint8), MAP), "expected float images"),
        (lambda: metrics.perturbation_curve(total, FILM[0], orders), r"images \(N, H, W, C\)"),
        (lambda: metrics.perturbation_curve(total, FILM, orders[:, :2]), "expected orders"),
        (lambda: metrics.perturbation_curve(total, FILM, orders, 1), "units 0 to 0, got 1 to 1"),
        (lambda: metrics.perturbation_curve(total, FILM, orders, 0.5), "target must be an int"),
        (lambda: metrics.perturbation_curve(total, FILM, orders, 0, "black"), "substrate must be"),
        (lambda: metrics.perturbation_curve(total, FILM, orders, batch_size=0), "batch_size must be"),
        (lambda: metrics.perturbation_curve(np.sum, FILM, orders), "predict must give scores"),
        (lambda: metrics.pixel_order(MAP * np.nan), "not finite"),
        (lambda: metrics.patch_order(MAP, 0), "patch must be a whole number"),
        (lambda: metrics.fraction_order(MAP, (0.5, 0.4)), "fractions must rise"),
        (lambda: metrics.aopc([1, 2]), "curves"),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()


@pytest.fixture(scope="module")
def oracle():
    """The oracle's arrays, its net in float64, films NHWC and maps NHW."""
    nets = runpy.run_path(str(Path(__file__).parents[1] / "explain" / "oracle_nets.py"))
    known = nets["arrays"]("oracle_metrics_gap")
    model = nets["build"]("gap", known, dtype="float64")

    def logits(images):
        return model(images, training=False).numpy()

    return known, logits, nets["films"](known), known["attribution"][:, 0].astype(float)


# The oracle's own net ran in float32.
ROUNDING = {"rtol": 0, "atol": 1e-6}


def test_region_perturbation_and_selectivity_of_the_oracle(oracle):
    known, logits, films, maps = oracle
    for predict, kind in ((logits, ""), (lambda images: softmax(logits(images), axis=1), "softmax_")):
        ours = metrics.region_perturbation(predict, films, maps, known["target"], patch=3)
        for name, curve in (("morf", ours.most_first), ("lerf", ours.least_first)):
            drops = curve[:, :1] - curve[:, 1:]
            np.testing.assert_allclose(drops, known[f"region_perturbation_{kind}{name}"], **ROUNDING)
        if not kind:
            np.testing.assert_allclose(ours.most_first[:, 1:], known["selectivity"], **ROUNDING)
    # AOPC of the probability, the term k = 0 in the mean.
    np.testing.assert_allclose(ours.aopc_most_first, known["aopc_morf"], **ROUNDING)
    np.testing.assert_allclose(ours.aopc_least_first, known["aopc_lerf"], **ROUNDING)


def test_insertion_and_deletion_of_the_oracle(oracle):
    known, logits, films, maps = oracle

    def probabilities(images):
        return softmax(logits(images), axis=1)

    curves, areas = metrics.deletion(probabilities, films, maps, known["target"], pixels_per_step=9)
    # The oracle inserted into zeros, not into a blurred film.
    grown, grown_areas = metrics.insertion(probabilities, films, maps, known["target"], 9, "zero")
    for film in range(2):
        np.testing.assert_allclose(curves[film], known[f"del_curve_{film}"], **ROUNDING)
        np.testing.assert_allclose(grown[film], known[f"ins_curve_{film}"], **ROUNDING)
        np.testing.assert_allclose(areas[film], known[f"del_auc_{film}"], **ROUNDING)
        np.testing.assert_allclose(grown_areas[film], known[f"ins_auc_{film}"], **ROUNDING)


def test_pixel_flipping_of_the_oracle(oracle, flipping_orders):
    known, logits, films, maps = oracle
    target = known["target"]
    # After every third step eight whole pixels are gone, and the order among ties does not matter.
    curves, _ = metrics.deletion(logits, films, maps, target, pixels_per_step=8, substrate="minimum")
    np.testing.assert_allclose(curves[:, 1:], known["pixel_flipping_scores"][:, 2::3], **ROUNDING)
    curves = metrics.perturbation_curve(logits, films, flipping_orders, target)[:, 1:]
    np.testing.assert_allclose(curves, known["pixel_flipping_scores"], **ROUNDING)
    # Its area is not divided by the number of steps, and starts after the first.
    areas = metrics.area_under(curves, normalised=False)
    np.testing.assert_allclose(areas, known["pixel_flipping_auc"], rtol=1e-6)


def test_faithfulness_estimate_of_the_oracle(oracle, flipping_orders):
    known, logits, films, maps = oracle
    scores = metrics.perturbed_scores(logits, films, flipping_orders, alone=True)[:, :, 1]
    for film in range(2):
        values = np.repeat(maps[film].ravel(), 3)
        sums = np.bincount(flipping_orders[film].ravel(), values)[1:]
        estimate = np.corrcoef(sums, scores[film, 0] - scores[film, 1:])[0, 1]
        np.testing.assert_allclose(estimate, known["faithfulness_estimate"][film], **ROUNDING)
    # The same by whole pixels; ours is the correlation of the very numbers.
    ours = metrics.faithfulness_estimate(logits, films, maps, known["target"], pixels_per_step=8)
    orders = metrics.pixel_order(maps, 8)
    scores = metrics.perturbed_scores(logits, films, orders, alone=True)[:, :, 1]
    for film in range(2):
        sums = np.bincount(orders[film].ravel(), maps[film].ravel())[1:]
        assert ours[film] == pytest.approx(np.corrcoef(sums, scores[film, 0] - scores[film, 1:])[0, 1])


@pytest.fixture(scope="module")
def flipping_orders(oracle):
    """In which order the oracle flipped the 432 values C x H x W of each film, 8 a step: int (N, H, W, C).

    Its map has one channel, so the three values of a pixel tie, and an unstable sort decided between them
    where a step ends within a pixel. What it decided is found from its scores, tie by tie.
    """
    known, logits, films, maps = oracle
    ranks = metrics.pixel_order(maps, 1) - 1
    orders = np.empty((2, 12, 12, 3), int)
    for film in range(2):
        channel_ranks = np.zeros((144, 3), int) + [0, 1, 2]
        for step in range(1, 54):
            if step * 8 % 3:
                tries = np.repeat(channel_ranks[None], 3, axis=0)
                tries[:, step * 8 // 3] = [[0, 1, 2], [1, 2, 0], [2, 0, 1]]
                tried = np.array([(ranks[film][..., None] * 3 + one[ranks[film]]) // 8 + 1 for one in tries])
                flipped = np.where(tried <= step, films[film].min(), films[film])
                misses = logits(flipped)[:, 1] - known["pixel_flipping_scores"][film, step - 1]
                channel_ranks = tries[np.abs(misses).argmin()]
        orders[film] = (ranks[film][..., None] * 3 + channel_ranks[ranks[film]]) // 8 + 1
    return orders
