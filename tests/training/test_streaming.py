"""--cache stream: nothing is read before training, and what is learned is what any other cache gives."""

import shutil

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from kxray.data import pipeline

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


def test_streamed_films_teach_what_films_in_memory_teach(fit, chests, tmp_path, monkeypatch):
    reading, training = [], []
    real = pipeline.stream_inputs

    def counting(paths, *arguments, **options):
        reading.append((len(training), options.get("measure")))
        return real(paths, *arguments, **options)

    def training_batches(*arguments, **options):
        training.append(True)
        return batches(*arguments, **options)

    batches = pipeline.training_batches
    code, text = fit("--data", chests, "--out", tmp_path / "memory", *FEW)
    assert code == 0, text
    monkeypatch.setattr(pipeline, "stream_inputs", counting)
    monkeypatch.setattr(pipeline, "training_batches", training_batches)
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


def test_a_film_that_cannot_be_read_is_named_when_its_batch_comes(fit, chests, tmp_path):
    folder = tmp_path / "films"
    shutil.copytree(chests, folder)
    for path in sorted((folder / "films").rglob("*.png"))[::2]:
        path.write_bytes(b"no film")
    unboxed = ("--masking", "uniform", "--box-loss", 0)
    code, text = fit("--data", folder, "--out", tmp_path / "run", *FEW, "--cache", "stream", *unboxed)
    assert code == 2 and text.strip().splitlines()[-1].startswith(f"error: {folder}")
