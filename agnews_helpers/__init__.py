"""The code behind the tutorial: fine-tune DistilBERT on AG News on a 4 GB graphics card.

Importing this loads nothing heavy; each name is fetched from its module when it is first used.
"""
from importlib import import_module

__version__ = "1.0.0"

# public name -> module
_WHERE = {
    "Recipe": "recipe", "LABELS": "recipe", "HubUnreachable": "recipe",
    "load_agnews": "data", "DataError": "data",
    "load_tokenizer": "model", "load_model": "model", "MiniUnavailable": "mini",
    "tokenize": "batching", "epoch_batches": "batching", "sorted_batches": "batching", "padded_tokens": "batching",
    "make_loader": "batching", "Collator": "batching",
    "train": "training", "training_step": "step", "find_or_train": "training", "Run": "training",
    "save_classifier": "checkpoints", "load_classifier": "checkpoints",
    "SaveError": "errors", "FolderInUse": "errors", "ResumeError": "errors", "PrecisionRefused": "errors",
    "NonFiniteError": "errors", "DoesNotFit": "errors",
    "evaluate": "evaluation", "score": "evaluation", "Report": "evaluation", "calibration": "evaluation", "calibration_error": "evaluation",
    "predict_logits": "prediction", "cls_vectors": "prediction", "classify": "prediction",
    "describe_machine": "hardware", "this_card": "hardware", "GTX_1650_TI": "hardware", "find_card": "hardware",
    "Setup": "vram.trace", "trace_steps": "vram.trace", "CachingAllocator": "vram.allocator", "replay": "vram.allocator",
    "step_budget": "vram.budget", "budget_table": "vram.budget", "largest_batch": "vram.budget",
    "largest_epoch_batch": "vram.budget", "measure_step": "vram.budget",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str):
    if name not in _WHERE:
        raise AttributeError(f"module 'agnews_helpers' has no attribute {name!r}")
    return getattr(import_module(f".{_WHERE[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
