"""Files that no crash leaves half-written, and a lock on a run's folder. Notebook 08.

What this program did not write is neither replaced nor removed here.
"""

import errno
import functools
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile

from .errors import Damaged, FolderInUse, SaveError

MANIFEST, PROGRESS, RUN_FILE = "manifest.json", "progress.json", "agnews_run.json"
OUTPUTS = "config.json model.safetensors tokenizer.json tokenizer_config.json history.csv steps.csv".split()
RESERVED_NAMES = (
    MANIFEST,
    PROGRESS,
    RUN_FILE,
    *OUTPUTS,
)  # in a run's folder; nothing else may take these names
PARTIAL = (
    ".agnews-partial-"  # before its name: not all of it is on the disk yet, or any more
)
ASIDE = ".set-aside"  # after its name: not what was written there; kept, for its owner to look at
NO_ROOM = (errno.ENOSPC, errno.EIO, getattr(errno, "EDQUOT", errno.ENOSPC))
print_once = functools.cache(print)  # each text


def write_folder(folder: Path, write: Callable[[Path], object]) -> Path:
    """Make `folder` with what ``write(path)`` puts there, all of it or nothing.

    The files are written beside it under another name, their SHA-256 noted in ``manifest.json``, flushed
    to the disk, and renamed: whoever finds `folder` finds it whole. One of our own that exists is replaced.
    SaveError where the disk is full or the folder cannot be written.
    """
    partial = folder.with_name(f"{PARTIAL}{folder.name}-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    with _saving(folder), ExitStack() as afterwards:
        afterwards.callback(
            shutil.rmtree, partial, ignore_errors=True
        )  # finds nothing where all went well
        partial.mkdir(parents=True)
        write(partial)
        files = [path for path in sorted(partial.rglob("*")) if path.is_file()]
        write_json(
            partial / MANIFEST,
            {path.relative_to(partial).as_posix(): sha256(path) for path in files},
        )
        for path in files:
            shutil.copymode(
                partial / MANIFEST, path
            )  # some writers make files for their owner alone
            _flush(path)
        _flush(partial)
        if folder.exists():
            remove_folder(folder)
        retry_permission_error(os.replace, partial, folder)
        _flush(folder.parent)
    return folder


def damaged_files(folder: Path, sums: dict[str, str] | None = None) -> list[str]:
    """The files of a folder that are missing or have other bytes than `sums`, or else its manifest, says."""
    try:
        sums = read_json(folder / MANIFEST) if sums is None else sums
    except Damaged:
        return [MANIFEST]
    return [
        name
        for name, wanted in sums.items()
        if not matches_sha256(folder / name, wanted)
    ]


def remove_folder(folder: Path) -> None:
    """Take away what `write_folder` made, at once. Where other files lie in it, all of it is set aside."""
    found = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if not path.is_dir()
    }
    listed = set()
    with suppress(Damaged):
        listed = {*read_json(folder / MANIFEST), MANIFEST}
    if found <= listed:
        going = folder.with_name(f"{PARTIAL}old-{folder.name}")
        retry_permission_error(os.replace, folder, going)
        shutil.rmtree(going, ignore_errors=True)
    else:
        set_aside(folder, "it holds files that its manifest does not name")


def publish(source: Path, target: Path, record: str, facts: dict) -> None:
    """Move the files of `source` into `target`, where others may be, and describe them in the file `record`.

    `record` is a JSON file of `facts`, and of ``files``, the SHA-256 of each. Until all are there it has
    ``writing`` as well, so that it never describes a mixture. One of ours that was changed is set aside.
    SaveError where the disk is full, or a file of another origin is in the way.
    """
    new = read_json(
        source / MANIFEST
    )  # of `write_folder`: nothing is read a second time
    told = read_json(target / record) if (target / record).is_file() else {}
    refuse_foreign(target, new, told)
    known = [
        new,
        told.get("files", {}),
        told.get("writing", {}),
    ]  # the last, of one that died in here
    with _saving(target / record):
        write_json(
            target / record,
            facts | {"finished": False, "files": known[1], "writing": known[2] | new},
        )
        for name in {**known[1], **known[2]}:
            if (target / name).is_file() and sha256(target / name) not in [
                sums.get(name) for sums in known
            ]:
                set_aside(target / name, "it was changed since it was saved")
            elif name not in new:
                (target / name).unlink(missing_ok=True)
        for name in new:
            retry_permission_error(os.replace, source / name, target / name)
        write_json(target / record, facts | {"files": new})
        _flush(target)
    shutil.rmtree(source, ignore_errors=True)


def refuse_foreign(folder: Path, names: Iterable[str], record: dict) -> None:
    """Raise SaveError where one of `names` is in `folder` and not in the record of what we put there."""
    ours = [*record.get("files", ()), *record.get("writing", ())]
    if foreign := [
        name for name in names if name not in ours and (folder / name).exists()
    ]:
        there = f"{folder} holds {', '.join(foreign)}, which no run of this version wrote there"
        raise SaveError(
            f"{there}; they would be replaced. Give another output folder, or move them away."
        )


