"""The recipes attention_cgan and cdcgan: a run and what it leaves, kills and resumes, what is refused."""

import json
import shutil
import signal
import textwrap
import time

import numpy as np
import pandas as pd
import pytest

from training.generating import gan_films, gan_options

SMOKE = ("--preset", "smoke", "--export", "none")
# Two epochs of three steps, killed after some of them; one process, as determinism cannot be taken back.
INTERRUPTED = """
    import sys
    from pathlib import Path

    import keras
    import numpy as np
    import tensorflow as tf

    from kxray import models
    from kxray.data import gan_batches
    from kxray.data.pipeline import ArrayInputs
    from training.generating import gan_loop

    tf.config.experimental.enable_op_determinism()
    gan_loop.keep_order()
    films = ArrayInputs(np.random.default_rng(0).random((12, 64, 64, 1), np.float32))


    class Killed(Exception):
        pass


    def trained(folder, kill_at=None, kill_in_epoch=None):
        keras.utils.set_random_seed(3)
        gan = models.build("attention_cgan", num_classes=2, scales=1, latent=4, width=4, ema=True)
        rates = [keras.optimizers.Adam(1e-3, beta_1=0.5) for _ in range(2)]
        gan.compile(*rates, augment=("translation",), ema_decay=0.5, discriminator_updates=1)

        def on_look(step, row):
            if step == kill_at:
                raise Killed

        def on_epoch(row, earlier, rows):
            if row["epoch"] == kill_in_epoch:
                raise Killed
            # The first epoch shall be the best one.
            return {"score": float(row["epoch"])}

        def batches(first_step):
            return gan_batches(
                films, np.arange(12) % 2, np.arange(12), num_classes=2, latent=4, num_draws=gan.num_draws,
                batch_size=2, updates=(1, 1), seed=5, first_step=first_step,
            )

        given = dict(epochs=2, steps=3, tau=lambda epoch: 0.1 * epoch, save_every=0.0, on_look=on_look)
        try:
            told = gan_loop.train(gan, batches, folder, on_epoch=on_epoch, keep=sys.argv[2], **given)
        except Killed:
            return None
        plain = [{k: v for k, v in row.items() if k != "seconds"} for row in told[0]]
        both = (gan.generator_optimizer, gan.discriminator_optimizer)
        variables = [*gan.variables, *(each for optimizer in both for each in optimizer.variables)]
        return [variable.numpy() for variable in variables], plain, told[1], gan.tau


    # A look at every step, so that a state is left in the middle of an epoch.
    gan_loop.LOOK = 1
    root = Path(sys.argv[1])
    whole = trained(root / "whole")
    for name, kill in (("step", {"kill_at": 5}), ("epoch", {"kill_in_epoch": 1})):
        assert trained(root / name, **kill) is None
        again = trained(root / name)
        assert all(np.array_equal(one, other) for one, other in zip(whole[0], again[0], strict=True)), name
        assert whole[1:] == again[1:], name
        print(name, "bit-equal", [row["kept"] for row in again[1]], again[3])
    states = sorted(path.name for path in (root / "step").glob("state-*"))
    assert states == ["state-00000006-1", "state-00000006-2"], states
    films.pixels[:] = np.nan
    try:
        trained(root / "broken")
    except ValueError as error:
        print(error)
"""


