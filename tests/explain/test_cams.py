"""Class activation maps: by hand, against the reference numbers and tf-keras-vis, and what they must keep."""

import runpy
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from kxray import explain

NETS = runpy.run_path(str(Path(__file__).with_name("oracle_nets.py")))
CAMS = ("cam", "grad_cam", "grad_cam_pp", "layer_cam", "hires_cam")


def pooled(last="linear", *between, units=3):
    """Convolution, average, dense; `between` are layers before the dense one."""
    keras.utils.set_random_seed(0)
    film = keras.Input((8, 8, 1))
    x = layers.Conv2D(4, 3, padding="same", activation="relu", name="early")(film)
    x = layers.Conv2D(5, 3, strides=2, padding="same", activation="relu", name="features")(x)
    x = layers.GlobalAveragePooling2D(name="pool")(x)
    for layer in between:
        x = layer(x)
    fused = layers.Dense(units, activation=last if isinstance(last, str) else None, name="score",
                         bias_initializer="random_normal")(x)  # fmt: skip
    return keras.Model(film, fused if isinstance(last, str) else last(fused), name="pooled")


def weighing(weights):
    """logit = sum over places and both features of weights (2, 2, 2) times (relu(x), relu(-x))."""
    film = keras.Input((2, 2, 1))
    x = layers.Conv2D(2, 1, activation="relu", use_bias=False, name="features")(film)
    model = keras.Model(film, layers.Dense(1, name="score")(layers.Flatten()(x)))
    model.get_layer("features").set_weights([np.float32([1, -1]).reshape(1, 1, 1, 2)])
    model.get_layer("score").set_weights([np.float32(weights).reshape(8, 1), np.zeros(1, np.float32)])
    return model


# Without a counterpart here: xgradcam, and gradcam_final_pgc and its like, which are min-max scaled.
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("net", ["flat", "gap", "bn", "res", "dense"])
def test_the_reference_numbers(net, dtype):
    oracle = NETS["arrays"](f"oracle_gradcam_{net}")
    model, films = NETS["build"](net, oracle, dtype=dtype), tf.constant(NETS["films"](oracle, dtype))
    targets = tf.constant(oracle["target"].astype("int32"))
    for name, method, options in [
        ("gradcam_raw", "grad_cam", {}),
        ("gradcampp_raw", "grad_cam_pp", {"epsilon": 1e-6}),
        ("layercam_raw", "layer_cam", {}),
        ("hirescam_raw", "hires_cam", {}),
    ]:
        maps = explain.METHODS[method](model, **options)(films, targets)["heatmap"].numpy()
        assert maps.dtype == dtype
        # The arrays themselves are float32.
        peak = np.abs(oracle[name]).max()
        np.testing.assert_allclose(maps[..., 0], oracle[name], rtol=0, atol=1e-6 * peak, err_msg=name)


@pytest.mark.parametrize("net", ["flat", "gap", "bn", "res", "dense"])
def test_eigen_cam_meets_the_reference_up_to_its_sign(net):
    oracle = NETS["arrays"](f"oracle_gradcam_{net}")
    model, films = NETS["build"](net, oracle, dtype="float32"), NETS["films"](oracle, "float32")
    maps = explain.eigen_cam(model, films, centre=True)[..., 0]
    wanted = oracle["eigencam_raw"]
    wanted = wanted * np.sign((maps * wanted).sum(axis=(1, 2), keepdims=True))
    np.testing.assert_allclose(maps, wanted, rtol=0, atol=2e-6 * np.abs(wanted).max())


