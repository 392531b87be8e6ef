"""One moment of a run on disk: written whole, verified, read back. Notebook 10.

``checkpoints/step-00000120/`` has model.safetensors, state.pt (the optimizer and the
random generators), progress.json, and best/, a copy of the best classifier so far.
"""

import re
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from transformers import PreTrainedModel

from .plumbing import storage
from .plumbing.errors import Damaged

WEIGHTS = "model.safetensors"
STATE_FILE = "state.pt"
PROGRESS = "progress.json"
NAME = re.compile(r"step-\d{8,}(-\d+)?")  # the steps taken; -2 if the name was taken
HISTORY_COLUMNS = (
    "epoch",
    "train_loss",
    "validation_loss",
    "validation_accuracy",
    "rows_per_second",
)


@dataclass
class State:
    """How far a run is: everything that `train` counts. As text: where it is.

    Parameters
    ----------
    rows : int
        Training rows.
    batch_size : int
        Rows per step.
    epochs : int
        Epochs of the whole run.
    epoch : int
        The current epoch, from 1.
    batch : int
        Batches of this epoch that are done.
    losses : list of float
        Of every step, in nats.
    history : list of dict
        One for each validated epoch; its keys are `HISTORY_COLUMNS`.
    best_epoch : int
        0 before the first validation.
    best_report : str
        The figures of its validation, as of `Report.describe`.
    epoch_seconds : float
        Training time of the current epoch, over all sessions.
    split_sizes : list
        Pairs [tokens, rows]: a batch of at least that many tokens is taken in parts of
        at most that many rows. The first is the recipe's; the others were found when
        memory ran out.
    """

    rows: int
    batch_size: int
    epochs: int
    epoch: int = 1
    batch: int = 0
    losses: list[float] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_report: str = ""
    epoch_seconds: float = 0.0
    split_sizes: list[list[int]] = field(default_factory=list)

    def __post_init__(self):
        self.step_seconds: list[float] = []  # of this call of `train`
        self._lap_start = time.perf_counter()

    def __str__(self):
        epoch = min(self.epoch, self.epochs)
        steps = f"step {len(self.losses):,} of {self.total_steps:,}"
        return f"{steps} (epoch {epoch} of {self.epochs})"

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return -(-self.rows // self.batch_size) * self.epochs

    def lap(self) -> float:
        """Return the seconds since the last call.

        Returns
        -------
        float
        """
        before = self._lap_start
        self._lap_start = time.perf_counter()
        return self._lap_start - before

    def add_step(self, loss: float) -> None:
        """Record a step.

        Parameters
        ----------
        loss : float
            Mean cross-entropy of the batch, in nats.
        """
        self.losses.append(loss)
        self.batch += 1
        self.step_seconds.append(self.lap())
        self.epoch_seconds += self.step_seconds[-1]

    def add_epoch(self, report: Any) -> bool:
        """Record a validated epoch.

        Parameters
        ----------
        report : Report
            The figures of the validation rows.

        Returns
        -------
        bool
            True if it is the best so far: the highest accuracy; ties go to the lower
            loss, then to the earlier epoch.
        """
        values = (
            self.epoch,
            statistics.fmean(self.losses[-self.batch :]),
            report.loss,
            report.accuracy,
            self.rows / self.epoch_seconds,
        )
        self.history.append(dict(zip(HISTORY_COLUMNS, values)))
        self.lap()  # validation is no training time
        self.epoch += 1
        self.batch = 0
        self.epoch_seconds = 0.0
        best = max(
            self.history,
            key=lambda row: (row["validation_accuracy"], -row["validation_loss"]),
        )
        self.best_epoch = best["epoch"]
        if self.is_best_epoch:
            self.best_report = report.describe()
        return self.is_best_epoch

    @property
    def is_best_epoch(self) -> bool:
        """Whether the last epoch has just ended, and is the best so far."""
        return 0 < self.best_epoch == self.epoch - 1 and not self.batch

    def estimate(self) -> str:
        """Return how long the whole run takes, judged by this session's steps.

        Returns
        -------
        str
            A sentence; empty if no step was taken. The first step, which warms up,
            does not count unless it is the only one.
        """
        steps = self.step_seconds[1:] or self.step_seconds
        if not steps:
            return ""
        seconds = round(statistics.fmean(steps) * self.total_steps)
        return (
            f"At this pace all {self.epochs} epochs of {self.rows:,} training rows "
            f"take about {timedelta(seconds=seconds)} (h:mm:ss), validation left out."
        )


def training_state(optimizer: torch.optim.Optimizer, device: torch.device) -> dict:
    """Return what a resumed run needs beside the weights.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Of the model.
    device : torch.device
        Where the model is.

    Returns
    -------
    dict
        States of the optimizer and of the random generators that dropout draws from.
    """
    return {
        "optimizer": optimizer.state_dict(),
        "generators": [module.get_rng_state() for module in _generators(device)],
    }


def _generators(device):
    """Return the modules with the random state of the CPU and of another device."""
    if device.type == "cpu":
        return [torch]
    return [torch, getattr(torch, device.type)]


def write_checkpoint(
    folder: Path,
    model: PreTrainedModel,
    training: dict,
    state: State,
    facts: dict,
    write_best: Callable,
) -> Path:
    """Write this moment of a run.

    Parameters
    ----------
    folder : Path
        A run's ``checkpoints``. The new folder in it is named after the step.
    model : PreTrainedModel
        As it is now.
    training : dict
        From `training_state`.
    state : State
        How far the run is.
    facts : dict
        What else progress.json says about the run.
    write_best : Callable
        ``write_best(state, path)`` writes the best classifier so far. It is called
        after the first validation.

    Returns
    -------
    Path
        The checkpoint.

    Raises
    ------
    SaveError
        If it cannot be written; the checkpoints before it stay.
    """

    def write(staging):
        save_model(model, str(staging / WEIGHTS))
        torch.save(training, staging / STATE_FILE)
        storage.write_json(staging / PROGRESS, facts | {"state": asdict(state)})
        if state.best_epoch:
            write_best(state, staging / storage.BEST)

    name = f"step-{len(state.losses):08d}"
    # Above all others of this step: none is overwritten, and this is the newest.
    if taken := _in_order(folder.glob(f"{name}*")):
        name += f"-{_order(taken[-1])[1] + 1}"
    return storage.write_folder(folder / name, write)


def _order(path):
    """Return the step of a checkpoint, and which of this step it is."""
    step, *number = path.name.split("-")[1:]
    return int(step), int(*number or "1")


def _in_order(paths):
    """Sort those of some paths that have a checkpoint's name, oldest first."""
    return sorted((p for p in paths if NAME.fullmatch(p.name)), key=_order)


def read_checkpoint(
    path: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer
) -> State:
    """Load a checkpoint into a model, its optimizer and the random generators.

    Parameters
    ----------
    path : Path
        The checkpoint.
    model : PreTrainedModel
        Changed in place.
    optimizer : torch.optim.Optimizer
        Changed in place.

    Returns
    -------
    State
        How far the run was.
    """
    state = State(**read_progress(path)["state"])
    load_weights(model, path)
    training = torch.load(path / STATE_FILE, map_location="cpu", weights_only=True)
    optimizer.load_state_dict(training["optimizer"])
    for module, random_state in zip(_generators(model.device), training["generators"]):
        module.set_rng_state(random_state)
    return state


def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Load the weights in a checkpoint's or classifier's folder into a model.

    Parameters
    ----------
    model : PreTrainedModel
        Changed in place, on its device.
    folder : Path
        Holds model.safetensors.
    """
    load_model(model, folder / WEIGHTS, device=str(model.device))


def read_progress(path: Path) -> dict:
    """Read what a checkpoint says about its run.

    Parameters
    ----------
    path : Path
        The checkpoint.

    Returns
    -------
    dict
        Empty if its progress.json cannot be read, or is not the one that its manifest
        names.
    """
    with suppress(Damaged, OSError):
        sums = storage.read_json(path / storage.MANIFEST)
        if sums.get(PROGRESS) == storage.sha256(path / PROGRESS):
            return storage.read_json(path / PROGRESS)
    return {}


def find_checkpoints(run_folder: str | Path) -> list[Path]:
    """Return the checkpoints in a run's output folder, newest first.

    Parameters
    ----------
    run_folder : str or Path
        The output folder, which need not exist.

    Returns
    -------
    list of Path
    """
    checkpoints = Path(run_folder).expanduser() / storage.CHECKPOINTS
    names = (PROGRESS, storage.MANIFEST)  # either of them may be lost
    found = {path.parent for name in names for path in checkpoints.glob(f"*/{name}")}
    return _in_order(found)[::-1]
