"""The graph of a served generator: a class and a seed in, films out. Plain TensorFlow ops only."""

import struct
import zlib

import tensorflow as tf

from kxray.data.synthetic import generator_digest
from kxray.io.marks import SYNTHETIC_TEXTS

# Of 256 px, as floats, they take 17 MB of an answer.
MOST_FILMS = 64
# Made at a time. Self-attention over 64 x 64 places takes 64 MiB and more a film: a request for 64 films of
# 256 px (width 32) takes 0.4 GB beside the model, all at once it takes 9 GB.
_AT_A_TIME = 4
_WHITE = 65535
# Signature and header chunk of a PNG; text chunks may follow.
_PNG_HEADER_BYTES = 33


def endpoints(gan, spec):
    """Builds the serving signatures of a generator.

    Args:
        gan: `kxray.models.build("attention_cgan" | "cdcgan", ...)`, trained.
        spec: its kxray.ModelSpec, task "generator".

    Returns:
        dict from signature name to (function, its input signature):
        `serving_default` and `generate` (`label` int32 (N,): an index into `spec.labels`, `seed` int64 (N,),
        0 or more; N is 1 to MOST_FILMS): `films` float32 (N, S, S, 1) in [0, 1], bone bright, of the largest
        side, `film_<side>` float32 (N, side, side, 1) of each smaller one, `film_bytes` string (N,), the
        films as 16-bit PNG whose text says that they are synthetic, and `label` string (N,). The same label
        and seed give the same film, whatever else is in the batch: that of
        `gan.sample([label], seed=seed)`. Bad input is refused with INVALID_ARGUMENT and one sentence;
        `describe` (no input): `spec` string (1,), its JSON, `labels` string (1, L), `sides` int32 (1, K),
        `most_films` int32 (1,).
    """
    labels, run = tf.constant(spec.labels), generator_digest(gan, spec.labels)
    texts = tf.constant([_text_chunks(spec.name, run, label) for label in spec.labels])
    largest = max(gan.sides)
    batch = [tf.TensorSpec([None], tf.int32, name="label"), tf.TensorSpec([None], tf.int64, name="seed")]

    @tf.function(input_signature=batch, autograph=False)
    def make(label, seed):
        with tf.control_dependencies(_checks(label, seed, spec)):
            label, seed = tf.identity(label), tf.identity(seed)
        z = tf.map_fn(
            # Row 0 of kxray.models' latents(seed, ...).
            lambda own: tf.random.stateless_normal([gan.latent], seed=tf.stack([own, tf.zeros_like(own)])),
            seed,
            fn_output_signature=tf.TensorSpec([gan.latent], tf.float32),
        )
        condition = tf.one_hot(label, spec.num_labels)
        made = _in_parts(gan, z, condition)
        films = {side: (made[side] + 1.0) / 2.0 for side in gan.sides}
        smaller = {f"film_{side}": films[side] for side in gan.sides if side != largest}
        values = tf.cast(tf.round(films[largest] * float(_WHITE)), tf.uint16)
        encoded = tf.map_fn(
            _encoded, (values, tf.gather(texts, label)), fn_output_signature=tf.TensorSpec([], tf.string)
        )
        return {"films": films[largest], **smaller, "film_bytes": encoded, "label": tf.gather(labels, label)}

    # An archive wants a function of its own for every signature; the traced one inside is shared.
    def serving_default(label, seed):
        return make(label, seed)

    def generate(label, seed):
        return make(label, seed)

    def describe():
        return {
            "spec": tf.constant([spec.to_json()]),
            "labels": tf.identity(labels)[None],
            "sides": tf.constant([list(gan.sides)]),
            "most_films": tf.constant([MOST_FILMS]),
        }

    return {
        "serving_default": (serving_default, batch),
        "generate": (generate, batch),
        "describe": (describe, []),
    }


def _in_parts(gan, z, condition):
    """Films by side, in [-1, 1], made a few at a time."""
    count = tf.shape(z)[0]

    def body(start, *made):
        rows = slice(start, start + _AT_A_TIME)
        films = gan.sampling_generator({"z": z[rows], "condition": condition[rows]}, training=False)
        wrote = [
            array.write(start // _AT_A_TIME, films[f"film_{side}"])
            for side, array in zip(gan.sides, made, strict=True)
        ]
        return start + _AT_A_TIME, *wrote

    arrays = [
        tf.TensorArray(
            tf.float32,
            size=(count + _AT_A_TIME - 1) // _AT_A_TIME,
            infer_shape=False,
            element_shape=[None, side, side, 1],
        )
        for side in gan.sides
    ]
    # One after the other, or nothing is saved.
    _, *made = tf.while_loop(
        lambda start, *_: start < count, body, (tf.constant(0), *arrays), parallel_iterations=1
    )
    return {side: array.concat() for side, array in zip(gan.sides, made, strict=True)}


def _checks(label, seed, spec):
    count, seeds = tf.shape(label)[0], tf.shape(seed)[0]
    named = ", ".join(f"{index} {name}" for index, name in enumerate(spec.labels))
    told = tf.strings.join(
        ["got ", tf.strings.as_string(count), " labels and ", tf.strings.as_string(seeds), " seeds"]
    )
    many = tf.strings.join(
        ["a request may ask for 1 to ", str(MOST_FILMS), " films, got ", tf.strings.as_string(count)]
    )
    valid = tf.reduce_all((label >= 0) & (label < spec.num_labels))
    return [
        tf.debugging.Assert(tf.equal(count, seeds), [told]),
        tf.debugging.Assert((count > 0) & (count <= MOST_FILMS), [many]),
        tf.debugging.Assert(valid, [f"label must be one of: {named}"]),
        tf.debugging.Assert(tf.reduce_all(seed >= 0), ["seed must be a whole number from 0"]),
    ]


def _encoded(film):
    """A 16-bit PNG of (values (S, S, 1), text chunks)."""
    values, chunks = film
    png = tf.io.encode_png(values, compression=1)
    rest = tf.strings.substr(png, _PNG_HEADER_BYTES, tf.strings.length(png) - _PNG_HEADER_BYTES)
    return tf.strings.join([tf.strings.substr(png, 0, _PNG_HEADER_BYTES), chunks, rest])


def _text_chunks(model, run, condition) -> bytes:
    """What a film's PNG says of itself, as text chunks; its seed the receiver knows."""
    texts = {**SYNTHETIC_TEXTS, "Model": model, "Run": run, "Condition": condition}
    chunks = []
    for keyword, text in texts.items():
        try:
            content = b"tEXt" + keyword.encode() + b"\0" + text.encode("latin-1")
        except UnicodeEncodeError:
            content = b"iTXt" + keyword.encode() + b"\0\0\0\0\0" + text.encode()
        chunks.append(struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content)))
    return b"".join(chunks)
