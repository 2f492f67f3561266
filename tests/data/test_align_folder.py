"""Folders of films aligned: what is written, moved, refused, and continued after a kill."""

import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest

import kxray
from kxray.data import align_folder, build_template, finding_columns, phantom, read_source, write_manifest
from kxray.data.moved_places import move_box
from kxray.data.similarity import Similarity, quad_box
from kxray.io.image import write_png16

SIDE = 96
POSE = Similarity(12, 1.1, (0.05, -0.03))


class KnownAligner:
    """Stands in for a network: tells one pose, and a confidence that is a film's brightest pixel."""

    def __init__(self, pose=POSE, shape=(48, 48)):
        self.pose, self.input_shape, self.films = pose, (None, *shape, 1), 0
        self.output = {"aligned": None, "pose": None, "confidence": None}

    def __call__(self, films):
        return self.predict_on_batch(films)

    def get_weights(self):
        return [self.pose.pose]

    def predict_on_batch(self, films):
        assert films.shape[1:] == self.input_shape[1:]
        self.films += len(films)
        brightest = films.max(axis=(1, 2, 3))
        return {"pose": np.repeat(self.pose.pose[None], len(films), 0), "confidence": brightest}


def make_films(folder, count=3, height=SIDE, width=SIDE):
    """Films with a bright square that a box and a mask tell of; table of them."""
    from PIL import Image

    (folder / "masks").mkdir(parents=True)
    rows = []
    for k in range(count):
        pixels = np.linspace(0.1, 0.5, height * width, dtype=np.float32).reshape(height, width)
        top, left = height // 2 + 2 * k, width // 2
        pixels[top : top + 12, left : left + 16] = 1
        write_png16(folder / f"{k}.png", pixels)
        mask = np.zeros((height, width), np.uint8)
        mask[top : top + 12, left : left + 16] = 255
        Image.fromarray(mask).save(folder / f"masks/{k}.png")
        box = {"finding": "Mass", "x": left, "y": top, "width": 16, "height": 12}
        rows.append({"path": str(folder / f"{k}.png"), "patient_id": f"P{k}", "view": "frontal", "Mass": 1})
        rows[-1] |= {"boxes": [box], "masks": json.dumps({"Mass": str(folder / f"masks/{k}.png")})}
        rows[-1]["rotation"] = 4.0 + k
    write_manifest(pd.DataFrame(rows), folder / "manifest.csv")
    return read_source(folder)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("shape", [(96, 96), (120, 96)])
def test_films_boxes_and_masks_move_together(tmp_path, shape):
    films = make_films(tmp_path / "films", 2, *shape)
    assert align_folder(tmp_path / "films", tmp_path / "out", KnownAligner(), size=SIDE, workers=1) == {
        "aligned": 2,
        "refused": 0,
        "boxes_left_out": 0,
    }
    aligned = read_source(tmp_path / "out")
    assert list(aligned["patient_id"]) == ["P0", "P1"] and set(aligned["Mass"]) == {1.0}
    for k, row in aligned.iterrows():
        pixels = kxray.read_image(row["path"]).pixels
        assert pixels.shape == (SIDE, SIDE)
        box = row["boxes"][0]
        bright = np.argwhere(pixels > 0.9)
        (top, left), (bottom, right) = bright.min(0), bright.max(0) + 1
        assert np.allclose(
            [left, top, right, bottom],
            [box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]],
            atol=1.6,
        )
        from kxray.data.truth import truth_mask

        mask = truth_mask(row, (SIDE, SIDE))
        overlap = (mask & (pixels > 0.75)).sum() / (mask | (pixels > 0.75)).sum()
        assert overlap > 0.85
        assert (row["rotation"], row["scale"], row["shift_x"]) == pytest.approx((12, 1.1, 0.05), abs=1e-4)
        assert row["source_rotation"] == 4.0 + k and row["aligned"] == 1
        assert (tmp_path / "out" / row["source_path"]).resolve() == (tmp_path / f"films/{k}.png").resolve()
    assert finding_columns(aligned) == ["Mass"]
    assert len(films) == 2 and (tmp_path / "out/before_after.png").stat().st_size > 1000


def test_aligned_films_are_the_films_moved(tmp_path):
    make_films(tmp_path / "films", 1)
    align_folder(tmp_path / "films", tmp_path / "out", KnownAligner(), size=SIDE, workers=1)
    before = kxray.read_image(tmp_path / "films/0.png").pixels
    after = kxray.read_image(tmp_path / "out/films/0.png").pixels
    assert np.abs(POSE.warp(before) - after).max() < 1e-4


