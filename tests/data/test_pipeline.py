"""Films on disk to batches: one resize, three caches with the same numbers, batches that resume exactly."""

import gc
import os
import threading
import tracemalloc

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from kxray.data import pipeline
from kxray.io import FilmError, encode_png16, read_image
from kxray.io.parallel import read_ahead
from kxray.layers import RandomAffine, RandomDihedral, RandomExposure, film_input
from kxray.spec import ModelSpec

SPEC = ModelSpec("view_cnn", ("frontal", "lateral"), "binary", (12, 10))
CACHES = pytest.mark.parametrize("cache", pipeline.CACHES)


def write_films(folder, count, shape=(30, 24)):
    """Films of noise: even ones PNG of 16 bits, odd ones of 8."""
    random = np.random.default_rng(5)
    paths = []
    for index in range(count):
        pixels = random.random(shape).astype("float32")
        path = folder / f"{index:03}.png"
        if index % 2:
            Image.fromarray(np.round(pixels * 255).astype("uint8")).save(path)
        else:
            path.write_bytes(encode_png16(pixels))
        paths.append(path)
    return paths


@pytest.fixture
def paths(tmp_path):
    return write_films(tmp_path, 11)


@pytest.fixture
def decoded(monkeypatch):
    """The paths that were decoded, in order."""
    seen = []
    real = pipeline.stream_inputs

    def counting(paths, *arguments, **options):
        paths = list(paths)
        seen.extend(map(str, paths))
        return real(paths, *arguments, **options)

    monkeypatch.setattr(pipeline, "stream_inputs", counting)
    return seen


def load(paths, cache, tmp_path, **options):
    return pipeline.load_inputs(paths, SPEC, cache=cache, cache_dir=tmp_path / "cache", **options)


def batches_of(inputs, count, *, indices=None, seed=3, augment=(), first_epoch=0, batch_size=4):
    size = len(inputs)
    indices = np.arange(size) if indices is None else indices
    dataset = pipeline.training_batches(
        inputs,
        np.arange(size)[:, None],  # a film's target is its own position
        np.arange(size) / 10,
        indices,
        batch_size=batch_size,
        seed=seed,
        augment=augment,
        first_epoch=first_epoch,
    )
    return [tuple(part.numpy() for part in batch) for batch in dataset.take(count)]


def same(first, second):
    return len(first) == len(second) and all(
        np.array_equal(a, b)
        for one, other in zip(first, second, strict=True)
        for a, b in zip(one, other, strict=True)
    )


@CACHES
def test_inputs_are_the_eager_resize_of_8_and_16_bit_films(paths, tmp_path, cache):
    inputs = load(paths, cache, tmp_path)
    (everything,) = inputs.batches(np.arange(11), 11)
    resize = film_input(SPEC)
    expected = [np.asarray(resize(read_image(path).pixels[None, :, :, None]))[0] for path in paths]
    np.testing.assert_allclose(everything, expected, atol=1e-5)
    assert everything.dtype == np.float32 and inputs.errors == {} and len(inputs) == 11


def test_three_caches_give_the_same_batches(paths, tmp_path):
    augment = RandomAffine()
    memory, disk, none = (
        batches_of(load(paths, cache, tmp_path), 7, augment=(augment,)) for cache in pipeline.CACHES
    )
    assert same(memory, disk) and same(memory, none)
    assert [len(pixels) for pixels, _, _ in memory] == [4, 4, 3, 4, 4, 3, 4]


