"""Foreign files stay; what was changed for a moment is put back."""

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

from agnews_helpers import (
    NonFiniteError,
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
from tests.compare import assert_same_run, contents

posix_links = pytest.mark.skipif(
    os.name != "posix", reason="on Windows links need rights"
)


@pytest.fixture(scope="module")
def two(recipe):
    return recipe.replace(epochs=2)


@pytest.fixture(scope="module")
def whole(two, tokens, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    return train(load_model(two), tokens, two, folder)


@pytest.fixture
def no_training(monkeypatch):
    """Training is an error: what is wrong is found out before it."""

    def fail(*_, **__):
        pytest.fail("trained first")

    monkeypatch.setattr(training, "forward_backward", fail)


# Foreign files


@pytest.mark.parametrize("resume", ["auto", False])
def test_foreign_files_stay(resume, two, tokens, tmp_path):
    foreign = (
        "agnews_run.json",
        "checkpoints/.partial-notes",
        "checkpoints/step-00000005/optimizer.pt",
        "checkpoints/step-1/model.safetensors",
        "checkpoints/thesis.pt",
        "config.json",
        "mine.txt",
        "model.safetensors",
        "tokenizer.json",
    )
    for name in foreign:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"precious")
    train(load_model(two), tokens, two, tmp_path, resume=resume, steps=3)
    [ours] = find_checkpoints(tmp_path)
    (ours / "note.txt").write_bytes(b"a remark")  # inside one of ours
    train(load_model(two), tokens, two, tmp_path, resume=False)
    now = contents(tmp_path)
    assert all(now[name] == b"precious" for name in foreign)
    kept = f"checkpoints/step-00000003{storage.SET_ASIDE_SUFFIX}/note.txt"
    assert now[kept] == b"a remark"
    assert not find_checkpoints(tmp_path)


def test_a_run_may_be_inside_the_folder_of_its_model(tiny, two, tokens, tmp_path):
    """All files of the model stay, and the new classifier is loaded."""
    folder = shutil.copytree(tiny, tmp_path / "model")
    before = contents(folder)
    recipe = two.replace(model=str(folder))
    train(load_model(recipe), tokens, recipe, folder, steps=3)
    run = train(load_model(recipe), tokens, recipe, folder)
    now = contents(folder)
    assert {name: now[name] for name in before} == before
    head = load_classifier(folder)[0].classifier.weight
    assert head.equal(run.model.classifier.weight)


# State that is put back


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_failure_leaves_the_model_as_it_was(
    precision, two, tokens, tmp_path, monkeypatch
):
    model = load_model(two)

    def fail(*_, **__):
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


# Litter


def test_an_empty_output_folder_is_empty_after_an_error(
    two, tokens, tmp_path, monkeypatch
):
    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(training, "forward_backward", fail)
    with pytest.raises(ZeroDivisionError):
        train(load_model(two), tokens, two, tmp_path)
    assert not any(tmp_path.iterdir())


# Odd folders and file systems


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
    assert "is on a file system without locks" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["run", "run/deeper"])
def test_an_output_folder_that_cannot_be_written_is_found_out_at_once(
    where, two, tokens, tmp_path, no_training
):
    (tmp_path / "run").write_text("a file", encoding="utf-8")
    expected = "cannot be written.*Give another output folder"
    with pytest.raises(SaveError, match=expected):
        train(load_model(two), tokens, two, tmp_path / where)


def test_an_output_folder_whose_name_is_not_utf_8(two, tokens, tmp_path, no_training):
    """From an old archive, say: the weights could not be written into it."""
    expected = "cannot be written: 'utf-8' codec.*Give another output folder"
    with pytest.raises(SaveError, match=expected):
        train(load_model(two), tokens, two, tmp_path / "r\udcfcn")
    assert not any(tmp_path.iterdir())


@posix_links
def test_an_output_folder_that_links_to_itself(two, tokens, tmp_path):
    (tmp_path / "run").symlink_to(tmp_path / "run")
    expected = "run cannot be written.*Give another output folder"
    with pytest.raises(SaveError, match=expected):
        train(load_model(two), tokens, two, tmp_path / "run")


