"""Files that no crash leaves half-written, and a lock on a run's folder. Notebook 10.

What this program did not write is neither overwritten nor deleted here.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import Damaged, FolderInUse, InvalidValue, SaveError

FORMAT = 3  # of run.json and progress.json; version 2 wrote none
# The names that a run owns in its output folder.
RUN_FILE = "run.json"
BEST = "best"
CARD = "README.md"  # in best/: the model card
HISTORY = "history.csv"
STEPS = "steps.csv"
CHECKPOINTS = "checkpoints"
# In each folder that `write_folder` made: the SHA-256 of its files.
MANIFEST = "manifest.json"
PARTIAL = ".agnews-partial-"  # prefix: being written, or being deleted
STAGING_NAME = re.compile(rf"{PARTIAL}.+-[0-9a-f]{{32}}")
# Inside a folder: no part of it is empty, or dots alone.
PLAIN_NAME = re.compile(r"(?!.*(^|/)\.*(/|$))[^\\:\0-\x1f\ud800-\udfff]+")
SET_ASIDE_SUFFIX = ".set-aside"  # damaged or modified: kept, but no longer used
OPTIONAL = "a classifier can be loaded without it (rename it)"
NO_ROOM = (errno.ENOSPC, errno.EIO, errno.EDQUOT)
# How often to wait for a file that is held, in all 22 s: on Windows a virus scanner or
# OneDrive may hold what was just written. Elsewhere, 2 s: a refusal mostly lasts.
WAITS = 3 if os.name == "posix" else 6


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
    partial = staging_name(folder)
    moved = staging_name(folder)
    with _saving(folder):
        try:
            retry_if_held(partial.mkdir, 0o777, True)
            retry_if_held(write, partial)
            files = [path for path in sorted(partial.rglob("*")) if path.is_file()]
            sums = {p.relative_to(partial).as_posix(): sha256(p) for p in files}
            write_json(partial / MANIFEST, sums)
            for path in files:
                # Some writers make files that only their owner can read.
                retry_if_held(shutil.copymode, partial / MANIFEST, path)
                _flush(path)
            _flush(partial)
            if os.path.lexists(folder):
                _move_away(folder, moved)
            retry_if_held(partial.rename, folder)
            _flush(folder.parent)
        finally:
            with suppress(OSError):  # where no new one came, the old one comes back
                retry_if_held(moved.rename, folder)
            _discard(partial)
    _discard(moved)
    return folder


def remove_folder(folder: Path) -> None:
    """Delete a folder that `write_folder` made.

    Anything else is set aside instead: a link, a file, or a folder with a file that
    its manifest does not name. If another program holds it, it stays, with a note: it
    is to be deleted by hand.

    Parameters
    ----------
    folder : Path
        A folder that exists.
    """
    moved = staging_name(folder)
    try:
        _move_away(folder, moved)
    except OSError as error:
        print(f"note: {folder.name} cannot be removed: {error}. Delete it.")
    _discard(moved)


def _move_away(folder, moved):
    """Rename a folder of ours; set anything else aside."""
    if _is_ours(folder):
        retry_if_held(folder.rename, moved)
    else:
        set_aside(folder, "it holds files that its manifest does not name")


def _discard(path):
    """Delete a file or a folder, if it is there and nobody holds it for long."""
    with suppress(OSError):
        retry_if_held(shutil.rmtree if path.is_dir() else os.unlink, path)


def _is_ours(folder):
    """Tell whether a folder holds nothing but what its manifest names."""
    try:
        ours = {*read_json(folder / MANIFEST), MANIFEST}
    except Damaged:
        return False
    return not any(
        path.is_symlink()
        or (not path.is_dir() and path.relative_to(folder).as_posix() not in ours)
        for path in (folder, *folder.rglob("*"))
    )


def remove_partial(folder: Path) -> None:
    """Delete what a process that died was writing or deleting in a folder.

    Parameters
    ----------
    folder : Path
        The folder to clean.
    """
    for path in folder.glob(f"{PARTIAL}*"):
        if STAGING_NAME.fullmatch(path.name):
            _discard(path)


def staging_name(path: Path) -> Path:
    """Return a new name beside a path, for what is being written or deleted.

    Parameters
    ----------
    path : Path
        What it will be, or was.

    Returns
    -------
    Path
        With a number by which `remove_partial` knows that nobody else made it.
    """
    return path.with_name(f"{PARTIAL}{path.name}-{uuid.uuid4().hex}")


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
        Their names; the manifest's own name if it cannot be read, or if one of the
        names is not that of a file inside the folder.
    """
    if sums is None:
        try:
            sums = read_json(folder / MANIFEST)
        except Damaged:
            return [MANIFEST]
    if not all(map(PLAIN_NAME.fullmatch, sums)):
        return [MANIFEST]
    return [
        name
        for name, wanted in sums.items()
        if not (folder / name).is_file() or sha256(folder / name) != wanted
    ]


