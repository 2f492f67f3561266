"""A folder of films, explained: every film its overlay, maps and row, whatever happens in between."""

import csv
import json
import os
import shutil
import signal
import time

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import kxray
from kxray.io import encode_png16
from kxray.io.map_png import decode_map_png16, encode_map_png16
from kxray.layers import LayerRelevance
from training.explain import find, main

SIDE = 40
SQUARE = (slice(10, 18), slice(24, 32))


def tiny_model():
    """Two stages whose features are known: the film itself, and its mean over 4 x 4 pixels.

    The class "bright" counts brightness in both, "dark" misses it.
    """
    film = keras.Input((SIDE, SIDE, 1))
    fine = keras.layers.Conv2D(1, 1, use_bias=False, name="fine_convolution")(film)
    coarse = keras.layers.Conv2D(1, 4, strides=4, use_bias=False, name="coarse_convolution")(fine)
    votes = [
        keras.layers.Dense(2, name=f"logits_{name}")(keras.layers.GlobalAveragePooling2D()(features))
        for name, features in (("fine", fine), ("coarse", coarse))
    ]
    combined = LayerRelevance(name="layer_relevance")(votes)
    model = keras.Model(film, keras.layers.Activation("softmax")(combined))
    model.get_layer("fine_convolution").set_weights([np.ones((1, 1, 1, 1))])
    model.get_layer("coarse_convolution").set_weights([np.full((4, 4, 1, 1), 1 / 16)])
    for name in ("fine", "coarse"):
        model.get_layer(f"logits_{name}").set_weights([np.array([[-3.0, 3.0]]), np.array([0.3, 0.0])])
    return model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    folder.mkdir()
    tiny_model().save(folder / "model.keras")
    spec = kxray.ModelSpec("tiny", ("dark", "bright"), "multiclass", (SIDE, SIDE))
    (folder / "spec.json").write_text(spec.to_json())
    return folder


@pytest.fixture
def films(tmp_path):
    """Seven films, two of them of one name, each with a bright square; the last is twice as large."""
    folder = tmp_path / "films"
    (folder / "a").mkdir(parents=True)
    (folder / "b").mkdir()
    random = np.random.default_rng(0)
    for index, name in enumerate(("a/film.png", "b/film.png", "b/film.jpg", "1.png", "2.png", "3.png")):
        pixels = random.uniform(0, 0.1, (SIDE, SIDE)).astype("float32")
        pixels[SQUARE] = 0.4 + 0.1 * index
        if name.endswith("jpg"):
            Image.fromarray(np.round(pixels * 255).astype("uint8")).save(folder / name, quality=95)
        else:
            (folder / name).write_bytes(encode_png16(pixels))
    (folder / "large.png").write_bytes(encode_png16(np.kron(pixels, np.ones((2, 2), "float32"))))
    return folder


