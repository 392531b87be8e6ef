"""The training loop. Notebook 05 writes it in plain PyTorch and shows them equal."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from math import isfinite
from pathlib import Path
from traceback import clear_frames

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch.nn.utils import get_total_norm
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from .batching import check_labels, check_tokens, epoch_batches, make_loader
from .checkpoints import State
from .evaluation import evaluate
from .hardware import check_precision, this_card, training_device
from .model import check_trainable, enable_gradient_checkpointing, label_mapping
from .plumbing.errors import (
    DoesNotFit,
    InvalidValue,
    NonFiniteError,
    check_types,
    is_out_of_memory,
)
from .plumbing.interrupts import StopSignal
from .plumbing.memory import Batch, free_memory, in_parts
from .plumbing.vram_cap import vram_cap
from .recipe import Recipe
from .runs import OpenRun, Run


@check_types
def train(
    model: PreTrainedModel,
    tokens: Mapping[str, Dataset],
    recipe: Recipe,
    output_dir: str | Path = "runs/agnews",
    resume: str | bool = "auto",
    steps: int | None = None,
    save_minutes: float | int = 10.0,
) -> Run:
    """Fine-tune a model, validate it after each epoch, and keep the best epoch.

    The best epoch has the highest validation accuracy; ties go to the lower validation
    loss. Its classifier is saved in ``output_dir/best``. The run itself is saved in
    ``output_dir/checkpoints`` every `save_minutes`, after each best epoch, and when it
    is stopped (Ctrl-C, the notebook's stop button; SIGTERM and SIGHUP on POSIX,
    Ctrl-Break on Windows). A save between two steps that fails is only a note.
    Calling `train` again with the same arguments resumes it; on a CPU the result is
    identical to that of an uninterrupted run.

    Parameters
    ----------
    model : PreTrainedModel
        From `load_model`; its weights change.
    tokens : Mapping
        From `tokenize`, with the splits ``train`` and ``validation``.
    recipe : Recipe
        How to train.
    output_dir : str or Path
        The run's folder, which need not exist.
    resume : {"auto", True, False}
        "auto": resume an unfinished run, return a finished run with the same recipe and
        data, otherwise start a new one. True: resume only. False: discard an unfinished
        run and start over. A finished classifier stays until the new one is finished.
    steps : int, optional
        Stop after this many steps of this call, as Ctrl-C would.
    save_minutes : float
        Between two checkpoints.

    Returns
    -------
    Run
        PyTorch's random numbers were seeded with `recipe.seed`; the model is the one
        that was given, so another run with it changes this run's model, too.

    Raises
    ------
    ResumeError
        If the folder holds a run with another recipe, model or data, or if `resume` is
        True and no run can be resumed.
    FolderInUse
        If another process trains into `output_dir`.
    SaveError
        If the disk is full, or `output_dir` cannot be written or holds foreign files.
    NonFiniteError
        If a loss or a gradient is not finite. No step is taken with it.
    DoesNotFit
        If memory runs out even with one row at a time. The model is put back where it
        was, and nothing else of the run stays in the device's memory.
    InvalidValue
        If an argument is out of range, the model's classes are not the data's, or
        `recipe.precision` is bf16 and the card only emulates it.
    """
    check_run(model, tokens, recipe, steps)
    split = tokens["train"]
    folder = OpenRun(output_dir, model, tokens, recipe, resume, save_minutes)
    with folder as run, StopSignal() as stop:
        if run.is_finished:
            return run.load()
        with ready_to_train(model, recipe) as optimizer:
            state = run.restore(optimizer)  # a new run: epoch 1, batch 0
            step = partial(
                forward_backward, class_weights=class_weights(model, split, recipe)
            )
            for epoch in range(state.epoch, recipe.epochs + 1):
                # Seed and epoch alone decide the order: a resumed epoch is a slice.
                batches = epoch_batches(split["length"][:], recipe, epoch)
                batches = batches[state.batch :]
                loader = make_loader(split, batches, recipe, model.config.pad_token_id)
                model.train()  # dropout on; `evaluate` switches it off and on again
                bar = progress_bar(state, batches, loader, model.device)
                for indices, batch in bar:
                    if stop.received or len(state.step_seconds) == steps:
                        return run.save_and_stop(state)
                    with error_context(state, indices):
                        loss = in_parts(step, model, batch, state.split_sizes)
                        loss = check_finite(loss, model)  # before the weights move
                        optimizer.step()
                        optimizer.zero_grad()  # or the next gradients add to these
                    state.add_step(loss)
                    if run.is_save_due:
                        run.save(state, is_periodic=True)
                    if stop.received:  # before the bar writes to a closed pipe
                        return run.save_and_stop(state)
                with run.saved_if_memory_runs_out(state):
                    report = stop.run_unless_stopped(
                        evaluate, model, tokens["validation"], recipe
                    )
                if report is None:  # stopped: a resumed run validates again
                    return run.save_and_stop(state)
                if state.add_epoch(report):  # the best so far
                    run.save(state)
            return run.finish(state)


def forward_backward(
    model: torch.nn.Module,
    batch: Batch,
    rows: float | None = None,
    class_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute the loss of a batch and add its gradients to `model`.

    The weights are not updated.

    Parameters
    ----------
    model : torch.nn.Module
        A sequence classifier of transformers.
    batch : dict
        ``input_ids`` and ``attention_mask`` [rows, tokens], ``labels`` [rows], int64.
    rows : float, optional
        What the summed loss is divided by. Default: the rows of `batch`. For a part of
        a batch: the rows of the whole batch, so that the parts add up to it.
    class_weights : torch.Tensor, optional
        Shape [classes]; multiplies the loss of each row by the weight of its class. The
        sum is divided by `rows`, not by the sum of the weights.

    Returns
    -------
    torch.Tensor
        Mean cross-entropy in nats: a detached scalar on the model's device.
    """
    inputs = {name: batch[name] for name in batch if name != "labels"}
    logits = model(**inputs).logits.float()  # half precision is not enough for a loss
    losses = F.cross_entropy(logits, batch["labels"], class_weights, reduction="sum")
    loss = losses / (rows or len(logits))
    loss.backward()
    return loss.detach()


