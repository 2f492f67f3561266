"""python -m training.relabel, as a shell user meets it."""

import csv
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from kxray import data
from training.relabel import main

WIDTHS = (2, 3, 6, 7, 14, 16)


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def write_film(path, width):
    pixels = np.full((64, 64), 80, np.uint8)
    pixels[20 : 20 + width] = 200
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def fillets(tmp_path):
    """Films with bars of known width in bone/, flat films in no_bone/."""
    for width in WIDTHS:
        write_film(tmp_path / f"fillets/bone/w{width:02d}.png", width)
    for k in range(2):
        write_film(tmp_path / f"fillets/no_bone/{k}.png", 0)
    return tmp_path / "fillets"


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def labels(out):
    table = data.read_source(out)
    return {os.path.basename(path): label for path, label in zip(table["path"], table["label"], strict=True)}


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def one_error(result, *parts):
    lines = result.output.splitlines()
    assert result.exit_code == 2 and len(lines) == 1 and lines[0].startswith("error: "), result.output
    assert all(part in lines[0] for part in parts), lines[0]


EXPECTED = {f"w{width:02d}.png": f"bone_scale{1 + i // 2}" for i, width in enumerate(WIDTHS)}
EXPECTED |= {"0.png": "no_bone", "1.png": "no_bone"}


@pytest.mark.parametrize("cut", [["--classes", 3], ["--thresholds", "4,10"]])
def test_it_splits_the_class_and_leaves_the_source_alone(fillets, cut):
    before = contents(fillets)
    result = run("--data", fillets, "--by", "width", *cut)
    assert result.exit_code == 0, result.output
    out = fillets.with_name("fillets-by-width")
    assert "bone_scale3: 2 films" in result.output and str(out / "index.html") in result.output
    assert labels(out) == EXPECTED and contents(fillets) == before
    table = data.read_source(out)
    assert sorted(table["path"]) == sorted(data.read_source(fillets)["path"])
    assert table["coarse_label"].value_counts().to_dict() == {"bone": 6, "no_bone": 2}
    sizes = {os.path.basename(row["path"]): row for row in rows(out / "sizes.csv")}
    assert set(sizes) == {f"w{width:02d}.png" for width in WIDTHS}
    for width in WIDTHS:
        row = sizes[f"w{width:02d}.png"]
        assert float(row["size_px"]) == pytest.approx(width, rel=0.1, abs=0.25)
        assert row["measured_from"] == "image" and row["label"] == EXPECTED[f"w{width:02d}.png"]
    names = {path.name for path in out.iterdir()}
    sheets = {f"sheet-bone_scale{k}.png" for k in (1, 2, 3)}
    assert names == {"manifest.csv", "sizes.csv", "histogram.png", "index.html", "relabel.json"} | sheets
    for name in ("histogram.png", *sheets):
        with Image.open(out / name) as picture:
            assert picture.width > 300 and np.ptp(np.asarray(picture.convert("L"))) > 200
    assert not [path for path in out.parent.iterdir() if path.name.startswith(".")]


def test_the_page_shows_every_film_with_its_classes(fillets, tmp_path):
    assert run("--data", fillets, "--out", tmp_path / "out").exit_code == 0
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert page.count("<figure data-path=") == page.count("data:image/jpeg") == len(WIDTHS)
    assert page.count("<option selected>bone_scale2</option>") == 2 and "<option>no_bone</option>" in page
    assert "corrected.csv" in page and "path,label" in page and "http" not in page


