import functools
import json
import math
import traceback
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, DatasetDict
from sklearn.utils.class_weight import compute_class_weight
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import pipeline

from agnews_helpers import (
    LABELS,
    DoesNotFit,
    InvalidValue,
    NonFiniteError,
    epoch_batches,
    evaluate,
    forward_backward,
    load_classifier,
    load_model,
    make_loader,
    runs,
    train,
    training,
)
from agnews_helpers.checkpoints import find_checkpoints
from agnews_helpers.plumbing.memory import in_parts
from agnews_helpers.training import (
    check_finite,
    class_weights,
    ready_to_train,
)
from tests.compare import assert_same_run, assert_same_weights


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


@pytest.mark.parametrize("size", [1, 3])
def test_parts_are_the_same_step(recipe, tokens, size):
    """test_memory.py has more sizes, and memory that runs out in between."""

    def step(split_sizes):
        model = load_model(recipe).eval()  # without dropout, whose masks differ
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        batch = first_batch(tokens, recipe)
        loss = in_parts(forward_backward, model, batch, split_sizes)
        optimizer.step()
        return loss.item(), weights(model)

    loss, moved = step([[1, size]])
    whole_loss, whole = step([])
    assert loss == pytest.approx(whole_loss, abs=1e-6)
    assert torch.allclose(moved, whole, atol=1e-6)


def test_the_loss_is_the_mean_cross_entropy(recipe, tokens):
    """And the loss of a part is divided by the rows of its batch."""
    model = load_model(recipe).eval()
    batch = first_batch(tokens, recipe)
    logits = model(batch["input_ids"], batch["attention_mask"]).logits
    expected = F.cross_entropy(logits, batch["labels"]).item()
    before = weights(model)
    loss = forward_backward(model, batch)
    assert loss.item() == pytest.approx(expected) and not loss.requires_grad
    assert model.classifier.weight.grad.abs().max() > 0
    assert torch.equal(weights(model), before)
    assert forward_backward(model, batch, 16).item() == pytest.approx(expected / 2)


def counted(model):
    """A list that gets the number of rows of each forward pass in training."""
    rows = []
    hook = lambda module, args, kwargs: (  # noqa: E731
        rows.append(len(kwargs["input_ids"])) if module.training else None
    )
    model.register_forward_pre_hook(hook, with_kwargs=True)
    return rows


def test_a_batch_is_taken_in_parts_if_the_recipe_says_so(recipe, tokens, tmp_path):
    model = load_model(recipe)
    rows = counted(model)
    run = train(model, tokens, recipe.replace(micro_batch_size=3), tmp_path)
    assert rows == [3, 3, 2] * 5 and len(run.steps) == 5 and run.finished


def test_the_size_of_parts_may_change_when_a_run_is_resumed(recipe, tokens, tmp_path):
    train(load_model(recipe), tokens, recipe, tmp_path, steps=2)
    model = load_model(recipe)
    rows = counted(model)
    assert train(model, tokens, recipe.replace(micro_batch_size=4), tmp_path).finished
    assert rows == [4, 4] * 3


@pytest.mark.parametrize("stop", [None, 2])
def test_gradient_checkpointing_gives_the_same_run(recipe, tokens, tmp_path, stop):
    """Bit for bit: dropout draws the same numbers twice. And the model is put back."""
    plain = train(load_model(recipe), tokens, recipe, tmp_path / "plain")
    leaner, model = recipe.replace(gradient_checkpointing=True), load_model(recipe)
    before = {m: dict(vars(m)) for m in model.modules()}
    train(model, tokens, leaner, tmp_path / "again", steps=stop)
    assert not any(getattr(m, "gradient_checkpointing", False) for m in model.modules())
    assert all(vars(m).keys() == before[m].keys() for m in model.modules())
    again = train(load_model(recipe), tokens, leaner, tmp_path / "again")
    assert again.steps["loss"].tolist() == plain.steps["loss"].tolist()
    assert torch.equal(weights(again.model), weights(plain.model))


def test_gradient_checkpointing_computes_each_layer_twice(recipe, tokens, tmp_path):
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


