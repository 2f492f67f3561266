"""Training steps of the attention GAN against a straightforward Keras loop: time, memory, and the arithmetic.

    python -m benchmarks.gan
    python -m benchmarks.gan --sides 64,128,256 --width 16 --batch-size 8 --rounds 3

One step is five updates of the discriminators and one of the generator, on the same batches.

straightforward   one Keras model, its networks called as they are: a traced function an update, real and
                  generated films through the discriminators one after the other, kernels normalised at every
                  call, real films resized with antialiasing for every discriminator of every update
kxray             ConditionalGAN.train_step: all updates in one traced function, real films of all scales
                  made once an update by averaging, one pass of a discriminator for real and generated films,
                  kernels normalised once an update

Each runs in processes of its own, in turn, so that memory is its own; the best of the rounds counts. The
floating-point operations of a step are counted by TensorFlow's profiler in kxray's own step (multiplications
and additions of convolutions and matrix products, forward and backward), and set against what this machine
reaches in a product of two 2,048 x 2,048 matrices.

Expected, 2 idle cores, the best of two rounds of 5 steps: at 64, 128 and 256 px 1.25, 1.18 and 1.31 times the
steps a second (7.99, 3.78 and 1.85), at 28%, 26% and 20% of the matrix product's 465 GFLOP/s, in a tenth to a
quarter more memory (1,049 against 954, 1,293 against 1,078, 1,675 against 1,316 MB): one graph holds all
updates.
"""

import json
import os
import resource
import subprocess
import sys
import time

import click
import numpy as np

WAYS = ("straightforward", "kxray")
CLASSES, LATENT = 8, 100


@click.command(help=__doc__)
@click.option("--sides", default="64,128,256", show_default=True, help="Largest film side of each run.")
@click.option("--width", default=16, show_default=True)
@click.option("--batch-size", default=8, show_default=True)
@click.option("--steps", default=10, show_default=True, help="Timed steps of a round.")
@click.option("--rounds", default=2, show_default=True)
@click.option("--attention-pool", default=4, show_default=True)
@click.option("--way", default=None, hidden=True)
def main(way, sides, rounds, **options):
    sides = [int(side) for side in sides.split(",")]
    if way is not None:
        click.echo(json.dumps(_measured(way, sides[0], **options)))
        return
    peak = _matrix_product_peak()
    click.echo(
        f"width {options['width']}, batches of {options['batch_size']}, attention pool "
        f"{options['attention_pool']}, {os.cpu_count()} cores, matrix products {peak / 1e9:.0f} GFLOP/s"
    )
    click.echo(f"{'side':>5} {'way':<16}{'steps/s':>9}{'memory MB':>11}{'GFLOP/step':>12}{'of peak':>9}")
    for side in sides:
        best = {}
        for _ in range(rounds):
            for name in WAYS:
                found = _run(name, side, options)
                if name not in best or found["seconds"] < best[name]["seconds"]:
                    best[name] = found
        for name in WAYS:
            found, flops = best[name], best["kxray"]["flops"]
            click.echo(
                f"{side:>5} {name:<16}{1 / found['seconds']:9.2f}{found['memory']:11.0f}"
                + (f"{flops / 1e9:12.1f}{flops / found['seconds'] / peak:9.0%}" if name == "kxray" else "")
            )
        ratio = best["straightforward"]["seconds"] / best["kxray"]["seconds"]
        click.echo(f"{side:>5} kxray / straightforward: {ratio:.2f} times the steps a second")