def test_eigen_cam_by_hand():
    """Without centring one feature alone is its own principal direction, whatever the class."""
    model = weighing(np.ones((2, 2, 2)))
    films = np.float32([[1, 2], [3, 4]]).reshape(1, 2, 2, 1)
    np.testing.assert_allclose(explain.eigen_cam(model, films), films, rtol=1e-6)
    np.testing.assert_allclose(explain.eigen_cam(model, -films), films, rtol=1e-6)
    centred = explain.eigen_cam(model, films, centre=True)
    np.testing.assert_allclose(np.abs(centred), np.abs(films - 2.5), rtol=1e-6)
    assert explain.eigen_cam(pooled(), np.ones((2, 8, 8, 1), "float32"), upsample=True).shape == (2, 8, 8, 1)


@pytest.mark.parametrize(
    "between", [(), (layers.Dropout(0.5), layers.Reshape((1, 5)), layers.Flatten())], ids=["bare", "between"]
)
@pytest.mark.parametrize("last", ["linear", "sigmoid", layers.Softmax(), keras.ops.sigmoid])
def test_three_cams_are_one_where_a_dense_layer_follows_the_average(films, last, between):
    model = pooled(last, *between)
    targets = np.array([0, 2, 1, 1, 0])
    answer = explain.detailed_explainer(model, "cam")(films, targets.astype("int32"))
    maps = answer["heatmap"].numpy()
    assert maps.shape == (5, 4, 4, 1)
    bias = model.get_layer("score").get_weights()[1]
    logits = answer["logits"].numpy()[np.arange(5), targets]
    np.testing.assert_allclose(maps.mean(axis=(1, 2, 3)) + bias[targets], logits, atol=1e-6)
    for method in ("grad_cam", "hires_cam"):
        others = explain.attribute(model, films, targets, method)
        np.testing.assert_allclose(16 * others, maps, atol=1e-6, err_msg=method)


def test_by_hand_where_slopes_differ_from_place_to_place():
    weights = np.float32([[[1, -1], [2, 0]], [[0, 3], [-3, 1]]])
    films = np.float32([[1, -2], [0, 3]]).reshape(1, 2, 2, 1)
    model = weighing(weights)
    a, b = np.maximum(films[0, ..., 0], 0), np.maximum(-films[0, ..., 0], 0)

    def cam(method, **options):
        return explain.attribute(model, films, 0, method, **options)[0, ..., 0]

    np.testing.assert_allclose(cam("hires_cam"), weights[..., 0] * a + weights[..., 1] * b, atol=1e-6)
    np.testing.assert_allclose(cam("grad_cam"), 0.0 * a + 0.75 * b, atol=1e-6)
    rising = np.maximum(weights, 0)
    np.testing.assert_allclose(cam("layer_cam"), rising[..., 0] * a + rising[..., 1] * b, atol=1e-6)
    # Sums of the features are 4 and 2; a g = g / (2 + g sum).
    first, second = 1 / (2 + 1 * 4) + 2 / (2 + 2 * 4), 3 / (2 + 3 * 2) + 1 / (2 + 1 * 2)
    np.testing.assert_allclose(cam("grad_cam_pp"), first * a + second * b, atol=1e-6)
    np.testing.assert_allclose(cam("hires_cam").sum(), model(films).numpy()[0, 0], atol=1e-6)


def test_grad_cam_pp_does_not_silence_small_slopes():
    films = np.float32([[1, -2], [0, 3]]).reshape(1, 2, 2, 1)
    weak = explain.attribute(weighing(np.full((2, 2, 2), 1e-6)), films, 0, "grad_cam_pp")
    # g / (2 + g sum) is g / 2 where g is small, over four places.
    np.testing.assert_allclose(weak, 2e-6 * np.abs(films), rtol=1e-4)


@pytest.mark.parametrize("method", CAMS)
def test_a_batch_of_five_is_five_batches_of_one_traced_once(films, method):
    explained = explain.explainer(pooled("softmax"), method)
    targets = np.array([0, 2, 1, 1, 0], np.int32)
    together = explained(films, targets).numpy()
    apart = [explained(films[[i]], targets[[i]])[0].numpy() for i in range(5)]
    assert together.shape == (5, 4, 4, 1) and together.dtype == np.float32
    np.testing.assert_allclose(together, apart, atol=1e-7)
    assert explained.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("method", CAMS)
