"""The signals of a test run, wherever it was started."""

import signal
from contextlib import contextmanager

HANDLERS = {"SIGINT": signal.default_int_handler, "SIGHUP": signal.SIG_DFL}


@contextmanager
def signals_of_a_terminal():
    """Handle SIGINT and SIGHUP as a program in a terminal does, and so do its children.

    Runners, nohup and a shell's ``&`` start a program with these signals ignored, which
    it passes on to its children, and which the package respects.
    """
    before = {}
    for name, handler in HANDLERS.items():
        if number := getattr(signal, name, None):  # Windows has no SIGHUP
            before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
