"""The recipe autoencoder: a small run, its files, a classifier's films and parts, and what it refuses."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import kxray
from kxray import data, models
from kxray.explain import latent_shift
from training.autoencoding.ae_job import reconstruction
from training.autoencoding.ae_loss import l1_ssim, squared
from training.fit import main

# As small as it gets: nothing is learned, everything is run.
TINY = ("--width", 2, "--latent", 2, "--depth", 2, "--epochs", 2, "--batch-size", 16)
PARTS = {"train": 30, "val": 10, "test": 8}


def autoencoder(*arguments):
    result = CliRunner().invoke(main, ["autoencoder", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def classifier(phantoms, tmp_path_factory):
    """A run folder as a classifier's training leaves it, of the views of phantom films, untrained."""
    folder = tmp_path_factory.mktemp("classifier") / "run"
    folder.mkdir()
    spec = kxray.ModelSpec("view_cnn", ("frontal", "lateral"), "binary", (64, 64))
    models.build("view_cnn").save(folder / "model.keras")
    (folder / "spec.json").write_text(spec.to_json())
    table = data.read_source(phantoms)
    parts = np.repeat(list(PARTS), list(PARTS.values()))
    data.save_split(table.assign(split=parts), folder / "split.csv")
    options = {"data": str(phantoms), "label_column": "view", "folds": 0}
    (folder / "config.json").write_text(json.dumps({"recipe": "view_classifier", "options": options}))
    return folder


@pytest.fixture(scope="module")
def finished(classifier, tmp_path_factory):
    """(run folder, what was printed) of a finished run on a classifier's films."""
    folder = tmp_path_factory.mktemp("autoencoder") / "run"
    told = autoencoder("--classifier", classifier, *TINY, "--out", folder)
    assert told.exit_code == 0, told.output
    return folder, told.output


def test_a_run_leaves_its_files(finished):
    folder, told = finished
    model, spec = kxray.load(folder)
    assert (spec.task, spec.labels, spec.image_size) == ("autoencoder", ("film",), (64, 64))
    assert model.get_layer("latent").output.shape == (None, 16, 16, 2)
    scores = json.loads((folder / "metrics.json").read_text())
    assert scores["psnr"]["low"] <= scores["psnr"]["value"] <= scores["psnr"]["high"]
    assert scores["error"]["films"] == PARTS["test"] and scores["code"]["numbers"] == 512
    assert 0 <= scores["classifier"]["same_decisions"]["value"] <= 1
    history = pd.read_csv(folder / "history.csv")
    assert len(history) == 2 and scores["epoch"] in (1, 2)
    page = (folder / "report.html").read_text()
    assert "given back" in page and "data:image/jpeg" in page
    assert (folder / "tensorboard").is_dir()
    assert "PSNR" in told and "the classifier decides the same" in told


def test_its_films_and_parts_are_those_of_the_classifier(finished, classifier):
    folder, _ = finished
    assert (folder / "split.csv").read_text() == (classifier / "split.csv").read_text()
    assert json.loads((folder / "config.json").read_text())["films"] == PARTS


def test_it_serves_a_latent_shift(finished, classifier):
    model, spec = kxray.load(classifier)
    films = np.random.default_rng(0).random((2, 64, 64, 1)).astype("float32")
    found = latent_shift(model, spec, kxray.load(finished[0])[0], films, "lateral")
    assert found.maps.shape == (2, 64, 64) and np.isfinite(found.maps).all()


@pytest.mark.slow
def test_a_killed_run_goes_on(finished, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(finished[0], copy)
    for name in ("metrics.json", "report.html", "model.keras"):
        (copy / name).unlink()
    told = autoencoder("--out", copy, "--resume")
    assert told.exit_code == 0, told.output
    first, again = (json.loads((run / "metrics.json").read_text()) for run in (finished[0], copy))
    assert again == first
    assert "complete" in autoencoder("--out", copy, "--resume").output


def test_a_folder_without_labels_will_do(phantoms, tmp_path):
    films = tmp_path / "films"
    films.mkdir()
    for path in sorted(phantoms.rglob("*.png"))[:32]:
        shutil.copy(path, films)
    told = autoencoder("--data", films, "--image-size", 32, *TINY, "--dry-run")
    assert told.exit_code == 0, told.output
    assert "32 films: train 19, val 6, test 7" in told.output and "films of 32x32 pixels" in told.output


def test_films_are_generated_where_none_are_given(tmp_path):
    told = autoencoder("--preset", "smoke", "--dry-run")
    assert told.exit_code == 0 and "would generate 48 thorax phantoms" in told.output


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--image-size", 40, "--depth", 4), "takes films of multiples of 16 pixels, got 40x40"),
        (("--classifier", "nowhere"), "no spec.json in it"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_read(options, told, tmp_path):
    result = autoencoder(*options, "--out", tmp_path / "run")
    assert result.exit_code == 2 and told in result.output
    assert not (tmp_path / "run").exists()


def test_another_size_than_the_classifiers_is_told(classifier, tmp_path):
    result = autoencoder("--classifier", classifier, "--image-size", 32, "--out", tmp_path / "run")
    assert result.exit_code == 2 and "the classifier takes films of 64x64 pixels" in result.output


def test_an_autoencoder_is_no_classifier(finished, tmp_path):
    result = autoencoder("--classifier", finished[0], "--out", tmp_path / "run")
    assert result.exit_code == 2 and "classifies nothing" in result.output


def test_losses_and_scores_of_a_known_error():
    films = np.random.default_rng(0).uniform(0.2, 0.8, (2, 16, 16, 1)).astype("float32")
    away = films + np.float32(0.1)
    np.testing.assert_allclose(squared(films, away), [0.01, 0.01], rtol=1e-4)
    np.testing.assert_allclose(l1_ssim(films, films), [0, 0], atol=1e-6)
    found = reconstruction(films, away)
    np.testing.assert_allclose(found["psnr"], [20, 20], atol=1e-3)
    np.testing.assert_allclose(found["error"], [0.1, 0.1], rtol=1e-4)
    np.testing.assert_allclose(l1_ssim(films, away), 0.1 + 1 - found["ssim"], rtol=1e-4)
