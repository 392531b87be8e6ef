"""Ctrl-C, the stop button, SIGTERM, SIGHUP: wishes to stop, granted between two steps. Notebook 08."""

import os
import signal
import sys
import threading
import time


class StopSignal:
    """While this is entered, the first signal sets `made`; one that comes later raises KeyboardInterrupt.

    Signals within `PATIENCE` seconds of the first are the same wish: the step at hand and the save take a
    moment. Python lets only the main thread handle signals. In any other nothing changes: there Ctrl-C does
    not arrive. A signal that is ignored, as SIGHUP is under nohup, stays so.
    """

    PATIENCE = 3.0
    SIGNALS = [
        getattr(signal, name)
        for name in ("SIGINT", "SIGTERM", "SIGHUP")
        if hasattr(signal, name)
    ]

    def __init__(self, alone: bool = True):
        self.made, self.alone = (
            False,
            alone,
        )  # of several processes none may leave the others waiting
        self._first, self._at_once, self._before, self._terminals = 0.0, False, {}, []

    def __enter__(self) -> "StopSignal":
        streams = (sys.__stdout__, sys.__stderr__)
        self._terminals = [
            s.fileno() for s in streams if s and not s.closed and s.isatty()
        ]
        if threading.current_thread() is threading.main_thread():
            wanted = [
                number
                for number in self.SIGNALS
                if signal.getsignal(number) is not signal.SIG_IGN
            ]
            self._before = {
                number: signal.signal(number, self._handle) for number in wanted
            }
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(
                number, signal.SIG_DFL if handler is None else handler
            )  # None: not one of Python's

    def interruptible(self, function, *arguments):
        """What ``function(*arguments)`` returns; None where a stop is wished before it ends."""
        self._at_once = self.alone
        try:
            return None if self.alone and self.made else function(*arguments)
        except KeyboardInterrupt:
            return None
        finally:
            self._at_once = False

    def _handle(self, number, frame) -> None:
        if number == getattr(
            signal, "SIGHUP", None
        ):  # writing to a terminal that was closed is an error
            with open(os.devnull, "wb") as nowhere:
                for terminal in self._terminals:
                    os.dup2(nowhere.fileno(), terminal)
        again, now = self.made, time.monotonic()
        if not again:
            self.made, self._first = True, now
        if self._at_once or again and now - self._first >= self.PATIENCE:
            raise KeyboardInterrupt
