"""Counterfactual GAN: what may change in a film, what never does, and what one training step does."""

import subprocess
import sys
import textwrap
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from kxray import models
from kxray.data import counterfactual_batches
from kxray.data.pipeline import ArrayInputs
from kxray.explain.counterfactual_losses import CounterfactualLoss, Weights
from kxray.spec import ModelSpec

SIDE, COUNT = 32, 12
SPEC = ModelSpec("toy", ("A", "B"), "multilabel", (SIDE, SIDE))
LABELS = np.array([[0, 1], [1, 0], [1, 1], [0, 0]] * 3)
HELD = np.stack([1 - LABELS[:, 0], LABELS[:, 0], 1 - LABELS[:, 1], LABELS[:, 1]]).astype(np.int8)


def classifier():
    film = keras.Input((SIDE, SIDE, 1))
    x = layers.Conv2D(4, 5, strides=2, use_bias=False)(film)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(film, layers.Dense(2, activation="sigmoid")(x))


def films(seed=0):
    return np.random.default_rng(seed).random((COUNT, SIDE, SIDE, 1), np.float32)


def build(**options):
    return models.build("counterfactual_gan", **{"num_targets": 4, "side": SIDE, "width": 4, **options})


def compiled(gan, model=None, weights=None, **options):
    optimizers = keras.optimizers.Adam(1e-3, 0.5), keras.optimizers.Adam(1e-3, 0.5)
    gan.compile(*optimizers, loss=CounterfactualLoss(model or classifier(), SPEC, weights=weights), **options)
    return gan


def batch(gan, **options):
    options = {"batch_size": 4, "updates": gan.updates, "num_draws": gan.num_draws, "seed": 0, **options}
    return next(iter(counterfactual_batches(ArrayInputs(films()), HELD, np.arange(COUNT), **options)))


def set_head(gan, name, bias, kernel=0.0):
    layer = gan.generator.get_layer(name)
    layer.kernel.assign(np.full(layer.kernel.shape, kernel, np.float32))
    layer.bias.assign([bias])


def test_a_mask_of_nothing_gives_the_film_itself_and_a_full_one_the_clipped_residual():
    gan, given = build(amplitude=0.25), films()
    targets = np.zeros(COUNT, int)
    set_head(gan, "change", bias=20.0)
    set_head(gan, "mask", bias=-200.0)
    nothing = gan.change(given, targets)
    np.testing.assert_array_equal(nothing["film"], given)
    np.testing.assert_array_equal(nothing["mask"], 0)
    np.testing.assert_allclose(nothing["residual"], 0.25, atol=1e-6)
    set_head(gan, "mask", bias=20.0)
    everything = gan.change(given, targets)
    np.testing.assert_allclose(everything["film"], np.clip(given + 0.25, 0, 1), atol=1e-6)


def test_ranges_and_outside_a_hard_mask_nothing_changes():
    gan, given = build(amplitude=0.5), films()
    set_head(gan, "change", bias=0.0, kernel=3.0)
    set_head(gan, "mask", bias=1.0)
    region = np.zeros((SIDE, SIDE, 1), bool)
    region[8:20, 5:30] = True
    made = gan.change(given, np.arange(COUNT) % 4, region=region)
    assert np.abs(made["residual"]).max() <= 0.5 and 0 <= made["film"].min() <= made["film"].max() <= 1
    outside = np.broadcast_to(~region, given.shape)
    np.testing.assert_array_equal(made["film"][outside], given[outside])
    assert (made["mask"][outside] == 0).all() and 0 < made["mask"].max() <= 1
    assert (made["film"] != given).any()


def test_targets_change_what_is_made_and_batches_do_not():
    gan, given = build(), films()
    set_head(gan, "change", bias=0.0, kernel=1.0)
    first, second = (gan.change(given, np.full(COUNT, target))["film"] for target in (0, 3))
    assert np.abs(first - second).max() > 1e-3
    alone = gan.change(given[:1], [0])["film"]
    np.testing.assert_allclose(first[:1], alone, atol=1e-5)


def test_ablations():
    given, targets = films(), np.zeros(COUNT, int)
    made = build(attention=False).change(given, targets)
    assert (made["mask"] == 1).all()
    np.testing.assert_allclose(made["film"], np.clip(given + made["residual"], 0, 1), atol=1e-6)
    gan = build(residual=False)
    set_head(gan, "change", bias=0.0)
    anew = gan.change(given, targets)
    # Drawn anew: of the film itself nothing is left.
    np.testing.assert_allclose(anew["film"], 0.5, atol=1e-6)
    assert (anew["mask"] == 1).all()
    assert not build(self_attention=False)._attentions


