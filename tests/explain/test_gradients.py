"""Gradients at the pixels: by hand, against the reference numbers, and what every method must keep."""

import runpy
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from kxray import explain

NETS = runpy.run_path(str(Path(__file__).with_name("oracle_nets.py")))
PIXEL_METHODS = {
    "gradient": {},
    "input_x_gradient": {},
    "smoothgrad": {"samples": 3},
    "integrated_gradients": {"steps": 4},
    "guided_backprop": {},
}
TOLERANCE = {"float64": 1e-12, "float32": 1e-5}


def tiny(last="linear", units=2):
    """Two convolutions with fused and separate ReLUs, average, dense."""
    keras.utils.set_random_seed(3)
    film = keras.Input((8, 8, 1))
    x = layers.Conv2D(3, 3, padding="same", activation="relu", bias_initializer="random_normal")(film)
    x = layers.ReLU()(layers.Conv2D(4, 3, padding="same", bias_initializer="random_normal")(x))
    x = layers.Dense(units, activation=last, bias_initializer="random_normal", name="score")(
        layers.GlobalAveragePooling2D()(x)
    )
    return keras.Model(film, x, name="tiny")


def linear(weights, bias=0.5):
    """logit = sum of weights * pixels + bias."""
    film = keras.Input(weights.shape)
    out = layers.Dense(1, activation="sigmoid", name="score")(layers.Flatten()(film))
    model = keras.Model(film, out)
    model.get_layer("score").set_weights([weights.reshape(-1, 1), np.float32([bias])])
    return model


def squares(height=2, width=3):
    """logit = sum of squared pixels."""
    film = keras.Input((height, width, 1))
    squared = layers.Flatten()(keras.ops.square(film))
    return keras.Model(film, layers.Dense(1, kernel_initializer="ones")(squared))


def run(method, model, films, target, **options):
    """A method's own function, which keeps 64 bits where the public calls give float32."""
    target = np.broadcast_to(np.int32(target), (len(films),))
    explained = tf.function(explain.METHODS[method](model, **options))
    results = explained(tf.constant(films), tf.constant(target))
    return {name: value.numpy() for name, value in results.items()}


# Without a counterpart here: deconvnet; the Riemann rules of ig20, whose place Gauss-Legendre takes (their
# trapezoid misses a twentieth of the logit).
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("net", ["flat", "gap", "bn", "res", "dense"])
def test_the_reference_numbers(net, dtype):
    oracle = NETS["arrays"](f"oracle_gradcam_{net}")
    model, films = NETS["build"](net, oracle, dtype=dtype), NETS["films"](oracle, dtype)
    baseline = NETS["channels_last"](oracle["ig_baseline"])[0]
    # Its nodes are kept in float32 there.
    rounded = max(TOLERANCE[dtype], 2e-8)
    for name, method, options, tolerance in [
        ("gradient", "gradient", {}, TOLERANCE[dtype]),
        ("input_x_gradient", "input_x_gradient", {}, TOLERANCE[dtype]),
        ("guided_backprop", "guided_backprop", {}, TOLERANCE[dtype]),
        ("ig20_gausslegendre", "integrated_gradients", {"steps": 20, "baseline": baseline}, rounded),
        ("ig300_gausslegendre", "integrated_gradients", {"steps": 300, "baseline": baseline}, rounded),
    ]:
        results = run(method, model, films, oracle["target"], **options)
        wanted = NETS["channels_last"](oracle[name])
        peak = np.abs(wanted).max()
        assert results["heatmap"].dtype == dtype
        np.testing.assert_allclose(results["heatmap"], wanted, rtol=0, atol=tolerance * peak, err_msg=name)
        np.testing.assert_allclose(results["logits"], oracle["logits"], atol=3e-6)
        if name.startswith("ig"):
            delta = oracle["ig300_delta" if "300" in name else "ig20_delta_gausslegendre"]
            np.testing.assert_allclose(results["completeness_error"], delta, atol=3e-6)


