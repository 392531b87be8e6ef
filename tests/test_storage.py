"""Folders that are whole or not there, records with a checksum, and the lock."""

import errno
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from agnews_helpers import FolderInUse, SaveError
from agnews_helpers.plumbing import storage
from agnews_helpers.plumbing.errors import Damaged, InvalidValue
from agnews_helpers.plumbing.storage import (
    damaged_files,
    folder_lock,
    read_record,
    remove_folder,
    remove_partial,
    write_folder,
    write_record,
)
from tests.compare import contents

links = pytest.mark.skipif(os.name != "posix", reason="on Windows links need rights")


def write_one(path: Path) -> None:
    (path / "state.pt").write_text("1", encoding="utf-8")


@pytest.fixture
def step(tmp_path):
    """A folder that `write_folder` made."""
    return write_folder(tmp_path / "step", write_one)


# Whole or not there


def test_a_folder_is_written_whole_or_not_at_all(step, tmp_path):
    assert damaged_files(step) == []
    assert [*storage.read_json(step / "manifest.json")] == ["state.pt"]

    def fails(path):
        (path / "state.pt").write_text("2", encoding="utf-8")
        raise OSError("no")

    with pytest.raises(SaveError, match="step could not be saved in .*: no"):
        write_folder(step, fails)
    assert (step / "state.pt").read_text(encoding="utf-8") == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["step"]
    (step / "state.pt").write_text("3", encoding="utf-8")
    assert damaged_files(step) == ["state.pt"]
    (step / "manifest.json").unlink()
    assert damaged_files(step) == ["manifest.json"]


def test_a_folder_of_ours_is_replaced_without_a_trace(step, tmp_path):
    def another(path):
        (path / "other.pt").write_text("2", encoding="utf-8")

    write_folder(step, another)
    assert damaged_files(step) == []
    assert sorted(contents(tmp_path)) == [
        "step",
        "step/manifest.json",
        "step/other.pt",
    ]


@pytest.mark.parametrize("content", ["[]", "", "{", '"text"', "null"])
def test_a_manifest_that_is_no_object_is_damage(content, step):
    (step / "manifest.json").write_text(content, encoding="utf-8")
    assert damaged_files(step) == ["manifest.json"]


WRONG_NAMES = [
    "../known.txt",
    "best/../../known.txt",
    "..\\known.txt",
    "C:\\known.txt",
    "",
    ".",
    "a\0b",
    "\ud800",
    "\x1b[2J",
]


@pytest.mark.parametrize("name", [*WRONG_NAMES, "/known.txt"])
def test_a_manifest_with_a_name_that_leads_elsewhere_is_damaged(name, step, tmp_path):
    """Even if the file is there, and its checksum is right."""
    known = tmp_path / "known.txt"
    known.write_text("known", encoding="utf-8")
    name = str(known) if name == "/known.txt" else name
    sums = storage.read_json(step / "manifest.json") | {name: storage.sha256(known)}
    (step / "manifest.json").write_text(json.dumps(sums), encoding="utf-8")
    assert damaged_files(step) == ["manifest.json"]
    assert damaged_files(step, {name: storage.sha256(known)}) == ["manifest.json"]


def test_names_inside_the_folder_are_used(tmp_path):
    def write(path):
        for name in ("a.txt", "best/tokenizer_config.json", "Ä-1.spm"):
            (path / name).parent.mkdir(exist_ok=True)
            (path / name).write_text(name, encoding="utf-8")

    folder = write_folder(tmp_path / "step", write)
    assert damaged_files(folder) == []
    (folder / "best" / "tokenizer_config.json").unlink()
    assert damaged_files(folder) == ["best/tokenizer_config.json"]


@pytest.mark.parametrize(
    "name",
    [
        ".DS_Store",
        "._state.pt",
        "config copy (1).json",
        "config.json~",
        "best/.config.json.swp",
        "best/.ipynb_checkpoints/config-checkpoint.json",
    ],
)
def test_files_of_an_editor_do_not_damage_a_folder(name, tmp_path):
    """A checkpoint's best/ is copied with all that lies in it."""

    def write(path):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).touch()

    assert damaged_files(write_folder(tmp_path / "step", write)) == []


