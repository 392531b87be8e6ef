"""A step that runs out of memory is taken in parts: are they the largest that fit?

    python benchmarks/out_of_memory.py

`in_parts` really runs, with its errors, its clearing up, and Python's way of letting
go; but on tensors without storage. Each of their allocations goes to `vram_budget`'s
model of CUDA's allocator, which has a limited capacity. Where there is no room the
operation raises, in the forward or in the backward pass, and what Python then releases
is freed there.

After three steps the rows of a part are compared with the largest number of the same
series (8, 4, 2, 1 for 8 rows) whose three steps fit the capacity from the start,
replayed from `vram_budget.trace`: there nothing fails, so nothing can stay alive.
0 stands for "not even one row", or for no room for Adam's means. The two may differ by
how memory is cut into pieces: Adam's means lie where the first step left room. So it is
noted of the last refusal whether there was room for it, but not in one piece.

At two of the 200 capacities the parts are smaller than those that fit: there Adam's
means have split segments of 20 MiB among the larger parts of step 1, and stay where
they are. With 20 MiB more both would be equal. These cures were tried, by a replay of
the traces that agrees with `run` at all 200. None is in the package, because each makes
others worse, helps nothing, or needs a private function in `in_parts`. Ends of runs
against the largest that fits as the package is, and runs that end in smaller parts than
without the cure:

                                                       equal  more  less  worse
    without a cure                                       187    11     2      0
    the same size again, once, after the clearing up     185    13     2      0
    empty_cache before the first optimizer.step          186    10     4      3
    cuBLAS' workspaces are cleared up, too               186    10     4      3
    both of these                                        186     9     5      5
    Adam's means made before the first step              184     9     7      8
    Adam's means copied to new segments                  186     8     6      7
    Adam's means on the CPU until optimizer.step         177    21     2      2
    and cuBLAS' workspaces cleared up                    179    21     0      1

The same size again finds the same pieces: it helps twice, where cuBLAS had its second
workspace by then, and costs one more attempt at each of 374 failures. With Adam's means
made first, whether a run failed before no longer matters (199 of 200 equal what then
fits from the start), but from the start less fits at six capacities, and more at nine.

200 capacities, half of them with each kind of attention, are spread evenly over the
range in which the whole batch fails. The table is printed, and out_of_memory.json
written beside this file. 10 to 20 minutes on one CPU core; no card, no network.
"""

import gc
import json
import time
from pathlib import Path
from unittest import mock

import pandas as pd
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import DistilBertConfig
from transformers.initialization import no_init_weights

from agnews_helpers import forward_backward, training_step
from agnews_helpers.plumbing.errors import is_out_of_memory
from agnews_helpers.plumbing.memory import in_parts
from vram_budget import CachingAllocator, StepOptions, replay, trace
from vram_budget.allocator import OutOfMemory
from vram_budget.cuda_standins import cuda_kernels_on_cpu
from vram_budget.recorder import Recorder
from vram_budget.tracing import make_optimizer, new_model

MIB = 2**20
STEPS = 3
CONFIG = DistilBertConfig(num_labels=4)
# (rows, tokens) -> how many capacities, with each kind of attention
SHAPES = {(8, 512): 50, (8, 358): 26, (12, 256): 12, (16, 128): 12}
COLUMNS = "batch attention capacity_mib rows largest refused_in in_pieces".split()
BELOW = 0.98  # the range begins at this share of what parts of one row allocate


class LimitedCard(Recorder):
    """A recorder that hands each event on to an allocator, which may refuse it.

    Parameters
    ----------
    model, optimizer, options
        As for `Recorder`.
    capacity : int
        Bytes.
    """

    def __init__(self, model, optimizer, options, capacity):
        super().__init__(model, optimizer, options)
        self.allocator = CachingAllocator(capacity)
        self.blocks = {}
        self.handed_on = 0  # how many of the events
        self.refusals = []  # the phase of the step, and whether there were pieces

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = super().__torch_dispatch__(func, types, args, kwargs)
        refused = self.hand_on()
        if refused:
            raise torch.OutOfMemoryError("CUDA out of memory (on a model of a card)")
        return result

    def hand_on(self):
        """Hand on what is new; return whether a request was refused.

        But for a sum of gradients that comes last: the recorder takes it back if it
        turns out that PyTorch adds in place.
        """
        end, refused = len(self.events), False
        last, made = self.events[-1]
        if made and last.op == "add" and last.phase == "backward":
            end -= 1
        for allocation, made in self.events[self.handed_on : end]:
            if not made and allocation in self.blocks:
                self.allocator.free(self.blocks.pop(allocation))
            elif made and not refused:  # an operation ends at its first refusal
                refused = not self.allocated(allocation)
        self.handed_on = end
        return refused

    def allocated(self, allocation):
        """Return whether an allocation has room."""
        try:
            self.blocks[allocation] = self.allocator.malloc(allocation.size)
        except OutOfMemory:
            room = self.allocator.capacity - self.allocator.allocated
            self.refusals.append((allocation.phase, room >= allocation.size))
            if allocation.category == "workspaces":  # cuBLAS asks for it again
                is_backward = allocation.phase == "backward"
                self.threads.discard("autograd's" if is_backward else "main")
            return False
        return True

    def empty_cache(self):
        """Stand in for `torch.cuda.empty_cache`."""
        self.hand_on()
        self.allocator.empty_cache()


