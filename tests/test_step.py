"""What keeps a step from going wrong: memory that runs out, numbers that are not finite, a precision that fails."""
import pytest
import torch

from agnews_helpers import DoesNotFit, NonFiniteError, PrecisionRefused, load_model, make_loader, train
from agnews_helpers import step as module
from agnews_helpers.checkpoints import unfinished
from agnews_helpers.hardware import GTX_1650_TI, find_card
from agnews_helpers.precision import check_precision, refusal
from agnews_helpers.step import Stepper, is_out_of_memory
from agnews_helpers.training import make_accelerator

CPU_MESSAGE = "[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."


def faulty(model, fails):
    """A model that runs out of memory: `fails(batch, number of calls in training)` says when."""
    forward, calls = model.forward, []

    def wrapped(**batch):
        if model.training:
            calls.append(len(batch["labels"]))
            if error := fails(batch, len(calls)):
                raise error
        return forward(**batch)

    model.forward = wrapped
    return calls


def without_dropout(recipe):
    model = load_model(recipe)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Dropout):
            layer.p = 0.0
        if hasattr(layer, "dropout_p"):
            layer.dropout_p = 0.0
    model.config.attention_dropout = model.config.dropout = model.config.seq_classif_dropout = 0.0
    return model


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(CPU_MESSAGE)])
def test_every_third_step_out_of_memory_ends_like_the_run_that_never_was(error, recipe, tokens, tmp_path, monkeypatch, capsys):
    never = train(without_dropout(recipe), tokens, recipe.but(epochs=3), tmp_path / "never")
    model, failed = without_dropout(recipe), []

    def fails(batch, call):
        """The whole batch of steps 3, 6, 9, ... does not fit; its parts do."""
        whole = len(batch["labels"]) == 8
        steps.append(whole)
        if whole and len(steps) % 3 == 0 and not failed[-1:] == [len(steps)]:
            failed.append(len(steps))
            return error

    steps = []
    faulty(model, fails)
    monkeypatch.setattr(Stepper, "__call__", forgetting(Stepper.__call__))  # so that it happens again and again
    run = train(model, tokens, recipe.but(epochs=3), tmp_path / "often")
    assert len(failed) >= 4 and capsys.readouterr().out.count("Out of memory with 8 rows") == len(failed)
    assert len(run.steps) == len(never.steps) == 15
    assert (run.steps["loss"] - never.steps["loss"]).abs().max() < 1e-6
    assert (weights(run.model) - weights(never.model)).abs().max() < 1e-6


def forgetting(call):
    def forget(self, batch, weight):
        self.limits.clear()
        return call(self, batch, weight)
    return forget


def test_no_row_is_seen_twice_or_missed(recipe, tokens, tmp_path):
    model, seen = load_model(recipe), []  # dropout on
    forward = model.forward

    def wrapped(**batch):
        if model.training:
            if len(batch["labels"]) > 2 and batch["input_ids"].shape[1] > 40:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            seen.extend(tuple(ids[mask.bool()].tolist()) for ids, mask in zip(batch["input_ids"], batch["attention_mask"]))
        return forward(**batch)

    model.forward = wrapped
    run = train(model, tokens, recipe, tmp_path)
    assert sorted(seen) == sorted(map(tuple, tokens["train"]["input_ids"][:])) and len(run.steps) == 5


def test_the_smaller_part_is_remembered_for_longer_batches_only(recipe, tokens, capsys):
    model = load_model(recipe).train()
    sizes = faulty(model, lambda batch, call: torch.OutOfMemoryError("") if batch["labels"].numel() * batch["input_ids"].shape[1] > 250 else None)
    optimizer, accelerator = torch.optim.Adam(model.parameters()), make_accelerator(recipe)
    stepper = Stepper(model, optimizer, accelerator, [])

    def batch(length):
        return {"input_ids": torch.ones(8, length, dtype=torch.long), "attention_mask": torch.ones(8, length, dtype=torch.long),
                "labels": torch.arange(8) % 4}

    stepper(batch(30))
    assert sizes == [8]
    stepper(batch(60))  # 8 and then 4 rows of 60
    assert sizes == [8, 8, 4, 4] and stepper.limits == [[60, 4]]
    stepper(batch(62)), stepper(batch(30))
    assert sizes[4:] == [4, 4, 8]
    stepper(batch(100))  # 4 fail, 2 do not
    assert sizes[7:] == [4, 2, 2, 2, 2] and stepper.limits == [[60, 4], [100, 2]]
    assert capsys.readouterr().out.count("Nothing else changes.") == 2


def test_at_one_row_it_stops_with_the_budget_and_three_remedies(recipe, tokens, tmp_path):
    model = load_model(recipe)
    sizes = faulty(model, lambda batch, call: torch.OutOfMemoryError("CUDA out of memory."))
    before = weights(model)
    with pytest.raises(DoesNotFit, match=r"(?s)not even one row of \d+ tokens fits. Predicted for one row of \d+ tokens: [\d,]+ MiB, "
                                         r".*\(1\) close .*\(2\) .*Recipe\(max_length=\d+\) needs [\d,]+ MiB.*\(3\) .*AGNEWS_MODEL=mini"):
        train(model, tokens, recipe, tmp_path)
    assert sizes == [8, 4, 2, 1] and torch.equal(weights(model), before)
    assert all(p.grad is None for p in model.parameters())


