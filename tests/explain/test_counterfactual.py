"""Counterfactuals of a classifier whose whole knowledge is known: the brightness of two squares."""

import keras
import numpy as np
import pytest

import kxray
from kxray import ModelSpec
from kxray.explain import Counterfactuals, check_asked, gan_counterfactuals, masked_residual
from kxray.explain.counterfactual_losses import Weights

SIDE = 32
SPEC = ModelSpec("toy", ("Effusion", "Mass"), "multilabel", (SIDE, SIDE))
# Where the classifier looks for each label.
SQUARES = np.zeros((2, SIDE, SIDE), bool)
SQUARES[0, :8, :8] = SQUARES[1, -8:, -8:] = True


def squares(kernel, bias, activation="sigmoid"):
    """A classifier whose logits are kernel times the brightness of its square, plus a bias."""
    film = keras.Input((SIDE, SIDE, 1), name="film")
    units = len(kernel)
    dense = keras.layers.Dense(units, activation=activation, name="logits")
    model = keras.Model(film, dense(keras.layers.Flatten()(film)))
    kernels = SQUARES[:units] / 64 * np.reshape(kernel, (-1, 1, 1))
    dense.set_weights([kernels.reshape(units, -1).T, np.array(bias)])
    return model


@pytest.fixture(scope="module")
def toy():
    return squares([20.0, 20.0], [-10.0, -10.0])


@pytest.fixture(scope="module")
def films():
    """Three films with both squares brighter than the 0.5 at which the classifier decides."""
    return np.random.default_rng(0).uniform(0.55, 0.8, (3, SIDE, SIDE, 1)).astype("float32")


@pytest.fixture(scope="module")
def found(toy, films):
    return masked_residual(toy, SPEC, films, "no Effusion", coarseness=2)


def test_the_asked_label_flips_and_the_other_stays(found):
    assert found.reached(SPEC).all() and (found.before > 0.5).all()
    assert (found.after[:, 0] < 0.5).all() and (found.after[:, 1] > 0.5).all()
    np.testing.assert_allclose(found.after[:, 1], found.before[:, 1], atol=0.05)


def test_only_what_the_classifier_looks_at_changes(found):
    inside = np.abs(found.difference[..., 0])[:, SQUARES[0]].mean()
    # Nodes of the coarse grid reach over the square's border.
    outside = np.abs(found.difference[..., 0])[:, ~SQUARES[0]].mean()
    assert inside > 0.05 and outside < inside / 20
    assert all(SQUARES[0][np.unravel_index(one.argmax(), one.shape)] for one in found.maps)


def test_the_film_is_what_mask_and_residual_make_of_it(found, films):
    assert found.films is not None and (found.reference == films).all()
    assert found.maps.shape == (3, SIDE, SIDE) and (found.maps >= 0).all()
    # Nothing is clipped here: the map is how far the film was moved.
    np.testing.assert_allclose(found.maps, np.abs(found.difference[..., 0]), atol=1e-6)
    assert ((found.masks >= 0) & (found.masks <= 1)).all()
    assert ((found.counterfactuals >= 0) & (found.counterfactuals <= 1)).all()


def test_the_change_is_little_more_than_it_takes(found, films):
    """The square's mean must fall to 0.5 less margin / 20."""
    needed = films[:, :8, :8].mean(axis=(1, 2, 3)) - 0.45
    taken = -found.difference[:, :8, :8].mean(axis=(1, 2, 3))
    assert (taken >= needed - 1e-5).all() and (taken < needed + 0.05).all()


def test_films_that_have_the_target_stay_as_they_are(toy, films):
    same = masked_residual(toy, SPEC, films, "Effusion", steps=5)
    np.testing.assert_array_equal(same.counterfactuals, films)
    assert same.reached(SPEC).all() and (same.maps == 0).all()


