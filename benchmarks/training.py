"""Training images a second: the pipeline against a Python generator and against a tensor in memory.

    python -m benchmarks.training --data ../shared/data/views

Three ways to feed the same model (view_cnn, RMSprop, batch 32), taken in turn, so that a slow moment of the
machine falls on all of them; ratios are taken within a round and their median is printed.

generator   what one would write without kxray: opens, converts and resizes every film with Pillow in every
            epoch, in a Python generator, and augments the batch with Keras's own layers (rotation, shift,
            shear, zoom, flip); prefetched, compiled with Keras's defaults
pipeline    kxray.data.pipeline as training.fit uses it: decoded once, augmented on the batch, prefetched
bare step   the same batch again and again from memory: what the model alone allows

Expected: pipeline at least 5 times the generator. Input wait is the share of the time that a step stands
still for its batch, expected under 10%; where there is no GPU, augmentation also takes its share of the cores
the model computes on, which the ratio to the bare step shows, with augmentation and without.
"""

import os
import statistics
import time

import click
import numpy as np


@click.command(help=__doc__)
@click.option("--data", default="../shared/data/views", show_default=True, help="Folder of films.")
@click.option("--rounds", default=9, show_default=True)
@click.option("--steps", default=60, show_default=True, help="Steps a round, for each way.")
def main(data, rounds, steps):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    import tensorflow as tf

    import kxray
    from kxray.data import pipeline
    from kxray.layers import RandomAffine
    from training.loop import steps_per_execution
    from training.recipes.view_classifier import Recipe, task_of

    batch = 32
    table = kxray.data.read_source(data)
    labels = (table["view"] == "lateral").to_numpy().astype(np.float32)[:, None]
    paths = list(table["path"])
    spec = task_of(Recipe()).spec
    inputs = pipeline.load_inputs(paths, spec)
    weights = np.ones(len(paths), np.float32)
    per_epoch = pipeline.steps_per_epoch(paths, batch)
    steps = per_epoch * max(1, round(steps / per_epoch))

    def build(**options):
        keras.utils.set_random_seed(0)
        model = kxray.models.build(spec.name)
        model.compile(keras.optimizers.RMSprop(1e-3), "binary_crossentropy", metrics=["accuracy"], **options)
        return model

    def batches(augment):
        everything = np.arange(len(paths))
        return pipeline.training_batches(
            inputs, labels, weights, everything, batch_size=batch, seed=0, augment=augment
        )

    plain, fast = build(), build(steps_per_execution=steps_per_execution(steps))
    one_batch = (tf.constant(inputs.pixels[:batch]), tf.constant(labels[:batch]), tf.ones(batch))
    in_memory = tf.data.Dataset.from_tensors(one_batch).repeat()
    generator = tf.data.Dataset.from_generator(
        lambda: _pillow_batches(paths, labels, spec.image_size, batch, _keras_augmentation()),
        output_signature=tuple(tf.TensorSpec([None, *part.shape[1:]], tf.float32) for part in one_batch),
    ).prefetch(4)
    # The autotuner's thread would delay the end of every round (see kxray.data.pipeline).
    untuned = tf.data.Options()
    untuned.autotune.enabled = False
    ways = {
        "generator": (plain, generator.with_options(untuned)),
        "pipeline": (fast, batches((RandomAffine(),))),
        "pipeline, not augmented": (fast, batches(())),
        "bare step": (fast, in_memory.with_options(untuned)),
    }
    rates = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, (model, source) in ways.items():
            began = time.perf_counter()
            model.fit(source, steps_per_epoch=steps, epochs=1, shuffle=False, verbose=0)
            # The first round traces and warms up.
            if number:
                rates[name].append(batch * steps / (time.perf_counter() - began))
    click.echo(f"{len(paths)} films of {data}, {rounds} rounds of {steps} steps, {os.cpu_count()} cores")
    for name, values in rates.items():
        click.echo(f"{name:<24} {statistics.median(values):8.0f} images/s")

    def ratio(ours, theirs):
        return statistics.median(a / b for a, b in zip(rates[ours], rates[theirs], strict=True))

    click.echo(f"pipeline / generator: {ratio('pipeline', 'generator'):.2f} (expected at least 5)")
    waited = _input_wait(plain, batches((RandomAffine(),)), steps)
    click.echo(f"input wait: {waited:.1%} (expected under 10%)")
    click.echo(
        f"pipeline / bare step: {ratio('pipeline', 'bare step'):.2f}, "
        f"not augmented {ratio('pipeline, not augmented', 'bare step'):.2f}"
    )


def _keras_augmentation():
    import keras

    return keras.Sequential(
        [
            keras.layers.RandomRotation(45 / 360, fill_mode="constant"),
            keras.layers.RandomTranslation(0.1, 0.1, fill_mode="constant"),
            keras.layers.RandomShear(x_factor=0.18, fill_mode="constant"),
            keras.layers.RandomZoom(0.2, fill_mode="constant"),
            keras.layers.RandomFlip("horizontal"),
        ]
    )


def _input_wait(model, dataset, steps):
    """Share of the time in which a training loop waits for its next batch."""
    iterator = iter(dataset)
    model.train_on_batch(*next(iterator))
    waited, began = 0.0, time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(iterator)
        waited += time.perf_counter() - asked
        model.train_on_batch(*batch)
    return waited / (time.perf_counter() - began)


def _pillow_batches(paths, labels, image_size, batch, augment):
    from PIL import Image

    height, width = image_size
    random = np.random.default_rng(0)
    while True:
        order = random.permutation(len(paths))
        for start in range(0, len(paths), batch):
            chosen = order[start : start + batch]
            films = []
            for index in chosen:
                film = Image.open(paths[index]).convert("L")
                film = film.resize((width, height), Image.Resampling.BILINEAR)
                films.append(np.asarray(film, np.float32)[..., None] / 255)
            images = augment(np.stack(films), training=True)
            yield images, labels[chosen], np.ones(len(chosen), np.float32)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.training")
