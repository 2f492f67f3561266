"""What an explanation costs a client: requests with `explain` against requests without, through a server.

    python -m benchmarks.explain_served

Exports a multi-scale DenseNet-121 (random weights) to a temporary folder, starts `serving.server` on it and
sends the same PNG films over gRPC, in turn to `serving_default` and to each explanation, so that a slow
moment of the machine falls on all of them. Printed are medians of a request's time on the client's clock, and
the ratio of medians to `serving_default`. Expected: multiscale_cam at most 1.3.
"""

import contextlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np

METHODS = ("multiscale_cam", "grad_cam")
PLAIN = "serving_default"
LIMIT = 1.3
_WARM_UP = 5


@click.command(help=__doc__)
@click.option("--requests", default=60, show_default=True, help="Requests of each kind and batch size.")
@click.option("--batch", "batches", multiple=True, default=(1, 8), show_default=True, help="Films a request.")
@click.option("--image-size", default=100, show_default=True, help="Side of the network's input in pixels.")
@click.option("--film-side", default=100, show_default=True, help="Side of the films sent, in pixels.")
def main(requests, batches, image_size, film_side):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import grpc
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    kinds = (PLAIN, *(f"explain_{method}" for method in METHODS))
    with tempfile.TemporaryDirectory() as root, _server(_export(Path(root), image_size)) as address:
        with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            click.echo(
                f"multi-scale DenseNet-121 at {image_size} px, films of {film_side} px, {requests} requests "
                f"of each kind, {os.cpu_count()} cores"
            )
            for batch in batches:
                films = _films(batch, film_side)
                messages = {kind: _message(kind, films) for kind in kinds}
                seconds = {kind: [] for kind in kinds}
                for number in range(_WARM_UP + requests):
                    for kind in kinds:
                        began = time.perf_counter()
                        stub.Predict(messages[kind], timeout=120)
                        if number >= _WARM_UP:
                            seconds[kind].append(time.perf_counter() - began)
                _report(batch, seconds)


def _report(batch, seconds):
    plain = statistics.median(seconds[PLAIN])
    for kind, values in seconds.items():
        median = statistics.median(values)
        fastest, slowest = np.percentile(values, [10, 90])
        ratio = "" if kind == PLAIN else f"  ratio {median / plain:.2f}"
        limit = f" (expected at most {LIMIT})" if kind == f"explain_{METHODS[0]}" else ""
        click.echo(
            f"batch {batch}  {kind:<23} {1000 * median:7.1f} ms  "
            f"[{1000 * fastest:.1f}, {1000 * slowest:.1f}]{ratio}{limit}"
        )


def _export(root, image_size):
    import keras

    import kxray
    from serving.export import export_model

    keras.utils.set_random_seed(0)
    labels = ("normal", "mass", "nodule", "effusion")
    size = (image_size, image_size)
    model = kxray.models.build("multiscale_densenet", num_labels=len(labels), image_size=size)
    export_model(model, kxray.ModelSpec("multiscale_densenet", labels, "multiclass", size), root / "model")
    return root


@contextlib.contextmanager
def _server(root):
    """A server process on the model of a folder; gives its gRPC address."""
    config = root / "models.config"
    config.write_text(
        f'model_config_list {{ config {{ name: "model" base_path: "{root}/model" '
        'model_platform: "tensorflow" } }'
    )
    command = [sys.executable, "-m", "serving.server", "--config", str(config)]
    process = subprocess.Popen(
        [*command, "--port", "0", "--rest-port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        ready = re.match(r"ready: grpc ([^,]+),", process.stdout.readline())
        if not ready:
            raise click.ClickException("the server did not start")
        yield ready[1]
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def _films(count, side):
    import kxray

    numbers = np.random.default_rng(0)
    return [kxray.io.encode_png16(numbers.random((side, side), np.float32)) for _ in range(count)]


def _message(kind, films):
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2

    message = predict_pb2.PredictRequest()
    message.model_spec.name, message.model_spec.signature_name = "model", kind
    message.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(films))
    if kind != PLAIN:
        message.inputs["label"].CopyFrom(tf.make_tensor_proto(np.full(len(films), -1, np.int32)))
    return message


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.explain_served")
