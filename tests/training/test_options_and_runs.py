"""Recipes as options at the shell, and folders that are never half-written."""

import dataclasses
import io
import json
import os
import re
import shutil
from pathlib import Path

import click
import pandas as pd
import pytest
from click.testing import CliRunner

from kxray.io.files import check_exportable, replacing
from training import options, runs
from training.comparing import comparison_run
from training.options import option


@dataclasses.dataclass(frozen=True)
class Recipe:
    epochs: int = option(10, "Passes.", low=1)
    learning_rate: float = option(0.1, "Rate.", low=0.0, high=1.0)
    data: str | None = option(None, "Folder.")
    workers: int | None = option(None, "Workers.", low=1)
    strategy: str = option("none", "Devices.", choices=("none", "mirrored"))
    resume: bool = option(False, "Continue.")
    augment: bool = option(True, "Augment.")
    preset: str | None = option(None, "A set.", choices=("paper",))


PRESETS = {"paper": {"epochs": 1000, "learning_rate": 0.01}}


def call(*arguments):
    """What reaches a command: the given options only."""
    seen = []

    @click.command()
    def command(**given):
        seen.append({key: value for key, value in given.items() if value is not None})

    for decorate in reversed(options.click_options(Recipe)):
        command = decorate(command)
    result = CliRunner().invoke(command, list(arguments))
    return seen[0] if seen else result.output


def test_only_given_options_reach_the_command():
    assert call() == {}
    assert call("--epochs", "3", "--resume") == {"epochs": 3, "resume": True}
    assert call("--learning-rate", "0.5", "--no-augment", "--data", "x") == {
        "learning_rate": 0.5, "augment": False, "data": "x",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--epcohs", "3"), "--epochs"),
        (("--epochs", "0"), "0 is not in the range x>=1"),
        (("--epochs", "many"), "'many' is not a valid integer"),
        (("--learning-rate", "2"), "2.0 is not in the range 0.0<=x<=1.0"),
        (("--strategy", "all"), "'all' is not one of 'none', 'mirrored'"),
        (("--preset", "papper"), "'papper' is not "),
        (("films",), "unexpected extra argument"),
    ],
)
def test_wrong_options_say_what_is_right(arguments, sentence):
    assert sentence in call(*arguments)


def test_given_wins_over_preset_wins_over_default():
    resolved = options.resolve(Recipe, PRESETS, {"preset": "paper", "epochs": 5})
    assert (resolved.epochs, resolved.learning_rate, resolved.strategy) == (5, 0.01, "none")
    assert options.resolve(Recipe, PRESETS, {"preset": None}).epochs == 10
    with pytest.raises(ValueError, match="unknown preset 'quick'; the presets are: paper"):
        options.resolve(Recipe, PRESETS, {"preset": "quick"})


def test_a_recipe_is_json_and_back():
    recipe = Recipe(epochs=3, data="films")
    assert Recipe(**json.loads(json.dumps(options.as_json(recipe)))) == recipe


def test_run_folders_name_themselves(tmp_path):
    assert runs.default_folder("view", "my films/2020", tmp_path).name == "00000-view-my_films_2020"
    for name in ("00000-view-a", "00007-view-b", "notes", "9"):
        (tmp_path / name).mkdir()
    assert runs.default_folder("view", "a", tmp_path).name == "00008-view-a"
    assert runs.default_folder("view", "a", tmp_path / "absent").name == "00000-view-a"


