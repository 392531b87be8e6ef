"""Nothing that is not ours is touched, nothing good is thrown away, and what was changed for a moment is put
back."""

import errno
import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DistilBertForSequenceClassification

from agnews_helpers import (
    FolderInUse,
    NonFiniteError,
    ResumeError,
    SaveError,
    classify,
    load_classifier,
    load_model,
    load_tokenizer,
    train,
    training,
)
from agnews_helpers.checkpoints import State, find_checkpoints
from agnews_helpers.cli import main
from agnews_helpers.model import run_facts, write_classifier
from agnews_helpers.plumbing import cpu_kernels, storage
from agnews_helpers.plumbing.errors import AgnewsError

FINISHED = [
    "agnews_run.json",
    "config.json",
    "history.csv",
    "model.safetensors",
    "steps.csv",
    "tokenizer.json",
    "tokenizer_config.json",
]


@pytest.fixture(scope="module")
def two(recipe):
    return recipe.replace(epochs=2)


@pytest.fixture(scope="module")
def whole(two, tokens, tmp_path_factory):
    return train(load_model(two), tokens, two, tmp_path_factory.mktemp("whole") / "run")


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def same_weights(one, other):
    return all(
        torch.equal(a, b)
        for a, b in zip(one.state_dict().values(), other.state_dict().values())
    )


# Foreign files


@pytest.mark.parametrize("resume", ["auto", False])
def test_foreign_files_stay(resume, two, tokens, tmp_path):
    foreign = (
        "thesis.pt",
        "step-00000005/optimizer.pt",
        ".partial-notes",
        "step-1/model.safetensors",
    )
    for name in foreign:
        path = tmp_path / "checkpoints" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"precious")
    (tmp_path / "mine.txt").write_text("mine", encoding="utf-8")
    train(load_model(two), tokens, two, tmp_path, resume=resume, steps=3)
    (find_checkpoints(tmp_path)[0] / "note.txt").write_text(
        "a remark", encoding="utf-8"
    )  # inside one of ours
    train(load_model(two), tokens, two, tmp_path, resume=False)
    assert all(
        (tmp_path / "checkpoints" / name).read_bytes() == b"precious"
        for name in foreign
    )
    assert (tmp_path / "mine.txt").read_text(encoding="utf-8") == "mine"
    assert (
        tmp_path / "checkpoints" / f"step-00000003{storage.ASIDE}" / "note.txt"
    ).is_file()
    assert not find_checkpoints(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors", "tokenizer.json", "history.csv", "steps.csv"],
)
def test_a_file_of_another_origin_in_the_way_is_an_error_at_the_start(
    name, two, tokens, tmp_path, monkeypatch
):
    (tmp_path / name).write_text("foreign", encoding="utf-8")
    monkeypatch.setattr(
        training, "forward_backward", lambda *_: pytest.fail("trained first")
    )
    for resume in ("auto", False):
        with pytest.raises(
            SaveError, match=rf"holds {name}, which no run of this version wrote"
        ):
            train(load_model(two), tokens, two, tmp_path, resume=resume)
    assert (tmp_path / name).read_text(encoding="utf-8") == "foreign"


