"""The training loop. Notebook 04 writes it in plain PyTorch and shows that this is the same."""

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from .batching import epoch_batches, make_loader, tokenize
from .checkpoints import Run, RunFolder, State
from .data import load_data
from .evaluation import evaluate
from .hardware import check_precision, process_state
from .model import (
    gradient_checkpointing,
    label_mapping,
    load_classifier,
    load_model,
    load_tokenizer,
    run_facts,
)
from .plumbing.cpu_kernels import cpu_kernels
from .plumbing.errors import DoesNotFit, InvalidValue, NonFiniteError, is_out_of_memory
from .plumbing.interrupts import StopSignal
from .plumbing.vram_cap import VramCap
from .recipe import Recipe

__all__ = ["Run", "find_or_train", "forward_backward", "train"]


def train(
    model,
    tokens,
    recipe: Recipe,
    output_dir="runs/agnews",
    resume="auto",
    steps=None,
    save_minutes=10.0,
) -> Run:
    """Fine-tune `model` on ``tokens["train"]``, validate after each epoch, keep the best one.

    The best epoch is the one with the highest validation accuracy; among equals, the lowest loss. It is
    saved in `output_dir` as soon as it is known, with its tokenizer. Every `save_minutes`, after each best
    epoch, and when it is stopped (Ctrl-C, the notebook's stop button; on POSIX SIGTERM, SIGHUP), the run is
    saved in ``output_dir/checkpoints``; the same call continues it, step for step as if nothing had been.

    Parameters
    ----------
    model : from `load_model`; its weights change.
    tokens : from `tokenize`, with splits ``train`` and ``validation``.
    output_dir : a folder, made where there is none.
    resume : ``"auto"`` continues an unfinished run of `output_dir`, returns a finished one of the same recipe
        and data, and otherwise begins; True never begins; False discards an unfinished one and begins. A
        finished classifier stays until the new one is finished.
    steps : stop after so many steps, as Ctrl-C would.

    Returns
    -------
    Run

    Raises
    ------
    ResumeError
        When the run there is of another recipe, model, data or number of processes, or none can be continued.
    FolderInUse
        When another process trains into `output_dir`.
    SaveError
        When the disk is full, `output_dir` cannot be written, or files of another origin are in the way.
    NonFiniteError
        When a loss or gradient is not finite. DoesNotFit : when memory runs out even with one row at a time.
    InvalidValue
        When `recipe.precision` is known to be slow, or to fail, on this machine.
    """
    if steps is not None and steps < 1:
        raise InvalidValue(
            f"steps is {steps}; it must be at least 1; by default all are taken."
        )
    if label_mapping(model, tokens["train"]) != [*range(model.config.num_labels)]:
        raise InvalidValue(
            "The model has other classes than the data: give load_model the data's names."
        )
    accelerator = make_accelerator(recipe)
    check_precision(recipe.precision, accelerator.device.type)
    folder = RunFolder(
        output_dir, model, tokens, recipe, accelerator, resume, save_minutes
    )
    wishes = StopSignal(alone=accelerator.num_processes == 1)
    cap, leaner = (
        VramCap(accelerator.device),
        gradient_checkpointing(model, recipe.gradient_checkpointing),
    )
    with (
        folder,
        wishes as wish,
        cpu_kernels(model, accelerator.device),
        leaner,
        cap as card,
    ):
        if folder.finished:
            return folder.load_run(model)
        torch.manual_seed(recipe.seed + accelerator.process_index)  # dropout
        # `fused`: the update of all weights in one kernel; the numbers are those of the plain Adam
        optimizer = torch.optim.Adam(
            model.parameters(), lr=recipe.learning_rate, fused=True
        )
        parallel, optimizer = accelerator.prepare(
            model, optimizer
        )  # on the device; one of several processes
        state = folder.restore(
            model, optimizer
        )  # epoch 1, batch 0; or where the run was when it stopped
        lengths, weights = (
            tokens["train"]["length"][:],
            class_weights(tokens["train"], model, recipe),
        )
        for epoch in range(state.epoch, recipe.epochs + 1):
            # Seed and epoch alone decide the order, so the rest of a stopped epoch is a slice.
            batches = epoch_batches(lengths, recipe, epoch)[state.batch :]
            loader = make_loader(
                tokens["train"], batches, recipe, accelerator, model.config.pad_token_id
            )
            parallel.train()  # dropout on; `evaluate` switches it off and on again
            for rows, batch in progress(state, batches, loader, accelerator, card):
                if agreed(accelerator, wish.made or len(state.sitting) == steps):
                    return folder.stopped(model, optimizer, state)
                with explained(
                    state, rows, batch, recipe
                ):  # an error says where the run is, and what helps
                    loss = forward_backward(
                        parallel, batch, accelerator, state.limits, rows, weights
                    )
                    check_finite(loss, model, accelerator)  # before the weights move
                    optimizer.step()
                    optimizer.zero_grad(
                        set_to_none=True
                    )  # else the next gradients are added to these
                state.count(accelerator.reduce(loss, "mean").item())
                if agreed(accelerator, folder.due):
                    folder.save(model, optimizer, state)
            report = wish.interruptible(evaluate, model, tokens["validation"], recipe)
            if (
                report is None
            ):  # a stop in the middle: the validation is done again when the run continues
                return folder.stopped(model, optimizer, state)
            if state.end_epoch(
                report
            ):  # the best so far: saved, and published for all to use
                folder.save(model, optimizer, state)
        return folder.finish(model, state)