def test_the_cap_of_the_memory_holds_from_before_the_first_step_to_after_the_last(
    recipe, tokens, tmp_path, monkeypatch
):
    """And then PyTorch's cache is given back to the card."""
    entered = []

    @contextmanager
    def cap(device):
        assert device.type == "cpu"
        entered.append("in")
        yield
        entered.append("out")

    def step(*arguments, **options):
        entered.append("step")
        return forward_backward(*arguments, **options)

    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: entered.append("emptied"))
    monkeypatch.setattr(training, "vram_cap", cap)
    monkeypatch.setattr(training, "forward_backward", step)
    train(load_model(recipe), tokens, recipe, tmp_path)
    assert entered == ["in", *["step"] * 5, "emptied", "out"]


def test_gradients_left_in_the_model_are_cleared(recipe):
    """test_runs.py has whole runs."""
    model = load_model(recipe)
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight)
    with ready_to_train(model, recipe):
        assert all(weight.grad is None for weight in model.parameters())


def test_class_weights_are_those_of_scikit_learn(recipe):
    labels = [0] * 8 + [1] * 4 + [2] * 2 + [3]
    rows = Dataset.from_dict({"text": ["a"] * 15, "label": labels})
    model = load_model(recipe)
    assert class_weights(model, rows, recipe) is None
    balanced = class_weights(model, rows, recipe.replace(class_weights="balanced"))
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    assert balanced.tolist() == pytest.approx(expected.tolist())


def test_a_weighted_loss_is_the_same_in_parts(tokens, recipe):
    weighted = recipe.replace(class_weights="balanced")
    model = load_model(weighted).eval()
    weights = class_weights(model, tokens["train"], weighted)
    step = functools.partial(forward_backward, class_weights=weights)
    [batch] = make_loader(tokens["train"], [list(range(7))], weighted)

    def loss_of(split_sizes):
        model.zero_grad()
        loss = in_parts(step, model, batch, split_sizes).item()
        return loss, model.classifier.weight.grad.clone()

    whole, gradient = loss_of([])
    parts, gradient_of_parts = loss_of([[1, 2]])
    assert parts == pytest.approx(whole, abs=1e-6)
    assert torch.allclose(gradient, gradient_of_parts, atol=1e-6)


def test_a_class_without_rows_has_a_finite_weight(recipe, tokens):
    """As in a small sample of a rare class; the other weights are scikit-learn's."""
    rows = tokens["train"].select(range(12))
    labels = [0] * 6 + [2] * 4 + [1] * 2
    rows = rows.remove_columns("label").add_column("label", labels)
    model = load_model(recipe)
    weights = class_weights(model, rows, recipe.replace(class_weights="balanced"))
    expected = [12 / (4 * rows) for rows in (6, 2, 4, 1)]
    assert weights.tolist() == pytest.approx(expected)
    batch = next(iter(make_loader(rows, [list(range(12))], recipe)))
    assert forward_backward(model, batch, class_weights=weights).isfinite()


