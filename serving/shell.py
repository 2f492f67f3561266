"""What the programs of this folder share: one-line errors and a silent import of TensorFlow."""

import contextlib
import os

_GPU_DRIVERS = "/dev/nvidiactl", "/dev/dxg"


def one_line(error) -> str:
    """The error's text on one line; a failed file operation as `name: reason`."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


@contextlib.contextmanager
def silent_stderr():
    """Sends the process's standard error nowhere, native libraries' included."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed: silent already
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def import_tensorflow_quietly() -> None:
    """Imports TensorFlow without its start-up messages; warnings stay off after that, errors do not.

    Raises:
        ImportError: it cannot be imported.
    """
    # TensorFlow reads this once, at import, and writes its first messages before it does.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with silent_stderr():
        import tensorflow as tf

        # Python's side of it: advice about retracing, for one, where several methods are traced one by one.
        tf.get_logger().setLevel("ERROR")
        # Looking for a GPU fails with an error message where there is none; it stays where there is one.
        if not any(map(os.path.exists, _GPU_DRIVERS)):
            tf.config.list_physical_devices()
