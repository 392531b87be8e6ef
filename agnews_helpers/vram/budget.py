"""Will a training step fit? Traced, replayed through the allocator, and held against a card. Notebook 05."""

from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import pandas as pd

from ..hardware import CONTEXT_MIB, GTX_1650_TI, SYSTEMS_GIB, Card
from ..plumbing.errors import InvalidValue
from .allocator import MIB, CachingAllocator, OutOfMemory, replay
from .trace import TRACED_STEPS, StepOptions, Trace, config_for, scaled_trace, trace_steps

TRACED_PARTS = ("weights", "gradients", "optimizer state", "activations", "temporaries", "workspaces")
LENGTHS = (64, 128, 256, 512)  # tokens a row, for tables
USUAL = StepOptions(attention="eager", implementation="foreach")  # what one gets without asking for better


@dataclass(frozen=True)
class Budget:
    """What a training step needs and what the card leaves, in MiB.

    allocated, reserved : peaks, named as in `torch.cuda`; reserved is without a limit.
    parts : what lies in memory at the peak, with the allocator's cache and the middle of the context's range.
    usable : what system and context leave to PyTorch, (at worst, at best).
    verdict, at_best : what happens in the worst and in the best case: it ``"fits"``, ``"spills"`` (on
    Windows: into the computer's memory, slow and without an error), or is ``"out of memory"`` (elsewhere).
    peak : the op, module and phase that make the peak.
    """

    usable: tuple[float, float]
    allocated: float
    reserved: float
    parts: dict[str, float]
    verdict: str
    at_best: str
    peak: str


def usable_mib(card: Card, system: str) -> tuple[float, float]:
    """MiB that the system and the CUDA context leave to PyTorch: (at worst, at best).

    A system that we have no reports of is a ValueError.
    """
    if system not in SYSTEMS_GIB:
        raise InvalidValue(f"system is {system!r}; it must be one of {', '.join(SYSTEMS_GIB)}.")
    (least, most), (smallest, largest) = SYSTEMS_GIB[system], CONTEXT_MIB
    whole = card.vram_gib * 1024
    return whole - most * 1024 - largest, whole - least * 1024 - smallest


def step_budget(config, rows: int, length: int, options=StepOptions(), card=GTX_1650_TI, system="windows"):
    """The `Budget` of a batch of `rows` x `length` tokens. Errors as for `trace_steps` and `usable_mib`."""
    usable = usable_mib(card, system)
    trace = trace_steps(config, [(rows, length)] * TRACED_STEPS, options)
    replayed = replay(trace.events, CachingAllocator())
    allocated, reserved = replayed.max_allocated / MIB, replayed.max_reserved / MIB
    _, peak = trace.peak()
    parts = timeline(trace, step=0).drop(columns="phase").iloc[peak].to_dict()
    parts |= {"cached": reserved - sum(parts.values()), "CUDA context": sum(CONTEXT_MIB) / 2}
    beyond = "spills" if system == "windows" else "out of memory"
    verdicts = ("fits" if runs_within(trace, mib) else beyond for mib in usable)
    top = trace.events[peak][0]
    where = f"{top.op} of {top.module or 'the optimizer'} ({top.phase})"
    return Budget(usable, allocated, reserved, parts, *verdicts, where)


def reserved_mib(trace: Trace) -> float:
    """MiB that the allocator reserves at most, without a limit."""
    return replay(trace.events, CachingAllocator()).max_reserved / MIB


def runs_within(trace: Trace, capacity_mib: float) -> bool:
    """Whether a trace runs where the allocator may reserve so much."""
    try:
        replay(trace.events, CachingAllocator(capacity=max(0, int(capacity_mib * MIB))))
    except OutOfMemory:
        return False
    return True


def largest_batch(config, length: int, options=StepOptions(), card=GTX_1650_TI, system="windows"):
    """The largest batch size at this length: (in the worst case of the system, in the best); at most 4,096.

    Found by halving. Gaps between segments make the edge a little ragged: a few rows more may run again.
    """
    traced = partial(scaled_trace, config_for(config), length=length, options=options)
    return tuple(
        bisect_left(range(1, 4097), True, key=lambda rows: not runs_within(traced(rows), capacity))
        for capacity in usable_mib(card, system)
    )


def budget_table(config, batch_size=8, lengths=LENGTHS, card=GTX_1650_TI, system="windows") -> pd.DataFrame:
    """One row for each attention and length: MiB of each part at the peak, their total, both verdicts."""
    rows = {}
    for attention, length in product(("sdpa", "eager"), lengths):
        options = StepOptions(attention=attention)
        budget = step_budget(config, batch_size, length, options, card, system)
        total = sum(budget.parts.values())
        rows[attention, length] = {**budget.parts, "total": total}
        rows[attention, length] |= {"verdict": budget.verdict, "at best": budget.at_best}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["attention", "length"])


def reserved_by_shape(config, batch_sizes, lengths, options: StepOptions = StepOptions()) -> pd.DataFrame:
    """Peak of reserved memory in MiB, batch sizes down and lengths across."""
    traced = partial(scaled_trace, config_for(config), options=options)
    table = {n: {rows: reserved_mib(traced(rows, n)) for rows in batch_sizes} for n in lengths}
    return pd.DataFrame(table).rename_axis("batch size")


def levers(config, rows=8, length=512, base: StepOptions = USUAL, typical_length=64) -> pd.DataFrame:
    """What each change alone saves on `base`: peak of reserved memory in MiB, and the difference."""
    half = -(-rows // 2)
    cases = {
        "as it is": (length, {}),
        "SDPA instead of eager attention": (length, {"attention": "sdpa"}),
        "fused instead of foreach Adam": (length, {"implementation": "fused"}),
        f"two parts of {half} rows, accumulated": (length, {"micro_batch_size": half}),
        "activation checkpointing": (length, {"checkpointing": True}),
        f"padded to {typical_length}, the batch's longest": (typical_length, {}),
        "fp16 autocast (not on GTX 16xx)": (length, {"precision": "fp16"}),
    }
    table = pd.DataFrame(index=pd.Index(cases, name="change"))
    for name, (tokens, change) in cases.items():
        trace = trace_steps(config, [(rows, tokens)] * TRACED_STEPS, replace(base, **change))
        table.loc[name, "reserved"] = reserved_mib(trace)
    return table.assign(saved=table["reserved"].iloc[0] - table["reserved"])


def timeline(trace: Trace, step: int = TRACED_STEPS) -> pd.DataFrame:
    """MiB of each traced part after every event from a step on, and its phase; for the picture of a step.

    The batch counts as temporary. A release has the phase of the last allocation before it.
    """
    rows, phase, live = [], "", dict.fromkeys(TRACED_PARTS, 0.0)
    for allocation, made in trace.events:
        part = "temporaries" if allocation.category == "batch" else allocation.category
        live[part] += (allocation.size if made else -allocation.size) / MIB
        phase = allocation.phase if made else phase
        if rows or allocation.step == step:
            rows.append({**live, "phase": phase})
    return pd.DataFrame(rows).rename_axis("event")
