import pytest

from vram_budget.cards import CARDS, GTX_1650_TI, Card, find_card


def test_the_cards_facts_agree_with_each_other():
    assert GTX_1650_TI.fp32_tflops == pytest.approx(
        GTX_1650_TI.cuda_cores * 2 * 1.485e9 / 1e12, abs=0.01
    )
    assert GTX_1650_TI.bandwidth == 128 * 12 / 8
    facts = dict(GTX_1650_TI.facts())
    assert facts["compute capability"] == "7.5" and "fp32" in facts["tensor cores"]


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_no_fact_of_a_card_is_mistyped(card):
    """Since 2016 a multiprocessor has 64 or 128 cores; these boost to about 1.5 GHz."""
    assert card.cuda_cores / card.multiprocessors in (64, 128)
    if card.fp32_tflops:
        assert 1.3 < card.fp32_tflops * 1000 / (2 * card.cuda_cores) < 2.0  # GHz
    assert card.tensor_cores == (card.capability >= (7, 0) and "GTX" not in card.name)
    assert card.vram_gib in (4, 6, 8, 16, 24, 40) and "published" in card.source


def test_unknown_facts_are_left_out():
    names = [name for name, _ in Card("a card", 4.0, (7, 5), 16).facts()]
    assert names == ["memory", "compute capability"]


@pytest.mark.parametrize(
    "name, precision",
    [
        ("GTX 1650 Ti", None),
        ("GTX 1050 Ti", None),
        ("RTX 2060", "fp16"),
        ("V100", "fp16"),
        ("RTX 3050", "bf16"),
        ("A100", "bf16"),
    ],
)
def test_the_half_precision_of_a_card(name, precision):
    assert find_card(name).half_precision == precision


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
        ValueError,
        match="No card 'Voodoo 2' in the list: GTX 1650 Ti",
    ):
        find_card("Voodoo 2")
    for card in CARDS.values():
        assert (
            card.fp32_tflops is None
            or 0.5 < card.fp32_tflops / (card.cuda_cores * 2e-3) < 2.0
        )  # a clock of 0.5 to 2 GHz


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
