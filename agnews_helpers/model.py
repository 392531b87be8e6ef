"""The classifier and its tokenizer: from the Hub, from a folder, or the offline ``mini``. Notebook 01."""
from .cpu_kernels import use_cpu_kernels
from .hub import pretrained
from .mini import mini_model, mini_tokenizer
from .recipe import LABELS, Recipe
from .storage import let_go

ID2LABEL = dict(enumerate(LABELS))
LABEL2ID = {label: i for i, label in ID2LABEL.items()}


def load_tokenizer(recipe: Recipe):
    """The model's own tokenizer.

    Raises
    ------
    MiniUnavailable
        When the recipe asks for ``mini`` and it is not installed or damaged.
    FileNotFoundError
        When the recipe's folder holds no model that can be read.
    HubUnreachable
        When the Hub fails, whatever the way.
    """
    if recipe.model == "mini":
        return mini_tokenizer()
    from transformers import AutoTokenizer

    return pretrained(AutoTokenizer, recipe.model)


def load_model(recipe: Recipe):
    """The pretrained encoder with a classification head for the four classes, in fp32, on the CPU.

    A head that the checkpoint lacks is drawn from `recipe.seed`, so the same recipe starts from the
    same weights. The state of the global random generator is left as it was. Where there is no GPU, the
    model trains with the functions of ``cpu_kernels``.

    Raises
    ------
    MiniUnavailable, FileNotFoundError, HubUnreachable
        As for `load_tokenizer`.
    """
    import torch

    head = dict(num_labels=len(LABELS), id2label=ID2LABEL, label2id=LABEL2ID)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        if recipe.model == "mini":
            model = mini_model(**head)
        else:
            from transformers import AutoModelForSequenceClassification

            # Since transformers 5 the default dtype is the checkpoint's; training wants fp32 whatever was stored.
            model = let_go(pretrained(AutoModelForSequenceClassification, recipe.model, dtype=torch.float32, **head))
    if not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        use_cpu_kernels(model)
    return model
