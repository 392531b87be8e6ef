"""How the tests run: in the offline profile, as the notebooks' outputs were made."""

import functools
import math
import os
import re
import tempfile
from pathlib import Path
from unittest import mock

import pytest
from nbval import plugin
from nbval.plugin import IPyNbCell, IPyNbFile

for name in ("AGNEWS_DATA", "AGNEWS_MODEL", "AGNEWS_TRAIN_ROWS", "AGNEWS_TEST_ROWS"):
    os.environ.pop(name, None)
os.environ["AGNEWS_PROFILE"] = "offline"
# For the unit tests; a notebook's kernel chooses the inline backend itself.
os.environ["MPLBACKEND"] = "agg"
# Processes share the cores: a thread that waits must not spin, and with `-n` each
# process takes its share of the cores.
os.environ["OMP_WAIT_POLICY"] = "passive"
if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
    threads = max(1, (os.cpu_count() or 1) // int(workers))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))

# A cell's tag: by what share its numbers may differ from the stored ones
TOLERANCE = re.compile(r"numbers-within-(\d*\.?\d+)")
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?")

# These run in this order and in one folder: the second uses what the first trained.
# Each other notebook has a folder of its own, and needs no other notebook.
TOGETHER = ("train_the_classifier", "use_your_classifier")

_setup, _compare = IPyNbFile.setup, IPyNbCell.compare_outputs
_runs = tempfile.TemporaryDirectory(
    prefix="agnews-notebooks-", ignore_cleanup_errors=True
)


def group_of(file: str) -> str:
    """The tests that run in one process: those of a file, or of these two notebooks."""
    path = Path(file)
    if path.suffix != ".ipynb":
        return file
    title = path.stem.partition("_")[2]
    return "classifier.ipynb" if title in TOGETHER else path.name


def _setup_like_jupyter(notebook):
    """Start a notebook's kernel in the folder of its group, which is empty at first.

    So the reader's own ``notebooks/runs`` is neither used nor overwritten. And without
    the variable that makes ipykernel stop watching file descriptors.
    """
    saved = {
        name: os.environ.pop(name)
        for name in ("PYTEST_CURRENT_TEST", "MPLBACKEND")
        if name in os.environ
    }
    folder = Path(_runs.name) / Path(group_of(notebook.path.name)).stem
    folder.mkdir(exist_ok=True)
    elsewhere = functools.partial(_start, plugin.RunningKernel, folder)
    try:
        with mock.patch.object(plugin, "RunningKernel", elsewhere):
            _setup(notebook)
    finally:
        os.environ.update(saved)


def _start(kernel_class, folder, kernel_name, cwd, **options):
    return kernel_class(kernel_name, cwd=str(folder), **options)


def longest_first(items: list) -> list:
    """The tests by group: the notebooks, then the files by their number of slow tests.

    Among equals the group with the most tests comes first. With ``-n``, whichever
    process is free takes the next group, so the end is made of short ones.
    """
    groups = {}
    for item in items:
        groups.setdefault(group_of(item.nodeid.partition("::")[0]), []).append(item)

    def rank(name: str) -> tuple:
        slow = sum(item.get_closest_marker("slow") is not None for item in groups[name])
        return not name.endswith(".ipynb"), -slow, -len(groups[name])

    return [item for name in sorted(groups, key=rank) for item in groups[name]]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config, items):
    """Sort the tests in the processes of ``-n``; alone they run as they were found."""
    if hasattr(config, "workerinput"):
        items[:] = longest_first(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With ``-n``: the tests of a group, which share fixtures, run in one process."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return group_of(nodeid.partition("::")[0])

    config.option.loadscopereorder = False  # xdist would sort by the number of tests
    return ByGroup(config, log)


def _compare_numbers(cell, test, ref, skip_compare=None):
    """Compare as nbval does; a tagged cell's numbers pass if they are near enough."""
    tags = cell.cell.metadata.get("tags", [])
    if found := [float(match[1]) for match in map(TOLERANCE.fullmatch, tags) if match]:
        compared = [near(new, old, found[0]) for new, old in zip(test, ref)]
        test = compared + test[len(ref) :]
    return _compare(cell, test, ref, skip_compare)


def near(new, old, share: float):
    """Return `old` if `new` differs by numbers alone, each within `share`; else `new`.

    Both are texts, or outputs made of them. Words, spaces, and the number of digits
    behind a point must be the same.
    """
    if isinstance(new, dict) and isinstance(old, dict):
        both = {
            key: near(value, old[key], share) if key in old else value
            for key, value in new.items()
        }
        return type(new)(both)
    if not (isinstance(new, str) and isinstance(old, str)):
        return new
    if NUMBER.split(new) != NUMBER.split(old):
        return new
    for pair in zip(NUMBER.findall(new), NUMBER.findall(old)):
        here, there = (float(number.replace(",", "")) for number in pair)
        decimals = {len(number.partition(".")[2]) for number in pair}
        if len(decimals) > 1 or not math.isclose(here, there, rel_tol=share):
            return new
    return old


def _no_coverage(*_):
    """Do nothing: coverage in a kernel counts what readers run, and starts slowly."""


IPyNbFile.setup, IPyNbCell.compare_outputs = _setup_like_jupyter, _compare_numbers
plugin.setup_coverage = plugin.teardown_coverage = _no_coverage


def pytest_collectstart(collector):
    """Leave standard error out: libraries change their warnings with each version."""
    if isinstance(collector, IPyNbFile):
        collector.skip_compare += ("stderr",)
