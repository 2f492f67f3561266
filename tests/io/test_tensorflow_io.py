"""tensorflow-io in the graph gives the pixels of the pydicom reader, or leaves the film to it."""

import numpy as np
import pytest

from kxray.io import FilmError, choose_dicom_reader, read_films, read_image
from kxray.io.readers import why_no_tensorflow_io

pytestmark = pytest.mark.tensorflow_io


@pytest.fixture(scope="module", autouse=True)
def graph():
    reason = why_no_tensorflow_io()
    if reason:
        pytest.skip(f"{reason}; pip install -e '.[tensorflow-io]'")
    import kxray.io.graph

    return kxray.io.graph


@pytest.fixture(scope="module")
def paths(real_data):
    paths = sorted((real_data / "dicom").glob("*.dcm"))
    if not paths:
        pytest.skip("no DICOM films")
    return paths


ACCEPTED = {f"{stem}_{syntax}.dcm" for stem in ("RG2", "XA1") for syntax in ("UNC", "J2KR", "JLSL")} | {
    "RG2_J2KI.dcm",
    "pl_NM_Kakadu44_CR_hand.dcm",
}


def outcome(read, path):
    try:
        return read(path)
    except FilmError as error:
        return str(error)


@pytest.mark.real_data
def test_every_film_equals_the_pydicom_reader(graph, paths):
    assert choose_dicom_reader("tensorflow-io", paths) == "tensorflow-io"
    assert {path.name for path in paths if graph.accepts(path)} == ACCEPTED
    for path in paths:
        mine, reference = outcome(graph.read_image_with_tensorflow_io, path), outcome(read_image, path)
        if isinstance(reference, str):
            assert mine == reference
            continue
        np.testing.assert_array_equal(mine.pixels, reference.pixels)
        assert mine.bits == reference.bits
        assert mine.facts.get("reader") == ("tensorflow-io" if path.name in ACCEPTED else None)
        assert reference.facts.items() <= mine.facts.items()


@pytest.mark.real_data
def test_inside_tf_data(graph, paths):
    import tensorflow as tf

    readable = [str(path) for path in paths if not isinstance(outcome(read_image, path), str)]
    films = tf.data.Dataset.from_tensor_slices(readable).map(
        lambda path: graph.decode_dicom_in_graph(tf.io.read_file(path), path), num_parallel_calls=2
    )
    assert films.element_spec == tf.TensorSpec([None, None], tf.float32)
    for path, pixels in zip(readable, films, strict=True):
        np.testing.assert_array_equal(pixels.numpy(), read_image(path).pixels)


@pytest.mark.real_data
def test_a_refused_film_says_why_inside_tf_data(graph, paths):
    import tensorflow as tf

    path = next(str(path) for path in paths if path.name == "pl_966.dcm")
    films = tf.data.Dataset.from_tensors(path).map(
        lambda path: graph.decode_dicom_in_graph(tf.io.read_file(path), path)
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match="pl_966.dcm: JPEG 2000 .* damaged pixel data"):
        next(iter(films))


@pytest.mark.real_data
def test_in_parallel_threads(paths):
    for index, film in read_films(paths, dicom_reader="tensorflow-io", workers=2):
        reference = outcome(read_image, paths[index])
        if isinstance(reference, str):
            assert str(film) == reference
        else:
            np.testing.assert_array_equal(film.pixels, reference.pixels)


def test_other_formats_pass_through(graph):
    from kxray.io import encode_png16

    data = encode_png16(np.full((3, 4), 0.5, np.float32))
    np.testing.assert_array_equal(graph.read_image_with_tensorflow_io(data).pixels, read_image(data).pixels)
    assert not graph.accepts("missing.dcm")
