"""The ``agnews`` command, also as ``python -m agnews_helpers``."""

import os
import signal
import sys
from contextlib import suppress


def run() -> int:
    """Run the command; Ctrl-C or SIGTERM ends it at once, with status 130 or 143.

    Only while `train` runs, its own `StopSignal` saves first.

    Returns
    -------
    int
        The exit status, as `cli.main` has it.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)
    from .cli import main  # now: what it imports can be interrupted, too

    return main()


def _end(number, frame):
    """End this process with one line. A kernel notices, and ends as well."""
    with suppress(Exception):
        sys.stdout.flush()
        os.write(sys.stderr.fileno(), b"agnews: interrupted\n")
    os._exit(128 + number)


if __name__ == "__main__":
    raise SystemExit(run())
