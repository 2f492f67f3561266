"""python -m training.audit, as a shell user meets it: planted faults are found, named and shown."""

import csv
import functools
import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

from kxray.data import shortcuts
from kxray.data.phantom import thorax
from kxray.data.phantom.dicom import dicom
from kxray.spec import ModelSpec
from training import audit
from training.audit import main

SIZE, PATIENTS = 96, 24
L = np.zeros((10, 7), bool)
L[:, :2] = L[8:] = True


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def one_error(result, *parts):
    lines = result.output.splitlines()
    assert result.exit_code == 2 and len(lines) == 1 and lines[0].startswith("error: "), result.output
    assert all(part in lines[0] for part in parts), lines[0]


@pytest.fixture(autouse=True, scope="module")
def fewer_trees():
    """Forests of 50 trees tell as much of 50 films."""
    with pytest.MonkeyPatch.context() as patch:
        grown = functools.partial(shortcuts.shortcut_scores, trees=50)
        patch.setattr(shortcuts, "shortcut_scores", grown)
        yield


@pytest.fixture(scope="module")
def films():
    """Two frontal phantoms of each of 24 patients."""
    return [thorax(3, i, view="frontal", size=SIZE, patient=i // 2).pixels for i in range(2 * PATIENTS)]


def save(path, pixels, bits=8):
    largest = 2**bits - 1
    Image.fromarray(np.round(pixels * largest).astype(np.uint16 if bits == 16 else np.uint8)).save(path)


def table_of(names):
    """Every patient one class, by chance, and one part of the split."""
    patient = [int(name.split("-")[0]) for name in names]
    sick = np.random.default_rng(1).permutation(np.arange(PATIENTS) % 2)
    return pd.DataFrame(
        {
            "path": names,
            "patient_id": [f"P{p:02d}" for p in patient],
            "label": [("healthy", "sick")[sick[p]] for p in patient],
            "split": ["train" if p < 16 else "test" for p in patient],
        }
    )


@pytest.fixture(scope="module")
def clean(films, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean") / "films"
    folder.mkdir()
    names = [f"{i // 2:02d}-{i % 2}.png" for i in range(len(films))]
    for name, pixels in zip(names, films, strict=True):
        save(folder / name, pixels)
    table_of(names).to_csv(folder / "manifest.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def planted(films, tmp_path_factory):
    """The same films with an L on the sick, 16 bits for the sick, copies in both splits, a patient in two."""
    folder = tmp_path_factory.mktemp("planted") / "films"
    folder.mkdir()
    names = [f"{i // 2:02d}-{i % 2}.png" for i in range(len(films))]
    table = table_of(names)
    for name, label, pixels in zip(names, table["label"], films, strict=True):
        pixels = pixels.copy()
        if label == "sick":
            pixels[1:15, 1:12] = 0.02
            pixels[3:13, 3:10][L] = 0.97
        save(folder / name, pixels, 16 if label == "sick" else 8)
    train = [i for i in table.index if table["split"][i] == "train" and table["label"][i] == "healthy"]
    copies = {"70-copy.png": train[0], "71-again.jpg": train[2], "72-small.png": train[4]}
    shutil.copy(folder / names[train[0]], folder / "70-copy.png")
    Image.open(folder / names[train[2]]).save(folder / "71-again.jpg", quality=60)
    Image.open(folder / names[train[4]]).resize((80, 80)).save(folder / "72-small.png")
    more = [
        {"path": name, "patient_id": f"Q{k}", "label": "healthy", "split": "test"}
        for k, name in enumerate(copies)
    ]
    table = pd.concat([table, pd.DataFrame(more)], ignore_index=True)
    torn = [i for i in table.index if table["patient_id"][i] == "P05"]
    table.loc[torn[0], "split"] = "test"
    (folder / "bad.png").write_bytes(b"no film")
    table.loc[len(table)] = ["bad.png", "P99", "sick", "train"]
    table.to_csv(folder / "manifest.csv", index=False)
    return folder, {name: names[i] for name, i in copies.items()}


@pytest.fixture(scope="module")
def audited(planted, tmp_path_factory):
    out = tmp_path_factory.mktemp("audits") / "planted"
    result = run("--data", planted[0], "--out", out, "--strict")
    assert result.exit_code == 3, result.output
    facts = json.loads((out / "audit.json").read_text(encoding="utf-8"))
    return result.output, out, facts, (out / "audit.html").read_text(encoding="utf-8")


def test_films_in_two_splits_are_found_and_shown(audited, planted):
    output, out, facts, page = audited
    assert "leak: 1 pair of films in two splits: the same file" in output
    assert "leak: 2 pairs of films in two splits: the same picture" in output
    leaks = [row for row in rows(out / "pairs.csv") if row["leak"] == "True"]
    across = {
        frozenset(row[side].split("/")[-1] for side in ("first", "second")): row["kind"] for row in leaks
    }
    copies = planted[1]
    assert across == {
        frozenset(("70-copy.png", copies["70-copy.png"])): "same file",
        frozenset(("71-again.jpg", copies["71-again.jpg"])): "near-duplicate",
        frozenset(("72-small.png", copies["72-small.png"])): "near-duplicate",
    }
    assert facts["duplicates"]["across_splits"] == 3 and facts["duplicates"]["across_patients"] == 3
    assert page.count('<figure class="leak">') == 3 and "filed under patients" in page
    first = page.index('<figure class="leak">')
    assert page[first:].split("</figure>")[0].count("data:image/jpeg") == 2, "the two films side by side"


def test_a_patient_in_two_splits_is_found_and_shown(audited):
    output, _, facts, page = audited
    assert "leak: patient_id in more than one split: P05 (1 in all)" in output
    (torn,) = facts["straddles"]
    assert torn["parts"] == ["test", "train"] and len(torn["films"]) == 2
    shown = page.split("<h3>patient_id P05</h3>")[1].split("</section>")[0]
    assert "test: 05-0.png" in shown and "train: 05-1.png" in shown and "data:image/jpeg" in shown


def test_a_class_coded_marker_is_found_and_shown(audited):
    output, out, facts, page = audited
    assert "a marker tells the class: text " in output and "top left" in output.split("a marker tells")[1]
    by_name = {row["name"]: row for row in facts["associations"]}
    assert by_name["text top left"]["tells"] and by_name["text top left"]["kind"] == "marker"
    assert by_name["text top left"]["low"] > 0.5 and by_name["text top left"]["p_holm"] < 0.05
    corner = [row for row in rows(out / "markers.csv") if (row["kind"], row["place"]) == ("text", "top left")]
    assert sum(row["label"] == "sick" for row in corner) == 24
    assert "marker of" in page and "tells the class</h3>" in page


def test_a_class_coded_bit_depth_is_found_and_shown(audited):
    output, _, facts, page = audited
    assert "the file's bit depth tells the class" in output
    (row,) = [row for row in facts["associations"] if row["name"] == "bit depth"]
    assert row["tells"] and row["v"] > 0.9
    shown = page.split("<h3>bit depth tells the class</h3>")[1].split("<h2>")[0].split("<h3>")[0]
    assert "sick: 16 in 100% of its films" in shown and shown.count("data:image/jpeg") == 8
    assert facts["baselines"]["header"]["balanced_accuracy"]["value"] > 0.95


def test_the_verdict_and_the_unreadable_film_are_told(audited):
    output, out, facts, page = audited
    assert (
        facts["verdict"]["likely"]
        and output.startswith("shortcut likely: ")
        and len(facts["verdict"]["leaks"]) == 3
    )
    (bad,) = rows(out / "unreadable.csv")
    assert bad["path"].endswith("bad.png") and bad["problem"].startswith("unreadable film")
    assert "bad.png" in page and "http" not in page.replace("http://www.w3.org", "")
    assert facts["films"] == {"healthy": 27, "sick": 24} and facts["groups"]["by"].startswith("patient_id")


def test_clean_films_raise_no_alarm(clean, tmp_path):
    out = tmp_path / "out"
    result = run("--data", clean, "--out", out, "--strict", "--folds", "3")
    assert result.exit_code == 0 and result.output.startswith("shortcut not seen: "), result.output
    page = (out / "audit.html").read_text(encoding="utf-8")
    assert '<p class="verdict">shortcut not seen' in page and "<b>" not in page.split("<table>")[0]
    facts = json.loads((out / "audit.json").read_text(encoding="utf-8"))
    assert not facts["verdict"]["likely"] and not facts["verdict"]["leaks"] and facts["unreadable"] == 0
    assert not any(row["tells"] for row in facts["associations"]) and facts["run"] is None
    # Classes were dealt by chance: nothing of a held-out film is known to the forests.
    assert all(row["balanced_accuracy"]["low"] < 0.6 for row in facts["baselines"].values())


def test_findings_and_other_columns_are_asked_for(clean, tmp_path):
    table = pd.read_csv(clean / "manifest.csv").drop(columns=["split", "patient_id"])
    table["path"] = [str(clean / path) for path in table["path"]]
    table["Mass"] = (table.pop("label") == "sick").astype(int).astype(object)
    table.loc[:3, "Mass"] = ""
    table.to_csv(tmp_path / "manifest.csv", index=False)
    out = tmp_path.with_name(f"{tmp_path.name}-out")
    one_error(run("--data", tmp_path, "--out", out), "no column 'label'", "--finding with one of Mass")
    one_error(
        run("--data", tmp_path, "--finding", "Nodule", "--out", out),
        "--finding Nodule: no such 0/1 column",
        "Mass",
    )
    one_error(run("--data", tmp_path, "--label-column", "view", "--out", out), "no column 'view'")
    result = run("--data", tmp_path / "manifest.csv", "--finding", "Mass", "--out", out, "--folds", 2)
    assert result.exit_code == 0, result.output
    facts = json.loads((out / "audit.json").read_text(encoding="utf-8"))
    assert set(facts["films"]) == {"Mass", "no Mass"} and sum(facts["films"].values()) == 44
    assert "4 films without a class" in result.output and "no patient ids" in facts["groups"]["by"]


def test_mixed_formats_without_patient_ids(films, tmp_path):
    folder = tmp_path / "films"
    (folder / "left").mkdir(parents=True)
    (folder / "right").mkdir()
    for i in range(0, len(films), 2):
        film = thorax(3, i, view="frontal", size=SIZE, patient=i // 2)
        if i % 4:
            content = dicom(film, "", 3, i)
            (folder / "right" / f"{i}.dcm").write_bytes(content)
        elif i % 8:
            save(folder / "left" / f"{i}.jpg", films[i])
        else:
            save(folder / "left" / f"{i}.tif", films[i], 16)
    out = tmp_path / "out"
    result = run("--data", folder, "--out", out, "--folds", 3)
    assert result.exit_code == 0 and "tells the class: dicom in 0% of left, 100% of right" in result.output
    facts = json.loads((out / "audit.json").read_text(encoding="utf-8"))
    by_name = {row["name"]: row for row in facts["associations"]}
    assert sorted(by_name["format"]["values"]) == ["dicom", "jpeg", "tiff"] and facts["verdict"]["likely"]
    assert by_name["modality"]["tells"] and "near-duplicate" in facts["groups"]["by"]


def test_bad_arguments_give_one_line(clean, tmp_path):
    one_error(run("--data", tmp_path / "nowhere"), "no such file or folder")
    one_error(run("--data", clean, "--out", clean / "audit"), "in the folder of the films")
    one_error(run("--data", clean, "--run", tmp_path), "expected a finished classifier run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "manifest.csv").write_text("path,patient_id,label\n")
    one_error(run("--data", tmp_path / "empty", "--out", tmp_path / "out"), "has no films")
    one_error(run("--data", clean, "--label-column", "label", "--finding", "Mass"), "not both")
    (tmp_path / "file").touch()
    one_error(run("--data", clean, "--out", tmp_path / "file"), "is a file")
    lone = tmp_path / "lone"
    for label in ("a", "b"):
        (lone / label).mkdir(parents=True)
    shutil.copy(clean / "00-0.png", lone / "a" / "1.png")
    (lone / "b" / "1.png").write_bytes(b"no film")
    one_error(run("--data", lone, "--out", tmp_path / "out"), "two classes or more", "got a")


def test_a_run_is_asked_for_its_part(clean, tmp_path, monkeypatch):
    from training.auditing import audited_run, run_films

    asked = {}
    spec = ModelSpec("tiny", ("healthy", "sick"), "multiclass", (96, 96))
    finished = run_films.FinishedRun(tmp_path / "run", spec, {}, {}, None)

    def audit_run(run, table, baselines, *, folder, thumbnails=None, progress=None, workers=None):
        asked.update(run=run, table=table, baselines=baselines, folder=folder, thumbnails=thumbnails)
        raise ValueError("far enough")

    monkeypatch.setattr(audited_run, "audit_run", audit_run)
    monkeypatch.setattr(run_films, "read_finished", lambda folder: finished)
    result = run("--data", clean, "--run", tmp_path / "run", "--out", tmp_path / "out", "--folds", 2)
    one_error(result, "far enough")
    assert {"path", "patient_id", "label", "split", "bits", "format"} <= set(asked["table"].columns)
    assert set(asked["baselines"]) == {"histogram", "border", "header", "sharpness", "centre_blanked", "all"}
    assert asked["folder"].is_dir() and len(asked["table"]) == 2 * PATIENTS
    assert asked["thumbnails"].shape == (2 * PATIENTS, 32, 32)


def test_the_box_of_the_page_has_the_colour_of_its_level(clean, tmp_path, monkeypatch):
    monkeypatch.setattr(audit, "judgement", lambda *_: ("possible", "shortcut possible: a toy"))
    result = run("--data", clean, "--out", tmp_path / "out", "--strict", "--folds", 2)
    assert result.exit_code == 0 and result.output.startswith("shortcut possible: a toy."), result.output
    page = (tmp_path / "out" / "audit.html").read_text(encoding="utf-8")
    assert (
        '<p class="verdict possible">shortcut possible: a toy.</p>' in page and ".verdict.possible {" in page
    )
    facts = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))
    assert facts["verdict"]["level"] == "possible" and facts["verdict"]["likely"] is False


def test_shapes_of_markers_are_counted_once(clean, tmp_path, monkeypatch):
    from kxray.data import markers

    calls, count = [], markers.marker_shapes
    monkeypatch.setattr(markers, "marker_shapes", lambda films: calls.append(0) or count(films))
    assert run("--data", clean, "--out", tmp_path / "out", "--folds", 2).exit_code == 0
    assert len(calls) == 1


def test_help_teaches_and_is_light():
    command = [sys.executable, "-X", "importtime", "-m", "training.audit", "--help"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0 and "Examples" in result.stdout and "--finding Pneumonia" in result.stdout
    assert "numpy" not in result.stderr and "tensorflow" not in result.stderr
    assert audit.HELP.count("Exit code") == 1


@pytest.fixture
def all_trees(monkeypatch):
    monkeypatch.setattr(shortcuts, "shortcut_scores", shortcuts.shortcut_scores.func)


def answer(code):
    return "shortcut likely: " if code else "shortcut possible, not shown to be likely: "


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), [("tb", 3), ("fishbones", 0)])
def test_it_says_what_is_known_of_real_films(real_data, all_trees, tmp_path, name, code):
    result = run("--data", real_data / name, "--out", tmp_path / "out", "--strict")
    assert result.exit_code == code, result.output
    assert result.output.startswith(answer(code))


@pytest.mark.real_data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "films", "options", "code"),
    [("tb", 600, "96 --flips none", 3), ("fishbones", 160, "128 --flips dihedral --augment 2", 0)],
)
def test_it_holds_a_real_run_against_real_films(real_data, all_trees, tmp_path, name, films, options, code):
    """A frozen Xception: no better than what sees no anatomy on tuberculosis films, better on fish bones."""
    from training.fit import main as fit

    weights = real_data.parent / "weights" / "xception_imagenet_notop.weights.h5"
    if not weights.is_file():
        pytest.skip(f"ImageNet weights not found at {weights}")
    data, out = str(real_data / name), tmp_path / "run"
    command = ["transfer", "--data", data, "--out", str(out), "--backbone", "xception", "--weights"]
    command += [str(weights), "--epochs", "20", "--folds", "5", "--image-size", *options.split()]
    done = CliRunner().invoke(fit, command)
    assert done.exit_code == 0, done.output
    result = run("--data", data, "--run", out, "--out", tmp_path / "out", "--strict")
    assert result.exit_code == code, result.output
    assert result.output.startswith(answer(code)) and " of your 0.9" in result.output, result.output
    facts = json.loads((tmp_path / "out" / "audit.json").read_text(encoding="utf-8"))["run"]
    assert facts["films"] == facts["blanked"]["films"] == films and facts["blanked"]["seen"]
    assert facts["scores"]["accuracy"]["value"] > 0.9 and facts["explained"]["overall"]["films"] > 0.9 * films
