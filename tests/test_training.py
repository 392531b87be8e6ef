import json
import math

import pytest
import torch
import torch.nn.functional as F
from datasets import DatasetDict
from transformers import pipeline

from agnews_helpers import (
    LABELS,
    DoesNotFit,
    NonFiniteError,
    cpu_kernels,
    epoch_batches,
    evaluate,
    forward_backward,
    load_classifier,
    load_data,
    load_model,
    load_or_train,
    make_loader,
    tokenize,
    train,
    training,
)
from agnews_helpers.checkpoints import find_checkpoints
from agnews_helpers.training import is_out_of_memory, make_accelerator


@pytest.fixture(scope="module")
def run(recipe, tokens, tmp_path_factory):
    return train(
        load_model(recipe),
        tokens,
        recipe.replace(epochs=4),
        tmp_path_factory.mktemp("run") / "agnews",
    )


def first_batch(tokens, recipe, number=0):
    batches = epoch_batches(tokens["train"]["length"][:], recipe, 1)[number:]
    return next(iter(make_loader(tokens["train"], batches, recipe)))


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.slow
def test_it_learns_eight_rows_by_heart(recipe, tokens, tmp_path):
    few = DatasetDict(
        train=tokens["train"].select(range(8)), validation=tokens["validation"]
    )
    run = train(
        load_model(recipe), few, recipe.replace(epochs=40, learning_rate=5e-3), tmp_path
    )
    assert run.steps["loss"].iloc[0] == pytest.approx(math.log(4), abs=0.1)
    assert run.steps["loss"].iloc[-1] < 0.3


@pytest.mark.parametrize("micro", [1, 3, 4, 8, 20])
def test_accumulated_parts_are_the_same_step(recipe, tokens, micro):
    def step(micro_batch_size):
        model = load_model(recipe).eval()  # without dropout, whose masks differ
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        limits = [[1, micro_batch_size]] if micro_batch_size else None
        loss = forward_backward(
            model, first_batch(tokens, recipe), make_accelerator(recipe), limits
        )
        optimizer.step()
        return loss.item(), weights(model)

    (loss, moved), (whole_loss, whole) = step(micro), step(None)
    assert loss == pytest.approx(whole_loss, abs=1e-6) and torch.allclose(
        moved, whole, atol=1e-6
    )


def counted(model):
    """A list that gets the number of rows of each forward pass in training."""
    rows = []
    hook = lambda module, args, kwargs: (  # noqa: E731
        rows.append(len(kwargs["input_ids"])) if module.training else None
    )
    model.register_forward_pre_hook(hook, with_kwargs=True)
    return rows


def test_a_batch_is_taken_in_parts_where_the_recipe_says_so(recipe, tokens, tmp_path):
    model = load_model(recipe)
    rows = counted(model)
    run = train(model, tokens, recipe.replace(micro_batch_size=3), tmp_path)
    assert rows == [3, 3, 2] * 5 and len(run.steps) == 5 and run.finished


def test_the_size_of_parts_may_change_when_a_run_is_continued(recipe, tokens, tmp_path):
    train(load_model(recipe), tokens, recipe, tmp_path, steps=2)
    model = load_model(recipe)
    rows = counted(model)
    assert train(model, tokens, recipe.replace(micro_batch_size=4), tmp_path).finished
    assert rows == [4, 4] * 3


@pytest.mark.parametrize("stop", [None, 2])
def test_layers_that_are_computed_twice_give_the_same_run(
    recipe, tokens, tmp_path, stop
):
    """Bit for bit: dropout draws the same numbers a second time. And the model is put back."""
    plain = train(load_model(recipe), tokens, recipe, tmp_path / "plain")
    leaner, model = recipe.replace(gradient_checkpointing=True), load_model(recipe)
    before = {m: dict(vars(m)) for m in model.modules()}
    train(model, tokens, leaner, tmp_path / "again", steps=stop)
    assert not any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
    assert all(vars(m).keys() == before[m].keys() for m in model.modules())
    again = train(load_model(recipe), tokens, leaner, tmp_path / "again")
    assert again.steps["loss"].tolist() == plain.steps["loss"].tolist()
    assert torch.equal(weights(again.model), weights(plain.model))


