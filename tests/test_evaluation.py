"""Logits, answers and the figures that are computed from them."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from agnews_helpers import LABELS as NAMES
from agnews_helpers import (
    Classifier,
    InvalidValue,
    NonFiniteError,
    Recipe,
    classify,
    evaluate,
    load_model,
    load_tokenizer,
    predict_logits,
    score,
)
from agnews_helpers.batching import EVALUATION_TOKENS
from agnews_helpers.model import write_classifier

# six rows; the true classes, and logits whose largest entry is the answer
LABELS = np.array([0, 0, 1, 2, 3, 3])
LOGITS = np.log(
    np.array(
        [
            [0.7, 0.1, 0.1, 0.1],  # right
            [0.1, 0.1, 0.7, 0.1],  # World taken for Business
            [0.1, 0.7, 0.1, 0.1],  # right
            [0.1, 0.1, 0.7, 0.1],  # right
            [0.1, 0.1, 0.1, 0.7],  # right
            [0.05, 0.02, 0.9, 0.03],
        ]
    )
)  # Sci/Tech taken for Business, surely
TEXTS = list("abcdef")


@pytest.fixture
def report():
    return score(LOGITS, LABELS, TEXTS)


def test_figures_worked_by_hand(report):
    assert report.rows == 6 and report.accuracy == pytest.approx(4 / 6)
    # F1 = 2 x right / (predicted + true):
    # World 2/3, Sports 1, Business 2/4, Sci/Tech 2/3
    assert report.per_class["f1"].tolist() == pytest.approx([2 / 3, 1, 1 / 2, 2 / 3])
    assert report.macro_f1 == pytest.approx((2 / 3 + 1 + 1 / 2 + 2 / 3) / 4)
    assert report.loss == pytest.approx(
        -(4 * np.log(0.7) + np.log(0.1) + np.log(0.03)) / 6
    )
    assert report.per_class["rows"].tolist() == [2, 1, 1, 2]


def test_the_true_classes_are_the_rows_of_the_confusion_matrix(report):
    assert (
        report.confusion.loc["World", "Business"] == 1
        and report.confusion.loc["Business", "World"] == 0
    )
    assert report.confusion.values.sum() == 6


def test_the_surest_mistake_comes_first(report):
    assert report.worst["text"].tolist() == [
        "f",
        "b",
    ] and report.worst.index.tolist() == [5, 1]
    assert report.worst.iloc[0][["true", "predicted"]].tolist() == [
        "Sci/Tech",
        "Business",
    ]
    assert report.worst["p_true"].tolist() == pytest.approx([0.03, 0.1])


def test_answers_has_one_row_per_text(report):
    assert report.answers["text"].tolist() == TEXTS and report.answers[
        "predicted"
    ].tolist()[4:] == [
        "Sci/Tech",
        "Business",
    ]
    assert report.answers["confidence"].tolist() == pytest.approx(
        [0.7, 0.7, 0.7, 0.7, 0.7, 0.9]
    )
    assert report.answers["p_true"].iloc[5] == pytest.approx(
        0.03
    ) and report.loss == pytest.approx(report.answers["loss"].mean())


def test_wilsons_interval():
    # 8 of 10: (8 + 1.92) / 13.84 = 0.7167 -+ 0.2266 with z = 1.96
    labels = np.zeros(10, int)
    logits = np.eye(4)[[0] * 8 + [1] * 2]
    assert score(logits, labels, [""] * 10).interval == pytest.approx(
        (0.4902, 0.9433), abs=1e-4
    )


def test_all_right_and_all_wrong():
    perfect = score(np.eye(4)[LABELS] * 9, LABELS, TEXTS)
    assert (
        perfect.accuracy == perfect.macro_f1 == 1
        and len(perfect.worst) == 0
        and perfect.interval[1] == pytest.approx(1)
    )
    hopeless = score(np.eye(4)[(LABELS + 1) % 4] * 9, LABELS, TEXTS)
    assert hopeless.accuracy == hopeless.macro_f1 == 0 and len(hopeless.worst) == 6


def test_the_json_has_the_figures_and_no_text(report, tmp_path):
    report.save(tmp_path / "report.json")
    figures = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert (
        figures["accuracy"] == report.accuracy
        and figures["confusion"][0][2] == 1
        and "answers" not in figures
    )
    assert "66.7%" in str(report)


def test_the_classes_are_called_as_they_are_given():
    report = score(
        LOGITS[:, :3],
        np.array([0, 0, 1, 2, 1, 2]),
        TEXTS,
        ["bug", "praise", "question"],
    )
    assert report.answers["true"].tolist() == [
        "bug",
        "bug",
        "praise",
        "question",
        "praise",
        "question",
    ]
    assert report.answers["predicted"].tolist()[:3] == ["bug", "question", "praise"]
    assert (
        report.per_class.index.tolist()
        == report.confusion.index.tolist()
        == ["bug", "praise", "question"]
    )
    assert report.confusion.columns.tolist() == list(report.to_dict()["per_class"])


def test_classes_in_another_order_than_the_datas_are_found_by_name(tokens, recipe):
    model = load_model(recipe)
    order = ["Business", "World", "Sci/Tech", "Sports"]
    model.config.id2label = dict(enumerate(order))
    report = evaluate(model, tokens["test"], recipe)
    assert report.per_class.index.tolist() == order
    assert report.answers["true"].tolist() == [
        NAMES[label] for label in tokens["test"]["label"][:]
    ]


def test_other_classes_than_the_datas_are_one_clear_line(tokens, recipe):
    model = load_model(recipe)
    model.config.id2label = {3: "d", 2: "c", 1: "b", 0: "a"}
    with pytest.raises(
        InvalidValue,
        match="classes are a, b, c, d, the data's World, Sports",
    ):
        evaluate(model, tokens["test"], recipe)


def test_macro_f1_is_over_the_classes_that_occur():
    logits = np.eye(4)[[0, 0, 0, 1]]
    assert score(logits, np.array([0, 0, 0, 0]), ["a"] * 4).macro_f1 == pytest.approx(
        (6 / 7 + 0) / 2
    )
    assert score(logits[:3], np.array([0, 0, 0]), ["a"] * 3).macro_f1 == 1


def test_evaluate_leaves_dropout_as_it_was(tokens, recipe):
    model = load_model(recipe).train()
    first, second = (
        evaluate(model, tokens["test"], recipe),
        evaluate(model, tokens["test"], recipe),
    )
    assert model.training and first.loss == second.loss
    assert first.rows == len(tokens["test"])


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_that_is_no_class_is_refused(label, tokens, recipe):
    """An index of -1 would silently be the last class."""
    labels = [label, *LABELS[1:]]
    message = f"Labels must be whole numbers from 0 to 3, .* such as .{label}"
    with pytest.raises(InvalidValue, match=message):
        score(LOGITS, np.array(labels), TEXTS)
    split = tokens["test"].remove_columns("label")
    split = split.add_column("label", [label, *tokens["test"]["label"][1:]])
    with pytest.raises(InvalidValue, match=message):
        evaluate(load_model(recipe), split, recipe)


def test_a_logit_that_is_no_number_is_refused():
    """The largest entry of a row with NaN is the NaN itself: an answer by chance."""
    logits = LOGITS.copy()
    logits[2, 0] = np.nan
    with pytest.raises(InvalidValue, match="logits are NaN or infinite"):
        score(logits, LABELS, TEXTS)


@pytest.mark.parametrize(
    "change",
    [
        {"labels": LABELS[:-1]},
        {"texts": TEXTS[:-1]},
        {"names": ["a", "b", "c", "d", "e"]},
        {"logits": LOGITS[:, :3]},
        {"logits": LOGITS[0]},
    ],
)
def test_arguments_of_different_lengths_are_refused(change):
    given = {"logits": LOGITS, "labels": LABELS, "texts": TEXTS}
    with pytest.raises(InvalidValue, match="The logits have the shape"):
        score(**given | change)


# Logits and answers


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


@pytest.mark.parametrize("padding", ["longest", "max_length"])
def test_a_batch_has_so_many_tokens_at_most(padding, tokens, recipe):
    """Padding included: on a card they are memory."""
    model = load_model(recipe)
    shapes = []
    model.register_forward_pre_hook(
        lambda module, args, inputs: shapes.append(inputs["input_ids"].shape),
        with_kwargs=True,
    )
    predict_logits(model, tokens["test"], recipe.replace(padding=padding))
    assert sum(rows for rows, _ in shapes) == len(tokens["test"])
    assert max(rows * length for rows, length in shapes) <= EVALUATION_TOKENS
    assert (shapes[0][1] == 512) is (padding == "max_length")


def test_classify(tiny):
    texts = ["Stocks fall as oil climbs", "word " * 700, "Caf\u00e9 \u4e2d\u6587"]
    table = classify(texts, tiny)
    assert table["text"].tolist() == texts and list(table.columns) == [
        "text",
        "label",
        *[f"probability_{name}" for name in NAMES],
    ]
    assert table.iloc[:, 2:].sum(axis=1).tolist() == pytest.approx([1, 1, 1])
    best = table.iloc[:, 2:].idxmax(axis=1).str.removeprefix("probability_")
    assert table["label"].tolist() == best.tolist()


@pytest.mark.parametrize(
    "texts, message",
    [
        ([], "There is no text"),
        (["good", " "], "Text 2 of 2 is one without text"),
        (["good", None], "Text 2 of 2 is one .*NoneType"),
        (["\u200b\x07"], "Text 1 of 1 is one without text"),
        (["a\ud800"], "Text 1 of 1 is one with .* half a character: take it out"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(tiny, texts, message):
    with pytest.raises(ValueError, match=message):
        classify(texts, tiny)


def test_texts_are_numbered_from_1_the_later_ones_too(tiny):
    classifier = Classifier(tiny)
    for before in (1, 999, 1_000, 2_500):
        number = f"Text {before + 1} of {before + 1} is one without text"
        with pytest.raises(InvalidValue, match=number):
            classifier(["good"] * before + [" "])


def test_a_few_texts_may_have_signs_that_the_tokenizer_does_not_know(tiny):
    """A service is sent such a message; a data set of such rows is refused."""
    for texts in (["\U0001f44d " * 3], ["\U0001f44d " * 3] * 4):
        assert len(classify(texts, tiny)) == len(texts)
    with pytest.raises(InvalidValue, match="does not know more than half"):
        classify(["\U0001f44d " * 3] * 5, tiny)


@pytest.mark.parametrize("training", [True, False])
def test_damaged_weights_are_told_of(training, tokens, recipe):
    model = load_model(recipe).train(training)
    model.classifier.bias.data[0] = torch.nan
    with pytest.raises(NonFiniteError, match="logits are not finite.*are damaged"):
        predict_logits(model, tokens["test"], recipe)
    assert model.training is training


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
    named = ["probability_text", "probability_label"]
    assert list(table.columns) == ["text", "label", *named]
    assert table["text"].tolist() == ["a", "b"]
    assert table[named].sum(axis=1).tolist() == pytest.approx([1, 1])


def test_another_models_texts_are_truncated_to_its_positions(tiny, tmp_path):
    model, tokenizer = (
        load_model(Recipe(model=str(tiny))),
        load_tokenizer(Recipe(model=str(tiny))),
    )
    tokenizer.model_max_length = 32
    model.save_pretrained(tmp_path), tokenizer.save_pretrained(tmp_path)
    assert len(classify(["word " * 100], tmp_path)) == 1


def test_a_classifier_may_be_called_by_several_threads(recipe, tmp_path):
    write_classifier(load_model(recipe), load_tokenizer(recipe), tmp_path)
    texts = ["Where is my parcel?", "Send me the money back", "Hello"]
    classifier = Classifier(tmp_path)
    expected = classify(texts, tmp_path)
    with ThreadPoolExecutor(4) as pool:
        for answers in pool.map(classifier, [texts] * 12):
            assert answers.equals(expected)
    with pytest.raises(InvalidValue):  # and after an error it is not locked for ever
        classifier([])
    assert classifier(texts[:1]).equals(expected[:1])
    with pytest.raises(InvalidValue, match="Text 1 of 1 is one with a null byte or ha"):
        classifier(["words \ud83d"])  # half an emoji
    with pytest.raises(
        InvalidValue, match=r"Classifier.__call__\(\) takes list .*tuple"
    ):
        classifier(("words", "more"))
