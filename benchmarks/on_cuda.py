"""Is it true on a card? Measures what this project predicts or promises about CUDA.

    python benchmarks/on_cuda.py

It prints tables and writes on_cuda-<card>.json beside this file: figures, versions, and
the card's name, to be read before it is sent. No Hub: the models have DistilBERT's
shape and random weights. It is to end within ten minutes: what would begin after the
eighth is left out, and the file says so. Please send it if your card is a GTX 1650 Ti,
or another one that has no file here. Without a CUDA device it says so and exits with 2.

context: what is taken of the card before this process, with its context, and outside of
   PyTorch's memory: before the steps and after those of `memory`.
replayed: the requests of two steps to PyTorch's allocator, replayed by ours: the
   reserved memory of both.
memory: the peaks of three training steps, allocated and reserved, and the predicted
   ones. Eight shapes, each with memory-efficient attention and fused Adam, and with
   eager attention and foreach Adam; two steps that need less.
in_parts: a step that runs out of memory in the forward pass, in the backward pass of
   the last and of the first layer, and on a card that is full. Are the gradients of its
   parts those of the whole step? What of a failed part is alive when the next begins?
resumed: a run that is stopped and resumed, in each precision that the card is good for.
   Are its losses those of an uninterrupted run?
step: the milliseconds of a step and of its parts: the check of the gradients, with its
   launches and waits; reading a number; the loader.
seconds: the seconds of a step, and the estimate (low, high) if its speed is known.
largest: the largest batch on a card of 4 GiB: found by trying, and predicted.
notebook: what the cells of notebook 05 hold on the card, and their peaks (`offline`).
"""

import gc
import json
import os
import re
import subprocess
import sys
import time
from contextlib import chdir, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from datasets import Dataset
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DistilBertConfig

from agnews_helpers import (
    DoesNotFit,
    MiniUnavailable,
    Recipe,
    describe_machine,
    forward_backward,
    load_data,
    load_model,
    load_tokenizer,
    make_loader,
    this_card,
    tokenize,
    train,
    training_step,
)
from agnews_helpers.hardware import check_precision, version_of
from agnews_helpers.model import enable_gradient_checkpointing
from agnews_helpers.plumbing.errors import AgnewsError, is_out_of_memory
from agnews_helpers.plumbing.memory import in_parts
from agnews_helpers.plumbing.vram_cap import free_mib, vram_cap
from agnews_helpers.training import check_finite
from vram_budget import (
    Allocation,
    CachingAllocator,
    StepOptions,
    largest_batch,
    replay,
    seconds_on,
    step_budget,
    step_work,
)
from vram_budget.tracing import make_optimizer, new_model

MIB = 2**20
CONFIG = DistilBertConfig(num_labels=4)
SHAPES = ((8, 32), (8, 64), (8, 128), (8, 256), (8, 358), (8, 512), (4, 256), (2, 512))
# Set explicitly, because a new card would choose flash attention.
KERNELS = {"sdpa": SDPBackend.EFFICIENT_ATTENTION, "eager": SDPBackend.MATH}
# Steps that need less memory: their options, and the rows of a part.
LEANER = ((StepOptions(scalable=False), 4), (StepOptions(checkpointing=True), None))
SEARCHED = (128, 358, 512)  # tokens for which the largest batch is searched
MOST_ROWS = 128  # under 4 GiB 70 rows of 128 tokens are predicted to fit
LAST_START = 8 * 60  # seconds after which no further section begins
MORE_THAN_ANY_CARD = 2**50  # bytes
# Where memory runs out, and the module after which it does.
PLACES = {
    "forward": "pre_classifier",
    "backward, last layer": "pre_classifier",
    "backward, first layer": "distilbert.embeddings",
    "a full card": None,
}
NOTEBOOK = Path(__file__).parents[1] / "notebooks/05_train_the_classifier.ipynb"
ABOUT = (
    "Figures of one CUDA card, from benchmarks/on_cuda.py. Nothing else of the machine "
    "is in here but versions and the system's name: no paths, no texts, no user."
)


