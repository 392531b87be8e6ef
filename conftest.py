"""How the tests run: in the offline profile, whose outputs the notebooks store, and with nbval strict."""

import functools
import os
import tempfile
from unittest import mock

import pytest
from nbval import plugin
from nbval.plugin import IPyNbCell, IPyNbFile

for name in ("AGNEWS_DATA", "AGNEWS_MODEL", "AGNEWS_TRAIN_ROWS", "AGNEWS_TEST_ROWS"):
    os.environ.pop(name, None)
os.environ["AGNEWS_PROFILE"] = "offline"
os.environ["OMP_WAIT_POLICY"] = (
    "passive"  # several processes share the cores: threads that wait must not spin
)
os.environ["MPLBACKEND"] = "agg"  # for the unit tests; notebooks' kernels choose the inline one themselves

_setup = IPyNbFile.setup
_runs = tempfile.TemporaryDirectory(prefix="agnews-notebooks-", ignore_cleanup_errors=True)


def _setup_like_jupyter(notebook):
    """Start a notebook's kernel in an empty folder, shared by the notebooks of this test run.

    So the reader's own ``notebooks/runs`` is neither used nor overwritten. And without the variable that
    makes ipykernel stop watching file descriptors.
    """
    saved = {
        name: os.environ.pop(name) for name in ("PYTEST_CURRENT_TEST", "MPLBACKEND") if name in os.environ
    }
    elsewhere = functools.partial(_start, plugin.RunningKernel)
    try:
        with mock.patch.object(plugin, "RunningKernel", elsewhere):
            _setup(notebook)
    finally:
        os.environ.update(saved)


def _start(kernel_class, kernel_name, cwd, **options):
    return kernel_class(kernel_name, cwd=_runs.name, **options)


def pytest_collection_modifyitems(items):
    """With ``-n``: a process for each file, whose tests share fixtures, and one for the notebooks."""
    for item in items:
        group = "notebooks" if isinstance(item, IPyNbCell) else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))


def _no_coverage(*_):
    """In a kernel `--cov` would count what readers run as tested, and cost each kernel a slow start."""


IPyNbFile.setup = _setup_like_jupyter
plugin.setup_coverage = plugin.teardown_coverage = _no_coverage


def pytest_collectstart(collector):
    """Standard error is run and not compared: warnings of libraries change from version to version."""
    if isinstance(collector, IPyNbFile):
        collector.skip_compare += ("stderr",)
