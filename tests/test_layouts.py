"""The layouts in which people have labelled texts: what must come out of each.

The layouts are those of files as they are published or exported; the sentences are made
up here. Each has a source, and either what it is read as, or what is asked.
"""

import csv
import gzip
import io
import json
from dataclasses import dataclass, field

import pytest
from datasets import ClassLabel, Dataset, Features, Sequence, Value

from agnews_helpers import DataError, Recipe, load_data
from agnews_helpers.data import read_source

PLACES = "the station, a garden, our street, the old mill, a cafe, the harbour".split(
    ", "
)
ROWS = 60


def texts(n=ROWS, word="Row"):
    return [f"{word} {i}: we met near {PLACES[i % 6]} at {i % 12}." for i in range(n)]


def pairs(*labels, n=ROWS, word="Row"):
    return [(labels[i % len(labels)], text) for i, text in enumerate(texts(n, word))]


def flipped(rows):
    return [row[::-1] for row in rows]


def table(header, rows, separator=",", encoding="utf-8", quoting=csv.QUOTE_MINIMAL):
    """A CSV file, as bytes; without a header if that is empty."""
    file = io.StringIO(newline="")
    writer = csv.writer(file, delimiter=separator, quoting=quoting)
    writer.writerows([header.split(separator), *rows] if header else rows)
    return file.getvalue().encode(encoding)


def unquoted(*rows):
    return "".join("\t".join(row) + "\n" for row in rows).encode()


def parquet(rows, **features):
    file = io.BytesIO()
    types = {name: Value("string") for name in rows} | features
    Dataset.from_dict(rows, Features(types)).to_parquet(file)
    return file.getvalue()


def lines(rows, *names):
    return "\n".join(json.dumps(dict(zip(names, row))) for row in rows).encode()


@dataclass
class Layout:
    """Files, and how they are read.

    source : where such files come from. files : name -> content; a single file is named
    itself, not its folder. columns, classes : what the training file is read as.
    rows : how many of each split are used. note : stands in a note. asks : what is
    asked without `flags`, the fields of the recipe; empty if it is read as it is.
    """

    source: str
    files: dict
    columns: str = ""
    classes: tuple = ()
    rows: dict = field(default_factory=lambda: {"train": ROWS})
    note: str = ""
    asks: str = ""
    flags: dict = field(default_factory=dict)


