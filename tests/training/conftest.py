import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "TF_CPP_MIN_LOG_LEVEL": "2", "COLUMNS": "200"}


@dataclasses.dataclass(frozen=True)
class Told:
    """What a program left at the shell."""

    code: int
    text: str


@pytest.fixture(scope="session")
def run_program():
    """Runs Python with arguments in a process of its own."""

    def run(*arguments, cwd=REPOSITORY, timeout=240):
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=cwd,
            env=ENVIRONMENT,
            text=True,
            timeout=timeout,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        return Told(done.returncode, done.stdout)

    return run


@pytest.fixture(scope="session")
def start_program():
    """Starts Python with arguments and leaves it running."""

    def start(*arguments, cwd=REPOSITORY):
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)],
            cwd=cwd,
            env=ENVIRONMENT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    return start


@pytest.fixture
def fit():
    """Runs `training.fit view_classifier` in this process, where TensorFlow is imported already."""
    import keras
    from click.testing import CliRunner

    from training.fit import main

    def run(*arguments):
        result = CliRunner().invoke(main, ["view_classifier", *map(str, arguments)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Told(result.exit_code, result.output)

    yield run
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def sort():
    """Runs `training.sort` in this process."""
    from click.testing import CliRunner

    from training.sort import main

    def run(*arguments):
        result = CliRunner().invoke(main, list(map(str, arguments)))
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Told(result.exit_code, result.output)

    return run


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory):
    """48 small phantom films of 24 patients, with their manifest."""
    from kxray.data.phantom import Mix, write_phantoms

    folder = tmp_path_factory.mktemp("phantoms") / "films"
    write_phantoms(folder, "thorax", 48, 0, mix=Mix(size=96, findings="none"), workers=1)
    return folder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory, run_program):
    """(run folder, what was printed): the command of the README on few films and epochs."""
    out = tmp_path_factory.mktemp("runs") / "first"
    arguments = ("view_classifier", "--phantoms", 60, "--epochs", 2, "--out", out)
    told = run_program("-m", "training.fit", *arguments, cwd=out.parent)
    assert told.code == 0, told.text
    return out, told.text


@pytest.fixture(scope="session")
def fillets(tmp_path_factory):
    from kxray.data.phantom import Mix, write_phantoms

    folder = tmp_path_factory.mktemp("fillets") / "films"
    write_phantoms(folder, "fillet", 48, 0, mix=Mix(size=48), workers=1)
    return folder


@pytest.fixture
def backbone(request, monkeypatch):
    """Lets the function `tiny` of the test's own module go by MobileNetV2's name."""
    import keras

    monkeypatch.setattr(keras.applications, "MobileNetV2", request.module.tiny)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture
def tiny_densenet(monkeypatch):
    """Lets a small network go by DenseNet-121's name."""
    import importlib.util

    import keras

    path = Path(__file__).with_name("tiny_densenet.py")
    spec = importlib.util.spec_from_file_location("tiny_densenet", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(keras.applications, "DenseNet121", module.tiny_densenet)
