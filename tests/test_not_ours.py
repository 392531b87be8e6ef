"""Foreign files stay; what was changed for a moment is put back."""

import ctypes
import errno
import json
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from agnews_helpers import (
    FolderInUse,
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
from agnews_helpers.plumbing import storage
from agnews_helpers.runs import OpenRun
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


NAMES_ELSEWHERE = [
    "../victims/known.txt",
    "best/../../victims/known.txt",
    "..\\victims\\known.txt",
    "/victims/known.txt",
    "thesis.txt",
    "",
    "a\0b",
    "\ud800",
]


@pytest.fixture
def victims(tmp_path):
    """A file beside the run's folder, and one inside it; both must stay."""
    for name in ("victims/known.txt", "run/thesis.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("known", encoding="utf-8")
    yield tmp_path / "victims"
    for name in ("victims/known.txt", "run/thesis.txt"):
        assert (tmp_path / name).read_text(encoding="utf-8") == "known"


def forge(folder, victims, name, **changes):
    """Write a name, with the right checksum of a file elsewhere, into run.json."""
    name = str(victims / "known.txt") if name == "/victims/known.txt" else name
    record = folder / "run.json"
    facts = storage.read_record(record) if record.exists() else {}
    sums = facts.get("files", {}) | {name: storage.sha256(victims / "known.txt")}
    storage.write_record(record, facts | {"files": sums} | changes)


@pytest.mark.parametrize("name", NAMES_ELSEWHERE)
def test_a_name_in_a_record_is_not_used_as_a_path(
    name, victims, whole, two, tokens, tmp_path, no_training
):
    """The finished run is returned all the same."""
    folder = tmp_path / "run"
    shutil.copytree(whole.folder, folder, dirs_exist_ok=True)
    forge(folder, victims, name)
    before = contents(folder)
    assert_same_run(train(load_model(two), tokens, two, folder), whole)
    assert contents(folder) == before


@pytest.mark.parametrize("name", NAMES_ELSEWHERE[:1] + NAMES_ELSEWHERE[-3:])
@pytest.mark.slow
def test_a_name_in_a_record_is_not_used_when_the_run_is_replaced(
    name, victims, whole, two, tokens, tmp_path
):
    folder = tmp_path / "run"
    shutil.copytree(whole.folder, folder, dirs_exist_ok=True)
    forge(folder, victims, name)
    assert_same_run(train(load_model(two), tokens, two, folder, resume=False), whole)
    kept = contents(folder).keys() - contents(whole.folder).keys()
    assert kept == {"thesis.txt"}


@pytest.mark.parametrize("name", NAMES_ELSEWHERE[:1] + NAMES_ELSEWHERE[-3:])
def test_a_record_that_holds_only_a_name_elsewhere_is_refused(
    name, victims, two, tokens, tmp_path, no_training
):
    folder = tmp_path / "run"
    forge(folder, victims, name, finished=True)
    before = contents(folder)
    for resume in ("auto", True, False):
        with pytest.raises(
            SaveError, match="holds run.json, but no run.json that this version"
        ):
            train(load_model(two), tokens, two, folder, resume=resume)
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["../victims/known.txt", "/victims/known.txt"])
def test_a_name_in_a_manifest_is_not_used_as_a_path(
    name, victims, whole, two, tokens, tmp_path, capsys
):
    """Neither in best/ nor in a checkpoint; both are set aside."""
    folder = tmp_path / "run"
    train(load_model(two), tokens, two, folder, steps=6)
    train(load_model(two), tokens, two, folder, steps=2)
    name = str(victims / "known.txt") if name == "/victims/known.txt" else name
    [newest, _] = find_checkpoints(folder)
    for place in (folder / "best", newest):
        sums = storage.read_json(place / "manifest.json")
        sums[name] = storage.sha256(victims / "known.txt")
        storage.write_json(place / "manifest.json", sums)
    capsys.readouterr()
    assert_same_run(train(load_model(two), tokens, two, folder), whole)
    output = capsys.readouterr().out
    assert "note: step-00000008 cannot be used" in output
    assert "note: best cannot be used" in output and "Resuming after step 6" in output


@pytest.mark.parametrize("number", [2, 4])
def test_a_record_of_another_format_is_refused_and_stays(
    number, whole, two, tokens, tmp_path, no_training, capsys
):
    folder = shutil.copytree(whole.folder, tmp_path / "run")
    facts = storage.read_record(folder / "run.json")
    storage.write_record(folder / "run.json", facts | {"format": number})
    before = contents(folder)
    everything = "best, history.csv, steps.csv, run.json"
    expected = f"holds {everything}, but no run.json that this version can read"
    expected += ".*Or move them away"
    with pytest.raises(SaveError, match=expected):
        train(load_model(two), tokens, two, folder, resume=False)
    for command in (["predict", "text"], ["evaluate"], ["train", "--resume"]):
        assert main([*command, "--output-dir", str(folder)]) == 2
        assert "another version" in capsys.readouterr().err
    assert contents(folder) == before
    (tmp_path / "away").mkdir()
    for name in everything.split(", "):  # the advice leads to no second refusal
        (folder / name).rename(tmp_path / "away" / name)
    with OpenRun(folder, load_model(two), tokens, two) as run:
        assert not run.is_finished


@pytest.mark.parametrize("name", ["history.csv", "steps.csv"])
def test_a_foreign_file_that_came_while_it_trained_is_set_aside(
    name, whole, two, tokens, tmp_path
):
    """Also a link that leads nowhere."""
    train(load_model(two), tokens, two, tmp_path, steps=6)
    (tmp_path / name).write_text("mine", encoding="utf-8")
    assert_same_run(train(load_model(two), tokens, two, tmp_path), whole)
    kept = tmp_path / f"{name}{storage.SET_ASIDE_SUFFIX}"
    assert kept.read_text(encoding="utf-8") == "mine"


@posix_links
@pytest.mark.parametrize("name", ["best", "history.csv", "steps.csv"])
@pytest.mark.slow
def test_a_link_to_nothing_that_came_while_it_trained_is_set_aside(
    name, whole, two, tokens, tmp_path
):
    folder = tmp_path / "run"
    train(load_model(two), tokens, two, folder, steps=6)
    if name == "best":
        (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "not-mounted")
    assert_same_run(train(load_model(two), tokens, two, folder), whole)
    assert (folder / f"{name}{storage.SET_ASIDE_SUFFIX}").is_symlink()


@pytest.mark.parametrize("name", [".agnews.lock", "checkpoints/.agnews.lock"])
def test_a_foreign_lock_is_refused_before_the_first_step(
    name, two, tokens, tmp_path, no_training
):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine", encoding="utf-8")
    before = contents(tmp_path)
    with pytest.raises(SaveError, match="is no lock"):
        train(load_model(two), tokens, two, tmp_path)
    assert contents(tmp_path) == before


# State that is put back


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_failure_leaves_the_model_as_it_was(
    precision, two, tokens, tmp_path, monkeypatch
):
    model = load_model(two)

    def fail(*_, **__):
        assert model.training and ("forward" in vars(model)) == (precision == "bf16")
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
def test_a_file_system_without_locks_is_refused(
    error, two, tokens, tmp_path, monkeypatch, no_training
):
    def acquire(self):
        raise error

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    with pytest.raises(SaveError, match="cannot be used: .*Give another output folder"):
        train(load_model(two), tokens, two, tmp_path)


@pytest.mark.parametrize("where", ["run", "run/deeper"])
def test_an_output_folder_that_cannot_be_written_is_found_out_at_once(
    where, two, tokens, tmp_path, no_training
):
    (tmp_path / "run").write_text("a file", encoding="utf-8")
    expected = "cannot be used.*Give another output folder"
    with pytest.raises(SaveError, match=expected):
        train(load_model(two), tokens, two, tmp_path / where)


def test_an_output_folder_whose_name_is_not_utf_8(two, tokens, tmp_path, no_training):
    """From an old archive, say: the weights could not be written into it."""
    expected = "cannot be used: 'utf-8' codec.*Give another output folder"
    with pytest.raises(SaveError, match=expected):
        train(load_model(two), tokens, two, tmp_path / "r\udcfcn")
    assert not any(tmp_path.iterdir())


@posix_links
def test_an_output_folder_that_links_to_itself(two, tokens, tmp_path):
    (tmp_path / "run").symlink_to(tmp_path / "run")
    expected = "run cannot be used.*Give another output folder"
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


def test_the_checkpoints_may_really_be_on_another_disk(two, tokens, whole, tmp_path):
    shared = Path("/dev", "shm")
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("this machine has no second file system to write to")
    (tmp_path / "run").mkdir()
    with tempfile.TemporaryDirectory(dir=shared) as elsewhere:
        (tmp_path / "run" / "checkpoints").symlink_to(elsewhere)
        for steps in (3, 3):
            train(load_model(two), tokens, two, tmp_path / "run", steps=steps)
        assert len(find_checkpoints(tmp_path / "run")) == 2
        assert_same_run(train(load_model(two), tokens, two, tmp_path / "run"), whole)
        assert not any(Path(elsewhere).iterdir())
    assert (tmp_path / "run" / "checkpoints").is_symlink()


@posix_links
def test_checkpoints_that_link_to_nothing_are_found_out_at_once(
    two, tokens, tmp_path, no_training
):
    (tmp_path / "checkpoints").symlink_to(tmp_path / "not-mounted")
    with pytest.raises(SaveError, match="cannot be used.*Give another output folder"):
        train(load_model(two), tokens, two, tmp_path)
    assert (tmp_path / "checkpoints").is_symlink()


@posix_links
def test_checkpoints_of_a_run_that_goes_on_are_not_shared(
    two, tokens, tmp_path, no_training
):
    """Two folders whose checkpoints link to the same place."""
    (tmp_path / "elsewhere").mkdir()
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "checkpoints").symlink_to(tmp_path / "elsewhere")
    with OpenRun(tmp_path / "one", load_model(two), tokens, two):
        with pytest.raises(FolderInUse, match="Another process is training into"):
            train(load_model(two), tokens, two, tmp_path / "other")


