"""The cap on what PyTorch takes of a card, with a stand-in for ``torch.cuda``."""

import pytest
import torch

from agnews_helpers.hardware import this_card
from agnews_helpers.plumbing.vram_cap import GROWTH_MIB, free_mib, vram_cap
from vram_budget.cards import GTX_1650_TI, context_mib

CUDA, MIB = torch.device("cuda"), 2**20


class Card:
    """8 GiB, of which the context has 300 MiB and other programs 500."""

    total, outside, reserved, fraction = 8192, 800, 0, 1.0

    def mem_get_info(self, index=None):
        return (self.total - self.outside - self.reserved) * MIB, self.total * MIB

    def memory_reserved(self, index=None):
        return self.reserved * MIB

    def get_per_process_memory_fraction(self, index=None):
        return self.fraction

    def set_per_process_memory_fraction(self, fraction, index=None):
        assert 0 <= fraction <= 1
        self.fraction = fraction


@pytest.fixture
def card(monkeypatch):
    card = Card()
    for name in [name for name in dir(Card) if name.startswith(("mem", "get", "set"))]:
        monkeypatch.setattr(torch.cuda, name, getattr(card, name))
    return card


def test_what_is_free_is_allowed_and_put_back(card):
    card.fraction = 0.95
    with vram_cap(CUDA):
        assert card.fraction == pytest.approx((8192 - 800 - GROWTH_MIB) / 8192)
    assert card.fraction == 0.95


def test_it_is_put_back_after_an_error(card):
    with pytest.raises(RuntimeError, match="out of"), vram_cap(CUDA):
        raise RuntimeError("out of memory")
    assert card.fraction == 1.0


def test_what_pytorch_has_already_is_its_own(card):
    before = free_mib()
    card.reserved = 1000
    assert free_mib() == before


def test_a_card_that_others_have_filled_leaves_nothing(card):
    card.outside = 8190
    with vram_cap(CUDA):
        assert card.fraction == 0


def test_what_has_spilled_does_not_count_as_free(card):
    """Windows: PyTorch has reserved more than the card has."""
    card.outside, card.reserved = -2000, 9000
    with vram_cap(CUDA):
        assert card.fraction == 1.0


def test_a_cpu_is_left_alone(card):
    with vram_cap(torch.device("cpu")):
        assert card.fraction == 1.0


def test_what_is_left_to_the_context_is_in_the_range():
    least, most = context_mib(GTX_1650_TI)
    assert most - least == GROWTH_MIB


def test_the_card_of_this_machine_knows_what_is_free(card, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    found = type(
        "P",
        (),
        dict(
            name="NVIDIA X",
            total_memory=8192 * MIB,
            major=8,
            minor=6,
            multi_processor_count=9,
        ),
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: found)
    assert this_card().free_mib == pytest.approx(8192 - 800 - GROWTH_MIB)