def check_run(
    model: PreTrainedModel,
    tokens: Mapping[str, Dataset],
    recipe: Recipe,
    steps: int | None = None,
) -> None:
    """Refuse what cannot be trained, before any work.

    Parameters
    ----------
    model : PreTrainedModel
        From `load_model`.
    tokens : Mapping
        From `tokenize`.
    recipe : Recipe
        How to train.
    steps : int, optional
        As for `train`.

    Raises
    ------
    InvalidValue
        If an argument is out of range, the model cannot be trained or saved, a split
        has no tokenized rows or a label out of range, the model's classes are not the
        data's, gradients are off, autocast is on, or the precision is bf16 and the card
        only emulates it.
    """
    if steps is not None and steps < 1:
        raise InvalidValue(
            f"steps is {steps}; it must be from 1. Leave it out to train to the end."
        )
    if not torch.is_grad_enabled() or torch.is_autocast_enabled(training_device()):
        raise InvalidValue(
            "Gradients are off, or autocast is on: call train() outside torch.no_grad "
            "and torch.autocast. Instead of the latter there is Recipe.precision."
        )
    check_trainable(model)
    for name in ("train", "validation"):
        check_tokens(tokens.get(name), f"The split {name!r}")
        check_labels(tokens[name]["label"][:], model.config.num_labels)
    if label_mapping(model, tokens["train"]) != [*range(model.config.num_labels)]:
        raise InvalidValue(
            "The model's classes do not match the data's. Pass the data's class names "
            "to load_model(recipe, names)."
        )
    check_precision(recipe.precision, this_card())


@contextmanager
def ready_to_train(model: PreTrainedModel, recipe: Recipe) -> Iterator:
    """Context manager: prepare machine, model and optimizer for training.

    Sets the device's memory cap and gradient checkpointing; seeds dropout, clears the
    gradients, and moves the model to the device. In bf16 the forward pass runs
    under autocast. On exit the model is as it was, but for its weights and device;
    Adam's state and the gradients are let go, and the memory is given back to the
    device: a notebook keeps its last error, and with it all that the loop names.

    Parameters
    ----------
    model : PreTrainedModel
        The model to train.
    recipe : Recipe
        How to train.

    Yields
    ------
    torch.optim.Adam

    Raises
    ------
    DoesNotFit
        If memory runs out inside; says what helps.
    """
    device, device_before = training_device(), model.device
    # Fused: all weights are updated by one kernel, with the same result.
    adam = torch.optim.Adam(model.parameters(), recipe.learning_rate, fused=True)
    with _put_back(model), vram_cap(torch.device(device)):
        if recipe.gradient_checkpointing:
            enable_gradient_checkpointing(model)
        torch.manual_seed(recipe.seed)  # for dropout
        model.zero_grad()
        try:
            model.to(device)
            if recipe.precision == "bf16":
                model.forward = torch.autocast(device, torch.bfloat16)(model.forward)
            yield adam
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            clear_frames(error.__traceback__)  # their names keep what was computed
            model.to(device_before)
            raise DoesNotFit(
                f"Out of memory: {str(error).splitlines()[0]} What was saved is whole, "
                "and the same call goes on from there. What helps: (1) Close what else "
                "uses the memory: another notebook keeps its share until its kernel is "
                "restarted; nvidia-smi lists it. (2) gradient_checkpointing=True. (3) "
                "In another folder a smaller max_length, or AGNEWS_MODEL=mini. `agnews "
                "budget` predicts what a card needs."
            ) from None
        finally:
            adam.state.clear()
            model.zero_grad()
            free_memory()


