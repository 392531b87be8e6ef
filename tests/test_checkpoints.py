"""One moment of a run on disk: written whole, verified, read back to the last bit."""

import errno
import os
import shutil
from types import SimpleNamespace

import pytest
import torch

from agnews_helpers import SaveError, load_model, load_tokenizer, train
from agnews_helpers import checkpoints as module
from agnews_helpers.checkpoints import (
    State,
    find_checkpoints,
    read_checkpoint,
    read_progress,
    training_state,
    write_checkpoint,
)
from agnews_helpers.model import write_classifier
from agnews_helpers.plumbing import storage
from tests.compare import assert_same_run, assert_same_weights, contents, flip

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def three(recipe):
    return recipe.replace(epochs=3)


@pytest.fixture(scope="module")
def whole(three, tokens, tmp_path_factory):
    """The run that nothing interrupts: 15 steps, with dropout."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    return train(load_model(three), tokens, three, folder)


@pytest.fixture
def two_checkpoints(three, tokens, tmp_path):
    """The checkpoints of a run that was stopped after steps 6 and 9."""
    train(load_model(three), tokens, three, tmp_path, steps=6)
    train(load_model(three), tokens, three, tmp_path, steps=3)
    folder = tmp_path / "checkpoints"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["step-00000006", "step-00000009"]
    return folder


def stepped(recipe, gradient=0.1):
    """A model and its optimizer after one step."""
    model = load_model(recipe)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    for weight in model.parameters():
        weight.grad = torch.full_like(weight, gradient)
    optimizer.step()
    return model, optimizer


# The state


def test_a_moment_is_read_back_to_the_last_bit(three, tmp_path):
    model, optimizer = stepped(three)
    history = [{"epoch": 1, "validation_loss": 2 / 3, "validation_accuracy": 0.1}]
    losses = [0.1, 1 / 3, 1e-300]
    state = State(16, 8, 3, 2, 1, losses, history, 1, "", 0.25, [[81, 4]])
    torch.rand(5)
    path = write_checkpoint(
        tmp_path,
        model,
        training_state(optimizer, CPU),
        state,
        {"format": 3},
        lambda state, folder: folder.mkdir(),
    )
    drawn = torch.rand(7)
    assert path.name == "step-00000003" and storage.damaged_files(path) == []
    assert read_progress(path)["format"] == 3

    other, other_optimizer = stepped(three.replace(seed=1), gradient=0.7)
    assert read_checkpoint(path, other, other_optimizer) == state
    assert torch.equal(torch.rand(7), drawn)
    assert_same_weights(other, model)
    ours = optimizer.state_dict()["state"]
    theirs = other_optimizer.state_dict()["state"]
    assert all(
        torch.equal(ours[number][name], theirs[number][name])
        for number in ours
        for name in ("step", "exp_avg", "exp_avg_sq")
    )


def validated(loss, accuracy):
    """What `evaluate` returns, as far as `State` reads it."""
    words = f"accuracy {accuracy}, loss {loss}"
    return SimpleNamespace(loss=loss, accuracy=accuracy, describe=lambda: words)


def test_the_best_epoch_has_the_highest_accuracy_then_the_lowest_loss():
    state = State(40, 8, 6)
    scores = [(0.5, 1.0), (0.5, 0.9), (0.7, 3.0), (0.7, 3.0), (0.6, 0.1)]
    best = []
    for accuracy, loss in scores:
        state.add_step(1.0)
        assert not state.is_best_epoch  # in the middle of an epoch
        new = state.add_epoch(validated(loss, accuracy))
        assert new == state.is_best_epoch
        best.append((new, state.best_epoch))
    assert best == [(True, 1), (True, 2), (True, 3), (False, 3), (False, 3)]
    assert state.best_report == "accuracy 0.7, loss 3.0"


def test_the_state_says_where_the_run_is_and_how_long_it_takes():
    state = State(41, 8, 2)
    assert str(state) == "step 0 of 12 (epoch 1 of 2)" and state.estimate() == ""
    for _ in range(6):
        state.add_step(0.5)
    state.step_seconds = [100.0, 3.0, 5.0]  # the first warms up
    assert "all 2 epochs of 41 training rows take about 0:00:48" in state.estimate()
    state.step_seconds = [3600.0]
    assert "take about 12:00:00 (h:mm:ss)" in state.estimate()
    state.add_epoch(validated(0.5, 0.25))
    assert state.history[0]["train_loss"] == 0.5 and state.history[0]["epoch"] == 1
    state.add_step(0.5)
    assert str(state) == "step 7 of 12 (epoch 2 of 2)"
    state.add_epoch(validated(0.5, 0.25))
    assert str(state) == "step 7 of 12 (epoch 2 of 2)"  # there is no third


def test_the_time_of_an_epoch(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    state = State(40, 8, 2)
    for epoch, seconds in ((1, 2.0), (2, 1.0)):
        for _ in range(5):
            now[0] += seconds
            state.add_step(0.5)
        assert state.epoch_seconds == 5 * seconds
        now[0] += 3  # validation
        state.add_epoch(validated(0.5, 0.25))
        assert state.history[-1]["rows_per_second"] == 8 / seconds
        assert state.epoch == epoch + 1
    assert state.epoch_seconds == 0


# Writing


def test_no_checkpoint_is_overwritten(three, tmp_path):
    model, optimizer = stepped(three)
    training = training_state(optimizer, CPU)
    written = [
        write_checkpoint(tmp_path, model, training, State(40, 8, 3), {}, None)
        for _ in range(3)
    ]
    names = [path.name for path in written]
    assert names == ["step-00000000", "step-00000000-2", "step-00000000-3"]
    for path in written:
        assert storage.damaged_files(path) == []


def test_a_checkpoint_takes_the_room_that_is_asked_for(three, tmp_path):
    """Four times the weights: the model, Adam's two means, and the best classifier."""
    model, optimizer = stepped(three)
    tokenizer = load_tokenizer(three)
    path = write_checkpoint(
        tmp_path,
        model,
        training_state(optimizer, CPU),
        State(40, 8, 3, best_epoch=1),
        {},
        lambda _, folder: write_classifier(model, tokenizer, folder),
    )
    tensors = [*path.rglob("*.safetensors"), *path.rglob("*.pt")]
    assert len(tensors) == 3
    size = sum(file.stat().st_size for file in tensors)
    weights = sum(weight.nbytes for weight in model.parameters())
    assert size == pytest.approx(4 * weights, rel=0.02)


