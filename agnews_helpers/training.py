"""The training loop. Notebook 04 writes it in plain PyTorch and proves that this is the same."""
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from .batching import make_loader, tokenize
from .checkpoints import is_classifier, load_classifier, run_facts, save_classifier
from .data import load_agnews
from .evaluation import evaluate
from .model import load_model, load_tokenizer
from .recipe import Recipe


@dataclass
class Run:
    """A finished training run.

    model : the best epoch's model, on the training device. folder : where it is saved with its tokenizer.
    history : DataFrame, one row an epoch. steps : DataFrame, the loss of every step.
    best_epoch : the epoch that was kept. seconds : the time from first step to last validation.
    """

    model: torch.nn.Module
    folder: Path
    history: pd.DataFrame
    steps: pd.DataFrame
    best_epoch: int
    seconds: float


def training_step(model, batch: dict, optimizer, accelerator, micro_batch_size: int | None = None) -> torch.Tensor:
    """Forward, loss, backward, Adam step; returns the loss, detached, still on the device.

    The loss is the mean cross-entropy of the batch, in nats. With `micro_batch_size` the batch is taken
    in parts whose gradients add up to the same step, in the memory of one part. ``vram.trace`` runs this
    same function on tensors without storage to predict what it needs.
    """
    rows = len(batch["labels"])
    if micro_batch_size is None or micro_batch_size >= rows:
        loss = model(**batch).loss
        accelerator.backward(loss)
        total = loss.detach()
    else:
        total = 0
        for start in range(0, rows, micro_batch_size):
            part = {name: tensor[start:start + micro_batch_size] for name, tensor in batch.items()}
            loss = model(**part).loss * (len(part["labels"]) / rows)  # each row weighs the same
            accelerator.backward(loss)
            total = total + loss.detach()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total


def train(model, tokens, recipe: Recipe, output_dir: str | Path = "runs/agnews") -> Run:
    """Fine-tune `model` on ``tokens["train"]``, validate after each epoch, keep the best one.

    The best epoch is the one with the highest validation accuracy; among equals, the lowest loss. It is
    saved in `output_dir` as soon as it is known, with its tokenizer and ``history.csv``.

    Parameters
    ----------
    model : from `load_model`; its weights change.
    tokens : from `tokenize`, with splits ``train`` and ``validation``.

    Returns
    -------
    Run
    """
    from accelerate.utils import set_seed

    output_dir = Path(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)  # a folder that cannot be written fails now, not after an epoch
    tokenizer = load_tokenizer(recipe)
    accelerator = make_accelerator(recipe)
    set_seed(recipe.seed)  # dropout
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, fused=True)  # one kernel, the same update
    model, optimizer = accelerator.prepare(model, optimizer)
    history, losses, best, best_epoch, started = [], [], None, 0, time.perf_counter()

    for epoch in range(1, recipe.epochs + 1):
        model.train()
        first, epoch_started = len(losses), time.perf_counter()
        loader = accelerator.prepare(make_loader(tokens["train"], recipe, epoch, model.config.pad_token_id))
        with tqdm(total=len(tokens["train"]), unit="row", desc=f"epoch {epoch}/{recipe.epochs}") as bar:
            for step, batch in enumerate(loader):
                losses.append(training_step(model, batch, optimizer, accelerator))
                if step % 10 == 0:  # reading the loss makes a GPU wait, so not at every step
                    bar.set_postfix(loss=f"{losses[-1].item():.3f}", refresh=False)
                bar.update(len(batch["labels"]))
        losses[first:] = torch.stack(losses[first:]).cpu()  # thousands of tiny tensors would stay on the card
        seconds = time.perf_counter() - epoch_started

        report = evaluate(model, tokens["validation"], recipe)
        history.append({
            "epoch": epoch,
            "train_loss": torch.stack(losses[first:]).mean().item(),
            "validation_loss": report.loss,
            "validation_accuracy": report.accuracy,
            "rows_per_second": len(tokens["train"]) / seconds})
        if best is None or (report.accuracy, -report.loss) > (best.accuracy, -best.loss):
            best, best_epoch = report, epoch
            save_classifier(model, tokenizer, output_dir, recipe, epoch=epoch, validation_accuracy=report.accuracy,
                            rows={name: len(rows) for name, rows in tokens.items()})

    seconds = time.perf_counter() - started
    history = pd.DataFrame(history).set_index("epoch")
    history.to_csv(output_dir / "history.csv")
    if best_epoch != recipe.epochs:
        model.load_state_dict(load_classifier(output_dir)[0].state_dict())
    steps = pd.DataFrame({"loss": torch.stack(losses).numpy()}, index=pd.RangeIndex(1, len(losses) + 1, name="step"))
    return Run(model, output_dir, history, steps, best_epoch, seconds)


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
