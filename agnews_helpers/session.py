"""One sitting of a training run: its epochs, validations and checkpoints. Notebook 04."""
import json
import statistics
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from .batching import deal, epoch_batches, make_loader
from .checkpoints import (RUN_FILE, Checkpoints, Progress, load_into, rng_state, run_facts, save_classifier,
                          write_classifier)
from .errors import DoesNotFit, NonFiniteError
from .evaluation import evaluate
from .interrupts import Interrupts
from .model import load_tokenizer
from .recipe import Recipe
from .step import Stepper
from .storage import publish, write_file

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


@dataclass
class Session:
    """One sitting of a run: from where the checkpoint was to its end, or to the next interruption."""

    model: torch.nn.Module
    parallel: torch.nn.Module  # the same, wrapped where there are several processes
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
        self.all_steps = -(-len(self.lengths) // self.recipe.batch_size) * self.recipe.epochs
        self.take_step = Stepper(self.parallel, self.optimizer, self.accelerator, self.progress.limits)
        self.saved, self.before, self.first = time.perf_counter(), len(self.progress.losses), None
        self.process, self.processes = self.accelerator.process_index, self.accelerator.num_processes
        self.alone = self.processes == 1
        if self.before:
            self.accelerator.print(f"Continuing after {self.place()}.")
        if self.progress.best_epoch and self.process == 0:  # what lies there may be of a later epoch, whose checkpoint was lost
            publish(self.checkpoints.best(self.progress.best_epoch), self.folder, last=RUN_FILE)

    def train_epoch(self, epoch: int) -> bool:
        """The rest of an epoch. True when it is done, False when the run is to stop."""
        progress, recipe, rows = self.progress, self.recipe, self.tokens["train"]
        clock = time.perf_counter()
        batches = epoch_batches(self.lengths, recipe, epoch)
        loader = make_loader(rows, recipe, epoch, self.model.config.pad_token_id, progress.batch, self.process, self.processes)
        done, stop = sum(map(len, batches[:progress.batch])), False
        self.parallel.train()
        with tqdm(total=len(rows), initial=done, unit="row", desc=f"epoch {epoch}/{recipe.epochs}", disable=self.process > 0) as bar:
            for batch in loader:
                if stop or self.alone and self.interrupts.wanted or self.steps == len(progress.losses) - self.before:
                    return False
                batch = {name: tensor.to(self.accelerator.device, non_blocking=True) for name, tensor in batch.items()}
                loss = self.step(batch, batches[progress.batch])
                now = time.perf_counter()
                loss, stop, due = self.agree(loss, self.interrupts.wanted, now - self.saved >= 60 * recipe.checkpoint_minutes)
                bar.update(len(batches[progress.batch]))
                bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
                progress.losses.append(loss)
                progress.batch += 1
                self.first = self.first or now - clock
                progress.epoch_seconds, clock = progress.epoch_seconds + now - clock, now
                if due:
                    self.save()
                    clock = time.perf_counter()
        return True

    def agree(self, loss: float, *wishes: bool) -> tuple:
        """What all processes know after a step: the mean of their losses, and whether any has each of the wishes."""
        if self.alone:
            return loss, *wishes
        from accelerate.utils import reduce

        values = torch.tensor([loss, *map(float, wishes)], dtype=torch.float64, device=self.accelerator.device)
        loss, *wishes = reduce(values, "sum").tolist()
        return loss / self.processes, *(wish > 0 for wish in wishes)

    def step(self, batch: dict, numbers: list[int]) -> float:
        """The loss of one step. `numbers` are its rows in the train split, for messages."""
        length = batch["input_ids"].shape[1]
        try:
            return self.take_step(batch, deal(numbers, self.process, self.processes)[1])
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
            with self.interrupts.at_once() if self.alone else nullcontext():
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
        if best["epoch"] == epoch and self.process == 0:
            kept = write_classifier(self.model, self.tokenizer, self.checkpoints.best(epoch), self.recipe, **self.facts())
            publish(kept, self.folder, last=RUN_FILE)
            self.checkpoints.prune(epoch)
        progress.seconds += progress.epoch_seconds + time.perf_counter() - started
        progress.epoch, progress.batch, progress.epoch_seconds = epoch + 1, 0, 0.0
        return True

    def save(self) -> None:
        from accelerate.utils import gather_object

        rng = gather_object([rng_state(self.model.device)])
        if self.process == 0:
            self.checkpoints.save(self.model, self.optimizer, self.accelerator.scaler, self.progress, rng)
        self.accelerator.wait_for_everyone()
        self.saved = time.perf_counter()

    def stop(self) -> Run:
        """Save, say how to continue, and return the run so far."""
        self.save()
        if not self.progress.best_epoch and self.process == 0:  # so that there is something to look at
            save_classifier(self.model, self.tokenizer, self.folder, self.recipe, **self.facts())
        self.accelerator.print(f"Stopped after {self.place()}; saved in {self.folder}. To continue, run the same again, or: "
                               f"agnews train --resume --output-dir {self.folder}{self.expected()}")
        return self.run(finished=False)

    def finish(self) -> Run:
        """Write down how the run went, and take the checkpoints away."""
        run = self.run(finished=True)
        self.accelerator.wait_for_everyone()
        if self.process > 0:
            return run
        write_file(self.folder / "history.csv", run.history.to_csv())
        write_file(self.folder / "steps.csv", run.steps.to_csv())
        facts = {**run_facts(self.folder), "finished": True, "seconds": run.seconds, "identity": self.checkpoints.identity}
        write_file(self.folder / RUN_FILE, json.dumps(facts, indent=2))
        self.checkpoints.clear()
        return run

    def run(self, finished: bool) -> Run:
        progress = self.progress
        self.accelerator.wait_for_everyone()
        if progress.best_epoch not in (0, len(progress.history)) or progress.best_epoch and progress.batch:
            load_into(self.model, self.checkpoints.best(progress.best_epoch))
        history = pd.DataFrame(progress.history, columns=COLUMNS).set_index("epoch")
        steps = pd.DataFrame({"loss": progress.losses}, index=pd.RangeIndex(1, len(progress.losses) + 1, name="step"), dtype=float)
        return Run(self.model, self.folder, history, steps, progress.best_epoch, progress.seconds + progress.epoch_seconds, finished)

    def facts(self) -> dict:
        """What is noted beside a saved classifier."""
        history, rows = self.progress.history, {name: len(split) for name, split in self.tokens.items()}
        accuracy = history[-1]["validation_accuracy"] if history else None
        return {"epoch": self.progress.best_epoch, "validation_accuracy": accuracy, "steps": len(self.progress.losses), "rows": rows}

    def expected(self) -> str:
        """What the whole run would take, where `steps` asked for a part of it to find out."""
        progress = self.progress
        if self.steps is None or not progress.losses:
            return ""
        spent, steps = progress.seconds + progress.epoch_seconds, len(progress.losses)
        if self.first and steps > 1:  # the first step warms up, and would weigh too much
            spent, steps = spent - self.first, steps - 1
        total = spent / steps * self.all_steps
        return (f"\nAt this pace all {self.recipe.epochs} epochs of {len(self.lengths):,} training rows take about {_duration(total)}, "
                "validation left out.")

    def place(self) -> str:
        """Where the run is, in words."""
        epoch = min(self.progress.epoch, self.recipe.epochs)
        return f"step {len(self.progress.losses):,} of {self.all_steps:,} (epoch {epoch} of {self.recipe.epochs})"


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} hours" if seconds >= 5400 else f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.0f} seconds"
