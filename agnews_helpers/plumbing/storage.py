"""Files that no crash leaves half-written, and a lock on a run's folder. Notebook 08.

What this program did not write is neither overwritten nor deleted here.
"""

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from .errors import Damaged, FolderInUse, SaveError

# The names that a run owns in its output folder.
RUN_FILE = "run.json"
BEST = "best"
HISTORY = "history.csv"
STEPS = "steps.csv"
CHECKPOINTS = "checkpoints"
# In each folder that `write_folder` made: the SHA-256 of its files.
MANIFEST = "manifest.json"
PARTIAL = ".agnews-partial-"  # prefix: being written, or being deleted
SET_ASIDE_SUFFIX = ".set-aside"  # damaged or modified: kept, but no longer used
OPTIONAL = "a classifier can be loaded without it (rename it)"
NO_ROOM = (errno.ENOSPC, errno.EIO, getattr(errno, "EDQUOT", errno.ENOSPC))


def write_folder(folder: Path, write: Callable) -> Path:
    """Make a folder that is there whole or not at all.

    The files are written to a staging folder beside it; their SHA-256 is noted in
    ``manifest.json``; they are flushed to the disk; the folder is renamed. A folder
    of ours that has this name is replaced.

    Parameters
    ----------
    folder : Path
        The name that the folder will have.
    write : Callable
        ``write(path)`` writes the files into the staging folder.

    Returns
    -------
    Path
        `folder`.

    Raises
    ------
    SaveError
        If the disk is full or the folder cannot be written.
    """
    partial = folder.with_name(f"{PARTIAL}{folder.name}-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    with _saving(folder), ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, partial, ignore_errors=True)
        partial.mkdir(parents=True)
        write(partial)
        files = [path for path in sorted(partial.rglob("*")) if path.is_file()]
        sums = {path.relative_to(partial).as_posix(): sha256(path) for path in files}
        write_json(partial / MANIFEST, sums)
        for path in files:
            # Some writers make files that only their owner can read.
            shutil.copymode(partial / MANIFEST, path)
            _flush(path)
        _flush(partial)
        if folder.exists():
            remove_folder(folder)
        retry_permission_error(os.replace, partial, folder)
        _flush(folder.parent)
    return folder


def remove_folder(folder: Path) -> None:
    """Delete a folder that `write_folder` made.

    If it contains files that its manifest does not name, it is set aside instead. If
    another program holds it, it stays, with a note.

    Parameters
    ----------
    folder : Path
        A folder that exists.
    """
    paths = [p for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()]
    present = {path.relative_to(folder).as_posix() for path in paths}
    ours = set()
    with suppress(Damaged):
        ours = {*read_json(folder / MANIFEST), MANIFEST}
    if not present <= ours:
        set_aside(folder, "it holds files that its manifest does not name")
        return
    moved = folder.with_name(f"{PARTIAL}old-{folder.name}")
    try:
        retry_permission_error(os.replace, folder, moved)
    except OSError as error:
        print(f"note: {folder.name} cannot be removed: {error}. It stays.")
    shutil.rmtree(moved, ignore_errors=True)


def remove_partial(folder: Path) -> None:
    """Delete what a process that died was writing or deleting in a folder.

    Parameters
    ----------
    folder : Path
        The folder to clean.
    """
    for path in folder.glob(f"{PARTIAL}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def damaged_files(folder: Path, sums: dict[str, str] | None = None) -> list[str]:
    """List the files of a folder that are missing or have changed.

    Parameters
    ----------
    folder : Path
        Where the files are.
    sums : dict, optional
        File name -> SHA-256. Default: the folder's manifest.

    Returns
    -------
    list of str
        Their names; the manifest's own name if it cannot be read.
    """
    if sums is None:
        try:
            sums = read_json(folder / MANIFEST)
        except Damaged:
            return [MANIFEST]
    return [
        name
        for name, wanted in sums.items()
        if not (folder / name).is_file() or sha256(folder / name) != wanted
    ]


def write_record(path: Path, facts: dict) -> None:
    """Write facts as JSON with a checksum of their own.

    Parameters
    ----------
    path : Path
        The file; it is overwritten.
    facts : dict
        What JSON can hold.

    Raises
    ------
    SaveError
        If the file cannot be written.
    """
    write_json(path, {**facts, "checksum": _checksum(facts)})


def read_record(path: Path) -> dict:
    """Read what `write_record` wrote, and verify its checksum.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    dict
        The facts, without the checksum.

    Raises
    ------
    Damaged
        If the file is missing, is no JSON object, or does not match its checksum.
    """
    facts = read_json(path)
    if facts.pop("checksum", None) != _checksum(facts):
        raise Damaged(f"{path} does not match its checksum; {OPTIONAL}")
    return facts


def _checksum(facts):
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def write_json(path: Path, values: Any) -> None:
    """Write values as JSON, all or nothing.

    Parameters
    ----------
    path : Path
        The file; it is overwritten.
    values : object
        What JSON can hold.

    Raises
    ------
    SaveError
        If the file cannot be written.
    """
    save_text(path, json.dumps(values, indent=2))


def save_text(path: Path, text: str) -> None:
    """Write a small text file, all or nothing, as UTF-8.

    Parameters
    ----------
    path : Path
        The file; it is overwritten.
    text : str
        Its content.

    Raises
    ------
    SaveError
        If the file cannot be written.
    """
    partial = path.with_name(PARTIAL + path.name)
    with _saving(path), ExitStack() as cleanup:
        cleanup.callback(partial.unlink, missing_ok=True)
        partial.write_text(text, encoding="utf-8")
        _flush(partial)
        retry_permission_error(os.replace, partial, path)


def try_file(path: Path) -> None:
    """Check that a file could be written: better now than after hours of work.

    Parameters
    ----------
    path : Path
        The file. Its folder is made; the file itself is not touched.

    Raises
    ------
    SaveError
        If it could not be written.
    """
    if path.is_dir():
        raise SaveError(f"{path} is a folder. Give the name of a file.")
    with _saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=path.parent).close()


def read_json(path: Path) -> dict:
    """Read the object in a JSON file.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    dict

    Raises
    ------
    Damaged
        If the file is missing or does not hold a JSON object.
    """
    try:
        return {**json.loads(retry_permission_error(path.read_bytes))}
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Damaged(f"{path.name} is missing in {path.parent}") from error
    except (TypeError, ValueError) as error:
        raise Damaged(f"{path} is no JSON object ({error}); {OPTIONAL}") from error


def retry_permission_error(function: Callable, *arguments: Any) -> Any:
    """Call a function, retrying PermissionError for about 2 s.

    On Windows a virus scanner may hold a file open that long.

    Parameters
    ----------
    function : Callable
        What to call.
    *arguments
        Its arguments.

    Returns
    -------
    object
        What the function returns.
    """
    for seconds in (0.1, 0.4, 1.6):
        try:
            return function(*arguments)
        except PermissionError:
            time.sleep(seconds)
    return function(*arguments)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    with retry_permission_error(open, path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def free_name(path: Path) -> Path:
    """Return a path that does not exist yet.

    Parameters
    ----------
    path : Path
        The wanted name.

    Returns
    -------
    Path
        `path`, or, if it exists, `path` with ``-2``, ``-3``, ... appended.
    """
    candidate = path
    number = 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate


def set_aside(path: Path, why: str) -> None:
    """Rename a damaged or modified file or folder, so that it is kept but not used.

    Parameters
    ----------
    path : Path
        It becomes ``NAME.set-aside``.
    why : str
        The reason, which is printed.
    """
    kept = free_name(path.with_name(path.name + SET_ASIDE_SUFFIX))
    retry_permission_error(os.replace, path, kept)
    print(f"note: {path.name} cannot be used: {why}. It is kept as {kept.name}.")


@contextmanager
def folder_lock(folder: Path) -> Iterator:
    """Context manager: hold the lock of a folder that exists.

    The operating system holds it, so a process that dies leaves no lock behind.

    Parameters
    ----------
    folder : Path
        The folder.

    Raises
    ------
    FolderInUse
        If another process holds the lock, or the lock's file cannot be opened.
    """
    from filelock import FileLock, Timeout

    path = folder.resolve() / ".agnews.lock"
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except (Timeout, PermissionError) as error:
        raise FolderInUse(
            f"Another process is training into {folder}, or its lock cannot be opened "
            f"({error}). Wait until that process ends, or give another folder."
        ) from error
    except (OSError, NotImplementedError) as error:  # the second is filelock's
        print(
            f"note: {folder} is on a file system without locks ({error}); let only "
            "one run use it."
        )
    try:
        yield
    finally:
        with suppress(OSError):
            # While it is held. Windows cannot do that, and deletes it afterwards.
            path.unlink()
        lock.release()


def _flush(path):
    """Have a file's bytes, or a folder's names, on the disk, not only in memory."""
    if path.is_dir() and os.name != "posix":
        return  # Windows cannot open a folder, and does not need it
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno in NO_ROOM:
            raise
        # A file system that cannot flush: a power cut may lose the last save.
    finally:
        os.close(handle)


@contextmanager
def _saving(path):
    """Turn any failure into SaveError for `path`."""
    try:
        yield
    except Exception as error:
        # A full disk reaches us as OSError, RuntimeError or SafetensorError.
        reason = error.__cause__ or error
        raise SaveError(
            f"{path.name} could not be saved in {path.parent}: {reason}. What was "
            "saved before is untouched. Make room on the disk, or give another folder."
        ) from error
