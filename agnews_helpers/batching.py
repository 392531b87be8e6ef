"""From texts to batches: tokens, the order of an epoch, and tensors of one shape. Notebooks 02 and 03."""
import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Sampler

from .errors import Damaged, SaveError
from .recipe import Recipe
from .storage import check_folder, write_folder

MEGABATCH = 50  # batches that are sorted together; within them lengths agree, between them order stays random

WORTH_A_CACHE = 5_000  # rows; fewer are tokenized in half a second
EVALUATION_TOKENS = 2048  # more at once is slower on two cores, and needs more memory on a card


def tokenize(news, tokenizer, recipe: Recipe):
    """Add ``input_ids`` (a list of token ids, cut at `recipe.max_length`) and ``length`` to each row.

    Nothing is padded yet: how far depends on the batch a row will be in. Splits of 5,000 rows and more are
    kept on the disk, beside the cache of `datasets`, and taken from there the next time.
    """
    if hasattr(news, "values"):
        return type(news)({name: tokenize(split, tokenizer, recipe) for name, split in news.items()})

    def encode(rows):
        ids = tokenizer(rows["text"], truncation=True, max_length=recipe.max_length)["input_ids"]
        return {"input_ids": ids, "length": [len(row) for row in ids]}

    with _bars_if(len(news) >= WORTH_A_CACHE):
        if len(news) < WORTH_A_CACHE:
            return news.map(encode, batched=True, desc="tokenize")
        folder = _cache_folder(news, tokenizer, recipe)
        try:
            return _from_cache(folder)
        except Damaged:
            tokens = news.map(encode, batched=True, desc="tokenize")
        try:
            write_folder(folder, tokens.save_to_disk)
        except SaveError as error:
            print(f"The tokens are not kept for the next time: {error}")
        return tokens


def _cache_folder(news, tokenizer, recipe: Recipe) -> Path:
    """A folder whose name says what decides the tokens: texts, labels, the tokenizer, `max_length`."""
    from datasets import config

    sums = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode("utf-8"))
    sums.update(json.dumps([recipe.max_length, news["label"][:], news["text"][:]]).encode("utf-8"))
    return Path(config.HF_DATASETS_CACHE) / "agnews_tokens" / sums.hexdigest()[:24]


def _from_cache(folder: Path):
    from datasets import load_from_disk

    check_folder(folder)
    return load_from_disk(str(folder))


@contextmanager
def _bars_if(show: bool):
    """Progress bars of `datasets` only where there is something to wait for."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hide = not show and not are_progress_bars_disabled()
    if hide:
        disable_progress_bars()
    try:
        yield
    finally:
        if hide:
            enable_progress_bars()


def epoch_batches(lengths: Sequence[int], recipe: Recipe, epoch: int) -> list[list[int]]:
    """The batches of one epoch as row numbers: every row once, in an order that depends on seed and epoch only.

    With `recipe.group_by_length` the shuffled rows are sorted by length within windows of 50 batches and
    the resulting batches shuffled again, so that a batch wastes little on padding and the model still
    meets short and long news in random order. The batch with the longest row comes first: where memory
    is too small, that shows at once.
    """
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + epoch)
    order = torch.randperm(len(lengths), generator=generator).tolist()
    size = recipe.batch_size
    if not recipe.group_by_length:
        return [order[i:i + size] for i in range(0, len(order), size)]
    batches = []
    for start in range(0, len(order), MEGABATCH * size):
        window = sorted(order[start:start + MEGABATCH * size], key=lambda row: -lengths[row])
        batches += [window[i:i + size] for i in range(0, len(window), size)]
    batches = [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
    longest = max(range(len(batches)), key=lambda i: max(lengths[row] for row in batches[i]))
    return [batches[longest]] + batches[:longest] + batches[longest + 1:]


def sorted_batches(lengths: Sequence[int], most_tokens: int = EVALUATION_TOKENS) -> list[list[int]]:
    """Row numbers from the longest row to the shortest, for evaluation, where order does not matter.

    A batch has as many rows as stay within `most_tokens`, padding included, and at least one.
    """
    order, batches = sorted(range(len(lengths)), key=lambda row: -lengths[row]), []
    start = 0
    while start < len(order):
        rows = max(1, most_tokens // max(1, lengths[order[start]]))
        batches.append(order[start:start + rows])
        start += rows
    return batches


class FixedBatches(Sampler):
    """A batch sampler for a `DataLoader` that hands out a ready list of batches."""

    def __init__(self, batches: list[list[int]]):
        self.batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


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
        ids = [torch.tensor(row["input_ids"]) for row in rows]
        input_ids = pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id)
        attention_mask = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
        if self.pad_to is not None:
            missing = (0, self.pad_to - input_ids.shape[1])
            input_ids = torch.nn.functional.pad(input_ids, missing, value=self.pad_token_id)
            attention_mask = torch.nn.functional.pad(attention_mask, missing)
        labels = torch.tensor([row["label"] for row in rows])
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def deal(batch: list[int], process: int, processes: int) -> tuple[list[int], float]:
    """The rows of a batch that one of several processes takes, and the weight of its loss in their mean.

    Every `processes`-th row: rows are sorted by length, so all get equal work. Where a process gets none,
    it takes the first row and its loss weighs nothing.
    """
    mine = batch[process::processes]
    return mine or batch[:1], len(mine) * processes / len(batch)


def make_loader(rows, recipe: Recipe, epoch: int | None = None, pad_token_id: int = 0, start: int = 0, process: int = 0,
                processes: int = 1) -> DataLoader:
    """A `DataLoader` over tokenized rows.

    Parameters
    ----------
    rows : a split of what `tokenize` returns.
    epoch : 1, 2, ... for the training order of that epoch; None for evaluation, which goes from the
        longest row to the shortest in batches of about 2,048 tokens (no gradients, no optimizer step).
    pad_token_id : what fills the short rows; 0 is ``[PAD]`` in the vocabulary of BERT and DistilBERT.
    start : how many batches are left out, because they were done before an interruption.
    process, processes : which of how many processes this loader is for; each gets its share of every batch
        in training (`deal`), and every so-many-th batch in evaluation.
    """
    lengths = rows["length"][:]
    if epoch is None:
        batches = sorted_batches(lengths)[process::processes]
    else:
        batches = [deal(batch, process, processes)[0] for batch in epoch_batches(lengths, recipe, epoch)]
    pad_to = recipe.max_length if recipe.padding == "max_length" and epoch is not None else None
    # No workers: the tokens are in memory already, and worker processes hang notebooks on Windows. A generator of its
    # own: a loader draws a number when it starts, which would change the dropout of a run that is continued.
    return DataLoader(rows, batch_sampler=FixedBatches(batches[start:]), collate_fn=Collator(pad_token_id, pad_to),
                      generator=torch.Generator(), pin_memory=torch.cuda.is_available())


def padded_tokens(lengths: Sequence[int], batches: list[list[int]], pad_to: int | None = None) -> int:
    """How many tokens the model computes on for these batches, padding included."""
    return sum(len(batch) * (pad_to or max(lengths[row] for row in batch)) for batch in batches)
