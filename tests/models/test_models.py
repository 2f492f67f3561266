"""The registry and its reader: every model by name, saved, and loaded where nothing else was imported."""

import json
import subprocess
import sys
import textwrap
import zipfile

import keras
import numpy as np
import pytest

import kxray
from kxray.layers import RandomAffine

SPEC = kxray.ModelSpec("view_cnn", ("frontal", "lateral"), "binary", (64, 64), temperature=1.25)
# Choe & Jo (2020), table 1: output size and parameters of each layer.
TABLE = [
    ("conv2d_1", (62, 62, 16), 448),
    ("max_pooling2d_1", (31, 31, 16), 0),
    ("conv2d_2", (29, 29, 32), 4_640),
    ("max_pooling2d_2", (14, 14, 32), 0),
    ("conv2d_3", (12, 12, 64), 18_496),
    ("max_pooling2d_3", (6, 6, 64), 0),
    ("conv2d_4", (4, 4, 128), 73_856),
    ("average_pooling2d_1", (1, 1, 128), 0),
    ("flatten_1", (128,), 0),
    ("dense_1", (64,), 8_256),
    ("dense_2", (1,), 65),
]

# Every model of the registry, small.
EVERY = {
    "aligner": {"image_size": (64, 64), "size": 32},
    "alexnet": {"image_size": (64, 64), "num_labels": 2},
    "autoencoder": {"side": 64, "width": 8},
    "masked_densenet": {"image_size": (64, 64), "backbone": "small_densenet", "taps": 2, "align_size": 32},
    "multiscale_densenet": {"image_size": (64, 64), "backbone": "small_densenet"},
    "transfer": {"image_size": (64, 64), "backbone": "mobilenetv3small"},
    "view_cnn": {},
}


@pytest.fixture(scope="module")
def view_cnn():
    keras.utils.set_random_seed(3)
    return kxray.models.build("view_cnn")


@pytest.fixture
def images():
    return np.random.default_rng(0).random((3, 64, 64, 1), np.float32)


def save(model, folder):
    folder.mkdir()
    model.save(folder / "model.keras")
    (folder / "spec.json").write_text(SPEC.to_json())
    return folder


def test_view_cnn_is_the_papers_table(view_cnn):
    built = [(layer.name, tuple(layer.output.shape[1:]), layer.count_params()) for layer in view_cnn.layers]
    assert built == [("film", (64, 64, 1), 0), ("repeat_channel", (64, 64, 3), 0), *TABLE]
    assert view_cnn.count_params() == 105_761 == sum(parameters for _, _, parameters in TABLE)


def test_a_film_counts_as_three_equal_channels(view_cnn, images):
    kernel, bias = view_cnn.get_layer("conv2d_1").get_weights()
    until_first = keras.Model(view_cnn.input, view_cnn.get_layer("conv2d_1").output)
    patch = images[0, :3, :3, 0]
    by_hand = np.maximum((patch[..., None, None] * kernel).sum((0, 1, 2)) + bias, 0)
    np.testing.assert_allclose(until_first.predict(images, verbose=0)[0, 0, 0], by_hand, atol=1e-5)


def test_other_sizes_keep_the_parameters():
    model = kxray.models.build("view_cnn", image_size=(96, 80), name="wide")
    assert model.input_shape == (None, 96, 80, 1) and model.name == "wide"
    assert model.count_params() == 105_761
    with pytest.raises(ValueError, match="at least 64 x 64 pixels, got image_size=.32, 64."):
        kxray.models.build("view_cnn", image_size=(32, 64))


def test_the_answer_is_float32_under_any_policy(images):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = kxray.models.build("view_cnn")
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_layer("conv2d_4").compute_dtype == "bfloat16"
    assert model.predict(images, verbose=0).dtype == np.float32


def test_the_folder_is_the_registry():
    assert "view_cnn" in kxray.models.names()
    assert all(not name.startswith("_") for name in kxray.models.names())


def test_unknown_names_and_options_are_told_the_known_ones():
    with pytest.raises(ValueError, match="unknown model 'view_ccn'; the known models are: .*view_cnn"):
        kxray.models.build("view_ccn")
    with pytest.raises(ValueError, match="no option 'depth'; its options are: image_size, name"):
        kxray.models.build("view_cnn", depth=3)


