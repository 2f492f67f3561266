"""The walker: a model's steps compute what the model computes, and every map goes back by its adjoint."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from kxray.explain import graph
from kxray.explain._canonize import canonize, commute_pools
from kxray.explain._relevance import forward
from kxray.explain.lrp import lrp

DTYPE = "float64"


def film(channels=2, side=12):
    return keras.Input((side, side, channels), dtype=DTYPE, name="film")


def seeded(model, seed=0):
    """Random weights everywhere; those that must be positive are."""
    rng = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        for weight in layer.weights if not isinstance(layer, keras.Model) else ():
            values = rng.normal(0, 0.4, weight.shape)
            if "variance" in weight.path or "gamma" in weight.path:
                values = 0.5 + np.abs(values)
            weight.assign(values)
    return model


def films(model, count=3, seed=1):
    shape = (count, *model.inputs[0].shape[1:])
    return tf.constant(np.random.default_rng(seed).normal(size=shape))


def head(x):
    return layers.Dense(3, dtype=DTYPE, name="head")(layers.Flatten(dtype=DTYPE)(x))


def model_of(*middle, channels=2):
    """A film through layers, then a Dense layer."""
    inputs = x = film(channels)
    for layer in middle:
        x = layer(x)
    return seeded(keras.Model(inputs, head(x)))


def conv(filters=4, size=3, **options):
    return layers.Conv2D(filters, size, dtype=DTYPE, **options)


ONE_LAYER = {
    "strided": conv(strides=2, padding="same"),
    "uneven": conv(size=(2, 3), strides=(1, 2)),
    "dilated": conv(dilation_rate=2, padding="same"),
    "dilated one way": conv(dilation_rate=(1, 3)),
    "grouped": conv(groups=2, activation="relu"),
    "dilated groups": conv(groups=2, dilation_rate=2, padding="same"),
    "depthwise": layers.DepthwiseConv2D(3, depth_multiplier=2, dtype=DTYPE, activation="relu"),
    "strided depthwise": layers.DepthwiseConv2D(3, strides=2, padding="same", dtype=DTYPE),
    "dilated depthwise": layers.DepthwiseConv2D(3, dilation_rate=2, padding="same", dtype=DTYPE),
    "separable": layers.SeparableConv2D(5, 3, depth_multiplier=2, activation="relu", dtype=DTYPE),
    "strided separable": layers.SeparableConv2D(5, 3, strides=2, padding="same", dtype=DTYPE),
    "dense over pixels": layers.Dense(5, activation="relu", dtype=DTYPE),
    "leaky": layers.LeakyReLU(dtype=DTYPE),
    "capped": layers.ReLU(0.5, dtype=DTYPE),
    "prelu": layers.PReLU(shared_axes=[1, 2], dtype=DTYPE),
    "max": layers.MaxPooling2D(3, 2, padding="same", dtype=DTYPE),
    "average": layers.AveragePooling2D(3, 2, padding="same", dtype=DTYPE),
    "padded": layers.ZeroPadding2D(((1, 2), (0, 3)), dtype=DTYPE),
    "cut": layers.Cropping2D(2, dtype=DTYPE),
    "enlarged": layers.UpSampling2D(2, dtype=DTYPE),
    "turned": layers.Permute((2, 1, 3), dtype=DTYPE),
    "reshaped": layers.Reshape((6, 24, 2), dtype=DTYPE),
    "dropped": layers.Dropout(0.5, dtype=DTYPE),
    "noisy": layers.GaussianNoise(0.5, dtype=DTYPE),
    "operation": ops.relu,
    "sliced": lambda x: x[:, 1:7, ::2],
    "averaged": lambda x: ops.mean(x, axis=1),
    "stacked": lambda x: ops.stack([x[:, 0], x[:, 3]], axis=1),
}
SCALING = {
    "rescaled": layers.Rescaling(2.0, -1.0, dtype=DTYPE),
    "normalised": layers.Normalization(mean=[0.1, 0.2], variance=[0.5, 2.0], dtype=DTYPE),
    "batch norm": layers.BatchNormalization(dtype=DTYPE),
    "plain batch norm": layers.BatchNormalization(center=False, scale=False, dtype=DTYPE),
    "arithmetic": lambda x: 2.0 - (3 * x + np.array([0.5, 0.25])) / 4,
    "silu": layers.Activation("silu", dtype=DTYPE),
    "gelu": ops.gelu,
}


@pytest.mark.parametrize("name", [*ONE_LAYER, *SCALING])
def test_the_steps_compute_what_the_model_computes(name):
    model = model_of((ONE_LAYER | SCALING)[name])
    images, steps = films(model), graph.read(model)
    found = forward(steps, images)[steps.output]
    np.testing.assert_allclose(found, model(images, training=False), rtol=1e-6, atol=1e-8)


def input_x_gradient(model, images, unit):
    with tf.GradientTape() as tape:
        tape.watch(images)
        score = model(images, training=False)[:, unit]
    return images * tape.gradient(score, images)


@pytest.mark.parametrize("name", [name for name in ONE_LAYER if name not in ("capped",)])
def test_adjoints_are_exact(name):
    """Where all is linear between kinks at zero, LRP-0 is input x gradient (Ancona et al., 2018)."""
    model = model_of(ONE_LAYER[name])
    images = films(model)
    maps = lrp(model, "epsilon", epsilon=0)(images, tf.constant([1, 1, 1]))["heatmap"]
    np.testing.assert_allclose(maps, input_x_gradient(model, images, 1), rtol=1e-3, atol=1e-4)


def branching():
    """Two uses of one layer, a residual sum, a concatenation of one tensor with itself, a shortcut."""
    inputs = film()
    shared = conv(2, padding="same", activation="relu", name="shared")
    first = shared(inputs)
    second = shared(first)
    summed = layers.Add(dtype=DTYPE)([first, second, inputs])
    joined = layers.Concatenate(dtype=DTYPE)([summed, summed, second])
    pooled = layers.GlobalAveragePooling2D(dtype=DTYPE)(joined)
    most = layers.GlobalMaxPooling2D(dtype=DTYPE)(summed)
    return seeded(keras.Model(inputs, head(layers.Concatenate(dtype=DTYPE)([pooled, most]))))


def test_shared_layers_and_several_consumers():
    model = branching()
    images = films(model)
    maps = lrp(model, "epsilon", epsilon=0)(images, tf.constant([0, 0, 0]))["heatmap"]
    np.testing.assert_allclose(maps, input_x_gradient(model, images, 0), rtol=1e-3, atol=1e-4)
    assert [step.name for step in graph.read(model).steps].count("shared") == 4


def nested(activation=None):
    """A model twice in a model, a Sequential in it, and one at the end."""
    inner_film = film()
    inner = keras.Model(inner_film, conv(2, padding="same", activation="relu")(inner_film), name="inner")
    stack = keras.Sequential(
        [keras.Input((12, 12, 2), dtype=DTYPE), layers.ReLU(dtype=DTYPE), conv(3)], name="stack"
    )
    last = keras.Sequential(
        [
            keras.Input((10, 10, 3), dtype=DTYPE),
            layers.Flatten(dtype=DTYPE),
            layers.Dense(3, activation=activation, dtype=DTYPE),
        ],
        name="last",
    )
    inputs = film()
    return seeded(keras.Model(inputs, last(stack(inner(inner(inputs))))))


def test_inner_models_are_opened():
    model = nested()
    images = films(model)
    assert [step.kind for step in graph.read(model).steps] == (
        ["linear", "activation"] * 2 + ["activation", "linear", "move", "linear"]
    )
    result = lrp(model, "epsilon", epsilon=0)(images, tf.constant([2, 2, 2]))
    np.testing.assert_allclose(result["heatmap"], input_x_gradient(model, images, 2), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(result["logits"], model(images), rtol=1e-9)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax", "relu"])
def test_logits_come_before_the_last_activation(activation):
    plain, bent = nested(), nested(activation)
    bent.set_weights(plain.get_weights())
    images, steps = films(plain), graph.read(bent)
    np.testing.assert_allclose(forward(steps, images)[steps.output], plain(images), rtol=1e-9)


def test_a_gate_lets_the_signal_through():
    inputs = film()
    signal = conv(4, activation="relu", name="signal")(inputs)
    gate = layers.GlobalAveragePooling2D(keepdims=True, dtype=DTYPE)(signal)
    gate = layers.Dense(4, activation="sigmoid", name="gate", dtype=DTYPE)(gate)
    for product in ([signal, gate], [gate, signal]):
        model = seeded(keras.Model(inputs, head(layers.Multiply(dtype=DTYPE)(product))))
        steps = graph.read(model)
        product = next(step for step in steps.steps if step.kind == "gate")
        made = {step.output: step.name for step in steps.steps}
        assert [made[number] for number in product.inputs] == ["signal", "gate"]
        result = lrp(model, "epsilon")(films(model), tf.constant([0, 0, 0]))
        assert np.all(np.isfinite(result["heatmap"]))


def test_which_layers_see_the_film_and_which_give_the_logits():
    steps = graph.read(branching())
    names = {step.output: step.name for step in steps.steps}
    assert [names[number] for number in steps.first_linear()] == ["shared"]
    assert [names[number] for number in steps.last_linear()] == ["head"]


def test_what_is_never_negative():
    model = model_of(conv(name="one", activation="relu"), layers.MaxPooling2D(), conv(name="two"))
    steps = graph.read(model)
    sure = steps.non_negative()
    assert [step.kind for step in steps.steps if step.output in sure] == ["activation", "max"]


class Doubled(layers.Layer):
    def call(self, x):
        return 2 * x


class OwnConvolution(layers.Conv2D):
    def call(self, x):
        return 2 * super().call(x)


@pytest.mark.parametrize(
    ("layer", "what"),
    [
        (Doubled(name="twice"), r"'twice' \(Doubled\)"),
        (OwnConvolution(2, 3, name="own"), r"'own' \(OwnConvolution\)"),
        (layers.LayerNormalization(name="norm"), r"'norm' \(LayerNormalization\)"),
        (layers.BatchNormalization(axis=1, name="norm"), "over axis 1"),
        (layers.UpSampling2D(interpolation="bilinear", name="up"), "with bilinear interpolation"),
        (layers.Softmax(name="soft"), "softmax before the last layer"),
        (lambda x: x * x, "of 2 signals"),
        (lambda x: 1 / x, "Divide"),
        (lambda x: ops.sin(x), "Sin"),
    ],
)
@pytest.mark.parametrize("method", ["lrp", "rap"])
def test_other_layers_are_named_before_any_computing(layer, what, method):
    from kxray.explain import explainer

    with pytest.raises(ValueError, match=f"no rule for layer.*{what}"):
        explainer(model_of(layer), method)


def dense_net_like():
    """BN-ReLU-conv in all the ways that thresholds go: 1x1, padded 3x3, padding layer, pool, to the head."""
    inputs = film()
    x = conv(4, padding="same", name="stem")(inputs)
    for name, after in {
        "a": [conv(4, 1, name="conv_a")],
        "b": [conv(4, padding="same", name="conv_b")],
        "c": [layers.ZeroPadding2D(1, dtype=DTYPE), conv(4, strides=2, use_bias=False, name="conv_c")],
        "d": [layers.AveragePooling2D(2, dtype=DTYPE), conv(4, 2, name="conv_d")],
    }.items():
        # A sum keeps the normalisation from being folded into the convolution before.
        x = layers.BatchNormalization(name=f"bn_{name}", dtype=DTYPE)(x + 1.0)
        x = layers.ReLU(dtype=DTYPE)(x)
        for layer in after:
            x = layer(x)
    x = layers.ReLU(dtype=DTYPE)(layers.BatchNormalization(name="bn_e", dtype=DTYPE)(x + 1.0))
    x = layers.Dropout(0.5)(layers.GlobalAveragePooling2D(dtype=DTYPE)(x))
    return seeded(keras.Model(inputs, layers.Dense(3, dtype=DTYPE)(x)))


def folding():
    inputs = film()
    x = layers.BatchNormalization(dtype=DTYPE)(conv(4, use_bias=False)(inputs))
    x = layers.BatchNormalization(dtype=DTYPE)(layers.DepthwiseConv2D(3, depth_multiplier=2, dtype=DTYPE)(x))
    x = layers.BatchNormalization(dtype=DTYPE)(layers.SeparableConv2D(3, 3, dtype=DTYPE)(x))
    x = layers.Flatten(dtype=DTYPE)(layers.ReLU(dtype=DTYPE)(x))
    x = layers.BatchNormalization(dtype=DTYPE)(layers.Dense(4, dtype=DTYPE)(x))
    return seeded(keras.Model(inputs, layers.Dense(3, dtype=DTYPE)(x)))


@pytest.mark.parametrize("how", ["fold", "thresh"])
@pytest.mark.parametrize("build", [dense_net_like, folding, branching])
def test_canonisation_computes_the_same(build, how):
    model = build()
    images, steps = films(model), canonize(graph.read(model), how)
    np.testing.assert_allclose(forward(steps, images)[steps.output], model(images), rtol=1e-6, atol=1e-9)
    norms = [step for step in steps.steps if step.kind == "affine" and step.name.startswith("b")]
    if build is folding or (build, how) == (dense_net_like, "thresh"):
        assert not norms
    thresholds = [step.name for step in steps.steps if step.kind == "threshold"]
    assert thresholds == (
        [f"bn_{name}" for name in "abcde"] if (build, how) == (dense_net_like, "thresh") else []
    )


def test_a_transition_pools_first():
    model = model_of(
        layers.ReLU(dtype=DTYPE), conv(3, 1, name="mix"), layers.AveragePooling2D(3, 2, "same", dtype=DTYPE)
    )
    images, steps = films(model), commute_pools(graph.read(model))
    assert [step.kind for step in steps.steps] == ["activation", "average", "linear", "move", "linear"]
    np.testing.assert_allclose(forward(steps, images)[steps.output], model(images), rtol=1e-9)