def write_record(path: Path, facts: dict) -> None:
    """Write what is known about a run as JSON with a checksum of its own.

    Parameters
    ----------
    path : Path
        The file; it is overwritten.
    facts : dict
        What JSON can hold; among it ``format``.

    Raises
    ------
    SaveError
        If the file cannot be written.
    """
    # First, so that a file that was cut off can be told from a foreign one.
    write_json(path, {"checksum": _checksum(facts), **facts})


def read_record(path: Path) -> dict:
    """Read what `write_record` wrote, and verify its checksum and version.

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
    InvalidValue
        If another version wrote it.
    """
    facts = read_json(path)
    if facts.pop("checksum", None) != _checksum(facts):
        raise Damaged(f"{path} does not match its checksum; {OPTIONAL}")
    if facts.get("format") != FORMAT:
        raise InvalidValue(f"{path} was written by another version; {OPTIONAL}")
    return facts


def _checksum(facts):
    return sha256_of_text(json.dumps(facts, sort_keys=True))


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
        Its content; half a character is written as its number.

    Raises
    ------
    SaveError
        If the file cannot be written.
    """
    partial = staging_name(path)
    with _saving(path):
        try:
            retry_if_held(partial.write_bytes, text.encode("utf-8", "backslashreplace"))
            _flush(partial)
            retry_if_held(os.replace, partial, path)
        finally:
            _discard(partial)


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
        return {**json.loads(retry_if_held(path.read_bytes))}
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise Damaged(f"{path.name} is missing in {path.parent}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise Damaged(f"{path} is no JSON object ({error}); {OPTIONAL}") from error


def move(path: Path, target: Path) -> None:
    """Rename a file or folder.

    Parameters
    ----------
    path : Path
        What is renamed.
    target : Path
        A free name; or its own, to see whether another program holds it.

    Raises
    ------
    SaveError
        If it cannot be renamed.
    """
    with _saving(target):
        retry_if_held(path.rename, target)


def retry_if_held(function: Callable, *arguments: Any) -> Any:
    """Call a function, and again as long as another program holds its file.

    At most `WAITS` times, which takes 22 s on Windows and 2 s elsewhere.

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
    for number in range(WAITS):
        try:
            return function(*arguments)
        except (PermissionError, shutil.Error):  # the second is copytree's
            time.sleep(0.35 * 2**number)
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
    with retry_if_held(open, path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_text(text: str) -> str:
    """Return the SHA-256 of a text in UTF-8.

    Parameters
    ----------
    text : str
        The text.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


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
    while os.path.lexists(candidate):
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

    Raises
    ------
    SaveError
        If it cannot be renamed.
    """
    kept = free_name(path.with_name(path.name + SET_ASIDE_SUFFIX))
    move(path, kept)
    print(f"note: {path.name} cannot be used: {why}. It is kept as {kept.name}.")


@contextmanager
def folder_lock(folder: Path) -> Iterator:
    """Context manager: hold the lock of a folder that exists.

    The operating system holds it, so a process that dies leaves no lock behind. (On a
    file system without locks a new filelock makes a file instead, with a warning.)

    Parameters
    ----------
    folder : Path
        The folder.

    Raises
    ------
    FolderInUse
        If another process holds the lock, or the lock's file cannot be opened.
    SaveError
        If something else has the name of the lock.
    OSError, NotImplementedError
        If the folder cannot be written, or, with an old filelock, has no locks.
    """
    from filelock import FileLock, Timeout

    path = folder.resolve() / ".agnews.lock"
    if os.path.lexists(path) and (not path.is_file() or path.lstat().st_size):
        raise SaveError(
            f"{path} is no lock, or that of a run on a file system without locks. If "
            "no run goes on here, move it away. Or give another folder."
        )
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except (Timeout, PermissionError) as error:
        if not path.exists():
            raise  # nothing can be written here
        raise FolderInUse(
            f"Another process is training into {folder}, or its lock cannot be opened "
            f"({error}). Wait until that process ends, or give another folder."
        ) from error
    path.touch()
    ours = path.stat()
    try:
        yield
    finally:
        with suppress(OSError):
            # Not the lock of a run that was begun here after this folder was renamed.
            # While it is held: Windows cannot do that, and deletes it afterwards.
            if os.path.samestat(path.stat(), ours):
                path.unlink()
        lock.release()


def _flush(path):
    """Have a file's bytes, or a folder's names, on the disk, not only in memory."""
    if path.is_dir() and os.name != "posix":
        return  # Windows cannot open a folder, and does not need it
    handle = retry_if_held(os.open, path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
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
            f"{path.name} could not be saved in {path.parent.as_posix()}: {reason}. "
            "What was saved before is untouched. Make room on the disk; close the "
            "program that holds the file, such as Excel or another notebook's kernel; "
            "or give another folder."
        ) from reason
