"""What serving.client raises, and which gRPC status becomes which."""


class ServingError(RuntimeError):
    """A request that was not answered. `code` is the gRPC status name; empty when found before sending."""

    def __init__(self, message: str, code: str = ""):
        super().__init__(message)
        self.code = code


class InvalidFilm(ServingError):
    """An array that is no film; found before anything was sent."""


class InvalidRequest(ServingError):
    """The server refused the request: a film, an input or a label that the model does not take."""


class ModelNotFound(ServingError):
    """The server has no such model, version or version label."""


class SignatureNotFound(ServingError):
    """The model has no such signature, for example an explanation method it was not exported with."""


class ServerUnavailable(ServingError):
    """Nobody answered at the address, after all retries."""


class ServerBusy(ServingError):
    """The server's queue is full, or a message is larger than it takes."""


class DeadlineExceeded(ServingError):
    """The answer did not come in time."""


_ERRORS = {
    "INVALID_ARGUMENT": InvalidRequest,
    "NOT_FOUND": ModelNotFound,
    "FAILED_PRECONDITION": SignatureNotFound,
    "UNAVAILABLE": ServerUnavailable,
    "RESOURCE_EXHAUSTED": ServerBusy,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
}


def of_status(code, details, address, timeout) -> ServingError:
    """The error of a call.

    Args:
        code: gRPC status name.
        details: what the server said.
        address: of the server.
        timeout: seconds the answer was waited for.
    """
    details = " ".join(details.split())
    if code == "UNAVAILABLE":
        return ServerUnavailable(f"no answer from {address} within {timeout:g} s of trying: {details}", code)
    if code == "DEADLINE_EXCEEDED":
        return DeadlineExceeded(f"no answer from {address} within {timeout:g} s", code)
    if code == "FAILED_PRECONDITION" and "signature" not in details:
        return ServingError(details, code)
    return _ERRORS.get(code, ServingError)(details or code, code)
