"""The parts of `benchmarks/on_cuda.py` that need no card."""

from contextlib import contextmanager

import pandas as pd
import pytest
import torch
from transformers import DistilBertConfig

from agnews_helpers import forward_backward
from benchmarks import on_cuda
from vram_budget import GTX_1650_TI, CachingAllocator, StepOptions, replay

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


@pytest.mark.parametrize("largest", [0, 1, 7, 300, on_cuda.MOST_ROWS - 1])
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


def test_gradients_in_parts_are_those_of_the_whole_step(monkeypatch):
    """With a stand-in for a full card: parts of over four rows run out of memory."""
    is_full = False

    @contextmanager
    def little_memory():
        nonlocal is_full
        is_full = True
        yield

    def step(model, batch, **options):
        if is_full and len(batch["labels"]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward_backward(model, batch, **options)

    monkeypatch.setattr(on_cuda, "forget", lambda: None)
    monkeypatch.setattr(on_cuda, "little_memory", little_memory)
    monkeypatch.setattr(on_cuda, "forward_backward", step)
    found = on_cuda.gradients_in_parts("cpu")
    assert found["limits"] == [[256, 8], [256, 4]]
    assert found["largest_relative_difference"] < 1e-4


def test_the_file_has_the_name_of_the_card():
    assert (
        on_cuda.file_for("NVIDIA GeForce GTX 1650 Ti").name
        == "on_cuda-geforce-gtx-1650-ti.json"
    )


@pytest.mark.slow
def test_a_section_that_fails_does_not_end_the_others(monkeypatch, tmp_path, capsys):
    card = GTX_1650_TI
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(on_cuda, "describe_machine", lambda: "a machine")
    monkeypatch.setattr(on_cuda, "this_card", lambda: card)
    monkeypatch.setattr(on_cuda, "context", lambda: 300.0)
    monkeypatch.setattr(on_cuda, "peaks", lambda *case: (100.0, 200.0))
    monkeypatch.setattr(on_cuda, "file_for", lambda name: tmp_path / "figures.json")
    monkeypatch.setattr(
        on_cuda,
        "largest",
        lambda: pd.DataFrame([(128, 40, 41)], columns=["tokens", "p", "f"]),
    )
    for name in ("gradients_in_parts", "resumed", "replayed"):
        monkeypatch.setattr(
            on_cuda,
            name,
            lambda: (_ for _ in ()).throw(RuntimeError("no such thing\nx")),
        )
    monkeypatch.setattr(
        on_cuda,
        "seconds",
        lambda card: pd.DataFrame([(64, 0.1)], columns=["tokens", "s"]),
    )
    assert on_cuda.main() == 0
    text = (tmp_path / "figures.json").read_text(encoding="utf-8")
    assert (
        '"failed": "no such thing"' in text
        and '"tokens": 64' in text
        and '"tokens": 128' in text
    )
