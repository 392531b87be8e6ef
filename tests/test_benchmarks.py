"""The scripts that compare speeds: fair, and complete in small."""

import csv
import importlib
import json
import re
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from agnews_helpers import LABELS, Recipe, load_data, load_model
from benchmarks import inference, throughput
from benchmarks.paired import compared, order_of
from tests import test_notebooks as rules


def test_each_round_has_an_order_of_its_own_and_the_same_in_each_call():
    orders = [order_of("abcde", number) for number in range(1, 8)]
    assert orders == [order_of("abcde", number) for number in range(1, 8)]
    assert all(sorted(order) == list("abcde") for order in orders)
    assert len({*map(tuple, orders)}) > 4 and len({order[0] for order in orders}) > 2


def test_a_ratio_is_that_of_one_round():
    """The machine gets slower; medians of the columns would say 4 / 2."""
    seconds = pd.DataFrame({"ours": [1.0, 2, 8], "other": [3.0, 6, 4]})
    table = compared(seconds, "ours")
    assert table.loc["ours", ["times", "times_least", "times_most"]].tolist() == [1] * 3
    assert table.loc["other"].tolist() == [4, 3, 6, 3, 0.5, 3]
    assert list(table)[:3] == ["seconds", "seconds_least", "seconds_most"]


# ---- throughput.py