def test_a_folder_that_was_replaced_is_deleted(tmp_path):
    """As after a crash while the folder before it was deleted."""
    best = write_folder(tmp_path / storage.BEST, write_one)
    best.rename(storage.staging_name(best))
    write_folder(best, lambda path: (path / "new").touch())
    storage.staging_name(tmp_path / "run.json").touch()
    remove_partial(tmp_path)
    assert sorted(contents(tmp_path)) == ["best", "best/manifest.json", "best/new"]


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="Windows has no limit on a file's size")
def test_a_disk_that_is_really_full(tmp_path):
    code = """if True:
        import resource, signal, sys, torch
        from pathlib import Path
        from safetensors.torch import save_file
        from agnews_helpers.plumbing.storage import write_folder
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
        big = torch.zeros(2**19)
        folder = Path(sys.argv[1])
        for write in (
            lambda path: torch.save(big, path / "a.pt"),
            lambda path: save_file({"a": big}, path / "a"),
            lambda path: (path / "a").write_bytes(bytes(2**21)),
        ):
            try:
                write_folder(folder / "made", write)
            except OSError as error:
                print(type(error).__name__, list(folder.iterdir()))
    """
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["SaveError []"] * 3


def test_a_file_system_that_cannot_flush_is_used(tmp_path, monkeypatch):
    def fsync(handle):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fsync)
    assert damaged_files(write_folder(tmp_path / "a", write_one)) == []


@pytest.mark.parametrize("failures", [0, 2, 6, 7])
def test_a_file_that_a_virus_scanner_holds_is_tried_again(failures, monkeypatch):
    """On Windows for 22 s; elsewhere for 2 s, since a refusal is mostly for good."""
    waited = []
    calls = []
    assert storage.WAITS == (3 if os.name == "posix" else 6)
    monkeypatch.setattr(storage, "WAITS", 6)
    monkeypatch.setattr(storage.time, "sleep", waited.append)

    def held(name):
        calls.append(name)
        if len(calls) <= failures:
            raise PermissionError(errno.EACCES, "in use")
        return "read"

    if failures > 6:
        with pytest.raises(PermissionError):
            storage.retry_if_held(held, "a")
    else:
        assert storage.retry_if_held(held, "a") == "read"
    assert waited == [0.35, 0.7, 1.4, 2.8, 5.6, 11.2][:failures]
    assert 10 < sum(waited) < 30 or failures < 6
    assert set(calls) == {"a"}


def test_foreign_files_whose_names_begin_like_ours_stay(tmp_path):
    """What a process left that died has a number of its own in its name."""
    ours = storage.staging_name(tmp_path / "best")
    names = ["best-12", "run.json", "old-best", "mine.txt", ours.name[-32:]]
    for name in names:
        (tmp_path / f"{storage.PARTIAL}{name}").write_text("mine", encoding="utf-8")
    (tmp_path / f"{storage.PARTIAL}notes").mkdir()
    before = contents(tmp_path)
    ours.mkdir()
    (ours / "half").touch()
    remove_partial(tmp_path)
    assert contents(tmp_path) == before


# What is removed, and what is set aside


def test_a_folder_is_removed_also_if_it_lacks_a_file(step, tmp_path):
    (step / "state.pt").unlink()
    remove_folder(step)
    assert not any(tmp_path.iterdir())


def test_a_folder_whose_manifest_names_another_file_is_set_aside_whole(step, tmp_path):
    """A flipped bit in a name: the file that is there is not listed."""
    manifest = step / "manifest.json"
    text = manifest.read_text(encoding="utf-8").replace("state.pt", "state.pu")
    manifest.write_text(text, encoding="utf-8")
    before = contents(step)
    remove_folder(step)
    assert contents(tmp_path / f"step{storage.SET_ASIDE_SUFFIX}") == before