def test_outside_a_region_nothing_changes(toy, films):
    region = np.zeros((SIDE, SIDE), bool)
    region[:4] = True
    made = masked_residual(toy, SPEC, films, "no Effusion", region=region, steps=30)
    np.testing.assert_array_equal(made.counterfactuals[:, 4:], films[:, 4:])
    assert (made.masks[:, 4:] == 0).all() and (np.abs(made.difference[:, :4]).max() > 0.1)
    nothing = masked_residual(toy, SPEC, films, "no Effusion", region=np.zeros_like(films), steps=2)
    np.testing.assert_array_equal(nothing.counterfactuals, films)
    assert not nothing.reached(SPEC).any()


def test_the_residual_keeps_to_its_amplitude(toy, films):
    made = masked_residual(toy, SPEC, films, "no Effusion", amplitude=0.02, steps=30)
    assert np.abs(made.difference).max() <= 0.02 + 1e-6 and not made.reached(SPEC).any()


def test_the_classifier_stays_as_it_is(films):
    keras.utils.set_random_seed(0)
    film = keras.Input((SIDE, SIDE, 1))
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(2, 3)(film))
    x = keras.layers.Dropout(0.5)(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(film, keras.layers.Dense(2, activation="sigmoid")(x))
    before = [variable.numpy().copy() for variable in model.variables]
    first = masked_residual(model, SPEC, films, [0, 1, 2], steps=3)
    for value, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(value, variable.numpy())
    again = masked_residual(model, SPEC, films, [0, 1, 2], steps=3)
    np.testing.assert_array_equal(first.counterfactuals, again.counterfactuals)


def test_five_films_are_five_times_one(toy):
    films = np.random.default_rng(1).uniform(0.4, 0.9, (5, SIDE, SIDE, 1)).astype("float32")
    targets = ["no Effusion", "Effusion", "no Mass", "Mass", "no Effusion"]
    whole = masked_residual(toy, SPEC, films, targets, steps=20)
    parts = masked_residual(toy, SPEC, films, targets, steps=20, batch_size=2)
    np.testing.assert_allclose(whole.counterfactuals, parts.counterfactuals, atol=1e-4)
    np.testing.assert_array_equal(whole.steps["steps"], parts.steps["steps"])
    assert whole.take([3]).targets.tolist() == [3] and len(whole.take(whole.reached(SPEC))) <= 5


def test_one_unit_speaks_for_both_labels(films):
    spec = ModelSpec("toy", ("frontal", "lateral"), "binary", (SIDE, SIDE))
    model = squares([20.0], [-10.0])
    made = masked_residual(model, spec, films, "frontal")
    assert made.before.shape == (3, 2) and (made.before[:, 1] > 0.5).all()
    assert made.reached(spec).all() and (made.after[:, 0] > 0.5).all()
    back = masked_residual(model, spec, made.counterfactuals, "lateral")
    assert back.reached(spec).all() and (back.difference.mean(axis=(1, 2, 3)) > 0).all()


def test_a_softmax_is_brought_to_one_label(films):
    spec = ModelSpec("toy", ("bright", "other"), "multiclass", (SIDE, SIDE))
    model = squares([20.0, 20.0], [-10.0, -9.0], activation="softmax")
    for target in (0, 1):
        made = masked_residual(model, spec, films, target)
        assert made.reached(spec).all() and (made.after.argmax(axis=1) == target).all()


def test_the_way_leads_from_the_reference_to_the_counterfactual(found):
    np.testing.assert_array_equal(found.along(0), found.reference)
    np.testing.assert_allclose(found.along(1), found.counterfactuals, atol=1e-6)
    strip = found.along([0.0, 0.5])
    assert strip.shape == (3, 2, SIDE, SIDE, 1)
    np.testing.assert_allclose(strip[:, 1], (found.reference + found.counterfactuals) / 2, atol=1e-6)


@pytest.mark.parametrize(
    ("films", "target", "told"),
    [
        (np.zeros((1, 8, 8, 1), "float32"), 0, r"expected films \(N, 32, 32, 1\) as the classifier takes"),
        (np.zeros((SIDE, SIDE), "float32"), 0, r"expected films \(N, 32, 32, 1\)"),
        (np.full((2, SIDE, SIDE, 1), np.nan), 0, r"film 0 has NaN in it \(2 of 2"),
        (np.zeros((1, SIDE, SIDE, 1), "uint8"), 0, r"expected float pixels in \[0, 1\], got uint8"),
        (np.full((1, SIDE, SIDE, 1), 255.0), 0, r"expected pixels in \[0, 1\], got 255 to 255"),
        (np.full((1, SIDE, SIDE, 1), np.inf), 0, r"expected pixels in \[0, 1\]"),
        (np.zeros((1, SIDE, SIDE, 1)), "Efusion", "unknown target 'Efusion'"),
    ],
)
def test_what_cannot_be_asked_is_told(films, target, told):
    with pytest.raises(ValueError, match=told):
        check_asked(SPEC, films, target)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"step": 3}, "no option 'step'; its options are: steps, "),
        ({"steps": 0}, "steps must be a whole number of at least 1, got 0"),
        ({"amplitude": 2.0}, r"amplitude must be in \[0, 1\], got 2.0"),
        ({"region": np.ones((4, 4))}, "expected a region"),
        ({"region": np.full((SIDE, SIDE), 2.0)}, r"expected a region of values in \[0, 1\]"),
    ],
)
def test_what_cannot_be_searched_is_told(toy, films, options, told):
    with pytest.raises(ValueError, match=told):
        masked_residual(toy, SPEC, films, 0, **options)


