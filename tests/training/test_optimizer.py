"""Rates and first steps variable by variable, against AdamW itself."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from training.optimizer import StagedAdamW, stage_rates


def network():
    """Three dense layers without activation: two stages of a backbone and a head."""
    x = film = keras.Input((3,))
    for name in ("early", "late", "logits"):
        x = layers.Dense(3 if name != "logits" else 1, name=name, kernel_initializer="ones")(x)
    return keras.Model(film, x)


def examples(count=8):
    inputs = np.random.default_rng(0).normal(size=(count, 3)).astype("float32")
    return inputs, inputs[:, :1] - 2 * inputs[:, 1:2]


def trained(optimizer, steps, **options):
    """The weights, by path, after every step."""
    model = network()
    model.compile(optimizer, "mse", **options)
    seen = [weights_of(model)]
    for _ in range(steps):
        model.train_on_batch(*examples())
        seen.append(weights_of(model))
    return model, seen


def weights_of(model):
    return {variable.path: variable.numpy() for variable in model.variables}


def test_without_factors_it_is_adamw():
    options = {"weight_decay": 0.05, "global_clipnorm": 1.0}
    _, ours = trained(StagedAdamW(0.01, **options), 5)
    _, theirs = trained(keras.optimizers.AdamW(0.01, **options), 5)
    for path, value in theirs[-1].items():
        np.testing.assert_allclose(ours[-1][path], value, rtol=1e-6)


def test_the_first_step_of_a_variable_is_its_rate_and_decay_by_hand():
    optimizer = StagedAdamW(0.1, {"early/kernel": 0.01, "late/kernel": 0.1}, weight_decay=0.5, epsilon=1e-12)
    _, (before, after) = trained(optimizer, 1)
    for path, rate in (("early/kernel", 0.001), ("late/kernel", 0.01), ("logits/kernel", 0.1)):
        # Adam's first step is the rate times the gradient's sign, whatever the gradient's size.
        step = after[path] - before[path] * (1 - 0.5 * rate)
        np.testing.assert_allclose(np.abs(step), rate, rtol=1e-3)


def test_a_stage_stands_still_before_its_first_step_and_nothing_is_traced_anew():
    optimizer = StagedAdamW(
        0.01, first_steps={"early/kernel": 4, "early/bias": 4, "late/kernel": 2, "late/bias": 2}
    )
    traces, first = [], 0

    class Counting(keras.Model):
        def train_step(self, data):
            traces.append(len(traces))
            return super().train_step(data)

    plain = network()
    model = Counting(plain.input, plain.output)
    model.compile(optimizer, "mse")
    seen = [weights_of(model)]
    for _ in range(6):
        model.train_on_batch(*examples())
        seen.append(weights_of(model))
        first = first if len(seen) > 2 else len(traces)
    assert len(traces) == first
    for name, first in (("early", 4), ("late", 2), ("logits", 0)):
        moved = [
            not np.array_equal(before[f"{name}/kernel"], after[f"{name}/kernel"])
            for before, after in zip(seen, seen[1:], strict=False)
        ]
        assert moved == [step >= first for step in range(6)], name


def test_rates_follow_a_schedule():
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([1], [0.1, 0.0])
    _, seen = trained(StagedAdamW(schedule, {"late/kernel": 0.5}, weight_decay=0.0), 4)
    assert not np.array_equal(seen[1]["late/kernel"], seen[0]["late/kernel"])
    np.testing.assert_array_equal(seen[4]["late/kernel"], seen[2]["late/kernel"])


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_saved_and_loaded_it_goes_on_alike(tmp_path, policy):
    keras.config.set_dtype_policy(policy)
    try:
        optimizer = StagedAdamW(
            0.01, {"early/kernel": 0.1}, {"late/kernel": 5, "late/bias": 5}, weight_decay=0.01
        )
        model, _ = trained(optimizer, 3)
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        inner = getattr(loaded.optimizer, "inner_optimizer", loaded.optimizer)
        assert inner.factors == {"early/kernel": 0.1}
        assert inner.first_steps == {"late/kernel": 5, "late/bias": 5}
        for one in (model, loaded):
            for _ in range(4):
                one.train_on_batch(*examples())
        for path, value in weights_of(model).items():
            np.testing.assert_allclose(weights_of(loaded)[path], value, rtol=1e-5)
    finally:
        keras.config.set_dtype_policy("float32")


def test_two_devices_do_what_one_does(run_program):
    # Logical devices are set before TensorFlow starts.
    code = """
        import keras, numpy as np, tensorflow as tf
        device = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * 2)
        from training.optimizer import StagedAdamW

        def trained(scope):
            with scope:
                film = keras.Input((3,))
                x = keras.layers.Dense(3, name="early", kernel_initializer="ones")(film)
                model = keras.Model(film, keras.layers.Dense(1, name="logits", kernel_initializer="ones")(x))
                optimizer = StagedAdamW(0.01, {"early/kernel": 0.1}, {"early/bias": 3}, weight_decay=0.1)
                model.compile(optimizer, "mse")
            inputs = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
            model.fit(inputs, inputs[:, :1], batch_size=8, epochs=5, shuffle=False, verbose=0)
            return model.get_weights()

        import contextlib
        one = trained(contextlib.nullcontext())
        two = trained(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope())
        for a, b in zip(one, two, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        print("alike")
    """
    import textwrap

    told = run_program("-c", textwrap.dedent(code))
    assert told.code == 0 and told.text.strip().endswith("alike"), told.text


def test_stage_rates_count_from_the_last_trained_stage():
    model = network()
    stages = [["early"], ["late"]]
    factors, first_steps = stage_rates(model, stages, backbone_rate=0.1, stage_decay=0.5, unfreeze_steps=10)
    assert factors["late/kernel"] == 0.1 and factors["early/bias"] == 0.05
    assert first_steps == {"late/kernel": 10, "late/bias": 10, "early/kernel": 20, "early/bias": 20}
    model.get_layer("late").trainable = False
    factors, first_steps = stage_rates(model, stages, backbone_rate=0.1, unfreeze_steps=10)
    assert factors == {"early/kernel": 0.1, "early/bias": 0.1} and set(first_steps.values()) == {10}


def test_a_negative_factor_is_refused():
    with pytest.raises(ValueError, match="0 or more, got -1.0 for early/kernel"):
        StagedAdamW(0.01, {"early/kernel": -1.0})


def test_gradients_of_a_frozen_variable_are_not_asked_for():
    model = network()
    model.get_layer("early").trainable = False
    model.compile(StagedAdamW(0.01, {"early/kernel": 0.1}), "mse")
    before = model.get_layer("early").get_weights()[0]
    model.train_on_batch(*examples())
    np.testing.assert_array_equal(model.get_layer("early").get_weights()[0], before)
    assert len(tf.nest.flatten(model.optimizer._momentums)) == 4
