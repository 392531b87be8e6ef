from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from benchmarks import step_time as compared
from benchmarks.published_speeds import PRODUCTS, RUNS
from benchmarks.vram_accuracy import plain_step
from vram_budget.cards import GTX_1650_TI, Card, find_card
from vram_budget.step_time import (
    ADAM_BYTES,
    FULL_SHARE,
    LIMITED_SHARE,
    batch_seconds,
    seconds_on,
    step_work,
)
from vram_budget.tracing import StepOptions, trace

CONFIG = DistilBertConfig(
    dim=64,
    n_layers=2,
    n_heads=2,
    hidden_dim=128,
    num_labels=4,
    attn_implementation="eager",
)


@pytest.mark.parametrize("rows, length", [(2, 16), (8, 64), (3, 128)])
def test_operations_are_those_that_pytorch_counts(rows, length):
    model = DistilBertForSequenceClassification(CONFIG)
    with FlopCounterMode(display=False) as counter:
        model(
            input_ids=torch.ones(rows, length, dtype=torch.long),
            labels=torch.zeros(rows, dtype=torch.long),
        ).loss.backward()
    found, _, _ = step_work(
        plain_step, CONFIG, rows, length, StepOptions(attention="eager")
    )
    assert found == pytest.approx(counter.get_total_flops(), rel=0.001)


def test_operations_are_those_of_the_formula():
    """6 per weight and token; 12 x width per pair of tokens, layer and row."""
    layers = 2 * (4 * 64 * 64 + 2 * 64 * 128)
    counted, _, _ = step_work(plain_step, CONFIG, 8, 64, StepOptions(attention="eager"))
    head = 6 * 8 * (64 * 64 + 64 * 4)  # for one token a row
    assert counted == pytest.approx(
        6 * layers * 8 * 64 + 12 * 64 * 2 * 8 * 64**2 + head, rel=0.02
    )


def test_traffic_has_adam_and_grows_with_the_tokens():
    parameters = sum(
        p.numel() for p in DistilBertForSequenceClassification(CONFIG).parameters()
    )
    short, middle, long = (
        step_work(plain_step, CONFIG, 8, length)[1] for length in (16, 32, 64)
    )
    assert short > ADAM_BYTES * parameters
    assert (long - middle) / (middle - short) == pytest.approx(
        2, abs=0.3
    )  # attention's own share grows faster
    assert (
        step_work(plain_step, CONFIG, 8, 64, StepOptions(attention="eager"))[1] > long
    )


def test_traffic_is_each_tensor_written_and_read_once():
    """And Adam's seven numbers of each parameter; not what `foreach` makes for it."""
    model = DistilBertForSequenceClassification(CONFIG)
    parameters = sum(p.numel() for p in model.parameters())
    options = StepOptions(implementation="foreach")
    events = trace(plain_step, CONFIG, [(8, 32)] * 3, options).events
    made = [
        a.size
        for a, is_made in events
        if is_made and a.step == 3 and a.phase in ("forward", "backward")
    ]
    _, moved, tensors = step_work(plain_step, CONFIG, 8, 32, options)
    assert moved == pytest.approx(2 * sum(made) + 7 * 4 * parameters, rel=0.001)
    assert len(made) - 2 <= tensors <= len(made)  # without the workspaces


def test_what_has_no_gradient_is_not_moved_by_adam():
    def forward_pass(model, batch, optimizer):
        return model(**batch).loss

    def frozen_step(model, batch, optimizer):
        model.base_model.requires_grad_(False)
        plain_step(model, batch, optimizer)

    model = DistilBertForSequenceClassification(CONFIG)
    encoder = sum(p.numel() for p in model.base_model.parameters())
    inference, frozen, whole = (
        step_work(step, CONFIG, 1, 8)[1]
        for step in (forward_pass, frozen_step, plain_step)
    )
    assert inference < frozen < ADAM_BYTES * encoder < whole