@CACHES
def test_every_film_comes_once_an_epoch_in_another_order_each(paths, tmp_path, cache):
    indices = np.array([0, 2, 3, 5, 7, 8, 10])
    batches = batches_of(load(paths, cache, tmp_path), 6, indices=indices, batch_size=3)
    epochs = [np.concatenate([targets[:, 0] for _, targets, _ in batches[i : i + 3]]) for i in (0, 3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == indices.tolist()
    assert epochs[0].tolist() != epochs[1].tolist()
    for _, targets, weights in batches:
        np.testing.assert_allclose(weights, targets[:, 0] / 10)


@CACHES
def test_pixels_belong_to_their_targets(paths, tmp_path, cache):
    inputs = load(paths, cache, tmp_path)
    everything = np.concatenate(list(inputs.batches(np.arange(11), 4)))
    for pixels, targets, _ in batches_of(inputs, 5):
        np.testing.assert_array_equal(pixels, everything[targets[:, 0].astype(int)])
    dataset = pipeline.evaluation_batches(
        inputs, np.arange(11)[:, None], np.ones(11), [9, 1, 4], batch_size=2
    )
    for _ in range(2):  # it can be gone through again
        pixels, targets, _ = map(np.concatenate, zip(*dataset.as_numpy_iterator(), strict=True))
        assert targets[:, 0].tolist() == [9, 1, 4]
        np.testing.assert_array_equal(pixels, everything[[9, 1, 4]])
    assert dataset.cardinality() == 2


@CACHES
def test_starting_at_epoch_three_is_skipping_three(paths, tmp_path, cache):
    inputs, augment = load(paths, cache, tmp_path), RandomAffine()
    whole = batches_of(inputs, 15, augment=(augment,))
    resumed = batches_of(inputs, 6, augment=(augment,), first_epoch=3)
    assert same(whole[9:], resumed), "11 films in batches of 4 are 3 steps an epoch"
    assert pipeline.steps_per_epoch(range(11), 4) == 3


def test_batches_are_a_function_of_the_seed(paths, tmp_path):
    inputs, augment = load(paths, "memory", tmp_path), RandomAffine()
    first, again, other = (batches_of(inputs, 4, augment=(augment,), seed=seed) for seed in (1, 1, 2))
    assert same(first, again) and not same(first, other)
    assert same(batches_of(inputs, 1, seed=2**40), batches_of(inputs, 1, seed=2**40))


def test_augmentation_differs_between_films_steps_and_epochs(tmp_path):
    path = tmp_path / "film.png"
    path.write_bytes(encode_png16(np.random.default_rng(0).random((30, 24)).astype("float32")))
    inputs = load([path] * 4, "memory", tmp_path)
    batches = batches_of(inputs, 4, augment=(RandomAffine(),), batch_size=2)
    films = np.concatenate([pixels for pixels, _, _ in batches])
    distances = np.abs(films[:, None] - films[None]).max((2, 3, 4)) + np.eye(8)
    assert distances.min() > 0.05


@CACHES
def test_unreadable_films_are_reported_and_the_others_read(paths, tmp_path, cache):
    paths[3].write_bytes(b"")
    paths[6].write_text("no film")
    paths[8].unlink()
    seen = []
    inputs = load(
        paths, cache, tmp_path, measure=lambda pixels: pixels.shape, on_film=lambda *told: seen.append(told)
    )
    assert sorted(inputs.errors) == [3, 6, 8]
    assert "003.png: it is empty" in inputs.errors[3] and "there is no such file" in inputs.errors[8]
    assert seen == [(index, None if index in (3, 6, 8) else (30, 24)) for index in range(11)]
    good = np.array([0, 1, 2, 4, 5, 7, 9, 10])
    assert len(batches_of(inputs, 2, indices=good)) == 2
    if cache == "none":
        with pytest.raises(FilmError, match="003.png"):
            list(inputs.batches([0, 3], 2))


def test_a_disk_cache_spares_the_decoding(paths, tmp_path, decoded):
    first = load(paths, "disk", tmp_path)
    assert decoded == list(map(str, paths))
    again = load(paths, "disk", tmp_path, on_film=lambda *told: pytest.fail("no film is read"))
    assert len(decoded) == 11
    np.testing.assert_array_equal(first.pixels, again.pixels)
    assert isinstance(again.pixels, np.memmap) and not again.pixels.flags.writeable


def test_a_disk_cache_keeps_the_errors(paths, tmp_path, decoded):
    paths[3].write_bytes(b"")
    first = load(paths, "disk", tmp_path)
    assert load(paths, "disk", tmp_path).errors == first.errors != {}
    assert len(decoded) == 11


@pytest.mark.parametrize("change", ["content", "order", "size", "appears"])
def test_a_disk_cache_is_of_these_films_at_this_size(paths, tmp_path, decoded, change):
    late = paths[5].read_bytes()
    if change == "appears":
        paths[5].unlink()
    load(paths, "disk", tmp_path)
    spec = SPEC
    if change == "content":
        pixels = np.zeros((30, 24), "float32")
        paths[2].write_bytes(encode_png16(pixels))
    elif change == "order":
        paths = paths[::-1]
    elif change == "size":
        spec = ModelSpec("view_cnn", ("frontal", "lateral"), "binary", (10, 12))
    else:
        paths[5].write_bytes(late)
    inputs = pipeline.load_inputs(paths, spec, cache="disk", cache_dir=tmp_path / "cache")
    assert len(decoded) == 22 and inputs.errors == {}
    expected = pipeline.load_inputs(paths, spec, cache="memory").pixels
    np.testing.assert_array_equal(inputs.pixels, expected)


def test_a_disk_cache_that_was_killed_is_made_again(paths, tmp_path, monkeypatch):
    def killed(source, target):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            load(paths, "disk", tmp_path)
    left = next((tmp_path / "cache").glob(".*.npy"))
    # Of a process long dead.
    left.rename(left.with_name(left.name.replace(f".{os.getpid()}-", ".999999999-")))
    inputs = load(paths, "disk", tmp_path)
    np.testing.assert_array_equal(inputs.pixels, load(paths, "memory", tmp_path).pixels)
    assert not list((tmp_path / "cache").glob(".*")), "what the dead process left is gone"


def test_no_cache_streams_in_bounded_memory(tmp_path):
    side, count = 600, 60  # 1.4 MB a film, 86 MB in all
    path = tmp_path / "large.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side), "uint8")).save(path)
    tracemalloc.start()
    inputs = load([path] * count, "none", tmp_path, workers=2)
    assert inputs.pixels is None
    batches = batches_of(inputs, 4, batch_size=16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(batches) == 4
    assert peak < 25e6, f"{peak / 1e6:.0f} MB held of 86"


def test_films_that_do_not_fit_are_refused_before_decoding(paths, tmp_path, decoded):
    spec = ModelSpec("view_cnn", ("frontal", "lateral"), "binary", (2_000_000, 2_000_000))
    with pytest.raises(ValueError, match=r"11 films need .* GiB in memory .*--cache disk"):
        pipeline.load_inputs(paths, spec, cache="memory")
    assert decoded == []


def test_unknown_caches_and_missing_folders_are_told(paths):
    with pytest.raises(ValueError, match="cache must be one of memory, disk, none, got 'ram'"):
        pipeline.load_inputs(paths, SPEC, cache="ram")
    with pytest.raises(ValueError, match="needs a cache_dir"):
        pipeline.load_inputs(paths, SPEC, cache="disk")


def test_a_stream_stays_in_order_around_bad_films(paths):
    paths[0].write_text("no film")
    told = list(pipeline.stream_inputs(paths, SPEC, workers=3))
    assert [index for index, _ in told] == list(range(11))
    assert isinstance(told[0][1], FilmError) and told[1][1].shape == (12, 10, 1)


def test_eager_and_graph_resize_agree(paths):
    films = np.stack([read_image(path).pixels for path in paths])[..., None]
    inside = next(iter(tf.data.Dataset.from_tensors(films).map(film_input(SPEC))))
    streamed = [pixels for _, pixels in pipeline.stream_inputs(paths, SPEC)]
    np.testing.assert_allclose(inside, streamed, atol=1e-6)


def test_a_batch_is_filled_up_for_its_replicas_and_keeps_its_mean(paths, tmp_path):
    inputs = load(paths, "memory", tmp_path)
    arguments = (inputs, np.arange(11)[:, None], np.full(11, 0.5))
    (alone,) = pipeline.evaluation_batches(*arguments, [3, 7, 9], batch_size=3)
    (shared,) = pipeline.evaluation_batches(*arguments, [3, 7, 9], batch_size=3, replicas=2)
    np.testing.assert_array_equal(shared[0][:3], alone[0])
    assert shared[1][:, 0].numpy().tolist() == [3, 7, 9, 3]
    np.testing.assert_allclose(shared[2], np.array([0.5, 0.5, 0.5, 0]) * 4 / 3)
    losses = np.array([0.2, 0.4, 0.9, 0.2])
    assert np.mean(losses * shared[2]) == pytest.approx(np.mean(losses[:3] * alone[2]))
    dataset = pipeline.training_batches(*arguments, np.arange(11), batch_size=4, seed=0, replicas=4)
    assert [len(weights) for _, _, weights in dataset.take(3)] == [4, 4, 4]


def test_boxes_move_with_what_they_are_around():
    """A bright rectangle on each film, and its box: wherever the film goes, the box is around it still."""
    random, side = np.random.default_rng(2), 60
    films, boxes = np.zeros((24, side, side, 1), np.float32), np.full((24, 2, 4), np.nan, np.float32)
    for film, box in zip(films, boxes, strict=True):
        x, y, width, height = *random.integers(22, 30, 2), *random.integers(6, 12, 2)
        film[y : y + height, x : x + width] = 1
        box[0] = np.array([x, y, width, height]) / side
    motion = RandomAffine(15.0, 0.1, 0.08, 4.0, 0.2, horizontal_flip=True, dtype="float32")
    dataset = pipeline.training_batches(
        pipeline.ArrayInputs(films),
        np.arange(24)[:, None],
        np.ones(24),
        np.arange(24),
        batch_size=8,
        seed=4,
        augment=(RandomDihedral(dtype="float32"), motion),
        boxes=boxes,
    )
    for pixels, targets, _ in dataset.take(6):
        assert targets.shape[1] == 1 + 2 * 4
        for film, target in zip(pixels.numpy()[..., 0], targets.numpy(), strict=True):
            rows, columns = np.nonzero(film > 0.5)
            x, y, width, height = target[1:5] * side
            around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_allclose([x, y, x + width, y + height], around, atol=1.5)
            assert np.isnan(target[5:]).all()


def test_boxes_never_stay_behind_as_films_move():
    class Shift:
        num_draws = 1

    arguments = (
        pipeline.ArrayInputs(np.zeros((4, 8, 8, 1), "float32")),
        np.zeros((4, 1)),
        np.ones(4),
        range(4),
    )
    options = {"batch_size": 2, "seed": 0, "boxes": np.zeros((4, 1, 4))}
    with pytest.raises(ValueError, match="Shift has no move_boxes"):
        pipeline.training_batches(*arguments, **options, augment=(RandomAffine(dtype="float32"), Shift()))
    exposed = RandomExposure(dtype="float32")
    for _, targets, _ in pipeline.training_batches(*arguments, **options, augment=(exposed,)).take(1):
        assert not targets.numpy().any()


def test_films_are_the_same_with_boxes_and_without(paths, tmp_path):
    inputs = load(paths, "memory", tmp_path)
    options = {"batch_size": 4, "seed": 3, "augment": (RandomAffine(dtype="float32"),)}
    arguments = (inputs, np.zeros((len(paths), 1)), np.ones(len(paths)), np.arange(len(paths)))
    plain = pipeline.training_batches(*arguments, **options)
    boxed = pipeline.training_batches(*arguments, **options, boxes=np.zeros((len(paths), 1, 4)))
    for one, other in zip(plain.take(3), boxed.take(3), strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1][:, :1])


def test_unread_films_are_read_when_their_batch_comes(paths, tmp_path, decoded):
    unread = pipeline.unread_inputs(paths, SPEC)
    assert not decoded and len(unread) == len(paths)
    assert same(batches_of(unread, 3), batches_of(load(paths, "memory", tmp_path), 3))


def test_an_unread_film_that_cannot_be_read_is_named(paths):
    paths[5].write_bytes(b"no film")
    unread = pipeline.unread_inputs(paths, SPEC)
    with pytest.raises(tf.errors.OpError) as raised:
        batches_of(unread, 3)
    error = pipeline.film_error(raised.value)
    assert isinstance(error, FilmError) and str(error).startswith(str(paths[5]))
    assert pipeline.film_error(ValueError("something else")) is None


def test_garbage_collection_where_films_are_read_may_find_the_abandoned_dataset(paths, tmp_path, monkeypatch):
    inputs, size = load(paths, "none", tmp_path), np.arange(len(paths))
    dropped, collected, real = threading.Event(), threading.Event(), pipeline.stream_inputs

    def collecting(paths, *arguments, **options):
        for count, result in enumerate(real(paths, *arguments, **options)):
            if count == 6 and dropped.wait(20):
                gc.collect()
                collected.set()
            yield result

    monkeypatch.setattr(pipeline, "stream_inputs", collecting)
    iterator = iter(pipeline.training_batches(inputs, size[:, None], size, size, batch_size=4, seed=0))
    next(iterator)
    cycle = [iterator]
    cycle.append(cycle)
    gc.disable()
    try:
        del iterator, cycle
        dropped.set()
        assert collected.wait(20)
    finally:
        gc.enable()


def test_reading_ahead_keeps_order_ends_and_tells_errors():
    closed = []

    def numbers():
        try:
            yield from range(5)
            raise OSError("no more")
        finally:
            closed.append(True)

    ahead = read_ahead(numbers(), 2)
    assert [next(ahead) for _ in range(5)] == list(range(5))
    with pytest.raises(OSError, match="no more"):
        next(ahead)
    assert closed == [True]
    ahead = read_ahead((number for number in iter(int, 1)), 3)
    assert next(ahead) == 0
    ahead.close()
    assert list(read_ahead((number for number in range(3)), 1)) == [0, 1, 2]
