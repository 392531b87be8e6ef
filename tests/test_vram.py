import json
import math
import re
from dataclasses import replace

import pytest
from transformers import DistilBertConfig, XLNetConfig

from agnews_helpers import (
    GTX_1650_TI,
    Recipe,
    StepOptions,
    budget_table,
    find_card,
    largest_batch,
    step_budget,
    trace_steps,
)
from agnews_helpers.cli import main
from agnews_helpers.hardware import CARDS, Card
from agnews_helpers.vram import report
from agnews_helpers.vram.allocator import MIB, CachingAllocator, OutOfMemory, replay
from agnews_helpers.vram.budget import (
    TRACED_PARTS,
    memory_savings,
    timeline,
    usable_mib,
)
from agnews_helpers.vram.trace import TRACED_STEPS, scaled_trace

PARTS = [*TRACED_PARTS, "cached", "CUDA context"]
DISTILBERT = DistilBertConfig(num_labels=4)
SMALL = DistilBertConfig(num_labels=4, dim=384, hidden_dim=1536, n_layers=2)


def card_with(gib):
    return Card("a card", gib, (7, 5), 0)


def test_what_a_system_leaves():
    worst, best = usable_mib(GTX_1650_TI, "windows")
    assert worst == pytest.approx(2.99 * 1024, abs=1) and best == pytest.approx(
        3.47 * 1024, abs=1
    )  # as reported
    assert usable_mib(GTX_1650_TI, "linux")[0] > worst
    with pytest.raises(
        ValueError,
        match="system is 'dos'; it must be one of linux, linux-desktop, windows",
    ):
        usable_mib(GTX_1650_TI, "dos")


def test_the_parts_of_a_budget_add_up_to_what_is_reserved():
    budget = step_budget(SMALL, 8, 128)
    assert list(budget.parts) == PARTS
    assert sum(budget.parts.values()) - budget.parts["CUDA context"] == pytest.approx(
        budget.reserved
    )
    assert (
        budget.reserved
        >= budget.allocated
        >= sum(budget.parts[name] for name in PARTS[:6])
        > 0
    )
    assert "backward" in budget.peak


def test_the_claim_of_the_tutorial():
    """8 x 512: SDPA fits 4 GB everywhere; eager attention spills where Windows takes much, and may fit."""

    def verdicts(rows, attention, system):
        budget = step_budget(
            DISTILBERT, rows, 512, StepOptions(attention=attention), system=system
        )
        return budget.verdict, budget.at_best

    for system in ("linux", "linux-desktop", "windows"):
        assert verdicts(8, "sdpa", system) == ("fits", "fits")
    assert verdicts(8, "eager", "windows") == ("spills", "fits")
    assert verdicts(8, "eager", "linux") == ("out of memory", "fits")
    assert verdicts(16, "eager", "windows") == ("spills", "spills")
    assert verdicts(16, "eager", "linux") == ("out of memory", "out of memory")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("length", [33, 64])
def test_other_numbers_of_rows_follow_from_one_trace(attention, length):
    options = StepOptions(attention=attention)
    for rows in (3, 8, 13):
        real = trace_steps(SMALL, [(rows, length)] * TRACED_STEPS, options).events
        scaled = scaled_trace(SMALL, rows, length, options).events
        assert [(a.op, a.size, made) for a, made in scaled] == [
            (a.op, a.size, made) for a, made in real
        ]


def test_the_largest_batch_is_the_last_that_runs():
    card = card_with(1.5)
    worst, best = largest_batch(SMALL, 64, card=card, system="linux")
    capacity = int(usable_mib(card, "linux")[0] * MIB)
    assert 0 < worst <= best

    def run(rows):
        replay(
            trace_steps(SMALL, [(rows, 64)] * TRACED_STEPS).events,
            CachingAllocator(capacity),
        )

    run(worst)
    with pytest.raises(OutOfMemory):
        run(worst + 1)


def test_no_row_fits_a_card_that_is_too_small():
    assert largest_batch(DISTILBERT, 64, card=card_with(1.0), system="windows")[0] == 0


def test_the_table_has_a_row_for_each_case():
    table = budget_table(SMALL, lengths=(8, 16))
    assert table.index.tolist() == [
        ("sdpa", 8),
        ("sdpa", 16),
        ("eager", 8),
        ("eager", 16),
    ]
    assert table["total"].tolist() == pytest.approx(table[PARTS].sum(axis=1).tolist())
    assert set(table["verdict"]) == {"fits"}


def test_a_batch_without_rows_is_refused():
    for refused in (
        lambda: budget_table(SMALL, 0, lengths=(8,)),
        lambda: step_budget(SMALL, 0, 8),
    ):
        with pytest.raises(ValueError, match="A batch of 0 rows"):
            refused()