def in_a_fresh_process(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_every_model_answers_alike_in_a_fresh_process(images, tmp_path):
    # test_attention_cgan.py and test_counterfactual_gan.py say the same of those that make films.
    assert set(kxray.models.names()) == {*EVERY, "attention_cgan", "cdcgan", "counterfactual_gan"}
    expected = {}
    for name in EVERY:
        model = kxray.models.build(name, **EVERY[name])
        model.save(tmp_path / f"{name}.keras")
        answer = model(images)
        for key, value in (answer if isinstance(answer, dict) else {"": answer}).items():
            expected[f"{name}/{key}"] = value.numpy()
    np.save(tmp_path / "images.npy", images)
    code = """
        import pathlib, sys
        import kxray
        import keras
        import numpy as np
        folder = pathlib.Path(sys.argv[1])
        images, answers = np.load(folder / "images.npy"), {}
        for path in folder.glob("*.keras"):
            answer = keras.saving.load_model(path)(images)
            for key, value in (answer if isinstance(answer, dict) else {"": answer}).items():
                answers[f"{path.stem}/{key}"] = value.numpy()
        np.savez(folder / "answers.npz", **answers)
        print("done")
    """
    assert in_a_fresh_process(code, tmp_path) == "done"
    answers = np.load(tmp_path / "answers.npz")
    assert set(answers) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(answers[key], value, atol=1e-5, err_msg=key)


def test_a_saved_run_loads_after_import_kxray_alone(view_cnn, images, tmp_path):
    augmented = keras.Sequential([keras.Input((64, 64, 1)), RandomAffine(seed=5, name="augment"), view_cnn])
    run = save(augmented, tmp_path / "run")
    np.save(tmp_path / "images.npy", images)
    code = """
        import json, sys
        import kxray
        assert "keras" not in sys.modules
        import keras  # Keras after kxray, and kxray.layers never named
        import numpy as np
        assert "kxray.layers" in sys.modules
        plain = keras.saving.load_model(sys.argv[1] + "/model.keras")
        model, spec = kxray.load(sys.argv[1])
        images = np.load(sys.argv[2])
        print(json.dumps({
            "layer": type(model.get_layer("augment")).__name__,
            "seed": model.get_layer("augment").seed,
            "temperature": spec.temperature,
            "answers": model.predict(images, verbose=0).tolist(),
            "plain": plain.predict(images, verbose=0).tolist(),
        }))
    """
    told = json.loads(in_a_fresh_process(code, run, tmp_path / "images.npy"))
    assert (told["layer"], told["seed"], told["temperature"]) == ("RandomAffine", 5, 1.25)
    np.testing.assert_allclose(told["answers"], view_cnn.predict(images, verbose=0), atol=1e-6)
    np.testing.assert_allclose(told["plain"], told["answers"], atol=1e-6)


def test_tensorflow_may_be_imported_in_between(view_cnn, images, tmp_path):
    # TensorFlow asks where Keras is before it imports it.
    run = save(keras.Sequential([keras.Input((64, 64, 1)), RandomAffine(seed=5), view_cnn]), tmp_path / "run")
    code = """
        import sys
        import kxray
        import tensorflow as tf
        import keras
        print(type(keras.saving.load_model(sys.argv[1] + "/model.keras").layers[0]).__name__)
    """
    assert in_a_fresh_process(code, run) == "RandomAffine"


def test_load_takes_a_run_or_its_file(view_cnn, images, tmp_path):
    run = save(view_cnn, tmp_path / "run")
    for path in (run, str(run), run / "model.keras"):
        model, spec = kxray.load(path)
        assert spec == SPEC
        np.testing.assert_array_equal(model(images), view_cnn(images))


def test_load_says_what_is_missing(view_cnn, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such run folder or .keras file"):
        kxray.load(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="trained model model.keras is missing; .*--resume"):
        kxray.load(tmp_path)
    run = save(view_cnn, tmp_path / "run")
    (run / "spec.json").unlink()
    with pytest.raises(FileNotFoundError, match="model spec spec.json is missing"):
        kxray.load(run)


def damage(run, how):
    file = run / "model.keras"
    if how == "text":
        file.write_text("not a model")
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:-1000])
    elif how == "other zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("readme.txt", "hello")
    elif how == "unknown layer":
        with zipfile.ZipFile(file) as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        parts["config.json"] = parts["config.json"].replace(b'"Conv2D"', b'"Conv9D"')
        with zipfile.ZipFile(file, "w") as archive:
            for name, content in parts.items():
                archive.writestr(name, content)


@pytest.mark.parametrize("how", ["text", "empty", "cut", "other zip", "unknown layer"])
def test_a_damaged_model_is_one_sentence(view_cnn, tmp_path, how):
    run = save(view_cnn, tmp_path / "run")
    damage(run, how)
    with pytest.raises(ValueError, match="model.keras: not a readable .keras file: .") as refused:
        kxray.load(run)
    assert "\n" not in str(refused.value)


def test_a_damaged_spec_names_its_file(view_cnn, tmp_path):
    run = save(view_cnn, tmp_path / "run")
    (run / "spec.json").write_text("{}")
    with pytest.raises(ValueError, match="spec.json: a model spec must be a JSON object"):
        kxray.load(run)
