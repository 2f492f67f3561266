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
