"""Comparing runs and damaging their files, for several test files."""

from pathlib import Path

import torch
from torch import nn

from agnews_helpers import Run, load_classifier


def assert_same_weights(one: nn.Module, other: nn.Module) -> None:
    """Check that two models have the same weights, bit for bit."""
    ours = one.state_dict()
    theirs = other.state_dict()
    assert ours.keys() == theirs.keys()
    assert ours and all(torch.equal(ours[name], theirs[name]) for name in ours)


def assert_same_run(run: Run, whole: Run) -> None:
    """Check that two finished runs are the same, in memory and on disk, bit for bit."""
    assert run.finished and run.best_epoch == whole.best_epoch
    assert run.steps.equals(whole.steps)
    timed = "rows_per_second"
    assert run.history.drop(columns=timed).equals(whole.history.drop(columns=timed))
    assert_same_weights(run.model, whole.model)
    assert_same_weights(load_classifier(run.folder)[0], whole.model)


def flip(path: Path, position: int, bit: int = 0) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def contents(folder: Path) -> dict[str, bytes | None]:
    """Return the content of every file below a folder; None for a folder or a link."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        if path.is_file() and not path.is_symlink()
        else None
        for path in sorted(folder.rglob("*"))
    }