def test_a_box_on_a_stretched_film():
    box = {"x": 20.0, "y": 60.0, "width": 10.0, "height": 30.0}
    identity = move_box(box, Similarity(), (200, 100), 100)
    assert identity == pytest.approx({"x": 20, "y": 30, "width": 10, "height": 15})
    moved = move_box(box, POSE, (200, 100), 100)
    quad = POSE.box_to_aligned({"x": 20, "y": 30, "width": 10, "height": 15}, (100, 100), (100, 100))
    assert moved == pytest.approx(quad_box(quad))
    assert move_box(box, Similarity(0, 1, (2, 0)), (200, 100), 100) is None


def test_small_boxes_stay_and_boxes_that_are_nearly_outside_go():
    tiny = {"x": 20.0, "y": 99.8, "width": 0.4, "height": 0.2}
    assert move_box(tiny, Similarity(), (100, 100), 100) == pytest.approx(
        {"x": 19.7, "y": 99, "width": 1, "height": 1}
    )
    # On a film moved by 40 pixels, a box of 10 that keeps 3, then 2, of its width.
    for left, kept in ((37.0, 7.0), (38.0, 8.0), (33.0, 3.0), (32.0, None)):
        box = {"x": left, "y": 20.0, "width": 10.0, "height": 10.0}
        moved = move_box(box, Similarity(0, 1, (0.4, 0)), (100, 100), 100)
        assert (moved is None) == (kept is None)
        assert moved is None or moved["width"] == pytest.approx(kept)


def test_what_cannot_be_aligned_is_refused_with_its_reason(tmp_path):
    films = tmp_path / "films"
    make_films(films, 1)
    table = read_source(films)
    write_png16(films / "black.png", np.zeros((SIDE, SIDE), np.float32))
    write_png16(films / "small.png", np.random.default_rng(0).random((8, 96), np.float32))
    write_png16(films / "dim.png", np.linspace(0, 0.3, SIDE**2, dtype=np.float32).reshape(SIDE, SIDE))
    (films / "torn.png").write_bytes((films / "0.png").read_bytes()[:500])
    shutil.copy(films / "0.png", films / "side.png")
    names = ("black", "small", "dim", "torn", "side", "gone")
    others = pd.DataFrame({"path": [str(films / f"{name}.png") for name in names], "patient_id": "X"})
    others["view"] = ["", "", "", "", "lateral", ""]
    counts = align_folder(
        pd.concat([table, others], ignore_index=True), tmp_path / "out", KnownAligner(), size=SIDE
    )
    assert counts == {"aligned": 1, "refused": 6, "boxes_left_out": 0}
    refused = pd.read_csv(tmp_path / "out/refused.csv")
    reasons = {
        path.rsplit("/", 1)[1][:-4]: reason
        for path, reason in zip(refused["source_path"], refused["reason"], strict=True)
    }
    expected = {
        "black": "one brightness all over",
        "small": "8 x 96 pixels are too few",
        "dim": "confidence 0.30, 0.5 is asked for",
        "torn": "truncated",
        "side": "a lateral film",
        "gone": "no such file",
    }
    assert set(reasons) == set(expected)
    for name, words in expected.items():
        assert words in reasons[name] and "\n" not in reasons[name], reasons[name]
    assert len(list((tmp_path / "out/films").iterdir())) == 1