@pytest.mark.parametrize("adversarial", ["least_squares", "wgan_gp"])
def test_the_classifier_stays_as_it_is_and_everything_else_learns(adversarial):
    model = classifier()
    before = [value.copy() for value in model.get_weights()]
    gan = compiled(build(ema=True), model, adversarial=adversarial, mismatched=0.5, weights=Weights(cycle=1))
    own = [variable.numpy() for variable in gan.trainable_variables]
    step = tf.function(gan.train_step, autograph=False)
    for _ in range(2):
        logs = step(batch(gan, back=np.broadcast_to(np.array([[1], [0], [3], [2]]), HELD.shape)))
    assert all(np.isfinite(float(value)) for value in logs.values())
    for value, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(value, old)
    assert {id(variable) for variable in model.variables}.isdisjoint(id(value) for value in gan.variables)
    moved = [
        (variable.numpy() != old).any() for variable, old in zip(gan.trainable_variables, own, strict=True)
    ]
    # tau of self-attention starts at 0, and its projections move when it does.
    assert np.mean(moved) > 0.9


def test_the_total_is_the_sum_of_its_terms():
    weights = Weights(adversarial=2, classifier=3, keep=4, identity=5, proximity=6, sparsity=7, variation=8)
    gan = compiled(build(), weights=weights)
    logs = {name: float(value) for name, value in gan.train_step(batch(gan)).items()}
    terms = ("classifier", "keep", "identity", "proximity", "sparsity", "variation")
    objective = sum(getattr(weights, name) * logs[name] for name in terms)
    assert logs["objective"] == pytest.approx(objective, rel=1e-5)
    assert logs["generator_loss"] == pytest.approx(2 * logs["adversarial"] + objective, rel=1e-5)


def test_least_squares_by_hand():
    # Half of (D - 1)^2 of the real film and of D^2 of the made one, at the scores before the update.
    gan = compiled(build())
    given = batch(gan, batch_size=1)
    condition = tf.one_hot(given["targets"][:, 0], 4)
    made = gan.generator({"film": given["films"][:, 0], "condition": condition})["film"]
    scores = [
        gan.discriminators[SIDE]({"film": 2 * film - 1, "condition": condition})
        for film in (given["real"][:, 0], made)
    ]
    expected = sum(
        0.5 * (float(scores[0][head][0]) - 1) ** 2 + 0.5 * float(scores[1][head][0]) ** 2
        for head in ("unconditional", "conditional")
    )
    logs = gan.train_step(given)
    assert float(logs["discriminator_loss"]) == pytest.approx(expected, rel=1e-4)


def test_the_penalty_is_over_all_pixels():
    gan = compiled(build(), adversarial="wgan_gp")
    film, condition = keras.Input((SIDE, SIDE, 1), name="film"), keras.Input((4,), name="condition")
    score = layers.Reshape(())(layers.Dense(1, kernel_initializer="ones")(layers.Flatten()(film)))
    gan.discriminator_32 = keras.Model({"film": film, "condition": condition}, {"unconditional": score})
    pixels = tf.constant(films()[:2])
    found = gan._slope(pixels, pixels, tf.zeros((2, 4)), tf.zeros(2))
    # The slope is 1 at each of 32 x 32 pixels: its norm is 32.
    assert float(found) == pytest.approx(31.0**2, rel=1e-5)


def test_judging_is_the_loss_without_the_adversarial_term():
    gan = compiled(build())
    given = films(1)
    found = gan.judge(given, np.zeros(COUNT, int), films(2), batch_size=5)
    whole = gan.judge(given, np.zeros(COUNT, int), films(2), batch_size=COUNT)
    assert found == pytest.approx(whole, rel=1e-4, abs=1e-7)
    assert found["objective"] == pytest.approx(
        Weights().total({k: v for k, v in found.items() if k != "objective"})
    )


