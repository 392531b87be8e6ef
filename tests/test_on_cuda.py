"""The parts of `benchmarks/on_cuda.py` that need no card."""

import json
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import DistilBertConfig

from agnews_helpers import forward_backward
from benchmarks import on_cuda
from vram_budget import GTX_1650_TI, CachingAllocator, StepOptions, find_card, replay

SMALL = DistilBertConfig(
    dim=64, n_layers=2, n_heads=2, hidden_dim=128, num_labels=4, vocab_size=21_000
)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(on_cuda, "CONFIG", SMALL)


def test_without_a_card_it_says_so_and_ends_with_2(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert on_cuda.main() == 2
    assert "finds none here" in capsys.readouterr().err


@pytest.mark.slow
def test_every_case_is_compared():
    table = on_cuda.compared(lambda *case: (100.0, 200.0), GTX_1650_TI)
    assert (
        len(table) == 2 * len(on_cuda.SHAPES) + len(on_cuda.LEANER)
        and table["step"].is_unique
    )
    first = table.iloc[0]
    assert first["allocated_error"] == pytest.approx(
        first["predicted_allocated"] / 100 - 1
    )
    assert first["reserved_error"] == pytest.approx(
        first["predicted_reserved"] / 200 - 1
    )


@pytest.mark.parametrize(
    "options, micro_batch_size",
    [(StepOptions(), None), *on_cuda.LEANER, (StepOptions(attention="eager"), None)],
)
def test_a_step_is_really_taken(options, micro_batch_size):
    with on_cuda.trainable(options, micro_batch_size, "cpu") as step:
        losses = [step(8, 16) for _ in range(2)]
    assert all(0.5 < loss < 3 for loss in losses)


@pytest.mark.parametrize("largest", [0, 1, 7, 100, on_cuda.MOST_ROWS - 1])
def test_the_search_finds_the_largest(largest):
    assert on_cuda.largest_that_runs(lambda rows: rows <= largest) == largest


def test_a_snapshot_becomes_events():
    entries = [
        {"action": "segment_alloc", "addr": 0, "size": 2**21},
        {"action": "alloc", "addr": 0, "size": 600},
        {"action": "alloc", "addr": 1024, "size": 3 * 2**20},
        {"action": "free_requested", "addr": 0, "size": 600},
        {"action": "free_completed", "addr": 0, "size": 600},
        # Allocated before the history began.
        {"action": "free_completed", "addr": 4096, "size": 5},
        {"action": "alloc", "addr": 0, "size": 512},
    ]
    events = on_cuda.requests(entries)
    assert [(a.size, made) for a, made in events] == [
        (600, True),
        (3 * 2**20, True),
        (600, False),
        (512, True),
    ]
    assert replay(events, CachingAllocator()).allocated == 3 * 2**20 + 512


@pytest.fixture
def no_cuda(monkeypatch):
    """What asks CUDA for something does nothing; the rest runs on the CPU."""
    monkeypatch.setattr(on_cuda, "forget", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


@pytest.mark.parametrize("place", [p for p, module in on_cuda.PLACES.items() if module])
def test_gradients_in_parts_are_those_of_the_whole_step(no_cuda, place):
    """The CPU's memory really runs out, at this place, for parts of over four rows."""
    found = on_cuda.gradients_in_parts(place, "cpu")
    assert found["parts"] == [16, 8, 4, 4, 4, 4]
    assert found["largest_relative_difference"] < 1e-4


def test_what_a_failed_part_leaves_is_measured(no_cuda, monkeypatch):
    """With a stand-in for a full card: parts of over four rows run out of memory."""
    held = iter([100, 104, 132, 140, 140, 140])  # MiB, at the beginning of each part

    @contextmanager
    def little_memory():
        def step(model, batch, **options):
            if len(batch["labels"]) > 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return forward_backward(model, batch, **options)

        monkeypatch.setattr(on_cuda, "forward_backward", step)
        yield

    read = torch.cuda.memory_allocated
    monkeypatch.setattr(on_cuda, "little_memory", little_memory)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: next(held) * 2**20)
    found = on_cuda.gradients_in_parts("a full card", "cpu")
    monkeypatch.setattr(torch.cuda, "memory_allocated", read)
    assert found["parts"] == [16, 8, 4, 4, 4, 4]
    assert found["left_of_failed_parts_mib"] == 32


def test_the_parts_of_a_step_are_timed(no_cuda):
    found = on_cuda.step_in_parts("cpu", times=2)
    assert len(found["milliseconds"]) == 4 and min(found["milliseconds"].values()) > 0
    assert set(found["check"].values()) == {0}  # no kernel of CUDA is launched here


def test_a_notebook_is_run_cell_by_cell(no_cuda, tmp_path, monkeypatch):
    kinds = ["markdown", "code", "code"]
    sources = ["# words", "import os\nx = os.environ['AGNEWS_PROFILE']", "open(x, 'w')"]
    cells = [{"cell_type": k, "source": [s]} for k, s in zip(kinds, sources)]
    path = tmp_path / "small.ipynb"
    path.write_text(json.dumps({"cells": cells}), encoding="utf-8")
    monkeypatch.setenv("AGNEWS_PROFILE", "laptop")
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.chdir(tmp_path)
    table = on_cuda.cell_by_cell(path)
    assert table["cell"].tolist() == [1, 2] and table["peak"].tolist() == [0, 0]
    assert [p.name for p in tmp_path.iterdir()] == ["small.ipynb"]  # it ran elsewhere


def test_half_precision_is_resumed_where_the_card_is_good_for_it(monkeypatch):
    monkeypatch.setattr(on_cuda, "resumed", lambda precision: precision)
    turing = on_cuda.resumed_in_each_precision(GTX_1650_TI)
    assert turing["fp32"] == "fp32" and "no tensor cores" in turing["bf16"]["refused"]
    ampere = on_cuda.resumed_in_each_precision(find_card("A100"))
    assert ampere == {"fp32": "fp32", "bf16": "bf16"}


@pytest.mark.slow
def test_a_run_is_resumed():
    found = on_cuda.resumed("fp32", rows=100)
    assert found == {"steps": 12, "largest_difference": 0.0}


def test_the_file_has_the_name_of_the_card():
    assert (
        on_cuda.file_for("NVIDIA GeForce GTX 1650 Ti").name
        == "on_cuda-geforce-gtx-1650-ti.json"
    )


@pytest.fixture
def card(monkeypatch, tmp_path):
    """A card of which every section says the same."""
    fake = dict.fromkeys(on_cuda.sections(GTX_1650_TI), lambda: {"found": 1})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(on_cuda, "describe_machine", lambda: "a machine")
    monkeypatch.setattr(on_cuda, "this_card", lambda: GTX_1650_TI)
    monkeypatch.setattr(on_cuda, "context", lambda: 300.0)
    monkeypatch.setattr(on_cuda, "used_mib", lambda: 10.0)
    monkeypatch.setattr(on_cuda, "file_for", lambda name: tmp_path / "figures.json")
    monkeypatch.setattr(on_cuda, "sections", lambda card: fake)

    def figures():
        assert on_cuda.main() == 0
        return json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))

    return fake, figures


