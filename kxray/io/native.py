"""What native decoders print on standard error instead of returning it."""

import contextlib
import os
import re
import tempfile
import threading

# libjpeg (inside GDCM) goes on after damage and returns a wrong picture with only one of these lines.
_COMPLAINT = re.compile(
    rb"corrupt|premature end|extraneous bytes|invalid (sos|jpeg)|bogus|stream too short|failed to decode"
    rb"|not enough data|inconsistent|unsupported marker|panicked at",
    re.IGNORECASE,
)
_ONE_AT_A_TIME = threading.Lock()


@contextlib.contextmanager
def captured_complaints(enabled: bool = True):
    """Gathers the lines that a native decoder writes to file descriptor 2 about a damaged codestream.

    Yields:
        A list, filled on leaving: the decoder's complaints, as text. Anything else that was written in the
        meantime (another library's log lines) is passed on to the real standard error.
    """
    complaints = []
    if not enabled:
        yield complaints
        return
    with _ONE_AT_A_TIME, tempfile.TemporaryFile() as sink:
        try:
            real = os.dup(2)
        except OSError:  # standard error is closed
            yield complaints
            return
        try:
            os.dup2(sink.fileno(), 2)
            try:
                yield complaints
            finally:
                os.dup2(real, 2)
                sink.seek(0)
                text = sink.read()
                complaints.extend(_sort(text, real))
        finally:
            os.close(real)


def _sort(text, real):
    if not text:
        return []
    lines = text.splitlines(keepends=True)
    complaints = [line.decode(errors="replace").strip() for line in lines if _COMPLAINT.search(line)]
    if not complaints:
        os.write(real, text)
    return complaints
