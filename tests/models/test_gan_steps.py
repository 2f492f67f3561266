"""One training step of a GAN: its losses by hand, who is updated how often, and what the options do."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from kxray import models
from kxray.data import gan_batches
from kxray.data.pipeline import ArrayInputs
from kxray.models._conditional_gan import ConditionalGAN

CLASSES, LATENT, SIDE = 2, 3, 64


def linear_gan(loss="least_squares", apart=False):
    """A generator and a discriminator of one dense layer each."""
    z, condition = keras.Input((LATENT,), name="z"), keras.Input((CLASSES,), name="condition")
    film = layers.Dense(4, activation="tanh", name="dense")(layers.Concatenate()([z, condition]))
    film = layers.Reshape((2, 2, 1), name="film_2")(film)
    generator = keras.Model({"z": z, "condition": condition}, {"film_2": film}, name="generator")
    film, condition = keras.Input((2, 2, 1), name="film"), keras.Input((CLASSES,), name="condition")
    flat = layers.Flatten()(film)
    joined = layers.Concatenate()([flat, condition])
    heads = {
        "unconditional": layers.Reshape(())(layers.Dense(1, name="u")(flat)),
        "conditional": layers.Reshape(())(layers.Dense(1, name="c")(joined)),
    }
    discriminator = keras.Model({"film": film, "condition": condition}, heads)
    return ConditionalGAN("linear", {}, generator, {2: discriminator}, loss=loss, apart=apart)


def compiled(gan, rate=0.1, **options):
    options = {"generator_updates": 1, "discriminator_updates": 1, **options}
    gan.compile(keras.optimizers.SGD(rate), keras.optimizers.SGD(rate), **options)
    return gan


def linear_batch(updates=1, films=3, generated=1):
    random = np.random.default_rng(0)
    classes = random.integers(0, CLASSES, (films, updates)).astype("int32")
    return {
        "films": random.random((films, updates, 2, 2, 1)).astype("float32"),
        "classes": classes,
        "other_classes": 1 - classes,
        "z": random.normal(size=(films, updates + generated, LATENT)).astype("float32"),
        "fake_classes": random.integers(0, CLASSES, (films, updates + generated)).astype("int32"),
        "draws": random.random((films, updates + generated, 2, 6)).astype("float32"),
    }


def by_hand(gan, batch, update):
    """(scores of real films, of generated ones) of an update: arrays (2 heads, N), unconditional first."""
    weights = [value.numpy() for value in gan.generator.weights]
    heads = {layer.name: layer for layer in gan.discriminators[2].layers if layer.name in ("u", "c")}
    eye = np.eye(CLASSES)

    def scores(films, classes):
        flat = films.reshape(len(films), -1)
        joined = np.concatenate([flat, eye[classes]], axis=1)
        return np.stack(
            [
                (values @ heads[name].kernel.numpy() + heads[name].bias.numpy())[:, 0]
                for name, values in (("u", flat), ("c", joined))
            ]
        )

    # Keras orders the inputs of a dict by name: the condition first. The model concatenates z first.
    fake_classes = batch["fake_classes"][:, update]
    made = np.tanh(
        np.concatenate([batch["z"][:, update], eye[fake_classes]], axis=1) @ weights[0] + weights[1]
    )
    real = 2 * batch["films"][:, min(update, batch["films"].shape[1] - 1)] - 1
    return scores(real, batch["classes"][:, min(update, batch["classes"].shape[1] - 1)]), scores(
        made, fake_classes
    )


def test_losses_are_equations_five_and_six_by_hand():
    gan, batch = compiled(linear_gan(), rate=0.0), linear_batch()
    logs = gan.train_step({name: tf.constant(value) for name, value in batch.items()})
    real, fake = by_hand(gan, batch, 0)
    expected = 0.5 * sum(((real[head] - 1) ** 2).mean() + (fake[head] ** 2).mean() for head in (0, 1))
    assert float(logs["discriminator_loss"]) == pytest.approx(expected, rel=1e-5)
    _, fake = by_hand(gan, batch, 1)
    expected = 0.5 * sum(((fake[head] - 1) ** 2).mean() for head in (0, 1))
    assert float(logs["generator_loss"]) == pytest.approx(expected, rel=1e-5)
    assert float(logs["real_conditional_2"]) == pytest.approx(real[1].mean(), rel=1e-4)


def test_the_baseline_has_the_cross_entropy():
    gan, batch = compiled(linear_gan("cross_entropy", apart=True), rate=0.0), linear_batch()
    logs = gan.train_step({name: tf.constant(value) for name, value in batch.items()})
    real, fake = by_hand(gan, batch, 0)
    expected = np.log1p(np.exp(-real)).mean(axis=1).sum() + np.log1p(np.exp(fake)).mean(axis=1).sum()
    assert float(logs["discriminator_loss"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("updates", [(1, 5), (5, 1), (1, 1)])
def test_the_update_ratio(updates):
    generator_updates, discriminator_updates = updates
    gan = compiled(
        linear_gan(), generator_updates=generator_updates, discriminator_updates=discriminator_updates
    )
    batch = linear_batch(discriminator_updates, generated=generator_updates)
    for _ in range(2):
        gan.train_step({name: tf.constant(value) for name, value in batch.items()})
    assert int(gan.generator_optimizer.iterations.numpy()) == 2 * generator_updates
    assert int(gan.discriminator_optimizer.iterations.numpy()) == 2 * discriminator_updates


@pytest.mark.parametrize("options", [{}, {"r1": 2.0}, {"mismatched": 0.5}])
def test_gradients_in_parts_are_those_of_the_whole(options):
    weights = []
    for parts in (1, 3):
        keras.utils.set_random_seed(0)
        gan = compiled(linear_gan(), accumulate=parts, **options)
        batch = linear_batch(films=6)
        logs = gan.train_step({name: tf.constant(value) for name, value in batch.items()})
        weights.append([float(logs["discriminator_loss"]), *(value.numpy() for value in gan.weights)])
    for one, other in zip(*weights, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_penalties_by_hand():
    batch = {name: tf.constant(value) for name, value in linear_batch().items()}
    keras.utils.set_random_seed(0)
    gan = compiled(linear_gan(), rate=0.0)
    plain = float(gan.train_step(batch)["discriminator_loss"])
    gan = compiled(gan, rate=0.0, r1=2.0)
    slope = sum(
        layer.kernel.numpy()[:4, 0] for layer in gan.discriminators[2].layers if layer.name in ("u", "c")
    )
    got = float(gan.train_step(batch)["discriminator_loss"])
    assert got == pytest.approx(plain + (slope**2).sum(), rel=1e-5)
    wrong = {**batch, "classes": batch["other_classes"]}
    real, _ = by_hand(gan, {name: value.numpy() for name, value in wrong.items()}, 0)
    gan = compiled(gan, rate=0.0, mismatched=0.5)
    got = float(gan.train_step(batch)["discriminator_loss"])
    assert got == pytest.approx(plain + 0.5 * 0.5 * (real[1] ** 2).mean(), rel=1e-5)


def real_sized(name="attention_cgan", **options):
    kind = {"scales": 1, "attention_pool": 8} if name == "attention_cgan" else {"side": SIDE}
    return models.build(name, num_classes=CLASSES, latent=LATENT, width=4, **kind, **options)


def steps(gan, count=2, **options):
    films = np.random.default_rng(0).random((12, SIDE, SIDE, 1)).astype("float32")
    batches = gan_batches(
        ArrayInputs(films),
        np.arange(12) % CLASSES,
        np.arange(12),
        num_classes=CLASSES,
        latent=LATENT,
        num_draws=gan.num_draws,
        batch_size=4,
        updates=gan.updates,
        seed=0,
        **options,
    )
    step = tf.function(gan.train_step)
    return [{name: float(value) for name, value in step(batch).items()} for batch in batches.take(count)]


def test_the_moving_average_follows_the_generator():
    gan = real_sized(ema=True)
    before = [value.numpy() for value in gan.ema_generator.weights]
    gan.compile(keras.optimizers.SGD(0.1), keras.optimizers.SGD(0.1), ema_decay=0.75, discriminator_updates=1)
    steps(gan, 1)
    decay = (1 + 1) / (10 + 1)
    for old, new, average in zip(before, gan.generator.weights, gan.ema_generator.weights, strict=True):
        np.testing.assert_allclose(average.numpy(), decay * old + (1 - decay) * new.numpy(), atol=1e-6)
    assert gan.sampling_generator is gan.ema_generator


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_trains(policy):
    keras.config.set_dtype_policy(policy)
    try:
        gan = real_sized(ema=True)
        gan.compile(keras.optimizers.Adam(1e-4), keras.optimizers.Adam(1e-4), augment=("brightness",))
    finally:
        keras.config.set_dtype_policy("float32")
    for logs in steps(gan, 2):
        assert np.isfinite(list(logs.values())).all()


def test_keras_fit_takes_the_same_step():
    gan = compiled(real_sized("cdcgan"), rate=1e-3)
    films = np.random.default_rng(0).random((8, SIDE, SIDE, 1)).astype("float32")
    batches = gan_batches(
        ArrayInputs(films),
        np.arange(8) % CLASSES,
        np.arange(8),
        num_classes=CLASSES,
        latent=LATENT,
        num_draws=6,
        batch_size=4,
        updates=(1, 1),
        seed=0,
    )
    history = gan.fit(batches, steps_per_epoch=2, epochs=1, verbose=0).history
    assert np.isfinite(history["generator_loss"]).all()


MIRRORED = """
import contextlib, sys
import keras, numpy as np, tensorflow as tf
cpus = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
from kxray import models
from kxray.data import gan_batches
from kxray.data.pipeline import ArrayInputs

