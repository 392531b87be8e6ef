"""The policy of an output folder: begin, resume bit for bit, refuse, finish."""

import copy
import json
import os
import shutil
import signal
import threading
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from datasets import ClassLabel, DatasetDict
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DistilBertForSequenceClassification,
)

from agnews_helpers import (
    Damaged,
    DoesNotFit,
    FolderInUse,
    ResumeError,
    SaveError,
    checkpoints,
    classify,
    forward_backward,
    load_classifier,
    load_model,
    load_tokenizer,
    runs,
    tokenize,
    train,
    training,
)
from agnews_helpers.checkpoints import find_checkpoints
from agnews_helpers.model import class_names, run_facts
from agnews_helpers.plumbing import storage
from agnews_helpers.plumbing.errors import AgnewsError, InvalidValue
from agnews_helpers.plumbing.interrupts import StopSignal
from agnews_helpers.plumbing.storage import SET_ASIDE_SUFFIX, folder_lock
from agnews_helpers.runs import OpenRun, differences, identity_of, recipe_of_run
from tests.compare import assert_same_run, assert_same_weights, contents, flip

EPOCHS, BATCHES = 3, 5  # 40 rows in batches of 8


@pytest.fixture(scope="module")
def three(recipe):
    return recipe.replace(epochs=EPOCHS)


@pytest.fixture(scope="module")
def whole(three, tokens, tmp_path_factory):
    """The run that nothing interrupts. Dropout is on."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run = train(load_model(three), tokens, three, folder)
    assert run.model.config.dropout == 0.1
    return run


@pytest.fixture(scope="module")
def one(recipe, tokens, tmp_path_factory):
    """A finished run of one epoch. Tests copy its folder."""
    folder = tmp_path_factory.mktemp("one") / "run"
    return train(load_model(recipe), tokens, recipe, folder)


@pytest.fixture
def finished(one, tmp_path):
    """A copy of the finished run's folder."""
    return shutil.copytree(one.folder, tmp_path / "run")


@pytest.fixture
def interruptible():
    """Ctrl-C as in a terminal, also if the tests were started with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def no_training(monkeypatch):
    """Training is an error."""

    def fail(*_, **__):
        pytest.fail("trained")

    monkeypatch.setattr(training, "forward_backward", fail)


# Exact resume


@pytest.mark.parametrize("steps", [1, 5, 6, 14])
def test_a_stopped_run_ends_bit_for_bit_like_the_whole_one(
    steps, three, tokens, whole, tmp_path, capsys
):
    """After the first step, at an epoch's end, after it, and before the last step."""
    first = train(load_model(three), tokens, three, tmp_path, steps=steps)
    assert not first.finished and len(first.steps) == steps
    assert find_checkpoints(tmp_path)
    torch.rand(7)  # what happens in between does not matter
    run = train(load_model(three.replace(seed=1)), tokens, three, tmp_path)
    assert f"Resuming after step {steps} of 15" in capsys.readouterr().out
    assert_same_run(run, whole)
    assert not find_checkpoints(tmp_path)


@pytest.mark.slow
def test_a_run_stopped_at_every_step(three, tokens, whole, tmp_path):
    sessions = 1
    run = train(load_model(three), tokens, three, tmp_path, steps=1)
    while not run.finished:
        sessions += 1
        run = train(load_model(three), tokens, three, tmp_path, steps=1)
    assert sessions == EPOCHS * BATCHES
    assert_same_run(run, whole)


def test_a_checkpoint_after_every_step_changes_nothing_and_two_are_kept(
    three, tokens, whole, tmp_path, monkeypatch
):
    kept = []
    save = OpenRun.save

    def counted(self, state, **options):
        save(self, state, **options)
        kept.append(len(find_checkpoints(tmp_path)))

    monkeypatch.setattr(OpenRun, "save", counted)
    run = train(load_model(three), tokens, three, tmp_path, save_minutes=1e-9)
    assert_same_run(run, whole)
    assert max(kept) == 2 and len(kept) >= 15


def test_gradients_left_in_the_model_do_not_change_the_run(
    three, tokens, whole, tmp_path
):
    """As after an error in the backward pass, or the reader's own `backward()`."""

    def used():
        model = load_model(three)
        for weight in model.parameters():
            weight.grad = torch.ones_like(weight)
        return model

    train(used(), tokens, three, tmp_path, steps=6)
    assert_same_run(train(used(), tokens, three, tmp_path), whole)


def test_nothing_is_left_over(three, tokens, whole, tmp_path):
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    train(load_model(three), tokens, three, tmp_path, steps=6)
    unfinished = {path.name for path in tmp_path.iterdir()}
    assert unfinished == {"best", "checkpoints", "mine.txt", "run.json"}
    train(load_model(three), tokens, three, tmp_path)
    ours = contents(tmp_path)
    theirs = contents(whole.folder)
    assert ours.pop("mine.txt") == b"mine"
    assert ours.keys() == theirs.keys()
    for name in ("run.json", "history.csv"):  # they have times in them
        del ours[name], theirs[name]
    assert ours == theirs
    assert {name.split("/")[0] for name in ours} == {"best", "steps.csv"}


# Stopped by a signal


@pytest.mark.parametrize("number", StopSignal.SIGNALS)
def test_a_signal_saves_and_returns_the_run_so_far(
    number, interruptible, three, tokens, whole, tmp_path, capsys
):
    def press_stop(*_):
        calls.append(1)
        if len(calls) == 8:
            signal.raise_signal(number)

    calls = []
    model = load_model(three)
    model.register_forward_hook(press_stop)
    before = signal.getsignal(number)
    run = train(model, tokens, three, tmp_path)
    assert signal.getsignal(number) is before
    assert not run.finished and len(run.steps) == 7  # the sixth call was a validation's
    assert "agnews train --resume --output-dir" in capsys.readouterr().out
    assert list(run.history.index) == [1] and load_classifier(run.folder)
    assert_same_run(train(load_model(three), tokens, three, tmp_path), whole)


