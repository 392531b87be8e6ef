"""Does a training step fit a card? Traces it and replays the allocator."""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pandas as pd
from transformers import PretrainedConfig

from .allocator import MIB, CachingAllocator, OutOfMemory, replay
from .cards import GTX_1650_TI, SYSTEMS_GIB, Card, context_mib
from .errors import InvalidValue, check_type
from .tracing import OPTIMIZERS, TRACED_STEPS, Step, StepOptions, Trace, scaled_trace

TRACED_PARTS = (
    "weights",
    "gradients",
    "optimizer state",
    "activations",
    "temporaries",
    "workspaces",
)
LENGTHS = (64, 128, 256, 512)  # tokens per row, for tables
MOST_ROWS = 4096  # the largest batch that is tried
# The defaults of PyTorch, and of transformers before SDPA.
BASELINE = StepOptions(attention="eager", implementation="foreach")


@dataclass(frozen=True)
class Budget:
    """What a training step needs, and what the card has left for it.

    Attributes
    ----------
    usable : tuple of float
        MiB that system and CUDA context leave to PyTorch: (at worst, at best). Of a
        card in this machine: what is free on it.
    allocated : float
        Peak of the memory in tensors, in MiB, as of `torch.cuda.max_memory_allocated`.
    reserved : float
        Peak of the memory that the allocator holds, in MiB, if nothing limits it.
    parts : dict of str to float
        MiB of each kind of tensor at the peak, of the allocator's cache, and of the
        largest CUDA context.
    verdict : str
        At worst: ``"fits"``; ``"spills"`` (Windows: into the computer's memory, slow
        and without an error); or ``"out of memory"`` (elsewhere).
    at_best : str
        The same at best.
    peak : str
        The op, module and phase of the peak.
    """

    usable: tuple[float, float]
    allocated: float
    reserved: float
    parts: dict[str, float]
    verdict: str
    at_best: str
    peak: str


def usable_mib(card: Card, system: str) -> tuple[float, float]:
    """Return what the system and the CUDA context leave to PyTorch.

    Parameters
    ----------
    card : Card
        Of one in this machine, its free memory is returned.
    system : str
        ``"linux"`` (no display), ``"linux-desktop"`` or ``"windows"``.

    Returns
    -------
    tuple of float
        MiB, (at worst, at best).

    Raises
    ------
    InvalidValue
        If there are no reports of such a system.
    """
    check_type("card", card, Card)
    if system not in SYSTEMS_GIB:
        raise InvalidValue(
            f"system is {system!r}; it must be one of {', '.join(SYSTEMS_GIB)}."
        )
    if card.free_mib is not None:
        return card.free_mib, card.free_mib
    taken = zip(SYSTEMS_GIB[system], context_mib(card))
    best, worst = (
        max(0.0, card.vram_gib * 1024 - gib * 1024 - context) for gib, context in taken
    )
    return worst, best


def step_budget(
    step: Step,
    config: PretrainedConfig,
    rows: int,
    length: int,
    options: StepOptions = StepOptions(),
    card: Card = GTX_1650_TI,
    system: str = "windows",
) -> Budget:
    """Predict the memory of a training step on a card.

    Parameters
    ----------
    step : callable
        ``step(model, batch, optimizer)``; see `tracing.trace`.
    config : transformers.PretrainedConfig
        The model's shape.
    rows : int
        Rows of the batch.
    length : int
        Tokens per row, padding included.
    options : StepOptions
        How the step is run.
    card : Card
        From `find_card`, or your own.
    system : str
        As for `usable_mib`.

    Returns
    -------
    Budget

    Raises
    ------
    InvalidValue
        As for `tracing.trace` and `usable_mib`.
    """
    usable = usable_mib(card, system)
    options = _on(card, options)
    trace = scaled_trace(step, config, rows, length, options)
    replayed = replay(trace.events, CachingAllocator())
    reserved = replayed.max_reserved / MIB
    _, peak = trace.peak()
    parts = timeline(trace, 0)[[*TRACED_PARTS]].iloc[peak].to_dict()
    parts["cached"] = reserved - sum(parts.values())
    _, parts["CUDA context"] = context_mib(card)
    beyond = "spills" if system == "windows" else "out of memory"
    # Within a limit the allocator gives cached segments back, so it may need less.
    verdict, at_best = (
        "fits" if reserved <= mib or runs_within(trace, mib) else beyond
        for mib in usable
    )
    top, _ = trace.events[peak]
    where = f"{top.op} of {top.module or 'the optimizer'} ({top.phase})"
    allocated = replayed.max_allocated / MIB
    return Budget(usable, allocated, reserved, parts, verdict, at_best, where)