def test_a_full_disk_ends_the_run_and_leaves_the_older_checkpoint(
    three, tokens, whole, tmp_path, monkeypatch, capsys
):
    """At the end of an epoch; a save between two steps is a note, and tried again."""
    real = os.fsync

    def full(handle):
        if list((tmp_path / "checkpoints").glob(f"{storage.PARTIAL}step-00000005*")):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    message = "step-00000005 could not be saved in .*No space left.*Make room"
    with pytest.raises(SaveError, match=message):
        train(load_model(three), tokens, three, tmp_path, save_minutes=1e-9)
    assert capsys.readouterr().out.count("note: step-00000005 could not be") == 1
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000003", "step-00000004"]
    monkeypatch.undo()
    assert_same_run(train(load_model(three), tokens, three, tmp_path), whole)


def test_each_checkpoint_is_whole_by_itself(
    two_checkpoints, three, tokens, whole, tmp_path
):
    newest, older = find_checkpoints(tmp_path)
    shutil.rmtree(older)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(newest, elsewhere / "checkpoints" / newest.name)
    assert_same_run(train(load_model(three), tokens, three, elsewhere), whole)


# Damage


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "state.pt",
        "progress.json",
        "manifest.json",
        "best/model.safetensors",
    ],
)
@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
@pytest.mark.slow
def test_a_damaged_checkpoint_is_skipped_with_a_message(
    name, damage, two_checkpoints, three, tokens, whole, capsys
):
    path = two_checkpoints / "step-00000009" / name
    middle = path.stat().st_size // 2
    if damage == "flip":
        flip(path, middle)
    elif damage == "truncate":
        path.write_bytes(path.read_bytes()[:middle])
    else:
        path.unlink()
    run = train(load_model(three), tokens, three, two_checkpoints.parent)
    output = capsys.readouterr().out
    assert "Resuming after step 6 of 15" in output
    assert_same_run(run, whole)
    [kept] = two_checkpoints.iterdir()
    assert output.count("note: step-00000009 cannot be used") == 1
    assert kept.name == f"step-00000009{storage.SET_ASIDE_SUFFIX}"


def test_what_was_set_aside_is_not_looked_at_again(
    two_checkpoints, three, tokens, capsys
):
    flip(two_checkpoints / "step-00000009" / "state.pt", 1000)
    for _ in range(2):
        train(load_model(three), tokens, three, two_checkpoints.parent, steps=1)
    assert capsys.readouterr().out.count("cannot be used") == 1
    names = sorted(path.name for path in two_checkpoints.iterdir())
    kept = f"step-00000009{storage.SET_ASIDE_SUFFIX}"
    assert names == ["step-00000007", "step-00000008", kept]


def test_the_best_classifier_is_a_copy_in_each_checkpoint(two_checkpoints, tmp_path):
    """So that damage to one spares the others."""
    best = [
        path / "best" / "model.safetensors"
        for path in (*find_checkpoints(tmp_path), tmp_path)
    ]
    assert len({path.read_bytes() for path in best}) == 1
    assert not any(path.samefile(best[0]) for path in best[1:])


