"""The classifier that sees films for the distances: what it gives, how it is trained, and that it lasts."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy.ndimage import gaussian_filter

from kxray.data.pipeline import ArrayInputs
from training.generating import feature_model as module
from training.generating.feature_model import FeatureModel, train_feature_model

LABELS = ("Mass", "Nodule")
FEATURES = 24


def toy_films(seed, classes, side=32):
    """Texture with a large disc on the left, or a small one on the right, float32 (N, side, side, 1)."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side
    texture = gaussian_filter(random.standard_normal((len(classes), side, side)), (0, 1, 1))
    places = random.uniform(0.4, 0.6, (len(classes), 1, 1))
    large = np.hypot(y - places, x - 0.3) < 0.2
    small = np.hypot(y - places, x - 0.7) < 0.1
    disc = np.where(np.asarray(classes)[:, None, None] == 0, large, small)
    return np.clip(0.4 + 0.15 * texture + 0.35 * disc, 0, 1).astype(np.float32)[..., None]


@pytest.fixture(scope="module", autouse=True)
def tiny_network():
    """One layer a block, so that building and tracing take seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kxray.models._small_densenet.LAYERS", (1, 1, 1, 1))
        yield


@pytest.fixture(scope="module")
def films():
    classes = np.arange(96) % 2
    table = pd.DataFrame({"patient_id": np.arange(96) // 2})
    conditions = SimpleNamespace(classes=classes, labels=LABELS, table=table)
    return conditions, ArrayInputs(toy_films(0, classes)), np.arange(64), np.arange(64, 96)


@pytest.fixture(scope="module")
def trained(films, tmp_path_factory):
    """A feature model whose training was interrupted after its last epoch, and went on."""
    folder = tmp_path_factory.mktemp("runs") / "feature_model"
    options = {"backbone": "small_densenet", "epochs": 6, "seed": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_kept", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train_feature_model(*films, folder, **options)
    written = (folder / "work" / "feature_model" / "history.csv").stat().st_mtime_ns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("keras.Model.fit", None)
        model = train_feature_model(*films, folder, **options)
    assert written and not (folder / "work").exists()
    return model, folder, options


def test_it_learns_its_classes_and_says_so(trained):
    model, folder, _ = trained
    areas = model.validation["auroc"]
    assert list(areas) == list(LABELS) and model.validation["films"] == 32
    assert areas["Mass"]["value"] > 0.9 and areas["Mass"]["films"] == 16
    assert areas["Mass"]["low"] <= areas["Mass"]["value"] <= areas["Mass"]["high"]
    told = json.loads((folder / "spec.json").read_text())["provenance"]
    assert told["validation"]["mean_auroc"] == model.validation["mean_auroc"]
    assert told["films"] == {"train": 64, "validation": 32} and 1 <= told["best_epoch"] <= 6
    assert len(pd.read_csv(folder / "history.csv")) == 6


def test_a_finished_one_is_found_again_and_no_other(trained, films, monkeypatch):
    model, folder, options = trained
    monkeypatch.setattr("keras.Model.fit", None)
    again = train_feature_model(*films, folder, **options)
    new = toy_films(1, [0, 1, 0])
    np.testing.assert_array_equal(again.features(new)["logits"], model.features(new)["logits"])
    with pytest.raises(ValueError, match="feature model of other epochs and seed"):
        train_feature_model(*films, folder, **{**options, "epochs": 7, "seed": 2})
    conditions, inputs, train, validation = films
    with pytest.raises(ValueError, match="feature model of other films and fingerprint"):
        train_feature_model(conditions, inputs, train[:-2], validation, folder, **options)


def test_features_are_what_the_logits_are_made_of(trained):
    model, _, _ = trained
    films = toy_films(2, [0, 1, 1, 0, 1])
    seen = model.features(films)
    assert {name: values.shape for name, values in seen.items()} == {
        "features": (5, FEATURES),
        "probabilities": (5, 2),
        "logits": (5, 2),
        "scores": (5, 2),
    }
    assert {values.dtype for values in seen.values()} == {np.dtype("float32")}
    dense = model.model.get_layer("logits_block4")
    made = seen["features"] @ dense.kernel.numpy() + dense.bias.numpy()
    np.testing.assert_allclose(made, seen["logits"], atol=1e-5)
    np.testing.assert_allclose(seen["probabilities"], model.model(films), atol=1e-5)
    np.testing.assert_array_equal(seen["scores"], seen["probabilities"])


def test_batches_sizes_and_one_trace(trained):
    model, _, _ = trained
    films = toy_films(3, np.arange(11) % 2)
    whole = model.features(films)["features"]
    np.testing.assert_allclose(model.features(films, batch_size=4)["features"], whole, atol=1e-5)
    rows = [3, 1, 10]
    inputs = ArrayInputs(films)
    np.testing.assert_allclose(model.features_of(inputs, rows)["features"], whole[rows], atol=1e-5)
    np.testing.assert_array_equal(model.features(films.astype(float))["features"], whole)
    larger = np.repeat(np.repeat(films, 2, axis=1), 2, axis=2)
    assert model.features(larger)["features"].shape == (11, FEATURES)
    assert model.features(films[:0])["features"].shape == (0, FEATURES)
    assert model.features_of(inputs, [])["logits"].shape == (0, 2)
    assert model._traced().experimental_get_tracing_count() == 1


def test_distances_grow_with_noise_blur_and_wrong_classes(trained):
    from kxray.metrics import frechet_distance, kernel_distance

    model, _, _ = trained
    real, other, wrong = (toy_films(seed, np.full(150, kind)) for seed, kind in ((4, 0), (5, 0), (6, 1)))
    random = np.random.default_rng(7)
    noise = random.standard_normal(other.shape)
    series = {
        "noise": [np.clip(other + sigma * noise, 0, 1) for sigma in (0.05, 0.1, 0.2)],
        "blur": [gaussian_filter(other, (0, sigma, sigma, 0)) for sigma in (0.7, 1.2, 2.0)],
        "wrong class": [np.concatenate([wrong[:count], other[count:]]) for count in (30, 75, 150)],
    }
    seen = model.features(real)["features"]
    for name, steps in series.items():
        made = [model.features(films.astype(np.float32))["features"] for films in (other, *steps)]
        for distance in (frechet_distance, kernel_distance):
            values = [distance(seen, each) for each in made]
            assert values == sorted(values), (name, values)


def test_conditions_in_another_order_and_unknown_ones(trained):
    model, folder, _ = trained
    films = toy_films(8, [0, 1])
    turned = FeatureModel.load(folder, labels=("Nodule", "Mass"))
    seen = turned.features(films)
    np.testing.assert_array_equal(seen["scores"], seen["probabilities"][:, ::-1])
    unknown = FeatureModel(model.model, model.spec, labels=("Mass", "Hernia"))
    assert not unknown.knows and np.isnan(unknown.features(films)["scores"]).all()


@pytest.mark.parametrize(
    "name, options, features",
    [
        # Those of the tapped stages are joined.
        ("multiscale_densenet", {"backbone": "small_densenet", "taps": 3}, 26 + 25 + FEATURES),
        ("view_cnn", {}, None),
        ("masked_densenet", {"backbone": "small_densenet", "taps": 1}, FEATURES),
    ],
)
def test_any_of_our_classifiers(tmp_path, name, options, features):
    from kxray import ModelSpec, models

    size = (64, 64)
    model = models.build(name, image_size=size, **options)
    units = model.outputs[0].shape[-1]
    task = {1: "binary", 2: "multiclass"}.get(units, "multilabel")
    labels = ("a", "b") if units == 1 else tuple("abcdefghijklmnop"[:units])
    model.save(tmp_path / "model.keras")
    (tmp_path / "spec.json").write_text(ModelSpec(name, labels, task, size).to_json())
    loaded = FeatureModel.load(tmp_path)
    films = np.random.default_rng(0).random((3, 64, 64, 1)).astype(np.float32)
    seen = loaded.features(films)
    assert seen["features"].shape[0] == 3 and np.isfinite(seen["features"]).all()
    assert features is None or seen["features"].shape[1] == features
    expected = np.asarray(model(films, training=False))
    if units == 1:
        expected = np.concatenate([1 - expected, expected], axis=1)
    np.testing.assert_allclose(seen["probabilities"], expected, atol=1e-4)
    assert loaded.validation is None


def test_wrong_films_and_models(trained):
    model, _, _ = trained
    for wrong in (np.zeros((2, 32, 32, 1), np.uint8), np.zeros((32, 32, 1)), np.zeros((2, 32, 32, 3))):
        with pytest.raises(ValueError, match=r"expected float films \(N, h, w, 1\) in \[0, 1\], got"):
            model.features(wrong)
    maker = SimpleNamespace(task="generator", name="attention_cgan")
    with pytest.raises(ValueError, match="attention_cgan makes films"):
        FeatureModel(None, maker)


def test_wrong_parts(films, tmp_path):
    conditions, inputs, train, validation = films
    with pytest.raises(ValueError, match="2 films are in both"):
        train_feature_model(conditions, inputs, np.arange(66), validation, tmp_path / "run")
    with pytest.raises(ValueError, match="there are none"):
        train_feature_model(conditions, inputs, train, [], tmp_path / "run")
    with pytest.raises(ValueError, match="got Mass, Nodule, and none of Nodule"):
        train_feature_model(conditions, inputs, train[::2], validation, tmp_path / "run")
    assert not (tmp_path / "run").exists()