def test_levers_save_where_they_should():
    table = memory_savings(SMALL, 8, 256)
    saved = table["saved"]
    assert saved.iloc[0] == 0 and saved["SDPA instead of eager attention"] > 20
    assert (
        saved["two parts of 4 rows"] > 20
        and saved["layers computed twice, not kept"] > 20
    )
    assert table["flag"]["two parts of 4 rows"] == "--micro-batch-size 4"
    assert table["verdict"]["fp16 autocast"] == "not on this card" and math.isnan(
        saved["fp16 autocast"]
    )
    assert set(table["verdict"].drop("fp16 autocast")) == {"fits"}


def test_each_lever_has_a_verdict_of_its_own():
    card = find_card("RTX 3050 Laptop")
    table = memory_savings(DISTILBERT, 16, 512, StepOptions(), card=card)
    assert (
        table["verdict"]["as it is"] == "spills"
        and table["verdict"]["two parts of 8 rows"] == "fits"
    )
    assert table["verdict"]["bf16 autocast"] in ("fits", "spills")


def test_a_lever_that_a_model_cannot_pull_is_left_out_with_a_word():
    table = memory_savings(
        XLNetConfig(n_layer=1, d_model=64, n_head=4, d_inner=128), 4, 64
    )
    told = table.loc["layers computed twice, not kept"]
    assert told["verdict"].startswith("XLNetForSequence") and math.isnan(
        told["reserved"]
    )
    others = table.drop(["layers computed twice, not kept", "fp16 autocast"])
    assert others["reserved"].notna().all()


def test_a_card_that_is_here_has_no_range():
    card = replace(GTX_1650_TI, free_mib=3000.0)
    assert usable_mib(card, "windows") == (3000, 3000)
    assert step_budget(SMALL, 8, 128, card=card).verdict == "fits"


def test_the_timeline_climbs_and_falls():
    table = timeline(
        trace_steps(SMALL, [(8, 128)] * 3, StepOptions(implementation="foreach"))
    )
    total = table.drop(columns="phase").sum(axis=1)
    assert [phase for phase in dict.fromkeys(table["phase"])] == [
        "forward",
        "backward",
        "optimizer",
    ]
    assert total.max() > total.iloc[0] + 10 and total.iloc[-1] == pytest.approx(
        total.iloc[0], abs=1
    )
    forward = table[table["phase"] == "forward"]["activations"]
    assert forward.iloc[-1] > 0.9 * table["activations"].max()
    assert table["gradients"].iloc[-1] == 0 < table["gradients"].max()


def test_cards():
    assert {
        "GTX 1650 Ti",
        "GTX 1650",
        "GTX 1050 Ti",
        "RTX 3050",
        "RTX 3050 Laptop",
        "RTX 2060",
        "T4",
        "V100",
        "RTX 3090",
        "A100",
    } == set(CARDS)
    with pytest.raises(
        ValueError, match="No card 'Voodoo 2' in the list: GTX 1650 Ti, .*--vram-gib"
    ):
        find_card("Voodoo 2")
    for card in CARDS.values():
        assert (
            card.fp32_tflops is None
            or 0.5 < card.fp32_tflops / (card.cuda_cores * 2e-3) < 2.0
        )  # a clock of 0.5 to 2 GHz


def test_lengths_are_those_of_ag_news_and_its_longest_row():
    lengths = report.epoch_lengths(Recipe())
    assert (
        len(lengths) == 1001
        and max(lengths) == 358
        and abs(sum(lengths) / 1001 - 53.7) < 0.1
    )
    assert max(report.epoch_lengths(Recipe(max_length=64))) == 64


