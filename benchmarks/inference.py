"""How fast are answers, compared with transformers' pipeline and ONNX Runtime?

    pip install onnx onnxscript onnxruntime    # for this script alone
    AGNEWS_DATA=folder python benchmarks/inference.py --classifier runs/agnews

About a quarter of an hour on two cores. It prints a table and writes inference.json.
`classify()`, `agnews predict` and the others answer the same texts in turn, several
times. Ratios are computed within a round, because a laptop's speed drifts. ONNX Runtime
gets the same classifier, exported in fp32, and the same batches of rows of similar
length that `classify()` makes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from agnews_helpers import (
    classify,
    load_data,
    recipe_for_this_machine,
    sorted_batches,
)
from agnews_helpers.model import class_names, load_classifier

HERE = Path(__file__)
ROWS, ROUNDS, TRIES = 4_000, 3, 20
BATCH = 32


def export(model, tokenizer, path: Path) -> None:
    """Write the classifier as an ONNX file, for any number of rows of any length."""
    batch = tokenizer(
        ["Stocks fall", "Oil climbs as winter comes"], padding=True, return_tensors="pt"
    )
    names = ["input_ids", "attention_mask"]
    sizes = {0: torch.export.Dim("rows"), 1: torch.export.Dim("tokens", max=512)}
    example = tuple(batch[name] for name in names)
    how = dict(
        input_names=names,
        output_names=["logits"],
        dynamic_shapes=(sizes, sizes),
        dynamo=True,
    )
    torch.onnx.export(model.eval(), example, path, **how)


class OnnxClassifier:
    """Callable: label texts with ONNX Runtime."""

    def __init__(self, path: Path, tokenizer, names: list[str]):
        from onnxruntime import InferenceSession

        self.session = InferenceSession(path, providers=["CPUExecutionProvider"])
        self.tokenizer, self.names = tokenizer, np.array(names)

    def __call__(self, texts: list[str]) -> list[str]:
        ids = self.tokenizer(texts, truncation=True, max_length=512)["input_ids"]
        predicted = np.empty(len(texts), int)
        for indices in sorted_batches([len(row) for row in ids]):
            batch = self.tokenizer.pad(
                {"input_ids": [ids[index] for index in indices]}, return_tensors="np"
            )
            inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
            predicted[indices] = self.session.run(["logits"], inputs)[0].argmax(-1)
        return self.names[predicted].tolist()


def one_by_model(model, tokenizer, text: str) -> str:
    """Label one text by hand: tokens, logits, label."""
    batch = tokenizer(text, truncation=True, max_length=512, return_tensors="pt")
    with torch.inference_mode():
        logits = model(**batch).logits
    return model.config.id2label[int(logits.argmax())]


def command(texts: list[str], folder: Path, work: Path) -> list[str]:
    """Label texts with `agnews predict --file`, including the start of the process."""
    source, target = work / "texts.csv", work / "labelled.csv"
    pd.DataFrame({"text": texts}).to_csv(source, index=False)
    target.unlink(missing_ok=True)
    words = [
        "predict",
        "--file",
        source,
        "--output",
        target,
        "--output-dir",
        folder.resolve(),
    ]
    subprocess.run(
        [sys.executable, "-m", "agnews_helpers", *map(str, words)],
        check=True,
        capture_output=True,
    )
    return pd.read_csv(target)["label"].tolist()


def labels_of(answers: list[dict]) -> list[str]:
    return [answer["label"] for answer in answers]


def in_turn(contenders: dict, rounds: int, progress: bool) -> tuple[pd.DataFrame, dict]:
    """Return the seconds of each contender by round, and its last answers."""
    seconds, answers = [], {}
    for number in range(rounds):
        line = {}
        for name, contender in contenders.items():
            started = time.perf_counter()
            answers[name] = contender()
            line[name] = time.perf_counter() - started
            if progress:
                print(f"round {number + 1}  {name:26} {line[name]:7.1f} s", flush=True)
        seconds.append(line)
    return pd.DataFrame(seconds), answers


def table_of(seconds: pd.DataFrame, first: str) -> pd.DataFrame:
    """Return median seconds, and the ratio to `first`: median, least and most."""
    times = seconds.div(seconds[first], axis=0)
    spread = {
        "times_as_long": times.median(),
        "least": times.min(),
        "most": times.max(),
    }
    return pd.DataFrame({"seconds": seconds.median(), **spread})


def main() -> None:
    from transformers import pipeline

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--classifier", type=Path, required=True, help="a folder that train() wrote"
    )
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    folder = options.classifier
    model, tokenizer = load_classifier(folder)
    test = load_data(recipe_for_this_machine(profile="offline"))["test"]
    texts = test["text"][: options.rows]
    model.eval()
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        # A copy, because a pipeline may move its model to another device.
        model.save_pretrained(work / "copy")
        tokenizer.save_pretrained(work / "copy")
        piped = pipeline(
            "text-classification", model=str(work / "copy"), truncation=True
        )
        export(model, tokenizer, work / "model.onnx")
        by_onnx = OnnxClassifier(work / "model.onnx", tokenizer, class_names(model))
        many = {
            "classify()": lambda: classify(texts, folder)["label"].tolist(),
            "agnews predict --file": partial(command, texts, folder, work),
            "pipeline": lambda: labels_of(piped(texts)),
            f"pipeline, batch_size={BATCH}": lambda: labels_of(
                piped(texts, batch_size=BATCH)
            ),
            "ONNX Runtime": partial(by_onnx, texts),
        }
        seconds, answers = in_turn(many, options.rounds, progress=True)
        headline = texts[0]
        one = {
            "the model": partial(one_by_model, model, tokenizer, headline),
            "pipeline": lambda: piped(headline),
            "ONNX Runtime": partial(by_onnx, [headline]),
            "classify()": lambda: classify([headline], folder),
        }
        in_turn(one, 3, progress=False)  # warm
        single, _ = in_turn(one, TRIES, progress=False)
    rows = table_of(seconds, "classify()")
    rows["rows_per_second"] = len(texts) / rows["seconds"]
    same = {
        name: sum(a == b for a, b in zip(found, answers["classify()"]))
        for name, found in answers.items()
    }
    rows["same_answers"] = pd.Series(same)
    alone = table_of(single, "the model")
    alone["milliseconds"] = 1000 * alone.pop("seconds")
    print(
        f"\n{len(texts):,} texts, {options.rounds} rounds\n{rows.round(2).to_string()}"
    )
    tokens = len(tokenizer(headline)["input_ids"])
    print(f"\none headline of {tokens} tokens, {TRIES} times")
    print(alone.round(2).to_string())
    figures = {
        "rows": len(texts),
        "rounds": options.rounds,
        "many": rows.round(3).to_dict("index"),
    }
    figures["one"] = alone.round(3).to_dict("index")
    HERE.with_suffix(".json").write_text(
        json.dumps(figures, indent=2), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
