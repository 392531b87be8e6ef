import random
from itertools import pairwise

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DistilBertTokenizer

from agnews_helpers import (
    Collator,
    InvalidValue,
    Recipe,
    epoch_batches,
    load_tokenizer,
    make_loader,
    sorted_batches,
    tokenize,
)
from agnews_helpers.batching import EVALUATION_TOKENS, MEGABATCH

LENGTHS = random.Random(0).choices(range(5, 120), k=1003)


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize(
    "rows, size", [(1003, 8), (1003, 1), (8, 8), (3, 8), (400, 8), (401, 8)]
)
def test_every_row_once_and_no_batch_over_size(rows, size, grouped):
    batches = epoch_batches(
        LENGTHS[:rows], Recipe(batch_size=size, group_by_length=grouped), epoch=1
    )
    assert sorted(row for batch in batches for row in batch) == list(range(rows))
    assert max(map(len, batches)) <= size and len(batches) == -(-rows // size)


@pytest.mark.parametrize("grouped", [True, False])
def test_the_order_is_a_function_of_seed_and_epoch(grouped):
    recipe = Recipe(group_by_length=grouped)
    torch.manual_seed(1)
    first = epoch_batches(LENGTHS, recipe, 1)
    torch.manual_seed(2)  # the global generator does not matter
    assert epoch_batches(LENGTHS, recipe, 1) == first
    assert epoch_batches(LENGTHS, recipe, 2) != first
    assert epoch_batches(LENGTHS, recipe.replace(seed=1), 1) != first


def test_grouping_stays_within_its_windows_and_shuffles_between_them():
    recipe = Recipe()
    batches = epoch_batches(LENGTHS, recipe, 1)
    window = MEGABATCH * recipe.batch_size
    spread = [max(LENGTHS[r] for r in b) - min(LENGTHS[r] for r in b) for b in batches]
    assert sorted(spread)[len(spread) // 2] <= 3  # rows of a batch agree
    longest = [max(LENGTHS[r] for r in b) for b in batches]
    rises = sum(first < second for first, second in pairwise(longest))
    assert len(longest) / 4 < rises < len(longest) * 3 / 4  # not one after another
    order = torch.randperm(
        len(LENGTHS),
        generator=torch.Generator().manual_seed(recipe.seed * 1_000_003 + 1),
    ).tolist()
    place = {row: i // window for i, row in enumerate(order)}
    assert all(len({place[row] for row in batch}) == 1 for batch in batches)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.integers(1, 512) | st.sampled_from([1, 2, 512]), min_size=1, max_size=900
    ),
    st.integers(1, 33),
    st.booleans(),
    st.integers(0, 2**32 - 1),
    st.integers(1, 9),
)
def test_what_holds_for_any_lengths(lengths, size, grouped, seed, epoch):
    recipe = Recipe(batch_size=size, group_by_length=grouped, seed=seed)
    batches = epoch_batches(lengths, recipe, epoch)
    assert sorted(row for batch in batches for row in batch) == list(
        range(len(lengths))
    )
    assert (
        max(map(len, batches)) <= size
        and sum(len(batch) < size for batch in batches) <= 1
    )
    if grouped:
        # Within a sorted window the differences between the batches add up to at most
        # the difference between its longest and its shortest row.
        windows = -(-len(lengths) // (MEGABATCH * size))
        padding = padded_tokens(lengths, batches) - sum(lengths)
        assert padding <= windows * size * (max(lengths) - min(lengths))
    second = batches[min(1, len(batches) - 1)]
    assert max(lengths) == max(lengths[row] for row in second)


def batches_of(tokens, recipe):
    return epoch_batches(tokens["train"]["length"][:], recipe, 1)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_an_epoch_is_continued_by_slicing_it(data):
    recipe = data.draw(st.sampled_from([Recipe(), Recipe(group_by_length=False)]))
    rows = Dataset.from_dict(
        {
            "text": ["a"] * 100,
            "label": list(range(100)),
            "input_ids": [[1]] * 100,
            "length": LENGTHS[:100],
        }
    )
    start = data.draw(st.integers(0, 13))
    whole, again = (epoch_batches(rows["length"][:], recipe, 2) for _ in range(2))
    first = [batch["labels"].tolist() for batch in make_loader(rows, whole, recipe)]
    rest = [
        batch["labels"].tolist() for batch in make_loader(rows, again[start:], recipe)
    ]
    assert rest == first[start:] and len(first) == 13


def test_a_loader_leaves_the_global_generator_alone(tokens, recipe):
    before = torch.get_rng_state()
    list(make_loader(tokens["train"], batches_of(tokens, recipe), recipe))
    assert torch.equal(
        torch.get_rng_state(), before
    )  # otherwise dropout would differ after a resume


def padded_tokens(lengths, batches):
    """The tokens that are computed for these batches."""
    return sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)


def test_grouping_computes_hardly_more_than_the_real_tokens():
    real = sum(LENGTHS)
    grouped = padded_tokens(LENGTHS, epoch_batches(LENGTHS, Recipe(), 1)) / real
    mixed = (
        padded_tokens(LENGTHS, epoch_batches(LENGTHS, Recipe(group_by_length=False), 1))
        / real
    )
    assert grouped < 1.05 < 1.3 < mixed


def test_a_batch_worked_by_hand():
    rows = [
        {"input_ids": [101, 7, 102], "label": 2},
        {"input_ids": [101, 102], "label": 0},
    ]
    batch = Collator(pad_token_id=9)(rows)
    assert batch["input_ids"].tolist() == [[101, 7, 102], [101, 102, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert batch["labels"].tolist() == [2, 0]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
    fixed = Collator(pad_token_id=9, pad_to=5)(rows)
    assert fixed["input_ids"].tolist() == [[101, 7, 102, 9, 9], [101, 102, 9, 9, 9]]
    assert fixed["attention_mask"].sum(1).tolist() == [3, 2]


def test_tokenize_cuts_and_counts(tokens):
    row = tokens["train"][0]
    assert (
        row["length"] == len(row["input_ids"])
        and row["input_ids"][0] == 101
        and row["input_ids"][-1] == 102
    )
    cut = tokenize(
        tokens["test"].remove_columns(["input_ids", "length"]),
        load_tokenizer(Recipe(model="mini")),
        Recipe(max_length=20),
    )
    assert max(cut["length"]) == 20 and cut[0]["input_ids"][-1] == 102


def test_loaders_for_training_and_evaluation(tokens, recipe):
    seen = [
        row
        for batch in make_loader(tokens["train"], batches_of(tokens, recipe), recipe)
        for row in batch["input_ids"][:, 1].tolist()
    ]
    assert sorted(seen) == sorted(ids[1] for ids in tokens["train"]["input_ids"])
    widths = [
        batch["input_ids"].shape
        for batch in make_loader(
            tokens["train"], sorted_batches(tokens["train"]["length"][:]), recipe
        )
    ]
    assert (
        widths[0][1] == max(tokens["train"]["length"])
        and max(rows * width for rows, width in widths) <= EVALUATION_TOKENS
    )
    assert all(
        batch["input_ids"].shape[1] == 512
        for batch in make_loader(
            tokens["train"],
            batches_of(tokens, recipe),
            recipe.replace(padding="max_length"),
        )
    )


def test_a_loader_pads_with_the_models_token(tokens, recipe):
    rows = tokens["train"]
    for batch in make_loader(rows, batches_of(tokens, recipe), recipe, pad_token_id=7):
        padding = batch["input_ids"][batch["attention_mask"] == 0]
        assert padding.eq(7).all()
    assert len(padding)


def test_evaluation_goes_from_long_to_short():
    assert sorted_batches([2, 9, 5, 4], 10) == [[1], [2, 3], [0]]
    assert sorted_batches([600], 100) == [[0]]


# many rows


def test_many_rows_are_tokenized_like_few(recipe):
    """A thousand at a time."""
    texts = [f"Title {number} and words" for number in range(1_040)]
    rows = Dataset.from_dict({"text": texts, "label": [0] * len(texts)})
    tokenizer = load_tokenizer(Recipe(model="mini"))
    last = range(990, 1_040)
    few = tokenize(rows.select(last), tokenizer, recipe.replace(max_length=5))
    many = tokenize(rows, tokenizer, recipe.replace(max_length=5))
    assert many.select(last)[:] == few[:] and max(many["length"][:]) == 5


def test_a_special_token_that_somebody_typed_is_plain_text(recipe):
    tokenizer = load_tokenizer(recipe)
    rows = Dataset.from_dict({"text": ["What [SEP] and [MASK] mean"], "label": [0]})
    [ids] = tokenize(rows, tokenizer, recipe)["input_ids"][:]
    special = {tokenizer.sep_token_id, tokenizer.mask_token_id, tokenizer.cls_token_id}
    assert [i for i in ids if i in special] == [
        tokenizer.cls_token_id,
        tokenizer.sep_token_id,
    ]
    assert "[ sep ]" in tokenizer.decode(ids, skip_special_tokens=True)


def test_a_tokenizer_that_does_not_know_the_texts_is_refused(recipe):
    rows = Dataset.from_dict(
        {"text": ["\u4f60\u597d \u4e16\u754c \ud55c\uad6d"] * 5, "label": [0] * 5}
    )
    foreign = DistilBertTokenizer(
        vocab={name: i for i, name in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])}
    )
    news = Dataset.from_dict(
        {"text": ["Stocks fall as oil climbs"] * 5, "label": [0] * 5}
    )
    for texts, tokenizer in ((rows, foreign), (news, foreign)):
        with pytest.raises(InvalidValue, match="does not know more than half"):
            tokenize(texts, tokenizer, recipe)
