"""Batches for conditional GANs: real films and all random numbers of a training step."""

import functools

import numpy as np

from kxray.data.pipeline import with_options
from kxray.io.parallel import read_ahead


def gan_batches(
    inputs,
    classes,
    rows,
    *,
    num_classes,
    latent,
    num_draws,
    batch_size,
    updates,
    seed,
    first_step=0,
    balanced=False,
):
    """An endless dataset whose elements are a function of (seed, step) alone.

    Real films come in shuffled passes over `rows`, one pass after the other; the classes of generated films
    are drawn as often as real ones come.

    Args:
        inputs: `kxray.data.pipeline.NetworkInputs` or `ArrayInputs`, films (s, s, 1) in [0, 1].
        classes: int (N,), the class of every film of `inputs`.
        rows: int, the films to train on.
        num_classes: L.
        latent: length of z.
        num_draws: random numbers a film takes for its augmentation.
        batch_size: films an update, B.
        updates: (generator updates, discriminator updates) a step, (G, U).
        seed: int.
        first_step: where to start.
        balanced: whether every class comes equally often, real (with repetition) and generated.

    Returns:
        tf.data.Dataset of dicts: `films` float32 (B, U, s, s, 1), `classes` int32 (B, U), `other_classes`
        int32 (B, U), a wrong class for each real film (its own where there is no other); `z` float32
        (B, U + G, latent) from N(0, 1), `fake_classes` int32 (B, U + G), `draws` float32
        (B, U + G, 2, num_draws) in [0, 1), of real and generated films. Films come first on every axis, so
        that devices share a batch evenly.

    Raises:
        ValueError: no films.
    """
    import tensorflow as tf

    rows, classes = np.asarray(rows, np.int64), np.asarray(classes, np.int64)
    if not len(rows):
        raise ValueError("no films to train on")
    generated, real = updates
    films_a_step = batch_size * real
    members = [rows[classes[rows] == label] for label in np.unique(classes[rows])]

    @functools.lru_cache(maxsize=2)
    def passes(number):
        """The films of one pass; of balanced ones each class repeats its own to the same count."""
        random = np.random.default_rng([seed, 1, number])
        if not balanced:
            return random.permutation(rows)
        most = max(map(len, members))
        return random.permutation(np.concatenate([_repeated(own, most, random) for own in members]))

    length = max(map(len, members)) * len(members) if balanced else len(rows)

    def step_rows(step):
        wanted = np.arange(step * films_a_step, (step + 1) * films_a_step)
        chosen = np.empty(films_a_step, np.int64)
        for number in np.unique(wanted // length):
            within = wanted // length == number
            chosen[within] = passes(int(number))[wanted[within] % length]
        return chosen

    drawn_from = np.array([classes[own[0]] for own in members]) if balanced else classes[rows]

    def steps():
        step = first_step
        while True:
            random = np.random.default_rng([seed, 2, step])
            chosen = step_rows(step)
            films = np.concatenate(list(inputs.batches(chosen, films_a_step)))
            own = classes[chosen]
            shift = random.integers(1, max(2, num_classes), films_a_step)
            drawn = random.integers(0, len(drawn_from), (batch_size, real + generated))
            yield {
                "films": films.reshape(batch_size, real, *films.shape[1:]),
                "classes": own.reshape(batch_size, real).astype(np.int32),
                "other_classes": ((own + shift) % num_classes).reshape(batch_size, real).astype(np.int32),
                "z": random.standard_normal((batch_size, real + generated, latent), np.float32),
                "fake_classes": drawn_from[drawn].astype(np.int32),
                "draws": random.random((batch_size, real + generated, 2, num_draws), np.float32),
            }
            step += 1

    side = tuple(inputs.shape)
    signature = {
        "films": tf.TensorSpec((batch_size, real, *side), tf.float32),
        "classes": tf.TensorSpec((batch_size, real), tf.int32),
        "other_classes": tf.TensorSpec((batch_size, real), tf.int32),
        "z": tf.TensorSpec((batch_size, real + generated, latent), tf.float32),
        "fake_classes": tf.TensorSpec((batch_size, real + generated), tf.int32),
        "draws": tf.TensorSpec((batch_size, real + generated, 2, num_draws), tf.float32),
    }
    return with_options(
        tf.data.Dataset.from_generator(lambda: read_ahead(steps(), 2), output_signature=signature)
    )


def _repeated(own, count, random):
    """`count` of some films, each as often as the others, give or take one."""
    times = -(-count // len(own))
    return np.concatenate([random.permutation(own) for _ in range(times)])[:count]
