"""Estimates the time of a step from its operations and the bytes that it moves.

A roofline of two terms, one after the other: floating-point operations at the device's
speed, and bytes at the bandwidth of its memory.
"""

from collections.abc import Sequence

import numpy as np
from transformers import PretrainedConfig

from .cards import GTX_1650_TI, Card
from .tracing import Step, StepOptions, scaled_trace

# The share of its fp32 peak that a card reaches in matrix products. From one published
# run, BERT-base on a Titan RTX (16.3 TFLOP/s, 672 GB/s) in fp32, 32 rows x 128 tokens:
# three epochs of SST-2, 67,349 rows, in 26:06 minutes (transformers,
# examples/pytorch/text-classification/README.md), minus the traffic counted here.
SHARE_OF_PEAK = 0.62
# Adam reads weight, gradient and both means of each parameter, and writes weight and
# both means, of 4 bytes each.
ADAM_BYTES = 28


def step_work(
    step: Step,
    config: PretrainedConfig,
    rows: int,
    length: int,
    options: StepOptions = StepOptions(),
) -> tuple[float, float]:
    """Count what one step computes and moves.

    Operations are those of the traced step's products, as PyTorch's flop counter has
    them. Every tensor that the step makes is written once and read once; Adam moves
    `ADAM_BYTES` for each parameter.

    Parameters
    ----------
    step : callable
        ``step(model, batch, optimizer)``: one training step, as for `trace`.
    config : transformers.PretrainedConfig
        Of the model.
    rows : int
        Of the batch.
    length : int
        Tokens per row, padding included.
    options : StepOptions
        How the step is run.

    Returns
    -------
    tuple of float
        (floating-point operations, bytes moved).

    Raises
    ------
    InvalidValue
        As for `tracing.trace`.
    """
    trace = scaled_trace(step, config, rows, length, options)
    made = [a for a, is_made in trace.events if is_made]
    parameters = sum(a.size for a in made if a.phase == "load") / 4
    tensors = sum(
        a.size
        for a in made
        if a.step == 2 and a.phase != "optimizer" and a.category != "workspaces"
    )
    return trace.flops, 2 * tensors + ADAM_BYTES * parameters


def batch_seconds(
    step: Step,
    config: PretrainedConfig,
    rows: int,
    lengths: Sequence[int],
    max_length: int,
    card: Card = GTX_1650_TI,
) -> float | None:
    """Estimate the time of many batches of different lengths on a card.

    An estimate from the card's published peak and bandwidth, not a measurement. The
    time of a step is a quadratic function of its tokens per row: three lengths are
    traced, the others are interpolated.

    Parameters
    ----------
    step : callable
        ``step(model, batch, optimizer)``: one training step, as for `trace`.
    config : transformers.PretrainedConfig
        Of the model.
    rows : int
        Of the batch.
    lengths : sequence of int
        Tokens per row of each batch, padding included.
    max_length : int
        The longest that is possible; it is traced, and its half and its eighth.
    card : Card
        Its speed and its bandwidth count.

    Returns
    -------
    float or None
        Seconds of all batches together; None for a card of unknown speed.

    Raises
    ------
    InvalidValue
        As for `tracing.trace`.
    """
    if not card.fp32_tflops or not card.bandwidth:
        return None
    flops_per_second = SHARE_OF_PEAK * card.fp32_tflops * 1e12
    bytes_per_second = card.bandwidth * 1e9
    traced = (max(1, max_length // 8), -(-max_length // 2), max_length)
    seconds = []
    for length in traced:
        flops, moved = step_work(step, config, rows, length)
        seconds.append(flops / flops_per_second + moved / bytes_per_second)
    quadratic = np.polyfit(traced, seconds, 2)
    return float(np.polyval(quadratic, lengths).sum())
