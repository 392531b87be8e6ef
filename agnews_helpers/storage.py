"""Files that no crash leaves half-written: whole folders with checksums, and a lock on a run's folder. Notebook 04."""
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import Damaged, FolderInUse, SaveError

MANIFEST = "manifest.json"
PARTIAL, OLD = ".partial-", ".old-"  # before its name: not all of it is on the disk yet, or any more


def write_folder(folder: Path, write: Callable[[Path], None]) -> Path:
    """Make `folder` with what ``write(path)`` puts there, all of it or nothing.

    The files are written beside it under another name, their SHA-256 noted in ``manifest.json``, flushed
    to the disk, and renamed: whoever finds `folder` finds it whole. One that exists is replaced.

    Raises
    ------
    SaveError
        When the disk is full or the folder cannot be written.
    """
    partial = folder.with_name(PARTIAL + folder.name)
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        write(partial)
        sums = {path.name: sha256(path) for path in sorted(partial.iterdir())}
        (partial / MANIFEST).write_text(json.dumps(sums, indent=2), encoding="utf-8")
        for path in partial.iterdir():
            _flush(path)
        _flush_folder(partial)
        remove(folder)
        rename(partial, folder)
        _flush_folder(folder.parent)
    except Exception as error:  # a full disk reaches us as OSError, RuntimeError or SafetensorError
        shutil.rmtree(partial, ignore_errors=True)
        raise SaveError(f"{folder.name} could not be saved in {folder.parent}: {error}. {_free(folder.parent)}What was saved "
                        "before is untouched. Make room there, or choose another folder, and run again.") from error
    return folder


def check_folder(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a folder that `write_folder` made, after comparing all of them.

    Raises
    ------
    Damaged
        When anything differs; the message names the file.
    """
    try:
        sums = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        found = {name: sha256(folder / name) for name in sums}
    except FileNotFoundError as error:
        raise Damaged(f"{Path(error.filename).name} is missing in {folder}") from error
    except (OSError, ValueError, TypeError) as error:
        raise Damaged(f"{folder} cannot be read: {error}") from error
    for name, wanted in sums.items():
        if found[name] != wanted:
            raise Damaged(f"{name} in {folder} is damaged: its SHA-256 is not the one noted when it was saved")
    return sums


def publish(source: Path, target: Path, last: str) -> None:
    """Put each file of the folder `source` into `target`, where other files may be, each at once or not at all.

    The file called `last` describes the others: it is taken away first and comes back last, so that it
    never describes a mixture.
    """
    try:
        (target / last).unlink(missing_ok=True)
        for path in sorted(source.iterdir(), key=lambda path: path.name == last):
            if path.name != MANIFEST:
                beside = target / (PARTIAL + path.name)
                beside.unlink(missing_ok=True)
                try:
                    os.link(path, beside)  # no second copy on the disk
                except OSError:
                    shutil.copyfile(path, beside)
                    _flush(beside)
                rename(beside, target / path.name)
        _flush_folder(target)
    except OSError as error:
        raise SaveError(f"The classifier could not be put into {target}: {error}. {_free(target)}It is whole in {source}. "
                        "Is a file of it open in another program?") from error


def write_file(path: Path, text: str) -> None:
    """Write a small file at once or not at all. Raises SaveError."""
    partial = path.with_name(PARTIAL + path.name)
    try:
        partial.write_text(text, encoding="utf-8")
        _flush(partial)
        rename(partial, path)
    except OSError as error:
        raise SaveError(f"{path} could not be written: {error}. {_free(path.parent)}") from error


def rename(source: Path, target: Path) -> None:
    """`os.replace`, patient with Windows, where a virus scanner may hold a new file for a moment."""
    for wait in (0.1, 0.4, 1.6, None):
        try:
            return os.replace(source, target)
        except PermissionError:
            if wait is None:
                raise
            time.sleep(wait)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove(folder: Path) -> None:
    """Take a saved folder away, at once: under its own name there is never a part of it."""
    if folder.exists():
        old = folder.with_name(OLD + folder.name)
        shutil.rmtree(old, ignore_errors=True)
        rename(folder, old)
        shutil.rmtree(old, ignore_errors=True)


def remove_partials(folder: Path) -> None:
    """Take away what a process that died was writing or removing."""
    for path in [*folder.glob(PARTIAL + "*"), *folder.glob(OLD + "*")]:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def let_go(model):
    """Copy a model's weights out of the file that they are mapped from, and return it.

    transformers maps what it loads onto a CPU, and Windows replaces no file that is mapped: a model at work
    in one notebook would keep the next one from saving over it.
    """
    for weight in model.parameters():
        weight.data = weight.data.clone()
    return model


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the folder's lock. The system keeps it, so a process that dies does not leave it behind.

    Raises
    ------
    FolderInUse
        When another process has it.
    """
    from filelock import FileLock, Timeout

    folder = folder.resolve()
    lock = FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise FolderInUse(f"Another process is training into {folder.name}. Wait until it ends, or give another output_dir.") from error
    try:
        yield
    finally:
        lock.release()


def _flush(path: Path) -> None:
    """Have the file's bytes on the disk, not only in the system's memory."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """The same for the names in a folder. Windows cannot open a folder, and does not need it."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _free(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 2**20:,.0f} MiB are free there. "
    except OSError:
        return ""
