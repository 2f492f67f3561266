"""Features of films: computed once, found again, never trusted when damaged."""

import concurrent.futures
import dataclasses
import json
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers

from kxray.data import features, pipeline
from kxray.io import encode_png16
from kxray.layers import RandomAffine
from kxray.spec import ModelSpec

SPEC = ModelSpec("transfer", ("bone", "no_bone"), "multiclass", (12, 10))


def network(scale=1.0):
    """Features by hand: the mean of the film and its upper left pixel, each times `scale`."""
    film = keras.Input((12, 10, 1))
    mean = layers.GlobalAveragePooling2D()(film)
    corner = layers.Flatten()(layers.Cropping2D(((0, 11), (0, 9)))(film))
    joined = layers.Concatenate()([mean, corner])
    return keras.Model(film, layers.Rescaling(scale)(joined))


@pytest.fixture
def paths(tmp_path):
    random = np.random.default_rng(5)
    (tmp_path / "films").mkdir()
    made = [tmp_path / "films" / f"{index}.png" for index in range(7)]
    for path in made:
        path.write_bytes(encode_png16(random.random((24, 20)).astype("float32")))
    return made


@pytest.fixture
def inputs(paths):
    return pipeline.load_inputs(paths, SPEC)


@pytest.fixture
def load(inputs, tmp_path):
    def run(inputs=inputs, network=network(), **options):  # noqa: B008
        return features.load_features(inputs, network, tmp_path / "cache", **options)

    return run


def test_features_are_the_networks_and_are_found_again(load, inputs, monkeypatch):
    told = []
    first = load(on_film=told.append, batch_size=3)
    pixels = inputs.pixels
    by_hand = np.stack([pixels.mean(axis=(1, 2, 3)), pixels[:, 0, 0, 0]], axis=1)
    np.testing.assert_allclose(first.values[:, 0], by_hand, atol=1e-6)
    assert first.values.shape == (7, 1, 2) and told == [3, 6, 7] and not first.found
    monkeypatch.setattr(features, "_fill", lambda *arguments: pytest.fail("nothing is computed"))
    again = load()
    assert again.found and again.notes == () and isinstance(again.values, np.memmap)
    np.testing.assert_array_equal(first.values, again.values)
    assert again.bytes_on_disk == sum(path.stat().st_size for path in again.path.parent.iterdir())
    assert again.bytes_on_disk < 7 * 2 * 4 + 1000


def test_features_are_batched_as_films_are(load, inputs):
    plain = load().plain

    def targets_of(inputs):
        dataset = pipeline.training_batches(
            inputs, np.arange(7)[:, None], np.ones(7), np.arange(7), batch_size=3, seed=4
        )
        return [[part.numpy() for part in batch] for batch in dataset.take(5)]

    for (values, targets, _), (_, others, _) in zip(targets_of(plain), targets_of(inputs), strict=True):
        np.testing.assert_array_equal(targets, others)
        np.testing.assert_array_equal(values, plain.pixels[targets[:, 0].astype(int)])


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("truncated", "damaged"),
        ("flipped", "its checksum is wrong"),
        ("no description", "half written"),
        ("no array", "half written"),
        ("broken description", "damaged"),
        ("other facts", "of other films or of another network"),
        ("other shape", "float32 (7, 2, 1), not float32 (7, 1, 2)"),
        ("emptied", "damaged"),
    ],
)
def test_a_damaged_cache_is_made_anew_and_says_so(load, change, word):
    first = load()
    values, path, description = np.array(first.values), first.path, first.path.with_suffix(".json")
    content = path.read_bytes()
    del first
    if change == "truncated":
        path.write_bytes(content[:-5])
    elif change == "flipped":
        path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    elif change == "no description":
        description.unlink()
    elif change == "no array":
        path.unlink()
    elif change == "broken description":
        description.write_text(description.read_text()[:40])
    elif change == "other facts":
        kept = json.loads(description.read_text())
        kept["facts"]["films"] = "0"
        description.write_text(json.dumps(kept))
    elif change == "other shape":
        np.save(path, values.reshape(7, 2, 1))
    else:
        path.write_bytes(b"")
    again = load()
    assert not again.found and len(again.notes) == 1 and word in again.notes[0], again.notes
    np.testing.assert_array_equal(again.values, values)
    assert load().found


def test_the_key_is_of_bytes_network_size_and_views_and_of_nothing_else(load, inputs, paths, tmp_path):
    first = load().path
    # Moved films are the same films.
    moved = tmp_path / "moved"
    (tmp_path / "films").rename(moved)
    same = pipeline.load_inputs([moved / path.name for path in paths], SPEC)
    assert load(same).path == first and load(same).found
    # A network that is built again is the same network, whatever its layers are called now.
    assert load(same, network()).path == first
    others = [
        load(same, network(2.0)).path,
        load(pipeline.load_inputs([moved / path.name for path in paths[::-1]], SPEC)).path,
        load(same, views=features.augmented_views([RandomAffine()], 1, 0)).path,
        load(same, views=features.augmented_views([RandomAffine()], 1, 1)).path,
        load(same, views=features.augmented_views([RandomAffine(zoom=0.3)], 1, 0)).path,
        load(same, views=features.augmented_views([RandomAffine()], 2, 0)).path,
    ]
    (moved / "0.png").write_bytes(encode_png16(np.zeros((24, 20), np.float32)))
    others.append(load(pipeline.load_inputs([moved / path.name for path in paths], SPEC)).path)
    assert len({first, *others}) == 8
    kept = json.loads(first.with_suffix(".json").read_text())
    assert set(kept["facts"]) == {
        *("format", "films", "image_size", "pixel_rule", "network", "views", "shape")
    }


