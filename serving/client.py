"""Asks a served model about films, over TensorFlow Serving's gRPC API.

    python -m serving.client predict film.dcm --model view_classifier [--explain out.png [--method rap]]

    with Client("localhost:8500") as client:
        prediction = client.predict("film.dcm")
        explanation = client.explain("film.dcm")  # .heatmap, and .stage_maps where the model has stages
        explanation = client.explain("film.dcm", method="rap")  # one of client.methods()

    with Client("localhost:8500", model="chest_gan") as client:
        films = client.generate("Nodule", count=4, seed=0)  # of a model that makes films

    with Client("localhost:8500", model="chest_counterfactuals") as client:
        answer = client.counterfactual("film.dcm", "no Effusion")  # .counterfactual .difference .reached

Any film that kxray.read_image reads is decoded here and sent as lossless 16-bit PNG. Importing this module
imports neither TensorFlow nor Keras; the first call imports the stubs of tensorflow-serving-api, and
TensorFlow with them.
"""

import operator
import os
import random
import time
from collections.abc import Sequence

import numpy as np

from kxray.io import Film, encode_png16, read_image
from kxray.io.marks import png_texts
from kxray.spec import ModelSpec
from serving.answers import Counterfactual, Explanation, GeneratedFilm, Prediction, VersionStatus
from serving.errors import (  # noqa: F401
    DeadlineExceeded,
    InvalidFilm,
    InvalidRequest,
    ModelNotFound,
    ServerBusy,
    ServerUnavailable,
    ServingError,
    SignatureNotFound,
    of_status,
)

DEFAULT_MODEL = "view_classifier"
_MAX_MESSAGE_BYTES = 256 << 20
_MAX_BATCH_FILMS, _MAX_BATCH_BYTES = 16, 64 << 20
_FIRST_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS = 0.1, 2.0
_PREDICTED = -1
_EXPLAIN, _GENERATE, _GENERATOR = "explain", "generate", "generator"
_COUNTERFACTUAL = "counterfactual"
_LARGEST_SEED = 2**63 - 1
# Outputs of an explanation that have an attribute of their own.
_NAMED = {
    *("probabilities", "label", "decision", "heatmap", "explained_label"),
    *("stage_names", "relevance_weights", "stage_maps"),
}
# Those of a counterfactual that its answer holds as they are.
_CHANGED = ("film", "counterfactual", "difference", "mask", "heatmap")


