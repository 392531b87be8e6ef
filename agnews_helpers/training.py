"""The training loop. Notebook 04 writes it in plain PyTorch and proves that this is the same."""
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import torch

from .batching import make_loader, tokenize
from .checkpoints import Checkpoints, Progress, differences, identity_of, is_classifier, load_classifier, load_into, run_facts
from .data import load_agnews
from .hardware import processes
from .interrupts import Interrupts
from .model import load_model, load_tokenizer
from .precision import check_precision
from .recipe import Recipe
from .session import Run, Session
from .step import training_step
from .storage import only_one, sha256

__all__ = ["Run", "find_or_train", "make_accelerator", "train", "training_step"]


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
    first = accelerator.is_main_process  # of several processes, this one alone writes and talks
    with only_one(folder) if first else nullcontext(), Interrupts() as interrupts:
        checkpoints = Checkpoints(folder / "checkpoints", identity_of(recipe, tokens, accelerator.num_processes))
        if not resume and first:
            checkpoints.clear()
        path = _told_by_first(accelerator, checkpoints.newest)
        if resume and not path and (run := _finished(model, folder, checkpoints.identity, accelerator)):
            return run
        if recipe.precision != "fp32":
            batch = next(iter(make_loader(tokens["train"], recipe, 1, model.config.pad_token_id)))
            check_precision(model, batch, recipe.precision, accelerator.device)
        set_seed(recipe.seed + accelerator.process_index)  # dropout
        optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, fused=True)  # one kernel, the same update
        parallel, optimizer = accelerator.prepare(model, optimizer)
        model, progress = accelerator.unwrap_model(parallel), Progress()
        if path:
            progress = checkpoints.restore(path, model, optimizer, accelerator.scaler, accelerator.process_index)
        session = Session(model, parallel, optimizer, accelerator, tokens, recipe, folder, checkpoints, progress, interrupts, steps)
        session.begin()
        for epoch in range(progress.epoch, recipe.epochs + 1):
            if not (session.train_epoch(epoch) and session.validate(epoch)):
                return session.stop()
        return session.finish()


def _told_by_first(accelerator, function):
    """What `function` returns in the first process, in all of them."""
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([function() if accelerator.is_main_process else None])[0]


def _finished(model, folder: Path, identity: dict, accelerator) -> Run | None:
    """The finished run in `folder` if it is the one that was asked for, with its weights in `model`."""
    facts = run_facts(folder)
    if not facts.get("finished") or not is_classifier(folder):
        return None
    other = differences(facts["identity"], identity)
    if other:
        accelerator.print(f"{folder} holds a finished run of another kind; this one will replace it: {'; '.join(other)}.")
        return None
    if sha256(folder / "model.safetensors") != facts["sha256"]:
        accelerator.print(f"The classifier in {folder} is damaged; training it again.")
        return None
    accelerator.print(f"This run is finished: its classifier is loaded from {folder}. To train it again: resume=False (agnews train --no-resume).")
    model = accelerator.unwrap_model(accelerator.prepare(load_into(model, folder)))
    history, steps = (_read_numbers(folder / name) for name in ("history.csv", "steps.csv"))
    return Run(model, folder, history, steps, facts["epoch"], facts["seconds"])


def _read_numbers(path: Path) -> pd.DataFrame:
    """A table of numbers to the last digit, which pandas 2 loses where it turns text into numbers itself."""
    table = pd.read_csv(path, index_col=0, dtype=str).astype(float)
    table.index = table.index.astype(int)
    return table


def make_accelerator(recipe: Recipe):
    """Accelerate's view of this machine, in the recipe's precision."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    precision = "no" if recipe.precision == "fp32" else recipe.precision
    state = AcceleratorState._shared_state
    if state and state.get("_mixed_precision") != precision:
        AcceleratorState._reset_state()  # a notebook may train again in another precision
    return Accelerator(mixed_precision=precision, cpu=processes().device.type == "cpu")


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
