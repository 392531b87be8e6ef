import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig, DistilBertConfig, XLNetConfig

from benchmarks.vram_accuracy import accumulated_step, plain_step
from vram_budget import budget, reporting, tracing
from vram_budget.allocator import MIB, CachingAllocator, OutOfMemory, replay
from vram_budget.budget import TRACED_PARTS, timeline, usable_mib
from vram_budget.cards import GTX_1650_TI, Card, context_mib, find_card
from vram_budget.tracing import (
    TRACED_STEPS,
    StepOptions,
    Trace,
    scaled_trace,
    trace,
)

budget_table, largest_batch, memory_savings, step_budget = (
    partial(function, plain_step)
    for function in (
        budget.budget_table,
        budget.largest_batch,
        budget.memory_savings,
        budget.step_budget,
    )
)
PARTS = [*TRACED_PARTS, "cached", "CUDA context"]
DISTILBERT = DistilBertConfig(num_labels=4)
SMALL = DistilBertConfig(num_labels=4, dim=384, hidden_dim=1536, n_layers=2)


def in_parts(rows):
    """`accumulated_step`, which takes two rows at a time, whatever is asked for."""
    return accumulated_step


def card_with(gib):
    return Card("a card", gib, (7, 5), 0)


def test_what_a_system_leaves():
    worst, best = usable_mib(GTX_1650_TI, "windows")
    # as 15 reports of full 4 GB cards have it
    assert worst == pytest.approx(2.93 * 1024, abs=5)
    assert best == pytest.approx(3.48 * 1024, abs=5)
    assert usable_mib(GTX_1650_TI, "linux")[0] > worst
    # the report of a Linux desktop: 3.00 GiB reserved
    desktop, _ = usable_mib(GTX_1650_TI, "linux-desktop")
    assert desktop == pytest.approx(3.00 * 1024, abs=30)
    with pytest.raises(
        ValueError,
        match="system is 'dos'; it must be one of linux, linux-desktop, windows",
    ):
        usable_mib(GTX_1650_TI, "dos")


def test_the_parts_of_a_budget_add_up_to_what_is_reserved():
    found = step_budget(SMALL, 8, 128)
    assert list(found.parts) == PARTS
    assert sum(found.parts.values()) - found.parts["CUDA context"] == pytest.approx(
        found.reserved
    )
    assert (
        found.reserved
        >= found.allocated
        >= sum(found.parts[name] for name in PARTS[:6])
        > 0
    )
    assert "backward" in found.peak
    peak, _ = scaled_trace(plain_step, SMALL, 8, 128).peak()
    assert sum(found.parts[name] for name in TRACED_PARTS) * MIB == pytest.approx(peak)
    assert found.parts["CUDA context"] == max(context_mib(GTX_1650_TI))


def test_a_step_fits_if_it_does_once_the_cache_is_given_back():
    needed = step_budget(SMALL, 4, 512)
    verdicts = [
        step_budget(SMALL, 4, 512, card=replace(GTX_1650_TI, free_mib=mib)).verdict
        for mib in (needed.reserved, needed.reserved - 20, needed.allocated - 1)
    ]
    assert verdicts == ["fits", "fits", "spills"]


def test_the_claim_of_the_tutorial():
    """8 x 512: SDPA fits 4 GB everywhere, eager attention without a display only."""

    def verdicts(rows, attention, system):
        found = step_budget(
            DISTILBERT, rows, 512, StepOptions(attention=attention), system=system
        )
        return found.verdict, found.at_best

    for system in ("linux", "linux-desktop", "windows"):
        assert verdicts(8, "sdpa", system) == ("fits", "fits")
    assert verdicts(8, "eager", "windows") == ("spills", "fits")
    assert verdicts(8, "eager", "linux-desktop") == ("out of memory", "fits")
    assert verdicts(8, "eager", "linux") == ("fits", "fits")
    assert verdicts(16, "eager", "windows") == ("spills", "spills")
    assert verdicts(16, "eager", "linux") == ("out of memory", "out of memory")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("length", [33, 64])
@pytest.mark.slow
def test_other_numbers_of_rows_follow_from_one_trace(attention, length):
    options = StepOptions(attention=attention, scalable=True)
    for rows in (3, 8, 13):
        shapes = [(rows, length)] * TRACED_STEPS
        real = trace(plain_step, SMALL, shapes, options)
        scaled = scaled_trace(plain_step, SMALL, rows, length, options)
        assert [(a.op, a.size, made) for a, made in scaled.events] == [
            (a.op, a.size, made) for a, made in real.events
        ]
        assert scaled.flops == real.flops


