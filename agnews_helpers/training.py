"""The training loop. Notebook 04 writes it in plain PyTorch and proves that this is the same."""
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from .batching import epoch_batches, make_loader, tokenize
from .checkpoints import (RUN_FILE, Checkpoints, Progress, differences, identity_of, is_classifier, load_classifier, run_facts,
                          save_classifier, write_classifier)
from .data import load_agnews
from .errors import DoesNotFit, NonFiniteError
from .evaluation import evaluate
from .interrupts import Interrupts
from .model import load_model, load_tokenizer
from .precision import check_precision
from .recipe import Recipe
from .step import Stepper, training_step
from .storage import only_one, publish, sha256, write_file

__all__ = ["Run", "find_or_train", "make_accelerator", "train", "training_step"]
COLUMNS = ("epoch", "train_loss", "validation_loss", "validation_accuracy", "rows_per_second")


@dataclass
class Run:
    """A training run, as far as it came.

    model : the best epoch's model, on the training device (before the first validation, the model as it is).
    folder : where it is saved with its tokenizer. history : DataFrame, one row an epoch. steps : DataFrame,
    the loss of every step. best_epoch : the epoch that was kept; 0 before the first validation. seconds :
    of training, all sessions together. finished : False for a run that was stopped and can be continued.
    """

    model: torch.nn.Module
    folder: Path
    history: pd.DataFrame
    steps: pd.DataFrame
    best_epoch: int
    seconds: float
    finished: bool = True


def train(model, tokens, recipe: Recipe, output_dir: str | Path = "runs/agnews", resume: str | bool = "auto",
          steps: int | None = None) -> Run:
    """Fine-tune `model` on ``tokens["train"]``, validate after each epoch, keep the best one.

    The best epoch is the one with the highest validation accuracy; among equals, the lowest loss. It is
    saved in `output_dir` as soon as it is known, with its tokenizer and ``history.csv``. Every
    `recipe.checkpoint_minutes`, and when it is stopped (Ctrl-C, the notebook's stop button, SIGTERM), the
    run is saved in ``output_dir/checkpoints``; the same call continues it, step for step as if nothing had been.

    Parameters
    ----------
    model : from `load_model`; its weights change.
    tokens : from `tokenize`, with splits ``train`` and ``validation``.
    resume : ``"auto"`` continues an unfinished run of `output_dir`, returns a finished one of the same recipe
        and data, and otherwise begins; False discards what is there and begins.
    steps : stop after so many steps, as Ctrl-C would.

    Returns
    -------
    Run

    Raises
    ------
    ResumeError
        When the unfinished run there is of another recipe, other data or another number of processes.
    FolderInUse
        When another process trains into `output_dir`.
    SaveError
        When the disk is full. NonFiniteError : when a loss or gradient is not finite.
    DoesNotFit
        When memory runs out even with one row at a time.
    PrecisionRefused
        When `recipe.precision` fails on this machine.
    """
    from accelerate.utils import set_seed

    if resume not in ("auto", False):
        raise ValueError(f"resume is {resume!r}; it must be 'auto' or False.")
    if steps is not None and steps < 1:
        raise ValueError(f"steps is {steps}; it must be at least 1, or None for all.")
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)  # a folder that cannot be written fails now, not after an epoch
    accelerator = make_accelerator(recipe)
    with only_one(folder), Interrupts() as interrupts:
        checkpoints = Checkpoints(folder / "checkpoints", identity_of(recipe, tokens, accelerator.num_processes))
        if not resume:
            checkpoints.clear()
        elif not checkpoints.steps() and (run := _finished(model, folder, checkpoints.identity, accelerator)):
            return run
        check_precision(model, next(iter(make_loader(tokens["train"], recipe, 1, model.config.pad_token_id))), recipe.precision,
                        accelerator.device)
        set_seed(recipe.seed)  # dropout
        optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, fused=True)  # one kernel, the same update
        model, optimizer = accelerator.prepare(model, optimizer)
        progress = checkpoints.load(model, optimizer, accelerator.scaler) or Progress()
        session = _Session(model, optimizer, accelerator, tokens, recipe, folder, checkpoints, progress, interrupts, steps)
        session.begin()
        for epoch in range(progress.epoch, recipe.epochs + 1):
            if not (session.train_epoch(epoch) and session.validate(epoch)):
                return session.stop()
        return session.finish()


