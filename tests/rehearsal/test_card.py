"""The branches that only a card reaches, on a stand-in that refuses to mix devices."""

import gc
import re
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from agnews_helpers import (
    Collator,
    DoesNotFit,
    InvalidValue,
    classify,
    describe_machine,
    doctor,
    evaluate,
    forward_backward,
    load_model,
    profiles,
    recipe_for_this_machine,
    train,
)
from agnews_helpers.checkpoints import State
from agnews_helpers.cli import main as agnews
from agnews_helpers.hardware import training_device
from agnews_helpers.plumbing.memory import in_parts
from tests.rehearsal.card_memory import CardMemory
from tests.rehearsal.stand_in_device import (
    CONTEXT,
    READS,
    bytes_on_card,
    room_for,
    stand_in_card,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def card():
    with stand_in_card():
        yield torch.device("cuda", 0)


@contextmanager
def calls_on_card():
    """Context manager: a dict that says afterwards which models were called, where."""
    memory, cell = CardMemory(), {}
    with memory.watch():
        yield cell
    memory.end_cell(0)
    cell.update(memory.cells[0])


def test_the_stand_in_refuses_to_mix(card):
    here, there = torch.ones(2, 3), torch.ones(2, 3, device="cuda")
    mixed = [
        lambda: here + there,
        lambda: there.add_(here),
        lambda: torch.cat([here, there]),
        lambda: torch.nn.functional.linear(here, there),
        lambda: here[there.long()],
        lambda: torch.nn.Linear(3, 2)(there),
        lambda: torch.nn.Linear(3, 2).to("cuda")(here),
        lambda: there.index_put_([torch.tensor([0])], here[0]),
    ]
    for operation in mixed:
        with pytest.raises(RuntimeError, match="same device"):
            operation()
    with pytest.raises(TypeError):
        there.numpy()
    with pytest.raises(TypeError):
        torch.stack([there]).__array__()


def test_what_a_card_allows_is_computed(card):
    weight = torch.nn.Parameter(torch.eye(3).to("cuda"))
    (torch.ones(2, 3).cuda() @ weight).sum().backward()
    assert weight.grad.tolist() == [[2.0] * 3] * 3 and weight.grad.device == card
    assert (weight.detach() * torch.tensor(2.0))[torch.tensor([0])].sum().item() == 2
    assert weight.to("cuda") is weight and weight.cpu().device.type == "cpu"


def test_the_cards_random_numbers_are_its_own(card):
    torch.manual_seed(1)
    first, state = torch.rand(4), torch.cuda.get_rng_state()
    torch.manual_seed(1)
    drawn = torch.rand(4, device="cuda")
    assert torch.equal(torch.rand(4), first)
    torch.cuda.set_rng_state(state)
    assert drawn.tolist() == torch.rand(4, device="cuda").tolist()


def test_what_lies_on_the_card_is_counted_once(card):
    before = bytes_on_card()
    tensor = torch.zeros(1000, device="cuda")
    views = [tensor.view(10, 100), tensor[3:], tensor.detach()]
    assert bytes_on_card() - before == 4000
    del tensor
    assert bytes_on_card() - before == 4000
    del views
    assert bytes_on_card() == before


def test_after_the_card_there_is_none(recipe, tokens):
    with stand_in_card():
        assert training_device() == "cuda"
    assert not torch.cuda.is_available() and training_device() == "cpu"
    assert evaluate(load_model(recipe), tokens["test"], recipe).rows == 20


@pytest.mark.slow
def test_a_stopped_run_ends_as_an_unbroken_one(card, recipe, tokens, tmp_path):
    longer = recipe.replace(epochs=2, class_weights="balanced")
    whole = train(load_model(longer), tokens, longer, tmp_path / "whole")
    for steps in (3, 4, None):
        run = train(load_model(longer), tokens, longer, tmp_path / "run", steps=steps)
    assert run.finished and run.model.device == card
    assert run.steps.equals(whole.steps)
    for a, b in zip(run.model.parameters(), whole.model.parameters()):
        assert torch.equal(a.cpu(), b.cpu())
    loaded = train(load_model(longer), tokens, longer, tmp_path / "run")
    assert loaded.model.device == card


def test_a_classifier_on_the_card_answers_as_on_the_cpu(card, recipe, tokens, tmp_path):
    run = train(load_model(recipe), tokens, recipe, tmp_path)
    on_card = evaluate(run.model, tokens["test"], recipe)
    on_cpu = evaluate(run.model.cpu(), tokens["test"], recipe)
    assert on_card.answers["loss"].to_numpy() == pytest.approx(on_cpu.answers["loss"])
    with calls_on_card() as memory:
        answers = classify(on_card.answers["text"].to_list(), tmp_path)
    assert memory["calls"] and not memory["on_cpu"]
    assert answers["label"].to_list() == on_card.answers["predicted"].to_list()


def test_a_batch_left_on_the_cpu_is_an_error(card, recipe, tokens):
    batch = Collator()([tokens["train"][i] for i in range(4)])
    with pytest.raises(RuntimeError, match="same device"):
        forward_backward(load_model(recipe).to("cuda"), batch)


@pytest.mark.slow
def test_out_of_memory_on_the_card(card, recipe, tokens, tmp_path, capsys):
    """The same step is taken in parts; the cache is emptied between."""

    def small_card(module, inputs, keywords):
        if module.training and len(keywords["input_ids"]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")

    def without_dropout():
        model = load_model(recipe)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        return model

    whole = train(without_dropout(), tokens, recipe, tmp_path / "whole")
    model = without_dropout()
    model.register_forward_pre_hook(small_card, with_kwargs=True)
    parts = train(model, tokens, recipe, tmp_path / "parts")
    assert "in parts of 2" in capsys.readouterr().out
    assert parts.steps["loss"].to_list() == pytest.approx(whole.steps["loss"], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [8, 4, 2, 1])
def test_nothing_of_a_failed_part_stays(card, recipe, rows):
    """Memory runs out, mostly in backward; the largest part that fits is found."""
    model = load_model(recipe).to("cuda").eval()
    ids = torch.randint(5, 1000, (8, 400)).to("cuda")
    batch = {"input_ids": ids, "attention_mask": ids.sign(), "labels": ids[:, 0] % 4}
    part = {name: tensor[:rows] for name, tensor in batch.items()}
    with room_for(float("inf")) as room:
        for _ in range(2):  # the second adds to gradients that are there
            forward_backward(model, part)
    model.zero_grad()
    sizes = []
    with room_for(1.01 * room.peak):
        in_parts(forward_backward, model, batch, sizes)
    assert min([8, *(size for _, size in sizes)]) == rows


@pytest.mark.slow
@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("room", [0.4, 1.02, 2.5, 3.02])
def test_after_it_does_not_fit_nothing_stays(
    card, recipe, tokens, tmp_path, monkeypatch, room, resumed
):
    """The room is in units of the weights; a kept error is what a notebook has.

    Memory runs out while the model moves, in the first forward or backward pass, where
    Adam's state is made or loaded, and in a step beside that state.
    """
    if resumed:
        train(load_model(recipe), tokens, recipe, tmp_path, steps=2)
    model = load_model(recipe)
    gc.collect()
    before = bytes_on_card()
    size = sum(weight.numel() * 4 for weight in model.parameters())
    # As on a card: a weight that moves back is the same object, which Adam knows.
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)
    with room_for(room * size), pytest.raises(DoesNotFit, match="What helps") as error:
        train(model, tokens, recipe, tmp_path)
    left = bytes_on_card() - before  # the loop's names keep one batch of token ids
    assert left < 0.01 * size and model.device.type == "cpu", error
    assert train(model, tokens, recipe, tmp_path).finished


def test_a_step_waits_for_the_card_once(card, recipe, tokens, tmp_path, monkeypatch):
    """And once more in transformers, which asks whether the mask hides anything."""
    waits, add_step = [], State.add_step

    def look(state, loss):
        add_step(state, loss)
        waits.append(len(READS))

    monkeypatch.setattr(State, "add_step", look)
    READS.clear()
    train(load_model(recipe), tokens, recipe, tmp_path)
    assert [after - before for before, after in zip(waits, waits[1:])] == [2, 2, 2, 2]


@pytest.mark.slow
@pytest.mark.parametrize("command", [["evaluate"], ["predict", "Oil climbs"]])
def test_no_room_for_a_command_is_one_line(card, recipe, tmp_path, capsys, command):
    folder = ["--output-dir", str(tmp_path / "run")]
    rows = ["--model", recipe.model, "--train-rows", "44", "--test-rows", "20"]
    assert agnews(["train", "--data", "sample", "--epochs", "1", *rows, *folder]) == 0
    capsys.readouterr()
    with room_for(1000):
        assert agnews([*command, *folder]) == 2
    told = capsys.readouterr().err
    assert "OutOfMemoryError: CUDA out of memory" in told
    assert told.count("\n") == 1


def test_half_precision_is_refused_on_this_card(card, recipe, tokens, tmp_path):
    half = recipe.replace(precision="bf16")
    with pytest.raises(InvalidValue, match="GTX 1650 Ti has no tensor cores"):
        train(load_model(half), tokens, half, tmp_path)


@pytest.mark.slow
def test_the_command_on_a_card(card, recipe, tmp_path, capsys):
    folder = ["--output-dir", str(tmp_path / "run")]
    rows = ["--model", recipe.model, "--train-rows", "44", "--test-rows", "20"]
    for command in (
        ["train", "--data", "sample", "--epochs", "1", *rows],
        ["evaluate"],
        ["predict", "Stocks fall as oil climbs"],
    ):
        with calls_on_card() as memory:
            assert agnews([*command, *folder]) == 0
        assert memory["calls"] and not memory["on_cpu"], command
    assert agnews(["budget"]) == 0
    assert "GTX 1650 Ti" in capsys.readouterr().out


def test_the_machine_with_a_card(card, monkeypatch):
    CONTEXT.clear()
    assert "GTX 1650 Ti, 4096 MiB, 3500 MiB free" in describe_machine()
    assert not CONTEXT
    check = doctor._card()
    assert check.ok and "GTX 1650 Ti, 3,0" in check.found, check
    monkeypatch.setattr(profiles, "hub_status", lambda *_: (True, "it answers"))
    monkeypatch.delenv("AGNEWS_PROFILE")
    assert recipe_for_this_machine().profile == "full"


def test_contributing_says_where_what_was_not_run_is():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("**Not run on a card.**")[2].partition("\n**")[0]
    places = re.findall(r"`(\w+/[\w/.]+\.py)`(?:: ((?:`\w+`(?:, )?)+))?", table)
    assert len(places) >= 10
    for path, names in places:
        code = (ROOT / path).read_text(encoding="utf-8")
        assert all(name in code for name in re.findall(r"\w+", names)), path
