"""From film files to batches: decode, resize once, keep, augment on the batch, prefetch."""

import contextlib
import functools
import hashlib
import json
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kxray.io import FilmError, read_films
from kxray.io.film import MIN_SIDE
from kxray.io.parallel import read_ahead
from kxray.io.resize import resize
from kxray.spec import ModelSpec

CACHES = ("memory", "disk", "none")
# A file that another machine has not written to for so long is of a process that was killed.
_ABANDONED_SECONDS = 3600


def stream_inputs(
    paths, spec: ModelSpec, *, measure=None, workers=None, dicom_reader="auto", min_side=MIN_SIDE
) -> Iterator:
    """Decodes films in parallel and brings each to network input, in order and in bounded memory.

    Args:
        paths: film files of any mix of formats.
        spec: its `pixel_rule` and `image_size` say what the network takes.
        measure: optional function of a film's full pixels (H, W), called once a film.
        workers: decoding workers; one a core by default.
        dicom_reader: "auto", "pydicom" or "tensorflow-io", see `kxray.io.read_films`.
        min_side: a film with a shorter side in pixels is refused.

    Yields:
        (index, result): result is float32 (h, w, 1), or the pair of it and what `measure`
        returned, or a FilmError where the film cannot be read. One unreadable film never stops the stream.
    """
    # Run where the film was decoded, be it a thread or another process.
    transform = functools.partial(
        _network_input, image_size=spec.image_size, measure=measure, min_side=min_side
    )
    paths = list(paths)
    for index, result in read_films(paths, transform=transform, workers=workers, dicom_reader=dicom_reader):
        if isinstance(result, str):
            result = FilmError(str(paths[index]), result)
        yield index, result


def _network_input(film, image_size, measure, min_side):
    if min(film.pixels.shape) < min_side:
        height, width = film.pixels.shape
        return f"{height} x {width} pixels are too few; this model takes films of {min_side} a side and more"
    pixels = resize(film.pixels, image_size)[..., None]
    return pixels if measure is None else (pixels, measure(film.pixels))


@dataclass(frozen=True)
class NetworkInputs:
    """Films as the network sees them.

    Args:
        paths: the film files, in order.
        spec: what the network takes.
        pixels: float32 (N, h, w, 1), in memory or memory-mapped; None where films are decoded at every use.
        errors: position of each unreadable film and what is wrong with it; its pixels are zeros.
        stream: the arguments with which films are decoded again.
    """

    paths: tuple[str, ...]
    spec: ModelSpec
    pixels: np.ndarray | None
    errors: dict[int, str]
    stream: dict

    def __len__(self):
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one film."""
        return (*self.spec.image_size, 1)

    def batches(self, indices, batch_size) -> Iterator[np.ndarray]:
        """Yields float32 (up to batch_size, h, w, 1) in the order of `indices`. Raises FilmError."""
        indices = np.asarray(indices)
        if self.pixels is None:
            yield from self._decoded_batches(indices, batch_size)
        else:
            yield from ArrayInputs(self.pixels).batches(indices, batch_size)

    def _decoded_batches(self, indices, batch_size):
        batch = []
        for _, pixels in stream_inputs([self.paths[index] for index in indices], self.spec, **self.stream):
            if isinstance(pixels, FilmError):
                raise pixels
            batch.append(pixels)
            if len(batch) == batch_size:
                yield np.stack(batch)
                batch = []
        if batch:
            yield np.stack(batch)


@dataclass(frozen=True)
class ArrayInputs:
    """Films as anything else that was computed of them, such as features; it is batched as films are.

    Args:
        pixels: float32 (N, ...), in memory or memory-mapped.
    """

    pixels: np.ndarray

    def __len__(self):
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one film."""
        return self.pixels.shape[1:]

    def batches(self, indices, batch_size) -> Iterator[np.ndarray]:
        """Yields float32 (up to batch_size, ...) in the order of `indices`."""
        indices = np.asarray(indices)
        for start in range(0, len(indices), batch_size):
            yield np.asarray(self.pixels[indices[start : start + batch_size]])