def runs_within(trace: Trace, capacity_mib: float) -> bool:
    """Replay a trace in an allocator with a limit.

    Parameters
    ----------
    trace : Trace
        From `tracing.trace`.
    capacity_mib : float
        MiB that the allocator may reserve.

    Returns
    -------
    bool
        Whether it runs to its end.
    """
    try:
        replay(trace.events, CachingAllocator(max(0, int(capacity_mib * MIB))))
    except OutOfMemory:
        return False
    return True


def largest_batch(
    step: Step,
    config: PretrainedConfig,
    length: int,
    options: StepOptions = StepOptions(),
    card: Card = GTX_1650_TI,
    system: str = "windows",
) -> tuple[int, ...]:
    """Search for the largest batch size that runs: by doubling, then by bisection.

    It stops at `MOST_ROWS`. Gaps between the allocator's segments make the edge a
    little ragged: some rows more may run again. ``StepOptions(scalable=True)`` is
    faster where it is right. Of a step that takes its batch in parts of a fixed size,
    ask for the largest part instead.

    Parameters
    ----------
    step : callable
        ``step(model, batch, optimizer)``: one training step, as for `trace`.
    config : transformers.PretrainedConfig
        Of the model.
    length : int
        Tokens per row, padding included.
    options : StepOptions
        How the step is run.
    card : Card
        The card that it has to fit.
    system : str
        "windows", "linux-desktop" or "linux".

    Returns
    -------
    tuple of int
        Rows (at worst, at best), from 0 to `MOST_ROWS`.

    Raises
    ------
    InvalidValue
        As for `step_budget`.
    """

    def largest(capacity: float) -> int:
        def is_too_large(rows: int) -> bool:
            trace = scaled_trace(step, config, rows, length, _on(card, options))
            return not runs_within(trace, capacity)

        most = 1
        while most < MOST_ROWS and not is_too_large(most + 1):
            most *= 2
        rows = range(1, min(most, MOST_ROWS) + 1)
        return bisect_left(rows, True, most // 2, key=is_too_large)

    return tuple(map(largest, usable_mib(card, system)))


def _on(card: Card, options: StepOptions) -> StepOptions:
    """Return the options with the card's capability, if they have none."""
    check_type("options", options, StepOptions)
    return replace(options, capability=options.capability or card.capability)


def budget_table(
    step: Step,
    config: PretrainedConfig,
    rows: int = 8,
    lengths: Sequence[int] = LENGTHS,
    options: StepOptions = StepOptions(),
    card: Card = GTX_1650_TI,
    system: str = "windows",
) -> pd.DataFrame:
    """Tabulate the budgets of several lengths, with SDPA and with eager attention.

    Parameters
    ----------
    step : callable
        ``step(model, batch, optimizer)``: one training step, as for `trace`.
    config : transformers.PretrainedConfig
        Of the model.
    rows : int
        Of the batch.
    lengths : sequence of int
        Tokens per row.
    options : StepOptions
        How the step is run; its attention does not count.
    card : Card
        The card that it has to fit.
    system : str
        "windows", "linux-desktop" or "linux".

    Returns
    -------
    pandas.DataFrame
        A row for each (attention, length): MiB of each part at the peak, their
        ``total``, ``verdict`` and ``at best``.

    Raises
    ------
    InvalidValue
        As for `step_budget`.
    """
    table = {}
    for attention, length in product(("sdpa", "eager"), lengths):
        case = replace(options, attention=attention)
        budget = step_budget(step, config, rows, length, case, card, system)
        table[attention, length] = {
            **budget.parts,
            "total": sum(budget.parts.values()),
            "verdict": budget.verdict,
            "at best": budget.at_best,
        }
    frame = pd.DataFrame.from_dict(table, orient="index")
    return frame.rename_axis(["attention", "length"])


def memory_savings(
    step: Step,
    config: PretrainedConfig,
    rows: int = 8,
    length: int = 512,
    options: StepOptions = BASELINE,
    card: Card = GTX_1650_TI,
    system: str = "windows",
    in_parts: Callable[[int], Step] | None = None,
    others: Mapping[str, dict[str, Any]] | None = None,
) -> pd.DataFrame:
    """Tabulate what each of several changes alone saves.

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
        How the step is run without a change.
    card : Card
        The card that it has to fit.
    system : str
        "windows", "linux-desktop" or "linux".
    in_parts : callable, optional
        Makes the same step with gradient accumulation, from the rows of a part; it is
        then tried with half of the rows.
    others : mapping, optional
        Further changes: a name -> the arguments of `step_budget` that differ, such as
        ``{"half the tokens": {"length": 256}}``.

    Returns
    -------
    pandas.DataFrame
        A row for each change that is not made yet: MiB ``reserved`` at the peak, MiB
        ``saved``, and the ``verdict`` at worst. If the model does not support a change,
        its numbers are NaN and its verdict is the reason.
    """
    usable_mib(card, system)  # looks at both
    half = -(-rows // 2)
    cases = {
        "as it is": {},
        "SDPA instead of eager attention": _changed(options, attention="sdpa"),
    }
    if optimizer := OPTIMIZERS.get(options.optimizer):
        old = f"{options.implementation} {optimizer.__name__}"
        cases[f"fused instead of {old}"] = _changed(options, implementation="fused")
    if in_parts and rows > 1:
        changed = _changed(options, scalable=False)
        cases[f"two parts of {half} rows"] = changed | {"step": in_parts(half)}
    cases["gradient checkpointing"] = _changed(options, checkpointing=True)
    cases |= others or {}
    if card.half_precision == "bf16":
        cases["bf16 autocast"] = _changed(options, precision="bf16")
    found = {}
    for name, case in cases.items():
        usual = {"step": step, "rows": rows, "length": length, "options": options}
        if case and case.items() <= usual.items():  # it is so already
            continue
        try:
            budget = step_budget(
                config=config, card=card, system=system, **usual | case
            )
            found[name] = budget.reserved, budget.verdict
        except InvalidValue as error:
            found[name] = float("nan"), str(error)
    table = pd.DataFrame(found, ["reserved", "verdict"]).T.infer_objects()
    table.insert(1, "saved", table["reserved"].iloc[0] - table["reserved"])
    return table.rename_axis("change")


def _changed(options: StepOptions, **changes: Any) -> dict[str, Any]:
    """Return the argument of `step_budget` for changed options."""
    return {"options": replace(options, **changes)}


def timeline(trace: Trace, step: int = TRACED_STEPS) -> pd.DataFrame:
    """Tabulate the memory of a traced step, event by event.

    Parameters
    ----------
    trace : Trace
        From `tracing.trace`.
    step : int
        The step to begin with, from 1; 0 for all events.

    Returns
    -------
    pandas.DataFrame
        After each event the MiB of each of `TRACED_PARTS`, and the ``phase``: of a
        release, that of the last allocation before it.

    Raises
    ------
    InvalidValue
        If there is no such step.
    """
    rows = []
    phase = ""
    live = dict.fromkeys(TRACED_PARTS, 0.0)
    for allocation, made in trace.events:
        part = allocation.category.replace("batch", "temporaries")
        live[part] += (allocation.size if made else -allocation.size) / MIB
        phase = allocation.phase if made else phase
        if rows or allocation.step == step:
            rows.append({**live, "phase": phase})
    if not rows:
        raise InvalidValue(f"step is {step}; this trace has no such step.")
    return pd.DataFrame(rows).rename_axis("event")