def batch_of(rows: int, length: int, device="cuda") -> dict:
    """Make a batch of random tokens with one place of padding.

    Without padding transformers would leave out the mask.
    """
    ids = torch.randint(1000, 20000, (rows, length), device=device)
    mask = torch.ones_like(ids)
    mask[0, -1] = 0
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": torch.arange(rows, device=device) % 4,
    }


@contextmanager
def trainable(options: StepOptions, micro_batch_size=None, device="cuda"):
    """Context manager: make a function that runs one training step of (rows, tokens).

    If memory runs out, the sizes of the parts are appended to its third argument.
    """
    model = new_model(CONFIG, options).to(device)
    optimizer = make_optimizer(model, options)

    def step(rows, length, split_sizes=None):
        if micro_batch_size:
            split_sizes = [[1, micro_batch_size]]
        elif split_sizes is None:
            split_sizes = []
        batch = batch_of(rows, length, device)
        loss = in_parts(forward_backward, model, batch, split_sizes)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()  # waits for the card

    kernel = (
        sdpa_kernel(KERNELS[options.attention]) if device == "cuda" else nullcontext()
    )
    if options.checkpointing:
        enable_gradient_checkpointing(model)
    with kernel:
        yield step


def forget() -> None:
    """Free all cached memory, and reset the peaks."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def peaks(
    shape: tuple[int, int], options: StepOptions, micro_batch_size=None
) -> tuple[float, float]:
    """Return the peaks of three steps, in MiB allocated and reserved.

    NaN for a step that had to be taken in smaller parts. What cuBLAS took in an earlier
    case stays, and makes up to a segment of 20 MiB of what is reserved.
    """
    forget()
    split_sizes = []
    with trainable(options, micro_batch_size) as step:
        for _ in range(3):
            step(*shape, split_sizes)
    if split_sizes:
        return float("nan"), float("nan")
    return (
        torch.cuda.max_memory_allocated() / MIB,
        torch.cuda.max_memory_reserved() / MIB,
    )


def compared(measure, card) -> pd.DataFrame:
    """Return the predicted peaks of all cases, and those of `measure` (see `peaks`)."""
    kinds = (StepOptions(), StepOptions(attention="eager", implementation="foreach"))
    cases = [(shape, options, None) for options in kinds for shape in SHAPES]
    cases += [((8, 512), options, micro) for options, micro in LEANER]
    rows = []
    for shape, options, micro in cases:
        here = replace(options, capability=card.capability)
        step = training_step(micro)
        predicted = step_budget(step, CONFIG, *shape, here, card, "linux")
        allocated, reserved = measure(shape, options, micro)
        what = f"{shape[0]} x {shape[1]}, {options.attention}, {options.implementation}"
        what += f", parts of {micro}" if micro else ""
        what += ", checkpointing" if options.checkpointing else ""
        rows.append(
            (what, predicted.allocated, allocated, predicted.reserved, reserved)
        )
    names = [
        "step",
        "predicted_allocated",
        "allocated",
        "predicted_reserved",
        "reserved",
    ]
    table = pd.DataFrame(rows, columns=names)
    for name in ("allocated", "reserved"):
        table[f"{name}_error"] = table[f"predicted_{name}"] / table[name] - 1
    return table


def context() -> float:
    """Return the MiB outside of PyTorch's allocator: context, and other programs."""
    free, total = torch.cuda.mem_get_info()
    return (total - free - torch.cuda.memory_reserved()) / MIB


def largest_that_runs(runs) -> int:
    """Find by bisection the most rows, below `MOST_ROWS`, for which ``runs(rows)``."""
    low, high = 0, MOST_ROWS
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if runs(middle) else (low, middle)
    return low


def at_once(rows: int, length: int) -> bool:
    """Return whether three steps of this shape run under the cap, none in parts."""
    forget()
    split_sizes = []
    try:
        with trainable(StepOptions()) as step:
            for _ in range(3):
                step(rows, length, split_sizes)
                if split_sizes:
                    return False
    except RuntimeError as error:
        if not isinstance(error, DoesNotFit) and not is_out_of_memory(error):
            raise
        return False
    return True


