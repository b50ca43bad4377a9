"""Asking a run to stop by SIGTERM or SIGINT (Ctrl-C), without losing the step under way."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StoppedAtOnceError(KeyboardInterrupt):
    """A signal came while nothing would be lost."""


class Stop:
    """Whether SIGTERM or SIGINT (Ctrl-C) asked the run to stop; `signals` takes their numbers.

    The step under way is finished and saved first. A second Ctrl-C, and any signal inside `at_once()`, does not wait.
    """

    def __init__(self, signals: list[int]) -> None:
        self.signals = signals
        self._at_once = False

    def ask(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        again = number == signal.SIGINT and number in self.signals
        self.signals.append(number)
        if self._at_once:
            raise StoppedAtOnceError
        if again:
            raise KeyboardInterrupt

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """End the block with `StoppedAtOnceError` as soon as a signal comes, or has come."""
        self._at_once = True
        try:
            if self.signals:
                raise StoppedAtOnceError
            yield
        finally:
            self._at_once = False


@contextmanager
def asked_to_stop(signals: list[int]) -> Iterator[Stop]:
    """Handle SIGTERM and SIGINT as `Stop` says."""
    stop = Stop(signals)
    before = {number: signal.signal(number, stop.ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