def test_corrections_are_entered_in_all_files(fillets, tmp_path):
    out = tmp_path / "out"
    assert run("--data", fillets, "--out", out).exit_code == 0
    pd.DataFrame(
        {
            "path": [fillets / "bone" / "w16.png", fillets / "no_bone" / "0.png"],
            "label": ["no_bone", "bone_scale1"],
        }
    ).to_csv(tmp_path / "corrected.csv", index=False)
    result = run("--out", out, "--corrections", tmp_path / "corrected.csv")
    assert result.exit_code == 0 and "2 corrected films entered" in result.output
    assert labels(out) == EXPECTED | {"w16.png": "no_bone", "0.png": "bone_scale1"}
    table = data.read_source(out).set_index("label")
    assert table["coarse_label"]["no_bone"].tolist() == ["no_bone"] * 2
    assert set(table["coarse_label"]["bone_scale1"]) == {"bone"}
    page = (out / "index.html").read_text(encoding="utf-8")
    assert page.count("<figure data-path=") == 7 and "no size" in page
    sized = {os.path.basename(row["path"]): row["label"] for row in rows(out / "sizes.csv")}
    assert sized["w16.png"] == "no_bone" and sized["0.png"] == "bone_scale1"

    # sizes.csv itself, edited, and the command that made the folder, are taken too.
    table = pd.read_csv(out / "sizes.csv")
    table.loc[table["path"].str.endswith("w16.png"), "label"] = "bone_scale2"
    table.to_csv(out / "sizes.csv", index=False)
    result = run("--data", fillets, "--out", out, "--corrections", out / "sizes.csv")
    assert result.exit_code == 0 and "1 corrected films entered" in result.output
    assert labels(out)["w16.png"] == "bone_scale2" and labels(out)["w02.png"] == "bone_scale1"


def test_corrections_that_do_not_fit_give_one_line_and_change_nothing(fillets, tmp_path):
    out = tmp_path / "out"
    assert run("--data", fillets, "--out", out).exit_code == 0
    before = contents(out)
    write_film(tmp_path / "stranger.png", 3)
    for path, label, message in (
        (tmp_path / "stranger.png", "bone_scale1", "1 films are not in"),
        (fillets / "bone" / "w02.png", "bone_scale9", "unknown label bone_scale9; expected bone_scale1, "),
    ):
        pd.DataFrame({"path": [path], "label": [label]}).to_csv(tmp_path / "wrong.csv", index=False)
        one_error(run("--out", out, "--corrections", tmp_path / "wrong.csv"), "wrong.csv", message)
    (tmp_path / "wrong.csv").write_text(f"path,view\n{fillets}/bone/w02.png,frontal\n")
    one_error(
        run("--out", out, "--corrections", tmp_path / "wrong.csv"), "expected the columns path and label"
    )
    one_error(run("--out", tmp_path, "--corrections", tmp_path / "wrong.csv"), "relabel.json")
    assert contents(out) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--thresholds", "8,3"], "ascending order, got 8, 3"),
        (["--thresholds", "3,8", "--classes", "2"], "2 size classes need 1 thresholds"),
        (["--classes", "1"], "--classes must be at least 2, got 1"),
        (["--classes", "7"], "bone: 6 films cannot make 7 size classes"),
        (["--by", "girth"], "--by must be width, area, boxes, got 'girth'"),
        (["--by", "area"], "6 of 6 films have neither boxes nor masks"),
        (["--keep", "fin"], "--keep fin: no film has this label; labels: bone, no_bone"),
        (["--keep", "bone", "--keep", "no_bone"], "no label is left to split"),
    ],
)
def test_bad_arguments_give_one_line_and_no_folder(fillets, tmp_path, arguments, message):
    one_error(run("--data", fillets, "--out", tmp_path / "out", *arguments), message)
    assert not (tmp_path / "out").exists()


def test_missing_and_misplaced_folders_give_one_line(fillets, tmp_path):
    one_error(run(), "nothing to do")
    one_error(run("--corrections", tmp_path / "a.csv"), "needs --out")
    one_error(run("--data", tmp_path / "nowhere"), "no such file or folder")
    for inside in (fillets, fillets / "sizes"):
        one_error(run("--data", fillets, "--out", inside), "in the folder of the films")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    one_error(run("--data", fillets, "--out", tmp_path / "full"), "is there already")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"]


