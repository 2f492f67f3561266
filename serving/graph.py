"""The graph of a served model: encoded films in, probabilities and maps out. Plain TensorFlow ops only."""

import dataclasses
from collections.abc import Callable

import tensorflow as tf

from kxray.explain import PREDICTED, binary_explainer, detailed_explainer
from kxray.explain.evidence import aligns_films
from kxray.explain.head import with_logits
from kxray.io.film import MAX_PIXELS, MAX_SIDE, MIN_SIDE
from kxray.layers.film_input import film_input
from kxray.spec import UNSURE
from serving.methods import parse, text

# The inputs of signatures that explain.
FILMS = tf.TensorSpec([None], tf.string, name="image_bytes")
WANTED = tf.TensorSpec([None], tf.int32, name="label")
_PNG_SIGNATURE = [0x89, 0x50, 0x4E, 0x47, 0x0D, 0x0A, 0x1A, 0x0A]
_IHDR = [0x49, 0x48, 0x44, 0x52]
_HEADER_BYTES = 26
_PALETTE = 3


@dataclasses.dataclass(frozen=True)
class Classifier:
    """What the signatures of a classifier share, as one function each, so that the saved graph holds it once.

    Attributes:
        network_input: from image_bytes string (N,) to films as the network takes them, float32 (N, h, w, 1),
            and their own heights and widths, int32 (N, 2).
        logits: from such films to logits float32 (N, units).
        answer: from logits to the most probable label, int32 (N,), and the outputs of every prediction.
    """

    network_input: Callable
    logits: Callable
    answer: Callable


def classifier(model, spec) -> Classifier:
    """What the signatures of a classifier share; `model` and `spec` as in `endpoints`."""
    prepare = film_input(spec)
    height, width = spec.image_size
    run = with_logits(model)
    labels = tf.constant(spec.labels)

    @tf.function(input_signature=[FILMS], autograph=False)
    def network_input(image_bytes):
        def read(film):
            decoded = _decode_film(film[1], film[0])
            return prepare(decoded[None])[0], tf.shape(decoded)[:2]

        count = tf.shape(image_bytes)[0]
        with tf.control_dependencies([_require(count > 0, "the batch is empty: send at least one film")]):
            numbered = (tf.range(count), tf.identity(image_bytes))
        return tf.map_fn(
            read,
            numbered,
            fn_output_signature=(
                tf.TensorSpec((height, width, 1), tf.float32),
                tf.TensorSpec((2,), tf.int32),
            ),
            parallel_iterations=4,
        )

    @tf.function(input_signature=[tf.TensorSpec([None, height, width, 1], tf.float32)], autograph=False)
    def logits(images):
        return run(images)[0]

    def answer(logits):
        probabilities = _probabilities(logits, spec)
        # Half-precision or saturated probabilities tie where logits do not; an explainer goes by the logits.
        ranked = tf.concat([-logits, logits], axis=-1) if spec.task == "binary" else logits
        top = tf.argmax(ranked, axis=-1, output_type=tf.int32)
        return top, {
            "probabilities": probabilities,
            "label": tf.gather(labels, top),
            "decision": _decision(probabilities, top, labels, spec),
        }

    return Classifier(network_input, logits, answer)