def test_layers_are_really_computed_twice(recipe, tokens, tmp_path):
    calls = []
    for wanted in (False, True):
        model, seen = load_model(recipe), []
        model.distilbert.transformer.layer[0].ffn.register_forward_hook(
            lambda module, *_, seen=seen: seen.append(1) if module.training else None
        )
        train(
            model,
            tokens,
            recipe.replace(gradient_checkpointing=wanted),
            tmp_path / f"{wanted}",
        )
        calls.append(len(seen))
    assert calls == [5, 10]


def test_a_card_is_capped_and_put_back(recipe, tokens, tmp_path, monkeypatch):
    entered = []

    class Cap:
        def __init__(self, device):
            assert device.type == "cpu"

        def __enter__(self):
            entered.append("in")
            return self

        def __exit__(self, *_):
            entered.append("out")

        def watch(self, seconds, tokens):
            assert seconds > 0 and tokens > 8
            entered.append("step")

    monkeypatch.setattr(training, "vram_cap", Cap)
    train(load_model(recipe), tokens, recipe, tmp_path)
    assert entered == ["in", *["step"] * 5, "out"]


def test_history_and_steps(run):
    assert list(run.history.index) == [1, 2, 3, 4] and run.seconds > 0
    assert list(run.history.columns) == [
        "train_loss",
        "validation_loss",
        "validation_accuracy",
        "rows_per_second",
    ]
    assert list(run.steps.index) == list(
        range(1, 4 * 5 + 1)
    )  # 40 rows, batches of 8, 4 epochs
    for epoch in (1, 2, 3, 4):
        assert run.history.loc[epoch, "train_loss"] == pytest.approx(
            run.steps["loss"][5 * epoch - 5 : 5 * epoch].mean()
        )


def test_it_equals_the_plain_loop_bit_for_bit(recipe, tokens, tmp_path):
    theirs = train(load_model(recipe), tokens, recipe, tmp_path)
    model = load_model(recipe).train()
    optimizer = torch.optim.Adam(
        model.parameters(), lr=recipe.learning_rate, fused=True
    )
    torch.manual_seed(recipe.seed)
    losses = []
    batches = epoch_batches(tokens["train"]["length"][:], recipe, epoch=1)
    with cpu_kernels(
        model, model.device
    ):  # which draw other random numbers for dropout than PyTorch
        for batch in make_loader(tokens["train"], batches, recipe):
            loss = F.cross_entropy(
                model(batch["input_ids"], batch["attention_mask"]).logits,
                batch["labels"],
            )
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    assert losses == theirs.steps["loss"].tolist()
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), theirs.model.parameters())
    )


def test_the_same_recipe_gives_the_same_run(recipe, tokens, tmp_path):
    runs = [
        train(load_model(recipe), tokens, recipe, tmp_path / name)
        for name in ("a", "b")
    ]
    torch.rand(1)
    assert runs[0].steps.equals(runs[1].steps)


def test_the_best_epoch_is_kept_not_the_last(recipe, tokens, tmp_path, monkeypatch):
    reports = iter(
        [(0.5, 1.0), (0.75, 0.9), (0.75, 0.8), (0.5, 0.1)]
    )  # accuracy, loss: epoch 3 wins by its loss
    kept = []

    def scripted(model, rows, recipe):
        kept.append(model.classifier.weight.detach().clone())
        accuracy, loss = next(reports)
        return type("Report", (), {"accuracy": accuracy, "loss": loss})()

    monkeypatch.setattr(training, "evaluate", scripted)
    run = train(load_model(recipe), tokens, recipe.replace(epochs=4), tmp_path)
    assert run.best_epoch == 3
    assert torch.equal(run.model.classifier.weight, kept[2]) and not torch.equal(
        kept[2], kept[3]
    )
    assert torch.equal(load_classifier(tmp_path)[0].classifier.weight, kept[2])


def test_what_is_saved_is_what_was_validated(run, recipe, tokens):
    model, _ = load_classifier(run.folder)
    report = evaluate(model, tokens["validation"], recipe)
    assert report.accuracy == run.history.loc[run.best_epoch, "validation_accuracy"]
    assert report.loss == pytest.approx(
        run.history.loc[run.best_epoch, "validation_loss"], abs=1e-6
    )


def test_transformers_alone_loads_the_folder(run):
    answer = pipeline("text-classification", model=str(run.folder))(
        "Stocks fall as oil climbs"
    )[0]
    assert answer["label"] in LABELS and 0 < answer["score"] <= 1


