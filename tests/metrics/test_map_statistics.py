"""Complexity, sparseness, completeness and sensitivity, on maps whose answers are known."""

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from kxray.metrics import completeness_error, complexity, is_complete, sensitivity, sparseness

ORACLES = Path(__file__).resolve().parents[3] / "shared" / "oracles"
POINT, FLAT, ZERO = np.zeros((1, 4, 4)), np.full((1, 4, 4), -2.0), np.zeros((1, 4, 4))
POINT[0, 1, 2] = -3

batches = arrays.arrays(np.float64, (3, 4, 4), elements=st.integers(-99, 99).map(float))


def test_complexity_and_sparseness_by_hand():
    assert complexity(POINT).tolist() == [0] and sparseness(POINT) == pytest.approx([15 / 16])
    assert complexity(FLAT) == pytest.approx([np.log(16)]) and sparseness(FLAT) == pytest.approx([0])
    assert np.isnan(complexity(ZERO)).all() and np.isnan(sparseness(ZERO)).all()
    # 1, 1, 2 of 4: entropy 2 x .25 log 4 + .5 log 2; Gini (-2 + 0 + 2 x 2) / (3 x 4).
    three = np.array([[[1.0, -1, 2]]])
    assert complexity(three) == pytest.approx([np.log(4) / 2 + np.log(2) / 2])
    assert sparseness(three) == pytest.approx([2 / 12])
    # Channels are pixels of their own.
    assert complexity(np.ones((1, 4, 4, 3))) == pytest.approx([np.log(48)])


@settings(max_examples=50, deadline=None)
@given(batches, st.floats(1e-150, 1e150), st.randoms(use_true_random=False))
def test_statistics_do_not_depend_on_scale_sign_or_place(maps, factor, shuffler):
    places = shuffler.sample(range(16), 16)
    shuffled = maps.reshape(3, 16)[:, places].reshape(3, 4, 4)
    for statistic, low, high in ((complexity, 0, np.log(16)), (sparseness, 0, 15 / 16)):
        values = statistic(maps)
        assert (np.isnan(values) == ~maps.any(axis=(1, 2))).all()
        assert ((values >= low - 1e-12) & (values <= high + 1e-12) | np.isnan(values)).all()
        for other in (factor * maps, -maps, shuffled):
            np.testing.assert_allclose(statistic(other), values, rtol=1e-9, atol=1e-12)


def test_completeness_by_hand():
    maps = np.stack([POINT[0], FLAT[0], ZERO[0], POINT[0]])
    errors = completeness_error(maps, [-3, -40, 0, 0])
    assert errors.tolist() == [0, 8 / 40, 0, -np.inf]
    assert is_complete(maps, [-3, -40, 0, 0]).tolist() == [True, False, True, False]
    assert is_complete(maps[:1], [-3.001], 1e-3).tolist() == [True]
    assert is_complete(maps[:1], [-3.1], 1e-3).tolist() == [False]


def test_sensitivity_of_known_functions():
    random = np.random.default_rng(0)
    films = random.uniform(size=(3, 4, 4, 1))
    # A map that does not look at the film; one that is the film; one that doubles its noise.
    assert sensitivity(lambda images: np.ones_like(images), films).largest.tolist() == [0, 0, 0]
    itself = sensitivity(lambda images: images[..., 0], films, radius=0.1, draws=20)
    bound = 0.1 * 4 / np.linalg.norm(films.reshape(3, -1), axis=1)
    assert ((itself.mean > 0) & (itself.mean < itself.largest) & (itself.largest <= bound)).all()
    doubled = sensitivity(lambda images: films + 2 * (images - films), films, radius=0.1, draws=20)
    np.testing.assert_allclose(doubled.largest, 2 * itself.largest)
    np.testing.assert_allclose(doubled.mean, 2 * itself.mean)
    # The map's own scale does not matter, the seed does; a known map is not computed again.
    scaled = sensitivity(lambda images: 7 * images, films, radius=0.1, draws=20)
    np.testing.assert_allclose(scaled.largest, itself.largest)
    calls = []
    again = sensitivity(lambda images: calls.append(1) or images, films, films, radius=0.1, draws=20)
    assert len(calls) == 20 and (again.mean == itself.mean).all()
    other = sensitivity(lambda images: images, films, radius=0.1, draws=20, seed=1)
    assert (other.mean != itself.mean).all()
    assert np.isnan(sensitivity(lambda images: 0 * images, films).largest).all()
    assert (sensitivity(lambda images: images, films, radius=0).largest == 0).all()


