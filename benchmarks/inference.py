"""How fast are answers, compared with transformers' pipeline and ONNX Runtime?

    pip install onnx onnxscript onnxruntime    # for this script alone
    AGNEWS_DATA=folder python benchmarks/inference.py --classifier runs/agnews

`classify()`, `agnews predict` and the others answer the same 4,000 texts seven times,
in random order, and one headline twenty times. Wall-clock and CPU seconds are measured;
those of ONNX Runtime contain the waiting of its threads, which spin. It gets the same
classifier, exported in fp32, the batches of rows of similar length that `classify()`
makes, and the better of one and two threads, found before. PyTorch has as many threads
as it takes by itself.

About half an hour on two cores, the CPU alone. It prints two tables and writes
inference.json. CONTRIBUTING.md says how to make the folder; its rows are from AG News'
training split.
"""

import argparse
import json
import os
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
    Classifier,
    classify,
    load_data,
    recipe_for_this_machine,
    sorted_batches,
)
from agnews_helpers.model import class_names, load_classifier

HERE = Path(__file__)
sys.path.insert(0, str(HERE.parents[1]))  # where this is run as a script
from benchmarks.paired import compared, order_of  # noqa: E402

ROWS, ROUNDS, TRIES = 4_000, 7, 20
BATCH = 32
THREADS = (1, 2)  # that ONNX Runtime tries
WARM_UP_ROWS = 200


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
    """Callable: label texts with ONNX Runtime, on this many threads."""

    def __init__(self, path: Path, tokenizer, names: list[str], threads: int):
        from onnxruntime import InferenceSession, SessionOptions

        options = SessionOptions()
        options.intra_op_num_threads = threads
        self.session = InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
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


def best_threads(make, texts: list[str]) -> tuple[OnnxClassifier, dict[int, float]]:
    """Return the faster of the classifiers of `THREADS`, and their seconds.

    Each answers the texts three times, in turn; the first time warms up, and of the
    other two the shorter counts.
    """
    classifiers = {threads: make(threads) for threads in THREADS}
    rounds = [
        {
            threads: seconds_of(partial(classifiers[threads], texts))[0][0]
            for threads in THREADS
        }
        for _ in range(3)
    ]
    tried = pd.DataFrame(rounds[1:]).min().to_dict()
    return classifiers[min(tried, key=tried.get)], tried


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
        "--model",
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


