import contextlib
import dataclasses
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent

# What TensorFlow Serving does, in a process that imports TensorFlow alone.
TF1_LOADER = """
import sys
import numpy as np
import tensorflow as tf

folder, requests, answers = sys.argv[1:]
given = np.load(requests, allow_pickle=True)["requests"].item()
with tf.compat.v1.Session(graph=tf.Graph()) as session:
    meta_graph = tf.compat.v1.saved_model.loader.load(session, ["serve"], folder)
    session.run(tf.compat.v1.tables_initializer())
    names = {name for name in meta_graph.signature_def if not name.startswith("__")}
    found = dict.fromkeys(names)
    for name in given:
        signature = meta_graph.signature_def[name]
        assert signature.method_name == "tensorflow/serving/predict"
        feeds = {signature.inputs[key].name: value for key, value in given[name].items()}
        assert set(given[name]) == set(signature.inputs)
        found[name] = session.run({key: info.name for key, info in signature.outputs.items()}, feeds)
assert not [name for name in sys.modules if name.split(".")[0] in ("kxray", "serving")]
np.savez(answers, answers=np.array(found, dtype=object))
"""


@pytest.fixture(scope="session")
def spec():
    from kxray.spec import ModelSpec

    return ModelSpec(
        name="view_cnn",
        labels=("frontal", "lateral"),
        task="binary",
        image_size=(64, 64),
        thresholds={"frontal": 0.6, "lateral": 0.55},
        temperature=1.5,
    )


@pytest.fixture(scope="session")
def fixed_weights():
    """Fills a model with weights from integer arithmetic: the same on every machine and version."""

    def fill(model, gain=8.0):
        for seed, variable in enumerate(model.weights):
            count = int(np.prod(variable.shape))
            numbers = np.arange(1, count + 1, dtype=np.uint64) + np.uint64(1_000_003 * (seed + 1))
            for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
                numbers = (numbers ^ (numbers >> np.uint64(33))) * np.uint64(factor)  # wraps, as it should
            numbers = (numbers >> np.uint64(32)).astype("float64")
            fan_in = int(np.prod(variable.shape[:-1])) or 1
            scale = gain / np.sqrt(fan_in) if len(variable.shape) > 1 else 0.1
            variable.assign((scale * (numbers / 2**32 - 0.5)).reshape(variable.shape).astype("float32"))
        return model

    return fill


@pytest.fixture(scope="session")
def model(fixed_weights):
    import kxray

    model = fixed_weights(kxray.models.build("view_cnn"))
    # The films of make_film then get both labels, and both sides of both thresholds.
    model.get_layer("dense_2").bias.assign([1.2])
    return model


@pytest.fixture(scope="session")
def staged(fixed_weights):
    """staged(task, image_size) -> (model of two voting stages, its spec); three labels, two if binary."""
    import keras
    from keras import layers

    from kxray.layers.layer_relevance import LayerRelevance
    from kxray.spec import ModelSpec

    def build(task="multiclass", image_size=(32, 24)):
        labels = ("clear", "mass") if task == "binary" else ("clear", "mass", "nodule")
        units = 1 if task == "binary" else 3
        film = keras.Input((*image_size, 1))
        shallow = layers.Conv2D(5, 3, 2, "same", activation="relu")(film)
        deep = layers.Conv2D(6, 3, 2, "same", activation="relu")(shallow)
        votes = [
            layers.Dense(units, name=f"logits_{name}", dtype="float32")(
                layers.GlobalAveragePooling2D(dtype="float32")(features)
            )
            for name, features in (("shallow", shallow), ("deep", deep))
        ]
        combined = LayerRelevance(dtype="float32")(votes)
        activation = "softmax" if task == "multiclass" else "sigmoid"
        outputs = layers.Activation(activation, dtype="float32")(combined)
        model = fixed_weights(keras.Model(film, outputs, name="staged"))
        return model, ModelSpec("staged", labels, task, image_size, temperature=1.5)

    return build


@pytest.fixture(scope="session")
def staged_model(staged):
    """The model served as `staged`, multiclass, and its spec."""
    model, spec = staged()
    # The films of make_film then get different labels.
    for name in ("logits_shallow", "logits_deep"):
        bias = model.get_layer(name).bias
        bias.assign(bias + [0.0, 0.0, 0.12])
    return model, spec