def test_noise_keeps_the_dtype_of_the_films():
    kinds = []
    sensitivity(
        lambda images: kinds.append(images.dtype) or images, np.ones((1, 2, 2, 1), np.float32), draws=1
    )
    assert kinds == [np.float32, np.float32]


def test_statistics_of_the_oracle():
    folder = Path(os.environ.get("KXRAY_TEST_ORACLES", ORACLES))
    if not (folder / "oracle_metrics_gap.npz").is_file():
        pytest.skip(f"no oracles in {folder}; set KXRAY_TEST_ORACLES to the folder of the oracles")
    oracle = np.load(folder / "oracle_metrics_gap.npz")
    maps = oracle["attribution"][:, 0].astype(float)
    # Sums of float32 in the original.
    np.testing.assert_allclose(complexity(maps), oracle["complexity_entropy_abs"], rtol=1e-7)
    # The original adds 1e-7 to every pixel, so its figure depends on the scale of the map: ours does not.
    np.testing.assert_allclose(sparseness(maps + 1e-7), oracle["sparseness_gini_abs"], rtol=1e-7)
    np.testing.assert_allclose(sparseness(maps), oracle["sparseness_gini_abs"], rtol=2e-5)
    # The original compares with ==, and so finds no integrated gradients complete: ours has a tolerance.
    assert not oracle["completeness_ig"].any()
    gradients = np.load(folder / "oracle_gradcam_gap.npz")
    rows, target = np.arange(2), gradients["target"]
    weights = {name: gradients[name] for name in gradients.files if name.endswith(("weight", "bias"))}
    differences = (
        gradients["logits"][rows, target]
        - _logits_of_baseline(weights, gradients["ig_baseline"])[rows, target]
    )
    for name, delta in (
        ("ig300_gausslegendre", "ig300_delta"),
        ("ig20_gausslegendre", "ig20_delta_gausslegendre"),
        ("ig20_riemann_trapezoid", "ig20_delta_riemann_trapezoid"),
    ):
        errors = completeness_error(gradients[name], differences) * np.abs(differences)
        np.testing.assert_allclose(errors, gradients[delta], rtol=1e-9, atol=1e-14)
    # Of 300 steps, and of 20 by the trapezoid rule that loses one part in 20.
    assert is_complete(gradients["ig300_gausslegendre"], differences, tolerance=2e-3).all()
    assert not is_complete(gradients["ig20_riemann_trapezoid"], differences, tolerance=2e-2).any()


def _logits_of_baseline(weights, films):
    from scipy.ndimage import correlate

    def convolved(images, name):
        kernel, bias = weights[f"{name}_weight"], weights[f"{name}_bias"]
        return np.array(
            [
                [
                    sum(correlate(image[c], one[c], mode="constant") for c in range(len(image))) + offset
                    for one, offset in zip(kernel, bias, strict=True)
                ]
                for image in images
            ]
        )

    films = np.maximum(convolved(films, "conv1"), 0)
    films = films.reshape(*films.shape[:2], 6, 2, 6, 2).max(axis=(3, 5))
    films = np.maximum(convolved(films, "conv2"), 0).mean(axis=(2, 3))
    return films @ weights["fc_weight"].T + weights["fc_bias"]


def test_wrong_input_is_told():
    for call, sentence in (
        (lambda: complexity(np.zeros(3)), "expected maps"),
        (lambda: sparseness(FLAT * np.nan), "not finite"),
        (lambda: completeness_error(FLAT, [1, 2]), "one difference a map"),
        (lambda: sensitivity(lambda images: images, FLAT, draws=0), "draws of 1 or more"),
        (lambda: sensitivity(lambda images: images, FLAT, radius=-1), "radius of 0 or more"),
        (lambda: sensitivity(lambda images: images[:0], FLAT), "one map an image"),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()
