"""Will a training step fit? Traced, replayed through the allocator, and held against a card. Notebook 05."""

from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import pandas as pd

from ..hardware import CONTEXT_MIB, GTX_1650_TI, SYSTEMS_GIB, Card, precision_problem
from ..plumbing.errors import InvalidValue
from .allocator import MIB, CachingAllocator, OutOfMemory, replay
from .trace import TRACED_STEPS, StepOptions, Trace, config_for, scaled_trace

TRACED_PARTS = (
    "weights",
    "gradients",
    "optimizer state",
    "activations",
    "temporaries",
    "workspaces",
)
LENGTHS = (64, 128, 256, 512)  # tokens per row, for tables
TYPICAL = 64  # tokens; 83 % of AG News' batches, grouped by length, are no longer (of 7,600 rows)
USUAL = StepOptions(
    attention="eager", implementation="foreach"
)  # what one gets without asking for better


@dataclass(frozen=True)
class Budget:
    """What a training step needs and what the card leaves, in MiB.

    allocated, reserved : peaks, named as in `torch.cuda`; reserved is without a limit.
    parts : what lies in memory at the peak, with the allocator's cache and the largest CUDA context.
    usable : what system and context leave to PyTorch, (at worst, at best); on this machine's card: now.
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

    Of a card in this machine, what is free on it. A system that we have no reports of is a ValueError.
    """
    if system not in SYSTEMS_GIB:
        raise InvalidValue(
            f"system is {system!r}; it must be one of {', '.join(SYSTEMS_GIB)}."
        )
    if card.free_mib is not None:
        return card.free_mib, card.free_mib
    (least, most), (smallest, largest) = SYSTEMS_GIB[system], CONTEXT_MIB
    whole = card.vram_gib * 1024
    return max(0.0, whole - most * 1024 - largest), max(
        0.0, whole - least * 1024 - smallest
    )


def step_budget(
    config,
    rows: int,
    length: int,
    options=StepOptions(),
    card=GTX_1650_TI,
    system="windows",
):
    """The `Budget` of a batch of `rows` x `length` tokens. Errors as for `trace_steps` and `usable_mib`."""
    usable = usable_mib(card, system)
    trace = scaled_trace(config, rows, length, options)
    replayed = replay(trace.events, CachingAllocator())
    allocated, reserved = replayed.max_allocated / MIB, replayed.max_reserved / MIB
    _, peak = trace.peak()
    parts = dict.fromkeys(TRACED_PARTS, 0.0)
    for allocation, made in trace.events[: peak + 1]:
        parts[_part(allocation)] += (
            allocation.size if made else -allocation.size
        ) / MIB
    parts |= {"cached": reserved - sum(parts.values()), "CUDA context": CONTEXT_MIB[1]}
    beyond = "spills" if system == "windows" else "out of memory"
    enough = (
        reserved <= mib or runs_within(trace, mib) for mib in usable
    )  # the second gives cache back
    verdicts = ("fits" if fits else beyond for fits in enough)
    top = trace.events[peak][0]
    where = f"{top.op} of {top.module or 'the optimizer'} ({top.phase})"
    return Budget(usable, allocated, reserved, parts, *verdicts, where)


def runs_within(trace: Trace, capacity_mib: float) -> bool:
    """Whether a trace runs where the allocator may reserve so much."""
    try:
        replay(trace.events, CachingAllocator(capacity=max(0, int(capacity_mib * MIB))))
    except OutOfMemory:
        return False
    return True


def largest_batch(
    config, length: int, options=StepOptions(), card=GTX_1650_TI, system="windows"
):
    """The largest batch size at this length: (in the worst case of the system, in the best); at most 4,096.

    Taken at once: `micro_batch_size` does not count. Found by halving. Gaps between segments make the edge a
    little ragged: a few rows more may run again.
    """
    whole = replace(options, micro_batch_size=None)
    traced = partial(scaled_trace, config_for(config), length=length, options=whole)
    return tuple(
        bisect_left(
            range(1, 4097),
            True,
            key=lambda rows: not runs_within(traced(rows), capacity),
        )
        for capacity in usable_mib(card, system)
    )


def budget_table(
    config,
    batch_size=8,
    lengths=LENGTHS,
    card=GTX_1650_TI,
    system="windows",
    base=StepOptions(),
) -> pd.DataFrame:
    """One row for each attention and length: MiB of each part at the peak, their total, both verdicts."""
    rows = {}
    for attention, length in product(("sdpa", "eager"), lengths):
        options = replace(base, attention=attention)
        budget = step_budget(config, batch_size, length, options, card, system)
        verdicts = {"verdict": budget.verdict, "at best": budget.at_best}
        rows[attention, length] = (
            budget.parts | {"total": sum(budget.parts.values())} | verdicts
        )
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(
        ["attention", "length"]
    )


def memory_savings(
    config, rows=8, length=512, base=USUAL, card=GTX_1650_TI, system="windows"
) -> pd.DataFrame:
    """What each change alone does to `base`: MiB reserved at the peak, MiB saved, the worst case's verdict.

    And the flag of ``agnews train`` that makes it. A change that the model or the card cannot make has the
    reason as its verdict.
    """
    half, short = -(-rows // 2), "bf16" if card.capability >= (8, 0) else "fp16"
    cases = {  # what changes, and the flag
        "as it is": ({}, ""),
        "SDPA instead of eager attention": ({"attention": "sdpa"}, ""),
        "fused instead of foreach Adam": ({"implementation": "fused"}, ""),
        f"two parts of {half} rows": (
            {"micro_batch_size": half},
            f"--micro-batch-size {half}",
        ),
        "layers computed twice, not kept": (
            {"checkpointing": True},
            "--gradient-checkpointing",
        ),
        f"padded to {TYPICAL}, as most of AG News' batches": ({}, ""),
        f"{short} autocast": ({"precision": short}, f"--precision {short}"),
    }
    found = {}
    for name, (change, flag) in cases.items():
        tokens = TYPICAL if name.startswith("padded") else length
        try:
            if "precision" in change and precision_problem(short, "cuda", card):
                raise InvalidValue("not on this card")
            budget = step_budget(
                config, rows, tokens, replace(base, **change), card, system
            )
            found[name] = budget.reserved, budget.verdict, flag
        except InvalidValue as error:
            found[name] = float("nan"), str(error), ""
    table = pd.DataFrame.from_dict(
        found, orient="index", columns=["reserved", "verdict", "flag"]
    )
    table.insert(1, "saved", table["reserved"].iloc[0] - table["reserved"])
    return table.rename_axis("change")


def _part(allocation) -> str:
    """Where a traced allocation is counted; the batch among what is temporary."""
    return "temporaries" if allocation.category == "batch" else allocation.category


def timeline(trace: Trace, step: int = TRACED_STEPS) -> pd.DataFrame:
    """MiB of each traced part after every event from a step on, and its phase; for the picture of a step.

    The batch counts as temporary. A release has the phase of the last allocation before it.
    """
    rows, phase, live = [], "", dict.fromkeys(TRACED_PARTS, 0.0)
    for allocation, made in trace.events:
        live[_part(allocation)] += (allocation.size if made else -allocation.size) / MIB
        phase = allocation.phase if made else phase
        if rows or allocation.step == step:
            rows.append({**live, "phase": phase})
    return pd.DataFrame(rows).rename_axis("event")