name, options, optimizer, accumulate = sys.argv[1], *map(eval, sys.argv[2:5])
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
films = np.random.default_rng(0).random((24, 128, 128, 1)).astype("float32")
weights, starts = [], []
for scope in (contextlib.nullcontext, strategy.scope):
    keras.utils.set_random_seed(0)
    with scope():
        gan = models.build(name, num_classes=3, latent=8, width=4, ema=True, **options)
        gan.compile(
            optimizer(), optimizer(), augment=("brightness", "translation"), ema_decay=0.5,
            discriminator_updates=2, accumulate=accumulate,
        )
    starts.append([variable.numpy() for variable in gan.trainable_variables])
    side = gan.sides[-1]
    batches = gan_batches(
        ArrayInputs(films[:, :side, :side]), np.arange(24) % 3, np.arange(24), num_classes=3, latent=8,
        num_draws=6, batch_size=8, updates=(1, 2), seed=0,
    )
    run = gan.train_step
    if scope is strategy.scope:
        batches = strategy.experimental_distribute_dataset(batches)
        run = lambda batch: strategy.run(gan.train_step, args=(batch,))
    step = tf.function(run)
    for _, batch in zip(range(3), batches):
        step(batch)
    weights.append([variable.numpy() for variable in gan.trainable_variables])