def sorted_pipeline(piped, texts: list[str]) -> list[str]:
    """Label texts with a pipeline, the longest first, and put them back in order."""
    order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
    labels = labels_of(piped([texts[i] for i in order], batch_size=BATCH))
    return [label for _, label in sorted(zip(order, labels))]


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and, on POSIX, of its ended children."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def seconds_of(work) -> tuple[tuple[float, float], object]:
    """Return wall-clock and CPU seconds, and the result."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    result = work()
    return (time.perf_counter() - wall, cpu_seconds() - cpu), result


def in_rounds(contenders: dict, rounds: int, progress: bool):
    """Measure all contenders in each round, in random order.

    Return the seconds by wall clock and by CPU, a row per round and a column per
    contender; and the last answers of each.
    """
    wall, cpu, answers = [], [], {}
    for number in range(1, rounds + 1):
        wall.append({})
        cpu.append({})
        for name in order_of(contenders, number):
            (wall[-1][name], cpu[-1][name]), answers[name] = seconds_of(
                contenders[name]
            )
            if progress:
                print(
                    f"round {number}  {name:24} {wall[-1][name]:7.1f} s, "
                    f"CPU {cpu[-1][name]:7.1f} s",
                    flush=True,
                )
    order = list(contenders)
    return pd.DataFrame(wall)[order], pd.DataFrame(cpu)[order], answers


def measure_many(many: dict, rows: int, rounds: int) -> dict:
    """Measure many texts; print the tables and return them with all rounds."""
    wall, cpu, answers = in_rounds(many, rounds, progress=True)
    by_wall, by_cpu = compared(wall, "classify()"), compared(cpu, "classify()")
    by_wall["rows_per_second"] = rows / by_wall["seconds"]
    by_wall["same_answers"] = {
        name: sum(a == b for a, b in zip(found, answers["classify()"]))
        for name, found in answers.items()
    }
    print(f"\n{rows:,} texts, {rounds} rounds; times: as long as classify()")
    print(f"{by_wall.round(2).to_string()}\n\nCPU\n{by_cpu.round(2).to_string()}")
    return {
        "wall": by_wall.round(3).to_dict("index"),
        "cpu": by_cpu.round(3).to_dict("index"),
        "wall_rounds": wall.round(3).to_dict("records"),
        "cpu_rounds": cpu.round(3).to_dict("records"),
    }


def measure_one(one: dict, tokens: int, tries: int) -> dict:
    """Measure a single headline, in milliseconds."""
    in_rounds(one, 3, progress=False)  # warm
    wall, _, _ = in_rounds(one, tries, progress=False)
    table = compared(1000 * wall, "the model")
    table.columns = table.columns.str.replace("seconds", "milliseconds")
    print(f"\none headline of {tokens} tokens, {tries} times; times: as long as the")
    print(f"model's\n{table.round(2).to_string()}")
    return table.round(3).to_dict("index")


def contenders_of(folder: Path, work: Path, texts: list[str]) -> tuple:
    """Return who answers many texts, who answers one, and the threads of each."""
    from transformers import pipeline

    model, tokenizer = load_classifier(folder)
    # A copy, because a pipeline may move its model to another device.
    model.save_pretrained(work / "copy")
    tokenizer.save_pretrained(work / "copy")
    piped = pipeline("text-classification", model=str(work / "copy"), truncation=True)
    export(model.eval(), tokenizer, work / "model.onnx")
    make = partial(OnnxClassifier, work / "model.onnx", tokenizer, class_names(model))
    onnx, tried = best_threads(make, texts[:WARM_UP_ROWS])
    headline, loaded = texts[0], Classifier(folder)
    many = {
        "classify()": lambda: classify(texts, folder)["label"].tolist(),
        "agnews predict --file": partial(command, texts, folder, work),
        "pipeline": lambda: labels_of(piped(texts)),
        "pipeline, batches": lambda: labels_of(piped(texts, batch_size=BATCH)),
        "pipeline, sorted batches": partial(sorted_pipeline, piped, texts),
        "ONNX Runtime": partial(onnx, texts),
    }
    one = {
        "the model": partial(one_by_model, model, tokenizer, headline),
        "pipeline": lambda: piped(headline),
        "ONNX Runtime": partial(onnx, [headline]),
        "Classifier": partial(loaded, [headline]),
        "classify()": partial(classify, [headline], folder),
    }
    threads = {
        "PyTorch": torch.get_num_threads(),
        "ONNX Runtime": min(tried, key=tried.get),
        "ONNX Runtime, seconds by threads": tried,
    }
    return many, one, threads, len(tokenizer(headline)["input_ids"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--classifier", type=Path, required=True, help="a folder that train() wrote"
    )
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--tries", type=int, default=TRIES, help="for one headline")
    parser.add_argument(
        "--output", type=Path, default=HERE.with_suffix(".json"), help="a JSON file"
    )
    options = parser.parse_args()
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # all on the CPU
    test = load_data(recipe_for_this_machine(profile="offline"))["test"]
    texts = test["text"][: options.rows]
    with tempfile.TemporaryDirectory() as work:
        many, one, threads, tokens = contenders_of(
            options.classifier, Path(work), texts
        )
        print("threads:", threads)
        figures = {
            "rows": len(texts),
            "rounds": options.rounds,
            "batch_size_of_the_pipeline": BATCH,
            "threads": threads,
            "many": measure_many(many, len(texts), options.rounds),
            "one": measure_one(one, tokens, options.tries),
        }
    text = json.dumps(figures, indent=2) + "\n"
    options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
