"""python -m training.phantom, as a shell user meets it."""

import subprocess
import sys
import time

import pandas as pd
import pytest
from click.testing import CliRunner

from training.phantom import main


def run(*arguments):
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize(("kind", "size"), [("thorax", 64), ("fillet", 100)])
def test_it_writes_films_a_manifest_and_a_contact_sheet(tmp_path, kind, size):
    result = run("--kind", kind, "--count", 6, "--out", tmp_path / "films", "--size", size, "--workers", 1)
    assert result.exit_code == 0, result.output
    summary = result.output.strip().splitlines()[-1]
    assert f"6 {kind} films" in summary and "films/s" in summary and summary.endswith("manifest.csv")
    assert len(pd.read_csv(tmp_path / "films" / "manifest.csv")) == 6
    assert (tmp_path / "films" / "contact_sheet.png").stat().st_size > 5000
    again = run("--kind", kind, "--count", 6, "--out", tmp_path / "films", "--size", size)
    assert again.exit_code == 0 and "6 were there already" in again.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--kind", "thorax", "--count", 0], "count must be a whole number from 1, got 0"),
        (["--kind", "hand"], "kind must be thorax or fillet, got 'hand'"),
        (["--kind", "thorax", "--findings", "Gout"], "unknown finding Gout"),
        (["--kind", "thorax", "--size", 5], "size must be 32 to 4096"),
        (["--kind", "thorax", "--format", "tiff"], "format must be png or dicom"),
        (["--kind", "thorax", "--workers", 0], "workers must be at least 1"),
        (["--kind", "thorax", "--seed", -1], "seed must be a whole number from 0"),
    ],
)
def test_bad_arguments_give_one_line(tmp_path, arguments, message):
    result = run(*arguments, "--out", tmp_path / "films")
    lines = result.output.splitlines()
    assert result.exit_code == 2 and len(lines) == 1
    assert lines[0].startswith("error: ") and message in lines[0]
    assert not (tmp_path / "films").exists()


def test_a_folder_that_cannot_be_written_gives_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = run("--kind", "thorax", "--count", 1, "--out", tmp_path / "file" / "films")
    assert result.exit_code == 2 and len(result.output.splitlines()) == 1
    assert result.output.startswith("error: ")


def test_help_teaches_and_is_quick():
    started = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "training.phantom", "--help"],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0 and time.perf_counter() - started < 5
    assert "Examples" in result.stdout and "--kind fillet" in result.stdout
    assert "numpy" not in result.stderr and "tensorflow" not in result.stderr
