"""Recipes as options at the shell, and folders that are never half-written."""

import dataclasses
import json
import os

import click
import pandas as pd
import pytest
from click.testing import CliRunner

from kxray.io.files import replacing
from training import options, runs
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