@pytest.fixture(scope="session")
def dense_model(fixed_weights):
    """A tiny DenseNet with batch normalisation, ReLU, convolution in that order, and its spec."""
    import keras
    from keras import layers

    from kxray.spec import ModelSpec

    def unit(x, features, kernel_size):
        x = layers.Activation("relu")(layers.BatchNormalization()(x))
        return layers.Conv2D(features, kernel_size, padding="same", use_bias=False)(x)

    film = keras.Input((24, 20, 1))
    x = layers.Conv2D(4, 3, 2, "same", use_bias=False)(film)
    x = layers.Concatenate(name="wide")([x, unit(x, 4, 3)])
    x = layers.AveragePooling2D(2)(unit(x, 6, 1))
    x = layers.Activation("relu")(layers.BatchNormalization()(x))
    outputs = layers.Dense(3, activation="softmax")(layers.GlobalAveragePooling2D()(x))
    model = fixed_weights(keras.Model(film, outputs, name="dense"), gain=6.0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            # Around 1 and above 0, as those of a trained network.
            layer.gamma.assign(layer.gamma + 1.0)
            layer.moving_variance.assign(layer.moving_variance + 0.5)
    return model, ModelSpec("dense", ("clear", "mass", "nodule"), "multiclass", (24, 20))


@pytest.fixture(scope="session")
def models_root(tmp_path_factory, model, spec, staged_model, dense_model):
    """A folder of models, exported once a session.

    `view`, `staged` and `dense`, which explains pixel by pixel, have version 1, `empty` has none.
    """
    from serving.export import export_model

    root = tmp_path_factory.mktemp("models")
    export_model(model, spec, root / "view")
    export_model(*staged_model, root / "staged")
    export_model(*dense_model, root / "dense", "integrated_gradients:steps=8:baseline=mean,rap")
    return root


@pytest.fixture(scope="session")
def version_folder(models_root):
    return models_root / "view" / "1"


@pytest.fixture(scope="session")
def make_film():
    """make_film(seed, height, width) -> float32 pixels on the grid of 16-bit values."""

    def make(seed=0, height=90, width=70):
        rows, columns = np.mgrid[0:height, 0:width] / 16.0
        waves = np.sin((1 + seed) * rows) * np.cos((2 + 0.5 * seed) * columns)
        return (np.round((0.5 + 0.5 * waves) * 65535) / 65535).astype("float32")

    return make


@pytest.fixture(scope="session")
def keras_answer(model, spec):
    """keras_answer(list of pixels) -> probabilities (N, 2), from the Keras model alone."""
    from kxray.layers.film_input import film_input

    def answer(films):
        inputs = np.concatenate([film_input(spec)(film[None, ..., None]) for film in films])
        lateral = model.predict(inputs, verbose=0).astype("float64")
        odds = (lateral / (1 - lateral)) ** (1 / spec.temperature)
        return np.concatenate([1 / (1 + odds), odds / (1 + odds)], axis=-1)

    return answer


@dataclasses.dataclass
class RunningServer:
    process: subprocess.Popen
    address: str
    rest: str
    ready: str


@pytest.fixture(scope="session")
def start_server(tmp_path_factory):
    """start_server(text of a models.config, *options): a context with a real server process."""

    @contextlib.contextmanager
    def start(config, *options):
        folder = tmp_path_factory.mktemp("server")
        (folder / "models.config").write_text(config)
        command = [sys.executable, "-m", "serving.server", "--config", str(folder / "models.config")]
        command += ["--port", "0", "--rest-port", "0", *options]
        with open(folder / "log", "w") as log:
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=_environment(), cwd=folder
            )
        watchdog = threading.Timer(120, process.kill)
        watchdog.start()
        try:
            line = process.stdout.readline()
            found = re.fullmatch(r"ready: grpc (\S+), rest (\S+), models: .*\n", line)
            watchdog.cancel()
            assert found, f"{line!r}\n{(folder / 'log').read_text()}"
            yield RunningServer(process, found[1], found[2], line)
        finally:
            watchdog.cancel()
            process.kill()
            process.wait()
            process.stdout.close()

    return start


@pytest.fixture(scope="session")
def server(start_server, models_root):
    """The server most tests share. It must survive all of them, so its end is checked at the end."""
    config = (
        f'model_config_list {{ config {{ name: "view" base_path: "{models_root}/view" '
        'model_platform: "tensorflow" version_labels { key: "stable" value: 1 } } '
        f'config {{ name: "staged" base_path: "{models_root}/staged" model_platform: "tensorflow" }} '
        f'config {{ name: "dense" base_path: "{models_root}/dense" model_platform: "tensorflow" }} '
        f'config {{ name: "empty" base_path: "{models_root}/empty" model_platform: "tensorflow" }} }}'
    )
    with start_server(config, "--max-message-mb", "8", "--poll-seconds", "0.2") as running:
        yield running
        assert running.process.poll() is None, "the server died"
        running.process.terminate()
        assert running.process.wait(20) == 0


@pytest.fixture(scope="session")
def run_python():
    """run_python(code, *arguments) in a fresh process; returns the completed process."""

    def run(code, *arguments, cwd=None, path=str(REPOSITORY)):
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=cwd,
            env=_environment(path),
        )

    return run


@pytest.fixture(scope="session")
def ask_session(run_python, tmp_path_factory):
    """ask_session(version folder, inputs by signature) -> outputs by signature, from the TF1-style loader.

    Signatures that were not asked are there with None.
    """

    def ask(folder, requests):
        place = tmp_path_factory.mktemp("session")
        np.savez(place / "requests.npz", requests=np.array(requests, dtype=object))
        done = run_python(
            TF1_LOADER, folder, place / "requests.npz", place / "answers.npz", cwd=place, path=""
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return np.load(place / "answers.npz", allow_pickle=True)["answers"].item()

    return ask


@pytest.fixture(scope="session")
def eventually():
    """eventually(condition): waits until it returns something true, and returns it."""

    def wait(condition, seconds=20):
        until = time.monotonic() + seconds
        while not (found := condition()):
            assert time.monotonic() < until, "did not happen in time"
            time.sleep(0.05)
        return found

    return wait


def _environment(path=str(REPOSITORY)):
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1", "PYTHONUNBUFFERED": "1"}
    return {**os.environ, **quiet, "PYTHONPATH": path}