def test_the_folder_says_how_it_was_made(run, recipe):
    facts = json.loads((run.folder / "agnews_run.json").read_text(encoding="utf-8"))
    assert (
        facts["recipe"]["batch_size"] == 8
        and facts["recipe"]["seed"] == recipe.seed
        and facts["epoch"] == run.best_epoch
    )
    assert (run.folder / "history.csv").read_text().count("\n") == 5


def test_bf16_after_fp32_in_one_process(recipe, tokens, tmp_path):
    few = DatasetDict(
        train=tokens["train"].select(range(8)), validation=tokens["validation"]
    )
    losses = [
        train(
            load_model(recipe),
            few,
            recipe.replace(precision=precision),
            tmp_path / precision,
            resume=False,
        )
        .steps["loss"]
        .iloc[0]
        for precision in ("fp32", "bf16", "fp32")
    ]
    assert losses[0] == losses[2] != losses[1] and losses[1] == pytest.approx(
        losses[0], rel=0.02
    )


def test_find_or_train(recipe, tmp_path, capsys):
    model, tokenizer, brief = load_or_train(recipe, tmp_path / "agnews", rows=40)
    assert brief == tmp_path / "agnews-brief" and model.config.num_labels == 4
    assert "training one on at most 40 rows" in capsys.readouterr().out
    short = recipe.replace(epochs=1)  # notebook 04 comes later, with another recipe
    tokens = tokenize(load_data(short), tokenizer, short)
    assert train(load_model(short), tokens, short, tmp_path / "agnews").finished
    before = (tmp_path / "agnews" / "model.safetensors").stat().st_mtime_ns
    *_, folder = load_or_train(recipe, tmp_path / "agnews")
    assert (
        "Using the classifier of notebook 04 (profile offline)"
        in capsys.readouterr().out
    )
    assert (
        folder == tmp_path / "agnews"
        and (folder / "model.safetensors").stat().st_mtime_ns == before
    )


# Memory that runs out, and numbers that are not finite

CPU_MESSAGE = (
    "[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 9 bytes."
)


def faulty(model, fails):
    """A model that runs out of memory: `fails(batch, number of calls in training)` says when."""
    forward, calls = model.forward, []

    def wrapped(**batch):
        if model.training:
            calls.append(len(batch["input_ids"]))
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
    model.config.attention_dropout = model.config.dropout = (
        model.config.seq_classif_dropout
    ) = 0.0
    return model


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError(CPU_MESSAGE)]
)
@pytest.mark.slow
def test_every_third_step_out_of_memory_ends_like_the_run_that_never_was(
    error, recipe, tokens, tmp_path, monkeypatch, capsys
):
    never = train(
        without_dropout(recipe), tokens, recipe.replace(epochs=3), tmp_path / "never"
    )
    model, failed = without_dropout(recipe), []

    def fails(batch, call):
        """The whole batch of steps 3, 6, 9, ... does not fit; its parts do."""
        whole = len(batch["input_ids"]) == 8
        steps.append(whole)
        if whole and len(steps) % 3 == 0 and not failed[-1:] == [len(steps)]:
            failed.append(len(steps))
            return error

    steps = []
    faulty(model, fails)
    monkeypatch.setattr(
        training, "forward_backward", forgetting
    )  # so that it happens again and again
    run = train(model, tokens, recipe.replace(epochs=3), tmp_path / "often")
    assert len(failed) >= 4 and capsys.readouterr().out.count(
        "Out of memory with 8 rows"
    ) == len(failed)
    assert len(run.steps) == len(never.steps) == 15
    assert (run.steps["loss"] - never.steps["loss"]).abs().max() < 1e-6
    assert (weights(run.model) - weights(never.model)).abs().max() < 1e-6


def forgetting(model, batch, accelerator, limits, *others):
    limits.clear()
    return forward_backward(model, batch, accelerator, limits, *others)


@pytest.mark.slow
def test_no_row_is_seen_twice_or_missed(recipe, tokens, tmp_path):
    model, seen = load_model(recipe), []  # dropout on
    forward = model.forward

    def wrapped(**batch):
        if model.training:
            if len(batch["input_ids"]) > 2 and batch["input_ids"].shape[1] > 40:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            seen.extend(
                tuple(ids[mask.bool()].tolist())
                for ids, mask in zip(batch["input_ids"], batch["attention_mask"])
            )
        return forward(**batch)

    model.forward = wrapped
    run = train(model, tokens, recipe, tmp_path)
    assert (
        sorted(seen) == sorted(map(tuple, tokens["train"]["input_ids"][:]))
        and len(run.steps) == 5
    )


