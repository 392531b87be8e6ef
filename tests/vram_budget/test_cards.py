import re
from types import SimpleNamespace

import pytest

from vram_budget.cards import (
    CARDS,
    GTX_1650_TI,
    Card,
    context_mib,
    find_card,
    found_card,
)


def test_the_cards_facts_agree_with_each_other():
    assert GTX_1650_TI.fp32_tflops == pytest.approx(1024 * 2 * 1.485e9 / 1e12)
    assert GTX_1650_TI.bandwidth == 128 * 12 / 8
    facts = dict(GTX_1650_TI.facts())
    assert facts["compute capability"] == "7.5" and "fp32" in facts["tensor cores"]
    assert facts["CUDA cores"] == "1,024 in 16 multiprocessors"


# TFLOP/s as the manufacturer or its reviewers print them, some with sparse digits.
PRINTED = {
    "GTX 1050 Ti": 2.14,
    "GTX 1080 Ti": 11.3,
    "GTX 1650": 2.98,
    "GTX 1660 Ti": 5.44,
    "RTX 2060": 6.45,
    "RTX 2080 Ti": 13.45,
    "Titan RTX": 16.3,
    "RTX 3050": 9.1,
    "RTX 3060": 12.7,
    "RTX 3090": 35.6,
    "RTX 4060": 15.1,
    "RTX 4090": 82.6,
    "RTX 5070": 30.9,
    "T4": 8.1,
    "P100": 9.3,
    "V100": 15.7,
    "A10": 31.2,
    "A100": 19.5,
    "L4": 30.3,
}


@pytest.mark.parametrize("name, tflops", PRINTED.items())
def test_multiprocessors_and_clock_give_the_printed_speed(name, tflops):
    assert find_card(name).fp32_tflops == pytest.approx(tflops, rel=0.01)


# Gbit/s per wire of each kind of memory: the slowest and the fastest.
RATES = {
    "GDDR5": (7, 8.1),
    "GDDR5X": (10, 11.1),
    "GDDR6": (10, 20),
    "GDDR6X": (19, 22.5),
    "GDDR7": (24, 30),
    "HBM2": (1.4, 2.5),
}


@pytest.mark.parametrize("card", CARDS.values(), ids=CARDS)
def test_no_fact_of_a_card_is_mistyped(card):
    """Since 2016 a multiprocessor has 64 or 128 cores; these boost to 1 to 2.6 GHz."""
    assert card.cuda_cores / card.multiprocessors in (64, 128)
    assert 1.0 < card.fp32_tflops * 1000 / (2 * card.cuda_cores) < 2.6  # GHz
    kind, bits = re.fullmatch(r"(\w+), (\d+) bit", card.memory).groups()
    slowest, fastest = RATES[kind]
    assert slowest <= card.bandwidth * 8 / int(bits) <= fastest
    assert card.tensor_cores == (
        card.capability >= (7, 0) and not re.search("GTX|MX", card.name)
    )
    if "ECC" in card.source:  # of 16 or 24, and of GDDR6
        assert card.vram_gib in (14.75, 22.2)
    else:
        assert card.vram_gib in (2, 4, 6, 8, 10, 11, 12, 16, 24, 40)
    assert "published" in card.source
    laptop = "laptop" in card.source or "Laptop" in card.name
    assert card.power_limited == (laptop or card.name in ("NVIDIA T4", "NVIDIA L4"))


def test_unknown_facts_are_left_out():
    names = [name for name, _ in Card("a card", 4.0, (7, 5), 0).facts()]
    assert names == ["memory", "tensor cores", "compute capability"]


@pytest.mark.parametrize(
    "name, precision",
    [
        ("GTX 1650 Ti", None),
        ("GTX 1050 Ti", None),
        ("MX450", None),
        ("RTX 2060", "fp16"),
        ("V100", "fp16"),
        ("RTX 3050", "bf16"),
        ("A100", "bf16"),
    ],
)
def test_the_half_precision_of_a_card(name, precision):
    assert find_card(name).half_precision == precision


def test_the_cards_that_readers_have():
    kinds = "GTX 10, GTX 16, MX, RTX 20, RTX 30, RTX 40, RTX 50, Max-Q, Laptop"
    for kind in kinds.split(", "):
        assert any(kind in name for name in CARDS), kind
    assert all(map(find_card, ("T4", "P100", "V100", "A10", "A100", "L4")))
    assert len(CARDS) >= 30 and next(iter(CARDS)) == "GTX 1650 Ti"


