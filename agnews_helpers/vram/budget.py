"""Will a training step fit? Traced, replayed through the allocator, and held against a card. Notebook 05."""
import functools
import json
from collections import Counter
from dataclasses import dataclass, replace

import pandas as pd
import torch

from ..hardware import CONTEXT_MIB, GTX_1650_TI, SYSTEMS_GIB, Card
from .allocator import MIB, CachingAllocator, OutOfMemory, replay
from .recorder import Allocation
from .trace import Setup, Trace, sequence_classifier_config, trace_steps

STEPS = 3  # optimizer state appears in the first step, its traces in the allocator in the second
PARTS = ("weights", "gradients", "optimizer state", "activations", "temporaries", "workspaces", "cached", "CUDA context")


@dataclass(frozen=True)
class Budget:
    """What a training step needs and what the card leaves, in MiB.

    allocated, reserved : peaks, named as in `torch.cuda.memory_stats`; reserved is without a limit.
    parts : what lies in memory at the peak, with the allocator's cache and the middle of the context's range.
    context, usable : ranges; usable is what system and context leave to PyTorch, (at worst, at best).
    verdict : ``"fits"`` where the replay stays within the worst case, ``"tight"`` where only within the
    best, ``"does not fit"`` otherwise. peak : the op, module and phase that make the peak.
    """

    rows: int
    length: int
    setup: Setup
    card: Card
    system: str
    allocated: float
    reserved: float
    parts: dict[str, float]
    usable: tuple[float, float]
    verdict: str
    peak: str
    context: tuple[int, int] = CONTEXT_MIB


def usable_mib(card: Card, system: str) -> tuple[float, float]:
    """MiB that the system and the CUDA context leave to PyTorch: (at worst, at best).

    Raises
    ------
    ValueError
        For a system that we have no reports of.
    """
    if system not in SYSTEMS_GIB:
        raise ValueError(f"system is {system!r}; it must be one of {', '.join(SYSTEMS_GIB)}.")
    low, high = SYSTEMS_GIB[system]
    return card.vram_gib * 1024 - high * 1024 - CONTEXT_MIB[1], card.vram_gib * 1024 - low * 1024 - CONTEXT_MIB[0]


def step_budget(config, rows: int, length: int, setup: Setup = Setup(), card: Card = GTX_1650_TI,
                system: str = "windows") -> Budget:
    """The budget of a batch of `rows` x `length` tokens. Errors as for `trace_steps` and `usable_mib`."""
    usable = usable_mib(card, system)
    return _budget(trace_steps(config, [(rows, length)] * STEPS, setup), rows, length, setup, card, system, usable)


def _budget(found: Trace, rows, length, setup, card, system, usable) -> Budget:
    stats = replay(found.events, CachingAllocator()).memory_stats()
    allocated, reserved = (stats[f"{name}_bytes.all.peak"] / MIB for name in ("allocated", "reserved"))
    _, place = found.peak()
    top = found.events[place][0]
    parts = _live(found.events, place)
    parts["temporaries"] += parts.pop("batch")
    parts |= {"cached": reserved - sum(parts.values()), "CUDA context": sum(CONTEXT_MIB) / 2}
    return Budget(rows, length, setup, card, system, allocated, reserved, parts, usable, _verdict(found.events, usable),
                  f"{top.op} of {top.module or 'the optimizer'} ({top.phase})")


def _live(events, stop: int) -> dict[str, float]:
    """MiB of each category alive after event number `stop`."""
    live = Counter(dict.fromkeys((*PARTS[:-2], "batch"), 0))
    for allocation, made in events[:stop + 1]:
        live[allocation.category] += allocation.size if made else -allocation.size
    return {name: size / MIB for name, size in live.items()}


def _reserved(events) -> float:
    """MiB that the allocator reserves at most, without a limit."""
    return replay(events, CachingAllocator()).memory_stats()["reserved_bytes.all.peak"] / MIB


def _verdict(events, usable) -> str:
    worst, best = usable
    return "fits" if _runs(events, worst) else "tight" if _runs(events, best) else "does not fit"


def _runs(events, capacity_mib: float) -> bool:
    try:
        replay(events, CachingAllocator(capacity=max(0, int(capacity_mib * MIB))))
    except OutOfMemory:
        return False
    return True


