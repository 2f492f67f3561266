"""Every wrong input of the explanation room ends in one sentence that says what to do."""

import keras
import numpy as np
import pytest
from keras import layers

from kxray import explain

FILMS = np.zeros((2, 8, 8, 1), "float32")


@pytest.fixture(scope="module")
def model():
    film = keras.Input((8, 8, 1), name="film")
    features = layers.Conv2D(2, 3, activation="relu", name="features")(film)
    pooled = layers.GlobalAveragePooling2D(name="pooled")(features)
    return keras.Model(film, layers.Dense(3, activation="softmax", name="score")(pooled), name="toy")


def refused(sentence, model, images=FILMS, target=0, method="grad_cam", **options):
    with pytest.raises(ValueError, match=sentence) as error:
        explain.attribute(model, images, target, method, **options)
    assert "\n" not in str(error.value)


def test_unknown_method(model):
    refused("unknown explanation method 'gradcam'; the known ones are: .*grad_cam", model, method="gradcam")
    with pytest.raises(ValueError, match="unknown explanation method 'gradcam'"):
        explain.explainer(model, "gradcam")


def test_unknown_option(model):
    refused("grad_cam has no option 'sigma'; its options are: layer, upsample", model, sigma=2)


@pytest.mark.parametrize(
    ("images", "given"),
    [
        (FILMS[0], r"float32 \(8, 8, 1\)"),
        (np.zeros((2, 9, 8, 1), "float32"), r"float32 \(2, 9, 8, 1\)"),
        (np.zeros((2, 8, 8, 3), "float32"), r"\(2, 8, 8, 3\)"),
        (np.zeros((2, 8, 8, 1), "uint16"), r"uint16 \(2, 8, 8, 1\)"),
        (["a.png"], r"\(1,\)"),
    ],
)
def test_other_images(model, images, given):
    refused(f"expected float images .None, 8, 8, 1., got .*{given}; films go through", model, images)


def test_no_images(model):
    refused("expected at least one image, got an empty batch", model, FILMS[:0])


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        (3, r"target must be in 0\.\.2, the output units of 'toy', got 3"),
        (-1, r"target must be in 0\.\.2"),
        ([0, 1, 2], "got 3 targets for 2 images"),
        ([[0], [1]], "target must be a class index or one an image"),
        (0.5, "target must be a class index or one an image, got 0.5"),
        ("lateral", "target must be a class index or one an image, got 'lateral'"),
        (True, "target must be a class index"),
    ],
)
def test_other_targets(model, target, sentence):
    refused(sentence, model, target=target)


def test_other_layers(model):
    refused("model 'toy' has no layer 'conv9'; it has: film, features, pooled, score", model, layer="conv9")
    refused(r"layer 'pooled' gives .None, 2.; Grad-CAM needs a", model, layer="pooled")


def test_models_that_cannot_be_read(model):
    refused("built functional or Sequential keras.Model, got NoneType", None)
    refused("got Sequential", keras.Sequential([layers.Dense(1)]))
    refused("got Own", Own())
    flat = keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(1)], name="flat")
    refused(r"model 'flat' has no layer with features .N, h, w, C. to explain", flat)


class Own(keras.Model):
    def call(self, images):
        return images


def test_several_inputs_or_outputs(model):
    two = keras.Model(model.input, [model.output, model.get_layer("pooled").output], name="two")
    refused("model 'two' has 1 inputs and 2 outputs; make a keras.Model of the pair you mean", two)
    other = keras.Input((1,))
    joined = keras.Model([model.input, other], layers.Add()([model.output, other]), name="joined")
    refused("model 'joined' has 2 inputs and 1 outputs", joined)


def test_a_picture_is_not_a_score(model):
    segmentation = keras.Model(model.input, model.get_layer("features").output, name="segmentation")
    refused(r"one output of \(N, units\), model 'segmentation' gives \(None, 6, 6, 2\)", segmentation)


def test_a_model_inside_a_model_hides_its_logits(model):
    film = keras.Input((8, 8, 1))
    outer = keras.Model(film, model(layers.Rescaling(2.0)(film)), name="outer")
    refused("'outer' ends in the model 'toy'.*logits", outer, method="gradient")
    refused("'outer' has no layer with features .*build it flat", outer)


def test_a_layer_used_twice_is_named():
    film = keras.Input((8, 8, 1))
    shared = layers.Conv2D(1, 3, padding="same", name="shared")
    pooled = layers.GlobalAveragePooling2D()(shared(shared(film)))
    twice = keras.Model(film, layers.Dense(1)(pooled), name="twice")
    refused("'shared'.*more than once", twice)
    refused("'shared'.*more than once", twice, layer="shared")


def test_what_stands_behind_the_activation():
    film = keras.Input((8, 8, 1))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(3, 3)(film))
    logits = keras.layers.Dense(2, name="logits")
    probabilities = keras.layers.Activation("sigmoid")(logits(x))
    plain = keras.Model(film, probabilities)
    for behind in (
        keras.layers.Activation("linear", dtype="float32"),
        keras.layers.Identity(),
        keras.layers.Reshape((2,)),
    ):
        longer = keras.Model(film, behind(probabilities))
        for method in ("gradient", "lrp"):
            np.testing.assert_allclose(
                explain.attribute(longer, FILMS + 0.5, 0, method),
                explain.attribute(plain, FILMS + 0.5, 0, method),
                atol=1e-6,
            )
    refused("which hides its logits; end it at its sigmoid", keras.Model(film, 1.0 - probabilities))
    refused("hides its logits", keras.Model(film, 1.0 - probabilities), method="lrp")


def test_a_film_that_was_only_prepared_is_no_feature_map():
    film = keras.Input((8, 8, 1))
    inner = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Conv2D(3, 3), keras.layers.GlobalAveragePooling2D()]
    )
    x = inner(keras.layers.RandomFlip()(keras.layers.Rescaling(2.0)(film)))
    refused("inside a nested model, build it flat", keras.Model(film, keras.layers.Dense(2)(x)))
