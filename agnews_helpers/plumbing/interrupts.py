"""Ctrl-C, the stop button, SIGTERM and the like: a run stops between two steps.

Notebook 10.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from torch.nn import Module


class StopSignal:
    """Context manager: a first signal to stop only sets `received`.

    SIGINT, SIGTERM, on POSIX SIGHUP, and on Windows SIGBREAK: Ctrl-Break.

    A signal that comes more than `GRACE_SECONDS` later raises KeyboardInterrupt;
    before that it counts as the same request, because the current step and the save
    take a moment. Python lets only the main thread handle signals: in other threads
    nothing changes. A signal that is ignored, as SIGHUP is under nohup, stays ignored.
    """

    GRACE_SECONDS = 3.0
    received = False
    number = 0  # of the last signal that the last run received
    SIGNALS = [
        number
        for number in signal.Signals
        if number.name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
    ]

    def __init__(self) -> None:
        self._handlers_before = {}

    def __enter__(self):
        StopSignal.number = 0
        # 1 is the standard output, 2 the standard error.
        self._terminals = [number for number in (1, 2) if os.isatty(number)]
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._handlers_before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_):
        for number, handler in self._handlers_before.items():
            # None: a handler that Python did not install.
            signal.signal(number, handler or signal.SIG_DFL)

    def run_unless_stopped(
        self, function: Callable, model: Module, *arguments: Any
    ) -> Any:
        """Call a function that a signal ends before the model's next forward pass.

        Parameters
        ----------
        function : Callable
            What to call.
        model : Module
            Its first argument.
        *arguments
            The others.

        Returns
        -------
        object
            What the function returns; None if a signal ended it.
        """

        def before_each_batch(*_):
            if self.received:
                raise KeyboardInterrupt

        # `_handle` must not raise it: in a `__del__`, Python would ignore the error.
        hook = model.register_forward_pre_hook(before_each_batch)
        try:
            return function(model, *arguments)
        except KeyboardInterrupt:
            return None
        finally:
            hook.remove()

    def _handle(self, number, frame):
        if number == getattr(signal, "SIGHUP", None):
            # Writing to a terminal that was closed is an error.
            with open(os.devnull, "wb") as nowhere:
                for terminal in self._terminals:
                    os.dup2(nowhere.fileno(), terminal)
        StopSignal.number = number
        if not self.received:
            self._received_at = time.monotonic()
        self.received = True
        if time.monotonic() - self._received_at >= self.GRACE_SECONDS:
            raise KeyboardInterrupt
