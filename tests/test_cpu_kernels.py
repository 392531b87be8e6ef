"""The faster CPU functions give PyTorch's results, within rounding."""

import json
import tempfile

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    ModernBertConfig,
)

from agnews_helpers import (
    epoch_batches,
    evaluate,
    load_model,
    load_tokenizer,
    make_loader,
)
from agnews_helpers.model import write_classifier
from agnews_helpers.plumbing.cpu_kernels import (
    ATTENTION_NAME,
    _attention,
    _dropout,
    _mask,
    cpu_kernels,
)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(1000, 999), (7, 11, 13, 17)])
def test_dropout_drops_its_share_and_keeps_the_mean(p, shape):
    torch.manual_seed(0)
    n = torch.Size(shape).numel()
    output = _dropout(torch.nn.Dropout(p), torch.ones(shape))
    kept = output != 0
    assert torch.allclose(output[kept], torch.tensor(1 / (1 - p)))
    assert kept.float().mean().item() == pytest.approx(
        1 - p, abs=5 * (p * (1 - p) / n) ** 0.5 + 1 / 65536
    )


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_a_seed_decides_every_byte(p):
    """The same result, computed by NumPy from the same random numbers."""
    x = torch.randn(300, 333)
    torch.manual_seed(3)
    output = _dropout(torch.nn.Dropout(p), x)
    state = torch.get_rng_state()
    torch.manual_seed(3)
    numbers = torch.empty(24_975, dtype=torch.int64).random_(-(2**63), 2**63 - 1)
    assert torch.equal(torch.get_rng_state(), state)  # and it takes no more of them
    keep = numbers.numpy().view(np.int16)[:99_900] < round((1 - p) * 65536) - 32768
    scale = keep.reshape(x.shape) * np.float32(1 / (1 - p))
    assert output.numpy().tobytes() == (x.numpy() * scale).tobytes()


def test_elements_are_dropped_independently():
    torch.manual_seed(0)
    kept = (_dropout(torch.nn.Dropout(0.3), torch.ones(400_000)) != 0).float()
    for distance in (1, 2, 3, 4, 5, 8):  # four elements share a random number
        both = (kept[:-distance] * kept[distance:]).mean().item()
        assert both == pytest.approx(0.49, abs=0.004)


def test_its_gradient_is_its_own_mask():
    torch.manual_seed(0)
    x = torch.randn(500, requires_grad=True)
    y = _dropout(torch.nn.Dropout(0.25), x)
    y.sum().backward()
    assert (
        torch.equal(x.grad, torch.where(y == 0, 0.0, 1 / 0.75))
        and 50 < (y == 0).sum() < 200
    )


def test_no_dropout_takes_no_random_number():
    before = torch.get_rng_state()
    x = torch.randn(5, generator=torch.Generator())
    assert _dropout(torch.nn.Dropout(0.0), x) is x
    assert _dropout(torch.nn.Dropout(0.5).eval(), x) is x
    assert torch.equal(torch.get_rng_state(), before)


CPU = torch.device("cpu")


def a_batch(tokens, recipe):
    batches = epoch_batches(tokens["train"]["length"][:], recipe, 2)
    return next(iter(make_loader(tokens["train"], batches, recipe)))


def test_the_model_is_patched_inside_and_restored_after(recipe):
    model = load_model(recipe)
    dropouts = [
        module for module in model.modules() if type(module) is torch.nn.Dropout
    ]
    changed = [*dropouts, model.distilbert.transformer.layer[-1]]
    with pytest.raises(KeyboardInterrupt), cpu_kernels(model, CPU):
        assert model.config._attn_implementation == ATTENTION_NAME
        assert dropouts and all("forward" in vars(module) for module in changed)
        raise KeyboardInterrupt
    assert model.config._attn_implementation == "sdpa"
    assert not any("forward" in vars(module) for module in model.modules())


def test_on_a_gpu_the_model_is_not_patched(recipe):
    model = load_model(recipe)
    with cpu_kernels(model, torch.device("cuda")):
        assert model.config._attn_implementation == "sdpa"
        assert not any("forward" in vars(module) for module in model.modules())


