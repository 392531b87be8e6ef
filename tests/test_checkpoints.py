"""What survives a crash: exact resume, checkpoints that are whole or not there, interruptions."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import torch
from datasets import ClassLabel, DatasetDict

from agnews_helpers import (
    FolderInUse,
    ResumeError,
    SaveError,
    load_classifier,
    load_model,
    train,
    training,
)
from agnews_helpers.checkpoints import RunFolder, State, find_checkpoints
from agnews_helpers.model import class_names, run_facts
from agnews_helpers.plumbing import storage
from agnews_helpers.plumbing.interrupts import StopSignal
from agnews_helpers.plumbing.storage import (
    damaged_files,
    fingerprint,
    folder_lock,
    write_folder,
)

EPOCHS, BATCHES = 3, 5  # 40 rows in batches of 8


@pytest.fixture(scope="module")
def three(recipe):
    return recipe.replace(epochs=EPOCHS)


@pytest.fixture(scope="module")
def whole(three, tokens, tmp_path_factory):
    """The run that nothing interrupts. Dropout is on."""
    run = train(
        load_model(three), tokens, three, tmp_path_factory.mktemp("whole") / "run"
    )
    assert run.model.config.dropout == 0.1
    return run


def assert_same_run(run, whole):
    assert run.finished and run.best_epoch == whole.best_epoch
    assert run.steps.equals(whole.steps)
    timed = "rows_per_second"
    assert run.history.drop(columns=timed).equals(whole.history.drop(columns=timed))
    assert_same_weights(run.model, whole.model)
    assert_same_weights(load_classifier(run.folder)[0], whole.model)


def assert_same_weights(one, other):
    pairs = list(zip(one.state_dict().items(), other.state_dict().items()))
    assert pairs and all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


@pytest.mark.parametrize("steps", range(1, EPOCHS * BATCHES))
@pytest.mark.slow
def test_a_run_stopped_at_any_step_ends_bit_for_bit_like_the_whole_one(
    steps, three, tokens, whole, tmp_path, capsys
):
    first = train(load_model(three), tokens, three, tmp_path, steps=steps)
    assert (
        not first.finished and len(first.steps) == steps and find_checkpoints(tmp_path)
    )
    torch.rand(7)  # what happens in between does not matter
    run = train(load_model(three.replace(seed=1)), tokens, three, tmp_path)
    assert f"Continuing after step {steps} of 15" in capsys.readouterr().out
    assert_same_run(run, whole)
    assert not find_checkpoints(tmp_path)


@pytest.mark.slow
def test_a_run_stopped_at_every_step(three, tokens, whole, tmp_path):
    sessions = 0
    while not (
        run := train(load_model(three), tokens, three, tmp_path, steps=1)
    ).finished:
        sessions += 1
    assert sessions == EPOCHS * BATCHES - 1
    assert_same_run(run, whole)


def test_a_checkpoint_after_every_step_changes_nothing_and_two_are_kept(
    three, tokens, whole, tmp_path, monkeypatch
):
    kept, save = [], RunFolder.save

    def spy(self, *arguments, **options):
        save(self, *arguments, **options)
        kept.append(len(find_checkpoints(tmp_path)))

    monkeypatch.setattr(RunFolder, "save", spy)
    run = train(load_model(three), tokens, three, tmp_path, save_minutes=1e-9)
    assert_same_run(run, whole)
    assert max(kept) == 2 and len(kept) >= 15


@pytest.mark.parametrize("number", StopSignal.SIGNALS)
def test_a_signal_saves_and_returns_the_run_so_far(
    number, three, tokens, whole, tmp_path, capsys
):
    def press_stop(*_):
        calls.append(1)
        if len(calls) == 8:
            signal.raise_signal(number)

    calls, model = [], load_model(three)
    model.register_forward_hook(press_stop)
    before = signal.getsignal(number)
    run = train(model, tokens, three, tmp_path)
    assert signal.getsignal(number) is before
    assert not run.finished and len(run.steps) == 7  # the sixth call was a validation's
    assert "agnews train --resume --output-dir" in capsys.readouterr().out
    assert list(run.history.index) == [1] and load_classifier(run.folder)
    assert_same_run(train(load_model(three), tokens, three, tmp_path), whole)


def test_a_signal_during_validation_ends_it_at_once(
    three, tokens, whole, tmp_path, monkeypatch
):
    real, calls = training.evaluate, []

    def evaluate(*arguments):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
            pytest.fail("went on")
        return real(*arguments)

    monkeypatch.setattr(training, "evaluate", evaluate)
    run = train(load_model(three), tokens, three, tmp_path)
    assert len(run.steps) == 2 * BATCHES and list(run.history.index) == [1]
    assert_same_run(train(load_model(three), tokens, three, tmp_path), whole)


def test_a_signal_during_a_save_waits_for_it(
    three, tokens, whole, tmp_path, monkeypatch
):
    real, saves = storage.write_folder, []

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


def test_a_second_signal_ends_even_a_save_and_the_older_checkpoint_is_used(
    three, tokens, whole, tmp_path, monkeypatch
):
    real, saves = torch.save, []
    monkeypatch.setattr(StopSignal, "PATIENCE", 0.0)

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


def test_pressing_stop_twice_is_one_wish(three, tokens, whole, tmp_path, monkeypatch):
    real = torch.save

    def save(*arguments):
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)
        real(*arguments)

    monkeypatch.setattr(torch, "save", save)
    run = train(load_model(three), tokens, three, tmp_path, steps=4)
    assert not run.finished and find_checkpoints(tmp_path)
    monkeypatch.undo()
    assert_same_run(train(load_model(three), tokens, three, tmp_path), whole)


def test_training_in_another_thread_works_without_signals(recipe, tokens, tmp_path):
    runs = []
    thread = threading.Thread(
        target=lambda: runs.append(train(load_model(recipe), tokens, recipe, tmp_path))
    )
    thread.start(), thread.join()
    assert runs[0].finished


def test_what_is_stopped_before_the_first_validation_can_be_looked_at(
    three, tokens, tmp_path
):
    run = train(load_model(three), tokens, three, tmp_path, steps=2)
    assert (
        run.best_epoch == 0
        and len(run.history) == 0
        and "validation_accuracy" in run.history
    )
    assert_same_weights(load_classifier(run.folder)[0], run.model)
    assert run_facts(run.folder)["steps"] == 2 and "finished" not in run_facts(
        run.folder
    )


@pytest.mark.parametrize("before", [0, 2])
def test_a_stop_before_the_first_step_of_a_sitting_is_no_failure(
    before, three, tokens, tmp_path, monkeypatch
):
    if before:
        train(load_model(three), tokens, three, tmp_path, steps=before)

    def enter(interrupts):
        interrupts.made = True
        return interrupts

    monkeypatch.setattr(StopSignal, "__enter__", enter)
    run = train(load_model(three), tokens, three, tmp_path, steps=5)
    assert not run.finished and len(run.steps) == before


# Resuming something else


def test_another_recipe_is_named(three, tokens, tmp_path):
    train(load_model(three), tokens, three, tmp_path, steps=1)
    with pytest.raises(
        ResumeError,
        match="epochs is 3 there and 4 here; learning_rate is 0.001 there and 2e-05 here|"
        "learning_rate is 0.001 there and 2e-05 here; epochs is 3 there and 4 here",
    ):
        train(
            load_model(three),
            tokens,
            three.replace(epochs=4, learning_rate=2e-5),
            tmp_path,
        )


def test_other_data_are_named(three, tokens, tmp_path):
    train(load_model(three), tokens, three, tmp_path, steps=1)
    other = DatasetDict(tokens, train=tokens["train"].select(reversed(range(40))))
    with pytest.raises(ResumeError, match=r"data \(train\) is another"):
        train(load_model(three), other, three, tmp_path)


@pytest.mark.parametrize("steps", [1, None])
def test_other_names_of_the_classes_are_named(steps, recipe, tokens, tmp_path):
    """As after a classes.txt in the wrong order was mended: same texts, same numbers, another classifier."""
    wrong, right = ["b", "a", "c", "d"], ["a", "b", "c", "d"]
    called = [
        DatasetDict(
            {
                key: rows.cast_column("label", ClassLabel(names=names))
                for key, rows in tokens.items()
            }
        )
        for names in (wrong, right)
    ]
    train(load_model(recipe, wrong), called[0], recipe, tmp_path, steps=steps)
    with pytest.raises(
        ResumeError, match="classes is b, a, c, d there and a, b, c, d here"
    ):
        train(load_model(recipe, right), called[1], recipe, tmp_path)
    assert class_names(load_classifier(tmp_path)[0]) == wrong
    train(load_model(recipe, right), called[1], recipe, tmp_path, resume=False)
    assert class_names(load_classifier(tmp_path)[0]) == right


def test_another_number_of_processes_is_named(three, tokens, tmp_path):
    train(load_model(three), tokens, three, tmp_path, steps=1)
    model = load_model(three)
    accelerator = training.make_accelerator(three)
    two = SimpleNamespace(num_processes=2, is_main_process=True)
    with (
        pytest.raises(ResumeError, match="processes is 1 there and 2 here"),
        RunFolder(tmp_path, model, tokens, three, two),
    ):
        pass
    with RunFolder(tmp_path, model, tokens, three, accelerator) as folder:
        assert folder.newest.name == "step-00000001"


def test_resume_false_discards_what_is_there(three, tokens, whole, tmp_path):
    train(load_model(three), tokens, three.replace(epochs=4), tmp_path, steps=7)
    assert_same_run(
        train(load_model(three), tokens, three, tmp_path, resume=False), whole
    )


def test_resume_takes_three_values(recipe, tokens, tmp_path):
    with pytest.raises(
        ValueError, match="resume is 'yes'; it must be 'auto', True or False"
    ):
        train(load_model(recipe), tokens, recipe, tmp_path, resume="yes")


def test_a_finished_run_is_returned(
    three, tokens, whole, tmp_path, capsys, monkeypatch
):
    train(load_model(three), tokens, three, tmp_path)
    monkeypatch.setattr(
        training, "forward_backward", lambda *_: pytest.fail("trained again")
    )
    run = train(load_model(three), tokens, three, tmp_path)
    assert "is finished" in capsys.readouterr().out
    assert_same_run(run, whole)


def test_a_finished_run_of_another_kind_is_not_replaced_without_a_word(
    recipe, three, tokens, whole, tmp_path
):
    first = train(load_model(recipe), tokens, recipe, tmp_path)
    with pytest.raises(
        ResumeError,
        match="holds a finished run of another kind: epochs is 1 there and 3 here",
    ):
        train(load_model(three), tokens, three, tmp_path)
    assert_same_weights(load_classifier(tmp_path)[0], first.model)
    part = train(load_model(three), tokens, three, tmp_path, resume=False, steps=7)
    assert part.best_epoch == 1
    assert_same_weights(
        load_classifier(tmp_path)[0], first.model
    )  # by nothing but a finished one
    assert (
        run_facts(tmp_path)["finished"] and run_facts(tmp_path)["recipe"]["epochs"] == 1
    )
    assert_same_run(train(load_model(three), tokens, three, tmp_path), whole)


def test_a_damaged_finished_classifier_is_trained_again(
    recipe, tokens, tmp_path, capsys
):
    first = train(load_model(recipe), tokens, recipe, tmp_path)
    flip(tmp_path / "model.safetensors", -5)
    assert_same_run(train(load_model(recipe), tokens, recipe, tmp_path), first)
    assert (
        "is damaged (model.safetensors); training it again" in capsys.readouterr().out
    )
    assert (tmp_path / f"model.safetensors{storage.ASIDE}").is_file()


def test_fingerprints(tokens):
    rows = tokens["train"]
    same = rows.select(range(40))
    changed = rows.map(
        lambda row, i: {"label": (row["label"] + (i == 3)) % 4}, with_indices=True
    )
    moved = rows.map(
        lambda row, i: {
            "input_ids": row["input_ids"][:-1] if i == 3 else row["input_ids"]
        },
        with_indices=True,
    )
    assert (
        fingerprint(same) == fingerprint(rows)
        and len({fingerprint(r) for r in (rows, changed, moved, rows.select([1, 0]))})
        == 4
    )


# Damage


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.fixture
def two_checkpoints(three, tokens, tmp_path):
    train(load_model(three), tokens, three, tmp_path, steps=6)
    train(load_model(three), tokens, three, tmp_path, steps=3)
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == [
        "step-00000006",
        "step-00000009",
    ]
    return tmp_path / "checkpoints"


@pytest.mark.parametrize(
    "name", ["model.safetensors", "state.pt", "progress.json", "manifest.json"]
)
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "empty"])
@pytest.mark.slow
def test_a_damaged_checkpoint_is_skipped_with_a_message(
    name, damage, two_checkpoints, three, tokens, whole, capsys
):
    path = two_checkpoints / "step-00000009" / name
    if damage == "flip":
        flip(path, path.stat().st_size // 2)
    elif damage == "delete":
        path.unlink()
    else:
        path.write_bytes(
            path.read_bytes()[: path.stat().st_size // 2]
            if damage == "truncate"
            else b""
        )
    run = train(load_model(three), tokens, three, two_checkpoints.parent)
    output = capsys.readouterr().out
    assert (
        "step-00000009 cannot be used" in output
        and "Continuing after step 6 of 15" in output
    )
    assert_same_run(run, whole)


def test_where_the_best_classifier_is_damaged_the_checkpoint_before_is_taken(
    two_checkpoints, three, tokens, whole, capsys
):
    best, other = (
        two_checkpoints / name / "best" / "model.safetensors"
        for name in ("step-00000009", "step-00000006")
    )
    assert best.read_bytes() == other.read_bytes() and not best.samefile(other)
    flip(best, 1000)
    flip(two_checkpoints.parent / "model.safetensors", 1000)
    run = train(load_model(three), tokens, three, two_checkpoints.parent)
    output = capsys.readouterr().out
    assert (
        "step-00000009 cannot be used" in output
        and "Continuing after step 6 of 15" in output
    )
    assert_same_run(run, whole)
    assert (two_checkpoints.parent / f"model.safetensors{storage.ASIDE}").is_file()


def test_a_checkpoint_that_cannot_be_read_for_a_moment_stays(
    two_checkpoints, three, tokens, whole, monkeypatch, capsys
):
    real = storage.damaged_files
    monkeypatch.setattr(
        storage,
        "retry_permission_error",
        lambda function, *arguments: function(*arguments),
    )

    def fails(path):
        if path.name == "step-00000009":
            raise PermissionError(13, "another program has it")
        return real(path)

    monkeypatch.setattr(storage, "damaged_files", fails)
    run = train(load_model(three), tokens, three, two_checkpoints.parent, steps=1)
    output = capsys.readouterr().out
    assert (
        "step-00000009 cannot be read" in output and "Continuing after step 6" in output
    )
    assert len(run.steps) == 7 and not real(two_checkpoints / "step-00000009")
    monkeypatch.undo()
    assert_same_run(
        train(load_model(three), tokens, three, two_checkpoints.parent), whole
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: shutil.copytree(
            folder / "step-00000009", folder / "step-00000009 (copy)"
        ),
        lambda folder: (folder / "step-00000010").write_text("a file"),
        lambda folder: (folder / "step-abc").mkdir(),
        lambda folder: (
            (folder / "step-00000011").mkdir()
            or (folder / "step-00000011" / "model.bin").write_text("foreign")
        ),
        lambda folder: (folder / "best-epoch-1 (copy)").mkdir(),
    ],
)
def test_what_is_called_like_a_checkpoint_and_is_none_stays(
    make, two_checkpoints, three, tokens, whole
):
    make(two_checkpoints)
    before = {
        path for path in two_checkpoints.rglob("*") if "step-00000006" not in path.parts
    }
    before -= {path for path in before if "step-00000009" in path.parts}
    assert_same_run(
        train(load_model(three), tokens, three, two_checkpoints.parent), whole
    )
    assert set(two_checkpoints.rglob("*")) == before


@pytest.mark.parametrize("content", ["[]", "", "{", '"text"', '{"a": 3}'])
def test_a_manifest_of_another_kind_is_damage(
    content, two_checkpoints, three, tokens, whole
):
    (two_checkpoints / "step-00000009" / "manifest.json").write_text(content)
    assert_same_run(
        train(load_model(three), tokens, three, two_checkpoints.parent), whole
    )


def test_a_full_disk_stops_the_save_and_leaves_the_older_checkpoint(
    three, tokens, whole, tmp_path, monkeypatch
):
    real = os.fsync

    def full(handle):
        if list((tmp_path / "checkpoints").glob(f"{storage.PARTIAL}step-00000002*")):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        SaveError,
        match=r"step-00000002 could not be saved in .*No space left on device.*MiB are free there",
    ):
        train(load_model(three), tokens, three, tmp_path, save_minutes=1e-9)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [
        "step-00000001"
    ]
    monkeypatch.undo()
    assert_same_run(train(load_model(three), tokens, three, tmp_path), whole)


@pytest.mark.skipif(
    os.name != "posix", reason="Windows has no limit on the size of a file"
)
def test_a_disk_that_is_really_full(tmp_path):
    code = (
        "import resource, signal, sys, torch; from pathlib import Path; from "
        "agnews_helpers.plumbing.storage import write_folder\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, "
        "2**20))\n"
        "from safetensors.torch import save_file\n"
        "big = torch.zeros(2**19)\n"
        "writers = [lambda p: torch.save(big, p / 'a.pt'), lambda p: save_file({'a': big}, p / 'a'), "
        "lambda p: (p / 'a').write_bytes(bytes(2**21))]\n"
        "for write in writers:\n"
        "    try: write_folder(Path(sys.argv[1]) / 'made', write)\n"
        "    except OSError as error: print(type(error).__name__, list(Path(sys.argv[1]).iterdir()))\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert output.splitlines() == ["SaveError []"] * 3


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    target = write_folder(tmp_path / "a", lambda path: (path / "x").write_text("1"))
    assert damaged_files(target) == [] and list(
        json.loads((target / "manifest.json").read_text())
    ) == ["x"]

    def fails(path):
        (path / "x").write_text("2")
        raise OSError("no")

    with pytest.raises(SaveError, match="a could not be saved in .*: no"):
        write_folder(target, fails)
    assert (target / "x").read_text() == "1" and [
        path.name for path in tmp_path.iterdir()
    ] == ["a"]
    (target / "x").write_text("3")
    assert damaged_files(target) == ["x"]
    (target / "manifest.json").unlink()
    assert damaged_files(target) == ["manifest.json"]


def test_saving_a_classifier_over_another_leaves_no_trace(three, tokens, tmp_path):
    (tmp_path / "mine.txt").write_text("stays")
    for _ in range(2):
        train(load_model(three), tokens, three, tmp_path, steps=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "agnews_run.json",
        "checkpoints",
        "config.json",
        "mine.txt",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert (
        run_facts(tmp_path)["steps"] == 2
        and (tmp_path / "mine.txt").read_text() == "stays"
    )


# The lock


def test_two_runs_into_one_folder_are_refused(recipe, tokens, tmp_path):
    (tmp_path / "run").mkdir()
    with (
        folder_lock(tmp_path / "run"),
        pytest.raises(FolderInUse, match="Another process is training into .*run"),
    ):
        train(load_model(recipe), tokens, recipe, tmp_path / "run")
    assert train(load_model(recipe), tokens, recipe, tmp_path / "run").finished


def test_a_dead_process_leaves_no_lock(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from agnews_helpers.plumbing.storage import "
        "folder_lock\n"
        "with folder_lock(Path(sys.argv[1])): print('mine', flush=True); time.sleep(60)"
    )
    (tmp_path / "run").mkdir()
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout.readline() == "mine\n"
        with pytest.raises(FolderInUse), folder_lock(tmp_path / "run"):
            pass
    finally:
        child.kill(), child.wait(), child.stdout.close()
    with folder_lock(tmp_path / "run"):
        pass


# Safe files


def test_a_file_that_would_run_code_does_not(two_checkpoints, three, tokens, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "trap"), "w"))

    path = two_checkpoints / "step-00000009"
    torch.save({"optimizer": Trap()}, path / "state.pt")
    sums = {name: storage.sha256(path / name) for name in check_without_sums(path)}
    (path / "manifest.json").write_text(
        json.dumps(sums)
    )  # even where the checksum is right
    with pytest.raises(Exception, match="(?i)weights.only"):
        train(load_model(three), tokens, three, two_checkpoints.parent)
    assert not (tmp_path / "trap").exists()


def check_without_sums(path):
    return [
        file.relative_to(path).as_posix()
        for file in path.rglob("*")
        if file.is_file() and file.name != "manifest.json"
    ]


def test_the_state_is_kept_to_the_last_digit(three, tokens, tmp_path):
    model, accelerator = load_model(three), training.make_accelerator(three)
    optimizer = torch.optim.Adam(model.parameters())
    history = [{"epoch": 1, "validation_loss": 2 / 3, "validation_accuracy": 0.1}]
    state = State(
        40, 8, 3, 2, 3, [0.1, 1 / 3, 1e-300], history, 0, 1.5, 0.25, [[81, 4]]
    )
    with RunFolder(tmp_path, model, tokens, three, accelerator) as folder:
        folder.save(model, optimizer, state)
    with RunFolder(tmp_path, model, tokens, three, accelerator) as folder:
        assert folder.restore(model, optimizer) == state