def fit(recipe, *arguments):
    from click.testing import CliRunner

    from training.fit import main

    result = CliRunner().invoke(main, [recipe, *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run on phantoms."""
    folder = tmp_path_factory.mktemp("gan") / "run"
    result = fit("attention_cgan", *SMOKE, "--out", folder)
    assert result.exit_code == 0, result.output
    return folder, result.output


def test_a_run_and_what_it_leaves(finished):
    import kxray

    folder, told = finished
    assert "kept: epoch" in told and "FDD" in told and "epoch 2 of 2: generator" in told
    gan, spec = kxray.load(folder)
    assert spec.task == "generator" and spec.image_size == (64, 64)
    assert spec.labels == ("Cardiomegaly", "Effusion", "No Finding")
    assert spec.provenance["sides"] == [64] and spec.provenance["latent"] == 8
    assert spec.provenance["conditions_from"] == "findings"
    made = gan.sample([0, 1, 2])[64]
    assert made.shape == (3, 64, 64, 1) and 0 <= made.min() and made.max() <= 1
    history, steps = pd.read_csv(folder / "history.csv"), pd.read_csv(folder / "steps.csv")
    assert history["step"].tolist() == [4, 8] and history["discriminator_updates"].tolist() == [8, 16]
    assert steps["discriminator_updates"].tolist() == [8, 16]
    for column in ("generator_loss", "real_conditional_64", "tau", "fdd", "kid", "diversity", "nearest"):
        assert np.isfinite(history[column]).all(), column
    scores = json.loads((folder / "metrics.json").read_text())
    assert scores["epoch"] == history["epoch"][history["fdd"].idxmin()] and scores["watch"] == []
    assert history["kept"].tolist() == [row == scores["epoch"] for row in (1, 2)]
    assert set(scores["validation"]["classes"]) == set(spec.labels)
    assert scores["fdd_of_real_films"]["value"] > 0
    page = (folder / "report.html").read_text()
    assert "not for diagnosis" in page and page.count("data:image") >= 5
    assert (folder / "tensorboard").is_dir() and not (folder / "work" / "states").exists()
    assert (folder / "features" / "model.keras").exists()


def test_the_sheet_of_an_epoch_has_a_row_a_class_and_is_marked(finished):
    from PIL import Image

    with Image.open(finished[0] / "samples" / "epoch-0002.png") as sheet:
        assert sheet.size == (64 * 2 + 2, 64 * 3 + 4) and sheet.mode == "L"
        assert sheet.text["Synthetic"] == "yes" and sheet.text["Rows"] == "Cardiomegaly, Effusion, No Finding"


def test_the_films_of_a_run_are_found_again(finished):
    conditions, parts = gan_films.run_conditions(finished[0])
    config = json.loads((finished[0] / "config.json").read_text())
    assert conditions.labels == tuple(config["labels"])
    for part, counts in config["films"].items():
        assert conditions.counts(parts == part) == counts
    patients = conditions.table["patient_id"]
    assert not set(patients[parts == "train"]) & set(patients[parts != "train"])


def test_a_finished_run_is_complete_and_an_unfinished_one_goes_on(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished[0], folder)
    assert "this run is complete" in fit("attention_cgan", "--resume", "--out", folder).output
    for other in (("--width", 8), ("--watch", "warn")):
        (folder / "metrics.json").unlink(missing_ok=True)
        result = fit("attention_cgan", "--resume", "--out", folder, *other)
        assert result.exit_code == 2 and f"was started with {other[0]}" in result.output


@pytest.mark.slow
def test_killed_at_a_step_or_in_an_epochs_end_it_ends_bit_equal(run_program, tmp_path):
    script = tmp_path / "interrupted.py"
    script.write_text(textwrap.dedent(INTERRUPTED))
    told = run_program(script, tmp_path, "score")
    assert told.code == 0, told.text
    # The weights of the first epoch are kept, and its tau with them.
    assert "step bit-equal [True, False] 0.0" in told.text and "epoch bit-equal" in told.text
    assert "became nan in step 1 (limit: a finite number); start a new run with lower" in told.text


def test_a_collapsed_generator_ends_the_run_or_is_told_of(tmp_path, monkeypatch):
    from training.generating import gan_watch

    # A generator of a few steps makes one grey film.
    monkeypatch.setattr(gan_watch, "grace_epochs", lambda epochs: 1)
    small = (
        "--features",
        "none",
        "--steps",
        1,
        "--epochs",
        2,
        "--discriminator-updates",
        1,
        "--batch-size",
        2,
    )
    folder = tmp_path / "run"
    result = fit("cdcgan", *SMOKE, *small, "--out", folder)
    assert result.exit_code == 2
    assert "error: the generator has collapsed by step 2 (epoch 2)" in result.output
    assert "limit is 0.1" in result.output and len(result.output.splitlines()[-1]) < 600
    assert list((folder / "work" / "states").glob("state-*")) and not (folder / "metrics.json").exists()
    assert len(pd.read_csv(folder / "history.csv")) == 2
    result = fit("cdcgan", *SMOKE, *small, "--watch", "warn", "--out", tmp_path / "warned")
    assert result.exit_code == 0 and "watch: the generator has collapsed by step 2" in result.output
    scores = json.loads((tmp_path / "warned" / "metrics.json").read_text())
    assert scores["watch"][0]["kind"] == "collapse" and scores["validation"] == {}
    assert scores["epoch"] == 2 and "fdd" not in scores
    assert "has collapsed" in (tmp_path / "warned" / "report.html").read_text()


def test_class_folders_are_conditions(tmp_path):
    from kxray.data import read_manifest, write_manifest
    from kxray.data.phantom import Mix, write_phantoms

    table = read_manifest(write_phantoms(tmp_path / "films", "fillet", 40, 0, mix=Mix(size=48), workers=1))
    source = ("--data", tmp_path / "films", "--dry-run")
    result = fit("cdcgan", *source, "--labels", "bone")
    assert result.exit_code == 2 and "all films show bone" in result.output
    result = fit("cdcgan", *source, "--rare", "bone", "--imbalance", 4, "--epochs", 3, "--steps", 7)
    assert result.exit_code == 0 and "made rare in training, 1 to 4: bone" in result.output
    assert "64-px films; 3 epochs of 7 steps, each 5 discriminator and 1 generator updates" in result.output
    part = np.where(np.arange(len(table)) % 4 == 0, "test", "train")
    write_manifest(table.assign(split=part), tmp_path / "films" / "manifest.csv")
    result = fit("cdcgan", *source)
    assert "the source has no validation part" in result.output


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("--batch-size", 6, "--accumulate", 4), "--batch-size 6 does not divide into --accumulate 4 parts"),
        (("--augment", "mirror"), "--augment mirror: expected none, or some of brightness"),
        (("--features", "nowhere"), "nowhere: expected auto, none, or a run with a classifier"),
        (("--feature-backbone", "vgg99"), "vgg99"),
        (("--labels", "Fracture"), "phantoms have no 'Fracture'"),
        (("--rare", "Mass"), "--rare Mass: the labels are Cardiomegaly, Effusion, No Finding"),
    ],
)
def test_told_before_anything_is_trained(given, sentence, tmp_path):
    result = fit("attention_cgan", *SMOKE, "--out", tmp_path / "run", *given)
    assert result.exit_code == 2 and sentence in result.output
    assert not (tmp_path / "run").exists()


def test_presets_name_options_that_there_are_and_the_paper_is_the_papers():
    from training import options
    from training.recipes import attention_cgan, cdcgan

    for module in (attention_cgan, cdcgan):
        for name in module.PRESETS:
            gan_options.check(options.resolve(module.Recipe, module.PRESETS, {"preset": name}))
    paper = options.resolve(attention_cgan.Recipe, attention_cgan.PRESETS, {"preset": "paper"})
    assert (paper.generator_rate, paper.discriminator_rate, paper.beta_1) == (2e-5, 2e-5, 0.5)
    assert (paper.batch_size, paper.epochs, paper.scales) == (16, 20, 3)
    assert (paper.generator_updates, paper.discriminator_updates, paper.tau) == (1, 5, "schedule")
    beyond = (paper.ema_decay, paper.r1, paper.mismatched, paper.balanced, paper.mixed_precision)
    assert gan_options.names(paper.augment) == () and not any(beyond) and paper.accumulate == 1


def test_tau_rises_by_a_tenth_every_five_epochs_and_stays_at_one():
    tau = gan_options.schedule_of(5)
    assert [tau(epoch) for epoch in (0, 4, 5, 9, 10, 14, 49, 50, 99)] == [0, 0, 0.1, 0.1, 0.2, 0.2, 0.9, 1, 1]


@pytest.mark.slow
def test_a_program_killed_twice_ends_bit_equal(run_program, start_program, tmp_path):
    """About two minutes on two cores."""
    given = (*SMOKE, "--features", "none", "--deterministic", "--steps", 25, "--epochs", 3)
    command = ("-m", "training.fit", "attention_cgan", *given)
    told = run_program(*command, "--out", tmp_path / "whole")
    assert told.code == 0, told.text
    folder = tmp_path / "killed"
    for wait in (2.0, 7.0):
        resume = ("--resume",) if (folder / "config.json").exists() else ()
        started = command if not resume else command[:3]
        process = start_program(*started, *resume, "--out", folder)
        until = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < until and not (folder / "split.csv").exists():
            time.sleep(0.1)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
    told = run_program(*command[:3], "--resume", "--out", folder)
    assert told.code == 0, told.text
    histories = [pd.read_csv(tmp_path / name / "history.csv") for name in ("whole", "killed")]
    pd.testing.assert_frame_equal(*(table.drop(columns="seconds") for table in histories))
    sheets = [(tmp_path / name / "samples" / "epoch-0003.png").read_bytes() for name in ("whole", "killed")]
    assert sheets[0] == sheets[1]
    import kxray

    one, other = (kxray.load(tmp_path / name)[0].get_weights() for name in ("whole", "killed"))
    assert all(np.array_equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


@pytest.mark.slow
def test_two_devices_and_half_precision(run_program, tmp_path):
    """About a minute: the whole run under MirroredStrategy on two logical CPUs, and in bfloat16."""
    script = tmp_path / "two.py"
    script.write_text(
        "import sys, tensorflow as tf\n"
        "cpus = tf.config.list_physical_devices('CPU')\n"
        "tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)\n"
        "from training.fit import main\n"
        "main(sys.argv[1:])\n"
    )
    small = (*SMOKE, "--features", "none", "--steps", 2)
    given = ("attention_cgan", *small, "--strategy", "mirrored", "--out", tmp_path / "two")
    told = run_program(script, *given)
    assert told.code == 0, told.text
    assert json.loads((tmp_path / "two" / "config.json").read_text())["replicas"] == 2
    told = run_program(script, "cdcgan", *small, "--mixed-precision", "--out", tmp_path / "half")
    assert told.code == 0, told.text
    assert np.isfinite(pd.read_csv(tmp_path / "half" / "history.csv")["generator_loss"]).all()
