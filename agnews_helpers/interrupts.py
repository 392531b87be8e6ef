"""Ctrl-C, the notebook's stop button and SIGTERM as a wish that training grants between two steps. Notebook 04."""
import signal
import threading
import time
from contextlib import contextmanager


class Interrupts:
    """While this context is entered, the first signal sets `wanted`; one that comes later raises KeyboardInterrupt.

    Signals within `PATIENCE` seconds of the first are the same wish: the step at hand and the save take a moment.
    Python lets only the main thread handle signals. In any other nothing changes: there Ctrl-C does not arrive.
    """

    PATIENCE = 3.0
    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self):
        self.wanted = False
        self._first = 0.0
        self._at_once = False
        self._before = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not one of Python's

    @contextmanager
    def at_once(self):
        """In here the first signal raises KeyboardInterrupt: for work that can be done again."""
        self._at_once = True
        try:
            if self.wanted:
                raise KeyboardInterrupt
            yield
        finally:
            self._at_once = False

    def _handle(self, number, frame) -> None:
        now = time.monotonic()
        if not self.wanted:
            self.wanted, self._first = True, now
        elif now - self._first >= self.PATIENCE:
            raise KeyboardInterrupt
        if self._at_once:
            raise KeyboardInterrupt
