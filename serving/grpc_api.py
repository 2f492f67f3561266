"""TensorFlow Serving's gRPC API: PredictionService and ModelService on a registry of models."""

import logging
from concurrent import futures

import grpc
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving.servable import to_proto
from serving.status import CANCELLED, INTERNAL, INVALID_ARGUMENT, UNIMPLEMENTED, ServingStatus

log = logging.getLogger("serving")


def answers(method):
    """Turns a ServingStatus, or any surprise, into the gRPC status of the call."""

    def answered(self, request, context):
        try:
            with self._admission.exchange():
                return method(self, request, context)
        except ServingStatus as status:
            code, message = status.code, status.message
        except Exception:  # one request must not take the server down
            log.exception("a request failed")
            code, message = INTERNAL, "internal error; the server's log has the details"
        context.abort(grpc.StatusCode[code], message)

    return answered


def model_spec(request):
    """(name, version or None, label) of a request's ModelSpec."""
    if not request.HasField("model_spec"):
        raise ServingStatus(INVALID_ARGUMENT, "Missing ModelSpec")
    spec = request.model_spec
    version = spec.version.value if spec.HasField("version") else None
    return spec.name, version, spec.version_label


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, registry, admission):
        self._registry, self._admission = registry, admission

    @answers
    def Predict(self, request, context):
        servable = self._registry.resolve(*model_spec(request))
        signature_name = request.model_spec.signature_name or "serving_default"
        with self._admission.request(context.time_remaining()):
            if not context.is_active():
                raise ServingStatus(CANCELLED, "the client has gone")
            outputs = servable.run(signature_name, dict(request.inputs), list(request.output_filter))
        response = predict_pb2.PredictResponse()
        response.model_spec.name = servable.name
        response.model_spec.version.value = servable.version
        response.model_spec.signature_name = signature_name
        for key, array in outputs.items():
            response.outputs[key].CopyFrom(to_proto(array))
        return response

    @answers
    def GetModelMetadata(self, request, context):
        name, version, label = model_spec(request)
        if not request.metadata_field:
            raise ServingStatus(
                INVALID_ARGUMENT, "GetModelMetadataRequest must specify at least one metadata_field"
            )
        for field in request.metadata_field:
            if field != "signature_def":
                raise ServingStatus(INVALID_ARGUMENT, f"Metadata field {field} is not supported")
        servable = self._registry.resolve(name, version, label)
        signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=servable.signature_defs)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = servable.name
        response.model_spec.version.value = servable.version
        response.metadata["signature_def"].Pack(signatures)
        return response

    @answers
    def Classify(self, request, context):
        raise _not_offered("Classify")

    @answers
    def Regress(self, request, context):
        raise _not_offered("Regress")

    @answers
    def MultiInference(self, request, context):
        raise _not_offered("MultiInference")


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, registry, admission):
        self._registry, self._admission = registry, admission

    @answers
    def GetModelStatus(self, request, context):
        response = get_model_status_pb2.GetModelStatusResponse()
        for version, state in self._registry.status(*model_spec(request)).items():
            entry = response.model_version_status.add(
                version=version, state=get_model_status_pb2.ModelVersionStatus.State.Value(state.state)
            )
            entry.status.error_code = 2 if state.error else 0
            entry.status.error_message = state.error
        return response

    @answers
    def HandleReloadConfigRequest(self, request, context):
        raise _not_offered("HandleReloadConfigRequest")


def bind(registry, admission, address: str, threads: int, max_message_bytes: int):
    """Makes a gRPC server that holds its port and answers once it is started.

    Args:
        registry: serving.registry.Registry.
        admission: serving.admission.Admission.
        address: host:port; port 0 takes a free one.
        threads: calls that may be open at once; further ones are refused with RESOURCE_EXHAUSTED.
        max_message_bytes: largest request and answer.

    Returns:
        (grpc.Server, port)

    Raises:
        OSError: the address cannot be bound.
    """
    options = [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        # Two servers on one port would share its calls without a word.
        ("grpc.so_reuseport", 0),
    ]
    pool = futures.ThreadPoolExecutor(threads, thread_name_prefix="grpc")
    server = grpc.server(pool, options=options, maximum_concurrent_rpcs=threads)
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
        PredictionService(registry, admission), server
    )
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(registry, admission), server)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError:
        port = 0
    if not port:
        raise OSError(f"cannot listen on {address}: the port is taken or the address is not this machine's")
    return server, port


def _not_offered(method):
    return ServingStatus(UNIMPLEMENTED, f"{method} is not offered here; use Predict")
