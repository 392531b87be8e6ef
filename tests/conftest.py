import pytest

from agnews_helpers import Recipe, load_data, load_tokenizer, tokenize
from tests.tiny import tiny_model_folder

collect_ignore = [
    "browser"
]  # needs a browser and an extra: `make test-browser` names the folder, and so gets it


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder with a 2-layer, 32-wide DistilBERT: the real class, trained in a second."""
    return tiny_model_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def recipe(tiny):
    """Forty rows, one epoch, the tiny model."""
    return Recipe(
        profile="offline",
        model=str(tiny),
        data="sample",
        train_rows=44,
        test_rows=20,
        epochs=1,
        learning_rate=1e-3,
    )


@pytest.fixture(scope="session")
def tokens(recipe):
    return tokenize(load_data(recipe), load_tokenizer(recipe), recipe)