def test_a_linear_model_by_hand():
    weights = np.float32([[[1], [-2]], [[0], [3]]])
    films = np.random.default_rng(1).random((3, 2, 2, 1)).astype("float32")
    model = linear(weights)
    whole = np.broadcast_to(weights, films.shape)
    np.testing.assert_allclose(explain.attribute(model, films, 0, "gradient"), whole)
    np.testing.assert_allclose(explain.attribute(model, films, 0, "input_x_gradient"), films * weights)
    np.testing.assert_allclose(explain.attribute(model, films, 0, "smoothgrad"), whole, rtol=1e-6)
    for baseline, start in [("zero", 0), (0.25, 0.25), ("mean", films.mean((1, 2, 3), keepdims=True))]:
        maps = explain.attribute(model, films, 0, "integrated_gradients", baseline=baseline)
        np.testing.assert_allclose(maps, (films - start) * weights, atol=1e-6)
    given = np.float32([[[0.5], [0.1]], [[0.2], [1]]])
    maps = explain.attribute(model, films, 0, "integrated_gradients", baseline=given)
    np.testing.assert_allclose(maps, (films - given) * weights, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_one_node_integrates_a_slope_that_is_linear(steps):
    films = np.random.default_rng(1).normal(size=(3, 2, 3, 1)).astype("float32")
    results = run("integrated_gradients", squares(), films, 0, steps=steps)
    np.testing.assert_allclose(results["heatmap"], films**2, rtol=1e-5)
    np.testing.assert_allclose(results["completeness_error"], 0, atol=1e-5)


def test_integrated_gradients_are_complete(films):
    model = tiny()
    coarse = run("integrated_gradients", model, films, 1, steps=1)
    results = run("integrated_gradients", model, films, 1, steps=200)
    risen = model(films).numpy()[:, 1] - model(np.zeros_like(films)).numpy()[:, 1]
    total = results["heatmap"].sum(axis=(1, 2, 3))
    np.testing.assert_allclose(total - risen, results["completeness_error"], atol=1e-6)
    assert np.abs(results["completeness_error"]).max() < 0.1 * np.abs(coarse["completeness_error"]).max()


@pytest.mark.parametrize("bias", [-200.0, 200.0])
@pytest.mark.parametrize("method", PIXEL_METHODS)
def test_a_saturated_sigmoid_changes_nothing(films, method, bias):
    plain, saturated = tiny(units=1), tiny("sigmoid", units=1)
    kernel = np.float32([[0.5], [1], [-1], [2]])
    plain.get_layer("score").set_weights([kernel, np.float32([0])])
    saturated.get_layer("score").set_weights([kernel, np.float32([bias])])
    assert set(np.unique(saturated(films))) <= {0.0, 1.0}
    got, wanted = (explain.attribute(model, films, 0, method) for model in (saturated, plain))
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert np.abs(wanted).max() > 1e-3


@pytest.mark.parametrize("method", PIXEL_METHODS)
def test_a_batch_of_five_is_five_batches_of_one(films, method):
    model, options = tiny(), PIXEL_METHODS[method]
    targets = np.array([0, 1, 1, 0, 1])
    together = explain.attribute(model, films, targets, method, **options)
    apart = [explain.attribute(model, films[[i]], int(targets[i]), method, **options)[0] for i in range(5)]
    assert together.shape == films.shape and together.dtype == np.float32
    np.testing.assert_allclose(together, apart, atol=1e-7)


@pytest.mark.parametrize("method", PIXEL_METHODS)
def test_the_predicted_unit(films, method):
    model = tiny()
    details = explain.detailed_explainer(model, method, **PIXEL_METHODS[method])
    answer = details(films, np.full(5, -1, np.int32))
    top = model(films).numpy().argmax(axis=1)
    np.testing.assert_allclose(answer["logits"], model(films), atol=1e-6)
    np.testing.assert_array_equal(answer["heatmap"], details(films, top.astype("int32"))["heatmap"])


def test_smoothgrad_follows_from_its_seed_alone(films):
    model = tiny()
    first, again, other = (
        explain.explainer(model, "smoothgrad", samples=4, seed=seed)(films, np.zeros(5, np.int32)).numpy()
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-4
    still = explain.attribute(model, films, 0, "smoothgrad", samples=2, noise=0.0)
    np.testing.assert_allclose(still, explain.attribute(model, films, 0, "gradient"), atol=1e-7)


def test_smoothgrad_is_the_mean_over_noise_of_the_film_s_range():
    # The gradient of a sum of squares is 2 x, so that the map of one sample shows the noise itself.
    model = squares(20, 30)
    films = np.random.default_rng(1).random((1, 20, 30, 1)).astype("float32")
    drawn = explain.attribute(model, films, 0, "smoothgrad", samples=1, noise=0.2)
    noise = (drawn / 2 - films) / (films.max() - films.min())
    assert 0.18 < noise.std() < 0.22 and abs(noise.mean()) < 0.03
    wide = explain.attribute(model, 10 * films, 0, "smoothgrad", samples=1, noise=0.2)
    narrow = explain.attribute(model, films, 0, "smoothgrad", samples=1, noise=0.2)
    np.testing.assert_allclose(wide, 10 * narrow, rtol=1e-5, atol=1e-4)


def two_paths(first, inside=False):
    """logit = relu(relu(x) - 2 relu(-x) + 1) over single pixels; `first` makes the inner ReLU of (x, -x)."""
    film = keras.Input((1, 1, 1))
    x = first(film)
    last = layers.Conv2D(1, 1, activation="relu", name="last")
    end = keras.Model(keras.Input((1, 1, 2)), last(keras.Input((1, 1, 2)))) if inside else last
    out = layers.Dense(1, kernel_initializer="ones", name="score")(layers.Flatten()(end(x)))
    model = keras.Model(film, out)
    for layer in model.layers:
        if layer.name == "split":
            layer.set_weights([np.float32([1, -1]).reshape(1, 1, 1, 2), np.zeros(2, np.float32)])
    last.set_weights([np.float32([1, -2]).reshape(1, 1, 2, 1), np.ones(1, np.float32)])
    return model


def split(activation=None):
    return layers.Conv2D(2, 1, activation=activation, name="split")


RELUS = {
    "fused": lambda x: split("relu")(x),
    "fused_relu6": lambda x: split("relu6")(x),
    "activation": lambda x: layers.Activation("relu")(split()(x)),
    "layer": lambda x: layers.ReLU()(split()(x)),
    "layer_of_six": lambda x: layers.ReLU(6.0)(split()(x)),
    "function": lambda x: keras.ops.relu(split()(x)),
    "keras_activation": lambda x: keras.activations.relu(split()(x)),
    "nested": lambda x: keras.Sequential([keras.Input((1, 1, 2)), layers.ReLU()])(split()(x)),
}


@pytest.mark.parametrize("relu", RELUS)
def test_guided_backprop_by_hand(relu):
    """At -0.3 the gradient is +2, by the path whose weight -2 sends a negative one into the first ReLU."""
    model = two_paths(RELUS[relu])
    films = np.float32([0.5, -0.3]).reshape(2, 1, 1, 1)
    np.testing.assert_allclose(explain.attribute(model, films, 0, "gradient").ravel(), [1, 2], atol=1e-6)
    np.testing.assert_allclose(explain.attribute(model, films, 0, "guided_backprop").ravel(), [1, 0])
    details = explain.detailed_explainer(model, "guided_backprop")(films, [0, 0])
    np.testing.assert_allclose(details["logits"], model(films), atol=1e-6)


def test_guided_backprop_leaves_other_activations_and_the_model_alone():
    leaky = two_paths(lambda x: layers.LeakyReLU(0.5)(split()(x)))
    films = np.float32([0.5, -0.3]).reshape(2, 1, 1, 1)
    np.testing.assert_allclose(explain.attribute(leaky, films, 0, "guided_backprop").ravel(), [2, 2.5])
    before = leaky.get_config(), [len(layer._inbound_nodes) for layer in leaky.layers]
    explain.attribute(leaky, films, 0, "guided_backprop")
    assert before == (leaky.get_config(), [len(layer._inbound_nodes) for layer in leaky.layers])
    np.testing.assert_allclose(explain.attribute(leaky, films, 0, "gradient").ravel(), [2, 2.5])


def test_guided_backprop_in_evaluation_mode(films):
    film = keras.Input((8, 8, 1))
    x = layers.BatchNormalization()(layers.Conv2D(2, 3)(film))
    x = layers.Dropout(0.9)(layers.GlobalAveragePooling2D()(layers.ReLU()(x)))
    model = keras.Model(film, layers.Dense(1)(x))
    details = explain.detailed_explainer(model, "guided_backprop")
    np.testing.assert_allclose(details(films, np.zeros(5, np.int32))["logits"], model(films), atol=1e-6)


def test_traced_once_for_all_batches(films):
    model = tiny()
    for method, options in PIXEL_METHODS.items():
        explained = explain.explainer(model, method, **options)
        for size in (1, 5, 2, 3, 1):
            explained(films[:size], np.zeros(size, "int32"))
        assert explained.experimental_get_tracing_count() == 1, method


def test_float32_maps_under_mixed_precision(films, half_precision):
    half = tiny()
    keras.config.set_dtype_policy("float32")
    whole = tiny()
    whole.set_weights(half.get_weights())
    for method in ("gradient", "smoothgrad", "integrated_gradients", "guided_backprop"):
        got, wanted = (
            explain.attribute(model, films, 0, method, **PIXEL_METHODS[method]) for model in (half, whole)
        )
        assert got.dtype == np.float32
        assert np.corrcoef(got.ravel(), wanted.ravel())[0, 1] > 0.98, method


def endpoint(explained):
    # An archive wants a function of its own for every signature.
    def answer(images, target):
        return explained(images, target)

    return answer, explained.input_signature


def test_plain_ops_in_a_session_that_knows_no_keras(films, tmp_path):
    model = tiny("sigmoid")
    archive = keras.export.ExportArchive()
    for method, options in PIXEL_METHODS.items():
        archive.add_endpoint(method, *endpoint(explain.detailed_explainer(model, method, **options)))
    archive.write_out(str(tmp_path), verbose=False)
    targets = np.array([0, 1, 1, 0, 1], np.int32)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        meta = tf.compat.v1.saved_model.load(session, ["serve"], str(tmp_path))
        served = {
            method: session.run(
                meta.signature_def[method].outputs["heatmap"].name,
                {
                    meta.signature_def[method].inputs["images"].name: films,
                    meta.signature_def[method].inputs["target"].name: targets,
                },
            )
            for method in PIXEL_METHODS
        }
    for method, options in PIXEL_METHODS.items():
        wanted = explain.attribute(model, films, targets, method, **options)
        np.testing.assert_allclose(served[method], wanted, atol=1e-6, err_msg=method)


@pytest.mark.parametrize(
    ("method", "options", "sentence"),
    [
        ("smoothgrad", {"samples": 0}, "smoothgrad needs samples of at least 1, got 0"),
        ("smoothgrad", {"noise": -1}, "smoothgrad needs noise of at least 0, .* got -1"),
        ("smoothgrad", {"seed": 0.5}, "smoothgrad needs a whole number as seed, got 0.5"),
        (
            "smoothgrad",
            {"sigma": 1},
            "smoothgrad has no option 'sigma'; its options are: samples, noise, seed",
        ),
        ("integrated_gradients", {"steps": 2.5}, "integrated_gradients needs steps of at least 1, got 2.5"),
        ("integrated_gradients", {"baseline": "black"}, "a baseline: zero, mean, a number or .* got 'black'"),
        (
            "integrated_gradients",
            {"baseline": np.zeros((8, 8))},
            r"an array \(8, 8, 1\), got float64 \(8, 8\)",
        ),
        ("integrated_gradients", {"baseline": np.full((8, 8, 1), np.nan)}, "values that are not finite"),
        ("gradient", {"layer": "score"}, "gradient has no option 'layer'"),
    ],
)
def test_wrong_options(films, method, options, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        explain.attribute(tiny(), films, 0, method, **options)
    assert "\n" not in str(error.value)


def test_guided_backprop_needs_a_relu():
    with pytest.raises(ValueError, match="guided_backprop needs a ReLU and model .* has none"):
        explain.explainer(linear(np.ones((2, 2, 1), np.float32)), "guided_backprop")
    nested = keras.Sequential([keras.Input((2, 2, 1)), layers.ReLU(), layers.Flatten(), layers.Dense(1)])
    film = keras.Input((2, 2, 1))
    outer = keras.Model(film, nested(layers.Rescaling(2.0)(film)))
    with pytest.raises(ValueError, match="hides its logits"):
        explain.explainer(outer, "guided_backprop")
