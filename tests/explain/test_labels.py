import keras
import numpy as np
import pytest

from kxray import explain
from kxray.explain.labels import with_a_unit_a_label

FILMS = np.random.default_rng(0).random((2, 12, 12, 1)).astype("float32")


def small(units=1):
    keras.utils.set_random_seed(0)
    film = keras.Input((12, 12, 1))
    x = keras.layers.Conv2D(3, 3, activation="relu", bias_initializer="random_normal")(film)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(film, keras.layers.Dense(units, activation="sigmoid", bias_initializer="ones")(x))


def test_its_logits_are_those_of_both_labels():
    model = small()
    z = np.log(model(FILMS) / (1 - model(FILMS)))
    np.testing.assert_allclose(with_a_unit_a_label(model)(FILMS), np.concatenate([-z, z], axis=1), atol=1e-5)


@pytest.mark.parametrize("method", ["grad_cam", "layer_cam", "guided_backprop", "lrp", "rap"])
def test_label_1_has_the_map_of_the_unit(method):
    model = small()
    both = with_a_unit_a_label(model)
    ours = explain.attribute(both, FILMS, 1, method)
    np.testing.assert_allclose(ours, explain.attribute(model, FILMS, 0, method), atol=1e-6)


def test_the_other_label_is_the_unit_turned_only_where_the_map_is_odd():
    model = small()
    both = with_a_unit_a_label(model)
    turned = {name: -explain.attribute(model, FILMS, 0, name) for name in ("grad_cam", "layer_cam")}
    np.testing.assert_allclose(explain.attribute(both, FILMS, 0, "grad_cam"), turned["grad_cam"], atol=1e-6)
    assert not np.allclose(explain.attribute(both, FILMS, 0, "layer_cam"), turned["layer_cam"], atol=1e-4)


def test_several_units_need_no_second_telling():
    with pytest.raises(ValueError, match="one unit"):
        with_a_unit_a_label(small(3))