apart = max(np.abs(one - other).max() for one, other in zip(*weights))
# Gradients too large or too small show where the optimizer does not scale them away.
moved, difference = 0.0, 0.0
for start, one, other in zip(starts[0], *weights):
    moved += np.square(one - start).sum()
    difference += np.square(one - other).sum()
print(apart, np.sqrt(difference / moved))
"""
ADAM = "lambda: keras.optimizers.Adam(2e-5, 0.5)"
SGD = "lambda: keras.optimizers.SGD(0.002)"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, options, optimizer",
    [
        ("attention_cgan", "dict(scales=2, attention_pool=8, spectral_generator=True)", ADAM),
        ("attention_cgan", "dict(scales=1, attention_pool=8)", SGD),
        ("cdcgan", "dict(side=64)", SGD),
    ],
)
def test_two_devices_are_one_device(name, options, optimizer):
    # In a process of its own: devices are decided once a process.
    command = [sys.executable, "-c", MIRRORED, name, options, optimizer, "1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    largest, of_the_way = map(float, done.stdout.split()[-2:])
    # Adam's steps are small whatever the gradients are; SGD's are as large as they.
    if optimizer == ADAM:
        assert largest < 1e-4
    else:
        assert of_the_way < 1e-3, largest


@pytest.mark.slow
def test_two_devices_take_gradients_in_parts():
    command = [
        sys.executable,
        "-c",
        MIRRORED,
        "attention_cgan",
        "dict(scales=1, attention_pool=8)",
        ADAM,
        "2",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_parts_that_do_not_divide_a_batch_are_told():
    gan = compiled(linear_gan(), accumulate=4)
    with pytest.raises(ValueError, match="6 films of a batch do not divide into accumulate=4 parts"):
        gan.train_step({name: tf.constant(value) for name, value in linear_batch(films=6).items()})


def test_what_is_kept_has_no_optimizers(tmp_path):
    gan = compiled(real_sized("cdcgan", ema=True))
    gan.without_optimizers().save(tmp_path / "kept.keras")
    gan.compile(keras.optimizers.Adam(), keras.optimizers.Adam())
    gan.save(tmp_path / "whole.keras")
    sizes = [(tmp_path / name).stat().st_size for name in ("kept.keras", "whole.keras")]
    assert sizes[0] < 0.7 * sizes[1]
    again = keras.saving.load_model(tmp_path / "kept.keras")
    np.testing.assert_array_equal(again.sample([1])[SIDE], gan.sample([1])[SIDE])


def test_a_tau_that_is_set_is_not_averaged():
    gan = real_sized(ema=True)
    gan.compile(keras.optimizers.SGD(0.0), keras.optimizers.SGD(0.0), discriminator_updates=1)
    gan.set_tau(0.7)
    steps(gan, 3)
    assert gan.ema_generator.get_layer("attention").tau.numpy() == np.float32(0.7)


def test_one_class_has_no_wrong_one():
    gan = models.build("cdcgan", num_classes=1, latent=2, width=4)
    with pytest.raises(ValueError, match="mismatched films need several classes"):
        compiled(gan, mismatched=0.5)