class Rows:
    """Traces for any number of rows of one length, from two that were really made.

    For one length every storage has a size of the form a + b x rows, and the order of events does not
    depend on the rows; so two traces give all others. A test holds this against traces of their own.
    """

    def __init__(self, config, length: int, setup: Setup):
        self.two, self.four = (trace_steps(config, [(rows, length)] * STEPS, setup).events for rows in (2, 4))
        if [(a.op, made) for a, made in self.two] != [(a.op, made) for a, made in self.four]:
            raise RuntimeError(f"the order of allocations changes with the number of rows at length {length}")

    def events(self, rows: int):
        """The events of a trace with `rows` rows, with sizes only.

        Raises
        ------
        ValueError
            For a batch without rows, as `trace_steps` does.
        """
        if rows < 1:
            raise ValueError(f"A batch of {rows} rows: rows must be at least 1.")
        made, events = {}, []
        for (two, is_made), (four, _) in zip(self.two, self.four):
            if two not in made:
                size = two.size + (four.size - two.size) * (rows - 2) // 2
                made[two] = Allocation(max(size, 1), two.op, two.module, two.phase, two.step, two.category)
            events.append((made[two], is_made))
        return events

    def largest(self, capacity_mib: float, most: int = 4096) -> int:
        """The largest number of rows whose steps run within the capacity; 0 where not one row does.

        Gaps between segments make the edge a little ragged; the search stops at the first number that fails
        at or above an estimate from the peaks.
        """
        def runs(rows):
            return rows <= most and _runs(self.events(rows), capacity_mib)

        two, four = (Trace(events).peak()[0] / MIB for events in (self.two, self.four))
        guess = min(most, max(1, 2 + int(2 * (capacity_mib - two) / max(four - two, 1e-6))))
        low, high, step = guess, guess + 1, 1  # the search widens from the guess, then closes in
        while low > 0 and not runs(low):
            low, high, step = max(0, low - step), low, 2 * step
        while high - low == 1 and runs(high):
            low, high = high, high + 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if runs(middle) else (low, middle)
        return low


@functools.lru_cache(maxsize=32)
def _rows(description: str, length: int, setup: Setup) -> Rows:
    from transformers import AutoConfig

    fields = json.loads(description)
    return Rows(AutoConfig.for_model(fields.pop("model_type"), **fields), length, setup)


def rows_of(config, length: int, setup: Setup) -> Rows:
    """The `Rows` of a configuration, a Hub id or a folder; made once for each length and setup."""
    fields = sequence_classifier_config(config).to_dict()
    return _rows(json.dumps(fields, sort_keys=True, default=str), length, setup)


def largest_batch(config, length: int, setup: Setup = Setup(), card: Card = GTX_1650_TI, system: str = "windows") -> tuple[int, int]:
    """The largest batch size at this length: (in the worst case of the system, in the best)."""
    rows = rows_of(config, length, setup)
    worst, best = usable_mib(card, system)
    return rows.largest(worst), rows.largest(best)


