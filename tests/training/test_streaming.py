"""--cache stream: no film is decoded before training, and what is learned is what any other cache gives."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import kxray
from kxray.data import pipeline
from training import streaming

FEW = (
    "--epochs",
    1,
    "--image-size",
    48,
    "--backbone",
    "small_densenet",
    "--align",
    "none",
    "--batch-size",
    8,
)


@pytest.fixture(scope="module")
def chests(tmp_path_factory):
    from kxray.data.phantom import Mix, write_phantoms

    folder = tmp_path_factory.mktemp("chests") / "films"
    mix = Mix(size=48, views=("frontal",), findings=("Effusion", "Cardiomegaly"))
    write_phantoms(folder, "thorax", 36, 1, mix=mix, workers=1)
    return folder


@pytest.fixture
def fit(monkeypatch):
    from training.fit import main

    monkeypatch.setattr("serving.export.export", lambda run, to: to)
    monkeypatch.setattr("training.job.ClassifierJob.report", lambda *arguments: None)

    def run(*arguments):
        result = CliRunner().invoke(main, ["masked_densenet", *map(str, arguments)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return run


@pytest.mark.slow
def test_streamed_films_teach_what_films_in_memory_teach(fit, chests, tmp_path, monkeypatch):
    reading, training = [], []
    real = pipeline.stream_inputs

    def counting(paths, *arguments, **options):
        reading.append((len(training), options.get("measure")))
        return real(paths, *arguments, **options)

    def training_batches(*arguments, **options):
        training.append(True)
        return batches(*arguments, **options)

    def read_image(path):
        reading.append((len(training), None))
        return whole(path)

    batches, whole = pipeline.training_batches, kxray.io.read_image
    code, text = fit("--data", chests, "--out", tmp_path / "memory", *FEW)
    assert code == 0, text
    monkeypatch.setattr(pipeline, "stream_inputs", counting)
    monkeypatch.setattr(pipeline, "training_batches", training_batches)
    monkeypatch.setattr("kxray.io.read_image", read_image)
    monkeypatch.setattr("kxray.io.read.read_image", read_image)
    code, text = fit("--data", chests, "--out", tmp_path / "stream", *FEW, "--cache", "stream")
    assert code == 0, text
    assert reading and all(begun for begun, _ in reading)
    # Only what the baseline without anatomy is told of is measured, after the training.
    assert [measure is not None for _, measure in reading].count(True) == 1 and reading[-1][1] is not None
    memory, stream = (pd.read_csv(tmp_path / name / "predictions.csv") for name in ("memory", "stream"))
    columns = [name for name in memory.columns if name != "group"]
    pd.testing.assert_frame_equal(memory[columns], stream[columns], atol=1e-4)


def test_films_of_nobody_are_refused(fit, chests, tmp_path):
    folder = tmp_path / "films"
    shutil.copytree(chests, folder)
    table = pd.read_csv(folder / "manifest.csv", dtype=str)
    table.loc[3, "patient_id"] = np.nan
    table.to_csv(folder / "manifest.csv", index=False)
    code, text = fit("--data", folder, "--out", tmp_path / "run", *FEW, "--cache", "stream")
    assert code == 2 and "1 films without a patient_id" in text and "--cache disk" in text
    assert not (tmp_path / "run").exists()


def split_copy(chests, folder, damaged):
    """A copy of the films with a split of their own and a damaged film in one part; (its row, its name)."""
    shutil.copytree(chests, folder)
    table = pd.read_csv(folder / "manifest.csv", dtype=str)
    table["split"] = np.resize(["train", "train", "val", "test"], len(table))
    # Films of one patient are in one part.
    table["patient_id"] = [f"p{index}" for index in range(len(table))]
    row = int(np.flatnonzero(table["split"] == damaged)[1])
    (folder / table["path"][row]).write_bytes(b"no film")
    table.to_csv(folder / "manifest.csv", index=False)
    return row, table["path"][row]


UNBOXED = ("--masking", "uniform", "--box-loss", 0, "--cache", "stream")


def test_a_training_film_that_cannot_be_read_is_named_when_its_batch_comes(fit, chests, tmp_path):
    _, name = split_copy(chests, tmp_path / "films", "train")
    code, text = fit("--data", tmp_path / "films", "--out", tmp_path / "run", *FEW, *UNBOXED)
    last = text.strip().splitlines()[-1]
    assert code == 2 and last.startswith(f"error: {tmp_path / 'films'}") and name in last


def test_a_test_film_that_cannot_be_read_is_found_before_the_training(fit, chests, tmp_path, monkeypatch):
    row, name = split_copy(chests, tmp_path / "films", "test")
    monkeypatch.setattr(pipeline, "training_batches", None)
    code, text = fit("--data", tmp_path / "films", "--out", tmp_path / "run", *FEW, *UNBOXED)
    assert code == 2 and f"row {row + 2}: unreadable film" in text and name in text
    assert not (tmp_path / "run").exists()


def test_unreadable_test_films_are_left_out_where_that_is_asked(chests, tmp_path):
    from kxray import data
    from training.films import RunFilms

    row, name = split_copy(chests, tmp_path / "films", "val")
    table = data.read_source(tmp_path / "films").assign(training_only=False)
    inputs = pipeline.NetworkInputs(tuple(table["path"]), None, None, {}, {"min_side": 32})
    numbers = tuple(data.manifest.row_numbers(table))
    films = RunFilms(table, inputs, np.zeros((len(table), 2)), None, None, (), numbers)
    split = data.given_split(table, grouping=data.film_groups(table))

    @dataclasses.dataclass
    class Options:
        folds: int = 0
        skip_bad: bool = True
        data: str = "films"

    progress = Progress()
    for _ in range(2):
        kept, parts = streaming.without_unreadable(films, split, Options(), tmp_path, progress)
    assert row not in kept.table.index and len(kept.table) == len(table) - 1 == len(parts.parts)
    assert len(parts.grouping.groups) == len(parts.parts) and "left out" in kept.notes[-1]
    assert (parts.parts == kept.table["split"]).all()
    listed = pd.read_csv(tmp_path / "skipped.csv")
    assert listed["row"].tolist() == [row + 2] and name in listed["problem"][0]
    assert streaming.without_unreadable(kept, parts, Options(), tmp_path, progress) is None
    # With folds every film is tested; one that is decoded first is not looked at again.
    (tmp_path / "films" / pd.read_csv(tmp_path / "films" / "manifest.csv")["path"][0]).write_bytes(b"")
    with pytest.raises(data.ManifestError, match="row 2: unreadable"):
        streaming.without_unreadable(kept, parts, Options(2, False), tmp_path, progress)
    read = dataclasses.replace(kept, features=np.zeros((len(table), 1)))
    assert streaming.without_unreadable(read, parts, Options(2, False), tmp_path, progress) is None


class Progress:
    def add_task(self, name, total, facts):
        return 0

    def update(self, bar, completed):
        pass


def test_boxes_are_part_of_what_a_run_was_started_on(chests):
    from kxray import data
    from training.films import RunFilms

    table = data.read_source(chests).assign(training_only=False)
    films = RunFilms(table, None, None, None, None, ())
    moved = table.copy()
    row = table.index[table["boxes"].map(len) > 0][0]
    moved.at[row, "boxes"] = [{**box, "x": box["x"] + 1} for box in moved.at[row, "boxes"]]
    assert streaming.fingerprint(films) == streaming.fingerprint(dataclasses.replace(films))
    assert streaming.fingerprint(films) != streaming.fingerprint(dataclasses.replace(films, table=moved))
