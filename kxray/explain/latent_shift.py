"""Counterfactuals by a shift in the latent space of an autoencoder (Cohen et al., 2021, "gifsplanation")."""

import keras
import numpy as np
import tensorflow as tf

from kxray.explain import targets as asked
from kxray.explain.counterfactual import (
    Counterfactuals,
    calibrated,
    check_asked,
    in_batches,
    kept_with,
    traced,
)
from kxray.explain.head import with_logits

# What autoencoders name the layers that they are cut at.
LATENT, DECODED = "latent", "decoded"
MODES = ("max", "mean", "last")
# The published search: steps of 1 up to 10, then of 10 up to 1000.
_STEPS = np.concatenate([np.arange(1, 11), np.arange(20, 1001, 10)]).astype(np.float32)
# What one of them is worth: so much of the logit, as far as it is linear in lambda.
_LOGIT_A_STEP = 0.25
_PATH = 10
# The public file ends once the probability of a finding has fallen by so much.
_PUBLISHED_RISE = 0.15
_HALVINGS = 6


def latent_shift(
    model, spec, autoencoder, films, targets, *, mode="max", stop="reached", batch_size=16
) -> Counterfactuals:
    """Moves films through latent space until a frozen classifier says something else of them.

    With z = E(x), reference x' = D(z), and g the gradient of the wanted logit of f(D(z)) by z, lambda grows
    until D(z + lambda g) is what was asked for; y is that film. As in the published search lambda grows in
    steps of 1 up to 10 and then of 10 up to 1000, and ends where the wanted probability falls again. There g
    is the gradient of the probability, which vanishes for films the classifier is sure of; the logit's leads
    the same way (of several exclusive labels: that of log p / (1 - p)), and a step is what changes it by 0.25
    to first order, whatever the autoencoder's units. A last step too far is halved back.

    The map is the maximum over the path, max_lambda |D(z) - D(z + lambda g)| with ten lambdas up to the last.
    (The public file reduces over an axis of length 1 for "max" and "mean" alike, so that both give its first
    lambda, which is our "last".)

    Args:
        model, spec: the classifier, a functional keras.Model and its kxray.ModelSpec; it stays as it is.
        autoencoder: keras.Model from films to films with layers "latent" and "decoded", such as
            `training.fit autoencoder` leaves; of the classifier's image size.
        films: float (N, h, w, 1) in [0, 1].
        targets: name or number (of `kxray.explain.targets_of(spec)`) of one target, or one a film.
        mode: of the map: "max", "mean" (over the path) or "last" (at its end).
        stop: "reached": where the classifier says the target; "published": where the wanted probability has
            risen by 0.15, as the public file does, flipped or not.
        batch_size: films at a time.

    Returns:
        Counterfactuals; `reference` is x', masks are ones, `before` is of x; steps: `reference` (N, L), the
        probabilities of x', which may have the target already (the autoencoder lost what the classifier
        saw; lambda is 0 then, and nothing is explained); `lambdas` (N, 10) and `path` (N, 10, L), the
        probabilities on the way.

    Raises:
        ValueError: see `check_asked`; an autoencoder of another size, an unknown mode or stop.
    """
    films, numbers = check_asked(spec, films, targets)
    for name, value, known in (("mode", mode, MODES), ("stop", stop, ("reached", "published"))):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    if tuple(autoencoder.input.shape[1:]) != films.shape[1:]:
        raise ValueError(
            f"the autoencoder takes films {tuple(autoencoder.input.shape[1:])}, the classifier "
            f"{films.shape[1:]}; train one with training.fit autoencoder --classifier RUN"
        )
    known = asked.targets_of(spec)
    labels = np.array([known[number].label for number in numbers], np.int32)
    signs = np.array([1.0 if known[number].present else -1.0 for number in numbers], np.float32)
    key = ("latent_shift", spec.to_json(), autoencoder)
    begin, move = kept_with(model, key, lambda: _shifts(model, spec, autoencoder))
    start = in_batches(begin, (films, labels, signs), batch_size)
    latents, slopes = start["latent"], start["slope"]

    def at(rows, lambdas):
        made = in_batches(move, (latents[rows], slopes[rows], lambdas.astype(np.float32)), batch_size)
        return made["film"], calibrated(made["logits"], spec)

    given_back = calibrated(start["reference"], spec)
    ends = _searched(spec, at, start["unit"], given_back, numbers, stop)
    lambdas = ends[:, None] * np.arange(1, _PATH + 1) / _PATH
    count, everything = len(films), np.arange(len(films))
    maps = np.zeros((count, *films.shape[1:3]), np.float32)
    path = np.zeros((count, _PATH, spec.num_labels))
    for number in range(_PATH):
        film, path[:, number] = at(everything, lambdas[:, number])
        away = np.abs(film - start["film"])[..., 0]
        if mode == "max":
            maps = np.maximum(maps, away)
        elif mode == "mean":
            maps += away / _PATH
        else:
            maps = away
    return Counterfactuals(
        films=films,
        counterfactuals=film,
        reference=start["film"],
        masks=np.ones_like(films),
        maps=maps,
        before=calibrated(start["before"], spec),
        after=path[:, -1].copy(),
        targets=numbers,
        steps={"reference": given_back, "lambdas": lambdas, "path": path},
    )


