import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

import kxray
from kxray import data
from kxray.spec import ModelSpec
from training.generating import gan_watch, neighbours, sheets

LABELS = ("Cardiomegaly", "Effusion", "No Finding")


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Phantoms of 64 px with a table, read at once."""
    from kxray.data.phantom import Mix, write_phantoms

    folder = tmp_path_factory.mktemp("films") / "phantoms"
    mix = Mix(size=64, views=("frontal",), findings=LABELS[:2])
    write_phantoms(folder, "thorax", 60, 0, mix=mix, workers=1)
    return folder


def write_run(folder, films, model, **options):
    """The folder of a run whose networks never learned anything."""
    import keras

    folder.mkdir()
    conditions = data.conditions.condition_films(data.read_source(films), normal=True)
    parts = data.patient_split(conditions.table, conditions.names, val=0.25, test=0.25).parts
    gan = kxray.models.build(model, num_classes=3, latent=6, width=4, **options)
    gan.save(folder / "model.keras")
    side = max(gan.sides)
    (folder / "spec.json").write_text(ModelSpec(model, LABELS, "generator", (side, side)).to_json())
    data.save_split(conditions.table.assign(split=parts), folder / "split.csv")
    chosen = {"data": str(films), "labels": None, "normal": True, "several": "rarest"}
    config = {"recipe": model, "options": chosen, "labels": list(conditions.labels)}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "metrics.json").write_text(json.dumps({"discriminator_updates": 10 * side, "nearest": None}))
    film = keras.Input((32, 32, 1))
    x = keras.layers.Conv2D(4, 3, 2, activation="relu")(film)
    x = keras.layers.Dense(3, activation="softmax")(keras.layers.GlobalAveragePooling2D()(x))
    (folder / "features").mkdir()
    keras.Model(film, x).save(folder / "features" / "model.keras")
    (folder / "features" / "spec.json").write_text(ModelSpec("toy", LABELS, "multiclass", (32, 32)).to_json())
    return folder


@pytest.fixture(scope="module")
def runs(films, tmp_path_factory):
    """(run of attention_cgan with films of 64 and 128 px, run of cdcgan with films of 64)."""
    root = tmp_path_factory.mktemp("runs")
    return (
        write_run(root / "gan", films, "attention_cgan", scales=2),
        write_run(root / "baseline", films, "cdcgan", side=64),
    )


@pytest.fixture(scope="module")
def generate():
    """Runs `training.generate` in this process."""
    from training.generate import main

    def run(*arguments):
        result = CliRunner().invoke(main, list(map(str, arguments)))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run


def contents(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_films_are_written_marked_and_listed(generate, runs, tmp_path):
    out = tmp_path / "made"
    told = generate("--run", runs[0], "--class", "Effusion", "--count", 5, "--seed", 3, "--out", out)
    assert told.exit_code == 0, told.output
    assert told.output.startswith(f"{out}: 5 synthetic films (Effusion; 128 px, 16-bit PNG, seed 3)\n")
    table = data.read_manifest(out / "manifest.csv")
    assert len(table) == 5 and data.synthetic_rows(table).all() and table["patient_id"].is_unique
    assert table["Effusion"].tolist() == [1] * 5 and table["Cardiomegaly"].tolist() == [0] * 5
    assert table["view"].tolist() == ["frontal"] * 5
    assert data.finding_columns(table) == ["Cardiomegaly", "Effusion"]
    gan, _ = kxray.load(runs[0])
    expected = gan.sample([1] * 5, seed=3)[128][..., 0]
    for path, pixels in zip(table["path"], expected, strict=True):
        film = kxray.read_image(path)
        np.testing.assert_allclose(film.pixels, pixels, atol=1e-5)
        assert film.facts["synthetic"] is True and film.bits == 16
    with Image.open(table["path"][4]) as picture:
        texts = picture.text
    assert texts["Run"] == data.generator_digest(gan, LABELS)
    assert (texts["Condition"], texts["Seed"], texts["Number"]) == ("Effusion", "3", "4")


def test_a_killed_run_ends_alike_and_a_longer_one_keeps_its_films(generate, runs, tmp_path):
    asked = ("--run", runs[0], "--class", "Effusion", "--side", 64)
    assert generate(*asked, "--count", 21, "--out", tmp_path / "whole").exit_code == 0
    whole = contents(tmp_path / "whole")
    assert generate(*asked, "--count", 6, "--out", tmp_path / "longer").exit_code == 0
    assert generate(*asked, "--count", 21, "--out", tmp_path / "longer").exit_code == 0
    assert contents(tmp_path / "longer") == whole

    killed = tmp_path / "killed"
    assert generate(*asked, "--count", 21, "--out", killed).exit_code == 0
    (killed / "manifest.csv").unlink()
    films = sorted((killed / "films" / "Effusion").iterdir())
    for path in films[9:]:
        path.unlink()
    left, writing = (
        killed / "films" / "Effusion" / f".seed0-000009-{name}h.png" for name in ("abcdefg", "1234567")
    )
    for path in (left, writing):
        path.write_bytes(b"half")
    os.utime(left, (0, 0))
    told = generate(*asked, "--count", 21, "--out", killed)
    assert ", 9 of them were there already" in told.output
    # What another process may be writing stays.
    writing.unlink()
    assert contents(killed) == whole


def test_all_classes_other_seeds_and_dicom_share_a_folder(generate, runs, tmp_path):
    asked = ("--run", runs[1], "--count", 2, "--format", "dicom", "--out", tmp_path)
    assert generate(*asked, "--class", "all").exit_code == 0
    assert generate(*asked, "--class", "Cardiomegaly", "--seed", 9).exit_code == 0
    table = data.read_manifest(tmp_path / "manifest.csv")
    rows = list(zip(table["condition"], table["seed"], table["number"], strict=True))
    assert rows == [
        *(("Cardiomegaly", seed, number) for seed in (0, 9) for number in (0, 1)),
        *((label, 0, number) for label in LABELS[1:] for number in (0, 1)),
    ]
    assert data.synthetic_rows(table.drop(columns="synthetic").assign(patient_id=""), marks=True).all()
    assert table["patient_id"].is_unique
    gan, _ = kxray.load(runs[1])
    film = kxray.read_image(table["path"][5])
    np.testing.assert_allclose(film.pixels, gan.sample([1, 1])[64][1, ..., 0], atol=1 / 4095)


def test_truncated_films_differ_less(generate, runs, tmp_path):
    spreads = []
    for name, truncation in (("whole", 1), ("short", 0.1)):
        asked = ("--class", "Effusion", "--count", 8, "--side", 64, "--truncation", truncation)
        assert generate("--run", runs[0], *asked, "--out", tmp_path / name).exit_code == 0
        table = data.read_manifest(tmp_path / name / "manifest.csv")
        films = np.stack([kxray.read_image(path).pixels for path in table["path"]])
        spreads.append(films.std(axis=0).mean())
    assert spreads[1] < 0.5 * spreads[0]


def test_wrong_questions_are_one_line(generate, runs, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "film.png").write_text("")
    made, asked = tmp_path / "made", ("--class", "Effusion", "--count", 1)
    assert generate("--run", runs[0], *asked, "--out", made).exit_code == 0
    cases = [
        (
            ("--run", runs[0], "--class", "Edema", "--out", made),
            "unknown class 'Edema'; .* makes films of: Cardio",
        ),
        (
            ("--run", runs[0] / "features", *asked, "--out", made),
            "'toy' is a multiclass classifier, it makes no",
        ),
        (("--run", tmp_path / "nowhere", *asked, "--out", made), "nowhere: no such run folder"),
        (
            ("--run", runs[1], *asked, "--out", made),
            "made holds films of another model attention_cgan, now cdcgan",
        ),
        (
            ("--run", runs[0], *asked, "--truncation", 0.5, "--out", made),
            "made holds films of another truncation",
        ),
        (
            ("--run", runs[0], *asked, "--side", 256, "--out", made),
            "--side 256: .* makes films of 64, 128 pixels",
        ),
        (("--run", runs[0], *asked, "--data", made, "--out", made), "--data belongs to --neighbours"),
        (("--run", runs[0], *asked, "--out", tmp_path / "films"), "films holds other files; choose another"),
        (("--run", runs[0], *asked, "--out", tmp_path / "file"), "file is a file; --out names a folder"),
    ]
    for arguments, message in cases:
        told = generate(*arguments)
        assert told.exit_code == 2
        assert len(told.output.splitlines()) == 1
        pytest.raises(ValueError, _raise, told.output).match(message)
    assert len(data.read_manifest(made / "manifest.csv")) == 1


def _raise(text):
    raise ValueError(text)


def test_classes_of_any_name_have_films_of_their_own(generate, tmp_path):
    labels = ("Größe", "骨", "肋", "a/b", "a b", "7")
    run, out = tmp_path / "run", tmp_path / "made"
    run.mkdir()
    kxray.models.build("cdcgan", num_classes=6, side=64, latent=6, width=4).save(run / "model.keras")
    told = {"conditions_from": "label"}
    spec = ModelSpec("cdcgan", labels, "generator", (64, 64), provenance=told)
    (run / "spec.json").write_text(spec.to_json(), encoding="utf-8")
    for _ in range(2):
        made = generate("--run", run, "--class", "all", "--count", 2, "--out", out)
        assert made.exit_code == 0, made.output
    table = data.read_manifest(out / "manifest.csv")
    assert table["label"].tolist() == table["condition"].tolist() == [label for label in labels for _ in "12"]
    assert len({Path(path).parent for path in table["path"]}) == 6
    for path, label in zip(table["path"], table["label"], strict=True):
        with Image.open(path) as picture:
            assert picture.text["Condition"] == label
    assert generate("--run", run, "--class", "7", "--count", 1, "--out", tmp_path / "seven").exit_code == 0
    assert generate("--run", run, "--class", "7", "--count", 2, "--out", tmp_path / "seven").exit_code == 0
    assert data.read_manifest(tmp_path / "seven" / "manifest.csv")["condition"].tolist() == ["7", "7"]


def test_the_run_says_whether_classes_are_findings(runs, tmp_path):
    """Folders may be called as findings are."""
    from training.generating.generator import load_generator

    assert load_generator(runs[1]).facts.findings, "told by the names"
    for told in ("label", "findings"):
        shutil.copytree(runs[1], tmp_path / told)
        spec = ModelSpec.read(runs[1] / "spec.json")
        spec = dataclasses.replace(spec, provenance={"conditions_from": told})
        (tmp_path / told / "spec.json").write_text(spec.to_json())
        facts = load_generator(tmp_path / told).facts
        assert (facts.findings, facts.view) == ((False, "") if told == "label" else (True, "frontal"))


def test_films_that_have_been_moved_are_given(generate, runs, films, tmp_path):
    run, out = tmp_path / "run", tmp_path / "made"
    shutil.copytree(runs[1], run)
    config = json.loads((run / "config.json").read_text())
    config["options"]["data"] = str(tmp_path / "gone")
    (run / "config.json").write_text(json.dumps(config))
    asked = ("--run", run, "--class", "Effusion", "--count", 2, "--neighbours", "--out", out)
    assert generate(*asked).exit_code == 2 and not out.exists(), "found out before films are made"
    shutil.copytree(films, tmp_path / "moved")
    told = generate(*asked, "--data", tmp_path / "moved")
    assert told.exit_code == 0, told.output
    nearest = data.read_manifest(out / "manifest.csv")["nearest_film"]
    assert nearest.str.startswith("../moved/").all()
    shutil.rmtree(run / "features")
    told = generate(*asked[:-2], "features", "--out", tmp_path / "other", "--data", tmp_path / "moved")
    assert told.exit_code == 2 and "has no features/ folder" in told.output
    assert not (tmp_path / "other").exists()


def test_programs_for_classifiers_say_that_it_makes_films(runs, films, tmp_path, monkeypatch):
    import training.audit
    import training.explain
    import training.sort

    monkeypatch.chdir(tmp_path)
    for program, arguments in (
        (training.explain.main, ("--run", runs[0], "--data", films, "--out", "explained")),
        (training.explain.main, ("evaluate", "--run", runs[0], "--data", films, "--out", "compared")),
        (training.sort.main, ("--model", runs[0], "--input", films)),
        (training.audit.main, ("--data", films, "--run", runs[0], "--out", "audited")),
    ):
        told = CliRunner().invoke(program, list(map(str, arguments)))
        assert told.exit_code == 2, told.output
        assert told.output.splitlines()[-1].endswith(
            f"{runs[0]}: 'attention_cgan' makes films, it classifies none; give a classifier, or make films "
            "with training.generate"
        )
    gan, _ = kxray.load(runs[0])
    with pytest.raises(ValueError, match="got ConditionalGAN"):
        kxray.explain.attribute(gan, np.zeros((1, 64, 64, 1), np.float32), 0, "grad_cam")


def test_nearest_neighbours_by_hand():
    references = np.array([[0.0, 0.0], [1.0, 1.0], [0.0, 4.0]])
    distances, places = gan_watch.nearest(np.array([[0.0, 1.0], [1.0, 1.0]]), references, count=2)
    assert places.tolist() in ([[0, 1], [1, 0]], [[1, 0], [1, 0]])
    np.testing.assert_allclose(distances, [[np.sqrt(0.5), np.sqrt(0.5)], [0.0, 1.0]], atol=1e-7)
    assert gan_watch.nearest(references, references[:1], count=3)[0].shape == (3, 1)


def test_films_are_put_beside_their_nearest_training_films(generate, runs, tmp_path):
    asked = ("--run", runs[0], "--class", "Effusion", "--count", 3, "--side", 64)
    told = generate(*asked, "--neighbours", "--out", tmp_path / "made")
    assert told.exit_code == 0, told.output
    assert (
        "times that of held-out real films; 0 of 3 films are nearer than 0.4 times: no copies" in told.output
    )
    table = data.read_manifest(tmp_path / "made" / "manifest.csv")
    assert (table["nearest_distance"] > 0).all()
    assert data.finding_columns(table) == ["Cardiomegaly", "Effusion"]
    with Image.open(tmp_path / "made" / "neighbours" / "Effusion-seed0.png") as picture:
        assert "Synthetic" not in picture.text, "most of it are real films"
    kept = table["nearest_film"].tolist()
    assert not any(Path(path).is_absolute() for path in kept)
    assert all((tmp_path / "made" / path).resolve().is_file() for path in kept)
    assert generate(*asked[:4], "--count", 5, "--side", 64, "--out", tmp_path / "made").exit_code == 0
    again = data.read_manifest(tmp_path / "made" / "manifest.csv")
    assert again["nearest_film"].tolist() == [*kept, "", ""]


def test_a_copy_of_a_training_film_is_found(runs):
    from training.generating.gan_films import run_conditions
    from training.generating.generator import load_generator

    generator = load_generator(runs[1])
    training = neighbours.training_films(neighbours.Neighbourhood.of(generator))
    conditions, parts = run_conditions(runs[1])
    assert len(training.paths) == (parts == "train").sum()
    copied = conditions.table["path"][parts == "train"].iloc[4]
    held_out = conditions.table["path"][parts == "val"].iloc[0]
    made = pd.DataFrame({"path": [copied, held_out]})
    found, distances, places = neighbours.add_neighbours(made, training, generator.spec)
    assert found["nearest_film"][0] == copied
    assert found["nearest_distance"][0] < 1e-6 < found["nearest_distance"][1]
    assert training.paths[places[0, 0]] == copied and (np.diff(distances, axis=1) >= 0).all()
    assert "1 of 2 films are nearer than 0.4 times: look at them, they may be copies" in neighbours.told(
        distances, training
    )


def test_neighbours_by_features(runs):
    from training.generating.generator import load_generator

    generator = load_generator(runs[1])
    training = neighbours.training_films(neighbours.Neighbourhood.of(generator, "features"))
    assert training.vectors.shape[1] == 4
    found, _, _ = neighbours.add_neighbours(
        pd.DataFrame({"path": training.paths[:2]}), training, generator.spec
    )
    assert found["nearest_distance"].max() < 1e-6


def test_the_arc_between_two_vectors():
    one, other = np.array([2.0, 0.0]), np.array([0.0, 2.0])
    arc = sheets.slerp(one, other, [0.0, 0.5, 1.0])
    np.testing.assert_allclose(arc, [[2, 0], [np.sqrt(2), np.sqrt(2)], [0, 2]], atol=1e-6)
    np.testing.assert_allclose(sheets.slerp(one, one, [0.3]), [one], atol=1e-6)


def test_sheets_show_what_was_learned(generate, runs, tmp_path):
    told = generate("sheets", "--run", runs[0], "--steps", 3, "--out", tmp_path)
    assert told.exit_code == 0, told.output
    names = ["latents.png", "classes.png", "truncation.png"]
    assert told.output.split() == [str(tmp_path / name) for name in names]
    for name in names:
        with Image.open(tmp_path / name) as picture:
            assert picture.text["Synthetic"] == "yes" and min(picture.size) > 200


def test_a_sheet_begins_and_ends_with_plain_samples(runs):
    from training.generating.generator import load_generator

    generator = load_generator(runs[0])
    z = kxray.models.latents(0, 1, 6)
    films = sheets.made(generator, np.tile(z, (3, 1)), sheets._between(np.eye(3, dtype=np.float32), 0, 2, 3))
    for place, label in ((0, 0), (2, 2)):
        expected = generator.gan.sample([label], z=z)[128][0, ..., 0]
        np.testing.assert_allclose(films[place], expected, atol=1e-5)


@pytest.fixture(scope="module")
def judged(generate, runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("judged") / "out"
    asked = ("--run", runs[0], "--against", runs[1], "--resamples", 20)
    told = generate("evaluate", *asked, "--out", out)
    assert told.exit_code == 0, told.output
    return out, told.output, json.loads((out / "metrics.json").read_text())


def test_generators_stand_beside_each_other_at_equal_counts(judged, runs):
    from training.generating.gan_films import run_conditions

    out, told, found = judged
    assert [row["name"] for row in found["rows"]] == ["attention_cgan", "cdcgan", "real films"]
    conditions, parts = run_conditions(runs[0])
    tested, validated = (conditions.counts(parts == part) for part in ("test", "val"))
    for label in LABELS:
        count = found["counts"][label]
        assert count == min(tested[label], validated[label])
        for row in found["rows"]:
            counts = row["scores"]["classes"][label]["counts"]
            made = count if row["name"] == "real films" else 64
            assert counts == {"real": count, "generated": made, "compared": count}
    assert found["rows"][0]["discriminator_updates"] == 1280
    assert any(
        "they had 1280 and 640 discriminator updates: not the same" in said for said in found["verdict"]
    )
    table = pd.read_csv(out / "table.csv")
    assert len(table) == 3 * 4 and {"fdd", "fdd_low", "kid", "recall", "told_apart_auroc"} <= set(
        table.columns
    )
    overall = found["rows"][0]["scores"]["overall"]["fdd"]["value"]
    np.testing.assert_allclose(table["fdd"].tolist()[3], overall)
    (scale,), none = (row["scales"] for row in found["rows"][:2])
    assert none == [] and (scale["side"], scale["against"]) == (128, 64)
    assert "films of 128 px, averaged down, and of 64 px correlate by" in told
    assert "FDD by class" in told and f"look at {out / 'generated.html'}" in told


def test_the_page_holds_the_tables_and_the_films(judged):
    page = (judged[0] / "generated.html").read_text()
    for text in (
        "Frechet DenseNet distance",
        "cdcgan",
        "Fidelity and diversity",
        "tell generated classes apart",
    ):
        assert text in page
    assert page.count("<img") == 1 + 3
    assert "http://" not in page and "https://" not in page
    assert "Table 1 of the paper" not in page


def test_films_of_the_other_part_score_what_real_films_score(runs, tmp_path, monkeypatch):
    """A generator that gives real validation films is as near as real films are."""
    from rich.console import Console

    from training import shell
    from training.generating import evaluated

    asked = evaluated.Evaluation(resamples=0)
    with shell.progress_bars(Console()) as progress:
        from training.generating.generator import load_generator

        _, others, _ = evaluated.real_films([load_generator(runs[1])], asked, progress)
        perfect = lambda *_: ({64: others.films}, others.classes)  # noqa: E731
        monkeypatch.setattr(evaluated, "_made", perfect)
        found = evaluated.evaluate((runs[1],), None, tmp_path, asked, progress)
    first, floor = (row["scores"]["overall"]["fdd"]["value"] for row in found["rows"])
    assert first == floor


def test_evaluate_refuses_what_does_not_compare(generate, runs, tmp_path):
    told = generate("evaluate", "--run", runs[0], "--features", runs[1], "--out", tmp_path / "out")
    assert told.exit_code == 2 and "give a classifier's run" in told.output
    told = generate("evaluate", "--run", runs[0], "--features", tmp_path / "no", "--out", tmp_path / "out")
    assert told.exit_code == 2 and "no such classifier; name one with --features RUN" in told.output
    told = generate("evaluate", "--run", runs[0], "--against", runs[0], "--out", tmp_path / "out")
    assert told.exit_code == 2 and "the same run is given twice" in told.output
    other = tmp_path / "other"
    other.mkdir()
    gan = kxray.models.build("cdcgan", num_classes=2, side=64, latent=6, width=4)
    gan.save(other / "model.keras")
    (other / "spec.json").write_text(ModelSpec("cdcgan", ("rib", "spine"), "generator", (64, 64)).to_json())
    told = generate("evaluate", "--run", runs[0], "--against", other, "--out", tmp_path / "out")
    assert told.exit_code == 2 and "only runs of the same classes compare" in told.output
    assert not (tmp_path / "out").exists()


def test_the_papers_table_belongs_to_its_eight_diseases():
    from kxray.data.conditions import DISEASES
    from training.generating.evaluated_told import paper_table

    assert paper_table(LABELS) is None
    table = paper_table(DISEASES)
    assert table["attention_cgan"]["Cardiomegaly"] == 6.65e-06 and table["cdcgan"]["Effusion"] == 1.34e-04
