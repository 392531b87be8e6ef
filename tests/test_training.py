import json
import math

import pytest
import torch
import torch.nn.functional as F
from accelerate.utils import set_seed
from datasets import DatasetDict
from transformers import pipeline

from agnews_helpers import LABELS, evaluate, find_or_train, load_classifier, load_model, make_loader, train
from agnews_helpers import session
from agnews_helpers.training import make_accelerator, training_step


@pytest.fixture(scope="module")
def run(recipe, tokens, tmp_path_factory):
    return train(load_model(recipe), tokens, recipe.but(epochs=4), tmp_path_factory.mktemp("run") / "agnews")


def test_it_learns_eight_rows_by_heart(recipe, tokens, tmp_path):
    few = DatasetDict(train=tokens["train"].select(range(8)), validation=tokens["validation"])
    run = train(load_model(recipe), few, recipe.but(epochs=40, learning_rate=5e-3), tmp_path)
    assert run.steps["loss"].iloc[0] == pytest.approx(math.log(4), abs=0.1)
    assert run.steps["loss"].iloc[-1] < 0.3


@pytest.mark.parametrize("micro", [1, 3, 4, 8, 20])
def test_accumulated_parts_are_the_same_step(recipe, tokens, micro):
    def step(micro_batch_size):
        model = load_model(recipe).eval()  # without dropout, whose masks differ
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        loss = training_step(model, next(iter(make_loader(tokens["train"], recipe, epoch=1))), optimizer,
                             make_accelerator(recipe), micro_batch_size)
        return loss.item(), torch.cat([p.detach().flatten() for p in model.parameters()])

    (loss, weights), (whole_loss, whole) = step(micro), step(None)
    assert loss == pytest.approx(whole_loss, abs=1e-6) and torch.allclose(weights, whole, atol=1e-6)


def test_history_and_steps(run):
    assert list(run.history.index) == [1, 2, 3, 4] and run.seconds > 0
    assert list(run.history.columns) == ["train_loss", "validation_loss", "validation_accuracy", "rows_per_second"]
    assert list(run.steps.index) == list(range(1, 4 * 5 + 1))  # 40 rows, batches of 8, 4 epochs
    for epoch in (1, 2, 3, 4):
        assert run.history.loc[epoch, "train_loss"] == pytest.approx(run.steps["loss"][5 * epoch - 5:5 * epoch].mean())


def test_it_equals_the_plain_loop_bit_for_bit(recipe, tokens, tmp_path):
    theirs = train(load_model(recipe), tokens, recipe, tmp_path)
    model = load_model(recipe).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, fused=True)
    set_seed(recipe.seed)
    losses = []
    for batch in make_loader(tokens["train"], recipe, epoch=1):
        loss = F.cross_entropy(model(batch["input_ids"], batch["attention_mask"]).logits, batch["labels"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses == theirs.steps["loss"].tolist()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), theirs.model.parameters()))


def test_the_same_recipe_gives_the_same_run(recipe, tokens, tmp_path):
    runs = [train(load_model(recipe), tokens, recipe, tmp_path / name) for name in ("a", "b")]
    torch.rand(1)
    assert runs[0].steps.equals(runs[1].steps)


def test_the_best_epoch_is_kept_not_the_last(recipe, tokens, tmp_path, monkeypatch):
    reports = iter([(0.5, 1.0), (0.75, 0.9), (0.75, 0.8), (0.5, 0.1)])  # accuracy, loss: epoch 3 wins by its loss
    weights = []

    def scripted(model, rows, recipe):
        weights.append(model.classifier.weight.detach().clone())
        accuracy, loss = next(reports)
        return type("Report", (), {"accuracy": accuracy, "loss": loss})()

    monkeypatch.setattr(session, "evaluate", scripted)
    run = train(load_model(recipe), tokens, recipe.but(epochs=4), tmp_path)
    assert run.best_epoch == 3
    assert torch.equal(run.model.classifier.weight, weights[2]) and not torch.equal(weights[2], weights[3])
    assert torch.equal(load_classifier(tmp_path)[0].classifier.weight, weights[2])


def test_what_is_saved_is_what_was_validated(run, recipe, tokens):
    model, _ = load_classifier(run.folder)
    report = evaluate(model, tokens["validation"], recipe)
    assert report.accuracy == run.history.loc[run.best_epoch, "validation_accuracy"]
    assert report.loss == pytest.approx(run.history.loc[run.best_epoch, "validation_loss"], abs=1e-6)


def test_transformers_alone_loads_the_folder(run):
    answer = pipeline("text-classification", model=str(run.folder))("Stocks fall as oil climbs")[0]
    assert answer["label"] in LABELS and 0 < answer["score"] <= 1


def test_the_folder_says_how_it_was_made(run, recipe):
    facts = json.loads((run.folder / "agnews_run.json").read_text(encoding="utf-8"))
    assert facts["recipe"]["batch_size"] == 8 and facts["recipe"]["seed"] == recipe.seed and facts["epoch"] == run.best_epoch
    assert (run.folder / "history.csv").read_text().count("\n") == 5


def test_bf16_after_fp32_in_one_process(recipe, tokens, tmp_path):
    few = DatasetDict(train=tokens["train"].select(range(8)), validation=tokens["validation"])
    losses = [train(load_model(recipe), few, recipe.but(precision=precision), tmp_path / precision, resume=False).steps["loss"].iloc[0]
              for precision in ("fp32", "bf16", "fp32")]
    assert losses[0] == losses[2] != losses[1] and losses[1] == pytest.approx(losses[0], rel=0.02)


def test_a_folder_that_cannot_be_made_fails_before_training(recipe, tokens, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(session, "Stepper", lambda *a: pytest.fail("trained first"))
    with pytest.raises(OSError):
        train(load_model(recipe), tokens, recipe, tmp_path / "file" / "run")


def test_find_or_train(recipe, tmp_path, capsys):
    find_or_train(recipe, tmp_path / "agnews", rows=40)
    assert "training one on at most 40 rows" in capsys.readouterr().out
    before = (tmp_path / "agnews" / "model.safetensors").stat().st_mtime_ns
    model, tokenizer = find_or_train(recipe, tmp_path / "agnews")
    assert "Using the classifier of notebook 04 (profile offline)" in capsys.readouterr().out
    assert (tmp_path / "agnews" / "model.safetensors").stat().st_mtime_ns == before and model.config.num_labels == 4
