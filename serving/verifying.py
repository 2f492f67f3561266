"""Whether a written SavedModel says what the Keras model says."""

import functools

import numpy as np
import tensorflow as tf

from kxray.explain import attribute, binary_explainer
from kxray.explain.head import with_logits
from kxray.layers.film_input import film_input
from serving import warmup

# Largest difference between a served number and the Keras model's, by the coarsest type that its layers
# compute in: graph optimisation joins operations, which rounds half-precision numbers at other places. Of a
# probability; of a map, whose scale is the model's own, as a share of its norm.
TOLERANCE = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 1e-2}
# A gradient jumps where rounding takes a ReLU over 0, as it does somewhere in a deep network. So a map may
# also differ by this many times what it moves when the film moves by a tenth of the tolerance, up to a share
# of its norm beyond which it says nothing.
_TIMES_MOVED, _NOISE_SHARE = 10, 0.5


def reload(folder):
    """The signatures of a written SavedModel by name, after their warm-up requests were answered."""
    signatures = tf.saved_model.load(str(folder)).signatures
    for request in warmup.read(folder / "assets.extra" / warmup.FILE_NAME):
        inputs = {key: tf.constant(tf.make_ndarray(value)) for key, value in request.inputs.items()}
        signatures[request.model_spec.signature_name](**inputs)
    return signatures


def verify_classifier(model, spec, explain, signatures):
    """Compares the numbers of `reload`ed signatures with the Keras model's; ValueError where they differ.

    Args:
        model, spec: the classifier.
        explain: options by explanation method, as exported.
        signatures: what `reload` gives.
    """
    pixels, png, images = _example(spec)
    tolerance = _tolerance(model)
    expected = _expected_probabilities(model, spec, images, tolerance)
    answers = {
        "predict_pixels": signatures["predict_pixels"](pixels=tf.constant(pixels)),
        "serving_default": signatures["serving_default"](image_bytes=png[None]),
    }
    # Not -1: where two labels are nearly tied, rounding may predict either.
    labels = [0, spec.num_labels - 1]
    for method, options in explain.items():
        name = f"explain_{method}"
        answers[name] = signatures[name](image_bytes=tf.stack([png, png]), label=tf.constant(labels))
        expected_maps = functools.partial(_expected_maps, model, spec, labels, method, options)
        compare_maps(name, answers[name]["heatmap"].numpy(), expected_maps, images, tolerance)
    for name, outputs in answers.items():
        _compare(name, outputs["probabilities"], expected, tolerance)


def verify_counterfactual(gan, gan_spec, model, spec, signatures):
    """Compares the films of `reload`ed signatures with those of `gan.change`, and what is said of them."""
    _, png, images = _example(spec)
    tolerance, name = _tolerance(gan.sampling_generator), "explain_counterfactual"
    targets = [0, gan_spec.num_labels - 1]
    expected = gan.change(np.repeat(images, len(targets), axis=0), np.array(targets, np.int32))
    if not all(np.isfinite(values).all() for values in expected.values()):
        raise ValueError(f"model {gan.name!r} makes films that are not finite; nothing was written")
    answer = signatures[name](image_bytes=tf.stack([png, png]), label=tf.constant(targets))
    expected = {part: values[..., 0] for part, values in expected.items()}
    film, changed = np.asarray(images)[..., 0], expected["film"]
    _compare(name, answer["film"], np.repeat(film, len(targets), axis=0), TOLERANCE["float32"])
    _compare(name, answer["counterfactual"], changed, tolerance)
    _compare(name, answer["difference"], changed - film, tolerance)
    _compare(name, answer["mask"], expected["mask"], tolerance)
    _compare(name, answer["heatmap"], expected["mask"] * np.abs(expected["residual"]), tolerance)
    # Of the films as they were served: a classifier may magnify what they differ by.
    said_in = _tolerance(model)
    after = _expected_probabilities(model, spec, answer["counterfactual"][..., None], said_in)
    _compare(name, answer["probabilities_after"], after, said_in)