def explain(*arguments):
    result = CliRunner().invoke(main, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def rows_of(out):
    with open(out / "explained.csv", newline="") as file:
        return {os.path.relpath(out / row["path"], out.parent / "films"): row for row in csv.DictReader(file)}


def picture(path):
    with Image.open(path) as opened:
        return np.asarray(opened)


def files_of(out):
    return {
        str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()
    }


def test_every_film_has_its_files_and_its_row(run, films, tmp_path):
    out = tmp_path / "out"
    told = explain("--run", run, "--data", films, "--out", out, "--target", "bright", "--batch-size", 3)
    assert told.exit_code == 0, told.output
    assert "7 films explained with multiscale_cam" in told.output and "index.html" in told.output
    rows = rows_of(out)
    assert sorted(rows) == sorted(
        ["a/film.png", "b/film.png", "b/film.jpg", "1.png", "2.png", "3.png", "large.png"]
    )
    assert len({row["overlay"] for row in rows.values()}) == 7
    assert not (out / "scores.json").exists()
    for name, row in rows.items():
        with np.load(out / row["arrays"]) as arrays:
            heatmap, stage_maps, weights = (
                arrays[key] for key in ("heatmap", "stage_maps", "relevance_weights")
            )
            assert arrays["stage_names"].tolist() == ["fine", "coarse"] and str(arrays["label"]) == "bright"
            assert arrays["labels"].tolist() == ["dark", "bright"]
            assert float(row["probability_bright"]) == np.float32(arrays["probabilities"][1])
        assert heatmap.dtype == np.float32 and heatmap.shape == (SIDE, SIDE)
        np.testing.assert_allclose(np.einsum("s,shw->hw", weights, stage_maps), heatmap, atol=1e-5)
        # The features are the film, so the map is largest in its square, with a value that is known inside.
        y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
        assert SQUARE[0].start <= y < SQUARE[0].stop and SQUARE[1].start <= x < SQUARE[1].stop
        pixels = kxray.read_image(films / name).pixels
        assert heatmap.max() == pytest.approx(3 * pixels.max(), rel=0.05)
        assert picture(out / row["overlay"]).shape == (*pixels.shape, 3)
        undone = decode_map_png16(out / row["map_png"])
        assert np.abs(undone - heatmap).max() <= 0.5001 * float(row["png_scale"])
        assert float(row["png_offset"]) == pytest.approx(heatmap.min()) == float(row["map_min"])
        assert float(row["map_max"]) == pytest.approx(heatmap.max())
    red, green, blue = picture(out / rows["3.png"]["overlay"])[14, 28].astype(int)
    assert red > blue + 50 and red > green + 50


def test_the_map_against_is_the_other_sign(run, films, tmp_path):
    for target in ("dark", "bright"):
        assert not explain(
            "--run", run, "--data", films, "--out", tmp_path / target, "--target", target
        ).exit_code
    maps = [np.load(tmp_path / target / "maps" / "1.png.npz")["heatmap"] for target in ("dark", "bright")]
    np.testing.assert_allclose(maps[0], -maps[1], atol=1e-5)
    page = (tmp_path / "dark" / "index.html").read_text()
    assert page.count("<figure") == 7 and "overlays/a/film.png.png" in page


def test_interrupted_and_resumed_is_as_if_never_interrupted(run, films, tmp_path, monkeypatch):
    from training import explain as program

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    arguments = ("--run", run, "--data", films, "--batch-size", 2)
    assert explain(*arguments, "--out", whole).exit_code == 0
    written, write = [], program._written

    def failing(explanation, spec, film, out, name):
        written.append(name)
        if len(written) in (2, 5, 8):
            # Killed: between two files of a film, with half of another and half of a row on disk.
            (out / "maps" / ".leftover-1a2b3c4d.png").write_bytes(b"half")
            if (out / "explained.csv.part").exists():
                with open(out / "explained.csv.part", "a") as table:
                    table.write("../films/3.png,,")
            raise KeyboardInterrupt
        return write(explanation, spec, film, out, name)

    monkeypatch.setattr(program, "_written", failing)
    for _ in range(3):
        assert explain(*arguments, "--out", broken).exit_code == 130
        assert not (broken / "explained.csv").exists()
    assert explain(*arguments, "--out", broken).exit_code == 0
    one, other = files_of(whole), files_of(broken)
    # How many rows there were at the start is the one thing that the note remembers.
    assert one.pop("explained.json") and other.pop("explained.json")
    one["index.html"], other["index.html"] = (
        page["index.html"].replace(b"whole", b"").replace(b"broken", b"") for page in (one, other)
    )
    assert one == other
    done = len(written)
    assert explain(*arguments, "--out", broken).exit_code == 0
    assert len(written) == done, "nothing is explained twice"
    (broken / "overlays" / "1.png.png").unlink()
    shutil.copy(films / "1.png", films / "new.png")
    assert explain(*arguments, "--out", broken).exit_code == 0
    assert written[done:] == ["1.png", "new.png"] and len(rows_of(broken)) == 8


@pytest.mark.slow
def test_a_killed_process_is_continued(run, films, tmp_path, start_program, run_program):
    out = tmp_path / "out"
    for index in range(300):
        shutil.copy(films / "1.png", films / f"copy-{index}.png")
    arguments = ("-m", "training.explain", "--run", run, "--data", films, "--out", out, "--batch-size", 4)
    process = start_program(*arguments)
    deadline = time.monotonic() + 120
    while not list(out.glob("maps/copy-2*.npz")) and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (out / "explained.csv.part").exists() and not (out / "explained.csv").exists()
    assert run_program(*arguments).code == 0
    assert len(rows_of(out)) == 307
    assert {path.name[0] for path in out.rglob("*")}.isdisjoint(".")


def test_films_with_masks_are_scored(run, tmp_path):
    folder = tmp_path / "films"
    folder.mkdir()
    lines = ["path,patient_id,label,masks"]
    for index, (inside, named) in enumerate(((True, True), (False, True), (True, False))):
        pixels = np.full((SIDE, SIDE), 0.05, "float32")
        pixels[SQUARE] = 0.9
        mask = np.zeros((SIDE, SIDE), "uint8")
        mask[SQUARE if inside else (slice(0, 5), slice(0, 5))] = 255
        (folder / f"{index}.png").write_bytes(encode_png16(pixels))
        Image.fromarray(mask).save(folder / f"mask-{index}.png")
        cell = json.dumps({"bone": f"mask-{index}.png"}).replace('"', '""') if named else ""
        lines.append(f'{index}.png,P{index},bright,"{cell}"')
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    out = tmp_path / "out"
    told = explain("--run", run, "--data", folder, "--out", out, "--target", "true")
    assert told.exit_code == 0 and "pointing game 0.500" in told.output, told.output
    rows = rows_of(out)
    assert [rows[f"{index}.png"]["pointing_game"] for index in range(3)] == ["1", "0", ""]
    assert float(rows["0.png"]["iou_at_half"]) == pytest.approx(1, abs=0.05)
    square, film = 0.9 * 64, 0.05 * (SIDE**2 - 64)
    # The coarse stage smears the square's edge over its neighbours.
    assert 0.75 < float(rows["0.png"]["mass_inside"]) / (square / (square + film)) < 1
    scores = json.loads((out / "scores.json").read_text())
    assert scores["films_scored"] == 2 and scores["films_without_mask"] == 1 and scores["patients"] == 2
    assert scores["pointing_game"]["value"] == 0.5 and "95% intervals" in scores["conditions"]
    assert scores["by_explained_label"]["bright"]["films"] == 2
    # Maps of the other class point away from the square.
    away = explain("--run", run, "--data", folder, "--out", tmp_path / "away", "--target", "dark")
    assert "pointing game 0.000" in away.output


def test_overlays_are_no_films(run, films, tmp_path):
    for name in ("one", "two"):
        told = explain("--run", run, "--data", films, "--out", films / name)
        assert told.exit_code == 0 and ": 7 films explained" in told.output


def test_boxes_and_labels_of_a_manifest_are_found(run, films, tmp_path):
    spec = kxray.ModelSpec.read(run / "spec.json")
    (films / "manifest.csv").write_text(
        "path,patient_id,label,calibre,boxes\n"
        '1.png,P,bone,bright,"[{""finding"": ""bone"", ""x"": 24, ""y"": 10, ""width"": 8, ""height"": 8}]"\n'
        "2.png,Q,none,dark,\n"
    )
    table = find(films, spec, tmp_path / "out")
    assert list(table["label"]) == ["bright", "dark"] and table.attrs["folder"] == str(films)
    out = tmp_path / "out"
    assert not explain("--run", run, "--data", films, "--out", out, "--target", "true").exit_code
    rows = rows_of(out)
    assert rows["1.png"]["pointing_game"] == "1" and rows["2.png"]["pointing_game"] == ""
    assert float(rows["1.png"]["iou_at_half"]) == pytest.approx(1, abs=0.05)
    assert [rows[name]["explained_label"] for name in ("1.png", "2.png")] == ["bright", "dark"]


def test_a_bad_film_stops_or_is_left_out(run, films, tmp_path):
    (films / "2.png").write_bytes(b"")
    out = tmp_path / "out"
    told = explain("--run", run, "--data", films, "--out", out, "--batch-size", 2)
    assert told.exit_code == 2 and "2.png" in told.output and "--skip-bad" in told.output
    assert told.output.count("\n") == 1
    told = explain("--run", run, "--data", films, "--out", out, "--batch-size", 2, "--skip-bad")
    assert told.exit_code == 0 and "6 films explained" in told.output and "1 could not" in told.output
    assert rows_of(out)["2.png"]["reason"] and not rows_of(out)["2.png"]["overlay"]
    shutil.copy(films / "1.png", films / "2.png")
    assert explain("--run", run, "--data", films, "--out", out).exit_code == 0
    assert not rows_of(out)["2.png"]["reason"]


def test_grad_cam_of_a_one_unit_model_turns_its_sign(films, tmp_path):
    film = keras.Input((SIDE, SIDE, 1))
    x = keras.layers.Conv2D(1, 1, use_bias=False)(film)
    x = keras.layers.Dense(1, activation="sigmoid")(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(film, x)
    model.set_weights([np.ones((1, 1, 1, 1)), np.ones((1, 1)), np.zeros(1)])
    folder = tmp_path / "run"
    folder.mkdir()
    model.save(folder / "model.keras")
    spec = kxray.ModelSpec("tiny", ("dark", "bright"), "binary", (SIDE, SIDE))
    (folder / "spec.json").write_text(spec.to_json())
    maps = {}
    for target in spec.labels:
        out = tmp_path / target
        told = explain(
            "--run", folder, "--data", films, "--out", out, "--method", "grad_cam", "--target", target
        )
        assert told.exit_code == 0, told.output
        maps[target] = np.load(out / "maps" / "1.png.npz")["heatmap"]
        assert rows_of(out)["1.png"]["predicted"] == "bright"
    assert maps["bright"].max() > 0
    np.testing.assert_array_equal(maps["bright"], -maps["dark"])
    told = explain("--run", folder, "--data", films, "--out", tmp_path / "suits")
    assert told.exit_code == 0 and "explained with grad_cam" in told.output
    told = explain("--run", folder, "--data", films, "--out", tmp_path / "none", "--method", "multiscale_cam")
    assert told.exit_code == 2 and "needs one LayerRelevance layer" in told.output
    assert not (tmp_path / "none").exists()


def test_wrong_use_is_told_before_any_film_is_read(run, films, tmp_path, monkeypatch):
    from kxray.data import pipeline

    monkeypatch.setattr(pipeline, "stream_inputs", None)
    good = {"--run": run, "--data": films, "--out": tmp_path / "out"}
    for changed, sentence in (
        ({"--run": tmp_path / "absent"}, "no such file or folder (--run)"),
        ({"--data": tmp_path / "absent"}, "no such file or folder (--data)"),
        ({"--run": films}, "trained model model.keras is missing"),
        ({"--method": "tea_leaves"}, "unknown method 'tea_leaves'; the known ones are: "),
        ({"--target": "grey"}, "unknown target 'grey'; expected predicted, true or one of the labels: dark"),
        ({"--out": run / "spec.json"}, "is a file; --out names a folder"),
    ):
        told = explain(*[part for pair in {**good, **changed}.items() for part in pair])
        assert told.exit_code == 2 and sentence in told.output and told.output.count("\n") == 1, told.output
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty").mkdir()
    told = explain("--run", run, "--data", tmp_path / "empty", "--out", tmp_path / "out")
    assert told.exit_code == 2 and "no films" in told.output


def test_another_model_or_method_does_not_write_into_the_same_folder(run, films, tmp_path):
    arguments = ("--run", run, "--data", films, "--out", tmp_path / "out")
    assert explain(*arguments).exit_code == 0
    before = files_of(tmp_path / "out")
    told = explain(*arguments, "--method", "grad_cam", "--target", "dark")
    assert told.exit_code == 2 and "begun with another method and target" in told.output
    assert files_of(tmp_path / "out") == before


def test_help_comes_without_tensorflow(run_program):
    told = run_program("-X", "importtime", "-m", "training.explain", "--help")
    assert told.code == 0 and "scores.json" in told.text
    assert "| tensorflow\n" not in told.text and " keras\n" not in told.text


def test_a_map_comes_back_from_its_png():
    heatmap = np.array([[-3.0, 0.25], [1e-3, 7.0]], "float32")
    undone = decode_map_png16(encode_map_png16(heatmap))
    np.testing.assert_allclose(undone, heatmap, atol=0.5001 * 10 / 65535)
    assert undone[0, 0] == -3 and undone[1, 1] == pytest.approx(7)
    np.testing.assert_array_equal(
        decode_map_png16(encode_map_png16(np.full((2, 3), -1.5))), np.full((2, 3), -1.5)
    )
    with pytest.raises(ValueError, match="not finite"):
        encode_map_png16(np.array([[np.nan]]))
    with pytest.raises(ValueError, match="scale and offset"):
        decode_map_png16(encode_png16(np.zeros((4, 4))))