@posix_links
def test_the_checkpoints_may_be_on_another_disk(
    two, tokens, whole, tmp_path, monkeypatch
):
    """Linked to: the room is looked for there."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(elsewhere)
    full = SimpleNamespace(total=2**40, free=0)

    def usage(path):
        return real(path) if path.resolve() == elsewhere.resolve() else full

    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", usage)
    train(load_model(two), tokens, two, tmp_path / "run", steps=3)
    assert [path.name for path in elsewhere.iterdir()] == ["step-00000003"]
    assert_same_run(train(load_model(two), tokens, two, tmp_path / "run"), whole)
    assert not any(elsewhere.iterdir())


def call_after_step(monkeypatch, step, function):
    """Have `function` called after a step of the next run."""
    add_step = State.add_step

    def counted(state, loss):
        add_step(state, loss)
        if len(state.losses) == step:
            function()

    monkeypatch.setattr(State, "add_step", counted)


@pytest.mark.parametrize("step", [2, 10], ids=["before a save", "at the end"])
def test_a_folder_that_is_deleted_while_it_trains(
    step, two, tokens, tmp_path, monkeypatch
):
    folder = tmp_path / "run"
    call_after_step(monkeypatch, step, lambda: shutil.rmtree(folder))
    reports = iter([SimpleNamespace(accuracy=x, loss=1.0) for x in (0.5, 0.25)])
    # The second epoch is not the best one, so nothing is saved between it and the end.
    monkeypatch.setattr(training, "evaluate", lambda *_: next(reports))
    minutes = 1e-9 if step == 2 else 60.0
    with pytest.raises(SaveError, match="was deleted or renamed. Put it back"):
        train(load_model(two), tokens, two, folder, save_minutes=minutes)
    assert not folder.exists()


@pytest.mark.parametrize("another", [False, True], ids=["renamed", "another run"])
def test_a_folder_that_is_renamed_while_it_trains(
    another, two, tokens, whole, tmp_path, monkeypatch
):
    """A run does not write into the folder of the run that was begun in its place."""
    folder = tmp_path / "run"
    moved = tmp_path / "moved"

    def rename():
        monkeypatch.undo()
        folder.rename(moved)
        if another:
            other = two.replace(seed=7)
            train(load_model(other), tokens, other, folder, steps=2)

    call_after_step(monkeypatch, 3, rename)
    with pytest.raises(SaveError, match="was deleted or renamed. Put it back"):
        train(load_model(two), tokens, two, folder, save_minutes=1e-9)
    if another:
        [path] = find_checkpoints(folder)
        assert path.name == "step-00000002"
        shutil.rmtree(folder)
    moved.rename(folder)
    assert_same_run(train(load_model(two), tokens, two, folder), whole)


def test_checkpoints_that_is_a_file_is_found_out_at_once(two, tokens, tmp_path):
    (tmp_path / "checkpoints").write_text("a file", encoding="utf-8")
    with pytest.raises(SaveError, match="cannot be written"):
        train(load_model(two), tokens, two, tmp_path)
    assert contents(tmp_path) == {"checkpoints": b"a file"}


@pytest.mark.skipif(os.name != "posix", reason="Windows has other permissions")
def test_all_files_can_be_read_by_whoever_may_read_a_new_file(two, tokens, tmp_path):
    train(load_model(two), tokens, two, tmp_path / "run", steps=6)
    (tmp_path / "new").touch()
    usual = stat.S_IMODE((tmp_path / "new").stat().st_mode)
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in files}
    assert len(files) > 10 and modes == {usual}


# A finished folder that is damaged


@pytest.mark.parametrize("content", ["", "[]", "{", "null", '{"checksum": "0"}'])
def test_a_record_that_is_damaged_is_one_clear_line(content, whole, tmp_path, capsys):
    folder = shutil.copytree(whole.folder, tmp_path / "run")
    (folder / "run.json").write_text(content, encoding="utf-8")
    before = contents(folder)
    for command in (["predict", "text"], ["evaluate"], ["train", "--resume"]):
        assert main([*command, "--output-dir", str(folder)]) == 2
        [line] = capsys.readouterr().err.splitlines()
        assert "run.json" in line and "rename it" in line
    assert contents(folder) == before
    (folder / "run.json").rename(folder / "elsewhere.json")
    assert len(classify(["a text"], folder)) == 1


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


def test_the_printed_command_resumes_the_run(small, tmp_path, monkeypatch, capsys):
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
    assert "Resuming after step 3 of 10" in capsys.readouterr().out
    recipe = run_facts(folder)["recipe"]
    assert (recipe["epochs"], recipe["max_length"], recipe["group_by_length"]) == (
        2,
        64,
        False,
    )


def test_resume_without_a_run_is_one_line(small, tmp_path, capsys):
    assert main(["train", "--resume", "--output-dir", str(tmp_path / "none")]) == 2
    assert "holds no run that could be resumed" in capsys.readouterr().err
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


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGHUP")
def test_a_terminal_that_is_closed_asks_the_run_to_stop(small, tmp_path):
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
    take = f"""if True:
        import fcntl, os, sys, termios
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
        os.execv({sys.executable!r}, {command!r})
    """
    with subprocess.Popen(
        [sys.executable, "-c", take], stdin=its, stdout=its, stderr=its
    ) as child:
        os.close(its)
        os.set_blocking(terminal, False)
        for _ in range(1200):
            if (folder / "run.json").exists():
                break
            time.sleep(0.1)
            try:
                os.read(terminal, 65536)
            except BlockingIOError:
                pass
        os.close(terminal)
        assert child.wait(timeout=60) == 128 + signal.SIGHUP
    assert find_checkpoints(folder) and not list(folder.rglob(f"{storage.PARTIAL}*"))