def verify_generator(gan, spec, signatures):
    """Compares the films of `reload`ed signatures with those of `gan.sample`."""
    tolerance = _tolerance(gan.sampling_generator)
    labels, seeds = [0, spec.num_labels - 1], [0, 7]
    samples = [gan.sample([label], seed=seed) for label, seed in zip(labels, seeds, strict=True)]
    if not all(np.isfinite(film).all() for films in samples for film in films.values()):
        raise ValueError(f"model {gan.name!r} makes films that are not finite; nothing was written")
    for name in ("serving_default", "generate"):
        answer = signatures[name](label=tf.constant(labels), seed=tf.constant(seeds, tf.int64))
        for side in gan.sides:
            expected = np.concatenate([films[side] for films in samples])
            output = "films" if side == max(gan.sides) else f"film_{side}"
            _compare(name, answer[output], expected, tolerance)
        decoded = [tf.io.decode_png(film, dtype=tf.uint16) for film in answer["film_bytes"]]
        pixels = np.stack([film.numpy() for film in decoded]) / 65535
        _compare(name, pixels, answer["films"], 1e-5)


def _example(spec):
    """A film as pixels (1, H, W, 1), as an encoded PNG, and as the network takes it."""
    pixels = warmup.example_pixels(150, 130)[None, ..., None]
    png = tf.io.encode_png(tf.constant((pixels[0] * 65535).round().astype("uint16")))
    return pixels, png, film_input(spec)(pixels)


def _tolerance(model):
    computed_in = {layer.compute_dtype for layer in model.layers}
    return max(TOLERANCE.get(dtype, TOLERANCE["float32"]) for dtype in computed_in)


def _expected_probabilities(model, spec, images, tolerance):
    """What the Keras model itself says, float32 (N, L); ValueError where its last activation is another."""
    logits, last = with_logits(model, model.outputs[0])(images)
    activate = tf.nn.softmax if spec.task == "multiclass" else tf.sigmoid
    if _far(activate(logits), last, tolerance) and _far(logits, last, tolerance):
        raise ValueError(
            f"model {model.name!r} ends neither in logits nor in the {activate.__name__} of {spec.task}"
        )
    expected = activate(logits / spec.temperature).numpy()
    return np.concatenate([1 - expected, expected], axis=-1) if spec.task == "binary" else expected


def _expected_maps(model, spec, labels, method, options, images):
    """The maps of the Keras model for one film and each of `labels`, float32 (len(labels), h, w)."""
    films = np.repeat(images, len(labels), axis=0)
    if spec.task != "binary":
        return attribute(model, films, labels, method, **options).sum(axis=-1)
    explain = binary_explainer(model, method, **options)
    return explain(tf.constant(films), tf.constant(labels))["heatmap"].numpy().sum(axis=-1)


def _compare(signature_name, got, expected, tolerance):
    if _far(got, expected, tolerance):
        difference = np.abs(got - expected).max()
        raise ValueError(
            f"the exported {signature_name} differs from the Keras model by {difference:.1e}, more than "
            f"{tolerance:.0e}; nothing was written"
        )


def compare_maps(signature_name, got, expected_maps, images, tolerance):
    """ValueError where maps (N, h, w) are further from the Keras model's than rounding explains.

    Args:
        signature_name: for the error.
        got: the served maps.
        expected_maps: function from films to the maps of the Keras model.
        images: the films.
        tolerance: of `TOLERANCE`.
    """
    images = np.asarray(images)
    expected = expected_maps(images)
    if not np.isfinite(expected).all():
        raise ValueError(
            f"{signature_name} is not finite on this model; give it other options. Nothing was written"
        )
    difference = _apart(got, expected)
    if difference <= tolerance:
        return
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, images.shape) * tolerance
    moved = _apart(expected_maps((images + noise).astype("float32")), expected)
    if moved > _NOISE_SHARE:
        raise ValueError(
            f"{signature_name} is rounding noise on this model: a change of {tolerance / 10:.0e} in the film "
            f"changes the map by {moved:.1g} of its norm; give it other options. Nothing was written"
        )
    limit = min(_TIMES_MOVED * max(tolerance, moved), _NOISE_SHARE)
    if not difference <= limit:
        raise ValueError(
            f"the exported {signature_name} differs from the Keras model by {difference:.1e} of its norm, "
            f"more than {limit:.0e}; nothing was written"
        )


def _apart(got, expected):
    """The largest difference of a film's maps (N, h, w), as a share of the norm of the expected one."""
    norms = np.linalg.norm(expected, axis=(1, 2))
    return float((np.linalg.norm(got - expected, axis=(1, 2)) / np.where(norms > 0, norms, 1)).max())


def _far(got, expected, tolerance) -> bool:
    return not np.allclose(np.asarray(got), np.asarray(expected), rtol=0, atol=tolerance)
