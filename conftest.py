"""How the tests run: in the offline profile, whose outputs the notebooks store, and with nbval strict."""

import functools
import math
import os
import re
import tempfile
from unittest import mock

import pytest
from nbval import plugin
from nbval.plugin import IPyNbCell, IPyNbFile

for name in ("AGNEWS_DATA", "AGNEWS_MODEL", "AGNEWS_TRAIN_ROWS", "AGNEWS_TEST_ROWS"):
    os.environ.pop(name, None)
os.environ["AGNEWS_PROFILE"] = "offline"
os.environ["OMP_WAIT_POLICY"] = (
    "passive"  # several processes share the cores: who waits must not spin
)
os.environ["MPLBACKEND"] = (
    "agg"  # for the unit tests; notebooks' kernels choose the inline one themselves
)

# A cell's tag: what its outputs may differ by from the stored ones, as a share of each number
TOLERANCE = re.compile(r"numbers-within-(\d*\.?\d+)")
NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?")

_setup, _compare = IPyNbFile.setup, IPyNbCell.compare_outputs
_runs = tempfile.TemporaryDirectory(
    prefix="agnews-notebooks-", ignore_cleanup_errors=True
)


def _setup_like_jupyter(notebook):
    """Start a notebook's kernel in an empty folder, shared by the notebooks of this test run.

    So the reader's own ``notebooks/runs`` is neither used nor overwritten. And without the variable that
    makes ipykernel stop watching file descriptors.
    """
    saved = {
        name: os.environ.pop(name)
        for name in ("PYTEST_CURRENT_TEST", "MPLBACKEND")
        if name in os.environ
    }
    elsewhere = functools.partial(_start, plugin.RunningKernel)
    try:
        with mock.patch.object(plugin, "RunningKernel", elsewhere):
            _setup(notebook)
    finally:
        os.environ.update(saved)


def _start(kernel_class, kernel_name, cwd, **options):
    return kernel_class(kernel_name, cwd=_runs.name, **options)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With ``-n``: the tests of a file, which share fixtures, run in one process; so do all notebooks."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return "notebooks" if file.endswith(".ipynb") else file

    return ByFile(config, log)


def _compare_numbers(cell, test, ref, skip_compare=None):
    """nbval's comparison; in a cell with such a tag numbers count as the stored ones where they are near."""
    tags = cell.cell.metadata.get("tags", [])
    if found := [float(match[1]) for match in map(TOLERANCE.fullmatch, tags) if match]:
        test = [near(new, old, found[0]) for new, old in zip(test, ref)] + test[
            len(ref) :
        ]
    return _compare(cell, test, ref, skip_compare)


def near(new, old, share: float):
    """`old` where `new` differs from it by numbers alone, each within `share`; else `new`.

    Both are texts, or outputs made of them. Words, spaces, and the digits behind a point must be the same.
    """
    if isinstance(new, dict) and isinstance(old, dict):
        both = {
            key: near(value, old[key], share) if key in old else value
            for key, value in new.items()
        }
        return type(new)(both)
    if not (isinstance(new, str) and isinstance(old, str)) or NUMBER.split(
        new
    ) != NUMBER.split(old):
        return new
    for here, there in zip(NUMBER.findall(new), NUMBER.findall(old)):
        a, b = (float(number.replace(",", "")) for number in (here, there))
        if len(here.partition(".")[2]) != len(
            there.partition(".")[2]
        ) or not math.isclose(a, b, rel_tol=share):
            return new
    return old


def _no_coverage(*_):
    """In a kernel `--cov` would count what readers run as tested, and cost each kernel a slow start."""


IPyNbFile.setup, IPyNbCell.compare_outputs = _setup_like_jupyter, _compare_numbers
plugin.setup_coverage = plugin.teardown_coverage = _no_coverage


def pytest_collectstart(collector):
    """Standard error is run and not compared: warnings of libraries change from version to version."""
    if isinstance(collector, IPyNbFile):
        collector.skip_compare += ("stderr",)
