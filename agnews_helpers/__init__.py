"""The code behind the tutorial: fine-tune DistilBERT on AG News on a 4 GB card.

Importing it loads nothing heavy: each name is fetched from its module when it is first
used.
"""

import os
from importlib import import_module

# huggingface_hub reads these when it is imported. Downloads through Xet are reported to
# stall on poor networks (xet-core issues 850 and 898); over HTTP they time out. Windows
# makes no links without Developer Mode, and nothing here needs them.
for _name in ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_SYMLINKS_WARNING"):
    os.environ.setdefault(_name, "1")

__version__ = "3.0.0"

# module -> its public names, in the order of the notebooks
_NAMES = {
    "recipe": "Recipe LABELS",
    "profiles": "recipe_for_this_machine environment_overrides",
    "data": "load_data SUPPORT",
    "checking": "check_data",
    "model": "load_tokenizer load_model pretrained_name load_classifier",
    "batching": "tokenize epoch_batches sorted_batches make_loader Collator",
    "training": "train forward_backward",
    "runs": "Run",
    "evaluation": "evaluate score Report predict_logits Classifier classify",
    "hardware": "describe_machine this_card",
    "budgeting": "training_step config_for full_run_hours",
    "plumbing.vram_cap": "vram_cap",
    "plumbing.errors": "AgnewsError InvalidValue DataError HubUnreachable "
    "MiniUnavailable SaveError Damaged FolderInUse ResumeError NonFiniteError "
    "DoesNotFit",
}
_WHERE = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = sorted(_WHERE)


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module 'agnews_helpers' has no attribute {name!r}")
    return getattr(import_module(f".{_WHERE[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