class Client:
    """A connection to a model server.

    Args:
        address: host:port of its gRPC API.
        model: the model's name.
        version: ask this version instead of the newest.
        version_label: ask the version with this label of the server's config; not together with `version`.
        timeout: seconds an answer may take, retries included.

    Every method raises a `ServingError`; `ServerUnavailable` after retries with growing pauses, the other
    kinds at once. Films that cannot be read raise kxray.FilmError.
    """

    def __init__(
        self, address="localhost:8500", model=DEFAULT_MODEL, version=None, version_label="", timeout=30.0
    ):
        if version is not None and version_label:
            raise ValueError(f"give a version or a version label, got {version!r} and {version_label!r}")
        if not timeout > 0:
            raise ValueError(f"timeout must be a positive number of seconds, got {timeout!r}")
        self.address, self.model, self.timeout = address, model, timeout
        self._version, self._version_label = version, version_label
        self._channel = None
        self._specs = {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self) -> None:
        """Closes the connection; the next call opens a new one."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def predict(self, film) -> Prediction:
        """Classifies one film: a path, encoded bytes, a kxray.Film, or a float array (H, W) in [0, 1]."""
        return self.predict_batch([film])[0]

    def predict_batch(self, films: Sequence) -> list[Prediction]:
        """Classifies films, in order; they travel in as few messages as their sizes allow."""
        predictions, batch, size = [], [], 0
        for film in films:
            encoded = _encode(film)
            if batch and (len(batch) == _MAX_BATCH_FILMS or size + len(encoded) > _MAX_BATCH_BYTES):
                predictions += self._predict_encoded(batch)
                batch, size = [], 0
            batch, size = [*batch, encoded], size + len(encoded)
        return predictions + (self._predict_encoded(batch) if batch else [])

    def explain(self, film, label: str | None = None, method: str | None = None) -> Explanation:
        """Explains one film.

        Args:
            film: as `predict`.
            label: the label to explain; the predicted one by default.
            method: one of the methods the model was exported with (`methods()`); its first one by default.

        Raises:
            SignatureNotFound: the model was not exported with that method; the message lists those it has.
        """
        if method == _COUNTERFACTUAL:
            raise InvalidRequest("counterfactuals are made for a target; ask for them with `counterfactual`")
        signature_name = f"{_EXPLAIN}_{method}" if method else _EXPLAIN

        def ask():
            self._check_classifies()
            wanted = _PREDICTED if label is None else self._label_index(label)
            inputs = {"image_bytes": [encoded], "label": np.array([wanted], np.int32)}
            try:
                version, outputs = self._run(signature_name, inputs)
            except SignatureNotFound as error:
                raise self._without_method(method, error) from None
            explained_label = outputs["explained_label"][0].decode()
            if label not in (None, explained_label):
                raise ModelNotFound(f"version {version} has its labels in another order")
            prediction = self._predictions(version, outputs)[0]
            heatmap = outputs["heatmap"][0]
            return Explanation(
                heatmap,
                explained_label,
                method or "",
                prediction,
                *_stages(outputs),
                # Evidence is as smooth as its features, whatever the grid that it comes on.
                pixelwise=heatmap.shape == self._specs[version].image_size and "box" not in outputs,
                details={name: value[0] for name, value in outputs.items() if name not in _NAMED},
            )

        encoded = _encode(film)
        return self._across_reload(ask)

    def counterfactual(self, film, target: str | None = None) -> Counterfactual:
        """Asks what would have to change in a film for the model to say something else.

        Args:
            film: as `predict`.
            target: what it is to say, one of `targets()`; by default the opposite of what it says of the
                film: that its most probable label is absent, or of exclusive labels the next one.

        Raises:
            InvalidRequest: an unknown target.
            SignatureNotFound: the model was exported without a counterfactual GAN.
        """

        def ask():
            self._check_classifies()
            wanted = _PREDICTED if target is None else self._target_index(target)
            inputs = {"image_bytes": [encoded], "label": np.array([wanted], np.int32)}
            try:
                version, outputs = self._run(f"{_EXPLAIN}_{_COUNTERFACTUAL}", inputs)
            except SignatureNotFound as error:
                raise self._without_counterfactuals(error) from None
            reached_for = outputs["explained_label"][0].decode()
            if target not in (None, reached_for):
                raise ModelNotFound(f"version {version} has its targets in another order")
            prediction = self._predictions(version, outputs)[0]
            after = map(float, outputs["probabilities_after"][0])
            return Counterfactual(
                **{name: outputs[name][0] for name in _CHANGED},
                target=reached_for,
                reached=bool(outputs["reached"][0]),
                prediction=prediction,
                probabilities_after=dict(zip(prediction.probabilities, after, strict=True)),
            )

        encoded = _encode(film)
        return self._across_reload(ask)

    def targets(self) -> tuple[str, ...]:
        """What `counterfactual` can be asked for. SignatureNotFound where the model makes none."""
        try:
            _, outputs = self._run("describe", {}, output_filter=["counterfactual_targets"])
        except InvalidRequest as error:  # it describes itself without targets
            raise self._without_counterfactuals(error) from None
        return tuple(name.decode() for name in outputs["counterfactual_targets"][0])

    def generate(self, label: str, count: int = 1, seed: int = 0) -> list[GeneratedFilm]:
        """Makes films of a class, with a model that makes films.

        Args:
            label: one of the labels of `describe()`.
            count: films; more than a message may ask for travel in several.
            seed: of the first film; the next have seed + 1, seed + 2, ...

        Raises:
            InvalidRequest: an unknown label, or numbers that are no count and seed.
            SignatureNotFound: the model does not make films.
        """
        count, seed = _whole("count", count, 1), _whole("seed", seed, 0)
        if seed + count - 1 > _LARGEST_SEED:
            raise InvalidRequest(f"seeds go up to {_LARGEST_SEED}, got {seed} and {count} films")
        films = []
        for first in range(seed, seed + count, _MAX_BATCH_FILMS):
            seeds = range(first, min(first + _MAX_BATCH_FILMS, seed + count))
            films += self._across_reload(lambda seeds=seeds: self._generated(label, seeds))
        return films

    def _generated(self, label, seeds):
        if self.describe().task != _GENERATOR:
            raise SignatureNotFound(f"model {self.model!r} makes no films: it is a classifier")
        index = self._label_index(label)
        inputs = {
            "label": np.full(len(seeds), index, np.int32),
            "seed": np.array(seeds, np.int64),
        }
        version, outputs = self._run(_GENERATE, inputs, output_filter=["film_bytes", "label"])
        made = outputs["label"][0].decode()
        if made != label:
            raise ModelNotFound(f"version {version} has its labels in another order")
        films = zip(seeds, outputs["film_bytes"], strict=True)
        return [self._generated_film(version, label, own, encoded) for own, encoded in films]

    def _generated_film(self, version, label, seed, encoded):
        texts = {**png_texts(encoded), "Condition": label, "Seed": str(seed)}
        texts["Served"] = f"{self.model} version {version}"
        return GeneratedFilm(read_image(encoded).pixels, label, seed, self.model, version, texts)

    def methods(self) -> tuple[str, ...]:
        """The explanation methods of the version that answers, in alphabetical order."""
        from tensorflow_serving.apis import get_model_metadata_pb2, prediction_service_pb2_grpc

        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        self._address_model(request.model_spec, self._version)
        response = self._call(prediction_service_pb2_grpc.PredictionServiceStub, "GetModelMetadata", request)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        prefix = f"{_EXPLAIN}_"
        named = {name.removeprefix(prefix) for name in signatures.signature_def if name.startswith(prefix)}
        return tuple(sorted(named - {_COUNTERFACTUAL}))

    def describe(self) -> ModelSpec:
        """The spec of the version that answers, remembered by version."""
        return self._describe(self._version)[1]

    def status(self) -> list[VersionStatus]:
        """The versions of the model on the server, newest first."""
        from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

        request = get_model_status_pb2.GetModelStatusRequest()
        self._address_model(request.model_spec, self._version)
        response = self._call(model_service_pb2_grpc.ModelServiceStub, "GetModelStatus", request)
        state_name = get_model_status_pb2.ModelVersionStatus.State.Name
        entries = [
            VersionStatus(entry.version, state_name(entry.state), entry.status.error_message)
            for entry in response.model_version_status
        ]
        return sorted(entries, key=lambda entry: -entry.version)

    def _without_method(self, method, error):
        """The error for a method that the model was not exported with."""
        try:
            known = ", ".join(self.methods()) or "none"
        except ServingError:  # what the server said first is worth more
            return error
        wanted = f"explanation method {method!r}" if method else "explanations"
        return SignatureNotFound(
            f"model {self.model!r} was exported without {wanted}; it has: {known}", error.code
        )

    def _without_counterfactuals(self, error):
        return SignatureNotFound(
            f"model {self.model!r} makes no counterfactuals: it was exported without a counterfactual GAN",
            error.code,
        )

    def _predict_encoded(self, batch):
        def ask():
            self._check_classifies()
            return self._predictions(*self._run("serving_default", {"image_bytes": batch}))

        return self._across_reload(ask)

    def _across_reload(self, ask):
        """Asks again where the version that answered was replaced before its spec could be read."""
        # The spec is read first: a server that stops after its answer could not be asked for it any more.
        if not self._specs:
            self._describe(self._version)
        try:
            return ask()
        except ModelNotFound:
            if self._version is not None:
                raise
            self._specs.clear()
            return ask()

    def _check_classifies(self):
        if next(iter(self._specs.values())).task == _GENERATOR:
            raise InvalidRequest(
                f"model {self.model!r} makes films, it classifies none; ask it to `generate`"
            )

    def _predictions(self, version, outputs):
        spec = self._specs.get(version) or self._describe(version)[1]
        rows = zip(outputs["probabilities"], outputs["label"], outputs["decision"], strict=True)
        return [
            Prediction(
                label=label.decode(),
                decision=decision.decode(),
                probability=float(row[spec.labels.index(label.decode())]),
                threshold=spec.threshold(label.decode()),
                probabilities=dict(zip(spec.labels, map(float, row), strict=True)),
                model=self.model,
                model_version=version,
            )
            for row, label, decision in rows
        ]

    def _label_index(self, label):
        labels = self.describe().labels
        if label not in labels:
            raise InvalidRequest(f"unknown label {label!r}; the model has: {', '.join(labels)}")
        return labels.index(label)

    def _target_index(self, target):
        targets = self.targets()
        if target not in targets:
            raise InvalidRequest(f"unknown target {target!r}; the model has: {', '.join(targets)}")
        return targets.index(target)

    def _describe(self, version):
        version, outputs = self._run("describe", {}, version, output_filter=["spec"])
        if version not in self._specs:
            self._specs[version] = ModelSpec.from_json(outputs["spec"][0].decode())
        return version, self._specs[version]

    def _run(self, signature_name, inputs, version=None, output_filter=()):
        """Runs a signature. Returns (version that answered, array by output name)."""
        import tensorflow as tf
        from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

        request = predict_pb2.PredictRequest(output_filter=output_filter)
        self._address_model(request.model_spec, version if version is not None else self._version)
        request.model_spec.signature_name = signature_name
        for key, value in inputs.items():
            request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
        response = self._call(prediction_service_pb2_grpc.PredictionServiceStub, "Predict", request)
        outputs = {key: tf.make_ndarray(value) for key, value in response.outputs.items()}
        return response.model_spec.version.value, outputs

    def _address_model(self, model_spec, version):
        model_spec.name = self.model
        if version is not None:
            model_spec.version.value = version
        elif self._version_label:
            model_spec.version_label = self._version_label

    def _call(self, stub, method, request):
        import grpc

        if self._channel is None:
            self._channel = grpc.insecure_channel(self.address, _channel_options())
        call = getattr(stub(self._channel), method)
        until, pause = time.monotonic() + self.timeout, _FIRST_BACKOFF_SECONDS
        while True:
            try:
                return call(request, timeout=max(0.0, until - time.monotonic()))
            except grpc.RpcError as error:
                failure = of_status(error.code().name, error.details() or "", self.address, self.timeout)
                if not isinstance(failure, ServerUnavailable) or time.monotonic() + pause >= until:
                    raise failure from error
            time.sleep(pause * random.uniform(0.75, 1.25))
            pause = min(2 * pause, _MAX_BACKOFF_SECONDS)


def _whole(name, value, least) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least:
        raise InvalidRequest(f"{name} must be a whole number from {least}, got {value!r}")
    return number


def _stages(outputs):
    """(names, relevance weights, maps) of the first film's stages; of none where the method has no stages."""
    height, width = outputs["heatmap"].shape[1:]
    if "stage_maps" not in outputs:
        return (), np.zeros(0, np.float32), np.zeros((0, height, width), np.float32)
    names = tuple(name.decode() for name in outputs["stage_names"][0])
    return names, outputs["relevance_weights"][0], outputs["stage_maps"][0]


def _channel_options():
    return [
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", int(1000 * _MAX_BACKOFF_SECONDS)),
        # Films are patient data: they go straight to the server, never through a proxy of the environment.
        ("grpc.enable_http_proxy", 0),
    ]


def _encode(film) -> bytes:
    if isinstance(film, np.ndarray):
        try:
            return encode_png16(film)
        except ValueError as error:
            raise InvalidFilm(f"{error}; read films with kxray.read_image()") from None
    if not isinstance(film, (str, bytes, os.PathLike, Film)):
        raise InvalidFilm(
            f"expected a path, bytes, a Film or a float array (H, W), got {type(film).__name__}"
        )
    return encode_png16((film if isinstance(film, Film) else read_image(film)).pixels)


if __name__ == "__main__":
    from serving.client_program import main

    main()