def test_history_and_steps(run):
    assert list(run.history.index) == [1, 2, 3, 4]
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
    for batch in make_loader(tokens["train"], batches, recipe):
        logits = model(batch["input_ids"], batch["attention_mask"]).logits
        loss = F.cross_entropy(logits, batch["labels"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses == theirs.steps["loss"].tolist()
    assert_same_weights(model, theirs.model)


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
        return SimpleNamespace(accuracy=accuracy, loss=loss, describe=lambda: "")

    monkeypatch.setattr(training, "evaluate", scripted)
    run = train(load_model(recipe), tokens, recipe.replace(epochs=4), tmp_path)
    assert run.best_epoch == 3
    assert torch.equal(run.model.classifier.weight, kept[2]) and not torch.equal(
        kept[2], kept[3]
    )
    assert torch.equal(load_classifier(tmp_path)[0].classifier.weight, kept[2])


def test_the_saved_classifier_is_the_validated_one(run, recipe, tokens):
    model, _ = load_classifier(run.folder)
    report = evaluate(model, tokens["validation"], recipe)
    assert report.accuracy == run.history.loc[run.best_epoch, "validation_accuracy"]
    assert report.loss == pytest.approx(
        run.history.loc[run.best_epoch, "validation_loss"], abs=1e-6
    )


def test_the_pipeline_of_transformers_takes_the_classifier(run):
    answer = pipeline("text-classification", model=str(run.folder / "best"))(
        "Stocks fall as oil climbs"
    )[0]
    assert answer["label"] in LABELS and 0 < answer["score"] <= 1


def test_the_folder_says_how_it_was_made(run, recipe):
    facts = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
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


def test_in_bf16_a_loss_has_the_digits_of_fp32(recipe, tokens):
    """The forward pass is in half precision, the loss of its logits is not."""
    model = load_model(recipe)
    with ready_to_train(model, recipe.replace(precision="bf16")):
        logits = model.eval()(first_batch(tokens, recipe)["input_ids"]).logits
        loss = forward_backward(model, first_batch(tokens, recipe))
        gradient = model.classifier.weight.grad.dtype
    assert logits.dtype == torch.bfloat16
    assert loss.dtype == gradient == torch.float32
    assert loss != loss.bfloat16()


# Memory that runs out, and numbers that are not finite


def faulty(model, fails):
    """Let a model fail in training: `fails(batch, number of calls)` gives the error."""
    forward = model.forward
    calls = []

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


@pytest.mark.slow
def test_a_run_that_runs_out_of_memory_ends_like_one_that_does_not(
    recipe, tokens, tmp_path, monkeypatch, capsys
):
    """At every third step, after the backward pass of the first of two parts."""
    three = recipe.replace(epochs=3, micro_batch_size=4)
    calm = train(without_dropout(recipe), tokens, three, tmp_path / "calm")
    failed = []
    step = []

    def in_parts_that_forget(function, model, batch, split_sizes):
        step.append(1)
        parts = []

        def fails(model, part, rows):
            parts.append(len(part["input_ids"]))
            if len(step) % 3 == 0 and parts == [4, 4]:
                failed.append(model.classifier.weight.grad.abs().max().item())
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return function(model, part, rows=rows)

        # A copy: so that the next step tries parts of 4 rows again.
        return in_parts(fails, model, batch, [*split_sizes])

    monkeypatch.setattr(training, "in_parts", in_parts_that_forget)
    run = train(without_dropout(recipe), tokens, three, tmp_path / "often")
    assert len(failed) == 5 and all(failed), "no gradients were there"
    assert capsys.readouterr().out.count("Out of memory with 4 rows") == 5
    assert len(run.steps) == len(calm.steps) == 15
    assert (run.steps["loss"] - calm.steps["loss"]).abs().max() < 1e-6
    assert (weights(run.model) - weights(calm.model)).abs().max() < 1e-6


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


slow = functools.partial(pytest.param, marks=pytest.mark.slow)
REMEDIES = r".*goes on from there.*\(1\) Close .*\(2\) .*\(3\) .*AGNEWS_MODEL=mini"


@pytest.mark.slow
def test_at_one_row_it_stops_with_three_remedies(recipe, tokens, tmp_path):
    model = load_model(recipe)
    sizes = faulty(
        model, lambda batch, call: torch.OutOfMemoryError("CUDA out of memory.")
    )
    before = weights(model)
    where = r"not even one row of \d+ tokens fits .*after step 0 of 5"
    with pytest.raises(DoesNotFit, match=f"^Out of memory: {where}{REMEDIES}"):
        train(model, tokens, recipe, tmp_path)
    assert sizes == [8, 4, 2, 1] and torch.equal(weights(model), before)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    "owner, name, words",
    [
        slow(runs, "read_checkpoint", "CUDA out of memory"),
        slow(training, "class_weights", "CUDA out of memory"),
        (torch.optim.Adam, "step", "the optimizer's step does not fit"),
        (training, "evaluate", "CUDA out of memory"),
    ],
)
def test_wherever_memory_runs_out_it_says_what_helps_and_the_run_goes_on(
    owner, name, words, recipe, tokens, tmp_path, monkeypatch
):
    """And a notebook, which keeps the error, does not keep Adam's means with it."""
    model = load_model(recipe)

    def no_room(*_, **__):
        for weight in model.parameters():
            weight.grad = torch.ones_like(weight)
        raise torch.OutOfMemoryError("CUDA out of memory.\nMore of it")

    whole = train(load_model(recipe), tokens, recipe, tmp_path / "whole")
    train(load_model(recipe), tokens, recipe, tmp_path / "run", steps=2)
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, no_room)
        with pytest.raises(DoesNotFit, match=f"^Out of memory: {words}{REMEDIES}") as e:
            train(model, tokens, recipe, tmp_path / "run")
    frames = [frame.f_locals for frame, _ in traceback.walk_tb(e.value.__traceback__)]
    kept = [names["adam"].state for names in frames if "adam" in names]
    assert kept and not any(kept)
    newest = find_checkpoints(tmp_path / "run")[0].name
    assert newest == ("step-00000005" if name == "evaluate" else "step-00000002")
    assert all(weight.grad is None for weight in model.parameters())
    assert_same_run(train(load_model(recipe), tokens, recipe, tmp_path / "run"), whole)