def test_a_weight_and_a_number_format_are_part_of_the_network():
    film = keras.Input((4, 4, 1))
    model = keras.Model(film, layers.GlobalAveragePooling2D()(layers.Conv2D(3, 3, name="a")(film)))
    before = features.network_digest(model)
    model.layers[1].trainable = False
    assert features.network_digest(model) == before
    half = layers.Conv2D(3, 3, dtype="mixed_bfloat16")
    other = keras.Model(film, layers.GlobalAveragePooling2D()(half(film)))
    half.set_weights(model.layers[1].get_weights())
    assert features.network_digest(other) != before
    kernel, bias = model.layers[1].get_weights()
    kernel[0, 0, 0, 0] += 1e-3
    model.layers[1].set_weights([kernel, bias])
    assert features.network_digest(model) != before


def test_augmented_views_depend_on_seed_number_and_position_alone(load, inputs):
    def views(count=3, seed=0):
        return features.augmented_views([RandomAffine()], count, seed)

    values = load(views=views(), batch_size=7).values
    assert values.shape == (7, 4, 2)
    np.testing.assert_array_equal(values[:, 0], load().values[:, 0])
    apart = np.abs(values[:, :, None] - values[:, None]).max(axis=-1) + np.eye(4)
    assert apart.min() > 1e-5, "every view is another one"
    one_by_one = np.stack(
        [
            [np.asarray(view)[0] for view in views().of(inputs.pixels[index : index + 1], [index])]
            for index in range(7)
        ]
    )
    together = np.stack([np.asarray(view) for view in views().of(inputs.pixels, np.arange(7))], axis=1)
    np.testing.assert_allclose(one_by_one, together, atol=1e-6)
    assert features.augmented_views([RandomAffine()], 0, 0) is features.PLAIN
    with pytest.raises(ValueError, match="0 augmented views or more, got -1"):
        views(-1)


def test_a_view_is_picked_for_each_film():
    views = np.arange(24, dtype="float32").reshape(3, 4, 2)
    picked = features.PickView()(views, np.float32([[0.0], [0.5], [0.9999]]))
    np.testing.assert_array_equal(picked, [views[0, 0], views[1, 2], views[2, 3]])


def test_unreadable_films_have_no_features(paths, load):
    paths[2].write_bytes(b"")
    inputs = pipeline.load_inputs(paths, SPEC)
    loaded = load(inputs)
    assert not loaded.values[2].any() and (loaded.values[[0, 1, 3]] != 0).all()
    decoded = pipeline.load_inputs(paths, SPEC, cache="none")
    decoded = dataclasses.replace(decoded, errors=inputs.errors)
    assert load(decoded).found


def test_several_processes_share_a_folder(paths, tmp_path):
    code = """
        import sys
        sys.path.insert(0, sys.argv[1])
        from test_features import SPEC, network
        from kxray.data import features, pipeline
        inputs = pipeline.load_inputs(sys.argv[3:], SPEC)
        print(features.load_features(inputs, network(), sys.argv[2]).values.sum())
    """
    import textwrap
    from pathlib import Path

    command = [
        sys.executable,
        "-c",
        textwrap.dedent(code),
        str(Path(__file__).parent),
        str(tmp_path / "cache"),
    ]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        answers = list(
            pool.map(
                lambda _: subprocess.run([*command, *map(str, paths)], capture_output=True, text=True),
                range(2),
            )
        )
    assert all(answer.returncode == 0 for answer in answers), answers
    assert len({answer.stdout for answer in answers}) == 1
    assert sorted(path.suffix for path in (tmp_path / "cache").iterdir()) == [".json", ".npy"]


def test_what_a_killed_process_left_is_removed(load, tmp_path):
    path = load().path
    path.with_suffix(".json").unlink()
    mine = pipeline.unfinished_name(path)
    leftover = mine.with_name(mine.name.replace(f".{os.getpid()}-", ".999999999-"))
    leftover.write_bytes(path.read_bytes()[:50])
    again = load()
    assert "half written" in again.notes[0] and not leftover.exists()


def test_what_another_machine_is_writing_stays(load, monkeypatch):
    path = load().path
    path.with_suffix(".json").unlink()
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr("socket.gethostname", lambda: "elsewhere")
        # Its process has a number that no process has here, or that of another one.
        theirs = pipeline.unfinished_name(path)
        theirs = theirs.with_name(theirs.name.replace(f".{os.getpid()}-", ".999999999-"))
    old, own = theirs.with_name(theirs.name.replace(".npy", "0.npy")), pipeline.unfinished_name(path)
    for file in (theirs, old, own):
        file.write_bytes(b"half")
    os.utime(old, (0, 0))
    load()
    assert theirs.exists() and own.exists() and not old.exists()
    assert own != pipeline.unfinished_name(path), "two caches of one process"


def test_a_failed_computation_leaves_nothing(load, tmp_path):
    with pytest.raises(RuntimeError, match="stop"):
        load(on_film=lambda done: (_ for _ in ()).throw(RuntimeError("stop")))
    assert not list((tmp_path / "cache").iterdir())
    with pytest.raises(ValueError, match="not finite numbers"):
        load(network=network(np.inf))
    film = keras.Input((12, 10, 1))
    with pytest.raises(ValueError, match=r"expected one output \(N, F\)"):
        load(network=keras.Model(film, layers.Conv2D(2, 3)(film)))