@contextmanager
def _put_back(model):
    """Put back mode, storing of activations, and forward pass without autocast."""
    attributes = {module: vars(module).copy() for module in model.modules()}
    try:
        yield
    finally:
        for module, before in attributes.items():
            module.__dict__ = before


def class_weights(
    model: PreTrainedModel, split: Dataset, recipe: Recipe
) -> torch.Tensor | None:
    """Return the recipe's class weights; None: all classes weigh the same.

    "balanced" is n / (classes x rows of the class), as in scikit-learn.

    Parameters
    ----------
    model : PreTrainedModel
        On the training device; knows the number of classes.
    split : Dataset
        The tokenized training rows, which are counted.
    recipe : Recipe
        Says whether classes are balanced.

    Returns
    -------
    torch.Tensor or None
        Shape [classes]; a class without rows weighs as one with a single row.
    """
    if recipe.class_weights is None:
        return None
    labels = torch.tensor(split["label"][:])
    counts = torch.bincount(labels, minlength=model.config.num_labels).clamp(min=1)
    return (len(split) / (len(counts) * counts)).to(model.device)


def check_finite(loss: torch.Tensor, model: PreTrainedModel) -> float:
    """Check that a step's loss and gradients are finite; if not, clear the gradients.

    Call it before the weights move. Loss and norm are read together, because a program
    waits for its card each time that it reads a number.

    Parameters
    ----------
    loss : torch.Tensor
        A scalar.
    model : PreTrainedModel
        Holds the gradients.

    Returns
    -------
    float
        The loss.

    Raises
    ------
    NonFiniteError
        If they are not; its message is the word "loss" or "gradient".
    """
    norm = get_total_norm(p.grad for p in model.parameters() if p.grad is not None)
    value, norm = torch.stack([loss, norm]).tolist()
    if not isfinite(value + norm):
        model.zero_grad()
        raise NonFiniteError("gradient" if isfinite(value) else "loss")
    return value


@contextmanager
def error_context(state: State, indices: list[int]) -> Iterator:
    """Context manager: re-raise errors with the step, the rows and a suggested fix.

    Parameters
    ----------
    state : State
        How far the run is.
    indices : list of int
        Of the batch's rows in the train split.

    Raises
    ------
    NonFiniteError, DoesNotFit
        With where the run is.
    """
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(
            f"The {error} of the step after {state} is not finite: no step was taken, "
            "and none was saved. Look at its rows in the train split: "
            f"{', '.join(map(str, indices))}. If nothing is wrong with them, use "
            "precision='fp32' or a lower learning rate."
        ) from None
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        problem = "the optimizer's step does not fit"
        if isinstance(error, DoesNotFit):  # the batch, even in parts
            problem = str(error)
        clear_frames(error.__traceback__)
        raise DoesNotFit(f"{problem}. This was after {state}.") from None


def progress_bar(
    state: State,
    batches: list[list[int]],
    loader: DataLoader,
    device: torch.device,
) -> Iterator:
    """Yield each batch: the indices of its rows, and its tensors on the device.

    Draws a bar that shows the steps done and the last loss.

    Parameters
    ----------
    state : State
        How far the run is.
    batches : list
        Row indices of the batches that are left of this epoch.
    loader : DataLoader
        Makes the tensors of these batches.
    device : torch.device
        Where the model is.

    Yields
    ------
    tuple
        The indices, and a dict of tensors.
    """
    bar = tqdm(
        zip(batches, loader),
        f"epoch {state.epoch}/{state.epochs}",
        state.batch + len(batches),
        unit="step",
        initial=state.batch,
    )
    for indices, batch in bar:
        yield indices, {n: t.to(device, non_blocking=True) for n, t in batch.items()}
        bar.set_postfix(loss=f"{state.losses[-1]:.3f}", refresh=False)
