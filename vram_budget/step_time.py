"""Estimates the time of a step from its operations and the bytes that it moves.

A roofline of two terms, one after the other: floating-point operations at the speed of
matrix products, and bytes at the bandwidth of the memory. Both speeds are ranges, and
so is the time. It is of fp32 as PyTorch computes by default, without TF32.
"""

from collections.abc import Sequence

import numpy as np
from transformers import PretrainedConfig

from .cards import GTX_1650_TI, Card
from .errors import InvalidValue
from .tracing import Step, StepOptions, scaled_trace

# The share of its fp32 peak that a card reaches in matrix products, (at worst, at
# best), from published speeds of products of 1024 to 4096 rows and columns: see
# benchmarks/step_time.py. From compute capability 8.6 on (9.0 apart), half of the lanes
# that make the peak also compute integers.
FULL_SHARE = (0.5, 0.85)
LIMITED_SHARE = (0.4, 0.7)  # those, and cards whose power keeps them from their clock
# The share of its bandwidth with which it moves the bytes counted here. Copies reach
# 0.75 to 0.9 (chsasank/device-benchmarks); the backward pass reads again what we count
# once.
BANDWIDTH_SHARE = (0.5, 0.9)
# A tensor takes this long, however fast the card: BERT-base makes 398 in a forward pass
# and needed 6 ms for 8 rows of 8 tokens (transformers 2.11, benchmarks.rst). Twice that
# with slow Python around it.
LAUNCH_SECONDS = (30e-6, 15e-6)
# Adam reads weight, gradient and both means of each parameter, and writes weight and
# both means, of 4 bytes each.
ADAM_BYTES = 28


def step_work(
    step: Step,
    config: PretrainedConfig,
    rows: int,
    length: int,
    options: StepOptions = StepOptions(),
) -> tuple[float, float, int]:
    """Count what one step computes, moves and makes.

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
    tuple
        (floating-point operations, bytes moved, tensors made).

    Raises
    ------
    InvalidValue
        As for `tracing.trace`.
    """
    trace = scaled_trace(step, config, rows, length, options)
    made = [a for a, is_made in trace.events if is_made]
    # Adam updates what has a gradient; in inference nothing.
    gradients = [a.size for a in made if a.category == "gradients" and a.step == 1]
    tensors = [
        a.size
        for a in made
        if a.step == 2 and a.phase != "optimizer" and a.category != "workspaces"
    ]
    moved = 2 * sum(tensors) + ADAM_BYTES * sum(gradients) / 4
    return trace.flops, moved, len(tensors)


def seconds_on(
    card: Card, flops: np.ndarray, moved: np.ndarray, tensors: np.ndarray
) -> tuple[np.ndarray, np.ndarray] | None:
    """Estimate the time of steps on a card.

    Parameters
    ----------
    card : Card
        Its speed, its bandwidth and its power count.
    flops : float or array
        Floating-point operations of a step, or of each of several.
    moved : float or array
        Bytes.
    tensors : float or array
        Tensors made.

    Returns
    -------
    tuple or None
        Seconds, (at best, at worst); None for a card of unknown speed.
    """
    if not card.fp32_tflops or not card.bandwidth:
        return None
    limited = card.power_limited or card.capability >= (8, 6)
    shares = LIMITED_SHARE if limited else FULL_SHARE
    worst, best = (
        np.maximum(
            flops / (share * card.fp32_tflops * 1e12)
            + moved / (moving * card.bandwidth * 1e9),
            tensors * launch,
        )
        for share, moving, launch in zip(shares, BANDWIDTH_SHARE, LAUNCH_SECONDS)
    )
    return best, worst


def batch_seconds(
    step: Step,
    config: PretrainedConfig,
    rows: int,
    lengths: Sequence[int],
    max_length: int,
    card: Card = GTX_1650_TI,
) -> tuple[float, float] | None:
    """Estimate the time of many batches of different lengths on a card.

    An estimate from the card's published facts, not a measurement. The work of a step
    is a quadratic function of its tokens per row: three lengths are traced, the others
    are interpolated.

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
        The longest that is possible, at least 3; it is traced, and its half and its
        eighth.
    card : Card
        Its speed, its bandwidth and its power count.

    Returns
    -------
    tuple of float or None
        Seconds of all batches together, (at best, at worst); None for a card of unknown
        speed.

    Raises
    ------
    InvalidValue
        As for `tracing.trace`, or if a length is not from 1 to `max_length`.
    """
    if max_length < 3 or not all(1 <= length <= max_length for length in lengths):
        raise InvalidValue(
            f"max_length is {max_length}; it must be at least 3, and each length must "
            "be from 1 to it."
        )
    traced = (max(1, max_length // 8), -(-max_length // 2), max_length)
    work = [step_work(step, config, rows, length) for length in traced]
    quadratics = np.polyfit(traced, work, 2)
    seconds = seconds_on(card, *(np.vander(lengths, 3) @ quadratics).T)
    return seconds and tuple(float(each.sum()) for each in seconds)