@pytest.mark.slow
def test_the_smaller_part_is_remembered_for_longer_batches_only(recipe, capsys):
    model, accelerator, limits = (
        load_model(recipe).train(),
        make_accelerator(recipe),
        [],
    )
    sizes = faulty(
        model,
        lambda batch, _: (
            torch.OutOfMemoryError("") if batch["input_ids"].numel() > 250 else None
        ),
    )

    def step(length):
        ones = torch.ones(8, length, dtype=torch.long)
        batch = {
            "input_ids": ones,
            "attention_mask": ones,
            "labels": torch.arange(8) % 4,
        }
        forward_backward(model, batch, accelerator, limits)

    step(30)
    assert sizes == [8]
    step(60)  # 8 and then 4 rows of 60
    assert sizes == [8, 8, 4, 4] and limits == [[60, 4]]
    step(62), step(30)
    assert sizes[4:] == [4, 4, 8]
    step(100)  # 4 fail, 2 do not
    assert sizes[7:] == [4, 2, 2, 2, 2] and limits == [[60, 4], [100, 2]]
    assert capsys.readouterr().out.count("The gradient is the same.") == 2


@pytest.mark.slow
def test_at_one_row_it_stops_with_three_remedies(recipe, tokens, tmp_path):
    model = load_model(recipe)
    sizes = faulty(
        model, lambda batch, call: torch.OutOfMemoryError("CUDA out of memory.")
    )
    before = weights(model)
    remedies = (
        r"\(1\) close .*\(2\) .*Recipe\(max_length=\d+\).*\(3\) .*AGNEWS_MODEL=mini"
    )
    with pytest.raises(
        DoesNotFit,
        match=rf"after step 0 of 5.*not even one row of \d+ tokens fits.*{remedies}",
    ):
        train(model, tokens, recipe, tmp_path)
    assert sizes == [8, 4, 2, 1] and torch.equal(weights(model), before)
    assert all(p.grad is None for p in model.parameters())


def test_no_room_for_the_optimizer_is_not_tried_again(
    recipe, tokens, tmp_path, monkeypatch
):
    def no_room(*_, **__):
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
    windows = CPU_MESSAGE.replace("can't allocate memory", "not enough memory")
    for error in (
        torch.OutOfMemoryError("x"),
        RuntimeError(CPU_MESSAGE),
        RuntimeError(windows),
        RuntimeError("MPS backend out of memory"),
    ):
        assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("other")) and not is_out_of_memory(
        ValueError("out of memory")
    )


def test_a_loss_that_is_not_finite_stops_before_the_step(recipe, tokens, tmp_path):
    model = load_model(recipe)
    forward, kept = model.forward, []

    def wrapped(**batch):
        output = forward(**batch)
        if model.training:
            kept.append(weights(model))
            if len(kept) == 4:
                output.logits = output.logits * float("nan")
        return output

    model.forward = wrapped
    with pytest.raises(NonFiniteError) as error:
        train(model, tokens, recipe, tmp_path, save_minutes=1e-9)
    rows = epoch_batches(tokens["train"]["length"][:], recipe, 1)[3]
    assert "The loss of the step after step 3 of 5 (epoch 1 of 1) is not finite" in str(
        error.value
    )
    assert f"rows in the train split: {', '.join(map(str, rows))}, of" in str(
        error.value
    )
    assert torch.equal(weights(model), kept[3]), "the weights moved"
    model.forward = forward
    assert find_checkpoints(tmp_path)
    assert (
        len(train(load_model(recipe), tokens, recipe, tmp_path).steps) == 5
    )  # the last good checkpoint continues


@pytest.mark.parametrize(
    "name",
    [
        "distilbert.embeddings.word_embeddings.weight",
        "distilbert.transformer.layer.0.ffn.lin1.weight",
        "classifier.bias",
    ],
)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_any_gradient_that_is_not_finite_stops_before_the_step(
    name, value, recipe, tokens, tmp_path
):
    model = load_model(recipe)

    def spoil(gradient):
        gradient = gradient.clone()
        gradient.view(-1)[-1] = value
        return gradient

    dict(model.named_parameters())[name].register_hook(spoil)
    before = weights(model)
    with pytest.raises(
        NonFiniteError, match="The gradient of the step after step 0 of 5"
    ):
        train(model, tokens, recipe, tmp_path)
    assert torch.equal(weights(model), before)
