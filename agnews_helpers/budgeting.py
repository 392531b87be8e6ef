"""Does our recipe's training step fit this machine's card? Asked of vram_budget."""

import shlex
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import cache

from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer
from tqdm.auto import tqdm
from transformers import AutoConfig, DistilBertConfig, PretrainedConfig

from vram_budget.budget import LENGTHS, largest_batch, memory_savings, step_budget
from vram_budget.cards import CONTEXT_MIB, GTX_1650_TI, SYSTEMS_GIB, Card
from vram_budget.step_time import batch_seconds
from vram_budget.tracing import Step, StepOptions

from .batching import epoch_batches
from .plumbing.hub import pretrained
from .plumbing.memory import in_parts
from .plumbing.mini import mini_config
from .recipe import HUB_MODEL, Recipe
from .training import forward_backward

# Tokens of 40,000 rows of AG News: the median of each twentieth, from the shortest; and
# the longest row.
TOKENS = (
    28,
    34,
    38,
    40,
    42,
    44,
    46,
    47,
    49,
    50,
    52,
    53,
    55,
    57,
    58,
    61,
    64,
    67,
    75,
    109,
)
LONGEST_ROW = 358
# 83 % of AG News' batches, grouped by length, have no more tokens (of 7,600 rows).
TYPICAL = 64
PADDED = f"padded to {TYPICAL}, as most of AG News' batches"
VERDICTS = {
    "fits": "it fits",
    "out of memory": "it does not fit: out of memory; agnews train then tries parts of "
    "it",
    "spills": "it spills: no error, but slow, for Windows puts the rest into the "
    "computer's memory; agnews train then tries parts of it",
}
TEXT = """\
verdict    {told}
next       {advice}
step       {batch_size} rows x {length} tokens, {attention} attention, {precision}
card       {card}, {vram_gib:.2f} GiB
left       {usable[0]:,.0f} to {usable[1]:,.0f} MiB for PyTorch ({source})
needs      {reserved:,.0f} MiB reserved; {allocated:,.0f} allocated at the peak: {peak}
time       {time}

one change alone, in MiB reserved, and the flag of agnews train that makes it:"""
HOURS = (
    "about {hours:.1f} hours (an estimate): {epochs} epochs of 114,000 rows like AG "
    "News'"
)
UNKNOWN_SPEED = "unknown: this card's speed is not in the list"
SOURCE = "an estimate: {} takes {} to {} GiB, the CUDA context {} to {} MiB"
SMALLER = "a smaller --batch-size or --max-length, or --model mini"
LARGEST = (
    "\nlargest batch, at worst and at best, by tokens per row (AG News has up to "
    f"{LONGEST_ROW}):"
)


@cache
def training_step(micro_batch_size: int | None = None) -> Step:
    """Make the training step of the loop, for `vram_budget`.

    Parameters
    ----------
    micro_batch_size : int or None
        Rows per forward/backward pass (gradient accumulation); None: the whole batch.
        A step with a number does not scale: see `StepOptions.scalable`.

    Returns
    -------
    callable
        ``step(model, batch, optimizer)``, which returns the loss. Equal arguments give
        the same function, so that traces are found in the cache.
    """

    def step(model: Module, batch: dict[str, Tensor], optimizer: Optimizer) -> Tensor:
        split_sizes = [[1, micro_batch_size]] if micro_batch_size else []
        loss = in_parts(forward_backward, model, batch, split_sizes)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def config_for(model: str = HUB_MODEL) -> PretrainedConfig:
    """Load a model's configuration; its weights are not needed.

    Parameters
    ----------
    model : str
        A Hub id, a folder or ``"mini"``, as a `Recipe` names its model. The Hub is not
        asked for the recipe's own.

    Returns
    -------
    transformers.PretrainedConfig

    Raises
    ------
    FileNotFoundError
        If the folder has no such model.
    HubUnreachable
        If the Hub does not answer, or has no such model.
    """
    if model == HUB_MODEL:
        return DistilBertConfig(num_labels=4)
    if model == "mini":
        return mini_config(num_labels=4)
    return pretrained(AutoConfig, model)


def options_of(recipe: Recipe, card: Card, attention: str = "sdpa") -> StepOptions:
    """Describe how a recipe's step is run on a card.

    Parameters
    ----------
    recipe : Recipe
        Its precision, checkpointing and micro-batches count.
    card : Card
        Its compute capability counts.
    attention : str
        ``"sdpa"`` or ``"eager"``.

    Returns
    -------
    StepOptions

    Raises
    ------
    InvalidValue
        If there is no such attention.
    """
    return StepOptions(
        attention,
        precision=recipe.precision,
        checkpointing=recipe.gradient_checkpointing,
        capability=card.capability,
        scalable=recipe.micro_batch_size is None,
    )


def epoch_lengths(recipe: Recipe) -> list[int]:
    """List the tokens of 1,001 rows that are as long as AG News'.

    Parameters
    ----------
    recipe : Recipe
        Its `max_length` cuts them.

    Returns
    -------
    list of int
    """
    return [min(length, recipe.max_length) for length in (*TOKENS * 50, LONGEST_ROW)]


