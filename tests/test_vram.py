import pytest
import torch
from transformers import AutoModelForSequenceClassification, BertConfig, DistilBertConfig

from agnews_helpers import budget_table, measure_step, step_budget

DISTILBERT = DistilBertConfig(num_labels=4)
MIB = 2**20


def test_four_numbers_for_each_parameter():
    budget = step_budget(DISTILBERT, 8, 64)
    assert budget.weights * MIB == 66_956_548 * 4
    assert budget.gradients == budget.weights and budget.moments == 2 * budget.weights
    assert budget.total == pytest.approx(sum(budget.parts().values()))


@pytest.mark.parametrize("attention, dropout", [("eager", 0.1), ("sdpa", 0.0)])
@pytest.mark.parametrize("config", [DistilBertConfig, BertConfig])
def test_fake_tensors_count_what_real_ones_save(config, attention, dropout):
    """The same count on real tensors, with a mask that has padding, as real batches do."""
    sizes = dict(num_labels=4, vocab_size=100, num_attention_heads=4, num_hidden_layers=2)
    small = config(**sizes, **({"dim": 64, "hidden_dim": 128} if config is DistilBertConfig else {"hidden_size": 64, "intermediate_size": 128}))
    predicted = step_budget(small, 3, 40, attention)
    small.attention_dropout = small.attention_probs_dropout_prob = dropout
    model = AutoModelForSequenceClassification.from_config(small, attn_implementation=attention).train()
    saved = {}

    def note(tensor):
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    mask = torch.ones(3, 40, dtype=torch.long)
    mask[1, 30:] = 0
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(input_ids=mask.clone(), attention_mask=mask, labels=mask[:, 0]).loss
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    counted = sum(t.untyped_storage().nbytes() for key, t in saved.items() if key not in own) / MIB
    assert loss.isfinite() and predicted.activations == pytest.approx(counted, rel=0.01)


def test_known_figures_of_distilbert_at_512():
    """An independent count of the same graph: 2,989 MiB with eager attention, 1,310 with SDPA."""
    assert step_budget(DISTILBERT, 8, 512, "eager").activations == pytest.approx(2989, rel=0.01)
    assert step_budget(DISTILBERT, 8, 512, "sdpa").activations == pytest.approx(1310, rel=0.01)


def test_growth_with_rows_and_length():
    def activations(rows, length, attention):
        return step_budget(DISTILBERT, rows, length, attention).activations

    assert activations(16, 64, "sdpa") == pytest.approx(2 * activations(8, 64, "sdpa"), rel=0.01)
    assert activations(8, 512, "sdpa") < 2.1 * activations(8, 256, "sdpa")
    assert activations(8, 512, "eager") > 2.5 * activations(8, 256, "eager")


def test_the_callers_configuration_is_left_alone():
    config = DistilBertConfig(num_labels=4)
    step_budget(config, 1, 8)
    assert config.to_dict() == DISTILBERT.to_dict() and config._attn_implementation == DISTILBERT._attn_implementation


def test_the_table_has_a_row_for_each_case():
    table = budget_table(DISTILBERT, lengths=(8, 16))
    assert table.index.tolist() == [("sdpa", 8), ("sdpa", 16), ("eager", 8), ("eager", 16)]
    assert table["total"].tolist() == pytest.approx(table.drop(columns="total").sum(axis=1).tolist())


@pytest.mark.parametrize("arguments", [(0, 64), (8, 513), (8, 0), (8, 64, "flash")])
def test_sizes_out_of_range(arguments):
    with pytest.raises(ValueError):
        step_budget(DISTILBERT, *arguments)


def test_measuring_needs_a_gpu(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(RuntimeError, match="needs a CUDA device"):
        measure_step(DISTILBERT, 8, 64)
