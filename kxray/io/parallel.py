"""Many films at once: decoded by threads or by worker processes, in order, in bounded memory.

The decoders that pydicom calls hold Python's interpreter lock, all of them: two threads decode DICOM no
faster than one, while Pillow releases the lock (benchmarks/dicom.py). So DICOM goes to worker processes.
These are started without `multiprocessing`, which would import the caller's main program, and with it
TensorFlow, into every worker.
"""

import collections
import concurrent.futures
import contextlib
import itertools
import os
import pickle
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator

from kxray.io.film import FilmError
from kxray.io.read import read_image, sniff
from kxray.io.readers import choose_dicom_reader
from kxray.io.worker import NotImportable, WorkerProcess

MODES = ("auto", "threads", "processes")
# A worker takes about half a second to start: below this many DICOM films threads are done earlier.
_FEW = 8


def read_films(
    paths: Iterable,
    *,
    transform: Callable | None = None,
    workers: int | None = None,
    mode: str = "auto",
    dicom_reader: str = "auto",
) -> Iterator:
    """Reads films in parallel and yields them in the order of `paths`.

    At most `2 * workers` films are held at a time, so any number of films streams.

    Args:
        paths: films as `kxray.read_image` takes them; may be a generator, it is read as far as needed.
        transform: optional function of a `Film`, run where the film was decoded; its result is yielded in the
            film's place. In worker processes it is imported by name, with its module; a function that cannot
            be (a lambda, one of the main program) runs in this process instead.
        workers: films decoded at the same time; the cores of this machine by default.
        mode: "threads", "processes", or "auto": processes where there are more than a few DICOM films.
        dicom_reader: "auto", "pydicom" or "tensorflow-io", see `choose_dicom_reader`. tensorflow-io decodes
            without the interpreter lock, in threads of this process.

    Yields:
        (index, result): result is the Film, or what `transform` made of it, or the FilmError that says why it
        cannot be read. A bad film never stops the others.

    Raises:
        ValueError: an unknown mode or reader, or workers below 1.
        Exception: whatever `transform` raises.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    if workers is None:
        workers = available_cores()
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    paths = iter(paths)
    first = list(itertools.islice(paths, 2 * _FEW))
    reader = choose_dicom_reader(dicom_reader, first)
    if mode == "auto":
        mode = "processes" if reader == "pydicom" and _many_dicom(first) else "threads"
    return _in_order(itertools.chain(first, paths), transform, workers, mode, reader)


def read_ahead(items: Generator, count: int) -> Iterator:
    """Yields what `items` yields, up to `count` of them made ahead of time by a thread of its own.

    The thread ends when `items` does, or soon after the iterator is closed or dropped.

    Raises:
        Exception: whatever `items` raises, in its place.
    """
    made, closing = queue.Queue(count), threading.Event()

    def offer(item):
        while not closing.is_set():
            with contextlib.suppress(queue.Full):
                made.put(item, timeout=0.1)
                return True
        return False

    def make():
        try:
            with contextlib.closing(items):
                for item in items:
                    if not offer((item, None)):
                        return
        except BaseException as error:
            offer((None, error))
        else:
            offer((None, StopIteration()))

    threading.Thread(target=make, name="kxray-ahead", daemon=True).start()
    try:
        while True:
            item, error = made.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item
    finally:
        closing.set()


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _in_order(paths, transform, workers, mode, reader):
    with contextlib.ExitStack() as stack:
        executor = concurrent.futures.ThreadPoolExecutor(workers, thread_name_prefix="kxray-film")
        # Unwound in the other order: first the worker processes end, which frees the threads that wait for
        # them.
        stack.callback(executor.shutdown, wait=True, cancel_futures=True)
        if mode == "processes":
            read = stack.enter_context(_process_pool(workers, transform))
        else:
            read = _thread_reader(transform, reader)
        pending = collections.deque()
        paths = enumerate(paths)
        while True:
            for index, path in itertools.islice(paths, 2 * workers - len(pending)):
                pending.append((index, executor.submit(read, path)))
            if not pending:
                return
            index, future = pending.popleft()
            yield index, future.result()
            del future


def _thread_reader(transform, reader):
    read_one = read_image
    if reader == "tensorflow-io":
        from kxray.io.graph import read_image_with_tensorflow_io as read_one

    def read(path):
        try:
            film = read_one(path)
            return film if transform is None else transform(film)
        except FilmError as error:
            return error

    return read


@contextlib.contextmanager
def _process_pool(workers, transform):
    """Yields a function that reads one film in whichever worker process is idle."""
    in_worker = _importable(transform)
    idle, started, closing = queue.SimpleQueue(), [], threading.Event()
    for _ in range(workers):
        idle.put(None)

    def start():
        nonlocal in_worker
        try:
            return WorkerProcess(transform if in_worker else None)
        except NotImportable:
            in_worker = False
            return WorkerProcess(None)

    def read(path):
        worker = idle.get()
        try:
            if closing.is_set():
                raise concurrent.futures.CancelledError
            if worker is None or not worker.alive:
                worker = start()
                started.append(worker)
                if closing.is_set():
                    worker.close()
            result = worker.read(path)
        finally:
            idle.put(worker)
        if transform is not None and not in_worker and not isinstance(result, FilmError):
            try:
                return transform(result)
            except FilmError as error:
                return error
        return result

    try:
        yield read
    finally:
        closing.set()
        for worker in list(started):
            worker.close()


def _importable(transform):
    if transform is None:
        return True
    try:
        pickled = pickle.dumps(transform)
    except Exception:  # lambdas, closures, objects with locks: pickle raises whatever it likes
        return False
    return b"__main__" not in pickled  # the workers have another main program


def _many_dicom(paths):
    """True where the first films hold DICOM and are more than a few."""
    if len(paths) <= _FEW:
        return False
    return any(_is_dicom(path) for path in paths)


def _is_dicom(path):
    if isinstance(path, (bytes, bytearray, memoryview)):
        return sniff(bytes(path[:132])) == "dicom"
    if not os.path.isfile(path):
        return False
    try:
        with open(path, "rb") as file:
            return sniff(file.read(132)) == "dicom"
    except (OSError, ValueError, TypeError):
        return False
