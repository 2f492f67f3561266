"""The embedded model server: TensorFlow Serving's gRPC and REST APIs for laptops and tests.

    python -m serving.server --config serving/models.config

It reads the SavedModels and the configuration file that tensorflow_model_server reads; in production the
stock tensorflow/serving image is pointed at the same folder (serving/compose.yaml).
"""

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

import click

from serving.shell import import_tensorflow_quietly, one_line

# Status calls and refusals must be answered while every worker is busy.
_SPARE_THREADS = 16


@click.command()
@click.option("--config", required=True, type=click.Path(path_type=Path), help="Model config file.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=8500, show_default=True, type=click.IntRange(0, 65535), help="gRPC; 0: a free one."
)
@click.option(
    "--rest-port", default=8501, show_default=True, type=click.IntRange(0, 65535), help="REST; 0: a free one."
)
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1), help="Requests run at once.")
@click.option(
    "--queue", default=64, show_default=True, type=click.IntRange(0), help="Requests that may wait."
)
@click.option(
    "--max-message-mb", default=256, show_default=True, type=click.IntRange(1, 2047), help="Largest request."
)
@click.option(
    "--poll-seconds", default=1.0, show_default=True, type=click.FloatRange(0.05), help="Version watch."
)
@click.option(
    "--grace-seconds",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Drain at most so long.",
)
def main(config, host, port, rest_port, workers, queue, max_message_mb, poll_seconds, grace_seconds):
    """Serves the models of a config file until SIGTERM or SIGINT; requests in flight are finished then."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO, stream=sys.stderr)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    try:
        complete = _serve(
            stopping,
            config,
            (host, port, rest_port),
            (workers, queue, max_message_mb << 20),
            poll_seconds,
            grace_seconds,
        )
    except (ValueError, OSError) as error:
        click.echo(f"error: {one_line(error)}", err=True)
        sys.exit(2)
    if not complete:
        # A computation that outlives the grace period cannot be interrupted, and would hold the exit.
        sys.stdout.flush()
        os._exit(0)


def _serve(stopping, config, address, limits, poll_seconds, grace_seconds) -> bool:
    """Runs until `stopping` is set. Returns whether everything in flight was finished."""
    import_tensorflow_quietly()
    from serving.config import read_config

    configs = read_config(config)

    from serving import grpc_api, rest_api
    from serving.admission import Admission
    from serving.registry import Registry
    from serving.servable import Servable

    (host, port, rest_port), (workers, queue, max_message_bytes) = address, limits
    admission = Admission(workers, queue)
    registry = Registry(configs, Servable)
    threads = workers + queue + _SPARE_THREADS
    rpc, port = grpc_api.bind(registry, admission, f"{host}:{port}", threads, max_message_bytes)
    rest = rest_api.bind(registry, admission, host, rest_port, max_message_bytes)
    registry.poll(stopping.is_set)
    rpc.start()
    rest_thread = threading.Thread(target=rest.serve_forever, name="rest", daemon=True)
    watch_thread = threading.Thread(
        target=registry.watch, args=(poll_seconds, stopping), name="watch", daemon=True
    )
    rest_thread.start()
    watch_thread.start()
    click.echo(f"ready: grpc {host}:{port}, rest {host}:{rest.port}, {_listing(registry)}")
    sys.stdout.flush()
    stopping.wait()

    until = time.monotonic() + grace_seconds
    refused = rpc.stop(grace_seconds)
    rest.shutdown()
    rest.server_close()
    complete = admission.drained(until)
    refused.wait(max(0.0, until - time.monotonic()) + 1)
    watch_thread.join(1)
    click.echo("stopped" if complete else f"stopped: requests were still running after {grace_seconds:g} s")
    return complete and not watch_thread.is_alive()


def _listing(registry):
    entries = []
    for name, versions in registry.available().items():
        entries.append(f"{name} {','.join(map(str, versions))}" if versions else f"{name} (no version yet)")
    return "models: " + "; ".join(entries)


if __name__ == "__main__":
    main()
