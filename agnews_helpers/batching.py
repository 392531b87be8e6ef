"""From texts to batches: tokens, the order of an epoch, and tensors of one shape. Notebooks 02 and 03."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from datasets import Dataset, concatenate_datasets
from torch.utils.data import DataLoader
from tqdm.auto import trange

from .plumbing.errors import InvalidValue
from .recipe import Recipe

MEGABATCH = 50  # batches that are sorted together; within them lengths agree, between them order stays random
PROGRESS_BAR_FROM_ROWS = 1_000  # rows; fewer are done in some seconds
EVALUATION_TOKENS = (
    2048  # more at once is slower on two cores, and needs more memory on a card
)


def tokenize(news, tokenizer, recipe: Recipe):
    """Add ``input_ids`` (a list of token ids, cut at `recipe.max_length`) and ``length`` to each row.

    Nothing is padded yet: how far depends on the batch a row will be in.
    """
    if hasattr(news, "values"):
        return type(news)(
            {name: tokenize(split, tokenizer, recipe) for name, split in news.items()}
        )
    # `split_special_tokens`: somebody's "[SEP]" is five characters like any others
    how = dict(truncation=True, max_length=recipe.max_length, split_special_tokens=True)
    texts, ids = news["text"][:], []
    for start in trange(
        0,
        len(texts),
        1000,
        desc="tokenize",
        disable=len(texts) <= PROGRESS_BAR_FROM_ROWS,
    ):
        ids += tokenizer(texts[start : start + 1000], **how)["input_ids"]
    if 2 * sum(row.count(tokenizer.unk_token_id) for row in ids[:100]) > sum(
        map(len, ids[:100])
    ):
        unknown = "The tokenizer does not know more than half of these texts' tokens"
        raise InvalidValue(
            f"{unknown}: it is another model's, or not made for their script."
        )
    tokens = Dataset.from_dict({"input_ids": ids, "length": [len(row) for row in ids]})
    return concatenate_datasets([news, tokens], axis=1)


def epoch_batches(
    lengths: Sequence[int], recipe: Recipe, epoch: int
) -> list[list[int]]:
    """The batches of one epoch as row numbers: every row once, in an order that seed and epoch alone decide.

    With `recipe.group_by_length` the shuffled rows are sorted by length within windows of 50 batches and
    the resulting batches shuffled again, so that a batch wastes little on padding and the model still
    meets short and long news in random order. The batch with the longest row comes first: where memory
    is too small, that shows at once.
    """
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + epoch)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    size = recipe.batch_size
    if not recipe.group_by_length:
        return [order[i : i + size] for i in range(0, len(order), size)]
    batches = []
    for start in range(0, len(order), MEGABATCH * size):
        window = sorted(
            order[start : start + MEGABATCH * size], key=lambda row: -lengths[row]
        )
        batches += [window[i : i + size] for i in range(0, len(window), size)]
    batches = [
        batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()
    ]
    longest = max(
        range(len(batches)), key=lambda i: max(lengths[row] for row in batches[i])
    )
    return [batches.pop(longest), *batches]


def sorted_batches(
    lengths: Sequence[int], most_tokens: int = EVALUATION_TOKENS
) -> list[list[int]]:
    """Row numbers from the longest row to the shortest, for evaluation, where order does not matter.

    A batch has as many rows as stay within `most_tokens`, padding included, and at least one.
    """
    left, batches = sorted(range(len(lengths)), key=lambda row: -lengths[row]), []
    while left:
        rows = max(1, most_tokens // max(1, lengths[left[0]]))
        batches.append(left[:rows])
        del left[:rows]
    return batches


@dataclass
class Collator:
    """Turns the rows of a batch into tensors of one shape.

    Returns ``input_ids`` and ``attention_mask`` of shape [batch, length] and ``labels`` of shape [batch],
    all int64. `pad_to` None pads to the longest row of the batch. A class, so that `DataLoader` workers
    can be started on Windows too.
    """

    pad_token_id: int = 0
    pad_to: int | None = None

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        ids = [row["input_ids"] for row in rows]
        width = self.pad_to or max(map(len, ids))
        return {
            "input_ids": torch.tensor(
                [row + [self.pad_token_id] * (width - len(row)) for row in ids]
            ),
            "attention_mask": torch.tensor(
                [[1] * len(row) + [0] * (width - len(row)) for row in ids]
            ),
            "labels": torch.tensor([row["label"] for row in rows]),
        }


def make_loader(
    rows, batches: list, recipe: Recipe, pad_token_id: int = 0
) -> DataLoader:
    """A `DataLoader` over tokenized rows, which makes the given batches in the given order.

    rows : a split of what `tokenize` returns.
    batches : row numbers, from `epoch_batches` for training or `sorted_batches` for evaluation.
    pad_token_id : what fills the short rows; 0 is ``[PAD]`` in the vocabulary of BERT and DistilBERT.
    """
    # No workers: the tokens are in memory already, and worker processes hang notebooks on Windows. A
    # generator of its own: a loader draws a number when it starts, which would change the dropout of a run
    # that is continued.
    how = dict(generator=torch.Generator(), pin_memory=torch.cuda.is_available())
    return DataLoader(
        rows,
        batch_sampler=batches,
        collate_fn=Collator(pad_token_id, recipe.pad_to),
        **how,
    )


def padded_tokens(
    lengths: Sequence[int], batches: list[list[int]], pad_to: int | None = None
) -> int:
    """How many tokens the model computes on for these batches, padding included."""
    return sum(
        len(batch) * (pad_to or max(lengths[row] for row in batch)) for batch in batches
    )
