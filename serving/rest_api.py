"""TensorFlow Serving's REST API on a registry of models, as a WSGI application of werkzeug."""

import json
import logging
import re
from urllib.parse import unquote

from google.protobuf import json_format
from tensorflow_serving.apis import get_model_metadata_pb2
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response

from serving import json_tensors
from serving.status import INVALID_ARGUMENT, UNIMPLEMENTED, ServingStatus

_VERSION = r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_PREDICT = re.compile(rf"/v1/models/(?P<name>[^/:]+){_VERSION}:(?P<method>classify|regress|predict)", re.I)
_STATUS = re.compile(rf"/v1/models(?:/(?P<name>[^/:]+))?{_VERSION}(?P<metadata>/metadata)?", re.I)
_SLOW_CLIENT_SECONDS = 60
log = logging.getLogger("serving")


def application(registry, admission, max_message_bytes: int):
    """Builds the WSGI application.

    Args:
        registry: serving.registry.Registry.
        admission: serving.admission.Admission.
        max_message_bytes: largest request body.
    """

    @Request.application
    def answer(request):
        request.max_content_length = max_message_bytes
        try:
            return _json(200, _dispatch(request, registry, admission))
        except ServingStatus as status:
            return _error(status.http_code, status.message)
        except RequestEntityTooLarge:
            return _error(413, f"the request is larger than {max_message_bytes} bytes")
        except HTTPException as error:
            return _error(error.code or 400, error.description or error.name)
        except Exception:  # one request must not take the server down
            log.exception("a request failed")
            return _error(500, "internal error; the server's log has the details")

    return answer


def bind(registry, admission, host: str, port: int, max_message_bytes: int):
    """Makes a werkzeug server that holds its port; `serve_forever` and `shutdown` run and stop it.

    Raises:
        OSError: the address cannot be bound.
    """

    class Handler(WSGIRequestHandler):
        timeout = _SLOW_CLIENT_SECONDS

        def run_wsgi(self):
            with admission.exchange():
                super().run_wsgi()

        def log(self, type, message, *args):
            log.debug("%s %s", self.address_string(), message % args if args else message)

    try:
        wsgi = application(registry, admission, max_message_bytes)
        return make_server(host, port, wsgi, threaded=True, request_handler=Handler)
    except (OSError, SystemExit) as error:
        # werkzeug prints advice about `flask run` and exits when a port is taken.
        raise OSError(
            f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or 'taken'}"
        ) from None


def _dispatch(request, registry, admission):
    path = request.path
    matched = {"POST": _PREDICT, "GET": _STATUS}.get(request.method, re.compile(r"(?!)")).fullmatch(path)
    if not matched:
        if not path.lower().startswith("/v1/"):
            raise ServingStatus("NOT_FOUND", f"no such path: {path}")
        raise ServingStatus(INVALID_ARGUMENT, f"Malformed request: {request.method} {path}")
    found = matched.groupdict()
    version = _version(found["version"])
    address = (unquote(found["name"] or ""), version, unquote(found["label"] or ""))
    if request.method == "POST":
        if found["method"].lower() != "predict":
            raise ServingStatus(UNIMPLEMENTED, f"{found['method']} is not offered here; use predict")
        return _predict(request, registry.resolve(*address), admission)
    return _metadata(registry.resolve(*address)) if found["metadata"] else _status(registry.status(*address))


def _version(digits):
    if digits is None:
        return None
    try:
        version = int(digits)
    except ValueError:  # Python reads no more than 4300 digits
        version = 2**63
    if version >= 2**63:
        raise ServingStatus(INVALID_ARGUMENT, f"Failed to convert version: {digits} to numeric.")
    return version


def _predict(request, servable, admission):
    # Read before a worker is taken: a slow client must not hold one.
    body = request.get_data()
    with admission.request():
        document = json_tensors.parse_body(body)
        signature_name = document.get("signature_name", "") or "serving_default"
        try:
            signature = servable.signature_def(signature_name)
        except ServingStatus:
            # The REST API of TensorFlow Serving words it differently from its gRPC API.
            raise ServingStatus(
                INVALID_ARGUMENT, f'Serving signature name: "{signature_name}" not found in signature def'
            ) from None
        inputs, form = json_tensors.read_inputs(document, signature)
        return json_tensors.write_outputs(servable.run(signature_name, inputs), form)


def _status(states):
    entries = [
        {
            "version": str(version),
            "state": state.state,
            "status": {"error_code": "UNKNOWN" if state.error else "OK", "error_message": state.error},
        }
        for version, state in states.items()
    ]
    return json.dumps({"model_version_status": entries}, indent=1)


def _metadata(servable):
    signatures = get_model_metadata_pb2.SignatureDefMap(signature_def=servable.signature_defs)
    answer = {
        "model_spec": {"name": servable.name, "signature_name": "", "version": str(servable.version)},
        "metadata": {"signature_def": _with_defaults(signatures)},
    }
    return json.dumps(answer, indent=1)


def _with_defaults(message):
    try:
        return json_format.MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
    except TypeError:  # protobuf before 5.26, which TensorFlow 2.17 pins, has another name for it
        return json_format.MessageToDict(
            message, preserving_proto_field_name=True, including_default_value_fields=True
        )


def _json(code, text):
    return Response(text, status=code, content_type="application/json")


def _error(code, message):
    return _json(code, json.dumps({"error": message}))
