"""What all tests share: a tiny model, its recipe, its tokens, and signals."""

import sys

import pytest

from agnews_helpers import Recipe, load_data, load_tokenizer, tokenize
from tests.signals import signals_of_a_terminal
from tests.tiny import tiny_model_folder

# They need a browser and an extra: `make test-browser` names the folder.
collect_ignore = ["browser"]
MAIN = sys.modules["__main__"]


@pytest.fixture(scope="session", autouse=True)
def signals():
    """Let the tests pass wherever they are started: they send signals."""
    with signals_of_a_terminal():
        yield


@pytest.fixture(autouse=True)
def main_module():
    """Put the main module back: cells of a notebook that are run here replace it."""
    yield
    sys.modules["__main__"] = MAIN


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder with a DistilBERT of 2 layers, 32 wide: it trains in a second."""
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