def test_a_step_is_checked_by_few_calls_which_do_not_grow_with_the_model(
    recipe, tokens
):
    """On a card each is a kernel to launch; the norms are one call for all weights."""
    called = []

    class Count(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.append(func)
            return func(*args, **(kwargs or {}))

    model = load_model(recipe)
    loss = forward_backward(model, first_batch(tokens, recipe))
    with Count():
        value = check_finite(loss, model)
    assert value == loss.item() and len(list(model.parameters())) > 20
    assert called.count(torch.ops.aten._foreach_norm.Scalar) == 1
    kernels = [func for func in called if func is not torch.ops.aten.detach.default]
    assert len(kernels) < 8, kernels


def test_another_error_goes_through(recipe, tokens, tmp_path):
    model = load_model(recipe)
    faulty(model, lambda batch, call: RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="^shapes do not match$"):
        train(model, tokens, recipe, tmp_path)


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
    assert f"rows in the train split: {', '.join(map(str, rows))}. If" in str(
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


@pytest.mark.parametrize("loss, problem", [(2.0, "gradient"), (math.nan, "loss")])
def test_what_is_not_finite_is_named_and_cleared(recipe, loss, problem):
    model = load_model(recipe)
    model.classifier.bias.grad = torch.tensor([math.inf, 0, 0, 0])
    with pytest.raises(NonFiniteError, match=problem):
        check_finite(torch.tensor(loss), model)
    assert model.classifier.bias.grad is None


# What cannot be trained is refused before any work


def test_classes_in_another_order_are_refused(recipe, tokens, tmp_path):
    model = load_model(recipe, LABELS[::-1])
    with pytest.raises(InvalidValue, match="The model's classes do not match the data"):
        train(model, tokens, recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_row_that_alone_was_cut_elsewhere_is_found(recipe, tokens, tmp_path):
    """The longest one, wherever it stands."""
    lengths = tokens["train"]["length"][:]
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    assert lengths[by_length[-2]] < lengths[by_length[-1]]
    rows = {**tokens, "train": tokens["train"].select(by_length)}
    shorter = recipe.replace(max_length=max(lengths) - 1)
    with pytest.raises(InvalidValue, match="cut at another length than max_length="):
        train(load_model(recipe), rows, shorter, tmp_path / "run")


def test_tokens_of_another_length_or_tokenizer_are_refused(recipe, tokens, tmp_path):
    """Otherwise the saved classifier would read other ids than it was trained with."""
    expected = "made by another tokenizer .* or cut at another length than max_length="
    with pytest.raises(InvalidValue, match=expected + "32"):
        train(load_model(recipe), tokens, recipe.replace(max_length=32), tmp_path / "a")
    shifted = tokens.map(lambda row: {"input_ids": [i + 1 for i in row["input_ids"]]})
    with pytest.raises(InvalidValue, match=expected + "512"):
        train(load_model(recipe), shifted, recipe, tmp_path / "b")
    assert not any(tmp_path.iterdir())