def forward_backward(
    model, batch: dict, accelerator, limits=None, rows=None, weights=None
) -> torch.Tensor:
    """The loss of one batch, and its gradients in the model's parameters. No weight moves here.

    Where memory runs out, the same is done in halves, quarters, ... of the batch. Their gradients add up to
    the same, in the memory of one part. ``vram.trace`` runs this very function on tensors without storage.

    Parameters
    ----------
    batch : ``input_ids`` and ``attention_mask`` of shape [rows, tokens], ``labels`` of shape [rows].
    limits : [tokens, rows] pairs: batches at least so long are taken in parts of so many rows. What is found
        out here is added.
    rows : numbers of all rows that the loss is the mean of, where several processes share them.
    weights : what the loss of a row of each class is multiplied by, shape [classes]; None for 1.

    Returned is the mean cross-entropy over the rows, in nats: a number on the device, detached. DoesNotFit
    where not even one row fits; where several processes run, where one of them runs out of memory.
    """
    limits = [] if limits is None else limits
    here, length = batch["input_ids"].shape
    count = here if rows is None else mean_over(rows, accelerator)
    while True:
        size = min([here, *(most for tokens, most in limits if tokens <= length)])
        total = None
        try:
            for start in range(0, here, size):
                part = {
                    name: tensor[start : start + size] for name, tensor in batch.items()
                }
                labels = part.pop("labels")
                # Several processes add up their gradients once, with the last part.
                with (
                    accelerator.no_sync(model) if start + size < here else nullcontext()
                ):
                    loss = (
                        F.cross_entropy(
                            model(**part).logits, labels, weights, reduction="sum"
                        )
                        / count
                    )
                    accelerator.backward(loss)
                total = loss.detach() if total is None else total + loss.detach()
            return total
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            problem = str(error)
        # Outside of `except`, whose traceback would keep the tensors of the failed part alive.
        model.zero_grad(set_to_none=True)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if accelerator.num_processes > 1:  # the others wait for this one's gradients
            what = f"{here} rows of {length} tokens do not fit in one of the processes"
            raise DoesNotFit(f"{what} ({problem})")
        if size == 1:
            raise DoesNotFit(f"not even one row of {length} tokens fits ({problem})")
        limits.append([length, size // 2])
        parts = f"in parts of {size // 2}, and so for all batches this long. The gradient is the same."
        tqdm.write(
            f"Out of memory with {size} rows of {length} tokens: the same step again {parts}"
        )


def class_weights(rows, model, recipe: Recipe) -> torch.Tensor | None:
    """n / (classes x rows of the class) for each class, as scikit-learn's "balanced"; None for equal weights.

    A weighted loss is divided by the number of rows, not by their weights: so parts of a batch add up.
    """
    if recipe.class_weights is None:
        return None
    count = torch.bincount(
        torch.tensor(rows["label"][:]), minlength=model.config.num_labels
    )
    return (len(rows) / (len(count) * count.clamp(min=1))).to(model.device)


def mean_over(rows: list[int], accelerator) -> float:
    """How many rows a process's loss is the mean of, so that each row of the batch weighs the same.

    Accelerate averages the gradients of several processes. One without a row of a short batch weighs nothing.
    """
    return (
        len(rows) / accelerator.num_processes
        if accelerator.process_index < len(rows)
        else math.inf
    )


def check_finite(loss: torch.Tensor, model, accelerator) -> None:
    """Raise NonFiniteError where the loss or a gradient is not finite."""
    total = loss.float()
    if accelerator.scaler is None:
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        total = total + sum(
            torch.dot(g, g) for g in gradients
        )  # as good as a norm, faster on a CPU
    elif (
        accelerator.scaler.get_scale() < 1
    ):  # fp16: the scaler itself leaves out a step that overflows
        total = total * math.nan
    if not torch.isfinite(total):
        model.zero_grad(set_to_none=True)
        raise NonFiniteError("gradient" if torch.isfinite(loss) else "loss")


@contextmanager
def explained(state: State, rows: list[int], batch: dict, recipe: Recipe):
    """Errors in here say where the run is, which rows were at work, and what helps."""
    length = batch["input_ids"].shape[1]
    try:
        yield
    except NonFiniteError as error:
        what = f"The {error} of the step after {state} is not finite: no step was taken, none was saved."
        look = f"Look at its rows in the train split: {', '.join(map(str, rows))}, of {length} tokens."
        wish = f"precision='fp32' or a learning rate below {recipe.learning_rate:g}"
        raise NonFiniteError(
            f"{what} {look} If nothing is wrong with them, use {wish}."
        ) from None
    except RuntimeError as error:
        if not isinstance(error, DoesNotFit) and not is_out_of_memory(error):
            raise
        what = (
            error
            if isinstance(error, DoesNotFit)
            else "Adam's two running means do not fit either"
        )
        raise DoesNotFit(
            f"Out of memory after {state}: {what}. What was saved is whole, and can be continued. "
            "What helps: (1) close what else uses the memory: another notebook keeps its share until its "
            "kernel is restarted; nvidia-smi lists what is on a card. (2) Shorter rows: "
            f"Recipe(max_length={max(length // 4, 3)}), or gradient_checkpointing=True. (3) A smaller model: "
            "AGNEWS_MODEL=mini. `agnews budget` predicts what a card needs."
        ) from None


def agreed(accelerator, wish: bool) -> bool:
    """Whether this process or any other has a wish: then all do the same."""
    if accelerator.num_processes == 1:
        return wish
    if wish:
        accelerator.set_trigger()
    return accelerator.check_trigger()


def progress(
    state: State, batches, loader, accelerator, card
) -> Iterator[tuple[list[int], dict]]:
    """The row numbers and tensors of each batch, on the device; and a bar that shows the rows done.

    `card` (`VramCap`) looks at the time of each step.
    """
    title, quiet = (
        f"epoch {state.epoch}/{state.epochs}",
        not accelerator.is_main_process,
    )
    done, device = state.rows - sum(map(len, batches)), accelerator.device
    with tqdm(
        total=state.rows, initial=done, unit="row", desc=title, disable=quiet
    ) as bar:
        for rows, batch in zip(batches, loader):
            yield (
                rows,
                {
                    name: tensor.to(device, non_blocking=True)
                    for name, tensor in batch.items()
                },
            )
            card.watch(state.sitting[-1], batch["input_ids"].numel())
            bar.set_postfix(loss=f"{state.losses[-1]:.3f}", refresh=False)
            bar.update(len(rows))


def make_accelerator(recipe: Recipe):
    """Accelerate's view of this machine, in the recipe's precision."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    precision = "no" if recipe.precision == "fp32" else recipe.precision
    if AcceleratorState._shared_state.get("_mixed_precision", precision) != precision:
        AcceleratorState._reset_state()  # a notebook may train again in another precision
    return Accelerator(
        mixed_precision=precision, cpu=process_state().device.type == "cpu"
    )


def find_or_train(recipe: Recipe, folder: str | Path = "runs/agnews", rows: int = 400):
    """Model, tokenizer and folder of notebook 04's classifier; where there is none, of a brief training.

    That one takes at most `rows` training rows and a folder of its own: it is not in notebook 04's way.
    """
    if (Path(folder) / "model.safetensors").is_file():
        profile = run_facts(folder).get("recipe", {}).get("profile", "unknown")
        print(f"Using the classifier of notebook 04 (profile {profile}).")
        return *load_classifier(folder), Path(folder)
    folder = Path(f"{folder}-brief")
    print(
        f"No classifier of notebook 04 here: training one on at most {rows} rows, in {folder}."
    )
    brief = recipe.replace(train_rows=min(recipe.train_rows or rows, rows))
    news = load_data(brief)
    model = load_model(brief, news["train"].features["label"].names)
    train(model, tokenize(news, load_tokenizer(brief), brief), brief, folder)
    return *load_classifier(folder), folder
