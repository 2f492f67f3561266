"""Training images a second: the pipeline against a Python generator and against a tensor in memory.

    python -m benchmarks.training --data ../shared/data/views

Three ways to feed the same model (view_cnn, RMSprop, batch 32), taken in turn, so that a slow moment of the
machine falls on all of them; ratios are taken within a round and their median is printed.

generator   opens, converts and resizes every film with Pillow in every epoch, in a Python generator, and
            augments the batch with the same layer
pipeline    kxray.data.pipeline: decoded once, augmented on the batch, prefetched
bare step   the same batch again and again from memory, not augmented: what the model alone allows

Expected: pipeline at least 5 times the generator and at least 0.9 of the bare step (input wait under 10%).
"""

import os
import statistics
import time

import click
import numpy as np


@click.command(help=__doc__)
@click.option("--data", default="../shared/data/views", show_default=True, help="Folder of films.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--steps", default=60, show_default=True, help="Steps a round, for each way.")
def main(data, rounds, steps):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    import tensorflow as tf

    import kxray
    from kxray.data import pipeline
    from kxray.layers import RandomAffine
    from training.recipes.view_classifier import TASK

    batch = 32
    table = kxray.data.read_source(data)
    labels = (table["view"] == "lateral").to_numpy().astype(np.float32)[:, None]
    paths = list(table["path"])
    spec = kxray.ModelSpec(TASK.model, TASK.labels, "binary", TASK.image_size)
    inputs = pipeline.load_inputs(paths, spec)
    weights = np.ones(len(paths), np.float32)
    per_epoch = pipeline.steps_per_epoch(paths, batch)
    steps = per_epoch * max(1, round(steps / per_epoch))

    keras.utils.set_random_seed(0)
    model = kxray.models.build(TASK.model)
    model.compile(keras.optimizers.RMSprop(1e-3), "binary_crossentropy", metrics=["accuracy"])
    everything = np.arange(len(paths))
    sources = {
        "generator": _pillow_batches(paths, labels, spec.image_size, batch, RandomAffine(seed=0)),
        "pipeline": pipeline.training_batches(
            inputs, labels, weights, everything, batch_size=batch, seed=0, augment=RandomAffine()
        ),
        "bare step": tf.data.Dataset.from_tensors(
            (tf.constant(inputs.pixels[:batch]), tf.constant(labels[:batch]), tf.ones(batch))
        ).repeat(),
    }
    rates = {name: [] for name in sources}
    for number in range(rounds + 1):
        for name, source in sources.items():
            began = time.perf_counter()
            model.fit(source, steps_per_epoch=steps, epochs=1, shuffle=False, verbose=0)
            # The first round traces and warms up.
            if number:
                rates[name].append(batch * steps / (time.perf_counter() - began))
    click.echo(f"{len(paths)} films of {data}, {rounds} rounds of {steps} steps, {os.cpu_count()} cores")
    for name, values in rates.items():
        click.echo(f"{name:<10} {statistics.median(values):8.0f} images/s")
    for peer, expected in (("generator", 5.0), ("bare step", 0.9)):
        ratio = statistics.median(
            ours / theirs for ours, theirs in zip(rates["pipeline"], rates[peer], strict=True)
        )
        click.echo(f"pipeline / {peer}: {ratio:.2f} (expected at least {expected})")


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
            images = augment(np.stack(films))
            yield images, labels[chosen], np.ones(len(chosen), np.float32)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.training")
