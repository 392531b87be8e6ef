"""What a training run leaves on disk: checkpoints to continue from, and the best classifier. Notebook 08.

output_dir/           the best epoch's classifier, agnews_run.json; when finished, history.csv, steps.csv
  checkpoints/        until then: the newest two moments of the run, each whole by itself
    step-00000120/    model.safetensors, state.pt, progress.json; best/, a copy of the best classifier
"""

import hashlib
import os
import re
import shlex
import shutil
import statistics
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import load_model, save_model

from .model import (
    check_model_and_tokenizer,
    class_names,
    load_tokenizer,
    run_facts,
    source_files,
    write_classifier,
)
from .plumbing import storage
from .plumbing.errors import Damaged, InvalidValue, ResumeError, SaveError
from .recipe import Recipe

KEEP = 2  # checkpoints
ELSEWHERE = "Give another output folder."
DISCARD = "resume=False (agnews train --no-resume) begins anew."
NAME = re.compile(
    r"step-(\d{8,})(?:-(\d+))?"
)  # the second number: where several have as many steps
HISTORY = (
    "epoch",
    "train_loss",
    "validation_loss",
    "validation_accuracy",
    "rows_per_second",
)
# What decides the course of a run, beside the model, the tokens and the number of processes.
DECIDES = "max_length padding group_by_length batch_size class_weights learning_rate epochs precision seed"


@dataclass
class Run:
    """A training run, as far as it came.

    model : the best epoch's model, on the training device (before the first validation, the model as it is).
    folder : where it is saved with its tokenizer. history : DataFrame, a row per epoch. steps : DataFrame,
    the loss of every step. best_epoch : the epoch that was kept; 0 before the first validation. seconds :
    of training, all sittings together. finished : False for a run that was stopped and can be continued.
    """

    model: torch.nn.Module
    folder: Path
    history: pd.DataFrame
    steps: pd.DataFrame
    best_epoch: int
    seconds: float
    finished: bool = True