def test_upsampled_with_half_pixel_centres(films, method):
    model = pooled()
    small = explain.attribute(model, films, 1, method)
    large = explain.attribute(model, films, 1, method, upsample=True)
    np.testing.assert_allclose(large, tf.image.resize(small, (8, 8)), atol=1e-7)


@pytest.mark.parametrize("method", CAMS[1:])
def test_any_named_layer_can_be_mapped(films, method):
    assert explain.attribute(pooled(), films, 0, method, layer="early").shape == (5, 8, 8, 1)
    with pytest.raises(ValueError, match="has no layer 'conv9'"):
        explain.attribute(pooled(), films, 0, method, layer="conv9")


def test_float32_maps_under_mixed_precision(films, half_precision):
    half = pooled()
    keras.config.set_dtype_policy("float32")
    whole = pooled()
    whole.set_weights(half.get_weights())
    for method in CAMS:
        got, wanted = (explain.attribute(model, films, 0, method) for model in (half, whole))
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, wanted, atol=0.05 * np.abs(wanted).max(), err_msg=method)


def test_a_layer_that_the_logits_do_not_feel_gives_zeros(films):
    film = keras.Input((8, 8, 1))
    x = layers.Conv2D(2, 3, name="features")(film)
    x = layers.Dense(1, kernel_initializer="zeros")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(film, x)
    for method in CAMS:
        assert not explain.attribute(model, films, 0, method).any()


def test_cam_says_where_it_cannot_be_had(films):
    film = keras.Input((8, 8, 1))
    features = layers.Conv2D(2, 3, name="features")(film)
    flat = keras.Model(film, layers.Dense(1, name="score")(layers.Flatten()(features)), name="flat")
    with pytest.raises(ValueError, match="before 'score', model 'flat' has 'features' there; take grad_cam"):
        explain.attribute(flat, films, 0, "cam")
    averaged = layers.GlobalAveragePooling2D(name="average")(features)
    with pytest.raises(ValueError, match="a Dense layer at the end, model 'bare' has 'average' there"):
        explain.attribute(keras.Model(film, averaged, name="bare"), films, 0, "cam")
    deep = layers.Dense(1, name="score")(layers.Dense(3, name="hidden")(averaged))
    with pytest.raises(ValueError, match="model 'deep' has 'hidden' there"):
        explain.attribute(keras.Model(film, deep, name="deep"), films, 0, "cam")
    with pytest.raises(ValueError, match="grad_cam_pp needs an epsilon of at least 0, got -1"):
        explain.attribute(flat, films, 0, "grad_cam_pp", epsilon=-1)


def test_tf_keras_vis_gives_the_same_where_definitions_agree(films):
    pytest.importorskip("tf_keras_vis")
    from tf_keras_vis.gradcam import Gradcam
    from tf_keras_vis.layercam import Layercam
    from tf_keras_vis.saliency import Saliency

    model, targets = pooled(), [0, 2, 1, 1, 0]

    def score(logits):
        return [logits[film, unit] for film, unit in enumerate(targets)]

    # Their Grad-CAM++ differs: it multiplies by exp(score) and scales its shares to add up to one.
    for theirs, method in ((Gradcam, "grad_cam"), (Layercam, "layer_cam")):
        given = theirs(model)(score, films, "features", expand_cam=False, normalize_cam=False)
        ours = np.maximum(explain.attribute(model, films, targets, method)[..., 0], 0)
        np.testing.assert_allclose(given, ours, atol=1e-6, err_msg=method)
    given = Saliency(model)(score, films, normalize_map=False)
    ours = np.abs(explain.attribute(model, films, targets, "gradient")).max(axis=-1)
    np.testing.assert_allclose(given, ours, atol=1e-6)
