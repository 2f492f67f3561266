"""A 2 x 2 map by hand, and what tau lets in."""

import keras
import numpy as np
import pytest

from kxray.layers import SelfAttention, scheduled_tau


def built(shape, **options):
    layer = SelfAttention(**options)
    layer.build((None, *shape))
    return layer


def test_a_map_of_two_by_two_by_hand():
    layer = built((2, 2, 1))
    for projection, weight in ((layer.f, 1.0), (layer.g, 2.0), (layer.h, 10.0)):
        projection.kernel.assign(np.full((1, 1, 1, 1), weight))
    layer.tau.assign(0.5)
    x = np.array([[[0.0], [np.log(2)]], [[0.0], [1.0]]], np.float32)[None]
    values = x.reshape(-1)
    expected = []
    for place in values:
        weights = np.exp(values * 2 * place)
        expected.append(0.5 * (10 * values * weights).sum() / weights.sum() + place)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(layer(x)).reshape(-1), expected, rtol=1e-5)
    # The place of value 0 looks at all four alike.
    assert expected[0] == pytest.approx(0.5 * 10 * (np.log(2) + 1) / 4)


@pytest.mark.parametrize("tau", ["schedule", "learned"])
def test_tau_starts_at_zero_which_is_the_identity(tau):
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 16)).astype("float32")
    layer = built((4, 4, 16), tau=tau)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer(x)), x)
    assert ("tau" in [variable.name for variable in layer.trainable_variables]) == (tau == "learned")
    assert [projection.kernel.shape[-1] for projection in (layer.f, layer.g, layer.h)] == [2, 2, 16]


def test_pooling_looks_at_the_strongest_of_each_square():
    layer = built((4, 4, 8), pool=2)
    layer.tau.assign(1.0)
    x = np.zeros((1, 4, 4, 8), np.float32)
    x[0, ::2, ::2] = np.random.default_rng(1).random((2, 2, 8))
    for projection in (layer.f, layer.g, layer.h):
        projection.kernel.assign(np.abs(projection.kernel.numpy()))
    plain = built((2, 2, 8))
    plain.set_weights(layer.get_weights())
    # Zeros between hide nothing of positive values, so pooled pairs are those of the small map.
    pooled = keras.ops.convert_to_numpy(layer(x))[:, ::2, ::2]
    np.testing.assert_allclose(pooled, keras.ops.convert_to_numpy(plain(x[:, ::2, ::2])), rtol=1e-5)


def test_the_schedule_of_the_paper():
    taus = [scheduled_tau(epoch) for epoch in range(60)]
    assert taus[:5] == [0.0] * 5
    assert taus[5:10] == [0.1] * 5
    assert taus[19] == pytest.approx(0.3)
    assert taus[49] == pytest.approx(0.9)
    assert taus[50:] == [1.0] * 10


def test_it_is_saved_and_read(tmp_path):
    film = keras.Input((4, 4, 8))
    model = keras.Model(film, SelfAttention("learned", 2)(film))
    model.layers[1].tau.assign(0.5)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 8)).astype("float32")
    np.testing.assert_allclose(again(x).numpy(), model(x).numpy(), atol=1e-6)
    assert np.abs(again(x).numpy() - x).max() > 0.01
    assert (again.layers[1].tau_rule, again.layers[1].pool) == ("learned", 2)


@pytest.mark.parametrize(
    "options, message",
    [({"tau": "free"}, "tau must be schedule or .*, got .free."), ({"pool": 3}, "pool 3 does not divide")],
)
def test_wrong_options_are_told(options, message):
    with pytest.raises(ValueError, match=message):
        built((4, 4, 8), **options)
