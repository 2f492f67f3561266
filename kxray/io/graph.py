"""tensorflow-io: DICOM decoded inside a TensorFlow graph, with the pixels of the pydicom reader.

The stored values come from tensorflow-io (DCMTK), everything after from `kxray.io.tone`, as one gather. Films
that DCMTK would change on the way (it inverts MONOCHROME1 off by one, applies modality LUTs, blends overlays
and padding) or that it decodes leniently are left to pydicom, film by film.
"""

import os

import numpy as np
import tensorflow as tf
from pydicom.dataset import Dataset

from kxray.io.dicom import apply_tone, check_pixel_data, header_facts, read_header
from kxray.io.film import Film, FilmError
from kxray.io.read import decode, read_file, sniff
from kxray.io.tone import tone_table

# Those on which DCMTK returned the stored values of pydicom for every film tried and refused damaged data. On
# RLE and JPEG lossless it returns a wrong picture of a truncated film, so those are pydicom's.
_SYNTAXES = {
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.1",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.91",
}


def why_not_in_graph(header: Dataset) -> str:
    """Why tensorflow-io must not decode a film of this header, or "" where it may."""
    syntax = header.file_meta.TransferSyntaxUID
    if str(syntax) not in _SYNTAXES:
        return f"transfer syntax {syntax.name}"
    if header.PhotometricInterpretation != "MONOCHROME2" or header.get("PresentationLUTShape") == "INVERSE":
        return "inverted polarity"
    if header.PixelRepresentation:
        return "signed pixels"
    if "ModalityLUTSequence" in header:
        return "a modality LUT"
    slope, intercept = header.get("RescaleSlope"), header.get("RescaleIntercept")
    if float(1 if slope is None else slope) != 1 or float(intercept or 0) != 0:
        return "a rescale"
    if "PixelPaddingValue" in header:
        return "pixel padding"
    if any(element.tag.group & 0xFF00 == 0x6000 for element in header):
        return "an overlay"
    if not header.get("BitsStored", 0) > 8:
        return "8-bit pixels"
    return ""


def accepts(path) -> bool:
    """True where tensorflow-io may decode this file. Anything that is not such a film is False."""
    try:
        data = read_file(os.fspath(path))
        return (
            sniff(data) == "dicom"
            and data[128:132] == b"DICM"
            and not why_not_in_graph(read_header(data, ""))
        )
    except (FilmError, ValueError, TypeError, AttributeError):
        return False


def decode_dicom_in_graph(contents, name="<film>"):
    """Decodes the bytes of one DICOM film in a graph, for `tf.data.Dataset.map`.

    Args:
        contents: scalar string tensor, a DICOM file.
        name: scalar string tensor or str, what errors call the film.

    Returns:
        float32 (H, W) in [0, 1], as `kxray.read_image(...).pixels`.

    Raises:
        tf.errors.InvalidArgumentError: when run on a film that cannot be read; the message ends with the
            sentence of its FilmError.
    """
    table = tf.numpy_function(_table_or_nothing, [contents], tf.float32, stateful=False)
    table.set_shape([None])

    def in_graph():
        stored = _stored_values(contents)
        tf.debugging.assert_less(tf.reduce_max(stored), tf.size(table), "stored values exceed BitsStored")
        return tf.gather(table, stored)

    def in_python():
        pixels, sentence = tf.numpy_function(_decode_in_python, [contents, name], [tf.float32, tf.string])
        with tf.control_dependencies([tf.debugging.Assert(tf.equal(sentence, ""), [sentence])]):
            return tf.identity(pixels)

    pixels = tf.cond(tf.size(table) > 0, in_graph, in_python)
    return tf.ensure_shape(pixels, [None, None])


def read_image_with_tensorflow_io(path_or_bytes) -> Film:
    """As `kxray.read_image`, with the pixels of acceptable DICOM films decoded by tensorflow-io."""
    from_bytes = isinstance(path_or_bytes, (bytes, bytearray, memoryview))
    name = f"<{len(path_or_bytes)} bytes>" if from_bytes else os.fspath(path_or_bytes)
    data = bytes(path_or_bytes) if from_bytes else read_file(name)
    if sniff(data) != "dicom" or data[128:132] != b"DICM":
        return decode(data, name)
    try:
        header = read_header(data, name, with_pixels=True)
        if why_not_in_graph(header):
            return decode(data, name)
        check_pixel_data(header, name)
        tone = tone_table(header, name)
        stored = _stored_values(tf.constant(data)).numpy()
    except (FilmError, tf.errors.OpError):
        return decode(data, name)  # pydicom either reads it or says why not
    if stored.shape != (header.Rows, header.Columns):
        return decode(data, name)
    pixels = apply_tone(stored, header, tone, name)
    return Film(
        pixels, int(header.BitsStored), {**header_facts(header), **tone.facts, "reader": "tensorflow-io"}
    )


def _stored_values(contents):
    import tensorflow_io as tfio

    frames = tfio.image.decode_dicom_image(
        contents, color_dim=False, on_error="strict", scale="preserve", dtype=tf.uint16
    )
    return tf.cast(frames[0, :, :, 0], tf.int32)


def _table_or_nothing(contents):
    """The tone table of a film that tensorflow-io may decode, and an empty one where it must not."""
    nothing = np.zeros(0, np.float32)
    try:
        if contents[128:132] != b"DICM":
            return nothing
        header = read_header(contents, "", with_pixels=True)
        if why_not_in_graph(header):
            return nothing
        check_pixel_data(header, "")
        return tone_table(header, "").values
    except Exception:  # whatever is wrong with it, the pydicom reader has the sentence for it
        return nothing


def _decode_in_python(contents, name):
    name = name.decode() if isinstance(name, bytes) else str(name)
    try:
        return decode(contents, name).pixels, b""
    except FilmError as error:
        return np.zeros((1, 1), np.float32), str(error).encode()