@pytest.mark.slow
def test_the_command(tmp_path, capsys):
    file = tmp_path / "budget.json"
    assert (
        main(
            [
                "budget",
                "--model",
                "mini",
                "--vram-gib",
                "2",
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
        and "step       8 rows x 128 tokens, sdpa attention, fp32\n" in text
        and "next       agnews train --model mini --max-length 128\n" in text
        and "a card with 2 GiB" in text
        and "largest batch, at worst and at best, by tokens per row" in text
    )
    assert (
        figures["verdict"] == "fits"
        and figures["length"] == 128
        and figures["batch_size"] == 8
    )
    assert figures["reserved"] == pytest.approx(
        sum(figures["parts"].values()) - figures["parts"]["CUDA context"]
    )
    assert {length: len(pair) for length, pair in figures["largest_batch"].items()} == {
        "64": 2,
        "128": 2,
    }


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
        "--no-table",
    ]
    assert main(["budget", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("verdict    it spills: no error, but slow, for Windows")
    assert lines[0].endswith("; if windows takes little of the card, it fits")
    following = "agnews train --batch-size 16 --epochs 2"
    assert (
        lines[1]
        == f"next       {following} --micro-batch-size 8 or: {following} --gradient-checkpointing"
    )
    assert not any("largest batch" in line for line in lines)


@pytest.mark.slow
def test_a_card_with_other_memory(capsys):
    command = [
        "budget",
        "--model",
        "mini",
        "--card",
        "1650ti",
        "--vram-gib",
        "0.5",
        "--system",
        "windows",
    ]
    assert main([*command, "--no-table"]) == 0
    text = capsys.readouterr().out
    assert (
        "GTX 1650 Ti with 0.5 GiB" in text
        and "left       0 to " in text
        and "about" in text
    )
    assert "next       a smaller --batch-size or --max-length, or --model mini" in text
    unnamed = [
        "budget",
        "--model",
        "mini",
        "--vram-gib",
        "8",
        "--precision",
        "bf16",
        "--no-table",
    ]
    assert main(unnamed) == 0 and "a card with 8 GiB" in capsys.readouterr().out


@pytest.mark.slow
def test_the_precision_is_the_one_that_was_asked_for(capsys):
    needed = {}
    for asked in ("fp32", "bf16", "fp16"):
        command = [
            "budget",
            "--model",
            "mini",
            "--card",
            "RTX 3090",
            "--system",
            "linux",
            "--no-table",
        ]
        assert main([*command, "--precision", asked]) == 0
        text = capsys.readouterr().out
        assert f"sdpa attention, {asked}\n" in text
        needed[asked] = int(re.search("needs +([0-9,]+)", text)[1].replace(",", ""))
    assert max(needed["bf16"], needed["fp16"]) < needed["fp32"] - 50


def test_the_commands_flags_are_those_that_differ():
    recipe = Recipe(
        model="a folder",
        group_by_length=False,
        gradient_checkpointing=True,
        micro_batch_size=2,
    )
    flags = "--model 'a folder' --no-group-by-length --micro-batch-size 2 --gradient-checkpointing"
    assert report.command_of(recipe) == f"agnews train {flags}"
    assert report.command_of(Recipe()) == "agnews train"


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--card", "Voodoo"], "No card 'Voodoo'"),
        (["--card", "GTX 1660 Ti"], "Is the GTX 1650 Ti meant? Or give --vram-gib."),
        (
            ["--card", "1650ti", "--precision", "fp16"],
            "has no tensor cores: fp16 is slow",
        ),
        (["--max-length", "600"], "A batch of rows of 600 tokens"),
        (["--system", "dos"], "system is 'dos'"),
        (["--card", ""], "No card ''"),
        (["--model", "no/such/model"], "There is no folder 'no/such/model'"),
        (["--vram-gib", "-1"], "--vram-gib is -1; it must be above 0 and at most 1024"),
        (["--vram-gib", "0"], "--vram-gib is 0"),
        (["--vram-gib", "inf"], "--vram-gib is inf"),
        (["--vram-gib", "nan"], "--vram-gib is nan"),
        (["--attention", "flash"], "StepOptions.attention is 'flash'"),
        (["--batch-size", "0"], "Recipe.batch_size is 0"),
        (
            ["--model", "no/such-model"],
            "'no/such-model' (there is no such folder) cannot be loaded",
        ),
    ],
)
def test_bad_input_of_the_command(arguments, message, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["budget", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "name, known",
    [
        ("nvidia geforce gtx1650TI", "GTX 1650 Ti"),
        ("NVIDIA GeForce GTX 1650 Ti", "GTX 1650 Ti"),
        ("1650ti", "GTX 1650 Ti"),
        ("1650", "GTX 1650"),
        ("RTX 3050", "RTX 3050"),
        ("rtx 3050 laptop", "RTX 3050 Laptop"),
        ("NVIDIA GeForce RTX 3050 Laptop GPU", "RTX 3050 Laptop"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-16GB", "V100"),
        ("NVIDIA A100-PCIE-40GB", "A100"),
    ],
)
def test_a_card_is_found_by_what_people_call_it(name, known):
    assert find_card(name) is CARDS[known]


@pytest.mark.parametrize(
    "name, nearest", [("GTX 1660 Ti", "GTX 1650 Ti"), ("rtx 2070", "RTX 2060")]
)
def test_the_nearest_name_is_suggested(name, nearest):
    with pytest.raises(ValueError, match=f"Is the {nearest} meant"):
        find_card(name)
