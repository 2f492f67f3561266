import threading
import time

import pytest

from serving.admission import Admission
from serving.config import ModelConfig
from serving.registry import Registry
from serving.status import ServingStatus


class Loader:
    """Loads a folder when its saved_model.pb says "good"."""

    def __init__(self):
        self.attempts = []

    def __call__(self, name, version, folder):
        self.attempts.append(version)
        if (folder / "saved_model.pb").read_text() != "good":
            raise RuntimeError("broken\nfile")
        return f"{name}/{version}"


@pytest.fixture
def publish(tmp_path):
    def write(version, content="good"):
        (tmp_path / str(version)).mkdir(exist_ok=True)
        (tmp_path / str(version) / "saved_model.pb").write_text(content)

    return write


def registry_of(tmp_path, **options):
    loader = Loader()
    return Registry([ModelConfig("m", (tmp_path,), **options)], loader), loader


def test_the_newest_version_replaces_the_older(tmp_path, publish):
    registry, _ = registry_of(tmp_path)
    registry.poll()
    assert registry.available() == {"m": []}
    publish(1)
    registry.poll()
    assert registry.resolve("m") == "m/1"
    publish(2)
    registry.poll()
    assert registry.resolve("m") == "m/2"
    assert {version: state.state for version, state in registry.status("m").items()} == {
        2: "AVAILABLE",
        1: "END",
    }
    with pytest.raises(ServingStatus, match=r"Specific\(m, 1\)"):
        registry.resolve("m", 1)


def test_a_broken_version_keeps_the_old_one_and_is_tried_again_when_it_changes(tmp_path, publish):
    registry, loader = registry_of(tmp_path)
    publish(1)
    registry.poll()
    publish(2, "bad")
    for _ in range(3):
        registry.poll()
    assert registry.resolve("m") == "m/1"
    assert registry.status("m", 2)[2].error == "broken file"
    assert loader.attempts == [1, 2]
    publish(2, "good")
    registry.poll()
    assert registry.resolve("m") == "m/2"


def test_at_the_start_the_newest_that_loads_answers(tmp_path, publish):
    registry, _ = registry_of(tmp_path)
    for version, content in ((1, "good"), (2, "good"), (10, "bad")):
        publish(version, content)
    registry.poll()
    assert registry.available() == {"m": [2]}


def test_policies(tmp_path, publish):
    for version in (1, 2, 3):
        publish(version)
    for options, expected in (
        ({"num_latest": 2}, [2, 3]),
        ({"num_latest": None}, [1, 2, 3]),
        ({"num_latest": None, "specific": (1, 3, 7)}, [1, 3]),
    ):
        registry, _ = registry_of(tmp_path, **options)
        registry.poll()
        assert registry.available() == {"m": expected}


def test_labels_name_versions(tmp_path, publish):
    publish(1)
    publish(2)
    registry, _ = registry_of(tmp_path, num_latest=None, labels={"stable": 1, "gone": 9})
    registry.poll()
    assert registry.resolve("m", label="stable") == "m/1"
    assert list(registry.status("m", label="stable")) == [1]
    with pytest.raises(ServingStatus, match=r"Specific\(m, 9\)"):
        registry.resolve("m", label="gone")
    with pytest.raises(ServingStatus, match="Unrecognized servable version label: canary"):
        registry.resolve("m", label="canary")


def test_versions_that_vanish_stay_until_another_can_answer(tmp_path, publish):
    import shutil

    registry, _ = registry_of(tmp_path)
    publish(2)
    registry.poll()
    shutil.rmtree(tmp_path / "2")
    registry.poll()
    assert registry.resolve("m") == "m/2"
    publish(1)
    registry.poll()
    assert registry.resolve("m") == "m/1"


def test_admission_runs_queues_refuses_and_times_out():
    admission, release, running = Admission(workers=1, queue=1), threading.Event(), threading.Event()

    def hold():
        with admission.exchange(), admission.request():
            running.set()
            release.wait(10)

    first = threading.Thread(target=hold)
    first.start()
    assert running.wait(10)
    with pytest.raises(ServingStatus, match="deadline passed") as caught, admission.request(0.05):
        pass
    assert caught.value.code == "DEADLINE_EXCEEDED"
    second = threading.Thread(target=hold)
    second.start()
    while admission._present < 2:
        time.sleep(0.01)
    with (
        pytest.raises(ServingStatus, match="busy with 1 requests and 1 are waiting") as caught,
        admission.request(),
    ):
        pass
    assert caught.value.code == "RESOURCE_EXHAUSTED"
    assert not admission.drained(time.monotonic() + 0.05)
    release.set()
    assert admission.drained(time.monotonic() + 10)
    first.join()
    second.join()
