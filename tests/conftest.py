import pytest

from agnews_helpers import Recipe, load_agnews, tokenize
from agnews_helpers.mini import mini_tokenizer
from agnews_helpers.recipe import LABELS

collect_ignore = ["browser"]  # needs a browser and an extra: `make test-browser` names the folder, and so gets it


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder with a 2-layer, 32-wide DistilBERT: the real class, trained in a second."""
    import torch
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    config = DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, num_labels=4,
                              id2label=dict(enumerate(LABELS)), label2id={name: i for i, name in enumerate(LABELS)})
    DistilBertForSequenceClassification(config).save_pretrained(folder)
    mini_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def recipe(tiny):
    """Forty rows, one epoch, the tiny model."""
    return Recipe(profile="offline", model=str(tiny), data="sample", train_rows=44, test_rows=20, epochs=1,
                  learning_rate=1e-3)


@pytest.fixture(scope="session")
def tokens(recipe):
    return tokenize(load_agnews(recipe), mini_tokenizer(), recipe)
