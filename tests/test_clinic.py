"""The clinic of notebook 06: its patients, its verdicts, and what its text claims.

All of it is read from the notebook's cells: what is tested is what is shown.
"""

import ast
import itertools
import linecache
import re

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

import agnews_helpers
from agnews_helpers import load_model, load_tokenizer
from tests import test_notebooks as rules
from tests.tiny import tiny_model_folder

NOTEBOOK = rules.ROOT / "notebooks" / "06_heal_a_bad_run.ipynb"
LOOP = rules.ROOT / "notebooks" / "05_train_the_classifier.ipynb"
CELLS, CODE = rules.read(NOTEBOOK)
PATIENTS = ["Ada", "Ben", "Cleo", "Dan", "Emma", "Finn"]
HEALTHY = "nothing, it is healthy"


def run(text, names, file):
    """Run a cell so that `inspect.getsource` finds it, as in a notebook."""
    lines = text.splitlines(keepends=True)
    linecache.cache[file] = (len(text), None, lines, file)
    exec(compile(text, file, "exec"), names)


@pytest.fixture(scope="module")
def clinic(tmp_path_factory):
    """The notebook's functions, with a tiny model in place of mini, and few rows."""
    shown = []
    names = {"__name__": "clinic"}
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model_folder(folder, initializer_range=0.3)  # large, so that faults show
    for number, cell in enumerate(CODE):
        text = cell["text"]
        if re.match(r"(chart|consult)\(", text):
            continue
        if "gallery.csv" in text or "solution" in cell["tags"]:
            break
        text = text.replace("min(128,", "min(24,").replace("cut + 80", "cut + 20")
        run(text, names, f"<cell {number} of the clinic>")
        if "recipe" in names:  # of the first cell
            names["recipe"] = names["recipe"].replace(model=str(folder))
    names["display"] = lambda *outputs: shown.append(outputs)
    names["shown"] = shown
    return names


def healthy_text(clinic):
    return clinic["inspect"].getsource(clinic["fine_tune"])


def changed_lines(clinic, who):
    pairs = itertools.zip_longest(
        healthy_text(clinic).splitlines(), clinic["broken"](who).splitlines()
    )
    return [pair for pair in pairs if pair[0] != pair[1]]


def test_each_patient_differs_in_one_line(clinic):
    assert [*clinic["files"]] == PATIENTS
    changes = [changed_lines(clinic, who) for who in PATIENTS]
    assert all(len(change) == 1 for change in changes)
    assert len({healthy for [(healthy, _)] in changes}) == 6  # six different lines


def test_each_patient_has_another_fault(clinic):
    faults = {fault for fault, _ in clinic["files"].values()}
    assert len(faults) == 6
    assert faults | {HEALTHY} == {*clinic["signs"]} and faults == {*clinic["reasons"]}
    text = "\n".join(cell["text"] for cell in CELLS)
    assert all(f"- **{fault}**" in text.replace("`", "") for fault in faults)


def test_a_change_that_the_loop_lacks_is_refused(clinic):
    files = {"Gus": ("nothing", ["lr=3e-4", "lr=1"])}
    names = {**clinic, "files": files}
    text = clinic["inspect"].getsource(clinic["broken"])
    exec(text, names)
    with pytest.raises(ValueError, match="lr=3e-4"):
        names["broken"]("Gus")


def functions_of(path, wanted, names):
    """Define some functions of a notebook."""
    for cell in rules.read(path)[1]:
        if not any(f"def {name}(" in cell["text"] for name in wanted):
            continue
        for node in ast.parse(cell["text"]).body:
            if getattr(node, "name", None) in wanted:
                module = ast.Module([node], [])
                exec(compile(module, path.name, "exec"), names)


def test_the_healthy_loop_is_that_of_notebook_05(clinic, capsys):
    names = {key: clinic[key] for key in ("on_device", "epoch_batches", "make_loader")}
    names |= {"torch": torch, "F": F, "recipe": clinic["small"]}
    names["sorted_batches"] = agnews_helpers.sorted_batches
    functions_of(LOOP, ("accuracy", "fine_tune"), names)
    small = clinic["small"]
    rows, unseen = (
        clinic["tokenize"](part, load_tokenizer(small), small)
        for part in (clinic["train"], clinic["held_out"])
    )
    model = load_model(small, clinic["names"])
    torch.manual_seed(small.seed)
    theirs = names["fine_tune"](model, rows, unseen, epochs=3, lr=1e-4)
    healthy, ours, _ = clinic["fine_tune"]()
    assert len(ours) == 9 and ours == theirs
    for mine, other in zip(healthy.parameters(), model.parameters()):
        assert torch.equal(mine, other)


