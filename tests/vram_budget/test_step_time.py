from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from benchmarks.vram_accuracy import plain_step
from vram_budget.cards import GTX_1650_TI, Card, find_card
from vram_budget.step_time import ADAM_BYTES, SHARE_OF_PEAK, batch_seconds, step_work
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
    found, _ = step_work(
        plain_step, CONFIG, rows, length, StepOptions(attention="eager")
    )
    assert found == pytest.approx(counter.get_total_flops(), rel=0.001)


def test_operations_are_those_of_the_formula():
    """6 per weight and token; 12 x width per pair of tokens, layer and row."""
    layers = 2 * (4 * 64 * 64 + 2 * 64 * 128)
    counted, _ = step_work(plain_step, CONFIG, 8, 64, StepOptions(attention="eager"))
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
    _, moved = step_work(plain_step, CONFIG, 8, 32, options)
    assert moved == pytest.approx(2 * sum(made) + 7 * 4 * parameters, rel=0.001)


def test_batches_of_any_length_follow_from_three():
    card = find_card("T4")

    def seconds(length):
        flops, moved = step_work(plain_step, CONFIG, 8, length)
        return flops / (SHARE_OF_PEAK * 8.1e12) + moved / 320e9

    lengths = [32] * 5 + [64] * 3
    found = batch_seconds(plain_step, CONFIG, 8, lengths, 512, card)
    assert found == pytest.approx(5 * seconds(32) + 3 * seconds(64), rel=0.01)


def test_a_card_of_unknown_speed_has_no_estimate():
    card = Card("unknown", 4.0, (7, 5), 0)
    assert GTX_1650_TI.fp32_tflops
    assert batch_seconds(plain_step, CONFIG, 8, [32], 512, card) is None
    for fact in ("fp32_tflops", "bandwidth"):
        half_known = replace(GTX_1650_TI, **{fact: None})
        assert batch_seconds(plain_step, CONFIG, 8, [32], 512, half_known) is None
