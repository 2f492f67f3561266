"""Counterfactuals judged beside other methods, by makers of which it is known what they change."""

import csv
import json
import shutil

import keras
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

import kxray
from kxray.io import encode_png16
from training.explain import main
from training.explaining import counterfactual_films, counterfactual_makers
from training.explaining.evaluated_films import EvaluatedFilms

SIDE = 32
LEFT, RIGHT = (slice(8, 16), slice(4, 12)), (slice(18, 24), slice(22, 30))


def saved(folder, model, labels, task, size=SIDE):
    folder.mkdir(parents=True)
    model.save(folder / "model.keras")
    spec = kxray.ModelSpec(model.name, labels, task, (size, size))
    (folder / "spec.json").write_text(spec.to_json())
    return folder


def bright_spot_model():
    """Only pixels above one half pass its ReLU: it sees nothing but the square."""
    film = keras.Input((SIDE, SIDE, 1))
    spots = keras.layers.Conv2D(1, 1, activation="relu", name="spots")(film)
    pooled = keras.layers.GlobalAveragePooling2D()(spots)
    model = keras.Model(film, keras.layers.Dense(2, activation="softmax", name="vote")(pooled), name="tiny")
    model.get_layer("spots").set_weights([np.ones((1, 1, 1, 1)), np.array([-0.5])])
    model.get_layer("vote").set_weights([np.array([[-100.0, 100.0]]), np.array([1.0, 0.0])])
    return model


def two_places_model():
    """The label "left" counts brightness in one square, "right" in another."""
    film = keras.Input((SIDE, SIDE, 1))
    weights = np.zeros((SIDE, SIDE, 2))
    weights[(*LEFT, 0)] = weights[(*RIGHT, 1)] = 0.2
    votes = keras.layers.Dense(2, activation="sigmoid", name="votes")
    model = keras.Model(film, votes(keras.layers.Flatten()(film)), name="tiny")
    votes.set_weights([weights.reshape(-1, 2), np.full(2, -3.0)])
    return model


def gan_run(folder, classifier, targets, change, **options):
    """A run whose GAN adds `change` to every pixel of every film."""
    gan = kxray.models.build(
        "counterfactual_gan", num_targets=len(targets), side=SIDE, width=4, self_attention=False, **options
    )
    kernel, _ = gan.generator.get_layer("change").get_weights()
    gan.generator.get_layer("change").set_weights([0 * kernel, np.array([np.arctanh(change)])])
    if "mask" in [layer.name for layer in gan.generator.layers if layer.weights]:
        kernel, _ = gan.generator.get_layer("mask").get_weights()
        gan.generator.get_layer("mask").set_weights([0 * kernel, np.array([20.0])])
    saved(folder, gan, targets, "counterfactual")
    shutil.copytree(classifier, folder / "classifier")
    return folder


def film(folder, name, *squares, seed=0):
    pixels = np.random.default_rng(seed).uniform(0.1, 0.3, (SIDE, SIDE)).astype("float32")
    for square in squares:
        pixels[square] = 0.9
    (folder / name).write_bytes(encode_png16(pixels))


def mask(folder, name, square):
    pixels = np.zeros((SIDE, SIDE), "uint8")
    pixels[square] = 255
    Image.fromarray(pixels).save(folder / name)
    return name


def manifest(folder, rows):
    with open(folder / "manifest.csv", "w", newline="") as file:
        table = csv.DictWriter(file, [*rows[0]])
        table.writeheader()
        table.writerows(rows)
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("changed")


@pytest.fixture(scope="module")
def run(home):
    return saved(home / "run", bright_spot_model(), ("dark", "bright"), "multiclass")


@pytest.fixture(scope="module")
def darkening(home, run):
    return gan_run(home / "darkening", run, ("dark", "bright"), -0.5)


@pytest.fixture(scope="module")
def still(home, run):
    return gan_run(home / "still", run, ("dark", "bright"), 0.0, attention=False)


@pytest.fixture(scope="module")
def films(home):
    """Eight bright films with the mask of their square, which three of them lack, and twelve dark ones."""
    folder = home / "films"
    folder.mkdir()
    rows = []
    for index in range(20):
        name, label = f"{index}.png", "bright" if index < 8 else "dark"
        film(folder, name, *([LEFT] if index < 5 else []), seed=index)
        cell = json.dumps({"spot": mask(folder, f"mask-{index}.png", LEFT)}) if label == "bright" else ""
        rows.append({"path": name, "patient_id": f"P{index // 2}", "label": label, "masks": cell})
    return manifest(folder, rows)