def test_each_patient_trains_and_its_fault_is_at_work(clinic):
    """In nine steps of a tiny model, where it shows whatever the numbers are."""
    _, losses, (first, again, padded) = clinic["fine_tune"]()
    assert torch.equal(first, again)
    torch.testing.assert_close(first, padded, atol=1e-5, rtol=0)
    for who in PATIENTS:
        _, theirs, (first, again, padded) = clinic["patients"][who]()
        fault = clinic["files"][who][0]
        same = [loss == other for loss, other in zip(losses, theirs)]
        if fault == "eval() forgotten":  # does not touch training
            assert all(same) and not torch.equal(first, again)
            continue
        assert torch.equal(first, again)
        if fault == "attention mask dropped":
            assert (first - padded).abs().max() > 1e-3
            continue
        # the second step sees a sum of gradients; the first loss another rate
        late = {"zero_grad() forgotten": 2, "learning rate x 20": 1}.get(fault, 0)
        assert all(same[:late]) and not any(same[late:]), fault


@pytest.mark.parametrize("who", PATIENTS)
def test_the_right_diagnosis_is_accepted_and_each_other_gets_a_hint(clinic, who):
    verdict, fault = clinic["verdict"], clinic["files"][who][0]
    [(healthy, broken)] = changed_lines(clinic, who)
    escape = clinic["escape"]
    for guess in clinic["signs"]:
        told = verdict(who, guess)
        if guess == fault:
            assert (
                f"Yes: {fault}" in told
                and clinic["escape"](clinic["reasons"][fault]) in told
            )
            assert f"broken: {escape(broken.strip())}<" in told
            assert f"cured: {escape(healthy.strip())}<" in told
        else:
            assert "No." in told and escape(clinic["signs"][guess]) in told
            assert "broken:" not in told and fault not in told.replace(guess, "")
    assert verdict(who, None) == "Look at the chart, then choose."


def test_the_list_answers(clinic):
    clinic["shown"].clear()
    clinic["consult"]("Ada")
    [(box, folded)] = clinic["shown"]
    choice, reply = box.children
    assert choice.value is None and reply.value.startswith("Look at the chart")
    choice.value = "eval() forgotten"
    assert "No." in reply.value
    choice.value = clinic["files"]["Ada"][0]
    assert "Yes: labels shifted" in reply.value and "broken:" in reply.value
    choice.value = None
    assert reply.value.startswith("Look at the chart")
    # what stands in the exported page, where no list answers
    assert folded.data.startswith("<details><summary>") and "broken:" in folded.data


def test_nothing_before_its_chart_tells_which_patient_has_what(clinic):
    """Neither text nor code, folded or not, can be read by accident."""
    lines = {line.strip() for cell in CELLS for line in cell["text"].splitlines()}
    for who in PATIENTS:
        [(healthy, broken)] = changed_lines(clinic, who)
        assert healthy.strip() in lines and broken.strip() not in lines
    stories = [cell["text"] for cell in CELLS if cell["text"].startswith("### ")]
    assert len(stories) == 6
    assert not any(fault in text for text in stories for fault in clinic["signs"])


def test_what_gives_it_away_is_folded():
    folded = [cell for cell in CODE if "solution" not in cell["tags"]]
    folded = [cell for cell in folded if cell["metadata"].get("jupyter")]
    assert all(cell["metadata"]["jupyter"]["source_hidden"] for cell in folded)
    starts = ("sealed = ", "signs = ", "reasons = ", "def verdict", "def consult")
    for start in starts:
        assert sum(start in cell["text"] for cell in folded) == 1