def run(shape, options, capacity, step=forward_backward):
    """Take three steps on a card of so many bytes.

    Parameters
    ----------
    shape : tuple of int
        (rows, tokens) of the batch.
    options : StepOptions
        How the step is run.
    capacity : int
        Bytes that PyTorch may reserve.
    step : callable
        As for `in_parts`.

    Returns
    -------
    tuple
        The rows of a part at the end, 0 if nothing fits; and for each time that memory
        ran out the phase of the step, and whether there was room, but in pieces.
    """
    split_sizes = []

    def training_step(model, batch, optimizer):
        loss = in_parts(step, model, batch, split_sizes)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    with FakeTensorMode(allow_non_fake_inputs=True):
        with no_init_weights():
            model = new_model(CONFIG, options)
        card = LimitedCard(model, make_optimizer(model, options), options, capacity)
        with (
            cuda_kernels_on_cpu(model, options),
            mock.patch.object(torch.cuda, "empty_cache", card.empty_cache),
        ):
            try:
                card.record(training_step, [shape] * STEPS)
                rows = min([shape[0], *(size for _, size in split_sizes)])
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                rows = 0
    return rows, card.refusals


def halvings(rows):
    """Return the sizes of parts that `in_parts` tries: rows, half of them, ... 1."""
    return [rows, *(halvings(rows // 2) if rows > 1 else [])]


def events_of(shape, options, rows):
    """Return the events of three steps in parts of so many rows; none fails."""
    step = training_step(rows if rows < shape[0] else None)
    return trace(step, CONFIG, [shape] * STEPS, options).events


def largest_that_fits(shape, options, capacity):
    """Return the largest of the halvings whose steps fit from the start; else 0."""
    for rows in halvings(shape[0]):
        try:
            replay(events_of(shape, options, rows), CachingAllocator(capacity))
        except OutOfMemory:
            continue
        return rows
    return 0


def capacities(shape, options, count):
    """Return so many capacities in bytes: from where no row fits to where all do."""
    one, whole = (
        replay(events_of(shape, options, rows), CachingAllocator())
        for rows in (1, shape[0])
    )
    low, high = int(BELOW * one.max_allocated), whole.max_reserved
    return [low + i * (high - low) // count for i in range(count)]


def campaign(shapes, step=forward_backward):
    """Return a row for each capacity and kind of attention.

    Parameters
    ----------
    shapes : dict
        (rows, tokens) -> how many capacities, with each kind of attention.
    step : callable
        As for `in_parts`.

    Returns
    -------
    pandas.DataFrame
    """
    found = []
    for shape, count in shapes.items():
        for attention in ("eager", "sdpa"):
            options = StepOptions(attention=attention)
            for capacity in capacities(shape, options, count):
                rows, refusals = run(shape, options, capacity, step)
                phases = [phase for phase, _ in refusals]
                pieces = bool(refusals) and refusals[-1][1]
                fits = largest_that_fits(shape, options, capacity)
                size = f"{shape[0]} x {shape[1]}"
                mib = round(capacity / MIB, 1)
                found.append((size, attention, mib, rows, fits, phases, pieces))
                print(*found[-1], flush=True)
    return pd.DataFrame(found, columns=COLUMNS)


def summary(table):
    """Return, for each batch and attention, how the runs ended."""
    refused = {
        f"refused in {phase}": [phase in phases for phases in table["refused_in"]]
        for phase in ("forward", "backward", "optimizer")
    }
    facts = {
        "capacities": table["rows"] >= 0,
        "largest that fits": table["rows"] == table["largest"],
        "less": table["rows"] < table["largest"],
        "less, in pieces": (table["rows"] < table["largest"]) & table["in_pieces"],
        "more": table["rows"] > table["largest"],
        "none fits": table["rows"] == 0,
    }
    sums = table[["batch", "attention"]].assign(**facts | refused)
    return sums.groupby(["batch", "attention"]).sum()


def main():
    gc.freeze()  # each failed part collects garbage; the libraries are none
    started = time.perf_counter()
    table = campaign(SHAPES)
    figures = {
        "torch": torch.__version__,
        "seconds": round(time.perf_counter() - started),
        "summary": summary(table).reset_index().to_dict("records"),
        "runs": table.to_dict("records"),
    }
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(f"\n{summary(table).T.to_string()}\nfigures in {path.name}")


if __name__ == "__main__":
    main()