def load_inputs(
    paths, spec: ModelSpec, *, cache="memory", cache_dir=None, measure=None, on_film=None, **stream
) -> NetworkInputs:
    """Decodes every film once and keeps what the network needs of it.

    Args:
        paths: film files.
        spec: what the network takes.
        cache: "memory" keeps float32 inputs in memory, "disk" in a memory-mapped file under `cache_dir` that
            later runs on the same films reuse, "none" keeps nothing and decodes at every use.
        cache_dir: folder of the disk cache.
        measure: optional function of a film's full pixels (H, W).
        on_film: called as on_film(index, what measure returned) after each film that was read, with None
            for an unreadable one; not called at all where a disk cache spares the reading.
        **stream: `workers`, `dicom_reader`, `min_side` of `stream_inputs`.

    Returns:
        NetworkInputs; unreadable films are in its `errors`.

    Raises:
        ValueError: an unknown cache, or films that do not fit in memory.
    """
    paths = tuple(str(path) for path in paths)
    shape = (len(paths), *spec.image_size, 1)
    if cache not in CACHES:
        raise ValueError(f"cache must be one of {', '.join(CACHES)}, got {cache!r}")
    kept = None
    if cache == "memory":
        _check_memory(shape)
        pixels = np.zeros(shape, np.float32)
    elif cache == "disk":
        if cache_dir is None:
            raise ValueError("cache='disk' needs a cache_dir")
        kept = Path(cache_dir) / f"{_cache_key(paths, spec)}.npy"
        if kept.exists():
            errors = json.loads(kept.with_suffix(".json").read_text())
            errors = {int(index): error for index, error in errors.items()}
            return NetworkInputs(paths, spec, np.load(kept, mmap_mode="r"), errors, stream)
        kept.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(kept)
        unfinished = unfinished_name(kept)
        pixels = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float32, shape=shape)
    else:
        pixels = None
    errors = {}
    for index, result in stream_inputs(paths, spec, measure=measure, **stream):
        measured = None
        if isinstance(result, FilmError):
            errors[index] = str(result)
        else:
            network_input, measured = result if measure is not None else (result, None)
            if pixels is not None:
                pixels[index] = network_input
        if on_film is not None:
            on_film(index, measured)
    if kept is not None:
        pixels.flush()
        kept.with_suffix(".json").write_text(json.dumps(errors))
        os.replace(unfinished, kept)
        pixels = np.load(kept, mmap_mode="r")
    return NetworkInputs(paths, spec, pixels, errors, stream)


def unread_inputs(paths, spec: ModelSpec, **stream) -> NetworkInputs:
    """Films that are decoded at every use, none of which is read now: any number of them is ready at once.

    Args:
        paths: film files; an unreadable one is found, and named in a FilmError, when its batch is asked for.
        spec: what the network takes.
        **stream: `workers`, `dicom_reader`, `min_side` of `stream_inputs`.
    """
    return NetworkInputs(tuple(map(str, paths)), spec, None, {}, stream)


def film_error(error) -> FilmError | None:
    """What FilmError a TensorFlow error says that reading a batch ended in; None where it was another one."""
    found = re.search(r"FilmError: (.+)", str(error))
    name, _, problem = found[1].partition(": ") if found else ("", "", "")
    return FilmError(name, problem) if found else None


def _check_memory(shape):
    needed = 4 * int(np.prod(shape, dtype=np.int64))
    free = _available_memory()
    if free is not None and needed > free / 2:
        raise ValueError(
            f"{shape[0]} films need {needed / 2**30:.1f} GiB in memory and {free / 2**30:.1f} GiB are free; "
            "use cache='disk' (--cache disk)"
        )