def _shifts(model, spec, autoencoder):
    """Two traced functions: what a shift starts from, and the film at a lambda with what is said of it."""
    encoder, decoder = encoder_decoder(autoencoder)
    run = with_logits(model)

    def begun(films, labels, signs):
        latents = encoder(films, training=False)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(latents)
            given_back = decoder(latents, training=False)
            (logits,) = run(given_back)
            score = tf.reduce_sum(signs * _score(spec, logits, labels))
        slopes = tape.gradient(score, latents)
        squared = tf.reduce_sum(slopes**2, axis=[*range(1, slopes.shape.rank)])
        unit = tf.math.divide_no_nan(_LOGIT_A_STEP, squared)
        (before,) = run(films)
        return {
            "latent": latents,
            "slope": slopes,
            "unit": unit,
            "film": given_back,
            "reference": logits,
            "before": before,
        }

    def moved(latents, slopes, lambdas):
        shape = [-1] + [1] * (latents.shape.rank - 1)
        film = decoder(latents + tf.reshape(lambdas, shape) * slopes, training=False)
        return {"film": film, "logits": run(film)[0]}

    films, latents = encoder.input.shape[1:], encoder.output.shape[1:]
    signature = [tf.TensorSpec([None, *films]), tf.TensorSpec([None], tf.int32), tf.TensorSpec([None])]
    return tf.function(begun, input_signature=signature), traced(moved, latents, latents, ())


def encoder_decoder(model) -> tuple[keras.Model, keras.Model]:
    """Cuts an autoencoder in two, which share its layers.

    Args:
        model: functional keras.Model with layers "latent" and "decoded", of
            `kxray.models.build("autoencoder")` or one's own.

    Returns:
        (films (N, h, w, 1) -> latent, latent -> films (N, h, w, 1)).

    Raises:
        ValueError: a model without such layers.
    """
    names = [layer.name for layer in getattr(model, "layers", ())]
    missing = [name for name in (LATENT, DECODED) if name not in names]
    if missing:
        raise ValueError(
            f"{getattr(model, 'name', model)!r} has no layer {missing[0]!r}; give an autoencoder, such as "
            "one that training.fit autoencoder has trained"
        )
    latent, decoded = (model.get_layer(name).output for name in (LATENT, DECODED))
    return keras.Model(model.input, latent, name="encoder"), keras.Model(latent, decoded, name="decoder")


def _score(spec, logits, labels):
    """The logit (N,) of each film's label; of several exclusive labels log p / (1 - p)."""
    if spec.task == "binary":
        return tf.where(labels == 1, logits[:, 0], -logits[:, 0])
    own = tf.gather(logits, labels, axis=1, batch_dims=1)
    if spec.task == "multilabel":
        return own
    scaled = logits / spec.temperature
    others = tf.reduce_logsumexp(scaled - 1e9 * tf.one_hot(labels, spec.num_labels), axis=1)
    return tf.gather(scaled, labels, axis=1, batch_dims=1) - others


def _searched(spec, at, units, given_back, numbers, stop) -> np.ndarray:
    """The lambda of each film, float (N,): 0 where the film that is given back has the target already."""

    def enough(probabilities, rows):
        if stop == "reached":
            return asked.reached(spec, probabilities, numbers[rows])
        risen = asked.wanted_probability(spec, probabilities, numbers[rows]) - first[rows]
        return risen >= _PUBLISHED_RISE

    everything = np.arange(len(numbers))
    first = asked.wanted_probability(spec, given_back, numbers)
    best, ends, found = first.copy(), np.zeros(len(numbers)), enough(given_back, everything)
    below = np.zeros(len(numbers))
    searching = ~found & (units > 0)
    for step in _STEPS:
        rows = np.flatnonzero(searching)
        if not len(rows):
            break
        lambdas = step * units[rows]
        _, probabilities = at(rows, lambdas)
        wanted = asked.wanted_probability(spec, probabilities, numbers[rows])
        there, rising = enough(probabilities, rows), wanted >= best[rows]
        on = there | rising
        below[rows] = np.where(on, ends[rows], below[rows])
        ends[rows] = np.where(on, lambdas, ends[rows])
        best[rows] = np.maximum(best[rows], wanted)
        found[rows] |= there
        searching[rows] = rising & ~there
    rows = np.flatnonzero(found & (ends > 0))
    for _ in range(_HALVINGS if len(rows) else 0):
        middle = (below[rows] + ends[rows]) / 2
        there = enough(at(rows, middle)[1], rows)
        ends[rows] = np.where(there, middle, ends[rows])
        below[rows] = np.where(there, below[rows], middle)
    return ends