def endpoints(model, spec, methods, shared=None):
    """Builds the serving signatures of a classifier.

    Every signature refuses bad input with INVALID_ARGUMENT and one sentence. Outputs are named tensors, batch
    first: `probabilities` float32 (N, L) in the order of `spec.labels`, calibrated by `spec.temperature`;
    `label` string (N,), the most probable label; `decision` string (N,), that label or `"unsure"` where it
    stays under its threshold (for multi-label models the labels that reach theirs, joined by `|`).

    Args:
        model: functional keras.Model from (N, h, w, 1) to one sigmoid unit (task binary) or L units.
        spec: its kxray.ModelSpec.
        methods: explanation methods (`kxray.explain.METHODS`) with their options, as
            `serving.methods.parse` reads them; the first one also answers as `explain`.
        shared: `classifier(model, spec)`, where further signatures share it, too.

    Returns:
        dict from signature name to (function, its input signature):
        `serving_default` (`image_bytes` string (N,): 8 or 16-bit grey PNG, or JPEG);
        `predict_pixels` (`pixels` float32 (N, H, W, 1) in [0, 1], any H and W);
        `explain` and `explain_<method>` (`image_bytes`, and `label` int32 (N,): an index into `spec.labels`,
        or -1 for the predicted one), which add `heatmap` float32 (N, h, w), signed and raw, positive where
        the film speaks for that label, `explained_label` string (N,), and whatever else the method computes:
        multiscale_cam `stage_maps` float32 (N, S, h, w), the map of each of S stages before weighting,
        `relevance_weights` float32 (N, S) and `stage_names` string (N, S), shallow to deep, so that
        heatmap = sum over S of relevance_weights * stage_maps; integrated_gradients `completeness_error`
        float32 (N,); evidence `box` float32 (N, 4): x, y of the upper left corner, width and height in pixels
        of the film sent (0 where nothing speaks for the label), `evidence_aligned` float32 (N, h, w), and of
        a model that aligns its films `pose` float32 (N, 4) and `alignment_confidence` float32 (N,), below 0.5
        where the film is no chest that could be aligned. CAM methods give maps at the resolution of their
        features, pixel methods (gradients, lrp, rap) and evidence at that of the network's input; all of them
        lie on the film as it was sent. Prediction and explanation share one forward pass;
        `describe` (no input): `spec` string (1,), its JSON, `labels` string (1, L), and `explanations` string
        (1, M), the methods with their options as text, in the order of `methods`.

    Raises:
        ValueError: a method that cannot read this model.
    """
    methods = parse(methods)
    shared = shared or classifier(model, spec)
    network_input, network, answer = shared.network_input, shared.logits, shared.answer
    prepare = film_input(spec)
    height, width = spec.image_size
    aligns = aligns_films(model)
    labels = tf.constant(spec.labels)
    pixel_batch = tf.TensorSpec([None, None, None, 1], tf.float32, name="pixels")

    def serving_default(image_bytes):
        return answer(network(network_input(image_bytes)[0]))[1]

    def predict_pixels(pixels):
        with tf.control_dependencies(_pixel_checks(pixels)):
            pixels = tf.identity(pixels)
        ready = tf.reduce_all(tf.shape(pixels)[1:3] == (height, width))
        images = tf.cond(
            ready, lambda: tf.ensure_shape(pixels, (None, height, width, 1)), lambda: prepare(pixels)
        )
        return answer(network(images))[1]

    def explain_by(method, options):
        build = binary_explainer if spec.task == "binary" else detailed_explainer
        explain_images = build(model, method, **options)

        @tf.function(input_signature=[FILMS, WANTED], autograph=False)
        def explain(image_bytes, label):
            with tf.control_dependencies(label_checks(image_bytes, label, spec.labels, "the predicted one")):
                images, sizes = network_input(tf.identity(image_bytes))
            found = dict(explain_images(images, label))
            if "box" in found:
                found = _evidence(found, sizes, aligns)
            top, outputs = answer(found.pop("logits"))
            chosen = tf.where(label == PREDICTED, top, label)
            found["heatmap"] = tf.reduce_sum(found["heatmap"], axis=-1)
            return {**found, **outputs, "explained_label": tf.gather(labels, chosen)}

        return explain

    def describe():
        return {
            "spec": tf.constant([spec.to_json()]),
            "labels": tf.identity(labels)[None],
            "explanations": tf.constant([[text(*pair) for pair in methods.items()]]),
        }

    signatures = {
        "serving_default": (serving_default, [FILMS]),
        "predict_pixels": (predict_pixels, [pixel_batch]),
    }
    named = {f"explain_{method}": explain_by(method, options) for method, options in methods.items()}
    first = next(iter(named.values()))
    for name, explanation in {"explain": first, **named}.items():
        signatures[name] = (_endpoint(explanation), [FILMS, WANTED])
    return signatures | {"describe": (describe, [])}


def _evidence(found, sizes, aligns):
    """What `explain_evidence` calls its own: the box in pixels of the films sent; nothing of no alignment."""
    height, width = tf.unstack(tf.cast(sizes, tf.float32), axis=-1)
    found = {**found, "box": found["box"] * tf.stack([width, height, width, height], axis=-1)}
    pose, confidence = found.pop("pose"), found.pop("confidence")
    return {**found, "pose": pose, "alignment_confidence": confidence} if aligns else found


def _endpoint(explanation):
    # An archive wants a function of its own for every signature; the traced one inside is shared.
    def explain(image_bytes, label):
        return explanation(image_bytes, label)

    return explain


def _require(condition, message):
    return tf.debugging.Assert(condition, [message])


def _about(number, *words):
    parts = [word if isinstance(word, str) else tf.strings.as_string(word) for word in words]
    return tf.strings.join(["film ", tf.strings.as_string(number), " of the batch ", *parts])