def evaluate(*arguments):
    result = CliRunner().invoke(main, ["evaluate", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_makers_are_rows_beside_other_methods_and_have_a_table_of_their_own(
    run, films, darkening, still, home, tmp_path
):
    autoencoder = kxray.models.build("autoencoder", side=SIDE, width=4, latent=4, depth=2)
    coder = saved(tmp_path / "coder", autoencoder, ("film",), "autoencoder")
    out = tmp_path / "out"
    told = evaluate(
        *("--run", run, "--data", films, "--out", out, "--methods", "grad_cam", "--target", "bright"),
        *("--counterfactual", darkening, "--counterfactual", f"no mask={still}"),
        *("--masked-residual", "60", "--latent-shift", coder, "--batch-size", 4),
    )
    assert told.exit_code == 0, told.output
    found = json.loads((out / "metrics.json").read_text())
    makers = ["darkening", "no mask", "masked_residual", "latent_shift"]
    assert [*found["rows"]] == ["grad_cam", *makers, "random", "centre", "film"]
    # The darkening GAN changes all alike: its map is chance. What is searched lies in the square.
    assert found["rows"]["darkening"]["outside_inside_ratio"]["value"] == pytest.approx(1, abs=0.01)
    assert found["rows"]["masked_residual"]["outside_inside_ratio"]["value"] < 0.1
    # Three films with a mask show nothing that could be turned.
    assert found["rows"]["masked_residual"]["pointing_game"]["value"] == pytest.approx(5 / 8)
    places = found["counterfactuals"]["places"]
    assert places["pairs"] == 5 and places["rows"]["masked_residual"]["pointing_game"]["value"] == 1
    assert places["rows"]["masked_residual"]["mass_inside"]["value"] > 0.7
    assert places["rows"]["darkening"]["mass_inside"]["value"] == pytest.approx(64 / SIDE**2, rel=0.01)
    assert found["rows"]["darkening"]["max_sensitivity"]["value"] == pytest.approx(0, abs=1e-5)
    assert found["rows"]["no mask"]["not_finite"] == 0
    assert {*makers} <= {*found["speed"]["seconds"]} and [*found["sanity"]["methods"]] == ["grad_cam"]

    changed = found["counterfactuals"]
    # Of 20 films asked for "dark", 15 are dark to the model already; all other dark films are the others.
    assert (changed["pairs"], changed["need"], changed["needless"]) == (20, 5, 12)
    rows = changed["rows"]
    assert rows["darkening"]["flip_rate"]["value"] == 1 and rows["no mask"]["flip_rate"]["value"] == 0
    # Five of five: the interval says that it is five.
    assert rows["darkening"]["flip_rate"]["low"] == pytest.approx(0.566, abs=0.01)
    assert rows["masked_residual"]["flip_rate"]["value"] == 1
    square = 64 / SIDE**2
    expected = 0.5 * square + 0.2 * (1 - square)
    assert rows["darkening"]["mean_change"]["value"] == pytest.approx(expected, abs=0.01)
    assert rows["darkening"]["needless_change"]["value"] == pytest.approx(0.2, abs=0.01)
    assert rows["darkening"]["needless_change"]["films"] == 12
    assert rows["no mask"]["mean_change"]["value"] == pytest.approx(0, abs=1e-6)
    assert rows["masked_residual"]["mean_change"]["value"] < 0.5 * expected
    assert rows["darkening"]["changed_share"]["value"] == 1 and rows["no mask"]["changed_share"]["value"] == 0
    assert rows["darkening"]["monotonicity"]["value"] == 1 and rows["no mask"]["monotonicity"]["films"] == 0
    assert rows["darkening"]["noise_robustness"]["value"] == 1
    assert rows["no mask"]["noise_robustness"]["films"] == 0
    # Two labels that exclude each other have no others.
    assert rows["darkening"]["label_drift"]["films"] == 0
    assert rows["darkening"]["reconstruction_error"]["films"] == 0
    assert rows["latent_shift"]["reconstruction_error"]["value"] > 0.05
    assert rows["latent_shift"]["turned_before"]["films"] == 5
    realism = changed["realism"]
    assert (realism["compared"], realism["left_out"]) == (5, 0)
    assert realism["floor"]["fdd"]["value"] < realism["before"]["fdd"]["value"]
    assert realism["makers"]["darkening"]["fdd"]["value"] < 0.1 * realism["before"]["fdd"]["value"]
    same = realism["makers"]["no mask"]["fdd"]["value"]
    assert same == pytest.approx(realism["before"]["fdd"]["value"], rel=1e-4)
    assert "no residual connection" not in changed["makers"]["no mask"]["told"]
    assert changed["makers"]["no mask"]["told"].startswith("generator with no attention mask")

    assert (
        "5 of 20 answers are to be turned (of 15 films the classifier says the opposite already)"
        in told.output
    )
    assert "other real films" in told.output and "flip rate" in told.output
    long = pd.read_csv(out / "counterfactuals.csv")
    assert len(long) == 4 * 32 and set(long["kind"]) == {"counterfactual", "needless"}
    table = pd.read_csv(out / "counterfactuals_table.csv").set_index("method")
    assert table.loc["darkening", "flip_rate"] == 1 and table.loc["(floor)", "fdd_films"] == 5
    page = (out / "evaluated.html").read_text()
    assert "What would have to change?" in page and page.count('type="range"') == 16
    assert "which has it already by its true label" in page and "features of the very classifier" in page
    assert "darkening turns 100% [57%, 100%] of 5 answers" in page


def test_a_finding_goes_and_the_others_stay(tmp_path):
    run = saved(tmp_path / "run", two_places_model(), ("left", "right"), "multilabel")
    gan = gan_run(tmp_path / "gan", run, ("no left", "left"), -0.8)
    folder = tmp_path / "films"
    folder.mkdir()
    rows = []
    for index, found in enumerate([{"left"}] * 3 + [{"left", "right"}] + [{"right"}] * 3 + [set()] * 4):
        film(
            folder,
            f"{index}.png",
            *({"left": LEFT, "right": RIGHT}[name] for name in sorted(found)),
            seed=index,
        )
        cells = {name: int(name in found) for name in ("left", "right")}
        rows.append({"path": f"{index}.png", "patient_id": f"P{index}", **cells})
    rows[-1]["left"] = ""
    manifest(folder, rows)
    out = tmp_path / "out"
    told = evaluate(
        *("--run", run, "--data", folder, "--out", out, "--methods", "gradient", "--counterfactual", gan),
        *("--metrics", "complexity"),
    )
    assert told.exit_code == 0, told.output
    changed = json.loads((out / "metrics.json").read_text())["counterfactuals"]
    # The GAN has not learned what to do about the four films with "right".
    assert changed["makers"]["counterfactual_gan"]["pairs"] == 4
    assert changed["makers"]["counterfactual_gan"]["unknown_targets"] == 4
    cells = changed["rows"]["counterfactual_gan"]
    assert cells["flip_rate"]["value"] == 1 and cells["flip_rate"]["films"] == 4
    # Six films are known to be without "left".
    assert cells["needless_change"]["films"] == 6
    before = kxray.load(run)[0]
    long = pd.read_csv(out / "counterfactuals.csv")
    both = long[long["path"].str.endswith("3.png") & (long["kind"] == "counterfactual")]
    assert both["target"].tolist() == ["no left", "no right"] and both["known"].tolist() == [1, 0]
    pixels = kxray.read_image(folder / "3.png").pixels[None, ..., None]
    drift = np.abs(before(np.maximum(pixels - 0.8, 0)).numpy() - before(pixels).numpy())[0, 1]
    assert both["label_drift"].iloc[0] == pytest.approx(drift, rel=1e-3) and drift > 0.2
    assert "4 pairs ask for a target that it has not learned" in (out / "evaluated.html").read_text()


@pytest.mark.slow
def test_interrupted_it_goes_on_and_other_runs_are_not_mixed(
    run, films, darkening, still, tmp_path, monkeypatch
):
    options = (
        "--run",
        run,
        "--data",
        films,
        "--methods",
        "gradient",
        "--films",
        6,
        "--metrics",
        "mass_inside",
    )
    options += ("--counterfactual", f"a={darkening}", "--counterfactual", f"b={still}")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert evaluate(*options, "--out", whole).exit_code == 0
    make, made = counterfactual_makers.CounterfactualMaker.__call__, []

    def failing(self, films, targets):
        made.append(self.name)
        if len(made) == 2:
            raise KeyboardInterrupt
        return make(self, films, targets)

    monkeypatch.setattr(counterfactual_makers.CounterfactualMaker, "__call__", failing)
    assert evaluate(*options, "--out", broken).exit_code == 130
    assert evaluate(*options, "--out", broken).exit_code == 0
    assert made == ["a", "b", "b"]
    for name in ("counterfactuals.csv", "counterfactuals_table.csv", "table.csv"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    swapped = [*options]
    swapped[swapped.index(f"a={darkening}")] = f"a={still}"
    swapped[swapped.index(f"b={still}")] = f"b={darkening}"
    told = evaluate(*swapped, "--out", broken)
    assert told.exit_code == 2 and "was begun with another maker of the name a" in told.output
    assert told.output.count("\n") == 1


def test_films_of_unknown_labels_have_nothing_to_be_held_against(run, darkening, tmp_path):
    folder = tmp_path / "plain"
    folder.mkdir()
    for index in range(3):
        film(folder, f"{index}.png", LEFT, seed=index)
    told = evaluate(
        *("--run", run, "--data", folder, "--out", tmp_path / "out", "--methods", "gradient"),
        *("--metrics", "complexity", "--target", "predicted", "--counterfactual", darkening),
    )
    assert told.exit_code == 0, told.output
    changed = json.loads((tmp_path / "out" / "metrics.json").read_text())["counterfactuals"]
    assert changed["rows"]["counterfactual_gan"]["flip_rate"]["value"] == 1
    assert changed["needless"] == 0 and changed["realism"]["floor"] is None
    page = (tmp_path / "out" / "evaluated.html").read_text()
    assert "no film is known to have what is asked for" in page


def test_wrong_use_is_one_line(run, films, darkening, tmp_path):
    other = bright_spot_model()
    other.get_layer("vote").set_weights([np.array([[-100.0, 101.0]]), np.array([1.0, 0.0])])
    another = saved(tmp_path / "another", other, ("dark", "bright"), "multiclass")
    small = kxray.models.build("autoencoder", side=16, width=4, latent=4, depth=2)
    small = saved(tmp_path / "small", small, ("film",), "autoencoder", 16)
    out = tmp_path / "out"
    good = ["--run", run, "--data", films, "--out", out, "--methods", "gradient"]
    for arguments, sentence in (
        (["--counterfactual", tmp_path / "absent"], "no such file or folder (--counterfactual)"),
        (["--counterfactual", f"a/b={darkening}"], "'a/b' is no name"),
        (["--counterfactual", f"lrp={darkening}"], "the name 'lrp' is taken"),
        (["--counterfactual", f"a={darkening}"] * 2, "the name 'a' is taken; give another as NAME="),
        (["--counterfactual", run], "task multiclass; give a run of training.fit counterfactual_gan"),
        (["--latent-shift", tmp_path / "absent"], "no such file or folder (--latent-shift)"),
        (["--latent-shift", run], "is no autoencoder (task 'multiclass')"),
        (["--latent-shift", small], "an autoencoder of 16x16 films, and the classifier takes 32x32"),
    ):
        told = evaluate(*good, *arguments)
        assert told.exit_code == 2 and sentence in told.output and told.output.count("\n") == 1, told.output
    good[1] = another
    told = evaluate(*good, "--counterfactual", darkening)
    assert told.exit_code == 2 and "was trained against another classifier" in told.output
    assert not (out / "work").exists()


def test_sets_that_are_held_against_each_other_are_alike_and_apart():
    def some(count, patients):
        rows = {"film": range(count), "path": [f"{row}" for row in range(count)], "patient_id": patients}
        return EvaluatedFilms(pd.DataFrame(rows), np.zeros((count, 4, 4, 1)), np.zeros((count, 4, 4), bool))

    pairs, others = some(6, list("abcdef")), some(9, list("gghhiijjk"))
    targets = np.array([0, 0, 0, 1, 1, 2] + [0] * 5 + [1] * 4, np.int32)
    films = counterfactual_films.CounterfactualFilms(pairs, others, targets, np.zeros((15, 2)))
    usable = np.ones(15, bool)
    usable[0] = False
    chosen, real, more = films.compared(usable, 0)
    assert sorted(chosen) == [1, 2, 3, 4] and targets[chosen].tolist() == targets[real].tolist()
    assert targets[real].tolist() == targets[more].tolist()
    assert not {*real} & {*more} and min(*real, *more) >= 6
    # Films of one patient stay on one side, but for the patient in the middle.
    shared = {*films.patients[real]} & {*films.patients[more]}
    assert len(shared) <= 1
    assert films.images([0, 7]).shape == (2, 4, 4, 1)


def test_what_is_known_of_films_is_read_as_targets_take_it():
    spec = kxray.ModelSpec("tiny", ("left", "right"), "multilabel", (4, 4))
    table = pd.DataFrame({"left": [1, "", 0], "path": list("abc"), "label": ""})
    np.testing.assert_array_equal(
        counterfactual_films.true_labels(table, spec), [[1, np.nan], [np.nan, np.nan], [0, np.nan]]
    )
    spec = kxray.ModelSpec("tiny", ("dark", "bright"), "binary", (4, 4))
    table = pd.DataFrame({"label": ["bright", "", "dark"]})
    np.testing.assert_array_equal(counterfactual_films.true_labels(table, spec), [1, -1, 0])
