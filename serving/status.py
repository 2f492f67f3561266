"""The status codes a server answers with: gRPC's, as TensorFlow Serving uses them, and HTTP's."""

import re

INVALID_ARGUMENT = "INVALID_ARGUMENT"
NOT_FOUND = "NOT_FOUND"
FAILED_PRECONDITION = "FAILED_PRECONDITION"
RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
DEADLINE_EXCEEDED = "DEADLINE_EXCEEDED"
CANCELLED = "CANCELLED"
UNAVAILABLE = "UNAVAILABLE"
UNIMPLEMENTED = "UNIMPLEMENTED"
INTERNAL = "INTERNAL"

# tensorflow/serving, model_servers/http_server.cc, ToHTTPStatusCode.
HTTP_CODES = {
    INVALID_ARGUMENT: 400,
    FAILED_PRECONDITION: 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    NOT_FOUND: 404,
    "ABORTED": 409,
    "ALREADY_EXISTS": 409,
    RESOURCE_EXHAUSTED: 429,
    CANCELLED: 499,
    UNIMPLEMENTED: 501,
    UNAVAILABLE: 503,
    DEADLINE_EXCEEDED: 504,
}
# absl status numbers, which TensorFlow's exceptions carry.
_TENSORFLOW_CODES = {
    1: CANCELLED,
    3: INVALID_ARGUMENT,
    4: DEADLINE_EXCEEDED,
    5: NOT_FOUND,
    8: RESOURCE_EXHAUSTED,
    9: FAILED_PRECONDITION,
    11: "OUT_OF_RANGE",
    12: UNIMPLEMENTED,
    14: UNAVAILABLE,
}
# Lines that tell where the graph was built, not what is wrong.
_NOISE = (
    "Graph execution error",
    "Detected at node",
    "File ",
    "<stack traces",
    "[[",
    "(",
    "Original stack trace",
)


class ServingStatus(Exception):
    """A request that is answered with an error.

    Args:
        code: one of the names above.
        message: one sentence.
    """

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code, self.message = code, message

    @property
    def http_code(self) -> int:
        return HTTP_CODES.get(self.code, 500)


def from_tensorflow(error) -> ServingStatus:
    """A tf.errors.OpError as a status, without the stack of the Python program that built the graph."""
    message = str(error.message)
    found = re.search(r"assertion failed: \[(.*?)\]\s*(?:\[\[|\n|$)", message, re.DOTALL)
    if found:
        message = found.group(1)
    else:
        lines = (re.sub(r"\{\{.*?\}\}|\[Op:\w+\]", "", line).strip() for line in message.splitlines())
        kept = [line for line in lines if line and not line.startswith(_NOISE)]
        message = kept[-1] if kept else message
    return ServingStatus(_TENSORFLOW_CODES.get(error.error_code, INTERNAL), " ".join(message.split()))
