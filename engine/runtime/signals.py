"""Turns SIGINT and SIGTERM into a wish to stop, so that a run can save before it ends."""

import os
import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class CutShortError(Exception):
    """A signal asked to stop in the middle of a step or an evaluation, which left nothing behind."""


class StoppedError(Exception):
    """A signal stopped the run; the message says how to resume it, and a program leaves with `exit_code`."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class StopSignal:
    """While entered, the first signal sets `number` and a second one ends the process at once.

    Outside the main thread, where Python allows no handlers, it only ever says that nothing was requested.
    """

    def __init__(self, announce: bool = True) -> None:
        self._announce = announce  # of several ranks only one needs to speak
        self.number: int | None = None  # of the signal
        self._owner = 0
        self._former: dict[signal.Signals, Any] = {}
        self._terminal: list[Any] | None = None

    @property
    def requested(self) -> bool:
        return self.number is not None

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            self._owner = os.getpid()
            self._terminal = _terminal_settings()
            for number in SIGNALS:
                self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)
        self._former.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            # A forked data worker inherits this handler. Ctrl-C reaches it too, but its parent decides when it ends.
            if number == signal.SIGTERM:
                os._exit(128 + number)
            return
        if self.requested:
            try:
                _restore_terminal(self._terminal)
            finally:
                os._exit(128 + number)
        self.number = number
        if self._announce:
            name = signal.Signals(number).name
            # Not print(): the signal may have come in the middle of one, and a buffered stream cannot be entered twice.
            message = f"\n{name}: finishing the current micro-batch and saving the state. A second one exits at once.\n"
            os.write(2, message.encode())


def _terminal_settings() -> list[Any] | None:
    try:
        os.tcgetpgrp(0)
    except (AttributeError, OSError):  # no terminal, not ours, or a system without them
        return None
    import termios

    return termios.tcgetattr(0)


def _restore_terminal(settings: list[Any] | None) -> None:
    # A background job must leave the terminal alone: it belongs to the shell, and touching it would stop the job.
    if settings is not None and os.tcgetpgrp(0) == os.getpgrp():
        import termios

        termios.tcsetattr(0, termios.TCSANOW, settings)