def test_no_room_for_the_optimizer_is_not_tried_again(recipe, tokens, tmp_path, monkeypatch):
    def no_room(*_, **__):
        monkeypatch.undo()  # for the prediction in the message, which takes steps of its own
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(torch.optim.Adam, "step", no_room)
    with pytest.raises(DoesNotFit, match="Adam's two running means do not fit"):
        train(load_model(recipe), tokens, recipe, tmp_path)


def test_another_error_goes_through(recipe, tokens, tmp_path):
    model = load_model(recipe)
    sizes = faulty(model, lambda batch, call: RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        train(model, tokens, recipe, tmp_path)
    assert sizes == [8]


def test_what_running_out_of_memory_looks_like():
    windows = "[enforce fail at alloc_cpu.cpp:1] data. DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."
    for error in (torch.OutOfMemoryError("x"), RuntimeError(CPU_MESSAGE), RuntimeError(windows), RuntimeError("MPS backend out of memory")):
        assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("other")) and not is_out_of_memory(ValueError("out of memory"))


def test_a_loss_that_is_not_finite_stops_before_the_step(recipe, tokens, tmp_path):
    model = load_model(recipe)
    forward, kept = model.forward, []

    def wrapped(**batch):
        output = forward(**batch)
        if model.training:
            kept.append(weights(model))
            if len(kept) == 4:
                output.loss = output.loss * float("nan")
        return output

    model.forward = wrapped
    with pytest.raises(NonFiniteError) as error:
        train(model, tokens, recipe.but(checkpoint_minutes=1e-9), tmp_path)
    rows = make_loader(tokens["train"], recipe, 1).batch_sampler.batches[3]
    assert "The loss of the step after step 3 of 5 (epoch 1 of 1) is not finite" in str(error.value)
    assert f"rows of the train split are {', '.join(map(str, rows))}, padded to" in str(error.value)
    assert torch.equal(weights(model), kept[3]), "the weights moved"
    model.forward = forward
    assert unfinished(tmp_path)
    assert len(train(load_model(recipe), tokens, recipe, tmp_path).steps) == 5  # the last good checkpoint continues


@pytest.mark.parametrize("name", ["distilbert.embeddings.word_embeddings.weight", "distilbert.transformer.layer.0.ffn.lin1.weight", "classifier.bias"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_any_gradient_that_is_not_finite_stops_before_the_step(name, value, recipe, tokens, tmp_path):
    model = load_model(recipe)

    def spoil(gradient):
        gradient = gradient.clone()
        gradient.view(-1)[-1] = value
        return gradient

    dict(model.named_parameters())[name].register_hook(spoil)
    before = weights(model)
    with pytest.raises(NonFiniteError, match="The gradient of the step after step 0 of 5"):
        train(model, tokens, recipe, tmp_path)
    assert torch.equal(weights(model), before)


# Precision


@pytest.mark.parametrize("card, precision, reason", [
    (GTX_1650_TI, "fp16", "no tensor cores"), (GTX_1650_TI, "bf16", "no tensor cores"), (find_card("GTX 1650"), "fp16", "no tensor cores"),
    (find_card("GTX 1050 Ti"), "fp16", "slower than fp32"), (find_card("T4"), "bf16", "emulates"), (find_card("T4"), "fp16", None),
    (find_card("A100"), "bf16", None), (None, "fp16", "needs a CUDA card"), (None, "bf16", None)])
def test_where_a_precision_is_refused(card, precision, reason):
    found = refusal(precision, "cuda" if card else "cpu", card)
    assert found is None if reason is None else reason in found


def test_fp16_without_a_card_is_refused_before_training(recipe, tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "training_step", lambda *_: pytest.fail("trained first"))
    with pytest.raises(ValueError, match="fp16"):
        train(load_model(recipe), tokens, recipe.but(precision="fp16"), tmp_path)


def test_a_precision_that_agrees_passes_and_changes_nothing(recipe, tokens):
    model = load_model(recipe).train()
    before, batch = weights(model), next(iter(make_loader(tokens["train"], recipe, 1)))
    state = torch.get_rng_state()
    check_precision(model, batch, "bf16", torch.device("cpu"))
    assert model.training and torch.equal(weights(model), before) and all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("spoil", [lambda loss: loss * float("nan"), lambda loss: loss + 0.5, lambda loss: -loss])
def test_a_precision_that_gives_another_loss_or_gradient_is_refused(spoil, recipe, tokens):
    model, batch = load_model(recipe), next(iter(make_loader(tokens["train"], recipe, 1)))
    forward = model.forward

    def wrapped(**batch):
        output = forward(**batch)
        if torch.is_autocast_enabled("cpu"):
            output.loss = spoil(output.loss)
        return output

    model.forward = wrapped
    with pytest.raises(PrecisionRefused, match="on the first batch the loss is"):
        check_precision(model, batch, "bf16", torch.device("cpu"))
