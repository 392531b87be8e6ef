"""The scripts that compare speeds: fair, and complete in small."""

import json
import sys
import time

import pandas as pd
import pytest
import torch

from agnews_helpers import load_model
from benchmarks import throughput
from benchmarks.paired import compared, order_of


def test_each_round_has_an_order_of_its_own_and_the_same_in_each_call():
    orders = [order_of("abcde", number) for number in range(1, 8)]
    assert orders == [order_of("abcde", number) for number in range(1, 8)]
    assert all(sorted(order) == list("abcde") for order in orders)
    assert len({*map(tuple, orders)}) > 4 and len({order[0] for order in orders}) > 2


def test_a_ratio_is_that_of_one_round():
    """The machine gets slower; medians of the columns would say 4 / 2."""
    seconds = pd.DataFrame({"ours": [1.0, 2, 8], "other": [3.0, 6, 4]})
    table = compared(seconds, "ours")
    assert table.loc["ours", ["times", "times_least", "times_most"]].tolist() == [1] * 3
    assert table.loc["other"].tolist() == [4, 3, 6, 3, 0.5, 3]
    assert list(table)[:3] == ["seconds", "seconds_least", "seconds_most"]


# ---- throughput.py


@pytest.fixture
def contest(recipe, tokens, monkeypatch):
    """What the contenders get, with the tiny model, which draws no dropout."""

    def newsletter(rows):
        still = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
        model = load_model(recipe)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for layer in model.distilbert.transformer.layer:
            layer.attention.dropout_p = 0.0
        model.config.update(still)
        split = {"train": tokens["train"].select(range(rows))}
        return recipe, split | {"validation": tokens["validation"]}, model

    monkeypatch.setattr(throughput, "newsletter", newsletter)
    monkeypatch.setattr(throughput, "FEW_ROWS", 8)
    return newsletter


def test_the_plain_loop_gets_the_batches_of_train(contest, tmp_path):
    """So both end with the same weights."""
    ends = []
    for name in ("plain", "ours"):
        recipe, tokens, model = contest(32)
        before = model.classifier.weight.detach().clone()
        throughput.CONTENDERS[name][0](recipe, tokens, model, tmp_path / name)
        assert not torch.equal(before, model.classifier.weight)
        ends.append(model.state_dict())
    for name, weight in ends[0].items():
        torch.testing.assert_close(weight, ends[1][name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", throughput.CONTENDERS)
def test_validation_counts_on_one_clock_only(contest, monkeypatch, name):
    """It is made to take a second more."""

    def slow(function):
        def later(*arguments, **settings):
            time.sleep(1)
            return function(*arguments, **settings)

        return later

    places = {
        "ours": (sys.modules["agnews_helpers.training"], "evaluate"),
        "trainer": (throughput.Trainer, "evaluate"),
        "grouped": (throughput.Trainer, "evaluate"),
    }
    place = places.get(name, (throughput, "accuracy"))
    monkeypatch.setattr(*place, slow(getattr(*place)))
    started = time.perf_counter()
    found = throughput.contest(name, 16)
    seconds = time.perf_counter() - started
    scaled = found["steps"] * (0.5 if name == "letter" else 1)
    assert found["whole"] - found["steps"] > 1 and 0 < scaled < seconds - 1


def test_few_rows_padded_to_512_are_scaled_up(contest, monkeypatch):
    contender = (lambda *_: (3.0, 8), "")
    monkeypatch.setitem(throughput.CONTENDERS, "letter", contender)
    monkeypatch.setattr(throughput.time, "perf_counter", iter([10.0, 14.0]).__next__)
    assert throughput.contest("letter", 16) == {"steps": 6.0, "whole": 7.0}


@pytest.mark.slow
def test_throughput_in_small(contest, monkeypatch, tmp_path, capsys):
    def here(what, rows):
        shares = {"matrix products": 0.7, "data, beside the step": 0.1}
        return shares if what == "parts" else throughput.contest(what, rows)

    monkeypatch.setattr(throughput, "in_a_process", here)
    path = tmp_path / "found.json"
    words = ["--rows", "16", "--rounds", "2", "--output", str(path)]
    monkeypatch.setattr(sys, "argv", ["throughput.py", *words])
    throughput.main()
    found = json.loads(path.read_text(encoding="utf-8"))
    assert path.with_suffix(".png").is_file()
    assert len(found["rounds"]) == 2 * len(throughput.CONTENDERS)
    by_round = {
        name: [line for line in found["rounds"] if line["contender"] == name]
        for name in throughput.CONTENDERS
    }
    pairs = zip(by_round["trainer"], by_round["ours"])
    ratios = sorted(trainer["whole"] / ours["whole"] for trainer, ours in pairs)
    told = found["whole call"]["trainer"]
    assert [told["times_least"], told["times_most"]] == pytest.approx(ratios, abs=1e-3)
    assert list(found["steps alone"]) == list(throughput.CONTENDERS)
    printed = capsys.readouterr().out
    assert "whole call" in printed and "transformers.Trainer, group" in printed
