import pytest
import torch

from agnews_helpers import (
    LABELS,
    Recipe,
    classify,
    load_model,
    load_tokenizer,
    predict_logits,
)
from agnews_helpers.model import write_classifier


def test_logits_come_back_in_the_rows_order(tokens, recipe):
    model = load_model(recipe).eval()
    logits = predict_logits(model, tokens["test"], recipe)
    for row in (0, 7, 19):
        with torch.inference_mode():
            alone = model(torch.tensor([tokens["test"][row]["input_ids"]])).logits[0]
        assert torch.allclose(logits[row], alone, atol=1e-5)


def test_padding_does_not_change_the_answer(tokens, recipe):
    model = load_model(recipe)
    longest = predict_logits(model, tokens["test"], recipe)
    assert torch.allclose(
        predict_logits(model, tokens["test"], recipe.replace(padding="max_length")),
        longest,
        atol=1e-5,
    )


def test_classify(tiny):
    texts = ["Stocks fall as oil climbs", "word " * 700, "Caf\u00e9 \u4e2d\u6587"]
    table = classify(texts, tiny)
    assert table["text"].tolist() == texts and list(table.columns) == [
        "text",
        "label",
        *LABELS,
    ]
    assert table[list(LABELS)].sum(axis=1).tolist() == pytest.approx([1, 1, 1])
    assert table["label"].tolist() == table[list(LABELS)].idxmax(axis=1).tolist()


@pytest.mark.parametrize(
    "texts, message",
    [
        ("Stocks fall", "takes a list"),
        ([], "got no texts"),
        (["good", " "], "Text 2 is one without text"),
        (["good", None], "Text 2 is one .*NoneType"),
        (["\u200b\x07"], "Text 1 is one without text"),
        (
            ["a\ud800"],
            r"Text 1 is one with a null byte or half a character, so not UTF-8: 'a.ud800'",
        ),
    ],
)
def test_what_is_not_a_list_of_texts(tiny, texts, message):
    with pytest.raises(ValueError, match=message):
        classify(texts, tiny)


def test_a_folder_without_a_classifier(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="holds no trained classifier.*agnews train"
    ):
        classify(["Stocks fall"], tmp_path)


def test_a_tokenizer_saved_with_the_model_is_the_same(tiny, recipe):
    assert load_tokenizer(recipe)("Stocks fall")["input_ids"] == [101, 15768, 2991, 102]


def test_a_class_may_be_called_like_a_column(tiny, tmp_path):
    model = load_model(Recipe(model=str(tiny)), ["text", "label"])
    write_classifier(model, load_tokenizer(Recipe(model="mini")), tmp_path)
    table = classify(["a", "b"], tmp_path)
    assert list(table.columns) == ["text", "label", "text", "label"]
    assert table.iloc[:, 0].tolist() == ["a", "b"] and table.iloc[:, 2:].sum(
        axis=1
    ).tolist() == pytest.approx([1, 1])


def test_a_model_of_elsewhere_with_fewer_positions_is_asked_as_far_as_they_go(
    tiny, tmp_path
):
    model, tokenizer = (
        load_model(Recipe(model=str(tiny))),
        load_tokenizer(Recipe(model=str(tiny))),
    )
    tokenizer.model_max_length = 32
    model.save_pretrained(tmp_path), tokenizer.save_pretrained(tmp_path)
    assert len(classify(["word " * 100], tmp_path)) == 1