def test_an_existing_run_is_never_written_over(tmp_path):
    (tmp_path / "run").mkdir()
    assert runs.create(tmp_path / "run").is_dir(), "an empty folder will do"
    (tmp_path / "run" / "config.json").write_text("{}")
    for taken in (tmp_path / "run", tmp_path / "run" / "config.json"):
        with pytest.raises(ValueError, match="is not empty; continue that run with --resume, or choose"):
            runs.create(taken)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "scores.json"
    runs.write_json(path, {"value": 1})
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        assert temporary.suffix == ".json" and temporary.name.startswith("."), "Keras looks at the suffix"
        raise RuntimeError
    assert json.loads(path.read_text()) == {"value": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["scores.json"]
    runs.write_json(path, {"value": 2})
    assert json.loads(path.read_text()) == {"value": 2}
    assert os.stat(path).st_mode & 0o777 == 0o644


def test_tables_and_undefined_numbers(tmp_path):
    runs.write_table(tmp_path / "a.csv", pd.DataFrame({"x": [1, 2]}))
    assert (tmp_path / "a.csv").read_text() == "x\n1\n2\n"
    runs.write_json(tmp_path / "a.json", {"low": float("nan"), "counts": pd.Series([1, 2]).to_numpy()})

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (tmp_path / "a.json").read_text()
    assert json.loads(text, parse_constant=refuse) == {"low": None, "counts": [1, 2]}


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "nothing to resume, it has no config.json; start it without --resume"),
        ("{", "config.json: not JSON"),
        ("[]", "config.json: not the options of a run"),
        ('{"options": 3}', "config.json: not the options of a run"),
    ],
)
def test_what_cannot_be_resumed_says_why(tmp_path, content, sentence):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=sentence):
        runs.read_config(tmp_path)


def test_a_folder_that_is_free_is_not_made_by_looking(tmp_path):
    runs.check_free(tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="used is not empty; continue that run with --resume"):
        runs.check_free(tmp_path / "used")


# Starting weights


@dataclasses.dataclass(frozen=True)
class Placed:
    data: str | None = None
    weights: str = "imagenet"


@pytest.mark.parametrize(
    "given, expected",
    [
        ("own.h5", "{here}/own.h5"),
        ("a=b,c.h5", "{here}/a=b,c.h5"),
        ("xception=own.h5, alexnet=none,", "xception={here}/own.h5,alexnet=none"),
        ("imagenet", "imagenet"),
        ("nowhere.h5", "nowhere.h5"),
    ],
)
def test_weights_hold_from_wherever_a_run_is_resumed(tmp_path, monkeypatch, given, expected):
    monkeypatch.chdir(tmp_path)
    for name in ("own.h5", "a=b,c.h5", "imagenet"):
        (tmp_path / name).touch()
    recipe, told = runs.with_absolute_places(Placed(), {"data": "films", "weights": given, "out": "run"})
    assert recipe == Placed(str(tmp_path / "films"), expected.format(here=tmp_path))
    assert told == {"data": recipe.data, "weights": recipe.weights, "out": "run"}
    assert runs.with_absolute_places(Placed(), {"weights": None}) == (Placed(), {"weights": None})


@pytest.fixture
def first(tmp_path):
    """A run on films a ... j: h, i and j are its test films. Its folder, and that of the films."""
    from kxray import data

    run, films = tmp_path / "first", tmp_path / "films"
    for folder in (run, films / "deep"):
        folder.mkdir(parents=True)
    paths = [films / ("deep" if name in "ab" else "") / f"{name}.png" for name in "abcdefghij"]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * (100 + number % 2))
    table = pd.DataFrame({"path": [str(path) for path in paths], "patient_id": "", "label": "x"})
    table = data.manifest.as_manifest(table)
    data.write_manifest(table, films / "manifest.csv")
    data.save_split(table.assign(split=["train"] * 5 + ["val"] * 2 + ["test"] * 3), run / "split.csv")
    (run / "spec.json").write_text(json.dumps({"provenance": {"data_fingerprint": "of all ten"}}))
    runs.write_json(run / "config.json", {"options": {"data": str(films / "manifest.csv"), "folds": 0}})
    return run, films


def notes(run, paths, fingerprint="of others"):
    recipe = dataclasses.make_dataclass("Started", ["weights"])(str(run))
    return runs.starting_notes(recipe, fingerprint, pd.Series([str(path) for path in paths]))


def test_films_that_the_starting_weights_have_seen_are_counted(first, tmp_path):
    run, films = first
    (same,) = notes(run, [], "of all ten")
    assert "were trained on these very films: scores are too good" in same
    # A subset has another fingerprint; copies have other names besides.
    (told,) = notes(run, [films / "deep" / "a.png", films / "c.png", films / "h.png"])
    assert told == f"the starting weights of {run} were trained on 2 of these 3 films: scores are too good"
    copies = [shutil.copy(films / f"{name}.png", tmp_path / f"copy-{name}.png") for name in "fghi"]
    new = tmp_path / "new.png"
    new.write_bytes(b"x" * 100)
    for start in (run, run / "model.keras"):
        (told,) = notes(start, [*copies, new])
        assert "were trained on 2 of these 5 films" in told
    assert notes(run, [new, films / "i.png"]) == []
    # What is kept after folds was trained on all films, and so it is with corrections.
    runs.write_json(run / "config.json", {"options": {"data": str(films / "manifest.csv"), "folds": 5}})
    assert "2 of these 3 films" in notes(run, [new, films / "i.png", films / "j.png"])[0]


