"""The estimate of a step's time: operations counted right, traffic plausible, hours for the cards we know."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from agnews_helpers import GTX_1650_TI, Recipe, StepOptions, find_card
from agnews_helpers.hardware import Card
from agnews_helpers.vram.time import (
    ADAM_BYTES,
    epoch_seconds,
    full_run_hours,
    step_work,
)

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
    found, _ = step_work(CONFIG, rows, length, StepOptions(attention="eager"))
    assert found == pytest.approx(counter.get_total_flops(), rel=0.001)


def test_operations_are_those_of_the_formula():
    """6 for each weight of a linear layer and token, 12 x width for each pair of tokens, layer and row."""
    layers = 2 * (4 * 64 * 64 + 2 * 64 * 128)
    counted, _ = step_work(CONFIG, 8, 64, StepOptions(attention="eager"))
    head = 6 * 8 * (64 * 64 + 64 * 4)  # for one token a row
    assert counted == pytest.approx(
        6 * layers * 8 * 64 + 12 * 64 * 2 * 8 * 64**2 + head, rel=0.02
    )


def test_traffic_has_adam_and_grows_with_the_tokens():
    parameters = sum(
        p.numel() for p in DistilBertForSequenceClassification(CONFIG).parameters()
    )
    short, middle, long = (step_work(CONFIG, 8, length)[1] for length in (16, 32, 64))
    assert short > ADAM_BYTES * parameters
    assert (long - middle) / (middle - short) == pytest.approx(
        2, abs=0.3
    )  # attention's own share grows faster
    assert step_work(CONFIG, 8, 64, StepOptions(attention="eager"))[1] > long


def test_an_epoch_is_the_sum_of_its_batches():
    found = [step_work(CONFIG, 8, length) for length in (32, 64)]
    work = [flops / 1e12 + moved / 1e11 for flops, moved in found]
    lengths = [32] * 40 + [64] * 24
    ordered = Recipe()
    assert epoch_seconds(CONFIG, lengths, ordered, 1e12, 1e11) == pytest.approx(
        5 * work[0] + 3 * work[1], rel=0.01
    )
    assert epoch_seconds(
        CONFIG, lengths, ordered.replace(padding="max_length"), 1e12, 1e11
    ) > 3 * (5 * work[0] + 3 * work[1])


def test_hours_on_a_card():
    config, lengths = DistilBertConfig(num_labels=4), [53] * 800
    ours, letter = (
        full_run_hours(config, lengths, Recipe(padding=padding))
        for padding in ("longest", "max_length")
    )
    assert 0.8 < ours < 2 and letter > 6 * ours
    assert full_run_hours(config, lengths, Recipe(epochs=2)) == pytest.approx(ours / 2)
    assert full_run_hours(config, lengths, Recipe(), find_card("T4")) < ours
    assert (
        GTX_1650_TI.fp32_tflops
        and full_run_hours(config, lengths, Recipe(), Card("unknown", 4.0, (7, 5), 0))
        is None
    )
