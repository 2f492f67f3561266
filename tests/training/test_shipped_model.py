"""The view classifier in the box works right after installation, from any folder."""

import numpy as np
import pytest

from kxray.data import read_source
from kxray.data.phantom import thorax
from kxray.io.resize import resize
from training.predictor import Predictor
from training.sort import predict_rows

SHIPPED = "saved_models/view_classifier/1"


@pytest.fixture(scope="module")
def predictor():
    return Predictor(SHIPPED)


def test_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = Predictor(SHIPPED)
    assert found.spec.labels == ("frontal", "lateral") and (found.path / "saved_model.pb").is_file()


def test_its_spec_says_where_it_comes_from(predictor):
    facts = predictor.spec.provenance
    assert facts["films"] == {"frontal": 355, "lateral": 36} and facts["balanced_accuracy"]["value"] > 0.98
    assert len(facts["data_fingerprint"]) == len(facts["split_hash"]) == 64


def test_phantoms_of_another_seed(predictor):
    views = ["frontal", "lateral"] * 8
    films = [thorax(4711, index, view=view).pixels for index, view in enumerate(views)]
    probabilities = predictor(np.stack([resize(film, (64, 64))[..., None] for film in films]))
    chosen = [predictor.spec.labels[index] for index in probabilities.argmax(axis=1)]
    assert sum(said == view for said, view in zip(chosen, views, strict=True)) >= 15


@pytest.mark.real_data
def test_films_of_a_source_it_never_saw(predictor, real_data):
    paths = list(read_source(real_data / "nih")["path"])[::4]
    rows = [row for rows in predict_rows(predictor, paths) for row in rows]
    assert np.mean([row[1] == "frontal" for row in rows]) >= 0.97