def test_a_file_of_ours_that_was_changed_is_set_aside(two, tokens, tmp_path):
    for _ in range(2):
        train(load_model(two), tokens, two, tmp_path, steps=1)
        (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    train(load_model(two), tokens, two, tmp_path, steps=1)
    kept = [path.name for path in tmp_path.iterdir() if storage.ASIDE in path.name]
    assert sorted(kept) == ["config.json.set-aside", "config.json.set-aside-2"]
    assert load_classifier(tmp_path)


# State that is put back


def test_a_stop_in_validation_and_the_same_cell_again_with_the_same_model(
    two, tokens, whole, tmp_path, monkeypatch
):
    model, real = load_model(two), training.evaluate

    def stop(*_):
        signal.raise_signal(signal.SIGINT)

    before = model.config.to_dict()
    monkeypatch.setattr(training, "evaluate", stop)
    stopped = train(model, tokens, two, tmp_path)
    assert not stopped.finished and len(stopped.steps) == 5
    assert (
        model.config.to_dict() == before and model.config._attn_implementation == "sdpa"
    )
    monkeypatch.setattr(training, "evaluate", real)
    run = train(model, tokens, two, tmp_path)
    assert same_weights(run.model, whole.model) and run.steps.equals(whole.steps)
    assert (tmp_path / "config.json").read_bytes() == (
        whole.folder / "config.json"
    ).read_bytes()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_failure_leaves_the_model_as_it_was(
    precision, two, tokens, tmp_path, monkeypatch
):
    model = load_model(two)

    def fail(*_):
        assert model.config._attn_implementation == cpu_kernels.ATTENTION_NAME
        raise RuntimeError("broken")

    def looks(model):
        modules = [module for module in model.modules() if "forward" in vars(module)]
        return model.training, model.config._attn_implementation, modules

    before = looks(model)
    monkeypatch.setattr(training, "forward_backward", fail)
    with pytest.raises(RuntimeError, match="broken"):
        train(model, tokens, two.replace(precision=precision), tmp_path)
    assert looks(model) == before == (False, "sdpa", [])


# Windows in which nothing is whole


def test_a_checkpoint_is_never_rewritten_in_its_place(
    two, tokens, tmp_path, monkeypatch
):
    train(load_model(two), tokens, two, tmp_path, steps=3)
    [first] = find_checkpoints(tmp_path)
    seen, write = [], storage.write_folder

    def look(folder, function):
        seen.append((folder.name, storage.damaged_files(first)))
        return write(folder, function)

    def stop_at_once(wish):
        wish.made = True
        return wish

    monkeypatch.setattr(storage, "write_folder", look)
    monkeypatch.setattr(training.StopSignal, "__enter__", stop_at_once)
    train(load_model(two), tokens, two, tmp_path)
    assert ("step-00000003-2", []) in seen
    assert [path.name for path in find_checkpoints(tmp_path)] == [
        "step-00000003-2",
        "step-00000003",
    ]


def test_each_checkpoint_is_whole_by_itself(two, tokens, whole, tmp_path):
    train(load_model(two), tokens, two, tmp_path / "run", steps=6)
    train(load_model(two), tokens, two, tmp_path / "run", steps=2)
    newest, older = find_checkpoints(tmp_path / "run")
    shutil.rmtree(older)
    shutil.copytree(newest, tmp_path / "elsewhere" / "checkpoints" / newest.name)
    for place in ("run", "elsewhere"):
        run = train(load_model(two), tokens, two, tmp_path / place)
        assert same_weights(run.model, whole.model) and len(run.steps) == 10


# Not the same run


def other_weights(folder):
    weights = load_file(folder / "model.safetensors")
    save_file(
        {name: tensor + 0.001 for name, tensor in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )


def other_heads(folder):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(
        json.dumps(config | {"n_heads": 4}), encoding="utf-8"
    )


def another_shape(folder):
    from tests.tiny import tiny_model_folder

    shutil.rmtree(folder)
    tiny_model_folder(folder, dim=64)


@pytest.mark.parametrize("change", [other_weights, other_heads, another_shape])
def test_another_model_in_a_folder_of_the_same_name_is_named(
    change, tiny, two, tokens, tmp_path
):
    shutil.copytree(tiny, tmp_path / "model")
    recipe = two.replace(model=str(tmp_path / "model"))
    train(load_model(recipe), tokens, recipe, tmp_path / "run", steps=3)
    change(tmp_path / "model")
    with pytest.raises(ResumeError, match="model is another"):
        train(load_model(recipe), tokens, recipe, tmp_path / "run")


def test_a_model_made_by_hand_is_known_by_its_shapes(two, tokens, tmp_path):
    def made(**changes):
        config = load_model(two).config
        for name, value in changes.items():
            setattr(config, name, value)
        model = DistilBertForSequenceClassification(config)
        model.name_or_path = ""  # of no file
        return model

    train(made(), tokens, two, tmp_path, steps=3)
    with pytest.raises(ResumeError, match="model is another"):
        train(made(hidden_dim=48), tokens, two, tmp_path)


def test_a_run_does_not_write_over_the_model_it_begins_with(
    tiny, two, tokens, tmp_path
):
    shutil.copytree(tiny, tmp_path / "model")
    recipe = two.replace(model=str(tmp_path / "model"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    for resume in ("auto", False):
        with pytest.raises(ResumeError, match="holds the model to begin with"):
            train(
                load_model(recipe),
                tokens,
                recipe,
                tmp_path / "model" / ".",
                resume=resume,
            )
    assert {
        path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()
    } == before


# Litter


def test_nothing_is_left_over(two, tokens, whole, tmp_path):
    train(load_model(two), tokens, two, tmp_path, steps=6)
    train(load_model(two), tokens, two, tmp_path)
    assert names(tmp_path) == FINISHED == names(whole.folder)
    for name in set(FINISHED) - {
        "agnews_run.json",
        "history.csv",
    }:  # which have times in them
        assert (tmp_path / name).read_bytes() == (whole.folder / name).read_bytes(), (
            name
        )


def test_an_output_folder_that_had_nothing_has_nothing_after_an_error(
    two, tokens, tmp_path, monkeypatch
):
    monkeypatch.setattr(training, "forward_backward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(load_model(two), tokens, two, tmp_path / "run")
    assert names(tmp_path) in ([], ["run"])


# Locks and odd file systems


def test_a_lock_is_inside_the_folder_and_goes_with_it(tmp_path):
    with storage.folder_lock(tmp_path):
        assert [path.parent for path in tmp_path.rglob("*lock*")] == [tmp_path]
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [NotImplementedError("no flock"), OSError(errno.ENOLCK, "No locks available")],
)
def test_a_file_system_without_locks_gets_a_note(
    error, two, tokens, tmp_path, monkeypatch, capsys
):
    def acquire(self):
        raise error

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    assert train(load_model(two), tokens, two, tmp_path).finished
    assert "note: " in capsys.readouterr().out


def test_a_lock_file_of_somebody_else_is_one_clear_line(tmp_path, monkeypatch):
    def acquire(self):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    with (
        pytest.raises(
            FolderInUse, match="cannot be opened: Permission denied. Give another"
        ),
        storage.folder_lock(tmp_path),
    ):
        pass


def test_a_file_system_that_cannot_flush_gets_a_note(tmp_path, monkeypatch, capsys):
    def fsync(handle):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fsync)
    storage.write_folder(
        tmp_path / "a", lambda path: (path / "x").write_text("x", encoding="utf-8")
    )
    assert (
        storage.damaged_files(tmp_path / "a") == []
        and capsys.readouterr().out.count("cannot flush") >= 1
    )


@pytest.mark.parametrize("where", ["run", "run/deeper"])
def test_an_output_folder_that_cannot_be_written_is_found_out_at_once(
    where, two, tokens, tmp_path, monkeypatch
):
    (tmp_path / "run").write_text("a file", encoding="utf-8")
    monkeypatch.setattr(
        training, "forward_backward", lambda *_: pytest.fail("trained first")
    )
    with pytest.raises(
        SaveError, match="cannot be written.*Give another output folder"
    ):
        train(load_model(two), tokens, two, tmp_path / where)


def test_an_output_folder_whose_name_is_not_utf_8(two, tokens, tmp_path, monkeypatch):
    """From an old archive, say: the weights could not be written into it."""
    monkeypatch.setattr(
        training, "forward_backward", lambda *_: pytest.fail("trained first")
    )
    with pytest.raises(
        SaveError, match="cannot be written: 'utf-8' codec.*Give another output folder"
    ):
        train(load_model(two), tokens, two, tmp_path / "r\udcfcn")
    assert not [*tmp_path.iterdir()]


@pytest.mark.skipif(os.name != "posix", reason="on Windows links need rights")
def test_an_output_folder_that_links_to_itself(two, tokens, tmp_path):
    (tmp_path / "run").symlink_to(tmp_path / "run")
    with pytest.raises(
        SaveError, match="run cannot be written.*Give another output folder"
    ):
        train(load_model(two), tokens, two, tmp_path / "run")


@pytest.mark.parametrize(
    "total", [2**40, None]
)  # None: an empty disk that is too small
def test_too_little_room_for_a_checkpoint_is_found_out_at_once(
    total, two, tokens, tmp_path, monkeypatch
):
    size = sum(weight.nbytes for weight in load_model(two).parameters())
    room = SimpleNamespace(total=total or 4 * size - 1, free=4 * size - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room)
    with monkeypatch.context() as patch:
        patch.setattr(
            training, "forward_backward", lambda *_: pytest.fail("trained first")
        )
        with pytest.raises(
            SaveError,
            match=f"takes {4 * size / 2**20:,.0f} MiB, and .* are free. Make room",
        ):
            train(load_model(two), tokens, two, tmp_path)
    assert not [*tmp_path.iterdir()]
    room.total, room.free = 0, 0  # a file system that tells of no size
    assert len(train(load_model(two), tokens, two, tmp_path, steps=1).steps) == 1


def test_a_folder_that_is_deleted_while_it_trains(
    two, tokens, tmp_path, monkeypatch, capsys
):
    """The run goes on in a new one, which has a lock again."""
    count = State.count

    def counted(state, loss):
        count(state, loss)
        if len(state.losses) == 2:
            shutil.rmtree(tmp_path / "run")
        if len(state.losses) == 4:
            with pytest.raises(FolderInUse), storage.folder_lock(tmp_path / "run"):
                pass

    monkeypatch.setattr(State, "count", counted)
    run = train(load_model(two), tokens, two, tmp_path / "run", save_minutes=1e-9)
    assert run.finished and "was deleted or renamed" in capsys.readouterr().out
    assert not [
        path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")
    ]


def test_a_folder_that_is_deleted_with_the_best_epoch_in_it(
    two, tokens, tmp_path, monkeypatch, capsys
):
    """Nothing can bring that back: an error says so, and no note that the run goes on."""
    count = State.count

    def counted(state, loss):
        count(state, loss)
        if state.epoch == 2 and state.batch == 2:
            shutil.rmtree(tmp_path / "run")

    monkeypatch.setattr(State, "count", counted)
    with pytest.raises(
        SaveError, match="is gone, and the best epoch with it. Train again"
    ):
        train(load_model(two), tokens, two, tmp_path / "run", save_minutes=1e-9)
    assert "goes on" not in capsys.readouterr().out


def test_checkpoints_that_is_a_file_is_found_out_at_once(two, tokens, tmp_path):
    (tmp_path / "checkpoints").write_text("a file", encoding="utf-8")
    with pytest.raises(SaveError, match="cannot be written"):
        train(load_model(two), tokens, two, tmp_path)
    assert (tmp_path / "checkpoints").read_text(encoding="utf-8") == "a file"


@pytest.mark.skipif(os.name != "posix", reason="Windows has other permissions")
def test_all_files_can_be_read_by_whoever_may_read_a_new_file(two, tokens, tmp_path):
    train(load_model(two), tokens, two, tmp_path / "run", steps=6)
    (tmp_path / "new").write_text("", encoding="utf-8")
    usual = stat.S_IMODE((tmp_path / "new").stat().st_mode)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert len(files) > 10 and {
        stat.S_IMODE(path.stat().st_mode) for path in files
    } == {usual}


# A manifest that is damaged


def kept(folder):
    return sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file()
    )


def test_a_folder_whose_manifest_has_another_name_is_set_aside_whole(tmp_path):
    """A flipped bit in a name: what is listed is not there, and what is there is not listed."""
    folder = storage.write_folder(
        tmp_path / "step", lambda path: (path / "state.pt").write_text("1")
    )
    manifest = folder / storage.MANIFEST
    manifest.write_text(manifest.read_text().replace("state.pt", "state.pu"))
    storage.remove_folder(folder)
    assert kept(tmp_path) == [
        f"step{storage.ASIDE}/manifest.json",
        f"step{storage.ASIDE}/state.pt",
    ]


def test_a_manifest_that_names_files_elsewhere_removes_none_of_them(tmp_path):
    folder = storage.write_folder(
        tmp_path / "step", lambda path: (path / "state.pt").write_text("1")
    )
    (
        (tmp_path / "thesis.pt").write_text("mine"),
        (folder / "notes.txt").write_text("mine"),
    )
    manifest = folder / storage.MANIFEST
    sums = json.loads(manifest.read_text()) | {
        "../thesis.pt": "0",
        str(tmp_path / "thesis.pt"): "0",
    }
    manifest.write_text(json.dumps(sums))
    storage.remove_folder(folder)
    assert {"thesis.pt", f"step{storage.ASIDE}/notes.txt"} <= {*kept(tmp_path)}


def test_a_foreign_link_that_leads_nowhere_stays(tmp_path):
    folder = storage.write_folder(
        tmp_path / "step", lambda path: (path / "state.pt").write_text("1")
    )
    try:
        (folder / "mine").symlink_to(tmp_path / "a-disk-that-is-not-mounted")
    except OSError:
        pytest.skip("Windows makes links for administrators only")
    storage.remove_folder(folder)
    assert (tmp_path / f"step{storage.ASIDE}" / "mine").is_symlink()


def test_a_folder_that_lacks_a_file_is_removed_all_the_same(tmp_path):
    folder = storage.write_folder(
        tmp_path / "step", lambda path: (path / "state.pt").write_text("1")
    )
    (folder / "state.pt").unlink()
    storage.remove_folder(folder)
    assert not any(tmp_path.iterdir())


# A finished folder that is damaged


@pytest.mark.parametrize("content", ["", "[]", "{", "null"])
def test_a_record_that_is_damaged_is_one_clear_line(
    content, two, tokens, whole, tmp_path, capsys
):
    shutil.copytree(whole.folder, tmp_path / "run")
    (tmp_path / "run" / "agnews_run.json").write_text(content, encoding="utf-8")
    before = names(tmp_path)
    with pytest.raises(AgnewsError, match="agnews_run.json"):
        train(load_model(two), tokens, two, tmp_path / "run")
    assert main(["predict", "text", "--output-dir", str(tmp_path / "run")]) == 2
    assert "agnews_run.json" in capsys.readouterr().err and names(tmp_path) == before


@pytest.mark.parametrize(
    "name", ["history.csv", "steps.csv", "tokenizer.json", "config.json"]
)
def test_a_finished_run_that_lacks_a_file_is_made_again(
    name, two, tokens, whole, tmp_path, capsys
):
    shutil.copytree(whole.folder, tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    run = train(load_model(two), tokens, two, tmp_path / "run")
    assert f"is damaged ({name}); training it again" in capsys.readouterr().out
    assert same_weights(run.model, whole.model) and names(tmp_path / "run") == FINISHED


# Weights that are not numbers


def test_a_classifier_whose_answers_are_not_numbers_does_not_answer(
    two, tmp_path, capsys
):
    model = load_model(two)
    model.classifier.weight.data[0, 0] = float("nan")
    write_classifier(model, load_tokenizer(two), tmp_path)
    with pytest.raises(
        NonFiniteError,
        match="logits are not finite: the model's weights are damaged",
    ):
        classify(["Stocks fall"], tmp_path)
    assert main(["predict", "Stocks fall", "--output-dir", str(tmp_path)]) == 2
    assert "not finite" in capsys.readouterr().err


def test_a_run_over_weights_that_are_not_numbers_is_not_finished(two, tokens, tmp_path):
    model = load_model(two)
    model.classifier.bias.data[1] = float("nan")
    with pytest.raises(NonFiniteError, match="The loss of the step after step 0"):
        train(model, tokens, two, tmp_path)
    assert not run_facts(tmp_path)


# The command


@pytest.fixture
def small(monkeypatch, tiny):
    monkeypatch.setenv("AGNEWS_MODEL", str(tiny))
    monkeypatch.setenv("AGNEWS_TRAIN_ROWS", "44")
    monkeypatch.setenv("AGNEWS_TEST_ROWS", "20")


def printed_command(output):
    [line] = [line for line in output.splitlines() if "agnews train --resume" in line]
    return shlex.split(line[line.index("agnews train") :])[1:]


def test_the_printed_command_continues_the_run(small, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "my run; it's new"
    flags = [
        "--epochs",
        "2",
        "--learning-rate",
        "1e-3",
        "--max-length",
        "64",
        "--no-group-by-length",
    ]
    assert main(["train", *flags, "--steps", "3", "--output-dir", str(folder)]) == 0
    command = printed_command(capsys.readouterr().out)
    (
        monkeypatch.delenv("AGNEWS_MODEL"),
        monkeypatch.delenv("AGNEWS_TRAIN_ROWS"),
    )  # another terminal
    monkeypatch.chdir(tmp_path)
    assert main(command) == 0
    assert "Continuing after step 3 of 10" in capsys.readouterr().out
    recipe = run_facts(folder)["recipe"]
    assert (recipe["epochs"], recipe["max_length"], recipe["group_by_length"]) == (
        2,
        64,
        False,
    )


def test_resume_where_there_is_nothing_to_resume(small, tmp_path, capsys):
    assert main(["train", "--resume", "--output-dir", str(tmp_path / "none")]) == 2
    assert "there is nothing to continue" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_evaluate_and_predict_use_the_runs_own_settings(
    small, two, tmp_path, monkeypatch, capsys
):
    folder = str(tmp_path / "run")
    assert (
        main(["train", "--epochs", "1", "--max-length", "16", "--output-dir", folder])
        == 0
    )
    monkeypatch.delenv("AGNEWS_TEST_ROWS")
    assert (
        main(
            ["evaluate", "--output-dir", folder, "--json", str(tmp_path / "test.json")]
        )
        == 0
    )
    figures = json.loads((tmp_path / "test.json").read_text(encoding="utf-8"))
    assert figures["recipe"]["max_length"] == 16 and figures["test"]["rows"] == 20
    start = "word " * 14
    table = classify([start + "end " * 300, start + "other " * 300], folder)
    assert (
        table.iloc[0, 2:].tolist() == table.iloc[1, 2:].tolist()
    )  # what differs is cut off


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGHUP")
@pytest.mark.slow
def test_a_terminal_that_is_closed_is_a_wish_to_stop(small, tmp_path):
    import pty

    folder, (terminal, its) = tmp_path / "run", pty.openpty()
    command = [
        sys.executable,
        "-m",
        "agnews_helpers",
        "train",
        "--epochs",
        "4000",
        "--output-dir",
        str(folder),
    ]
    take = (
        "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        f"os.execv({sys.executable!r}, {command!r})"
    )
    with subprocess.Popen(
        [sys.executable, "-c", take], stdin=its, stdout=its, stderr=its
    ) as child:
        os.close(its)
        os.set_blocking(terminal, False)
        for _ in range(1200):
            if (folder / "agnews_run.json").exists():
                break
            time.sleep(0.1)
            try:
                os.read(terminal, 65536)
            except BlockingIOError:
                pass
        os.close(terminal)
        assert child.wait(timeout=60) == 130
    assert find_checkpoints(folder) and not list(folder.rglob(f"{storage.PARTIAL}*"))


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_a_signal_that_is_ignored_stays_ignored(two, tokens, whole, tmp_path):
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        model = load_model(two)
        model.register_forward_hook(lambda *_: signal.raise_signal(signal.SIGHUP))
        run = train(model, tokens, two, tmp_path)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert run.finished and same_weights(run.model, whole.model)


@pytest.mark.parametrize(
    "words",
    [
        "could not create a primitive",
        "Resource temporarily unavailable",
        "[enforce fail] can't allocate memory",
        "not enough memory: you tried to allocate 9 bytes",
        "MPS backend out of memory",
    ],
)
def test_memory_that_runs_out_on_a_cpu_is_recognised(words):
    assert training.is_out_of_memory(RuntimeError(words))