def test_starting_weights_whose_films_are_gone(first, tmp_path):
    run, films = first
    new = tmp_path / "new.png"
    new.write_bytes(b"x" * 100)
    shutil.rmtree(films)
    (told,) = notes(run, [new])
    assert "the films they were trained on cannot be found any more" in told
    assert notes("none", [new]) == notes(tmp_path / "xception.h5", [new]) == []


# Square brackets


@pytest.mark.parametrize("name", ["with [tb] space", "a*", "b?", "[", "back\\slash"])
def test_folders_that_tensorflow_takes_for_patterns(tmp_path, name):
    with pytest.raises(ValueError, match="TensorFlow writes no SavedModel below"):
        check_exportable(tmp_path / name / "run")
    check_exportable(tmp_path / "with (tb), space" / "run")


@dataclasses.dataclass(frozen=True)
class Compared:
    data: str | None = None
    out: str | None = None
    resume: bool = False
    dry_run: bool = False


def carried_out(work, monkeypatch, **given):
    """What a comparison whose films and result are in brackets tells at the shell."""
    from rich import console

    screen = io.StringIO()
    monkeypatch.setattr(
        comparison_run, "Console", lambda **how: console.Console(file=screen, width=200, **how)
    )

    def plan(shell):
        shell.print("plan of [/tb]")

    recipe = Compared(**given)
    folder = comparison_run.run("toys", recipe, given, plan, work, lambda metrics: [metrics["told"]])
    return folder, screen.getvalue()


def test_a_comparison_is_made_told_and_resumed(tmp_path, monkeypatch):
    worked = []

    def work(recipe, folder, progress):
        worked.append(folder)
        progress.console.print("at [tb]")
        runs.write_json(folder / "metrics.json", {"told": "undefined [undefined, undefined]"})

    out = tmp_path / "[/tb] out"
    assert carried_out(work, monkeypatch, out=str(out), dry_run=True) == (None, "plan of [/tb]\n")
    folder, text = carried_out(work, monkeypatch, out=str(out))
    assert folder == out and worked == [out]
    lines = ["plan of [/tb]", f"folder {out}", "at [tb]", "undefined [undefined, undefined]"]
    assert text.splitlines() == [*lines, f"report {out / 'report.html'}"]
    assert runs.read_config(out)["recipe"] == "compare toys"
    _, text = carried_out(work, monkeypatch, out=str(out), resume=True)
    assert len(worked) == 1 and text.splitlines() == [lines[1], lines[3], f"report {out / 'report.html'}"]
    with pytest.raises(ValueError, match="is not empty"):
        carried_out(work, monkeypatch, out=str(out), dry_run=True)


def test_a_comparison_that_cannot_begin_leaves_nothing(tmp_path, monkeypatch):
    def work(recipe, folder, progress):
        for name in ("films", "relabelled", "work", "phantoms"):
            (folder / name).mkdir()
        if begun:
            runs.write_json(folder / "config.json", {"options": {}, "data_fingerprint": "x"})
        raise ValueError("no films")

    for begun in (False, True):
        with pytest.raises(ValueError, match="no films"):
            carried_out(work, monkeypatch, out=str(tmp_path / "out"))
        assert (tmp_path / "out").exists() == begun


def test_no_program_reads_brackets_as_markup():
    """A path such as `/data/[tb] films` would lose its brackets, and `[/tb]` ends a program."""
    root = Path(__file__).parents[2]
    for path in sorted([*(root / "training").rglob("*.py"), *(root / "serving").rglob("*.py")]):
        text = path.read_text(encoding="utf-8")
        # A column without a field says what its program says.
        for call in re.findall(r"\b(?:Console\(|TextColumn\([^)\n]*\{)[^\n]*", text):
            assert "markup=False" in call, f"{path}: {call}"