def largest_epoch_batch(config, lengths, setup: Setup = Setup(), card: Card = GTX_1650_TI, system: str = "windows") -> int:
    """The largest batch size for rows of these lengths, each batch padded to its longest, in the worst case.

    The longest batch comes first and decides; twelve more shapes, from the shortest to the longest in
    mixed order, then check that the gaps between changing shapes do no harm.
    """
    lengths = sorted(lengths)
    worst, _ = usable_mib(card, system)
    rows = largest_batch(config, lengths[-1], setup, card, system)[0]
    spread = [lengths[i * (len(lengths) - 1) // 11] for i in range(12)]
    mixed = [lengths[-1]] + [spread[i * 5 % 12] for i in range(12)]
    while rows and not _runs(trace_steps(config, [(rows, length) for length in mixed], setup).events, worst):
        rows -= max(1, rows // 50)
    return rows


def budget_table(config, batch_size: int = 8, lengths=(64, 128, 256, 512), attentions=("sdpa", "eager"),
                 card: Card = GTX_1650_TI, system: str = "windows") -> pd.DataFrame:
    """One row for each attention and length: MiB of each part at the peak, their total, and the verdict."""
    rows = []
    for attention in attentions:
        for length in lengths:
            setup = Setup(attention=attention)
            found = Trace(rows_of(config, length, setup).events(batch_size))
            budget = _budget(found, batch_size, length, setup, card, system, usable_mib(card, system))
            rows.append({"attention": attention, "length": length, **{part: budget.parts[part] for part in PARTS},
                         "total": sum(budget.parts.values()), "verdict": budget.verdict})
    return pd.DataFrame(rows).set_index(["attention", "length"])


def batch_map(config, batch_sizes, lengths, setup: Setup = Setup()) -> pd.DataFrame:
    """Peak of reserved memory in MiB, batch sizes down and lengths across."""
    families = {length: rows_of(config, length, setup) for length in lengths}
    return pd.DataFrame({length: {rows: _reserved(family.events(rows)) for rows in batch_sizes}
                         for length, family in families.items()}).rename_axis("batch size")


def levers(config, rows: int = 8, length: int = 512, base: Setup = Setup(attention="eager", implementation="foreach"),
           typical_length: int = 64) -> pd.DataFrame:
    """What each change alone saves on `base`: peak of reserved memory in MiB, and the difference."""
    cases = {
        "as it is": (length, {}), "SDPA instead of eager attention": (length, {"attention": "sdpa"}),
        "fused instead of foreach Adam": (length, {"implementation": "fused"}),
        f"two parts of {-(-rows // 2)} rows, accumulated": (length, {"micro_batch_size": -(-rows // 2)}),
        "activation checkpointing": (length, {"checkpointing": True}),
        f"padded to {typical_length}, the batch's longest": (typical_length, {}),
        "fp16 autocast (not on GTX 16xx)": (length, {"precision": "fp16"})}
    peaks = {}
    for name, (tokens, change) in cases.items():
        peaks[name] = _reserved(trace_steps(config, [(rows, tokens)] * STEPS, replace(base, **change)).events)
    table = pd.DataFrame({"reserved": peaks}).rename_axis("change")
    return table.assign(saved=table["reserved"].iloc[0] - table["reserved"])


def timeline(found, step: int = STEPS) -> pd.DataFrame:
    """MiB of each category after every event of one step of a trace, with the phase; for the picture of a step."""
    live, rows = Counter(dict.fromkeys((*PARTS[:-2], "batch"), 0)), []
    inside, phase = False, ""
    for allocation, made in found.events:
        live[allocation.category] += allocation.size if made else -allocation.size
        inside = inside or allocation.step == step
        phase = allocation.phase if made else phase
        if inside:
            rows.append({**{name: size / MIB for name, size in live.items()}, "phase": phase})
    table = pd.DataFrame(rows).rename_axis("event")
    return table.assign(temporaries=table["temporaries"] + table["batch"]).drop(columns="batch")


def measure_step(config, rows: int, length: int, setup: Setup = Setup(), steps: int = STEPS) -> dict[str, float]:
    """The same step with random weights on this CUDA device: MiB ``allocated``, ``reserved`` and ``context``.

    Raises
    ------
    RuntimeError
        Without a CUDA device: there is nothing to measure.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("measure_step needs a CUDA device; without one, step_budget gives the prediction.")
    from accelerate import Accelerator
    from transformers import AutoConfig, AutoModelForSequenceClassification

    from ..step import training_step

    config = AutoConfig.for_model(**config.to_dict())
    config._attn_implementation = setup.attention
    torch.cuda.empty_cache()
    accelerator = Accelerator()
    model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32).to(accelerator.device).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-5, fused=True)
    tokens = torch.ones(rows, length, dtype=torch.long, device=accelerator.device)
    mask = tokens.clone()
    mask[0, -1] = 0
    batch = {"input_ids": tokens, "attention_mask": mask, "labels": tokens[:, 0].contiguous()}
    torch.cuda.reset_peak_memory_stats()
    for _ in range(steps):
        training_step(model, batch, optimizer, accelerator, setup.micro_batch_size)
    free, total = torch.cuda.mem_get_info()
    return {"allocated": torch.cuda.max_memory_allocated() / MIB, "reserved": torch.cuda.max_memory_reserved() / MIB,
            "context": (total - free - torch.cuda.memory_reserved()) / MIB}