def test_a_checkpoint_that_cannot_be_read_for_a_moment_stays(
    two_checkpoints, three, tokens, whole, monkeypatch, capsys
):
    real = storage.damaged_files

    def fails(path, *sums):
        if path.name == "step-00000009":
            raise PermissionError(13, "another program has it")
        return real(path, *sums)

    monkeypatch.setattr(storage, "damaged_files", fails)
    folder = two_checkpoints.parent
    run = train(load_model(three), tokens, three, folder, steps=1)
    output = capsys.readouterr().out
    assert "step-00000009 cannot be read" in output
    assert "Resuming after step 6" in output
    assert len(run.steps) == 7 and not real(two_checkpoints / "step-00000009")
    monkeypatch.undo()
    assert_same_run(train(load_model(three), tokens, three, folder), whole)


@pytest.mark.parametrize("name", ["progress.json", "manifest.json"])
@pytest.mark.slow
def test_a_checkpoint_without_one_of_its_records_does_not_stay_for_ever(
    name, two_checkpoints, three, tokens
):
    """It is set aside when the run goes on, and deleted when it is discarded."""
    folder = two_checkpoints.parent
    copied = shutil.copytree(folder, folder / "copied")
    for run_folder in (folder, copied):
        (run_folder / "checkpoints" / "step-00000009" / name).unlink()
    train(load_model(three), tokens, three, folder, steps=1)
    names = sorted(path.name for path in two_checkpoints.iterdir())
    kept = f"step-00000009{storage.SET_ASIDE_SUFFIX}"
    assert names == ["step-00000006", "step-00000007", kept]
    train(load_model(three), tokens, three, copied, resume=False, steps=1)
    names = sorted(path.name for path in (copied / "checkpoints").iterdir())
    is_known = name == "progress.json"  # without its manifest nobody knows whose it is
    assert names == ["step-00000001", *([] if is_known else [kept])]


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text("{}", encoding="utf-8"),
        lambda path: [path.unlink(), path.mkdir(), (path / "mine").touch()],
    ],
    ids=["missing", "empty", "a folder"],
)
def test_a_newest_manifest_that_cannot_be_used_gives_way_to_the_next_checkpoint(
    make, two_checkpoints, three, tokens, whole, capsys
):
    make(two_checkpoints / "step-00000009" / "manifest.json")
    capsys.readouterr()
    run = train(load_model(three), tokens, three, two_checkpoints.parent)
    output = capsys.readouterr().out
    assert "note: step-00000009 cannot be used: manifest.json is damaged" in output
    assert "Resuming after step 6" in output
    assert_same_run(run, whole)


def test_a_newest_manifest_that_may_not_be_read_gives_way_to_the_next_checkpoint(
    two_checkpoints, three, tokens, whole, monkeypatch, capsys
):
    """It stays, also when the run is finished: nobody knows what is in it."""
    manifest = two_checkpoints / "step-00000009" / "manifest.json"
    real = storage.read_json

    def read(path):
        if path == manifest:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(storage, "read_json", read)
    for _ in range(2):
        run = train(load_model(three), tokens, three, two_checkpoints.parent)
        assert_same_run(run, whole)
    output = capsys.readouterr().out
    assert "note: step-00000009 cannot be read" in output
    assert "Resuming after step 6" in output and "This run is finished" in output
    assert [path.name for path in two_checkpoints.iterdir()] == ["step-00000009"]


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: shutil.copytree(
            folder / "step-00000009", folder / "step-00000009 (copy)"
        ),
        lambda folder: (folder / "step-00000010").write_text("a file"),
        lambda folder: (folder / "step-abc").mkdir(),
        lambda folder: shutil.copytree(folder.parent / "best", folder / "step-0000011"),
    ],
    ids=["copy", "file", "folder", "classifier"],
)
@pytest.mark.slow
def test_what_only_looks_like_a_checkpoint_stays(
    make, two_checkpoints, three, tokens, whole
):
    before = contents(two_checkpoints)
    make(two_checkpoints)
    foreign = contents(two_checkpoints)
    for name in before:
        del foreign[name]
    run = train(load_model(three), tokens, three, two_checkpoints.parent)
    assert_same_run(run, whole)
    assert foreign and contents(two_checkpoints) == foreign


def test_code_in_a_checkpoint_does_not_run(two_checkpoints, three, tokens, tmp_path):
    """Even if the checksums are right."""

    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "trap"), "w"))

    path = two_checkpoints / "step-00000009"
    torch.save({"optimizer": Trap()}, path / "state.pt")
    sums = storage.read_json(path / "manifest.json")
    sums["state.pt"] = storage.sha256(path / "state.pt")
    storage.write_json(path / "manifest.json", sums)
    with pytest.raises(Exception, match="(?i)weights.only"):
        train(load_model(three), tokens, three, tmp_path)
    assert not (tmp_path / "trap").exists()