@pytest.mark.skipif(os.name != "posix", reason="Windows has other permissions")
@pytest.mark.parametrize("name", [".", "checkpoints"])
def test_a_folder_that_may_not_be_written_is_found_out_at_once(
    name, two, tokens, tmp_path, no_training
):
    """It is not said that another process trains there."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "mine.txt").touch()
    closed = tmp_path / name
    closed.chmod(0o555)
    try:
        with as_an_ordinary_user():
            with pytest.raises(SaveError, match="cannot be used: .*Permission denied"):
                train(load_model(two), tokens, two, tmp_path)
    finally:
        closed.chmod(0o755)
    assert [*contents(tmp_path)] == ["checkpoints", "checkpoints/mine.txt"]


@contextmanager
def as_an_ordinary_user():
    """Give up root's right to write everywhere (Linux), as long as it lasts."""
    libc = ctypes.CDLL(None)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    before, now = ((ctypes.c_uint32 * 6)() for _ in range(2))
    can = sys.platform == "linux" and os.geteuid() == 0
    if can and libc.capget(header, before) == 0:
        now[:] = before[:]
        now[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        libc.capset(header, now)
    try:
        yield
    finally:
        if can:
            libc.capset(header, before)


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
    words = {"loss": 1.0, "describe": str}
    reports = iter([SimpleNamespace(accuracy=x, **words) for x in (0.5, 0.25)])
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


def test_a_run_that_was_begun_in_its_place_keeps_its_lock_and_its_folder(
    two, tokens, whole, tmp_path, monkeypatch
):
    """When the run of the renamed folder ends, the other one has saved nothing yet."""
    folder = tmp_path / "run"
    other = OpenRun(folder, load_model(two), tokens, two)

    def rename():
        monkeypatch.undo()
        folder.rename(tmp_path / "moved")
        other.__enter__()

    call_after_step(monkeypatch, 3, rename)
    with pytest.raises(SaveError, match="was deleted or renamed. Put it back"):
        train(load_model(two), tokens, two, folder, save_minutes=1e-9)
    try:
        assert (folder / "checkpoints").is_dir()
        with pytest.raises(FolderInUse):
            train(load_model(two), tokens, two, folder)
    finally:
        other.__exit__()
    assert_same_run(train(load_model(two), tokens, two, folder), whole)


@pytest.mark.skipif(os.name != "posix", reason="Windows keeps a folder that is locked")
def test_a_folder_that_is_deleted_and_made_again_is_another_one(
    two, tokens, tmp_path, monkeypatch
):
    """Although file systems give the number of a deleted folder to the next one."""
    folder = tmp_path / "run"

    def replace():
        number = (folder / "checkpoints").stat().st_ino
        shutil.rmtree(folder)
        tries = [folder / f"try-{i}" for i in range(200)]
        for path in tries:
            path.mkdir(parents=True)
        same = [path for path in tries if path.stat().st_ino == number]
        (same or tries)[0].rename(folder / "checkpoints")

    call_after_step(monkeypatch, 3, replace)
    with pytest.raises(SaveError, match="was deleted or renamed. Put it back"):
        train(load_model(two), tokens, two, folder, save_minutes=1e-9)
    assert not find_checkpoints(folder)


def test_checkpoints_that_is_a_file_is_found_out_at_once(two, tokens, tmp_path):
    (tmp_path / "checkpoints").write_text("a file", encoding="utf-8")
    with pytest.raises(SaveError, match="cannot be used"):
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