def test_a_killed_run_is_continued_and_a_finished_one_kept(tmp_path, monkeypatch):
    from kxray.data import align

    monkeypatch.setattr(align, "CHUNK", 2)
    make_films(tmp_path / "films", 5)
    align_folder(tmp_path / "films", tmp_path / "whole", KnownAligner(), size=SIDE)

    def stop(done, total):
        assert total == 5
        if done == 4:
            raise KeyboardInterrupt

    first = KnownAligner()
    with pytest.raises(KeyboardInterrupt):
        align_folder(tmp_path / "films", tmp_path / "out", first, size=SIDE, progress=stop)
    assert first.films == 4 and not (tmp_path / "out/manifest.csv").exists()
    second = KnownAligner()
    align_folder(tmp_path / "films", tmp_path / "out", second, size=SIDE)
    assert second.films == 1
    whole, continued = contents(tmp_path / "whole"), contents(tmp_path / "out")
    assert whole.keys() == continued.keys()
    assert all(whole[name] == continued[name] for name in whole)
    third = KnownAligner()
    align_folder(tmp_path / "films", tmp_path / "out", third, size=SIDE)
    assert third.films == 0 and contents(tmp_path / "out") == whole
    (tmp_path / "out/films/3.png").unlink()
    align_folder(tmp_path / "films", tmp_path / "out", third, size=SIDE)
    assert third.films == 2 and contents(tmp_path / "out") == whole
    with pytest.raises(ValueError, match=r"aligned otherwise \(other size\)"):
        align_folder(tmp_path / "films", tmp_path / "out", KnownAligner(), size=SIDE // 2)
    with pytest.raises(ValueError, match="other aligner"):
        align_folder(tmp_path / "films", tmp_path / "out", KnownAligner(Similarity()), size=SIDE)


def test_aligned_films_are_aligned_again(tmp_path):
    make_films(tmp_path / "films", 2)
    for source, out in (("films", "once"), ("once", "twice"), ("twice", "thrice")):
        assert align_folder(tmp_path / source, tmp_path / out, KnownAligner(), size=SIDE)["aligned"] == 2
    table = read_source(tmp_path / "thrice")
    assert finding_columns(table) == ["Mass"] and table.columns.is_unique
    # What the source's source called so: the films' own rotation, then what was done to them.
    assert list(table["source_source_source_rotation"]) == [4, 5]
    for name in ("rotation", "source_rotation", "source_source_rotation"):
        assert table[name].to_list() == pytest.approx([12, 12])
    assert set(table["source_aligned"]) == set(table["source_source_aligned"]) == {1}
    assert list(table["source_source_source_path"]) == ["../films/0.png", "../films/1.png"]


@pytest.mark.parametrize("column", ["boxes", "views", "masks", "files"])
def test_what_changed_since_is_not_served_again(tmp_path, column):
    table = make_films(tmp_path / "films", 2)
    align_folder(table, tmp_path / "out", KnownAligner(), size=SIDE)
    if column == "boxes":
        table.at[0, "boxes"] = [{**table.at[0, "boxes"][0], "x": 3}]
    elif column == "views":
        table.loc[0, "view"] = "lateral"
    elif column == "masks":
        table.loc[0, "masks"] = ""
    else:
        write_png16(tmp_path / "films/0.png", np.float32(np.eye(SIDE)))
    with pytest.raises(ValueError, match=rf"aligned otherwise \(other .*{column}"):
        align_folder(table, tmp_path / "out", KnownAligner(), size=SIDE)


def test_masks_of_any_name_stay_apart_and_below_their_folder(tmp_path):
    make_films(tmp_path / "films", 1)
    table = read_source(tmp_path / "films")
    shutil.copy(tmp_path / "films/0.png", tmp_path / "films/0_Mass.png")
    both = pd.concat([table, table.assign(path=str(tmp_path / "films/0_Mass.png"))], ignore_index=True)
    mask = str(tmp_path / "films/masks/0.png")
    both.loc[0, "masks"] = json.dumps({"../../Mass": mask, "a/b": mask, "a b": mask, "Mass_x": mask})
    both.loc[1, "masks"] = json.dumps({"x": mask})
    align_folder(both, tmp_path / "out", KnownAligner(), size=SIDE)
    files = [str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("masks/*/*.png")]
    names = (".._.._Mass", "Mass_x", "a_b", "a_b-")
    assert sorted(files) == sorted([*(f"masks/0/{name}.png" for name in names), "masks/0_Mass/x.png"])
    assert len(json.loads(read_source(tmp_path / "out")["masks"][0])) == 4
    assert {path.name for path in tmp_path.iterdir()} == {"films", "out"}


def test_a_bad_mask_refuses_its_film_alone(tmp_path):
    from PIL import Image

    table = make_films(tmp_path / "films", 4)
    (tmp_path / "films/masks/0.png").write_bytes(b"no picture")
    Image.new("L", (SIDE // 2, SIDE), 255).save(tmp_path / "films/masks/1.png")
    table.loc[2, "masks"] = "masks/2.png"
    assert align_folder(table, tmp_path / "out", KnownAligner(), size=SIDE)["aligned"] == 1
    reasons = pd.read_csv(tmp_path / "out/refused.csv")["reason"]
    told = (
        "0.png: no readable mask",
        "1.png: a mask of (96, 48), its film is (96, 96)",
        "masks must be JSON",
    )
    assert all(part in reason for part, reason in zip(told, reasons, strict=True)), reasons.to_list()


def test_boxes_that_are_lost_are_counted(tmp_path):
    table = make_films(tmp_path / "films", 2)
    table.at[1, "boxes"] = [*table.at[1, "boxes"], {**table.at[1, "boxes"][0], "x": 0, "y": 0, "width": 1}]
    far = KnownAligner(Similarity(0, 1, (0.3, 0.3)))
    for _ in range(2):
        assert align_folder(table, tmp_path / "out", far, size=SIDE)["boxes_left_out"] == 1


def test_films_of_one_name_keep_apart(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / "films" / folder).mkdir(parents=True)
        write_png16(tmp_path / f"films/{folder}/1.png", np.float32(np.eye(64)))
    align_folder(tmp_path / "films", tmp_path / "out", KnownAligner(), size=64)
    table = read_source(tmp_path / "out")
    assert len(set(table["path"])) == 2 and list(table["label"]) == ["a", "b"]


def test_a_plain_folder_of_films_will_do(tmp_path):
    (tmp_path / "films").mkdir()
    for k in range(2):
        write_png16(tmp_path / f"films/{k}.png", np.float32(np.eye(64)))
    assert align_folder(tmp_path / "films", tmp_path / "out", KnownAligner(), size=64)["aligned"] == 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no films that say what they show"):
        align_folder(tmp_path / "empty", tmp_path / "out2", KnownAligner())


def test_wrong_arguments_are_named(tmp_path):
    make_films(tmp_path / "films", 1)
    with pytest.raises(ValueError, match="aligned by a Template .* got str"):
        align_folder(tmp_path / "films", tmp_path / "out", "classical")
    with pytest.raises(ValueError, match="size must be 32 to 4096"):
        align_folder(tmp_path / "films", tmp_path / "out", KnownAligner(), size=8)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="'notes.txt', which was not aligned here"):
        align_folder(tmp_path / "films", tmp_path / "taken", KnownAligner())
    with pytest.raises(ValueError, match="as squares, this aligner takes films of 48 x 64 pixels"):
        align_folder(tmp_path / "films", tmp_path / "out", KnownAligner(shape=(48, 64)))
    assert not (tmp_path / "out").exists()


def test_registration_brings_chests_upright_and_refuses_the_rest(tmp_path):
    def chest(patient, pose=None, view="frontal"):
        transform = None if pose is None else (pose.rotation, pose.scale, pose.shift)
        return phantom.thorax(3, patient, view=view, size=SIDE, transform=transform).pixels

    def small(pixels):
        return pixels.reshape(48, 2, 48, 2).mean(axis=(1, 3), dtype=np.float32)

    template = build_template(np.stack([small(chest(k)) for k in range(24)]), rounds=3, workers=1)
    (tmp_path / "films").mkdir()
    posed = Similarity(-15, 0.9, (0.06, 0.04))
    films = {
        "upright": chest(51, Similarity()),
        "posed": chest(51, posed),
        "lateral": chest(40, view="lateral"),
    }
    films["headlong"] = films["upright"][::-1, ::-1]
    films["fallen"] = np.rot90(films["upright"])
    films["fillet"] = phantom.fillet(0, 0, size=SIDE, calibre=3).pixels
    films["noise"] = np.random.default_rng(0).random((SIDE, SIDE), np.float32)
    for name, pixels in films.items():
        write_png16(tmp_path / f"films/{name}.png", np.ascontiguousarray(pixels))
    align_folder(tmp_path / "films", tmp_path / "out", template, size=SIDE, workers=1)
    aligned = pd.read_csv(tmp_path / "out/manifest.csv", index_col="path")
    assert sorted(aligned.index) == ["films/posed.png", "films/upright.png"]
    found = [
        Similarity(row["rotation"], row["scale"], (row["shift_x"], row["shift_y"]))
        for row in (aligned.loc["films/upright.png"], aligned.loc["films/posed.png"])
    ]
    between = found[0].inverse().then(found[1])
    assert abs(between.rotation + 15) < 3 and abs(between.scale / 0.9 - 1) < 0.06
    assert math.dist(between.shift, posed.shift) < 0.04
    refused = pd.read_csv(tmp_path / "out/refused.csv", index_col="source_path")["reason"]
    assert (
        "upside down" in refused["../films/headlong.png"] and "on its side" in refused["../films/fallen.png"]
    )
    for name in ("lateral", "fillet", "noise"):
        assert "not like" in refused[f"../films/{name}.png"]


def test_a_synthetic_film_stays_one(tmp_path):
    from kxray.data import is_synthetic
    from kxray.io.marks import SYNTHETIC_TEXTS

    films = make_films(tmp_path / "films", 3)
    write_png16(films["path"][1], kxray.read_image(films["path"][1]).pixels, SYNTHETIC_TEXTS)
    films = films.assign(synthetic=[0.0, 0.0, 1.0])
    align_folder(films, tmp_path / "out", KnownAligner(), size=SIDE, workers=1)
    aligned = read_source(tmp_path / "out")
    assert aligned["synthetic"].tolist() == [0, 1, 1]
    assert [is_synthetic(path) for path in aligned["path"]] == [False, True, True]