TWO = ("bad", "good")
ASKED, ASKED_TEXT = "which is the label?", "which is the text?"
LAYOUTS = {
    # What people have, by how common
    "Kaggle competition": Layout(
        "a Kaggle competition, such as disaster tweets",
        {
            "train.csv": table(
                "id,keyword,location,text,target",
                [(i, "fire", "", t, c) for i, (c, t) in enumerate(pairs("0", "1"))],
            ),
            "test.csv": table(
                "id,keyword,location,text",
                [(i, "fire", "", t) for i, t in enumerate(texts(20, "Other"))],
            ),
            "sample_submission.csv": table("id,target", [(1, 0)]),
        },
        "label column 'target' · text 'text' · not used 'id', 'keyword', 'location'",
        ("0", "1"),
        note="note: test.csv has no labels in 'target': its 20 rows are not used.",
    ),
    "several Parquet parts": Layout(
        "a data set of the Hub, cloned",
        {
            f"data/{split}-0000{i}-of-00002-0f1e2d3c4b5a6978.parquet": parquet(
                dict(text=texts(30, f"{split} {i}"), label=[0, 1] * 15),
                label=ClassLabel(names=["bad", "good"]),
            )
            for split in ("train", "test")
            for i in (0, 1)
        },
        "label column 'label' · text 'text'",
        TWO,
        {"train": 60, "test": 60},
    ),
    "one JSON list": Layout(
        "an export of a database",
        {
            "train.json": json.dumps(
                [dict(category=label, text=text) for label, text in pairs(*TWO)]
            ).encode()
        },
        "label column 'category' · text 'text'",
        TWO,
    ),
    "JSON lines": Layout(
        "doccano, Label Studio, and many of the Hub",
        {"train.ndjson": lines(pairs(*TWO), "intent", "text")},
        "label column 'intent' · text 'text'",
        TWO,
    ),
    "JSON lines in .json": Layout(
        "pandas' to_json(lines=True)",
        {"train.json": lines(flipped(pairs(*TWO)), "text", "label")},
        "label column 'label' · text 'text'",
        TWO,
    ),
    "Windows-1252": Layout(
        "Excel's CSV, in German",
        {
            "tickets.csv": table(
                "Kategorie;Nachricht",
                [(label, f"{t} Grüße") for label, t in pairs("Lob", "Größe")],
                ";",
                "cp1252",
            )
        },
        "label column 'Kategorie' · text 'Nachricht'",
        ("Größe", "Lob"),
        note="not UTF-8, so read as Windows-1252, such as 'Grüße'",
    ),
    "text and one other column": Layout(
        "any spreadsheet",
        {"train.csv": table("text,tag", flipped(pairs(*TWO, n=16)))},
        "label column 'tag' · text 'text'",
        TWO,
        {"train": 16},
    ),
    "sentiment from -1 to 1": Layout(
        "Twitter and Reddit sentiment (Kaggle)",
        {"train.csv": table("clean_text,category", flipped(pairs("-1", "0", "1")))},
        "label column 'category' · text 'clean_text'",
        ("-1", "0", "1"),
    ),
    "lists of one label": Layout(
        "doccano",
        {"all.jsonl": lines([(t, [c]) for c, t in pairs(*TWO)], "text", "label")},
        "label column 'label' · text 'text'",
        TWO,
    ),
    "lists of one label in Parquet": Layout(
        "a data set of the Hub with Sequence(ClassLabel)",
        {
            "train.parquet": parquet(
                dict(text=texts(), labels=[[i % 2] for i in range(ROWS)]),
                labels=Sequence(ClassLabel(names=["bad", "good"])),
            )
        },
        "label column 'labels' · text 'text'",
        ("0", "1"),
    ),
    "unquoted TSV, text first": Layout(
        "a tab between the columns, and quotation marks as they come",
        {
            "train.tsv": unquoted(
                *[
                    (f'{"" if i % 3 else chr(34)}{t} 5" wide', label)
                    for i, (label, t) in enumerate(pairs(*TWO))
                ]
            )
        },
        "label column 'column 2' · text 'column 1'",
        TWO,
        note="quotation marks are part of the texts",
    ),
    "a file for validation": Layout(
        "train, dev and test",
        {
            f"{name}.csv": table("label,text", pairs(*TWO, n=n, word=name))
            for name, n in (("train", 60), ("dev", 20), ("test", 10))
        },
        "label column 'label' · text 'text'",
        TWO,
        {"train": 60, "validation": 20, "test": 10},
    ),
    "compressed": Layout(
        "gzip",
        {"tickets.csv.gz": gzip.compress(table("label,text", pairs(*TWO)))},
        "label column 'label' · text 'text'",
        TWO,
    ),
    # As they are published
    "SMS spam": Layout(
        "UCI's SMS Spam Collection at Kaggle: spam.csv, Latin-1, three empty columns",
        {
            "spam.csv": table(
                "v1,v2,,,",
                [(c, f"{t} £5", "", "", "") for c, t in pairs("ham", "spam")],
                encoding="latin-1",
            )
        },
        "label column 'v1' · text 'v2' · not used '', '', ''",
        ("ham", "spam"),
        note="such as '£5'",
    ),
    "SMS spam of UCI": Layout(
        "SMSSpamCollection, named .tsv: unquoted, no header",
        {"sms.tsv": unquoted(*[(c, f'"{t}') for c, t in pairs("ham", "spam")])},
        "label column 'column 1' · text 'column 2'",
        ("ham", "spam"),
        note="quotation marks are part of the texts",
    ),
    "IMDB": Layout(
        "IMDB Dataset.csv (Kaggle)",
        {
            "IMDB Dataset.csv": table(
                "review,sentiment",
                [
                    (f'{t}<br /><br />"So, so".', label)
                    for label, t in pairs("negative", "positive")
                ],
            )
        },
        "label column 'sentiment' · text 'review'",
        ("negative", "positive"),
    ),
    "BANKING77": Layout(
        "banking_data of PolyAI's task-specific-datasets",
        {
            "train.csv": table("text,category", flipped(pairs("card", "cash"))),
            "test.csv": table("text,category", flipped(pairs("card", "cash", n=8))),
        },
        "label column 'category' · text 'text'",
        ("card", "cash"),
        {"train": 60, "test": 8},
    ),
    "BBC news": Layout(
        "bbc-text.csv",
        {"bbc-text.csv": table("category,text", pairs("business", "sport", "tech"))},
        "label column 'category' · text 'text'",
        ("business", "sport", "tech"),
    ),
    "SST-2": Layout(
        "GLUE: unquoted TSV, and -1 for each row of test",
        {
            "train.tsv": unquoted(("sentence", "label"), *flipped(pairs("0", "1"))),
            "dev.tsv": unquoted(("sentence", "label"), *flipped(pairs("0", "1", n=8))),
            "test.tsv": unquoted(("sentence", "label"), *flipped(pairs("-1", n=8))),
        },
        "label column 'label' · text 'sentence'",
        ("0", "1"),
        {"train": 60, "validation": 8},
        note="note: test.tsv has no labels in 'label': its 8 rows are not used.",
    ),
    "Yelp and Amazon": Layout(
        "Zhang, Zhao and LeCun (2015): all quoted, no header, labels from 1",
        {
            "train.csv": table(
                "",
                [(c, f"Title {i}", t) for i, (c, t) in enumerate(pairs("1", "2"))],
                quoting=csv.QUOTE_ALL,
            )
        },
        "label column 'column 1' · text 'column 2', 'column 3'",
        ("1", "2"),
    ),
    "DBpedia": Layout(
        "the same, with classes.txt",
        {
            "train.csv": table(
                "",
                [(c, f"Title {i}", t) for i, (c, t) in enumerate(pairs("1", "2", "3"))],
            ),
            "classes.txt": b"Company\nAthlete\nPlant\n",
        },
        "label column 'column 1' · text 'column 2', 'column 3'",
        ("Company", "Athlete", "Plant"),
    ),
    "emotion": Layout(
        "dair-ai/emotion's train.txt, named .csv: text;label, no header",
        {"train.csv": table("", flipped(pairs("joy", "fear", "anger")), ";")},
        "label column 'column 2' · text 'column 1'",
        ("anger", "fear", "joy"),
    ),
    "Financial PhraseBank": Layout(
        "all-data.csv (Kaggle): Latin-1, no header",
        {
            "all-data.csv": table(
                "",
                [(c, f"{t} Pöyry") for c, t in pairs("negative", "neutral")],
                encoding="latin-1",
            )
        },
        "label column 'column 1' · text 'column 2'",
        ("negative", "neutral"),
        note="such as 'Pöyry'",
    ),
    "20 newsgroups": Layout(
        "fetch_20newsgroups as a CSV with both columns of the label",
        {
            "news.csv": table(
                ",content,target,target_names",
                [
                    (i, f"From: a\n\n{t}", i % 2, ("sci.med", "rec.autos")[i % 2])
                    for i, t in enumerate(texts())
                ],
            )
        },
        "label column 'target_names' · text 'content' · not used '', 'target'",
        ("rec.autos", "sci.med"),
    ),
    "tweets of which a part is marked": Layout(
        "Tweet Sentiment Extraction (Kaggle)",
        {
            "train.csv": table(
                "textID,text,selected_text,sentiment",
                [(f"{i:x}", t, t[:5], c) for i, (c, t) in enumerate(pairs(*TWO))],
            )
        },
        "label column 'sentiment' · text 'text' · not used 'textID', 'selected_text'",
        TWO,
    ),
    # What is asked about
    "airline tweets": Layout(
        "Twitter US Airline Sentiment (Kaggle): 15 columns",
        {
            "Tweets.csv": table(
                "tweet_id,airline_sentiment,airline_sentiment_confidence,"
                "negativereason,airline,name,text",
                [
                    (i, c, 1.0, "Late", ("A", "B", "C")[i % 3], f"n{i}", t)
                    for i, (c, t) in enumerate(pairs(*TWO))
                ],
            )
        },
        "label column 'airline_sentiment' · text 'text'",
        TWO,
        asks=ASKED,
        flags={"label_column": "airline_sentiment"},
    ),
    "hate speech": Layout(
        "hate-speech-and-offensive-language: labeled_data.csv",
        {
            "labeled_data.csv": table(
                ",count,hate_speech,offensive_language,neither,class,tweet",
                [(i, 3, 0, 3, 0, c, t) for i, (c, t) in enumerate(pairs("0", "1"))],
            )
        },
        "label column 'class' · text 'tweet'",
        ("0", "1"),
    ),
    "CoLA": Layout(
        "GLUE: four columns without a header, two of which repeat",
        {
            "train.tsv": unquoted(
                *[
                    (f"source{i % 3}", label, "" if i % 4 else "*", text)
                    for i, (label, text) in enumerate(pairs("0", "1"))
                ]
            )
        },
        "label column 'column 2' · text 'column 4'",
        ("0", "1"),
        asks=ASKED,
        flags={"label_column": "column 2", "text_columns": "column 4"},
    ),
    "MRPC": Layout(
        "GLUE: two texts",
        {
            "train.tsv": unquoted(
                ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"),
                *[
                    (label, str(i), str(i + 99), text, f'"{text}')
                    for i, (label, text) in enumerate(pairs("0", "1"))
                ],
            )
        },
        "label column 'Quality' · text '#1 String', '#2 String'",
        ("0", "1"),
        asks=ASKED_TEXT,
        flags={"label_column": "Quality", "text_columns": "#1 String,#2 String"},
    ),
    "Sentiment140": Layout(
        "six columns, all quoted, without a header",
        {
            "training.csv": table(
                "",
                [
                    (c, str(i), f"Mon {i}", "NO_QUERY", f"user{i}", t)
                    for i, (c, t) in enumerate(pairs("0", "4"))
                ],
                quoting=csv.QUOTE_ALL,
            )
        },
        "label column 'column 1' · text 'column 6'",
        ("0", "4"),
        asks=ASKED_TEXT,
        flags={"label_column": "column 1", "text_columns": "column 6"},
    ),
    "phrases of films": Layout(
        "Movie Review Sentiment (Kaggle): PhraseId and SentenceId beside the phrase",
        {
            "train.tsv": table(
                "PhraseId\tSentenceId\tPhrase\tSentiment",
                [(i, i // 3, t, c) for i, (c, t) in enumerate(pairs("0", "1"))],
                "\t",
            )
        },
        "label column 'Sentiment' · text 'Phrase'",
        ("0", "1"),
    ),
}
# What is not supported, and how it is refused, with any flags.
REFUSED = {
    "several labels in a cell": (
        "GoEmotions: train.tsv",
        {"train.tsv": unquoted(*[(t, c, f"id{t}") for c, t in pairs("2", "3", "2,5")])},
        {"label_column": "column 2", "text_columns": "column 1"},
        ["the label '2,5', where one class is needed"],
    ),
    "lists of several labels": (
        "a data set of the Hub with several labels",
        {
            "train.jsonl": lines(
                [
                    (t, ["a", "b"] if i % 5 == 4 else ["a"] if i % 2 else ["b"])
                    for i, t in enumerate(texts())
                ],
                "text",
                "labels",
            )
        },
        {},
        ["line 5, 10, 15", "where one class is needed"],
    ),
    "a column for each class": (
        "toxic comments (Kaggle)",
        {
            "train.csv": table(
                "id,comment_text,toxic,obscene,threat",
                [(i, t, i % 2, i % 3 // 2, 0) for i, t in enumerate(texts())],
            )
        },
        {},
        [ASKED, "'toxic', 'obscene', 'threat'"],
    ),
    "one object of lists": (
        "CLINC150: data_full.json",
        {"data_full.json": json.dumps({"train": flipped(pairs(*TWO))}).encode()},
        {},
        ["has the columns ['train']: which is the text?"],
    ),
    "lists of texts and labels": (
        "a part of CLINC150",
        {"train.json": json.dumps(flipped(pairs(*TWO))).encode()},
        {},
        ["no rows that can be read: row 1: no JSON object"],
    ),
    "the label and a colon before the text": (
        "TREC: train_5500.label, named .csv",
        {"train.csv": "".join(f"NUM:dist {t}\n" for t in texts()).encode("latin-1")},
        {},
        ["has the columns ['column 1']: which is the text?"],
    ),
    "an at sign before the label": (
        "Financial PhraseBank: Sentences_50Agree.txt",
        {"train.txt": "".join(f"{t}@neutral\n" for t in texts()).encode("latin-1")},
        {},
        ["or is no folder with a training file", "(or .tsv, .jsonl, .json, .parquet)"],
    ),
    "text files": (
        "dair-ai/emotion",
        {"train.txt": table("", flipped(pairs(*TWO)), ";"), "val.txt": b"a;b\n"},
        {},
        ["is no folder with a training file"],
    ),
    "a workbook": (
        "Excel",
        {"train.xlsx": b"PK\3\4"},
        {},
        ["is no folder with a training file"],
    ),
}


def recipe_for(folder, files, flags):
    """Write the files; a single file that is no training file is named itself."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    has_train = any(name.removeprefix("data/").startswith("train") for name in files)
    place = folder if has_train else folder / min(files)
    return Recipe(profile="offline", model="mini", data=str(place), **flags)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_that_is_read(tmp_path, name):
    layout = LAYOUTS[name]
    recipe = recipe_for(tmp_path, layout.files, layout.flags)
    if layout.asks:
        plain = recipe.replace(label_column=None, text_columns=None)
        with pytest.raises(DataError) as error:
            load_data(plain)
        assert layout.asks in str(error.value)
    source = read_source(recipe)
    assert source.split(recipe)[1] == []
    assert layout.columns in source.notes[0]
    assert any(layout.note in note for note in source.notes)
    assert tuple(source.names) == layout.classes
    assert {split: len(rows) for split, rows in source.usable().items()} == layout.rows
    assert all(len(file.rows) == layout.rows[s] for s, file in source.files.items())
    news = load_data(recipe)
    used = [text for split in news.values() for text in split["text"]]
    assert len(used) == sum(layout.rows.values())
    assert all("we met near" in text for text in used)


@pytest.mark.parametrize("name", REFUSED)
def test_a_layout_that_is_refused(tmp_path, name):
    _, files, flags, parts = REFUSED[name]
    with pytest.raises(DataError) as error:
        load_data(recipe_for(tmp_path, files, flags))
    for part in parts:
        assert part in str(error.value), str(error.value)
