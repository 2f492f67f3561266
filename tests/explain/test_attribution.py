"""What holds for every method of the registry: its contract, its options, users' own models, memory."""

import inspect
import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from kxray import explain
from kxray.explain import attribution

PIXEL_METHODS = (
    "gradient",
    "input_x_gradient",
    "smoothgrad",
    "integrated_gradients",
    "guided_backprop",
    "lrp",
    "rap",
)
CAM_METHODS = ("cam", "grad_cam", "grad_cam_pp", "layer_cam", "hires_cam")
FEW = {"smoothgrad": {"samples": 2}, "integrated_gradients": {"steps": 2}}


def stack():
    return [
        keras.Input((8, 8, 3)),
        layers.Conv2D(4, 3, strides=2, padding="same"),
        layers.BatchNormalization(),
        layers.ReLU(),
    ]


def sequential():
    return keras.Sequential(
        [*stack(), layers.GlobalAveragePooling2D(), layers.Dense(3, "softmax")], name="sequential"
    )


def nested():
    film = keras.Input((8, 8, 1))
    features = keras.Sequential(stack())(layers.Concatenate()([film] * 3))
    return keras.Model(film, layers.Dense(3, "sigmoid")(layers.GlobalAveragePooling2D()(features)))


def one_of_two_outputs():
    film = keras.Input((8, 8, 1))
    x = layers.GlobalAveragePooling2D()(
        layers.Conv2D(4, 3, strides=2, activation="relu", padding="same")(film)
    )
    both = keras.Model(film, [layers.Dense(3, name="findings")(x), layers.Dense(1, name="age")(x)])
    return keras.Model(both.input, both.outputs[0])


@pytest.fixture
def films():
    return np.random.default_rng(0).random((4, 8, 8, 1)).astype("float32")


def test_the_names_of_the_contract():
    assert {*PIXEL_METHODS, *CAM_METHODS, "multiscale_cam", "evidence"} == set(explain.METHODS)
    for method, build in explain.METHODS.items():
        assert [*inspect.signature(build).parameters][0] == "model", method
        assert inspect.getdoc(build), method


@pytest.mark.parametrize("build", [sequential, nested, one_of_two_outputs])
def test_users_own_models(films, build):
    model = build()
    films = np.repeat(films, model.input_shape[-1], axis=-1)
    for method in PIXEL_METHODS:
        maps = explain.attribute(model, films, [0, 2, 1, 1], method, **FEW.get(method, {}))
        assert maps.shape == films.shape and maps.dtype == np.float32 and np.isfinite(maps).all()
    for method in CAM_METHODS:
        maps = explain.attribute(model, films, [0, 2, 1, 1], method)
        assert maps.shape == (4, 4, 4, 1) and maps.dtype == np.float32 and np.isfinite(maps).all()


def test_maps_of_a_model_in_64_bits_are_float32(films):
    keras.config.set_dtype_policy("float64")
    try:
        model = one_of_two_outputs()
    finally:
        keras.config.set_dtype_policy("float32")
    for method in ("gradient", "grad_cam"):
        assert explain.attribute(model, films, 0, method).dtype == np.float32
    answer = explain.detailed_explainer(model, "integrated_gradients", steps=2)(films, [0, 0, 0, 0])
    assert {value.dtype for value in answer.values()} == {tf.float32}


def test_upsampling_leaves_maps_at_the_pixels_alone(films):
    model = one_of_two_outputs()
    plain = explain.attribute(model, films, 0, "gradient")
    np.testing.assert_array_equal(explain.attribute(model, films, 0, "gradient", upsample=True), plain)


def test_films_of_any_size_where_the_model_takes_them(films):
    film = keras.Input((None, None, 1))
    x = layers.Conv2D(4, 3, strides=2, padding="same", activation="relu")(film)
    model = keras.Model(film, layers.Dense(2)(layers.GlobalAveragePooling2D()(x)))
    for method in PIXEL_METHODS + CAM_METHODS:
        explained = explain.explainer(model, method, upsample=True, **FEW.get(method, {}))
        for size in (6, 8):
            assert explained(films[:, :size], [0, 0, 1, 1]).shape == (4, size, 8, 1), method
        assert explained.experimental_get_tracing_count() == 1


def test_explainers_are_remembered_by_the_values_of_their_options(films, monkeypatch):
    built = []
    monkeypatch.setattr(
        attribution,
        "explainer",
        lambda *arguments, real=explain.explainer, **options: built.append(1) or real(*arguments, **options),
    )
    model = one_of_two_outputs()

    def maps(baseline):
        return explain.attribute(model, films, 0, "integrated_gradients", steps=1, baseline=baseline)

    # So large that NumPy would print both the same.
    black, spotted = np.zeros((8, 8, 1)), np.zeros((8, 8, 1))
    spotted[4, 4] = 0.5
    first, second = maps(black), maps(spotted)
    assert len(built) == 2 and np.abs(first - second).max() > 0
    np.testing.assert_array_equal(maps(black.copy()), first)
    np.testing.assert_array_equal(maps(spotted), second)
    assert len(built) == 2
    for grey in np.linspace(0.1, 0.9, 40):
        attribution._remembered_explainer(model, "integrated_gradients", {"baseline": float(grey)})
    assert len(model.__dict__["_kxray_explainers"]) <= 32


def test_memory_does_not_grow_over_two_hundred_calls(films):
    model = one_of_two_outputs()
    methods = ("gradient", "integrated_gradients", "guided_backprop", "layer_cam", "lrp", "rap")

    def calls(count):
        for call in range(count):
            size = 1 + call % 4
            for method in methods:
                explain.attribute(model, films[:size], 0, method, **FEW.get(method, {}))

    calls(20)
    before = resident_bytes()
    calls(200)
    # 800 graphs, or as many batches of a real film, would take more.
    assert resident_bytes() - before < 20e6


def resident_bytes():
    try:
        with open("/proc/self/statm", encoding="ascii") as stat:
            return int(stat.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        pytest.skip("this system does not say how much memory a process holds")