@pytest.fixture
def contest(recipe, tokens, monkeypatch):
    """What the contenders get, with the tiny model, which draws no dropout."""

    def newsletter(rows):
        still = {"dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0}
        model = load_model(recipe)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        for layer in model.distilbert.transformer.layer:
            layer.attention.dropout_p = 0.0
        model.config.update(still)
        split = {"train": tokens["train"].select(range(rows))}
        return recipe, split | {"validation": tokens["validation"]}, model

    monkeypatch.setattr(throughput, "newsletter", newsletter)
    monkeypatch.setattr(throughput, "FEW_ROWS", 8)
    return newsletter


def test_the_plain_loop_gets_the_batches_of_train(contest, tmp_path):
    """So both end with the same weights."""
    ends = []
    for name in ("plain", "ours"):
        recipe, tokens, model = contest(32)
        before = model.classifier.weight.detach().clone()
        throughput.CONTENDERS[name][0](recipe, tokens, model, tmp_path / name)
        assert not torch.equal(before, model.classifier.weight)
        ends.append(model.state_dict())
    for name, weight in ends[0].items():
        torch.testing.assert_close(weight, ends[1][name], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", throughput.CONTENDERS)
def test_validation_counts_on_one_clock_only(contest, monkeypatch, name):
    """It is made to take a second more."""

    def slow(function):
        def later(*arguments, **settings):
            time.sleep(1)
            return function(*arguments, **settings)

        return later

    places = {
        "ours": (sys.modules["agnews_helpers.training"], "evaluate"),
        "trainer": (throughput.Trainer, "evaluate"),
        "grouped": (throughput.Trainer, "evaluate"),
    }
    place = places.get(name, (throughput, "accuracy"))
    monkeypatch.setattr(*place, slow(getattr(*place)))
    started = time.perf_counter()
    found = throughput.contest(name, 16)
    seconds = time.perf_counter() - started
    scaled = found["steps"] * (0.5 if name == "letter" else 1)
    assert found["whole"] - found["steps"] > 1 and 0 < scaled < seconds - 1


def test_few_rows_padded_to_512_are_scaled_up(contest, monkeypatch):
    contender = (lambda *_: (3.0, 8), "")
    monkeypatch.setitem(throughput.CONTENDERS, "letter", contender)
    monkeypatch.setattr(throughput.time, "perf_counter", iter([10.0, 14.0]).__next__)
    assert throughput.contest("letter", 16) == {"steps": 6.0, "whole": 7.0}


@pytest.mark.slow
def test_throughput_in_small(contest, monkeypatch, tmp_path, capsys):
    def here(what, rows):
        shares = {"matrix products": 0.7, "data, beside the step": 0.1}
        return shares if what == "parts" else throughput.contest(what, rows)

    monkeypatch.setattr(throughput, "in_a_process", here)
    path = tmp_path / "found.json"
    words = ["--rows", "16", "--rounds", "2", "--output", str(path)]
    monkeypatch.setattr(sys, "argv", ["throughput.py", *words])
    throughput.main()
    found = json.loads(path.read_text(encoding="utf-8"))
    assert path.with_suffix(".png").is_file()
    assert len(found["rounds"]) == 2 * len(throughput.CONTENDERS)
    by_round = {
        name: [line for line in found["rounds"] if line["contender"] == name]
        for name in throughput.CONTENDERS
    }
    pairs = zip(by_round["trainer"], by_round["ours"])
    ratios = sorted(trainer["whole"] / ours["whole"] for trainer, ours in pairs)
    told = found["whole call"]["trainer"]
    assert [told["times_least"], told["times_most"]] == pytest.approx(ratios, abs=1e-3)
    assert list(found["steps alone"]) == list(throughput.CONTENDERS)
    printed = capsys.readouterr().out
    assert "whole call" in printed and "transformers.Trainer, group" in printed


# ---- inference.py


@pytest.fixture
def onnx(tiny, monkeypatch):
    """ONNX Runtime is not needed: a stand-in that answers with the model itself."""
    model = load_model(Recipe(model=str(tiny))).eval()
    sessions = []

    class Session:
        def __init__(self, path, options, providers):
            assert providers == ["CPUExecutionProvider"]
            self.threads, self.slow = options.intra_op_num_threads, 0.0
            sessions.append(self)

        @torch.no_grad()
        def run(self, names, inputs):
            assert names == ["logits"]
            time.sleep(0.05 if self.threads == 1 else 0)
            tensors = {name: torch.tensor(array) for name, array in inputs.items()}
            return [model(**tensors).logits.numpy()]

    stand_in = SimpleNamespace(InferenceSession=Session, SessionOptions=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "onnxruntime", stand_in)
    monkeypatch.setattr(inference, "export", lambda *_: None)
    return sessions


@pytest.mark.slow
def test_inference_in_small(onnx, tiny, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    path = tmp_path / "found.json"
    words = ["--rows", "40", "--rounds", "2", "--tries", "3", "--output", str(path)]
    words += ["--classifier", str(tiny)]
    monkeypatch.setattr(sys, "argv", ["inference.py", *words])
    inference.main()
    found = json.loads(path.read_text(encoding="utf-8"))
    wall, cpu = found["many"]["wall"], found["many"]["cpu"]
    assert {line["same_answers"] for line in wall.values()} == {40}
    assert set(wall) == set(cpu) and len(wall) == 6
    rounds = found["many"]["wall_rounds"]
    assert len(rounds) == len(found["many"]["cpu_rounds"]) == 2
    # A process of its own counts: Python alone takes more than this to import torch.
    assert all(line["agnews predict --file"] > 0.5 for line in rounds)
    assert cpu["agnews predict --file"]["seconds_least"] > 0.5
    threads = found["threads"]
    assert threads["PyTorch"] == torch.get_num_threads()
    assert threads["ONNX Runtime"] == 2  # the stand-in is slow on one
    assert [session.threads for session in onnx] == [1, 2]
    assert "milliseconds_most" in found["one"]["Classifier"]
    printed = capsys.readouterr().out
    assert "threads: {'PyTorch'" in printed and "pipeline, sorted batches" in printed


def test_the_sorted_pipeline_answers_in_order():
    news = load_data(Recipe(data="sample", test_rows=20))["test"]["text"][:]
    batches = []

    def piped(texts, batch_size):
        batches.append(texts)
        return [{"label": text[:5]} for text in texts]

    assert inference.sorted_pipeline(piped, news) == [text[:5] for text in news]
    assert [len(text) for text in batches[0]] == sorted(map(len, news), reverse=True)


def test_the_faster_number_of_threads_is_found_when_warm(onnx, tiny):
    """The first round, in which both are cold, does not count."""
    calls = {1: [9.0, 2.0, 1.0], 2: [0.0, 3.0, 4.0]}

    class Fake:
        def __init__(self, threads):
            self.threads = threads

        def __call__(self, texts):
            return None

    def seconds_of(work):
        return (calls[work.func.threads].pop(0), 0.0), None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "seconds_of", seconds_of)
        best, tried = inference.best_threads(Fake, ["text"])
    assert best.threads == 1 and tried == {1: 1.0, 2: 3.0}


def test_cpu_seconds_count_all_threads_and_no_sleep():
    (wall, cpu), _ = inference.seconds_of(lambda: time.sleep(0.3))
    assert wall >= 0.3 and cpu < 0.2


# ---- learning_curve.py


@pytest.fixture
def curve(monkeypatch):
    """The script, which finds its neighbours because it lies beside them."""
    folder = Path(throughput.__file__).parent
    monkeypatch.syspath_prepend(str(folder))
    return importlib.import_module("benchmarks.learning_curve")


def test_a_frozen_row_is_its_first_vector_or_the_mean_without_padding(
    curve, recipe, tokens
):
    model, split = load_model(recipe).eval(), tokens["validation"]
    assert len({*split["length"][:]}) > 1  # so there is padding in a batch
    for pooling in ("[CLS]", "mean"):
        found = curve.vectors(model, split, recipe, pooling)
        for row, ids in zip(found, split["input_ids"][:]):
            alone = model.base_model(torch.tensor([ids])).last_hidden_state[0]
            right = alone[0] if pooling == "[CLS]" else alone.mean(dim=0)
            torch.testing.assert_close(row, right, rtol=0, atol=1e-5)


def test_what_the_json_has_is_not_measured_again(curve, monkeypatch, tmp_path):
    measured = []

    def probe(model):
        def line(recipe, news, name=model):
            measured.append((name, recipe.seed))
            same = {"rows": 100, "seed": recipe.seed, "epoch": curve.EPOCHS}
            return same | {"model": name, "accuracy": 0.5}

        return line

    for function, model in (
        ("linear", "TF-IDF"),
        ("frozen", ""),
        ("transformer", "mini"),
    ):
        monkeypatch.setattr(curve, function, probe(model))
    monkeypatch.setattr(curve, "rows_of", lambda *_: None)
    path = tmp_path / "curve.json"
    curve.measure(path, [100], 20)
    assert len(measured) == 12 and len({*measured}) == 12
    lines = json.loads(path.read_text(encoding="utf-8"))["lines"]
    kept = [line for line in lines if line["model"] != "frozen, mean"]
    path.write_text(json.dumps({"lines": kept}), encoding="utf-8")
    measured.clear()
    curve.measure(path, [100], 20)
    assert measured == [("frozen, mean", seed) for seed in curve.SEEDS]
    assert len(json.loads(path.read_text(encoding="utf-8"))["lines"]) == 12


# ---- the text tells what was measured


def told(number):
    """The prose of a notebook."""
    [path] = [path for path in rules.NOTEBOOKS if path.name.startswith(number)]
    return rules.prose(rules.read(path)[0])


def test_notebook_10_tells_the_measured_speeds():
    text, figures = told("10"), rules.stored("throughput.json")
    steps, whole = figures["steps alone"], figures["whole call"]
    for name, said in (
        ("letter", "took {:.0f} times as long as those of `train()`"),
        ("trainer", "the library's own loop, {:.1f} times"),
        ("grouped", "with batches of similar length {:.1f} times"),
    ):
        assert said.format(steps[name]["times"]) in text
    shares = [whole[name]["times"] for name in ("letter", "trainer", "grouped")]
    assert "it was {:.0f}, {:.1f} and {:.1f} times".format(*shares) in text
    less = [100 * (1 - clock["plain"]["times"]) for clock in (steps, whole)]
    assert "{:.1f} % less time for the steps, and {:.0f} % with".format(*less) in text
    least, most = (
        [100 * (1 - clock["plain"][f"times_{end}"]) for clock in (steps, whole)]
        for end in ("most", "least")
    )
    said = "in the five rounds {:.1f} to {:.1f} % and {:.0f} to {:.0f} %)"
    assert said.format(least[0], most[0], least[1], most[1]) in text
    for name, said in (
        ("letter", "by far the shortest, {} and {}."),
        ("trainer", "The Trainer has {} and {},"),
        ("grouped", "group_by_length {} and {},"),
        ("plain", "the longest, {} and {},"),
        ("ours", "train() {} and {}]"),
    ):
        speeds = [800 / clock[name]["seconds"] for clock in (steps, whole)]
        assert said.format(*map("{:.1f}".format, speeds)) in text
    assert f"{len(figures['rounds'])} runs" in text and figures["rows"] == 800
    assert f"take {100 * figures['parts']['matrix products']:.0f} % of a step" in text


def test_notebook_08_tells_the_measured_speeds():
    text, figures = told("08"), rules.stored("inference.json")
    many, one = figures["many"]["wall"], figures["one"]
    onnx = [many["ONNX Runtime"][f"times{which}"] for which in ("", "_least", "_most")]
    said = "took {:.1f} of the time of `classify()` ({:.1f} to {:.1f})".format(*onnx)
    names = ("pipeline", "pipeline, sorted batches")
    times = [many[name]["times"] for name in names]
    said += ", `pipeline()` {:.1f}, and {:.1f} in sorted batches".format(*times)
    assert said in text
    single = [one[name]["milliseconds"] for name in ("the model", "classify()")]
    assert "takes {:.0f} ms with `ask()`, {:.0f} with".format(*single) in text
    assert {line["same_answers"] for line in many.values()} == {figures["rows"]}
    assert figures["rows"] == 4_000 and figures["rounds"] == 7


def test_the_readme_tells_the_measured_seeds():
    text = (rules.ROOT / "README.md").read_text(encoding="utf-8")
    runs = pd.DataFrame(rules.stored("seeds.json")["runs"]).set_index("seed")
    found = 100 * runs.loc[runs["precision"] == "fp32", "accuracy"]
    said = "{:.1f} % of the sample's 200, the mean of four seeds ({:.1f} to {:.1f}; the"
    assert said.format(found.mean(), found.min(), found.max()) in text
    assert len(found) == 4 and f"notebooks' seed has {found[42]:.1f})" in text
    real = [100 * test["accuracy"] for test in rules.stored("shortcuts.json")["tests"]]
    said = "{:.1f} % of 4,000 real rows, the mean of four seeds ({:.1f} to {:.1f})"
    least = min(real) + 1e-9  # 87.55 is a tie, and in binary a little less
    assert said.format(sum(real) / len(real), least, max(real)) in text


def test_the_readme_tells_the_minutes_of_laptop():
    lines = (rules.ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    seconds = rules.stored("laptop_minutes.json")["seconds"]
    assert [*seconds] == rules.NAMES
    for name, measured in seconds.items():
        [row] = [line for line in lines if f"](notebooks/{name}.ipynb) |" in line]
        assert row.split(" | ")[4] == f"{measured / 60:.1f} min"
    said = f"about 7, and {sum(seconds.values()) / 60:.0f} in `laptop`"
    assert sum(said in line for line in lines) == 1


def test_the_faults_are_told_as_they_were_counted():
    kinds = rules.stored("faults.json")["faults"]
    assert f"tried {sum(kind['tried'] for kind in kinds):,} faults" in told("10")
    for kind in kinds:
        assert not kind["rows_lost"] + kind["weights_different"]


def test_the_long_run_is_told_as_it_was_measured():
    text, figures = told("10"), rules.stored("long_run.json")
    said = "on {:,} rows of AG News' training split on two CPU cores, in {:.0f} minutes"
    assert said.format(figures["train_rows"], figures["minutes"]) in text
    faults = figures["interruptions"]
    twice = sum(max(0, line["step"] - line["continued_after"]) for line in faults)
    said = "; {:,} of {:,} steps were done twice"
    assert said.format(twice, figures["steps"]) in text

    def percent(share):
        return f"{100 * share + 1e-9:.1f}"  # of a tie, which binary puts a bit lower

    shares = [percent(test["accuracy"]) for test in figures["tested"]]
    assert len(shares) == 4 and {test["rows"] for test in figures["tested"]} == {4_000}
    baseline = f"{percent(figures['tfidf_accuracy'])} %"
    said = "{}, {}, {} and {} % of the answers were right after epochs 1 to 4; TF-IDF"
    assert f"{said.format(*shares)} has {baseline}" in text
    assert f"Epoch {figures['best_epoch']}, which validation chose," in text
    readme = (rules.ROOT / "README.md").read_text(encoding="utf-8")
    said = "{:,} real rows, {:.0f} minutes on two cores | {} % of the same 4,000"
    best = shares[figures["best_epoch"] - 1]
    assert said.format(figures["train_rows"], figures["minutes"], best) in readme
    assert f"(TF-IDF with logistic regression: {baseline})" in readme


# ---- the rows: CONTRIBUTING.md says how to draw them


def contributing(words):
    """The one block of Python that has these words."""
    text = (rules.ROOT / "CONTRIBUTING.md").read_text("utf-8")
    [block] = [
        block
        for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL)
        if words in block
    ]
    return block


def public_files(folder):
    """Made-up rows as the public files have them; return the texts of each class."""
    texts = {label: [] for label in range(4)}
    table = []
    for i in range(4 * 11_100):
        title = "NA" if i < 4 else f'Title "{i}"'
        table.append((i % 4 + 1, title, f"of, \\$ story {i}"))
        texts[i % 4].append(" ".join(table[-1][1:]))
    table += table[:40]  # equal texts
    rows = pd.DataFrame(table, columns=["class", "title", "description"])
    rows.to_csv(folder / "train.csv", index=False, header=False, quoting=csv.QUOTE_ALL)
    rows["text"] = rows["title"] + " " + rows["description"]
    rows["label"] = rows["class"] - 1
    rows = rows[["text", "label"]]
    rows.to_parquet(folder / "train-00000-of-00001.parquet", index=False)
    return texts


def test_the_folder_for_the_benchmarks_can_be_made(tmp_path, monkeypatch):
    texts = public_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    drawn = []
    for reading in ("read_parquet", "read_csv"):
        names = {}
        exec(contributing(reading) + contributing('Path("news")'), names)
        drawn.append([pd.read_csv(f"news/{split}.csv") for split in ("train", "test")])
        Path("news").rename(f"news from {reading}")
    for a, b in zip(*drawn):
        pd.testing.assert_frame_equal(a, b)
    news = load_data(Recipe(data="news from read_csv"))
    assert {split: len(news[split]) for split in news} == {
        "train": 38_000,
        "validation": 2_000,
        "test": 4_000,
    }
    assert news["test"].features["label"].names == list(LABELS)
    seen = set()
    for split in news.values():
        labels, found = split["label"][:], split["text"][:]
        counts = pd.Series(labels).value_counts()
        assert counts.min() == counts.max() == len(split) / 4
        assert seen.isdisjoint(found) and len({*found}) == len(found)
        seen.update(found)
        for label in range(4):
            of_class = {text for text, is_of in zip(found, labels) if is_of == label}
            assert of_class <= {*texts[label]}
    assert drawn[0][0]["label"][:100].nunique() == 4  # shuffled
