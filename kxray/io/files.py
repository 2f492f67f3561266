"""Files that are written whole or not at all."""

import contextlib
import os
import re
import tempfile
from pathlib import Path


@contextlib.contextmanager
def replacing(path):
    """Gives a temporary name beside `path` to write to, which takes its place if the block succeeds.

    A program that is killed leaves the old file, or none; a reader never sees half of the new one.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    try:
        yield Path(temporary)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def write_whole(path, content) -> None:
    """Writes bytes, or text as UTF-8, through `replacing`; line ends are left as they are."""
    with replacing(path) as temporary:
        temporary.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))


def read_npz(path, names, what) -> dict:
    """The arrays of an .npz by name, without pickles.

    Args:
        path: the file.
        names: of the arrays that are read.
        what: the file holds, in words for the error.

    Raises:
        ValueError: no such file, none of numpy's archives, a damaged one, or one without these arrays.
    """
    import numpy as np

    try:
        # Opened here: numpy leaves a damaged file open.
        with open(path, "rb") as file:
            stored = np.load(file, allow_pickle=False)
            if not hasattr(stored, "files"):
                raise ValueError("one array, not an archive of several")
            with stored:
                return {name: stored[name] for name in names}
    except Exception as error:
        # A damaged archive raises whatever zipfile, zlib and the tokenizer that numpy reads headers with come
        # upon, and MemoryError where it asks for more than there is.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: not a readable {what} ({reason}); make it again") from None


def check_exportable(folder) -> None:
    """Raises ValueError for a place that TensorFlow cannot write a SavedModel to.

    It takes its own files' names for patterns, and finds none of them where a folder's name looks like one.
    """
    found = re.search(r"[][*?\\]", str(folder))
    if found:
        raise ValueError(
            f"{folder}: TensorFlow writes no SavedModel below a folder with {found[0]!r} in its name; choose "
            "another place"
        )