@dataclass
class State:
    """How far a run is: all that `train` counts. Its text says where it is.

    rows, batch_size, epochs : how large the run is. epoch : the one at work, from 1. batch : how many batches
    of it are done. losses : of every step, in nats. history : a dict for each validated epoch. best_epoch : 0
    before the first validation. seconds : of training, in all sittings; epoch_seconds : of the epoch at work.
    limits : [tokens, rows] pairs: batches this long ran out of memory and are taken in parts of so many rows.
    """

    rows: int
    batch_size: int
    epochs: int
    epoch: int = 1
    batch: int = 0
    losses: list[float] = field(default_factory=list)
    history: list[dict] = field(default_factory=list)
    best_epoch: int = 0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    limits: list[list[int]] = field(default_factory=list)

    def __post_init__(self):
        self.all_steps = -(-self.rows // self.batch_size) * self.epochs
        self.sitting: list[
            float
        ] = []  # seconds of each step since the program was started
        self._last = time.perf_counter()

    def __str__(self) -> str:
        epoch = min(self.epoch, self.epochs)
        return f"step {len(self.losses):,} of {self.all_steps:,} (epoch {epoch} of {self.epochs})"

    def tick(self) -> float:
        """Seconds since this was called last."""
        before, self._last = self._last, time.perf_counter()
        return self._last - before

    def count(self, loss: float) -> None:
        """A step is done."""
        self.losses.append(loss)
        self.batch += 1
        self.sitting.append(self.tick())
        self.epoch_seconds += self.sitting[-1]

    def end_epoch(self, report) -> bool:
        """An epoch is done and validated. Whether it is the best so far, by accuracy, then by loss."""
        train_loss = statistics.fmean(self.losses[-self.batch :])
        found = (
            self.epoch,
            train_loss,
            report.loss,
            report.accuracy,
            self.rows / self.epoch_seconds,
        )
        self.history.append(dict(zip(HISTORY, found)))
        self.seconds += self.epoch_seconds + self.tick()
        self.epoch, self.batch, self.epoch_seconds = self.epoch + 1, 0, 0.0
        scores = [
            (row["validation_accuracy"], -row["validation_loss"])
            for row in self.history
        ]
        self.best_epoch = 1 + scores.index(max(scores))  # among equals, the first
        return self.best_epoch == len(scores)

    def pace(self) -> str:
        """What the whole run takes, by the steps of this sitting but its first, which warms up."""
        minutes = (
            statistics.fmean(self.sitting[1:] or self.sitting or [0])
            * self.all_steps
            / 60
        )
        told = (
            f"{minutes / 60:.1f} hours" if minutes >= 90 else f"{minutes:.1f} minutes"
        )
        told = told if minutes >= 1 else f"{60 * minutes:.0f} seconds"
        rows = f"all {self.epochs} epochs of {self.rows:,} training rows"
        return (
            f"At this pace {rows} take about {told}, validation left out."
            if minutes
            else ""
        )


class RunFolder:
    """The output folder of one run: its lock, its checkpoints, the best classifier so far, the finished run.

    Of several processes the first alone writes; the others are told. What no run of this package wrote there
    stays as it is.

    Parameters
    ----------
    resume : ``"auto"``, True or False, as for `train`. minutes : between two checkpoints.

    Attributes
    ----------
    finished : whether the run that was asked for is finished already; then `load_run` returns it.

    When it is entered it may raise ResumeError, FolderInUse, SaveError and Damaged; as for `train`.
    """

    def __init__(
        self,
        output_dir,
        model,
        tokens,
        recipe: Recipe,
        accelerator,
        resume="auto",
        minutes=10.0,
    ):
        if resume not in ("auto", True, False):
            raise InvalidValue(
                f"resume is {resume!r}; it must be 'auto', True or False."
            )
        if not minutes > 0:
            raise InvalidValue(f"save_minutes is {minutes}; it must be above 0.")
        self.path = Path(output_dir).expanduser()
        self.checkpoints = self.path / "checkpoints"
        self.recipe, self.accelerator, self.resume, self.minutes = (
            recipe,
            accelerator,
            resume,
            minutes,
        )
        self.rows = {name: len(split) for name, split in tokens.items()}
        data = {
            f"data ({name})": storage.fingerprint(tokens[name])
            for name in ("train", "validation")
        }
        self.identity = {name: getattr(recipe, name) for name in DECIDES.split()} | data
        # The model by its files, not by its weights as they are: those of a run to be continued have moved.
        parts = [storage.sha256(path) for path in source_files(model.name_or_path)]
        parts = parts or [
            (name, list(weight.shape)) for name, weight in model.named_parameters()
        ]
        self.identity["model"] = hashlib.sha256(
            repr(parts).encode("utf-8")
        ).hexdigest()[:16]
        self.identity |= {
            "classes": ", ".join(class_names(model)),
            "processes": accelerator.num_processes,
        }
        self.source, self.first = model.name_or_path, accelerator.is_main_process
        self.tokenizer = load_tokenizer(
            recipe
        )  # now: an hour later the Hub may be out of reach
        check_model_and_tokenizer(model, self.tokenizer, recipe.max_length)
        # Bytes of a checkpoint: weights, Adam's two means, a copy of the best weights.
        self.needed = 4 * sum(weight.nbytes for weight in model.parameters())
        self.newest: Path | None = (
            None  # the checkpoint to continue from; then the last that was written
        )
        self.finished = self.protected = False

    def __enter__(self) -> "RunFolder":
        with ExitStack() as held:
            if self.first:
                self._open(held)
                self._look()
                disk = shutil.disk_usage(self.path)
                if (
                    not self.finished and disk.total and disk.free < self.needed
                ):  # some tell of no size
                    sizes = f"{self.needed / 2**20:,.0f} MiB, and {disk.free / 2**20:,.0f} are free"
                    raise SaveError(
                        f"A checkpoint in {self.path} takes {sizes}. Make room. {ELSEWHERE}"
                    )
            self.finished, self.newest = broadcast_object_list(
                [self.finished, self.newest]
            )
            self.held = held.pop_all()
        self.saved_at = time.perf_counter()
        return self

    def __exit__(self, *_) -> None:
        self.held.close()

    def _open(self, held: ExitStack) -> None:
        """Lock and try the folder: one that cannot be written fails now, not after an epoch."""
        if self.source and os.path.realpath(self.source) == os.path.realpath(self.path):
            raise ResumeError(f"{self.path} holds the model to begin with. {ELSEWHERE}")
        try:
            str(
                self.path
            ).encode()  # a name that is not UTF-8: the weights could not be written
            self.path.mkdir(parents=True, exist_ok=True)
            held.enter_context(storage.folder_lock(self.path))
            self.checkpoints.mkdir(exist_ok=True)
            held.callback(storage.remove_if_empty, self.checkpoints)
            (self.checkpoints / f"{storage.PARTIAL}trial").touch()
        except (OSError, UnicodeError) as error:
            raise SaveError(
                f"{self.path} cannot be written: {error}. {ELSEWHERE}"
            ) from error
        # What a process that died was writing or removing.
        for path in [
            *self.path.glob(f"{storage.PARTIAL}*"),
            *self.checkpoints.glob(f"{storage.PARTIAL}*"),
        ]:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(
                missing_ok=True
            )

    def _look(self) -> None:
        """What is here already: nothing, this run or a part of it, or something that must not be replaced."""
        facts = run_facts(self.path)
        storage.refuse_foreign(self.path, storage.OUTPUTS, facts)
        self.protected = facts.get(
            "finished", False
        )  # then nothing replaces it but a finished one
        if not self.resume:
            return self.clear()
        other = self.protected and differences(facts["identity"], self.identity)
        if self.protected and not other:
            if not (damaged := storage.damaged_files(self.path, facts["files"])):
                self.finished = True
                return self.clear()
            print(
                f"The finished run in {self.path} is damaged ({', '.join(damaged)}); training it again."
            )
        self.newest = self._newest_checkpoint()
        if self.newest is None and other:
            there = f"{self.path} holds a finished run of another kind: {other}."
            raise ResumeError(
                f"{there} {ELSEWHERE} {DISCARD} It stays there until the new one is finished."
            )
        if self.newest is None and self.resume is True:
            raise ResumeError(
                f"{self.path} holds no unfinished run: there is nothing to continue. {DISCARD}"
            )

    def _newest_checkpoint(self) -> Path | None:
        """The newest good one. One that is damaged is set aside, and the one before it tried."""
        for path in checkpoints_in(self.path):
            try:
                if damaged := storage.damaged_files(path):
                    storage.set_aside(path, f"{', '.join(damaged)} is damaged")
                    continue
                theirs = storage.read_json(path / storage.PROGRESS)["identity"]
                if other := differences(theirs, self.identity):
                    there = (
                        f"{self.path} holds an unfinished run of another kind: {other}."
                    )
                    raise ResumeError(
                        f"{there} Continue it unchanged, or give another folder. {DISCARD}"
                    )
                return path
            except OSError as error:
                print(
                    f"The checkpoint {path.name} cannot be read: {error}. It stays as it is."
                )
        return None

    def load_run(self, model) -> Run:
        """The finished run that is here, with its weights in `model`."""
        self.accelerator.print(
            f"This run is finished: its classifier is loaded from {self.path}. {DISCARD}"
        )
        model = self.accelerator.unwrap_model(self.accelerator.prepare(model))
        load_model(model, self.path / "model.safetensors", device=str(model.device))
        read = partial(
            pd.read_csv, index_col=0, dtype=str
        )  # as numbers pandas 2 would lose the last digit
        tables = (
            read(self.path / name).astype(float).rename(index=int)
            for name in storage.OUTPUTS[-2:]
        )
        facts = run_facts(self.path)
        return Run(model, self.path, *tables, facts["epoch"], facts["seconds"])

    def restore(self, model, optimizer) -> State:
        """Where the run is: at its beginning, or where the newest checkpoint left model and optimizer."""
        limits = (
            [[1, self.recipe.micro_batch_size]] if self.recipe.micro_batch_size else []
        )
        state = State(
            self.rows["train"],
            self.recipe.batch_size,
            self.recipe.epochs,
            limits=limits,
        )
        if self.newest is None:
            return state
        load_model(model, self.newest / "model.safetensors", device=str(model.device))
        kept = torch.load(
            self.newest / "state.pt", map_location="cpu", weights_only=True
        )
        optimizer.load_state_dict(kept["optimizer"])
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(kept["scaler"])
        states = kept["generators"][self.accelerator.process_index]
        for generator, drawn in zip(_generators(model.device), states):
            generator.set_rng_state(drawn)
        state = State(**storage.read_json(self.newest / storage.PROGRESS)["state"])
        state.limits += [limit for limit in limits if limit not in state.limits]
        self.accelerator.print(f"Continuing after {state}.")
        if (
            state.best_epoch
        ):  # what lies there may be of a later epoch, whose checkpoint was lost
            self._publish(model, state)
        return state

    @property
    def due(self) -> bool:
        """Whether it is time for a checkpoint."""
        return time.perf_counter() - self.saved_at >= 60 * self.minutes

    def save(self, model, optimizer, state: State) -> None:
        """Write a checkpoint of this very moment, keep the newest two; publish the best epoch at its end.

        SaveError where it cannot be written; the ones before it stay.
        """
        states = gather_object(
            [[g.get_rng_state() for g in _generators(model.device)]]
        )  # of each process
        is_best = (
            state.best_epoch
            and state.best_epoch == state.epoch - 1
            and state.batch == 0
        )

        def write(folder: Path) -> None:
            save_model(model, folder / "model.safetensors")
            scaler = self.accelerator.scaler and self.accelerator.scaler.state_dict()
            kept = {
                "optimizer": optimizer.state_dict(),
                "scaler": scaler,
                "generators": states,
            }
            torch.save(kept, folder / "state.pt")
            told = {
                "identity": self.identity,
                "recipe": self.recipe.to_dict(absolute_paths=True),
                "state": asdict(state),
            }
            storage.write_json(folder / storage.PROGRESS, told)
            if is_best:
                write_classifier(model, self.tokenizer, folder / "best")
            elif (
                state.best_epoch
            ):  # a copy, not a link: what damages one checkpoint spares the other
                shutil.copytree(self.newest / "best", folder / "best")

        if self.first:
            if not self.path.exists():
                if state.best_epoch and not is_best:
                    raise SaveError(
                        f"{self.path} is gone, and the best epoch with it. Train again."
                    )
                self.path.mkdir(parents=True)
                self.held.enter_context(storage.folder_lock(self.path))
                print(
                    f"note: {self.path} was deleted or renamed; the run goes on in a new one."
                )
            # A name that nothing has: no checkpoint is ever rewritten in its place.
            name = storage.free_name(self.checkpoints / f"step-{len(state.losses):08d}")
            self.newest = storage.write_folder(name, write)
            found = checkpoints_in(self.path)
            for path in found[found.index(self.newest) + KEEP :]:
                storage.remove_folder(path)
        [self.newest] = broadcast_object_list([self.newest])
        if is_best:
            self._publish(model, state)
        self.saved_at = time.perf_counter()
        state.tick()

    def _publish(self, model, state: State, run: Run | None = None) -> None:
        """Put the best classifier, before the first validation the model as it is, where all find it."""
        if not self.first or self.protected and run is None:
            return
        best = state.history[state.best_epoch - 1] if state.best_epoch else {}
        facts = {
            "recipe": self.recipe.to_dict(absolute_paths=True),
            "rows": self.rows,
            "steps": len(state.losses),
        }
        facts |= {
            "epoch": state.best_epoch,
            "validation_accuracy": best.get("validation_accuracy"),
        }
        if run:
            facts |= {
                "finished": True,
                "seconds": run.seconds,
                "identity": self.identity,
            }

        def write(folder: Path) -> None:
            if state.best_epoch:
                shutil.copytree(self.newest / "best", folder, dirs_exist_ok=True)
            else:
                write_classifier(model, self.tokenizer, folder)
            if run:
                run.history.to_csv(folder / "history.csv")
                run.steps.to_csv(folder / "steps.csv")

        staged = storage.write_folder(
            self.checkpoints / f"{storage.PARTIAL}classifier", write
        )
        storage.publish(staged, self.path, storage.RUN_FILE, facts)

    def stopped(self, model, optimizer, state: State) -> Run:
        """Save, say how to continue and how long the whole run takes, return the run so far."""
        self.save(model, optimizer, state)
        if not state.best_epoch:  # so that there is something to look at
            self._publish(model, state)
        folder = shlex.quote(str(self.path))
        how = f"To continue, call train() again, or run: agnews train --resume --output-dir {folder}"
        self.accelerator.print(
            f"Stopped after {state}; saved in {self.path}. {how}\n{state.pace()}"
        )
        return self._run(model, state, finished=False)

    def finish(self, model, state: State) -> Run:
        """Publish the finished run, and take its checkpoints away."""
        run = self._run(model, state, finished=True)
        self._publish(model, state, run)
        if self.first:
            self.clear()
        self.accelerator.wait_for_everyone()
        return run

    def _run(self, model, state: State, finished: bool) -> Run:
        if state.best_epoch and (state.best_epoch < len(state.history) or state.batch):
            load_model(
                model,
                self.newest / "best" / "model.safetensors",
                device=str(model.device),
            )
        history = pd.DataFrame(state.history, columns=HISTORY).set_index("epoch")
        numbers = pd.RangeIndex(1, len(state.losses) + 1, name="step")
        steps = pd.DataFrame({"loss": state.losses}, index=numbers, dtype=float)
        seconds = state.seconds + state.epoch_seconds
        return Run(
            model, self.path, history, steps, state.best_epoch, seconds, finished
        )

    def clear(self) -> None:
        """Take our checkpoints away."""
        for path in checkpoints_in(self.path):
            storage.remove_folder(path)


def checkpoints_in(folder: str | Path) -> list[Path]:
    """The checkpoints of the unfinished run in an output folder, the newest first."""
    found = [
        path
        for path in Path(folder).glob("checkpoints/step-*")
        if NAME.fullmatch(path.name)
    ]
    ours = [
        path
        for path in found
        if any((path / name).is_file() for name in (storage.PROGRESS, "state.pt"))
    ]
    return sorted(
        ours, key=lambda path: [int(n or 1) for n in NAME.fullmatch(path.name).groups()]
    )[::-1]


def recipe_of_run(folder: str | Path) -> Recipe:
    """The recipe of the unfinished run in an output folder, or else of the finished one; or ResumeError."""
    for path in checkpoints_in(folder):
        with suppress(Damaged, KeyError):
            return Recipe.from_dict(
                storage.read_json(path / storage.PROGRESS)["recipe"]
            )
    facts = run_facts(folder)
    if not facts.get("finished"):
        raise ResumeError(f"{folder} holds no run: there is nothing to continue.")
    return Recipe.from_dict(facts["recipe"])


def differences(theirs: dict, ours: dict) -> str:
    """What two identities differ in, in words."""
    names = [name for name in ours | theirs if theirs.get(name) != ours.get(name)]
    there = {
        name: f"{theirs.get(name)} there and {ours.get(name)} here" for name in names
    }
    there |= {
        name: "another" for name in names if re.match("model|data ", name)
    }  # parts of a SHA-256
    return "; ".join(f"{name} is {told}" for name, told in there.items())


def _generators(device) -> list:
    """What dropout draws from: PyTorch's random generator, and that of the device."""
    return [torch] if device.type == "cpu" else [torch, getattr(torch, device.type)]