def test_a_weight_that_the_prime_divides_does_not_scale():
    config = DistilBertConfig(
        num_labels=4, dim=32, hidden_dim=64, n_layers=1, n_heads=2, vocab_size=28_693
    )
    assert config.vocab_size % tracing.PRIME_ROWS == 0
    scaled = scaled_trace(plain_step, config, 8, 16, StepOptions(scalable=True))
    real = trace(plain_step, config, [(8, 16)] * TRACED_STEPS, StepOptions())
    assert [a.size for a, _ in scaled.events] == [a.size for a, _ in real.events]


def test_a_step_in_parts_is_traced_for_each_number_of_rows(monkeypatch):
    monkeypatch.setattr(tracing, "PRIME_ROWS", 7)  # or a failure takes minutes
    found = scaled_trace(accumulated_step, SMALL, 5, 16).events
    shapes = [(5, 16)] * TRACED_STEPS
    assert found == trace(accumulated_step, SMALL, shapes).events
    forward = [a for a, made in found if made and a.step == 3 and a.op == "embedding"]
    assert {a.size for a in forward} >= {rows * 16 * 384 * 4 for rows in (2, 1)}


def contrasted(model, batch, optimizer):
    """Each row against each other row: a product that grows with their square."""
    first = model.distilbert(batch["input_ids"], batch["attention_mask"])[0][:, 0]
    scores = torch.randn(1, device=first.device) * (first @ first.T)
    F.cross_entropy(scores, torch.arange(len(first), device=first.device)).backward()
    optimizer.step()
    optimizer.zero_grad()


def with_a_row_more(model, batch, optimizer):
    more = {name: torch.cat([value, value[:1]]) for name, value in batch.items()}
    plain_step(model, more, optimizer)


def in_halves(model, batch, optimizer):
    halves = zip(*(value.chunk(2) for value in batch.values()))
    for half in halves:
        model(**dict(zip(batch, half))).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("step", [contrasted, with_a_row_more, in_halves])
def test_each_number_of_rows_is_traced_by_itself(step):
    """Of such steps another number of rows says nothing."""
    for rows in (4, 9):
        real = trace(step, SMALL, [(rows, 16)] * TRACED_STEPS)
        found = budget.step_budget(step, SMALL, rows, 16)
        replayed = replay(real.events, CachingAllocator())
        assert found.allocated == replayed.max_allocated / MIB
    assert step is not contrasted or any(a.size == 9 * 9 * 4 for a, _ in real.events)


def test_a_message_has_the_rows_that_were_asked_for():
    def step(model, batch, optimizer):
        F.cross_entropy(model(batch["input_ids"]).logits, batch["labels"][1:])

    with pytest.raises(ValueError, match=r"batch_size \(8\).*batch_size \(7\)"):
        budget.step_budget(step, SMALL, 8, 16)


SHAPES = [(8, 32), (8, 64), (16, 64), (8, 128), (8, 256), (8, 512)]


@pytest.mark.parametrize("config", [DISTILBERT, BertConfig(num_labels=4)])
@pytest.mark.parametrize(
    "implementation, whole", [("fused", 16), ("foreach", 20)], ids=["fused", "foreach"]
)
def test_the_peak_as_a_formula(config, implementation, whole):
    """16 bytes a parameter, or 12 and the activations; the formula of the README.

    Adam's weights, gradients and two means are 16 bytes; 20 with PyTorch's default,
    which updates a copy. When the backward pass begins there is no gradient yet: 12.
    """
    sides = set()
    for rows, length in SHAPES:
        options = StepOptions(implementation=implementation)
        found = scaled_trace(plain_step, config, rows, length, options)
        made = [a for a, is_made in found.events if is_made]
        parameters = sum(a.size for a in made if a.phase == "load") / 4
        activations = sum(
            a.size for a in made if a.step == 2 and a.category == "activations"
        )
        at_the_end, at_the_start = whole * parameters, 12 * parameters + activations
        sides.add(at_the_end > at_the_start)
        peak, place = found.peak()
        told = max(at_the_end, at_the_start) + 16.25 * MIB  # and cuBLAS' workspaces
        assert 0.97 * peak < told < 1.001 * peak, (rows, length)
        gradients = sum(
            a.size if is_made else -a.size
            for a, is_made in found.events[: place + 1]
            if a.category == "gradients"
        )
        is_whole = gradients == pytest.approx(4 * parameters, rel=0.001)
        assert is_whole == (at_the_end > at_the_start)
    assert sides == {True, False}