def largest() -> pd.DataFrame:
    """Return the largest batches on a card of 4 GiB: found by trying, and predicted."""
    rows = []
    for length in SEARCHED:
        forget()
        beyond = max(0, this_card().vram_gib * 1024 - 4096)
        card = replace(this_card(), free_mib=free_mib() - beyond)
        options = StepOptions(capability=card.capability, scalable=True)
        predicted, _ = largest_batch(
            training_step(), CONFIG, length, options, card, "linux"
        )
        with vram_cap(torch.device("cuda")):
            share = card.free_mib / 1024 / card.vram_gib
            torch.cuda.set_per_process_memory_fraction(share)
            found = largest_that_runs(partial(at_once, length=length))
        rows.append((length, predicted, found))
    return pd.DataFrame(rows, columns=["tokens", "predicted", "found"])


def gradients_in_parts(place: str, device="cuda") -> dict:
    """Compare the gradients of a step in parts with those of the whole step.

    `place` is one of `PLACES`. There PyTorch's own allocator is asked for more than
    any card has, until a part has at most four rows.
    """
    model = new_model(CONFIG, StepOptions()).to(device)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # otherwise the two steps draw different masks
    model.config.attention_dropout = 0.0
    batch = batch_of(16, 256, device)
    forward_backward(model, batch)
    whole = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    forget()
    split_sizes, parts = [], []

    def step(model, part, **options):
        parts.append((len(part["labels"]), torch.cuda.memory_allocated()))
        return forward_backward(model, part, **options)

    with little_memory() if PLACES[place] is None else too_much(model, place):
        in_parts(step, model, batch, split_sizes)
    first_that_fits = [rows for rows, _ in parts].index(parts[-1][0])
    # A key's bias has no gradient but noise, of 1e-10.
    differences = [
        (p.grad - w).abs().max() / w.abs().max().clamp(min=1e-6)
        for p, w in zip(model.parameters(), whole)
    ]
    return {
        "place": place,
        "parts": [rows for rows, _ in parts],
        "left_of_failed_parts_mib": (parts[first_that_fits][1] - parts[0][1]) / MIB,
        "largest_relative_difference": max(differences).item(),
    }


@contextmanager
def too_much(model, place):
    """Context manager: memory runs out at a place of `PLACES`, above four rows."""

    def ask(*_):
        torch.empty(MORE_THAN_ANY_CARD, dtype=torch.uint8, device=model.device)

    def after(module, inputs, output):
        if len(output) > 4 and place == "forward":
            ask()
        elif len(output) > 4:
            output.register_hook(ask)

    hook = model.get_submodule(PLACES[place]).register_forward_hook(after)
    try:
        yield
    finally:
        hook.remove()


def in_parts_anywhere() -> pd.DataFrame:
    """Return what `gradients_in_parts` finds at each place."""
    return pd.DataFrame([gradients_in_parts(place) for place in PLACES])


@contextmanager
def little_memory():
    """Context manager: leave PyTorch 600 MiB more than it has reserved now.

    256 of them are for the gradients, the rest for about four rows.
    """
    total = torch.cuda.mem_get_info()[1]
    allowed = torch.cuda.memory_reserved() + 600 * MIB
    torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def resumed_in_each_precision(card) -> dict:
    """Return what `resumed` finds for each precision, or why it is not used here."""
    found = {}
    for precision in ("fp32", "bf16"):
        try:
            check_precision(precision, card)
        except AgnewsError as problem:
            found[precision] = {"refused": str(problem)}
        else:
            found[precision] = resumed(precision)
    return found


def resumed(precision: str, rows=200) -> dict:
    """Compare the losses of a resumed run with those of an uninterrupted one."""
    recipe = Recipe("offline", "mini", "sample", train_rows=rows, test_rows=8, epochs=1)
    recipe = recipe.replace(precision=precision)
    tokens = tokenize(load_data(recipe), load_tokenizer(recipe), recipe)
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        whole = train(load_model(recipe), tokens, recipe, Path(folder) / "whole")
        stopped = Path(folder) / "stopped"
        train(load_model(recipe), tokens, recipe, stopped, steps=9)
        again = train(load_model(recipe), tokens, recipe, stopped)
    difference = (whole.steps["loss"] - again.steps["loss"]).abs().max()
    return {"steps": len(whole.steps), "largest_difference": float(difference)}