def _decode_film(data, number):
    """Decodes one film of a batch: string scalar -> float32 (H, W, 1) in [0, 1].

    The header is read first: a small file can claim a picture of gigabytes.
    """
    start = tf.strings.join([tf.strings.substr(data, 0, _HEADER_BYTES), b"\0" * _HEADER_BYTES])
    header = tf.cast(tf.io.decode_raw(tf.strings.substr(start, 0, _HEADER_BYTES), tf.uint8), tf.int64)
    header = tf.ensure_shape(header, [_HEADER_BYTES])
    is_png = tf.reduce_all(header[:8] == _PNG_SIGNATURE) & tf.reduce_all(header[12:16] == _IHDR)
    is_jpeg = tf.reduce_all(header[:3] == [0xFF, 0xD8, 0xFF])
    known = _require(is_png | is_jpeg, _about(number, "is neither a PNG nor a JPEG file"))

    def png():
        place_values = tf.constant([1 << 24, 1 << 16, 1 << 8, 1], tf.int64)
        width = tf.reduce_sum(header[16:20] * place_values)
        height = tf.reduce_sum(header[20:24] * place_values)
        depth, colour_type = header[24], header[25]
        checks = [
            *_size_checks(height, width, number),
            _require(
                colour_type != _PALETTE,
                _about(number, "is a palette PNG: its values are colour numbers, not grey levels"),
            ),
            _require(
                (depth == 8) | (depth == 16),
                _about(number, "has ", depth, " bits a pixel; expected 8 or 16"),
            ),
        ]
        with tf.control_dependencies(checks):
            # 8-bit values v become v * 257, so that one division serves both depths exactly.
            return _grey(tf.io.decode_png(tf.identity(data), dtype=tf.uint16), 65535.0, number)

    def jpeg():
        shape = tf.cast(tf.image.extract_jpeg_shape(data), tf.int64)
        checks = [
            *_size_checks(shape[0], shape[1], number),
            _require(
                (shape[2] == 1) | (shape[2] == 3),
                _about(number, "is a JPEG of ", shape[2], " components; expected a grey film"),
            ),
        ]
        with tf.control_dependencies(checks):
            decoded = tf.io.decode_jpeg(tf.identity(data), dct_method="INTEGER_ACCURATE")
        return _grey(decoded, 255.0, number)

    with tf.control_dependencies([known]):
        return tf.cond(tf.identity(is_png), png, jpeg)


def _size_checks(height, width, number):
    size = (width, " x ", height, " pixels")
    smallest, largest = tf.minimum(height, width), tf.maximum(height, width)
    limits = f"; expected sides of {MIN_SIDE} to {MAX_SIDE} and at most {MAX_PIXELS // 10**6} megapixels"
    fits = (smallest >= MIN_SIDE) & (largest <= MAX_SIDE)
    # Sides are compared first; their product could overflow only beyond MAX_SIDE.
    return [_require(fits & (height * width <= MAX_PIXELS), _about(number, "has ", *size, limits))]


def _grey(decoded, white, number):
    """The one channel of a decoded film (H, W, C); grey stored as RGB or with an opaque alpha is grey."""
    channels = tf.shape(decoded)[-1]
    values = tf.cast(decoded, tf.int32)
    colours = values[:, :, : channels - tf.cast(channels % 2 == 0, tf.int32)]
    opaque = (channels % 2 == 1) | tf.reduce_all(values[:, :, -1] == int(white))
    checks = [
        _require(opaque, _about(number, "has transparent pixels; expected a grey film")),
        _require(
            tf.reduce_all(colours == colours[:, :, :1]),
            _about(number, "is a colour picture; expected a grey film"),
        ),
    ]
    with tf.control_dependencies(checks):
        return tf.ensure_shape(tf.cast(colours[:, :, :1], tf.float32) / white, [None, None, 1])


def _pixel_checks(pixels):
    shape = tf.shape(pixels, out_type=tf.int64)
    inside = tf.reduce_all((pixels >= 0) & (pixels <= 1))
    return [
        _require(shape[0] > 0, "the batch is empty: send at least one film"),
        *_size_checks(shape[1], shape[2], 0),
        _require(
            inside, "pixels must be finite and in [0, 1], bone bright; read films with kxray.read_image()"
        ),
    ]


def label_checks(image_bytes, label, names, unnamed):
    """Checks that there is one label a film, each an index into `names`, or -1, which means `unnamed`."""
    films, wanted = tf.shape(image_bytes)[0], tf.shape(label)[0]
    counts = tf.strings.join(
        ["got ", tf.strings.as_string(wanted), " labels for ", tf.strings.as_string(films), " films"]
    )
    valid = tf.reduce_all((label >= PREDICTED) & (label < len(names)))
    named = ", ".join(f"{index} {name}" for index, name in enumerate(names))
    return [
        _require(tf.equal(films, wanted), counts),
        _require(valid, f"label must be -1 ({unnamed}) or one of: {named}"),
    ]


def _probabilities(logits, spec):
    logits = logits / spec.temperature
    if spec.task == "binary":
        return tf.concat([tf.sigmoid(-logits), tf.sigmoid(logits)], axis=-1)
    return tf.nn.softmax(logits) if spec.task == "multiclass" else tf.sigmoid(logits)


def _decision(probabilities, top, labels, spec):
    thresholds = tf.constant([spec.threshold(label) for label in spec.labels], tf.float32)
    reached = probabilities >= thresholds
    if spec.task == "multilabel":
        rows = tf.RaggedTensor.from_row_lengths(
            tf.gather(labels, tf.where(reached)[:, 1]), tf.reduce_sum(tf.cast(reached, tf.int32), axis=-1)
        )
        return tf.strings.reduce_join(rows, axis=-1, separator="|")
    decided = tf.gather(reached, top, axis=1, batch_dims=1)
    return tf.where(decided, tf.gather(labels, top), tf.constant(UNSURE))