def test_a_signal_during_validation_ends_it_at_once(
    interruptible, three, tokens, whole, tmp_path, monkeypatch
):
    """And the same call with the same model goes on."""
    real = training.evaluate
    calls = []

    def evaluate(*arguments):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
            real(*arguments)
            pytest.fail("went on")
        return real(*arguments)

    monkeypatch.setattr(training, "evaluate", evaluate)
    model = load_model(three)
    config = model.config.to_dict()
    run = train(model, tokens, three, tmp_path)
    assert len(run.steps) == 2 * BATCHES and list(run.history.index) == [1]
    assert model.config.to_dict() == config
    assert model.config._attn_implementation == "sdpa"
    assert_same_run(train(model, tokens, three, tmp_path), whole)


def test_a_signal_during_a_save_waits_for_its_end(
    interruptible, three, tokens, whole, tmp_path, monkeypatch
):
    real = storage.write_folder
    saves = []

    def write(folder, function):
        saves.append(folder.name)
        if len(saves) == 3:
            signal.raise_signal(signal.SIGINT)
        return real(folder, function)

    monkeypatch.setattr(storage, "write_folder", write)
    run = train(load_model(three), tokens, three, tmp_path, save_minutes=1e-9)
    assert len(run.steps) == 3 and saves[2] == "step-00000003"
    monkeypatch.undo()
    assert_same_run(train(load_model(three), tokens, three, tmp_path), whole)


def test_a_pipe_that_ends_with_the_same_signal_costs_nothing(
    interruptible, three, tokens, whole, tmp_path, monkeypatch
):
    """`agnews train 2>&1 | tee log`: Ctrl-C ends tee as well, and the bar writes on."""
    bar = training.progress_bar

    def broken(*arguments):
        for batch in bar(*arguments):
            yield batch
            if len(calls) == 3:
                raise BrokenPipeError

    def press_stop(*_):
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)

    calls = []
    model = load_model(three)
    model.register_forward_hook(press_stop)
    monkeypatch.setattr(training, "progress_bar", broken)
    run = train(model, tokens, three, tmp_path)
    assert len(run.steps) == 3 and not run.finished
    monkeypatch.undo()
    assert_same_run(train(load_model(three), tokens, three, tmp_path), whole)


def test_a_folder_that_is_away_for_a_moment_costs_one_save(
    three, tokens, whole, tmp_path, monkeypatch, capsys
):
    real = runs.OpenRun._check_folder
    calls = []

    def away(self):
        calls.append(1)
        if len(calls) == 2:
            raise SaveError("checkpoints was deleted or renamed. Put it back.")
        real(self)

    monkeypatch.setattr(runs.OpenRun, "_check_folder", away)
    run = train(load_model(three), tokens, three, tmp_path, save_minutes=1e-9)
    assert "Put it back. The run goes on; the next save" in capsys.readouterr().out
    assert_same_run(run, whole)


def test_checkpoints_that_cannot_be_read_are_not_begun_anew(
    three, tokens, whole, tmp_path, monkeypatch
):
    """A network drive that was gone for a moment."""
    train(load_model(three), tokens, three, tmp_path, steps=4)

    def fails(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(storage, "damaged_files", fails)
    with pytest.raises(ResumeError, match="If one cannot be read: close what holds"):
        train(load_model(three), tokens, three, tmp_path)
    monkeypatch.undo()
    assert_same_run(train(load_model(three), tokens, three, tmp_path), whole)


def test_a_later_second_signal_ends_even_a_save_and_the_older_checkpoint_is_used(
    interruptible, three, tokens, whole, tmp_path, monkeypatch
):
    real = torch.save
    saves = []
    monkeypatch.setattr(StopSignal, "GRACE_SECONDS", 0.0)

    def save(*arguments):
        saves.append(1)
        real(*arguments)
        if len(saves) == 8:  # the sixth was that of the first epoch's end
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(KeyboardInterrupt):
        train(load_model(three), tokens, three, tmp_path, save_minutes=1e-9)
    monkeypatch.undo()
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000005-2", "step-00000006"]  # and nothing of the seventh
    assert_same_run(train(load_model(three), tokens, three, tmp_path), whole)


def test_pressing_stop_twice_is_one_request(
    interruptible, three, tokens, whole, tmp_path, monkeypatch
):
    """The run stops because of it: nothing else would end it."""
    real = torch.save

    def save(*arguments):
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        real(*arguments)

    monkeypatch.setattr(torch, "save", save)
    run = train(load_model(three), tokens, three, tmp_path, save_minutes=1e-9)
    assert not run.finished and len(run.steps) == 1 and find_checkpoints(tmp_path)
    monkeypatch.undo()
    assert_same_run(train(load_model(three), tokens, three, tmp_path), whole)


@pytest.mark.parametrize("before", [0, 2])
def test_a_stop_before_the_first_step_of_a_session_is_no_error(
    before, three, tokens, tmp_path, monkeypatch
):
    if before:
        train(load_model(three), tokens, three, tmp_path, steps=before)
    monkeypatch.setattr(StopSignal, "received", True)
    run = train(load_model(three), tokens, three, tmp_path, steps=5)
    assert not run.finished and len(run.steps) == before


def test_a_run_in_another_thread_works_without_signals(recipe, tokens, tmp_path):
    results = []

    def work():
        results.append(train(load_model(recipe), tokens, recipe, tmp_path))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results[0].finished


def test_a_run_stopped_before_the_first_validation_has_a_classifier(
    three, tokens, tmp_path
):
    run = train(load_model(three), tokens, three, tmp_path, steps=2)
    assert run.best_epoch == 0 and len(run.history) == 0
    assert "validation_accuracy" in run.history
    assert_same_weights(load_classifier(run.folder)[0], run.model)
    facts = run_facts(run.folder)
    assert facts["steps"] == 2 and facts["finished"] is False


# Another run than the one in the folder


def test_another_recipe_is_named(three, tokens, tmp_path):
    train(load_model(three), tokens, three, tmp_path, steps=1)
    other = three.replace(epochs=4, learning_rate=2e-5)
    expected = "learning_rate is 0.001 there and 2e-05 here; epochs is 3 there and 4"
    with pytest.raises(
        ResumeError, match=f"unfinished run of another kind: {expected}"
    ):
        train(load_model(three), tokens, other, tmp_path)


def test_other_data_are_named(three, tokens, tmp_path):
    train(load_model(three), tokens, three, tmp_path, steps=1)
    other = DatasetDict(tokens, train=tokens["train"].select(reversed(range(40))))
    with pytest.raises(
        ResumeError, match="the train rows changed since that run began"
    ):
        train(load_model(three), other, three, tmp_path)


@pytest.mark.parametrize("steps", [1, None])
def test_other_names_of_the_classes_are_named(steps, recipe, tokens, tmp_path):
    """As after a classes.txt in the wrong order was mended: same texts and numbers."""
    names = {"wrong": ["b", "a", "c", "d"], "right": ["a", "b", "c", "d"]}

    def run(which, **options):
        label = ClassLabel(names=names[which])
        split = {name: s.cast_column("label", label) for name, s in tokens.items()}
        model = load_model(recipe, names[which])
        train(model, DatasetDict(split), recipe, tmp_path, **options)

    run("wrong", steps=steps)
    expected = "classes is b, a, c, d there and a, b, c, d here"
    with pytest.raises(ResumeError, match=expected):
        run("right")
    assert class_names(load_classifier(tmp_path)[0]) == names["wrong"]
    run("right", resume=False)
    assert class_names(load_classifier(tmp_path)[0]) == names["right"]


def test_other_frozen_parameters_are_named(three, tokens, tmp_path):
    """They would move, or no longer move, in the resumed run."""

    def frozen():
        model = load_model(three)
        for weight in model.distilbert.parameters():
            weight.requires_grad = False
        return model

    before = load_model(three)
    run = train(frozen(), tokens, three, tmp_path, steps=6)
    assert_same_weights(run.model.distilbert, before.distilbert)
    with pytest.raises(
        ResumeError, match="frozen parameters changed since that run began"
    ):
        train(load_model(three), tokens, three, tmp_path)
    run = train(frozen(), tokens, three, tmp_path)
    assert run.finished
    assert_same_weights(run.model.distilbert, before.distilbert)


def test_only_if_memory_runs_out_a_run_is_saved(three, tokens, tmp_path, monkeypatch):
    with OpenRun(tmp_path, load_model(three), tokens, three) as run:
        saves = []
        monkeypatch.setattr(run, "save", saves.append)
        for error in (torch.OutOfMemoryError(""), RuntimeError("another")):
            with pytest.raises(type(error)), run.saved_if_memory_runs_out("state"):
                raise error
        assert saves == ["state"]


def other_weights(folder):
    with open(folder / "model.safetensors", "r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"\0\0\0\0")


def other_heads(folder):
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"n_heads": 4}), encoding="utf-8")


