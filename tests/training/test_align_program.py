"""python -m training.align, as a shell user meets it."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from kxray import data
from kxray.data.phantom import Mix, write_phantoms
from kxray.io.image import write_png16
from training.align import main


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def one_error(result, *parts):
    lines = result.output.splitlines()
    assert result.exit_code == 2 and len(lines) == 1 and lines[0].startswith("error: "), result.output
    assert all(part in lines[0] for part in parts), lines[0]


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """12 posed phantom chests and one black film in a folder that says nothing of them."""
    folder = tmp_path_factory.mktemp("aligned") / "films"
    made = folder.with_name("made")
    write_phantoms(made, "thorax", 12, 0, mix=Mix(size=96, views=("frontal",), poses="wide"), workers=1)
    folder.mkdir()
    for path in (made / "films").iterdir():
        path.rename(folder / path.name)
    write_png16(folder / "black.png", np.zeros((96, 96), np.float32))
    return folder


def test_a_folder_is_aligned_by_its_own_mean_and_others_by_that(films):
    before = {path.name: path.read_bytes() for path in films.iterdir()}
    result = run("--data", films, "--by", "classical", "--size", 64)
    assert result.exit_code == 0, result.output
    out = films.with_name("films-aligned")
    assert f"{out}: " in result.output and "films/s" in result.output
    assert str(out / "before_after.png") in result.output and str(out / "refused.csv") in result.output
    table = data.read_source(out)
    assert len(table) >= 10 and "one brightness" in (out / "refused.csv").read_text()
    assert {path.name: path.read_bytes() for path in films.iterdir()} == before
    assert data.Template.load(out / "template.npz").size == 96
    again = run("--data", films, "--by", "classical", "--size", 64)
    assert again.exit_code == 0 and f"{len(table)} films aligned" in again.output
    other = films.with_name("other")
    result = run("--data", films, "--by", out / "template.npz", "--out", other, "--size", 64)
    assert result.exit_code == 0, result.output
    assert (other / "manifest.csv").read_bytes() == (out / "manifest.csv").read_bytes()


def test_errors_are_one_line(films, tmp_path):
    one_error(run("--data", tmp_path / "none", "--by", "classical"), "none", "no such file or folder")
    one_error(run("--data", films, "--by", "runs/none"), "runs/none", "no such run", "classical")
    one_error(run("--data", films, "--by", "none.npz"), "none.npz", "no such file")
    one_error(run("--data", films, "--by", "classical", "--out", films / "in"), "stays as it is")
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"no archive")
    one_error(run("--data", films, "--by", broken, "--out", tmp_path / "out"), "not a readable template")
    (tmp_path / "one").mkdir()
    write_png16(tmp_path / "one/film.png", np.eye(64, dtype=np.float32))
    one_error(
        run("--data", tmp_path / "one", "--by", "classical", "--out", tmp_path / "out"), "2 readable films"
    )


def test_checked_before_a_template_is_made(films, tmp_path, monkeypatch):
    monkeypatch.setattr("kxray.data.build_template", None)
    told = run("--data", films, "--by", "classical", "--out", tmp_path / "out", "--confidence", 50)
    assert told.exit_code == 2 and "50" in told.output and "0<=x<=1" in told.output
    assert run("--data", films, "--by", "classical", "--out", tmp_path / "out", "--size", 8).exit_code == 2
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken/notes.txt").write_text("mine")
    one_error(run("--data", films, "--by", "classical", "--out", tmp_path / "taken"), "notes.txt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["taken"]


def test_a_template_of_other_films_is_not_used_again(tmp_path, monkeypatch):
    from kxray.data import Template
    from kxray.data.align import read_films_table, table_digest

    stub, films, ones = tmp_path / "out", tmp_path / "films", np.ones(2, np.float32)
    stub.mkdir()
    films.mkdir()
    write_png16(films / "lines.png", np.tile(np.float32([0, 1]), (64, 32)))
    picture = np.eye(96, dtype=np.float32)
    Template(picture, picture, np.zeros((2, 4), np.float32), ones, ones > 0, 0.9).save(stub / "template.npz")
    monkeypatch.setattr("kxray.data.build_template", None)
    command = ("--data", films, "--by", "classical", "--out", stub, "--size", 64)
    one_error(run(*command), "a template of other films, or of another --seed")
    digest = table_digest(read_films_table(films))
    note = {name: digest[name] for name in ("films", "paths", "views", "files")} | {"seed": 3}
    (stub / "template.json").write_text(json.dumps(note))
    one_error(run(*command), "a template of other films, or of another --seed")
    result = run(*command, "--seed", 3)
    assert result.exit_code == 0 and "0 films aligned" in result.output, result.output


def test_boxes_outside_are_told(tmp_path, monkeypatch):
    counts = {"aligned": 1, "refused": 0, "boxes_left_out": 3}
    (tmp_path / "films").mkdir()
    write_png16(tmp_path / "films/film.png", np.eye(64, dtype=np.float32))

    def align_folder(*_, progress, **__):
        progress(1, 1)
        return counts

    monkeypatch.setattr("kxray.data.align.align_folder", align_folder)
    monkeypatch.setattr("training.align._own_template", lambda *_: None)
    result = run("--data", tmp_path / "films", "--by", "classical")
    assert "boxes left out, as they lie outside of the aligned films: 3" in result.output


def test_help_says_how(films):
    result = run("--help")
    assert result.exit_code == 0 and "--by classical" in result.output and "refused.csv" in result.output