def seconds(card) -> pd.DataFrame:
    """Return the seconds of a step of 8 rows, and the estimate, low and high."""
    rows = []
    with trainable(StepOptions()) as step:
        for length in (64, 128, 256, 512):
            step(8, length)
            started = time.perf_counter()
            for _ in range(5):
                step(8, length)
            measured = (time.perf_counter() - started) / 5
            work = step_work(training_step(), CONFIG, 8, length)
            rows.append((length, measured, *(seconds_on(card, *work) or (None, None))))
    return pd.DataFrame(rows, columns=["tokens", "seconds", "low", "high"])


def step_in_parts(device="cuda", times=20) -> dict:
    """Return the milliseconds of a step of 8 rows of 128 tokens, and of its parts."""
    options = StepOptions()
    model = new_model(CONFIG, options).to(device)
    optimizer = make_optimizer(model, options)
    ids = [[101, *range(2000, 2126), 102]] * 8 * (times + 1)
    rows = {"text": ["a"] * len(ids), "label": [0] * len(ids), "input_ids": ids}
    split = Dataset.from_dict(rows | {"length": [*map(len, ids)]})
    batches = [list(range(i, i + 8)) for i in range(0, len(ids), 8)]
    loader = iter(make_loader(split, batches, Recipe()))
    batch = batch_of(8, 128, device)

    def load():
        return {
            name: t.to(device, non_blocking=True) for name, t in next(loader).items()
        }

    def check(loss):
        check_finite(loss, model)

    def step(after_backward):
        loss = forward_backward(model, batch)
        after_backward(loss)
        optimizer.step()
        optimizer.zero_grad()

    def alone(loss):
        return None

    milliseconds = {
        "forward, backward, Adam": timed(partial(step, alone), times),
        "with the check": timed(partial(step, check), times),
        "with reading the loss": timed(partial(step, torch.Tensor.item), times),
        "a batch from the loader": timed(load, times),
    }
    loss = forward_backward(model, batch)
    return {"milliseconds": milliseconds, "check": calls_of(partial(check, loss))}


def timed(function, times: int) -> float:
    """Return the milliseconds of a call, the first one left out."""
    function()
    torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(times):
        function()
    torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - started) / times


def calls_of(function) -> dict:
    """Count the kernels that a function launches, and how often it waits."""
    with torch.profiler.profile() as profiler:
        function()
    counts = {event.key: event.count for event in profiler.key_averages()}
    names = ("cudaLaunchKernel", "cudaStreamSynchronize", "cudaMemcpyAsync")
    # CUDA 13 has __cudaLaunchKernel.
    return {
        name: sum(count for key, count in counts.items() if name in key)
        for name in names
    }


def cell_by_cell(path: Path = NOTEBOOK) -> pd.DataFrame:
    """Run a notebook; return the MiB that each cell holds at its end, and its peaks."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell, rows = InteractiveShell.instance(), []
    os.environ |= {"AGNEWS_PROFILE": "offline", "MPLBACKEND": "agg"}
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    with TemporaryDirectory(ignore_cleanup_errors=True) as folder, chdir(folder):
        for number, cell in enumerate(cells):
            if cell["cell_type"] != "code":
                continue
            forget()
            with capture_output():
                shell.run_cell("".join(cell["source"])).raise_error()
            peak = torch.cuda.max_memory_allocated() / MIB
            gc.collect()
            held = torch.cuda.memory_allocated() / MIB
            rows.append((number, held, peak, torch.cuda.memory_reserved() / MIB))
    shell.reset()
    InteractiveShell.clear_instance()
    return pd.DataFrame(rows, columns=["cell", "held", "peak", "reserved"])


def used_mib() -> float | None:
    """Return how much of the first card is in use, asked without a context."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        return float(subprocess.check_output(query, encoding="utf-8").split()[0])
    except (OSError, ValueError, IndexError, subprocess.SubprocessError):
        return None


