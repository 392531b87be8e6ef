"""A DistilBERT that trains in a second, for tests and benchmarks."""

from pathlib import Path

from agnews_helpers import LABELS, Recipe, load_tokenizer

SIZE = dict(dim=32, n_layers=2, n_heads=2, hidden_dim=64)


def tiny_model_folder(
    folder: Path, *, kind: str = "DistilBertForSequenceClassification", **changes
) -> Path:
    """Save a DistilBERT of 2 layers, 32 wide, with mini's tokenizer.

    Parameters
    ----------
    folder : Path
        Where to save it.
    kind : str
        Which of transformers' classes; its weights are drawn from seed 0.
    **changes
        Fields of its configuration.

    Returns
    -------
    Path
        The folder.
    """
    import torch
    import transformers

    names = dict(
        id2label=dict(enumerate(LABELS)),
        label2id={name: i for i, name in enumerate(LABELS)},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, kind)(
            transformers.DistilBertConfig(**SIZE | names | changes)
        )
    model.save_pretrained(folder)
    load_tokenizer(Recipe(model="mini")).save_pretrained(folder)
    return folder
