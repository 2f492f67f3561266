"""Batches for counterfactual GANs: films without a target, films that have it, and all random numbers."""

import numpy as np

from kxray.data.pipeline import with_options
from kxray.io.parallel import read_ahead


def drawable_targets(held, rows) -> np.ndarray:
    """The targets that can be learned: some film has each of them, and some film has not.

    Args:
        held: int8 (T, N): 1 where a film has a target, 0 where it has not, -1 where that is unknown.
        rows: int, the films to learn from.

    Returns:
        int, ascending.
    """
    held = np.asarray(held)[:, np.asarray(rows, np.int64)]
    return np.flatnonzero((held == 1).any(axis=1) & (held == 0).any(axis=1))


def counterfactual_batches(
    inputs, held, rows, *, batch_size, updates, num_draws, seed, back=None, first_step=0
):
    """An endless dataset whose elements are a function of (seed, step) alone.

    Every target of `drawable_targets` comes equally often. Its films come in shuffled passes: all that have
    not the target, and all that have it.

    Args:
        inputs: `kxray.data.pipeline.NetworkInputs` or `ArrayInputs`, films (s, s, 1) in [0, 1].
        held: int8 (T, N), see `drawable_targets`.
        rows: int, the films to train on.
        batch_size: films an update, B.
        updates: (generator updates, discriminator updates) a step, (G, U).
        num_draws: random numbers a film takes.
        seed: int.
        back: int (T, N), the target that changes film n back from target t; -1: none. By default none.
        first_step: where to start.

    Returns:
        tf.data.Dataset of dicts: `films` float32 (B, U + G, s, s, 1), which have not the target; `targets`
        int32 (B, U + G); `back` int32 (B, U + G); `real` float32 (B, U + G, s, s, 1), which have it; `draws`
        float32 (B, U + G, 2, num_draws) in [0, 1). Films come first on every axis, so that devices share a
        batch evenly.

    Raises:
        ValueError: no target that some films have and others have not.
    """
    import tensorflow as tf

    held, rows = np.asarray(held), np.asarray(rows, np.int64)
    targets = drawable_targets(held, rows)
    if not len(targets):
        raise ValueError("no target to learn: of each, some films must have it and others must not")
    sources = {target: rows[held[target, rows] == 0] for target in targets}
    holders = {target: rows[held[target, rows] == 1] for target in targets}
    back = np.full(held.shape, -1) if back is None else np.asarray(back)
    count = sum(updates)
    films_a_step = batch_size * count

    def drawn(members, kind, target, numbers):
        """Films number `numbers` of a target's endless shuffled passes."""
        chosen = np.empty(len(numbers), np.int64)
        for turn in np.unique(numbers // len(members)):
            within = numbers // len(members) == turn
            order = np.random.default_rng([seed, kind, target, turn]).permutation(members)
            chosen[within] = order[numbers[within] % len(members)]
        return chosen

    def steps():
        step = first_step
        while True:
            places = np.arange(step * films_a_step, (step + 1) * films_a_step)
            asked = targets[places % len(targets)]
            films, real = np.empty(films_a_step, np.int64), np.empty(films_a_step, np.int64)
            for target in np.unique(asked):
                own = asked == target
                numbers = places[own] // len(targets)
                films[own] = drawn(sources[target], 1, target, numbers)
                real[own] = drawn(holders[target], 2, target, numbers)
            # Targets mix within a batch in another order at every step.
            order = np.random.default_rng([seed, 3, step]).permutation(films_a_step)
            asked, films, real = asked[order], films[order], real[order]
            pixels = np.concatenate(list(inputs.batches(np.concatenate([films, real]), 2 * films_a_step)))
            pixels = pixels.reshape(2, batch_size, count, *pixels.shape[1:])
            random = np.random.default_rng([seed, 4, step])
            yield {
                "films": pixels[0],
                "targets": asked.reshape(batch_size, count).astype(np.int32),
                "back": back[asked, films].reshape(batch_size, count).astype(np.int32),
                "real": pixels[1],
                "draws": random.random((batch_size, count, 2, num_draws), np.float32),
            }
            step += 1

    side = tuple(inputs.shape)
    signature = {
        "films": tf.TensorSpec((batch_size, count, *side), tf.float32),
        "targets": tf.TensorSpec((batch_size, count), tf.int32),
        "back": tf.TensorSpec((batch_size, count), tf.int32),
        "real": tf.TensorSpec((batch_size, count, *side), tf.float32),
        "draws": tf.TensorSpec((batch_size, count, 2, num_draws), tf.float32),
    }
    return with_options(
        tf.data.Dataset.from_generator(lambda: read_ahead(steps(), 2), output_signature=signature)
    )
