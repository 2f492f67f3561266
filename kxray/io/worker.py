"""One worker process that decodes films, and the handle by which its owner talks to it.

Requests and short answers go through pipes; pixels through an anonymous shared file, which vanishes with
the last process that holds it. A worker ends when its pipe closes or its parent is gone, so none outlives a
parent that was killed.
"""

import contextlib
import json
import os
import pickle
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings

import numpy as np

from kxray.io.film import FilmError

# glibc would give the memory of every film back to the system and have it zeroed again for the next one.
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**28), "MALLOC_TRIM_THRESHOLD_": str(2**29)}
_LENGTH = struct.Struct("<Q")
_READY = "ready"
_NOT_IMPORTABLE = "the transform cannot be imported"
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from kxray.io.worker import serve; serve()"


class NotImportable(Exception):
    """The transform cannot be imported in a worker process."""


class WorkerProcess:
    """A started worker. Used by one thread at a time.

    Args:
        transform: function of a Film, importable by name, run in the worker; or None.

    Raises:
        NotImportable: the worker cannot import the transform.
        RuntimeError: the worker did not start.
    """

    def __init__(self, transform=None):
        self._shared = _anonymous_file()
        folders = json.dumps([str(folder) for folder in sys.path])
        command = [sys.executable, "-c", _START, folders, str(self._shared), str(os.getpid())]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(self._shared,),
            env={**_KEEP_MEMORY, **os.environ},
        )
        self.alive = True
        self._using = threading.RLock()
        try:
            _send(self._process.stdin, transform)
            answer = _receive(self._process.stdout)
        except (OSError, EOFError):
            answer = f"it ended with status {self._process.wait()}"
        if answer == _NOT_IMPORTABLE:
            self.close()
            raise NotImportable
        if answer != _READY:
            self.close()
            raise RuntimeError(f"a film-reading worker process did not start: {answer}")

    def read(self, path):
        """The film, what the transform made of it, or the FilmError of a film that cannot be read.

        Raises whatever the transform raised.
        """
        with self._using:
            try:
                _send(self._process.stdin, path)
                kind, pickled, sizes = _receive(self._process.stdout)
                buffers = self._buffers(sizes)
            except (OSError, EOFError, ValueError):  # ValueError: closed by another thread
                self.close()
                return _lost(path, self._process.wait())
        result = pickle.loads(pickled, buffers=buffers)
        if kind == "raised":
            raise result
        return result

    def close(self):
        """Ends the worker at once. Safe to call twice and from another thread."""
        self.alive = False
        self._process.kill()  # before the lock: it frees a thread that waits for an answer
        with self._using:
            if self._shared is None:
                return
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                with contextlib.suppress(OSError):
                    pipe.close()
            os.close(self._shared)
            self._shared = None

    def _buffers(self, sizes):
        buffers, offset = [], 0
        for size in sizes:
            buffer = np.empty(size, np.uint8)  # a bytearray would be zeroed first
            _whole(lambda view, at: os.preadv(self._shared, [view], at), memoryview(buffer), offset)
            buffers.append(buffer)
            offset += size
        return buffers


def serve() -> None:
    """Main function of the worker process: answers requests until its owner is gone."""
    shared, parent = int(sys.argv[2]), int(sys.argv[3])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the owner's to handle
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not mix with the answers
    warnings.filterwarnings("ignore", module="pydicom")  # remarks on odd headers, once a worker and file
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    try:
        _serve(requests, answers, shared)
    except (EOFError, BrokenPipeError):
        pass
    os._exit(0)


def _serve(requests, answers, shared):
    from kxray.io.read import read_image

    try:
        transform = _receive(requests)
    except EOFError:
        raise
    except Exception:  # whatever importing somebody's module raises
        _send(answers, _NOT_IMPORTABLE)
        return
    _send(answers, _READY)
    while True:
        path = _receive(requests)
        kind = "film"
        try:
            result = read_image(path)
            if transform is not None:
                result = transform(result)
        except FilmError as error:
            result = error
        except Exception as error:
            kind, result = "raised", error
        _answer(answers, shared, kind, result)


def _answer(answers, shared, kind, result):
    buffers = []
    try:
        pickled = pickle.dumps(result, protocol=5, buffer_callback=buffers.append)
        if kind == "raised":
            pickle.loads(pickled)
    except Exception as error:
        kind, buffers = "raised", []
        pickled = pickle.dumps(
            RuntimeError(f"{type(result).__name__} does not pickle ({error}): {result!s:.300}")
        )
    views = [buffer.raw() for buffer in buffers]
    offset = 0
    for view in views:
        _whole(lambda part, at: os.pwrite(shared, part, at), view, offset)
        offset += view.nbytes
    _send(answers, (kind, pickled, [view.nbytes for view in views]))


def _lost(path, status):
    name = path if isinstance(path, str) else f"<{len(path)} bytes>" if isinstance(path, bytes) else str(path)
    how = f"signal {-status}" if status < 0 else f"status {status}"
    return FilmError(name, f"decoding it ended its worker process ({how})", "the file is damaged")


def _end_with(parent):
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _whole(transfer, view, offset):
    """Repeats a read or write at `offset` until all of `view` is done (one call moves at most 2 GiB)."""
    done = 0
    while done < view.nbytes:
        moved = transfer(view[done:], offset + done)
        if moved <= 0:
            raise EOFError("the shared file ends early")
        done += moved


def _anonymous_file():
    if hasattr(os, "memfd_create"):
        return os.memfd_create("kxray-films")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _send(pipe, message):
    pickled = pickle.dumps(message)
    pipe.write(_LENGTH.pack(len(pickled)) + pickled)
    pipe.flush()


def _receive(pipe):
    header = pipe.read(_LENGTH.size)
    if len(header) < _LENGTH.size:
        raise EOFError
    (length,) = _LENGTH.unpack(header)
    pickled = pipe.read(length)
    if len(pickled) < length:
        raise EOFError
    return pickle.loads(pickled)