def test_a_manifest_that_names_files_elsewhere_removes_none_of_them(step, tmp_path):
    thesis = tmp_path / "thesis.pt"
    thesis.write_text("mine", encoding="utf-8")
    sums = storage.read_json(step / "manifest.json")
    sums |= {"../thesis.pt": storage.sha256(thesis), str(thesis): "0"}
    (step / "manifest.json").write_text(json.dumps(sums), encoding="utf-8")
    remove_folder(step)
    assert contents(tmp_path) == {"thesis.pt": b"mine"}


@pytest.mark.parametrize(
    "make",
    [
        lambda step: (step / "notes.txt").write_text("mine", encoding="utf-8"),
        pytest.param(
            lambda step: (step / "mine").symlink_to(step / "not-mounted"), marks=links
        ),
        pytest.param(lambda step: (step / "mine").symlink_to(step.parent), marks=links),
    ],
    ids=["file", "link to nothing", "link to a folder"],
)
def test_a_folder_with_something_foreign_in_it_is_set_aside(make, step, tmp_path):
    make(step)
    before = contents(step)
    remove_folder(step)
    [kept] = tmp_path.iterdir()
    assert kept.name == f"step{storage.SET_ASIDE_SUFFIX}" and contents(kept) == before


def test_a_folder_that_cannot_be_removed_stays_with_a_note(step, monkeypatch, capsys):
    """As while another program on Windows has a file in it open."""

    def held(*_):
        raise PermissionError(errno.EACCES, "in use")

    monkeypatch.setattr(storage.time, "sleep", lambda _: None)
    monkeypatch.setattr(Path, "rename", held)
    remove_folder(step)
    assert damaged_files(step) == []
    assert "note: step cannot be removed" in capsys.readouterr().out


@links
@pytest.mark.parametrize("target", ["elsewhere", "not-mounted"])
def test_a_link_in_the_place_of_a_folder_is_set_aside(target, step, tmp_path):
    step.rename(tmp_path / "elsewhere")
    step.symlink_to(tmp_path / target)
    before = contents(tmp_path / "elsewhere")
    write_folder(step, write_one)
    kept = tmp_path / f"step{storage.SET_ASIDE_SUFFIX}"
    assert kept.readlink() == tmp_path / target
    assert contents(tmp_path / "elsewhere") == before and not step.is_symlink()