def test_a_class_without_defects_has_to_be_known(fillets, tmp_path):
    (fillets / "no_bone").rename(fillets / "flesh")
    one_error(run("--data", fillets), "--keep LABEL; labels: bone, flesh")
    result = run("--data", fillets, "--keep", "flesh", "--out", tmp_path / "out")
    assert result.exit_code == 0 and set(labels(tmp_path / "out").values()) >= {"flesh", "bone_scale3"}


def test_films_of_one_size_cannot_be_split_but_by_thresholds(fillets, tmp_path):
    for path in (fillets / "bone").iterdir():
        write_film(path, 5)
    one_error(
        run("--data", fillets, "--out", tmp_path / "out"), "bone: 6 measured films have 1 distinct sizes"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["fillets"], "nothing half-written is left"
    result = run("--data", fillets, "--out", tmp_path / "out", "--thresholds", "4")
    assert result.exit_code == 0 and "bone_scale2: 6 films" in result.output


def test_a_film_without_a_ridge_is_named_and_is_in_the_smallest_class(fillets, tmp_path):
    write_film(fillets / "bone" / "flat.png", 0)
    result = run("--data", fillets, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "note: 1 films without a measurable size are in the smallest class: flat.png" in result.output
    assert labels(tmp_path / "out") == EXPECTED | {"flat.png": "bone_scale1"}


def test_unreadable_films_stop_it_or_are_skipped(fillets, tmp_path):
    (fillets / "bone" / "torn.png").write_bytes(b"no film")
    result = run("--data", fillets, "--out", tmp_path / "out")
    assert result.exit_code == 2 and "unreadable film" in result.output and not (tmp_path / "out").exists()
    result = run("--data", fillets, "--out", tmp_path / "out", "--skip-bad")
    assert result.exit_code == 0 and labels(tmp_path / "out") == EXPECTED
    assert rows(tmp_path / "out" / "skipped.csv")[0]["path"].endswith("torn.png")


def test_masks_boxes_and_other_columns_come_along(fillets, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    shutil.copytree(fillets / "bone", source / "films")
    mask = np.zeros((64, 64), np.uint8)
    mask[10:19] = 255
    (source / "masks").mkdir()
    Image.fromarray(mask).save(source / "masks" / "1.png")
    box = {"finding": "bone", "x": 0, "y": 18, "width": 64, "height": 9}
    names = [f"w{width:02d}.png" for width in WIDTHS]
    table = pd.DataFrame(
        {"path": [f"films/{name}" for name in names], "patient_id": [f"F{k}" for k in range(6)]}
    )
    table["label"] = ["bone"] * 5 + ["normal"]
    table["split"] = ["train", "test"] * 3
    table["boxes"] = ["", json.dumps([box]), "", "", "", ""]
    table["masks"] = [json.dumps({"bone": "masks/1.png"}), "", "", "", "", ""]
    table.to_csv(source / "manifest.csv", index=False)
    out = tmp_path / "deep" / "out"
    result = run("--data", source, "--out", out)
    assert result.exit_code == 0, result.output
    made = data.read_source(out)
    assert made["split"].tolist() == table["split"].tolist() and made["boxes"][1] == [box]
    assert made["patient_id"].tolist() == table["patient_id"].tolist()
    assert json.loads(made["masks"][0]) == {"bone": str(source / "masks" / "1.png")}
    assert str(tmp_path) not in (out / "manifest.csv").read_text()
    sizes = {os.path.basename(row["path"]): row for row in rows(out / "sizes.csv")}
    assert [sizes[name]["measured_from"] for name in names[:3]] == ["masks", "boxes", "image"]
    assert float(sizes["w02.png"]["size_px"]) == 9
    again = run("--data", out, "--out", tmp_path / "again")
    one_error(again, "is relabelled already")


def test_help_teaches_and_is_light():
    command = [sys.executable, "-X", "importtime", "-m", "training.relabel", "--help"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0 and "Examples" in result.stdout and "--thresholds 3,8" in result.stdout
    assert "numpy" not in result.stderr and "tensorflow" not in result.stderr