def test_a_section_that_fails_does_not_end_the_others(card):
    """And says nothing of the machine."""
    sections, figures = card

    def fails():
        raise RuntimeError(f"{Path.home()}/secret is full\nmore")

    sections["resumed"] = fails
    sections["seconds"] = lambda: pd.DataFrame([(64, 0.1)], columns=["tokens", "s"])
    found = figures()
    assert found["resumed"] == {"failed": "RuntimeError: ~/secret is full"}
    assert found["seconds"] == [{"tokens": 64, "s": 0.1}]
    assert found["notebook"] == {"found": 1} and next(iter(found)) == "about"
    assert found["context_mib"]["after_steps"] == 300.0


def test_it_ends_in_time(card, monkeypatch):
    """Each section takes three minutes: the fourth would begin after the eighth."""
    sections, figures = card
    clock = [0.0]
    monkeypatch.setattr(on_cuda.time, "perf_counter", lambda: clock[0])

    def slow():
        clock[0] += 180
        return {"found": 1}

    sections.update(dict.fromkeys(sections, slow))
    found = figures()
    done = [name for name in sections if "found" in found[name]]
    assert done == [*sections][:3] and "ten minutes" in found["notebook"]["not_run"]


def test_it_measures_all_that_is_not_known():
    names = on_cuda.sections(GTX_1650_TI)
    for name in ("context", *names):
        assert f"\n{name}: " in on_cuda.__doc__, name
