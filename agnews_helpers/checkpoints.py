"""What a training run leaves on disk: a folder that `transformers` loads without this package. Notebook 06."""
import json
from contextlib import contextmanager
from pathlib import Path

from .recipe import Recipe

RUN_FILE = "agnews_run.json"


def save_classifier(model, tokenizer, folder: str | Path, recipe: Recipe, **facts) -> Path:
    """Write model (safetensors), tokenizer and ``agnews_run.json`` into `folder` and return it.

    `facts` are plain values to keep beside the recipe, such as the epoch and its validation accuracy.
    ``transformers.pipeline("text-classification", model=folder)`` loads the result.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _no_bars():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    facts = {"recipe": recipe.to_dict(), **facts}
    (folder / RUN_FILE).write_text(json.dumps(facts, indent=2), encoding="utf-8")
    return folder


def is_classifier(folder: str | Path) -> bool:
    """Whether `folder` holds a saved model."""
    return all((Path(folder) / name).is_file() for name in ("config.json", "model.safetensors"))


def load_classifier(folder: str | Path):
    """Model and tokenizer from a folder that `save_classifier` or ``save_pretrained`` wrote.

    Raises
    ------
    FileNotFoundError
        When the folder holds no saved model.
    """
    if not is_classifier(folder):
        raise FileNotFoundError(f"{folder} holds no trained classifier (config.json and model.safetensors). "
                                f"Run notebook 04, or: agnews train --output-dir {folder}")
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    with _no_bars():
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


@contextmanager
def _no_bars():
    """Without transformers' progress bars, which tell nothing about files that are read in under a second."""
    from transformers.utils import logging

    active = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if active:
            logging.enable_progress_bar()


def run_facts(folder: str | Path) -> dict:
    """What `save_classifier` noted about the run, or an empty dict for a model from elsewhere."""
    path = Path(folder) / RUN_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
