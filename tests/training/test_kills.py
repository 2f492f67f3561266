"""SIGKILL at random moments, then the same command again: complete, valid, nothing lost or doubled.

KXRAY_KILLS sets how often each program is killed (3 by default).
"""

import json
import os
import random
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import kxray
from kxray.io import encode_png16

KILLS = int(os.environ.get("KXRAY_KILLS", "3"))
EPOCHS = 12
# training.fit as it is, but with a checkpoint after every epoch, so that short runs have many.
FIT = """
import sys
from training import loop, shell
loop.train.__kwdefaults__["save_every"] = 0.0
from training.fit import main
main(sys.argv[1:])
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def wait_for(process, condition, seconds=120):
    """Until something is true or the process has ended."""
    end = time.monotonic() + seconds
    while process.poll() is None and not condition() and time.monotonic() < end:
        time.sleep(0.01)


def kill(process):
    process.kill()
    process.wait()


def test_a_killed_fit_is_resumed_to_a_complete_run(start_program, run_program, phantoms, tmp_path):
    moments = random.Random(0)
    out = tmp_path / "run"
    options = ("--epochs", EPOCHS, "--folds", 2, "--batch-size", 16, "--deterministic", "--cache", "disk")
    first = ("view_classifier", "--data", phantoms, "--out", out, *options)
    resumed = ("view_classifier", "--out", out, "--resume")
    places = []

    def states():
        return sorted(path.as_posix() for path in (out / "work").glob("*/state-*")) + list(out.glob("*.csv"))

    for number in range(KILLS):
        process = start_program("-c", FIT, *(resumed if (out / "config.json").exists() else first))
        if number:
            # Start-up is alike in all runs: the interesting moments come after the first new file.
            before = states()
            wait_for(process, lambda before=before: states() != before)
            time.sleep(moments.uniform(0, 4))
        else:
            wait_for(process, (out / "config.json").exists)
            time.sleep(moments.uniform(0, 6))
        places.append(f"kill {number}: ended already" if process.poll() is not None else str(states()[-2:]))
        kill(process)
    told = run_program("-c", FIT, *(resumed if (out / "config.json").exists() else first))
    assert told.code == 0, (told.text, places)
    history = pd.read_csv(out / "history.csv")
    assert history["epoch"].tolist() == list(range(1, EPOCHS + 1)), places
    predictions = pd.read_csv(out / "predictions.csv")
    assert predictions["path"].is_unique and len(predictions) == 48
    model, spec = kxray.load(out)
    assert np.isfinite(model.get_weights()[0]).all() and spec.thresholds
    assert json.loads((out / "metrics.json").read_text())["films"] == 48
    for name in ("report.html", "split.csv", "saved_models/view_classifier/1/saved_model.pb"):
        assert (out / name).is_file(), name
    assert not list((out / "work").glob("*/state-*")), "no checkpoint is left"

    whole = tmp_path / "whole"
    told = run_program("-c", FIT, *first[:3], "--out", whole, *options)
    assert told.code == 0, told.text
    for table in ("history.csv", "predictions.csv"):
        again = pd.read_csv(whole / table).drop(columns="path", errors="ignore")
        ours = pd.read_csv(out / table).drop(columns="path", errors="ignore")
        pd.testing.assert_frame_equal(ours, again, check_exact=True)


@pytest.fixture
def archive(tmp_path):
    """200 films and 12 files that are none."""
    folder = tmp_path / "archive"
    draw = np.random.default_rng(0)
    for index in range(212):
        inside = folder / f"{index % 7}"
        inside.mkdir(parents=True, exist_ok=True)
        path = inside / f"{index:03}.png"
        film = draw.random((160, 120)).astype("float32") ** (1 + index % 5)
        if index % 18 == 5:
            path.write_bytes(draw.bytes(index))
        elif index % 2:
            path.write_bytes(encode_png16(film))
        else:
            Image.fromarray(np.round(film * 255).astype("uint8")).save(path)
    return folder


@pytest.fixture
def untrained(tmp_path):
    import keras

    keras.utils.set_random_seed(0)
    folder = tmp_path / "model"
    folder.mkdir()
    kxray.models.build("view_cnn").save(folder / "model.keras")
    spec = kxray.ModelSpec("view_cnn", ("frontal", "lateral"), "binary", (64, 64))
    (folder / "spec.json").write_text(spec.to_json())
    return folder


def test_a_killed_sort_is_continued_with_no_row_lost_or_doubled(
    start_program, run_program, archive, untrained, tmp_path
):
    moments = random.Random(1)
    out, whole = tmp_path / "sorted.csv", tmp_path / "whole.csv"
    part = tmp_path / "sorted.csv.part"
    common = ("-m", "training.sort", "--model", untrained, "--input", archive, "--review", 0)
    for number in range(KILLS):
        process = start_program(*common, "--out", out)
        size = part.stat().st_size if part.exists() else 0
        if number:
            wait_for(process, lambda size=size: part.exists() and part.stat().st_size > size)
        else:
            wait_for(process, part.exists)
        time.sleep(moments.uniform(0, 0.3))
        kill(process)
    for table in (out, whole):
        told = run_program(*common, "--out", table)
        assert told.code == 0, told.text
    ours, expected = (pd.read_csv(path, keep_default_na=False) for path in (out, whole))
    assert ours["path"].is_unique and len(ours) == 212 == len(expected)
    assert (expected["reason"] != "").sum() == 12
    columns = ["path", "view", "decision", "reason"]
    ours, expected = (table.sort_values("path", ignore_index=True) for table in (ours, expected))
    pd.testing.assert_frame_equal(ours[columns], expected[columns])
    ours, expected = (pd.to_numeric(table["probability"]).to_numpy() for table in (ours, expected))
    np.testing.assert_allclose(ours, expected, atol=2e-6)
    assert not part.exists()
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".part"]