def stock(model):
    """The same weights in a model as `transformers` makes it."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return type(model).from_pretrained(folder, attn_implementation="eager")


def without_dropout(model):
    """`eval()` would let some layers take another way: this is training mode."""
    for module in model.train().modules():
        if hasattr(module, "p"):
            module.p = 0.0
    return model


@pytest.mark.parametrize("padded", [True, False])
def test_losses_and_gradients_are_those_of_the_stock_model(padded, recipe, tokens):
    model = without_dropout(load_model(recipe))
    batch = a_batch(tokens, recipe)
    if not padded:
        batch = {
            name: tensor[:, :20] if tensor.dim() == 2 else tensor
            for name, tensor in batch.items()
        }
        assert batch["attention_mask"].all()
    other = without_dropout(stock(model))
    with cpu_kernels(model, CPU):
        losses = [m(**batch).loss for m in (model, other)]
        assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-6)
        for loss in losses:
            loss.backward()
    for mine, theirs in zip(model.parameters(), other.parameters()):
        assert torch.allclose(mine.grad, theirs.grad, atol=1e-6)


def test_the_last_layer_is_computed_for_the_first_token_only(recipe, tokens):
    model = load_model(recipe).eval()
    batch = a_batch(tokens, recipe)
    del batch["labels"]
    with cpu_kernels(model, CPU):
        hidden = model.distilbert(**batch).last_hidden_state
    whole = stock(model).distilbert(**batch).last_hidden_state
    assert (
        hidden.shape == (8, 1, 32) and whole.shape[1] == batch["input_ids"].shape[1] > 1
    )
    assert torch.allclose(hidden[:, 0], whole[:, 0], atol=1e-5)


def test_a_head_that_reads_every_token_gets_every_token(recipe, tokens):
    config = DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64)
    model = AutoModelForTokenClassification.from_config(config).eval()
    batch = a_batch(tokens, recipe)
    del batch["labels"]
    before = model(**batch).logits
    with cpu_kernels(model, CPU):
        assert torch.allclose(model(**batch).logits, before, atol=1e-6)


def test_dropout_on_attention_drops_its_share(recipe):
    """Averaged over many draws, attention with dropout is attention without it."""
    torch.manual_seed(0)
    model = load_model(recipe).train()
    layer = model.distilbert.transformer.layer[0].attention
    query, key, value = (torch.randn(1, 2, 5, 4) for _ in range(3))

    def mixed(p):
        layer.dropout.p = p
        return _attention(layer, query, key, value, None)[0]

    with cpu_kernels(model, CPU):
        with_dropout = [mixed(0.3) for _ in range(3000)]
        without = mixed(0.0)
    assert torch.allclose(torch.stack(with_dropout).mean(0), without, atol=0.06)
    assert not torch.allclose(with_dropout[0], without, atol=0.06)


SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
OTHERS = {
    "BERT": BertConfig(**SIZES, intermediate_size=64),
    "ModernBERT, with a sliding window": ModernBertConfig(
        **SIZES, intermediate_size=64, local_attention=4, global_attn_every_n_layers=2
    ),
    "GPT-2, with a causal mask": GPT2Config(n_embd=32, n_layer=2, n_head=2),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", OTHERS)
def test_another_architecture_is_left_as_it_is(name, training, recipe, tokens):
    """These functions would lose its causal mask or sliding window."""
    config = OTHERS[name]
    config.num_labels = 4
    config.vocab_size = 30522
    config.pad_token_id = 0
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    model = without_dropout(model).train(training)
    modules = {module: vars(module).copy() for module in model.modules()}
    implementation = model.config._attn_implementation
    batch = a_batch(tokens, recipe)
    before = model(**batch).logits
    with cpu_kernels(model, CPU):
        assert model.config._attn_implementation == implementation != ATTENTION_NAME
        assert all(vars(module) == modules[module] for module in modules)
        assert torch.equal(model(**batch).logits, before)


def test_padding_gets_no_attention():
    mask = _mask(torch.tensor([[1, 1, 0]]))
    assert (
        mask.shape == (1, 1, 1, 3)
        and mask.flatten()[:2].eq(0).all()
        and mask.flatten().softmax(-1)[2] == 0
    )
    assert _mask(torch.ones(2, 3)) is None and _mask(None) is None


@pytest.mark.parametrize("training", [True, False])
def test_padding_is_not_attended_to_with_dropout_either(training, recipe):
    model = load_model(recipe).train(training)
    layer = model.distilbert.transformer.layer[0].attention
    query, key = torch.randn(2, 1, 2, 5, 4).unbind()
    value = torch.zeros_like(key)
    value[..., -1, :] = 1  # of the token that is padding
    mask = _mask(torch.tensor([[1, 1, 1, 1, 0]]))
    with cpu_kernels(model, CPU):
        assert _attention(layer, query, key, value, None)[0].abs().max() > 0
        assert _attention(layer, query, key, value, mask)[0].abs().max() == 0


def test_evaluation_gives_the_same_with_and_without(recipe, tokens):
    model = load_model(recipe)
    before = evaluate(model, tokens["validation"], recipe)
    with cpu_kernels(model, CPU):
        during = evaluate(model, tokens["validation"], recipe)
    assert during.loss == pytest.approx(before.loss, abs=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_a_model_in_float64_is_exact(training, recipe, tokens):
    """Its mask has its precision: PyTorch's fused kernel misreads another one."""
    model = without_dropout(load_model(recipe)).double().train(training)
    batch = a_batch(tokens, recipe)
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert not inputs["attention_mask"].all()
    stock_logits = model(**inputs).logits
    with cpu_kernels(model, torch.device("cpu")):
        logits = model(**inputs).logits
    assert (logits - stock_logits).abs().max() < 1e-14


def test_nothing_of_the_patch_is_saved(recipe, tmp_path):
    model = load_model(recipe)
    with cpu_kernels(model, CPU):
        write_classifier(model, load_tokenizer(recipe), tmp_path)
    assert ATTENTION_NAME not in json.dumps(
        json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    )
