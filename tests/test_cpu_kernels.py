"""The functions that a CPU trains with are PyTorch's, within rounding."""
import copy
import json

import pytest
import torch

from agnews_helpers import evaluate, load_model, make_loader, save_classifier
from agnews_helpers.cpu_kernels import NAME, Dropout, additive_mask, dropout
from agnews_helpers.mini import mini_tokenizer


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(1000, 999), (7, 11, 13, 17)])
def test_dropout_drops_its_share_and_keeps_the_mean(p, shape):
    torch.manual_seed(0)
    n = torch.Size(shape).numel()
    output = dropout(torch.ones(shape), p)
    kept = output != 0
    assert torch.allclose(output[kept], torch.tensor(1 / (1 - p)))
    assert kept.float().mean().item() == pytest.approx(1 - p, abs=5 * (p * (1 - p) / n) ** 0.5 + 1 / 65536)


def test_elements_are_dropped_independently():
    torch.manual_seed(0)
    kept = (dropout(torch.ones(400_000), 0.3) != 0).float()
    for distance in (1, 2, 3, 4, 5, 8):  # four elements share a random number
        both = (kept[:-distance] * kept[distance:]).mean().item()
        assert both == pytest.approx(0.49, abs=0.004)


def test_its_gradient_is_its_own_mask():
    torch.manual_seed(0)
    x = torch.randn(500, requires_grad=True)
    y = dropout(x, 0.25)
    y.sum().backward()
    assert torch.equal(x.grad, torch.where(y == 0, 0.0, 1 / 0.75)) and 50 < (y == 0).sum() < 200


def test_no_dropout_takes_no_random_number():
    before = torch.get_rng_state()
    x = torch.randn(5, generator=torch.Generator())
    assert dropout(x, 0.0) is x and Dropout(0.5).eval()(x) is x
    assert torch.equal(torch.get_rng_state(), before)


def test_the_model_trains_with_them_on_a_cpu(recipe):
    model = load_model(recipe)
    assert model.config._attn_implementation == NAME
    assert not any(type(module) is torch.nn.Dropout for module in model.modules())


@pytest.mark.parametrize("padded", [True, False])
def test_attention_gives_the_losses_and_gradients_of_pytorchs(padded, recipe, tokens):
    model = load_model(recipe).eval()  # without dropout
    batch = next(iter(make_loader(tokens["train"], recipe, 2)))
    if not padded:
        batch = {name: tensor[:, :20] if tensor.dim() == 2 else tensor for name, tensor in batch.items()}
        assert batch["attention_mask"].all()
    other = copy.deepcopy(model)
    other.config._attn_implementation = "sdpa"
    losses = [m(**batch).loss for m in (model, other)]
    assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-6)
    for loss in losses:
        loss.backward()
    for mine, theirs in zip(model.parameters(), other.parameters()):
        assert torch.allclose(mine.grad, theirs.grad, atol=1e-6)


def test_padding_gets_no_attention():
    mask = additive_mask(torch.tensor([[1, 1, 0]]))
    assert mask.shape == (1, 1, 1, 3) and mask.flatten()[:2].eq(0).all() and mask.flatten().softmax(-1)[2] == 0
    assert additive_mask(torch.ones(2, 3)) is None and additive_mask(None) is None


def test_evaluation_uses_pytorchs_attention_and_puts_ours_back(recipe, tokens, monkeypatch):
    model, used = load_model(recipe), []
    forward = model.forward
    model.forward = lambda **batch: (used.append(model.config._attn_implementation), forward(**batch))[1]
    evaluate(model, tokens["validation"], recipe)
    assert set(used) == {"sdpa"} and model.config._attn_implementation == NAME


def test_nothing_of_them_is_saved(recipe, tmp_path):
    save_classifier(load_model(recipe), mini_tokenizer(), tmp_path, recipe)
    assert NAME not in json.dumps(json.loads((tmp_path / "config.json").read_text(encoding="utf-8")))