def _run(way, side, options):
    given = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "benchmarks.gan", f"--way={way}", f"--sides={side}", *given]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def _measured(way, side, width, batch_size, steps, attention_pool):
    import keras
    import tensorflow as tf

    from kxray import models
    from kxray.data import gan_batches
    from kxray.data.pipeline import ArrayInputs

    keras.utils.set_random_seed(0)
    scales = {64: 1, 128: 2, 256: 3}[side]
    gan = models.build("attention_cgan", scales=scales, width=width, attention_pool=attention_pool)
    gan.compile(keras.optimizers.Adam(2e-5, 0.5), keras.optimizers.Adam(2e-5, 0.5))
    films = np.random.default_rng(0).random((200, side, side, 1), np.float32)
    batches = iter(
        gan_batches(
            ArrayInputs(films),
            np.arange(200) % CLASSES,
            np.arange(200),
            num_classes=CLASSES,
            latent=LATENT,
            num_draws=gan.num_draws,
            batch_size=batch_size,
            updates=gan.updates,
            seed=0,
        )
    )
    step = tf.function(gan.train_step) if way == "kxray" else _straightforward(gan)
    first = next(batches)
    for _ in range(2):
        step(first)
    began = time.perf_counter()
    for _ in range(steps):
        logs = step(next(batches))
    _ = float(logs["generator_loss"])
    seconds = (time.perf_counter() - began) / steps
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    flops = _operations(step.get_concrete_function(first).graph) if way == "kxray" else None
    return {"seconds": seconds, "memory": memory, "flops": flops}


def _straightforward(gan):
    """The same training as it is mostly written: function by function, in the order of the equations."""
    import tensorflow as tf

    def generated(z, classes):
        condition = tf.one_hot(classes, CLASSES)
        return gan.generator({"z": z, "condition": condition}, training=True), condition

    def loss(heads, wanted):
        return tf.add_n([0.5 * tf.reduce_mean(tf.square(scores - wanted)) for scores in heads.values()])

    @tf.function
    def update_discriminators(films, classes, z, fake_classes):
        made, fake_condition = generated(z, fake_classes)
        condition = tf.one_hot(classes, CLASSES)
        variables = [v for model in gan.discriminators.values() for v in model.trainable_variables]
        with tf.GradientTape() as tape:
            total = 0.0
            for side, discriminator in gan.discriminators.items():
                real = 2.0 * tf.image.resize(films, (side, side), antialias=True) - 1.0
                fake = tf.stop_gradient(made[f"film_{side}"])
                total += loss(discriminator({"film": real, "condition": condition}, training=True), 1.0)
                total += loss(discriminator({"film": fake, "condition": fake_condition}, training=True), 0.0)
        gan.discriminator_optimizer.apply(tape.gradient(total, variables), variables)
        return total

    @tf.function
    def update_generator(z, fake_classes):
        variables = gan.generator.trainable_variables
        with tf.GradientTape() as tape:
            made, condition = generated(z, fake_classes)
            total = 0.0
            for side, discriminator in gan.discriminators.items():
                film = {"film": made[f"film_{side}"], "condition": condition}
                total += loss(discriminator(film, training=True), 1.0)
        gan.generator_optimizer.apply(tape.gradient(total, variables), variables)
        return total

    def step(batch):
        generator_updates, updates = gan.updates
        for update in range(updates):
            told = update_discriminators(
                batch["films"][:, update],
                batch["classes"][:, update],
                batch["z"][:, update],
                batch["fake_classes"][:, update],
            )
        for update in range(updates, updates + generator_updates):
            own = update_generator(batch["z"][:, update], batch["fake_classes"][:, update])
        return {"discriminator_loss": told, "generator_loss": own}

    return step


def _operations(graph):
    """Floating-point operations of one run of a graph, as far as TensorFlow counts them."""
    import contextlib
    import io

    from tensorflow.compat.v1 import RunMetadata, profiler

    options = profiler.ProfileOptionBuilder(profiler.ProfileOptionBuilder.float_operation())
    with contextlib.redirect_stdout(io.StringIO()):
        found = profiler.profile(
            graph, run_meta=RunMetadata(), cmd="op", options=options.with_empty_output().build()
        )
    return found.total_float_ops


def _matrix_product_peak(side=2048, rounds=10):
    import tensorflow as tf

    one, other = (tf.random.stateless_normal((side, side), seed=(0, number)) for number in (1, 2))
    multiply = tf.function(tf.matmul)
    multiply(one, other)
    best = np.inf
    for _ in range(rounds):
        began = time.perf_counter()
        multiply(one, other).numpy()
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


if __name__ == "__main__":
    main()
