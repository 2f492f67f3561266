"""What the exported graph itself refuses, whoever serves it."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from serving.servable import Servable
from serving.status import ServingStatus


@pytest.fixture(scope="module")
def servable(version_folder):
    return Servable("view", 1, version_folder)


@pytest.fixture(scope="module")
def predict(servable):
    import tensorflow as tf

    def ask(films, signature="serving_default", **more):
        inputs = {"image_bytes": tf.make_tensor_proto(films, dtype=tf.string)}
        inputs |= {key: tf.make_tensor_proto(value) for key, value in more.items()}
        return servable.run(signature, inputs)

    return ask


def png_header(width, height, depth=8, colour=0):
    """A PNG whose header claims a size; its pixels are those of one row."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(bytes(64))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def encoded(mode, kind="PNG", size=(40, 32)):
    values = np.arange(size[0] * size[1])
    values = values**3 // 7 if mode == "noise" else values
    image = Image.fromarray(values.astype(np.uint8).reshape(size[::-1]))
    mode = "L" if mode == "noise" else mode
    if mode == "colour":
        image = Image.merge("RGB", [image, image.rotate(180), image])
    elif mode == "transparent":
        image = Image.merge("LA", [image, image.rotate(180)])
    else:
        image = image.convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def jpeg_header(width, height):
    data = bytearray(encoded("L", "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


@pytest.mark.parametrize(
    ("film", "message"),
    [
        (b"", "film 0 of the batch is neither a PNG nor a JPEG"),
        (b"hello", "neither a PNG nor a JPEG"),
        (b"GIF89a" + bytes(100), "neither a PNG nor a JPEG"),
        (png_header(1, 1), "has 1 x 1 pixels; expected sides of 16 to 16384"),
        (png_header(20_000, 20_000), "has 20000 x 20000 pixels"),
        (png_header(16_000, 16_000), "has 16000 x 16000 pixels; .* at most 80 megapixels"),
        (png_header(2**32 - 1, 2**32 - 1), "has 4294967295 x 4294967295 pixels"),
        (png_header(0, 0), "has 0 x 0 pixels"),
        (jpeg_header(20_000, 20_000), "has 20000 x 20000 pixels"),
        (jpeg_header(1, 1), "has 1 x 1 pixels"),
        (encoded("P"), "is a palette PNG"),
        (encoded("1"), "has 1 bits a pixel; expected 8 or 16"),
        (encoded("colour"), "is a colour picture"),
        (encoded("colour", "JPEG"), "is a colour picture"),
        (encoded("transparent"), "has transparent pixels"),
        (encoded("CMYK", "JPEG"), "4 components|is a colour picture"),
        (png_header(64, 64), "PNG"),
        (encoded("noise")[:-30], "PNG"),
        (encoded("noise")[:1000], "PNG"),
        (encoded("noise").replace(b"IDAT", b"IDAT\x55", 1), "PNG"),
        (encoded("L", "JPEG")[:300], "JPEG"),
        (encoded("L", "JPEG")[:-30], "JPEG"),
        (b"\xff\xd8\xff" + bytes(100), "JPEG"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "neither a PNG nor a JPEG"),
    ],
)
def test_what_is_no_film_is_an_invalid_argument_in_one_sentence(predict, film, message):
    with pytest.raises(ServingStatus, match=message) as caught:
        predict([film])
    assert caught.value.code == "INVALID_ARGUMENT"
    assert "\n" not in str(caught.value)
    assert "File " not in str(caught.value) and "node" not in str(caught.value)


def test_the_message_names_the_film_of_the_batch(predict):
    with pytest.raises(ServingStatus, match="film 1 of the batch is a palette PNG"):
        predict([encoded("L"), encoded("P")])


def test_the_smallest_and_the_longest_films_are_taken(predict):
    smallest, longest = encoded("L", size=(16, 16)), encoded("L", size=(16_384, 16))
    assert predict([smallest, longest])["probabilities"].shape == (2, 2)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([2], "label must be -1 .* or one of: 0 frontal, 1 lateral"),
        ([-2], "label must be -1"),
        ([0, 1], "got 2 labels for 1 films"),
    ],
)
def test_wrong_labels_are_refused(predict, labels, message):
    with pytest.raises(ServingStatus, match=message) as caught:
        predict([encoded("L")], "explain", label=np.array(labels, np.int32))
    assert caught.value.code == "INVALID_ARGUMENT"