def test_no_film_at_all_is_told(toy):
    with pytest.raises(ValueError, match="no film was given"):
        masked_residual(toy, SPEC, np.zeros((0, SIDE, SIDE, 1)), 0)


def test_a_heavier_price_changes_less(toy, films, found):
    dear = masked_residual(toy, SPEC, films, "no Effusion", coarseness=2, weights=Weights(proximity=100.0))
    assert np.abs(dear.difference).mean() <= np.abs(found.difference).mean() + 1e-3


@pytest.fixture(scope="module")
def gan():
    keras.utils.set_random_seed(0)
    return kxray.models.build("counterfactual_gan", num_targets=2, side=SIDE, width=4)


def test_a_gan_gives_the_same_type_of_result(gan, toy, films):
    made = gan_counterfactuals(gan, toy, SPEC, films, "Mass", gan_targets=("no Effusion", "Mass"))
    assert isinstance(made, Counterfactuals) and made.targets.tolist() == [3, 3, 3]
    direct = gan.change(films, np.ones(3, int))
    np.testing.assert_array_equal(made.counterfactuals, direct["film"])
    np.testing.assert_allclose(made.maps, (direct["mask"] * np.abs(direct["residual"]))[..., 0])
    np.testing.assert_allclose(made.before, toy(films), atol=1e-6)
    np.testing.assert_allclose(made.after, toy(made.counterfactuals), atol=1e-6)


def test_a_gan_keeps_to_a_region(gan, toy, films):
    region = np.zeros((SIDE, SIDE, 1))
    region[:, 8:] = 1
    made = gan_counterfactuals(
        gan, toy, SPEC, films, "Mass", gan_targets=("no Effusion", "Mass"), region=region
    )
    np.testing.assert_array_equal(made.counterfactuals[:, :, :8], films[:, :, :8])


def test_a_gan_tells_what_it_was_not_trained_for(gan, toy, films):
    with pytest.raises(ValueError, match="not trained for 'no Mass'; its targets are: no Effusion, Mass"):
        gan_counterfactuals(gan, toy, SPEC, films, "no Mass", gan_targets=("no Effusion", "Mass"))
    with pytest.raises(ValueError, match="trained for 2 targets, got 4"):
        gan_counterfactuals(gan, toy, SPEC, films, "no Mass")
    other = ModelSpec("toy", SPEC.labels, "multilabel", (8, 8))
    with pytest.raises(ValueError, match="the GAN changes films of 32x32 pixels"):
        gan_counterfactuals(gan, toy, other, np.zeros((1, 8, 8, 1)), 0)
