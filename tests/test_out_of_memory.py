"""`benchmarks/out_of_memory.py` with a small model: what it finds, and that it can."""

import json
from pathlib import Path

import pytest
from transformers import DistilBertConfig

from agnews_helpers import forward_backward
from benchmarks import out_of_memory

SMALL = DistilBertConfig(
    dim=64, n_layers=1, n_heads=2, hidden_dim=128, num_labels=4, vocab_size=2000
)
ROOT = Path(__file__).parent.parent
STORED = Path(out_of_memory.__file__).with_suffix(".json")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(out_of_memory, "CONFIG", SMALL)


@pytest.mark.slow
def test_the_parts_are_the_largest_that_fit():
    """Where memory runs out in forward, in backward, and several times in a run."""
    table = out_of_memory.campaign({(8, 256): 6})
    assert table["rows"].tolist() == table["largest"].tolist()
    assert {0, 1, 2, 4} <= {*table["rows"]}
    phases = {phase for phases in table["refused_in"] for phase in phases}
    assert phases >= {"forward", "backward"}
    assert any(len(phases) > 1 for phases in table["refused_in"])


def test_a_failed_part_that_stays_alive_is_noticed():
    """As where somebody keeps the error, whose traceback leads to the tensors."""
    kept = []

    def keeps(model, part, **options):
        try:
            return forward_backward(model, part, **options)
        except RuntimeError as error:
            kept.append(error)
            raise

    options = out_of_memory.StepOptions()
    shape = (4, 256)
    sizes = out_of_memory.capacities(shape, options, 8)
    capacity = next(
        size
        for size in sizes
        if out_of_memory.largest_that_fits(shape, options, size) == 2
    )
    assert out_of_memory.run(shape, options, capacity)[0] == 2
    assert out_of_memory.run(shape, options, capacity, keeps)[0] < 2 and kept


def test_the_series_of_halvings():
    assert out_of_memory.halvings(12) == [12, 6, 3, 1]


def test_the_stored_campaign_is_of_200_capacities():
    stored = json.loads(STORED.read_text(encoding="utf-8"))
    counts = [run["attention"] for run in stored["runs"]]
    assert counts.count("eager") == counts.count("sdpa") == 100
    less = [run for run in stored["runs"] if run["rows"] < run["largest"]]
    assert len(less) == 2 and all(run["in_pieces"] for run in less)
    equal = sum(run["rows"] == run["largest"] for run in stored["runs"])
    more = 200 - equal - len(less)
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"With {equal} of them it ends in the largest parts" in readme
    assert f"with {more} in larger ones, and with two in smaller ones" in readme