@pytest.mark.parametrize("change", [other_weights, other_heads])
def test_another_model_in_a_folder_of_the_same_name_is_named(
    change, tiny, three, tokens, tmp_path
):
    model = shutil.copytree(tiny, tmp_path / "model")
    recipe = three.replace(model=str(model))
    train(load_model(recipe), tokens, recipe, tmp_path / "run", steps=1)
    change(model)
    with pytest.raises(ResumeError, match="the model changed since that run began"):
        train(load_model(recipe), tokens, recipe, tmp_path / "run")


def test_a_model_made_by_hand_is_known_by_its_shapes(three, tokens, tmp_path):
    def made(**changes):
        config = load_model(three).config
        for name, value in changes.items():
            setattr(config, name, value)
        model = DistilBertForSequenceClassification(config)
        model.name_or_path = ""  # it has no files
        return model

    train(made(), tokens, three, tmp_path, steps=1)
    with pytest.raises(ResumeError, match="the model changed since that run began"):
        train(made(hidden_dim=48), tokens, three, tmp_path)
    assert train(made(), tokens, three, tmp_path).finished


def test_resume_false_discards_an_unfinished_run(three, tokens, whole, tmp_path):
    train(load_model(three), tokens, three.replace(epochs=4), tmp_path, steps=7)
    train(load_model(three), tokens, three, tmp_path, resume=False, steps=2)
    assert [path.name for path in find_checkpoints(tmp_path)] == ["step-00000002"]
    assert_same_run(train(load_model(three), tokens, three, tmp_path), whole)


