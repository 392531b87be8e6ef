"""Run all notebooks in one process, one after the other, each with its own variables.

    python -m tests.rehearsal.run_notebooks [--twice] [--interrupt] [--only 03 04]

Starting ten kernels would take longer than the rest. A line says how each notebook
ended; the exit status is the number of those that failed. `rehearse` starts this with
the data and the variables of a reader.
"""

import argparse
import json
import re
import signal
import sys
import threading
import time
from pathlib import Path

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
TRAINS = re.compile(r"= (train|fine_tune)\(")  # in a cell's source
# A cell of `train` alone: no loop of its own, and no stop of its own.
STOPS = re.compile(r"\A(?!.*(fine_tune|press_stop)).*= train\(", re.DOTALL)
STOP_AT_STEP = 3


def main() -> int:
    """Run the notebooks in the working directory, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--twice", action="store_true", help="run each cell twice")
    parser.add_argument(
        "--interrupt", action="store_true", help="Ctrl-C in each cell that trains"
    )
    parser.add_argument(
        "--stop", action="store_true", help="the same for train(), which stays stopped"
    )
    parser.add_argument("--only", nargs="*", default=[""], help="such as 03 04")
    parser.add_argument(
        "--card", help="run on a stand-in card; write here what each cell holds on it"
    )
    options = parser.parse_args()
    # A shell lets what it starts in the background ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    peak = watch_memory()
    failed = 0
    for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        if path.name.startswith(tuple(options.only)):
            start = time.perf_counter()
            error = (run_on_card if options.card else run_notebook)(path, options)
            seconds = time.perf_counter() - start
            print(f"{path.stem:28} {seconds:6.1f} s  {error or 'ok'}", flush=True)
            failed += bool(error)
    print(f"peak memory {max(peak) / 2**30:.2f} GiB")
    return failed


def watch_memory():
    """Return a list to which this process's memory is added, in bytes."""
    import psutil

    process, sizes = psutil.Process(), [0]

    def watch():
        while True:
            sizes.append(process.memory_info().rss)
            time.sleep(0.1)

    threading.Thread(target=watch, daemon=True).start()
    return sizes


def run_on_card(path, options):
    """Run a notebook on the stand-in card, and write what its cells hold there."""
    import agnews_helpers  # noqa: F401  first: it says how the Hub is asked
    from tests.rehearsal.card_memory import CardMemory, tiny_models
    from tests.rehearsal.stand_in_device import stand_in_card

    memory = CardMemory()
    with stand_in_card(), tiny_models(), memory.watch():
        error = run_notebook(path, options, memory.end_cell)
    file = Path(options.card)
    notebooks = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    notebooks[path.stem] = {"weights": memory.weights, "cells": memory.cells}
    file.write_text(json.dumps(notebooks, indent=1), encoding="utf-8")
    return error


def run_notebook(path, options, end_cell=lambda number: None):
    """Run the cells of a notebook; return the error, and where it was."""
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    shell.reset()
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for number, cell in enumerate(cells):
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            continue
        if options.interrupt and TRAINS.search(source):
            run_interrupted(shell, source)
        if options.stop and STOPS.search(source):
            if error := run_interrupted(shell, source):
                return f"cell {number} (stopped): {type(error).__name__}: {error}"
            continue
        for turn in range(2 if options.twice else 1):
            if error := run_cell(shell, source):
                again = " (run again)" if turn else ""
                return f"cell {number}{again}: {type(error).__name__}: {error}"
        end_cell(number)
    return ""


def run_cell(shell, source):
    """Run a cell without showing its output; return its error."""
    from IPython.utils.capture import capture_output
    from matplotlib import pyplot as plt

    with capture_output():
        result = shell.run_cell(source)
    plt.close("all")
    return result.error_before_exec or result.error_in_exec


def run_interrupted(shell, source):
    """Run a cell that trains, press Ctrl-C at its third step, and return its error."""
    import torch

    step = torch.optim.Adam.step
    steps = []

    def press(optimizer, *arguments, **options):
        steps.append(1)
        if len(steps) == STOP_AT_STEP:
            signal.raise_signal(signal.SIGINT)
        return step(optimizer, *arguments, **options)

    torch.optim.Adam.step = press
    try:
        return run_cell(shell, source)
    finally:
        torch.optim.Adam.step = step


if __name__ == "__main__":
    sys.exit(main())