def test_a_card_is_slow_at_worst_and_fast_at_best():
    """A T4 is limited by its power, 8.14 TFLOP/s and 320 GB/s; a V100 is not."""
    best, worst = seconds_on(find_card("T4"), 8.14e12, 320e9, 0)
    assert best == pytest.approx(1 / 0.7 + 1 / 0.9, rel=0.001)
    assert worst == pytest.approx(1 / 0.4 + 1 / 0.5, rel=0.001)
    best, worst = seconds_on(find_card("V100"), 15.67e12, 0, 0)
    assert best == pytest.approx(1 / 0.85, rel=0.001)
    assert worst == pytest.approx(1 / 0.5, rel=0.001)


def test_half_of_the_lanes_of_newer_cards_have_other_work():
    desktop, server = find_card("RTX 3090"), find_card("A100")
    assert seconds_on(desktop, 35.58e12, 0, 0)[0] == pytest.approx(1 / 0.7, rel=0.001)
    assert seconds_on(server, 19.49e12, 0, 0)[0] == pytest.approx(1 / 0.85, rel=0.001)


def test_no_card_is_faster_than_python():
    """364 tensors of a small batch of DistilBERT, on the fastest card of the list."""
    best, worst = seconds_on(find_card("RTX 4090"), 1e9, 1e9, 364)
    assert best == pytest.approx(364 * 15e-6) and worst == pytest.approx(364 * 30e-6)


def test_batches_of_any_length_follow_from_three():
    # One that is not limited by what starts a kernel.
    card = replace(find_card("GTX 1080 Ti"), fp32_tflops=0.01)

    def seconds(length):
        return seconds_on(card, *step_work(plain_step, CONFIG, 8, length))

    lengths = [32] * 5 + [64] * 3
    found = batch_seconds(plain_step, CONFIG, 8, lengths, 512, card)
    for one, short, long in zip(found, seconds(32), seconds(64)):
        assert one == pytest.approx(5 * short + 3 * long, rel=0.01)


@pytest.mark.parametrize("lengths, most", [([8], 2), ([600], 512), ([0, 8], 512)])
def test_lengths_beyond_the_traced_ones_are_refused(lengths, most):
    with pytest.raises(ValueError, match="each length must be from 1 to it"):
        batch_seconds(plain_step, CONFIG, 8, lengths, most)
    assert batch_seconds(plain_step, CONFIG, 8, [1, 3], 3)


@pytest.mark.parametrize("fact", ["fp32_tflops", "bandwidth"])
def test_a_card_of_unknown_speed_has_no_estimate(fact):
    card = replace(GTX_1650_TI, **{fact: None})
    assert seconds_on(card, 1e12, 1e9, 1) is None
    assert seconds_on(GTX_1650_TI, 1e12, 1e9, 1)
    assert batch_seconds(plain_step, CONFIG, 8, [32], 512, card) is None
    unknown = Card("unknown", 4.0, (7, 5), 0)
    assert batch_seconds(plain_step, CONFIG, 8, [32], 512, unknown) is None


# Against what others published


def test_most_published_products_are_within_their_shares():
    """Of 1024 and 2048 rows, as the products of a step of DistilBERT are."""
    shares = compared.product_shares()[[1024, 2048]]
    newer = [
        name
        for name in PRODUCTS
        if find_card(name).power_limited or find_card(name).capability >= (8, 6)
    ]
    for some, (low, high) in (
        (shares.loc[newer], LIMITED_SHARE),
        (shares.drop(newer), FULL_SHARE),
    ):
        inside = (some.round(2) >= low) & (some.round(2) <= high)
        assert inside.to_numpy().mean() > 0.8


def held_against(runs):
    table = compared.published_runs(runs)
    assert (table["high"] < 2.2 * table["low"]).all()
    return table


def test_a_published_run_of_a_limited_card_is_within_the_range():
    runs = [run for run in RUNS if run.card == "T4"]
    assert held_against(runs)["inside"].all()


@pytest.mark.slow
def test_published_runs_are_within_the_range():
    """At least eight of ten, and as many of those that nothing was chosen on."""
    fp32 = [run for run in RUNS if run.use != "TF32"]
    assert len(fp32) >= 8 and len({run.card for run in fp32}) >= 5
    table = held_against(fp32)
    for use in ("chosen on", "check"):
        assert table[table["use"] == use]["inside"].mean() >= 0.8
