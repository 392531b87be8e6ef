"""From texts to batches: tokens, the order of an epoch, and the `DataLoader`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset, DatasetDict, concatenate_datasets
from torch.utils.data import DataLoader
from tqdm.auto import trange
from transformers import PreTrainedTokenizerBase

from .plumbing.errors import InvalidValue, check_types
from .plumbing.tables import problem_of
from .recipe import Recipe

MEGABATCH = 50  # batches per window that is sorted by length
# Tokens of a batch that is only evaluated. More are slower on a CPU with two cores, and
# need more memory on a GPU.
EVALUATION_TOKENS = 2048
COLUMNS = ("text", "label", "input_ids", "length")  # of a tokenized split
Batches = list[list[int]]  # the row indices of each batch


@check_types
def tokenize(
    news: Dataset | DatasetDict, tokenizer: PreTrainedTokenizerBase, recipe: Recipe
) -> Dataset | DatasetDict:
    """Add the columns ``input_ids`` and ``length`` to a data set.

    The ids are truncated to `recipe.max_length` but not padded yet: the padded length
    depends on the batch that a row will be in. Special tokens that are part of a text,
    such as "[SEP]", are treated as ordinary characters.

    Parameters
    ----------
    news : Dataset or DatasetDict
        From `load_data`: rows with a column ``text``. Of a DatasetDict every split is
        tokenized.
    tokenizer : PreTrainedTokenizerBase
        The tokenizer of the model that will read the tokens.
    recipe : Recipe
        Only its `max_length` is used.

    Returns
    -------
    Dataset or DatasetDict
        The rows of `news` with the new columns: a list of token ids, and its length.

    Raises
    ------
    InvalidValue
        If there are no rows, one has no readable text, or the tokenizer does not know
        more than half of the tokens of five rows or more.
    """
    if isinstance(news, dict):
        splits = {name: tokenize(news[name], tokenizer, recipe) for name in news}
        return DatasetDict(splits)
    rest = [name for name in news.column_names if name not in ("input_ids", "length")]
    news = news.select_columns(rest).with_format(None)
    texts = news["text"][:] if "text" in rest else []
    check_texts(texts)
    ids = []
    # Not a bar after some seconds: notebooks store what is printed.
    for start in trange(
        0, len(texts), 1000, desc="tokenize", disable=len(texts) < 5000
    ):
        ids += tokenizer(
            texts[start : start + 1000],
            truncation=True,
            max_length=recipe.max_length,
            split_special_tokens=True,
        )["input_ids"]
    sample = ids[:100]
    unknown = sum(row.count(tokenizer.unk_token_id) for row in sample)
    if sample[4:] and 2 * unknown > sum(map(len, sample)):  # fewer prove nothing
        raise InvalidValue(
            "The tokenizer does not know more than half of the tokens of these texts. "
            "Use the model's own tokenizer, and a model trained on this language."
        )
    columns = {"input_ids": ids, "length": list(map(len, ids))}
    return concatenate_datasets([news, Dataset.from_dict(columns)], axis=1)


def check_texts(texts: list) -> None:
    """Check that each of some texts can be read.

    Parameters
    ----------
    texts : list
        What should be texts.

    Raises
    ------
    InvalidValue
        If there is none, or one is no string, empty, or not UTF-8.
    """
    if not texts:
        raise InvalidValue("There is no text: no row, or no column 'text'.")
    for number, text in enumerate(texts, 1):
        if problem := problem_of(text):
            raise InvalidValue(f"Text {number} of {len(texts)} is one {problem}.")


def check_labels(labels: Sequence[int], classes: int) -> None:
    """Check that each label is the index of a class.

    Parameters
    ----------
    labels : Sequence[int]
        What should be indices; -1 would silently be the last class.
    classes : int
        How many there are.

    Raises
    ------
    InvalidValue
        If there is no label, or one that is no index.
    """
    labels = np.asarray([*labels])  # one without a label is no array of integers
    wrong = [label for label in labels.tolist() if label not in range(classes)]
    if wrong or labels.dtype.kind not in "iu":
        raise InvalidValue(
            f"Labels must be whole numbers from 0 to {classes - 1}, the indices of the "
            f"classes. There are {len(labels)} of {labels.dtype}, such as {wrong[:3]}. "
            "Subtract 1 if they count from 1; remove rows without a label."
        )


def check_tokens(split: Dataset, name: str = "The split") -> None:
    """Check that a split has tokenized rows.

    Parameters
    ----------
    split : Dataset
        What may be a split of the result of `tokenize`.
    name : str
        What it is called in the error.

    Raises
    ------
    InvalidValue
        If it has no rows or lacks a column, or its rows are given out as tensors.
    """
    is_split = isinstance(split, Dataset) and len(split) and not split.format["type"]
    if not is_split or not {*COLUMNS} <= {*split[0]}:
        raise InvalidValue(
            f"{name} has no tokenized rows with {', '.join(COLUMNS)}, as plain Python "
            "values. Pass a split of what tokenize(load_data(recipe), tokenizer, "
            "recipe) returns."
        )


def check_tokenizer(
    split: Dataset, tokenizer: PreTrainedTokenizerBase, recipe: Recipe
) -> None:
    """Check who made some tokens: the first rows and the longest are made again.

    Parameters
    ----------
    split : Dataset
        A split of the result of `tokenize`.
    tokenizer : PreTrainedTokenizerBase
        The model's own.
    recipe : Recipe
        Its `max_length` is used.

    Raises
    ------
    InvalidValue
        If the tokens differ.
    """
    lengths = split["length"][:]
    rows = split[[*range(min(8, len(split))), lengths.index(max(lengths))]]
    texts = Dataset.from_dict({"text": rows["text"]})
    if tokenize(texts, tokenizer, recipe)["input_ids"][:] != rows["input_ids"]:
        raise InvalidValue(
            "The tokens were made by another tokenizer than the model's, or cut at "
            f"another length than max_length={recipe.max_length}. Pass what "
            "tokenize(news, tokenizer, recipe) returns, with this recipe."
        )


@check_types
def epoch_batches(lengths: Sequence[int], recipe: Recipe, epoch: int) -> Batches:
    """Deal all rows out into the batches of one epoch.

    With `recipe.group_by_length` the shuffled rows are sorted by length within windows
    of 50 batches, and the resulting batches are shuffled again: a batch needs little
    padding, and the model still sees short and long texts in random order.

    The batch with the longest row comes second, so that too little memory shows early:
    the first step takes less, because Adam's running means do not exist before it.

    Parameters
    ----------
    lengths : Sequence[int]
        Tokens of each row.
    recipe : Recipe
        Its `batch_size`, `group_by_length` and `seed` are used.
    epoch : int
        Number of the epoch; with the seed it alone decides the order.

    Returns
    -------
    list[list[int]]
        The row indices of each batch; every row occurs once.
    """
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + epoch)
    shuffled = torch.randperm(len(lengths), generator=generator)
    dealt = shuffled.split(recipe.batch_size)
    if recipe.group_by_length:
        tokens = torch.tensor(lengths)
        grouped = []
        for window in shuffled.split(MEGABATCH * recipe.batch_size):
            by_length = tokens[window].argsort(descending=True, stable=True)
            grouped += window[by_length].split(recipe.batch_size)
        order = torch.randperm(len(grouped), generator=generator)
        dealt = [grouped[number] for number in order]
    batches = [batch.tolist() for batch in dealt]
    longest = [max(lengths[index] for index in batch) for batch in batches]
    batches.insert(1, batches.pop(longest.index(max(longest))))
    return batches


@check_types
def sorted_batches(
    lengths: Sequence[int], max_tokens: int = EVALUATION_TOKENS
) -> Batches:
    """Deal all rows out into batches from the longest row to the shortest.

    For evaluation, whose result does not depend on the order.

    Parameters
    ----------
    lengths : Sequence[int]
        Tokens of each row.
    max_tokens : int
        Most tokens of a batch, padding included. A batch has at least one row.

    Returns
    -------
    list[list[int]]
        The row indices of each batch.
    """
    remaining = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    batches = []
    while remaining:
        rows = max(1, max_tokens // lengths[remaining[0]])
        batches.append(remaining[:rows])
        del remaining[:rows]
    return batches


@dataclass
class Collator:
    """Turn the rows of a batch into tensors of one shape.

    A class and not a nested function, so that `DataLoader` workers can be started on
    Windows, too.

    Parameters
    ----------
    pad_token_id : int
        Id that fills up the short rows.
    pad_to : int or None
        Length of all rows; None for the longest row of the batch.
    """

    pad_token_id: int = 0
    pad_to: int | None = None

    def __call__(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        """Pad the rows of a batch.

        Parameters
        ----------
        examples : list[dict]
            Rows of a tokenized split, with ``input_ids`` and ``label``.

        Returns
        -------
        dict[str, torch.Tensor]
            ``input_ids`` and ``attention_mask``, [rows, length], and ``labels``,
            [rows]; all int64.
        """
        ids = [example["input_ids"] for example in examples]
        length = self.pad_to or max(map(len, ids))
        padded = [row + [self.pad_token_id] * (length - len(row)) for row in ids]
        mask = [[1] * len(row) + [0] * (length - len(row)) for row in ids]
        return {
            "input_ids": torch.tensor(padded),
            "attention_mask": torch.tensor(mask),
            "labels": torch.tensor([example["label"] for example in examples]),
        }


@check_types
def make_loader(
    split: Dataset, batches: Batches, recipe: Recipe, pad_token_id: int = 0
) -> DataLoader:
    """Build the `DataLoader` of a tokenized split.

    Parameters
    ----------
    split : Dataset
        A split of the result of `tokenize`.
    batches : list[list[int]]
        Row indices from `epoch_batches` (training) or `sorted_batches` (evaluation).
    recipe : Recipe
        Its `padding` decides to which length the rows are padded.
    pad_token_id : int
        Id that fills up the short rows; 0 is ``[PAD]`` in BERT and DistilBERT.

    Returns
    -------
    DataLoader
        Gives the batches in their order, as `Collator` makes them.

    Raises
    ------
    InvalidValue
        If the split has no tokenized rows.
    """
    check_tokens(split)
    # No workers: the tokens are in memory, and on Windows workers hang notebooks.
    # Its own generator: a loader draws a number when it starts, which would change the
    # dropout of a resumed run.
    return DataLoader(
        split,
        batch_sampler=batches,
        collate_fn=Collator(pad_token_id, recipe.pad_to),
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_initialized(),  # pinning makes a CUDA context
    )
