"""Signals: what is ignored stays ignored, and the tests run as in a terminal."""

import signal
import subprocess
import sys

import pytest

from agnews_helpers.plumbing.interrupts import StopSignal
from tests.signals import signals_of_a_terminal

NAMES = [name for name in ("SIGINT", "SIGHUP") if hasattr(signal, name)]


@pytest.fixture(params=NAMES)
def ignored(request):
    """A signal that is ignored, as in a program that was started with nohup or `&`."""
    number = getattr(signal, request.param)
    before = signal.signal(number, signal.SIG_IGN)
    yield number
    signal.signal(number, before)


def test_a_signal_that_is_ignored_is_not_handled_during_a_run(ignored):
    with StopSignal() as stop:
        before = dict(vars(stop))
        assert signal.getsignal(ignored) is signal.SIG_IGN
        assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_IGN, signal.SIG_DFL)
        for _ in range(2):
            signal.raise_signal(ignored)
        assert vars(stop) == before
    assert signal.getsignal(ignored) is signal.SIG_IGN


def test_the_tests_and_their_children_get_the_signals_of_a_terminal(ignored):
    code = f"import signal; print(signal.getsignal({int(ignored)}) is signal.SIG_IGN)"

    def child_ignores_it():
        command = [sys.executable, "-c", code]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    assert child_ignores_it() == "True"
    with signals_of_a_terminal():
        assert signal.getsignal(ignored) is not signal.SIG_IGN
        assert child_ignores_it() == "False"
    assert signal.getsignal(ignored) is signal.SIG_IGN


@pytest.mark.parametrize("name", NAMES)
def test_no_signal_is_ignored_while_the_tests_run(name):
    assert signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN
