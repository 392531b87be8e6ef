import json
import re
from dataclasses import replace

import pytest
from transformers import DistilBertConfig

from agnews_helpers import Recipe, budgeting, epoch_batches, training
from agnews_helpers.budgeting import (
    TOKENS,
    config_for,
    full_run_hours,
    training_step,
)
from agnews_helpers.cli import main
from agnews_helpers.plumbing.mini import mini_config
from agnews_helpers.recipe import HUB_MODEL
from vram_budget.cards import GTX_1650_TI, Card, find_card
from vram_budget.step_time import batch_seconds
from vram_budget.tracing import trace

DISTILBERT = DistilBertConfig(num_labels=4)
SMALL = DistilBertConfig(num_labels=4, dim=64, hidden_dim=128, n_layers=2, n_heads=4)
SLOW = replace(GTX_1650_TI, fp32_tflops=0.01)  # not limited by what starts a kernel


def told(found):
    """Everything that a trace says, without the identity of its allocations."""
    return [
        (a.size, a.op, a.module, a.category, a.phase, a.step, made)
        for a, made in found.events
    ]


def loop_step(model, batch, optimizer):
    """The lines of `train` that use memory, in their order."""
    loss = training.forward_backward(model, batch)
    optimizer.step()
    optimizer.zero_grad()
    return loss


def test_the_traced_step_is_the_loops():
    shapes = [(8, 64)] * 2
    found = told(trace(training_step(), SMALL, shapes))
    assert found == told(trace(loop_step, SMALL, shapes))


def test_a_micro_batch_size_takes_the_batch_in_parts():
    found = trace(training_step(3), SMALL, [(8, 64)]).events
    phases = [a.phase for a, made in found if made and a.step == 1]
    turns = [phase for i, phase in enumerate(phases) if phases[i - 1 : i] != [phase]]
    assert turns == ["forward", "backward"] * 3 + ["optimizer"]
    assert training_step(3) is training_step(3)  # or no trace would be cached


def test_the_options_are_the_recipes(monkeypatch):
    asked = []

    def report(step, config, rows, length, options, *_, **__):
        asked.append(options)
        return {"verdict": "fits"}

    monkeypatch.setattr(budgeting, "report", report)
    recipe = Recipe(micro_batch_size=2, gradient_checkpointing=True, precision="bf16")
    budgeting.card_report(recipe, find_card("A100"), "linux")
    budgeting.card_report(Recipe(), GTX_1650_TI, "linux")
    ours, usual = asked
    assert (ours.attention, ours.precision) == ("sdpa", "bf16")
    assert ours.capability == (8, 0) and ours.checkpointing
    assert not ours.scalable and usual.scalable


def test_the_second_batch_has_the_peak_of_the_whole_epoch():
    lengths = [*TOKENS] * 8 + [358]
    batches = epoch_batches(lengths, Recipe(), 1)
    shapes = [(len(batch), max(lengths[i] for i in batch)) for batch in batches]
    assert shapes[1] == (8, 358)

    def peak(*shapes):
        return trace(training_step(), DISTILBERT, shapes).peak()[0]

    highest = peak(*shapes[:2])
    assert peak(*shapes) == highest > peak(shapes[0])
    # Had it been the first batch, less memory would have sufficed until the second.
    assert highest > 1.4 * peak(shapes[1])


def test_a_folder_is_enough(tiny):
    assert trace(training_step(), config_for(str(tiny)), [(8, 16)]).peak()[0] > 0


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not hold a model that can be re"):
        config_for(str(tmp_path))


def test_the_names_of_a_recipe_need_no_hub(monkeypatch):
    monkeypatch.setattr(budgeting, "pretrained", None)
    ours = DISTILBERT.to_dict()
    assert config_for(HUB_MODEL).to_dict() == config_for().to_dict() == ours
    assert config_for("mini").to_dict() == mini_config(num_labels=4).to_dict()


def test_lengths_are_those_of_ag_news():
    assert len(TOKENS) == 20 and abs(sum(TOKENS) / 20 - 53.4) < 0.1
    recipe = Recipe(max_length=64)
    cut = full_run_hours(SMALL, [min(n, 64) for n in TOKENS], recipe, SLOW)
    assert full_run_hours(SMALL, TOKENS, recipe, SLOW) == cut


def test_hours_on_a_card():
    config, lengths = DistilBertConfig(num_labels=4), [53] * 800
    (low, high), (letter, _) = (
        full_run_hours(config, lengths, Recipe(padding=padding))
        for padding in ("longest", "max_length")
    )
    assert 0.8 < low < 1.3 and 1.6 * low < high < 2.2 * low and letter > 6 * low
    halves = full_run_hours(config, lengths, Recipe(epochs=2))
    assert halves == pytest.approx((low / 2, high / 2))
    assert full_run_hours(config, lengths, Recipe(), find_card("T4"))[0] < low
    unknown = Card("unknown", 4.0, (7, 5), 0)
    assert full_run_hours(config, lengths, Recipe(), unknown) is None


def test_an_epoch_is_the_sum_of_its_batches():
    lengths = [32] * 40 + [64] * 24

    def seconds(tokens):
        return batch_seconds(training_step(), SMALL, 8, [tokens], 512, SLOW)[0]

    hours, _ = full_run_hours(SMALL, lengths, Recipe(epochs=1), SLOW, rows=64)
    assert hours * 3600 == pytest.approx(5 * seconds(32) + 3 * seconds(64))
    padded = Recipe(epochs=1, padding="max_length")
    hours, _ = full_run_hours(SMALL, lengths, padded, SLOW, rows=64)
    assert hours * 3600 == pytest.approx(8 * seconds(512))


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    file = tmp_path / "budget.json"
    assert (
        main(
            [
                "budget",
                "--model",
                "mini",
                "--card",
                "T4",
                "--system",
                "linux",
                "--max-length",
                "128",
                "--json",
                str(file),
            ]
        )
        == 0
    )
    text, figures = (
        capsys.readouterr().out,
        json.loads(file.read_text(encoding="utf-8")),
    )
    assert (
        text.startswith("verdict    it fits\n")
        and "step       8 rows x 128 tokens, fp32\n" in text
        and "next       agnews train with these flags\n" in text
        and "card       NVIDIA T4, 14.75 GiB; the manufacturer's published" in text
        and "largest batch, by tokens per row" in text
    )
    assert (
        figures["verdict"] == "fits"
        and figures["max_length"] == 128
        and figures["batch_size"] == 8
    )
    assert figures["reserved"] == pytest.approx(
        sum(figures["parts"].values()) - figures["parts"]["CUDA context"]
    )
    low, high = (f"{figures['hours'][name]:.1f}" for name in ("low", "high"))
    assert f"4 epochs: {low} to {high} hours (an estimate)" in text
    assert {length: len(pair) for length, pair in figures["largest_batch"].items()} == {
        "64": 2,
        "128": 2,
    }


@pytest.mark.slow
def test_the_command_says_what_would_fit(capsys):
    arguments = [
        "--batch-size",
        "16",
        "--epochs",
        "2",
        "--card",
        "1650ti",
        "--system",
        "windows",
    ]
    assert main(["budget", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("verdict    it spills: no error, but slow, for Windows")
    assert lines[0].endswith("; if windows takes little of the card, it fits")
    assert lines[-1].startswith("next       a change above that fits (--micro-batch-si")
    assert re.match(r"time       2 epochs: \d\.\d to \d\.\d hours", lines[-2])
    assert any("two parts of 8 rows" in line and " fits" in line for line in lines)


@pytest.mark.slow
def test_the_precision_is_the_one_that_was_asked_for(capsys):
    needed = {}
    for asked in ("fp32", "bf16"):
        command = [
            "budget",
            "--model",
            "mini",
            "--card",
            "RTX 3090",
            "--system",
            "linux",
        ]
        assert main([*command, "--precision", asked]) == 0
        text = capsys.readouterr().out
        assert f"{asked}\n" in text
        needed[asked] = int(re.search("needs +([0-9,]+)", text)[1].replace(",", ""))
    assert needed["bf16"] < needed["fp32"] - 50


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--card", "Voodoo"], "No card 'Voodoo'"),
        (
            ["--card", "RTX 3050 Laptp"],
            "the nearest are NVIDIA GeForce RTX 3050 Laptop 4GB",
        ),
        (
            ["--card", "1650ti", "--precision", "bf16"],
            "has no tensor cores for bf16. It is emulated, and how",
        ),
        (["--max-length", "600"], "A batch of rows of 600 tokens"),
        (["--card", ""], "No card ''"),
        (["--model", "no/such/model"], "There is no folder 'no/such/model'"),
        (
            ["--model", "no/such-model"],
            "'no/such-model' (there is no such folder) cannot be loaded",
        ),
    ],
)
def test_bad_input_of_the_command(arguments, message, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["budget", *arguments]) == 2
    assert message in capsys.readouterr().err
