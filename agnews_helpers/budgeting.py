"""Does our recipe's training step fit this machine's card? Asked of vram_budget."""

from collections.abc import Sequence
from dataclasses import asdict
from functools import cache

from transformers import AutoConfig, DistilBertConfig, PretrainedConfig

from vram_budget.cards import GTX_1650_TI, Card
from vram_budget.reporting import report
from vram_budget.step_time import batch_seconds
from vram_budget.tracing import Step, StepOptions

from .batching import epoch_batches
from .plumbing.errors import check_types
from .plumbing.hub import pretrained
from .plumbing.memory import in_parts
from .plumbing.mini import mini_config
from .recipe import HUB_MODEL, Recipe
from .training import forward_backward

# Tokens of 40,000 rows of AG News: the median of each twentieth, from the shortest.
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


@check_types
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
        ``step(model, batch, optimizer)``, which returns the loss. The same call gives
        the same function, so that traces are found in the cache.

    Raises
    ------
    InvalidValue
        If it is no whole number of rows from 1.
    """
    Recipe(micro_batch_size=micro_batch_size)  # checks it

    def step(model, batch, optimizer):
        split_sizes = [[1, micro_batch_size]] if micro_batch_size else []
        loss = in_parts(forward_backward, model, batch, split_sizes)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


@check_types
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


@check_types
def full_run_hours(
    config: PretrainedConfig,
    lengths: Sequence[int],
    recipe: Recipe,
    card: Card = GTX_1650_TI,
    rows: int = 114_000,
) -> tuple[float, float] | None:
    """Estimate the hours of all epochs on a card.

    An estimate from the card's published facts, not a measurement.

    Parameters
    ----------
    config : transformers.PretrainedConfig
        The model's shape.
    lengths : sequence of int
        Tokens of a sample of rows; more than the recipe's `max_length` are cut off.
    recipe : Recipe
        Its batches, padding and epochs count.
    card : Card
        Its speed, its bandwidth and its power count.
    rows : int
        Training rows, as long as those of the sample; AG News has 114,000.

    Returns
    -------
    tuple of float or None
        (low, high); None for a card of unknown speed.

    Raises
    ------
    InvalidValue
        As for `vram_budget.batch_seconds`.
    """
    lengths = [min(length, recipe.max_length) for length in lengths]
    batches = epoch_batches(lengths, recipe, 1)
    padded = [recipe.pad_to or max(lengths[i] for i in batch) for batch in batches]
    seconds = batch_seconds(
        training_step(), config, recipe.batch_size, padded, recipe.max_length, card
    )
    times = recipe.epochs * rows / len(lengths)
    return seconds and tuple(times * each / 3600 for each in seconds)


def card_report(recipe: Recipe, card: Card, system: str) -> dict:
    """Print all that ``agnews budget`` says, and return it.

    Parameters
    ----------
    recipe : Recipe
        What would be trained.
    card : Card
        On which card.
    system : str
        ``"linux"`` (no display), ``"linux-desktop"`` or ``"windows"``.

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
    options = StepOptions(
        precision=recipe.precision,
        checkpointing=recipe.gradient_checkpointing,
        capability=card.capability,
        scalable=recipe.micro_batch_size is None,
    )
    figures = report(
        training_step(recipe.micro_batch_size),
        config,
        recipe.batch_size,
        recipe.max_length,
        options,
        card,
        system,
        in_parts=training_step,
    )
    hours = full_run_hours(config, TOKENS * 50, recipe, card)
    time = "unknown: this card's speed is not in the list"
    if hours:
        time = (
            f"{hours[0]:.1f} to {hours[1]:.1f} hours (an estimate) for 114,000 rows "
            "like AG News'"
        )
    advice = "agnews train with these flags"
    if figures["verdict"] != "fits":
        advice = (
            "a change above that fits (--micro-batch-size, --gradient-checkpointing, "
            "--precision bf16), or a smaller --batch-size or --max-length; without "
            "one, agnews train tries parts of the batch"
        )
    print(f"\ntime       {recipe.epochs} epochs: {time}\nnext       {advice}")
    return {
        **asdict(recipe),
        **figures,
        "hours": hours and dict(zip(("low", "high"), hours)),
    }