def _available_memory() -> int | None:
    """Bytes that can be used without swapping, or None where the system does not say."""
    try:
        # What Linux would give back of its file cache counts; free pages alone run low on any busy machine.
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return 1024 * int(fields["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return None


def unfinished_name(kept) -> Path:
    """What this process calls a cache while it writes it; no process has that name, on whatever machine."""
    return kept.with_name(f".{kept.stem}.{_here()}.{os.getpid()}-{secrets.token_hex(4)}.npy")


def remove_leftovers(kept) -> None:
    """Removes what processes that were killed while they wrote this cache have left.

    Those of this machine that live no more; of other machines, which may share the folder, only files that
    nobody has written to for an hour.
    """
    for leftover in kept.parent.glob(f".{kept.stem}.*.npy"):
        name, _, process = leftover.stem.rpartition(".")
        with contextlib.suppress(FileNotFoundError):
            if name == f".{kept.stem}.{_here()}":
                dead = not Path("/proc", process.partition("-")[0]).exists()
            else:
                dead = time.time() - leftover.stat().st_mtime > _ABANDONED_SECONDS
            if dead:
                leftover.unlink()


def _here() -> str:
    """This machine and its numbering of processes, of which every container has its own."""
    numbering = ""
    with contextlib.suppress(OSError):
        numbering = os.readlink("/proc/self/ns/pid")
    # Without it nothing says which processes live, and no other process has this name.
    return re.sub("[^A-Za-z0-9]+", "-", f"{socket.gethostname()} {numbering or secrets.token_hex(4)}")


def _cache_key(paths, spec):
    """Names a cache by what it was made of: files (path, size, time), input size and pixel rule."""
    digest = hashlib.sha256(repr((spec.image_size, spec.pixel_rule)).encode())
    for path in paths:
        try:
            status = os.stat(path)
            version = f"{status.st_size}\0{status.st_mtime_ns}"
        except OSError:
            version = "unreadable"
        digest.update(f"{os.path.abspath(path)}\0{version}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def training_batches(
    inputs: NetworkInputs | ArrayInputs,
    labels,
    weights,
    indices,
    *,
    batch_size,
    seed,
    augment=(),
    first_epoch=0,
    replicas=1,
    boxes=None,
):
    """An endless dataset of shuffled, augmented batches that is a function of (seed, epoch, step) alone.

    So a run that resumes at epoch e sees exactly the batches that an uninterrupted one would have seen.

    Args:
        inputs: the films.
        labels: float32 (N, units), the targets of all films of `inputs`.
        weights: float32 (N,), the weight of each film in the loss.
        indices: int, the films to train on; every epoch visits each once.
        batch_size: films a batch; the last batch of an epoch may be smaller.
        seed: int.
        augment: layers with `num_draws` and `call(images, draws=)`, such as `kxray.layers.RandomAffine`,
            applied in order. With boxes they need `move_boxes(boxes, draws, height, width)` as well, also
            those that leave everything in its place.
        first_epoch: where to start.
        replicas: devices that share each batch. A batch that does not divide among them is filled up with
            films of weight 0, and its other weights are raised so that its mean loss stays what it was.
        boxes: float32 (N, K, 4): up to K boxes a film, x, y, width, height in shares of its sides, NaN for
            none. They move as their films do, and follow the targets as 4 K more columns.

    Returns:
        tf.data.Dataset of (float32 (B, h, w, 1) or what else `inputs` holds, (B, units), (B,)),
        `steps_per_epoch` batches an epoch; with boxes the targets are (B, units + 4 K).

    Raises:
        ValueError: boxes, and a layer that does not say where it moves them.
    """
    import tensorflow as tf

    still = [type(layer).__name__ for layer in augment if not hasattr(layer, "move_boxes")]
    if boxes is not None and still:
        raise ValueError(
            f"augment: {', '.join(still)} has no move_boxes, so that boxes would stay behind as films move; "
            "add it, or train without boxes"
        )
    labels = tf.constant(np.asarray(labels, np.float32))
    weights = tf.constant(np.asarray(weights, np.float32))
    order = tf.constant(np.asarray(indices, np.int64))
    steps = steps_per_epoch(indices, batch_size)
    fetch = _fetcher(inputs, batch_size)
    if boxes is not None:
        boxes = tf.constant(np.asarray(boxes, np.float32))

    def one_epoch(epoch):
        shuffled = tf.random.experimental.stateless_shuffle(order, seed=tf.stack([seed, epoch]))
        step_indices = tf.data.Dataset.from_tensor_slices(shuffled).batch(batch_size)
        return tf.data.Dataset.zip(
            tf.data.Dataset.range(epoch * steps, (epoch + 1) * steps), fetch(step_indices)
        )

    def prepare(step, batch):
        chosen, pixels = batch
        targets = tf.gather(labels, chosen)
        placed = None if boxes is None else tf.gather(boxes, chosen)
        if augment:
            counts = [layer.num_draws for layer in augment]
            draws = tf.random.stateless_uniform(
                (tf.shape(pixels)[0], sum(counts)), seed=tf.stack([tf.cast(seed, tf.int64), step])
            )
            for layer, own_draws in zip(augment, tf.split(draws, counts, axis=1), strict=True):
                pixels = layer(pixels, draws=own_draws)
                if placed is not None:
                    placed = layer.move_boxes(placed, own_draws, *inputs.shape[:2])
        if placed is not None:
            columns = tf.reshape(placed, (tf.shape(placed)[0], 4 * boxes.shape[1]))
            targets = tf.concat([targets, columns], axis=1)
        return _shared_out((pixels, targets, tf.gather(weights, chosen)), replicas)

    epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
    return with_options(_ahead(epochs.flat_map(one_epoch), inputs, prepare, 4))


def evaluation_batches(
    inputs: NetworkInputs | ArrayInputs, labels, weights, indices, *, batch_size=128, replicas=1
):
    """A finite dataset of (pixels, labels, weights) in the order of `indices`, without augmentation.

    `replicas` is that of `training_batches`.
    """
    import tensorflow as tf

    indices = np.asarray(indices, np.int64)
    rows = tf.data.Dataset.from_tensor_slices(indices).batch(batch_size)
    labels = tf.constant(np.asarray(labels, np.float32))
    weights = tf.constant(np.asarray(weights, np.float32))

    def prepare(chosen, pixels):
        return _shared_out((pixels, tf.gather(labels, chosen), tf.gather(weights, chosen)), replicas)

    dataset = _ahead(_fetcher(inputs, batch_size)(rows), inputs, prepare, 2)
    return with_options(dataset.apply(tf.data.experimental.assert_cardinality(len(rows))))


def _ahead(dataset, inputs, prepare, batches):
    """Prepares batches, and some of them ahead of time where all films are in memory.

    Where they are not, fetching a batch runs Python. A thread of tf.data's own must not do that: if Python
    collects garbage there, and an iterator that was left half-way is part of it, the thread waits for its own
    end. Then films are decoded ahead by `read_ahead`, and batches prepared as they are asked for.
    """
    if inputs.pixels is None or isinstance(inputs.pixels, np.memmap):
        return dataset.map(prepare)
    return dataset.map(prepare, num_parallel_calls=2).prefetch(batches)


def _shared_out(batch, replicas):
    """Fills a batch up to a multiple of `replicas`.

    A device without any film fails, and one with fewer films than the others gives each of them more say.
    """
    import tensorflow as tf

    if replicas == 1:
        return batch
    films = tf.shape(batch[2])[0]
    missing = tf.math.floormod(-films, replicas)
    pixels, labels, weights = (
        tf.concat([part, tf.repeat(part[:1], missing, axis=0)], axis=0) for part in batch
    )
    counts = tf.cast(tf.range(films + missing) < films, tf.float32)
    return pixels, labels, weights * counts * tf.cast((films + missing) / films, tf.float32)


def steps_per_epoch(indices, batch_size) -> int:
    return -(-len(indices) // batch_size)


def _fetcher(inputs, batch_size):
    """Returns a function from a dataset of index batches to one of (indices, pixels)."""
    import tensorflow as tf

    shape = (None, *inputs.shape)
    if isinstance(inputs.pixels, np.memmap):

        def gather(chosen):
            pixels = tf.numpy_function(lambda rows: inputs.pixels[rows], [chosen], tf.float32)
            return chosen, tf.ensure_shape(pixels, shape)

        return lambda rows: rows.map(gather)
    if inputs.pixels is not None:
        pixels = tf.constant(inputs.pixels)
        return lambda rows: rows.map(lambda chosen: (chosen, tf.gather(pixels, chosen)))

    def stream(order):
        chosen = np.asarray(order)
        starts = range(0, len(chosen), batch_size)
        with contextlib.closing(read_ahead(inputs.batches(chosen, batch_size), 4)) as batches:
            for start, pixels in zip(starts, batches, strict=True):
                yield chosen[start : start + batch_size], pixels

    signature = (tf.TensorSpec([None], tf.int64), tf.TensorSpec(shape, tf.float32))

    def streamed(rows):
        # The whole epoch's order is handed over at once, so that decoding runs ahead of the batches.
        order = rows.unbatch().batch(np.iinfo(np.int64).max)
        return order.flat_map(
            lambda whole: tf.data.Dataset.from_generator(stream, args=(whole,), output_signature=signature)
        )

    return streamed


def with_options(dataset):
    """Every replica reads its part of each batch, files are not split between workers; nothing is autotuned.

    The autotuner's thread wakes after 10, 20, 40, ... ms, and destroying an iterator waits for it: training
    for 45 s would end after 82 s. Parallelism and prefetching are set here, so there is nothing to tune.
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.with_options(options)
