"""Signals: what is ignored stays ignored, and the tests run as in a terminal."""

import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

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


# Commands end at once
SEND_AT_IMPORT = """
import os, runpy, sys
module, number, *sys.argv[1:] = sys.argv[1:]
def watch(event, arguments):
    if event == "import" and arguments[0] == module:
        os.kill(os.getpid(), int(number))
sys.addaudithook(watch)
runpy.run_module("agnews_helpers", run_name="__main__")
"""
posix = pytest.mark.skipif(
    os.name != "posix", reason="Windows cannot send Ctrl-C to one process"
)


@posix
@pytest.mark.parametrize(
    "module, command, number",
    [
        ("agnews_helpers.cli", "doctor", signal.SIGINT),  # nothing is imported yet
        ("numpy", "budget", signal.SIGTERM),  # in the middle of torch
        ("agnews_helpers.training", "train", signal.SIGINT),
        ("agnews_helpers.doctor", "doctor", signal.SIGTERM),
        ("nbclient", "notebooks", signal.SIGINT),  # everything is imported
    ],
)
@pytest.mark.slow
def test_a_command_ends_at_once_with_one_line(module, command, number, tmp_path):
    code = [sys.executable, "-c", SEND_AT_IMPORT, module, str(int(number)), command]
    done = subprocess.run(code, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 128 + number and done.stderr == "agnews: interrupted\n"


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_agnews_notebooks_ends_with_its_kernel_and_no_other_begins(number, tmp_path):
    started = tmp_path / "started"
    cells = [
        "import os, pathlib, time",
        f"pathlib.Path({str(started)!r}).write_text(str(os.getpid()))\ntime.sleep(60)",
    ]
    notebook = new_notebook(cells=[new_code_cell(cell) for cell in cells])
    for name in ("01_long.ipynb", "02_next.ipynb"):
        nbformat.write(notebook, tmp_path / name)
    command = [sys.executable, "-m", "agnews_helpers", "notebooks", "--source"]
    with subprocess.Popen(
        [*command, str(tmp_path), "--target", str(tmp_path / "target")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        wait_until(lambda: started.exists() and started.read_text())
        child.send_signal(number)
        output, errors = child.communicate(timeout=5)
    assert child.returncode == 128 + number and errors == "agnews: interrupted\n"
    first, second = output.splitlines()
    assert first.startswith("results in ") and second.split() == ["01_long"]
    kernel = int(started.read_text())
    wait_until(lambda: not is_running(kernel))


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.1)


def is_running(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True