def full_run_hours(
    config: PretrainedConfig,
    lengths: Sequence[int],
    recipe: Recipe,
    card: Card = GTX_1650_TI,
    rows: int = 114_000,
) -> float | None:
    """Estimate the hours of all epochs on a card.

    An estimate from the card's published peak and bandwidth, not a measurement.

    Parameters
    ----------
    config : transformers.PretrainedConfig
        The model's shape.
    lengths : sequence of int
        Tokens of a sample of rows.
    recipe : Recipe
        Its batches, padding and epochs count.
    card : Card
        Its speed and its bandwidth count.
    rows : int
        Training rows, as long as those of the sample; AG News has 114,000.

    Returns
    -------
    float or None
        None for a card of unknown speed.
    """
    batches = epoch_batches(lengths, recipe, 1)
    padded = [recipe.pad_to or max(lengths[i] for i in batch) for batch in batches]
    seconds = batch_seconds(
        training_step(), config, recipe.batch_size, padded, recipe.max_length, card
    )
    return seconds and recipe.epochs * seconds * rows / len(lengths) / 3600


def card_report(
    recipe: Recipe, card: Card, system: str, attention: str = "sdpa", table: bool = True
) -> dict:
    """Collect everything that ``agnews budget`` says. A bar shows the progress.

    Parameters
    ----------
    recipe : Recipe
        What would be trained.
    card : Card
        On which card.
    system : str
        ``"linux"`` (no display), ``"linux-desktop"`` or ``"windows"``.
    attention : str
        ``"sdpa"`` or ``"eager"``.
    table : bool
        Whether to search for the largest batch of each length.

    Returns
    -------
    dict
        Plain values, for JSON. Memory in MiB.

    Raises
    ------
    InvalidValue
        As for `vram_budget.step_budget`.
    """
    config = config_for(recipe.model)
    options = options_of(recipe, card, attention)
    length = recipe.max_length
    largest = {}
    if table:
        at_once = replace(options, scalable=True)
        lengths = [n for n in sorted({*LENGTHS, LONGEST_ROW, length}) if n <= length]
        for n in tqdm(lengths, desc="trace steps", leave=False):
            found = largest_batch(training_step(), config, n, at_once, card, system)
            largest[n] = list(found)
    step = training_step(recipe.micro_batch_size)
    case = (step, config, recipe.batch_size, length, options, card, system)
    figures = {
        "card": card.name,
        "vram_gib": card.vram_gib,
        "here": card.free_mib is not None,
        "system": system,
        "attention": attention,
        "precision": recipe.precision,
        "batch_size": recipe.batch_size,
        "length": length,
        "epochs": recipe.epochs,
        "hours": full_run_hours(config, epoch_lengths(recipe), recipe, card),
        "largest_batch": largest,
        "command": command_of(recipe),
    }
    savings = memory_savings(
        *case, in_parts=training_step, others={PADDED: {"length": TYPICAL}}
    )
    savings["flag"] = savings.index.map(_flag).where(savings["reserved"].notna(), "")
    rows = savings.reset_index().replace({float("nan"): None}).to_dict("records")
    return figures | asdict(step_budget(*case)) | {"memory_savings": rows}


def _flag(change: str) -> str:
    """Return the flag of ``agnews train`` for a change of `memory_savings`."""
    words = change.split()
    if change.startswith("two parts of"):
        return f"--micro-batch-size {words[3]}"
    if change.endswith("autocast"):
        return f"--precision {words[0]}"
    return "--gradient-checkpointing" if change.startswith("layers") else ""


def command_of(recipe: Recipe) -> str:
    """Write the ``agnews train`` command of a recipe.

    Parameters
    ----------
    recipe : Recipe
        Whatever differs from the defaults gets a flag.

    Returns
    -------
    str
    """
    words = ["agnews", "train"]
    for name, value in asdict(recipe).items():
        flag = name.replace("_", "-")
        if value == getattr(Recipe, name):
            continue
        words.append(f"--no-{flag}" if value is False else f"--{flag}")
        if not isinstance(value, bool):
            words.append(str(value))
    return shlex.join(words)


def as_text(figures: dict) -> str:
    """Write the figures as text: the verdict, what to do, why; then two tables.

    Parameters
    ----------
    figures : dict
        From `card_report`.

    Returns
    -------
    str
    """
    system = figures["system"]
    verdict = figures["verdict"]
    told = VERDICTS[verdict]
    if figures["at_best"] != verdict:
        told += f"; if {system} takes little of the card, it fits"
    as_it_is, *others = figures["memory_savings"]
    changes = [row for row in others if row["saved"] is None or abs(row["saved"]) >= 1]
    commands = [figures["command"]]
    if verdict != "fits":
        commands = [
            f"{figures['command']} {row['flag']}"
            for row in changes
            if row["verdict"] == "fits" and row["flag"]
        ]
    source = "free on it now" if figures["here"] else SOURCE
    time = UNKNOWN_SPEED if figures["hours"] is None else HOURS
    words = {
        "told": told,
        "advice": " or: ".join(commands[:2]) or SMALLER,
        "source": source.format(system, *SYSTEMS_GIB[system], *CONTEXT_MIB),
        "time": time.format(**figures),
    }
    lines = [TEXT.format(**figures, **words)]
    for row in (as_it_is, *changes):
        mib = "" if row["reserved"] is None else f"{row['reserved']:,.0f}"
        line = f"{mib:>9}  {row['verdict']:14} {row['change']:42} {row['flag']}"
        lines.append(line.rstrip())
    if figures["largest_batch"]:
        lines.append(LARGEST)
    for length, (worst, best) in figures["largest_batch"].items():
        lines.append(f"{length:>9} {worst:>6,} {best:>6,}")
    return "\n".join(lines)
