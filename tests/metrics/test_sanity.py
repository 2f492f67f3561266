"""Weights are randomised from the top, by their own initialisers, in a copy; similarities by hand."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from keras import layers

from kxray.metrics import map_similarity, random_logit, weight_randomisation
from kxray.metrics.sanity import randomise

FILMS = np.random.default_rng(0).uniform(size=(2, 12, 12, 1)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    """Two convolutions in a model of their own, a batch normalisation, two branches, a dense layer."""
    part = keras.Input((12, 12, 1))
    inner = keras.Model(
        part, layers.Conv2D(3, 3, name="second")(layers.Conv2D(2, 3, name="first")(part)), name="inner"
    )
    film = keras.Input((12, 12, 1))
    x = inner(layers.Rescaling(2.0)(film))
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.Concatenate()([layers.Conv2D(2, 1, name="left", bias_initializer="ones")(x), x])
    x = layers.Dropout(0.5)(layers.Flatten()(x))
    net = keras.Model(
        film, layers.Dense(3, name="top", kernel_initializer=keras.initializers.RandomNormal(seed=1))(x)
    )
    random = np.random.default_rng(1)
    net.set_weights([random.uniform(0.1, 1, weight.shape) for weight in net.get_weights()])
    return net


def weights_of(net):
    return [weight.copy() for weight in net.get_weights()]


def test_layers_lose_their_weights_from_the_output_to_the_input(model):
    before, seen, clones = weights_of(model), [], []

    def explain(clone, images):
        clones.append(clone)
        inner = clone.get_layer("inner")
        named = [inner.get_layer(name) for name in ("first", "second")]
        named += [clone.get_layer(name) for name in ("norm", "left", "top")]
        originals = [model.get_layer("inner").get_layer(name) for name in ("first", "second")]
        originals += [model.get_layer(name) for name in ("norm", "left", "top")]
        seen.append(
            [
                all(np.array_equal(a, b) for a, b in zip(one.get_weights(), two.get_weights(), strict=True))
                for one, two in zip(named, originals, strict=True)
            ]
        )
        return images[..., 0]

    done = weight_randomisation(model, explain, FILMS)
    assert done.layers == ["top", "left", "norm", "inner/second", "inner/first"]
    # The map of the film itself knows nothing of the model: the test says so.
    for values in done.similarity.values():
        assert values.shape == (5, 2)
        np.testing.assert_allclose(values, 1)
    kept = [5, 4, 3, 2, 1, 0]
    assert seen == [[place < count for place in range(5)] for count in kept]
    assert model not in clones and len({id(clone) for clone in clones}) == 1
    for one, two in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_stops_choose_where_maps_are_compared(model):
    calls = []

    def explain(clone, images):
        calls.append(clone.get_layer("left").get_weights()[0].copy())
        return np.random.default_rng(len(calls)).normal(size=(2, 12, 12, 1))

    done = weight_randomisation(model, explain, FILMS, stops=["norm", "top"])
    assert done.layers == ["top", "norm"] and len(calls) == 3
    assert np.array_equal(calls[0], calls[1]) and not np.array_equal(calls[1], calls[2])
    assert np.abs(done.similarity["spearman"]).max() < 0.5


def test_fresh_weights_come_from_the_layers_own_initialisers(model):
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    for name in ("left", "norm", "top"):
        randomise(clone.get_layer(name), seed=3)
    assert (clone.get_layer("left").get_weights()[1] == 1).all()
    gamma, beta, mean, variance = clone.get_layer("norm").get_weights()
    assert (gamma == 1).all() and (beta == 0).all() and (mean == 0).all() and (variance == 1).all()
    kernel, bias = clone.get_layer("top").get_weights()
    assert (bias == 0).all() and kernel.std() == pytest.approx(0.05, rel=0.2)
    # A seed of the layer's own, as of a layer made for a test, gives no weights twice.
    assert not np.array_equal(kernel, keras.initializers.RandomNormal(seed=1)(kernel.shape))
    kernels = []
    for seed in (3, 3, 4):
        randomise(clone.get_layer("top"), seed)
        kernels.append(clone.get_layer("top").get_weights()[0])
    assert np.array_equal(kernels[0], kernels[1]) and np.array_equal(kernels[0], kernel)
    assert not np.array_equal(kernels[0], kernels[2])


def test_gradients_depend_on_the_weights_and_an_edge_detector_does_not(model):
    """What the test is for: an edge detector looks like an explanation, and does not notice the model."""
    import tensorflow as tf

    def gradient(clone, images):
        images = tf.constant(images)
        with tf.GradientTape() as tape:
            tape.watch(images)
            score = clone(images, training=False)[:, 1]
        return tape.gradient(score, images).numpy()

    def edges(clone, images):
        return np.gradient(images[..., 0], axis=1)

    gradients = weight_randomisation(model, gradient, FILMS)
    assert gradients.layers[-1] == "inner/first"
    assert np.abs(gradients.similarity["spearman"][-1]).max() < 0.7
    assert gradients.similarity["ssim"][-1].max() < 0.7
    assert (weight_randomisation(model, edges, FILMS).similarity["spearman"] == 1).all()
    again = weight_randomisation(model, gradient, FILMS, seed=0).similarity["spearman"]
    np.testing.assert_array_equal(again, gradients.similarity["spearman"])


@pytest.mark.parametrize("method", ["gradient", "grad_cam"])
def test_explanations_follow_the_weights_of_the_copy(method):
    """They are traced once and kept with the model: they must read its weights again at every depth."""
    from kxray.explain import attribute

    film = keras.Input((12, 12, 1))
    x = layers.Conv2D(4, 3, activation="relu", name="one")(film)
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, activation="tanh", name="two")(x))
    net = keras.Model(film, layers.Dense(2, activation="softmax", name="top")(x))
    seen = []

    def explain(clone, images):
        maps = attribute(clone, images, 1, method)
        copy = keras.models.clone_model(clone)
        copy.set_weights(clone.get_weights())
        np.testing.assert_allclose(maps, attribute(copy, images, 1, method), rtol=1e-5, atol=1e-9)
        seen.append(maps)
        return maps

    done = weight_randomisation(net, explain, FILMS)
    assert done.layers == ["top", "two", "one"]
    np.testing.assert_allclose(seen[0], attribute(net, FILMS, 1, method), rtol=1e-5, atol=1e-9)
    assert all(not np.allclose(seen[0], maps) for maps in seen[1:])


def test_your_own_similarity(model):
    done = weight_randomisation(
        model,
        lambda clone, images: clone(images).numpy()[:, :, None],
        FILMS,
        similarity=lambda maps, others: {"distance": np.abs(maps - others).max(axis=(1, 2))},
    )
    assert list(done.similarity) == ["distance"] and (done.similarity["distance"] > 0).all()


def test_similarities_by_hand():
    a = np.array([[[1.0, 2, 3], [4, 5, 6], [7, 8, 9]]])
    b = a.copy()
    b[0, 0, :2] = 2, 1
    found = map_similarity(a, b)
    # Spearman (1904): 1 - 6 sum d^2 / (n (n^2 - 1)), two ranks swapped.
    assert found["spearman"] == pytest.approx([1 - 6 * 2 / (9 * 80)])
    found = map_similarity(a - 5, 5 - a)
    assert found["spearman"] == pytest.approx([-1]) and found["absolute_spearman"] == pytest.approx([1])
    # One window, means 0: the contrast term alone, with its constant (0.03 x 2)^2.
    one = (a - 5) / 4
    variance, constant = one.var() * 9 / 8, 0.06**2
    assert found["ssim"] == pytest.approx([(-2 * variance + constant) / (2 * variance + constant)])
    assert np.isnan(map_similarity(a, 0 * a)["spearman"]).all()
    assert np.isnan(map_similarity(a, a * np.inf)["ssim"]).all()
    assert np.isnan(map_similarity(a[:, :2, :2], a[:, :2, :2])["ssim"]).all()


def test_histograms_of_gradients_see_edges_and_not_noise():
    random = np.random.default_rng(0)
    square = np.zeros((1, 28, 28))
    square[0, 8:20, 8:20] = 1
    near = map_similarity(square, square + random.normal(scale=0.01, size=square.shape), ("hog",))["hog"]
    far = map_similarity(square, random.normal(size=square.shape), ("hog",))["hog"]
    assert near > far + 0.2
    assert map_similarity(square, 3 * square, ("hog",))["hog"] == pytest.approx([1])


@settings(max_examples=30, deadline=None)
@given(*[arrays.arrays(np.float64, (2, 6, 7), elements=st.integers(-20, 20).map(float)) for _ in range(2)])
def test_similarity_is_symmetric_bounded_and_blind_to_scale(a, b):
    kinds = ("spearman", "absolute_spearman", "ssim", "hog")
    found, turned, scaled = (
        map_similarity(a, b, kinds),
        map_similarity(b, a, kinds),
        map_similarity(8 * a, b, kinds),
    )
    for kind in kinds:
        values = found[kind]
        assert ((np.abs(values) <= 1 + 1e-9) | np.isnan(values)).all()
        np.testing.assert_allclose(values, turned[kind], rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(values, scaled[kind], rtol=1e-6, atol=1e-6)
    assert (
        np.isnan(found["spearman"]) == (np.ptp(a, axis=(1, 2)) == 0) | (np.ptp(b, axis=(1, 2)) == 0)
    ).all()
    itself = map_similarity(a, a)["spearman"]
    assert ((np.abs(itself - 1) < 1e-9) | np.isnan(itself)).all()


def test_random_logit_draws_another_unit():
    asked = []

    def explain(images, targets):
        asked.append(targets)
        return images[..., 0] * np.where(targets == 1, -1, 1)[:, None, None]

    films = np.repeat(FILMS, 20, axis=0)
    targets = np.arange(40) % 3
    alike = random_logit(explain, films, targets, 3)
    (own, other) = asked
    assert (own == targets).all() and (other != targets).all() and set(other) == {0, 1, 2}
    expected = np.where((own == 1) == (other == 1), 1, -1)
    np.testing.assert_allclose(alike["spearman"], expected)
    np.testing.assert_allclose(alike["absolute_spearman"], 1)


def test_wrong_input_is_told(model):
    film = keras.Input((4, 4, 1))
    for call, sentence in (
        (
            lambda: weight_randomisation(model, None, FILMS, stops=["second"]),
            "no layer with weights 'second'; it has: top",
        ),
        (
            lambda: weight_randomisation(keras.Model(film, layers.Flatten()(film)), None, FILMS),
            "has no weights",
        ),
        (lambda: weight_randomisation(model, None, FILMS, stops=[]), "stops names no layer"),
        (lambda: map_similarity(FILMS, FILMS[:1]), "of one shape"),
        (lambda: map_similarity(FILMS, FILMS, ("mse",)), "no similarity 'mse'; known: spearman"),
        (lambda: random_logit(None, FILMS, [0, 0], 1), "2 units or more"),
        (lambda: random_logit(None, FILMS, [0, 3], 3), "targets from 0 to 2"),
    ):
        with pytest.raises(ValueError, match=sentence):
            call()