def stored(who):
    """The table beside a chart, as the notebook has it."""
    [cell] = [cell for cell in CODE if cell["text"] == f'chart("{who}")']
    html = "".join(cell["outputs"][0]["data"]["text/html"])
    rows = re.findall(r"<tr>\s*<th>(.*?)</th>(.*?)</tr>", html, re.S)
    cells = {name: re.findall(r"<td>([-\d.]+)</td>", rest) for name, rest in rows}
    return pd.Series({name: float(found[-1]) for name, found in cells.items() if found})


def test_each_mark_that_the_text_names_was_measured():
    healthy, found = stored("healthy"), {who: stored(who) for who in PATIENTS}
    guessing = torch.tensor(4.0).log().item()
    for measured in [healthy, *found.values()]:
        assert measured["first loss"] == pytest.approx(guessing, abs=0.06)
    assert healthy["accuracy"] > 0.7 and healthy["last losses"] < 0.7
    for who, measured in found.items():
        asked = measured["change, asked again"]
        assert asked > 0.1 if who == "Ben" else asked == 0
        padded = measured["change, padded"]
        assert padded > 0.1 if who in ("Ben", "Finn") else padded < 0.001
    assert healthy["change, asked again"] == healthy["change, padded"] == 0
    ada, ben, cleo, dan, emma, finn = found.values()
    for well in (ada, ben, finn):  # curves that look healthy
        assert well["last losses"] == pytest.approx(healthy["last losses"], abs=0.1)
    assert ada["accuracy"] < 0.15
    for well in (ben, finn):
        assert well["accuracy"] == pytest.approx(healthy["accuracy"], abs=0.08)
    assert finn["accuracy"] == healthy["accuracy"]
    for flat in (cleo, dan):
        assert flat["last losses"] == pytest.approx(guessing, abs=0.15)
        assert flat["accuracy"] < 0.4
    move = "largest move of a weight"
    assert cleo[move] > 5 * healthy[move] and dan[move] < 2 * healthy[move]
    assert emma["last losses"] > healthy["last losses"] + 0.1
    assert emma["accuracy"] < healthy["accuracy"] - 0.1


def test_the_numbers_in_the_text_are_those_of_the_charts():
    text = "\n".join(cell["text"] for cell in CELLS)
    finn, ada = stored("Finn"), stored("Ada")
    moved, before, after = re.search(
        r"moves by ([\d.]+), and the accuracy goes from ([\d.]+) to ([\d.]+)\.", text
    ).groups()
    assert moved == f"{finn['change, padded']:.2f}"
    assert before == f"{finn['accuracy']:.2f}"
    assert after == f"{finn['accuracy, padded']:.2f}"
    [share] = re.findall(r"What does it take to have (\d+) %", text)
    assert share == f"{100 * ada['accuracy']:.0f}"


def test_the_accuracies_of_the_gallery_are_the_benchmarks():
    runs = rules.stored("gallery.json")
    shares = pd.DataFrame(runs["runs"]).groupby("change")["accuracy"]
    measured = 100 * shares.agg(["mean", "min", "max"])
    [text] = [
        cell["text"] for cell in CELLS if "- *learning rate 4e-4*" in cell["text"]
    ]
    told = re.findall(r"\*([^*\n]+)\*, ([\d.]+) % \(([\d.]+) to ([\d.]+)\)", text)
    ours = re.search(r"the recipe: ([\d.]+) %, ([\d.]+) to ([\d.]+)", text)
    told.append(("the recipe", *ours.groups()))
    assert len(told) == len(measured) == 8
    for name, *numbers in told:
        [change] = [change for change in measured.index if change.startswith(name)]
        expected = [f"{number:.1f}" for number in measured.loc[change]]
        assert numbers == expected, change
    assert f"on {runs['train_rows']} rows" in "\n".join(c["text"] for c in CELLS)
    assert f"{runs['test_rows']:,} other rows" in "\n".join(c["text"] for c in CELLS)


def test_the_other_tokenizer_reads_other_words(clinic):
    own, other = load_tokenizer(clinic["small"]), clinic["another_tokenizer"]
    ids = other("Stocks fall as oil climbs")["input_ids"]
    assert other.convert_ids_to_tokens(ids)[1:-1] == "stocks fall as oil climbs".split()
    read = own.decode(ids)  # with what stands for [CLS] and [SEP]
    assert f"'{read}'" in clinic["reasons"]["tokenizer of another model"]
    assert len(other) == len(own)  # so no lookup fails