def test_the_largest_batch_is_the_last_that_runs():
    card = card_with(1.5)
    worst, best = largest_batch(SMALL, 64, card=card, system="linux")
    capacity = int(usable_mib(card, "linux")[0] * MIB)
    assert 0 < worst <= best

    def run(rows):
        replay(
            trace(plain_step, SMALL, [(rows, 64)] * TRACED_STEPS).events,
            CachingAllocator(capacity),
        )

    run(worst)
    with pytest.raises(OutOfMemory):
        run(worst + 1)


@pytest.mark.parametrize("gib", [1.0, 1.3, 2.0])
def test_the_search_is_the_same_with_one_trace_for_all_rows(gib):
    both = [
        largest_batch(SMALL, 256, StepOptions(scalable=scalable), card_with(gib))
        for scalable in (False, True)
    ]
    assert both[0] == both[1]


@pytest.mark.parametrize("most", [4, 5])
def test_the_search_stops_at_the_most_rows(monkeypatch, most):
    monkeypatch.setattr(budget, "MOST_ROWS", most)
    assert largest_batch(SMALL, 8, card=card_with(16.0)) == (most, most)


def test_the_capability_is_the_cards():
    h100 = Card("H100", 80, (9, 0), 132)
    found = step_budget(SMALL, 8, 32, StepOptions(), h100, "linux")
    assert found.parts["workspaces"] == 2 * 32
    older = StepOptions(capability=(8, 0))
    found = step_budget(SMALL, 8, 32, older, h100, "linux")
    assert found.parts["workspaces"] == 2 * 8.125
    assert step_budget(SMALL, 8, 32).parts["workspaces"] == 2 * 8.125
    # 32 MiB of a thread decide on the batch, too
    cards = (Card("a card", 80, (major, 0), 0, free_mib=1100) for major in (8, 9))
    fewer = [largest_batch(SMALL, 256, card=card)[0] for card in cards]
    assert fewer[0] > fewer[1] > 0


def test_no_row_fits_a_card_that_is_too_small():
    assert largest_batch(DISTILBERT, 64, card=card_with(1.0), system="windows")[0] == 0


def test_the_table_has_a_row_for_each_case():
    table = budget_table(SMALL, lengths=(8, 256))
    assert table.index.tolist() == [
        ("sdpa", 8),
        ("sdpa", 256),
        ("eager", 8),
        ("eager", 256),
    ]
    assert table["total"].tolist() == pytest.approx(table[PARTS].sum(axis=1).tolist())
    assert set(table["verdict"]) == {"fits"}
    eager = step_budget(SMALL, 8, 256, StepOptions(attention="eager"))
    assert table.loc[("eager", 256), PARTS].to_dict() == eager.parts
    assert table.loc[("sdpa", 256), PARTS].to_dict() != eager.parts


def test_a_batch_without_rows_is_refused():
    for refused in (
        lambda: budget_table(SMALL, 0, lengths=(8,)),
        lambda: step_budget(SMALL, 0, 8),
    ):
        with pytest.raises(ValueError, match="A batch of 0 rows"):
            refused()


@pytest.mark.slow
def test_each_change_saves_memory():
    table = memory_savings(SMALL, 8, 256, in_parts=in_parts)
    saved = table["saved"]
    assert saved.iloc[0] == 0 and saved["SDPA instead of eager attention"] > 20
    assert saved["two parts of 4 rows"] > 20
    assert saved["gradient checkpointing"] > 20
    assert set(table["verdict"]) == {"fits"}
    # fp16 is offered for no card, not even for one whose tensor cores multiply it
    on_t4 = memory_savings(SMALL, 8, 256, card=find_card("T4"), in_parts=in_parts)
    assert list(on_t4.index) == list(table.index)
    assert not any("autocast" in change for change in table.index)


@pytest.mark.slow
def test_each_change_has_a_verdict_of_its_own():
    card = find_card("RTX 3050 Laptop")
    table = memory_savings(DISTILBERT, 16, 512, StepOptions(), card, in_parts=in_parts)
    assert table["verdict"]["as it is"] == "spills"
    assert table["verdict"]["two parts of 8 rows"] == "fits"
    assert table["verdict"]["bf16 autocast"] in ("fits", "spills")


