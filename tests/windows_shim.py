"""What Windows refuses, on any Linux: for tests and `benchmarks/faults.py`.

Windows neither renames, replaces nor removes a file that some program has open or
mapped into memory, nor a folder with such a file in it; and nothing takes the place of
a folder. `windows` refuses the same. It can also hold a file, as a virus scanner does:
from one operation on, for some seconds. The clock is simulated, so that nothing really
waits: only where `storage` sleeps does it go on. With `real_clock` it is the true one.

Python asks a hook before each of its operations on files, which an error from it
prevents. What libraries in Rust or C++ open by themselves is not seen.
"""

import os
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

from agnews_helpers.plumbing import storage

OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod")
WAITS = 6  # as storage has it there
NOT_OURS = "rows.log"  # written by a campaign, beside the run's files
PROC = Path("/", "proc", "self")  # what this process has open and mapped
# On POSIX the lock's file is deleted by storage, while it is open; on Windows by
# filelock, when it is closed.
LOCK = ".agnews.lock"


@dataclass
class Machine:
    """What happens in one folder.

    folder : its operations are counted. held_from : the number of the operation that is
    refused first, from 1; 0 holds nothing. seconds : how long the file is held; 0: for
    that one operation. real_clock : whether they pass by themselves. slept : seconds so
    far. count : operations so far. operations : what they were. held : the file, once
    it is held. refused : how often.
    """

    folder: Path
    held_from: int = 0
    seconds: float = 0.0
    real_clock: bool = False
    slept: float = 0.0
    count: int = 0
    operations: list = field(default_factory=list)
    held: Path | None = None
    until: float = 0.0
    refused: int = 0

    @property
    def now(self):
        return time.monotonic() if self.real_clock else self.slept

    def sleep(self, seconds):
        if self.real_clock:
            time.sleep(seconds)
        self.slept += seconds

    def before(self, event, arguments):
        """Count an operation, and refuse it if Windows would."""
        paths = _paths(event, arguments)
        if not any(path.is_relative_to(self.folder) for path in paths):
            return
        is_gone = event in ("os.rename", "os.remove") and not os.path.lexists(paths[0])
        is_look = event == "open" and paths[0].is_dir()
        if is_gone or is_look or paths[0].name == NOT_OURS:
            return
        self.count += 1
        self.operations.append((event, paths))
        if self.count == self.held_from:
            self.held, self.until = paths[0], self.now + self.seconds
            self.refuse(event, self.held)
        # To open a file touches no other; to rename a folder touches all that is in it.
        touched = [p for p in paths if self.held and _touches(event, p, self.held)]
        if touched and self.now < self.until:
            self.refuse(event, touched[0])
        if event in ("os.rename", "os.remove"):
            self.refuse_what_is_open(event, paths)

    def refuse_what_is_open(self, event, paths):
        if event == "os.rename" and paths[1].is_dir() and paths[0] != paths[1]:
            self.refuse(event, paths[1], 5)
        for file in _open_files(str(self.folder)):
            for path in paths:
                if file.is_relative_to(path) and file.name != LOCK:
                    self.refuse(event, path)

    def refuse(self, event, path, code=32):
        self.refused += 1
        error = PermissionError(13, "in use by another program", str(path))
        if event != "open":  # for which Python knows only that permission is denied
            error.winerror = code
        raise error


def _paths(event, arguments):
    """The files of an operation, as absolute paths."""
    names = arguments[:2] if event == "os.rename" else arguments[:1]
    if not all(isinstance(name, (str, bytes, os.PathLike)) for name in names):
        return []  # an open descriptor
    # Python removes a tree from inside: by a name in a folder that is open.
    inside = [fd for fd in arguments[len(names) :] if isinstance(fd, int) and fd > 2]
    start = Path()
    if event in ("os.remove", "os.rmdir") and inside:
        start = (PROC / "fd" / str(inside[0])).resolve()
    paths = [start / os.fsdecode(name) for name in names]
    return [path.parent.resolve() / path.name for path in paths]


def _touches(event, path, held):
    inside = event != "open" and held.is_relative_to(path) and held.exists()
    return held == path or inside


@lru_cache(maxsize=1)
def _maps(sizes):
    """What is mapped: a long text, read again only if our memory's sizes change."""
    return (PROC / "maps").read_text(encoding="utf-8")


def _open_files(folder):
    """The files in a folder that this process has open or mapped into memory."""
    lines = _maps((PROC / "statm").read_text(encoding="utf-8")).splitlines()
    names = [line[line.index(folder) :] for line in lines if folder in line]
    for descriptor in (PROC / "fd").iterdir():
        with suppress(OSError):  # of the folder that is being listed
            names.append(str(descriptor.readlink()))
    return {Path(name) for name in names if name.startswith(folder)}


_machines = []
_looking = []


def _hook(event, arguments):
    if _machines and event in OPERATIONS and not _looking:
        _looking.append(True)  # what the look itself opens is no operation
        try:
            _machines[-1].before(event, arguments)
        finally:
            _looking.clear()


sys.addaudithook(_hook)


@contextmanager
def windows(folder: Path, held_from=0, seconds=0.0, real_clock=False):
    """Context manager: files in a folder behave as on Windows. Yields the `Machine`."""
    machine = Machine(Path(folder).resolve(), held_from, seconds, real_clock)

    def rename(source, target):
        if os.path.lexists(target) and Path(source) != Path(target):
            error = FileExistsError(17, "it exists", str(target))
            error.winerror = 183
            raise error
        real(source, target)

    real, os.rename = os.rename, rename
    before = storage.os, storage.time, storage.WAITS
    # Windows cannot open a folder.
    storage.os = SimpleNamespace(**{**vars(os), "name": "nt"})
    storage.time = SimpleNamespace(sleep=machine.sleep)
    storage.WAITS = WAITS
    _machines.append(machine)
    try:
        yield machine
    finally:
        _machines.pop()
        os.rename = real
        storage.os, storage.time, storage.WAITS = before