def test_resume_true_needs_a_run(three, tokens, tmp_path, no_training):
    with pytest.raises(ResumeError, match="holds no unfinished run.*resume=False"):
        train(load_model(three), tokens, three, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    "argument, message",
    [
        ({"resume": "yes"}, "resume is 'yes'; it must be 'auto', True or False"),
        ({"save_minutes": 0}, "save_minutes is 0; it must be above 0"),
        ({"save_minutes": float("nan")}, "save_minutes is nan; it must be above 0"),
        ({"steps": 0}, "steps is 0; it must be from 1"),
    ],
)
def test_an_argument_out_of_range_is_named(argument, message, recipe, tokens, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(load_model(recipe), tokens, recipe, tmp_path / "run", **argument)
    assert not (tmp_path / "run").exists()


def test_other_rows_labels_or_order_are_other_data(recipe, tokens):
    rows = tokens["train"]
    model = load_model(recipe)

    def digest(split):
        both = {"train": split, "validation": split}
        return identity_of(model, both, recipe)["checksum of the train rows"]

    def relabel(row, i):
        return {"label": (row["label"] + (i == 3)) % 4}

    def cut(row, i):
        return {"input_ids": row["input_ids"][: -1 if i == 3 else None]}

    other = [
        rows,
        rows.map(relabel, with_indices=True),
        rows.map(cut, with_indices=True),
        rows.select([1, 0]),
        rows.select(range(39)),
    ]
    assert digest(rows.select(range(40))) == digest(rows)
    assert len({digest(split) for split in other}) == len(other)


def test_what_decides_the_course_of_a_run_is_its_identity(recipe, tokens):
    model = load_model(recipe)
    ours = identity_of(model, tokens, recipe)
    for change in (
        {"max_length": 256},
        {"padding": "max_length"},
        {"group_by_length": False},
        {"batch_size": 4},
        {"class_weights": "balanced"},
        {"learning_rate": 2e-3},
        {"epochs": 2},
        {"precision": "bf16"},
        {"seed": 7},
    ):
        [(name, value)] = change.items()
        theirs = identity_of(model, tokens, recipe.replace(**change))
        said = f"{name} is {value} there and {getattr(recipe, name)} here"
        assert differences(theirs, ours) == said
    leaner = recipe.replace(micro_batch_size=2, gradient_checkpointing=True)
    assert identity_of(model, tokens, leaner) == ours


# Time


def test_a_checkpoint_is_due_after_so_many_minutes(
    recipe, tokens, tmp_path, monkeypatch
):
    run = OpenRun(tmp_path, load_model(recipe), tokens, recipe, save_minutes=2)
    run.saved_at = 1_000.0
    for seconds, is_due in ((0, False), (119, False), (120, True), (500, True)):
        clock = SimpleNamespace(perf_counter=lambda now=1_000.0 + seconds: now)
        monkeypatch.setattr(runs, "time", clock)
        assert run.is_save_due is is_due


def test_steps_of_all_sessions_count_as_time_and_saving_does_not(
    recipe, tokens, tmp_path, monkeypatch
):
    now = [0.0]
    step, write = training.forward_backward, storage.write_folder

    def takes_a_second(*arguments, **options):
        now[0] += 1
        return step(*arguments, **options)

    def takes_an_hour(*arguments):
        now[0] += 3_600
        return write(*arguments)

    clock = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr(checkpoints, "time", clock)
    monkeypatch.setattr(training, "forward_backward", takes_a_second)
    monkeypatch.setattr(storage, "write_folder", takes_an_hour)
    train(load_model(recipe), tokens, recipe, tmp_path, steps=2)
    run = train(load_model(recipe), tokens, recipe, tmp_path, save_minutes=1e-9)
    assert run.history["rows_per_second"].tolist() == [40 / 5]


# Another run than the one in the folder, in words


def test_differences_are_said_in_words():
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": 2}) == ""
    found = differences({"a": 1}, {"a": 2, "b": "x"})
    assert found == "a is 1 there and 2 here; b is None there and x here"


def test_the_recipe_of_a_run_is_known_before_and_after_its_end(
    three, recipe, tokens, finished, tmp_path
):
    with pytest.raises(ResumeError, match="holds no run that could be resumed"):
        recipe_of_run(tmp_path / "none")
    assert recipe_of_run(finished) == recipe
    folder = tmp_path / "stopped"
    train(load_model(three), tokens, three, folder, steps=6)
    train(load_model(three), tokens, three, folder, steps=1)
    assert recipe_of_run(folder) == three
    [newest, _] = find_checkpoints(folder)
    (newest / "progress.json").write_text("{", encoding="utf-8")
    assert recipe_of_run(folder) == three


def test_the_recipe_of_a_damaged_checkpoint_is_not_used(three, tokens, tmp_path):
    """A flipped digit would be another number of epochs."""
    train(load_model(three), tokens, three, tmp_path, steps=1)
    train(load_model(three), tokens, three, tmp_path, steps=1)
    for path in find_checkpoints(tmp_path):
        text = (path / "progress.json").read_text(encoding="utf-8")
        assert text.count('"epochs": 3') == 3  # of the identity, the recipe, the state
        text = text.replace('"epochs": 3', '"epochs": 7')
        (path / "progress.json").write_text(text, encoding="utf-8")
        if path.name == "step-00000002":
            assert recipe_of_run(tmp_path) == three  # that of the other one
    with pytest.raises(ResumeError, match="holds no run that could be resumed"):
        recipe_of_run(tmp_path)


def test_the_unfinished_run_of_a_folder_is_resumed_and_replaces_the_finished_one(
    finished, recipe, three, tokens, whole
):
    """As `agnews train --resume` does; if its checkpoints are damaged, it is told."""
    train(load_model(three), tokens, three, finished, resume=False, steps=7)
    copied = shutil.copytree(finished, finished.with_name("copied"))
    assert recipe_of_run(finished) == three and run_facts(finished)["finished"]
    run = train(load_model(three), tokens, three, finished, resume=True)
    assert_same_run(run, whole)
    assert recipe_of_run(finished) == three
    for path in find_checkpoints(copied):
        flip(path / "progress.json", 40)
    assert recipe_of_run(copied) == recipe
    before = contents(copied)
    assert train(load_model(recipe), tokens, recipe, copied, resume=True).finished
    assert contents(copied) == before


def test_a_home_folder_is_found(finished, recipe, tokens, monkeypatch, no_training):
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(finished.parent))
    assert recipe_of_run("~/run") == recipe
    assert train(load_model(recipe), tokens, recipe, "~/run").finished


@pytest.mark.parametrize(
    "folder, message",
    [
        ("", "output_dir is ''; it must be the name of a folder"),
        (None, "takes str . pathlib.Path for 'output_dir', and got NoneType"),
        ("a\0b", "cannot be used: embedded null byte"),
        (5, "for 'output_dir', and got int"),
        (b"run", "for 'output_dir', and got bytes"),
        ("~nobody-of-this-name/run", "cannot be used: .*home directory"),
    ],
)
def test_an_output_folder_that_is_none_is_refused(
    folder, message, recipe, tokens, tmp_path, monkeypatch, no_training
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AgnewsError, match=message):
        train(load_model(recipe), tokens, recipe, folder)
    assert not any(tmp_path.iterdir())