def test_a_folder_that_cannot_be_looked_at_stays_with_a_note(step, monkeypatch, capsys):
    def closed(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(storage, "read_json", closed)
    before = contents(step)
    remove_folder(step)
    assert contents(step) == before
    assert "note: step cannot be removed: [Errno 13]" in capsys.readouterr().out


@links
def test_nothing_is_written_through_a_link_or_over_one(tmp_path):
    """Not over one that leads nowhere either."""
    (tmp_path / "known.txt").write_text("known", encoding="utf-8")
    link = tmp_path / f"{storage.PARTIAL}a.json"
    link.symlink_to(tmp_path / "known.txt")
    aside = tmp_path / f"a.json{storage.SET_ASIDE_SUFFIX}"
    aside.symlink_to(tmp_path / "not-mounted")
    for text in ("1", "2"):
        storage.save_text(tmp_path / "a.json", text)
    storage.set_aside(tmp_path / "a.json", "it is damaged")
    assert (tmp_path / "known.txt").read_text(encoding="utf-8") == "known"
    assert link.is_symlink() and aside.is_symlink()
    assert (tmp_path / f"{aside.name}-2").read_text(encoding="utf-8") == "2"


# Records


RECORD = {
    "format": 3,
    "run": "0123abcd",
    "identity": {"learning_rate": 1e-05, "classes": "World, Ä"},
    "recipe": {"rows": 120, "data": None},
    "finished": False,
    "steps": 7,
    "epoch": 1,
    "seconds": 0.1,
    "files": {},
}


def test_a_record_is_read_as_it_was_written(tmp_path):
    write_record(tmp_path / "run.json", RECORD)
    assert read_record(tmp_path / "run.json") == RECORD
    assert [*contents(tmp_path)] == ["run.json"]


def test_a_record_of_another_format_is_that_of_another_version(tmp_path):
    """Although its checksum is right: missing, of another type, another format."""
    path = tmp_path / "run.json"
    others = [{**RECORD, "format": other} for other in (None, [], 4, "3")]
    others += [{key: value for key, value in RECORD.items() if key != "format"}]
    for facts in others:
        write_record(path, facts)
        with pytest.raises(
            InvalidValue, match="run.json was written by another version"
        ):
            read_record(path)


def test_no_bit_of_a_record_can_be_flipped_unseen(tmp_path):
    """The result is the same facts, as from E for e in 1e-05, or Damaged."""
    path = tmp_path / "run.json"
    write_record(path, RECORD)
    data = path.read_bytes()
    damaged = 0
    for position in range(len(data)):
        for bit in (0, 3, 5, 7):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            path.write_bytes(changed)
            try:
                assert read_record(path) == RECORD
            except Damaged:
                damaged += 1
    assert damaged > 0.9 * 4 * len(data)


# The lock


def test_the_lock_is_inside_the_folder_and_is_removed_with_it(tmp_path):
    with folder_lock(tmp_path):
        assert [path.parent for path in tmp_path.rglob("*lock*")] == [tmp_path]
    assert contents(tmp_path) == {}


def test_the_lock_of_another_run_stays(tmp_path):
    """One that was begun under the folder's old name, after it was renamed."""
    with ExitStack() as second:
        (tmp_path / "run").mkdir()
        with folder_lock(tmp_path / "run"):
            (tmp_path / "run").rename(tmp_path / "moved")
            (tmp_path / "run").mkdir()
            second.enter_context(folder_lock(tmp_path / "run"))
        with pytest.raises(FolderInUse), folder_lock(tmp_path / "run"):
            pass
    assert contents(tmp_path / "run") == {}


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path.write_text("mine", encoding="utf-8"),
        lambda path: path.mkdir(),
        pytest.param(lambda path: path.symlink_to("known.txt"), marks=links),
        pytest.param(lambda path: path.symlink_to("not-mounted"), marks=links),
    ],
    ids=["file", "folder", "link", "link to nothing"],
)
def test_what_is_no_lock_is_refused_and_stays(make, tmp_path):
    (tmp_path / "known.txt").touch()
    make(tmp_path / ".agnews.lock")
    before = contents(tmp_path)
    with pytest.raises(SaveError, match=".agnews.lock is no lock, or .* move it away"):
        with folder_lock(tmp_path):
            pass
    assert contents(tmp_path) == before
    assert (tmp_path / "known.txt").read_bytes() == b""


def test_a_process_that_dies_leaves_no_lock(tmp_path):
    code = """if True:
        import sys, time
        from pathlib import Path
        from agnews_helpers.plumbing.storage import folder_lock
        with folder_lock(Path(sys.argv[1])):
            print("locked", flush=True)
            time.sleep(60)
    """
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        try:
            assert child.stdout.readline() == "locked\n"
            with pytest.raises(FolderInUse, match="Another process is training into"):
                with folder_lock(tmp_path):
                    pass
        finally:
            child.kill()
    with folder_lock(tmp_path):
        pass


def test_a_lock_file_that_cannot_be_opened_is_one_clear_line(tmp_path, monkeypatch):
    def acquire(self):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    (tmp_path / ".agnews.lock").touch()
    expected = "its lock cannot be opened .*Permission denied.*give another"
    with pytest.raises(FolderInUse, match=expected), folder_lock(tmp_path):
        pass


def test_half_a_character_does_not_stop_a_file(tmp_path):
    storage.save_text(tmp_path / "a.csv", "Bob \ud83d, Zoë")
    assert (tmp_path / "a.csv").read_text(encoding="utf-8") == "Bob \\ud83d, Zoë"
