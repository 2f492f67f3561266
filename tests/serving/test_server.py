"""The server process: reload, broken versions, limits, and how it ends."""

import shutil
import signal
import socket
import threading
import time

import numpy as np
import pytest

from serving.client import Client, ServerBusy


def test_versions_come_and_go_under_load_and_broken_ones_never_answer(
    start_server, version_folder, make_film, eventually, tmp_path
):
    base = tmp_path / "view"
    config = (
        f'model_config_list {{ config {{ name: "view" base_path: "{base}" model_platform: "tensorflow" }} }}'
    )
    with start_server(config, "--poll-seconds", "0.1", "--workers", "1", "--queue", "1") as server:
        assert server.ready.endswith("models: view (no version yet)\n")
        with Client(server.address, "view") as client:
            publish(version_folder, base, 1)
            eventually(lambda: state(client, 1) == "AVAILABLE")
            film, answered, stop = make_film(), [], threading.Event()

            def keep_asking():
                with Client(server.address, "view") as other:
                    while not stop.is_set():
                        answered.append(other.predict(film).model_version)

            asking = threading.Thread(target=keep_asking)
            asking.start()

            publish(version_folder, base, 2)
            eventually(lambda: state(client, 2) == "AVAILABLE" and state(client, 1) == "END")
            (base / "3").mkdir()
            eventually(lambda: state(client, 3) == "END")
            assert "saved_model.pb is missing" in error(client, 3)
            (base / "4").mkdir()
            (base / "4" / "saved_model.pb").write_bytes(b"garbage" * 100)
            (base / "5").mkdir()
            shutil.copy(version_folder / "saved_model.pb", base / "5")  # half a copy: no variables yet
            (base / "notes").mkdir()
            eventually(lambda: state(client, 4) == "END" and error(client, 5))
            assert client.predict(film).model_version == 2
            shutil.copytree(
                version_folder / "variables", base / "5" / "variables"
            )  # the copy is complete now
            eventually(lambda: client.predict(film).model_version == 5)
            stop.set()
            asking.join()
            assert answered == sorted(answered), "no request may fall back to an older version"
            assert set(answered) <= {1, 2, 5}

            shutil.rmtree(base)
            time.sleep(0.5)
            assert client.predict(film).model_version == 5, "a folder that vanished takes nothing down"

        assert_busy_then_drained(server, make_film)


def assert_busy_then_drained(server, make_film):
    """One request runs, one waits, the next are refused; SIGTERM then lets the first two finish."""
    import kxray

    # Encoded once and before: four clients must ask within the time that one answer takes.
    films = [kxray.io.encode_png16(np.tile(make_film(), (12, 16)))] * 16
    answers, refused, one_by_one, together = [], [], threading.Lock(), threading.Barrier(4)

    def ask():
        with Client(server.address, "view", timeout=60) as client:
            with one_by_one:
                client.describe()
            together.wait()
            try:
                answers.append(client._predict_encoded(films))
            except ServerBusy as busy:
                refused.append(str(busy))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    until = time.monotonic() + 20
    while len(refused) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    assert not answers, "the films must take long enough to be in flight"
    server.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join()
    assert server.process.wait(30) == 0
    assert server.process.stdout.read().splitlines()[-1] == "stopped"
    assert len(refused) == 2
    assert all("the server is busy" in message for message in refused)
    assert len(answers) == 2


def publish(version_folder, base, version):
    base.mkdir(exist_ok=True)
    unfinished = base / f".copy-{version}"
    shutil.copytree(version_folder, unfinished)
    unfinished.rename(base / str(version))


def state(client, version):
    return next((entry.state for entry in _status(client) if entry.version == version), None)


def error(client, version):
    return next((entry.error for entry in _status(client) if entry.version == version), None)


def _status(client):
    from serving.client import ModelNotFound

    try:
        return client.status()
    except ModelNotFound:
        return []


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "models.config: No such file or directory"),
        ("model_config_list { config { nam: 'x' } }", 'not a model server config: 1:.*"nam"'),
        ("model_config_list { }", "no model in it"),
        ("model_config_list { config { name: 'x' } }", "every model needs a name and a base_path"),
    ],
)
def test_a_wrong_config_is_one_line(tmp_path, config, message):
    import re

    from click.testing import CliRunner

    from serving.server import main

    path = tmp_path / "models.config"
    if config is not None:
        path.write_text(config)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        result = CliRunner().invoke(main, ["--config", str(path)])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert result.exit_code == 2
    assert re.search(message, result.stderr)
    assert len(result.stderr.splitlines()) == 1


def test_a_wait_without_deadline_is_no_limit():
    from serving.admission import Admission

    admission, order = Admission(1, 1), []

    def wait():
        with admission.request(9.2e18):  # what gRPC's time_remaining() says without a deadline
            order.append("second")

    second = threading.Thread(target=wait)
    with admission.request(9.2e18):
        second.start()
        second.join(0.2)
        order.append("first")
    second.join(10)
    assert order == ["first", "second"]


def test_a_taken_port_is_an_error_before_any_model_is_loaded():
    from serving import grpc_api, rest_api
    from serving.admission import Admission

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
            grpc_api.bind(None, None, f"127.0.0.1:{port}", 1, 1 << 20)
        with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
            rest_api.bind(None, Admission(1, 1), "127.0.0.1", port, 1 << 20)