def test_a_fresh_process_reads_it_without_the_classifier(tmp_path):
    gan = compiled(build(ema=True))
    gan.train_step(batch(gan))
    gan.without_optimizers().save(tmp_path / "gan.keras")
    np.save(tmp_path / "films.npy", films())
    code = """
        import pathlib, sys
        import keras, numpy as np
        import kxray
        folder = pathlib.Path(sys.argv[1])
        gan = keras.saving.load_model(folder / "gan.keras")
        films = np.load(folder / "films.npy")
        np.savez(folder / "made.npz", **gan.change(films, np.ones(len(films), int)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), tmp_path], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    again = np.load(tmp_path / "made.npz")
    for name, value in gan.change(films(), np.ones(COUNT, int)).items():
        np.testing.assert_allclose(again[name], value, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "targets", "region", "message"),
    [
        (np.zeros((1, 16, 16, 1), np.float32), [0], None, "expected float films"),
        (np.full((1, SIDE, SIDE, 1), np.nan, np.float32), [0], None, "without NaN"),
        (np.full((1, SIDE, SIDE, 1), 2.0, np.float32), [0], None, r"films in \[0, 1\]"),
        (np.zeros((1, SIDE, SIDE, 1), np.uint8), [0], None, "got uint8"),
        (np.zeros((1, SIDE, SIDE, 1), np.float32), [4], None, r"whole numbers in \[0, 4\), got \[4\]"),
        (np.zeros((1, SIDE, SIDE, 1), np.float32), [0, 1], None, "expected 1 targets"),
        (np.zeros((1, SIDE, SIDE, 1), np.float32), [0], np.ones((3, 3)), "expected a region"),
    ],
)
def test_what_is_no_film_or_target_is_refused(given, targets, region, message):
    with pytest.raises(ValueError, match=message):
        build().change(given, targets, region=region)


def test_what_cannot_be_built_or_compiled_is_refused():
    for options, message in (
        ({"side": 60}, "multiple of 8 pixels"),
        ({"width": 2}, "width must be 4 or more"),
        ({"amplitude": 0}, "amplitude must be above 0"),
        ({"num_targets": 0}, "num_targets must be 1"),
    ):
        with pytest.raises(ValueError, match=message):
            build(**options)
    with pytest.raises(ValueError, match="takes films of 32x32 pixels, this GAN makes 40x40"):
        compiled(build(side=40))
    with pytest.raises(ValueError, match="has 3 targets, got 4"):
        compiled(build(num_targets=3))
    with pytest.raises(ValueError, match="adversarial must be least_squares or wgan_gp"):
        compiled(build(), adversarial="hinge")


def test_half_precision_keeps_films_whole():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        gan = build()
    finally:
        keras.config.set_dtype_policy("float32")
    made = compiled(gan).change(films(), np.zeros(COUNT, int))
    assert all(value.dtype == np.float32 for value in made.values())
    assert gan.generator.get_layer("coarse_conv").compute_dtype == "float16"
    optimizers = gan.generator_optimizer, gan.discriminator_optimizer
    assert all(isinstance(optimizer, keras.optimizers.LossScaleOptimizer) for optimizer in optimizers)


MIRRORED = """
import sys
sys.path.insert(0, {tests!r})
import numpy as np
import tensorflow as tf
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0],
                                           [tf.config.LogicalDeviceConfiguration()] * 2)
import keras
from test_counterfactual_gan import ArrayInputs, COUNT, HELD, build, classifier, compiled
from test_counterfactual_gan import counterfactual_batches, films

def trained(strategy):
    with strategy.scope():
        keras.utils.set_random_seed(0)
        gan = compiled(build(ema=True), classifier(), discriminator_updates=2)
    data = counterfactual_batches(ArrayInputs(films()), HELD, np.arange(COUNT), batch_size=4,
                                  updates=gan.updates, num_draws=gan.num_draws, seed=0)
    step = tf.function(lambda batch: strategy.run(gan.train_step, args=(batch,)), autograph=False)
    batches = iter(strategy.experimental_distribute_dataset(data))
    for _ in range(3):
        step(next(batches))
    return [variable.numpy() for variable in gan.variables]

pairs = zip(trained(tf.distribute.OneDeviceStrategy("/cpu:0")), trained(tf.distribute.MirroredStrategy()))
print(max(np.abs(one - other).max() for one, other in pairs))
"""


@pytest.mark.slow
def test_two_devices_are_one_device():
    # In a process of its own: devices are decided once a process.
    program = MIRRORED.format(tests=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert float(done.stdout.split()[-1]) < 1e-4