def test_an_empty_batch_is_refused(predict, servable):
    import tensorflow as tf

    with pytest.raises(ServingStatus, match="the batch is empty") as caught:
        predict([])
    assert caught.value.code == "INVALID_ARGUMENT"
    with pytest.raises(ServingStatus, match="the batch is empty"):
        servable.run("predict_pixels", {"pixels": tf.make_tensor_proto(np.zeros((0, 64, 64, 1), np.float32))})


@pytest.mark.parametrize("bad", [-0.01, 1.01, np.nan, np.inf, 255.0])
def test_pixels_outside_the_unit_interval_are_refused(servable, bad):
    import tensorflow as tf

    pixels = np.full((1, 20, 20, 1), 0.5, np.float32)
    pixels[0, 3, 4] = bad
    with pytest.raises(ServingStatus, match=r"pixels must be finite and in \[0, 1\]") as caught:
        servable.run("predict_pixels", {"pixels": tf.make_tensor_proto(pixels)})
    assert caught.value.code == "INVALID_ARGUMENT"


def test_tensors_that_do_not_fit_the_signature_are_refused(servable):
    import tensorflow as tf
    from tensorflow.core.framework import tensor_pb2

    film = tf.make_tensor_proto([encoded("L")])
    pixels = tf.make_tensor_proto(np.zeros((1, 20, 20, 1), np.float32))
    bomb = tensor_pb2.TensorProto(dtype=tf.float32.as_datatype_enum, float_val=[0.5])
    for side in (1, 100_000, 100_000, 1):
        bomb.tensor_shape.dim.add(size=side)
    negative = tensor_pb2.TensorProto(dtype=tf.string.as_datatype_enum)
    negative.tensor_shape.dim.add(size=-1)
    short = tensor_pb2.TensorProto(dtype=tf.float32.as_datatype_enum, tensor_content=bytes(7))
    for side in (1, 20, 20, 1):
        short.tensor_shape.dim.add(size=side)
    cases = [
        (
            "serving_default",
            {},
            "input size does not match signature: 0!=1 .*Missing but required: {image_bytes}",
        ),
        ("serving_default", {"image": film}, "Sent extra: {image}. Missing but required: {image_bytes}"),
        ("serving_default", {"image_bytes": film, "more": film}, "Sent extra: {more}"),
        ("serving_default", {"image_bytes": pixels}, 'input "image_bytes" must be string, got float32'),
        ("serving_default", {"image_bytes": tf.make_tensor_proto([[b"x"]])}, r"must have shape \(\?,\)"),
        (
            "serving_default",
            {"image_bytes": tf.make_tensor_proto(b"x")},
            r"must have shape \(\?,\), got \(\)",
        ),
        ("serving_default", {"image_bytes": negative}, r"must have shape \(\?,\), got \(-1,\)"),
        ("serving_default", {"image_bytes": tensor_pb2.TensorProto()}, "must be string, got no type"),
        ("predict_pixels", {"pixels": bomb}, "is too large"),
        ("predict_pixels", {"pixels": short}, "tensor parsing error: pixels"),
        (
            "predict_pixels",
            {"pixels": tf.make_tensor_proto(np.zeros((1, 20, 20), np.float32))},
            "must have shape",
        ),
        (
            "predict_pixels",
            {"pixels": tf.make_tensor_proto(np.zeros((1, 20, 20, 1)))},
            "must be float32, got float64",
        ),
    ]
    for signature, inputs, message in cases:
        with pytest.raises(ServingStatus, match=message) as caught:
            servable.run(signature, inputs)
        assert caught.value.code == "INVALID_ARGUMENT", signature
