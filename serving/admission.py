"""Bounds the work a server does at once, and knows when it has finished."""

import contextlib
import threading
import time

from serving.status import DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ServingStatus


class Admission:
    """At most `workers` requests run, `queue` more wait; the rest are refused at once.

    Args:
        workers: requests that run at the same time, at least 1.
        queue: requests that may wait for a worker.
    """

    def __init__(self, workers: int, queue: int):
        self._capacity, self._workers = workers + queue, workers
        self._running = self._present = self._open = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def request(self, seconds: float | None = None):
        """Holds a place while the body runs.

        Args:
            seconds: how long the caller still waits for its answer; None for as long as it takes, and so is
                anything from threading.TIMEOUT_MAX: gRPC says 292 billion years for a call without deadline.

        Raises:
            ServingStatus: RESOURCE_EXHAUSTED (the queue is full) or DEADLINE_EXCEEDED (no time left).
        """
        if seconds is not None and seconds >= threading.TIMEOUT_MAX:
            seconds = None
        with self._changed:
            if self._present >= self._capacity:
                raise ServingStatus(
                    RESOURCE_EXHAUSTED,
                    f"the server is busy with {self._workers} requests and {self._capacity - self._workers} "
                    "are waiting; try again later",
                )
            self._present += 1
        try:
            with self._changed:
                if not self._changed.wait_for(lambda: self._running < self._workers, seconds):
                    raise ServingStatus(
                        DEADLINE_EXCEEDED, "the deadline passed while the request was waiting"
                    )
                self._running += 1
            try:
                yield
            finally:
                with self._changed:
                    self._running -= 1
                    self._changed.notify_all()
        finally:
            with self._changed:
                self._present -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def exchange(self):
        """Counts a request as open from its first byte to the last of its answer."""
        with self._changed:
            self._open += 1
        try:
            yield
        finally:
            with self._changed:
                self._open -= 1
                self._changed.notify_all()

    def drained(self, until: float) -> bool:
        """Waits until nothing is open, or the time.monotonic() of `until`; says whether all has finished."""
        with self._changed:
            remaining = max(0.0, until - time.monotonic())
            return self._changed.wait_for(lambda: self._open == 0 and self._present == 0, remaining)
