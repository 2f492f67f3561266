"""What a frozen network makes of films: computed once, kept on disk, read by every training of a head."""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kxray.data.audit import file_digests
from kxray.data.pipeline import ArrayInputs, NetworkInputs, remove_leftovers, unfinished_name
from kxray.io.files import write_whole

_FORMAT = 1
_BATCH = 32


@dataclass(frozen=True)
class Views:
    """The versions of every film that a network sees.

    Args:
        count: how many.
        facts: JSON values that tell these views from any others.
        of: function (float32 (B, h, w, 1), positions of these films) -> `count` arrays of that shape.
    """

    count: int
    facts: dict
    of: Callable


PLAIN = Views(1, {"views": "plain"}, lambda pixels, positions: [pixels])


def augmented_views(augment, count, seed) -> Views:
    """Every film as it is, and `count` augmented versions of it.

    What a version looks like is a function of the seed, its number and the film's position alone.

    Args:
        augment: layers with `num_draws` and `call(images, draws=)`, applied in order.
        count: augmented versions a film, 0 or more.
        seed: int.
    """
    if count < 0:
        raise ValueError(f"expected 0 augmented views or more, got {count}")
    if not count:
        return PLAIN
    layers = [[type(layer).__name__, _essence(layer)] for layer in augment]

    def of(pixels, positions):
        import tensorflow as tf

        numbers = [layer.num_draws for layer in augment]
        uniform = tf.random.stateless_uniform
        draws = np.stack([uniform((count, sum(numbers)), seed=(seed, position)) for position in positions])
        yield pixels
        for number in range(count):
            view, own = pixels, np.split(draws[:, number], np.cumsum(numbers)[:-1], axis=1)
            for layer, its_draws in zip(augment, own, strict=True):
                view = layer(view, draws=its_draws)
            yield view

    return Views(1 + count, {"views": "augmented", "count": count, "seed": seed, "layers": layers}, of)


@dataclass(frozen=True)
class Features:
    """What a network made of films.

    Args:
        values: float32 (N, V, F), memory-mapped: features of V views of N films, the first as they are.
        path: its file.
        found: whether it was there already.
        notes: what a reader should know, such as a damaged file that was made anew.
    """

    values: np.ndarray
    path: Path
    found: bool
    notes: tuple[str, ...]

    @property
    def plain(self) -> ArrayInputs:
        """The films as they are, float32 (N, F), to be batched by `kxray.data.pipeline`."""
        return ArrayInputs(self.values[:, 0])

    @property
    def views(self) -> ArrayInputs:
        """All views, float32 (N, V, F); `PickView` chooses one a film."""
        return ArrayInputs(self.values)

    @property
    def bytes_on_disk(self) -> int:
        return self.path.stat().st_size + self.path.with_suffix(".json").stat().st_size


class PickView:
    """One of the V views of each film, as an augmentation of `kxray.data.pipeline.training_batches`."""

    num_draws = 1

    def __call__(self, views, draws):
        """Float32 (B, V, F) and draws (B, 1) in [0, 1) -> (B, F)."""
        import tensorflow as tf

        count = tf.shape(views)[1]
        chosen = tf.minimum(tf.cast(draws[:, 0] * tf.cast(count, tf.float32), tf.int32), count - 1)
        return tf.gather(views, chosen, batch_dims=1)