def write_json(path: Path, values) -> None:
    """Write `values` as JSON, as `save_text` does."""
    save_text(path, json.dumps(values, indent=2))


def save_text(path: Path, text: str) -> None:
    """Write a small file at once or not at all. Raises SaveError."""
    partial = path.with_name(PARTIAL + path.name)
    with _saving(path), ExitStack() as afterwards:
        afterwards.callback(partial.unlink, missing_ok=True)
        partial.write_text(text, encoding="utf-8")
        _flush(partial)
        retry_permission_error(os.replace, partial, path)


def try_file(path: Path) -> None:
    """Raise SaveError where a file could not be written: better now than after hours of work."""
    if path.is_dir():
        raise SaveError(f"{path} is a folder. Give the name of a file.")
    with _saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent) as trial:
            trial.write(bytes(2**16))


def read_json(path: Path) -> dict:
    """The object in a JSON file. Raises Damaged, also where the file is missing or holds something else."""
    try:
        return {**json.loads(retry_permission_error(path.read_bytes))}
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Damaged(f"{path.name} is missing in {path.parent}") from error
    except (TypeError, ValueError) as error:
        raise Damaged(
            f"{path} does not hold names and values in JSON ({error})"
        ) from error


def retry_permission_error(function: Callable, *arguments):
    """``function(*arguments)``, tried again for two seconds: a virus scanner may hold a file so long."""
    for wait in (0.1, 0.4, 1.6):
        try:
            return function(*arguments)
        except PermissionError:
            time.sleep(wait)
    return function(*arguments)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, as hexadecimal digits."""
    with retry_permission_error(open, path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(rows) -> str:
    """Sixteen hexadecimal digits of the SHA-256 over a split's tokens and labels, in their order."""
    table = rows.select_columns(["input_ids", "label"]).with_format("arrow")[:]
    ids = table["input_ids"].combine_chunks()
    sums = hashlib.sha256()
    for column in (ids.flatten(), ids.value_lengths(), table["label"].combine_chunks()):
        sums.update(column.to_numpy(zero_copy_only=False).astype("int64").tobytes())
    return sums.hexdigest()[:16]


def matches_sha256(path: Path, wanted: str | None) -> bool:
    """Whether `path` is a file with that SHA-256."""
    return path.is_file() and sha256(path) == wanted


def free_name(path: Path) -> Path:
    """`path`, or with a number behind it if there is something of that name."""
    numbered = (path.with_name(f"{path.name}-{number}") for number in range(2, 10**6))
    return (
        path
        if not path.exists()
        else next(other for other in numbered if not other.exists())
    )


def set_aside(path: Path, why: str) -> None:
    """Give a file or folder that is not what was written a name under which nothing touches it again."""
    kept = free_name(path.with_name(path.name + ASIDE))
    retry_permission_error(os.replace, path, kept)
    print(f"note: {path.name} cannot be used: {why}. It is kept as {kept.name}.")


def remove_if_empty(folder: Path) -> None:
    """Take a folder away if nothing is in it."""
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`, which exists. It is the system's: a process that dies leaves none behind.

    FolderInUse where another process has it, or its file cannot be opened.
    """
    from filelock import FileLock, Timeout

    path = folder.resolve() / ".agnews.lock"
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        advice = "Wait until it ends, or give another folder."
        raise FolderInUse(
            f"Another process is training into {folder}. {advice}"
        ) from error
    except PermissionError as error:
        raise FolderInUse(
            f"{path} cannot be opened: {error.strerror}. Give another folder."
        ) from error
    except (OSError, NotImplementedError) as error:
        print(
            f"note: {folder} is on a file system without locks ({error}); let only one run use it."
        )
    try:
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # while it is held; Windows cannot, and does it by itself afterwards
        lock.release()


def _flush(path: Path) -> None:
    """Have a file's bytes, or the names in a folder, on the disk and not only in the system's memory."""
    if (
        path.is_dir() and os.name != "posix"
    ):  # Windows cannot open a folder, and does not need it
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        print_once(
            f"note: {path.parent} cannot flush ({error}): a power cut may lose the last save."
        )
    finally:
        os.close(handle)


@contextmanager
def _saving(path: Path) -> Iterator[None]:
    """Say of what fails in here that `path` could not be saved; where the disk is full, how much is free."""
    try:
        yield
    except (
        Exception
    ) as error:  # a full disk reaches us as OSError, RuntimeError or SafetensorError
        advice = "Give another folder."
        if not isinstance(error, OSError) or error.errno in NO_ROOM:
            with suppress(OSError):
                free = shutil.disk_usage(path.parent).free / 2**20
                advice = f"{free:,.0f} MiB are free there: make room, or give another folder."
        failed = f"{path.name} could not be saved in {path.parent}: {error}."
        raise SaveError(
            f"{failed} What was saved before is untouched. {advice}"
        ) from error