def test_a_run_is_resumed_with_other_parts_of_a_batch(three, tokens, whole, tmp_path):
    """On a smaller card, say. Dropout draws other numbers then."""
    train(load_model(three), tokens, three, tmp_path, steps=6)
    parts = three.replace(micro_batch_size=4)
    run = train(load_model(parts), tokens, parts, tmp_path)
    assert run.finished and len(run.steps) == len(whole.steps)
    assert not run.steps.equals(whole.steps)


def test_a_model_whose_file_has_other_names_is_kept_under_its_own(
    tokens, recipe, tmp_path
):
    """BERT's file on the Hub says gamma and beta, its layers weight and bias."""
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=4,
    )
    folder = tmp_path / "bert"
    BertForSequenceClassification(config).save_pretrained(folder)
    load_tokenizer(recipe).save_pretrained(folder)
    weights = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): weight
        for name, weight in load_file(folder / "model.safetensors").items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert "bert.embeddings.LayerNorm.gamma" in weights
    bert = recipe.replace(model=str(folder))
    model = load_model(bert, class_names(load_model(recipe)))
    run = train(model, tokens, bert, tmp_path / "run")
    again = train(load_model(bert), tokens, bert, tmp_path / "run")
    assert run.finished and again.finished
    assert_same_weights(again.model, run.model)
    assert_same_weights(load_classifier(tmp_path / "run")[0], run.model)


def test_a_run_that_began_in_parts_is_resumed_without(
    three, tokens, whole, tmp_path, monkeypatch
):
    parts = three.replace(micro_batch_size=1)
    train(load_model(parts), tokens, parts, tmp_path, steps=1)
    sizes = []
    monkeypatch.setattr(
        training,
        "forward_backward",
        lambda model, batch, rows=None, **options: (
            sizes.append(len(batch["labels"]))
            or forward_backward(model, batch, rows, **options)
        ),
    )
    run = train(load_model(three), tokens, three, tmp_path)
    assert run.finished and len(run.steps) == len(whole.steps)
    assert min(sizes) == three.batch_size


# Checkpoints of another run


def copy_checkpoint(source, target, name):
    [path, *_] = find_checkpoints(source)
    shutil.copytree(path, target / "checkpoints" / name)
    return contents(target / "checkpoints" / name)


@pytest.mark.parametrize("name", ["step-00000001", "step-00000013"])
def test_only_its_own_checkpoints_are_deleted_by_a_run(
    name, three, tokens, whole, tmp_path
):
    """Neither one at an earlier step, when it saves, nor one that came meanwhile."""
    other = three.replace(seed=7)
    folder = tmp_path / "run"
    train(load_model(other), tokens, other, tmp_path / "other", steps=1)
    train(load_model(three), tokens, three, folder, steps=1)
    if name == "step-00000013":
        with OpenRun(folder, load_model(three), tokens, three) as run:
            theirs = copy_checkpoint(tmp_path / "other", folder, name)
            run._remove_checkpoints(run._run_id)
        assert [path.name for path in find_checkpoints(folder)] == [name]
    else:
        [own] = find_checkpoints(folder)
        own.rename(own.with_name("step-00000001-2"))
        theirs = copy_checkpoint(tmp_path / "other", folder, name)
        run = train(load_model(three), tokens, three, folder, save_minutes=1e-9)
        assert_same_run(run, whole)
    assert contents(folder / "checkpoints" / name) == theirs


def test_a_newer_checkpoint_of_another_run_is_refused_and_stays(
    three, tokens, stopped_after_one, tmp_path
):
    other, folder = three.replace(seed=7), tmp_path / "run"
    train(load_model(other), tokens, other, tmp_path / "other", steps=1)
    shutil.copytree(stopped_after_one, folder)
    copy_checkpoint(tmp_path / "other", folder, "step-00000009")
    before = contents(folder)
    with pytest.raises(ResumeError, match="seed is 7 there and 42 here"):
        train(load_model(three), tokens, three, folder)
    assert contents(folder) == before


# Forged progress