def requests(entries: list[dict]) -> list[tuple[Allocation, bool]]:
    """Turn a snapshot of PyTorch's allocator into the events of a trace."""
    live, events = {}, []
    for entry in entries:
        if entry["action"] == "alloc":
            live[entry["addr"]] = Allocation(
                entry["size"], "snapshot", "", "forward", 1
            )
            events.append((live[entry["addr"]], True))
        elif entry["action"] == "free_completed" and entry["addr"] in live:
            events.append((live.pop(entry["addr"]), False))
    return events


def replayed() -> dict:
    """Return the MiB reserved by two steps: PyTorch's, and ours for its requests."""
    forget()
    torch.cuda.memory._record_memory_history(
        max_entries=10**6, stacks="python", context=None
    )
    try:
        with trainable(StepOptions()) as step:
            step(8, 256)
            step(8, 256)
        entries = torch.cuda.memory._snapshot()["device_traces"][
            torch.cuda.current_device()
        ]
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
    ours = replay(requests(entries), CachingAllocator()).max_reserved / MIB
    return {
        "reserved": torch.cuda.max_memory_reserved() / MIB,
        "replayed": ours,
        "entries": len(entries),
    }


def file_for(card_name: str) -> Path:
    """Return the file for the figures of a card."""
    plain = re.sub(r"[^a-z0-9]+", "-", card_name.lower().removeprefix("nvidia ")).strip(
        "-"
    )
    return Path(__file__).with_name(f"on_cuda-{plain}.json")


def main() -> int:
    if not torch.cuda.is_available():
        print(
            "benchmarks/on_cuda.py measures on a CUDA card, and this PyTorch finds "
            "none here.",
            file=sys.stderr,
        )
        return 2
    started, used = time.perf_counter(), used_mib()
    torch.manual_seed(0)
    print(describe_machine())
    card = this_card()
    figures = about(card) | {"context_mib": {"others": used, "and_ours": used_mib()}}
    figures["context_mib"]["outside_pytorch"] = context()
    path = file_for(card.name)
    for name, section in sections(card).items():
        began = time.perf_counter()
        found = {"not_run": "ten minutes would not do"}
        if began - started < LAST_START:
            found = outcome(section)
        is_table = isinstance(found, pd.DataFrame)
        figures[name] = found.to_dict("records") if is_table else found
        figures["seconds_of_sections"][name] = round(time.perf_counter() - began, 1)
        shown = found.round(3).to_string() if is_table else found
        print(f"\n{name}\n{shown}", flush=True)
        if name == "memory":
            figures["context_mib"]["after_steps"] = context()
        # Now: an error of the card may end all that follows.
        path.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(f"\nfigures in {path.name}: please read it before you send it")
    return 0


def about(card) -> dict:
    """Return what the figures are of."""
    return {
        "about": ABOUT,
        "card": card.name,
        "capability": card.capability,
        "torch": torch.__version__,
        "transformers": version_of("transformers"),
        "cuda": torch.version.cuda,
        "system": sys.platform,
        "seconds_of_sections": {},
    }


def sections(card) -> dict:
    """Return the functions that measure, by the name of their figures."""
    found = {
        "replayed": replayed,  # first: the history then has cuBLAS' workspaces, too
        "memory": lambda: compared(peaks, card),
        "in_parts": in_parts_anywhere,
        "resumed": lambda: resumed_in_each_precision(card),
        "step": step_in_parts,
        "seconds": lambda: seconds(card),
        "largest": largest,
        "notebook": cell_by_cell,
    }
    if card.vram_gib < 3.5:  # one with 4 GB says a little less
        del found["largest"]
    return found


def outcome(section):
    """Return what a section finds, or why it did not run; the next one may."""
    try:
        return section()
    except MiniUnavailable:
        return {"not_run": "the extra [offline] is not installed"}
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0]
        problem = f"{type(error).__name__}: {first_line}"
        return {"failed": problem.replace(str(Path.home()), "~")}


if __name__ == "__main__":
    sys.exit(main())
