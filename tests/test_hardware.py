import pytest
import torch

from agnews_helpers import GTX_1650_TI, describe_machine, this_card
from agnews_helpers.hardware import versions


def test_the_cards_facts_agree_with_each_other():
    assert GTX_1650_TI.fp32_tflops == pytest.approx(GTX_1650_TI.cuda_cores * 2 * 1.485e9 / 1e12, abs=0.01)
    assert GTX_1650_TI.bandwidth == 128 * 12 / 8
    facts = dict(GTX_1650_TI.facts())
    assert facts["compute capability"] == "7.5" and "fp32" in facts["tensor cores"]


def test_the_card_of_this_machine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert this_card() is None
    properties = type("P", (), dict(name="Test card", total_memory=4 * 2**30, major=7, minor=5, multi_processor_count=16))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3 * 2**30, 4 * 2**30))
    card = this_card()
    assert (card.name, card.vram_gib, card.capability) == ("Test card", 4.0, (7, 5))
    assert "Test card, 3.00 of 4.00 GiB free" in describe_machine()
    assert [name for name, _ in card.facts()] == ["memory", "compute capability"]  # nothing is made up


def test_versions_name_what_is_missing(monkeypatch):
    assert versions()["torch"].split("+")[0] == torch.__version__.split("+")[0]  # pip drops the "+cu130" of some builds
    monkeypatch.setattr("agnews_helpers.hardware.PACKAGES", ("torch", "no-such-package"))
    assert versions()["no-such-package"] is None
