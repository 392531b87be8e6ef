"""Ctrl-C, the stop button, SIGTERM and SIGHUP, without a run; test_runs.py has runs."""

import signal
import threading

import pytest
import torch

from agnews_helpers.plumbing import interrupts
from agnews_helpers.plumbing.interrupts import StopSignal


@pytest.fixture(autouse=True)
def default_handlers():
    """Also when the tests were started with SIGINT ignored, as in the background."""
    defaults = dict.fromkeys(StopSignal.SIGNALS, signal.SIG_DFL)
    defaults[signal.SIGINT] = signal.default_int_handler
    before = {number: signal.signal(number, defaults[number]) for number in defaults}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", StopSignal.SIGNALS)
def test_a_signal_is_only_noted_and_the_handler_is_put_back(number):
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert not stop.received
        signal.raise_signal(number)
        assert stop.received
    assert signal.getsignal(number) is before


def test_handlers_are_put_back_after_an_error():
    before = [signal.getsignal(number) for number in StopSignal.SIGNALS]
    with pytest.raises(ZeroDivisionError), StopSignal():
        raise ZeroDivisionError
    assert [signal.getsignal(number) for number in StopSignal.SIGNALS] == before


def test_a_second_signal_soon_after_is_the_same_request_and_a_later_one_ends_it(
    monkeypatch,
):
    now = [100.0]
    monkeypatch.setattr(interrupts.time, "monotonic", lambda: now[0])
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        now[0] += StopSignal.GRACE_SECONDS - 0.1
        signal.raise_signal(signal.SIGINT)
        assert stop.received
        now[0] += 0.2
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("number", StopSignal.SIGNALS)
def test_an_ignored_signal_stays_ignored(number):
    """As SIGHUP is under nohup."""
    signal.signal(number, signal.SIG_IGN)
    with StopSignal() as stop:
        signal.raise_signal(number)
        assert not stop.received
    assert signal.getsignal(number) is signal.SIG_IGN


class RaisesInItsDestructor:
    """Whatever is raised here, Python ignores."""

    def __del__(self):
        signal.raise_signal(signal.SIGINT)


def test_a_function_ends_before_the_next_batch_wherever_the_signal_came(monkeypatch):
    """Also in a destructor: an error in the handler would be lost there."""
    ignored = []
    monkeypatch.setattr("sys.unraisablehook", ignored.append)
    model, batches = torch.nn.Identity(), []

    def work(model, last):
        for number in range(1, last + 1):
            batches.append(model(number))
            if number == 3:
                RaisesInItsDestructor()
        return "whole"

    with StopSignal() as stop:
        assert stop.run_unless_stopped(work, model, 2) == "whole"
        assert stop.run_unless_stopped(work, model, 5) is None
        assert stop.received and batches == [1, 2, 1, 2, 3] and not ignored
        assert stop.run_unless_stopped(work, model, 2) is None  # no batch begun
        assert batches == [1, 2, 1, 2, 3] and not model._forward_pre_hooks
        signal.raise_signal(signal.SIGINT)  # outside of it, a signal raises nothing


def test_another_thread_changes_no_handlers():
    before = [signal.getsignal(number) for number in StopSignal.SIGNALS]
    seen = []

    def enter():
        with StopSignal() as stop:
            handlers = [signal.getsignal(number) for number in StopSignal.SIGNALS]
            seen.append((handlers == before, stop.received))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [(True, False)]