def load_features(
    inputs: NetworkInputs, network, folder, *, views=PLAIN, on_film=None, batch_size=_BATCH
) -> Features:
    """The features of films, computed or found.

    They are kept in `folder` as `<key>.npy` beside `<key>.json`, which holds what the key is made of and the
    array's checksum. The key is of the films' bytes in their order, of how they become network input, of the
    network (every layer's settings, which hold the preprocessing and the number format, and every weight),
    and of the views. Nothing about labels is in it. Files that are damaged or half written are made anew;
    several processes may use one folder.

    Args:
        inputs: the films; features of the unreadable ones are zeros.
        network: keras.Model from films (N, h, w, 1) to features (N, F); it is run in inference mode.
        folder: of the cache.
        views: `PLAIN`, or see `augmented_views`.
        on_film: called as on_film(number of films done).
        batch_size: films a step.

    Raises:
        ValueError: a network that gives no (N, F).
        OSError: a folder that cannot be written to.
    """
    if len(network.outputs) != 1 or len(network.outputs[0].shape) != 2:
        raise ValueError(
            "features are vectors: expected one output (N, F), got "
            f"{[tuple(output.shape) for output in network.outputs]}"
        )
    width = network.outputs[0].shape[-1]
    facts = {
        "format": _FORMAT,
        "films": _films_digest(inputs),
        "image_size": list(inputs.spec.image_size),
        "pixel_rule": inputs.spec.pixel_rule,
        "network": network_digest(network),
        "views": views.facts,
        "shape": [len(inputs), views.count, width],
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    path = Path(folder) / f"{key}.npy"
    values, problem = _found(path, facts)
    if values is not None:
        if on_film is not None:
            on_film(len(inputs))
        return Features(values, path, True, ())
    notes = () if problem is None else (f"cached features {path.name}: {problem}; they were computed anew",)
    return Features(_computed(inputs, network, path, facts, views, on_film, batch_size), path, False, notes)


def network_digest(network) -> str:
    """SHA-256, hexadecimal, of a network's layers, their settings and weights; not of layers' names."""
    digest = hashlib.sha256()
    for layer in network.layers:
        settings = json.dumps([type(layer).__name__, _essence(layer)], sort_keys=True, default=str)
        digest.update(settings.encode())
        for value in layer.get_weights():
            value = np.ascontiguousarray(value)
            digest.update(f"{value.shape} {value.dtype}".encode())
            digest.update(value.view(np.uint8))
    return digest.hexdigest()


def _essence(layer):
    """A layer's settings without those that change nothing about its output in inference mode."""
    config = layer.get_config()
    config["dtype"] = layer.dtype_policy.name
    foreign = ("name", "trainable", "momentum", "seed", "batch_shape")
    return {
        name: value
        for name, value in config.items()
        if name not in foreign and not name.endswith(("_initializer", "_regularizer", "_constraint"))
    }


def _films_digest(inputs):
    readable = [path for index, path in enumerate(inputs.paths) if index not in inputs.errors]
    digests = iter(file_digests(readable))
    lines = ["unreadable" if index in inputs.errors else next(digests) for index in range(len(inputs.paths))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _found(path, facts):
    """(values, None), or (None, what is wrong with what was found), or (None, None) where nothing is."""
    written = path.with_suffix(".json")
    if not path.exists() and not written.exists():
        return None, None
    try:
        kept = json.loads(written.read_text(encoding="utf-8"))
        if kept["facts"] != facts:
            return None, "its description is of other films or of another network"
        values = np.load(path, mmap_mode="r")
        if list(values.shape) != facts["shape"] or values.dtype != np.float32:
            return None, f"its array is {values.dtype} {values.shape}, not float32 {tuple(facts['shape'])}"
        if _checksum(values) != kept["sha256"]:
            return None, "its checksum is wrong"
    except FileNotFoundError:
        return None, "it was left half written"
    except (ValueError, KeyError, TypeError, EOFError, OSError) as error:
        return None, f"it is damaged ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
    return values, None


def _checksum(values):
    digest = hashlib.sha256()
    for start in range(0, len(values), 256):
        digest.update(np.ascontiguousarray(values[start : start + 256]).view(np.uint8))
    return digest.hexdigest()


def _computed(inputs, network, path, facts, views, on_film, batch_size):
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    unfinished = unfinished_name(path)
    try:
        shape = tuple(facts["shape"])
        values = np.lib.format.open_memmap(unfinished, mode="w+", dtype=np.float32, shape=shape)
        _fill(values, inputs, network, views, on_film, batch_size)
        values.flush()
        # Another process may have been faster, or put its own, equally good, array there any time now.
        found, _ = _found(path, facts)
        if found is not None:
            return found
        values = np.load(unfinished, mmap_mode="r")
        # Files are told to be whole by their description, which therefore comes last.
        path.with_suffix(".json").unlink(missing_ok=True)
        os.replace(unfinished, path)
        described = json.dumps({"facts": facts, "sha256": _checksum(values)}, indent=2)
        write_whole(path.with_suffix(".json"), described + "\n")
        return values
    finally:
        unfinished.unlink(missing_ok=True)


def _fill(values, inputs, network, views, on_film, batch_size):
    import tensorflow as tf

    signature = [tf.TensorSpec([None, *inputs.shape], tf.float32)]
    forward = tf.function(lambda pixels: network(pixels, training=False), input_signature=signature)
    readable = np.array([index for index in range(len(inputs)) if index not in inputs.errors], dtype=int)
    done = 0
    for pixels in inputs.batches(readable, batch_size):
        positions = readable[done : done + len(pixels)]
        for number, view in enumerate(views.of(pixels, positions)):
            values[positions, number] = forward(tf.convert_to_tensor(view, tf.float32)).numpy()
        done += len(pixels)
        if on_film is not None:
            on_film(done)
    if not np.isfinite(values[readable]).all():
        raise ValueError("the network gives features that are not finite numbers for some films")