@pytest.mark.parametrize(
    "name, value",
    [
        *[(name, None) for name in ("identity", "run", "state", "format")],
        ("identity", []),
        ("format", 4),
    ],
)
def test_a_progress_that_no_run_wrote_is_one_clear_line(
    name, value, stopped_after_one, three, tokens, tmp_path, no_training
):
    """Missing, or of another type."""
    folder = shutil.copytree(stopped_after_one, tmp_path / "run")
    with forged_progress(folder) as progress:
        progress[name] = value
        if value is None:
            del progress[name]
    before = contents(folder)
    with pytest.raises(AgnewsError) as error:
        train(load_model(three), tokens, three, folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
    assert contents(folder) == before


@pytest.fixture(scope="module")
def stopped_after_one(three, tokens, tmp_path_factory):
    """A run that was stopped after its first step. Tests copy its folder."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    train(load_model(three), tokens, three, folder, steps=1)
    return folder


@contextmanager
def forged_progress(folder):
    """Change what the only checkpoint says, so that the checksums are right."""
    [path] = find_checkpoints(folder)
    progress = storage.read_json(path / "progress.json")
    yield progress
    storage.write_json(path / "progress.json", progress)
    sums = storage.read_json(path / "manifest.json")
    sums["progress.json"] = storage.sha256(path / "progress.json")
    storage.write_json(path / "manifest.json", sums)


# A finished run


def test_a_finished_run_is_returned(finished, one, recipe, tokens, no_training, capsys):
    before = contents(finished)
    run = train(load_model(recipe), tokens, recipe, finished)
    assert "This run is finished" in capsys.readouterr().out
    assert_same_run(run, one)
    assert run.history.equals(one.history)
    assert contents(finished) == before


def test_a_finished_classifier_is_replaced_only_by_a_finished_one(
    finished, one, three, tokens, whole
):
    with pytest.raises(
        ResumeError,
        match="holds a finished run that cannot be used: epochs is 1 there and 3 here",
    ):
        train(load_model(three), tokens, three, finished)
    before = contents(finished)
    for steps, resume in ((7, False), (4, "auto")):
        part = train(load_model(three), tokens, three, finished, resume, steps)
        assert not part.finished
        now = contents(finished)
        assert {name: now[name] for name in before} == before
    assert part.best_epoch and recipe_of_run(finished) == three
    assert_same_run(train(load_model(three), tokens, three, finished), whole)
    assert run_facts(finished)["recipe"]["epochs"] == 3


def test_a_finished_run_leaves_another_unfinished_run_alone(
    finished, one, recipe, three, tokens, whole, capsys
):
    """Its cell, run again, does not delete the other's checkpoints."""
    train(load_model(three), tokens, three, finished, resume=False, steps=7)
    before = contents(finished / "checkpoints")
    assert_same_run(train(load_model(recipe), tokens, recipe, finished), one)
    assert "This run is finished" in capsys.readouterr().out
    assert contents(finished / "checkpoints") == before
    assert_same_run(train(load_model(three), tokens, three, finished), whole)


def test_what_a_run_left_that_died_at_its_very_end_is_removed(
    finished, one, recipe, tokens, tmp_path
):
    train(load_model(recipe), tokens, recipe, tmp_path / "stopped", steps=2)
    shutil.copytree(tmp_path / "stopped" / "checkpoints", finished / "checkpoints")
    assert_same_run(train(load_model(recipe), tokens, recipe, finished), one)
    assert not (finished / "checkpoints").exists()


@pytest.mark.parametrize(
    "name",
    [
        "best/config.json",
        "best/manifest.json",
        "best/model.safetensors",
        "best/tokenizer.json",
        "history.csv",
        "steps.csv",
    ],
)
@pytest.mark.parametrize("damage", ["changed", "missing"])
@pytest.mark.slow
def test_a_finished_run_that_is_damaged_is_not_trained_again_unasked(
    damage, name, finished, one, recipe, tokens
):
    """What was changed is kept, under another name."""
    names = contents(finished).keys()
    path = finished / name
    if damage == "missing":
        path.unlink()
    else:
        flip(path, -5)
    changed = contents(finished)
    expected = rf"cannot be used: .*{path.name} is damaged.*resume=False"
    with pytest.raises(ResumeError, match=expected):
        train(load_model(recipe), tokens, recipe, finished)
    assert contents(finished) == changed
    run = train(load_model(recipe), tokens, recipe, finished, resume=False)
    assert_same_run(run, one)
    kept = {key for key in contents(finished) if SET_ASIDE_SUFFIX in key}
    assert contents(finished).keys() - kept == names
    if damage == "changed" or name.startswith("best/"):
        part = name.split("/")[0]
        now = contents(finished)
        for key in changed:
            if key == part or key.startswith(f"{part}/"):
                moved = key.replace(part, f"{part}{SET_ASIDE_SUFFIX}", 1)
                assert now[moved] == changed[key]
    else:
        assert not kept


# run.json, and files that no run wrote


def test_no_flipped_bit_of_the_record_makes_another_run(
    finished, one, recipe, tokens, capsys
):
    """The same run is found, or it is refused, or what was there is set aside."""
    record = finished / "run.json"
    facts = run_facts(finished)
    before = contents(finished)
    unopened = OpenRun(finished, load_model(recipe), tokens, recipe)
    outcomes = []
    size = record.stat().st_size
    for number, position in enumerate(range(0, size, max(1, size // 200))):
        flip(record, position, number % 8)
        changed = contents(finished)
        try:
            assert run_facts(finished) == facts
        except Damaged:
            pass
        try:
            with copy.copy(unopened) as run:
                outcomes.append("same" if run.is_finished else "set aside")
        except SaveError as error:
            outcomes.append("refused")
            assert "run.json" in str(error)
        if outcomes[-1] == "set aside":
            output = capsys.readouterr().out
            for name in ("run.json", "best", "history.csv", "steps.csv"):
                assert f"note: {name} cannot be used" in output
                (finished / f"{name}{SET_ASIDE_SUFFIX}").rename(finished / name)
        assert contents(finished) == changed
        record.write_bytes(before["run.json"])
    assert len(outcomes) >= 200 and outcomes.count("set aside") > 150
    assert "refused" in outcomes  # a bit of the word "checksum"


def test_a_damaged_record_sets_the_classifier_aside_and_the_run_is_trained_again(
    finished, one, recipe, tokens, capsys
):
    flip(finished / "run.json", 30)
    changed = contents(finished)
    assert_same_run(train(load_model(recipe), tokens, recipe, finished), one)
    output = capsys.readouterr().out
    assert "note: run.json cannot be used" in output
    now = contents(finished)
    for name, content in changed.items():
        first, *rest = name.split("/")
        assert now["/".join([first + SET_ASIDE_SUFFIX, *rest])] == content


@pytest.mark.parametrize(
    "name, content",
    [
        ("run.json", '{"name": "my experiment"}'),
        ("run.json", "[]"),
        ("run.json", ""),
        ("run.json", None),
        ("best", "a file"),
        ("best", None),
        ("test_report.json", "{}"),
        ("history.csv", "epoch,loss"),
        ("steps.csv", "step,loss"),
    ],
)
def test_foreign_files_under_our_names_are_refused_and_stay(
    name, content, three, tokens, tmp_path, no_training
):
    if content is None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("foreign", encoding="utf-8")
    else:
        (tmp_path / name).write_text(content, encoding="utf-8")
    before = contents(tmp_path)
    for resume in ("auto", True, False):
        expected = (
            rf"holds {name}, but no run.json that this version can read.*another output"
        )
        with pytest.raises(SaveError, match=expected):
            train(load_model(three), tokens, three, tmp_path, resume=resume)
        assert contents(tmp_path) == before


@pytest.mark.skipif(os.name != "posix", reason="on Windows links need rights")
@pytest.mark.parametrize("name", ["run.json", "best", "history.csv", "steps.csv"])
def test_a_foreign_link_that_leads_nowhere_stays(
    name, three, tokens, tmp_path, no_training
):
    (tmp_path / name).symlink_to(tmp_path / "not-mounted")
    with pytest.raises(SaveError, match=f"holds {name}, but no run.json"):
        train(load_model(three), tokens, three, tmp_path)
    assert (tmp_path / name).is_symlink()


def test_a_classifier_of_an_unfinished_run_that_was_changed_is_set_aside(
    three, tokens, whole, tmp_path
):
    """A changed file, and one that was added."""
    train(load_model(three), tokens, three, tmp_path, steps=1)
    (tmp_path / "best" / "config.json").write_text("{}", encoding="utf-8")
    train(load_model(three), tokens, three, tmp_path, steps=1)
    (tmp_path / "best" / "notes.txt").write_text("mine", encoding="utf-8")
    assert_same_run(train(load_model(three), tokens, three, tmp_path), whole)
    kept = {path.name: path for path in tmp_path.iterdir()}
    assert kept.keys() == {
        "best",
        "best.set-aside",
        "best.set-aside-2",
        "history.csv",
        "run.json",
        "steps.csv",
    }
    assert (kept["best.set-aside"] / "config.json").read_bytes() == b"{}"
    assert (kept["best.set-aside-2"] / "notes.txt").read_bytes() == b"mine"


def test_a_crash_while_the_classifier_is_replaced_is_healed(
    three, tokens, whole, tmp_path
):
    """The old one is gone, the new one has no name yet: a checkpoint has it."""
    train(load_model(three), tokens, three, tmp_path, steps=7)
    before = contents(tmp_path / "best")
    (tmp_path / "best").rename(storage.staging_name(tmp_path / "best"))
    storage.staging_name(tmp_path / "best").mkdir()
    train(load_model(three), tokens, three, tmp_path, steps=1)
    assert contents(tmp_path / "best") == before
    assert {path.name for path in tmp_path.iterdir()} == {
        "best",
        "checkpoints",
        "run.json",
    }
    assert_same_run(train(load_model(three), tokens, three, tmp_path), whole)


def test_a_crash_while_a_finished_run_is_replaced_makes_no_mixture(
    finished, one, recipe, three, tokens, whole, monkeypatch
):
    """best/ is the new run's, run.json the old one's: neither is called finished."""

    class Killed(BaseException):
        pass

    def dies(path, text):
        if path == finished / "history.csv":
            raise Killed
        real(path, text)

    train(load_model(three), tokens, three, finished, resume=False, steps=14)
    real = storage.save_text
    monkeypatch.setattr(storage, "save_text", dies)
    with pytest.raises(Killed):
        train(load_model(three), tokens, three, finished)
    monkeypatch.undo()
    with pytest.raises(ResumeError, match="unfinished run of another kind"):
        train(load_model(recipe), tokens, recipe, finished)
    assert_same_run(train(load_model(three), tokens, three, finished), whole)


def test_a_run_that_died_before_its_first_classifier_owns_its_folder(
    three, tokens, whole, tmp_path, monkeypatch
):
    """Killed between best/ and run.json, it could otherwise not be resumed."""
    real = storage.write_record

    class Killed(BaseException):
        pass

    def dies(path, facts):
        if (tmp_path / "best").exists():
            raise Killed
        real(path, facts)

    monkeypatch.setattr(storage, "write_record", dies)
    with pytest.raises(Killed):
        train(load_model(three), tokens, three, tmp_path)
    monkeypatch.undo()
    assert (tmp_path / "best").exists()
    assert_same_run(train(load_model(three), tokens, three, tmp_path), whole)


# The classifier


def test_transformers_loads_the_classifier(one, recipe, tmp_path):
    best = shutil.copytree(one.folder / "best", tmp_path / "sent to a friend")
    model = AutoModelForSequenceClassification.from_pretrained(best)
    assert_same_weights(model, one.model)
    tokenizer = AutoTokenizer.from_pretrained(best)
    assert tokenizer.model_max_length == recipe.max_length


def test_a_copy_of_the_classifier_cuts_texts_where_the_run_did(
    recipe, tokens, tmp_path
):
    short = recipe.replace(max_length=16)
    texts = tokens.remove_columns(["input_ids", "length"])
    cut = tokenize(texts, load_tokenizer(short), short)
    run = train(load_model(short), cut, short, tmp_path / "run", steps=1)
    best = shutil.copytree(run.folder / "best", tmp_path / "copy")
    start = "word " * 14
    for folder in (run.folder, run.folder / "best", best):
        table = classify([start + "end " * 300, start + "other " * 300], folder)
        one_text, other = table.drop(columns="text").to_numpy().tolist()
        assert one_text == other  # they differ only in what is cut off


def test_a_run_does_not_write_over_the_model_it_begins_with(
    finished, recipe, tokens, no_training
):
    """The classifier of a run, trained further into that run's own folder."""
    further = recipe.replace(model=str(finished / "best"), epochs=2)
    before = contents(finished)
    for resume in ("auto", False):
        with pytest.raises(ResumeError, match="best is the model to begin with"):
            train(load_model(further), tokens, further, finished / ".", resume=resume)
    assert contents(finished) == before


# Version 2


@pytest.fixture
def version_2(three, tokens, tmp_path):
    """An unfinished run of version 2: its classifier is not in a folder of its own."""
    folder = tmp_path / "run"
    train(load_model(three), tokens, three, folder, steps=2)
    [path] = find_checkpoints(folder)
    progress = storage.read_json(path / "progress.json")
    del progress["format"]
    storage.write_json(path / "progress.json", progress)
    sums = storage.read_json(path / "manifest.json")
    sums["progress.json"] = storage.sha256(path / "progress.json")
    storage.write_json(path / "manifest.json", sums)
    (folder / "best" / "manifest.json").unlink()
    for file in (folder / "best").iterdir():
        file.rename(folder / file.name)
    (folder / "best").rmdir()
    facts = {"recipe": three.to_dict(), "steps": 2, "epoch": 0, "files": {}}
    storage.write_json(folder / "agnews_run.json", facts)
    (folder / "run.json").unlink()
    return folder


def test_an_unfinished_run_of_version_2_is_refused_in_one_line(
    version_2, three, tokens, no_training
):
    before = contents(version_2)
    for resume in ("auto", True):
        with pytest.raises(
            ResumeError, match="unfinished run of another version"
        ) as error:
            train(load_model(three), tokens, three, version_2, resume=resume)
        assert "\n" not in str(error.value)
        assert "Give another output folder." in str(error.value)
        assert "resume=False (agnews train --no-resume)" in str(error.value)
    assert contents(version_2) == before
    assert recipe_of_run(version_2) == three


def test_an_unfinished_run_of_version_2_can_be_discarded(
    version_2, three, tokens, whole
):
    before = contents(version_2)
    train(load_model(three), tokens, three, version_2, resume=False, steps=1)
    assert [path.name for path in find_checkpoints(version_2)] == ["step-00000001"]
    assert_same_run(train(load_model(three), tokens, three, version_2), whole)
    now = contents(version_2)
    assert "checkpoints" not in now
    # Its classifier is not ours to delete, and not taken for the new one.
    assert {name: now[name] for name in before if "checkpoints" not in name} == {
        name: before[name] for name in before if "checkpoints" not in name
    }


# Locks


def test_two_runs_into_one_folder_are_refused(recipe, tokens, tmp_path):
    with (
        folder_lock(tmp_path),
        pytest.raises(FolderInUse, match="Another process is training into "),
    ):
        train(load_model(recipe), tokens, recipe, tmp_path)
    assert train(load_model(recipe), tokens, recipe, tmp_path).finished


def test_an_output_folder_may_be_called_best(recipe, tokens, tmp_path, capsys):
    """Its record is inside it, not beside it as that of a run's best/ is."""
    folder = tmp_path / "best"
    train(load_model(recipe), tokens, recipe, folder, steps=1)
    capsys.readouterr()
    load_classifier(folder)
    assert "is not finished" in capsys.readouterr().out
    for _ in range(2):
        assert train(load_model(recipe), tokens, recipe, folder).best_epoch == 1
    assert recipe_of_run(folder) == recipe


def test_many_saves_at_one_step_keep_their_order(
    three, tokens, whole, tmp_path, monkeypatch
):
    """As when memory runs out in each validation of an epoch, twelve times."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(training, "evaluate", raise_out_of_memory)
        for n in range(1, 13):
            with pytest.raises(DoesNotFit):
                train(load_model(three), tokens, three, folder)
            kept = [path.name for path in find_checkpoints(folder)]
            numbers = [f"step-00000005-{i}".removesuffix("-1") for i in (n, n - 1)]
            assert kept == numbers[: min(n, 2)]
    run = train(load_model(three), tokens, three, folder)
    assert_same_run(run, whole)


def raise_out_of_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_an_unfinished_run_without_its_checkpoints_says_that_it_begins_anew(
    three, tokens, tmp_path, capsys
):
    train(load_model(three), tokens, three, tmp_path, steps=2)
    shutil.rmtree(tmp_path / "checkpoints")
    train(load_model(three), tokens, three, tmp_path, steps=1)
    assert "no whole checkpoint of its unfinished run" in capsys.readouterr().out


def test_a_run_begun_anew_is_resumed_and_not_the_finished_one(
    finished, recipe, tokens, capsys
):
    """Also with the same recipe: what was done since would be lost."""
    train(load_model(recipe), tokens, recipe, finished, resume=False, steps=2)
    capsys.readouterr()
    run = train(load_model(recipe), tokens, recipe, finished)
    assert "Resuming after step 2" in capsys.readouterr().out and run.finished
    assert not (finished / "checkpoints").exists()


def test_a_model_that_was_trained_before_is_told_of(recipe, tokens, tmp_path, capsys):
    """It is the same object, and its weights have moved."""
    model = load_model(recipe)
    train(model, tokens, recipe, tmp_path / "run", steps=1)
    train(model, tokens, recipe, tmp_path / "run", steps=1)  # resumed: nothing to say
    assert "trained before" not in capsys.readouterr().out
    train(model, tokens, recipe, tmp_path / "run", steps=1, resume=False)
    assert "note: this model was trained before" in capsys.readouterr().out
    train(load_model(recipe), tokens, recipe, tmp_path / "run", resume=False)
    assert "trained before" not in capsys.readouterr().out


def test_tokens_of_another_tokenizer_than_the_models_are_refused_before_the_first_step(
    recipe, tiny, tokens, tmp_path, no_training
):
    """The recipe names the tokenizer that made them, but the model is another one."""
    other = shutil.copytree(tiny, tmp_path / "other")
    text = json.loads((other / "tokenizer.json").read_text(encoding="utf-8"))
    words = text["model"]["vocab"]
    words["stocks"], words["news"] = words["news"], words["stocks"]
    words["the"], words["a"] = words["a"], words["the"]
    (other / "tokenizer.json").write_text(json.dumps(text), encoding="utf-8")
    model = load_model(recipe.replace(model=str(other)))
    with pytest.raises(InvalidValue, match="another tokenizer than the model's"):
        train(model, tokens, recipe, tmp_path / "run")


def test_a_model_that_was_changed_by_hand_does_not_resume_the_run(
    recipe, tokens, tmp_path
):
    train(load_model(recipe), tokens, recipe, tmp_path / "run", steps=1)
    model = load_model(recipe)
    model.dropout.p = 0.7
    with pytest.raises(ResumeError, match="the model changed since that run began"):
        train(model, tokens, recipe, tmp_path / "run")


def test_a_record_that_was_cut_off_is_set_aside(recipe, tokens, tmp_path, capsys):
    train(load_model(recipe), tokens, recipe, tmp_path / "run")
    path = tmp_path / "run" / "run.json"
    path.write_bytes(path.read_bytes()[:200])
    assert train(load_model(recipe), tokens, recipe, tmp_path / "run").finished
    assert "run.json.set-aside" in capsys.readouterr().out