@pytest.mark.slow
def test_a_change_of_your_own():
    others = {"half the tokens": {"length": 128}, "too long": {"length": 1000}}
    table = memory_savings(SMALL, 8, 256, others=others)
    half = step_budget(SMALL, 8, 128, budget.BASELINE)
    assert table["reserved"]["half the tokens"] == half.reserved
    assert table["verdict"]["too long"].startswith("A batch of rows of 1000 tokens")
    assert not any("parts" in change for change in table.index)


def test_a_batch_of_one_row_has_no_parts():
    table = memory_savings(SMALL, 1, 8, in_parts=in_parts)
    assert not any("parts" in change for change in table.index)


def test_the_card_of_the_changes_is_looked_at():
    with pytest.raises(ValueError, match="card is 'T4', a str"):
        memory_savings(SMALL, 8, 8, card="T4")


def test_half_of_an_odd_batch_is_the_larger_half():
    asked = []

    def noted(rows):
        asked.append(rows)
        return accumulated_step

    table = memory_savings(SMALL, 5, 16, in_parts=noted)
    assert asked == [3] and "two parts of 3 rows" in table.index


def test_a_change_that_a_model_does_not_support_has_the_reason():
    config = XLNetConfig(n_layer=1, d_model=64, n_head=4, d_inner=128)
    table = memory_savings(config, 4, 64)
    unsupported = table.loc["gradient checkpointing"]
    assert unsupported["verdict"].startswith("XLNetForSequence")
    assert math.isnan(unsupported["reserved"])
    others = table.drop("gradient checkpointing")
    assert others["reserved"].notna().all()


@pytest.mark.parametrize(
    "options, changes",
    [
        ({}, ["gradient checkpointing"]),
        ({"checkpointing": True}, []),
        (
            {"optimizer": "sgd", "implementation": "foreach"},
            ["fused instead of foreach SGD", "gradient checkpointing"],
        ),
        (
            {"optimizer": "adamw", "implementation": "single", "attention": "eager"},
            [
                "SDPA instead of eager attention",
                "fused instead of single AdamW",
                "gradient checkpointing",
            ],
        ),
        (
            {"optimizer": "adafactor", "implementation": "foreach"},
            ["gradient checkpointing"],
        ),
    ],
)
def test_what_is_so_already_is_no_change(options, changes):
    table = memory_savings(SMALL, 2, 16, StepOptions(**options))
    assert list(table.index) == ["as it is", *changes]
    parts = memory_savings(
        SMALL, 2, 16, StepOptions(**options), in_parts=lambda rows: plain_step
    )  # which is the step already
    assert list(parts.index) == list(table.index)


def test_what_is_free_on_this_card_is_no_estimate(capsys):
    reporting.report(plain_step, SMALL, 2, 16)
    assert "MiB for PyTorch (an estimate)\n" in capsys.readouterr().out
    card = replace(GTX_1650_TI, free_mib=3000.0)
    found = reporting.report(plain_step, SMALL, 2, 16, card=card)
    assert "3,000 to 3,000 MiB for PyTorch\n" in capsys.readouterr().out
    assert found["largest_batch"] == {}  # each number of rows would be traced
    scalable = StepOptions(scalable=True)
    found = reporting.report(plain_step, SMALL, 2, 16, scalable, card)
    assert [*found["largest_batch"]] == [16]


def test_a_card_that_is_here_has_no_range():
    card = replace(GTX_1650_TI, free_mib=3000.0)
    assert usable_mib(card, "windows") == (3000, 3000)
    assert step_budget(SMALL, 8, 128, card=card).verdict == "fits"


def test_the_timeline_climbs_and_falls():
    options = StepOptions(implementation="foreach")
    events = trace(plain_step, SMALL, [(8, 128)] * 3, options).events
    table = timeline(Trace(events))
    before = [a.step for a, _ in events].index(3)
    assert len(table) == len(events) - before  # releases of older tensors, too
    total = table.drop(columns="phase").sum(axis=1)
    assert [phase for phase in dict.fromkeys(table["phase"])] == [
        "forward",
        "backward",
        "optimizer",
    ]
    assert total.max() > total.iloc[0] + 10 and total.iloc[-1] == pytest.approx(
        total.iloc[0], abs=1
    )
    with pytest.raises(ValueError, match="step is 9"):
        timeline(Trace(events), step=9)
    forward = table[table["phase"] == "forward"]["activations"]
    assert forward.iloc[-1] > 0.9 * table["activations"].max()
    assert table["gradients"].iloc[-1] == 0 < table["gradients"].max()