@pytest.mark.parametrize(
    "name, known",
    [
        ("nvidia geforce gtx1650TI", "GTX 1650 Ti"),
        ("NVIDIA GeForce GTX 1650 Ti", "GTX 1650 Ti"),
        ("NVIDIA GeForce GTX 1650 Ti with Max-Q Design", "GTX 1650 Ti Max-Q"),
        ("GeForce GTX 1650 Ti Mobile", "GTX 1650 Ti"),
        ("1650ti laptop", "GTX 1650 Ti"),
        ("T4 16GB", "T4"),
        ("L4 24 GB", "L4"),
        ("1650ti", "GTX 1650 Ti"),
        ("1650", "GTX 1650"),
        ("3060", "RTX 3060 12GB"),
        ("RTX 3050", "RTX 3050 8GB"),
        ("rtx 3050 laptop", "RTX 3050 Laptop 4GB"),
        ("NVIDIA GeForce RTX 3050 Laptop GPU", "RTX 3050 Laptop 4GB"),
        ("GeForce MX450", "MX450"),
        ("TITAN RTX", "Titan RTX"),
        ("3060 12gb", "RTX 3060 12GB"),
        ("GTX 1060 6 GB", "GTX 1060 6GB"),
        ("RTX 4090 24GB", "RTX 4090"),
        ("1650 Mobile", "GTX 1650 Laptop"),
        ("RTX 4060 mobile", "RTX 4060 Laptop"),
        ("Tesla T4", "T4"),
        ("Tesla V100-SXM2-16GB", "V100 16GB"),
        ("NVIDIA A100-PCIE-40GB", "A100 40GB"),
    ],
)
def test_a_card_is_found_by_what_people_call_it(name, known):
    assert find_card(name) is CARDS[known]


def test_no_two_cards_share_a_name():
    for name, card in CARDS.items():
        assert find_card(name) is card is find_card(card.name)


@pytest.mark.parametrize(
    "name, nearest",
    [
        ("RTX 3050 Laptp", "NVIDIA GeForce RTX 3050 Laptop 4GB"),
        ("RTX 4090 Laptop", "NVIDIA GeForce RTX 4070 Laptop"),  # not the desktop's
        ("A100X", "NVIDIA A100 40GB"),
        ("Voodoo 2", ""),
    ],
)
def test_of_an_unknown_card_the_nearest_names_and_a_way_out_are_told(name, nearest):
    with pytest.raises(ValueError, match=f"No card {name!r} in the list") as error:
        find_card(name)
    [line] = str(error.value).splitlines()
    told = line.partition("the nearest are ")[2].partition(". In Python")[0]
    assert told.startswith(nearest) and len(told.split(", ")) == 5
    assert "Card(name, vram_gib, capability, multiprocessors)" in line
    assert "meant" not in line and len(line) < 320


@pytest.mark.parametrize("name", ["GTX Titan", "titan", "GTX Titan X", "H100", "3065"])
def test_another_card_is_not_taken_for_a_listed_one(name):
    with pytest.raises(ValueError, match="No card"):
        find_card(name)


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A100-SXM4-80GB",  # as torch.cuda.get_device_name returns them
        "A100-PCIE-80GB",
        "Tesla V100-SXM2-32GB",
        "NVIDIA GeForce GTX 1060 3GB",
        "5060 Ti 8GB",
        "RTX 3050 6 GB",
        "RTX 3080 12GB",
        "T4 12GB",
        "GTX 1050 3GB",
    ],
)
def test_a_card_of_another_size_is_another_card(name):
    with pytest.raises(ValueError, match="No card"):
        find_card(name)


def test_the_name_of_a_card_of_several_sizes_has_its_size():
    for name in ("5060 Ti", "1060", "3050", "3050 Laptop", "V100", "A100"):
        card = find_card(name)
        assert card.name.endswith(f" {card.vram_gib:.0f}GB")


