import math
import os
from contextlib import nullcontext
from dataclasses import replace
from subprocess import TimeoutExpired

import pytest
import torch

from agnews_helpers import (
    InvalidValue,
    NonFiniteError,
    describe_machine,
    hardware,
    load_model,
    make_loader,
    this_card,
    train,
    training,
)
from agnews_helpers.hardware import check_precision, version_of
from agnews_helpers.plumbing.vram_cap import GROWTH_MIB
from vram_budget.cards import GTX_1650_TI, find_card


def test_the_card_of_this_machine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert this_card() is None
    properties = type(
        "P",
        (),
        dict(
            name="Test card",
            total_memory=4 * 2**30,
            major=7,
            minor=5,
            multi_processor_count=16,
        ),
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda index=None: (3 * 2**30, 4 * 2**30)
    )
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda index=None: 0)
    card = this_card()
    assert (card.name, card.vram_gib, card.capability) == ("Test card", 4.0, (7, 5))
    assert card.fp32_tflops is None  # nothing is made up
    assert card.free_mib == 3 * 1024 - GROWTH_MIB
    properties.name = "NVIDIA GeForce GTX 1650 Ti"
    assert this_card() == replace(GTX_1650_TI, free_mib=card.free_mib)


@pytest.fixture
def no_context(monkeypatch):
    """A card is there; what would make a CUDA context on it is an error."""

    def context(*_, **__):
        pytest.fail("this makes a CUDA context")

    monkeypatch.setattr(hardware, "training_device", lambda: "cuda")
    for name in ("_lazy_init", "mem_get_info", "get_device_properties", "set_device"):
        monkeypatch.setattr(torch.cuda, name, context)


@pytest.mark.skipif(os.name == "nt", reason="Windows starts no script as a program")
def test_the_machine_is_described_without_a_context(no_context, tmp_path, monkeypatch):
    """By nvidia-smi, here one of two cards that writes down what it was asked for."""
    program = tmp_path / "nvidia-smi"
    lines = "'NVIDIA A, 4096 MiB, 3500 MiB' 'NVIDIA B, 8192 MiB, 8000 MiB'"
    script = f'#!/bin/sh\necho "$@" > "{tmp_path}/asked"\nprintf "%s\\n" {lines}\n'
    program.write_text(script, encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    *_, device = describe_machine().splitlines()
    both = "NVIDIA A, 4096 MiB, 3500 MiB free; NVIDIA B, 8192 MiB, 8000 MiB free"
    assert device == f"device     {both}"
    asked = (tmp_path / "asked").read_text(encoding="utf-8")
    expected = "--query-gpu=name,memory.total,memory.free --format=csv,noheader"
    assert asked.split() == expected.split()


@pytest.mark.parametrize("error", [OSError("none"), TimeoutExpired("nvidia-smi", 30)])
def test_a_card_without_nvidia_smi(no_context, monkeypatch, error):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(hardware, "check_output", fails)
    assert describe_machine().endswith("nvidia-smi, which knows more, does not answer")


def test_batches_are_pinned_where_a_card_is_in_use(monkeypatch, recipe, tokens):
    """That needs a context, and notebook 03 looks at batches without a card."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for in_use in (False, True):
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda in_use=in_use: in_use)
        assert make_loader(tokens["train"], [[0, 1]], recipe).pin_memory == in_use


def test_versions_of_packages():
    assert version_of("torch").split("+")[0] == torch.__version__.split("+")[0]
    assert version_of("no-such-package") is None


# Precision


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize(
    "name, precision, is_refused",
    [
        ("GTX 1650 Ti", "bf16", True),
        ("T4", "bf16", True),  # it has tensor cores, but none for bf16
        ("A100", "bf16", False),
        (None, "bf16", False),
        ("GTX 1650 Ti", "fp32", False),
    ],
)
def test_where_a_precision_is_refused(name, precision, is_refused):
    card = name and find_card(name)
    refused = pytest.raises(InvalidValue, match=f"{name} has no tensor cores for bf16")
    with refused if is_refused else nullcontext():
        check_precision(precision, card)


def test_bf16_on_a_card_that_emulates_it_is_refused_before_training(
    recipe, tokens, tmp_path, monkeypatch
):
    monkeypatch.setattr(training, "this_card", lambda: GTX_1650_TI)
    monkeypatch.setattr(
        training, "forward_backward", lambda *_: pytest.fail("trained first")
    )
    with pytest.raises(InvalidValue, match="bf16"):
        train(load_model(recipe), tokens, recipe.replace(precision="bf16"), tmp_path)


def test_a_precision_that_gives_nan_takes_no_step(recipe, tokens, tmp_path):
    model = load_model(recipe)
    before, forward = weights(model), model.forward

    def spoilt(**batch):
        output = forward(**batch)
        output.logits = (
            output.logits * math.nan
            if torch.is_autocast_enabled("cpu")
            else output.logits
        )
        return output

    model.forward = spoilt
    with pytest.raises(NonFiniteError, match="after step 0 .*use precision='fp32'"):
        train(model, tokens, recipe.replace(precision="bf16"), tmp_path)
    assert torch.equal(weights(model), before)
