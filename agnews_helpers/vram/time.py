"""How long will a step take? Its arithmetic and its traffic, each at the device's speed. Notebook 05."""

from collections.abc import Sequence

import numpy as np

from ..batching import epoch_batches
from ..hardware import GTX_1650_TI, Card
from ..recipe import Recipe
from .trace import StepOptions, scaled_trace

# Of its fp32 peak a card reaches this share in matrix products. From one published run, BERT-base on a Titan
# RTX (16.3 TFLOP/s, 672 GB/s) in fp32, 32 rows x 128 tokens: three epochs of SST-2, 67,349 rows, in 26:06
# minutes (transformers, examples/pytorch/text-classification/README.md), less the traffic counted here.
SHARE_OF_PEAK = 0.62
ADAM_BYTES = 28  # for each parameter: read weight, gradient and both means, write weight and both means


def step_work(
    config, rows: int, length: int, options=StepOptions()
) -> tuple[float, float]:
    """What one step of `rows` x `length` tokens has to do: (floating-point operations, bytes moved).

    Operations are those of the traced step's products, as PyTorch's flop counter has them. Every tensor that
    the step makes is written once and read once; Adam moves `ADAM_BYTES` for each parameter. Errors as for
    `trace_steps`.
    """
    trace = scaled_trace(config, rows, length, options)
    made = [a for a, new in trace.events if new]
    moved = [
        a
        for a in made
        if a.step == 2 and a.phase != "optimizer" and a.category != "workspaces"
    ]
    parameters = sum(a.size for a in made if a.phase == "load") / 4
    return trace.flops, 2 * sum(a.size for a in moved) + ADAM_BYTES * parameters


def epoch_seconds(
    config, lengths: Sequence[int], recipe: Recipe, flops: float, bandwidth: float
) -> float:
    """Time of one epoch over rows of these lengths, batch by batch as `epoch_batches` makes them.

    At so many FLOP/s and bytes/s, one after the other, because the kernels of a step do not overlap. A step's
    time is a square function of its tokens: three are computed.
    """
    grid = max(1, recipe.max_length // 8), -(-recipe.max_length // 2), recipe.max_length
    work = [step_work(config, recipe.batch_size, length) for length in grid]
    seconds = [operations / flops + moved / bandwidth for operations, moved in work]
    batches = epoch_batches(lengths, recipe, 1)
    padded = [recipe.pad_to or max(lengths[row] for row in batch) for batch in batches]
    return float(np.polyval(np.polyfit(grid, seconds, 2), padded).sum())


def full_run_hours(
    config, lengths, recipe: Recipe, card: Card = GTX_1650_TI, rows=114_000
) -> float | None:
    """Hours that all epochs take over `rows` rows as long as `lengths`; None for a card of unknown speed.

    An estimate from the card's published peak and bandwidth, not a measurement.
    """
    if not card.fp32_tflops or not card.bandwidth:
        return None
    speeds = SHARE_OF_PEAK * card.fp32_tflops * 1e12, card.bandwidth * 1e9
    return (
        recipe.epochs
        * epoch_seconds(config, lengths, recipe, *speeds)
        * rows
        / len(lengths)
        / 3600
    )