@pytest.mark.parametrize(
    "facts",
    [
        {"vram_gib": -4},
        {"vram_gib": float("nan")},
        {"vram_gib": float("inf")},
        {"vram_gib": "8"},
        {"free_mib": -100},
        {"multiprocessors": -5},
        {"multiprocessors": None},
        {"capability": 7.5},
        {"capability": (8,)},
        {"capability": ()},
        {"capability": ("7", "5")},
        {"capability": 7.5, "vram_gib": -4},
    ],
)
def test_a_card_of_impossible_facts_is_refused_in_one_line(facts):
    usual = dict(name="a", vram_gib=8, capability=(7, 5), multiprocessors=9)
    with pytest.raises(ValueError, match="these are numbers from 0") as error:
        Card(**usual | facts)
    [line] = str(error.value).splitlines()
    for name, value in facts.items():
        assert f"{name} {value!r}" in line or f"{name} is {value!r}" in line


# The context


@pytest.mark.parametrize(
    "multiprocessors, mib", [(14, 65), (34, 107), (82, 256), (142, 426), (188, 555)]
)
def test_the_bare_context_is_as_reported(multiprocessors, mib):
    least, most = context_mib(Card("a card", 8.0, (8, 6), multiprocessors))
    assert least == pytest.approx(mib, abs=12) and most > least


# A card in this machine, as CUDA's deviceQuery prints it: kHz, bits.
TOLD = {
    "Tesla T4": ((7, 5), 40, 15102, 1_590_000, 5_001_000, 256),
    "NVIDIA GeForce RTX 3070": ((8, 6), 46, 7974, 1_815_000, 7_001_000, 256),
    "NVIDIA GeForce GTX 1650": ((7, 5), 14, 3716, 1_515_000, 6_001_000, 128),
}


def told(name, device, **facts):
    (major, minor), count, mib, clock, memory_clock, bits = TOLD[device]
    usual = dict(
        name=name,
        major=major,
        minor=minor,
        multi_processor_count=count,
        total_memory=mib * 2**20,
        clock_rate=clock,
        memory_clock_rate=memory_clock,
        memory_bus_width=bits,
    )
    return SimpleNamespace(**usual | facts)


def test_a_card_of_the_list_is_known_by_its_name():
    card = found_card(told("Tesla T4", "Tesla T4"), 14_000.0)
    assert card.fp32_tflops == CARDS["T4"].fp32_tflops and card.power_limited
    assert card.vram_gib == 15102 / 1024 and card.free_mib == 14_000.0
    assert "published" in card.source


def test_a_card_in_this_machine_keeps_its_name():
    name = "NVIDIA GeForce RTX 3050 Laptop GPU"  # of 4 GB or of 6
    facts = {"multi_processor_count": 16, "total_memory": 6 * 2**30}
    card = found_card(told(name, "Tesla T4", **facts))
    assert (card.name, card.vram_gib, card.bandwidth) == (name, 6, 192)


@pytest.mark.parametrize("device", TOLD)
def test_the_facts_of_another_card_are_derived(device):
    """From the clocks of cards that are in the list: they agree with it."""
    card = found_card(told("NVIDIA New", device))
    listed = find_card(device)
    assert card.cuda_cores == listed.cuda_cores
    assert card.fp32_tflops == pytest.approx(listed.fp32_tflops, rel=0.1)
    # This GTX 1650 is one with GDDR6, the listed one has GDDR5.
    bandwidth = 192 if "1650" in device else listed.bandwidth
    assert card.bandwidth == pytest.approx(bandwidth, rel=0.001)
    assert "derived" in card.source and not card.power_limited
    assert dict(card.facts())["bandwidth"] == f"{bandwidth:.0f} GB/s"


def test_a_card_with_a_listed_name_and_other_multiprocessors_is_another():
    """A laptop's GTX 1650 has the name of the desktop's, and 16 of them."""
    name = "NVIDIA GeForce GTX 1650"
    card = found_card(told(name, name, multi_processor_count=16))
    assert card.cuda_cores == 1024 and "derived" in card.source


def test_a_laptop_card_is_limited_by_its_power():
    assert found_card(told("RTX 9000 Laptop GPU", "Tesla T4")).power_limited


@pytest.mark.parametrize("fact", ["clock_rate", "memory_clock_rate"])
def test_without_clocks_nothing_is_made_up(fact):
    """An older PyTorch does not tell them."""
    properties = told("NVIDIA New", "Tesla T4")
    delattr(properties, fact)
    card = found_card(properties)
    assert (card.fp32_tflops, card.bandwidth, card.memory) == (None, None, None)
    assert card.source == "read from this machine"