@dataclass
class _Session:
    """One sitting of a run: from where the checkpoint was to its end, or to the next interruption."""

    model: torch.nn.Module
    optimizer: object
    accelerator: object
    tokens: dict
    recipe: Recipe
    folder: Path
    checkpoints: Checkpoints
    progress: Progress
    interrupts: Interrupts
    steps: int | None

    def begin(self) -> None:
        self.tokenizer = load_tokenizer(self.recipe)
        self.lengths = self.tokens["train"]["length"][:]
        self.take_step = Stepper(self.model, self.optimizer, self.accelerator, self.progress.limits)
        self.saved, self.first = time.perf_counter(), len(self.progress.losses)
        if self.first:
            print(f"Continuing after {self.place()}.")
        if self.progress.best_epoch:  # what lies there may be of a later epoch, whose checkpoint was lost
            publish(self.checkpoints.best(self.progress.best_epoch), self.folder, last=RUN_FILE)

    def train_epoch(self, epoch: int) -> bool:
        """The rest of an epoch. True when it is done, False when the run is to stop."""
        progress, recipe, rows = self.progress, self.recipe, self.tokens["train"]
        batches = epoch_batches(self.lengths, recipe, epoch)
        loader = make_loader(rows, recipe, epoch, self.model.config.pad_token_id, start=progress.batch)
        done = sum(map(len, batches[:progress.batch]))
        self.model.train()
        with tqdm(total=len(rows), initial=done, unit="row", desc=f"epoch {epoch}/{recipe.epochs}") as bar:
            clock = time.perf_counter()
            for batch in loader:
                if self.interrupts.wanted or self.steps == len(progress.losses) - self.first:
                    return False
                batch = {name: tensor.to(self.accelerator.device, non_blocking=True) for name, tensor in batch.items()}
                progress.losses.append(self.step(batch, batches[progress.batch]))
                progress.batch += 1
                bar.set_postfix(loss=f"{progress.losses[-1]:.3f}", refresh=False)
                bar.update(len(batch["labels"]))
                now = time.perf_counter()
                progress.epoch_seconds += now - clock
                if now - self.saved >= 60 * recipe.checkpoint_minutes:
                    self.save()
                clock = time.perf_counter()
        return True

    def step(self, batch: dict, numbers: list[int]) -> float:
        """The loss of one step. `numbers` are its rows in the train split, for messages."""
        length = batch["input_ids"].shape[1]
        try:
            return self.take_step(batch)
        except NonFiniteError as error:
            raise NonFiniteError(
                f"The {error} of the step after {self.place()} is not finite; the step was not taken, and no checkpoint has it. Its "
                f"rows of the train split are {', '.join(map(str, numbers))}, padded to {length} tokens. Look at them; if nothing "
                f"is wrong with them, use a learning rate below {self.recipe.learning_rate:g}, or precision='fp32'.") from None
        except DoesNotFit as error:
            from .vram.report import remedies

            raise DoesNotFit(f"Out of memory: {error}. {remedies(self.model.config, self.recipe, length)}", length) from None

    def validate(self, epoch: int) -> bool:
        """Score the epoch and keep its model if it is the best. False when interrupted; it is then done again."""
        progress, started = self.progress, time.perf_counter()
        try:
            with self.interrupts.at_once():
                report = evaluate(self.model, self.tokens["validation"], self.recipe)
        except KeyboardInterrupt:
            return False
        progress.history.append({
            "epoch": epoch,
            "train_loss": statistics.fmean(progress.losses[-progress.batch:]),
            "validation_loss": report.loss,
            "validation_accuracy": report.accuracy,
            "rows_per_second": len(self.tokens["train"]) / progress.epoch_seconds})
        best = max(progress.history, key=lambda row: (row["validation_accuracy"], -row["validation_loss"]))
        progress.best_epoch = best["epoch"]
        if best["epoch"] == epoch:
            kept = write_classifier(self.model, self.tokenizer, self.checkpoints.best(epoch), self.recipe, **self.facts())
            publish(kept, self.folder, last=RUN_FILE)
            self.checkpoints.prune(epoch)
        progress.seconds += progress.epoch_seconds + time.perf_counter() - started
        progress.epoch, progress.batch, progress.epoch_seconds = epoch + 1, 0, 0.0
        return True

    def save(self) -> None:
        self.checkpoints.save(self.model, self.optimizer, self.accelerator.scaler, self.progress)
        self.saved = time.perf_counter()

    def stop(self) -> Run:
        """Save, say how to continue, and return the run so far."""
        self.save()
        if not self.progress.best_epoch:  # so that there is something to look at
            save_classifier(self.model, self.tokenizer, self.folder, self.recipe, **self.facts())
        print(f"Stopped after {self.place()}; saved in {self.folder}. To continue, run the same again, or: "
              f"agnews train --resume --output-dir {self.folder}")
        return self.run(finished=False)

    def finish(self) -> Run:
        """Write down how the run went, and take the checkpoints away."""
        run = self.run(finished=True)
        write_file(self.folder / "history.csv", run.history.to_csv())
        write_file(self.folder / "steps.csv", run.steps.to_csv())
        facts = {**run_facts(self.folder), "finished": True, "seconds": run.seconds, "identity": self.checkpoints.identity}
        write_file(self.folder / RUN_FILE, json.dumps(facts, indent=2))
        self.checkpoints.clear()
        return run

    def run(self, finished: bool) -> Run:
        progress = self.progress
        if progress.best_epoch not in (0, len(progress.history)) or progress.best_epoch and progress.batch:
            _load(self.model, self.checkpoints.best(progress.best_epoch))
        history = pd.DataFrame(progress.history, columns=COLUMNS).set_index("epoch")
        steps = pd.DataFrame({"loss": progress.losses}, index=pd.RangeIndex(1, len(progress.losses) + 1, name="step"), dtype=float)
        return Run(self.model, self.folder, history, steps, progress.best_epoch, progress.seconds + progress.epoch_seconds, finished)

    def facts(self) -> dict:
        """What is noted beside a saved classifier."""
        history, rows = self.progress.history, {name: len(split) for name, split in self.tokens.items()}
        accuracy = history[-1]["validation_accuracy"] if history else None
        return {"epoch": self.progress.best_epoch, "validation_accuracy": accuracy, "steps": len(self.progress.losses), "rows": rows}

    def place(self) -> str:
        """Where the run is, in words."""
        progress, a_epoch = self.progress, -(-len(self.lengths) // self.recipe.batch_size)
        epoch = min(progress.epoch, self.recipe.epochs)
        return f"step {len(progress.losses):,} of {a_epoch * self.recipe.epochs:,} (epoch {epoch} of {self.recipe.epochs})"


def _finished(model, folder: Path, identity: dict, accelerator) -> Run | None:
    """The finished run in `folder` if it is the one that was asked for, with its weights in `model`."""
    facts = run_facts(folder)
    if not facts.get("finished") or not is_classifier(folder):
        return None
    other = differences(facts["identity"], identity)
    if other:
        print(f"{folder} holds a finished run of another kind; this one will replace it: {'; '.join(other)}.")
        return None
    if sha256(folder / "model.safetensors") != facts["sha256"]:
        print(f"The classifier in {folder} is damaged; training it again.")
        return None
    print(f"This run is finished: its classifier is loaded from {folder}. To train it again: resume=False (agnews train --no-resume).")
    model = accelerator.prepare(_load(model, folder))
    history, steps = (pd.read_csv(folder / name, index_col=0, engine="python") for name in ("history.csv", "steps.csv"))
    return Run(model, folder, history, steps, facts["epoch"], facts["seconds"])


def _load(model, folder: Path):
    model.load_state_dict(load_classifier(folder)[0].state_dict())
    return model


def make_accelerator(recipe: Recipe):
    """Accelerate's view of this machine, in the recipe's precision."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    precision = "no" if recipe.precision == "fp32" else recipe.precision
    state = AcceleratorState._shared_state
    if state and state.get("_mixed_precision") != precision:
        AcceleratorState._reset_state()  # a notebook may train again in another precision
    return Accelerator(mixed_precision=precision)


def find_or_train(recipe: Recipe, folder: str | Path = "runs/agnews", rows: int = 400):
    """The classifier of notebook 04 from `folder`, or a brief training when there is none.

    Says which of the two happened. The brief one takes at most `rows` training rows.
    """
    if is_classifier(folder):
        trained = run_facts(folder).get("recipe", {})
        print(f"Using the classifier of notebook 04 (profile {trained.get('profile', 'unknown')}).")
        return load_classifier(folder)
    print(f"No classifier of notebook 04 here: training one on at most {rows} rows.")
    brief = recipe.but(train_rows=min(recipe.train_rows or rows, rows))
    news = load_agnews(brief)
    train(load_model(brief), tokenize(news, load_tokenizer(brief), brief), brief, folder)
    return load_classifier(folder)
