"""Which DICOM reader decodes: pydicom in worker processes, or tensorflow-io in the graph."""

import importlib.metadata
from collections.abc import Iterable

DICOM_READERS = ("auto", "pydicom", "tensorflow-io")
_PIP_LINE = "pip install -e '.[tensorflow-io]' in a clone of kxray"


def choose_dicom_reader(requested: str = "auto", paths: Iterable = ()) -> str:
    """The reader that will decode DICOM films.

    Args:
        requested: "pydicom", "tensorflow-io", or "auto". "auto" is pydicom: on every transfer syntax that it
            decodes, tensorflow-io took 1.8 to 5 times the processor time a film (benchmarks/dicom.py), and
            worker processes need no lock either.
        paths: the films, for a choice by what they are; today it does not depend on them.

    Returns:
        "pydicom" or "tensorflow-io".

    Raises:
        ValueError: an unknown reader, or tensorflow-io where it is not installed or does not load.
    """
    if requested not in DICOM_READERS:
        raise ValueError(f"dicom_reader must be one of {', '.join(DICOM_READERS)}, got {requested!r}")
    if requested != "tensorflow-io":
        return "pydicom"
    reason = why_no_tensorflow_io()
    if reason:
        raise ValueError(f"dicom_reader 'tensorflow-io' was asked for, but {reason}; {_PIP_LINE}")
    return "tensorflow-io"


def why_no_tensorflow_io() -> str:
    """Why tensorflow-io cannot be used here, or "" where it can. Imports it (and TensorFlow) only if both
    installed versions fit together."""
    try:
        version = importlib.metadata.version("tensorflow-io")
    except importlib.metadata.PackageNotFoundError:
        return "it is not installed"
    try:
        tensorflow = importlib.metadata.version("tensorflow")
    except importlib.metadata.PackageNotFoundError:
        return "TensorFlow is not installed"
    if tuple(int(part) for part in tensorflow.split(".")[:2]) >= (2, 18):
        return f"tensorflow-io {version} does not load on TensorFlow {tensorflow} (it needs 2.16 or 2.17)"
    try:
        import tensorflow_io

        tensorflow_io.image.decode_dicom_image  # noqa: B018 - resolving it loads the native library
    except Exception as error:
        return f"tensorflow-io {version} does not load ({error})"
    return ""
